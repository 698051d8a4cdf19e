"""Code as users write it: networks, losses, augmentations and layouts, right and almost right."""

from typing import Any

import torch
from torch import Tensor, nn

from voxtile.training.losses import Loss


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


class Volumes(nn.Module):
    """A network of boxes, which says so where its class has the attribute."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.score = nn.Conv3d(in_channels, num_classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.score(image)


class Boxes(Volumes):
    """A network of boxes."""

    dims = 3


class Named(nn.Module):
    """A network of one layer, with attributes of one's own and a scale along a fifth axis."""

    def __init__(self, in_channels: int, num_classes: int, **attributes: Any) -> None:
        super().__init__()
        self.score = nn.Conv2d(in_channels, num_classes, 1)
        self.scale = nn.Parameter(torch.ones(1, 1, 1, 1, 1))
        for name, value in attributes.items():
            setattr(self, name, tuple(value) if isinstance(value, list) else value)

    def forward(self, image: Tensor) -> Any:
        return self.score(image) * self.scale[0]


class Boxed(Volumes):
    """A network with arguments that have defaults."""

    def __init__(self, in_channels: int, num_classes: int, dims: int = 3, depth: int = 1) -> None:
        super().__init__(in_channels, num_classes)


class Dictionary(Named):
    """Logits as torchvision has them."""

    def forward(self, image: Tensor) -> Any:
        return {"out": super().forward(image), "aux": 0}


class Pair(Named):
    """Logits and features."""

    def forward(self, image: Tensor) -> Any:
        return super().forward(image), image


class Raising(Named):
    """A mistake in forward."""

    def forward(self, image: Tensor) -> Any:
        raise KeyError("of my own")


class Halving(Named):
    """Takes even sizes only."""

    def forward(self, image: Tensor) -> Any:
        return super().forward(image) + torch.zeros(*image.shape[:1], 2, *(2 * (side // 2) for side in image.shape[2:]))


class Lazy(Named):
    """A layer without sizes."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.score = nn.LazyConv2d(num_classes, 1)


class RaisingConstructor(Named):
    """A mistake in the constructor."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        raise KeyError("of my own")


class NoModule:
    """Something else."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        """Takes what a network takes."""


class PlainLoss(nn.Module):
    """A loss as PyTorch has them."""


class Share(Loss):
    """The share of pixels that are judged wrongly, as far as it has a slope."""

    size = 2
    needs_logits_first = False

    def __init__(self, num_classes: int, **_: Any) -> None:
        super().__init__()
        self.num_classes = num_classes

    def from_log_probabilities(self, log_probabilities: Tensor, target: Tensor, margin: int = 0) -> Tensor:
        right = log_probabilities.exp().gather(1, target[:, None].long().clamp(max=self.num_classes - 1))[:, 0]
        return torch.stack([(1 - right)[target != 255].sum(), (target != 255).sum().float()])

    def label_statistics(self, target: Tensor, margin: int = 0) -> Tensor:
        return torch.stack([torch.zeros(()), (target != 255).sum().float()])

    def value(self, statistics: Tensor) -> Tensor:
        return statistics[0] / statistics[1].clamp(min=1)


class NoSize(Share):
    """How many statistics there are is not said."""

    size = None  # type: ignore[assignment]  # what a test is about


class WrongSize(Share):
    """One statistic more than is said."""

    size = 1


class WrongLabelSize(Share):
    """The labels alone give fewer statistics."""

    def label_statistics(self, target: Tensor, margin: int = 0) -> Tensor:
        return torch.zeros(())


class PerStatistic(Share):
    """A value that is no scalar."""

    def value(self, statistics: Tensor) -> Tensor:
        return statistics


class RaisingLoss(Share):
    """A mistake in a loss."""

    def value(self, statistics: Tensor) -> Tensor:
        raise ValueError("of my own")


class LateLoss(Share):
    """A mistake that no trial on zeros finds."""

    def from_log_probabilities(self, log_probabilities: Tensor, target: Tensor, margin: int = 0) -> Tensor:
        if target.any():
            raise ValueError("of my own")
        return super().from_log_probabilities(log_probabilities, target, margin)


class Full:
    """Needs more memory than a GPU has."""

    def fill(self) -> None:
        raise torch.OutOfMemoryError("full")
