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
AT_ONCE = 2**20  # parts that are looked at together
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
        held = {value: index for value, index in meaning.items() if np.asarray(value).astype(source.dtype) == value}
        self._known = np.array(sorted(held), dtype=source.dtype)
        self._classes = np.array([held[value] for value in sorted(held)], dtype=np.uint8)
        self._value_of = np.zeros(IGNORE + 1, dtype=source.dtype)  # one of those that mean a class
        self._value_of[self._classes] = self._known
        if source.dtype == np.uint8:
            self._is_known = np.isin(np.arange(256), self._known)
            self._of_byte = np.full(256, IGNORE, dtype=np.uint8)
            self._of_byte[self._known] = self._classes
        self.key = f"{source.key} majority of {parts[0]}x{parts[1]} {sorted(meaning.items())}"

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        found, held = np.empty((1, *window.size), dtype=self.dtype), np.empty(window.size, dtype=np.bool_)
        rows = max(1, AT_ONCE // (window.width * self._parts[0] * self._parts[1]))
        for first in range(0, window.height, rows):
            strip = window._replace(y=window.y + first, height=min(rows, window.height - first))
            here = slice(first, first + strip.height)
            found[0, :, here], held[:, here] = self._read(strip, channels)
        return found, held

    def _read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The value [d, h, w] of a few rows, and where it is to be judged."""
        stored, valid = self.source.read(divided(window, self._parts), channels)
        classes, known = self._meant(stored[0])
        classes[~valid] = IGNORE
        best, most = np.full(window.size, IGNORE, dtype=np.uint8), np.zeros(window.size, dtype=np.uint16)
        for index in np.flatnonzero(np.bincount(classes.ravel(), minlength=IGNORE + 1)):  # those of no class come last
            count = np.zeros(window.size, dtype=np.uint16)
            for part in each_part(classes == index, self._parts):
                count += part
            larger = count > most
            best[larger], most[larger] = index, count[larger]
        found, held = self._value_of[best], best != IGNORE
        if (strange := ~known & valid).any():
            for value, odd in zip(each_part(stored[0], self._parts), each_part(strange, self._parts), strict=True):
                found[odd], held[odd] = value[odd], True
        return found, held

    def _meant(self, stored: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Class indices of stored values, and where the configuration knows them."""
        if stored.dtype == np.uint8:  # most are
            return self._of_byte.take(stored), self._is_known.take(stored)
        if not len(self._known):
            return np.full(stored.shape, IGNORE, dtype=np.uint8), np.zeros(stored.shape, dtype=np.bool_)
        at = np.searchsorted(self._known, stored).clip(max=len(self._known) - 1)
        known = self._known.take(at) == stored
        return np.where(known, self._classes.take(at), np.uint8(IGNORE)), known
