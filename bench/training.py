"""Steps of training, as a ratio to the network's own passes, and beside Lightning as it is used without voxtile, in one run.

python bench/training.py [--side 2048] [--steps 60]
python bench/training.py --gpu --steps 300

Each way takes steps of 8 windows of 256x256 (4 bands) with the default U-Net and AdamW, in a process of its own: on two cores, or
in bfloat16 on a GPU, where as many steps again come before those that are counted. Imports, what happens before the first step, and
validation are not counted.

passes      forward, loss (cross-entropy and Dice), backward, clipping and the optimizer's step, on one batch that is normalised and
            in memory, by a process that keeps freed memory as voxtile's commands do
lightning   a LightningModule with automatic optimization, and a DataLoader of two worker processes (eight beside a GPU) that read
            random windows and their labels with rasterio and mirror them
voxtile     `voxtile train`: windows drawn by class, validity, the default augmentation, checks for infinite values, rows
            of metrics, and a resume state every 50 steps
compiled    beside a GPU: the same with `training.compile=true`
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE))
from scene import CLASSES, WINDOW, arguments, make, paths  # noqa: E402  # found by the line above

BATCH, BANDS, RATE = 8, 4, 0.001
MEAN, STD = 2000.0, 1000.0
WAYS = ("passes", "lightning", "voxtile", "compiled")
DATA = """
# @package _global_
data:
  name: bench
  format: geotiff
  layout:
    _target_: voxtile.cases.layouts.FolderLayout
    root: {folder}
    images: image_{side}/{{id}}.tif
    labels: label_{side}/{{id}}.tif
  labels: {{0: a, 1: b, 2: c, 3: d, 4: e}}
  window: [{window}, {window}]
  symmetry: {{flips: [y, x], rot90: true}}
"""


def network() -> Any:
    import torch

    from voxtile.models.unet import UNet

    torch.manual_seed(0)
    return UNet(in_channels=BANDS, num_classes=CLASSES, width=0.25).to(memory_format=torch.channels_last)


def loss(logits: Any, label: Any) -> Any:
    from torch.nn import functional

    shares, each = logits.softmax(1), functional.one_hot(label, CLASSES).movedim(-1, 1)
    overlap, sizes = (shares * each).sum((0, 2, 3)), (shares + each).sum((0, 2, 3))
    return functional.cross_entropy(logits, label) + 1 - ((2 * overlap + 1) / (sizes + 1)).mean()


def passes(folder: Path, side: int, steps: int, gpu: bool) -> float:
    import torch

    from voxtile.commands.heap import keep_heap

    keep_heap()
    device = "cuda" if gpu else "cpu"
    trained = network().to(device)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=RATE)
    image = torch.randn(BATCH, BANDS, WINDOW, WINDOW, device=device).contiguous(memory_format=torch.channels_last)
    label = torch.randint(0, CLASSES, (BATCH, WINDOW, WINDOW), device=device)

    def took(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=gpu):
                found = trained(image)
            loss(found.float(), label).backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    if gpu:
        took(steps)
    return took(steps)


def lightning(folder: Path, side: int, steps: int, gpu: bool) -> float:
    import logging
    import warnings

    import numpy as np
    import rasterio
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from rasterio.windows import Window

    uncounted = steps if gpu else 0

    class Windows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return (uncounted + steps) * BATCH

        def __getitem__(self, number: int) -> Any:
            rng = np.random.default_rng(number)
            y, x = rng.integers(0, side - WINDOW, 2)
            image, label = (self.files[kind].read(window=Window(x, y, WINDOW, WINDOW)) for kind in (0, 1))
            scaled, classes = (image.astype(np.float32) - MEAN) / STD, label[0].astype(np.int64)
            axes = [axis for axis in (-1, -2) if rng.random() < 0.5]
            return np.flip(scaled, axes).copy(), np.flip(classes, axes).copy()

        @property
        def files(self) -> Any:
            if not hasattr(self, "opened"):  # by each worker for itself
                self.opened = [rasterio.open(path) for path in paths(folder, side)]
            return self.opened

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, index: int) -> Any:
            image, label = batch
            value = loss(self.network(image.contiguous(memory_format=torch.channels_last)), label)
            self.log("loss", value)
            return value

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=RATE)

        def on_train_batch_start(self, batch: Any, index: int) -> None:
            if index == uncounted:
                self.began = self.now()

        def on_train_end(self) -> None:
            self.seconds = self.now() - self.began

        def now(self) -> float:
            if gpu:
                torch.cuda.synchronize()
            return time.perf_counter()

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # advice on workers
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(
            accelerator="gpu" if gpu else "cpu", precision="bf16-mixed" if gpu else "32-true", max_epochs=1, gradient_clip_val=1.0,
            default_root_dir=root, enable_progress_bar=False, enable_model_summary=False, logger=False,
        )  # fmt: skip
        module = Module()
        trainer.fit(module, torch.utils.data.DataLoader(Windows(), BATCH, num_workers=8 if gpu else 2, pin_memory=gpu))
    return module.seconds


def voxtile(folder: Path, side: int, steps: int, gpu: bool, *more: str) -> float:
    if gpu:  # what comes before and at the first steps is in both
        return trained(folder, side, 2 * steps, "trainer=gpu", *more) - trained(folder, side, steps, "trainer=gpu", *more)
    return trained(folder, side, steps, "trainer=cpu", *more)


def compiled(folder: Path, side: int, steps: int, gpu: bool) -> float:
    return voxtile(folder, side, steps, gpu, "training.compile=true")


def trained(folder: Path, side: int, steps: int, *more: str) -> float:
    """Seconds of training that the run's manifest has."""
    with tempfile.TemporaryDirectory() as root:
        own = Path(root) / "data" / "bench.yaml"
        own.parent.mkdir()
        own.write_text(DATA.format(folder=folder.absolute(), side=side, window=WINDOW))
        words = [
            "--config-dir", root, "data=bench", "split=blocks", "split.blocks=[2,2]", f"training.steps={steps}",
            f"training.val_every={steps}", f"training.batch_size={BATCH}", f"optimizer.lr={RATE}", f"paths.runs={root}/runs",
            *more,
        ]  # fmt: skip
        subprocess.run([sys.executable, "-m", "voxtile", "train", *words], check=True, stdout=subprocess.DEVNULL)
        [manifest] = Path(root).glob("runs/*/manifest.json")
        return float(json.loads(manifest.read_text())["training_seconds"])


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(side=2048)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--gpu", action="store_true")
    given = parser.parse_args()
    make(given.cache, given.side)
    print(f"{'':<10} {'ms a step':>10} {'ratio':>6}")
    floor = 0.0
    for way in WAYS if given.gpu else WAYS[:-1]:
        words = [sys.executable, __file__, way, str(given.cache), str(given.side), str(given.steps), str(given.gpu)]
        done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "2"}, stdout=subprocess.PIPE, check=True, text=True)
        step = float(done.stdout.split()[-1]) / given.steps
        floor = floor or step
        print(f"{way:<10} {1000 * step:10.0f} {step / floor:6.2f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WAYS:
        way, *of = sys.argv[1:]
        work = {"passes": passes, "lightning": lightning, "voxtile": voxtile, "compiled": compiled}[way]
        print(work(Path(of[0]), int(of[1]), int(of[2]), of[3] == "True"))
    else:
        main()
