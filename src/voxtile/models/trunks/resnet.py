"""ResNet-50, 101 and 152 (He, Zhang, Ren, Sun, CVPR 2016, arXiv 1512.03385), with dilation in place of the last strides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from voxtile.models.layers import channels

BLOCKS: Mapping[int, tuple[int, ...]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
OUTPUT_STRIDES = (8, 16, 32)
StrideOn = Literal["1x1", "3x3"]


class FrozenNorm(nn.Module):
    """Batch normalisation with fixed statistics, scale and shift, in training too.

    Not a kind of BatchNorm2d, so that nothing that looks for one (conversion to synchronised statistics, a fresh estimate of
    them) takes it for one that learns; its tensors have the same names, so that weights go from one to the other.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, image: Tensor) -> Tensor:
        """(x - mean) / sqrt(variance + eps) · weight + bias, per channel of [B, C, H, W]."""
        return functional.batch_norm(image, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions (branch2a to c) beside the identity, or beside a 1x1 convolution (branch1)."""

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        stride: int,
        dilation: int,
        project: bool,
        stride_on: StrideOn,
        norm: type[nn.Module],
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
        self.branch2a = nn.Conv2d(inputs, middle, 1, first, bias=False)
        self.bn2a = norm(middle)
        self.branch2b = nn.Conv2d(middle, middle, 3, second, padding=dilation, dilation=dilation, bias=False)
        self.bn2b = norm(middle)
        self.branch2c = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn2c = norm(outputs)
        self.branch1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if project else None
        self.bn1 = norm(outputs) if project else None

    def forward(self, image: Tensor) -> Tensor:
        """Maps [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        x = self.bn2a(self.branch2a(image)).relu()
        x = self.bn2b(self.branch2b(x)).relu()
        x = self.bn2c(self.branch2c(x))
        if self.branch1 is not None and self.bn1 is not None:
            image = self.bn1(self.branch1(image))
        return torch.relu(image + x)


class ResNet(nn.Module):
    """conv1, pool1 and the stages res2 to res5 of bottlenecks, as the authors released them.

    Two things differ from torchvision's: a halving stage strides in its first 1x1 convolution (`stride_on`), and pool1 rounds
    its size up. The authors' ResNet-50 alone has a bias in conv1; here (as in torchvision's) it has none, and 64 parameters less,
    since the mean that is subtracted after it can hold it.

    Attributes:
        widths: channels of the results of res2 to res5.
    """

    def __init__(
        self,
        in_channels: int,
        depth: int = 101,
        width: float = 1.0,
        output_stride: int = 8,
        stride_on: StrideOn = "1x1",
        frozen_norm: bool = False,
    ) -> None:
        """Builds the trunk.

        Args:
            in_channels: channels of the image.
            depth: 50, 101 or 152.
            width: factor on the paper's numbers of channels.
            output_stride: by how much the result is smaller than the image: 32 as in the paper; with 16 res5, with 8 also res4 does
                not stride, and their 3x3 convolutions are dilated instead.
            stride_on: the convolution of a halving block that strides, "1x1" (the authors') or "3x3" (torchvision's).
            frozen_norm: whether batch normalisation keeps its statistics, scale and shift.

        Raises:
            ValueError: `depth`, `output_stride` or `stride_on` is none of these.
        """
        super().__init__()
        if depth not in BLOCKS or output_stride not in OUTPUT_STRIDES or stride_on not in ("1x1", "3x3"):
            raise ValueError(
                f"ResNet takes depth 50, 101 or 152, output_stride 8, 16 or 32 and stride_on '1x1' or '3x3', not {depth}, "
                f"{output_stride} and '{stride_on}'"
            )
        norm = FrozenNorm if frozen_norm else nn.BatchNorm2d
        inputs = channels(64, width)
        self.conv1 = nn.Conv2d(in_channels, inputs, 7, 2, padding=3, bias=False)
        self.bn_conv1 = norm(inputs)
        self.pool1 = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self._stages: list[list[str]] = []
        self.widths = tuple(channels(256 * 2**level, width) for level in range(4))
        reached, dilation = 4, 1
        for level, blocks in enumerate(BLOCKS[depth]):
            stride = 1 if level == 0 or reached == output_stride else 2
            if level and stride == 1:
                dilation *= 2
            reached *= stride
            names = [f"res{level + 2}_{number}" for number in range(blocks)]
            for name in names:
                first = name == names[0]
                middle = channels(64 * 2**level, width)
                self.add_module(
                    name,
                    Bottleneck(inputs, middle, self.widths[level], stride if first else 1, dilation, first, stride_on, norm),
                )
                inputs = self.widths[level]
            self._stages.append(names)

    def layers(self) -> dict[str, nn.Module]:
        """Everything with weights by its name, conv1 first."""
        kinds = (nn.Conv2d, nn.BatchNorm2d, FrozenNorm)
        return {name: layer for name, layer in self.named_modules() if isinstance(layer, kinds)}

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps an image [B, C, H, W] to the results of res2 to res5."""
        x = self.pool1(self.bn_conv1(self.conv1(image)).relu())
        found = []
        for names in self._stages:
            for name in names:
                x = self.get_submodule(name)(x)
            found.append(x)
        return found
