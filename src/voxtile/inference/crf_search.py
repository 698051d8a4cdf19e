"""The search of the dense CRF's settings on labelled cases, from coarse to fine.

K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxtile.cases.window import IGNORE
from voxtile.errors import ConfigError, did_you_mean, listed
from voxtile.inference.crf import DenseCRF, Mask
from voxtile.inference.permutohedral import Floats
from voxtile.scores.confusion import class_scores, confusion_matrix, mean_of

Judged = tuple[Floats, NDArray[Any], NDArray[Any], Mask | None]

# DeepLab v1 searches 5..10, 50..100 and 3..10.
GRID: Mapping[str, Sequence[float]] = {
    "bilateral_weight": (5.0, 7.5, 10.0),
    "bilateral_position": (50.0, 75.0, 100.0),
    "bilateral_value": (3.0, 6.5, 10.0),
}


@dataclass(frozen=True)
class Trial:
    """What one setting of the search reached.

    Attributes:
        settings: the CRF; None for the network's own classes, without a CRF.
        mean_iu: mean over the classes that occur in the labels, of one confusion matrix summed over all cases (see
            `docs/scores.md`).
        stage: 0 for no CRF, 1 for the grid, 2 and up for the finer ones.
    """

    settings: DenseCRF | None
    mean_iu: float
    stage: int


def search(
    cases: Callable[[], Iterable[Judged]],
    start: DenseCRF | None = None,
    grid: Mapping[str, Sequence[float]] = GRID,
    stages: int = 2,
    threads: int = 1,
) -> tuple[DenseCRF, list[Trial]]:
    """Looks for the best settings on validation cases, from coarse to fine, as DeepLab's authors do.

    The first stage tries every combination of the grid. Each later one tries every combination of the best settings so far and,
    per setting, the middles between its value and the next ones tried on either side. Of equals, the first tried is taken.

    Args:
        cases: called once per stage; yields (probabilities, image, label, valid) of each case as `DenseCRF.refine` takes them, with
            class indices in `label`, 255 where nothing is judged. Pixels that hold no data are not judged either.
        start: settings that are not searched.
        grid: values to try by name of a setting, for example {"bilateral_value": (3, 6, 9)}.
        stages: how many; 1 is the grid alone.
        threads: settings to try at once.

    Returns:
        The best settings, and all that was tried, in order; the first entry is the network without a CRF.

    Raises:
        ConfigError: The grid names no numeric setting, or holds impossible values.
        ValueError: There is no case, no label or no pixel to judge.
    """
    start = start or DenseCRF()
    known = [field.name for field in fields(DenseCRF) if field.name not in ("iterations", "normalisation", "channels")]
    for name, values in grid.items():
        if name not in known or not len(values):
            hint = "" if name in known else did_you_mean(name, known)
            raise ConfigError(f"The search was given {name}={list(values)}; expected values for one of {listed(known)}.{hint}")
    if stages < 1:
        raise ConfigError(f"The search was given stages={stages}; expected 1 or more.")
    tried: dict[DenseCRF, float] = {}
    table: list[Trial] = []
    axes: dict[str, list[Any]] = {name: sorted(set(values)) for name, values in grid.items()}
    for stage in range(1, stages + 1):
        combinations = [replace(start, **dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
        new: list[DenseCRF | None] = [settings for settings in combinations if settings not in tried]
        if stage == 1:
            new.insert(0, None)
        if not new:  # no setting had a neighbour to look towards
            break
        for settings, score in zip(new, _mean_ius(cases(), new, threads), strict=True):
            table.append(Trial(settings, score, stage if settings else 0))
            if settings:
                tried[settings] = score
        best = max(tried, key=lambda settings: tried[settings])
        axes = {name: _finer(getattr(best, name), values) for name, values in axes.items()}
    return best, table


def _finer(value: float, values: Sequence[float]) -> list[float]:
    """The value and the middles towards its neighbours in a sorted list."""
    at = values.index(value)
    return sorted({(value + other) / 2 for other in values[max(at - 1, 0) : at + 2]})


def _mean_ius(cases: Iterable[Judged], trials: Sequence[DenseCRF | None], threads: int) -> list[float]:
    """The mean IU of each trial over all cases, each of which is taken up once."""
    matrices: NDArray[np.int64] | None = None
    with ThreadPoolExecutor(threads) as pool:
        for case in cases:
            found = np.stack(list(pool.map(partial(_confusion, case), trials)))
            if matrices is not None and found.shape != matrices.shape:
                raise ValueError(f"a case of {found.shape[1]} classes follows others of {matrices.shape[1]}")
            matrices = found if matrices is None else matrices + found
    if matrices is None or not matrices.any():
        raise ValueError("the search needs labelled cases with pixels to judge, and was given none")
    return [_mean_iu(matrix) for matrix in matrices]


def _confusion(case: Judged, trial: DenseCRF | None) -> NDArray[np.int64]:
    """The confusion matrix [K, K] of a case with some settings, rows by label."""
    probabilities, image, label, valid = case
    judged = np.array(label) if valid is None else np.where(valid, label, IGNORE)
    best = (trial.refine(probabilities, image, valid) if trial else probabilities).argmax(axis=0)
    matrix = confusion_matrix(torch.from_numpy(best), torch.from_numpy(judged), len(probabilities))
    return np.asarray(matrix)


def _mean_iu(matrix: NDArray[np.int64]) -> float:
    """The mean over the classes that are in the label."""
    return mean_of(class_scores(matrix).iou[matrix.sum(axis=1) > 0])
