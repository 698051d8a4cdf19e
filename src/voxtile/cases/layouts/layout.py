"""What makes a case on disk, and what finds the cases of a data set."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from voxtile.cases.address import is_address, masked
from voxtile.cases.case import Source
from voxtile.errors import AbsentError, ConfigError, DataError, listed

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        id: the case's name.
        images: one file; or the files whose bands or slices are stacked, in order.
        labels: the label's files, empty where there is none.
        split: "train", "val", "test", or "" where the data set gives none.
        fields: what the patterns found in the names, for grouping.
        tiles: the files that the mosaics in `images` are put together of, empty where they are none.
        sources: opens image and label (or the image alone, where `labels` holds the label) given a nodata value that overrides
            the files'; None where `data.format` says how.
        channels: their names, where the data set gives them; else the files do.
        group: what must never be on both sides of a split, where the layout knows it and `data.group` has no rule.
    """

    id: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...] = ()
    split: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    tiles: tuple[Path, ...] = ()
    sources: Callable[[float | None], tuple[Source, Source | None]] | None = None
    channels: tuple[str, ...] = ()
    group: str = ""

    @property
    def found(self) -> tuple[Path, ...]:
        """The image files that lie in the data set's folder."""
        return self.tiles or self.images


@dataclass(frozen=True)
class Declared:
    """What a data set says of its own labels.

    Attributes:
        where: the file that says it.
        values: class name by stored value; "ignore" for values that are not to be judged.
        regions: the values that a region unites, by its name; regions may overlap.
    """

    where: Path
    values: Mapping[int, str]
    regions: Mapping[str, tuple[int, ...]]

    def check(self, labels: Mapping[int, str], regions: Mapping[str, Sequence[str]]) -> None:
        """Compares them with those of the configuration.

        Args:
            labels: class name by stored value, as `data.labels`.
            regions: class names by name of region, as `data.regions`; empty for none.

        Raises:
            ConfigError: They differ; the message says what to write.
        """
        wanted = {value: _named(name) for value, name in sorted(self.values.items())}
        if not self.regions:
            if dict(labels) != wanted:
                text = _mapping(wanted)
                raise ConfigError(
                    f"'data.labels' is {dict(labels)} and does not agree with {self.where}. Expected 'labels: {text}'; write that "
                    f"into the data set's file, or type '~data.labels' '+data.labels={text}'."
                )
            return
        unions = {_named(name): sorted(values) for name, values in self.regions.items()}
        single = {value: wanted.get(value) or self._proposed(value) for value in sorted({*wanted, *chain(*unions.values())})}
        found = {name: sorted(value for value, of in labels.items() if of in classes) for name, classes in regions.items()}
        if found != unions or set(labels) != set(single) or any(labels[value] != name for value, name in wanted.items()):
            text, replaced = _mapping(single), "'~data.regions' " if regions else ""  # null cannot be taken out
            united = _mapping({name: f"[{', '.join(single[value] for value in union)}]" for name, union in unions.items()})
            raise ConfigError(
                f"'data.labels' is {dict(labels)} and 'data.regions' {dict(regions) or None}, and {self.where} describes regions, "
                f"which may overlap ({'; '.join(f'{name}: {listed(union)}' for name, union in unions.items())}). Expected a class "
                f"for each value and these regions as unions of classes, whose names you may choose: for example 'labels: {text}' "
                f"and 'regions: {united}'; write that into the data set's file, or type '~data.labels' '+data.labels={text}' "
                f"{replaced}'+data.regions={united}'."
            )

    def _proposed(self, value: int) -> str:
        """A class name for a value that only regions name: of its innermost region, or of what is left of it by those within."""
        name, union = min(((_named(n), u) for n, u in self.regions.items() if value in u), key=lambda each: len(each[1]))
        if len(union) == 1:
            return name
        inner = {other for each in self.regions.values() if len(each) < len(union) for other in each}
        return f"rest of {name}" if [other for other in union if other not in inner] == [value] else f"value{value}"


