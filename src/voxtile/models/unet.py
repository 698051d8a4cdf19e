"""U-Net (Ronneberger, Fischer, Brox, MICCAI 2015, arXiv 1505.04597), with the padding and normalisation in use today."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from voxtile.models.layers import channels, he_normal
from voxtile.models.network import Network
from voxtile.models.sizes import crop_to, pad_to_multiple

Norm = Literal["batch", "instance", "group", "none"]


class GroupNorm(nn.GroupNorm):
    """Group normalisation that takes a map of one pixel as well, which PyTorch's refuses with one channel per group."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises [B, C, …] over each group of channels."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _norm(kind: Norm, channels: int, dims: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm3d(channels) if dims == 3 else nn.BatchNorm2d(channels)
    if kind == "instance":
        return GroupNorm(channels, channels)  # the same sums as InstanceNorm
    if kind == "group":
        return GroupNorm(math.gcd(8, channels), channels)
    return nn.Identity()


class MaxPool3d(nn.Module):
    """Halves [B, C, D, H, W] by maxima of 2x2x2 pixels, first in the plane, then along the depth.

    The gradient of PyTorch's MaxPool3d has no deterministic form on CUDA; that of MaxPool2d has.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Maxima [B, C, D / 2, H / 2, W / 2]; sides are even."""
        batch, features, depth, height, width = image.shape
        plane = torch.max_pool2d(image.reshape(batch, features * depth, height, width), 2)
        columns = torch.max_pool2d(plane.reshape(batch, features, depth, -1), (2, 1))
        return columns.reshape(batch, features, depth // 2, height // 2, width // 2)


class Stage(nn.Sequential):
    """Two 3x3 convolutions, each with normalisation and ReLU; the size stays."""

    def __init__(self, inputs: int, outputs: int, dims: int, norm: Norm, dropout: float) -> None:
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        layers: list[nn.Module] = []
        for before in (inputs, outputs):
            # A normalisation subtracts the mean right after, so a bias before it would learn nothing.
            layers += [
                conv(before, outputs, 3, padding=1, bias=norm == "none"),
                _norm(norm, outputs, dims),
                nn.ReLU(inplace=True),
            ]
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers)


class UNet(Network):
    """U-Net whose every encoder level feeds the decoder level of its size.

    Logits have the size of the image for any size: the input is padded to a multiple of `stride` and the result is cropped.

    Attributes:
        stride: by how much the bottom level is smaller than the image, 2**depth.
        margin: real context wanted around a window, in pixels: 0, since the convolutions pad.
        min_train_size: smallest image side in training: two pixels at the bottom, so that batch statistics exist.
        dims: 2 for images [B, C, H, W], 3 for [B, C, D, H, W].
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: float = 1.0,
        depth: int = 4,
        max_width: int = 1024,
        norm: Norm = "batch",
        dropout: float = 0.0,
        dims: int = 2,
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the image.
            num_classes: score maps.
            width: factor on the paper's channels: 64 at the first level, twice as many at each below.
            depth: number of halvings. The paper has 4.
            max_width: most channels of a level, whatever `width`.
            norm: "batch", "instance", "group", or "none" as in the paper.
            dropout: probability after the two lowest encoder levels (the paper: at the end of the contracting path, 0.5).
            dims: 2 or 3.

        Raises:
            ValueError: `dims`, `depth`, `norm` or `width` is out of range.
        """
        super().__init__()
        if dims not in (2, 3) or not 1 <= depth <= 10 or norm not in ("batch", "instance", "group", "none") or width <= 0:
            raise ValueError(
                f"UNet takes dims 2 or 3, depth 1 to 10, norm batch|instance|group|none and a width above 0, not {dims}, {depth}, "
                f"{norm} and {width}"
            )
        self.dims = dims
        self.stride = 2**depth
        self.margin = 0
        self.min_train_size = 2 * self.stride
        widths = [min(channels(64 * 2**level, width), max_width) for level in range(depth + 1)]
        inputs = [in_channels, *widths[:-1]]
        drops = [dropout if level >= depth - 1 else 0.0 for level in range(depth + 1)]
        self.encoder = nn.ModuleList(Stage(a, b, dims, norm, p) for a, b, p in zip(inputs, widths, drops, strict=True))
        self.pool = MaxPool3d() if dims == 3 else nn.MaxPool2d(2)
        transposed = nn.ConvTranspose3d if dims == 3 else nn.ConvTranspose2d
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (below, here) from the bottom up
        self.up = nn.ModuleList(transposed(below, here, 2, stride=2) for below, here in pairs)
        self.decoder = nn.ModuleList(Stage(2 * here, here, dims, norm, 0.0) for _, here in pairs)
        self.score = (nn.Conv3d if dims == 3 else nn.Conv2d)(widths[0], num_classes, 1)
        he_normal(self)

    def forward(self, image: Tensor) -> Tensor:
        """Maps an image [B, C, H, W] ([B, C, D, H, W] if `dims` is 3) to logits [B, num_classes, …] of the same size."""
        x = pad_to_multiple(image, self.stride)
        skips: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            x = stage(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, stage in zip(self.up, self.decoder, strict=True):
            x = stage(torch.cat([up(x), skips.pop()], dim=1))
        logits: Tensor = self.score(x)
        return crop_to(logits, image.shape[2:])
