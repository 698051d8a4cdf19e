"""Intensity normalisation: clip to percentiles, then zero mean and unit standard deviation, per channel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxtile.data.rng import one_of_each
from voxtile.errors import ConfigError, DataError, counted, did_you_mean
from voxtile.values import finite, is_number

ROWS = ("low", "high", "mean", "std")
NUMBERS = (*ROWS, "masked")  # what `normalise` takes of a batch
MOST_MEASURED = 4_000_000  # from which a data set is measured; more would only take longer
# float32 holds every value of these exactly, or they are float32 or coarser themselves; the others are shifted in float64.
_NARROW = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.bool, torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Intensity:
    """How one case, or a whole data set, is normalised; one number per channel.

    Attributes:
        low: pixels below become this; -inf where nothing is clipped.
        high: pixels above become this; inf where nothing is clipped.
        mean: is subtracted after clipping.
        std: divides after that; never 0.
        masked: whether pixels that are 0 in every channel stay 0.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    masked: bool = False

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays [C], and whether it is masked [], as `normalise` takes them once a batch has stacked them."""
        rows = {name: np.array(getattr(self, name), dtype=np.float64) for name in ROWS}
        return rows | {"masked": np.array(self.masked)}

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per channel, the lowest and highest value of most measured pixels.

        The bounds of clipping, or mean ± 10 std where nothing is clipped.
        """
        spans = list(zip(self.mean, self.std, strict=True))
        low = (own if math.isfinite(own) else mean - 10 * std for own, (mean, std) in zip(self.low, spans, strict=True))
        high = (own if math.isfinite(own) else mean + 10 * std for own, (mean, std) in zip(self.high, spans, strict=True))
        return tuple(low), tuple(high)

    def as_dict(self) -> dict[str, Any]:
        """Lists for JSON, which has no infinity: None stands for it."""
        return {name: finite(getattr(self, name)) for name in ROWS} | {"masked": self.masked}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Intensity:
        """Undoes `as_dict`."""
        without = {"low": -math.inf, "high": math.inf}
        rows = {name: tuple(without[name] if v is None else float(v) for v in values[name]) for name in ROWS}
        return cls(**rows, masked=values.get("masked", False))


class Normalisation:
    """Measures how intensities are normalised; built from the configuration."""

    def __init__(
        self,
        per: Literal["case", "dataset"] = "case",
        clip: Sequence[float] | None = (0.5, 99.5),
        nonzero: bool = False,
        foreground: bool = False,
        keep_zero: bool = False,
    ) -> None:
        """Takes the settings.

        Args:
            per: "case" where the scale of intensities is each case's own (MRI), "dataset" where it means the same in all of them
                (reflectances, CT).
            clip: (lower, upper) percentiles of a channel to which its pixels are clipped first, or None.
            nonzero: measure only pixels in which some channel is not 0, for volumes whose background was set to 0.
            keep_zero: pixels that are 0 in every channel stay 0, as nnU-Net has it.
            foreground: measure only pixels of the training cases that are labelled as other classes than the background (CT).

        Raises:
            ConfigError: `per` or `clip` is not one of these, or each case is to be measured on its foreground.
        """
        if per not in ("case", "dataset"):
            hint = did_you_mean(per, ("case", "dataset"))
            raise ConfigError(f"Normalisation per '{per}' does not exist; expected per=case or per=dataset.{hint}")
        if clip is not None and not (len(clip) == 2 and 0 <= clip[0] < clip[1] <= 100):
            raise ConfigError(
                f"Normalisation has clip={list(clip)}; expected two rising percentiles from 0 to 100, for example clip=[0.5,99.5], "
                "or clip=null to clip nothing."
            )
        self.per = per
        self.clip = None if clip is None else (float(clip[0]), float(clip[1]))
        self.nonzero, self.keep_zero = nonzero, keep_zero
        if foreground and per == "case":
            raise ConfigError(
                "'normalise.foreground=true' measures labelled pixels, and a new case has no label to be measured by. Type "
                "'normalise.per=dataset' too, or 'normalise=ct'."
            )
        self.foreground = foreground

    @property
    def measures_samples(self) -> bool:
        """Whether evenly spread pixels of cases are measured, and not labelled foreground, or nothing."""
        return not self.foreground

    def of_case(self, sample: NDArray[Any]) -> Intensity:
        """Measures one case.

        Args:
            sample: valid pixels [C, n] of any real type. Without any, the channels stay as they are.
        """
        return self.of_dataset([sample])

    def of_dataset(self, samples: Iterable[NDArray[Any]], weights: Sequence[float] | None = None, every: int = 1) -> Intensity:
        """Measures cases together.

        Args:
            samples: of each training case, valid pixels [C, n] of any real type; looked at one after another, so that a generator
                need not hold those of all cases.
            weights: what one pixel of each sample counts: how many pixels of the case it stands for. The same where None.
            every: of how many pixels of a sample one is measured, see `thinning`.

        Raises:
            DataError: There are no samples.
        """
        parts = [sample[:, one_of_each(every, sample.shape[1], number)] for number, sample in enumerate(samples)]
        if not parts:
            raise DataError("No case to measure intensities on: the training split is empty. Check `split` in the configuration.")
        if self.nonzero:
            parts = [part[:, (part != 0).any(axis=0)] for part in parts]
        each = None if weights is None else np.repeat(weights, [part.shape[1] for part in parts])
        channels = (np.concatenate([part[c] for part in parts]).astype(np.float64) for c in range(len(parts[0])))
        low, high, mean, std = zip(*(self._measure(values, each) for values in channels), strict=True)
        return Intensity(low, high, mean, std, self.keep_zero)

    def thinning(self, sizes: Iterable[int]) -> int:
        """Of how many pixels of a data set's samples one is measured, given how many pixels each of them holds."""
        return max(1, sum(sizes) // MOST_MEASURED)

    def _measure(self, values: NDArray[np.float64], weights: NDArray[Any] | None) -> tuple[float, float, float, float]:
        """Low, high, mean and std of one channel's values [n]; `weights` [n], without which quantiles need no sorting, or None."""
        if not len(values):
            return -math.inf, math.inf, 0.0, 1.0
        low, high = -math.inf, math.inf
        if self.clip is not None:
            low, high = np.quantile(values, np.array(self.clip) / 100, weights=weights, method="inverted_cdf").tolist()
            if low == high:  # a channel with few values unlike the rest must not be clipped to a constant
                low, high = float(values.min()), float(values.max())
            values = values.clip(low, high)
        if values.min() == values.max():  # the deviation from a rounded mean would be tiny instead of 0
            return low, high, float(values[0]), 1.0
        mean = float(np.average(values, weights=weights))
        return low, high, mean, math.sqrt(np.average((values - mean) ** 2, weights=weights))


class FixedNormalisation(Normalisation):
    """Subtracts and divides by given numbers: what a network with trained weights was fed with, say."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Takes the numbers.

        Args:
            mean: one number per channel.
            std: likewise.

        Raises:
            ConfigError: The two have not equally many numbers, or a deviation is not positive.
        """
        super().__init__(per="dataset", clip=None)
        if len(mean) != len(std) or not all(map(is_number, (*mean, *std))) or min(std, default=1) <= 0:
            raise ConfigError(
                f"Normalisation was given mean={list(mean)} and std={list(std)}; expected one number each per channel, the second "
                "above 0."
            )
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))

    @property
    def measures_samples(self) -> bool:
        """False: nothing is measured."""
        return False

    def of_dataset(self, samples: Iterable[NDArray[Any]], weights: Sequence[float] | None = None, every: int = 1) -> Intensity:
        """The given numbers, whatever the samples [C, n] hold, of which the first is looked at.

        Raises:
            ConfigError: The images have another number of channels.
        """
        count = len(self.mean)
        channels = len(next(iter(samples), self.mean))
        if channels != count:
            raise ConfigError(
                f"'normalise' holds numbers for {counted(count, 'channel')}, and the images have {channels}. Give as many "
                "as there are channels ('normalise.mean=[…]', 'normalise.std=[…]'), choose three with 'data.channels=[…]', or type "
                "'normalise=dataset'."
            )
        return Intensity((-math.inf,) * count, (math.inf,) * count, self.mean, self.std)

    def thinning(self, sizes: Iterable[int]) -> int:
        """Always 1: nothing is measured."""
        return 1


