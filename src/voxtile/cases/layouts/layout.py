"""What makes a case on disk, and what finds the cases of a data set."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from voxtile.cases.address import is_address, masked
from voxtile.cases.case import Source
from voxtile.errors import DataError

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
        sources: opens image and label where another library reads the files, from a nodata value that overrides theirs; None
            where the data set's format says how to open them.
    """

    id: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...] = ()
    split: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    tiles: tuple[Path, ...] = ()
    sources: Callable[[float | None], tuple[Source, Source]] | None = None

    @property
    def found(self) -> tuple[Path, ...]:
        """The image files that lie in the data set's folder."""
        return self.tiles or self.images


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
