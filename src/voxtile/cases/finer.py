"""Labels and masks whose pixels are finer than the grid that they are read on: of each pixel, what its parts say together.

Nearest neighbour would take one of the parts. Where these are an even number along an axis, it lies beside the pixel's centre, and
the label half a stored pixel beside its image, which is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.aligned import Target
from voxtile.cases.case import Source, Wrapped
from voxtile.cases.grid import StoredGrid, WorkingGrid
from voxtile.cases.raster import open_raster, scene_grid
from voxtile.cases.window import IGNORE, Window

MOST = 16  # parts of a pixel along an axis; of those that are finer still, as many are looked at
SLACK = 0.05  # of a part by which a pixel may be larger and not be cut once more

Parts = tuple[int, int]  # along (y, x)


def parts_of(own: StoredGrid, target: Target) -> Parts:
    """Into how many parts a pixel of a grid is cut, so that none is larger than a pixel of the file; (1, 1) where nothing is finer.

    Args:
        own: the file's grid.
        target: the one that it is read on.
    """
    if None in (own.crs, target.grid.crs):
        return 1, 1
    ratios = (wide / fine for wide, fine in zip(target.grid.spacing[1:], own.spacing[1:], strict=True))
    y, x = (max(1, min(MOST, math.ceil(ratio - SLACK))) for ratio in ratios)
    return y, x


def divided(window: Window, parts: Parts) -> Window:
    """The same place in a grid of parts."""
    (z, y, x, depth, height, width), (rows, columns) = window, parts
    return Window(z, y * rows, x * columns, depth, height * rows, width * columns)


def each_part(array: NDArray[Any], parts: Parts) -> Iterator[NDArray[Any]]:
    """The first, second, … part of every pixel [..., h, w] of an array of parts [..., h * y, w * x]."""
    for y in range(parts[0]):
        for x in range(parts[1]):
            yield array[..., y :: parts[0], x :: parts[1]]


def any_part(array: NDArray[np.bool_], parts: Parts) -> NDArray[np.bool_]:
    """Whether one of a pixel's parts is true."""
    found = np.zeros((*array.shape[:-2], array.shape[-2] // parts[0], array.shape[-1] // parts[1]), dtype=np.bool_)
    for part in each_part(array, parts):
        found |= part
    return found


def majority(path: Path, open_on: Callable[[Target], Source], target: Target, meaning: Mapping[int, int]) -> Source:
    """A label on a grid: where its pixels are finer, by the class that most of a pixel's parts have.

    Args:
        path: the file.
        open_on: opens it on a grid, by nearest neighbour.
        target: the grid.
        meaning: stored value -> class index; none for what has no classes, which stays as it is.
    """
    with open_raster(path) as dataset:
        parts = parts_of(scene_grid(dataset), target)
    if parts == (1, 1) or not meaning:
        return open_on(target)
    return _Majority(open_on(target.divided(parts)), parts, target.grid, meaning)


class _Majority(Wrapped):
    """A label read from parts of pixels: the class that most parts have, of equal ones that with the lowest index.

    Parts that are not to be judged, or have no data, count as one class more, the last. A value without a meaning is kept wherever
    it is found, so that whoever reads the label says so.
    """

    def __init__(self, source: Source, parts: Parts, grid: WorkingGrid, meaning: Mapping[int, int]) -> None:
        """Takes the label on the grid of parts."""
        super().__init__(source)
        self._parts, self.working = parts, grid
        self._values: dict[int, list[int]] = {}
        for value, index in sorted(meaning.items(), key=lambda pair: (pair[1], pair[0])):
            if index != IGNORE:
                self._values.setdefault(index, []).append(value)
        self._known = sorted(meaning)
        self.key = f"{source.key} majority of {parts[0]}x{parts[1]} {sorted(meaning.items())}"

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        stored, valid = self.source.read(divided(window, self._parts), channels)
        found, most = np.zeros((len(stored), *window.size), dtype=stored.dtype), np.zeros(window.size, dtype=np.uint16)
        left = np.full(window.size, self._parts[0] * self._parts[1], dtype=np.uint16)  # parts of no class
        for values in self._values.values():
            count = self._count(np.isin(stored[0], values) & valid)
            larger = count > most
            found[0][larger], most[larger] = values[0], count[larger]
            left -= count
        held = (most >= left) & (most > 0)
        strange = ~np.isin(stored[0], self._known) & valid
        if strange.any():
            for value, odd in zip(each_part(stored[0], self._parts), each_part(strange, self._parts), strict=True):
                found[0][odd], held[odd] = value[odd], True
        return found, held

    def _count(self, marked: NDArray[np.bool_]) -> NDArray[np.uint16]:
        """How many parts of each pixel are marked."""
        count = np.zeros((marked.shape[0], marked.shape[1] // self._parts[0], marked.shape[2] // self._parts[1]), dtype=np.uint16)
        for part in each_part(marked, self._parts):
            count += part
        return count
