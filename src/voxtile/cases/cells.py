"""Decoded parts of rasters, kept for all threads of the process that read windows of them again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.env import get_gdal_config, set_gdal_config

from voxtile.cases.copying import Copies, Pixels
from voxtile.cases.window import Window

# Of the memory for decoded blocks GDAL keeps one part in 8 where all files are read through cells, and one in 2 where some are not.
GDALS_PART, GDALS_PART_OF_ALL = 8, 2
TRIED = 1024  # cells that took the place of others, after which it is asked whether keeping cells is worth while
# It is where for each of those at least so many were found: making a cell costs a sixth more than decoding what is wanted of it.
WORTH = 1 / 3
MOST = 16  # cells of which a window is put together: of larger windows little is read again


Key = tuple[int, int, int]  # number of what is read, row and column of the cell


class CellCache:
    """Keeps the cells of rasters that were read last.

    GDAL keeps decoded blocks for each open file by itself, and threads, which may not share one, decode each block once each.
    What cells may take together with those blocks is what GDAL may take by itself: `GDAL_CACHEMAX`, by default a twentieth
    of the machine's memory. Where the data are so much larger that few cells are found again, GDAL gets all of it back.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._cells: OrderedDict[Key, Pixels] = OrderedDict()
        # Of what is read: a number is found faster than a path. All are kept, some hundred bytes for each file and choice of bands.
        self._numbers: dict[Hashable, int] = {}
        self._held = 0
        self._found = self._missed = 0  # since one had to go for another
        self._allowed = 0
        self._most: int | None = None

    @property
    def most(self) -> int:
        """Bytes that cells may take."""
        if self._most is None:
            with self._lock:
                if self._most is None:
                    self._allowed = int(get_gdal_config("GDAL_CACHEMAX"))
                    self._leave(self._allowed // GDALS_PART)
        return self._most or 0

    @contextmanager
    def off(self) -> Iterator[None]:
        """While this is open, nothing is kept."""
        before = self.most
        with self._lock:
            self._most = 0
            self._shrink()
        try:
            yield
        finally:
            self._most = before

    def keeps(self, window: Window, size: tuple[int, int]) -> bool:
        """Whether cells of `size` (rows, columns) are kept for a window."""
        cells = (window.height // size[0] + 1) * (window.width // size[1] + 1)
        return bool(cells <= MOST) and self.most > 0

    def get(self, name: Hashable, places: Sequence[tuple[int, int]], read: Callable[[int, int], NDArray[Any]]) -> list[Pixels]:
        """Cells, of which those that are not kept are read. They must not be written to.

        Args:
            name: of what is read.
            places: rows and columns of the cells.
            read: reads the cell in a row and a column.
        """
        number = self._numbers.get(name)
        if number is None:
            with self._lock:
                number = self._numbers.setdefault(name, len(self._numbers))
        keys, found, kept = [(number, row, column) for row, column in places], [], self._cells
        with self._lock:
            for key in keys:
                cell = kept.get(key)
                if cell is not None:
                    kept.move_to_end(key)
                found.append(cell)
            missing = found.count(None)
            self._found += len(found) - missing
        if missing:
            return [cell or self._added(key, read) for key, cell in zip(keys, found, strict=True)]
        return [cell for cell in found if cell is not None]

    def _added(self, key: Key, read: Callable[[int, int], NDArray[Any]]) -> Pixels:
        cell = Pixels.of(read(*key[1:]))  # two threads that want the same cell at once both read it
        with self._lock:
            if key not in self._cells:
                self._cells[key] = cell
                self._held += cell.array.nbytes
            if self._held > self.most:
                self._shrink()
                self._missed += 1
                if self._missed == 1:
                    self._found = 0
                elif self._missed == TRIED:
                    if self._found < WORTH * TRIED:
                        self._leave(self._allowed)
                    self._missed = 0
        return cell

    def leave_half(self) -> None:
        """Half of the room is for GDAL from now on: windows are read whose blocks only it keeps."""
        half = self._allowed // GDALS_PART_OF_ALL
        if self._most and self._most > self._allowed - half:
            with self._lock:
                self._leave(half)

    def _leave(self, size: int) -> None:
        """Leaves GDAL so many bytes and takes the rest."""
        set_gdal_config("GDAL_CACHEMAX", size)
        self._most = self._allowed - size
        self._shrink()

    def _shrink(self) -> None:
        while self._held > (self._most or 0):
            self._held -= self._cells.popitem(last=False)[1].array.nbytes


def put_together(
    shape: tuple[int, int, int],
    top: int,
    left: int,
    size: tuple[int, int],
    cells_at: Callable[[Sequence[tuple[int, int]]], Iterable[Pixels]],
    out: NDArray[Any] | None = None,
    copies: Copies | None = None,
) -> NDArray[Any]:
    """A window made from cells.

    Args:
        shape: (bands, rows, columns) of the window.
        top: its first row.
        left: its first column.
        size: (rows, columns) of a cell; those at the lower and right border may be smaller.
        cells_at: the pixels [n, rows, columns] of the cells in rows and columns of cells.
        out: where the window goes; a new array of the cells' type where None.
        copies: takes the window down instead of its being copied now, where `out` has the cells' type.
    """
    rows, columns = size
    bottom, right = top + shape[1], left + shape[2]
    over, down = range(left // columns, -(-right // columns)), range(top // rows, -(-bottom // rows))
    places = [(row, column) for row in down for column in over]
    cells = cells_at(places)
    if copies is not None and out is not None and out.strides[2] == out.itemsize:
        cells = list(cells)
        if all(cell.array.dtype == out.dtype for cell in cells):
            copies.add(out, top, left, size, cells)
            return out
    for (row, column), cell in zip(places, cells, strict=True):
        y, x = row * rows, column * columns
        first, last = max(y, top), min(y + rows, bottom)
        start, stop = max(x, left), min(x + columns, right)
        if out is None:
            out = np.empty(shape, dtype=cell.array.dtype)
        part = cell.array[:, first - y : last - y, start - x : stop - x]
        out[:, first - top : last - top, start - left : stop - left] = part
    assert out is not None  # a window holds a pixel or more
    return out


CELLS = CellCache()
