"""Data sets of TorchGeo (optional extra `torchgeo`) as cases: what TorchGeo knows how to find and read need not be described again.

Each row of a GeoDataset's index is a case with coordinates, read window by window through the data set's own `__getitem__`. The
items of a NonGeoDataset can only be read whole, so each is decoded once into the cache.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxtile.cases.layouts import SPLITS, CaseFiles, Layout
from voxtile.cases.torchgeo_items import decoded
from voxtile.cases.torchgeo_rows import rows
from voxtile.errors import AbsentError, ConfigError, DataError, did_you_mean, listed, reason

_UNPICKLING = ("SKIPPD",)  # reads pickled objects, which can run code


class TorchGeoLayout(Layout):
    """The cases of a TorchGeo data set."""

    def __init__(self, root: str, dataset: Callable[..., Any], splits: Mapping[str, Any] | None = None) -> None:
        """Remembers the data set; it is made when its cases are looked for.

        Args:
            root: the data set's folder. It is the data set's `root` or `paths` where those are not given; given ones are
                relative to it.
            dataset: class and arguments: in a configuration `{_target_: torchgeo.datasets.…, …}`. Arguments may be such data
                sets again.
            splits: what to ask of the class for "train", "val" and "test": the value of its argument `split`, or several
                arguments by name. None makes one data set whose cases are in no split.

        Raises:
            ConfigError: No data set is given, or `splits` is odd.
        """
        super().__init__(root)
        if not isinstance(dataset, functools.partial):
            raise ConfigError(
                f"'data.layout.dataset={dataset}' names no class to build. Expected, for example, "
                "{_target_: torchgeo.datasets.LandCoverAI}."
            )
        if strange := [name for name in splits or {} if name not in SPLITS]:
            raise ConfigError(f"'data.layout.splits' names '{strange[0]}'; it takes {listed(SPLITS)}.")
        self.dataset = dataset
        self.splits = {
            name: dict(value) if isinstance(value, Mapping) else {"split": value} for name, value in (splits or {"": {}}).items()
        }

    def find(self) -> list[CaseFiles]:
        """See `Layout.find`; a folder that TorchGeo is asked to download into need not be there."""
        if self.dataset.keywords.get("download"):
            self.root.mkdir(parents=True, exist_ok=True)
        return super().find()

    def _expected(self) -> str:
        return f"{self.dataset.func.__name__} has no items"

    def _find(self) -> list[CaseFiles]:
        import torchgeo
        from torchgeo.datasets import GeoDataset

        cases: list[CaseFiles] = []
        for split, arguments in self.splits.items():
            made = self._made(self.dataset, arguments)
            kind = type(made)
            key = repr((kind.__module__, kind.__qualname__, torchgeo.__version__, self.dataset.keywords, arguments))
            cases += (rows if isinstance(made, GeoDataset) else decoded)(made, self.root, split, key)
        return told_apart(cases)

    def _made(self, node: functools.partial[Any], extra: Mapping[str, Any]) -> Any:
        """Makes the data set that a node of the configuration describes, inner ones first."""
        from torchgeo.datasets import DatasetNotFoundError, GeoDataset, NonGeoDataset

        kind, accepted = node.func, inspect.signature(node.func).parameters
        name = getattr(kind, "__name__", str(kind))
        if not (inspect.isclass(kind) and issubclass(kind, GeoDataset | NonGeoDataset)):
            raise ConfigError(f"'data.layout.dataset' names {name}, which is no data set of TorchGeo. Name one of its data sets.")
        if name in _UNPICKLING:
            raise ConfigError(f"TorchGeo's {name} unpickles files, which can run code, and has no masks. Choose another data set.")
        if unknown := [key for key in extra if key not in accepted]:
            raise ConfigError(
                f"'data.layout.splits' sets '{unknown[0]}', and TorchGeo's {name} takes no such "
                f"argument.{did_you_mean(unknown[0], accepted)} It takes {listed(accepted, 20)}."
            )
        arguments = {
            key: self._made(value, {}) if isinstance(value, functools.partial) else value
            for key, value in {**node.keywords, **extra}.items()
        }
        for key in {"root", "paths"} & accepted.keys():
            arguments[key] = self._below(arguments.get(key, ""))
        if "download" in accepted:
            arguments.setdefault("download", False)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Could not find any relevant files")  # an error follows
                return kind(**arguments)
        except DatasetNotFoundError as error:
            fetch = ", or have TorchGeo fetch it with '+data.layout.dataset.download=true'" if "download" in accepted else ""
            raise AbsentError(
                f"TorchGeo's {name} is not in {arguments.get('root', arguments.get('paths'))}: the files that it expects are not "
                "there.",
                f"Put them there, name their place with 'data.layout.root=…'{fetch}.",
            ) from error
        except Exception as error:  # each class refuses in its own way what it does not like
            raise DataError(
                f"TorchGeo's {name} cannot be opened in {self.root}: {reason(error)}. See its documentation for the arguments it "
                "takes ('data.layout.dataset') and the files that it expects."
            ) from error

    def _below(self, given: Any) -> Any:
        """Paths as TorchGeo takes them: relative ones lie below the data set's folder."""
        if isinstance(given, list | tuple):
            return [self._below(each) for each in given]
        return str(self.root / Path(str(given)).expanduser())


def told_apart(cases: Sequence[CaseFiles]) -> list[CaseFiles]:
    """Cases of which a second one of an id is called id_2, and so on, or by the next number where a case has that id already."""
    counts: dict[str, int] = {}
    named: dict[str, CaseFiles] = {}
    for case in cases:
        name = case.id
        while name in named:
            counts[case.id] = counts.get(case.id, 1) + 1
            name = f"{case.id}_{counts[case.id]}"
        named[name] = replace(case, id=name)
    return list(named.values())
