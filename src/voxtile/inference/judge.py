"""From the pixels of windows to probabilities: one network or several, by one forward pass or more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from voxtile.cases.window import Size3
from voxtile.data.normalise import Intensity, normalise
from voxtile.data.symmetry import Symmetry
from voxtile.inference.procedure import Procedure, mirrored_mean, monte_carlo, rotated_mean
from voxtile.models.network import dims_of, logits_of, margin_of
from voxtile.models.sizes import centre

_ALONE: list[int] = []  # how many threads there were, for each that has them work alone now: kinds of networks take turns


class Judge:
    """Networks that together say what each pixel of a window is: the mean of their probabilities.

    Attributes:
        planar: whether they see slices.
        classes: how many maps come out, once the first window has shown it.
        own_margin: the largest margin that a network wants, along (z, y, x).
    """

    def __init__(
        self, networks: Sequence[nn.Module], device: str | torch.device, precision: torch.dtype, procedure: Procedure
    ) -> None:
        """Takes the networks into evaluation mode on `device`.

        Args:
            networks: each maps [B, C, H, W] ([B, C, D, H, W] if its `dims` is 3) to logits of the same size.
            device: where they run.
            precision: float32, or a lower one for autocast.
            procedure: how a window's probabilities are found.

        Raises:
            ValueError: Some see slices and others boxes, or the procedure's symmetries are of other networks.
        """
        self.networks = [network.to(device).eval() for network in networks]
        self.device, self.precision, self.procedure = torch.device(device), precision, procedure
        dims = {dims_of(network) for network in networks}
        if len(dims) > 1:
            raise ValueError("networks that see slices and networks that see boxes have no windows in common")
        self.planar = dims == {2}
        # Without any, no classes change places.
        self._symmetries = procedure.symmetries or (None,) * len(networks)
        if len(self._symmetries) != len(networks):
            raise ValueError(f"{len(networks)} networks have {len(self._symmetries)} symmetries")
        self.classes: int | None = None
        z, y, x = (int(side) for side in np.max([margin_of(network) for network in networks], axis=0))
        self.own_margin: Size3 = (z, y, x)
        # The order in which a CPU convolves; from the other one it turns every layer's input and back: up to 29 % of the time.
        self._channels_last = set(self.networks if self.planar and self.device.type == "cpu" else ())
        self._tried: set[nn.Module] = set()  # those of them that it has worked for
        for network in self._channels_last:
            network.to(memory_format=torch.channels_last)

    def margin(self, size: Size3) -> Size3:
        """Pixels along (z, y, x) that are seen around a window of `size` (depth, height, width)."""
        z, y, x = (a + b for a, b in zip(self.own_margin, self.procedure.margin(size, self.planar), strict=True))
        return z, y, x

    def __call__(self, image: Tensor, seen: Tensor, intensities: Sequence[Intensity], starts: Tensor, size: Size3) -> Tensor:
        """Judges windows.

        Args:
            image: pixels [B, C, d, h, w] with the margin around each window.
            seen: which of them hold data, bool [B, d, h, w].
            intensities: how the case is normalised for each network.
            starts: int [B, 3], where the windows begin in the case (z, y, x): it decides the dropout of samples.
            size: (depth, height, width) of the windows.

        Returns:
            Probabilities float32 [B, K, d, h, w] on the device, and one map more, their variance, where the procedure asks for it.
        """
        pixels, valid = (tensor.to(self.device, non_blocking=True) for tensor in (image, seen))
        total: Tensor | None = None
        squares: Tensor | None = None
        for network, symmetry, intensity in zip(self.networks, self._symmetries, intensities, strict=True):
            numbers = {name: row.expand(len(image), *row.shape) for name, row in _numbers(intensity, self.device).items()}
            scaled = normalise(pixels, valid, **numbers)
            found = self._of_one(network, symmetry, scaled.squeeze(2) if self.planar else scaled, starts, size)
            total = found if total is None else total + found
            if self.procedure.disagreement:
                squares = found**2 if squares is None else squares + found**2
        assert total is not None
        mean = total / len(self.networks) if len(self.networks) > 1 else total
        if squares is not None:
            variance = (squares / len(self.networks) - mean**2).clamp_min(0).mean(dim=1, keepdim=True)
            mean = torch.cat([mean, variance], dim=1)
        self.classes = mean.shape[1]
        return mean[:, :, None] if self.planar else mean

    def _of_one(self, network: nn.Module, symmetry: Symmetry | None, image: Tensor, starts: Tensor, size: Size3) -> Tensor:
        procedure, inner = self.procedure, size[1:] if self.planar else size

        def softmax(each: Tensor) -> Tensor:
            with torch.inference_mode(), self._autocast():
                logits = self._logits(network, each)
            return torch.softmax(logits.float().contiguous(), dim=1)

        def mirrored(each: Tensor) -> Tensor:
            return mirrored_mean(softmax, each, procedure.mirrors, symmetry)

        def once(each: Tensor) -> Tensor:
            if procedure.rotations > 1:
                return rotated_mean(mirrored, each, inner, procedure.rotations)
            return centre(mirrored(each), inner)

        if procedure.samples:
            return monte_carlo(once, network, image, starts, procedure.samples)
        return once(image)

    def _logits(self, network: nn.Module, image: Tensor) -> Tensor:
        if network in self._channels_last:
            try:
                ordered: Tensor = logits_of(network, image.contiguous(memory_format=torch.channels_last))
                self._tried.add(network)
                return ordered
            except RuntimeError:
                # Some networks view their tensors in a way that this order does not allow, which the first window shows. A later
                # error is another one; in the other order the windows to come would have other last bits.
                if network in self._tried:
                    raise
                self._channels_last.discard(network)
                network.to(memory_format=torch.contiguous_format)
        logits: Tensor = logits_of(network, image)
        return logits

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision != torch.float32:
            return torch.autocast(self.device.type, dtype=self.precision)
        if self.device.type not in ("cpu", "cuda"):
            return nullcontext()
        return torch.autocast(self.device.type, enabled=False)  # a program around this may have switched it on

    @contextmanager
    def threads(self) -> Iterator[int]:
        """How many threads may judge at once; while it is open, each does its work alone.

        On the CPU, batches go side by side, one thread each: threads that share a batch wait for one another at every layer, and
        longest for the one whose core reads or writes as well. Sampling draws from torch's only generator, so it is done by one.
        """
        if self.device.type != "cpu" or self.procedure.samples:
            yield 1
            return
        count = _ALONE[0] if _ALONE else torch.get_num_threads()
        _ALONE.append(count)
        torch.set_num_threads(1)
        try:
            yield count
        finally:
            _ALONE.pop()
            if not _ALONE:
                torch.set_num_threads(count)


@lru_cache(maxsize=16)
def _numbers(intensity: Intensity, device: torch.device) -> dict[str, Tensor]:
    """What `normalise` takes, on the device: a batch of windows would bring it there again."""
    return {name: torch.from_numpy(row).to(device, non_blocking=True) for name, row in intensity.arrays().items()}
