"""Where pixels lie in the world: the stored, the canonical and the working grid as types of their own.

A grid's affine maps the index (x, y, z) = (column, row, slice) of a pixel to the world coordinates of the pixel's *centre*,
in map units of `crs` for scenes and in millimetres (RAS+) for volumes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, TypeVar

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from voxtile.cases.window import Size3

Unit = Literal["mm", "m", "px"]
METRES_PER_DEGREE = 111_320.0  # of latitude, on the mean sphere
SHEAR = 1e-4  # cosine between axes up to which they are at right angles: headers round their directions
G = TypeVar("G", bound="Grid")


@dataclass(frozen=True)
class Grid:
    """A regular grid of pixels in space.

    Attributes:
        shape: (D, H, W) in pixels.
        affine: 4x4, row-major nested tuples: index (x, y, z, 1) -> world (X, Y, Z, 1) of the pixel's centre.
        unit: unit of length of `spacing`: "mm" for volumes, "m" for scenes with a CRS, "px" where nothing is known.
        crs: coordinate reference system as WKT, or None.
        metres: metres in one map unit along (x, y); (111320 * cos(latitude), 111320) for geographic systems.
    """

    shape: Size3
    affine: tuple[tuple[float, ...], ...]
    unit: Unit = "px"
    crs: str | None = None
    metres: tuple[float, float] = (1.0, 1.0)

    def as_kind(self, kind: type[G]) -> G:
        """The same grid as one of another kind."""
        return kind(**{field.name: getattr(self, field.name) for field in fields(self)})

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The affine as an array [4, 4]."""
        return np.asarray(self.affine, dtype=np.float64)

    @property
    def transform(self) -> Affine:
        """From (column, row) counted from the upper left pixel's corner, as GDAL, polygons and pictures do, to map units."""
        (a, b, _, c), (d, e, _, f) = self.affine[:2]
        return Affine(a, b, c, d, e, f) @ Affine.translation(-0.5, -0.5)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring pixels along (z, y, x) in `unit`."""
        columns = self.matrix[:3, :3] * np.array([*self.metres, 1.0])[:, None]
        x, y, z = (float(np.linalg.norm(columns[:, axis])) for axis in range(3))
        return z, y, x

    @property
    def steps(self) -> NDArray[np.float64]:
        """From a pixel to the next along (z, y, x), in `unit`: rows [3, 3] whose products with indices (z, y, x) are places.

        Of axes at right angles they are turned into the axes themselves, so that only `spacing` stands on the diagonal.
        """
        return self._edges if self.is_sheared else np.diag(self.spacing)

    @property
    def is_sheared(self) -> bool:
        """Whether axes are not at right angles, as those of a CT whose gantry was tilted."""
        lengths = np.array(self.spacing)
        return bool((np.abs(np.triu(self._edges @ self._edges.T, 1)) > SHEAR * np.outer(lengths, lengths)).any())

    @property
    def heights(self) -> tuple[float, float, float]:
        """Distance between neighbouring planes of pixels along (z, y, x) in `unit`: `spacing` where axes are at right angles."""
        if not self.is_sheared:
            return self.spacing
        z, y, x = (float(1 / np.linalg.norm(normal)) for normal in self._normals)
        return z, y, x

    @property
    def lean(self) -> float:
        """Cosine of the least angle between two families of those planes; 0 where axes are at right angles."""
        if not self.is_sheared:
            return 0.0
        units = self._normals / np.linalg.norm(self._normals, axis=1, keepdims=True)
        return float(np.abs(np.triu(units @ units.T, 1)).max())

    @property
    def _normals(self) -> NDArray[np.float64]:
        """Normals of the planes of pixels along (z, y, x), rows [3, 3], each one over the distance between them long."""
        return np.asarray(np.linalg.inv(self._edges).T, dtype=np.float64)

    def cell(self, planar: bool = False) -> float:
        """The volume of a pixel, in `unit` cubed, or the area of one in its slice: what pixels count for together."""
        if not self.is_sheared:
            return math.prod(self.spacing[1:] if planar else self.spacing)
        edges = self._edges[1:] if planar else self._edges
        return math.sqrt(float(np.linalg.det(edges @ edges.T)))

    @property
    def _edges(self) -> NDArray[np.float64]:
        """The edges of a pixel along (z, y, x), rows [3, 3], as vectors in the world."""
        columns: NDArray[np.float64] = self.matrix[:3, 2::-1] * np.array([*self.metres, 1.0])[:, None]
        return columns.T

    @property
    def footprint(self) -> tuple[float, float, float, float]:
        """The bounding box (left, bottom, right, top) of the pixels' outer edges, in units of `crs`."""
        _, height, width = self.shape
        corners = np.array([(x, y, 0, 1) for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)], dtype=np.float64)
        world = corners @ self.matrix.T
        (left, bottom), (right, top) = world[:, :2].min(axis=0), world[:, :2].max(axis=0)
        return float(left), float(bottom), float(right), float(top)

    def corner_distance(self, other: Grid) -> float:
        """Largest distance between the same corners of two grids, in pixels of this grid's finest spacing."""
        depth, height, width = self.shape
        corners = np.array(
            [(x, y, z, 1) for x in (0, width - 1) for y in (0, height - 1) for z in (0, depth - 1)], dtype=np.float64
        )
        offset = (corners @ (self.matrix - other.matrix).T)[:, :3]
        axes = (0, 1, 2) if depth > 1 else (0, 1)
        finest = min(float(np.linalg.norm(self.matrix[:3, axis])) for axis in axes)
        return float(np.linalg.norm(offset, axis=1).max()) / finest


class StoredGrid(Grid):
    """The grid as it lies in the file, axes in the file's own order and direction."""


class CanonicalGrid(Grid):
    """The stored grid with axes permuted and flipped only (volumes: towards RAS+; oblique stays oblique)."""


class WorkingGrid(Grid):
    """The grid that windows, networks and scores live on; equal to the canonical grid unless resampled or cut."""


def nested(matrix: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """A matrix as nested tuples, row by row, as grids keep it."""
    return tuple(tuple(float(value) for value in row) for row in matrix)


def plain_affine(spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> tuple[tuple[float, ...], ...]:
    """The axis-aligned affine for `spacing` (z, y, x)."""
    z, y, x = spacing
    return ((x, 0.0, 0.0, 0.0), (0.0, y, 0.0, 0.0), (0.0, 0.0, z, 0.0), (0.0, 0.0, 0.0, 1.0))


def degree_metres(latitude: float) -> tuple[float, float]:
    """Metres in one degree along (longitude, latitude) at `latitude` in degrees, on the mean sphere."""
    return METRES_PER_DEGREE * max(math.cos(math.radians(latitude)), 1e-6), METRES_PER_DEGREE
