"""Polygons of a scene's pixels in longitude and latitude on WGS 84, as GeoJSON has them.

Straight edges of the scene are curves in degrees, longitudes jump at the antimeridian, and a pole is a line. So long edges get more
corners, the longitudes of a ring go on past 180°, and a polygon around a pole is closed over it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from voxtile.cases.grid import Grid
from voxtile.cases.longitudes import TURN, beside, unrolled
from voxtile.cases.pixel_area import map_edge, quarter_turn

_OFF = 1 / 64  # of a pixel, that a straight edge in degrees may be off
_ASTRAY = 45.0  # degrees of longitude: a middle that is so far off shows that an edge goes around the other side of the Earth
_LONG = 16.0  # pixels; of longer edges another point than the middle, where a curve may cross them, is looked at too
_FINEST = 64  # parts of a pixel, at most, that edges are cut into near a pole or the edge of a map of the world
_PASSES = 64  # more than any edge needs: each halves it, about
_POLE = 90 - 1e-9  # degrees of latitude from which on a projected place has no longitude of its own
_DIGITS = 9  # of longitude and latitude: a tenth of a millimetre
_SAMPLES = 9  # a side, of the points by which a scene's longitudes are found
_ROUND = (-2, -1, 0, 1, 2)  # turns that a ring around a pole is repeated on, before one turn is cut out

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class _Rings(NamedTuple):
    """Closed rings, one after another: places in pixels and in degrees [n, 2], and the ring that each is on [n]."""

    pixels: Floats
    degrees: Floats
    ring: Ints

    def taken(self, corners: NDArray[Any]) -> _Rings:
        """Some of the corners, by a mask or by their numbers."""
        return _Rings(self.pixels[corners], self.degrees[corners], self.ring[corners])

    def more(self, at: Ints, pixels: Floats, degrees: Floats, ring: Ints) -> _Rings:
        """With corners before those that are numbered `at`."""
        pixels, degrees = np.insert(self.pixels, at, pixels, axis=0), np.insert(self.degrees, at, degrees, axis=0)
        return _Rings(pixels, degrees, np.insert(self.ring, at, ring))


class Degrees:
    """The way from a scene's pixels to longitude and latitude."""

    def __init__(self, grid: Grid) -> None:
        """Prepares it.

        Args:
            grid: the scene's, with a CRS.
        """
        assert grid.crs is not None
        crs = CRS.from_wkt(grid.crs)
        self._transform, self._pole, self._geographic = grid.transform, quarter_turn(crs), bool(crs.is_geographic)
        self._edge = map_edge(crs, grid)
        self._forth = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
        _, height, width = grid.shape
        steps = np.linspace(0, 1, _SAMPLES)
        longitudes = self.places(np.stack(np.meshgrid(steps * width, steps * height), axis=-1).reshape(-1, 2))[:, 0]
        longitudes = longitudes[np.isfinite(longitudes)]
        middle = longitudes[len(longitudes) // 2] if len(longitudes) else 0.0
        around = beside(longitudes, middle)
        beyond = len(around) > 0 and np.abs(around).max() > TURN / 2 and np.ptp(around) < TURN / 2
        self._middle = float(middle) if beyond else 0.0  # a scene over the antimeridian stays in one piece

    def places(self, pixels: Floats) -> Floats:
        """Places [n, 2] in pixels from the scene's corner in degrees, not finite off the globe."""
        x, y = self._transform @ tuple(pixels.T)
        y = np.clip(y, -self._pole, self._pole)
        if self._edge is not None:
            x, y = self._edge.within(x, y)
        return np.stack(self._forth.transform(x, y), axis=1)

    def polygons(self, shapes: NDArray[Any]) -> NDArray[Any]:
        """Polygons in pixels as polygons in degrees, outer rings counter-clockwise; None for one of which nothing is on the globe.

        Around a pole they are cut at 180°, and may be several polygons then.
        """
        if not len(shapes):
            return shapes
        mirrored = self._transform.determinant < 0
        # Seen from above, what a polygon covers is to the left of its rings.
        _, pixels, (ends, owners) = shapely.to_ragged_array(shapely.orient_polygons(shapes, exterior_cw=mirrored))
        sizes, counts = _differences(ends), _differences(owners)
        rings = _Rings(pixels, self.places(pixels), np.repeat(np.arange(len(sizes)), sizes))
        rings = self._refined(rings)
        if not self._geographic:
            rings = _parted_at_pole(rings)
        known = np.asarray(np.isfinite(rings.degrees).all(axis=1))
        odd_rings = np.zeros(len(sizes), dtype=np.bool_)
        odd_rings[rings.ring[~known]] = True
        rings = _closed(rings.taken(known), odd_rings)
        longitudes, winding = _unrolled(rings, len(sizes))
        polygon = np.repeat(np.arange(len(shapes)), counts)
        odd = np.zeros(len(shapes), dtype=np.bool_)
        odd[polygon[odd_rings | (winding != 0)]] = True
        places = np.stack([longitudes, np.clip(rings.degrees[:, 1], -90, 90)], axis=1)
        found = np.empty(len(shapes), dtype=object)
        plain = ~odd[polygon]
        if plain.any():
            found[~odd] = self._plain(places[plain[rings.ring]], np.bincount(rings.ring, minlength=len(sizes))[plain], counts[~odd])
        start = np.searchsorted(rings.ring, np.arange(len(sizes) + 1))  # a ring's corners follow one another
        for index in np.flatnonzero(odd):
            own = np.flatnonzero(polygon == index)
            found[index] = self._odd([places[start[ring] : start[ring + 1]] for ring in own], winding[own])
        return np.asarray(shapely.orient_polygons(shapely.transform(found, lambda degrees: np.round(degrees, _DIGITS))))

    def _refined(self, rings: _Rings) -> _Rings:
        """With more corners where a straight line in degrees would be off the edge.

        They lie where whole pixels, powers of two first, are on the edge, so that neighbours with other corners get the same.
        """
        open_ = np.append(rings.ring[1:] == rings.ring[:-1], False)
        for _ in range(_PASSES):
            edges = np.flatnonzero(open_)
            edges = edges[self._bent(rings, edges)]
            if not len(edges):
                break
            corners = _between(rings.pixels[edges], rings.pixels[edges + 1])
            rings = rings.more(edges + 1, corners, self.places(corners), rings.ring[edges])
            open_ = np.zeros(len(rings.ring), dtype=np.bool_)
            first = edges + np.arange(len(edges))
            open_[first], open_[first + 1] = True, True
        return rings

    def _bent(self, rings: _Rings, edges: Ints) -> NDArray[np.bool_]:
        """Which edges, by their first corners, are to be cut in two."""
        ends = rings.pixels[edges], rings.pixels[edges + 1]
        length = np.linalg.norm(ends[1] - ends[0], axis=1)
        bent = self._off(rings, edges, 0.5)
        far = np.flatnonzero(~bent & (length > _LONG))
        bent[far] |= self._off(rings, edges[far], 0.3)
        return np.asarray(bent & (length > 1 / _FINEST))

    def _off(self, rings: _Rings, edges: Ints, share: float) -> NDArray[np.bool_]:
        """Whether the point at a share of each edge lies off the straight line in degrees."""
        (first, last), (a, b) = ((every[edges], every[edges + 1]) for every in (rings.pixels, rings.degrees))
        there = self.places(first + share * (last - first))
        with np.errstate(invalid="ignore", divide="ignore"):
            across, off = b - a, there - a
            across[:, 0], off[:, 0] = beside(across[:, 0], 0), beside(off[:, 0], 0)
            astray = np.abs(beside(off[:, 0] - share * across[:, 0], 0)) > _ASTRAY
            scale = np.stack([np.cos(np.radians(there[:, 1])), np.ones(len(edges))], axis=1)
            across, off = across * scale, off * scale
            along = np.linalg.norm(across, axis=1)
            beside_it = np.abs(across[:, 0] * off[:, 1] - across[:, 1] * off[:, 0]) / along  # degrees of the globe
            wrong = beside_it / along * np.linalg.norm(last - first, axis=1) > _OFF
        known = [np.isfinite(each).all(axis=1) for each in (a, there, b)]
        partly = (known[0] | known[1] | known[2]) & ~(known[0] & known[1] & known[2])
        return np.asarray(wrong | astray | partly)

    def _plain(self, places: Floats, sizes: Ints, counts: Ints) -> NDArray[Any]:
        """Polygons of closed rings [n, 2], on the turn that is nearest to the scene's middle, holes within their outer rings."""
        first, outer = np.cumsum(sizes) - sizes, np.cumsum(counts) - counts
        low, high = np.minimum.reduceat(places[:, 0], first), np.maximum.reduceat(places[:, 0], first)
        middle = (low[outer] + high[outer]) / 2
        turns = np.repeat(-np.ceil(np.round((middle - self._middle) / TURN - 0.5, 9)), counts)
        hole = np.ones(len(sizes), dtype=np.bool_)
        hole[outer] = False
        start = np.repeat(low[outer], counts) + turns * TURN
        turns[hole] = np.ceil((start[hole] - low[hole]) / TURN - 1e-9)
        moved = places + np.stack([np.repeat(turns * TURN, sizes), np.zeros(len(places))], axis=1)
        offsets = tuple(np.concatenate([[0], np.cumsum(each)]) for each in (sizes, counts))
        made: NDArray[Any] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, moved, offsets)
        return made

    def _odd(self, rings: list[Floats], winding: Ints) -> Any:
        """The polygon of rings that go around a pole, or that lie off the globe in part."""
        kept = [(ring, turns) for ring, turns in zip(rings, winding.tolist(), strict=True) if len(ring) >= 4]
        if not len(rings[0]) or not kept:
            return None
        if not any(turns for _, turns in kept):
            sizes = np.array([len(ring) for ring, _ in kept])
            (made,) = self._plain(np.concatenate([ring for ring, _ in kept]), sizes, np.array([len(kept)]))
            return _valid(made)
        world = shapely.box(-TURN / 2, -90, TURN / 2, 90)
        found = world
        for number, (ring, turns) in enumerate(kept):
            if turns:
                found = shapely.intersection(found, _valid(_poleward(ring, turns)))
            else:
                copies = _valid(shapely.Polygon(ring))
                copies = shapely.union_all(
                    [shapely.transform(copies, lambda xy, k=k: xy + np.array([k * TURN, 0])) for k in _ROUND]
                )
                found = (shapely.intersection if number == 0 else shapely.difference)(found, copies)
        return _valid(found)


