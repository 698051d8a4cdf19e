"""Losses as smooth functions of additive statistics, exact however a batch is cut into ranks and micro-batches.

Averaging the means of unequal parts is wrong as soon as one part has more ignored pixels than another. A `Loss` therefore
returns `statistics` that are plain sums over pixels and samples; the parts' statistics are added up, and `value` turns the
total into the loss. `surrogate` gives each part the scalar to call `backward` on, so that the parts' gradients add up to the
gradient of the whole.

Axes: B samples, K classes, any spatial axes; S statistics.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from voxtile.cases.window import IGNORE
from voxtile.errors import ConfigError, listed
from voxtile.training.border_weights import border_weights
from voxtile.training.class_weights import WeightRule, class_weight_table
from voxtile.values import is_number

DivideBy = Literal["weights", "pixels", "images"]


class Loss(nn.Module, ABC):
    """A loss between scores (logits) [B, K, *spatial] and class indices [B, *spatial] with `IGNORE` where nothing is judged.

    All computation is in float32 (float64 for float64 scores), also under autocast, and made of operations that are
    deterministic on every device. What the scores are at ignored pixels, infinite and NaN included, has no influence.

    A constructor names, of the keywords `num_classes`, `class_counts`, `present_counts`, `background` and `regions`, those that it
    needs; see `class_weight_table` for the counts. `background` is the index of the background class, None without one, `regions`
    the class indices of each region of the data set, None without regions.

    Attributes:
        size: S, how many statistics there are.
        needs_logits_first: False where the gradient's factors follow from the labels alone, so that each micro-batch can be
            differentiated as soon as it is computed; True where the scores of the whole batch must be known before.
        by_distance: whether a pixel's weight follows from distances in the image, which maps of a coarser grid do not show.
    """

    size: int
    needs_logits_first: bool
    by_distance: bool = False

    def statistics(self, logits: Tensor, target: Tensor, margin: int = 0) -> Tensor:
        """Sums [S] over pixels and samples, differentiable; those of a batch are the sum of those of its parts.

        Args:
            logits: the scores.
            target: the label, on each side of each spatial axis larger than the scores by `margin`.
            margin: pixels of label around the scores. They are not judged, but a pixel's weight may depend on them.
        """
        judged = _inside(target, margin)
        if logits.shape[2:] != judged.shape[1:] or len(logits) != len(judged):
            raise ValueError(f"logits {tuple(logits.shape)} [B, K, *space] do not fit a label {tuple(judged.shape)} [B, *space]")
        with torch.autocast(logits.device.type, enabled=False):
            scores = logits if logits.dtype == torch.float64 else logits.float()
            # Masked before the softmax: masking its result would still send NaN into the gradient.
            scores = torch.where((judged != IGNORE)[:, None], scores, 0.0)
            return self.from_log_probabilities(torch.log_softmax(scores, dim=1), target, margin)

    @abstractmethod
    def from_log_probabilities(self, log_probabilities: Tensor, target: Tensor, margin: int = 0) -> Tensor:
        """The statistics [S] from log-probabilities [B, K, *spatial] (arbitrary but finite at ignored pixels)."""

    @abstractmethod
    def label_statistics(self, target: Tensor, margin: int = 0) -> Tensor:
        """The statistics [S], float32, as far as the labels alone give them; 0 elsewhere."""

    @abstractmethod
    def value(self, statistics: Tensor) -> Tensor:
        """The loss, a scalar, from the sum [S] of all parts' statistics, on any device; 0 where every pixel is ignored."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of one whole batch."""
        return self.value(self.statistics(logits, target))


