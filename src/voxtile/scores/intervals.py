"""How far a mean over cases would move with other patients: intervals by resampling groups, not cases. Defined in `docs/scores.md`.

Cases of one group (a patient, a place) are alike, so a group is drawn with all of its cases: the cluster bootstrap of Davison and
Hinkley 1997, *Bootstrap Methods and their Application*, section 3.8, with percentile intervals (Efron and Tibshirani 1993, *An
Introduction to the Bootstrap*, section 13.3). N cases, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxtile.scores.confusion import Counts, averaged_over, class_scores, counts, mean_of, scores_of
from voxtile.values import finite

RESAMPLES = 10_000
AT_ONCE = 500
SEED = 0
LEVEL = 95  # per cent
LEAST_GROUPS = 5  # of fewer an interval is little more than the least and the greatest of their numbers
CASE_SCORES = ("dice", "case_iou", "precision", "recall")  # columns of cases.csv that have a mean over cases


class Spread(NamedTuple):
    """A score over cases; NaN where undefined.

    Attributes:
        mean: over the cases where it is defined; of a pooled score its value.
        median: likewise; None for a pooled score.
        low: where the 95 % interval of the mean begins; NaN with fewer than `LEAST_GROUPS` groups.
        high: where it ends.
        cases: how many cases there are in the mean.
    """

    mean: float
    median: float | None
    low: float
    high: float
    cases: int

    def as_dict(self) -> dict[str, Any]:
        """Plain types; what is undefined is None."""
        found: dict[str, Any] = finite(self._asdict())
        return found


class Resamples:
    """`RESAMPLES` draws of as many groups as there are, with replacement.

    Attributes:
        group_of: the number of each case's group [N], in the order of their names.
        count: how many groups there are.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        """Remembers the groups; the same ones give the same draws, in whatever order they come.

        Args:
            groups: the group of each of the N cases.
        """
        names, self.group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        self.count = len(names)

    def sums(self, *values: NDArray[Any]) -> list[NDArray[np.float64]]:
        """The sums over the drawn cases of each of the `values` [N, ...], for each draw: [RESAMPLES, ...]."""
        of_groups = [np.zeros((self.count, math.prod(each.shape[1:]))) for each in values]
        for own, each in zip(of_groups, values, strict=True):
            np.add.at(own, self.group_of, each.reshape(len(each), -1))
        out = [np.empty((RESAMPLES, *each.shape[1:])) for each in values]
        rng, chances = np.random.default_rng(SEED), np.full(self.count, 1 / self.count)
        # Some at a time: of ten thousands of groups all draws together take gigabytes.
        for first in range(0, RESAMPLES, AT_ONCE):
            part = slice(first, first + AT_ONCE)
            drawn = rng.multinomial(self.count, chances, size=len(out[0][part])).astype(np.float64)  # [AT_ONCE, G]
            for sums, own in zip(out, of_groups, strict=True):
                sums[part] = (drawn @ own).reshape(sums[part].shape)
        return out

    def interval(self, drawn: NDArray[np.float64], cases: NDArray[np.bool_] | None = None) -> tuple[float, float]:
        """The percentile interval of one score's value in each draw, without the draws in which it is undefined.

        Args:
            drawn: the values.
            cases: in which the score is defined [N]; None where in all. NaN is the interval of fewer than `LEAST_GROUPS` groups.
        """
        drawn = drawn[~np.isnan(drawn)]
        groups = self.count if cases is None else len(np.unique(self.group_of[cases]))
        if groups < LEAST_GROUPS or not drawn.size:
            return math.nan, math.nan
        low, high = np.percentile(drawn, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
        return float(low), float(high)


def spreads(
    rows: Sequence[dict[str, Any]],
    matrices: NDArray[np.int64],
    groups: Sequence[str],
    classes: Sequence[str],
    background: int | None,
    regions: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Spread]:
    """Mean, median and interval of each score that is a mean over cases, and the interval of those that are pooled.

    Args:
        rows: of `cases.csv`, with columns `<score>/<class>` and `<score>/<region>`.
        matrices: confusion matrices [N, K, K] of the same cases.
        groups: of the same cases.
        classes: the K class names.
        background: index of the class that is left out of the means over classes.
        regions: class indices by name of region; with some these means are over them.

    Returns:
        By the names of `summarise` and of the columns: `dice`, `dice/<class>`, …, `iou`, `iou/<class>`, `pooled_dice/<class>`.
    """
    resamples, regions = Resamples(groups), regions or {}
    names, members = (*classes, *regions), list(regions.values())
    columns = [name for name in rows[0] if name.partition("/")[0] in CASE_SCORES]
    values = np.array([[row[name] for name in columns] for row in rows], dtype=np.float64)
    defined = ~np.isnan(values)
    # Of the pixels that pooled scores are made of, not of matrices: of many classes these would be gigabytes.
    of_cases = counts(matrices, members)
    total, number, *pixels = resamples.sums(np.where(defined, values, 0), defined, *of_cases)
    drawn = np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)
    found = {
        name: _spread(values[:, place], resamples.interval(drawn[:, place], defined[:, place]))
        for place, name in enumerate(columns)
    }
    foreground = averaged_over(classes, background, regions)
    dice = [columns.index(f"dice/{names[index]}") for index in foreground]
    anywhere = np.asarray(defined[:, dice].any(axis=1))
    found["dice"] = Spread(
        mean_of(np.array([found[columns[place]].mean for place in dice])), None,
        *resamples.interval(row_means(drawn[:, dice]), anywhere), int(anywhere.sum()),
    )  # fmt: skip
    seen = (of_cases.label + of_cases.predicted) > 0  # pixels of these are pooled
    pooled, redrawn = class_scores(matrices.sum(axis=0), members), scores_of(Counts(*pixels))
    for name, kind in (("iou", "iou"), ("pooled_dice", "dice")):
        one, many = getattr(pooled, kind), getattr(redrawn, kind)
        for index, of in enumerate(names):
            found[f"{name}/{of}"] = Spread(float(one[index]), None, *resamples.interval(many[:, index], seen[:, index]), len(rows))
        if name == "iou":
            interval = resamples.interval(row_means(many[:, foreground]), np.asarray(seen[:, foreground].any(axis=1)))
            found["iou"] = Spread(mean_of(one[foreground]), None, *interval, len(rows))
    return found


def _spread(values: NDArray[np.float64], interval: tuple[float, float]) -> Spread:
    defined = values[~np.isnan(values)]
    median = float(np.median(defined)) if defined.size else math.nan
    return Spread(mean_of(values), median, *interval, int(defined.size))


def row_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of what is defined in each row, NaN where nothing is."""
    number = (~np.isnan(values)).sum(axis=1)
    means = np.full(len(values), np.nan)
    np.divide(np.nansum(values, axis=1), number, out=means, where=number > 0)
    return means
