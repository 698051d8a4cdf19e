"""Scores of objects against a count by brute force on whole arrays."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from voxtile.cases.window import Window
from voxtile.scores import objects
from voxtile.scores.objects import ObjectCounter, neighbours, object_scores, summarise_objects


def counted(
    label: np.ndarray, prediction: np.ndarray, threshold: float = 0.5, rows: int = 3, classes: tuple[int, ...] = (1,)
) -> list[list[int]]:
    """What the counter says when a case [D, H, W] comes in bands of `rows` rows, slice by slice."""
    counter = ObjectCounter(label.shape, {index: f"class{index}" for index in classes}, threshold)
    _, height, width = label.shape
    for z in range(label.shape[0]):
        for y in range(0, height, rows):
            window = Window(z, y, 0, 1, min(rows, height - y), width)
            counter.add(window, prediction[window.slices], label[window.slices])
    return counter.counts().tolist()


def brute_force(label: np.ndarray, prediction: np.ndarray, threshold: float, index: int) -> list[int]:
    """Objects as sets of pixels, every pair compared, every assignment of one side to the other tried."""
    everywhere = np.ones((3,) * label.ndim)
    mine, theirs = (
        [set(map(tuple, np.argwhere(found == number + 1))) for number in range(count)]
        for found, count in (ndimage.label(array == index, everywhere) for array in (label, prediction))
    )
    ignored = set(map(tuple, np.argwhere(label == 255)))
    same = np.array([[len(a & b) / len(a | (b - ignored)) >= threshold for b in theirs] for a in mine]).reshape(
        len(mine), len(theirs)
    )
    small, large = sorted([len(mine), len(theirs)])
    table = same if len(mine) <= len(theirs) else same.T
    best = max(permutations(range(large), small), key=lambda order: sum(table[row, column] for row, column in enumerate(order)))
    pairs = [(row, column) if table is same else (column, row) for row, column in enumerate(best) if table[row, column]]
    matched = {column for _, column in pairs}
    kept = [column for column, b in enumerate(theirs) if column in matched or 2 * len(b & ignored) <= len(b)]
    return [len(mine), len(kept), len(pairs)]


@given(st.integers(0, 10**6), st.sampled_from([(1, 9, 8), (3, 5, 4)]), st.sampled_from([0.2, 0.5, 0.51, 0.8]), st.integers(1, 9))
def test_counts_are_those_of_brute_force(seed: int, shape: tuple[int, int, int], threshold: float, rows: int) -> None:
    rng = np.random.default_rng(seed)
    label = ndimage.zoom(rng.choice([0, 1, 1, 2, 255], [-(-n // 2) for n in shape]), 2, order=0)
    label = label[: shape[0], : shape[1], : shape[2]].astype(np.uint8)
    noisy = np.where(rng.random(shape) < 0.15, rng.integers(0, 3, shape), label)
    prediction = np.where(noisy == 255, rng.integers(0, 3, shape), noisy).astype(np.uint8)
    expected = [brute_force(label, prediction, threshold, index) for index in (1, 2)]
    found = counted(label, prediction, threshold, rows, (1, 2))
    if threshold > 0.5:  # matches are unique
        assert found == expected
    else:  # several largest matchings may leave other objects without a partner
        assert [row[::2] for row in found] == [row[::2] for row in expected]


def squares(*corners: tuple[int, int], side: int = 4, value: int = 1) -> np.ndarray:
    array = np.zeros((1, 20, 20), dtype=np.uint8)
    for y, x in corners:
        array[0, y : y + side, x : x + side] = value
    return array


def test_what_is_found_missed_and_made_up() -> None:
    label = squares((0, 0), (0, 10), (10, 0))
    prediction = squares((1, 0), (0, 13), (15, 15))  # IoU 0.6, 1/7, 0
    assert counted(label, prediction) == [[3, 3, 1]]
    scores = object_scores(np.array([[3, 3, 1]]), ["roof"])
    assert scores["object_precision/roof"] == scores["object_recall/roof"] == scores["object_f1/roof"] == pytest.approx(1 / 3)
    assert counted(label, np.zeros_like(label)) == [[3, 0, 0]]
    assert counted(np.zeros_like(label), prediction) == [[0, 3, 0]]


def test_another_class_is_another_object() -> None:
    assert counted(squares((0, 0)), squares((0, 0), value=2), classes=(1, 2)) == [[1, 0, 0], [0, 1, 0]]


def test_two_that_were_joined_into_one_are_matched_at_most_once() -> None:
    label, joined = squares((0, 0), (0, 5)), squares((0, 0), (0, 5))
    joined[0, :4, 4] = 1
    assert counted(label, joined) == [[2, 1, 0]]
    joined[0, :4, 4] = 0
    label[0, :4, 4] = 255  # the gap is not judged: each is half of what was predicted
    joined[0, :4, 4] = 1
    assert counted(label, joined) == [[2, 1, 1]]


def test_what_lies_mostly_where_nothing_is_judged_is_no_false_alarm() -> None:
    label = np.zeros((1, 20, 20), dtype=np.uint8)
    label[0, :, 10:] = 255
    assert counted(label, squares((0, 7))) == [[0, 1, 0]]  # a quarter ignored
    assert counted(label, squares((0, 8))) == [[0, 1, 0]]  # half
    assert counted(label, squares((0, 9))) == [[0, 0, 0]]  # three quarters
    label[0, :4, 9] = 1
    assert counted(label, squares((0, 9))) == [[1, 1, 1]]  # but what is matched counts


@pytest.mark.parametrize("depth", [1, 3])
def test_a_big_band_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    rng = np.random.default_rng(0)
    label, prediction = ((rng.random((depth, 40, 30)) < 0.5).astype(np.uint8) for _ in range(2))
    whole = counted(label, prediction, 0.2, rows=40)
    monkeypatch.setattr(objects, "_PIXELS", 100)
    assert counted(label, prediction, 0.2, rows=40) == whole


def test_pooled_scores_add_counts_and_undefined_ones_are_left_out_of_the_mean() -> None:
    counts = np.array([[[4, 2, 1], [0, 0, 0]], [[0, 2, 1], [0, 0, 0]]])
    scores = summarise_objects([object_scores(case, ["roof", "water"]) for case in counts], ["roof", "water"])
    assert scores["object_precision/roof"] == 0.5
    assert scores["object_recall/roof"] == 0.5
    assert scores["object_f1"] == scores["object_f1/roof"] == 0.5
    assert np.isnan(scores["object_f1/water"])
    assert (scores["label_objects/roof"], scores["predicted_objects/roof"], scores["matched_objects/roof"]) == (4, 4, 2)


@pytest.mark.parametrize(("shape", "count"), [((1, 3, 3), 8), ((3, 3, 3), 26)])
def test_pixels_that_meet_at_a_corner_are_one_object(shape: tuple[int, int, int], count: int) -> None:
    label = np.zeros(shape, dtype=np.uint8)
    label[-1, -1, -1] = label[-1 - (shape[0] > 1), 1, 1] = 1
    assert counted(label, label) == [[1, 1, 1]]
    assert neighbours(shape) == count
