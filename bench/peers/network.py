"""The small network that bench/predicting.py applies in every way: three convolutions, 4 bands to 5 classes."""

import torch
from torch import Tensor, nn

CLASSES = 5
MEAN, STD = 2000.0, 1000.0
WINDOW, BATCH, THREADS = 256, 8, 2


class Small(nn.Sequential):
    """[B, 4, H, W] to logits [B, 5, H, W]; the same weights each time."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, CLASSES, 3, padding=1),
        )  # fmt: skip


def network() -> Small:
    """It, ready to predict on both cores."""
    torch.set_num_threads(THREADS)
    return Small().eval()


def normalised(image: Tensor) -> Tensor:
    """What the network sees of pixels as they are stored."""
    return (image.float() - MEAN) / STD


def classes(logits: Tensor) -> Tensor:
    """[B, H, W], uint8. Several times faster than argmax over a strided axis."""
    return logits.max(dim=1).indices.to(torch.uint8)
