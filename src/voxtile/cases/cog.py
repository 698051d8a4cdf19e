"""Writing maps of scenes as Cloud-Optimized GeoTIFFs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # leaves rasterio.shutil.copy unwrapped
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from voxtile.cases.case import IGNORE
from voxtile.cases.maps import MapSpec


def write_cog(bands: NDArray[Any], path: Path, spec: MapSpec, profile: Mapping[str, Any]) -> None:
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
