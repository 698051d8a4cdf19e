"""Fully convolutional networks (Long, Shelhamer, Darrell, CVPR 2015, arXiv 1411.4038; PAMI 2017, arXiv 1605.06211).

Layers and numbers are those of the authors' released networks (fcn.berkeleyvision.org). Their up-sampling layers hold a dense
kernel of classes times classes that is zero off the diagonal and doesn't learn; here it is one kernel per class, which gives the
same logits. Where it learns (`learn_upsampling`) it is dense here too.

Where a score lies in the image follows from the layers before it (Caffe's rule of coordinates): cell i of a convolution or
pooling with kernel k, stride s and padding p is centred on cell s·i + (k - 1)/2 - p of its input, and cell i of a transposed
convolution's input on cell s·i + (k - 1)/2 of its result. Each crop below starts where the two maps that it aligns agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from voxtile.models.layers import BilinearUpsample, channels, he_normal
from voxtile.models.network import Network
from voxtile.models.trunks.alexnet import AlexNet
from voxtile.models.trunks.googlenet import GoogLeNet
from voxtile.models.trunks.vgg16 import VGG16
from voxtile.models.weights import transplant


def crop(scores: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """The part of [B, K, h, w] of `size` that starts at (offset, offset)."""
    return scores.narrow(2, offset, size[0]).narrow(3, offset, size[1])


def scaled(x: Tensor, factor: float) -> Tensor:
    """A map times a fixed factor."""
    return x if factor == 1 else x * factor


def start(
    network: nn.Module, scores: Iterable[nn.Conv2d], trained: Mapping[str, nn.Module], weights: str | None, trunk: str
) -> None:
    """First weights: zeros in the layers `scores`, as in the paper; `weights`, or else He et al.'s, in the others."""
    he_normal(network)
    for layer in scores:
        nn.init.zeros_(layer.weight)
    transplant(trained, weights, trunk)


