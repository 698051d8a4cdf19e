"""Random changes of intensity: gain, gamma, noise, blur and bias field.

Images are float32 [n, C, H, W] or [n, C, D, H, W], normalised (zero mean and unit standard deviation or about so).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxtile.cases.window import Size3
from voxtile.data.operation import Operation, Spacing, checked_range, control_points, log_uniform, smooth


@dataclass(frozen=True)
class Contrast(Operation):
    """A change of intensity."""

    @abstractmethod
    def apply(self, image: Tensor, weight: Tensor, drawn: Mapping[str, Tensor]) -> None:
        """Changes, in place, the samples it was drawn for.

        Args:
            image: [n, C, (D,) H, W], 0 where not valid. Afterwards it is finite everywhere; the caller makes it 0 there again.
            weight: float32 [n, 1, (D,) H, W], 1 where valid and 0 elsewhere.
            drawn: what `draw` returned, stacked [n, ...], on the CPU.
        """


@dataclass(frozen=True)
class Gain(Contrast):
    """Contrast and brightness of each channel: image * factor + offset.

    Attributes:
        factor: (smallest, largest) factor, log-uniform.
        offset: largest offset up or down, in units of the normalised image.
    """

    factor: tuple[float, float] = (0.75, 1.33)
    offset: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "factor", checked_range("Gain", "factor", self.factor))
        self._check_number("offset")

    def draw(self, rng: np.random.Generator, size: Size3, spacing: Spacing) -> dict[str, NDArray[Any]]:
        """Draws the `seed` [] of the channels' factors and offsets, as how many there are is not known here."""
        return {"seed": _seed(rng)}

    def apply(self, image: Tensor, weight: Tensor, drawn: Mapping[str, Tensor]) -> None:
        """See `Contrast.apply`."""
        channels = [np.random.Generator(np.random.Philox(seed)) for seed in drawn["seed"].tolist()]
        factor = np.stack([log_uniform(rng, self.factor, (image.shape[1],)) for rng in channels])
        offset = np.stack([rng.uniform(-self.offset, self.offset, image.shape[1]) for rng in channels])
        image.mul_(_like(torch.from_numpy(factor), image)).add_(_like(torch.from_numpy(offset), image))


@dataclass(frozen=True)
class Gamma(Contrast):
    """Raises each channel, rescaled to 0..1 between its smallest and largest valid pixel of the sample, to a power.

    Attributes:
        exponent: (smallest, largest) power, log-uniform.
    """

    exponent: tuple[float, float] = (0.7, 1.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "exponent", checked_range("Gamma", "exponent", self.exponent))

    def draw(self, rng: np.random.Generator, size: Size3, spacing: Spacing) -> dict[str, NDArray[Any]]:
        """Draws `exponent` [1]."""
        return {"exponent": log_uniform(rng, self.exponent, (1,)).astype(np.float32)}

    def apply(self, image: Tensor, weight: Tensor, drawn: Mapping[str, Tensor]) -> None:
        """See `Contrast.apply`."""
        low, high = _extremes(image, weight)
        extent = (high - low).clamp(min=torch.finfo(image.dtype).tiny)
        # exp(e * log(v)) takes a third of the time of pow on CPUs; log(0) = -inf gives 0 as it should.
        image.sub_(low).div_(extent).clamp_(0, 1).log_().mul_(_like(drawn["exponent"], image)).exp_()
        image.mul_(extent).add_(low)


@dataclass(frozen=True)
class Noise(Contrast):
    """Independent Gaussian noise on each pixel and channel.

    Attributes:
        std: largest standard deviation, in units of the normalised image; uniform from 0.
    """

    std: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("std")

    def draw(self, rng: np.random.Generator, size: Size3, spacing: Spacing) -> dict[str, NDArray[Any]]:
        """Draws `std` [1] and the `seed` [] of the noise field."""
        return {"std": rng.uniform(0, self.std, 1).astype(np.float32), "seed": _seed(rng)}

    def apply(self, image: Tensor, weight: Tensor, drawn: Mapping[str, Tensor]) -> None:
        """See `Contrast.apply`. The field is made on the image's device: its bits differ between CPUs and GPUs."""
        generator = torch.Generator(image.device)
        for row, seed, std in zip(image, drawn["seed"].tolist(), drawn["std"].flatten().tolist(), strict=True):
            row.add_(torch.randn(row.shape, generator=generator.manual_seed(seed), device=row.device), alpha=std)


