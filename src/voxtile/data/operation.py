"""What the operations of augmentation share: a probability, parameters drawn on the CPU, smooth random fields."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from voxtile.cases.window import Size3
from voxtile.errors import ConfigError
from voxtile.values import is_number

MOST = 1000  # of factors and widths in pixels: kernels and images of much larger ones fit no memory and no float32
Spacing = tuple[float, float, float]  # distance between neighbouring pixels along (z, y, x) in the case's unit of length
SQUARE = 0.01  # share of the longer side by which those of a pixel in the plane may differ, and it is as good as square


def turned(spacing: Spacing) -> Spacing:
    """The spacing of a window after a quarter turn in the plane, y and x exchanged; the same where pixels are square."""
    z, y, x = spacing
    return spacing if abs(y - x) <= SQUARE * max(y, x) else (z, x, y)


@dataclass(frozen=True)
class Operation(ABC):
    """One kind of change that is made to a sample with some probability.

    Attributes:
        probability: how likely a sample is changed, 0 to 1.
    """

    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(
                f"{type(self).__name__} of the augmentation has probability={self.probability}; expected a number from 0 (never) "
                "to 1 (always)."
            )

    def _check_number(self, name: str, low: float = 0.0, high: float = math.inf) -> None:
        """Refuses an attribute that is no number from `low` to `high`.

        Raises:
            ConfigError: It is none.
        """
        value = getattr(self, name)
        if not is_number(value, low, high):
            most = f"to {high:g}" if high < math.inf else "up"
            raise ConfigError(
                f"{type(self).__name__} of the augmentation has {name}={value}; expected a number from {low:g} {most}, for example "
                f"{name}={getattr(type(self), name)}."
            )

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: Size3, spacing: Spacing) -> dict[str, NDArray[Any]]:
        """Draws the parameters of one sample.

        Args:
            rng: the generator of this sample and this operation.
            size: the window's (D, H, W) in pixels; D is 1 for scenes and pictures.
            spacing: the pixel spacing along (z, y, x) of the window as it lies after quarter turns.

        Returns:
            Arrays whose names, shapes and types depend on `size` and the configuration only, so that a batch stacks.
        """


def checked_range(owner: str, name: str, values: Sequence[float]) -> tuple[float, float]:
    """`values` as a pair (smallest, largest) of numbers above 0, `MOST` at most.

    Raises:
        ConfigError: They are not two such numbers in this order.
    """
    pair = tuple(float(value) for value in values)
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= MOST:
        raise ConfigError(
            f"{owner} of the augmentation has {name}={list(pair)}; expected two numbers [smallest, largest] above 0 and at "
            f"most {MOST}, for example {name}=[0.8, 1.25]."
        )
    return pair[0], pair[1]


def log_uniform(rng: np.random.Generator, bounds: tuple[float, float], shape: tuple[int, ...] = ()) -> NDArray[np.float64]:
    """Numbers whose logarithm is uniform, so that halving and doubling are equally likely."""
    return np.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1]), shape))


@lru_cache(maxsize=64)
def control_points(size: Size3, distance: float) -> Size3:
    """How many control points at most `distance` pixels apart span a window of `size` along (z, y, x); 1 for a length of 1."""
    depth, height, width = (1 + math.ceil((pixels - 1) / distance) for pixels in size)
    return depth, height, width


@lru_cache(maxsize=64)
def cubic_weights(pixels: int, points: int, device: torch.device) -> Tensor:
    """Weights [pixels, points], float64, of cubic interpolation between control points, the outer ones on the outer pixels.

    Multiplying a field by the weights of each of its axes is bicubic (tricubic) interpolation, at a tenth of the time of
    `interpolate`. In float64, neither autocast nor TF32 can coarsen the products.
    """
    identity = torch.eye(points, dtype=torch.float64)[None, None]
    weights = functional.interpolate(identity, size=(pixels, points), mode="bicubic", align_corners=True)[0, 0]
    return weights.to(device, non_blocking=True)


def smooth(field: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolates values on control points [n, gz, gy, gx] to every pixel [n, D, H, W] of a window of `size`, in float64."""
    z, y, x = (cubic_weights(pixels, points, field.device) for pixels, points in zip(size, field.shape[1:], strict=True))
    return torch.einsum("zk,nkyx->nzyx", z, y @ (field.double() @ x.T))
