"""Windows per second from a tiled GeoTIFF: threads, worker processes and a bare rasterio loop, in one run.

python bench/reading.py

Each way reads the same windows twice with the files kept open, and the second time counts. Once with a block cache that holds the
whole scene, once with one that holds little of it, as with scenes larger than memory.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterWindow

from voxtile.cases.case import Case, Labels
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.data.augment import Augment
from voxtile.data.batches import ReadAhead
from voxtile.data.normalise import Intensity
from voxtile.data.stream import SampleStream
from voxtile.data.survey import survey

SIDE, WINDOW, BATCH, BATCHES = 4096, 256, 8, 40
CACHES = {"scene fits into the block cache": "512", "scene does not fit": "16"}  # megabytes


def make(folder: Path) -> Case:
    """A scene of 4 uint16 bands with its label, both tiled and deflated."""
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(200, 4000, (4, SIDE // 32, SIDE // 32)), np.ones((32, 32), dtype=np.int64))
    image = (smooth + rng.integers(0, 64, (4, SIDE, SIDE))).astype(np.uint16)
    label = (smooth[:1] > 2000).astype(np.uint8)
    for name, array in (("image", image), ("label", label)):
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="GTiff", width=SIDE, height=SIDE, count=len(array), dtype=array.dtype, tiled=True,
            blockxsize=256, blockysize=256, compress="deflate", crs="EPSG:32633", transform=from_origin(0, 0, 10, 10),
        ) as out:  # fmt: skip
            out.write(array)
    source = GeoTiffSource([folder / "image.tif"])
    return Case("scene", "scene", source, Labels(GeoTiffSource([folder / "label.tif"]), {0: 0, 1: 1}))


class Steps(torch.utils.data.Dataset):
    """The same batches for torch's worker processes."""

    def __init__(self, stream: SampleStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, step: int) -> dict:
        return self.stream.batch(range(step * BATCH, (step + 1) * BATCH))


def rate(batches: Callable[[], Iterable[object]]) -> float:
    """Windows per second of the second of two passes; the first one warms caches, threads and processes up."""
    for _ in batches():
        pass
    began = time.perf_counter()
    count = sum(1 for _ in batches())
    return count * BATCH / (time.perf_counter() - began)


def bare(folder: Path, stream: SampleStream) -> Callable[[], Iterable[None]]:
    """The same windows by rasterio alone: no validity, no label map, no batch."""
    image, label = rasterio.open(folder / "image.tif"), rasterio.open(folder / "label.tif")

    def batches() -> Iterable[None]:
        for step in range(BATCHES):
            for i in range(BATCH):
                window = stream.spec(step * BATCH + i).window
                area = RasterWindow(window.x, window.y, window.width, window.height)
                image.read(window=area)
                label.read(1, window=area)
            yield

    return batches


def measure() -> None:
    """Prints each way's rate and its ratio to the bare loop."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = make(folder)
        found = survey(case, 2)
        plain = Intensity((0.0,) * 4, (5000.0,) * 4, (2000.0,) * 4, (1000.0,) * 4)
        stream = SampleStream([case], [found], [plain], (1, WINDOW, WINDOW), 0, Augment())
        steps = Steps(stream)
        floor = rate(bare(folder, stream))
        print(f"{'bare rasterio loop':<28} {floor:8.0f} windows/s  1.00")
        ways: dict[str, Iterable[object]] = {
            f"{count} threads": ReadAhead(lambda: range(BATCHES), steps.__getitem__, count) for count in (0, 1, 2)
        }
        ways["2 worker processes"] = torch.utils.data.DataLoader(
            steps, batch_size=None, num_workers=2, multiprocessing_context="forkserver", persistent_workers=True
        )
        for title, batches in ways.items():
            speed = rate(lambda batches=batches: batches)
            print(f"{title:<28} {speed:8.0f} windows/s  {speed / floor:.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure()
    else:  # GDAL reads the size of its cache once
        for title, megabytes in CACHES.items():
            print(title, flush=True)
            subprocess.run([sys.executable, __file__, "one"], env=os.environ | {"GDAL_CACHEMAX": megabytes}, check=True)
