"""Paired differences against a bootstrap by loops, SciPy's test on the groups' means, and Holm's own rule."""

import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from voxtile.scores.confusion import case_rows
from voxtile.scores.intervals import spreads
from voxtile.scores.paired import Difference, differences, holm


def difference(first: np.ndarray, other: np.ndarray, groups: list[str]) -> Difference:
    (found,) = differences([(first, other)], groups)
    return found


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two networks' scores of 30 cases of 11 groups and 2 structures, some undefined in one or both."""
    rng = np.random.default_rng(3)
    first = rng.random((30, 2))
    other = first + rng.normal(0.03, 0.1, (30, 2))
    first[rng.random((30, 2)) < 0.1] = np.nan
    other[rng.random((30, 2)) < 0.1] = np.nan
    return first, other, [f"g{number}" for number in rng.permutation(np.arange(30) % 11)]


def test_means_are_over_the_cases_that_both_have(scores) -> None:
    first, other, groups = scores
    found = difference(first, other, groups)
    both = ~np.isnan(first) & ~np.isnan(other)
    of_first, of_other = ([each[both[:, s], s].mean() for s in range(2)] for each in (first, other))
    assert found.first == pytest.approx(np.mean(of_first))
    assert found.other == pytest.approx(np.mean(of_other))
    assert found.difference == pytest.approx(found.other - found.first)
    assert (found.cases, found.groups) == (int(both.any(axis=1).sum()), 11)


def test_the_interval_is_that_of_groups_drawn_by_hand(scores) -> None:
    first, other, groups = scores
    members = {name: [n for n, group in enumerate(groups) if group == name] for name in set(groups)}
    rng, drawn = np.random.default_rng(1), []
    for _ in range(4000):
        cases = [n for name in rng.choice(sorted(members), len(members)) for n in members[name]]
        drawn.append(np.mean(np.nanmean((other - first)[cases], axis=0)))
    low, high = np.percentile(drawn, [2.5, 97.5])
    found = difference(first, other, groups)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.004), pytest.approx(high, abs=0.004))


def test_groups_are_ranked_and_not_cases(scores) -> None:
    first, other, groups = scores
    of_cases = np.array([np.nanmean(row) if not np.isnan(row).all() else np.nan for row in other - first])
    of_groups = [
        np.nanmean([v for v, group in zip(of_cases, groups, strict=True) if group == name]) for name in sorted(set(groups))
    ]
    assert difference(first, other, groups).p == pytest.approx(wilcoxon(of_groups).pvalue)


def test_six_groups_that_all_gain_come_to_the_smallest_p_there_is() -> None:
    first = np.linspace(0.2, 0.7, 6)[:, None]
    assert difference(first, first + np.linspace(0.01, 0.06, 6)[:, None], list("abcdef")).p == pytest.approx(2 / 2**6)


def test_the_same_scores_do_not_differ() -> None:
    same = np.random.default_rng(0).random((10, 1))
    found = difference(same, same, list("aabbccddee"))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize(("groups", "has_one"), [("abcde", True), ("abcdd", False)])
def test_five_groups_are_the_fewest_that_have_an_interval(groups, has_one) -> None:
    first = np.linspace(0.2, 0.6, 5)[:, None]
    found = difference(first, first**2, list(groups))
    assert (math.isnan(found.low), math.isnan(found.high), math.isnan(found.p)) == (not has_one, not has_one, False)


def test_one_group_has_neither_interval_nor_p_and_no_case_nothing() -> None:
    found = difference(np.array([[0.1], [0.2]]), np.array([[0.2], [0.4]]), ["a", "a"])
    assert found.difference == pytest.approx(0.15)
    assert all(math.isnan(value) for value in (found.low, found.high, found.p))
    none = difference(np.array([[np.nan]]), np.array([[0.2]]), ["a"])
    assert math.isnan(none.difference)
    assert none.cases == 0


def test_several_scores_at_once_are_those_one_by_one_and_undefined_groups_are_not_counted(scores) -> None:
    first, other, groups = scores
    rare = np.where(np.array([group in ("g1", "g2") for group in groups])[:, None], other, np.nan)
    pairs = [(first, other), (first, rare), (first[:, :1], other[:, :1])]
    assert differences(pairs, groups) == [difference(*pair, groups) for pair in pairs]
    assert differences(pairs, groups)[1].groups == 2


def test_means_are_those_of_evaluate_where_all_cases_are_defined() -> None:
    rng = np.random.default_rng(5)
    stacks = rng.integers(1, 50, (2, 9, 3, 3))
    cases, classes = list("abcdefghi"), ["ground", "disc", "ring"]
    rows = [case_rows(stack, cases, classes) for stack in stacks]
    values = [np.array([[row["dice/disc"], row["dice/ring"]] for row in each]) for each in rows]
    found = difference(*values, cases)
    means = [spreads(own, stack, cases, classes, 0)["dice"].mean for own, stack in zip(rows, stacks, strict=True)]
    assert [found.first, found.other] == pytest.approx(means)


def test_holms_steps() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # worked by hand
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    first, second, third = holm([0.02, math.nan, 0.03])
    assert (first, third) == (0.04, 0.04)
    assert math.isnan(second)
