"""DeepLab v1 (Chen et al., ICLR 2015, arXiv 1412.7062) and v2 (Chen et al., PAMI 2017, arXiv 1606.00915), without the dense CRF.

Scores stand on a map of 1/8 of the image's size, whose places are the pixels 0, 8, 16, … exactly. That needs sides of 8k + 1
pixels (the papers' 321 and 513), so other images are padded with zeros at the bottom and on the right: images are normalised, so
zero is their mean. In training the map itself is judged, by the labels of those pixels; in evaluation it is interpolated linearly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from voxtile.errors import ConfigError
from voxtile.models.layers import channels, he_normal, normal, resize_bilinear
from voxtile.models.network import Network, Output, ScoreMap, sampled
from voxtile.models.sizes import crop_to
from voxtile.models.trunks.resnet import ResNet, StrideOn
from voxtile.models.trunks.vgg16 import VGG16
from voxtile.models.weights import transplant

STRIDE = 8
ASPP_L = (6, 12, 18, 24)


class DeepLab(Network, ABC):
    """What the DeepLabs have in common: padding, the judged places, interpolation.

    Attributes:
        stride: by how much the score map is smaller than the image, 8.
        unit: the image is padded to a multiple of it plus 1.
        full_size_loss: whether training judges the interpolated logits too, instead of the maps.
    """

    stride = STRIDE
    unit = STRIDE
    full_size_loss = False

    @abstractmethod
    def scores(self, image: Tensor) -> list[tuple[Tensor, float]]:
        """The score maps of a padded image, each with its stride in pixels of the image; the last is the one that counts."""

    def logits(self, image: Tensor) -> Tensor:
        """The logits of a padded image, at its size."""
        return resize_bilinear(self.scores(image)[-1][0], image.shape[2:])

    def forward(self, image: Tensor) -> Tensor | Output:
        """Maps an image [B, C, H, W] to logits [B, num_classes, H, W]; in training to score maps of 1/8 of its size."""
        size = image.shape[2:]
        down, right = ((1 - side) % self.unit for side in size)
        padded = functional.pad(image, (0, right, 0, down)) if right or down else image
        if not self.training or self.full_size_loss:
            return crop_to(self.logits(padded), size)
        maps = []
        for scores, stride in self.scores(padded):
            rows, columns = (sampled(n, stride, side, image.device) for n, side in zip(scores.shape[2:], size, strict=True))
            maps.append(ScoreMap(scores, rows, columns))
        return Output(maps)


def _trunk(in_channels: int, width: float) -> VGG16:
    """VGG16 with 3x3 poolings; the last two do not stride and conv5's filters are spread instead (v1, section 3.1)."""
    pools = [nn.MaxPool2d(3, stride, padding=1, ceil_mode=True) for stride in (2, 2, 2, 1, 1)]
    return VGG16(in_channels, width, pools, dilations=(1, 1, 1, 1, 2))


