"""Draws each family's architecture from the network itself, all of them or those that are named, into docs/img/models.

python docs/models/draw.py [option …]

One bar per operator, in the order of execution, as high as its result is (in steps of halving) and as wide as it has channels;
lines show what is added or concatenated from further back.
"""

import math
import sys
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.testers.sequence import executed_with_shapes  # noqa: E402  # found only through the path above

OPTIONS = {
    "fcn32s": 512, "fcn16s": 512, "fcn8s": 512, "fcn8s_atonce": 512, "fcn_alexnet": 512, "fcn_googlenet": 512, "segnet": 512,
    "segnet_basic": 512, "bayesian_segnet": 512, "unet": 512, "unet_paper": 388, "unet_release": 388, "deeplab_v1": 513,
    "deeplab_v1_msc": 513, "deeplab_v2_vgg16": 513, "deeplab_v2": 513, "reseg": 512, "reseg_release": 512,
}  # fmt: skip
SIMPLER = {"deeplab_v2": {"depth": 50, "scales": [1.0]}}  # else the picture would be as wide as a wall
COLORS = {
    "conv": (70, 110, 180), "maxpool": (200, 80, 60), "avgpool": (200, 140, 60), "deconv": (60, 150, 90), "scatter": (60, 150, 90),
    "gru": (140, 80, 170), "concat": (120, 120, 120), "add": (120, 120, 120), "dropout": (230, 190, 60),
    "upsample": (60, 150, 90),
}  # fmt: skip
QUIET = ("relu", "bn", "crop", "mul", "sub", "div")  # part of what comes before
FLAT = ("avgpool k5x1", "add 1 ")  # likewise, of local response normalisation, which works on flat maps


def draw(option: str, side: int) -> Image.Image:
    """The picture of one option, fed with a square of `side` pixels."""
    with torch.device("meta"):
        config = OmegaConf.load(ROOT / "conf" / "model" / f"{option}.yaml")
        config.update(SIMPLER.get(option, {}))
        network = instantiate(config, in_channels=3, num_classes=5).eval()
        rows = executed_with_shapes(network, torch.zeros(1, 3, side, side))
    place: dict[str, int] = {"image": -1}
    bars: list[tuple[str, int, int, list[int]]] = []  # kind, side, channels, bars that feed it
    for number, (line, shape) in enumerate(rows, start=1):
        kind, sources = line.split()[0], line.partition("<- ")[2].split(", ")
        came = sorted({place[source] for source in sources})
        known = kind if kind in COLORS else next((key for key in COLORS if key in kind), None)
        if known is None or kind in QUIET or line.startswith(FLAT) or len(shape) < 3:
            place[str(number)] = max(came)
            continue
        place[str(number)] = len(bars)
        channels, size = shape[1], shape[-1]
        if len(shape) == 3:  # un-pooling works on flat maps, recurrent sweeps on sequences
            flat = {"scatter": (shape[1], math.isqrt(shape[2])), "concat": (shape[2], side // 4)}
            known, (channels, size) = ("gru" if known == "concat" else known), flat.get(known, (channels, size))
        bars.append((known, size, channels, came))
    changed = "".join(f" {key}={value}" for key, value in SIMPLER.get(option, {}).items())
    return _picture(option + changed, bars, side)


def _picture(title: str, bars: list[tuple[str, int, int, list[int]]], side: int) -> Image.Image:
    unit, gap, height = 3, 4, 300
    widths = [max(3, round(unit * math.log2(max(channels, 2)) - 3)) for _, _, channels, _ in bars]
    left = [20]
    for width in widths:
        left.append(left[-1] + width + gap)
    picture = Image.new("RGB", (max(left[-1] + 20, 640), height + 70), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((20, 4), f"{title}: 3 channels, {side} x {side} pixels, 5 classes", fill="black")
    middle, tops = 40 + height // 2, []
    for (kind, size, _, came), x, width in zip(bars, left, widths, strict=False):
        half = max(6, round(height / 2 * math.log2(size + 1) / math.log2(2 * side)))
        pen.rectangle((x, middle - half, x + width, middle + half), fill=COLORS[kind])
        tops.append((x + width // 2, middle - half))
        for source in came:
            if 0 <= source < len(tops) - 2:
                (ax, ay), (bx, by) = tops[source], tops[-1]
                level = min(ay, by) - 8 - (len(tops) - source) % 7 * 2
                pen.line([(ax, ay), (ax, level), (bx, level), (bx, by)], fill=(150, 150, 150))
    x = 20
    for kind, text in (
        ("conv", "convolution"), ("maxpool", "maximum"), ("avgpool", "mean"), ("deconv", "up-sampling"), ("gru", "recurrent sweep"),
        ("add", "sum, concatenation"), ("dropout", "dropout"),
    ):  # fmt: skip
        pen.rectangle((x, height + 52, x + 9, height + 61), fill=COLORS[kind])
        pen.text((x + 13, height + 51), text, fill="black")
        x += 24 + int(pen.textlength(text))
    return picture


def main() -> None:
    """Draws all, or the options that are named."""
    folder = ROOT / "docs" / "img" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for option in sys.argv[1:] or OPTIONS:
        draw(option, OPTIONS[option]).save(folder / f"{option}.png", optimize=True)


if __name__ == "__main__":
    main()
