"""What makes a case on disk, and what finds the cases of a data set."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from voxtile.cases.address import is_address, masked
from voxtile.cases.case import Source
from voxtile.errors import ConfigError, DataError, listed

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        id: the case's name.
        images: one file; or the files whose bands or slices are stacked, in order.
        labels: the label's files, empty where there is none.
        tiles: the files that the mosaics in `images` are put together of, empty where they are none.
        split: "train", "val", "test", or "" where the data set gives none.
        fields: what the patterns found in the names, for grouping.
        sources: opens image and label where another library reads the files, or the image alone where the label is in `labels`,
            from a nodata value that overrides theirs; None
            where the data set's format says how to open them.
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

    def check(self, labels: Mapping[int, str]) -> None:
        """Compares them with those of the configuration, class name by stored value.

        Raises:
            ConfigError: They differ, or there are regions; the message says what to write.
        """
        if self.regions:
            found = "; ".join(f"{name}: {listed(values)}" for name, values in self.regions.items())
            raise ConfigError(
                f"{self.where} describes regions, which may overlap ({found}), and voxtile trains on one class for each label "
                "value. Name the values themselves under 'labels:', and describe the folder with FolderLayout: 'images: "
                "imagesTr/{id}_0000.nii.gz', a list of such patterns where there are several channels, and 'labels: "
                "labelsTr/{id}.nii.gz'."
            )
        wanted = {value: re.sub(r"[^\w .()+-]", "_", name) for value, name in sorted(self.values.items())}
        if dict(labels) != wanted:
            text = "{" + ", ".join(f"{value}: {name}" for value, name in wanted.items()) + "}"
            raise ConfigError(
                f"'data.labels' is {dict(labels)} and does not agree with {self.where}. Expected 'labels: {text}'; write that into "
                f"the data set's file, or type '~data.labels' '+data.labels={text}'."
            )


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
        """
        if is_address(self.given):
            raise DataError(
                f"The data folder is an address, {masked(self.given)}, and folders elsewhere cannot be listed. Name the files in a "
                "text file, one 'image label' a line, with 'data.layout._target_=voxtile.cases.layouts.ListLayout'."
            )
        if not self.root.is_dir():
            raise DataError(
                f"The data folder {self.root} does not exist (looked for in {Path.cwd()}). Put the data there, or name its place "
                "with 'data.layout.root=…' or, for the folder that holds all data sets, 'paths.data=…' or the variable "
                "VOXTILE_DATA."
            )
        cases = self._find()
        if not cases:
            raise DataError(f"{self.root} holds no case: {self._expected()}.")
        return cases

    def patterns(self, channels: int) -> tuple[str, ...]:
        """How the files of a new case with so many channels are called; none where a file is a case."""
        return ()

    def images_below(self, root: Path, within: Path, suffixes: Sequence[str] = ()) -> list[CaseFiles]:
        """Cases below another folder, without labels, by the names that files have in this layout, whether there are any or not.

        Args:
            root: what the names begin at.
            within: `root` or a part of it; cases whose first file lies elsewhere are not looked at. A file stands for its case.
            suffixes: endings of the files of the data set's format.
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
