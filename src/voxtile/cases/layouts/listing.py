"""Cases that a file of the data set lists: text files by split, the Decathlon's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from voxtile.cases.address import RemoteFile, is_address, masked
from voxtile.cases.layouts.layout import CaseFiles, Layout
from voxtile.errors import DataError, listed, reason


class ListLayout(Layout):
    """One text file per split; each line names an image and its label, by a tab, or where that gives no pair by blanks.

    Names are relative to the root, or addresses (`https://…`, `http://…`, `s3://bucket/key`) of GeoTIFFs.
    """

    def __init__(self, root: str, lists: Mapping[str, str]) -> None:
        """Remembers the lists.

        Args:
            root: the data set's folder.
            lists: file name by split, for example `{train: train.txt, val: val.txt}`.
        """
        super().__init__(root)
        self.lists = dict(lists)

    def _expected(self) -> str:
        return f"the lists {listed(self.lists.values())} are empty"

    def _find(self) -> list[CaseFiles]:
        cases: list[CaseFiles] = []
        known: dict[str, str] = {}  # where each case is listed
        for split, name in self.lists.items():
            listing = self._inside(name, "data.layout.lists")
            try:
                lines = listing.read_text(encoding="utf-8-sig").splitlines()  # Windows writes a byte order mark
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{listing} cannot be read: {reason(error)}. Expected a text file with lines 'image label'."
                ) from error
            for number, line in enumerate(lines, 1):
                parts = [part for each in line.split("\t") if (part := each.strip())]
                if len(parts) != 2:  # a tab may also stand at an end, or beside blanks
                    parts = line.split()
                if not parts:
                    continue
                if len(parts) != 2:
                    found = " ".join(masked(part) if is_address(part) else part for part in parts)
                    table = " A table with columns is read by a layout of your own: docs/extending.md has one." * ("," in line)
                    raise DataError(
                        f"{listing}, line {number}: expected 'image label', found '{found}'. Type a tab between names with blanks."
                        f"{table}"
                    )
                where = f"{listing}, line {number},"
                image, label = (RemoteFile(part) if is_address(part) else self._inside(part, where) for part in parts)
                if image.stem in known:
                    raise DataError(
                        f"{where} lists a case {image.stem}, which {known[image.stem]} lists, too. Expected each case once, by a "
                        "file name of its own."
                    )
                known[image.stem] = where.rstrip(",")
                cases.append(CaseFiles(image.stem, (image,), (label,), split))
        if cases and (empty := [split for split in self.lists if split not in {case.split for case in cases}]):
            raise DataError(
                f"{self.root / self.lists[empty[0]]} is empty. Expected a line 'image label' for each case; a side without cases "
                f"needs no list: '~data.layout.lists.{empty[0]}'."
            )
        return cases


class MsdLayout(Layout):
    """The Medical Segmentation Decathlon's layout: `dataset.json` lists pairs of image and label under "training"."""

    def _expected(self) -> str:
        return "its dataset.json lists nothing under 'training'"

    def _find(self) -> list[CaseFiles]:
        listing = self.root / "dataset.json"
        try:
            document: dict[str, Any] = json.loads(listing.read_text(encoding="utf-8"))
            pairs = [(str(pair["image"]), str(pair["label"])) for pair in document["training"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{listing} cannot be read: {error!r}. Expected the Decathlon's JSON with a list 'training'."
            ) from error
        cases = []
        for image, label in pairs:
            path = self._inside(image, str(listing))
            cases.append(CaseFiles(path.name.split(".")[0], (path,), (self._inside(label, str(listing)),)))
        return cases
