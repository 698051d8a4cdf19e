"""How much ground each pixel of a scene shows.

Map units are no measure of ground: a pixel of a Web-Mercator scene at 60° north shows a quarter of what its size says, one of a UTM
scene up to 0.1 % more or less. Areas are therefore taken in an equal-area projection of the scene's own ellipsoid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from voxtile.cases.grid import Grid
from voxtile.cases.window import Window

HECTARE = 10_000.0  # square metres
_STEP = 5_000.0  # metres of ground between the places where a pixel is measured; between them its area is interpolated


class PixelAreas:
    """The areas of a scene's pixels on the ground, on the ellipsoid of its CRS.

    The projection is Lambert's azimuthal one about the scene's middle; for geographic systems and Mercator's, whose pixels are
    bounded by meridians and parallels, the cylindrical one, in which these are straight: there areas are exact at any size. Both:
    Snyder 1987, Map Projections: A Working Manual, USGS Professional Paper 1395, sections 10 and 24.
    """

    def __init__(self, grid: Grid) -> None:
        """Prepares the projection.

        Args:
            grid: of a scene with a CRS.
        """
        assert grid.crs is not None
        crs = CRS.from_wkt(grid.crs)
        self.transform = grid.transform
        _, height, width = grid.shape
        geodetic = crs.geodetic_crs
        assert geodetic is not None
        assert geodetic.ellipsoid is not None
        longitude, latitude = Transformer.from_crs(crs, geodetic, always_xy=True).transform(
            *(self.transform @ (width / 2, height / 2))
        )
        method = crs.coordinate_operation.method_name if crs.coordinate_operation else ""
        straight = crs.is_geographic or method.startswith(("Mercator", "Popular Visualisation"))
        ellipsoid = f"+a={geodetic.ellipsoid.semi_major_metre} +b={geodetic.ellipsoid.semi_minor_metre} +units=m +no_defs +type=crs"
        middle = f"+proj=cea +lon_0={longitude} +over" if straight else f"+proj=laea +lon_0={longitude} +lat_0={latitude}"
        self._equal_area = Transformer.from_crs(crs, CRS.from_proj4(f"{middle} {ellipsoid}"), always_xy=True)
        finest = min(grid.spacing[1:])
        self._step = int(np.clip(_STEP / finest, 1, 256))

    def cells(self, window: Window) -> NDArray[np.float64]:
        """Square metres of ground that each pixel of a window shows [h, w]."""
        y = _nodes(window.y, window.y + window.height, self._step)
        x = _nodes(window.x, window.x + window.width, self._step)
        by_row = _between(y, self._measured(y, x), np.arange(window.y, window.y + window.height))
        return _between(x, by_row.T, np.arange(window.x, window.x + window.width)).T

    def _measured(self, y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.float64]:
        """Areas of the pixels in rows `y` and columns `x`, by their corners in the equal-area projection."""
        corners = [self._projected(x[None] + right, y[:, None] + below) for below, right in ((0, 0), (0, 1), (1, 1), (1, 0))]
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
        crossed = (cx - ax) * (dy - by) - (dx - bx) * (cy - ay)  # of the diagonals
        return np.abs(crossed) / 2

    def _projected(self, columns: NDArray[np.int64], rows: NDArray[np.int64]) -> Sequence[NDArray[np.float64]]:
        a, b, c, d, e, f = self.transform[:6]
        x, y = self._equal_area.transform(a * columns + b * rows + c, d * columns + e * rows + f)
        return np.asarray(x), np.asarray(y)


def _nodes(start: int, stop: int, step: int) -> NDArray[np.int64]:
    """Whole numbers from `start` to `stop - 1`, both among them, at most `step` apart; multiples of `step` where it can be."""
    inner = np.arange(-(-start // step) * step, stop, step)
    return np.unique(np.concatenate([[start], inner, [stop - 1]])).astype(np.int64)


def _between(nodes: NDArray[np.int64], values: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values [nodes, N] at `nodes`, interpolated linearly to `places` [places, N]."""
    if len(nodes) == 1:
        return np.repeat(values, len(places), axis=0)
    left = np.clip(np.searchsorted(nodes, places, side="right") - 1, 0, len(nodes) - 2)
    share = ((places - nodes[left]) / (nodes[left + 1] - nodes[left]))[:, None]
    between: NDArray[np.float64] = values[left] * (1 - share) + values[left + 1] * share
    return between
