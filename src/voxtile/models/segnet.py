"""SegNet and SegNet-Basic (Badrinarayanan, Kendall, Cipolla, PAMI 2017, arXiv 1511.00561), also Bayesian (arXiv 1511.02680).

The decoder gets no features from the encoder but where each pooled maximum came from. Layers and their names are those of the
authors' release, the definitions in SegNet-Tutorial with the layers of caffe-segnet.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from voxtile.models.layers import channels, he_normal, unpool
from voxtile.models.network import Network
from voxtile.models.trunks.alexnet import LocalResponseNorm
from voxtile.models.trunks.vgg16 import BLOCKS
from voxtile.models.weights import transplant

FIRST_DROPOUT = 3  # the level from which on the Bayesian networks have dropout, in encoder and decoder alike


class _IndexUnpooling(Network):
    """Levels of convolutions and pooling down, and the same levels up, each un-pooled by the indices of its own pooling.

    Subclasses add their layers by `_convolve` and list them level by level, the finest first.
    """

    def __init__(self, in_channels: int, num_classes: int, width: float, dropout: float) -> None:
        super().__init__()
        if in_channels < 1 or num_classes < 1 or width <= 0 or not 0 <= dropout < 1:
            raise ValueError(
                f"{type(self).__name__} takes in_channels and num_classes from 1, width above 0 and dropout from 0 to below 1, not "
                f"{in_channels}, {num_classes}, {width} and {dropout}"
            )
        self.stochastic = dropout > 0
        self._down: list[list[str]] = []
        self._up: list[list[str]] = []
        self._dropout = dropout

    def _convolve(self, name: str, inputs: int, outputs: int, kernel: int, bias: bool = True, normed: bool = True) -> str:
        """Adds a convolution that keeps the size, and its normalisation; returns its name."""
        self.add_module(name, nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))
        if normed:
            norm = nn.BatchNorm2d(outputs, eps=1e-9)
            nn.init.constant_(norm.bias, 0.001)
            self.add_module(f"{name}_bn", norm)
        return name

    def _finish(self) -> None:
        """What is left to build when the layers are listed."""
        if self._dropout:
            for number in range(FIRST_DROPOUT, len(self._down) + 1):
                self.add_module(f"encdrop{number}", nn.Dropout(self._dropout))
                self.add_module(f"decdrop{number}", nn.Dropout(self._dropout))
        he_normal(self)

    def _dropped(self, name: str, x: Tensor) -> Tensor:
        return self.get_submodule(name)(x) if name in self._modules else x

    def _block(self, names: list[str], x: Tensor, rectify: bool) -> Tensor:
        """Convolutions, each with its normalisation and, if `rectify`, a ReLU; a layer without normalisation has neither."""
        for name in names:
            x = self.get_submodule(name)(x)
            if f"{name}_bn" in self._modules:
                x = self.get_submodule(f"{name}_bn")(x)
                x = x.relu_() if rectify else x
        return x

    def _features(self, x: Tensor, rectify_up: bool) -> Tensor:
        """Maps [B, C, H, W] to what the finest level of the decoder gives, [B, C', H, W]."""
        pooled = []
        for number, names in enumerate(self._down, start=1):
            x = self._block(names, x, rectify=True)
            size = x.shape[2:]
            # Caffe pools what is left at an odd border too.
            x, indices = functional.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
            pooled.append((indices, size))
            x = self._dropped(f"encdrop{number}", x)
        for number in range(len(self._up), 0, -1):
            x = unpool(x, *pooled.pop())
            x = self._block(self._up[number - 1], x, rectify=rectify_up)
            x = self._dropped(f"decdrop{number}", x)
        return x


class SegNet(_IndexUnpooling):
    """SegNet: VGG16's thirteen 3x3 convolutions and their mirror image, each with batch normalisation and ReLU but for the last.

    The last convolution, conv1_1_D, is the classifier.

    Attributes:
        stride: of pool5.
        min_train_size: two pixels at conv5's level, 1/16 of the image, so that batch statistics exist for one image.
        stochastic: with dropout: Bayesian SegNet.
    """

    stride = 32
    min_train_size = 17

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: float = 1.0,
        dropout: float = 0.0,
        weights: str | None = None,
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the image.
            num_classes: score maps.
            width: factor on the paper's numbers of channels.
            dropout: probability after pool3, pool4 and pool5, and at the end of the decoder's levels 5, 4 and 3. Bayesian SegNet
                has 0.5 and averages over samples drawn with dropout left on; 0 is SegNet.
            weights: of the encoder's convolutions, see `transplant`: "imagenet" for VGG16's, or a file.

        Raises:
            ValueError: A number is out of range.
            ConfigError: The weights cannot be had or do not fit.
        """
        super().__init__(in_channels, num_classes, width, dropout)
        inputs = in_channels
        for number, block in enumerate(BLOCKS, start=1):
            names = []
            for i, paper in enumerate(block, start=1):
                names.append(self._convolve(f"conv{number}_{i}", inputs, channels(paper, width), 3))
                inputs = channels(paper, width)
            self._down.append(names)
        finer = [num_classes, *(channels(block[-1], width) for block in BLOCKS[:-1])]
        for number in range(len(BLOCKS), 0, -1):
            names, count = [], len(BLOCKS[number - 1])
            # The last convolution of a level goes over to the channels of the next.
            for i, outputs in zip(range(count, 0, -1), [*[inputs] * (count - 1), finer[number - 1]], strict=True):
                names.append(self._convolve(f"conv{number}_{i}_D", inputs, outputs, 3, normed=(number, i) != (1, 1)))
                inputs = outputs
            self._up.insert(0, names)
        self._finish()
        transplant({name: self.get_submodule(name) for names in self._down for name in names}, weights, "vgg16")

    def forward(self, image: Tensor) -> Tensor:
        """Maps an image [B, C, H, W] to logits [B, num_classes, H, W]."""
        return self._features(image, rectify_up=True)


class SegNetBasic(_IndexUnpooling):
    """SegNet-Basic: four 7x7 convolutions down and four up on an image with local response normalisation, then a 1x1 classifier.

    The decoder has batch normalisation but no ReLU.

    Attributes:
        stride: of pool4.
        min_train_size: two pixels at conv4's level, 1/8 of the image, so that batch statistics exist for one image.
        stochastic: with dropout: Bayesian SegNet-Basic.
    """

    stride = 16
    min_train_size = 9

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: float = 1.0,
        bias: bool = True,
        dropout: float = 0.0,
        weights: str | None = None,
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the image.
            num_classes: score maps.
            width: factor on the paper's 64 channels.
            bias: of the 7x7 convolutions, as the release has them; without, as the paper's text has it.
            dropout: probability after pool3 and pool4, and at the end of the decoder's levels 4 and 3. Bayesian SegNet-Basic has
                0.5 and averages over samples drawn with dropout left on; 0 is SegNet-Basic.
            weights: a file with all layers but the classifier, see `transplant`. There are none of ImageNet.

        Raises:
            ValueError: A number is out of range.
            ConfigError: The weights cannot be had or do not fit.
        """
        super().__init__(in_channels, num_classes, width, dropout)
        features = channels(64, width)
        for number, (inputs, outputs) in enumerate(pairwise([in_channels, *[features] * 4]), start=1):
            self._down.append([self._convolve(f"conv{number}", inputs, outputs, 7, bias)])
        for number in range(4, 0, -1):
            self._up.insert(0, [self._convolve(f"conv_decode{number}", features, features, 7, bias)])
        self.norm = LocalResponseNorm()
        self.conv_classifier = nn.Conv2d(features, num_classes, 1)
        self._finish()
        layers = {name: layer for name, layer in self.named_children() if name.startswith("conv") and name != "conv_classifier"}
        transplant(layers, weights, "segnet_basic")

    def forward(self, image: Tensor) -> Tensor:
        """Maps an image [B, C, H, W] to logits [B, num_classes, H, W]."""
        logits: Tensor = self.conv_classifier(self._features(self.norm(image), rectify_up=False))
        return logits
