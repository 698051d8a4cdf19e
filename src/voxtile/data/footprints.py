"""Which cases lie over or next to each other on the ground."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.area import WORLD
from voxtile.cases.case import Case
from voxtile.cases.grid import METRES_PER_DEGREE
from voxtile.cases.longitudes import TURNS, beside

_CORNERS = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float64)  # in turn around the grid, in widths and heights
_STEPS = 4  # points on each edge of an outline that is brought to another system, where straight edges become curves
_POLAR = 75.0  # degrees of latitude beyond which longitudes tell little
_AT_ONCE = 100_000  # pairs of outlines compared at a time, for bounded memory


def near_pairs(first: Sequence[Case], second: Sequence[Case], gap: float) -> list[tuple[int, int]]:
    """Pairs of cases whose footprints are less than `gap` pixels apart.

    Footprints in one coordinate reference system are compared there, others in degrees. Two convex outlines
    are as far apart as along the direction, of all normals to their edges, in which they are farthest apart; where they
    overlap, this is minus the depth of the overlap (separating axes). Cases without a CRS are near none.

    Args:
        first: cases.
        second: cases.
        gap: in pixels of the finer of the two; below 0, footprints that overlap deeper than this.

    Returns:
        Indices (into `first`, into `second`), sorted.
    """
    codes = [[case.grid.crs for case in cases] for cases in (first, second)]
    systems = {crs for crs in (*codes[0], *codes[1]) if crs is not None}
    pairs: list[tuple[int, int]] = []
    for crs in systems:
        rows, columns = ([place for place, own in enumerate(side) if own == crs] for side in codes)
        if rows and columns:
            a, b = (_outlines([cases[i] for i in chosen]) for cases, chosen in ((first, rows), (second, columns)))
            # Files in degrees call the antimeridian's east side 181 or -179.
            turns = TURNS if (world := to_world(crs)) is not None and world.source_crs.is_geographic else (0.0,)
            found = {pair for turn in turns for pair in _near(*a, b[0] + (turn, 0), b[1], gap)}
            pairs += [(rows[i], columns[j]) for i, j in found]
    if len(systems) > 1:
        pairs += [(i, j) for i, j in _near_in_degrees(first, second, gap) if codes[0][i] != codes[1][j]]
    return sorted(pairs)


def _near_in_degrees(first: Sequence[Case], second: Sequence[Case], gap: float) -> set[tuple[int, int]]:
    """Near pairs in longitude and latitude; near a pole, where outlines reach around it, in a plane about it."""
    (a, b), (a_pixel, b_pixel) = [(of(first), of(second)) for of in (world_outlines, _degrees)]
    a_pole, b_pole = (np.sign(p[:, 0, 1]) * (np.abs(p[..., 1]) > _POLAR).all(axis=1) for p in (a, b))
    found = {pair for turn in TURNS for pair in _near(a, a_pixel, b + np.array([turn, 0]), b_pixel, gap)}
    found = {(i, j) for i, j in found if a_pole[i] != b_pole[j] or not a_pole[i]}
    for pole in (-1, 1):
        planes = (np.where((own == pole)[:, None, None], _about_pole(p), np.nan) for p, own in ((a, a_pole), (b, b_pole)))
        found |= set(_near(next(planes), a_pixel, next(planes), b_pixel, gap))
    return found


def _about_pole(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points [..., (longitude, latitude)] in degrees from the pole of their hemisphere, along two axes through it."""
    turn = np.radians(degrees[..., 0])
    plane: NDArray[np.float64] = np.stack([np.cos(turn), np.sin(turn)], axis=-1) * (90 - np.abs(degrees[..., 1:]))
    return plane