def _differences(offsets: NDArray[Any]) -> Ints:
    return np.asarray(offsets[1:] - offsets[:-1], dtype=np.int64)


def _poleward(ring: Floats, turns: int) -> Any:
    """All that lies between a ring around a pole and the pole to its left, on several turns."""
    east = ring if turns > 0 else ring[::-1]
    path = np.concatenate([east[:-1] + np.array([turn * TURN, 0]) for turn in _ROUND])
    pole = 90.0 if turns > 0 else -90.0
    return shapely.Polygon([*path, (path[-1, 0], pole), (path[0, 0], pole)])


def _valid(shape: Any) -> Any:
    """The polygons of a shape, made valid; None where there are none."""
    if not shapely.is_valid(shape):
        shape = shapely.make_valid(shape, method="structure", keep_collapsed=False)
    parts = shapely.get_parts(shape)
    parts = parts[(shapely.get_dimensions(parts) == 2) & ~shapely.is_empty(parts)]
    return None if not len(parts) else parts[0] if len(parts) == 1 else shapely.multipolygons(parts)


def _between(first: Floats, last: Floats) -> Floats:
    """A point on each edge: where its longer side passes the roundest number, in binary, of 64ths of a pixel."""
    rows = np.arange(len(first))
    axis = np.argmax(np.abs(last - first), axis=1)
    ends = np.sort(np.stack([first[rows, axis], last[rows, axis]]), axis=0)
    low = np.floor(ends[0] * _FINEST + 1e-6).astype(np.int64)
    high = np.ceil(ends[1] * _FINEST - 1e-6).astype(np.int64) - 1
    bits = np.frexp(np.maximum(low ^ high, 1).astype(np.float64))[1] - 1  # the highest one in which both differ
    at = ((high >> bits) << bits) / _FINEST
    inside = (at > ends[0]) & (at < ends[1])
    start, whole = first[rows, axis], last[rows, axis] - first[rows, axis]
    share = np.where(inside, (at - start) / whole, 0.5)
    corners: Floats = first + share[:, None] * (last - first)
    return corners


