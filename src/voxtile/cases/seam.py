"""Maps of the world are cut along a meridian: shapes that go over it are cut there too, so that no edge runs back over the map."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from voxtile.cases.longitudes import TURN, beside, unrolled
from voxtile.cases.vector_files import simple_parts

_BESIDE = 1e-10  # degrees from the meridian, 10 micrometres, that each side of it ends at: on the meridian PROJ may take either
_APART = 1e5  # map units between both sides of a meridian along which a map is cut; it is 0 where the map goes on
_PIECES = 8  # parts of long edges, so that none goes half around the world
_PARTS = 256  # parts of edges along the cut, which is a curve in most maps
_POLE = 90 - 1e-9  # degrees of latitude beyond which a longitude says nothing
_NEAR_POLE = 88.0  # degrees of latitude beyond which the edges of a map may meet

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Geometries = NDArray[np.object_]


class Seam:
    """The meridian along which a projected map is cut: it is both the map's left and its right edge.

    Attributes:
        gap: least distance between the two edges at the latitudes asked for, in map units.
        turn: (x, y) from the left to the right edge where it is the same at all latitudes, in a map that repeats itself; or None.
    """

    def __init__(self, crs: CRS, middle: float, gap: float, turn: Floats | None) -> None:
        """See `of`; `middle` is the meridian opposite to the cut."""
        self._middle, self.gap, self.turn = middle, gap, turn
        self._back, self._forth = _ways(crs)

    @classmethod
    def of(cls, crs: CRS, points: Floats | None = None) -> Seam | None:
        """The seam of a projected system, where there is one near a scene.

        Args:
            crs: the system.
            points: evenly over the scene and what is around it, in map units [n, 2]; None for the whole map.

        Returns:
            None where the map is not cut along a meridian, or where no shape near the points reaches to it.
        """
        if (middle := _middle(crs)) is None:
            return None
        back, forth = _ways(crs)
        ends = np.array([-90.0, 90.0])
        if points is not None:
            places = np.stack(back.transform(*points.T), axis=1)
            places = places[np.isfinite(places).all(axis=1)]
            if not len(places):
                return None
            off = beside(places[:, 0], middle) - middle
            if TURN / 2 - np.abs(off).max() > 2 * np.ptp(off) + 1:
                return None
            ends = np.array([places[:, 1].min(), places[:, 1].max()])  # off a map PROJ may find latitudes beyond 90 degrees
        south, north = np.clip(ends, -_NEAR_POLE, _NEAR_POLE)
        latitudes = np.linspace(south, north, 9)
        left, right = (
            np.stack(forth.transform(np.full(9, middle + side * (TURN / 2 - _BESIDE)), latitudes), axis=1) for side in (-1, 1)
        )
        known = np.isfinite(left).all(axis=1) & np.isfinite(right).all(axis=1)
        across = right[known] - left[known]
        if not len(across) or (gap := float(np.linalg.norm(across, axis=1).min())) < _APART:
            return None
        turn = across.mean(axis=0)
        return cls(crs, middle, gap, turn if np.abs(across - turn).max() < 1e-6 * gap else None)

    def beyond(self, points: Floats) -> bool:
        """Whether some of the points [n, 2], in map units, lie beyond the edges of the map."""
        again = np.stack(self._forth.transform(*self._back.transform(*points.T)), axis=1)
        return bool((np.linalg.norm(again - points, axis=1) > self.gap / 2).any())

    def brought(self, parts: Geometries, source: CRS, there: Callable[[Floats], Floats]) -> tuple[Geometries, Indices]:
        """Polygons in the map's units, and their numbers in `parts`: of those that go over the seam there are several.

        Args:
            parts: polygons in another system.
            source: that system.
            there: from that system to the map's units; it brings each point of its own onto the map.
        """
        moved = shapely.transform(parts, there)
        own, on_map = _extents(parts), _extents(moved)
        # An edge over the seam runs all across the map. Between vertices that are far from each other it need not run as far.
        large = own > (TURN / 8 if source.is_geographic else self.gap / 8)
        wide = np.flatnonzero(((on_map > self.gap / 2) | large) & np.isfinite(on_map))
        if not len(wide):
            return moved, np.arange(len(parts))
        fine = shapely.segmentize(parts[wide], own[wide] / _PIECES)
        if _in_degrees(source):
            around = shapely.transform(fine, lambda xy: self._degrees(there(xy), beside_of=xy))
        else:
            around = shapely.transform(fine, lambda xy: self._degrees(there(xy)))
        known = np.isfinite(_extents(around))
        wide, around = wide[known], around[known]
        if not _in_degrees(source):
            around, closed = _unrolled(around)
            wide = wide[closed]
        pieces, owners = self._split(around)
        kept = np.setdiff1d(np.arange(len(parts)), wide)
        return np.concatenate([moved[kept], pieces]), np.concatenate([kept, wide[owners]])

    def _degrees(self, points: Floats, beside_of: Floats | None = None) -> Floats:
        """Points [n, 2] of the map in degrees.

        Args:
            points: in map units.
            beside_of: (longitude, latitude) of the same places by another datum, which go on past the seam: so do those found.
        """
        found = np.stack(self._back.transform(*points.T), axis=1)
        if beside_of is not None:
            known = np.isfinite(found).all(axis=1) & (np.abs(found[:, 1]) < _POLE)  # some maps have no place on their edge
            found = np.where(known[:, None], found, beside_of)
            found[:, 0] = beside(found[:, 0], beside_of[:, 0])
        return found

    def _split(self, parts: Geometries) -> tuple[Geometries, Indices]:
        """Polygons in degrees, cut along the seam and brought onto the map, and their numbers in `parts`."""
        west, east = self._middle - TURN / 2 + _BESIDE, self._middle + TURN / 2 - _BESIDE
        bounds = shapely.bounds(parts).reshape(-1, 4)
        first, last = (np.floor((bounds[:, side] - self._middle + TURN / 2) / TURN) for side in (0, 2))
        found, owners = [np.empty(0, dtype=object)], [np.empty(0, dtype=np.int64)]
        for turn in np.arange(first.min(initial=0), last.max(initial=0) + 1):
            own = np.flatnonzero((first <= turn) & (turn <= last))
            side = shapely.clip_by_rect(shapely.transform(parts[own], lambda xy, t=turn: xy - (t * TURN, 0)), west, -90, east, 90)
            pieces, index = simple_parts(side, own)
            areas = shapely.get_dimensions(pieces) == 2
            found.append(pieces[areas])
            owners.append(index[areas])
        pieces = np.concatenate(found)
        pieces = shapely.segmentize(pieces, np.maximum(_extents(pieces), 1e-9) / _PARTS)
        return shapely.transform(pieces, lambda xy: np.stack(self._forth.transform(*xy.T), axis=1)), np.concatenate(owners)


def _unrolled(parts: Geometries) -> tuple[Geometries, NDArray[np.bool_]]:
    """Polygons in degrees whose longitudes go on past the antimeridian instead of jumping back.

    Returns:
        The polygons whose rings are closed then, and which of all they are: those around a pole are not.
    """
    _, points, (rings, starts) = shapely.to_ragged_array(parts)
    rings, starts = np.asarray(rings, dtype=np.int64), np.asarray(starts, dtype=np.int64)
    first, sizes, counts = rings[:-1], np.diff(rings), np.diff(starts)
    if not len(parts):
        return parts, np.empty(0, dtype=np.bool_)
    longitude, around = unrolled(points[:, 0], sizes)
    low = np.minimum.reduceat(longitude, first)
    outer = np.repeat(low[starts[:-1]], counts)
    longitude += np.repeat(TURN * np.ceil((outer - low) / TURN - 1e-9), sizes)  # holes to where their polygon is
    closed = np.maximum.reduceat(np.abs(around), starts[:-1]) == 0
    of_rings = np.repeat(closed, counts)
    points = np.stack([longitude, points[:, 1]], axis=1)[np.repeat(of_rings, sizes)]
    offsets = tuple(np.concatenate([[0], np.cumsum(each)]) for each in (sizes[of_rings], counts[closed]))
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, offsets), closed


def _extents(parts: Geometries) -> Floats:
    """The longer side of the bounding box of each part [n]; not a finite number where a vertex has no place."""
    bounds = shapely.bounds(parts).reshape(-1, 4)
    with np.errstate(invalid="ignore"):
        found: Floats = (bounds[:, 2:] - bounds[:, :2]).max(axis=1)
    return found


def brought(parts: Geometries, source: CRS, onto: Transformer, seam: Seam | None) -> tuple[Geometries, Indices]:
    """Polygons in another system, and their numbers in `parts`; vertices that have no place there become infinite.

    Args:
        parts: polygons.
        source: their system.
        onto: the way to the other one.
        seam: that of the other one.
    """

    def there(xy: Floats) -> Floats:
        found = np.stack(onto.transform(*xy.T), axis=1)
        found[~np.isfinite(found).all(axis=1)] = np.inf  # not NaN, of which no ring can be closed
        return found

    if seam is None:
        return shapely.transform(parts, there), np.arange(len(parts))
    return seam.brought(parts, source, there)


@lru_cache(maxsize=64)
def way(source: CRS, target: CRS) -> Transformer:
    """The way from one system to another, kept for the next scene: between two datums it takes longer to find than to go."""
    return Transformer.from_crs(source, target, always_xy=True)


def _ways(crs: CRS) -> tuple[Transformer, Transformer]:
    """From a projected system to longitude and latitude on its own datum, and back."""
    world = crs.geodetic_crs
    return way(crs, world), way(world, crs)


def _in_degrees(crs: CRS | None) -> bool:
    return crs is not None and bool(crs.is_geographic) and crs.axis_info[0].unit_name.lower() == "degree"


def _middle(crs: CRS) -> float | None:
    """The meridian in the middle of a projected system, in degrees; None where the system names none."""
    plain = crs.source_crs if crs.is_bound else crs
    plain = plain.sub_crs_list[0] if plain is not None and plain.is_compound else plain
    if plain is None or not plain.is_projected or plain.coordinate_operation is None or not _in_degrees(plain.geodetic_crs):
        return None
    given = [each for each in plain.coordinate_operation.params if each.name.startswith("Longitude of")]
    return math.degrees(float(given[0].value) * given[0].unit_conversion_factor) if given else None
