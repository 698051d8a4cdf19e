"""Samples per second of batch augmentation, against MONAI's transforms doing the same in the same run: `python bench/augment.py`.

One thread, drawing included, counted in processor time: that another program is busy disturbs less.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from monai import transforms

from voxtile.data.augment import Augment
from voxtile.data.contrast import Bias, Blur, Gain, Gamma, Noise
from voxtile.data.warp import Affine, Elastic

BATCH, CHANNELS, SIDE = 16, 4, 256
SYMMETRY = {"flips": ("y", "x"), "rot90": True}


def ours(often: float, seldom: float) -> Augment:
    """All operations, the frequent ones with probability `often` and the others with `seldom`."""
    return Augment(
        SYMMETRY,
        Affine(often, rotation=15, scale=(0.8, 1.25)),
        Elastic(seldom, std=4, control=64),
        {"bias": Bias(seldom), "gain": Gain(often), "gamma": Gamma(seldom), "blur": Blur(seldom), "noise": Noise(seldom)},
    )


def theirs(often: float, seldom: float) -> transforms.Compose:
    """The nearest that MONAI has; its affine and elastic are one transform each."""
    keys, modes, angle = ["image", "label"], ["bilinear", "nearest"], np.radians(15)
    return transforms.Compose(
        [
            transforms.RandFlipd(keys, prob=0.5, spatial_axis=0),
            transforms.RandFlipd(keys, prob=0.5, spatial_axis=1),
            transforms.RandRotate90d(keys, prob=0.75),
            transforms.RandAffined(
                keys, prob=often, rotate_range=angle, scale_range=(-0.2, 0.25), mode=modes, padding_mode="zeros"
            ),
            transforms.Rand2DElasticd(keys, (64, 64), (4, 4), prob=seldom, mode=modes, padding_mode="zeros"),
            transforms.RandBiasFieldd(["image"], prob=seldom, coeff_range=(0.0, 0.1)),
            transforms.RandScaleIntensityFixedMeand(["image"], prob=often, factors=0.3),
            transforms.RandAdjustContrastd(["image"], prob=seldom, gamma=(0.7, 1.5)),
            transforms.RandGaussianSmoothd(["image"], (0.5, 1.0), (0.5, 1.0), prob=seldom),
            transforms.RandGaussianNoised(["image"], prob=seldom, std=0.2),
        ]
    )


def rate(step: Callable[[int], object], rounds: int) -> float:
    """Samples per second of `step`, which augments one batch; the median over `rounds`."""
    step(0)
    times = []
    for number in range(1, rounds + 1):
        start = time.process_time()
        step(number)
        times.append(time.process_time() - start)
    return BATCH / float(np.median(times))


def compare(title: str, often: float, seldom: float) -> None:
    """Prints both rates and their ratio."""
    image = torch.randn(BATCH, CHANNELS, SIDE, SIDE)
    label = torch.randint(0, 5, (BATCH, SIDE, SIDE), dtype=torch.uint8)
    valid = torch.ones(BATCH, SIDE, SIDE, dtype=torch.bool)
    augment, compose = ours(often, seldom), theirs(often, seldom)

    def batch(number: int) -> None:
        drawn = [augment.draw(0, number * BATCH + row, (1, SIDE, SIDE), (1.0, 1.0, 1.0)) for row in range(BATCH)]
        parameters = {name: torch.as_tensor(np.stack([values[name] for values in drawn])) for name in drawn[0]}
        augment.apply(image, valid, label, parameters)

    def samples(number: int) -> None:
        for row in range(BATCH):
            compose({"image": image[row], "label": label[row, None]})

    mine, other = rate(batch, 15), rate(samples, 3)
    print(f"{title:42} voxtile {mine:6.0f}/s   MONAI {other:6.0f}/s   ratio {mine / other:5.1f}")


def main() -> None:
    """Measures with the probabilities of `augment=default`, and with every operation on every sample."""
    torch.set_num_threads(1)
    compare(f"probabilities 0.3 and 0.1, {SIDE}x{SIDE}x{CHANNELS}", often=0.3, seldom=0.1)
    compare(f"everything always, {SIDE}x{SIDE}x{CHANNELS}", often=1.0, seldom=1.0)


if __name__ == "__main__":
    main()
