"""Small pictures of rasters on the ground, read decimated."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NodataShadowWarning, RasterioError

from voxtile.cases.address import RemoteFile
from voxtile.cases.raster import open_raster
from voxtile.errors import DataError

MOST_PIXELS = 2**27  # of a band that are decoded; larger rasters without overviews are looked at in some of their blocks


@dataclass(frozen=True)
class Thumbnail:
    """A raster made small.

    Attributes:
        image: pixels [C, h, w] of up to four bands, as stored.
        valid: where they hold data [h, w].
        transform: from (column, row) of a pixel's corner to map units.
        crs: as WKT.
    """

    image: NDArray[Any]
    valid: NDArray[np.bool_]
    transform: Affine
    crs: str


def thumbnail(path: Path, side: int) -> Thumbnail | None:
    """Reads every so many-th pixel of a raster, so that its longer side has at most `side` pixels.

    Of a very large raster without overviews the picture is as coarse as it must be for few blocks to be decoded: with tiles of
    512x512 some 22x22 pixels. None where a raster has no coordinate reference system or cannot be read, and for such a large one
    at an address, of which this would fetch half a gigabyte.
    """
    try:
        with open_raster(path) as dataset:
            large = dataset.width * dataset.height > MOST_PIXELS and not dataset.overviews(1)
            if dataset.crs is None or (large and isinstance(path, RemoteFile)):
                return None
            factor = max(1.0, max(dataset.shape) / side)
            shape = _scaled(dataset.shape, factor)
            while large and _decoded(dataset, shape) > MOST_PIXELS and max(shape) > 1:
                factor *= 1.1
                shape = _scaled(dataset.shape, factor)
            bands = [band for band in dataset.indexes if dataset.colorinterp[band - 1] != ColorInterp.alpha][:4]
            image = dataset.read(bands, out_shape=(len(bands), *shape), resampling=Resampling.nearest)
            with warnings.catch_warnings():  # that an alpha band comes before a nodata value, as it should
                warnings.simplefilter("ignore", NodataShadowWarning)
                mask = dataset.dataset_mask(out_shape=shape, resampling=Resampling.nearest)
            # One of many values is no mask, but a channel that is declared as alpha.
            valid = mask > 0 if len(np.unique(mask)) < 3 else np.ones(shape, dtype=np.bool_)
            if image.dtype.kind in "fc":
                valid &= np.isfinite(image).all(axis=0)
            scale = Affine.scale(dataset.width / shape[1], dataset.height / shape[0])
            return Thumbnail(image.real, valid, dataset.transform @ scale, dataset.crs.to_wkt())
    except (DataError, RasterioError):
        return None


def _scaled(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    height, width = (max(1, round(length / factor)) for length in shape)
    return height, width


def _decoded(dataset: rasterio.DatasetReader, shape: tuple[int, int]) -> int:
    """Pixels of the blocks, of a band, that hold a pixel of the raster made so small."""
    block = dataset.block_shapes[0]
    touched = [min(few, math.ceil(length / side)) for few, length, side in zip(shape, dataset.shape, block, strict=True)]
    return int(math.prod(touched) * math.prod(block))
