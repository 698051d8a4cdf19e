"""The order of windows: bands partition a case, and a strip has every window that touches it."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.cases.tiling import tiles
from voxtile.cases.window import Window
from voxtile.inference.rows import needed, strips

few = settings(max_examples=30, deadline=None)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 30), st.integers(1, 40))
sizes = st.tuples(st.integers(2, 5), st.integers(3, 20), st.integers(3, 25))
overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.8])
widths = st.one_of(st.none(), st.integers(1, 50))


def touches(window, other):
    return all(a < d and c < b for a, b, c, d in zip(window.start, window.stop, other.start, other.stop, strict=True))


def planned(shape, size, overlap, planar, widest):
    return strips(shape, (1, *size[1:]) if planar else size, overlap, planar, widest)


@few
@given(shapes, sizes, overlaps, st.booleans(), widths)
def test_bands_partition_the_case(shape, size, overlap, planar, widest):
    times = np.zeros(shape, int)
    for strip in planned(shape, size, overlap, planar, widest):
        for row in strip:
            times[row.band.slices] += 1
            assert row.thick > 0
    assert (times == 1).all()


@few
@given(shapes, sizes, overlaps, st.booleans(), widths)
def test_a_row_has_every_window_that_touches_its_strip_once_and_its_band_is_behind_no_later_row(
    shape, size, overlap, planar, widest
):
    size = (1, *size[1:]) if planar else size
    everything = [tile.window for tile in tiles(shape, size, overlap)]
    for strip in strips(shape, size, overlap, planar, widest):
        axis = strip[0].axis
        assert axis == (1 if planar else 0)
        for row in strip:
            start = row.box.start[: axis + 1]
            expected = [window for window in everything if window.start[: axis + 1] == start and touches(window, row.box)]
            assert [tile.window for tile in row.tiles] == expected
            assert row.box.inside(shape)
        for row, after in pairwise(strip):
            assert row.band.stop[axis] == after.box.start[axis]
        # What is said of a band is said by this row and earlier ones of its strip: all windows that touch it are among them.
        before = set()
        for row in strip:
            before |= {tile.window for tile in row.tiles}
            assert [window for window in everything if window not in before and touches(window, row.band)] == []


@few
@given(shapes, sizes, overlaps, widths)
def test_no_strip_is_wider_than_asked_for_or_than_one_core(shape, size, overlap, widest):
    size = (1, *size[1:])
    cores = {tile.core.x: tile.core.width for tile in tiles(shape, size, overlap)}
    edges = {*cores, shape[2]}
    for strip in strips(shape, size, overlap, True, widest):
        left, right = strip[0].box.x, strip[0].box.stop[2]
        assert {left, right} <= edges
        if widest is None:
            assert (left, right) == (0, shape[2])
        elif right - left > widest:
            assert right - left == cores[left]


@few
@given(shapes, sizes, overlaps, st.booleans(), widths, st.integers(0, 30), st.data())
def test_the_rows_that_are_needed_complete_every_band_that_is_missing_and_those_around_it(
    shape, size, overlap, planar, widest, margin, data
):
    for strip in planned(shape, size, overlap, planar, widest):
        bands = [row.band for row in strip]
        done = set(data.draw(st.lists(st.sampled_from(bands), unique=True)))
        found = needed(strip, done, margin)
        missing = [row for row in strip if row.band not in done]
        assert [row for row in strip if row in found] == found
        axis = strip[0].axis
        for row in missing:
            low, high = row.band.start[axis] - margin, row.band.stop[axis] + margin
            expected = [each for each in strip if each.box.start[axis] < high and each.box.stop[axis] > low]
            assert [each for each in expected if each not in found] == []
        if not missing:
            assert found == []
        # Nothing is computed for the sake of bands that are done and far away.
        far = size[0 if not planar else 1] + margin
        for row in found:
            assert any(
                row.band.start[axis] < each.band.stop[axis] + far and row.band.stop[axis] > each.band.start[axis] - far
                for each in missing
            )


def test_a_scene_of_three_windows_is_cut_where_their_cores_meet():
    strip, other = strips((1, 8, 24), (1, 8, 8), 0.0, True, 16)
    assert [row.box for row in strip + other] == [Window(0, 0, 0, 1, 8, 16), Window(0, 0, 16, 1, 8, 8)]
    assert [len(row.tiles) for row in strip + other] == [2, 1]
    assert len(strips((1, 8, 24), (1, 8, 8), 0.5, True, 16)[0][0].tiles) == 4  # one reaches over the side


def test_a_case_that_is_asked_for_again_is_not_planned_again():
    assert strips((1, 8, 24), (1, 8, 8), 0.0, True, 16) is strips((1, 8, 24), (1, 8, 8), 0.0, True, 16)
