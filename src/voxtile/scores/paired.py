"""Whether one network's scores differ from another's on the same cases: paired differences. Defined in `docs/scores.md`.

Cases of one group are alike, so groups are resampled, and ranked, not cases. N cases, S structures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from voxtile.scores.intervals import Resamples, row_means

Floats = NDArray[np.float64]


class Difference(NamedTuple):
    """How a score differs over the cases in which both networks have it; NaN where there are none.

    Attributes:
        first: mean of the one that is compared with.
        other: mean of the other.
        difference: other - first.
        low: where the 95 % interval of the difference begins; NaN with fewer than `LEAST_GROUPS` groups.
        high: where it ends.
        p: of Wilcoxon's signed-rank test, two-sided, over the groups; NaN with fewer than two.
        cases: how many cases there are in it.
        groups: how many groups these are of.
    """

    first: float
    other: float
    difference: float
    low: float
    high: float
    p: float
    cases: int
    groups: int


def differences(pairs: Sequence[tuple[Floats, Floats]], groups: Sequence[str]) -> list[Difference]:
    """The differences of scores that are means over structures of means over cases.

    Args:
        pairs: of each score the first's and the other's values of each case and structure [N, S], NaN where undefined.
        groups: of the N cases.
    """
    apart = [other - first for first, other in pairs]
    resamples = Resamples(groups)  # drawn once for all
    sums = iter(resamples.sums(*(part for each in apart for part in (np.nan_to_num(each), ~np.isnan(each)))))
    found = []
    for (first, other), each in zip(pairs, apart, strict=True):
        total, number = next(sums), next(sums)
        kept = np.asarray(~np.isnan(each).all(axis=1))
        of_groups = _means(row_means(each[kept]), resamples.group_of[kept])
        means = [_mean_of_means(np.where(np.isnan(each), np.nan, values)) for values in (first, other)]
        drawn = row_means(np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0))
        low, high = resamples.interval(drawn, kept)
        found.append(
            Difference(means[0], means[1], means[1] - means[0], low, high, _signed_rank(of_groups), int(kept.sum()), len(of_groups))
        )
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Probabilities of several comparisons, each so much larger that the chance of any false one stays the level's.

    Holm 1979, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6. NaN stays NaN and
    is no comparison.
    """
    order = [place for place in np.argsort(p).tolist() if not math.isnan(p[place])]
    found, least = [math.nan] * len(p), 0.0
    for rank, place in enumerate(order):
        found[place] = least = max(least, min(1.0, (len(order) - rank) * p[place]))
    return found


def _means(values: Floats, of: NDArray[np.int64]) -> Floats:
    """The mean of the values of each number in `of` that occurs."""
    count = np.bincount(of)
    means: Floats = np.bincount(of, values)[count > 0] / count[count > 0]
    return means


def _signed_rank(values: Floats) -> float:
    """Wilcoxon 1945, *Individual comparisons by ranking methods*, Biometrics Bulletin 1; 1 where all values are 0."""
    if len(values) < 2:
        return math.nan
    return float(wilcoxon(values).pvalue) if values.any() else 1.0


def _mean_of_means(values: Floats) -> float:
    return float(row_means(row_means(values.T)[None])[0])