def _parted_at_pole(rings: _Rings) -> _Rings:
    """With two corners for one on a pole, at the longitudes of its neighbours: any is as good, and a pole is a line in degrees."""
    at = np.flatnonzero(np.abs(rings.degrees[:, 1]) > _POLE)
    if not len(at):
        return rings
    first = np.append(True, rings.ring[1:] != rings.ring[:-1])
    last = np.append(first[1:], True)
    starts, stops = np.flatnonzero(first), np.flatnonzero(last)
    degrees = rings.degrees.copy()
    before = np.where(first[at], stops[rings.ring[at]] - 1, at - 1)
    after = np.where(last[at], starts[rings.ring[at]] + 1, at + 1)
    degrees[at, 0] = rings.degrees[before, 0]
    more = np.stack([rings.degrees[after, 0], rings.degrees[at, 1]], axis=1)
    parted = _Rings(rings.pixels, degrees, rings.ring)
    return parted.more(at + 1, rings.pixels[at], more, rings.ring[at])


def _closed(rings: _Rings, odd: NDArray[np.bool_]) -> _Rings:
    """With the rings that have lost corners closed again."""
    starts = np.flatnonzero(np.append(True, rings.ring[1:] != rings.ring[:-1])) if len(rings.ring) else np.empty(0, dtype=np.int64)
    stops = np.append(starts[1:], len(rings.ring)) if len(starts) else starts
    wanted = (
        odd[rings.ring[starts]] & (rings.degrees[starts] != rings.degrees[stops - 1]).any(axis=1) if len(starts) else starts > 0
    )
    starts, stops = starts[wanted], stops[wanted]
    return rings.more(stops, *rings.taken(starts))


def _unrolled(rings: _Rings, count: int) -> tuple[Floats, Ints]:
    """Longitudes [n] that go on where they would jump, and how often each of the rings goes around a pole, eastward [count]."""
    sizes, winding = np.bincount(rings.ring, minlength=count), np.zeros(count, dtype=np.int64)
    longitudes, winding[sizes > 0] = unrolled(rings.degrees[:, 0], sizes[sizes > 0])
    return longitudes, winding
