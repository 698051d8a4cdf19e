"""Small GeoTIFFs, written and read whole."""

from __future__ import annotations

import numpy as np
import rasterio
from affine import Affine

from voxtile.cases.maps import MapSpec
from voxtile.cases.raster import plain_allowed
from voxtile.cases.window import Window

UTM = "EPSG:32633"
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_300_000)
SPEC = MapSpec(("ground", "water", "roof"), colors=((9, 8, 7), (0, 0, 255), (255, 0, 0)), tags=(("run", "7"),))


def save(path, bands, crs=UTM, transform=NORTH_UP, mask=None, names=(), **profile):
    """Writes bands [C, H, W] and, where given, a mask [H, W] and the bands' names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=count,
        dtype=bands.dtype,
        crs=crs,
        transform=transform,
        **profile,
    ) as out:
        out.write(bands)
        if mask is not None:
            out.write_mask(mask)
        for number, name in enumerate(names, 1):
            out.set_band_description(number, name)
    return path


def masked_beside(path, mask):
    """Puts a mask [H, W] beside a file, or another one in its place, of which the file itself knows nothing."""
    beside = path.with_name(path.name + ".msk")
    if beside.exists():
        with plain_allowed(), rasterio.open(beside, "r+") as out:
            out.write(np.where(mask, 255, 0).astype(np.uint8), 1)
    else:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as out:
            out.write_mask(mask)


def bands(shape, dtype="uint8", seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 100, shape).astype(dtype)


def whole(source, channels=None):
    picked = range(len(source.channels)) if channels is None else channels
    return source.read(Window.whole(source.working.shape), picked)
