"""Post-processing of whole maps against definitions written out pixel by pixel, and its choice by Dice."""

import itertools
import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.testers.memory import memory_case
from voxtile.cases.window import IGNORE, Window
from voxtile.errors import DataError
from voxtile.inference import postprocess
from voxtile.inference.postprocess import Postprocess, check_size, pixel_size
from voxtile.inference.postprocess_search import REMOVALS, KeptMap, Search

CLASSES = 3


def flooded(mask, corners):
    """Components of a mask [D, H, W] as lists of places, in reading order, found by walking from neighbour to neighbour."""
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if any(s) and (corners or sum(map(abs, s)) == 1)]
    left, found = set(map(tuple, np.argwhere(mask).tolist())), []
    for place in sorted(left):
        if place not in left:
            continue
        left.remove(place)
        part, queue = [place], deque([place])
        while queue:
            here = queue.popleft()
            for step in steps:
                there = tuple(a + b for a, b in zip(here, step, strict=True))
                if there in left:
                    left.remove(there)
                    part.append(there)
                    queue.append(there)
        found.append(part)
    return found


def defined(classes, post, pixel):
    """What a post-processing is by its definition."""
    out = classes.copy()
    for index in range(CLASSES):
        parts = flooded(out == index, corners=True) if index in post.largest or index in post.smallest else []
        most = max(map(len, parts), default=0)
        first = next((number for number, part in enumerate(parts) if len(part) == most), None)
        for number, part in enumerate(parts):
            if (index in post.largest and number != first) or len(part) * pixel < post.smallest.get(index, 0):
                for place in part:
                    out[place] = post.background
    axes = [axis for axis in range(3) if axis or classes.shape[0] > 1]
    for index in post.holes:
        before = out.copy()
        for part in flooded(before != index, corners=False):
            if not any(place[axis] in (0, classes.shape[axis] - 1) for place in part for axis in axes):
                for place in part:
                    if before[place] == post.background:
                        out[place] = index
    return out


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(1, 9, 8), (4, 5, 6), (3, 1, 7), (5, 5, 5)]), seed=st.integers(0, 10**6), share=st.floats(0.2, 0.8),
    largest=st.sets(st.sampled_from([1, 2])), holes=st.sets(st.sampled_from([1, 2])),
    smallest=st.dictionaries(st.sampled_from([1, 2]), st.floats(0.5, 9)), pixel=st.sampled_from([0.5, 1.0, 2.0]),
)  # fmt: skip
def test_a_map_is_changed_as_the_definition_says(shape, seed, share, largest, holes, smallest, pixel):
    rng = np.random.default_rng(seed)
    rest = (1 - share) / 2
    classes = rng.choice([0, 1, 2, IGNORE], shape, p=[rest, share, rest * 0.9, rest * 0.1]).astype(np.uint8)
    post = Postprocess(0, tuple(sorted(largest)), smallest, tuple(sorted(holes)))
    found = classes.copy()
    post.apply(found, pixel)
    np.testing.assert_array_equal(found, defined(classes, post, pixel))
    assert ((found == IGNORE) == (classes == IGNORE)).all()


def test_holes_of_a_single_class_are_those_of_scipy():
    mask = np.random.default_rng(0).random((20, 21, 22)) < 0.75
    classes = mask.astype(np.uint8)
    Postprocess(0, holes=(1,)).apply(classes, 1.0)
    np.testing.assert_array_equal(classes == 1, ndimage.binary_fill_holes(mask))
    assert classes.sum() > mask.sum()


def test_sizes_are_millimetres_of_volumes_and_pixels_of_scenes():
    affine = tuple(tuple(row) for row in np.diag([-0.5, 2.0, 3.0, 1.0]).tolist())
    assert pixel_size(memory_case("v", (4, 4, 4), affine=affine, unit="mm")) == pytest.approx(3.0)
    assert pixel_size(memory_case("s", (1, 4, 4), affine=affine, unit="m")) == 1.0


def test_a_case_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(postprocess, "MOST_PIXELS", 100)
    check_size(memory_case("small", (1, 10, 10)))
    with pytest.raises(DataError, match="large has 110 pixels"):
        check_size(memory_case("large", (1, 10, 11)))


# --- the search


def blob(shape, *boxes):
    out = np.zeros(shape, dtype=np.uint8)
    for index, box in boxes:
        out[box] = index
    return out


def kept(name, label, found):
    case = memory_case(name, array=np.zeros((1, *label.shape), np.uint8), label=label)
    rows = [Window.of((0, y, 0), (label.shape[0], 5, label.shape[2])) for y in range(0, label.shape[1], 5)]
    return KeptMap.of(case, ((row, found[row.slices]) for row in rows))


