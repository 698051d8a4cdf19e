"""GeoTIFF scenes: any number of bands, any data type, nodata, masks, alpha, scale and offset."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import rasterio.shutil
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # leaves rasterio.shutil.copy unwrapped
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from voxtile.cases.case import IGNORE, Source, distinct_names
from voxtile.cases.grid import CanonicalGrid, StoredGrid, degree_metres
from voxtile.cases.handles import HandleCache
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.window import Size3, Window
from voxtile.errors import DataError, reason

_HANDLES = HandleCache(most=32)
# GDAL looks for a scene's side files (.msk, .tfw) by their names and does not list its folder, which may be huge, at every open.
# Options are set around opening only: setting and resetting GDAL's cache size around each read would empty the cache each time.
_ENV = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE"}
# By the file's ending and not by its content: a text file could tell GDAL to read other files or addresses.
_DRIVERS = {".jp2": "JP2OpenJPEG", ".png": "PNG", ".vrt": "VRT"}


def _open(path: Path) -> rasterio.DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a plain TIFF is a fine image; `check` says so
        try:
            with rasterio.Env(**_ENV):
                return rasterio.open(path, driver=_DRIVERS.get(path.suffix.lower(), "GTiff"))
        except RasterioError as error:
            raise DataError(f"{path} cannot be read as a GeoTIFF: {reason(error)}. Expected an intact raster file.") from error


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


class GeoTiffSource(Source):
    """One GeoTIFF, or several on the same grid whose bands are stacked in the order given.

    A pixel holds data where no band of it is NaN, where not all bands equal their nodata value (Sentinel-2's cirrus band
    may well be 0 in a valid pixel), and where mask and alpha bands say so. Alpha bands are no channels. Where a band
    carries a scale or offset tag, they are applied and the data type is float32.
    """

    def __init__(self, paths: Sequence[Path], nodata: float | None = None) -> None:
        """Reads the headers.

        Args:
            paths: the files.
            nodata: overrides the files' own nodata value.

        Raises:
            DataError: A file cannot be opened or lies on another grid than the first.
        """
        self.paths = tuple(paths)
        self._bands: list[tuple[int, int]] = []  # (file, band number from 1) of each channel
        self._nodata: list[float | None] = []
        self._scale: list[tuple[float, float]] = []
        self._masked = [False] * len(self.paths)
        self._stamps: list[int] = []  # modification times: no open handle of a file that was replaced is used
        names: list[str] = []
        dtypes: list[str] = []
        files = distinct_names(self.paths)
        for number, path in enumerate(self.paths):
            with _open(path) as dataset:
                self._check_grid(dataset, path)
                self._stamps.append(_stamp(path))
                self._masked[number] = any(
                    MaskFlags.per_dataset in flags or MaskFlags.alpha in flags for flags in dataset.mask_flag_enums
                )
                for band in dataset.indexes:
                    if dataset.colorinterp[band - 1] == ColorInterp.alpha:
                        continue
                    self._bands.append((number, band))
                    self._nodata.append(nodata if nodata is not None else dataset.nodatavals[band - 1])
                    self._scale.append((dataset.scales[band - 1], dataset.offsets[band - 1]))
                    dtypes.append(dataset.dtypes[band - 1])
                    default = f"band{band}" if len(self.paths) == 1 else f"{files[number]}_{band}"
                    name = (dataset.descriptions[band - 1] or default).strip()
                    # Some writers put the file's name into the description; such names differ from scene to scene.
                    names.append(default if path.stem.split(".")[0] in name else name)
        if np.result_type(*dtypes).kind == "c":
            raise DataError(f"{self.path} holds complex numbers. Expected real ones; save magnitude and phase as bands.")
        self._scaled = any(pair != (1.0, 0.0) for pair in self._scale)
        self.dtype = np.dtype(np.float32) if self._scaled else np.result_type(*dtypes)
        self.channels = tuple(names) if len(set(names)) == len(names) else tuple(f"band{i + 1}" for i in range(len(names)))

    def _check_grid(self, dataset: rasterio.DatasetReader, path: Path) -> None:
        grid = scene_grid(dataset)
        if not hasattr(self, "stored"):
            self.stored, self._profile = grid, {"crs": dataset.crs, "transform": dataset.transform}
            self.canonical = CanonicalGrid(grid.shape, grid.affine, grid.unit, grid.crs, grid.metres)
        elif grid.shape != self.stored.shape or grid.corner_distance(self.stored) > 0.1 or grid.crs != self.stored.crs:
            raise DataError(
                f"{path} lies on another grid than {self.path}: {grid.shape[1:]} pixels at {dataset.transform.to_gdal()} against "
                f"{self.stored.shape[1:]} at {self._profile['transform'].to_gdal()}. Bands that are stacked must share one grid; "
                "warp the file first, for example with 'gdalwarp -te … -ts …'."
            )

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        area = RasterWindow(window.x, window.y, window.width, window.height)
        parts: list[NDArray[Any]] = []
        valid = np.ones(window.size, dtype=np.bool_)
        for number, path in enumerate(self.paths):
            bands = [self._bands[channel][1] for channel in channels if self._bands[channel][0] == number]
            if not bands:
                continue
            try:
                dataset = _HANDLES.get((path, self._stamps[number]), partial(_open, path))
                parts.append(dataset.read(bands, window=area))
                if self._masked[number]:
                    valid[0] &= dataset.dataset_mask(window=area) > 0
            except RasterioError as error:
                raise DataError(
                    f"{path} could not be read at window {tuple(window)} (z, y, x, depth, height, width): {reason(error)}. The "
                    "file is probably cut off or damaged there; fetch it again, or leave the case out with 'data.exclude=[…]'."
                ) from error
        array = parts[0] if len(parts) == 1 else np.concatenate([part.astype(self.dtype, copy=False) for part in parts])
        if len(parts) > 1:  # bands came file by file: back to the order asked for
            came = [c for number in range(len(self.paths)) for c in channels if self._bands[c][0] == number]
            array = array[[came.index(channel) for channel in channels]]
        valid[0] &= self._has_data(array, channels)
        if self._scaled:
            pairs = np.array([self._scale[channel] for channel in channels], dtype=np.float64)
            array = array * pairs[:, 0, None, None] + pairs[:, 1, None, None]
        return array.astype(self.dtype, copy=False)[:, None], valid

    def _has_data(self, array: NDArray[Any], channels: Sequence[int]) -> NDArray[np.bool_]:
        """Where pixels [C, h, w] as stored hold data [h, w]."""
        valid = np.ones(array.shape[1:], dtype=np.bool_)
        if array.dtype.kind == "f":
            valid &= np.isfinite(array).all(axis=0)
        values = [self._nodata[channel] for channel in channels]
        if all(value is not None and not math.isnan(value) for value in values):
            empty = np.ones_like(valid)
            for band, value in zip(array, values, strict=True):
                empty &= band == value
            valid &= ~empty
        return valid

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return f"{stem}.tif"

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`; the finished file is a Cloud-Optimized GeoTIFF."""

        def finish(array: NDArray[Any], making: Path) -> None:
            _write_cog(array[:, 0], making, spec, self._profile)

        return MapWriter(path, self.canonical.shape, spec, finish)

    def notes(self) -> list[str]:
        """See `Source.notes`."""
        if self.stored.crs is None:
            return [f"{self.path} has no coordinate reference system; its maps will have none either."]
        return []


