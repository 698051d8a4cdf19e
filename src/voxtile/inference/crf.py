"""The fully connected conditional random field, which sharpens a network's probabilities along the image's edges.

Krähenbühl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials (NIPS 2011): every pixel pulls
every other one towards its own class, the stronger the nearer the two are in place and value. DeepLab v1 and v2 put it after the
network.
K classes, C channels, n pixels that hold data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.compiled import compiled
from voxtile.errors import ConfigError, listed
from voxtile.inference.permutohedral import Floats, Indices, Lattice
from voxtile.values import is_number, is_whole

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class DenseCRF:
    """Mean-field inference in a fully connected CRF with Potts compatibility, a bilateral and a position-only Gaussian kernel.

    The energy of labels x is Σ_i -log P(x_i) + Σ_{i<j} [x_i ≠ x_j] · k(i, j), with k(i, j) =
    bilateral_weight · exp(-|p_i - p_j|² / 2 bilateral_position² - |I_i - I_j|² / 2 bilateral_value²)
    + smooth_weight · exp(-|p_i - p_j|² / 2 smooth_position²). As in the authors' release, each kernel is normalised, and what a
    pixel sends also reaches itself. The messages go through the permutohedral lattice, so the time grows linearly with the
    number of pixels; the same input gives the same bits.

    The defaults are those of DeepLab's script, for three channels in 0..255.

    Attributes:
        bilateral_weight: weight of the kernel over position and value (DeepLab's `bi_w`); 0 leaves it out.
        bilateral_position: its standard deviation in pixels (`bi_xy_std`).
        bilateral_value: its standard deviation in units of the image (`bi_rgb_std`).
        smooth_weight: weight of the kernel over position alone (`pos_w`); 0 leaves it out.
        smooth_position: its standard deviation in pixels (`pos_xy_std`).
        iterations: mean-field updates, each of all pixels at once.
        normalisation: "after" divides what a pixel receives by the sum of its kernel, as the authors' release for DeepLab does;
            "symmetric" divides by its square root on both sides, as pydensecrf does unless told otherwise.
        channels: the image's channels, from 0, that the bilateral kernel looks at; None for all.

    Raises:
        ConfigError: A setting is impossible.
    """

    bilateral_weight: float = 5.0
    bilateral_position: float = 50.0
    bilateral_value: float = 3.0
    smooth_weight: float = 3.0
    smooth_position: float = 3.0
    iterations: int = 10
    normalisation: Literal["after", "symmetric"] = "after"
    channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("bilateral_weight", "smooth_weight"):
            self._check(name, is_number(getattr(self, name), 0), "a number from 0 up")
        for name in ("bilateral_position", "bilateral_value", "smooth_position"):
            self._check(name, is_number(value := getattr(self, name)) and value > 0, "a number above 0")
        self._check("iterations", is_whole(self.iterations, 1), "a whole number from 1 up")
        self._check("normalisation", self.normalisation in ("after", "symmetric"), "'after' or 'symmetric'")
        if self.channels is None:
            return
        few = isinstance(self.channels, Sequence) and len(self.channels) > 0
        good = few and all(is_whole(channel, 0) for channel in self.channels)
        self._check("channels", good, "null for all, or a list of channels counted from 0, for example [0,1,2]")
        object.__setattr__(self, "channels", tuple(self.channels))

    def _check(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise ConfigError(f"DenseCRF was given {name}={getattr(self, name)!r}; expected {expected}.")

    def refine(self, probabilities: Floats, image: NDArray[Any], valid: Mask | None = None, threads: int = 1) -> Floats:
        """Returns the refined probabilities of a slice, or of a volume slice by slice.

        Args:
            probabilities: float32 [K, h, w] or [K, d, h, w]; they sum to 1 over K.
            image: any numeric type [C, h, w] or [C, d, h, w].
            valid: bool [h, w] or [d, h, w], which pixels hold data; None for all. The others neither send nor receive, and keep
                what `probabilities` holds there.
            threads: slices of a volume to work on at once; the result does not depend on it.

        Returns:
            float32, of the shape of `probabilities`, which stays as it is.

        Raises:
            ValueError: The shapes do not fit, a pixel that holds data has something else than probabilities, a channel does not
                exist, or values lie too many standard deviations from 0.
        """
        probabilities, image = np.asarray(probabilities, np.float32), np.asarray(image)
        valid = np.ones(probabilities.shape[1:], np.bool_) if valid is None else np.asarray(valid)
        if (
            probabilities.ndim not in (3, 4)
            or len(probabilities) < 1
            or not image.shape[1:] == valid.shape == probabilities.shape[1:]
        ):
            raise ValueError(
                f"probabilities {list(probabilities.shape)}, image {list(image.shape)} and valid {list(valid.shape)} do not fit; "
                "expected [K, h, w], [C, h, w] and [h, w], or with a depth before h"
            )
        if valid.dtype != np.bool_:
            raise ValueError(f"valid is {valid.dtype}; expected bool, True where a pixel holds data")
        image = image[self._channels(len(image))]
        refined = probabilities.copy()
        if probabilities.ndim == 3:
            self._refine_slice(refined, image, valid)
            return refined
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda z: self._refine_slice(refined[:, z], image[:, z], valid[z]), range(len(valid))))
        return refined

    def _channels(self, available: int) -> list[int]:
        wanted = range(available) if self.channels is None else self.channels
        if missing := [channel for channel in wanted if channel >= available]:
            raise ValueError(f"channels {listed(missing)} of the bilateral term do not exist: the image has {available}, from 0")
        return list(wanted)

    def _refine_slice(self, refined: Floats, image: NDArray[Any], valid: Mask) -> None:
        """Overwrites probabilities [K, h, w] at the pixels that hold data."""
        found = refined[:, valid]
        if not found.size:
            return
        if not (found.min() >= 0 and found.max() <= 1 + 1e-3):
            raise ValueError(
                f"probabilities reach from {found.min():g} to {found.max():g} where pixels hold data; expected 0 to 1: apply "
                "softmax to a network's logits first"
            )
        prior = np.ascontiguousarray(np.log(np.maximum(found, np.finfo(np.float32).tiny)).T)
        y, x = np.nonzero(valid)
        place, kernels = np.stack([x, y], axis=1).astype(np.float32), []
        if self.bilateral_weight:
            values = image[:, valid].T.astype(np.float32)
            features = np.concatenate(
                [place / np.float32(self.bilateral_position), values / np.float32(self.bilateral_value)], axis=1
            )
            kernels.append((self.bilateral_weight, Lattice(features)))
        if self.smooth_weight:
            kernels.append((self.smooth_weight, Lattice(place / np.float32(self.smooth_position))))
        if kernels:
            refined[:, valid] = _mean_field(prior, kernels, self.normalisation == "symmetric", self.iterations).T


def _mean_field(prior: Floats, kernels: Sequence[tuple[float, Lattice]], symmetric: bool, iterations: int) -> Floats:
    """Beliefs [n, K] after some iterations, from log probabilities [n, K] and weighted kernels.

    All lattices lie in one grid, one after the other, each with a row of zeros for neighbours that do not exist.
    """
    parts, corners, sent, received, start = [], [], [], [], 0
    for weight, lattice in kernels:
        total = lattice.filter(np.ones((len(prior), 1), np.float32)) + np.float32(1e-20)
        scale = 1 / np.sqrt(total) if symmetric else 1 / total
        sent.append(lattice.weights * scale if symmetric else lattice.weights)
        received.append(lattice.weights * (scale * (lattice.gain * np.float32(weight))))
        corners.append(lattice.corners + np.int32(start))
        parts.append(slice(start, start + lattice.size + 1))
        start += lattice.size + 1
    joined = np.concatenate(corners, axis=1), np.concatenate(received, axis=1), np.concatenate(sent, axis=1)
    grid, spare = np.zeros((start, prior.shape[1]), np.float32), np.zeros((start, prior.shape[1]), np.float32)
    beliefs = np.empty_like(prior)
    for turn in range(iterations + 1):
        _exchange(prior, grid, spare, *joined, turn > 0, turn < iterations, beliefs)
        grid, spare = spare, grid
        if turn < iterations:
            for (_, lattice), part in zip(kernels, parts, strict=True):
                lattice.blur(grid[part], spare[part])
            spare.fill(0)
    return beliefs


@compiled
def _exchange(
    prior: Floats,
    grid: Floats,
    spare: Floats,
    corners: Indices,
    received: Floats,
    sent: Floats,
    receives: bool,
    sends: bool,
    beliefs: Floats,
) -> None:
    """Each pixel reads its messages from `grid`, settles its belief, and adds that to `spare`; the last time, to `beliefs`.

    One walk over the pixels instead of three: their beliefs never go to memory.
    """
    classes = prior.shape[1]
    belief = np.empty(classes, np.float32)
    for p in range(len(prior)):
        for k in range(classes):
            belief[k] = prior[p, k]
        if receives:
            for c in range(corners.shape[1]):
                point, weight = corners[p, c], received[p, c]
                for k in range(classes):
                    belief[k] += weight * grid[point, k]
        top = belief[0]
        for k in range(1, classes):
            top = max(top, belief[k])
        for k in range(classes):
            belief[k] = _exp(belief[k] - top)
        total = np.float32(0)
        for k in range(classes):
            total += belief[k]
        total = np.float32(1) / total
        if sends:
            for c in range(corners.shape[1]):
                point, weight = corners[p, c], sent[p, c] * total
                for k in range(classes):
                    spare[point, k] += weight * belief[k]
        else:
            for k in range(classes):
                beliefs[p, k] = belief[k] * total


@compiled
def _exp(x: np.float32) -> np.float32:
    """exp(x) for x ≤ 0 to 1e-6 of its value, and 0 below -80, written so that the compiler makes vectors of it.

    With x = m · log 2 + r, |r| ≤ log 2 / 2: 2^m goes into the exponent's bits, exp(r) is its Taylor polynomial.
    """
    inside = max(x, np.float32(-80))
    m = np.floor(inside * np.float32(1 / math.log(2)) + np.float32(0.5))
    r = inside - m * np.float32(0.693145751953125) - m * np.float32(1.42860682030941723e-6)  # log 2 in two parts, the first exact
    y = np.float32(1 / 5040)
    y = y * r + np.float32(1 / 720)
    y = y * r + np.float32(1 / 120)
    y = y * r + np.float32(1 / 24)
    y = y * r + np.float32(1 / 6)
    y = y * r + np.float32(1 / 2)
    y = y * r + np.float32(1)
    y = y * r + np.float32(1)
    power = np.int32((np.int32(m) + np.int32(127)) << np.int32(23)).view(np.float32)
    return y * power if x > np.float32(-80) else np.float32(0)  # no numbers so small that the processor slows down
