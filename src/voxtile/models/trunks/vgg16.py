"""VGG16 (Simonyan, Zisserman, ICLR 2015, arXiv 1409.1556, configuration D): thirteen 3x3 convolutions in five blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from voxtile.models.layers import channels

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """The convolutions conv1_1 … conv5_3, each with a ReLU, and a pooling after each block.

    Attributes:
        widths: channels of each block's result.
    """

    def __init__(
        self,
        in_channels: int,
        width: float = 1.0,
        pools: Sequence[nn.Module | None] = (None,) * 5,
        dilations: Sequence[int] = (1, 1, 1, 1, 1),
        first_padding: int = 1,
    ) -> None:
        """Builds as many blocks as `pools` has entries.

        Args:
            in_channels: channels of the image.
            width: factor on the paper's numbers of channels.
            pools: what follows each block, None for nothing.
            dilations: of each block's convolutions; they pad by as much.
            first_padding: of conv1_1.
        """
        super().__init__()
        self.widths = tuple(channels(block[-1], width) for block in BLOCKS[: len(pools)])
        self._names: list[list[str]] = []
        inputs = in_channels
        for number, (block, dilation) in enumerate(zip(BLOCKS[: len(pools)], dilations, strict=False), start=1):
            names = [f"conv{number}_{i + 1}" for i in range(len(block))]
            for name, outputs in zip(names, block, strict=True):
                padding = first_padding if name == "conv1_1" else dilation
                self.add_module(name, nn.Conv2d(inputs, channels(outputs, width), 3, padding=padding, dilation=dilation))
                inputs = channels(outputs, width)
            self._names.append(names)
        self.pools = nn.ModuleList(nn.Identity() if pool is None else pool for pool in pools)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps an image [B, C, H, W] to the result of each block, after its pooling."""
        found = []
        x = image
        for names, pool in zip(self._names, self.pools, strict=True):
            for name in names:
                x = self.get_submodule(name)(x).relu()
            x = pool(x)
            found.append(x)
        return found
