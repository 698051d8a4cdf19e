"""Resampled windows against PyTorch, and against brute force on pixels cut into small ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from voxtile.data.rescale import rescale

few = settings(max_examples=30, deadline=None)


def window(shape=(1, 12, 10), dtype=np.float32, seed=0, *, holes=0.0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 250, (3, *shape)).astype(dtype)
    return image, rng.random(shape) >= holes, rng.choice(np.array([0, 1, 2, 255], np.uint8), shape)


def plain(size, shape):
    return size, (0.0, 0.0, 0.0), [a / b for a, b in zip(shape, size, strict=True)]


def cut(array, parts, whole):
    """Old pixels cut into `parts` x `parts` small ones, gathered by new ones: [..., h, w, whole * whole]."""
    small = array.repeat(parts, axis=-2).repeat(parts, axis=-1)
    *rest, height, width = small.shape
    split = small.reshape(*rest, height // whole, whole, width // whole, whole)
    return np.moveaxis(split, -3, -2).reshape(*rest, height // whole, width // whole, whole * whole)


@few
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99), st.sampled_from([0.0, 0.05]))
def test_reduced_windows_are_averages_over_areas_and_majorities(extra, parts, seed, holes):
    whole = parts + extra  # a new pixel is as wide as whole / parts old ones
    shape, size = (1, whole * 2, whole), (1, parts * 2, parts)
    image, valid, label = window(shape, seed=seed, holes=holes)
    out, held, classes = rescale(image, valid, label, *plain(size, shape))
    np.testing.assert_allclose(out, cut(image.astype(np.float64), parts, whole).mean(axis=-1), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(held, cut(valid, parts, whole).all(axis=-1))
    counts = np.stack([(cut(label, parts, whole) == index).sum(axis=-1) for index in range(256)])
    np.testing.assert_array_equal(classes, np.where(held, counts.argmax(axis=0), 255))


@few
@given(st.integers(5, 12), st.integers(5, 10), st.integers(0, 99))
def test_magnified_images_are_linear_as_in_pytorch(height, width, seed):
    image, valid, label = window((1, 5, 5), seed=seed)
    size = (1, height, width)
    out, held, classes = rescale(image, valid, label, *plain(size, (1, 5, 5)))
    expected = functional.interpolate(torch.from_numpy(image[:, 0])[None], size[1:], mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-4, atol=1e-3)
    assert held.all()
    rows, columns = ((np.arange(n) + 0.5) * 5 // n for n in size[1:])
    np.testing.assert_array_equal(classes[0], label[0][np.ix_(rows.astype(int), columns.astype(int))])


def test_a_magnified_pixel_is_valid_where_all_that_it_lies_between_are():
    image, valid, label = window((1, 8, 8))
    valid[0, 3, 5] = False
    image[:, 0, 3, 5] = np.nan
    out, held, classes = rescale(image, valid, label, *plain((1, 16, 16), (1, 8, 8)))
    expected = np.ones((16, 16), dtype=bool)
    expected[5:9, 9:13] = False
    np.testing.assert_array_equal(held[0], expected)
    assert np.isfinite(out[:, held]).all()
    assert (classes[~held] == 255).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("side", [5, 8, 13])
def test_the_data_type_stays_and_even_areas_stay_as_they_are(dtype, side):
    value = 16_777_217 if np.dtype(dtype).itemsize > 2 and dtype != np.float32 else 251  # the first float32 does not hold
    image = np.full((2, 1, 8, 8), value, dtype=dtype)
    out, _, _ = rescale(image, *window((1, 8, 8))[1:], *plain((1, side, side), (1, 8, 8)))
    assert out.dtype == dtype
    assert out.shape == (2, 1, side, side)
    np.testing.assert_allclose(out, value, rtol=0 if image.dtype.kind in "iu" else 1e-6)


def test_whole_numbers_are_rounded():
    image = np.array([[[[1, 2, 5, 5]]]], dtype=np.int16)
    out, _, _ = rescale(image, *window((1, 1, 4))[1:], (1, 1, 2), (0.0, 0.0, 0.0), (1.0, 1.0, 2.0))
    assert out.tolist() == [[[[2, 5]]]]


def test_boxes_are_resampled_along_all_three_axes():
    image, valid, label = window((4, 6, 8))
    out, _, _ = rescale(image, valid, label, *plain((2, 3, 4), (4, 6, 8)))
    np.testing.assert_allclose(out, image.reshape(3, 2, 2, 3, 2, 4, 2).mean(axis=(2, 4, 6)), rtol=1e-6)


@pytest.mark.parametrize("tenths", [6, 17])
def test_a_result_may_begin_within_a_pixel(tenths):
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32), (1, 1, 1, 20))
    flat = np.ones((1, 1, 20), dtype=bool), np.zeros((1, 1, 20), np.uint8)
    out, _, _ = rescale(ramp, *flat, (1, 1, 9), (0.0, 0.0, 1.3), (1.0, 1.0, tenths / 10))
    parts = 13 + np.arange(9 * tenths).reshape(9, tenths)  # each new pixel's tenths of old ones
    centres = (parts.mean(axis=1) + 0.5) / 10 - 0.5
    np.testing.assert_allclose(out[0, 0, 0], centres if tenths < 10 else (parts // 10).mean(axis=1), rtol=1e-6)
