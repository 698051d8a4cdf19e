"""GoogLeNet (Szegedy et al., CVPR 2015, arXiv 1409.4842, table 1), the main branch: nine Inception modules, no normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from voxtile.models.layers import channels
from voxtile.models.trunks.alexnet import LocalResponseNorm

# Channels of 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5 and pool_proj; None for a pooling.
MODULES: Mapping[str, Sequence[int] | None] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "pool3": None,
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "pool4": None,
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class Inception(nn.ModuleDict):
    """Four branches side by side: 1x1; 1x1 then 3x3; 1x1 then 5x5; a maximum over 3x3, then 1x1 (figure 2b of the paper).

    Attributes:
        outputs: channels of the result.
    """

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        one, reduce3, three, reduce5, five, proj = widths
        super().__init__(
            {
                "1x1": nn.Conv2d(inputs, one, 1),
                "3x3_reduce": nn.Conv2d(inputs, reduce3, 1),
                "3x3": nn.Conv2d(reduce3, three, 3, padding=1),
                "5x5_reduce": nn.Conv2d(inputs, reduce5, 1),
                "5x5": nn.Conv2d(reduce5, five, 5, padding=2),
                "pool_proj": nn.Conv2d(inputs, proj, 1),
            }
        )
        self.outputs = one + three + five + proj

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, h, w] to [B, outputs, h, w]."""
        one = self["1x1"](x).relu()
        three = self["3x3"](self["3x3_reduce"](x).relu()).relu()
        five = self["5x5"](self["5x5_reduce"](x).relu()).relu()
        proj = self["pool_proj"](torch.max_pool2d(x, 3, stride=1, padding=1)).relu()
        return torch.cat([one, three, five, proj], dim=1)


class GoogLeNet(nn.Module):
    """Everything up to the last Inception module: not the average pooling, the classifier and the two auxiliary classifiers.

    As in BVLC's network, with the padding of its first convolution left open. torchvision's network of this name has batch
    normalisation, and 3x3 kernels in place of the 5x5.

    Attributes:
        width: channels of the result.
    """

    def __init__(self, in_channels: int, width: float = 1.0, first_padding: int = 3) -> None:
        """Builds the trunk.

        Args:
            in_channels: channels of the image.
            width: factor on the paper's numbers of channels.
            first_padding: of conv1.
        """
        super().__init__()
        stem, reduced, inputs = (channels(paper, width) for paper in (64, 64, 192))
        self.conv1 = nn.Conv2d(in_channels, stem, 7, stride=2, padding=first_padding)
        self.conv2_reduce = nn.Conv2d(stem, reduced, 1)
        self.conv2 = nn.Conv2d(reduced, inputs, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm = LocalResponseNorm()
        for name, widths in MODULES.items():
            if widths is not None:
                module = Inception(inputs, [channels(paper, width) for paper in widths])
                self.add_module(f"inception_{name}", module)
                inputs = module.outputs
        self.width = inputs

    def forward(self, image: Tensor) -> Tensor:
        """Maps an image [B, C, H, W] to the result of the last module, 32 times smaller."""
        x: Tensor = self.norm(self.pool(self.conv1(image).relu()))
        x = self.norm(self.conv2(self.conv2_reduce(x).relu()).relu())
        x = self.pool(x)
        for name, widths in MODULES.items():
            x = self.pool(x) if widths is None else self.get_submodule(f"inception_{name}")(x)
        return x

    def layers(self) -> dict[str, nn.Module]:
        """The convolutions, by the names that BVLC gave them."""
        found: dict[str, nn.Module] = {"conv1/7x7_s2": self.conv1, "conv2/3x3_reduce": self.conv2_reduce, "conv2/3x3": self.conv2}
        for name, module in self.named_children():
            if isinstance(module, Inception):
                found |= {f"{name}/{branch}": layer for branch, layer in module.items()}
        return found
