"""Longitudes go round: 190° is -170°. PROJ counts from -180°, files also from 0° or on past 180°."""

from __future__ import annotations

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
