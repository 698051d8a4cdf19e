import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.cases.window import Window

quick = settings(max_examples=60, deadline=None)
shapes = st.tuples(*[st.integers(1, 7)] * 3)
offsets = st.tuples(*[st.integers(-9, 9)] * 3)
boxes = st.builds(Window.of, offsets, shapes)


def indices(window):
    """Every (z, y, x) in the window."""
    return {tuple(np.add(window.start, index).tolist()) for index in np.ndindex(*window.size)}


@quick
@given(box=boxes, shape=shapes)
def test_clipping_keeps_exactly_what_lies_inside(box, shape):
    kept = box.clipped(shape)
    inside = {index for index in indices(box) if all(0 <= i < n for i, n in zip(index, shape, strict=True))}
    assert (indices(kept) if kept.pixels else set()) == inside
    assert box.inside(shape) == (kept == box)
    assert box.pixels == len(indices(box))


@quick
@given(shape=shapes)
def test_the_whole_is_inside_and_every_pixel_of_it(shape):
    whole = Window.whole(shape)
    assert whole.inside(shape)
    assert np.zeros(shape)[whole.slices].shape == shape == whole.size
    assert not whole.grown((0, 0, 1)).inside(shape)


@quick
@given(box=boxes, offset=offsets)
def test_shifting_back_returns(box, offset):
    moved = box.shifted(offset)
    assert moved.size == box.size
    assert tuple(np.subtract(moved.start, box.start)) == offset
    assert moved.shifted([-value for value in offset]) == box


@quick
@given(box=boxes, margin=shapes)
def test_a_grown_window_holds_the_old_one_in_its_middle(box, margin):
    outer = box.grown(margin)
    marked = np.zeros(outer.size, dtype=int)
    marked[box.within(outer)] = 1
    assert marked.sum() == box.pixels
    np.testing.assert_array_equal(np.pad(np.ones(box.size, dtype=int), [(m, m) for m in margin]), marked)


@quick
@given(box=boxes)
def test_slices_start_and_stop_agree(box):
    assert tuple((s.start, s.stop) for s in box.slices) == tuple(zip(box.start, box.stop, strict=True))
    assert Window.of(box.start, box.size) == box
    assert Window(*box) == box