def _transplant_vgg16(trunk: VGG16, branches: Mapping[str, tuple[nn.Conv2d, nn.Conv2d]], weights: str | None) -> None:
    """Puts weights into VGG16's convolutions and into pairs (fc6, fc7).

    A file with these very layers (the authors' converted weights) is taken as it is. Where it holds VGG16's whole fc6
    (4096x512x7x7) and fc7, as ImageNet's weights do, they are thinned out: of fc6's 7x7 taps those at even distances are kept
    (0, 3, 6 for 3x3, the middle one for 1x1), and of the 4096 filters every fourth for a layer of 1024. The paper draws a random
    subset; this one is fixed. Of several branches, the second begins with the second filter, and so on.

    Args:
        trunk: the convolutions.
        branches: (fc6, fc7) by what follows their names: "" or "_1".
        weights: see `transplant`.

    Raises:
        ConfigError: See `transplant`.
    """
    convolutions = {name: layer for name, layer in trunk.named_children() if isinstance(layer, nn.Conv2d)}
    if weights is None or trunk.get_submodule("conv1_1").weight.is_meta:
        return
    if weights != "imagenet":
        own = {
            f"{name}{suffix}": layer for suffix, pair in branches.items() for name, layer in zip(("fc6", "fc7"), pair, strict=True)
        }
        try:
            transplant(own, weights, "DeepLab")
        except ConfigError:
            pass  # the file is unreadable, which is said below, or holds the whole layers
        else:
            transplant(convolutions, weights, "vgg16")
            return
    # Not initialised, since all of it is overwritten.
    whole6 = nn.Conv2d(512, 4096, 7, device="meta").to_empty(device="cpu")
    whole7 = nn.Conv2d(4096, 4096, 1, device="meta").to_empty(device="cpu")
    transplant(convolutions | {"fc6": whole6, "fc7": whole7}, weights, "vgg16")
    with torch.no_grad():
        for number, (fc6, fc7) in enumerate(branches.values()):
            step = 4096 // fc6.out_channels
            filters = torch.arange(fc6.out_channels) * step + number % step
            side = fc6.kernel_size[0]
            taps = torch.linspace(0, 6, side).round().long() if side > 1 else torch.tensor([3])
            fc6.weight.copy_(whole6.weight[filters][:, :, taps][:, :, :, taps])
            fc7.weight.copy_(whole7.weight[filters][:, filters])
            for layer, whole in ((fc6, whole6), (fc7, whole7)):
                assert layer.bias is not None
                assert whole.bias is not None
                layer.bias.copy_(whole.bias[filters])


