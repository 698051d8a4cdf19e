"""Which cases lie over or next to each other on the ground."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import rasterio
import rasterio.warp
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # GDAL's own errors, which have no public name

from voxtile.cases.case import Case
from voxtile.cases.grid import METRES_PER_DEGREE

WORLD = "EPSG:4326"
_CORNERS = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float64)  # in turn around the grid, in widths and heights
_STEPS = 4  # points on each edge of an outline that is brought to another system, where straight edges become curves


def near_pairs(first: Sequence[Case], second: Sequence[Case], gap: float) -> list[tuple[int, int]]:
    """Pairs of cases whose footprints are less than `gap` pixels apart.

    Footprints in one coordinate reference system are compared there, others in longitude and latitude. Two convex outlines
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
            pairs += [(rows[i], columns[j]) for i, j in _near(*a, *b, gap)]
    if len(systems) > 1:
        a, b = _world_outlines(first), _world_outlines(second)
        pairs += [(i, j) for i, j in _near(*a, *b, gap) if codes[0][i] != codes[1][j]]
    return sorted(pairs)


def _outlines(cases: Sequence[Case], steps: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points around the pixels' outer edges [n, 4 steps, (x, y)] and the finer side of a pixel [n], in map units."""
    weights = np.arange(steps)[:, None] / steps
    around = np.concatenate([a + weights * (b - a) for a, b in zip(_CORNERS, np.roll(_CORNERS, -1, axis=0), strict=True)])
    matrices = np.array([case.grid.matrix for case in cases])[:, :2]  # [n, (x, y), 4]
    sizes = np.array([case.shape[:0:-1] for case in cases])  # [n, (width, height)]
    index = around[None] * sizes[:, None] - 0.5
    points = np.einsum("nij,npj->npi", matrices[:, :, :2], index) + matrices[:, None, :, 3]
    return points, np.linalg.norm(matrices[:, :, :2], axis=1).min(axis=1)


def _world_outlines(cases: Sequence[Case]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As `_outlines` in degrees; NaN, which is near nothing, for cases without a CRS or with one that has no place on Earth."""
    points, _ = _outlines(cases, _STEPS)
    with rasterio.Env():  # without it GDAL prints its errors
        for case, outline in zip(cases, points, strict=True):
            crs = case.grid.crs
            try:
                outline[:] = np.nan if crs is None else np.transpose(rasterio.warp.transform(crs, WORLD, *outline.T))
            except CPLE_BaseError:
                outline[:] = np.nan
    points[~np.isfinite(points).all(axis=(1, 2))] = np.nan
    # An outline over the antimeridian would span the globe: its longitudes follow on from the first point's.
    first = points[:, :1, 0]
    points[:, :, 0] = first + np.mod(points[:, :, 0] - first + 180, 360) - 180
    return points, np.array([min(case.grid.spacing[1:]) for case in cases]) / METRES_PER_DEGREE


def _near(
    first: NDArray[np.float64],
    first_pixel: NDArray[np.float64],
    second: NDArray[np.float64],
    second_pixel: NDArray[np.float64],
    gap: float,
) -> list[tuple[int, int]]:
    apart = np.full((len(first), len(second)), -np.inf)  # of the bounding boxes, to leave out most pairs
    for x, y in ((first[:, :, axis], second[:, :, axis]) for axis in range(2)):
        np.maximum(apart, y.min(axis=1)[None] - x.max(axis=1)[:, None], out=apart)
        np.maximum(apart, x.min(axis=1)[:, None] - y.max(axis=1)[None], out=apart)
    reach = gap * np.minimum(first_pixel[:, None], second_pixel[None])
    rows, columns = np.nonzero(apart < reach)
    close = _separation(first[rows], second[columns]) < reach[rows, columns]
    return [(int(i), int(j)) for i, j in zip(rows[close], columns[close], strict=True)]


def _separation(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far convex outlines [m, p, 2] are apart [m] along the edge normal where this is most; negative: overlap."""
    edges = np.concatenate([np.roll(points, -1, axis=1) - points for points in (first, second)], axis=1)
    normals = np.stack([-edges[:, :, 1], edges[:, :, 0]], axis=2)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    a, b = (np.einsum("mkd,mpd->mkp", normals, points) for points in (first, second))
    apart: NDArray[np.float64] = np.maximum(b.min(axis=2) - a.max(axis=2), a.min(axis=2) - b.max(axis=2)).max(axis=1)
    return apart
