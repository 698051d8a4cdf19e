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

from voxtile.training.intervals import Resamples, row_means


class Difference(NamedTuple):
    """How a score differs over the cases in which both networks have it; NaN where there are none.

    Attributes:
        first: mean of the one that is compared with.
        other: mean of the other.
        difference: other - first.
        low: where the 95 % interval of the difference begins; NaN with fewer than two groups.
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


def difference(first: NDArray[np.float64], other: NDArray[np.float64], groups: Sequence[str]) -> Difference:
    """The difference of a score that is a mean over structures of means over cases.

    Args:
        first: of each case and structure [N, S], NaN where undefined.
        other: likewise, of the same cases.
        groups: of the N cases.
    """
    apart = other - first
    defined = ~np.isnan(apart)
    kept = defined.any(axis=1)
    apart, defined, groups = apart[kept], defined[kept], np.asarray(groups, dtype=str)[kept].tolist()
    of_first, of_other = (_mean_of_means(np.where(defined, each[kept], np.nan)) for each in (first, other))
    if not groups:
        return Difference(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0)
    resamples = Resamples(groups)
    total, number = resamples.sums(np.where(defined, apart, 0), defined)
    drawn = row_means(np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0))
    of_cases = row_means(apart)
    of_groups = np.array([of_cases[np.equal(groups, name)].mean() for name in sorted(set(groups))])
    low, high = resamples.interval(drawn)
    return Difference(of_first, of_other, of_other - of_first, low, high, _signed_rank(of_groups), len(groups), resamples.count)


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


def _signed_rank(values: NDArray[np.float64]) -> float:
    """Wilcoxon 1945, *Individual comparisons by ranking methods*, Biometrics Bulletin 1; 1 where all values are 0."""
    if len(values) < 2:
        return math.nan
    return float(wilcoxon(values).pvalue) if values.any() else 1.0


def _mean_of_means(values: NDArray[np.float64]) -> float:
    return float(row_means(row_means(values.T)[None])[0])
