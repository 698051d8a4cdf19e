"""How much ground each pixel of a scene shows.

Map units are no measure of ground: a pixel of a Web-Mercator scene at 60° north shows a quarter of what its size says, one of a UTM
scene up to 0.1 % more or less. Areas are therefore taken in an equal-area projection of the scene's own ellipsoid.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from voxtile.cases.grid import Grid
from voxtile.cases.longitudes import beside
from voxtile.cases.window import Window

HECTARE = 10_000.0  # square metres
_STEP = 5_000.0  # metres of ground between the places where a pixel is measured; between them its area is interpolated
_SAMPLES = 9  # a side, of the points among which the middle of a scene is looked for
_PIECES = 8  # a side, of a pixel that lies on the globe only in part
_AT_ONCE = 4096  # such pixels that are measured at once
# Maps of the whole world whose outline is curved.
_WORLDS = ("Sinusoidal", "Mollweide", "Equal Earth", "Eckert", "Robinson", "Natural Earth", "Wagner", "Goode", "Interrupted Goode")


class PixelAreas:
    """The areas of a scene's pixels on the ground, on the ellipsoid of its CRS.

    The projection is Lambert's azimuthal one about the scene's middle; for geographic systems and Mercator's, whose pixels are
    bounded by meridians and parallels, the cylindrical one, in which these are straight: there areas are exact at any size. For
    maps of the world it is the cylindrical one too, since the azimuthal one is torn opposite to its middle. Both: Snyder 1987,
    Map Projections: A Working Manual, USGS Professional Paper 1395, sections 10 and 24.
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
        steps = np.linspace(0, 1, _SAMPLES)
        columns, rows = (each.ravel() for each in np.meshgrid(steps * width, steps * height))
        self._pole = quarter_turn(crs)
        self._edge = map_edge(crs, grid)
        x, y = self._placed(columns, rows)
        longitude, latitude = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(x, y)
        known = np.isfinite(longitude) & np.isfinite(latitude)
        # The middle of a map of the world's corner may lie off the globe.
        middle = np.argmin(np.where(known, np.hypot(columns / width - 0.5, rows / height - 0.5), np.inf))
        self._equal_area = equal_area(crs, float(longitude[middle]), float(latitude[middle])) if known.any() else None
        # PROJ names meridians by the turn around Greenwich, also those of maps that go on past the antimeridian.
        turned = is_cylindrical(crs) and not crs.is_geographic
        self._turn = 2 * math.pi * float(crs.ellipsoid.semi_major_metre) if turned and crs.ellipsoid is not None else None
        finest = min(grid.spacing[1:])
        step = int(np.clip(_STEP / finest, 1, 256))
        (_, bottom, _, top) = grid.footprint
        # A row over a pole is cut off there: what is between it and the next measured one is no mean of the two.
        self._steps = 1 if max(-bottom, top) > self._pole else step, step

    def cells(self, window: Window) -> NDArray[np.float64]:
        """Square metres of ground that each pixel of a window shows [h, w]; 0 off the globe."""
        rows, columns = (np.arange(start, start + size) for start, size in ((window.y, window.height), (window.x, window.width)))
        y, x = (_nodes(places[0], places[-1] + 1, step) for places, step in zip((rows, columns), self._steps, strict=True))
        nodes = self._measured(y[:, None], x[None])
        known = np.isfinite(nodes)
        areas = _spread(y, x, np.where(known, nodes, 0.0), rows, columns)
        if not known.all():
            unknown = _spread(y, x, known.astype(np.float64), rows, columns) < 1
            areas[unknown] = 0.0
            edge = np.nonzero(unknown & (_spread(y, x, self._near_known(y, x), rows, columns) > 0))
            areas[edge] = self._at_edge(rows[edge[0]], columns[edge[1]])
        return areas

    def _near_known(self, y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.float64]:
        """1 at the nodes beside which, in any of 8 directions, is one on the globe, be it outside of the window; else 0."""
        around = (np.concatenate([[at[0] - step], at, [at[-1] + step]]) for at, step in zip((y, x), self._steps, strict=True))
        rows, columns = around
        known = np.isfinite(self._measured(rows[:, None], columns[None]))
        return np.asarray(np.lib.stride_tricks.sliding_window_view(known, (3, 3)).any(axis=(2, 3)), dtype=np.float64)

    def _at_edge(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Areas [n] of pixels near the edge of a map of the world: of those on the edge, the pieces that lie on the globe."""
        areas = self._measured(rows, columns)
        partly = np.flatnonzero(~np.isfinite(areas))
        piece = np.arange(_PIECES) / _PIECES
        for start in range(0, len(partly), _AT_ONCE):
            part = partly[start : start + _AT_ONCE]
            y, x = rows[part, None, None] + piece[:, None], columns[part, None, None] + piece
            areas[part] = np.nansum(self._measured(y, x, 1 / _PIECES), axis=(1, 2))
        return areas

    def _measured(self, y: NDArray[Any], x: NDArray[Any], side: float = 1.0) -> NDArray[np.float64]:
        """Areas of the pixels in rows `y` and columns `x`, by their corners in the equal-area projection; NaN off the globe.

        Args:
            y: rows of their upper left corners.
            x: columns, to be broadcast with the rows.
            side: of what is measured, in pixels.
        """
        corners = [self._projected(x + right, y + below) for below, right in ((0, 0), (0, side), (side, side), (side, 0))]
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
        with np.errstate(invalid="ignore"):
            first, second = cx - ax, dx - bx  # of the diagonals, from west to east
            if self._turn is not None:
                first, second = beside(first, 0, self._turn), beside(second, 0, self._turn)
            crossed = first * (dy - by) - second * (cy - ay)
        areas: NDArray[np.float64] = np.where(np.isfinite(crossed), np.abs(crossed) / 2, np.nan)
        return areas

    def _placed(self, columns: NDArray[Any], rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixels in map units; grids whose outer pixels have their centres on the poles end there."""
        a, b, c, d, e, f = self.transform[:6]
        x, y = a * columns + b * rows + c, np.clip(d * columns + e * rows + f, -self._pole, self._pole)
        return (x, y) if self._edge is None else self._edge.within(x, y)

    def _projected(self, columns: NDArray[Any], rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        x, y = self._placed(*np.broadcast_arrays(columns, rows))
        if self._equal_area is None:
            return np.full(x.shape, np.nan), np.full(x.shape, np.nan)
        x, y = self._equal_area.transform(x, y)
        return np.asarray(x), np.asarray(y)


class MapEdge:
    """The edge of a map of the world, beyond which PROJ goes on around the globe, where the map ends."""

    def __init__(self, crs: CRS, grid: Grid) -> None:
        """See `map_edge`."""
        self._to_globe = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        self._back = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
        self._off = 1e-3 * float(np.abs(grid.matrix[:2, :2]).max())  # map units that rounding stays below

    def within(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The points; infinite where they lie off the map."""
        again_x, again_y = self._back.transform(*self._to_globe.transform(x, y))
        with np.errstate(invalid="ignore"):
            off = ~(np.hypot(again_x - x, again_y - y) < self._off)
        return np.where(off, np.inf, x), np.where(off, np.inf, y)


def map_edge(crs: CRS, grid: Grid) -> MapEdge | None:
    """The edge of a scene's map of the world; None in systems whose maps are no such map."""
    return MapEdge(crs, grid) if _method(crs).startswith(_WORLDS) else None


def equal_area(crs: CRS, longitude: float, latitude: float) -> Transformer:
    """The way from a system to an equal-area projection of its own ellipsoid about a place; see `PixelAreas`."""
    geodetic = crs.geodetic_crs
    assert geodetic is not None
    assert geodetic.ellipsoid is not None
    ellipsoid = f"+a={geodetic.ellipsoid.semi_major_metre} +b={geodetic.ellipsoid.semi_minor_metre} +units=m +no_defs +type=crs"
    middle = f"+proj=cea +lon_0={longitude} +over" if is_cylindrical(crs) else f"+proj=laea +lon_0={longitude} +lat_0={latitude}"
    return Transformer.from_crs(crs, CRS.from_proj4(f"{middle} {ellipsoid}"), always_xy=True)


def is_cylindrical(crs: CRS) -> bool:
    """Whether areas in a system are taken in the cylindrical projection: parallels are straight lines in it."""
    return bool(crs.is_geographic) or _method(crs).startswith(("Mercator", "Popular Visualisation", *_WORLDS))


def quarter_turn(crs: CRS) -> float:
    """The latitude of the north pole in a geographic system's own unit; infinite in others, whose maps do not end there."""
    return math.pi / 2 / float(crs.axis_info[0].unit_conversion_factor) if crs.is_geographic else math.inf


def _method(crs: CRS) -> str:
    return str(crs.coordinate_operation.method_name) if crs.coordinate_operation else ""


def _nodes(start: int, stop: int, step: int) -> NDArray[np.int64]:
    """Whole numbers from `start` to `stop - 1`, both among them, at most `step` apart; multiples of `step` where it can be."""
    inner = np.arange(-(-start // step) * step, stop, step)
    return np.unique(np.concatenate([[start], inner, [stop - 1]])).astype(np.int64)


def _spread(
    y: NDArray[np.int64], x: NDArray[np.int64], values: NDArray[np.float64], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Values at the nodes `y`, `x` [y, x], interpolated linearly to pixels [rows, columns]."""
    return _between(x, _between(y, values, rows).T, columns).T


def _between(nodes: NDArray[np.int64], values: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values [nodes, N] at `nodes`, interpolated linearly to `places` [places, N]."""
    if len(nodes) == 1:
        return np.repeat(values, len(places), axis=0)
    left = np.clip(np.searchsorted(nodes, places, side="right") - 1, 0, len(nodes) - 2)
    share = ((places - nodes[left]) / (nodes[left + 1] - nodes[left]))[:, None]
    between: NDArray[np.float64] = values[left] * (1 - share) + values[left + 1] * share
    return between
