"""Normalisation against NumPy, and on the values that break it."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.data import normalise as module
from voxtile.data.normalise import FixedNormalisation, Intensity, Normalisation, normalise
from voxtile.errors import ConfigError, DataError

UNCLIPPED = {"low": (-np.inf,), "high": (np.inf,)}


def run(image, valid, intensity):
    """Normalises one sample [C, ...] and returns it as a NumPy array."""
    numbers = {name: torch.from_numpy(values)[None] for name, values in intensity.arrays().items()}
    tensor = image if isinstance(image, torch.Tensor) else torch.from_numpy(image)
    return normalise(tensor[None], torch.from_numpy(valid)[None], **numbers)[0].numpy()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-4, 1.0, 1e6]), n=st.integers(2, 400))
def test_pixels_are_clipped_to_percentiles_and_then_standardised(seed, scale, n):
    sample = np.random.default_rng(seed).normal(3, 1, (2, n)) * scale
    found = Normalisation(clip=(5, 95)).of_case(sample)
    for c in range(2):
        low, high = np.percentile(sample[c], [5, 95], method="inverted_cdf")
        clipped = sample[c].clip(low, high)
        expected = low, high, clipped.mean(), clipped.std() if clipped.std() > 1e-9 * scale else 1
        np.testing.assert_allclose([found.low[c], found.high[c], found.mean[c], found.std[c]], expected)
    image = run(sample[:, None], np.ones((1, n), dtype=bool), found)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image.mean(axis=(1, 2)), 0, atol=1e-4)


def test_a_data_set_is_measured_on_all_its_pixels_together():
    rng = np.random.default_rng(0)
    samples = [rng.normal(i, 1 + i, (3, 50 * (i + 1))) for i in range(4)]
    assert Normalisation().of_dataset(samples) == Normalisation().of_case(np.concatenate(samples, axis=1))


def test_samples_of_a_data_set_are_read_one_by_one_and_let_go(monkeypatch):
    rng = np.random.default_rng(0)
    samples = [rng.normal(i, 1 + i, (2, 60 * (i + 1))) for i in range(4)]
    monkeypatch.setattr(module, "MOST_MEASURED", 100)
    read = []

    def fresh(number):
        assert all(each() is None for each in read[:-1])  # the last one goes when this one is there
        made = samples[number].copy()
        read.append(weakref.ref(made))
        return made

    every = Normalisation().thinning(sample.shape[1] for sample in samples)
    assert every == 6
    found = Normalisation().of_dataset((fresh(number) for number in range(4)), every=every)
    assert found == Normalisation().of_dataset(samples, every=every)
    assert len(read) == len(samples)


def test_a_weight_counts_like_pixels_repeated_as_often():
    rng = np.random.default_rng(1)
    few, many = rng.normal(0, 1, (2, 40)), rng.normal(5, 2, (2, 60))
    weighted = Normalisation(clip=(10, 90)).of_dataset([few, many], weights=[3, 1])
    repeated = Normalisation(clip=(10, 90)).of_case(np.concatenate([few, few, few, many], axis=1))
    for name, values in repeated.arrays().items():
        np.testing.assert_allclose(weighted.arrays()[name], values, err_msg=name)


@given(n=st.integers(1, 3000), clip=st.sampled_from([(0.5, 99.5), (0.1, 99.9), (5, 95), (0, 100)]))
def test_without_weights_the_numbers_are_those_of_equal_ones_to_the_bit(n, clip):
    sample = np.random.default_rng(n).normal(3, 1, (2, n))
    assert Normalisation(clip=clip).of_case(sample) == Normalisation(clip=clip).of_dataset([sample], weights=[1.0])


def test_of_many_pixels_a_part_is_measured_in_all_columns(monkeypatch):
    rows = [np.arange(64, dtype=np.int16)[None]] * 500  # as wide as the steps
    monkeypatch.setattr(module, "MOST_MEASURED", 500)
    every = Normalisation("dataset").thinning([64] * 500)
    assert every == 64
    found = Normalisation("dataset", clip=None).of_dataset(rows, every=every)
    assert found.mean[0] == pytest.approx(31.5, abs=5 * 18.5 / np.sqrt(500))
    assert found.std[0] == pytest.approx(18.5, rel=0.1)


def test_statistics_can_leave_out_pixels_that_are_zero_in_every_channel():
    brain = np.random.default_rng(2).normal(100, 10, (2, 500))
    brain[0, :7] = 0  # zero in one channel only: still inside
    padded = np.concatenate([np.zeros((2, 300)), brain], axis=1)
    assert Normalisation(nonzero=True).of_case(padded) == Normalisation().of_case(brain)
    assert Normalisation(nonzero=True, keep_zero=True).of_case(padded) == replace(Normalisation().of_case(brain), masked=True)
    assert Normalisation().of_case(padded) != Normalisation().of_case(brain)


@pytest.mark.parametrize("slices", [1, 3])
def test_what_is_zero_in_every_channel_can_stay_so(slices):
    image = np.random.default_rng(5).integers(0, 2, (2 * slices, 3, 8, 9)).astype(np.uint16)
    masked = Intensity((0.0, 0.0), (9.0, 9.0), (3.0, 5.0), (2.0, 4.0), masked=True)
    everything, valid = np.ones(image.shape[1:], dtype=bool), np.ones(image.shape[1:], dtype=bool)
    expected = run(image, everything, replace(masked, masked=False))
    for number in range(slices):  # a channel's slices follow one another
        outside = (image[number] == 0) & (image[slices + number] == 0)
        assert 0 < outside.sum() < outside.size
        expected[[number, slices + number]] *= ~outside
    valid[:, :2] = False
    np.testing.assert_array_equal(run(image, valid, masked), expected * valid)


def test_a_constant_channel_becomes_zero_and_no_pixels_leave_a_channel_as_it_is():
    constant = Normalisation().of_case(np.full((1, 1000), 0.1))
    assert constant.std == (1.0,)
    np.testing.assert_allclose(run(np.full((1, 4, 4), 0.1), np.ones((4, 4), dtype=bool), constant), 0, atol=1e-7)
    assert Normalisation().of_case(np.empty((2, 0))) == Intensity((-np.inf,) * 2, (np.inf,) * 2, (0.0,) * 2, (1.0,) * 2)
    assert Normalisation(nonzero=True).of_case(np.zeros((1, 9))).std == (1.0,)


def test_clipping_does_not_wipe_out_a_channel_with_few_unlike_values():
    sparse = np.zeros((1, 1000))
    sparse[0, :3] = 7
    found = Normalisation(clip=(0.5, 99.5)).of_case(sparse)
    assert (found.low, found.high) == ((0.0,), (7.0,))
    assert found.std[0] == pytest.approx(sparse.std())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_every_data_type_gives_the_same_numbers(dtype):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 250, (2, 5, 6)).astype(dtype)
    valid = rng.random((5, 6)) < 0.7
    intensity = Intensity((10.0, 20.0), (200.0, 220.0), (100.0, 90.0), (30.0, 7.0))
    expected = (image.astype(float).clip([[[10]], [[20]]], [[[200]], [[220]]]) - [[[100]], [[90]]]) / [[[30]], [[7]]]
    found = run(image, valid, intensity)
    np.testing.assert_allclose(found, np.where(valid, expected, 0), rtol=1e-5, atol=1e-6)


def test_float64_and_int32_are_shifted_before_they_lose_digits():
    intensity = Intensity(**UNCLIPPED, mean=(1e9,), std=(1.0,))
    for dtype in (np.float64, np.int32):
        image = (10**9 + np.arange(6).reshape(1, 2, 3)).astype(dtype)
        np.testing.assert_array_equal(run(image, np.ones((2, 3), dtype=bool), intensity), np.arange(6).reshape(1, 2, 3))


def test_what_an_invalid_pixel_holds_does_not_matter_and_the_input_stays():
    image = torch.tensor([[[1.0, np.nan, np.inf, -np.inf]]])
    before = image.clone()
    out = run(image, np.array([[True, False, False, False]]), Intensity(**UNCLIPPED, mean=(0.5,), std=(0.25,)))
    np.testing.assert_array_equal(out, [[[2, 0, 0, 0]]])
    torch.testing.assert_close(image, before, equal_nan=True)


def test_each_sample_of_a_batch_and_volumes_have_numbers_of_their_own():
    image = torch.arange(48, dtype=torch.float32).view(2, 1, 2, 3, 4)
    numbers = [torch.tensor(v)[:, None] for v in ([-torch.inf, -torch.inf], [torch.inf, 40.0], [1.0, 2.0], [4.0, 8.0])]
    out = normalise(image, torch.ones(2, 2, 3, 4, dtype=torch.bool), *numbers, torch.tensor([False, False]))
    torch.testing.assert_close(out[0], (image[0] - 1) / 4)
    torch.testing.assert_close(out[1], (image[1].clamp(max=40) - 2) / 8)


@pytest.mark.parametrize("clip", [None, (0.5, 99.5)])
def test_intensities_survive_strict_json(clip):
    found = Normalisation(clip=clip, keep_zero=clip is None).of_case(np.random.default_rng(4).normal(size=(3, 100)))
    assert Intensity.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False))) == found


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match=r"'cases' does not exist.*Did you mean 'case'"):
        Normalisation(per="cases")
    with pytest.raises(ConfigError, match=r"clip=\[99, 1\].*clip=null"):
        Normalisation(clip=(99, 1))
    for mean, std in (([np.nan], [1.0]), ([0.0], [np.inf]), ([0.0], [0.0]), ([0.0], [1.0, 1.0])):
        with pytest.raises(ConfigError, match=r"expected one number each per channel, the second above 0"):
            FixedNormalisation(mean, std)
    with pytest.raises(DataError, match="training split is empty"):
        Normalisation().of_dataset([])


def test_neighbouring_slices_are_scaled_as_their_channel():
    image = torch.arange(2 * 6 * 4, dtype=torch.float32).reshape(2, 6, 2, 2)
    valid = torch.ones(2, 2, 2, dtype=torch.bool)
    numbers = [torch.tensor([[a, b]] * 2) for a, b in ((2.0, 9.0), (30.0, 40.0), (1.0, 5.0), (2.0, 4.0))]
    numbers.append(torch.tensor([False, False]))
    found = normalise(image, valid, *numbers)
    for offset in range(3):
        np.testing.assert_array_equal(found[:, offset::3], normalise(image[:, offset::3], valid, *numbers))