@dataclass(frozen=True)
class Blur(Contrast):
    """Gaussian blur that mixes valid pixels only.

    Attributes:
        sigma: (smallest, largest) standard deviation in multiples of the finest spacing, uniform.
    """

    sigma: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sigma", checked_range("Blur", "sigma", self.sigma))

    def draw(self, rng: np.random.Generator, size: Size3, spacing: Spacing) -> dict[str, NDArray[Any]]:
        """Draws `kernel` [3, taps]: normalised weights along (z, y, x)."""
        sigma = rng.uniform(*self.sigma) * min(spacing[-2:] if size[0] == 1 else spacing) / np.array(spacing)
        radius = math.ceil(3 * self.sigma[1])
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma[:, None]) ** 2)
        return {"kernel": (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)}

    def apply(self, image: Tensor, weight: Tensor, drawn: Mapping[str, Tensor]) -> None:
        """See `Contrast.apply`."""
        mixed = torch.cat([image, weight], dim=1)
        for axis in range(2 - image.ndim, 0):
            mixed = _convolve(mixed, drawn["kernel"][:, axis], axis)
        torch.div(mixed[:, :-1], mixed[:, -1:].clamp(min=1e-3), out=image)


@dataclass(frozen=True)
class Bias(Contrast):
    """A slowly varying gain, as of an MRI coil, on intensities measured from the sample's darkest valid pixel of each channel.

    Attributes:
        std: standard deviation of the gain's logarithm at the control points.
        control: largest distance between neighbouring control points, in pixels.
    """

    std: float = 0.15
    control: float = 128.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("std")
        self._check_number("control", low=1)

    def draw(self, rng: np.random.Generator, size: Size3, spacing: Spacing) -> dict[str, NDArray[Any]]:
        """Draws `field` [gz, gy, gx]: the gain's logarithm at the control points."""
        return {"field": (rng.standard_normal(control_points(size, self.control)) * self.std).astype(np.float32)}

    def apply(self, image: Tensor, weight: Tensor, drawn: Mapping[str, Tensor]) -> None:
        """See `Contrast.apply`."""
        size = (1,) * (5 - image.ndim) + tuple(image.shape[2:])
        gain = smooth(drawn["field"].to(image.device, non_blocking=True), size).exp().to(image.dtype).reshape(weight.shape)
        low, _ = _extremes(image, weight)
        image.sub_(low).mul_(gain).add_(low)


def _seed(rng: np.random.Generator) -> NDArray[np.int64]:
    return np.array(rng.integers(2**63), dtype=np.int64)


def _like(values: Tensor, image: Tensor) -> Tensor:
    """`values` [n, 1 or C] in the image's type and on its device, with axes of length 1 after them."""
    return values.to(image, non_blocking=True).view(*values.shape, *(1,) * (image.ndim - 2))


def _extremes(image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest valid value of each sample and channel, [n, C, 1, ...]; 0 and 0 where nothing is valid."""
    space = tuple(range(2, image.ndim))
    outside = torch.where(weight > 0, 0.0, torch.inf)
    low, high = (image + outside).amin(space, keepdim=True), (image - outside).amax(space, keepdim=True)
    return low.nan_to_num(posinf=0.0), high.nan_to_num(neginf=0.0)


def _convolve(image: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Convolves each sample with its own symmetric `kernel` [n, taps] along `axis`, taking pixels outside as 0.

    Shifted sums need no library convolution, whose bits depend on the batch size (and on a GPU on TF32).
    """
    length, radius = image.shape[axis], kernel.shape[1] // 2
    out, weights = torch.zeros_like(image), _like(kernel, image).movedim(1, 0)[:, :, None]
    for tap in range(max(-radius, 1 - length), min(radius, length - 1) + 1):
        rest = length - abs(tap)
        out.narrow(axis, max(-tap, 0), rest).addcmul_(image.narrow(axis, max(tap, 0), rest), weights[tap + radius])
    return out