def _mapping(values: Mapping[Any, str]) -> str:
    """A mapping as it is typed, and as it stands in a data set's file."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


def _named(name: str) -> str:
    """A name without the signs that no class may have."""
    return re.sub(r"[^\w .()+-]", "_", name)


class Layout(ABC):
    """Finds the cases of a data set. A new layout is one subclass and its configuration."""

    def __init__(self, root: str) -> None:
        """Remembers the data set's folder; nothing is read before `find`."""
        self.given = str(root)
        self.root = Path(root).expanduser()

    def find(self) -> list[CaseFiles]:
        """Returns the cases in a stable order.

        Raises:
            DataError: The folder is missing, holds no case, or images and labels do not match.
            ConfigError: The layout is not what its base class asks for.
        """
        if not hasattr(self, "given"):
            raise ConfigError(
                f"The layout {type(self).__module__}.{type(self).__qualname__} knows no folder: its constructor must call "
                "`super().__init__(root)`. Correct it in the class."
            )
        if is_address(self.given):
            raise DataError(
                f"The data folder is an address, {masked(self.given)}, and folders elsewhere cannot be listed. Name the files in a "
                "text file, one 'image label' a line, with 'data.layout._target_=voxtile.cases.layouts.ListLayout'."
            )
        if not self.root.is_dir():
            raise AbsentError(
                f"The data folder {self.root} does not exist (looked for in {Path.cwd()}).",
                "Put the data there, or name its place with 'data.layout.root=…' or, for the folder that holds all data sets, "
                "'paths.data=…' or the variable VOXTILE_DATA.",
            )
        cases = [self._checked(case) for case in self._find()]
        if not cases:
            raise DataError(f"{self.root} holds no case: {self._expected()}.")
        return cases

    def _checked(self, case: Any) -> CaseFiles:
        """A case with tuples of paths, also where a layout names its files by texts or in a list.

        Raises:
            ConfigError: `case` is no `CaseFiles`, or what it holds are no paths.
        """
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        if not isinstance(case, CaseFiles):
            raise ConfigError(
                f"The layout {kind} finds a {type(case).__name__}; expected voxtile.cases.layouts.CaseFiles. docs/extending.md has "
                "an example."
            )
        if not isinstance(case.id, str) or not case.id:
            raise ConfigError(f"The layout {kind} finds a case whose id is {case.id!r}; expected text. Correct it in the class.")
        paths: dict[str, tuple[Path, ...]] = {}
        for name in ("images", "labels", "tiles"):
            files: Any = getattr(case, name)
            listed_files = [files] if isinstance(files, str | Path) else files
            if not isinstance(listed_files, Sequence) or not all(isinstance(file, str | Path) for file in listed_files):
                raise ConfigError(
                    f"The layout {kind} finds {name} of the case '{case.id}' that are {files!r}; expected a tuple of pathlib.Path. "
                    "Correct it in the class."
                )
            paths[name] = tuple(Path(file) if isinstance(file, str) else file for file in listed_files)
        return replace(case, images=paths["images"], labels=paths["labels"], tiles=paths["tiles"])

    def patterns(self, channels: int) -> tuple[str, ...]:
        """How the files of a new case with so many channels are called; none where a file is a case."""
        return ()

    def images_below(self, root: Path, within: Path, suffixes: Sequence[str] = ()) -> list[CaseFiles]:
        """Cases below another folder, without labels, by the names that files have in this layout, whether there are any or not.

        Of a case with several files some may not be there, which whoever opens it finds: the others are cases for all that.

        Args:
            root: what the names begin at.
            within: `root` or a part of it; cases whose first file lies elsewhere are not looked at. A file stands for its case.
            suffixes: endings of the files of the data set's format.
        """
        return []

    @property
    def depth(self) -> int:
        """How many folders stand at most before the name of an image's file in this layout."""
        return 1

    def images_at(self, source: Path, suffixes: Sequence[str] = ()) -> list[CaseFiles]:
        """Cases that a new file or folder holds, by the names that files have in this layout; see `images_below`.

        Names may begin at the folder or above it, at most `depth` folders, since one patient or one visit is a folder of a data
        set. The nearest folder at which names find something counts.

        Args:
            source: a folder, or a file that stands for its case; above it a path has as many folders as are looked at.
            suffixes: endings of the files of the data set's format.
        """
        here = source if source.is_dir() else source.parent
        roots = [here, *here.parents[: self.depth]]
        return next((cases for root in roots if (cases := self.images_below(root, source, suffixes))), [])

    def images_by_name(self, within: Path) -> list[CaseFiles]:
        """Cases of several files that lie side by side, as `images_below`, by the files' names without those of folders.

        Args:
            within: a folder, or a file that stands for its case.

        Returns:
            The cases; none where no case has all of its files, or where files' names alone do not tell cases and the files of a
            case apart.
        """
        return []

    def declared(self) -> Declared | None:
        """What the data set itself says of its labels; None where it says nothing.

        Raises:
            DataError: The file that says it cannot be read.
        """
        return None

    @abstractmethod
    def _find(self) -> list[CaseFiles]: ...

    @abstractmethod
    def _expected(self) -> str: ...

    def _inside(self, name: str, where: str) -> Path:
        """The path of a file named in a list; names that lead outside the data folder are refused, links that lie in it are not."""
        relative = Path(os.path.normpath(name))
        path = self.root / relative
        if relative.is_absolute() or ".." in relative.parts:
            raise DataError(f"{where} names '{name}', which lies outside {self.root}. Expected paths inside the data folder.")
        if not path.is_file():
            raise DataError(
                f"{where} names '{name}', and {path} does not exist. Expected a file there; fetch it or take the line out."
            )
        return path
