"""Longitudes go round: 190° is -170°. PROJ counts from -180°, files also from 0° or on past 180°."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TURN = 360.0  # degrees
TURNS = (-TURN, 0.0, TURN)  # that may lie between the same place in two files


def beside(longitudes: NDArray[np.float64], middle: float | NDArray[np.float64], turn: float = TURN) -> NDArray[np.float64]:
    """The same meridians, named by the turn around `middle`: from 180° west of it to just below 180° east of it.

    `turn` is that of the Earth in the longitudes' unit.
    """
    found: NDArray[np.float64] = middle + np.mod(longitudes - middle + turn / 2, turn) - turn / 2
    return found


def east_end(left: float, right: float) -> float:
    """The right edge of bounds, east of the left one: GDAL names it a turn less where bounds cross the antimeridian."""
    return right + TURN * (right < left)


def unrolled(longitudes: NDArray[np.float64], sizes: NDArray[np.integer[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rings that go on past the antimeridian instead of jumping back.

    Args:
        longitudes: of the rings' corners, one ring after another, each with its first corner again at its end [n].
        sizes: corners of each ring, one at least [rings].

    Returns:
        The longitudes that go on [n], and how often each ring goes around a pole, eastward, a whole number [rings].
    """
    first = np.cumsum(sizes) - sizes
    turns = np.round(np.diff(longitudes, prepend=0.0) / TURN)
    turns[first] = 0
    turns = np.cumsum(turns)
    turns -= np.repeat(turns[first], sizes)
    return longitudes - TURN * turns, -turns[first + sizes - 1]
