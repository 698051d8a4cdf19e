"""AlexNet (Krizhevsky, Sutskever, Hinton, NIPS 2012) as Caffe's reference network has it: five convolutions in two towers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from voxtile.models.layers import channels


class LocalResponseNorm(nn.Module):
    """Divides by (1 + 1e-4 / 5 · Σ x²)^0.75, the sum over five neighbouring channels (Krizhevsky et al., section 3.3, k = 1).

    The same as `nn.LocalResponseNorm(5)`, whose averages over three axes have no deterministic gradient on CUDA, and on the CPU no
    bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises [B, C, h, w]."""
        squares = x.pow(2).flatten(2)[:, None]  # [B, 1, C, h · w]: the channels become an axis to average along
        means = functional.avg_pool2d(squares, (5, 1), stride=1, padding=(2, 0))  # beyond the first and the last: zeros
        return x / (1 + 1e-4 * means).pow(0.75).view_as(x)


class AlexNet(nn.Module):
    """The convolutions conv1 … conv5, each with a ReLU; a pooling after the first, the second and the last.

    The first two poolings are followed by the normalisation (in the paper and in BVLC's AlexNet it precedes them). conv2, conv4
    and conv5 see half of the channels with each half of their kernels, as on the two graphics cards of the paper. torchvision's
    network of this name has one tower and no normalisation.

    Attributes:
        width: channels of the result.
    """

    def __init__(self, in_channels: int, width: float = 1.0, first_padding: int = 0) -> None:
        """Builds the trunk.

        Args:
            in_channels: channels of the image.
            width: factor on the paper's numbers of channels; both towers stay alike.
            first_padding: of conv1.
        """
        super().__init__()
        first, second, third, fourth, last = (2 * channels(paper // 2, width) for paper in (96, 256, 384, 384, 256))
        self.conv1 = nn.Conv2d(in_channels, first, 11, stride=4, padding=first_padding)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        self.conv4 = nn.Conv2d(third, fourth, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(fourth, last, 3, padding=1, groups=2)
        self.width = last
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm = LocalResponseNorm()

    def forward(self, image: Tensor) -> Tensor:
        """Maps an image [B, C, H, W] to the pooled result of conv5, 32 times smaller."""
        x = self.norm(self.pool(self.conv1(image).relu()))
        x = self.norm(self.pool(self.conv2(x).relu()))
        x = self.conv4(self.conv3(x).relu()).relu()
        pooled: Tensor = self.pool(self.conv5(x).relu())
        return pooled
