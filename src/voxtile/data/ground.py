"""Metres on the ground between footprints in any coordinate reference system, on the WGS 84 ellipsoid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Case
from voxtile.data.footprints import to_world, world_outlines

STEP = 1_200.0  # metres between points on the edges of an outline: a parallel at 60 degrees bends by 0.05 m between two of them
MOST_STEPS = 16  # on each edge, for scenes of many kilometres
FLAT = 100_000.0  # metres over which a plane that touches the Earth shortens lengths by less than one in ten thousand
_AT_ONCE = 20_000  # pairs of outlines compared at a time, for bounded memory


@lru_cache(maxsize=1)
def geodesics() -> Any:
    """`pyproj.Geod` of the WGS 84 ellipsoid (Karney 2013, doi:10.1007/s00190-012-0578-z)."""
    from pyproj import Geod

    return Geod(ellps="WGS84")


def metres_per_unit(crs: str, points: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Metres on the ground in one map unit along x and along y, at points in map units.

    Args:
        crs: as WKT; one with a place on Earth.
        points: (x, y) [n, 2].
        step: half the length, in map units, over which this is measured.

    Returns:
        Metres (along x, along y) [n, 2].
    """
    found = np.empty((len(points), 2))
    for axis in range(2):
        offset = np.eye(2)[axis] * step
        ends = [to_world(crs).transform(*(points + sign * offset).T) for sign in (-1, 1)]
        found[:, axis] = geodesics().inv(*ends[0], *ends[1])[2] / (2 * step)
    return found


def least_metres(case: Case) -> tuple[float, float]:
    """Metres in one map unit along (x, y), no more than there are anywhere in the case; those of its grid where it lies nowhere.

    Along x there are none, 0, where a case in degrees reaches to a pole.

    Grids take the map units of a projection for metres, and degrees for those of a sphere. That is right to 0.2 % in UTM, where it
    is left at that, but not in Web Mercator, which stretches lengths by 1 / cos(latitude), nor near the equator in degrees.
    """
    declared = case.grid.metres
    if case.grid.crs is None or to_world(case.grid.crs) is None:
        return declared
    left, bottom, right, top = case.grid.footprint
    points = np.array([(x, y) for x in (left, (left + right) / 2, right) for y in (bottom, (bottom + top) / 2, top)])
    step = float(np.linalg.norm(case.grid.matrix[:2, :2], axis=0).min())
    x, y = np.nanmin(metres_per_unit(case.grid.crs, points, step), axis=0)
    least = [own if abs(own / given - 1) > 0.002 else given for own, given in zip((x, y), declared, strict=True)]
    return float(least[0]), float(least[1])


def pairs_within(first: Sequence[Case], second: Sequence[Case], gap: float) -> list[tuple[int, int]]:
    """Pairs of cases whose footprints are less than `gap` metres apart on the ground, or overlap; sorted indices.

    Cases without a place on Earth are near none.
    """
    if not first or not second:
        return []
    a, b = _outlines(first, second)
    pairs: list[tuple[int, int]] = []
    for rows, columns in _candidates(a, b, gap):
        close = distances(a[rows], b[columns]) < gap
        pairs += zip(rows[close].tolist(), columns[close].tolist(), strict=True)
    return sorted(pairs)


def nearest(first: Sequence[Case], second: Sequence[Case]) -> tuple[float, int, int] | None:
    """Least distance in metres between the footprints of two lists of cases, and whose it is.

    Returns:
        (metres, index into `first`, index into `second`), metres 0 where footprints overlap; None where no case of one list has
        a place on Earth.
    """
    from scipy.spatial import cKDTree

    if not all(any(case.grid.crs is not None for case in cases) for cases in (first, second)):
        return None
    a, b = _outlines(first, second)
    points = [each[np.isfinite(each).all(axis=(1, 2))].reshape(-1, 3) for each in (a, b)]
    if not len(points[0]) or not len(points[1]):
        return None
    # No pair is nearer than the nearest points of outlines; only pairs that could be are looked at closely.
    bound = float(cKDTree(points[1]).query(points[0])[0].min())
    best: tuple[float, int, int] | None = None
    for rows, columns in _candidates(a, b, bound * 1.001 + 1.0):
        apart = distances(a[rows], b[columns])
        place = int(apart.argmin())
        if best is None or apart[place] < best[0]:
            best = (float(apart[place]), int(rows[place]), int(columns[place]))
    return best


