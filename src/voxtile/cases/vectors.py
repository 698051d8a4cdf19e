"""Labels that are vector files, burnt into the grid of their scene."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from voxtile.cases.case import Source
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.window import Size3, Window
from voxtile.errors import DataError


class PolygonLabel(Source):
    """Polygons of a GeoJSON file, burnt into the grid of a scene window by window: 1 inside, 0 outside.

    A pixel belongs to a polygon when its centre lies inside. Coordinates are longitude and latitude (RFC 7946) unless the
    file names another system in its `crs` member.
    """

    def __init__(self, path: Path, onto: GeoTiffSource) -> None:
        crs = onto.profile["crs"]
        if crs is None:
            raise DataError(f"{onto.path} has no coordinate reference system, so the polygons of {path} cannot be placed on it.")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            own = ((document.get("crs") or {}).get("properties") or {}).get("name", "EPSG:4326")
            shapes = [feature["geometry"] for feature in document["features"] if feature.get("geometry")]
            shapes = [shape for shape in shapes if shape["type"] in ("Polygon", "MultiPolygon")]
            self._shapes = rasterio.warp.transform_geom(own, crs, shapes) if shapes else []
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RasterioError) as error:
            raise DataError(f"{path} cannot be read as GeoJSON polygons: {error!r}. Expected a FeatureCollection.") from error
        left, bottom, right, top = onto.stored.footprint
        bounds = [(shape, rasterio.features.bounds(shape)) for shape in self._shapes]
        near = [(shape, b) for shape, b in bounds if b[0] <= right and b[2] >= left and b[1] <= top and b[3] >= bottom]
        self._shapes, self._bounds = [shape for shape, _ in near], [b for _, b in near]
        self.paths, self.channels, self.dtype = (path,), ("label",), np.dtype(np.uint8)
        self.stored, self.canonical, self._onto = onto.stored, onto.canonical, onto

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        size: Size3 = window.size
        transform = self._onto.profile["transform"] @ Affine.translation(window.x, window.y)
        corners = [transform @ (x, y) for x in (0, window.width) for y in (0, window.height)]
        (left, bottom), (right, top) = np.min(corners, axis=0), np.max(corners, axis=0)
        near = [
            (shape, 1)
            for shape, (a, b, c, d) in zip(self._shapes, self._bounds, strict=True)
            if a < right and c > left and b < top and d > bottom
        ]
        burnt = np.zeros(size[1:], dtype=np.uint8)
        if near:
            burnt = rasterio.features.rasterize(near, out_shape=size[1:], transform=transform, dtype="uint8")
        return burnt[None, None], np.ones(size, dtype=np.bool_)

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`."""
        return self._onto.open_map(path, spec)

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return self._onto.map_name(stem, spec)