class FCN(Network):
    """FCN-32s, FCN-16s and FCN-8s: VGG16 made convolutional, scores at 1/32, 1/16 and 1/8 of the image's size added up.

    conv1_1 pads the image by 100 zeros, so that an image of any size has a score, and real context is neither needed nor wanted.
    Nets of other strides give their common layers the same names, so that a finer one can start from a coarser one,
    as in the paper.
    """

    stride = 32

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        stride: int = 8,
        scale4: float = 1.0,
        scale3: float = 1.0,
        learn_upsampling: bool = False,
        width: float = 1.0,
        weights: str | None = None,
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the image.
            num_classes: score maps.
            stride: of the finest scores: 32, 16 (pool4's too) or 8 (pool3's too). The attribute `stride` is another one: of the
                coarsest feature map, always 32.
            scale4: what pool4 is multiplied by before it is scored: 0.01 in the net that is trained at once (PAMI 2017).
            scale3: likewise for pool3: 0.0001.
            learn_upsampling: whether the up-samplings by 2, if there are any, learn, as the text of CVPR 2015 has it, from each
                class to each; the release fixes them. The last one stays fixed.
            width: factor on the paper's numbers of channels.
            weights: for the layers up to fc7, see `voxtile.models.weights.transplant`.

        Raises:
            ValueError: `stride` is another number.
            ConfigError: `weights` cannot be had or do not fit.
        """
        super().__init__()
        if stride not in (32, 16, 8):
            raise ValueError(f"FCN takes stride 32, 16 or 8, not {stride}")
        self.finest, self.scale4, self.scale3 = stride, scale4, scale3
        pools = [nn.MaxPool2d(2, ceil_mode=True) for _ in range(5)]
        self.trunk = VGG16(in_channels, width, pools, first_padding=100)
        hidden = channels(4096, width)
        self.fc6 = nn.Conv2d(self.trunk.widths[4], hidden, 7)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.drop = nn.Dropout(0.5)
        self.score_fr = nn.Conv2d(hidden, num_classes, 1)
        scores = [self.score_fr]
        if stride == 32:
            self.upscore = BilinearUpsample(num_classes, 64, 32)
        if stride <= 16:
            self.upscore2 = BilinearUpsample(num_classes, 4, 2, learn_upsampling)
            self.score_pool4 = nn.Conv2d(self.trunk.widths[3], num_classes, 1)
            scores.append(self.score_pool4)
        if stride == 16:
            self.upscore16 = BilinearUpsample(num_classes, 32, 16)
        if stride == 8:
            self.upscore_pool4 = BilinearUpsample(num_classes, 4, 2, learn_upsampling)
            self.score_pool3 = nn.Conv2d(self.trunk.widths[2], num_classes, 1)
            scores.append(self.score_pool3)
            self.upscore8 = BilinearUpsample(num_classes, 16, 8)

        convolutions = {name: layer for name, layer in self.trunk.named_children() if name.startswith("conv")}
        start(self, scores, convolutions | {"fc6": self.fc6, "fc7": self.fc7}, weights, "vgg16")

    def forward(self, image: Tensor) -> Tensor:
        """Maps an image [B, C, H, W] to logits [B, num_classes, H, W]."""
        _, _, pool3, pool4, pool5 = self.trunk(image)
        x = self.drop(self.fc6(pool5).relu())
        x = self.drop(self.fc7(x).relu())
        scores = self.score_fr(x)
        if self.finest == 32:
            return crop(self.upscore(scores), 19, image.shape[2:])
        scores = self.upscore2(scores)
        scores = scores + crop(self.score_pool4(scaled(pool4, self.scale4)), 5, scores.shape[2:])
        if self.finest == 16:
            return crop(self.upscore16(scores), 27, image.shape[2:])
        scores = self.upscore_pool4(scores)
        scores = scores + crop(self.score_pool3(scaled(pool3, self.scale3)), 9, scores.shape[2:])
        return crop(self.upscore8(scores), 31, image.shape[2:])


class FCNAlexNet(Network):
    """FCN-AlexNet: Caffe's reference AlexNet made convolutional, scores at 1/32 of the image's size up-sampled at once."""

    stride = 32

    def __init__(self, in_channels: int, num_classes: int, width: float = 1.0, weights: str | None = None) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the image.
            num_classes: score maps.
            width: factor on the paper's numbers of channels.
            weights: for the layers up to fc7: a file of CaffeNet's, see `voxtile.models.weights.transplant`.

        Raises:
            ConfigError: `weights` cannot be had or do not fit.
        """
        super().__init__()
        self.trunk = AlexNet(in_channels, width, first_padding=100)
        hidden = channels(4096, width)
        self.fc6 = nn.Conv2d(self.trunk.width, hidden, 6)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.drop = nn.Dropout(0.5)
        self.score_fr = nn.Conv2d(hidden, num_classes, 1)
        # An odd kernel, since the centre of a score lies on a pixel here and not between two.
        self.upscore = BilinearUpsample(num_classes, 63, 32)

        convolutions = {name: layer for name, layer in self.trunk.named_children() if name.startswith("conv")}
        start(self, [self.score_fr], convolutions | {"fc6": self.fc6, "fc7": self.fc7}, weights, "alexnet")

    def forward(self, image: Tensor) -> Tensor:
        """Maps an image [B, C, H, W] to logits [B, num_classes, H, W]."""
        x = self.drop(self.fc6(self.trunk(image)).relu())
        x = self.drop(self.fc7(x).relu())
        return crop(self.upscore(self.score_fr(x)), 18, image.shape[2:])


class FCNGoogLeNet(Network):
    """FCN-GoogLeNet: GoogLeNet's main branch without its average pooling, a score layer, one up-sampling by 32.

    The authors published no such network, so padding and crop are derived here. With conv1 padding by p, score i is centred on
    pixel 32i + 33 - p, thus on a pixel, which asks for an odd up-sampling kernel, 63; that puts score i on pixel 32i + 31 of
    its result, so the crop starts at p - 2. An image of n pixels gets floor((n + 2p - 5) / 32) scores. p = 34 is the
    smallest padding with which every pixel of every image lies between two scores (pixel -1 has the first one): nothing fades
    out towards the border. GoogLeNet's own p = 3 gives small images no score at all.
    """

    stride = 32

    def __init__(self, in_channels: int, num_classes: int, width: float = 1.0, weights: str | None = None) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the image.
            num_classes: score maps.
            width: factor on the paper's numbers of channels.
            weights: for the trunk: a file of BVLC's GoogLeNet, see `voxtile.models.weights.transplant`.

        Raises:
            ConfigError: `weights` cannot be had or do not fit.
        """
        super().__init__()
        self.trunk = GoogLeNet(in_channels, width, first_padding=34)
        self.drop = nn.Dropout(0.4)  # as before GoogLeNet's classifier
        self.score_fr = nn.Conv2d(self.trunk.width, num_classes, 1)
        self.upscore = BilinearUpsample(num_classes, 63, 32)
        start(self, [self.score_fr], self.trunk.layers(), weights, "googlenet")

    def forward(self, image: Tensor) -> Tensor:
        """Maps an image [B, C, H, W] to logits [B, num_classes, H, W]."""
        scores = self.score_fr(self.drop(self.trunk(image)))
        return crop(self.upscore(scores), 32, image.shape[2:])
