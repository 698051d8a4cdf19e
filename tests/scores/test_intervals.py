"""Intervals over groups, against SciPy's bootstrap and by what they must not depend on."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from voxtile.scores import intervals as module
from voxtile.scores.confusion import case_rows, summarise
from voxtile.scores.intervals import RESAMPLES, Resamples, spreads

CLASSES = ("ground", "disc", "ring")


def made(count, seed=0):
    """Confusion matrices [N, 3, 3] of cases that are not alike, and their rows."""
    rng = np.random.default_rng(seed)
    matrices = rng.integers(1, 30, (count, 3, 3)) + np.eye(3, dtype=np.int64) * rng.integers(20, 400, (count, 1, 1))
    return matrices, case_rows(matrices, [f"c{number}" for number in range(count)], CLASSES)


def test_with_a_group_for_each_case_the_interval_is_that_of_scipys_bootstrap():
    matrices, rows = made(40)
    found = spreads(rows, matrices, [f"g{number}" for number in range(40)], CLASSES, 0)
    for name in ("dice/disc", "precision/ring"):
        values = np.array([row[name] for row in rows])
        other = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10 * RESAMPLES, rng=np.random.default_rng(1))
        width = other.confidence_interval.high - other.confidence_interval.low
        assert found[name].low == pytest.approx(other.confidence_interval.low, abs=0.03 * width)
        assert found[name].high == pytest.approx(other.confidence_interval.high, abs=0.03 * width)
        assert (found[name].mean, found[name].median) == (pytest.approx(values.mean()), pytest.approx(np.median(values)))


def test_pooled_scores_and_means_over_classes_have_intervals_that_hold_them():
    matrices, rows = made(30)
    scores = summarise(matrices, CLASSES, 0)
    found = spreads(rows, matrices, [row["case"] for row in rows], CLASSES, 0)
    for name in ("iou", "iou/disc", "pooled_dice/ring", "dice"):
        assert found[name].mean == pytest.approx(scores[name])
        assert found[name].low < scores[name] < found[name].high
    # By hand, from resampled indices.
    draws = np.random.default_rng(2).integers(0, 30, (4000, 30))
    pooled = matrices[draws].sum(axis=1)
    iou = pooled[:, 1, 1] / (pooled[:, 1].sum(axis=1) + pooled[:, :, 1].sum(axis=1) - pooled[:, 1, 1])
    low, high = np.percentile(iou, [2.5, 97.5])
    assert found["iou/disc"].low == pytest.approx(low, abs=0.05 * (high - low))
    assert found["iou/disc"].high == pytest.approx(high, abs=0.05 * (high - low))


def test_regions_have_intervals_as_if_their_classes_were_one():
    matrices, _ = made(30)
    regions, groups = {"all": (1, 2)}, [f"g{number}" for number in range(30)]
    rows = case_rows(matrices, groups, CLASSES, regions)
    found = spreads(rows, matrices, groups, CLASSES, 0, regions)
    ground, rest = matrices[:, 0, 0], matrices[:, 1:, 1:].sum(axis=(1, 2))
    one = np.stack([ground, matrices[:, 0, 1:].sum(axis=1), matrices[:, 1:, 0].sum(axis=1), rest], axis=1).reshape(-1, 2, 2)
    expected = spreads(case_rows(one, groups, ("ground", "all")), one, groups, ("ground", "all"), 0)
    for name in ("dice/all", "case_iou/all", "precision/all", "iou/all", "pooled_dice/all", "dice", "iou"):
        np.testing.assert_allclose([*found[name]][2:], [*expected[name]][2:])
        assert found[name].mean == pytest.approx(expected[name].mean)
    assert found["dice/disc"].mean < found["dice"].mean  # the mean is over regions


def test_cases_of_one_group_are_drawn_together():
    matrices, rows = made(10)
    twice = np.repeat(matrices, 4, axis=0)
    copies = case_rows(twice, [f"c{number}" for number in range(40)], CLASSES)
    alone = spreads(rows, matrices, [f"g{n:02d}" for n in range(10)], CLASSES, 0)["dice/disc"]
    together = spreads(copies, twice, [f"g{n // 4:02d}" for n in range(40)], CLASSES, 0)["dice/disc"]
    apart = spreads(copies, twice, [f"g{n:02d}" for n in range(40)], CLASSES, 0)["dice/disc"]
    assert (together.low, together.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert apart.high - apart.low < 0.7 * (together.high - together.low)


def test_the_order_of_cases_changes_nothing():
    matrices, rows = made(12)
    groups = [f"g{number // 2}" for number in range(12)]
    first = spreads(rows, matrices, groups, CLASSES, 0)
    order = np.random.default_rng(0).permutation(12)
    second = spreads([rows[n] for n in order], matrices[order], [groups[n] for n in order], CLASSES, 0)
    assert all(first[name] == pytest.approx(second[name]) for name in first)


@pytest.mark.parametrize(("without", "groups", "has_one"), [(1, "abcdef", True), (2, "abcdef", False), (1, "abcdee", False)])
def test_undefined_cases_are_counted_out_and_five_groups_are_the_fewest_that_have_an_interval(without, groups, has_one):
    matrices, _ = made(6)
    matrices[:without, 1], matrices[:without, :, 1] = 0, 0  # cases without the class in label and map
    rows = case_rows(matrices, list("abcdef"), CLASSES)
    found = spreads(rows, matrices, list(groups), CLASSES, 0)
    one = found["dice/disc"]
    assert one.cases == 6 - without
    assert one.mean == pytest.approx(np.mean([row["dice/disc"] for row in rows[without:]]))
    assert (math.isnan(one.low), one.as_dict()["high"] is None) == (not has_one, not has_one)
    assert math.isnan(found["iou/disc"].low) == (not has_one)
    enough = len(set(groups)) >= 5  # in which the other class is
    assert [math.isnan(found[name].low) for name in ("dice/ring", "dice", "iou/ring", "iou")] == [not enough] * 4


@pytest.mark.parametrize(("without", "has_one"), [(1, True), (2, False)])
def test_means_over_classes_have_an_interval_where_five_groups_hold_any_of_them(without, has_one):
    matrices, _ = made(6)
    matrices[:without, 1:], matrices[:without, :, 1:] = 0, 0  # cases without any class but the background
    groups = list("abcdef")
    found = spreads(case_rows(matrices, groups, CLASSES), matrices, groups, CLASSES, 0)
    assert found["dice"].cases == 6 - without
    assert [math.isnan(found[name].low) for name in ("dice", "iou")] == [not has_one] * 2


def test_draws_are_the_same_however_many_are_made_at_a_time(monkeypatch):
    values, groups = np.arange(20), [f"g{number // 2}" for number in range(20)]
    (expected,) = Resamples(groups).sums(values)
    monkeypatch.setattr(module, "AT_ONCE", 999)
    np.testing.assert_array_equal(Resamples(groups).sums(values)[0], expected)
    assert len(np.unique(expected)) > 20


def test_many_groups_and_many_classes_take_little_memory():
    groups, classes = [f"g{number}" for number in range(1000)], [f"k{number}" for number in range(40)]
    matrices = np.random.default_rng(0).integers(0, 9, (1000, 40, 40))
    rows = [{"dice/k0": 0.5} | {f"dice/{name}": 0.25 for name in classes}] * 1000
    tracemalloc.start()
    spreads(rows, matrices, groups, classes, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e7  # all draws take 1.6e8 bytes, and as many matrices 1.3e8


@pytest.mark.parametrize("count", [40, pytest.param(100, marks=pytest.mark.slow)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(count):
    rng, held = np.random.default_rng(3), 0
    for _ in range(150):
        values = np.clip(1 - rng.gamma(2.0, 0.05, count), 0, 1)  # skewed, as Dice is
        resamples = Resamples([str(number) for number in range(count)])
        low, high = resamples.interval(resamples.sums(values)[0] / count)
        held += low <= 0.9 <= high  # clipping at 0 moves the mean by less than 1e-7
    assert 0.90 <= held / 150 <= 0.98
