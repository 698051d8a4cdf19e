"""Windows that cover a case: partition, weights and overlap, by the definitions."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.cases.tiling import starts, tiles

few = settings(max_examples=60, deadline=None)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40))
sizes = st.tuples(st.integers(1, 4), st.integers(1, 24), st.integers(1, 24))
overlaps = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75])


@few
@given(shapes, sizes, overlaps)
def test_cores_partition_the_case(shape, size, overlap):
    times = np.zeros(shape, dtype=int)
    for tile in tiles(shape, size, overlap):
        assert tile.core.inside(shape)
        assert all(a >= b for a, b in zip(tile.core.start, tile.window.start, strict=True))
        assert all(a <= b for a, b in zip(tile.core.stop, tile.window.stop, strict=True))
        times[tile.core.slices] += 1
    assert (times == 1).all()


@few
@given(shapes, sizes, overlaps)
def test_weights_are_positive_and_sum_to_one_in_every_pixel(shape, size, overlap):
    total = np.zeros(shape)
    for tile in tiles(shape, size, overlap):
        z, y, x = tile.weights
        weights = z[:, None, None] * y[:, None] * x
        assert weights.shape == tile.window.size
        assert (weights > 0).all()
        total[tile.window.slices] += weights
    np.testing.assert_allclose(total, 1, rtol=1e-5)


@few
@given(shapes, sizes, overlaps)
def test_windows_lie_inside_and_have_the_size_asked_for_where_the_case_allows(shape, size, overlap):
    for tile in tiles(shape, size, overlap):
        assert tile.window.inside(shape)
        assert tile.window.size == tuple(min(a, b) for a, b in zip(shape, size, strict=True))


@few
@given(shapes, sizes, overlaps)
def test_windows_come_in_reading_order_and_each_once(shape, size, overlap):
    found = [tile.window.start for tile in tiles(shape, size, overlap)]
    assert found == sorted(set(found))


@few
@given(st.integers(1, 300), st.integers(1, 64), overlaps)
def test_neighbours_share_what_was_asked_for_and_are_evenly_spread(length, side, overlap):
    first = starts(length, side, overlap)
    assert (first[0], first[-1]) == (0, max(length - side, 0))
    steps = [b - a for a, b in pairwise(first)]
    if steps:
        assert max(steps) <= max(1, math.floor(side * (1 - overlap)))  # at least one pixel of progress
        assert max(steps) - min(steps) <= 1


@few
@given(st.integers(1, 300), st.integers(1, 64))
def test_without_overlap_there_are_no_more_windows_than_needed(length, side):
    assert len(starts(length, side, 0.0)) == math.ceil(length / side)


def test_a_case_that_is_smaller_than_the_window_is_one_tile():
    (tile,) = tiles((1, 5, 7), (1, 16, 16), 0.5)
    assert tile.window == tile.core == (0, 0, 0, 1, 5, 7)
    assert all((axis == 1).all() for axis in tile.weights)


def test_the_middle_of_a_window_weighs_more_than_its_border():
    first, *_ = tiles((1, 1, 48), (1, 1, 32), 0.5)
    x = first.weights[2]
    assert x[:16].min() == x.max() == 1
    assert (np.diff(x[16:]) < 0).all()


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 2.0])
def test_an_overlap_that_is_no_share_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap must lie in"):
        tiles((1, 8, 8), (1, 4, 4), overlap)


@few
@given(shapes, sizes, overlaps)
def test_a_window_is_alone_where_no_other_shares_a_pixel_with_it(shape, size, overlap):
    times = np.zeros(shape, dtype=int)
    found = tiles(shape, size, overlap)
    for tile in found:
        times[tile.window.slices] += 1
    for tile in found:
        assert tile.alone == (times[tile.window.slices] == 1).all()
