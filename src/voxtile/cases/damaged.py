"""Reading what can be read of a damaged file."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Source, Wrapped
from voxtile.cases.fetch import FetchError
from voxtile.cases.window import Window
from voxtile.errors import DamagedError, DataError

LEAST = 64  # pixels of the side of the squares of the file that are given up as a whole


class Tolerant(Wrapped):
    """A source whose unreadable parts hold no data instead of stopping the work, but for those that could not be fetched.

    Attributes:
        lost: squares (cubes) in which something could not be read, and why; the file's tiles, too, mostly end where they do.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.lost: dict[Window, str] = {}
        self._lock = threading.Lock()

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`; what cannot be read is 0 and not valid."""
        try:
            return self.source.read(window, channels)
        except FetchError:  # a network that is down is no damage of the file
            raise
        except DataError as error:
            why = error.found if isinstance(error, DamagedError) else str(error)
        parts = _halves(window)
        if not parts:
            square = Window.of([a // LEAST * LEAST for a in window.start], (LEAST,) * 3).clipped(self.working.shape)
            with self._lock:
                self.lost.setdefault(square, why)
        out, valid = np.zeros((len(channels), *window.size), dtype=self.dtype), np.zeros(window.size, dtype=np.bool_)
        for part in parts:
            at = part.within(window)
            out[:, *at], valid[at] = self.read(part, channels)
        return out, valid


def _halves(window: Window) -> list[Window]:
    """The window cut across its longest side at a multiple of `LEAST` of the file; none where it lies within one square."""
    for axis in np.argsort(window.size)[::-1]:
        first, last = window.start[axis] // LEAST + 1, (window.stop[axis] - 1) // LEAST  # multiples between its pixels
        if first <= last:
            cut = (first + last + 1) // 2 * LEAST
            start, stop = list(window.start), list(window.stop)
            start[axis] = stop[axis] = cut
            return [
                Window.of(low, [b - a for a, b in zip(low, high, strict=True)])
                for low, high in ((window.start, stop), (start, window.stop))
            ]
    return []
