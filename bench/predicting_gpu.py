"""A whole scene predicted on a GPU, as a ratio to the slowest thing that it cannot do without, in the same run.

python bench/predicting_gpu.py [--side 8192]

forward    the passes alone: windows that are normalised and on the GPU
decoding   the scene's blocks read once, with a thread for each processor
encoding   what is done when all pixels are known: overviews, the Cloud-Optimized GeoTIFF, and reading it back
voxtile    what `voxtile predict` does, as in bench/predicting.py, with as many windows in a forward pass as the passes alone have:
           those that it takes unless told otherwise

Networks: the one of bench/peers/network.py, the default U-Net, and U-Net at the paper's width, of which the passes take longest.
Each way is taken twice, and the second time counts.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.windows import Window as Area
from torch import nn

from voxtile.cases.case import Case
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.maps import MapSpec
from voxtile.cases.raster import block_cache
from voxtile.cases.tiling import tiles
from voxtile.cases.window import Window
from voxtile.data.normalise import Intensity
from voxtile.inference.native import of_each
from voxtile.inference.predictor import Predictor
from voxtile.models.unet import UNet

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE / "peers")]
from network import CLASSES, MEAN, STD, Small  # noqa: E402  # lies in the folder that the line above names
from scene import WINDOW, arguments, make, paths  # noqa: E402  # lies in the folder that the line above names

BATCH = 2**21 // WINDOW**2
SPEC = MapSpec(tuple(f"class{index}" for index in range(CLASSES)))
INTENSITY = Intensity((0.0,) * 4, (65535.0,) * 4, (MEAN,) * 4, (STD,) * 4)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "small": Small,
    "unet": lambda: UNet(in_channels=4, num_classes=CLASSES, width=0.25),
    "wide": lambda: UNet(in_channels=4, num_classes=CLASSES, width=1.0),
}


def second(work: Callable[..., float], *given: object) -> float:
    """What `work` returns the second time: the first one pays for loading and for choosing algorithms."""
    work(*given)
    return work(*given)


def forward(network: nn.Module, side: int, overlap: float, precision: torch.dtype) -> float:
    count = len(tiles((1, side, side), (1, WINDOW, WINDOW), overlap))
    held = torch.randn(16 * BATCH, 4, WINDOW, WINDOW, device="cuda")  # more than the GPU's cache holds
    torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cuda", precision, enabled=precision != torch.float32):
        for first in range(0, count, BATCH):
            start = first % len(held)
            network(held[start : start + min(BATCH, count - first)]).max(dim=1).indices.to(torch.uint8)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def decoding(image: Path) -> float:
    began = time.perf_counter()
    with rasterio.open(image, num_threads="ALL_CPUS") as scene:
        for y in range(0, scene.height, WINDOW):
            scene.read(window=Area(0, y, scene.width, min(WINDOW, scene.height - y)))
    return time.perf_counter() - began


def encoding(case: Case, output: Path) -> float:
    with case.open_map(output, SPEC) as writer:
        _, height, width = case.shape
        for y in range(0, height, WINDOW):
            rows = np.repeat(np.random.default_rng(y).integers(0, CLASSES, (1, 8, width // 32), dtype=np.uint8), 32, axis=1)
            part = np.repeat(rows, 32, axis=2)  # fields of 32x32 pixels, as in the scene
            writer.write(Window(0, y, 0, 1, WINDOW, width), part)
        began = time.perf_counter()
        writer.close()
    return time.perf_counter() - began


def voxtile(network: nn.Module, image: Path, output: Path, overlap: float, precision: torch.dtype) -> float:
    predictor = Predictor(network, (1, WINDOW, WINDOW), overlap, device="cuda", precision=precision)
    began = time.perf_counter()
    case = Case("scene", "scene", GeoTiffSource([image]))
    with block_cache(os.cpu_count() or 1), case.open_map(output, SPEC) as writer:
        bands = predictor.bands(case, INTENSITY)
        for _ in of_each(bands, lambda band: writer.write(band.window, band.classes()), predictor.sums):
            pass
        rows = time.perf_counter() - began
        writer.close()
    print(f"             rows {rows:.2f}", flush=True)
    return time.perf_counter() - began


def main() -> None:
    given = arguments(__doc__).parse_args()
    make(given.cache, given.side)
    image, output = paths(given.cache, given.side)[0], given.cache / "gpu.tif"
    print(torch.cuda.get_device_name(0), f"{given.side}x{given.side}")
    reading = second(decoding, image)
    writing = second(encoding, Case("scene", "scene", GeoTiffSource([image])), output)
    print(f"decoding {reading:.2f}  encoding {writing:.2f}")
    print(f"{'network':<8} {'precision':<9} {'overlap':>7} {'forward':>8} {'voxtile':>8} {'ratio to the slowest':>21}")
    for name, build in NETWORKS.items():
        network = build().eval().cuda()
        for precision in (torch.float32, torch.bfloat16):
            for overlap in (0.0, 0.25):
                passes = second(forward, network, given.side, overlap, precision)
                ours = second(voxtile, network, image, output, overlap, precision)
                ratio = ours / max(reading, writing, passes)
                kind = str(precision).removeprefix("torch.")
                print(f"{name:<8} {kind:<9} {overlap:>7} {passes:>8.2f} {ours:>8.2f} {ratio:>21.2f}", flush=True)


if __name__ == "__main__":
    main()