def world_outlines(cases: Sequence[Case], steps: int = _STEPS) -> NDArray[np.float64]:
    """Points around the pixels' outer edges in degrees [n, 4 steps, (longitude, latitude)], in turn.

    NaN, which is near nothing, for cases without a CRS or with one that has no place on Earth. An outline over the
    antimeridian goes on past 180 or -180 degrees.
    """
    points, _ = _outlines(cases, steps)
    world = np.full_like(points, np.nan)
    members: dict[str, list[int]] = {}
    for place, case in enumerate(cases):
        if case.grid.crs is not None:
            members.setdefault(case.grid.crs, []).append(place)
    for crs, places in members.items():
        if (transformer := to_world(crs)) is not None:
            world[places] = np.stack(transformer.transform(points[places, :, 0], points[places, :, 1]), axis=-1)
    world[~np.isfinite(world).all(axis=(1, 2))] = np.nan
    world[:, :, 0] = beside(world[:, :, 0], world[:, :1, 0])
    return world


@lru_cache(maxsize=256)
def to_world(crs: str) -> Any:
    """A `pyproj.Transformer` from a CRS, as WKT, to (longitude, latitude); None where it has no place on Earth."""
    from pyproj import CRS, Transformer
    from pyproj.exceptions import ProjError

    try:
        return Transformer.from_crs(CRS.from_wkt(crs), WORLD, always_xy=True)
    except ProjError:
        return None


def _outlines(cases: Sequence[Case], steps: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points around the pixels' outer edges [n, 4 steps, (x, y)] and the finer side of a pixel [n], in map units."""
    weights = np.arange(steps)[:, None] / steps
    around = np.concatenate([a + weights * (b - a) for a, b in zip(_CORNERS, np.roll(_CORNERS, -1, axis=0), strict=True)])
    matrices = np.array([case.grid.matrix for case in cases]).reshape(-1, 4, 4)[:, :2]  # [n, (x, y), 4]
    sizes = np.array([case.shape[:0:-1] for case in cases]).reshape(-1, 2)  # [n, (width, height)]
    index = around[None] * sizes[:, None] - 0.5
    points = np.einsum("nij,npj->npi", matrices[:, :, :2], index) + matrices[:, None, :, 3]
    return points, np.linalg.norm(matrices[:, :, :2], axis=1).min(axis=1)


def _degrees(cases: Sequence[Case]) -> NDArray[np.float64]:
    """The finer side of each case's pixels [n], in degrees of latitude."""
    return np.array([min(case.grid.spacing[1:]) for case in cases]) / METRES_PER_DEGREE


def _near(
    first: NDArray[np.float64],
    first_pixel: NDArray[np.float64],
    second: NDArray[np.float64],
    second_pixel: NDArray[np.float64],
    gap: float,
) -> list[tuple[int, int]]:
    import shapely

    # A tree of the bounding boxes leaves out most pairs; of 10,000 scenes all pairs would be 100 million.
    grown = max(gap, 0.0) * first_pixel[:, None]
    low, high = first.min(axis=1) - grown, first.max(axis=1) + grown
    known = [np.flatnonzero(np.isfinite(points).all(axis=(1, 2))) for points in (first, second)]
    tree = shapely.STRtree(shapely.box(*second[known[1]].min(axis=1).T, *second[known[1]].max(axis=1).T))
    i, j = tree.query(shapely.box(*low[known[0]].T, *high[known[0]].T))
    rows, columns = known[0][i], known[1][j]
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(rows), _AT_ONCE):
        a, b = (each[start : start + _AT_ONCE] for each in (rows, columns))
        close = _separation(first[a], second[b]) < gap * np.minimum(first_pixel[a], second_pixel[b])
        pairs += zip(a[close].tolist(), b[close].tolist(), strict=True)
    return pairs


def _separation(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far convex outlines [m, p, 2] are apart [m] along the edge normal where this is most; negative: overlap."""
    edges = np.concatenate([np.roll(points, -1, axis=1) - points for points in (first, second)], axis=1)
    normals = np.stack([-edges[:, :, 1], edges[:, :, 0]], axis=2)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    a, b = (np.einsum("mkd,mpd->mkp", normals, points) for points in (first, second))
    apart: NDArray[np.float64] = np.maximum(b.min(axis=2) - a.max(axis=2), a.min(axis=2) - b.max(axis=2)).max(axis=1)
    return apart
