"""What every network keeps, and what it may return in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from voxtile.cases.window import IGNORE
from voxtile.errors import ConfigError


class Network(nn.Module):
    """A network that gives every pixel a class: image [B, C, H, W] (or [B, C, D, H, W]) to logits [B, K, …] of the same size.

    In evaluation it takes images of any size from one pixel up; padding and cropping are its own business. In training it takes
    images of `min_train_size` up and may return an `Output` with several score maps instead of one tensor.

    Attributes:
        dims: 2 for images [B, C, H, W], 3 for [B, C, D, H, W].
        stride: by how much the coarsest feature map is smaller than the image.
        margin: real context wanted around an image, in pixels on each side. Where it is not 0, `forward` takes `context`: by how
            many pixels the image is larger than what is asked for, on each side; the logits are smaller by that.
        min_train_size: smallest image side in training.
        min_train_batch: fewest images in a batch in training.
        stochastic: whether dropout is meant to be left on in evaluation, to sample from.
    """

    dims: int = 2
    stride: int = 1
    margin: int = 0
    min_train_size: int = 1
    min_train_batch: int = 1
    stochastic: bool = False


@dataclass(frozen=True)
class ScoreMap:
    """Logits on a grid of their own, and the pixels of the image that judge them.

    Attributes:
        logits: [B, K, h, w].
        rows: int64 [h], the image row whose label judges each row of the map, -1 for none; None where the map has the image's size.
        columns: int64 [w], likewise.
        weight: of this map's loss in the sum of all.
    """

    logits: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None
    weight: float = 1.0

    def label(self, label: Tensor) -> Tensor:
        """The label [B, h, w] of the map, picked out of the image's [B, H, W]; `IGNORE` where no pixel judges."""
        if self.rows is None or self.columns is None:
            return label
        # The index -1 finds the row and column that are added here.
        padded = functional.pad(label, (0, 1, 0, 1), value=IGNORE)
        return padded[:, self.rows][:, :, self.columns]


@dataclass(frozen=True)
class Output:
    """What a network returns in training where its loss is not taken at the image's size: Σ weight · loss over its maps."""

    maps: Sequence[ScoreMap]


torch.export.register_dataclass(ScoreMap)  # so that what looks for the tensors in an output finds them
torch.export.register_dataclass(Output)


def second_names(network: nn.Module) -> dict[str, str]:
    """For each further name of a tensor that has several, as weights that layers share have, its first."""
    first: dict[int, str] = {}
    second = {}
    everything = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    for name, value in everything:
        if first.setdefault(id(value), name) != name:
            second[name] = first[id(value)]
    return second


def sampled(count: int, stride: float, size: int, device: torch.device | None = None) -> Tensor:
    """The pixel nearest to each of `count` places 0, stride, 2·stride, … along an axis of `size` pixels; -1 past its end."""
    places = (torch.arange(count, device=device, dtype=torch.float64) * stride + 0.5).floor().long()
    return torch.where(places < size, places, -1)


def score_maps(output: Tensor | Output) -> Sequence[ScoreMap]:
    """What a network returned in training, as score maps; one at the image's size where it returned logits.

    Raises:
        ConfigError: It returned something else.
    """
    if not isinstance(output, Tensor | Output):
        raise ConfigError(
            f"The network returns a {type(output).__name__} in training; expected logits, one tensor, or a "
            "voxtile.models.network.Output of several score maps. Return one of them from its 'forward', or have voxtile's adapter "
            "do so ('_target_: voxtile.models.adapter.Adapted'): docs/extending.md has an example."
        )
    return output.maps if isinstance(output, Output) else [ScoreMap(output)]


def logits_of(network: nn.Module, image: Tensor) -> Any:
    """What the network makes of `image`, which was read with the network's margin: logits of the part inside it, or an `Output`."""
    *_, margin = margin_of(network)
    return network(image, context=margin) if margin else network(image)


def dims_of(network: nn.Module) -> int:
    """2 for a network of images, as one is that says nothing; 3 for one of boxes."""
    return int(getattr(network, "dims", 2))


def margin_of(network: nn.Module) -> tuple[int, int, int]:
    """The network's margin along (z, y, x), 0 where it says nothing: none along z for one that sees slices."""
    margin = int(getattr(network, "margin", 0))
    return (margin if dims_of(network) == 3 else 0, margin, margin)


def least_size_of(network: nn.Module) -> int:
    """The smallest image side that the network can train on, 1 where it says nothing."""
    return int(getattr(network, "min_train_size", 1))


def least_batch_of(network: nn.Module) -> int:
    """The fewest images in a batch that the network can train on, 1 where it says nothing."""
    return int(getattr(network, "min_train_batch", 1))


def stride_of(network: nn.Module) -> int:
    """The network's stride, along the axis where it is most; that of five halvings where it says nothing."""
    stride: Any = getattr(network, "stride", 32)
    return int(max(stride) if isinstance(stride, list | tuple) else stride)
