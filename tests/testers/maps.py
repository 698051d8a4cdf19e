"""Finished maps on disk, for tests of what is made of them."""

from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.transform import from_origin

from tests.testers.geotiff import save
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.inference.finished import FinishedMap

UTM = from_origin(500_000, 5_000_000, 10, 10)
CLASSES = ("ground", "water", "roof")


def written(path: Path, bands: np.ndarray, crs: str | None = "EPSG:32633", transform: Affine = UTM, nodata: float | None = None):
    """Writes bands [B, H, W] as a GeoTIFF."""
    return save(path, bands, crs, transform, nodata=nodata)


def scene_map(
    folder: Path,
    indices: np.ndarray,
    heat: np.ndarray | None = None,
    crs: str | None = "EPSG:32633",
    transform: Affine = UTM,
    slab_pixels: int = 300,
) -> FinishedMap:
    """A map [H, W] of `CLASSES`, with a heatmap [K, H, W]; in many slabs, which objects and polygons cross."""
    source = GeoTiffSource([written(folder / "map.tif", indices[None].astype(np.uint8), crs, transform, 255)])
    hot = None if heat is None else GeoTiffSource([written(folder / "heat.tif", heat.astype(np.float32), crs, transform, np.nan)])
    return FinishedMap(source, CLASSES, hot, slab_pixels)


def patches(seed: int, height: int, width: int, side: int = 1, unjudged: float = 0.05) -> np.ndarray:
    """A random map [H, W] of squares, with some pixels unjudged."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 0, 1, 1, 2], (-(-height // side), -(-width // side)))
    fine = coarse.repeat(side, 0).repeat(side, 1)[:height, :width].astype(np.uint8)
    fine[rng.random(fine.shape) < unjudged] = 255
    return fine