def exact(dtype: torch.dtype) -> torch.dtype:
    """The float type that `normalise` computes in.

    float32 where it holds every value of `dtype`, or `dtype` is a float of at most 32 bits; else float64.
    """
    return torch.float32 if dtype in _NARROW else torch.float64


def normalise(image: Tensor, valid: Tensor, low: Tensor, high: Tensor, mean: Tensor, std: Tensor, masked: Tensor) -> Tensor:
    """Clips and rescales a batch.

    Args:
        image: [B, C, ...] of any real type, also unsigned 16 bit; or [B, n·C, ...] with n neighbouring slices of each channel.
        valid: bool [B, ...].
        low: [B, C], like high, mean and std; see `Intensity`.
        high: [B, C].
        mean: [B, C].
        std: [B, C].
        masked: bool [B].

    Returns:
        float32 [B, C, ...], 0 where not valid, and in masked samples where the channels of a slice are all 0.
    """
    dtype = exact(image.dtype)
    slices = image.shape[1] // low.shape[1]
    rows = (row.to(dtype).repeat_interleave(slices, dim=1) for row in (low, high, mean, std))
    low, high, mean, std = (row.view(*row.shape, *(1,) * (image.ndim - 2)) for row in rows)
    scaled = image.to(dtype, copy=True, memory_format=torch.contiguous_format)
    # On a CPU clamp_ takes five times as long by tensors that are broadcast, and all() of torch six times as long as NumPy's.
    torch.minimum(torch.maximum(scaled, low, out=scaled), high, out=scaled).sub_(mean).div_(std)
    # A GPU is not asked: the answer would have to wait for all that it has still to do.
    on_cpu = valid.device.type == "cpu"
    if not on_cpu or not valid.numpy().all():
        scaled = torch.where(valid[:, None], scaled, 0.0)
    if not on_cpu or masked.any():
        stored = image if on_cpu else image.to(dtype)  # a GPU does not compare every type
        by_slice = (stored.view(len(image), -1, slices, *image.shape[2:]) != 0).any(dim=1, keepdim=True)
        kept = by_slice | ~masked.view(-1, *(1,) * image.ndim)
        scaled = torch.where(kept, scaled.view(len(image), -1, *kept.shape[2:]), 0.0).view(image.shape)
    return scaled.float()
