"""Maps that another program has made of a run's cases, scored in the place of the run's own: `voxtile evaluate … maps=<folder>`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Case, Labels, UnknownValuesError
from voxtile.cases.formats import SUFFIXES, open_label, open_map, tags_of
from voxtile.cases.maps import MADE_FROM, VALUES
from voxtile.cases.names import natural_key, whole_id
from voxtile.cases.vector_settings import VectorSettings
from voxtile.cases.window import IGNORE, Window
from voxtile.commands.evaluated import EVALUATED
from voxtile.errors import ConfigError, DataError, counted, did_you_mean, listed

if TYPE_CHECKING:
    from voxtile.cases.dataset import Dataset

BAND = 2**24  # most pixels that are looked at at once


def check(config: Mapping[str, Any]) -> None:
    """Refuses settings of `voxtile evaluate` that maps which are there cannot follow.

    Raises:
        ConfigError: There is one, or `maps` is no folder.
    """
    if not Path(str(config["maps"])).expanduser().is_dir():
        raise ConfigError(f"'maps={config['maps']}' is no folder. Name the one that holds a map of each case.")
    if given := [f"{name}={config[name]}" for name, usual in EVALUATED.items() if name != "weights" and config[name] != usual]:
        raise ConfigError(f"'{given[0]}' says how a network predicts, and 'maps' are scored as they are. Leave one of them out.")
    if config["weights"] is not None:
        raise ConfigError("'weights' says what a network predicts with, and 'maps' are there. Leave one of them out.")
    if config["devices"] != 1:
        raise ConfigError(f"'devices={config['devices']}' shares what networks have to do, and 'maps' are there. Type 'devices=1'.")


@dataclass(frozen=True)
class GivenMaps:
    """A folder with a map of each case, called as the case is.

    They hold the values that labels are stored with, as other programs write them. Of maps that voxtile has made a tag says so, or
    they hold the class indices of their runs.

    Attributes:
        folder: the folder.
        dataset: whose cases they are of.
        runs: identities of the runs whose class indices are those of the data set.
    """

    folder: Path
    dataset: Dataset
    runs: Collection[str]

    @property
    def name(self) -> str:
        """By which their scores are told from others."""
        return self.folder.resolve().name

    def check(self, cases: Sequence[Case], whole: bool) -> None:
        """Refuses cases without a map, before any is scored.

        Args:
            cases: the cases.
            whole: whether each map is read as well, so that none is refused once the cases were looked at.

        Raises:
            DataError: There is one; or what `bands` raises.
        """
        names = {case.id: whole_id(case.id, case.region) for case in cases}
        if lacking := [name for name in dict.fromkeys(names.values()) if not self._files(name)]:
            there = sorted(each.name for each in self.folder.iterdir() if not each.name.startswith("."))
            endings = listed(self._endings, 20)
            raise DataError(
                f"{self.folder} holds no map of {counted(len(lacking), 'case')}: {listed(lacking)}. Expected a file for each, with "
                f"the case's name and one of the endings {endings}.{did_you_mean(lacking[0], there)} It holds {listed(there, 4)}."
            )
        for case in cases if whole else ():
            for _ in self.bands(case):
                pass

    @property
    def _endings(self) -> tuple[str, ...]:
        kind = self.dataset.format
        return (*SUFFIXES[kind], *(SUFFIXES["volume"] if kind == "dicom" else ()))

    def _files(self, name: str) -> list[Path]:
        """The map of a case: a file, or of a stack of pictures those in a folder; empty where there is none."""
        stack = self.folder / name
        if self.dataset.format == "picture" and stack.is_dir():
            found = (each for each in stack.iterdir() if each.name.lower().endswith(self._endings))
            return sorted(found, key=lambda each: natural_key(each.name))
        files = (self.folder / f"{name}{ending}" for ending in self._endings)
        return [file for file in files if file.exists()][:1]

    def bands(self, case: Case) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """The map of a case on the grid of its file, as `class_bands` gives that of a network.

        Raises:
            DataError: It cannot be read, does not fit the case, or says nothing of a pixel that is judged.
        """
        native, kind = case.native, self.dataset.format
        files = self._files(whole_id(case.id, case.region))
        file = files[0]
        tags = tags_of(file, kind)
        ours = MADE_FROM in tags
        by_index = ours and VALUES not in tags
        if by_index and not {*str(tags.get("run", "")).split("+")} <= {*self.runs}:
            raise DataError(
                f"{file} holds class indices of another run, {tags.get('run')}, whose classes may stand in another order. Predict "
                "it anew with 'values=stored overwrite=true', which are the values of labels."
            )
        known = {index: index for index in range(len(self.dataset.classes))} if by_index else self.dataset.label_map.values
        if ours:
            source, _ = open_map(kind, file if len(files) == 1 else file.parent, None, native.image)
        else:
            source = open_label(kind, files, native.image, known, VectorSettings(), self.dataset.label_map.colored)
        if source.working.shape != native.image.working.shape:
            raise DataError(
                f"{file} has shape {source.working.shape} (D, H, W), and its image {native.image.working.shape}. Expected a map of "
                "the image's size."
            )
        drawn = Case(case.id, case.group, native.image, Labels(source, known), region=native.region)
        for window in _rows(native.shape):
            try:
                found, (_, valid) = drawn.read_label(window), native.read(window)
            except UnknownValuesError as error:
                raise DataError(f"{error.found} Expected in each pixel of a map a value that labels are stored with.") from error
            if lacking := int(np.count_nonzero((found == IGNORE) & valid & (native.read_label(window) != IGNORE))):
                raise DataError(
                    f"{file} says of {counted(lacking, 'pixel')} that are to be judged nothing (no data, or a value that is "
                    "'ignore'). Expected a class of each."
                )
            found[~valid] = IGNORE
            yield window, found


def _rows(shape: tuple[int, int, int]) -> Iterator[Window]:
    """Windows of whole slices, or of whole rows of one, in reading order."""
    depth, height, width = shape
    step = max(1, BAND // width)
    for z in range(depth):
        for y in range(0, height, step):
            yield Window(z, y, 0, 1, min(step, height - y), width)
