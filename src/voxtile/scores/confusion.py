"""Scores from integer confusion matrices, one per case, so that every number is exact and independent of who counted what.

Every score name is defined in `docs/scores.md`. A confusion matrix is int64 [K, K]: rows are the label's classes, columns the
prediction's. N cases, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from voxtile.cases.window import IGNORE
from voxtile.errors import ConfigError, did_you_mean, listed

_BYTE = 256  # class indices and the ignore index are below


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Counts each judged pixel once.

    Args:
        prediction: class indices, integer, any shape; at ignored pixels any value in 0..255.
        label: class indices of the same shape on the same device, `IGNORE` where nothing is judged.
        num_classes: K.

    Returns:
        int64 [K, K] on the CPU: rows by label, columns by prediction.

    Raises:
        ValueError: The shapes differ, or an index at a judged pixel is no class.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"a prediction of shape {tuple(prediction.shape)} does not fit a label of shape {tuple(label.shape)}")
    if not (_in_bytes(prediction) and _in_bytes(label)):
        raise _no_class(prediction, label, num_classes)
    # One bin for each pair of bytes: selecting the judged pixels first would take more than twice as long as all of this.
    if label.is_cuda:
        counts = torch.bincount((label.long() << 8 | prediction).flatten(), minlength=_BYTE**2).cpu().numpy()
    else:  # NumPy's bincount is five times faster than torch's on the CPU
        counts = np.bincount(label.numpy().ravel().astype(np.int64) << 8 | prediction.numpy().ravel(), minlength=_BYTE**2)
    table = counts.reshape(-1, _BYTE)
    judged = np.delete(table, IGNORE, axis=0)
    matrix = table[:num_classes, :num_classes]
    if judged.sum() != matrix.sum():
        raise _no_class(prediction, label, num_classes)
    return torch.from_numpy(matrix.copy())


def _in_bytes(indices: Tensor) -> bool:
    """Whether all indices are in 0..255: others would be counted in the bin of another pair, or make bins without end."""
    if indices.dtype == torch.uint8 or indices.numel() == 0:
        return True
    low, high = indices.aminmax()
    return int(low) >= 0 and int(high) < _BYTE


def _no_class(prediction: Tensor, label: Tensor, num_classes: int) -> ValueError:
    return ValueError(
        f"the label holds {torch.unique(label).tolist()} and the prediction {torch.unique(prediction).tolist()}, but at judged "
        f"pixels only classes below {num_classes} are possible"
    )


class CaseConfusion(Metric):
    """One confusion matrix per case, counted over any number of ranks: int64, summed, so the same integers on each number."""

    full_state_update = False
    matrices: Tensor

    def __init__(self, num_cases: int, num_classes: int) -> None:
        """Starts at 0.

        Args:
            num_cases: N, on all ranks together.
            num_classes: K.
        """
        super().__init__()
        self.num_classes = num_classes
        zeros = torch.zeros(num_cases, num_classes, num_classes, dtype=torch.int64)
        self.add_state("matrices", zeros, dist_reduce_fx="sum")

    def update(self, case_indices: Iterable[int] | Tensor, predictions: Tensor, labels: Tensor) -> None:
        """Adds a batch of windows; no pixel of a case may be in two windows, on whichever rank.

        Neighbours of one case are counted together: each count waits for all that a GPU has still to do.

        Args:
            case_indices: B indices of cases in 0..N-1; a negative one marks a row that only fills up the batch.
            predictions: class indices [B, ...].
            labels: class indices [B, ...], `IGNORE` where nothing is judged.
        """
        first = 0
        for index, same in groupby(map(int, case_indices)):
            rows = slice(first, first + len(list(same)))
            first = rows.stop
            if index >= 0:
                matrix = confusion_matrix(predictions[rows], labels[rows], self.num_classes)
                self.matrices[index] += matrix.to(self.matrices.device, non_blocking=True)
        if first != len(predictions):
            raise ValueError(f"{first} cases were named of {len(predictions)} windows")

    def compute(self) -> Tensor:
        """The matrices int64 [N, K, K], summed over ranks."""
        return self.matrices


class Counts(NamedTuple):
    """Pixels of each class and then of each region [..., K + R]."""

    hit: NDArray[Any]
    label: NDArray[Any]
    predicted: NDArray[Any]


def counts(matrix: NDArray[np.int64] | NDArray[np.float64], regions: Sequence[Sequence[int]] = ()) -> Counts:
    """Pixels that are hit, labelled and predicted, from confusion matrices [..., K, K].

    A pixel hits a region where label and prediction lie in it, be they one class or two.

    Args:
        matrix: one confusion matrix or several.
        regions: class indices of each of the R regions.
    """
    hit, label, predicted = np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1), matrix.sum(axis=-2)
    for members in map(list, regions):
        own = matrix[..., members, :][..., members].sum(axis=(-2, -1))
        hit = np.concatenate([hit, own[..., None]], axis=-1)
        label = np.concatenate([label, label[..., members].sum(axis=-1, keepdims=True)], axis=-1)
        predicted = np.concatenate([predicted, predicted[..., members].sum(axis=-1, keepdims=True)], axis=-1)
    return Counts(hit, label, predicted)


class ClassScores(NamedTuple):
    """Scores per class and then per region, float64 [..., K + R]; NaN where undefined, that is where the denominator is 0."""

    iou: NDArray[np.float64]
    dice: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def class_scores(matrix: NDArray[np.int64] | NDArray[np.float64], regions: Sequence[Sequence[int]] = ()) -> ClassScores:
    """Scores of each class and region from confusion matrices [..., K, K]; see `scores_of`."""
    return scores_of(counts(matrix, regions))


def scores_of(pixels: Counts) -> ClassScores:
    """Scores of each class and region from its pixels, or from weighted sums of those of several matrices.

    With tp, fp and fn the pixels of a class that are hit, false alarms and misses: iou = tp / (tp + fp + fn),
    dice = 2·tp / (2·tp + fp + fn), precision = tp / (tp + fp), recall = tp / (tp + fn).
    """
    hit, label, predicted = pixels
    return ClassScores(
        iou=_ratio(hit, label + predicted - hit),
        dice=_ratio(2 * hit, label + predicted),
        precision=_ratio(hit, predicted),
        recall=_ratio(hit, label),
    )


def averaged_over(classes: Sequence[str], background: int | None, regions: Mapping[str, Sequence[int]]) -> list[int]:
    """Which of the K classes and R regions are in the means `dice` and `iou`: the regions, or the foreground classes."""
    if regions:
        return list(range(len(classes), len(classes) + len(regions)))
    return [index for index in range(len(classes)) if index != background]


def summarise(
    matrices: NDArray[np.int64], classes: Sequence[str], background: int | None, regions: Mapping[str, Sequence[int]] | None = None
) -> dict[str, float]:
    """All scores of a split, by name, as defined in `docs/scores.md`.

    Args:
        matrices: confusion matrices [N, K, K], one per case.
        classes: the K class names.
        background: index of the class left out of the means `iou` and `dice`; None averages over all classes.
        regions: class indices by name of region; with some these means are over them.

    Returns:
        Scores as fractions in 0..1, NaN where undefined; counts of cases under `missed/`, `false_alarm/`, `undefined/`.
    """
    regions = regions or {}
    members = list(regions.values())
    pooled = matrices.sum(axis=0)
    scores, dice = class_scores(pooled, members), class_scores(matrices, members).dice
    label, of_class = pooled.sum(axis=1), slice(len(classes))
    case_dice = np.array([mean_of(column) for column in dice.T])
    foreground = averaged_over(classes, background, regions)
    in_label, predicted = (each > 0 for each in counts(matrices, members)[1:])
    per_class = {
        "dice": case_dice,
        "iou": scores.iou,
        "pooled_dice": scores.dice,
        "missed": (in_label & ~predicted).sum(axis=0),
        "false_alarm": (~in_label & predicted).sum(axis=0),
        "undefined": (~in_label & ~predicted).sum(axis=0),
    }
    summary = {
        "dice": mean_of(case_dice[foreground]),
        "iou": mean_of(scores.iou[foreground]),
        "pixel_accuracy": float(_ratio(np.trace(pooled), pooled.sum())),
        "mean_accuracy": mean_of(scores.recall[of_class]),
        "mean_iu": mean_of(scores.iou[of_class][label > 0]),
        "fw_iu": float(_ratio(np.nansum(label * scores.iou[of_class]), label.sum())),
    }
    for name, values in per_class.items():
        summary |= {f"{name}/{of}": float(value) for of, value in zip((*classes, *regions), values, strict=True)}
    return summary


def score_names(classes: Sequence[str], regions: Mapping[str, Sequence[int]]) -> list[str]:
    """Names of the scores that `summarise` gives for these classes and regions."""
    return list(summarise(np.zeros((1, len(classes), len(classes)), dtype=np.int64), classes, None, regions))


def check_monitor(monitor: str, classes: Sequence[str], regions: Mapping[str, Sequence[int]]) -> None:
    """Refuses a monitor that is no score, or one of which less is better; the others as `summarise` takes them.

    Raises:
        ConfigError: The best weights cannot be chosen by it.
    """
    known = [name for name in score_names(classes, regions) if not name.startswith(("missed/", "false_alarm/", "undefined/"))]
    if monitor not in known:
        raise ConfigError(
            f"'training.monitor={monitor}' is no score.{did_you_mean(monitor, known)} Choose from {listed(known, 30)}."
        )


def case_rows(
    matrices: NDArray[np.int64], ids: Sequence[str], classes: Sequence[str], regions: Mapping[str, Sequence[int]] | None = None
) -> list[dict[str, Any]]:
    """One row per case for `cases.csv`; scores are NaN where undefined.

    Args:
        matrices: confusion matrices [N, K, K].
        ids: the N case ids.
        classes: the K class names.
        regions: class indices by name of region.

    Returns:
        Rows with `case`, `pixels` (judged ones), and for each class and region `dice/`, `case_iou/`, `precision/`, `recall/`,
        `label_pixels/` and `predicted_pixels/`.
    """
    rows: list[dict[str, Any]] = []
    regions = regions or {}
    members = list(regions.values())
    for name, matrix in zip(ids, matrices, strict=True):
        scores, pixels = class_scores(matrix, members), counts(matrix, members)
        row: dict[str, Any] = {"case": name, "pixels": int(matrix.sum())}
        for index, of in enumerate((*classes, *regions)):
            row[f"dice/{of}"] = float(scores.dice[index])
            row[f"case_iou/{of}"] = float(scores.iou[index])
            row[f"precision/{of}"] = float(scores.precision[index])
            row[f"recall/{of}"] = float(scores.recall[index])
            row[f"label_pixels/{of}"] = int(pixels.label[index])
            row[f"predicted_pixels/{of}"] = int(pixels.predicted[index])
        rows.append(row)
    return rows


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """The ratio as float64, NaN where `whole` is 0."""
    out = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=out, where=np.asarray(whole) > 0)
    return out


def mean_of(values: NDArray[np.float64]) -> float:
    """The mean of the defined values, NaN where there is none; who calls says where the undefined ones are counted."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
