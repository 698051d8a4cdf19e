"""Bringing the shapes of a vector file to the pixels of a scene."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer

from voxtile.cases.burn import Placed
from voxtile.cases.grid import Grid
from voxtile.cases.longitudes import TURN, TURNS, beside
from voxtile.cases.seam import Seam, brought, way
from voxtile.cases.vector_files import Shapes, simple_parts
from voxtile.errors import DataError

_SAMPLES = 33  # a side, of the points by which a scene's place in the file's system is found
_MARGIN = 8  # pixels around a scene that count as near
_KEPT = 4096  # pixels around a scene beyond which shapes are cut off
_BEND = 1 / 64  # of a pixel that a straight edge may be off where it is a curve in the other system
_ARCS = 16  # corners in a quarter circle of a buffer
_WORLD = CRS.from_epsg(4326)

Floats = NDArray[np.float64]
Geometries = NDArray[np.object_]
Box = tuple[float, float, float, float]  # left, bottom, right, top


class SceneGrid:
    """The way from a file's coordinates to the pixels of a scene.

    Attributes:
        boxes: boxes in the file's system that hold everything near the scene; None where its system reaches no such place.
            Longitudes go round: of a scene on the antimeridian there is one for shapes near 180°, and one for those near -180°.
    """

    def __init__(self, grid: Grid, file_crs: CRS, buffer: float, border: float) -> None:
        """Finds the scene in the file's system.

        Args:
            grid: the scene's grid, with a CRS.
            file_crs: the file's system.
            buffer: metres on the ground that shapes will be grown by.
            border: pixels that are looked at outside the scene.

        Raises:
            pyproj.exceptions.ProjError: There is no way between the two systems, or, with a buffer, to a place on Earth.
        """
        self._to_map = grid.transform
        self._size = np.array([grid.shape[2], grid.shape[1]], dtype=np.float64)  # (width, height)
        self._crs, self._file_crs, self._buffer = CRS.from_user_input(grid.crs).to_2d(), file_crs, buffer
        self._same = bool(file_crs.equals(self._crs, ignore_axis_order=True))
        self._reach = self._grown_by(buffer) + _MARGIN + border
        samples = _applied(self._to_map, self._grid_of(self._reach))
        if self._crs.is_geographic:
            samples[:, 1] = np.clip(samples[:, 1], -90, 90)
        # In the file's system; to itself there is a way from one without a place on Earth as well, which PROJ does not know.
        self._found = samples if self._same else np.stack(way(self._crs, file_crs).transform(*samples.T), axis=1)
        self._seam = Seam.of(self._crs, samples if np.isfinite(self._found).all() else None)
        self._turn = self._once_around()
        self.boxes = self._boxes(self._found.copy()) if np.isfinite(self._found).all() else None

    def place(self, shapes: Shapes, name: str) -> Placed:
        """The shapes near the scene as polygons in its pixels.

        Args:
            shapes: the file's shapes.
            name: the file's, for messages.

        Raises:
            DataError: A shape reaches to where the scene's system has no coordinates.
        """
        parts, index = self.polygons(shapes, name)
        return Placed.of(parts, shapes.codes[index], shapes.features[index])

    def polygons(self, shapes: Shapes, name: str) -> tuple[Geometries, NDArray[np.int64]]:
        """See `place`: polygons in pixels, and their numbers in `shapes.parts`."""
        parts, index = self._near(shapes)
        bounds, longest = shapely.bounds(parts).reshape(-1, 4), self._longest_edge()
        long = np.hypot(*(bounds[:, 2:] - bounds[:, :2]).T) > longest  # the others cannot have an edge that is
        parts[long] = shapely.segmentize(parts[long], longest)
        source = self._file_crs
        if self._buffer:
            longitude, latitude = self._world.transform(*(self._to_map @ tuple(self._size / 2)))
            # Distances from the scene's middle are true in it; 500 km away, those across are 0.1 % too long.
            source = CRS.from_dict({"proj": "aeqd", "lon_0": longitude, "lat_0": latitude, "datum": "WGS84"})
            to_local = Transformer.from_crs(self._file_crs, source, always_xy=True)
            parts = shapely.transform(parts, lambda xy: np.stack(to_local.transform(*xy.T), axis=1))
            parts, index = self._finite(parts, index, shapes, name)
            parts, index = simple_parts(shapely.buffer(parts, self._buffer, quad_segs=_ARCS), index)
        if self._buffer or not self._same:
            onto = Transformer.from_crs(source, self._crs, always_xy=True) if self._buffer else self._from_file
            parts, owners = brought(parts, source, onto, self._seam)
            parts, index = self._finite(parts, index[owners], shapes, name)
        parts = shapely.transform(parts, self._pixels)
        if self._turn is not None:
            turn = np.array(~self._to_map @ tuple(self._turn)) - np.array(~self._to_map @ (0.0, 0.0))
            parts = np.concatenate([shapely.transform(parts, lambda xy, k=k: xy + k * turn) for k in (-1, 0, 1)])
            index = np.tile(index, 3)
        return self._cut(parts, index)

    def _once_around(self) -> Floats | None:
        """Map units (x, y) after which the scene's map repeats itself, where the scene reaches that far: it may begin anywhere."""
        corners = _applied(self._to_map, self._grid_of(0))
        if self._crs.is_geographic:
            return np.array([TURN, 0.0]) if np.ptp(corners[:, 0]) > 340 else None
        return self._seam.turn if self._seam is not None and self._seam.beyond(corners) else None

    def _grid_of(self, reach: float | Floats) -> Floats:
        """Points (x, y) in pixels, evenly over the scene and what is `reach` around it [n, 2]."""
        steps = np.linspace(0, 1, _SAMPLES)[:, None]
        x, y = (-reach + steps * (self._size + 2 * reach)).T
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)

    def _pixels(self, points: Floats) -> Floats:
        """Map units of the scene's system to pixels [n, 2]; longitudes are taken on the scene's side of the world."""
        if self._crs.is_geographic and self._turn is None:
            middle = (self._to_map @ tuple(self._size / 2))[0]
            points = points.copy()
            with np.errstate(invalid="ignore"):
                points[:, 0] = beside(points[:, 0], middle)
        return _applied(~self._to_map, points)

    @cached_property
    def _from_file(self) -> Transformer:
        return way(self._file_crs, self._crs)

    @cached_property
    def _world(self) -> Transformer:
        return way(self._crs, _WORLD)

    def _grown_by(self, metres: float) -> Floats:
        """Pixels (x, y) that hold at least so many metres of ground anywhere in the scene; at most the scene's size."""
        if not metres:
            return np.zeros(2)
        at = self._grid_of(0)
        places = [np.stack(self._world.transform(*_applied(self._to_map, at + step).T)) for step in ((0, 0), (1, 0), (0, 1))]
        lengths = [Geod(ellps="WGS84").inv(*places[0], *there)[2] for there in places[1:]]
        shortest = np.array([np.nanmin(np.where(np.isfinite(each), each, np.nan)) for each in lengths])
        pixels: Floats = np.minimum(1.5 * metres / np.maximum(shortest, 1e-9), self._size.max())
        return pixels

    def _boxes(self, found: Floats) -> list[Box]:
        """See `boxes`; `found` are points over the scene in the file's system."""
        if not self._file_crs.is_geographic:
            low, high = found.min(axis=0), found.max(axis=0)
            edge = (high - low) / 16  # what may bulge between the points
            return [(*(low - edge).tolist(), *(high + edge).tolist())]
        middle = found[len(found) // 2, 0]
        found[:, 0] = beside(found[:, 0], middle)
        low, high = found.min(axis=0), found.max(axis=0)
        (left, bottom), (right, top) = low - (high - low) / 16, high + (high - low) / 16
        poles = self._poles()
        bottom, top = (-90.0 if -90 in poles else bottom), (90.0 if 90 in poles else top)
        if poles or right - left > 340:
            return [(-1.5 * TURN, bottom, 1.5 * TURN, top)]
        return [(left + turn, bottom, right + turn, top) for turn in TURNS]

    def _poles(self) -> set[int]:
        """Latitudes of the poles that lie in the scene."""
        found = set()
        for latitude in (-90, 90):
            place = np.array(self._from_file.transform(0.0, float(latitude)))
            if np.isfinite(place).all():
                x, y = self._pixels(place[None])[0]
                inside = (
                    -self._reach[0] <= x <= self._size[0] + self._reach[0]
                    and -self._reach[1] <= y <= self._size[1] + self._reach[1]
                )
                found |= {latitude} if inside else set()
        return found

    def _longest_edge(self) -> float:
        """Length in the file's units up to which straight edges stay straight in pixels, to a part of a pixel.

        An edge of length L is off by f'' L² / 8 at most, and f'' is measured at points over the scene.
        """
        at = self._found[np.isfinite(self._found).all(axis=1)]
        if (self._same and not self._buffer) or not len(at):
            return math.inf
        size = float(np.ptp(at, axis=0).max())
        gap = math.inf if self._seam is None else self._seam.gap / math.sqrt(abs(self._to_map.determinant))
        worst = 0.0
        for step in np.array([(1, 0), (0, 1), (1, 1), (1, -1)]) / (_SAMPLES - 1) * size:
            before, here, after = (
                self._pixels(np.stack(self._from_file.transform(*(at + k * step).T), axis=1)) for k in (-1, 0, 1)
            )
            with np.errstate(invalid="ignore"):
                bend = np.linalg.norm(before - 2 * here + after, axis=1)
            bend = bend[bend < gap / 2]  # a step over the seam, or to where the scene's system has no place, is no bend
            worst = max(worst, float(bend.max(initial=0)) / float(step @ step))
        length = max(math.sqrt(8 * _BEND / worst), size / 4096) if worst else math.inf
        return min(length, size / 64) if self._buffer else length  # a buffer goes by way of a third system

    def _near(self, shapes: Shapes) -> tuple[Geometries, NDArray[np.int64]]:
        """Parts near the scene, cut to its boxes, and their numbers in `shapes`."""
        if self.boxes is None:
            return shapes.parts.copy(), np.arange(len(shapes.parts))
        found = []
        for box in self.boxes:
            index = np.sort(shapes.tree.query(shapely.box(*box)))
            parts = shapes.parts[index]
            bounds = shapely.bounds(parts)
            out = (bounds[:, :2] < box[:2]).any(axis=1) | (bounds[:, 2:] > box[2:]).any(axis=1)
            parts[out] = shapely.clip_by_rect(parts[out], *box)
            found.append(simple_parts(parts, index))
        return np.concatenate([parts for parts, _ in found]), np.concatenate([index for _, index in found])

    def _finite(
        self, parts: Geometries, index: NDArray[np.int64], shapes: Shapes, name: str
    ) -> tuple[Geometries, NDArray[np.int64]]:
        """Without the parts that lie where the scene's system has no coordinates, on the other side of the Earth."""
        points, owner = shapely.get_coordinates(parts, return_index=True)
        lost = ~np.isfinite(points).all(axis=1)
        if not lost.any():
            return parts, index
        some, kept = np.zeros(len(parts), dtype=np.bool_), np.zeros(len(parts), dtype=np.bool_)
        some[owner[lost]], kept[owner[~lost]] = True, True
        if (some & kept).any():
            shape = shapes.features[index[some & kept]][0] + 1
            raise DataError(
                f"{name}: shape {shape} reaches to where the scene's coordinate reference system ({self._crs.name}) has no "
                "coordinates. Cut it to the area of the scenes, for example with 'ogr2ogr -clipsrc'."
            )
        return parts[kept], index[kept]

    def _cut(self, parts: Geometries, index: NDArray[np.int64]) -> tuple[Geometries, NDArray[np.int64]]:
        """Without the parts that do not reach into the scene; large ones cut off around it, so that coordinates stay small."""
        bounds = shapely.bounds(parts).reshape(-1, 4)
        near = ((bounds[:, 2:] >= -self._reach) & (bounds[:, :2] <= self._size + self._reach)).all(axis=1)
        parts, index, bounds = parts[near], index[near], bounds[near]
        large = ((bounds[:, :2] < -_KEPT) | (bounds[:, 2:] > self._size + _KEPT)).any(axis=1)
        parts[large] = shapely.clip_by_rect(parts[large], -_KEPT, -_KEPT, *(self._size + _KEPT))
        return simple_parts(parts, index)


def unplaced(crs: CRS, scene_crs: str) -> str:
    """Why shapes cannot be laid onto a scene in another system, for messages."""
    names = [f"'{each.name}'" for each in (crs, CRS.from_user_input(scene_crs))]
    return (
        f"is in the coordinate reference system {names[0]} and the scene in {names[1]}, and there is no way from one to the other: "
        "a system needs a place on Earth."
    )


def _applied(transform: Affine, xy: Floats) -> Floats:
    """Points [n, 2] moved by an affine transform; those without a place stay infinite."""
    with np.errstate(invalid="ignore"):
        moved = np.stack(transform @ tuple(xy.T), axis=1)
    moved[~np.isfinite(moved).all(axis=1)] = np.inf  # not NaN, of which no ring can be closed
    return moved
