"""Code as users write it: networks, losses, augmentations and layouts, right and almost right."""

import torch
from torch import Tensor, nn


class Tied(nn.Module):
    """A network with two layers of the same weights, and buffers that are views of one another."""

    def __init__(self, in_channels: int = 2, num_classes: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 4, 1)
        self.second = nn.Conv2d(4, 4, 1, bias=False)
        self.third = nn.Conv2d(4, 4, 1, bias=False)
        self.third.weight = self.second.weight
        self.score = nn.Conv2d(4, num_classes, 1)
        table = torch.arange(6.0)
        self.register_buffer("table", table)
        self.register_buffer("part", table[:3])

    def forward(self, image: Tensor) -> Tensor:
        return self.score(self.third(self.second(self.first(image)).relu()))
