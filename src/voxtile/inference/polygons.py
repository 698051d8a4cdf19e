"""A finished map of a scene as polygons in a vector file.

Polygons are the objects of the map whose pixels share sides. They are traced slab by slab; the pieces of an object that crosses
slabs are united when its last one has come, so that there is no seam and memory holds the objects that are open, not the scene.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

from voxtile.cases.atomic import atomic_write, remove
from voxtile.cases.grid import Grid
from voxtile.cases.maps import as_numbers
from voxtile.errors import reason
from voxtile.inference.degrees import Degrees
from voxtile.inference.finished import FinishedMap
from voxtile.inference.instances import Instances
from voxtile.values import finite

DRIVERS = {"gpkg": "GPKG", "geojson": "GeoJSON"}
_CHUNK = 20_000  # polygons that are handled at once

Traced = tuple[NDArray[np.int64], NDArray[Any]]  # rows of `Instances`, and their polygons
Features = tuple[dict[str, NDArray[Any]], NDArray[Any]]  # attributes by their names, and the polygons in pixels


def write_polygons(found: FinishedMap, objects: Instances, path: Path, simplify: float | None = None) -> None:
    """Writes the objects of a scene's map as a GeoPackage or GeoJSON file, by the ending of `path`.

    Attributes: `class`, `value` (the number that stands for it in the map), `area_ha` (hectares of ground below the object's
    pixels) and, where there is a heatmap, `probability` (the class's mean over them). A GeoPackage is in the scene's CRS, GeoJSON
    in longitude and latitude on WGS 84 with outer rings counter-clockwise (RFC 7946, sections 3.1.6 and 4).

    Args:
        found: the map of a scene with a CRS.
        objects: its objects, connected by sides.
        path: the file.
        simplify: about the largest side, in metres, of corners that are cut off; borders that two polygons share stay shared. All
            polygons are in memory then.

    Raises:
        OSError: The file cannot be written; nothing is left under its name.
    """
    chunks = _chunks(traced(found, objects))
    if simplify is not None:
        chunks = iter([_simplified(list(chunks), found.grid, simplify)])
    write = _write_geojson if path.suffix.lower() == ".geojson" else _write_geopackage
    try:
        atomic_write(path, lambda making: write(_features(chunks, found, objects), found.grid, making))
    except (DataSourceError, DataLayerError, FeatureError) as error:
        # The caller says which file: its own name, for which this one may stand.
        raise OSError(f"{reason(error)} (is the disk full?)") from error


def traced(found: FinishedMap, objects: Instances) -> Iterator[tuple[int, Any]]:
    """The row of each object and its polygon in pixels (x, y) from the scene's corner, as soon as it is whole."""
    assert not objects.corners, "objects that meet at corners only are no valid polygons"
    pieces: dict[int, list[Any]] = {}
    for window, ids in objects.ids(found):
        numbers = ids[0].astype(np.int32)
        place = Affine.translation(window.x, window.y)
        shapes = rasterio.features.shapes(numbers, mask=numbers > 0, connectivity=4, transform=place)
        # In parts: as Python's lists of corners, the outlines of a speckled slab would take gigabytes.
        while found_here := [(int(number) - 1, shape["coordinates"]) for shape, number in islice(shapes, _CHUNK)]:
            for (row, _), polygon in zip(found_here, _polygons([rings for _, rings in found_here]), strict=True):
                if objects.low[row, 1] >= window.start[1] and objects.high[row, 1] <= window.stop[1]:
                    yield row, polygon
                else:
                    pieces.setdefault(row, []).append(polygon)
        for row in [row for row in pieces if objects.high[row, 1] <= window.stop[1]]:
            parts = pieces.pop(row)
            # On the grid of pixel corners, where all corners lie, a union is exact; it leaves points on the seams.
            yield row, parts[0] if len(parts) == 1 else shapely.simplify(shapely.union_all(parts, grid_size=1), 0)


def _polygons(outlines: list[list[Any]]) -> NDArray[Any]:
    """Polygons from lists of rings, the outer one first; all at once, since one by one takes several times as long."""
    rings = [ring for outline in outlines for ring in outline]
    places = np.array([place for ring in rings for place in ring]).reshape(-1, 2)
    closed = shapely.linearrings(places, indices=np.repeat(np.arange(len(rings)), [len(ring) for ring in rings]))
    made: NDArray[Any] = shapely.polygons(closed, indices=np.repeat(np.arange(len(outlines)), [len(rings) for rings in outlines]))
    return made


def _chunks(polygons: Iterable[tuple[int, Any]]) -> Iterator[Traced]:
    rows: list[int] = []
    shapes: list[Any] = []
    for row, shape in polygons:
        rows.append(row)
        shapes.append(shape)
        if len(rows) == _CHUNK:
            yield np.array(rows), np.array(shapes)
            rows, shapes = [], []
    yield np.array(rows, dtype=np.int64), np.array(shapes, dtype=object)


def _simplified(chunks: list[Traced], grid: Grid, metres: float) -> Traced:
    """All polygons with fewer corners, borders shared as before (Visvalingam and Whyatt 1993, on the coverage as a whole)."""
    rows, shapes = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    # Neighbours must have the same corners along a border: one at each pixel, until it is simplified.
    corners = shapely.transform(shapely.segmentize(shapes, 1), np.rint)
    # In whole pixels, where what lies on an edge lies on it exactly: in metres, rounded, borders would cross themselves. A corner
    # is cut off by the area of its triangle, which grows with that of a pixel whatever its sides are.
    return rows, shapely.coverage_simplify(corners, metres / math.sqrt(grid.cell(planar=True)))


def _features(chunks: Iterable[Traced], found: FinishedMap, objects: Instances) -> Iterator[Features]:
    """Attributes by their names, and the polygons in pixels; once at least, then of none."""
    names = np.array(found.classes, dtype=object)
    for rows, shapes in chunks:
        index = objects.index[rows]
        assert objects.size is not None
        value = as_numbers(index, found.values).astype(np.int32)
        columns = {"class": names[index], "value": value, "area_ha": objects.size[rows]}
        if objects.probability is not None:
            columns["probability"] = objects.probability[rows]
        yield columns, shapes


def _write_geopackage(features: Iterable[Features], grid: Grid, making: Path) -> None:
    if ";" not in making.name:
        _write_layer(features, grid, making)
        return
    # Pyogrio takes what follows a ";" for parameters of an address.
    plain = making.with_name(f".{hashlib.sha256(making.name.encode()).hexdigest()[:16]}.gpkg")
    try:
        _write_layer(features, grid, plain)
        plain.replace(making)
    finally:
        remove(plain)


def _write_layer(features: Iterable[Features], grid: Grid, path: Path) -> None:
    to_map = grid.transform
    for number, (columns, shapes) in enumerate(features):
        placed = shapely.transform(shapes, lambda places: np.stack(to_map @ places.T, axis=1))
        pyogrio.write_dataframe(
            geopandas.GeoDataFrame(columns, geometry=placed, crs=grid.crs), path, layer="polygons", driver=DRIVERS["gpkg"],
            append=number > 0, geometry_type="Polygon",
        )  # fmt: skip
    # GDAL makes the index when it closes the file, and only warns where the disk is full.
    with closing(sqlite3.connect(path)) as written:
        if not written.execute("SELECT 1 FROM sqlite_master WHERE name = 'rtree_polygons_geom'").fetchall():
            raise OSError("the spatial index could not be written (is the disk full?)")


def _write_geojson(features: Iterable[Features], grid: Grid, making: Path) -> None:
    """Written by hand: GDAL appends to GeoJSON by reading and writing all of it."""
    degrees = Degrees(grid)
    with making.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        comma = "\n"
        for columns, shapes in features:
            texts = shapely.to_geojson(degrees.polygons(shapes))
            for text, *values in zip(texts, *(column.tolist() for column in columns.values()), strict=True):
                properties = json.dumps(finite(dict(zip(columns, values, strict=True))), allow_nan=False)
                file.write(f'{comma}{{"type": "Feature", "properties": {properties}, "geometry": {text or "null"}}}')
                comma = ",\n"
        file.write("\n]}\n")