def scene_grid(dataset: rasterio.DatasetReader) -> StoredGrid:
    """The grid of an open raster, with the affine moved from pixel corners to pixel centres."""
    transform: Affine = dataset.transform @ Affine.translation(0.5, 0.5)
    affine = (
        (transform.a, transform.b, 0.0, transform.c),
        (transform.d, transform.e, 0.0, transform.f),
        (0.0, 0.0, 1.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
    )
    shape = (1, dataset.height, dataset.width)
    if dataset.crs is None:
        return StoredGrid(shape, affine)
    if dataset.crs.is_geographic:
        middle = transform.d * dataset.width / 2 + transform.e * dataset.height / 2 + transform.f
        metres = degree_metres(middle)
    else:
        factor = float(dataset.crs.linear_units_factor[1])
        metres = (factor, factor)
    return StoredGrid(shape, affine, "m", dataset.crs.to_wkt(), metres)


class AlignedLabel(Source):
    """A one-band label raster brought onto another grid by reprojection, nearest neighbour, window by window."""

    def __init__(self, path: Path, onto: GeoTiffSource, named: Collection[int] = ()) -> None:
        with _open(path) as dataset:
            if dataset.crs is None or onto.stored.crs is None:
                raise DataError(
                    f"{path} has {dataset.height}x{dataset.width} pixels, its image {onto.path} "
                    f"{onto.stored.shape[1]}x{onto.stored.shape[2]}, and without a coordinate reference system on both the label "
                    "cannot be aligned. Expected a label of the image's size, or a CRS in both files."
                )
            self.dtype = np.dtype(dataset.dtypes[0])
            self._nodata, self._stamp = None if dataset.nodata in named else dataset.nodata, _stamp(path)
            left, bottom, right, top = rasterio.warp.transform_bounds(
                dataset.crs, onto._profile["crs"], *scene_grid(dataset).footprint
            )
            a, b, c, d = onto.stored.footprint
            if left >= c or right <= a or bottom >= d or top <= b:
                raise DataError(
                    f"{path} covers {left:.6g} … {right:.6g}, {bottom:.6g} … {top:.6g} and its image {onto.path} {a:.6g} … "
                    f"{c:.6g}, {b:.6g} … {d:.6g} in the image's CRS: they do not overlap. Check that they belong together."
                )
        self.paths = (path,)
        self.channels = ("label",)
        self.stored, self.canonical, self._onto = onto.stored, onto.canonical, onto

    def _open_warped(self) -> WarpedVRT:
        transform, crs = self._onto._profile["transform"], self._onto._profile["crs"]
        return WarpedVRT(
            _open(self.path), crs=crs, transform=transform, width=self.stored.shape[2], height=self.stored.shape[1],
            resampling=Resampling.nearest, add_alpha=self._nodata is None, src_nodata=self._nodata, nodata=self._nodata,
        )  # fmt: skip

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        area = RasterWindow(window.x, window.y, window.width, window.height)
        key = (self.path, self._stamp, self._nodata, self._onto.path)
        try:
            dataset = _HANDLES.get(key, self._open_warped)
            return dataset.read([1], window=area)[:, None], dataset.read_masks(1, window=area)[None] > 0
        except RasterioError as error:
            raise DataError(f"{self.path} could not be read at window {tuple(window)}: {reason(error)}.") from error

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`."""
        return self._onto.open_map(path, spec)

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return self._onto.map_name(stem, spec)


def label_source(path: Path, onto: GeoTiffSource, named: Collection[int] = ()) -> Source:
    """Opens a label raster, aligned to the grid of its image where it lies on another one.

    Args:
        path: the raster.
        onto: its image.
        named: values that the configuration gives a meaning; a nodata tag does not take it away from them, since many a tool
            writes nodata=0 into masks in which 0 is a class.

    Raises:
        DataError: The label has several bands, or cannot be aligned.
    """
    label = GeoTiffSource([path])
    if label._nodata[0] in named:
        label = GeoTiffSource([path], nodata=math.nan)  # which no whole number equals
    if len(label.channels) != 1:
        raise DataError(f"{path} has {len(label.channels)} bands; a label has one band of class values.")
    if label.stored.shape == onto.stored.shape:
        # Masks of the image's size often come without georeference: they can only mean its pixels.
        unplaced = label.stored.crs is None or onto.stored.crs is None
        if unplaced or (label.stored.crs == onto.stored.crs and label.stored.corner_distance(onto.stored) < 0.1):
            return label
    return AlignedLabel(path, onto, named)


def _write_cog(bands: NDArray[Any], path: Path, spec: MapSpec, profile: Mapping[str, Any]) -> None:
    """Writes bands [B, H, W] as a Cloud-Optimized GeoTIFF: tiled, compressed, overviews, colour table, class names."""
    count, height, width = bands.shape
    tags = dict(spec.tags) | {"classes": ", ".join(f"{index}={name}" for index, name in enumerate(spec.classes))}
    plain = path.with_name(f"{path.stem}.plain.tif")
    nodata = math.nan if spec.heatmap else IGNORE
    tile = 512
    try:
        with rasterio.Env():  # one environment for all that follows, instead of one per call
            with rasterio.open(
                plain, "w", driver="GTiff", width=width, height=height, count=count, dtype=spec.dtype, nodata=nodata, tiled=True,
                blockxsize=tile, blockysize=tile, compress="zstd", zstd_level=1, BIGTIFF="IF_SAFER", **profile,
            ) as out:  # fmt: skip
                for row in range(0, height, tile):
                    rows = slice(row, min(row + tile, height))
                    area = RasterWindow(0, row, width, rows.stop - rows.start)
                    out.write(np.ascontiguousarray(bands[:, rows]), window=area)
                out.update_tags(**tags)
                for number in range(count):
                    out.set_band_description(number + 1, spec.classes[number] if spec.heatmap else "class")
                if not spec.heatmap and spec.colors:
                    colors = {index: (*color, 255) for index, color in enumerate(spec.colors)}
                    out.write_colormap(1, colors | {IGNORE: (0, 0, 0, 0)})
            rasterio.shutil.copy(
                plain, path, driver="COG", compress="deflate", blocksize=tile, BIGTIFF="IF_SAFER",
                overview_resampling="average" if spec.heatmap else "mode", num_threads="ALL_CPUS",
            )  # fmt: skip
            _check_written(bands, path)
    except (RasterioError, CPLE_BaseError) as error:
        raise OSError(f"{error} (is the disk full?)") from error
    finally:
        plain.unlink(missing_ok=True)


def _check_written(bands: NDArray[Any], path: Path) -> None:
    """Reads a map back, since GDAL keeps silent about a disk that is full when it closes a file."""
    with rasterio.open(path) as written:
        for _, area in written.block_windows(1):
            rows, columns = area.toslices()
            if not np.array_equal(written.read(window=area), bands[:, rows, columns], equal_nan=True):
                raise OSError(f"what was written to {path} reads back differently")


def crs_of(source: GeoTiffSource) -> CRS | None:
    """The coordinate reference system of a scene."""
    crs: CRS | None = source._profile["crs"]
    return crs


class PolygonLabel(Source):
    """Polygons of a GeoJSON file, burnt into the grid of a scene window by window: 1 inside, 0 outside.

    A pixel belongs to a polygon when its centre lies inside. Coordinates are longitude and latitude (RFC 7946) unless the
    file names another system in its `crs` member.
    """

    def __init__(self, path: Path, onto: GeoTiffSource) -> None:
        crs = crs_of(onto)
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
        transform = self._onto._profile["transform"] @ Affine.translation(window.x, window.y)
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
