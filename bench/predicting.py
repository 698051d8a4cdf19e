"""A whole scene predicted with a small network: voxtile, others, and the forward passes alone, in one run.

python bench/predicting.py [--gigapixel]

Every way applies bench/peers/network.py to windows of 256x256 on two cores, in a process of its own, and ends with a compressed
GeoTIFF of classes on the disk; imports are not counted. Batches are of 8, for voxtile two of 1 side by side, its default on a CPU.
Peak memory is the process's own (ru_maxrss), without worker processes.

forward    the passes alone: windows that are normalised and in memory
plain      read a batch of windows, predict, write them, with rasterio
torchgeo   GridGeoSampler and DataLoader, without and with 2 worker processes (bench/peers/predicting.py)
monai      sliding_window_inference on the scene in memory (bench/peers/predicting.py); where windows overlap they are as many as
           voxtile's and lie a little otherwise, so that a few pixels differ
voxtile    what `voxtile predict` does for a scene: read ahead, blended, journalled, up to the Cloud-Optimized GeoTIFF and its
           overviews; but for the survey before, which reads up to 256 blocks of 1024x1024 for digests and normalisation (all ways
           here know the latter)

`--gigapixel` adds a scene of 32768x32768 by voxtile, whose memory is to be that of the small one, and draws the process's memory
over time (Linux).
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE / "peers")]
from scene import WINDOW, arguments, paths  # noqa: E402  # found by the line above

PEERS = HERE / "peers" / ".venv" / "bin" / "python"
OURS = ("forward", "plain", "voxtile")
LARGE = 32_768  # side of the scene of a gigapixel
HELD = 512  # windows that the forward passes go round: more than any cache holds


def forward(image: str, output: str, overlap: float) -> float:
    import rasterio
    import torch
    from network import BATCH, classes, network, normalised
    from rasterio.windows import Window

    from voxtile.cases.tiling import tiles

    model = network()
    with rasterio.open(image) as scene:
        areas = [Window(x, y, WINDOW, WINDOW) for y in range(0, scene.height, WINDOW) for x in range(0, scene.width, WINDOW)]
        areas = (areas * (1 + HELD // len(areas)))[:HELD]
        held = normalised(torch.stack([torch.from_numpy(scene.read(window=area)) for area in areas]))
        count = len(tiles((1, scene.height, scene.width), (1, WINDOW, WINDOW), overlap))
    began = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, count, BATCH):
            start = first % len(held)
            classes(model(held[start : start + min(BATCH, count - first)]))
    return time.perf_counter() - began


def plain(image: str, output: str, overlap: float) -> float:
    import numpy as np
    import rasterio
    import torch
    from network import BATCH, classes, network, normalised
    from rasterio.windows import Window

    model = network()
    began = time.perf_counter()
    with rasterio.open(image) as scene:
        size = {"width": scene.width, "height": scene.height, "crs": scene.crs, "transform": scene.transform}
        areas = [Window(x, y, WINDOW, WINDOW) for y in range(0, scene.height, WINDOW) for x in range(0, scene.width, WINDOW)]
        with (
            torch.inference_mode(),
            rasterio.open(
                output, "w", driver="GTiff", count=1, dtype="uint8", tiled=True, blockxsize=WINDOW, blockysize=WINDOW,
                compress="deflate", **size,
            ) as out,
        ):  # fmt: skip
            for first in range(0, len(areas), BATCH):
                batch = areas[first : first + BATCH]
                pixels = torch.from_numpy(np.stack([scene.read(window=area) for area in batch]))
                for area, array in zip(batch, classes(model(normalised(pixels))).numpy(), strict=True):
                    out.write(array, 1, window=area)
    return time.perf_counter() - began


def voxtile(image: str, output: str, overlap: float) -> float:
    from network import CLASSES, MEAN, STD, network

    from voxtile.cases.case import Case
    from voxtile.cases.geotiff import GeoTiffSource
    from voxtile.cases.maps import MapSpec
    from voxtile.cases.raster import block_cache
    from voxtile.data.normalise import Intensity
    from voxtile.inference.predictor import Predictor

    predictor = Predictor(network(), (1, WINDOW, WINDOW), overlap)
    began = time.perf_counter()
    case = Case("scene", "scene", GeoTiffSource([Path(image)]))
    intensity = Intensity((0.0,) * 4, (65535.0,) * 4, (MEAN,) * 4, (STD,) * 4)
    with block_cache(), case.open_map(Path(output), MapSpec(tuple(f"class{index}" for index in range(CLASSES)))) as writer:
        for band in predictor.bands(case, intensity):
            writer.write(band.window, band.classes())
            del band
        writer.close()
    return time.perf_counter() - began


def one(way: str, image: str, output: str, overlap: str) -> None:
    """Takes one way in this process, which keeps freed memory as voxtile's commands do, and prints its seconds and peak memory."""
    import resource

    from voxtile.commands.heap import keep_heap

    keep_heap()
    if way == "voxtile":
        importlib.import_module("voxtile.inference.predictor")
    seconds = {"forward": forward, "plain": plain, "voxtile": voxtile}[way](image, output, float(overlap))
    print(json.dumps({"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def same(first: str, second: str) -> None:
    """Prints the share of pixels on which two maps agree."""
    import rasterio

    with rasterio.open(first) as a, rasterio.open(second) as b:
        equal = sum(int((a.read(1, window=area) == b.read(1, window=area)).sum()) for _, area in a.block_windows(1))
        print(equal / (a.width * a.height))


def run(*words: object, peers: bool = False, watch: Callable[[int], object] = lambda process: None) -> str:
    """What a process of its own prints; this one holds nothing large, since a child's peak begins with its parent's memory."""
    script = HERE / "peers" / "predicting.py" if peers else Path(__file__)
    command = [str(PEERS if peers else sys.executable), str(script), *map(str, words)]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "2"}, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            watch(process.pid)
            time.sleep(0.2)
        assert process.stdout is not None
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return process.stdout.read().strip().splitlines()[-1]


class Watched:
    """The memory of a process over time."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seen: list[tuple[float, float]] = []  # seconds, megabytes

    def process(self, number: int) -> None:
        """Looks at a process once."""
        lines = Path(f"/proc/{number}/status").read_text(encoding="utf-8").splitlines()
        held = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")]
        self.seen += [(time.perf_counter() - self.began, megabytes) for megabytes in held]

    def draw(self, path: Path) -> None:
        """Draws it."""
        from PIL import Image, ImageDraw

        width, height, edge, top = 900, 360, 60, 1000
        end = self.seen[-1][0]
        picture = Image.new("RGB", (width, height), "white")
        pen = ImageDraw.Draw(picture)

        def place(seconds: float, megabytes: float) -> tuple[float, float]:
            return edge + (width - 1.5 * edge) * seconds / end, height - edge - (height - 1.5 * edge) * megabytes / top

        for mark in range(0, top + 1, 250):
            pen.line([place(0, mark), place(end, mark)], fill="lightgray")
            pen.text((8, place(0, mark)[1] - 6), f"{mark} MB", fill="black")
        for part in range(5):
            pen.text((place(end * part / 4, 0)[0] - 10, height - edge + 10), f"{end * part / 4:.0f} s", fill="black")
        pen.line([place(*each) for each in self.seen], fill="black", width=2)
        picture.save(path)
        print(f"memory over time: {path}")


def compare(folder: Path, side: int, overlap: float) -> dict[str, float]:
    """Prints a row for each way and returns what voxtile took."""
    image = paths(folder, side)[0]
    ways = ["forward", *(["plain", "torchgeo", "torchgeo2"] if overlap == 0 else []), "monai", "voxtile"]
    print(f"\n{side}x{side}, overlap {overlap}\n{'':<12} {'seconds':>8} {'ratio':>6} {'MB':>6}  same classes")
    floor, result, reference = 0.0, {}, None
    for way in ways:
        if way not in OURS and not PEERS.exists():
            print(f"{way:<12} needs an environment of its own: make bench-peers")
            continue
        output = folder / f"{way}_{overlap}.tif"
        result = json.loads(run(way, image, output, overlap, peers=way not in OURS))
        floor = floor or result["seconds"]
        row = f"{way:<12} {result['seconds']:8.2f} {result['seconds'] / floor:6.2f} {result['megabytes']:6.0f}"
        if way != "forward":
            reference = reference or output
            agreed = "" if output == reference else f"{float(run('same', reference, output)):.6%}"
            row += f"  {agreed}"
        print(row, flush=True)
    return result


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--gigapixel", action="store_true", help=f"also a scene of {LARGE}x{LARGE} by voxtile")
    given = parser.parse_args()
    for side in (given.side, *([LARGE] if given.gigapixel else [])):
        subprocess.run([sys.executable, str(HERE / "scene.py"), str(given.cache), str(side)], check=True)
    small = compare(given.cache, given.side, 0)
    compare(given.cache, given.side, 0.25)
    if given.gigapixel:
        watched = Watched()
        large = json.loads(
            run("voxtile", paths(given.cache, LARGE)[0], given.cache / "voxtile_gigapixel.tif", 0, watch=watched.process)
        )
        print(
            f"\n{LARGE}x{LARGE} by voxtile, overlap 0: {large['seconds']:.1f} s, {large['megabytes']:.0f} MB, "
            f"{large['megabytes'] / small['megabytes']:.2f} of {given.side}x{given.side}"
        )
        watched.draw(given.cache / "memory.png")


if __name__ == "__main__":
    if sys.argv[1:2] == ["same"]:
        same(*sys.argv[2:])
    elif sys.argv[1:2] and sys.argv[1] in OURS:
        one(*sys.argv[1:])
    else:
        main()
