"""Decoded parts of rasters, kept for all threads of the process that read windows of them again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.env import get_gdal_config, set_gdal_config

from voxtile.cases.window import Window

# GDAL keeps one of so many parts of what decoded blocks may take: those from which cells are made; where some files are read
# without cells, theirs as well.
GDALS_PART, GDALS_PART_OF_ALL = 8, 2
TRIED = 1024  # cells that are read while others have to go for them, after which it is asked whether keeping them is worth it
WORTH = 1 / 3  # of those, how many others must have been found: making one takes a sixth longer than decoding what is wanted of it
MOST = 16  # cells of which a window is put together: of larger ones little is read again


class CellCache:
    """Keeps the cells of rasters that were read last.

    GDAL keeps decoded blocks for each open file by itself, and threads, which may not share one, decode each block once each.
    What cells may take together with those blocks is what GDAL may take by itself: `GDAL_CACHEMAX`, by default a twentieth
    of the machine's memory. Where the data are so much larger that few cells are found again, GDAL gets all of it back.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._cells: OrderedDict[object, NDArray[Any]] = OrderedDict()
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

    def get(self, key: object, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The cell under `key`, by `read` where it is not kept. It must not be written to."""
        with self._lock:
            cell = self._cells.get(key)
            if cell is not None:
                self._found += 1
                self._cells.move_to_end(key)
                return cell
        cell = read()  # two threads that want the same cell at once both read it
        with self._lock:
            if key not in self._cells:
                self._cells[key] = cell
                self._held += cell.nbytes
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
            self._held -= self._cells.popitem(last=False)[1].nbytes


def put_together(
    shape: tuple[int, int, int],
    top: int,
    left: int,
    size: tuple[int, int],
    cell_at: Callable[[int, int], NDArray[Any]],
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """A window made from cells.

    Args:
        shape: (bands, rows, columns) of the window.
        top: its first row.
        left: its first column.
        size: (rows, columns) of a cell; those at the lower and right border may be smaller.
        cell_at: the pixels [n, rows, columns] of the cell in a row and a column of cells.
        out: where the window goes; a new array of the cells' type where None.
    """
    rows, columns = size
    bottom, right = top + shape[1], left + shape[2]
    for row in range(top // rows, -(-bottom // rows)):
        y = row * rows
        first, last = max(y, top), min(y + rows, bottom)
        for column in range(left // columns, -(-right // columns)):
            x = column * columns
            start, stop = max(x, left), min(x + columns, right)
            cell = cell_at(row, column)
            if out is None:
                out = np.empty(shape, dtype=cell.dtype)
            out[:, first - top : last - top, start - left : stop - left] = cell[:, first - y : last - y, start - x : stop - x]
    assert out is not None  # a window holds a pixel or more
    return out


CELLS = CellCache()
