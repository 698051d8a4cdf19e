"""Small pictures of rasters on the ground, read decimated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError

from voxtile.cases.raster import open_raster
from voxtile.errors import DataError

MOST_PIXELS = 2**27  # of a band that is read whole; larger rasters are looked at through their overviews, where they have some


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

    None where it has no coordinate reference system or cannot be read, or where that would take long: a very large raster without
    overviews has to be decoded whole.
    """
    try:
        with open_raster(path) as dataset:
            if dataset.crs is None or (dataset.width * dataset.height > MOST_PIXELS and not dataset.overviews(1)):
                return None
            factor = max(1.0, max(dataset.shape) / side)
            shape = tuple(max(1, round(length / factor)) for length in dataset.shape)
            bands = [band for band in dataset.indexes if dataset.colorinterp[band - 1] != ColorInterp.alpha][:4]
            image = dataset.read(bands, out_shape=(len(bands), *shape), resampling=Resampling.nearest)
            valid = dataset.dataset_mask(out_shape=shape, resampling=Resampling.nearest) > 0
            if image.dtype.kind in "fc":
                valid &= np.isfinite(image).all(axis=0)
            scale = Affine.scale(dataset.width / shape[1], dataset.height / shape[0])
            return Thumbnail(image.real, valid, dataset.transform @ scale, dataset.crs.to_wkt())
    except (DataError, RasterioError):
        return None