def distances(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Metres on the ground [m] between outlines in space [m, p, (x, y, z)], pair by pair; 0 where they overlap.

    Up to 100 km they are laid onto a plane that touches the Earth between them; beyond, it is the geodesic between their nearest
    points.
    """
    import shapely

    middle = (first.mean(axis=1) + second.mean(axis=1)) / 2
    reach = [np.linalg.norm(each - middle[:, None], axis=2).max(axis=1) for each in (first, second)]
    found = np.zeros(len(first))
    wide = np.flatnonzero(np.maximum(*reach) > FLAT)
    if len(wide):
        steps = np.linalg.norm(first[wide, :, None] - second[wide, None], axis=3).reshape(len(wide), -1)
        i, j = np.unravel_index(steps.argmin(axis=1), (first.shape[1], second.shape[1]))
        found[wide] = geodesics().inv(*_degrees(first[wide, i]).T, *_degrees(second[wide, j]).T)[2]
        middle[wide] = (first[wide, i] + second[wide, j]) / 2
    near = np.flatnonzero(found < FLAT)
    east, north = _axes(middle[near])
    axes = np.stack([east, north], axis=1)
    flat = [shapely.polygons(np.einsum("mpd,mad->mpa", each[near] - middle[near, None], axes)) for each in (first, second)]
    found[near] = shapely.distance(*flat)
    return found


def _outlines(first: Sequence[Case], second: Sequence[Case]) -> list[NDArray[np.float64]]:
    """Points around footprints [n, p, (x, y, z)] in metres from the Earth's centre; NaN where there is no place on Earth."""
    longest = max(side * spacing for case in (*first, *second) for side, spacing in zip(case.shape, case.grid.spacing, strict=True))
    steps = int(np.clip(np.ceil(longest / STEP), 1, MOST_STEPS))
    return [_cartesian(world_outlines(cases, steps)) for cases in (first, second)]


def _candidates(
    first: NDArray[np.float64], second: NDArray[np.float64], gap: float
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Indices of pairs of outlines [n, p, (x, y, z)] that may be less than `gap` metres apart, some at a time.

    Each lies in a ball around its middle; in space neither the antimeridian nor the poles are special. Balls of about one size
    are looked up together, so that a few large scenes don't make candidates of all pairs of small ones.
    """
    from scipy.spatial import cKDTree

    centres = [points.mean(axis=1) for points in (first, second)]
    radii = [np.linalg.norm(points - c[:, None], axis=2).max(axis=1) for points, c in zip((first, second), centres, strict=True)]
    by_size = [np.where(np.isfinite(r), np.ceil(np.log2(np.maximum(r, 1.0))), -1.0) for r in radii]
    sizes = [np.unique(each[each >= 0]) for each in by_size]
    for row_size, column_size in itertools.product(*sizes):
        rows, columns = np.flatnonzero(by_size[0] == row_size), np.flatnonzero(by_size[1] == column_size)
        tree, reach = cKDTree(centres[1][columns]), gap + 2.0**row_size + 2.0**column_size
        counts = np.cumsum(tree.query_ball_point(centres[0][rows], reach, return_length=True))
        for part in np.split(rows, np.searchsorted(counts, np.arange(_AT_ONCE, counts[-1], _AT_ONCE))):
            hits = tree.query_ball_point(centres[0][part], reach)
            i = np.repeat(part, [len(hit) for hit in hits])
            j = columns[np.concatenate([np.asarray(hit, dtype=np.intp) for hit in hits])] if len(i) else i
            close = np.linalg.norm(centres[0][i] - centres[1][j], axis=1) < gap + radii[0][i] + radii[1][j]
            if close.any():
                yield i[close], j[close]


def _cartesian(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points on the ellipsoid [..., (longitude, latitude)] as [..., (x, y, z)] in metres from the Earth's centre."""
    geod = geodesics()
    longitude, latitude = np.radians(degrees[..., 0]), np.radians(degrees[..., 1])
    normal = geod.a / np.sqrt(1 - geod.es * np.sin(latitude) ** 2)
    across = normal * np.cos(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), normal * (1 - geod.es) * np.sin(latitude)], axis=-1)


def _degrees(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `_cartesian`."""
    up = points / np.array([1.0, 1.0, 1 - geodesics().es])
    latitude = np.arctan2(up[..., 2], np.hypot(up[..., 0], up[..., 1]))
    found: NDArray[np.float64] = np.degrees(np.stack([np.arctan2(up[..., 1], up[..., 0]), latitude], axis=-1))
    return found


def _axes(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors to the east and to the north [m, 3] at points [m, (x, y, z)] near the ellipsoid's surface."""
    up = points / np.array([1.0, 1.0, 1 - geodesics().es])  # its normal, but for its length
    up /= np.linalg.norm(up, axis=1, keepdims=True)
    east = np.stack([-up[:, 1], up[:, 0], np.zeros(len(up))], axis=1)
    east[np.linalg.norm(east, axis=1) < 1e-9] = (0.0, 1.0, 0.0)  # at a pole any direction will do
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    return east, np.cross(up, east)
