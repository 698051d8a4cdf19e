"""Rasters of weights by which pixels are drawn, in bounded memory: sums of cells are kept, a cell is read when it was drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Case, Source
from voxtile.cases.dataset import Dataset
from voxtile.cases.window import Size3, Window
from voxtile.errors import DataError, listed

CELL = 256  # side of a cell in pixels: a gigapixel has 16384 of them


@dataclass(frozen=True)
class WeightMap:
    """The weights of one case's pixels.

    Attributes:
        source: the raster, on the grid of the case's image.
        box: the case's region in it.
        ends: sum of the weights up to and with each cell, float64 [cells].
        digest: of the weights.
    """

    source: Source
    box: Window
    ends: NDArray[np.float64]
    digest: str

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self.ends[-1])

    @classmethod
    def of(cls, source: Source, case: Case) -> WeightMap:
        """Reads the weights of a case once.

        Args:
            source: one channel on the grid of the case's image. What it holds no data for, and NaN, count as 0.
            case: the case.

        Raises:
            DataError: A weight is negative or infinite.
        """
        seen = hashlib.sha256()
        sums = []
        for number in range(math.prod(_counts(case.shape))):
            weights = _read(source, _cell(case.shape, number).shifted(case.box.start))
            seen.update(weights.tobytes())
            sums.append(weights.sum())
        return cls(source, case.box, np.cumsum(sums), seen.hexdigest())

    def draw(self, rng: np.random.Generator) -> Size3:
        """(z, y, x) of a pixel of the case, drawn by weight."""
        cell = _cell(self.box.size, _index(self.ends, rng.random()))
        weights = _read(self.source, cell.shifted(self.box.start))
        z, y, x = np.unravel_index(_index(weights.cumsum(), rng.random()), weights.shape)
        return cell.z + int(z), cell.y + int(y), cell.x + int(x)


def open_weights(dataset: Dataset, pattern: str, cases: Sequence[Case], among: Sequence[Case]) -> dict[str, WeightMap]:
    """Opens and reads the weights of cases.

    Args:
        dataset: opens the rasters as it opens labels, on any grid.
        pattern: of the file names, below the data set's folder, with {id} in it.
        cases: the cases wanted, or blocks of them.
        among: all cases, whole: what {id} stands for.

    Returns:
        The weights by case id.

    Raises:
        DataError: A file is missing or does not fit, or a weight is negative.
    """
    name_of = {case.image.paths: case.id for case in among}  # a block has another id than the scene that it is cut from
    path_of = {case.id: _path(dataset, pattern, name_of[case.image.paths]) for case in cases}
    missing = sorted({str(path) for path in path_of.values() if not path.is_file()})
    if missing:
        raise DataError(
            f"{len(missing)} rasters of weights do not exist: {listed(missing)}. Expected one for each training case at "
            f"'data.sampling.weights={pattern}' below {dataset.layout.root}; add them, or leave cases out with 'data.exclude=[…]'."
        )
    return {case.id: WeightMap.of(dataset.aligned(path_of[case.id], case), case) for case in cases}


def _path(dataset: Dataset, pattern: str, name: str) -> Path:
    return dataset.layout.root / Path(pattern.replace("{id}", name)).expanduser()


def _counts(shape: Size3) -> Size3:
    """Cells along (z, y, x)."""
    return shape[0], -(-shape[1] // CELL), -(-shape[2] // CELL)


def _cell(shape: Size3, number: int) -> Window:
    """Cell `number` of a case of `shape` (D, H, W), in reading order; each lies in one slice."""
    z, row, column = (int(n) for n in np.unravel_index(number, _counts(shape)))
    y, x = row * CELL, column * CELL
    return Window(z, y, x, 1, min(CELL, shape[1] - y), min(CELL, shape[2] - x))


def _read(source: Source, window: Window) -> NDArray[np.float64]:
    """Weights [d, h, w] of a window of the source."""
    stored, valid = source.read(window, (0,))
    weights = np.where(valid & ~np.isnan(stored[0]), stored[0], 0).astype(np.float64)
    wrong = weights[(weights < 0) | np.isinf(weights)]
    if len(wrong):
        raise DataError(
            f"{source.path} holds the weight {wrong[0]:g} (window {tuple(window)}: z, y, x, depth, height, width). Expected "
            "weights of 0 or more for 'data.sampling.by=weights'; correct the raster, or declare the value as its nodata."
        )
    return weights


def _index(ends: NDArray[np.float64], share: float) -> int:
    """Which part holds the `share` (0 to 1) of the running sums `ends`; never one with a weight of 0."""
    found = ends.searchsorted(share * ends[-1], side="right")
    return int(min(found, ends.searchsorted(ends[-1])))  # rounding may reach the end; the first part to reach it has weight
