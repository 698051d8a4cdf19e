"""GeoTIFF scenes: any number of bands, any data type, nodata, masks, alpha, scale and offset."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.warp
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from voxtile.cases.case import Source, distinct_names
from voxtile.cases.cog import write_cog
from voxtile.cases.grid import CanonicalGrid
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.raster import HANDLES, open_raster, scene_grid, stamp
from voxtile.cases.remote import raise_failed_request
from voxtile.cases.untrusted import sources_of
from voxtile.cases.window import Window
from voxtile.errors import DataError, reason


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
            with open_raster(path) as dataset:
                self._check_grid(dataset, path)
                self._stamps.append(stamp(path))
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

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Source.files`; a VRT is made of others."""
        return (*self.paths, *(each for path in self.paths if path.suffix.lower() == ".vrt" for each in sources_of(path)))

    def _check_grid(self, dataset: rasterio.DatasetReader, path: Path) -> None:
        grid = scene_grid(dataset)
        if not hasattr(self, "stored"):
            self.stored, self.profile = grid, {"crs": dataset.crs, "transform": dataset.transform}
            self.canonical = CanonicalGrid(grid.shape, grid.affine, grid.unit, grid.crs, grid.metres)
        elif grid.shape != self.stored.shape or grid.corner_distance(self.stored) > 0.1 or grid.crs != self.stored.crs:
            raise DataError(
                f"{path} lies on another grid than {self.path}: {grid.shape[1:]} pixels at {dataset.transform.to_gdal()} against "
                f"{self.stored.shape[1:]} at {self.profile['transform'].to_gdal()}. Bands that are stacked must share one grid; "
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
                dataset = HANDLES.get((path, self._stamps[number]), partial(open_raster, path))
                parts.append(dataset.read(bands, window=area))
                if self._masked[number]:
                    valid[0] &= dataset.dataset_mask(window=area) > 0
            except RasterioError as error:
                raise_failed_request()
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
            write_cog(array[:, 0], making, spec, self.profile)

        return MapWriter(path, self.canonical.shape, spec, finish)

    def notes(self) -> list[str]:
        """See `Source.notes`."""
        if self.stored.crs is None:
            return [f"{self.path} has no coordinate reference system; its maps will have none either."]
        return []


class AlignedLabel(Source):
    """A one-band label raster brought onto another grid by reprojection, nearest neighbour, window by window."""

    def __init__(self, path: Path, onto: GeoTiffSource, named: Collection[int] = ()) -> None:
        with open_raster(path) as dataset:
            if dataset.crs is None or onto.stored.crs is None:
                raise DataError(
                    f"{path} has {dataset.height}x{dataset.width} pixels, its image {onto.path} "
                    f"{onto.stored.shape[1]}x{onto.stored.shape[2]}, and without a coordinate reference system on both the label "
                    "cannot be aligned. Expected a label of the image's size, or a CRS in both files."
                )
            self.dtype = np.dtype(dataset.dtypes[0])
            self._nodata, self._stamp = None if dataset.nodata in named else dataset.nodata, stamp(path)
            left, bottom, right, top = rasterio.warp.transform_bounds(
                dataset.crs, onto.profile["crs"], *scene_grid(dataset).footprint
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
        transform, crs = self._onto.profile["transform"], self._onto.profile["crs"]
        return WarpedVRT(
            open_raster(self.path), crs=crs, transform=transform, width=self.stored.shape[2], height=self.stored.shape[1],
            resampling=Resampling.nearest, add_alpha=self._nodata is None, src_nodata=self._nodata, nodata=self._nodata,
        )  # fmt: skip

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        area = RasterWindow(window.x, window.y, window.width, window.height)
        key = (self.path, self._stamp, self._nodata, self._onto.path)
        try:
            dataset = HANDLES.get(key, self._open_warped)
            return dataset.read([1], window=area)[:, None], dataset.read_masks(1, window=area)[None] > 0
        except RasterioError as error:
            raise_failed_request()
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
