"""How far a network's scores see."""

from __future__ import annotations

import torch
from torch import nn

from voxtile.errors import ConfigError
from voxtile.models.network import logits_of

LARGEST = 2048  # pixels of the side of an image on which it is tried


def reach_of(network: nn.Module, channels: int) -> int:
    """How many pixels beyond itself a score depends on, along y or x: half the receptive field, rounded up.

    Pixels that are not a number make every score that depends on them not a number, so one pass shows the field, whatever the
    layers. A square as wide as the network's stride stands for every place that a pixel can have on its coarsest map.

    Args:
        network: in evaluation mode; for images [B, C, H, W].
        channels: of its images.

    Raises:
        ConfigError: The network sees volumes, or more than fits into an image of 2048 pixels: all of it, perhaps.
    """
    if getattr(network, "dims", 2) != 2:
        raise ConfigError("'halo=field' measures networks that see slices, and this one sees volumes. Give the halo in pixels.")
    stride = int(getattr(network, "stride", 32))
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    side = max(256, 4 * stride)
    while side <= LARGEST:
        image = torch.zeros(1, channels, side, side, device=device)
        start = side // 2 // stride * stride
        image[:, :, start : start + stride, start : start + stride] = torch.nan
        with torch.inference_mode():
            seen = logits_of(network, image)[0].isnan().any(dim=0)
        margin = (side - seen.shape[-1]) // 2  # of networks whose scores are smaller than what they read
        where = seen.nonzero()
        low, high = int(where.min()), int(where.max())
        if low > 0 and high < seen.shape[-1] - 1:
            reach: int = max(start - (low + margin), high + margin - (start + stride - 1))
            return reach
        side *= 2
    raise ConfigError(
        f"'halo=field' found no end of what this network sees in an image of {LARGEST} pixels; perhaps it sees all of it. Give the "
        "halo in pixels, or leave it out."
    )
