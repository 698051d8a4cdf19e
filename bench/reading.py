"""Windows per second from a tiled GeoTIFF with its label: threads, worker processes, a bare rasterio loop and TorchGeo, in one run.

python bench/reading.py

Each way reads random windows of 256x256 in a process of its own, with the files kept open: once to warm up, then the same windows
again, and the fastest pass counts. Once with a block cache that holds the scene, once with one of 64 MB, as with scenes larger than
memory, where decoding is what costs.

bare loop          dataset.read of image and label by rasterio: no validity, no classes, no batch
voxtile            samples of the stream in native type with label, validity and drawn augmentation, one by one; in batches they
                   are made by 0, 1 or 2 threads
rasterio workers   the bare loop, collated, in torch's DataLoader with 2 worker processes
TorchGeo           RandomGeoSampler on an IntersectionDataset of image and mask (bench/peers/torchgeo_reading.py)
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE))
from scene import CLASSES, WINDOW, arguments, paths  # noqa: E402  # found by the line above

PEERS = HERE / "peers" / ".venv" / "bin" / "python"
BATCH = 8
# title -> megabytes of GDAL's block cache, windows, passes that are timed
CACHES = {"the block cache holds the scene": (2048, 1024, 5), "block cache of 64 MB": (64, 256, 2)}
OURS = ("bare loop", "voxtile 0 threads", "voxtile 1 thread", "voxtile 2 threads", "rasterio 2 workers")
THEIRS = {"TorchGeo": 0, "TorchGeo 2 workers": 2}  # worker processes


def sample_stream(folder: Path, side: int) -> Any:
    """voxtile's stream of samples of the scene."""
    from voxtile.cases.case import Case, Labels
    from voxtile.cases.geotiff import GeoTiffSource
    from voxtile.data.augment import Augment
    from voxtile.data.normalise import Intensity
    from voxtile.data.sampling import JudgedPixels
    from voxtile.data.stream import SampleStream
    from voxtile.data.survey import survey_all

    image, label = (GeoTiffSource([path]) for path in paths(folder, side))
    case = Case("scene", "scene", image, Labels(label, {index: index for index in range(CLASSES)}))
    found = survey_all([case], CLASSES, folder)  # kept there, so that only the first process reads all of the scene
    plain = Intensity((0.0,) * 4, (5000.0,) * 4, (2000.0,) * 4, (1000.0,) * 4)
    cases, surveys = [case], [found["scene"]]
    strategy = JudgedPixels(cases, surveys, jitter=1.0)
    return SampleStream(cases, surveys, [plain], (1, WINDOW, WINDOW), 0, augment=Augment(), strategy=strategy)


class Pairs:
    """Batches of windows by rasterio alone, for one process or for torch's workers, each of which opens the files itself."""

    def __init__(self, folder: Path, side: int, areas: list[tuple[int, int]]) -> None:
        self.paths, self.areas, self.files = paths(folder, side), areas, None

    def __len__(self) -> int:
        return len(self.areas) // BATCH

    def read(self, number: int) -> tuple[Any, Any]:
        import rasterio
        from rasterio.windows import Window

        if self.files is None:
            self.files = [rasterio.open(path) for path in self.paths]
        y, x = self.areas[number]
        area = Window(x, y, WINDOW, WINDOW)
        return self.files[0].read(window=area), self.files[1].read(1, window=area)

    def __getitem__(self, step: int) -> tuple[Any, Any]:
        import numpy as np
        import torch

        images, labels = zip(*(self.read(number) for number in range(step * BATCH, (step + 1) * BATCH)), strict=True)
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))


def batches_of(way: str, folder: Path, side: int, windows: int) -> Callable[[], Iterable[object]]:
    """What yields the windows or batches of a way, each time it is called."""
    import torch

    from voxtile.data.batches import ReadAhead

    stream, steps = sample_stream(folder, side), range(windows // BATCH)
    specs = [stream.spec(number).window for number in range(windows)]
    pairs = Pairs(folder, side, [(window.y, window.x) for window in specs])
    if way == "bare loop":
        return lambda: (pairs.read(number) for number in range(windows))
    if way == "rasterio 2 workers":
        loader = torch.utils.data.DataLoader(
            pairs, batch_size=None, num_workers=2, multiprocessing_context="forkserver", persistent_workers=True
        )
        return lambda: loader
    ahead = ReadAhead(lambda: steps, lambda step: stream.batch(range(step * BATCH, (step + 1) * BATCH)), int(way.split()[1]))
    return lambda: ahead


def one(way: str, folder: str, side: str, windows: str, passes: str) -> None:
    """Takes one way in this process, which keeps freed memory as voxtile's commands do, and prints its windows per second."""
    from voxtile.commands.heap import keep_heap

    keep_heap()
    batches = batches_of(way, Path(folder), int(side), int(windows))
    times = []
    for _ in range(1 + int(passes)):
        began = time.perf_counter()
        for _ in batches():
            pass
        times.append(time.perf_counter() - began)
    print(int(windows) / min(times[1:]))


def rate(way: str, folder: Path, side: int, megabytes: int, windows: int, passes: int) -> float:
    """Windows per second of a way in a process of its own: GDAL reads the size of its cache once."""
    if way in THEIRS:
        folders = [str(path.parent) for path in paths(folder, side)]
        words = [str(PEERS), str(HERE / "peers" / "torchgeo_reading.py"), *folders, windows, passes, THEIRS[way]]
    else:
        words = [sys.executable, __file__, way, folder, side, windows, passes]
    environment = os.environ | {"GDAL_CACHEMAX": str(megabytes)}
    done = subprocess.run(list(map(str, words)), env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    given = arguments(__doc__).parse_args()
    subprocess.run([sys.executable, str(HERE / "scene.py"), str(given.cache), str(given.side)], check=True)
    sample_stream(given.cache, given.side)
    for title, (megabytes, windows, passes) in CACHES.items():
        print(f"\n{title}\n{'':<20} {'windows/s':>10} {'ratio':>6}")
        floor = 0.0
        for way in (*OURS, *THEIRS):
            if way in THEIRS and not PEERS.exists():
                print(f"{way:<20} needs an environment of its own: make bench-peers")
                continue
            speed = rate(way, given.cache, given.side, megabytes, windows, passes)
            floor = floor or speed
            print(f"{way:<20} {speed:10.0f} {speed / floor:6.2f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in OURS:
        one(*sys.argv[1:])
    else:
        main()
