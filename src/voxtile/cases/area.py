"""An area of interest on the grid of a scene: what of the scene is read at all, and which pixels of that count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.cache import Stamp, stamp_of
from voxtile.cases.grid import Grid
from voxtile.cases.scene import Bounds
from voxtile.cases.window import Window
from voxtile.errors import DataError

if TYPE_CHECKING:
    from pyproj import CRS

    from voxtile.cases.burn import Placed
    from voxtile.cases.vector_files import Areas

WORLD = "EPSG:4326"


@dataclass(frozen=True)
class SceneArea:
    """Shapes on the grid of a scene.

    Attributes:
        box: the part of the scene's grid that holds them.
        shapes: in pixels from that part's upper left corner.
        notes: what was odd in their file, one sentence each.
    """

    box: Window
    shapes: Placed
    notes: tuple[str, ...]

    def inside(self, window: Window) -> NDArray[np.bool_]:
        """Which pixel centres [h, w] of `window`, counted from the box's corner, lie inside a shape."""
        return np.asarray(self.shapes.burnt(window, all_touched=False) > 0)


def area_on(area: str | Bounds, grid: Grid) -> SceneArea | None:
    """Lays an area over a scene.

    Args:
        area: a vector file, or (left, bottom, right, top) in degrees.
        grid: the scene's, with a CRS.

    Returns:
        None where the area does not touch the scene.

    Raises:
        DataError: The file cannot be read or holds no areas, or it or the scene has no place on Earth.
    """
    import shapely
    from pyproj.exceptions import ProjError

    from voxtile.cases.burn import UNIT, Placed
    from voxtile.cases.vector_grid import SceneGrid, unplaced

    assert grid.crs is not None
    areas = _of_file(Path(area).expanduser()) if isinstance(area, str) else _of_bounds(area)
    try:
        shapes, _ = SceneGrid(grid, areas.crs, 0.0, 0.0).polygons(areas.outlines, str(area))
    except ProjError as error:
        raise DataError(
            f"The area of interest ('data.scene.area'): {area} {unplaced(areas.crs, grid.crs)} Write the area with the system that "
            "its coordinates are in, by 'ogr2ogr -a_srs EPSG:… areas.gpkg …', or give the scene its own, by 'gdal_edit.py -a_srs "
            "EPSG:…'."
        ) from error
    if not len(shapes):
        return None
    # Corners are moved to where they are burnt: they are then exact in any window, and every window is cut from one whole.
    shapes = shapely.transform(shapes, lambda points: np.round(points * UNIT) / UNIT)
    corners = shapely.total_bounds(shapes)
    size = grid.shape[:0:-1]
    low, high = (np.clip(edge, 0, size).astype(int) for edge in (np.floor(corners[:2]), np.ceil(corners[2:])))
    if (high <= low).any():
        return None
    shapes = shapes[shapely.intersects(shapely.make_valid(shapes), shapely.box(*low, *high))]
    if not len(shapes):
        return None
    shapes = shapely.transform(shapes, lambda points: points - low)
    placed = Placed.of(shapes, np.ones(len(shapes), dtype=np.uint16), np.arange(len(shapes)))
    return SceneArea(Window.of((0, *low[::-1]), (1, *(high - low)[::-1])), placed, areas.notes)


def exchanged(area: str | Bounds, grid: Grid) -> str:
    """See `exchanged_shapes`, for an area as `area_on` takes it."""
    areas = _of_file(Path(area).expanduser()) if isinstance(area, str) else _of_bounds(area)
    return exchanged_shapes(areas.shapes, areas.crs, grid)


def exchanged_shapes(shapes: NDArray[np.object_], crs: CRS, grid: Grid) -> str:
    """A sentence, with a space before it, where shapes that miss a scene would meet it with x and y exchanged; "" where not."""
    import shapely
    from geopandas import GeoSeries

    turned = shapely.transform(shapes, lambda points: points[:, ::-1])
    there = np.asarray(GeoSeries(turned, crs=crs).to_crs(grid.crs))
    there = there[np.isfinite(shapely.bounds(there)).all(axis=1)]
    if not shapely.intersects(there, shapely.box(*grid.footprint)).any():
        return ""
    return " They would meet with x and y exchanged: longitude (x) comes first, then latitude (y)."


def _of_bounds(bounds: Bounds) -> Areas:
    from pyproj import CRS
    from shapely import box

    from voxtile.cases.vector_files import Areas

    left, bottom, right, top = bounds
    parts = [box(*bounds)] if left < right else [box(left, bottom, 180, top), box(-180, bottom, right, top)]
    return Areas(np.array(parts, dtype=object), tuple("12"[: len(parts)]), CRS.from_user_input(WORLD), ())


@lru_cache(maxsize=8)
def _read(path: Path, stamp: Stamp) -> Areas:
    from voxtile.cases.vector_files import read_areas

    try:
        return read_areas(path)
    except DataError as error:
        raise DataError(f"The area of interest ('data.scene.area'): {error}") from error


def _of_file(path: Path) -> Areas:
    if not path.exists():
        raise DataError(
            f"The area {path.absolute()} (data.scene.area) does not exist. Name a vector file, by its whole path or from the "
            "folder in which the command is given, or [left, bottom, right, top]."
        )
    return _read(path, stamp_of(path))
