"""How far a network's scores see."""

from __future__ import annotations

import torch
from torch import nn

from voxtile.errors import ConfigError
from voxtile.models.network import dims_of, logits_of, margin_of, stride_of

LARGEST = 2048  # pixels of the side of an image on which it is tried


def reach_of(network: nn.Module, channels: int) -> int:
    """How many pixels beyond itself and the network's margin a score depends on, along y or x: half the receptive field.

    Pixels that are not a number make every score that depends on them not a number, whatever the layers. A quarter of the image is
    filled with them, once from either side, since between the taps of a dilated layer a few of them would not be seen. The scores
    of one coarse pixel see alike, so with a stride up to stride - 1 pixels are said too many; never too few.

    Args:
        network: in evaluation mode; for images [B, C, H, W].
        channels: of its images.

    Raises:
        ConfigError: The network sees volumes, or more than fits into an image of 2048 pixels: all of it, perhaps.
    """
    if dims_of(network) != 2:
        raise ConfigError("'halo=field' measures networks that see slices, and this one sees volumes. Give the halo in pixels.")
    stride, margin = stride_of(network), margin_of(network)[2]
    side = max(256, 4 * stride)
    while side <= LARGEST:
        border = side // 2 // stride * stride
        first, _ = _seen(network, channels, side, slice(border, side))
        if first > margin and (last := _seen(network, channels, side, slice(0, border))[1]) < side - margin - 1:
            return max(border + stride - 1 - first, last - (border - stride)) - margin
        side *= 2
    raise ConfigError(
        f"'halo=field' found no end of what this network sees in an image of {LARGEST} pixels; perhaps it sees all of it. Give the "
        "halo in pixels, or leave it out."
    )


def _seen(network: nn.Module, channels: int, side: int, part: slice) -> tuple[int, int]:
    """The first and the last place along y or x, in an image of `side`, whose score sees pixels of `part` along both."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    image = torch.zeros(1, channels, side, side, device=device)
    image[:, :, part, part] = torch.nan
    with torch.inference_mode():
        where = logits_of(network, image)[0].isnan().any(dim=0).nonzero() + margin_of(network)[2]
    return int(where.min()), int(where.max())
