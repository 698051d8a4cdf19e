"""The sample stream is a pure function of (seed, i), and its windows are where they should be."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.testers.memory import memory_case
from tests.testers.streams import CLASSES, PLAIN, case_of, plain, sample_of
from voxtile.cases.window import Window
from voxtile.data.augment import Augment
from voxtile.data.normalise import Intensity
from voxtile.data.sampling import JudgedPixels, Sampling
from voxtile.data.stream import SampleStream
from voxtile.data.survey import survey

few = settings(max_examples=15, deadline=None)


def stream_of(cases, size=(1, 8, 8), seed=0, **options):
    return around_pixels(cases, [PLAIN] * len(cases), size, seed, augment=Augment({"flips": ["y", "x"]}), **options)


def around_pixels(cases, intensities, size, seed=0, **options):
    found, jitter = [survey(case, CLASSES) for case in cases], options.get("sampling", Sampling()).jitter
    strategy = JudgedPixels(cases, found, jitter)
    return SampleStream(cases, found, intensities, size, seed, strategy=strategy, **{"augment": Augment()} | options)


@pytest.fixture(scope="module")
def cases():
    return [case_of("a", (1, 40, 30), 1), case_of("b", (3, 20, 50), 2), case_of("c", (1, 9, 9), 3)]


# --- a pure function


@few
@given(seed=st.integers(0, 2**31), order=st.permutations(range(12)))
def test_a_sample_depends_on_seed_and_index_only(cases, seed, order):
    expected = [plain(sample_of(stream_of(cases, seed=seed, balance=0.3, balanced=(1, 2)), i)) for i in range(12)]
    other = stream_of(cases, seed=seed, balance=0.3, balanced=(1, 2))
    assert {i: plain(sample_of(other, i)) for i in order} == dict(enumerate(expected))


def test_threads_get_the_same_samples(cases):
    far = [*range(40), *range(10_000, 10_040)]  # many decks on: more than are remembered
    expected = [plain(sample_of(stream_of(cases), i)) for i in far]
    shared = stream_of(cases)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: plain(sample_of(shared, i)), far)) == expected


@pytest.mark.parametrize("neighbours", [0, 1])
def test_augmentation_is_told_of_how_many_slices_what_is_0_stays_0(cases, neighbours):
    cases = [replace(case, neighbours=neighbours) for case in cases]
    intensities = [replace(PLAIN, masked=number == 1) for number in range(3)]
    stream = around_pixels(cases, intensities, (1, 8, 8))
    batch = stream.batch(range(20))
    assert set(batch["case"].tolist()) == {0, 1, 2}
    assert batch["augment"]["keep_zero"].tolist() == [(1 + 2 * neighbours) * (case == 1) for case in batch["case"].tolist()]


def test_another_seed_gives_other_samples(cases):
    streams = [stream_of(cases, seed=seed) for seed in (0, 1)]
    first, second = ([stream.spec(i) for i in range(30)] for stream in streams)
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


# --- where windows lie


@few
@given(st.integers(0, 10**6))
def test_windows_stay_in_the_case_and_hold_what_lies_there(cases, index):
    stream = stream_of(cases)
    spec, sample = stream.spec(index), sample_of(stream, index)
    case = cases[spec.case]
    assert spec.window.size == (1, 8, 8)
    assert spec.window.inside(case.shape)
    np.testing.assert_array_equal(sample["image"], case.read(spec.window)[0])
    np.testing.assert_array_equal(sample["label"], case.read_label(spec.window))
    assert sample["valid"].all()
    assert (sample["index"], sample["case"]) == (index, spec.case)


def test_windows_stay_in_a_view(cases):
    view = cases[0].view(Window(0, 10, 5, 1, 15, 20), ":part")
    stream = stream_of([view])
    inside = cases[0].read(Window(0, 10, 5, 1, 15, 20))[0]
    seen = np.unique([sample_of(stream, i)["image"] for i in range(60)])
    np.testing.assert_array_equal(seen, np.unique(inside))


def test_every_pixel_comes_up(cases):
    stream = stream_of([cases[2]], size=(1, 4, 4))
    seen = np.unique([sample_of(stream, i)["image"] for i in range(200)])
    assert len(seen) == 81


def test_windows_are_laid_around_a_judged_pixel(cases):
    stream = stream_of(cases)
    assert all((sample_of(stream, i)["label"] != 255).any() for i in range(100))


def test_areas_without_data_are_never_the_anchor():
    valid = np.zeros((1, 60, 60), dtype=bool)
    valid[:, 40:45, 12:17] = True
    stream = stream_of([case_of("a", (1, 60, 60), valid=valid)])
    for i in range(100):
        sample = sample_of(stream, i)
        assert sample["valid"].any()
        assert (sample["label"][~sample["valid"]] == 255).all()


def test_a_window_larger_than_the_case_has_it_in_its_middle():
    stream = stream_of([case_of("a", (1, 5, 6))], size=(1, 9, 16))
    assert {stream.spec(i).window for i in range(20)} == {Window(0, -2, -5, 1, 9, 16)}
    sample = sample_of(stream, 0)
    inner = np.zeros((1, 9, 16), dtype=bool)
    inner[:, 2:7, 5:11] = True
    np.testing.assert_array_equal(sample["valid"], inner)
    np.testing.assert_array_equal(sample["image"][0][inner], np.arange(1, 31))
    assert (sample["image"][0][~inner] == 0).all()
    assert (sample["label"][~inner] == 255).all()


# --- how often what comes


def test_one_pass_deals_each_case_by_its_judged_pixels(cases):
    stream = stream_of(cases)
    windows = [-(-survey(case, CLASSES).judged // 64) for case in cases]
    assert len(stream) == sum(windows)
    for turn in range(3):
        dealt = [stream.spec(turn * len(stream) + i).case for i in range(len(stream))]
        assert [dealt.count(number) for number in range(len(cases))] == windows
    orders = {tuple(stream.spec(turn * len(stream) + i).case for i in range(len(stream))) for turn in range(5)}
    assert len(orders) == 5


def test_without_balance_classes_come_by_their_share():
    label = np.zeros((1, 64, 64), np.uint8)
    label[:, 48:] = 1
    stream = stream_of([case_of("a", (1, 64, 64), label=label)], size=(1, 1, 1))
    share = np.mean([stream.spec(i).window.y >= 48 for i in range(2000)])
    assert abs(share - 0.25) < 0.04  # 4 standard deviations


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_balance_brings_rare_classes_up(balance):
    first, second = np.zeros((1, 64, 64), np.uint8), np.zeros((1, 64, 64), np.uint8)
    first[0, 7, 9], second[0, 30:32, 5] = 1, 2
    both = [case_of("a", (1, 64, 64), label=first), case_of("b", (1, 64, 64), label=second)]
    stream = stream_of(both, size=(1, 1, 1), balance=balance, balanced=(1, 2))
    specs = [stream.spec(i) for i in range(2000)]
    found = np.array([(first, second)[spec.case][spec.window.start] for spec in specs])
    for rare in (1, 2):
        assert abs((found == rare).mean() - balance / 2) < 0.05


def test_a_class_that_no_case_holds_is_not_drawn():
    label = np.ones((1, 16, 16), np.uint8)
    stream = stream_of([case_of("a", (1, 16, 16), label=label)], balance=1.0, balanced=(1, 2))
    assert all((sample_of(stream, i)["label"] == 1).all() for i in range(20))


def test_numbers_for_normalisation_are_the_cases_own():
    both = [memory_case(name, (1, 2, 2), label=np.array([[[0, 1], [1, 0]]])) for name in "ab"]
    numbers = [Intensity((0.0,), (9.0,), (float(n),), (n + 1.0,)) for n in range(2)]
    stream = around_pixels(both, numbers, (1, 2, 2))
    for i in range(10):
        sample = sample_of(stream, i)
        assert (sample["mean"], sample["std"]) == (sample["case"], sample["case"] + 1)


@pytest.mark.parametrize("shape", [(1, 40, 30), (1, 9, 9)])
def test_windows_come_with_their_margin_of_real_pixels_mirrored_past_the_border(shape):
    case = case_of("a", shape, 1)
    bare, wide = stream_of([case]), stream_of([case], margin=(0, 3, 3))
    whole = np.pad(case.read(Window.whole(shape))[0], [(0, 0), (0, 0), (3, 3), (3, 3)], mode="reflect")
    for i in range(10):
        window = bare.spec(i).window
        assert wide.spec(i).window == window
        expected = whole[:, :, window.y : window.y + 14, window.x : window.x + 14]
        sample = sample_of(wide, i)
        np.testing.assert_array_equal(sample["image"], expected)
        np.testing.assert_array_equal(sample["label"][:, 3:-3, 3:-3], sample_of(bare, i)["label"])
        outside = np.pad(np.zeros(shape[1:], bool), 3, constant_values=True)[window.y : window.y + 14, window.x : window.x + 14]
        assert (sample["label"][0][outside] == 255).all()


# --- neighbouring slices


def test_neighbours_are_channels_in_order_and_repeat_at_the_border_of_the_case(cases):
    case = replace(cases[1], neighbours=2)  # three slices of 20 x 50
    whole, _ = cases[1].read(Window.whole(case.shape))
    out = np.empty((case.inputs, 1, 20, 50), case.dtype)
    for z, slices in ((0, [0, 0, 0, 1, 2]), (1, [0, 0, 1, 2, 2]), (2, [0, 1, 2, 2, 2])):
        assert case.read_into(out, Window(z, 0, 0, 1, 20, 50)).all()
        np.testing.assert_array_equal(out[:, 0], whole[0, slices])


@pytest.mark.parametrize(("pad", "shown"), [("repeat", [0, 0, 1, 2, 2]), ("reflect", [1, 0, 1, 2, 1])])
def test_each_slice_of_a_deeper_window_has_neighbours_of_its_own(cases, pad, shown):
    case = replace(cases[1], neighbours=1)  # three slices of 20 x 50
    window = Window(-1, -2, 3, 5, 24, 44)
    out = np.empty((case.inputs, *window.size), case.dtype)
    held = case.read_into(out, window, pad)
    whole, valid = cases[1].read(Window(0, -2, 3, 3, 24, 44), pad=pad)
    np.testing.assert_array_equal(held, valid[shown])
    for channel, step in enumerate((-1, 0, 1)):
        np.testing.assert_array_equal(out[channel], whole[0, np.clip(np.add(shown, step), 0, 2)])


def test_a_view_sees_no_neighbours_outside_of_it(cases):
    part = replace(cases[1], neighbours=1).view(Window(1, 2, 3, 2, 8, 8))
    whole, _ = cases[1].read(Window.whole(cases[1].shape))
    out = np.empty((3, 1, 8, 8), part.dtype)
    part.read_into(out, Window(0, 0, 0, 1, 8, 8))
    np.testing.assert_array_equal(out[:, 0], whole[0, [1, 1, 2], 2:10, 3:11])


def test_where_a_neighbour_holds_no_data_the_slice_itself_stands_in():
    valid = np.ones((3, 9, 9), bool)
    valid[2, :, 5:] = False
    case = replace(case_of("a", (3, 9, 9), valid=valid), neighbours=1)
    whole, _ = case.read(Window.whole(case.shape))
    out = np.empty((3, 1, 9, 9), case.dtype)
    assert case.read_into(out, Window(1, 0, 0, 1, 9, 9)).all()
    np.testing.assert_array_equal(out[2, 0], np.where(valid[2], whole[0, 2], whole[0, 1]))


@pytest.mark.parametrize("options", [{}, {"margin": (0, 2, 2)}, {"sampling": Sampling(scales=(0.5, 2.0))}])
def test_samples_with_neighbours_show_the_same_slices_and_labels(cases, options):
    bare, wide = (stream_of([replace(case, neighbours=n) for case in cases], **options) for n in (0, 1))
    batch = wide.batch(range(12))
    for i in range(12):
        expected, found = sample_of(bare, i), sample_of(wide, i)
        np.testing.assert_array_equal(found["image"][1], expected["image"][0])
        np.testing.assert_array_equal(found["label"], expected["label"])
        np.testing.assert_array_equal(batch["image"][i], found["image"])
