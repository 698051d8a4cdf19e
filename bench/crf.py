"""Seconds of the dense CRF, against pydensecrf2 doing the same in the same run: `python bench/crf.py`.

One thread, building of lattices included, counted in processor time: that another program is busy disturbs less. The pictures and
the network's probabilities are made up: regions of one colour each, shaded and noisy, and blobs of wrong classes.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxtile.inference.crf import DenseCRF

HEIGHT, WIDTH, CLASSES, ROUNDS = 375, 500, 21, 5
MISSING = (
    "pydensecrf2 is not importable, so there is no comparison. It needs a C++ compiler: "
    "pip install --no-deps --target peers pydensecrf2==1.1; PYTHONPATH=peers python bench/crf.py"
)


def picture(noise: float) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.intp]]:
    """An image [3, H, W], probabilities [K, H, W] and the true classes [H, W]."""
    rng = np.random.default_rng(0)
    size = (CLASSES, HEIGHT, WIDTH)
    label = ndimage.gaussian_filter(rng.standard_normal(size), (0, 25, 25)).argmax(axis=0)
    image = np.moveaxis(rng.integers(0, 256, (CLASSES, 3))[label], -1, 0).astype(np.float64)
    image += 200 * ndimage.gaussian_filter(rng.standard_normal(image.shape), (0, 4, 4)) + rng.normal(0, noise, image.shape)
    logits = 4 * ndimage.gaussian_filter(np.moveaxis(np.eye(CLASSES)[label], -1, 0), (0, 6, 6))
    logits += 8 * ndimage.gaussian_filter(rng.standard_normal(size), (0, 3, 3))
    weights = np.exp(logits)
    return np.clip(image, 0, 255).astype(np.uint8), (weights / weights.sum(axis=0)).astype(np.float32), label


def theirs(settings: DenseCRF, probabilities: NDArray[np.float32], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The same settings in pydensecrf2."""
    from pydensecrf import densecrf

    after = settings.normalisation == "after"
    same = {"kernel": densecrf.CONST_KERNEL}
    same["normalization"] = densecrf.NORMALIZE_AFTER if after else densecrf.NORMALIZE_SYMMETRIC
    crf = densecrf.DenseCRF2D(WIDTH, HEIGHT, CLASSES)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(probabilities.reshape(CLASSES, -1))))
    crf.addPairwiseBilateral(
        sxy=settings.bilateral_position,
        srgb=settings.bilateral_value,
        rgbim=np.ascontiguousarray(np.moveaxis(image, 0, -1)),
        compat=settings.bilateral_weight,
        **same,
    )
    crf.addPairwiseGaussian(sxy=settings.smooth_position, compat=settings.smooth_weight, **same)
    return np.asarray(crf.inference(settings.iterations), np.float32).reshape(probabilities.shape)


def timed(run: Callable[[], NDArray[np.float32]], rounds: int) -> tuple[float, NDArray[np.float32]]:
    """The least processor time of some rounds, in seconds, and the result."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = run()
        times.append(time.process_time() - start)
    return min(times), result


def compare(title: str, settings: DenseCRF, noise: float, peer: bool) -> None:
    """Prints both times, their ratio, and on how many pixels the classes agree."""
    image, probabilities, label = picture(noise)
    mine, ours = timed(lambda: settings.refine(probabilities, image), ROUNDS)
    right = [f"{np.mean(found.argmax(axis=0) == label):.1%}" for found in (probabilities, ours)]
    line = f"{title:52} right {right[0]} -> {right[1]}   voxtile {mine:5.2f} s"
    if peer:
        other, found = timed(lambda: theirs(settings, probabilities, image), ROUNDS)
        same = np.mean(found.argmax(axis=0) == ours.argmax(axis=0))
        line += f"   pydensecrf2 {other:5.2f} s   ratio {mine / other:4.2f}   same classes {same:.3%}"
    print(line)


def main() -> None:
    """Measures several widths of the bilateral kernel: the narrower it is, the more lattice points there are."""
    peer = importlib.util.find_spec("pydensecrf") is not None
    if not peer:
        print(MISSING)
    image, probabilities, _ = picture(0)
    start = time.perf_counter()
    DenseCRF().refine(probabilities[:, :8, :8], image[:, :8, :8])
    print(f"first call, compiling or loading what is compiled: {time.perf_counter() - start:.1f} s")
    print(f"{WIDTH}x{HEIGHT}, {CLASSES} classes, 5 iterations")
    compare("position 80, value 13, no noise", DenseCRF(5, 80, 13, iterations=5), 0, peer)
    compare("position 80, value 13, noise 6", DenseCRF(5, 80, 13, iterations=5), 6, peer)
    compare("position 80, value 13, noise 6, symmetric", DenseCRF(5, 80, 13, iterations=5, normalisation="symmetric"), 6, peer)
    compare("position 50, value 10, noise 6", DenseCRF(5, 50, 10, iterations=5), 6, peer)
    compare("position 50, value 3, noise 6", DenseCRF(5, 50, 3, iterations=5), 6, peer)


if __name__ == "__main__":
    main()
