"""Which pixels of a scene lie in polygons of another coordinate reference system.

The pixels are brought to the polygons, not the polygons to the pixels: a pixel has one place in the other system or none, and the
polygons' edges stay as straight as their file has them. So it matters neither where they run, over the antimeridian, around a pole
or off the scene's map, nor how long they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from voxtile.cases.grid import Grid
from voxtile.cases.longitudes import TURN, TURNS, beside
from voxtile.cases.pixel_area import PixelAreas, equal_area, quarter_turn
from voxtile.cases.window import Window

_LEAF = 16  # pixels a side, at most, of a block whose pixels are looked at one by one
_CELL = 64  # pixels a side, at least, of the blocks that a scene is divided into first
_CELLS = 32  # such blocks a side, at most
_SAMPLES = 5  # a side of a block, of the points by which its place in the other system is found
_SIDE = 16  # straight lines that stand for a side of a block in the other system
_FAR = 9  # the same, of the points by which a block is known to lie off the map, out to half a block beside it
_BULGE = 1 / 4  # of a block's extent, that it may reach beyond its samples
_TORN = 0.6  # of a block's extent, between two of its samples: it lies on both sides of where the other map is cut
_WIDE = 90.0  # degrees of longitude that only blocks near a pole have, apart from huge ones
_FOLD = TURN / 2 + 1.5 * _WIDE  # degrees that blocks reach to: their middles are named by the turn around Greenwich
_TIE = 1e-6  # pixels to the right and down: a centre on the border of two polygons belongs to one of them
_POLE = 1 - 1e-11  # of the pole's latitude, which belongs to what ends there
_EDGES = 256  # parts of a polygon's longest side, of which its ground is measured
_PARTS = 4  # a side, of pixels that share of a polygon is measured by
_FEW_PARTED = 64  # blocks whose pixels are parted so; of more the pixels themselves do
_NEAR = 6  # powers of ten of map units within which polygons are measured in one projection, which takes long to make
_FEW_NEAR = 4  # blocks of a polygon that is small beside them
_AT_ONCE = 2048  # leaves whose pixels are looked at together

Floats = NDArray[np.float64]
Blocks = NDArray[np.int64]  # [n, (x, y, x end, y end)] in pixels


class SceneCells:
    """A scene's pixels in another system.

    Attributes:
        blocks: parts of the scene that together hold all its pixels that have a place in the other system.
        plain: which of them are blocks there too [n]; the others, of few pixels, are near a pole or at the edge of the scene's map.
    """

    def __init__(self, grid: Grid, crs: CRS) -> None:
        """Finds the scene there.

        Args:
            grid: the scene's, with a CRS.
            crs: the other system.
        """
        assert grid.crs is not None
        scene = CRS.from_wkt(grid.crs)
        self._grid, self._transform, self._crs = grid, grid.transform, crs
        same = crs.equals(scene, ignore_axis_order=True)
        self._forth = None if same else Transformer.from_crs(scene, crs, always_xy=True)
        self._poles = quarter_turn(scene) * _POLE, quarter_turn(crs) * _POLE
        self._turn = 4 * quarter_turn(crs) if crs.is_geographic else None
        _, height, width = grid.shape
        side = max(_CELL, -(-max(height, width) // _CELLS))
        blocks = _tiled(Window.whole(grid.shape), side)
        kept: list[tuple[Blocks, Floats]] = []
        odd: list[tuple[Blocks, Floats]] = []
        while len(blocks):
            bounds = self._bounds(blocks)
            plain = _known(bounds)
            kept.append((blocks[plain], bounds[plain]))
            blocks = blocks[~plain]
            blocks = blocks[~self._off_map(blocks)]
            leaf = _is_leaf(blocks)
            odd += [(block[None], self._exactly(block)) for block in blocks[leaf]]
            blocks = _quartered(blocks[~leaf])
        odd = [(block, bounds) for block, bounds in odd if np.isfinite(bounds).all()]
        self.blocks = np.concatenate([blocks for blocks, _ in (*kept, *odd)])
        self.plain = np.arange(len(self.blocks)) < sum(len(blocks) for blocks, _ in kept)
        self._tree = shapely.STRtree(shapely.box(*np.concatenate([bounds for _, bounds in (*kept, *odd)]).T))

    def near(self, shape: Any) -> NDArray[np.int64]:
        """The blocks that a polygon, see `folded`, may share pixels with."""
        return np.sort(self._tree.query(shape, predicate="intersects"))

    def box(self, shape: Any, near: NDArray[np.int64]) -> Window:
        """A part of the scene that holds all pixels of a polygon, see `folded`, which is near some blocks, by their numbers."""
        blocks = self.blocks[near]
        while len(near) <= _FEW_NEAR and not (leaf := _is_leaf(blocks, _CELL)).all():
            parts = np.concatenate([blocks[leaf], _quartered(blocks[~leaf])])
            bounds = self._bounds(parts)
            plain = _known(bounds)
            apart = plain & ~shapely.intersects(shape, shapely.box(*np.where(plain[:, None], bounds, 0).T))
            if apart.all():
                break
            blocks = parts[~apart]
        (x, y), (right, bottom) = blocks[:, :2].min(axis=0).tolist(), blocks[:, 2:].max(axis=0).tolist()
        return Window.of((0, y, x), (1, bottom - y, right - x))

    def inside(self, shape: Any, near: NDArray[np.int64], window: Window) -> NDArray[np.bool_]:
        """Which pixels [h, w] of a window have their centres in a polygon.

        Args:
            shape: the polygon, see `folded`.
            near: see `near`.
            window: of the scene.
        """
        found = np.zeros((window.height, window.width), dtype=np.bool_)
        low, high = np.array([window.x, window.y]), np.array([window.x + window.width, window.y + window.height])
        blocks = self.blocks[near]
        blocks = np.concatenate([np.maximum(blocks[:, :2], low), np.minimum(blocks[:, 2:], high)], axis=1)
        blocks = blocks[(blocks[:, :2] < blocks[:, 2:]).all(axis=1)]
        shapely.prepare(shape)
        while len(blocks):
            bounds = self._bounds(blocks)
            plain = _known(bounds)
            boxes = shapely.box(*np.where(plain[:, None], bounds, 0).T)
            full = plain & shapely.contains_properly(shape, boxes)
            for x, y, right, bottom in blocks[full] - [*low, *low]:
                found[y:bottom, x:right] = True
            blocks = blocks[~full & ~(plain & ~shapely.intersects(shape, boxes))]
            leaf = _is_leaf(blocks)
            for columns, rows in _pixels(blocks[leaf]):
                x, y = self._there(np.stack([columns, rows], axis=-1) + 0.5 + _TIE).T
                found[rows - low[1], columns - low[0]] = shapely.contains_xy(shape, x, y)
            blocks = _quartered(blocks[~leaf])
        return found

    def share(self, shape: Any, whole: Any, near: NDArray[np.int64]) -> float:
        """The share of a polygon's ground that lies on the scene, to about a millionth.

        Near a pole and at the edge of a map of the world it is that of pixels.

        Args:
            shape: the polygon, see `folded`.
            whole: as the file has it.
            near: see `near`.
        """
        if not len(near):
            return 0.0
        ground, on_scene = _ground([whole, shapely.intersection(whole, self._footprint)], self._crs)
        odd = self.blocks[near[~self.plain[near]]]
        parts = _PARTS if len(odd) <= _FEW_PARTED else 1
        for x, y, right, bottom in odd.tolist():
            columns, rows = np.meshgrid(
                *(np.arange(start, end, 1 / parts) + 0.5 / parts for start, end in ((x, right), (y, bottom)))
            )
            places = self._there(np.stack([columns.ravel(), rows.ravel()], axis=1))
            counts = [_by_pixel(which, columns.shape, parts) for which in (shapely.contains_xy(shape, *places.T), _known(places))]
            areas = self._areas.cells(Window.of((0, y, x), (1, bottom - y, right - x)))
            on_scene += float((areas * counts[0] / np.maximum(counts[1], 1)).sum())
        return min(1.0, on_scene / ground) if ground > 0 else float(on_scene > 0)

    @cached_property
    def _areas(self) -> PixelAreas:
        return PixelAreas(self._grid)

    @cached_property
    def _footprint(self) -> Any:
        """The plain blocks as one shape in the other system, on each turn of longitude."""
        around = _outlined(self.blocks[self.plain])
        rings = self._unwrapped(self._there(around.reshape(-1, 2)).reshape(around.shape))
        shapes = shapely.polygons(rings) if len(rings) else np.empty(0, dtype=object)
        if self._turn is not None:
            shapes = np.concatenate([_moved(shapes, turn * self._turn / TURN) for turn in TURNS])
        return shapely.union_all(shapely.make_valid(shapes))

    def _there(self, pixels: NDArray[Any]) -> Floats:
        """Places [n, 2] in pixels from the scene's corner as places in the other system; not finite where they have none."""
        x, y = self._transform @ tuple(pixels.T)
        y = np.clip(y, -self._poles[0], self._poles[0])
        if self._forth is not None:
            x, y = self._forth.transform(x, y)
        found = np.stack([x, y], axis=1)
        if self._turn is not None:
            with np.errstate(invalid="ignore"):
                found[:, 0] = beside(found[:, 0], 0, self._turn)
            found[:, 1] = np.clip(found[:, 1], -self._poles[1], self._poles[1])
        return found

    def _unwrapped(self, places: Floats, about: int = 0) -> Floats:
        """Places [blocks, n, 2] whose longitudes lie within half a turn of that of one of them."""
        if self._turn is not None:
            with np.errstate(invalid="ignore"):
                places[..., 0] = beside(places[..., 0], places[:, about, None, 0], self._turn)
        return places

    def _bounds(self, blocks: Blocks) -> Floats:
        """A box [n, 4] in the other system that holds each block; not finite where it is none there, but torn or around a pole."""
        places = self._unwrapped(self._there_of(blocks, np.linspace(0, 1, _SAMPLES)), _SAMPLES**2 // 2)
        lattice = places.reshape(-1, _SAMPLES, _SAMPLES, 2)
        with np.errstate(invalid="ignore"):
            low, high = places.min(axis=1), places.max(axis=1)
            size = high - low
            steps = [np.linalg.norm(np.diff(lattice, axis=axis), axis=-1).max(axis=(1, 2)) for axis in (1, 2)]
            odd = np.maximum(*steps) > _TORN * size.max(axis=1)
            if self._turn is not None:
                odd |= size[:, 0] > self._turn * _WIDE / TURN
            bounds: Floats = np.concatenate([low - _BULGE * size, high + _BULGE * size], axis=1)
        bounds[odd] = np.nan
        return bounds

    def _off_map(self, blocks: Blocks) -> NDArray[np.bool_]:
        """Whether neither blocks [n] nor what is around them has a place."""
        places = self._there_of(blocks, np.linspace(-0.5, 1.5, _FAR))
        return np.asarray(~_known(places.reshape(-1, 2)).reshape(places.shape[:2]).any(axis=1))

    def _there_of(self, blocks: Blocks, steps: NDArray[Any]) -> Floats:
        """Places [n, steps², 2] of points in blocks, `steps` of their sides from their corners."""
        share = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(1, -1, 2)
        points = blocks[:, None, :2] + share * (blocks[:, None, 2:] - blocks[:, None, :2])
        return self._there(points.reshape(-1, 2)).reshape(points.shape)

    def _exactly(self, block: NDArray[np.int64]) -> Floats:
        """A box [1, 4] that holds the centres of a block's pixels; not finite where none has a place."""
        ((columns, rows),) = _pixels(block[None])
        places = self._there(np.stack([columns, rows], axis=-1) + 0.5 + _TIE)
        places = places[_known(places)]
        if not len(places):
            return np.full((1, 4), np.nan)
        places = self._unwrapped(places[None])[0]
        low, high = places.min(axis=0), places.max(axis=0)
        if self._turn is not None and high[0] - low[0] > self._turn * _WIDE / TURN:
            low[0], high[0] = -self._turn / 2, self._turn / 2
        return np.array([[*low, *high]])


def folded(shapes: NDArray[np.object_], crs: CRS) -> NDArray[np.object_]:
    """Polygons where `SceneCells` looks for them: those in degrees on each turn of longitude that it may name a place by."""
    if not crs.is_geographic:
        return shapes
    turn = 4 * quarter_turn(crs)
    reach = _FOLD * turn / TURN
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    found = shapes.copy()
    for index in np.flatnonzero((bounds[:, 0] < reach - turn) | (bounds[:, 2] > turn - reach)):
        turns = range(math.floor((-reach - bounds[index, 2]) / turn), math.ceil((reach - bounds[index, 0]) / turn) + 1)
        copies = [_moved(shapes[index], k * turn) for k in turns]
        found[index] = shapely.union_all(shapely.clip_by_rect(copies, -reach, -turn, reach, turn))
    return found


def _moved(shapes: Any, east: float) -> Any:
    return shapely.transform(shapes, lambda places: places + np.array([east, 0.0]))


def _ground(shapes: list[Any], crs: CRS) -> list[float]:
    """Square metres of polygons' ground on the ellipsoid of their system, of the first and of parts of it.

    In square map units where the first reaches off the globe.
    """
    left, bottom, right, top = shapely.bounds(shapes[0])
    fine = shapely.segmentize(np.array(shapes, dtype=object), max(right - left, top - bottom) / _EDGES)
    to_area = _to_area(crs, round((left + right) / 2, -_NEAR), round((bottom + top) / 2, -_NEAR))
    moved = shapely.transform(fine, lambda xy: np.stack(to_area.transform(*xy.T), axis=1))
    areas: list[float] = shapely.area(moved if np.isfinite(shapely.get_coordinates(moved)).all() else fine).tolist()
    return areas


@lru_cache(maxsize=1024)
def _to_area(crs: CRS, x: float, y: float) -> Transformer:
    if crs.is_geographic:
        return equal_area(crs, 0.0, 0.0)
    place = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(x, y)
    return equal_area(crs, *place if np.isfinite(place).all() else (0.0, 0.0))


def _known(rows: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(rows).all(axis=1))


def _tiled(window: Window, side: int) -> Blocks:
    """Blocks that a window is cut into."""
    starts = [np.arange(start, start + size, side) for start, size in ((window.x, window.width), (window.y, window.height))]
    x, y = (each.ravel() for each in np.meshgrid(*starts))
    right, bottom = np.minimum(x + side, window.x + window.width), np.minimum(y + side, window.y + window.height)
    return np.stack([x, y, right, bottom], axis=1).astype(np.int64)


def _is_leaf(blocks: Blocks, side: int = _LEAF) -> NDArray[np.bool_]:
    return np.asarray((blocks[:, 2:] - blocks[:, :2]).max(axis=1, initial=0) <= side)


def _quartered(blocks: Blocks) -> Blocks:
    """The quarters of blocks; less, of blocks that are one pixel thin."""
    x, y, right, bottom = blocks.T
    across, down = (x + right) // 2, (y + bottom) // 2
    parts = [(x, y, across, down), (across, y, right, down), (x, down, across, bottom), (across, down, right, bottom)]
    found = np.concatenate([np.stack(part, axis=1) for part in parts])
    return found[(found[:, :2] < found[:, 2:]).all(axis=1)]


def _pixels(blocks: Blocks) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Columns and rows of all pixels of blocks, some blocks at a time."""
    steps = np.arange(_LEAF)
    for start in range(0, len(blocks), _AT_ONCE):
        x, y, right, bottom = (each[:, None, None] for each in blocks[start : start + _AT_ONCE].T)
        columns, rows = np.broadcast_arrays(x + steps, y + steps[:, None])
        there = (columns < right) & (rows < bottom)
        yield columns[there], rows[there]


def _by_pixel(points: NDArray[np.bool_], shape: tuple[int, ...], parts: int) -> NDArray[np.int64]:
    """How many of `parts` times `parts` points in each pixel [h, w]; the points are those of a lattice of a shape."""
    height, width = shape
    return np.asarray(points.reshape(height // parts, parts, width // parts, parts).sum(axis=(1, 3)), dtype=np.int64)


def _outlined(blocks: Blocks) -> Floats:
    """Points around blocks [n, 4 _SIDE, 2] in pixels, in turn."""
    steps = np.arange(_SIDE) / _SIDE
    none, full = np.zeros_like(steps), np.ones_like(steps)
    x, y = np.concatenate([steps, full, 1 - steps, none]), np.concatenate([none, steps, full, 1 - steps])
    share = np.stack([x, y], axis=1)[None]
    return np.asarray(blocks[:, None, :2] + share * (blocks[:, None, 2:] - blocks[:, None, :2]), dtype=np.float64)
