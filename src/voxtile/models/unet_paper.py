"""U-Net as published (Ronneberger, Fischer, Brox, MICCAI 2015, arXiv 1505.04597), and as its authors released it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voxtile.models.layers import channels, he_normal
from voxtile.models.network import Network
from voxtile.models.sizes import centre, crop_to

LEVELS = 5


class UNetPaper(Network):
    """U-Net with convolutions that do not pad: a score is computed from pixels only, never from zeros.

    The scores of n pixels need the 92 pixels on each side of them (`margin`). Inside, a side must be 16·k + 60 pixels long, so that
    every pooling halves an even one: 572 gives 388. Windows whose sides leave 4 when divided by 16 (68, 100, 132, 260, 388) fit,
    and are exactly the paper's tiles (its figure 2). Others are filled up at the bottom and right with at most 15 mirrored rows and
    columns; the last (side - 4) mod 16 rows and columns of their scores see them, the others do not.

    What the poolings see depends on where a window begins, modulo 16 pixels: fitting windows that begin multiples of 16 apart give
    the scores of one pass over the whole image; tiles of 388 laid edge to edge, 4 more than a multiple, do not quite.

    Layers have the names of the authors' release: down and up, the level, and which feature map is made from which.
    """

    stride = 16
    margin = 92
    min_train_size = 1

    def __init__(self, in_channels: int, num_classes: int, width: float = 1.0, release: bool = False, dropout: float = 0.5) -> None:
        """Builds the network, with the paper's first weights.

        Args:
            in_channels: channels of the image; the paper has 1.
            num_classes: score maps.
            width: factor on the paper's numbers of channels, 64 to 1024.
            release: as in the authors' release of 2015: a ReLU after each up-convolution, and twice as many channels from the last.
            dropout: probability that a value at the end of the contracting path (levels 512 and 1024) is dropped.

        Raises:
            ValueError: `width` or `dropout` is out of range.
        """
        super().__init__()
        if width <= 0 or not 0 <= dropout < 1:
            raise ValueError(f"UNetPaper takes a width above 0 and a dropout from 0 to below 1, not {width} and {dropout}")
        self.release = release
        self.dropout = nn.Dropout(dropout)
        widths = [channels(64 * 2**level, width) for level in range(LEVELS)]
        for level, (inputs, outputs) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            self.add_module(f"conv_d{level}a_b", nn.Conv2d(inputs, outputs, 3))
            self.add_module(f"conv_d{level}b_c", nn.Conv2d(outputs, outputs, 3))
        for level in reversed(range(LEVELS - 1)):
            below, here = widths[level + 1], widths[level]
            risen = below if release and level == 0 else here
            self.add_module(f"upconv_u{level}a", nn.ConvTranspose2d(below, risen, 2, stride=2))
            self.add_module(f"conv_u{level}b_c", nn.Conv2d(risen + here, here, 3))
            self.add_module(f"conv_u{level}c_d", nn.Conv2d(here, here, 3))
        self.conv_u0d_score = nn.Conv2d(widths[0], num_classes, 1)
        he_normal(self)

    def forward(self, image: Tensor, context: int = 0) -> Tensor:
        """Scores every pixel of an image, or all but a border of it.

        Args:
            image: [B, C, H, W].
            context: by how many pixels the image is larger than what is asked for, on each side: `margin`, or 0 for a bare image,
                which is mirrored at its borders (edge pixels are not repeated) as often as needed.

        Returns:
            Logits [B, num_classes, H - 2·context, W - 2·context].

        Raises:
            ValueError: `context` is another number, or leaves no pixel.
        """
        if context not in (0, self.margin):
            raise ValueError(f"UNetPaper takes a context of 0 or {self.margin} pixels, not {context}")
        size = [side - 2 * context for side in image.shape[2:]]
        if min(size) < 1:
            raise ValueError(
                f"An image of {tuple(image.shape[2:])} pixels (H, W) is all context: with {context} pixels on each side UNetPaper "
                f"takes sides of {2 * context + 1} and more"
            )
        x, missing = image, self.margin - context
        for axis, side in enumerate(size, start=2):
            x = _mirrored(x, axis, missing, missing + (4 - side) % self.stride)
        return crop_to(self._scores(x), size)

    def _scores(self, x: Tensor) -> Tensor:
        """Maps [B, C, 16·k + 60, …] to logits [B, num_classes, 16·k - 124, …]."""
        skips: list[Tensor] = []
        for level in range(LEVELS):
            if level:
                x = torch.max_pool2d(x, 2)
            x = self._layer(f"conv_d{level}a_b", x).relu()
            x = self._layer(f"conv_d{level}b_c", x).relu()
            if level >= LEVELS - 2:
                x = self.dropout(x)
            skips.append(x)
        skips.pop()
        for level in reversed(range(LEVELS - 1)):
            x = self._layer(f"upconv_u{level}a", x)
            if self.release:
                x = x.relu()
            x = torch.cat([x, centre(skips.pop(), x.shape[2:])], dim=1)
            x = self._layer(f"conv_u{level}b_c", x).relu()
            x = self._layer(f"conv_u{level}c_d", x).relu()
        return self._layer("conv_u0d_score", x)

    def _layer(self, name: str, x: Tensor) -> Tensor:
        result: Tensor = self.get_submodule(name)(x)
        return result


def _mirrored(image: Tensor, axis: int, before: int, after: int) -> Tensor:
    """The image with `before` and `after` pixels more along an axis, mirrored as often as needed without repeating the edge.

    A side of one pixel is repeated. PyTorch's own reflection takes no more pixels than the image has. What readers mirror past a
    case's border (`voxtile.cases.case`) is the same, in NumPy.
    """
    if not before and not after:
        return image
    side = image.shape[axis]
    period = max(2 * (side - 1), 1)  # 0 1 2 3 2 1 | 0 1 2 …
    folded = torch.arange(-before, side + after, device=image.device) % period
    return image.index_select(axis, torch.minimum(folded, period - folded))
