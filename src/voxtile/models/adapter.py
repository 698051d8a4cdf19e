"""Networks of other zoos, made to fit: they take sizes that they can halve evenly, ours take any."""

from __future__ import annotations

from torch import Tensor, nn

from voxtile.models.network import Network
from voxtile.models.sizes import crop_to, pad_to_multiple


class Padded(Network):
    """Pads an image to a multiple of `stride`, and crops the logits back to its size.

    Attributes:
        stride: 32, five halvings, which is as many as the usual networks have.
        margin: real context wanted around a window, in pixels: 0.
        min_train_size: smallest image side in training: the network sees no less than `stride` anyway.
        dims: 2 for images [B, C, H, W], 3 for [B, C, D, H, W].
    """

    stride = 32
    margin = 0
    min_train_size = 1

    def __init__(self, network: nn.Module, dims: int) -> None:
        super().__init__()
        self.network, self.dims = network, dims

    def forward(self, image: Tensor) -> Tensor:
        """Maps an image [B, C, H, W] ([B, C, D, H, W] if `dims` is 3) to logits [B, num_classes, …] of the same size."""
        logits: Tensor = self.network(pad_to_multiple(image, self.stride))
        return crop_to(logits, image.shape[2:])
