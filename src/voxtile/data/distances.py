"""How far validation and test are from training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxtile.cases.case import Case
from voxtile.data.ground import nearest
from voxtile.data.splits import Split


@dataclass(frozen=True)
class Distance:
    """The least distance between cases of two sides.

    Attributes:
        length: in `unit`, from edge to edge; 0 where they touch or overlap.
        unit: "m" on the ground, "mm" in a volume that is cut into blocks, "px" in a picture that is.
        cases: ids of the two cases, that of the side first, then the training case.
    """

    length: float
    unit: str
    cases: tuple[str, str]

    def __str__(self) -> str:
        far = self.unit == "m" and self.length >= 1000
        length = f"{self.length / 1000:.4g} km" if far else f"{float(f'{self.length:.3g}'):g} {self.unit}"
        return f"{length} ({self.cases[0]} and {self.cases[1]})"

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for a run's manifest."""
        return {"length": round(self.length, 3), "unit": self.unit, "cases": list(self.cases)}


def split_distances(split: Split) -> dict[str, Distance | None]:
    """The distance of "val" and of "test" to training.

    On the ground where cases have a coordinate reference system, whatever it is; else between blocks of one file. None where
    neither is known: whole volumes and pictures lie nowhere.
    """
    return {side: distance(split.sides[side], split.train) for side in ("val", "test")}


def distance(first: Sequence[Case], second: Sequence[Case]) -> Distance | None:
    """The least distance between two lists of cases, see `split_distances`."""
    if (found := nearest(first, second)) is not None:
        metres, i, j = found
        return Distance(metres, "m", (first[i].id, second[j].id))
    files: dict[tuple[Path, ...], list[Case]] = {}
    for case in second:
        files.setdefault(case.image.paths, []).append(case)
    known = [_in_file(case, files[case.image.paths]) for case in first if case.image.paths in files]
    return min(known, key=lambda one: one.length, default=None)


def _in_file(case: Case, others: Sequence[Case]) -> Distance:
    """The distance of a block to the nearest of `others`, which are blocks of the same file."""
    start, stop = np.array([other.box.start for other in others]), np.array([other.box.stop for other in others])
    pixels = np.maximum(np.maximum(start - np.array(case.box.stop), np.array(case.box.start) - stop), 0)
    lengths = np.linalg.norm(pixels * np.array(case.grid.spacing), axis=1)
    place = int(lengths.argmin())
    return Distance(float(lengths[place]), case.grid.unit, (case.id, others[place].id))