def surrogate(loss: Loss, statistics: Tensor, total: Tensor) -> Tensor:
    """The scalar whose gradient is this part's exact share of the gradient of the whole batch's loss.

    The loss is L(t) with t the sum over parts m of s_m(w). By the chain rule dL/dw is the sum over m of dL/dt · ds_m/dw.
    The shares are to be summed over micro-batches and ranks; where gradients are averaged over ranks (DDP), multiply by
    their number. The scalar's own value means nothing; the loss is `loss.value(total)`.

    Args:
        loss: the loss.
        statistics: this part's [S], with its graph.
        total: the sum [S] of all parts' statistics; of their `label_statistics` where `loss.needs_logits_first` is False.
    """
    point = total.detach().requires_grad_()
    with torch.enable_grad():
        (factors,) = torch.autograd.grad(loss.value(point), point)
    return (factors * statistics).sum()


class PixelLoss(Loss):
    """Σ w(y)·l / divisor over judged pixels with label y, weight w and pixel loss l: a ratio of two sums.

    Args:
        class_weights: see `class_weight_table`.
        divide_by: "weights" divides by Σ w(y), a weighted mean, as PyTorch does; "pixels" by the number of judged pixels, as
            caffe-segnet does, where the scale of the weights matters; "images" by the number of samples, which leaves a sum over
            pixels, as the FCN's release and ReSeg do: its scale grows with the size of the windows, and rates must fit it.
    """

    needs_logits_first = False
    size = 2
    weights: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        class_counts: Sequence[int] | None = None,
        present_counts: Sequence[int] | None = None,
        class_weights: WeightRule = None,
        divide_by: DivideBy = "weights",
    ) -> None:
        super().__init__()
        if divide_by not in get_args(DivideBy):
            raise ConfigError(f"`loss.divide_by` is '{divide_by}'; choose from {listed(get_args(DivideBy))}.")
        self.divide_by = divide_by
        # Not persistent: the weights follow from the configuration and the training set, not from learning.
        table = class_weight_table(class_weights, num_classes, class_counts, present_counts)
        self.register_buffer("weights", torch.tensor(table, dtype=torch.float32), persistent=False)

    @abstractmethod
    def pixel_loss(self, log_probabilities: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        """w(y)·l per pixel [B, *spatial], finite at ignored pixels, from the weights w(y) [B, *spatial]."""

    def from_log_probabilities(self, log_probabilities: Tensor, target: Tensor, margin: int = 0) -> Tensor:
        """(Σ w(y)·l, divisor)."""
        weights, judged = _inside(self._pixel_weights(target), margin), _inside(target, margin)
        losses = torch.where(judged != IGNORE, self.pixel_loss(log_probabilities, judged, weights), 0.0).sum()
        return torch.stack([losses, self._divisor(target, margin).to(losses.dtype)])

    def label_statistics(self, target: Tensor, margin: int = 0) -> Tensor:
        """(0, divisor)."""
        divisor = self._divisor(target, margin)
        return torch.stack([torch.zeros_like(divisor), divisor])

    def value(self, statistics: Tensor) -> Tensor:
        """Σ w(y)·l / divisor."""
        losses, divisor = statistics
        return torch.where(divisor == 0, 0.0, losses / torch.where(divisor == 0, 1.0, divisor))

    def _divisor(self, target: Tensor, margin: int) -> Tensor:
        if self.divide_by == "images":
            return torch.full((), float(len(target)), device=target.device)
        valid = target != IGNORE
        counted = valid if self.divide_by == "pixels" else self._pixel_weights(target) * valid
        return _inside(counted, margin).sum(dtype=torch.float32)

    def _pixel_weights(self, target: Tensor) -> Tensor:
        """w(y) [B, *spatial]; at ignored pixels the weight of class 0."""
        return self.weights[torch.where(target != IGNORE, target, 0).long()]


class CrossEntropy(PixelLoss):
    """Cross-entropy -log p(y), with class weights and label smoothing as in `torch.nn.functional.cross_entropy`.

    Args:
        label_smoothing: the share e of the target that is spread evenly: (1 - e)·w(y)·-log p(y) + e/K·Σ_k w(k)·-log p(k).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        class_counts: Sequence[int] | None = None,
        present_counts: Sequence[int] | None = None,
        class_weights: WeightRule = None,
        divide_by: DivideBy = "weights",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            class_counts=class_counts,
            present_counts=present_counts,
            class_weights=class_weights,
            divide_by=divide_by,
        )
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"`loss.label_smoothing` is {label_smoothing}; give a share from 0 to below 1.")
        self.label_smoothing = label_smoothing

    def pixel_loss(self, log_probabilities: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        """Cross-entropy of each pixel [B, *spatial]."""
        loss = -_of_label(log_probabilities, target) * weights
        if not self.label_smoothing:
            return loss
        per_class = self.weights.view(1, -1, *(1 for _ in target.shape[1:]))
        spread = -(log_probabilities * per_class).mean(dim=1)
        return (1 - self.label_smoothing) * loss + self.label_smoothing * spread


class Focal(PixelLoss):
    """Focal loss -(1 - p(y))^gamma · log p(y) (Lin et al. 2017, equation 4), softmax form; class weights are its alpha.

    Args:
        gamma: how strongly pixels that are already right are discounted, >= 0; 0 is cross-entropy.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        class_counts: Sequence[int] | None = None,
        present_counts: Sequence[int] | None = None,
        class_weights: WeightRule = None,
        divide_by: DivideBy = "weights",
        gamma: float = 2.0,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            class_counts=class_counts,
            present_counts=present_counts,
            class_weights=class_weights,
            divide_by=divide_by,
        )
        if not is_number(gamma, 0):
            raise ConfigError(f"`loss.gamma` is {gamma}; give a number that is at least 0.")
        self.gamma = gamma

    def pixel_loss(self, log_probabilities: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        """Focal loss of each pixel [B, *spatial]."""
        log_p = _of_label(log_probabilities, target)
        # The floor keeps the slope finite where p is 1 and gamma below 1; its own gradient is 0 there.
        doubt = (-torch.expm1(log_p)).clamp_min(1e-12)
        return -(doubt**self.gamma) * log_p * weights


class BorderCrossEntropy(PixelLoss):
    """Cross-entropy with the weight w_c(y) + w0 · exp(-(d1 + d2)² / 2σ²) per pixel (U-Net's paper, equations 1 and 2).

    d1 and d2 are the distances of a background pixel to the nearest two objects, see `border_weights`. Objects in the label's
    margin count too.

    Args:
        w0: the weight where two objects all but touch.
        sigma: how fast it falls, in pixels.
    """

    by_distance = True

    def __init__(
        self,
        *,
        num_classes: int,
        class_counts: Sequence[int] | None = None,
        present_counts: Sequence[int] | None = None,
        background: int | None = None,
        class_weights: WeightRule = None,
        divide_by: DivideBy = "pixels",
        w0: float = 10.0,
        sigma: float = 5.0,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            class_counts=class_counts,
            present_counts=present_counts,
            class_weights=class_weights,
            divide_by=divide_by,
        )
        if background is None:
            raise ConfigError(
                "`loss=border_ce` weighs the background between objects, and this data set names none. Say which class it is with "
                "'data.background=<class>'."
            )
        if not (is_number(w0, 0) and is_number(sigma, 0) and sigma > 0):
            raise ConfigError(f"`loss.w0` is {w0} and `loss.sigma` {sigma}; give 0 or more, and more than 0 pixels.")
        self.background, self.w0, self.sigma = background, w0, sigma

    def pixel_loss(self, log_probabilities: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        """Weighted cross-entropy of each pixel [B, *spatial]."""
        return -_of_label(log_probabilities, target) * weights

    def _pixel_weights(self, target: Tensor) -> Tensor:
        return super()._pixel_weights(target) + border_weights(target, self.background, self.w0, self.sigma)


class Dice(Loss):
    """Soft Dice loss on softmax probabilities: the mean of 1 - (2·I + s) / (P + L + s).

    I is the sum of a class's probability over the pixels that carry its label, P over all judged pixels, L the number of
    pixels with its label, s the smoothing (Milletari et al. 2016 without squares; MONAI's `DiceLoss`). With regions the same holds
    of each region instead of each class: its probability is the sum of its classes', its label any of theirs.

    R is the number of regions, without regions K.

    Args:
        include_background: whether the class `background` is among the classes averaged over.
        smooth: s, in pixels.
        batch: True sums I, P and L over the whole batch, then averages over classes. False averages over samples and the
            classes that occur in the sample's label: classes that do not occur add nothing. Regions likewise.
    """

    averaged: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        background: int | None = None,
        regions: Sequence[Sequence[int]] | None = None,
        include_background: bool = False,
        smooth: float = 1.0,
        batch: bool = True,
    ) -> None:
        super().__init__()
        if regions and include_background:
            raise ConfigError(
                "'loss.include_background=true' is about the mean over classes, and with 'data.regions' Dice is a mean over "
                "regions. Type 'loss.include_background=false', or 'data.regions=null'."
            )
        if not is_number(smooth, 0):
            raise ConfigError(f"`loss.smooth` is {smooth}; give a number of pixels that is at least 0.")
        self.num_classes, self.regions = num_classes, [tuple(members) for members in regions or ()]
        averaged = torch.tensor([True] * len(self.regions) or [include_background or k != background for k in range(num_classes)])
        self.register_buffer("averaged", averaged, persistent=False)
        self.smooth = smooth
        self.batch = batch
        self.needs_logits_first = batch
        self.size = 3 * len(averaged) if batch else 2

    def from_log_probabilities(self, log_probabilities: Tensor, target: Tensor, margin: int = 0) -> Tensor:
        """Overlap, predicted and label [3·R] if `batch`, else (sum of terms, number of terms)."""
        target = _inside(target, margin)
        space = tuple(range(2, log_probabilities.ndim))
        labelled = self._united(_one_hot(target, self.num_classes))
        probabilities = self._united(log_probabilities.exp())
        overlap = torch.where(labelled, probabilities, 0.0).sum(dim=space)
        predicted = torch.where((target != IGNORE)[:, None], probabilities, 0.0).sum(dim=space)
        label = labelled.sum(dim=space, dtype=probabilities.dtype)
        if self.batch:
            return torch.stack([overlap, predicted, label]).sum(dim=1).flatten()
        counted = (label > 0) & self.averaged
        terms = torch.where(counted, self._terms(overlap, predicted, label), 0.0)
        return torch.stack([terms.sum(), counted.sum(dtype=terms.dtype)])

    def label_statistics(self, target: Tensor, margin: int = 0) -> Tensor:
        """(0, 0, label) [3·R] if `batch`, else (0, number of terms)."""
        label = self._united(_one_hot(_inside(target, margin), self.num_classes)).flatten(2).sum(dim=2, dtype=torch.float32)
        if self.batch:
            return torch.cat([label.new_zeros(2 * len(self.averaged)), label.sum(dim=0)])
        count = ((label > 0) & self.averaged).sum(dtype=torch.float32)
        return torch.stack([torch.zeros_like(count), count])

    def value(self, statistics: Tensor) -> Tensor:
        """The mean over classes or regions if `batch`, else over terms."""
        if self.batch:
            overlap, predicted, label = statistics.view(3, len(self.averaged))
            averaged = self.averaged.to(statistics.device)
            return torch.where(averaged, self._terms(overlap, predicted, label), 0.0).sum() / averaged.sum()
        return statistics[0] / statistics[1].clamp_min(1)

    def _united(self, maps: Tensor) -> Tensor:
        """Maps of classes [B, K, *spatial] added up to those of regions [B, R, *spatial]; of truth values whether any is true.

        Added plane by plane: the gradient of an indexed copy would be a scatter, see `_of_label`.
        """
        if not self.regions:
            return maps
        return torch.stack([functools.reduce(torch.add, [maps[:, k] for k in members]) for members in self.regions], dim=1)

    def _terms(self, overlap: Tensor, predicted: Tensor, label: Tensor) -> Tensor:
        """1 - Dice per class or region [..., R]; 0 where there is neither label nor prediction, also without smoothing."""
        size = predicted + label + self.smooth
        return torch.where(size == 0, 0.0, 1 - (2 * overlap + self.smooth) / torch.where(size == 0, 1.0, size))


class Sum(Loss):
    """A weighted sum of losses; the softmax is computed once for all."""

    def __init__(self, losses: Sequence[Loss], weights: Sequence[float]) -> None:
        super().__init__()
        self.losses = tuple(losses)
        self.members = nn.ModuleList(losses)  # so that their buffers move along with this one
        self.loss_weights = tuple(weights)
        self.size = sum(loss.size for loss in losses)
        self.needs_logits_first = any(loss.needs_logits_first for loss in losses)
        self.by_distance = any(loss.by_distance for loss in losses)

    def from_log_probabilities(self, log_probabilities: Tensor, target: Tensor, margin: int = 0) -> Tensor:
        """The members' statistics, one after the other."""
        return torch.cat([loss.from_log_probabilities(log_probabilities, target, margin) for loss in self.losses])

    def label_statistics(self, target: Tensor, margin: int = 0) -> Tensor:
        """The members' label statistics, one after the other."""
        return torch.cat([loss.label_statistics(target, margin) for loss in self.losses])

    def value(self, statistics: Tensor) -> Tensor:
        """The weighted sum of the members' values."""
        parts = statistics.split_with_sizes([loss.size for loss in self.losses])
        values = [weight * loss.value(part) for loss, part, weight in zip(self.losses, parts, self.loss_weights, strict=True)]
        return torch.stack(values).sum()


class DiceCrossEntropy(Sum):
    """`dice_weight` · Dice + `cross_entropy_weight` · cross-entropy; the other arguments are those of `Dice` and `CrossEntropy`."""

    def __init__(
        self,
        *,
        num_classes: int,
        class_counts: Sequence[int] | None = None,
        present_counts: Sequence[int] | None = None,
        background: int | None = None,
        regions: Sequence[Sequence[int]] | None = None,
        include_background: bool = False,
        smooth: float = 1.0,
        batch: bool = True,
        class_weights: WeightRule = None,
        label_smoothing: float = 0.0,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
    ) -> None:
        if not (is_number(dice_weight, 0) and is_number(cross_entropy_weight, 0) and dice_weight + cross_entropy_weight > 0):
            raise ConfigError(
                f"`loss.dice_weight` is {dice_weight} and `loss.cross_entropy_weight` {cross_entropy_weight}; give numbers that "
                "are at least 0, one of them more."
            )
        dice = Dice(
            num_classes=num_classes, background=background, regions=regions, include_background=include_background, smooth=smooth,
            batch=batch,
        )  # fmt: skip
        cross_entropy = CrossEntropy(
            num_classes=num_classes,
            class_counts=class_counts,
            present_counts=present_counts,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
        )
        super().__init__([dice, cross_entropy], [dice_weight, cross_entropy_weight])


def _inside(array: Tensor, margin: int) -> Tensor:
    """What lies inside the margin of [B, *spatial]."""
    return array[(slice(None), *[slice(margin, -margin or None)] * (array.ndim - 1))]


def _one_hot(target: Tensor, num_classes: int) -> Tensor:
    """Which class a pixel is labelled as: bool [B, K, *spatial], all False at ignored pixels."""
    classes = torch.arange(num_classes, device=target.device)
    return target[:, None] == classes.view(1, -1, *(1 for _ in target.shape[1:]))


def _of_label(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """The log-probability of each pixel's label [B, *spatial]; 0 at ignored pixels.

    Selected rather than gathered: the gradient of `gather` is a scatter, on CUDA deterministic only where that is asked for.
    """
    return torch.where(_one_hot(target, log_probabilities.shape[1]), log_probabilities, 0.0).sum(dim=1)
