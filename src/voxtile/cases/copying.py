"""Copies of windows out of cells, noted first and made together, without the interpreter and its lock.

A batch of windows is read in three steps, in one thread:

1. `begin` of a `Case`, its `Labels` or a `Source` finds the cells under each window, has those decoded that are not kept, and notes
   with `Copies.add` what is to go where in `out`. A source that has no cells reads into `out` at once and notes nothing.
2. `Copies.make` makes all copies.
3. What `begin` returned is called for each window: only now are there pixels in `out` to be asked for nodata. It returns where they
   hold data, in an array that other windows may share and that cannot be written to.

`out` belongs to who called `begin`, and holds nothing of use before the third step. `read` is the same for one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pixels(NamedTuple):
    """An array whose rows are contiguous, and where it lies in memory, which NumPy takes longer to tell than to copy.

    Attributes:
        array: [planes, rows, columns].
        place: address of its first element, bytes from plane to plane and from row to row.
    """

    array: NDArray[Any]
    place: tuple[int, int, int]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Pixels:
        """An array with its place."""
        plane, row, _ = array.strides
        return cls(array, (array.ctypes.data, plane, row))


class Copies:
    """Copies that are made all at once.

    Between two copies of some hundred kilobytes Python finds nothing of its own in the processor's cache any more, and threads wait
    for one another's turns; so a batch is first worked out, then copied.
    """

    def __init__(self) -> None:
        self._windows: list[tuple[int, ...]] = []
        self._cells: list[tuple[int, int, int]] = []
        self._held: list[NDArray[Any]] = []  # what is copied must not go before

    def add(self, out: NDArray[Any], top: int, left: int, size: tuple[int, int], cells: Sequence[Pixels]) -> None:
        """Notes that a window is to be put together.

        Args:
            out: where it goes, [planes, rows, columns]; rows are contiguous.
            top: its first row.
            left: its first column.
            size: (rows, columns) of a cell.
            cells: those that it touches, row by row, of the type of `out`.
        """
        planes, height, width = out.shape
        place = out.ctypes.data, *out.strides
        self._windows.append((*place, planes, height, width, top, left, *size, len(self._cells)))
        self._cells += [cell.place for cell in cells]
        self._held += [cell.array for cell in cells]

    def make(self) -> None:
        """Makes all copies that were noted."""
        if self._windows:
            from voxtile.cases.moving import move  # numba takes half a second to import

            move(np.array(self._windows, dtype=np.int64), np.array(self._cells, dtype=np.int64))
            self._windows, self._cells, self._held = [], [], []