class DeepLabV1(DeepLab):
    """VGG16 whose fully connected layers became dilated convolutions (v1, sections 3 and 5).

    With the arguments as they are this is DeepLab-LargeFOV; (kernel, rate, fc_channels, average) = (4, 4, 4096, False) is
    the first DeepLab, (4, 8, 4096, False) and (7, 4, 4096, False) the other rows of the paper's table of fields of view.

    Attributes:
        min_train_size: 1, or for an even kernel, which has no tap in its middle, what lets it see another place of the map.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: float = 1.0,
        kernel: int = 3,
        rate: int = 12,
        fc_channels: int = 1024,
        average: bool = True,
        dropout: float = 0.5,
        full_size_loss: bool = False,
        weights: str | None = None,
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the image.
            num_classes: score maps.
            width: factor on the paper's numbers of channels.
            kernel: side of fc6's kernel, 1 to 7.
            rate: dilation of fc6. It pads by (kernel - 1) · rate / 2 on all sides, so that the map keeps its size: 12, or 6 for
                4x4 at rate 4, as the authors do. For an even kernel the rate must therefore be even.
            fc_channels: of fc6 and fc7, 1 to 4096.
            average: whether a 3x3 average pooling (pool5a) stands before fc6: in LargeFOV, not in the authors' 4x4.
            dropout: probability after fc6 and fc7.
            full_size_loss: whether training judges the interpolated logits instead of the 1/8 map.
            weights: "imagenet", a file, or None for MSRA initialisation. ImageNet's fc6 and fc7 are thinned out.

        Raises:
            ValueError: `kernel`, `rate` or `fc_channels` is out of range.
            ConfigError: The weights cannot be had or do not fit.
        """
        super().__init__()
        if not 1 <= kernel <= 7 or rate < 1 or (kernel - 1) * rate % 2 or not 1 <= fc_channels <= 4096:
            raise ValueError(
                f"{type(self).__name__} takes kernel 1 to 7, rate 1 or more (even for an even kernel) and fc_channels 1 to 4096, "
                f"not {kernel}, {rate} and {fc_channels}"
            )
        self.full_size_loss = full_size_loss
        self.min_train_size = 1 if kernel % 2 else STRIDE * (rate // 2 - 1) + 2
        self.trunk = _trunk(in_channels, width)
        self.pool5a = nn.AvgPool2d(3, 1, padding=1) if average else nn.Identity()
        inner = channels(fc_channels, width)
        self.fc6 = nn.Conv2d(self.trunk.widths[-1], inner, kernel, padding=(kernel - 1) * rate // 2, dilation=rate)
        self.fc7 = nn.Conv2d(inner, inner, 1)
        self.fc8 = nn.Conv2d(inner, num_classes, 1)
        self.dropout = nn.Dropout(dropout)
        he_normal(self)
        normal(self.fc8, 0.01)
        _transplant_vgg16(self.trunk, {"": (self.fc6, self.fc7)}, weights)

    def classified(self, pool5: Tensor) -> Tensor:
        """The scores [B, num_classes, h, w] of the trunk's result [B, C, h, w]."""
        x = self.dropout(self.fc6(self.pool5a(pool5)).relu())
        scores: Tensor = self.fc8(self.dropout(self.fc7(x).relu()))
        return scores

    def scores(self, image: Tensor) -> list[tuple[Tensor, float]]:
        """The one map."""
        return [(self.classified(self.trunk(image)[-1]), STRIDE)]


# What the side branches stand on, and its stride in pixels of the image.
BRANCHES = (("data", 1), ("pool1", 2), ("pool2", 4), ("pool3", 8), ("pool4", 8))


class DeepLabV1MSc(DeepLabV1):
    """DeepLab v1 with multi-scale prediction (v1, section 4.3): scores of the image and of pool1 to pool4 are added to fc8's.

    Each side branch is 3x3 (conv), 1x1 (fc) and 1x1 to the classes (ms). In training its first convolution strides to the 1/8
    map; in evaluation it looks at every place, and its scores are interpolated to the image's size before they are added, as in
    the authors' test network: the same numbers at the pixels 0, 8, 16, …, finer between them.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: float = 1.0,
        kernel: int = 3,
        rate: int = 12,
        fc_channels: int = 1024,
        average: bool = True,
        dropout: float = 0.5,
        side_init: Literal["msra", "paper"] = "msra",
        train_only_new: bool = False,
        full_size_loss: bool = False,
        weights: str | None = None,
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the image.
            num_classes: score maps.
            width: factor on the paper's numbers of channels.
            kernel: see `DeepLabV1`, as are the next three.
            rate: dilation of fc6.
            fc_channels: of fc6 and fc7.
            average: whether pool5a stands before fc6.
            dropout: probability after fc6, fc7 and both hidden layers of each side branch.
            side_init: how the hidden layers of the side branches start: "paper" for N(0, 0.001), and N(0, 0.005) in pool4_fc, which
                suits images of 0 to 255; "msra" for images of deviation 1, as they are here.
            train_only_new: whether only the side branches and fc8 learn, as in the paper, which starts from a trained v1.
            full_size_loss: whether training judges logits at the image's size, as evaluation computes them.
            weights: see `DeepLabV1`.

        Raises:
            ValueError: `kernel`, `rate`, `fc_channels` or `side_init` is out of range.
            ConfigError: The weights cannot be had or do not fit.
        """
        super().__init__(in_channels, num_classes, width, kernel, rate, fc_channels, average, dropout, full_size_loss, weights)
        if side_init not in ("msra", "paper"):
            raise ValueError(f"DeepLabV1MSc takes side_init 'msra' or 'paper', not '{side_init}'")
        if train_only_new:
            for old in (self.trunk, self.fc6, self.fc7):
                old.requires_grad_(False)
        hidden = channels(128, width)
        for (name, stride), inputs in zip(BRANCHES, (in_channels, *self.trunk.widths), strict=False):
            conv = nn.Conv2d(inputs, hidden, 3, STRIDE // stride, padding=1)
            fc, ms = nn.Conv2d(hidden, hidden, 1), nn.Conv2d(hidden, num_classes, 1)
            for part, layer in (("conv", conv), ("fc", fc), ("ms", ms)):
                self.add_module(f"{name}_{part}", layer)
                he_normal(layer)
            normal(ms, 0.01)
            if side_init == "paper":
                normal(conv, 0.001)
                normal(fc, 0.005 if name == "pool4" else 0.001)

    def _side(self, name: str, image: Tensor, stride: int) -> Tensor:
        conv = self.get_submodule(f"{name}_conv")
        assert isinstance(conv, nn.Conv2d)
        x = functional.conv2d(image, conv.weight, conv.bias, stride, padding=1)  # the layer's own stride is that of training
        x = self.get_submodule(f"{name}_fc")(self.dropout(x.relu())).relu()
        scores: Tensor = self.get_submodule(f"{name}_ms")(self.dropout(x))
        return scores

    def scores(self, image: Tensor) -> list[tuple[Tensor, float]]:
        """The one map, the sum of all branches."""
        pooled = self.trunk(image)
        sides = [self._side(name, x, STRIDE // stride) for (name, stride), x in zip(BRANCHES, (image, *pooled), strict=False)]
        return [(reduce(torch.add, [*sides, self.classified(pooled[-1])]), STRIDE)]

    def logits(self, image: Tensor) -> Tensor:
        """The sum of all branches' scores at the size of a padded image, each computed at every place of what it stands on."""
        pooled = self.trunk(image)
        sides = [self._side(name, x, 1) for (name, _), x in zip(BRANCHES, (image, *pooled), strict=False)]
        found = [resize_bilinear(x, image.shape[2:]) for x in (*sides[1:], self.classified(pooled[-1]))]
        return reduce(torch.add, [sides[0], *found])


class DeepLabV2VGG16(DeepLab):
    """VGG16 with atrous spatial pyramid pooling (v2, section 3.2): fc6, fc7 and fc8 once per rate, their scores added."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: float = 1.0,
        rates: Sequence[int] = ASPP_L,
        dropout: float = 0.5,
        full_size_loss: bool = False,
        weights: str | None = None,
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the image.
            num_classes: score maps.
            width: factor on the paper's numbers of channels.
            rates: dilation of each branch's fc6: 6, 12, 18, 24 (ASPP-L), 2, 4, 8, 12 (ASPP-S), or 12 alone (LargeFOV).
            dropout: probability after each fc6 and fc7.
            full_size_loss: whether training judges the interpolated logits instead of the 1/8 map.
            weights: "imagenet", a file, or None for MSRA initialisation. ImageNet's fc6 and fc7 are thinned out.

        Raises:
            ValueError: `rates` is empty or holds a number below 1.
            ConfigError: The weights cannot be had or do not fit.
        """
        super().__init__()
        _check_rates(self, rates)
        self.full_size_loss = full_size_loss
        self.trunk = _trunk(in_channels, width)
        self.dropout = nn.Dropout(dropout)
        inner = channels(1024, width)
        branches: dict[str, tuple[nn.Conv2d, nn.Conv2d]] = {}
        scorers = []
        for number, rate in enumerate(rates, start=1):
            fc6 = nn.Conv2d(self.trunk.widths[-1], inner, 3, padding=rate, dilation=rate)
            fc7, fc8 = nn.Conv2d(inner, inner, 1), nn.Conv2d(inner, num_classes, 1)
            for name, layer in (("fc6", fc6), ("fc7", fc7), ("fc8", fc8)):
                self.add_module(f"{name}_{number}", layer)
            branches[f"_{number}"] = (fc6, fc7)
            scorers.append(fc8)
        self._suffixes = tuple(branches)
        he_normal(self)
        for fc8 in scorers:
            normal(fc8, 0.01)
        _transplant_vgg16(self.trunk, branches, weights)

    def scores(self, image: Tensor) -> list[tuple[Tensor, float]]:
        """The one map, the sum of all branches."""
        pool5 = self.trunk(image)[-1]
        found = []
        for suffix in self._suffixes:
            x = pool5
            for name in ("fc6", "fc7"):
                x = self.dropout(self.get_submodule(f"{name}{suffix}")(x).relu())
            found.append(self.get_submodule(f"fc8{suffix}")(x))
        return [(reduce(torch.add, found), STRIDE)]


class DeepLabV2(DeepLab):
    """ResNet-101 with atrous spatial pyramid pooling, on the image at several scales (v2, sections 3.2 and 4.1.2).

    The pyramid is one 3x3 convolution from the trunk to the classes per rate, added. The scaled images' score maps are interpolated
    to the map of scale 1 and the largest score of each class wins. Training judges each scale's map and the fused one, by the
    labels of the pixels nearest to their places.

    Attributes:
        unit: 8 times what makes the scaled images' sides 8k + 1 pixels too: 32 for the paper's scales.
        min_train_size: 1, or 2 where batch statistics must exist.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: float = 1.0,
        depth: int = 101,
        rates: Sequence[int] = ASPP_L,
        scales: Sequence[float] = (1.0, 0.75, 0.5),
        stride_on: StrideOn = "1x1",
        frozen_norm: bool = False,
        full_size_loss: bool = False,
        weights: str | None = None,
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the image.
            num_classes: score maps.
            width: factor on the paper's numbers of channels.
            depth: of the ResNet: 50, 101 or 152.
            rates: dilation of each branch of the pyramid; (12,) is the paper's LargeFOV.
            scales: of the image, 1 first, fractions with a denominator of 8 at most; (1,) for no multi-scale input.
            stride_on: the convolution of a halving block that strides: "1x1" as the authors', "3x3" for torchvision's weights.
            frozen_norm: whether batch normalisation keeps its statistics, scale and shift in training, as in the paper, which
                starts from trained weights. From scratch they are 0 and 1, and activations grow with every block: use False there.
            full_size_loss: whether training judges the fused, interpolated logits instead of the maps.
            weights: "imagenet", a file, or None for MSRA initialisation.

        Raises:
            ValueError: An argument is out of range.
            ConfigError: The weights cannot be had or do not fit.
        """
        super().__init__()
        _check_rates(self, rates)
        fractions = [Fraction(scale).limit_denominator(8) for scale in scales]
        if (
            not fractions
            or fractions[0] != 1
            or any(part <= 0 or abs(part - scale) > 1e-6 for part, scale in zip(fractions, scales, strict=True))
        ):
            raise ValueError(
                "DeepLabV2 takes scales that begin with 1 and are fractions with a denominator of 8 at most, such as "
                f"[1.0, 0.75, 0.5], not {list(scales)}"
            )
        if weights == "imagenet" and stride_on != "3x3":
            raise ConfigError(
                "'model.weights=imagenet' are torchvision's, whose blocks stride in the 3x3 convolution. Type "
                "'model.stride_on=3x3', or give a file of the authors' weights: 'model.weights=<file>'."
            )
        self.full_size_loss = full_size_loss
        self.unit = STRIDE * math.lcm(*(part.denominator for part in fractions))
        self.min_train_size = 1 if frozen_norm else 2
        self._scales = fractions
        self.trunk = ResNet(in_channels, depth, width, STRIDE, stride_on, frozen_norm)
        self._branches = [f"fc1_c{number}" for number in range(len(rates))]
        for name, rate in zip(self._branches, rates, strict=True):
            self.add_module(name, nn.Conv2d(self.trunk.widths[-1], num_classes, 3, padding=rate, dilation=rate))
        he_normal(self)
        for name, layer in self.named_children():
            if name in self._branches and isinstance(layer, nn.Conv2d):
                normal(layer, 0.01)
        transplant(self.trunk.layers(), weights, f"resnet{depth}")

    def _classified(self, image: Tensor) -> Tensor:
        res5 = self.trunk(image)[-1]
        scores: list[Tensor] = [self.get_submodule(name)(res5) for name in self._branches]
        return reduce(torch.add, scores)

    def scores(self, image: Tensor) -> list[tuple[Tensor, float]]:
        """The map of each scale, and the fused one where there are several."""
        found = []
        for scale in self._scales:
            size = [(side - 1) * scale.numerator // scale.denominator + 1 for side in image.shape[2:]]
            found.append((self._classified(image if scale == 1 else resize_bilinear(image, size)), STRIDE / float(scale)))
        if len(found) > 1:
            first = found[0][0]
            same = [resize_bilinear(scores, first.shape[2:]) for scores, _ in found[1:]]
            found.append((reduce(torch.maximum, same, first), float(STRIDE)))
        return found


def _check_rates(network: nn.Module, rates: Sequence[int]) -> None:
    if not rates or min(rates) < 1:
        raise ValueError(
            f"{type(network).__name__} takes one rate or more, each 1 or more, such as [6, 12, 18, 24], not {list(rates)}"
        )