def noisy_maps(holed=False):
    """Cases whose class 1 is one disc, predicted with specks (4 pixels), and class 2 several, which are all right."""
    maps = []
    for number in range(4):
        label = blob((1, 20, 20), (1, np.s_[:, 2:9, 2:9]), (2, np.s_[:, 12:14, 2:4]), (2, np.s_[:, 12:14, 8 : 10 + number]))
        found = label.copy()
        found[:, 16:18, 15:17] = 1
        if holed:
            found[:, 4:6, 4:6] = 0
        maps.append(kept(f"c{number}", label, found))
    return maps


def test_what_helps_a_class_is_chosen_for_it_alone():
    chosen, tried = Search(noisy_maps(), CLASSES, 0).choose(range(4))
    assert chosen == Postprocess(0, (1,), {})
    means = {(trial.index, trial.option): trial.dice for trial in tried}
    assert means[1, "largest"] == means[1, "smallest 10"] == means[2, "as it is"] == 1.0
    assert means[1, "as it is"] == pytest.approx(2 * 49 / (49 + 53))
    assert means[2, "largest"] < 1
    assert means[2, "smallest 10"] < means[2, "largest"]
    chosen, _ = Search(noisy_maps(holed=True), CLASSES, 0).choose(range(4))
    assert chosen == Postprocess(0, (1,), {}, (1,))


def test_options_are_judged_as_they_act_on_maps():
    maps = noisy_maps(holed=True)
    search = Search(maps, CLASSES, 0)
    _, tried = search.choose([1, 3])
    for trial in tried:
        if trial.option == "holes":
            continue
        largest, least = REMOVALS[trial.option]
        own = Postprocess(0, (trial.index,) if largest else (), {trial.index: least} if least else {})
        dice = []
        for number in (1, 3):
            classes = maps[number].classes()
            own.apply(classes, 1.0)
            label = maps[number].case.read_label(Window.whole(classes.shape)) == trial.index
            mine = classes == trial.index
            dice.append(2 * (label & mine).sum() / (label.sum() + mine.sum()))
        assert trial.dice == pytest.approx(np.mean(dice)), trial


def test_each_map_is_unpacked_once_for_the_removals_of_all_classes(monkeypatch):
    unpacked, unpack = [], KeptMap.classes
    monkeypatch.setattr(KeptMap, "classes", lambda kept: unpacked.append(kept.case.id) or unpack(kept))
    Search(noisy_maps(), CLASSES, 0)
    assert unpacked == ["c0", "c1", "c2", "c3"]


def test_a_choice_looks_at_the_given_cases_only():
    label = blob((1, 20, 20), (1, np.s_[:, 2:9, 2:9]), (1, np.s_[:, 12:19, 12:18]))
    odd = kept("odd", label, label)  # here the largest component alone would be wrong
    search = Search([*noisy_maps(), odd], CLASSES, 0)
    assert search.choose(range(4))[0].largest == (1,)
    assert search.choose([4])[0] == Postprocess(0)
    assert search.choose(range(5))[0].smallest == {1: 10.0}


def test_what_is_nowhere_or_no_better_is_left_as_it_is():
    label = blob((1, 10, 10), (1, np.s_[:, 2:6, 2:6]))
    chosen, tried = Search([kept("same", label, label)], CLASSES, 0).choose([0])
    assert chosen == Postprocess(0)
    assert all(math.isnan(trial.dice) for trial in tried if trial.index == 2)
    missed = Search([kept("missed", label, np.zeros_like(label))], CLASSES, 0).choose([0])[1]
    assert {trial.dice for trial in missed if trial.index == 1} == {0.0}


def test_pixels_that_are_not_judged_count_for_nothing():
    label = blob((1, 10, 10), (1, np.s_[:, 2:6, 2:6]), (IGNORE, np.s_[:, 7:10, :]))
    found = blob((1, 10, 10), (1, np.s_[:, 2:6, 2:6]), (1, np.s_[:, 8:9, 2:6]), (IGNORE, np.s_[:, 2:3, :]))
    _, tried = Search([kept("ignored", label, found)], CLASSES, 0).choose([0])
    assert {trial.dice for trial in tried if trial.index == 1 and trial.option in ("as it is", "largest")} == {1.0}


def test_kept_maps_come_back_in_their_bands():
    (first, *_) = noisy_maps()
    bands = list(first.bands(Postprocess(0, (1,))))
    assert [window.height for window, _ in bands] == [5] * 4
    whole = np.concatenate([part for _, part in bands], axis=1)
    expected = first.classes()
    expected[:, 16:18, 15:17] = 0
    np.testing.assert_array_equal(whole, expected)
