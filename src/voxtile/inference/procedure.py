"""What is done at test time besides one forward pass per window: Monte-Carlo dropout, rotated copies, a dense CRF."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from voxtile.cases.window import Size3
from voxtile.data.rng import seed_torch
from voxtile.data.symmetry import Symmetry
from voxtile.models.sizes import centre

if TYPE_CHECKING:
    from voxtile.data.normalise import Intensity
    from voxtile.inference.crf import DenseCRF

Softmax = Callable[[Tensor], Tensor]
_DRAWING = threading.Lock()  # torch has one generator, and networks of several kinds judge side by side


@dataclass(frozen=True)
class Procedure:
    """How the probabilities of a case are found, beside one forward pass per window.

    Attributes:
        samples: passes with dropout switched on, whose mean and variance are taken (Bayesian SegNet, Kendall et al. 2015,
            section 3); 0 for one pass without dropout.
        rotations: how many copies of the window, turned by equal angles, are averaged (U-Net averages 7, Ronneberger et al.
            2015, section 4); 1 for the window alone.
        mirrors: axes along which mirrored copies of the window are averaged, "z", "y", "x": all combinations of them.
        halo: pixels that are read around a window, beside the network's margin, and whose scores are cut away. With half the
            network's receptive field, a network that is shift-equivariant says the same of a pixel in every window.
        crf: applied to what the windows were blended to, or None.
        symmetries: of each network, which classes change places in mirrored copies; none do where it is empty.
        disagreement: whether the variance between networks is taken, of those that are not sampled.
    """

    samples: int = 0
    rotations: int = 1
    mirrors: tuple[str, ...] = ()
    halo: int = 0
    crf: DenseCRF | None = None
    symmetries: tuple[Symmetry, ...] = field(default=(), repr=False)  # maps are known by what stands here otherwise
    disagreement: bool = field(default=False, repr=False)  # changes no map of classes

    @property
    def varies(self) -> bool:
        """Whether a map of variance comes behind those of the classes."""
        return bool(self.samples) or self.disagreement

    @property
    def swapped(self) -> list[dict[str, Sequence[Sequence[int]]]]:
        """The pairs of classes that change places along the axes of `mirrors`, for each network; empty where none do."""
        pairs = [{axis: each.swap[axis] for axis in self.mirrors if each.swap.get(axis)} for each in self.symmetries]
        return pairs if any(pairs) else []

    def margin(self, size: Size3, planar: bool = True) -> Size3:
        """Pixels along (z, y, x) around a window of `size` (depth, height, width): the halo, and what turned copies reach."""
        deep = 0 if planar else self.halo
        if self.rotations == 1:
            return deep, self.halo, self.halo
        diagonal = math.ceil(math.hypot(*size[1:])) + 1
        return deep, self.halo - (size[1] - diagonal) // 2, self.halo - (size[2] - diagonal) // 2


@contextmanager
def dropout_on(network: nn.Module) -> Iterator[None]:
    """Switches dropout on, and nothing else, in a network that is in evaluation mode."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.dropout._DropoutNd)]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


def monte_carlo(softmax: Softmax, network: nn.Module, images: Tensor, starts: Tensor, samples: int) -> Tensor:
    """Mean probabilities over passes with dropout, and one map more: their variance, averaged over classes.

    Args:
        softmax: image [B, C, h, w] to probabilities [B, K, h, w].
        network: where dropout is switched on.
        images: [B, C, h, w].
        starts: int [B, 3], where each window lies: it decides the dropout, so that the result does not depend on the batch.
        samples: how many passes.

    Returns:
        [B, K + 1, h, w].
    """
    found = []
    with _DRAWING, torch.random.fork_rng(devices=range(torch.cuda.device_count())), dropout_on(network):
        for image, start in zip(images, starts.tolist(), strict=True):
            total = squares = torch.zeros((), device=images.device)
            for sample in range(samples):
                seed_torch(images.device, sample, start, "monte carlo")
                once = softmax(image[None])[0]
                total, squares = total + once, squares + once**2
            mean = total / samples
            variance = (squares / samples - mean**2).clamp_min(0).mean(dim=0, keepdim=True)
            found.append(torch.cat([mean, variance]))
    return torch.stack(found)


def rotated_mean(softmax: Softmax, images: Tensor, size: Sequence[int], rotations: int) -> Tensor:
    """The mean of the probabilities of copies turned by 360° · k / rotations, each turned back.

    Args:
        softmax: image [B, C, h, w] to probabilities [B, K, h', w'], smaller by the network's margin.
        images: windows with `Procedure.margin` and the network's own around them.
        size: (height, width) of the windows.
        rotations: how many.

    Returns:
        [B, K, height, width].
    """
    total = torch.zeros((), device=images.device)
    for number in range(rotations):
        angle = 2 * math.pi * number / rotations
        turned_back = _rotated(softmax(_rotated(images, angle)), -angle)
        total = total + centre(turned_back, size)
    return total / total.sum(dim=1, keepdim=True)


def mirrored_mean(softmax: Softmax, images: Tensor, axes: Sequence[str], symmetry: Symmetry | None = None) -> Tensor:
    """The mean of the probabilities of copies mirrored along every combination of axes, each mirrored back.

    What is left in the image is right in a copy: classes that change places are exchanged, as they were in training.

    Args:
        softmax: image [B, C, (d,) h, w] to probabilities [B, K, (d',) h', w'].
        images: windows.
        axes: of "z", "y" and "x".
        symmetry: which classes change places; None for none.
    """
    total = softmax(images)
    for kept in itertools.product((False, True), repeat=len(axes)):
        mirrored = [axis for axis, chosen in zip(axes, kept, strict=True) if chosen]
        if flips := [-1 - "xyz".index(axis) for axis in mirrored]:
            copy = softmax(images.flip(flips)).flip(flips)
            own = list(range(copy.shape[1]))
            classes = symmetry.exchanged(mirrored, len(own)) if symmetry else own
            if classes != own:
                copy = copy.index_select(1, torch.tensor(classes).to(copy.device, non_blocking=True))
            total = total + copy
    return total / 2 ** len(axes) if axes else total


def _rotated(image: Tensor, angle: float) -> Tensor:
    """Turns [B, C, h, w] about its middle, in radians; what comes from outside is mirrored in."""
    if angle == 0:
        return image
    height, width = image.shape[2:]
    cos, sin = math.cos(angle), math.sin(angle)
    # grid_sample's coordinates run from -1 to 1 along each axis, whatever its length.
    matrix = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]]).to(image.device, non_blocking=True)
    grid = functional.affine_grid(matrix.expand(len(image), -1, -1), list(image.shape), align_corners=False)
    return functional.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


def crf_image(image: Tensor, intensity: Intensity) -> Tensor:
    """A case's pixels [C, …] in the units of the CRF's settings: 0 to 255 over the range that the normalisation keeps.

    Where it keeps everything, pixels of 8 bits stay as they are, and in others two standard deviations on each side of the mean
    take the range's place.
    """
    low, high, mean, std = (torch.tensor(row) for row in (intensity.low, intensity.high, intensity.mean, intensity.std))
    bounded, eight = low.isfinite() & high.isfinite(), image.dtype == torch.uint8
    first = torch.where(bounded, low, 0 if eight else mean - 2 * std).view(-1, *(1 for _ in image.shape[1:]))
    last = torch.where(bounded, high, 255 if eight else mean + 2 * std).view(-1, *(1 for _ in image.shape[1:]))
    scaled: Tensor = (image.double() - first) / (last - first).clamp_min(1e-12) * 255
    return scaled.clamp(0, 255).float()
