"""Where windows lie by each strategy, by counting; scales, jitter and the share of nodata; settings that make no sense."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.testers.memory import MemorySource, memory_case
from tests.testers.streams import CLASSES, PLAIN, case_of, plain, sample_of
from voxtile.cases.case import Case, Labels
from voxtile.cases.window import Window
from voxtile.data.augment import Augment
from voxtile.data.rescale import rescale
from voxtile.data.sampling import STRATEGIES, Sampling, strategy_of
from voxtile.data.stream import TRIES, SampleStream
from voxtile.data.survey import survey
from voxtile.data.warp import Elastic
from voxtile.data.weight_map import WeightMap
from voxtile.errors import ConfigError, DataError

few = settings(max_examples=10, deadline=None)
NAMES = ("ground", "water", "roof")


def stream_of(cases, size=(1, 8, 8), seed=0, *, maps=(), augment=None, margin=(0, 0, 0), balance=0.0, **values):
    found = [survey(case, CLASSES) for case in cases]
    sampling = Sampling.of(values)
    strategy = strategy_of(sampling, cases, found, NAMES, [1, 2], maps)
    return SampleStream(
        cases, found, [PLAIN] * len(cases), size, seed, augment=augment or Augment(), strategy=strategy, sampling=sampling,
        balance=balance, balanced=(1, 2), margin=margin,
    )  # fmt: skip


def labelled(name, label):
    return case_of(name, label.shape, label=label.astype(np.uint8))


def counted(values, among):
    """How often each of `among` comes, as shares."""
    return np.array([np.mean([value == one for value in values]) for one in among])


def near(shares, expected, draws):
    """Within five standard deviations."""
    expected = np.asarray(expected)
    return bool((np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws)).all())


@pytest.fixture(scope="module")
def cases():
    return [case_of("a", (1, 40, 30), 1), case_of("b", (3, 20, 50), 2), case_of("c", (1, 9, 9), 3)]


# --- strategies


def test_uniform_draws_each_position_alike_and_cases_by_their_size():
    both = [case_of("a", (1, 10, 12)), case_of("b", (1, 40, 48))]
    stream = stream_of(both, by="uniform")
    assert np.bincount(stream.deck).tolist() == [2, 30]
    starts = [spec.window.start for spec in map(stream.spec, range(12_000)) if spec.case == 0]
    assert len(starts) > 600
    positions = [(0, y, x) for y in range(3) for x in range(5)]
    assert near(counted(starts, positions), [1 / 15] * 15, len(starts))


def test_uniform_windows_may_lie_where_nothing_is_judged_and_larger_ones_have_the_case_in_their_middle():
    label = np.full((1, 30, 30), 255)
    label[0, 0, 0] = 1
    stream = stream_of([labelled("a", label)], size=(1, 8, 64), by="uniform")
    assert {stream.spec(i).window.x for i in range(20)} == {-17}
    assert any((sample_of(stream, i)["label"] == 255).all() for i in range(20))


def test_each_class_is_drawn_alike_whatever_its_share():
    label = np.zeros((1, 40, 40))
    label[0, 3, 4], label[0, 20:24, 20] = 1, 2
    stream = stream_of([labelled("a", label), labelled("b", label * 0)], size=(1, 1, 1), by="class")
    specs = [stream.spec(i) for i in range(1500)]
    found = [0 if spec.case else int(label[spec.window.start]) for spec in specs]
    assert near(counted(found, range(3)), [1 / 3] * 3, 1500)


def test_class_weights_say_how_often_each_class_comes():
    label = np.arange(1200).reshape(1, 30, 40) % 3
    stream = stream_of([labelled("a", label)], size=(1, 1, 1), by="class", class_weights={"water": 3, "roof": 0})
    found = [int(label[stream.spec(i).window.start]) for i in range(1500)]
    assert near(counted(found, range(3)), [0.25, 0.75, 0], 1500)


def test_each_shape_is_drawn_alike_however_large():
    first, second = np.zeros((1, 40, 40)), np.zeros((1, 40, 40))
    first[0, 2:30, 2:30], first[0, 35, 5], second[0, 11, 12] = 1, 2, 2
    stream = stream_of([labelled("a", first), labelled("b", second)], size=(1, 1, 1), by="polygon")
    found = [(spec.case, int((first, second)[spec.case][spec.window.start])) for spec in map(stream.spec, range(1500))]
    assert near(counted(found, [(0, 1), (0, 2), (1, 2)]), [1 / 3] * 3, 1500)


def test_pixels_of_all_cases_come_by_their_weights():
    both = [case_of("a", (1, 20, 20)), case_of("b", (1, 10, 10)), case_of("c", (1, 10, 10))]
    rasters = np.zeros((1, 20, 20)), np.zeros((1, 10, 10)), np.zeros((1, 10, 10))
    rasters[0][0, 4, 5], rasters[0][0, 19, 19], rasters[2][0, 7] = 1.0, 4.0, 0.5
    maps = [WeightMap.of(MemorySource(raster[None]), case) for raster, case in zip(rasters, both, strict=True)]
    stream = stream_of(both, size=(1, 1, 1), maps=maps, by="weights", weights="{id}.tif")
    found = [(spec.case, *spec.window.start[1:]) for spec in map(stream.spec, range(1500))]
    places = [(0, 4, 5), (0, 19, 19), *((2, 7, x) for x in range(10))]
    assert near(counted(found, places), [0.1, 0.4, *[0.05] * 10], 1500)


def test_balance_draws_from_foreground_classes_whatever_the_strategy():
    label = np.zeros((1, 100, 100))
    label[0, 50, 50] = 1
    stream = stream_of([labelled("a", label)], size=(1, 1, 1), by="uniform", balance=0.5)
    assert near(np.mean([stream.spec(i).window.start == (0, 50, 50) for i in range(1000)]), 0.5, 1000)


@pytest.mark.parametrize("by", ["pixels", "uniform", "class", "polygon"])
def test_windows_stay_in_their_case_and_threads_or_order_do_not_matter(cases, by):
    options = {"by": by, "scales": [0.5, 1.5], "max_nodata": 0.2, "jitter": 0.5, "balance": 0.2}
    expected = [plain(sample_of(stream_of(cases, **options), i)) for i in range(15)]
    again = stream_of(cases, **options)
    assert [plain(sample_of(again, i)) for i in reversed(range(15))] == expected[::-1]
    for spec in map(again.spec, range(40)):
        sides = zip(spec.window.start, spec.window.stop, cases[spec.case].shape, strict=True)
        assert all((low >= 0 and high <= length) or high - low > length for low, high, length in sides)


def test_what_a_sample_holds_does_not_depend_on_those_read_with_it(cases):
    stream = stream_of(cases, size=(1, 9, 9), scales=[0.5, 1.5], max_nodata=0.3, augment=Augment({"flips": ["x"]}))
    batch, expected = stream.batch(range(3, 20, 2)), [sample_of(stream, i) for i in range(3, 20, 2)]
    assert batch["index"].tolist() == list(range(3, 20, 2))
    for key in ("image", "valid", "label", "case", "mean"):
        np.testing.assert_array_equal(batch[key], [sample[key] for sample in expected])
    for key in ("flips", "turns"):
        np.testing.assert_array_equal(batch["augment"][key], [sample["augment"][key] for sample in expected])


# --- jitter


@pytest.mark.parametrize(("jitter", "places"), [(0.0, [3]), (0.5, [2, 3, 4, 5]), (1.0, list(range(8)))])
def test_jitter_is_how_far_the_drawn_pixel_may_lie_from_the_middle(jitter, places):
    label = np.full((1, 60, 60), 255)
    label[0, 30, 25] = 1
    stream = stream_of([labelled("a", label)], jitter=jitter)
    starts = [stream.spec(i).window.start for i in range(400)]
    for axis, pixel in ((1, 30), (2, 25)):
        found = [pixel - start[axis] for start in starts]
        assert sorted(set(found)) == places
        assert near(counted(found, places), [1 / len(places)] * len(places), 400)


# --- scales


def ramps(shape):
    """A case whose two channels say how far down and to the right each pixel lies."""
    _, y, x = np.indices(shape, dtype=np.float32)
    label = Labels(MemorySource(((y // 7 + x // 5) % 3).astype(np.uint8)[None], path="l"), {0: 0, 1: 1, 2: 2})
    return Case("ramps", "ramps", MemorySource(np.stack([y, x])), label)


@few
@given(seed=st.integers(0, 999), margin=st.sampled_from([0, 3]), bounds=st.sampled_from([(0.4, 1.0), (1.0, 2.5), (0.5, 2.0)]))
def test_a_scaled_sample_shows_its_window_at_the_streams_size(seed, margin, bounds):
    case = ramps((1, 80, 90))
    stream = stream_of([case], size=(1, 16, 12), seed=seed, margin=(0, margin, margin), scales=bounds)
    for index in range(3):
        spec, sample = stream.spec(index), sample_of(stream, index)
        assert bounds[0] <= spec.scale <= bounds[1]
        assert spec.window.size == (1, round(16 * spec.scale), round(12 * spec.scale))
        assert sample["image"].shape == (2, 1, 16 + 2 * margin, 12 + 2 * margin)
        down, right = sample["image"][0, 0, :, 0], sample["image"][1, 0, 0]
        _, y, x, _, height, width = spec.window
        for values, start, side, length in ((down, y, 16, height), (right, x, 12, width)):
            step = length / side
            centres = start + (np.arange(side) + 0.5) * step - 0.5
            # A magnified window without margin is flat along its outermost half pixel; averages over a ramp in steps are near.
            away = np.abs(values[margin : margin + side] - centres)[1:-1]
            assert away.max() <= (0.26 if step > 1 else 1e-3)


def test_scaled_pixels_and_labels_are_the_windows_resampled(cases):
    stream = stream_of(cases[:1], scales=[0.5, 2.0])
    for index in range(10):
        spec, sample = stream.spec(index), sample_of(stream, index)
        image, valid = cases[0].read(spec.window, pad="constant")
        label = cases[0].read_label(spec.window)
        steps = [read / side for read, side in zip(spec.window.size, (1, 8, 8), strict=True)]
        expected = rescale(image, valid, label, (1, 8, 8), (0.0, 0.0, 0.0), steps)
        for key, value in zip(("image", "valid", "label"), expected, strict=True):
            np.testing.assert_array_equal(sample[key], value)


def test_scales_are_log_uniform_and_leave_other_draws_alone(cases):
    scaled, bare = stream_of(cases, scales=[0.25, 4.0]), stream_of(cases)
    specs = [scaled.spec(i) for i in range(600)]
    logs = np.log2([spec.scale for spec in specs])
    assert near(np.histogram(logs, bins=4, range=(-2, 2))[0] / 600, [0.25] * 4, 600)
    assert [spec.case for spec in specs] == [bare.spec(i).case for i in range(600)]


def test_boxes_are_scaled_along_all_three_axes_and_planes_along_two():
    case = case_of("a", (40, 40, 40))
    assert all(len(set(stream_of([case], (8, 8, 8), scales=[1.5, 2]).spec(i).window.size)) == 1 for i in range(5))
    assert all(stream_of([case], (1, 8, 8), scales=[1.5, 2]).spec(i).window.depth == 1 for i in range(5))


@pytest.mark.parametrize(("shape", "size"), [((1, 80, 80), (1, 32, 32)), ((40, 40, 40), (8, 8, 8))])
def test_lengths_of_augmentation_follow_the_samples_own_resolution(shape, size):
    case = memory_case("a", shape, label=np.zeros(shape, np.uint8))
    bend = Augment(elastic=Elastic(probability=1.0, std=1.0, control=16.0, unit="length"))
    bare, scaled = (stream_of([case], size, augment=bend, scales=scales) for scales in (None, [1.0, 4.0]))
    for index in range(5):
        own, finest = (sample_of(stream, index)["augment"]["elastic.field"] for stream in (scaled, bare))
        assert finest.any(axis=tuple(range(1, finest.ndim))).tolist() == [side > 1 for side in size]
        np.testing.assert_allclose(own * scaled.spec(index).scale, finest, rtol=1e-5)


# --- nodata


def half_empty():
    valid = np.zeros((1, 64, 64), dtype=bool)
    valid[:, :, :32] = True
    valid[:, 5, :] = False
    return case_of("a", (1, 64, 64), valid=valid), valid


def test_windows_with_too_little_data_are_drawn_again():
    case, valid = half_empty()
    bare, bound = stream_of([case], (1, 16, 16)), stream_of([case], (1, 16, 16), max_nodata=0.1)

    def missing(spec):
        return 1 - valid[spec.window.slices].mean()

    assert max(missing(bare.spec(i)) for i in range(100)) > 0.4
    assert all(missing(bound.spec(i)) <= 0.1 for i in range(100))
    for i in range(100):
        if missing(bare.spec(i)) <= 0.1:
            assert plain(sample_of(bound, i)) == plain(sample_of(bare, i))
        np.testing.assert_array_equal(sample_of(bound, i)["valid"], valid[bound.spec(i).window.slices])


def test_where_no_draw_holds_enough_data_the_best_is_taken():
    case, valid = half_empty()
    stream = stream_of([case], (1, 16, 16), max_nodata=0.0, by="uniform")
    strict = stream_of([case], (1, 62, 62), max_nodata=0.0, by="uniform")
    for i in range(10):
        shares = [1 - valid[strict._draw(i, attempt).window.slices].mean() for attempt in range(TRIES)]
        assert 1 - valid[strict.spec(i).window.slices].mean() == min(shares) > 0
    assert any((sample_of(stream, i)["valid"]).all() for i in range(10))


def test_padding_and_the_margin_are_told_apart():
    stream = stream_of([case_of("a", (1, 40, 40))], (1, 16, 16), margin=(0, 20, 20), max_nodata=0.0)
    assert all(stream.spec(i) == stream._draw(i) for i in range(20))  # mirrored pixels of a margin are not missing


# --- settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"by": "unifrom"}, r"'data\.sampling\.by=unifrom' is no way .*Did you mean 'uniform'\? Choose from pixels, uniform"),
        ({"by": None}, r"'data\.sampling\.by=None' is no way"),
        ({"jiter": 1}, r"takes no 'jiter'\. Did you mean 'jitter'\?"),
        ({"jitter": -0.1}, r"'data\.sampling\.jitter=-0\.1' is a share: expected a number from 0 to 1"),
        ({"jitter": None}, r"'data\.sampling\.jitter=None' is a share"),
        ({"jitter": True}, r"'data\.sampling\.jitter=True' is a share"),
        ({"max_nodata": 1.5}, r"'data\.sampling\.max_nodata=1\.5' is a share"),
        ({"max_nodata": "half"}, r"'data\.sampling\.max_nodata=half' is a share"),
        ({"scales": [2, 0.5]}, r"'data\.sampling\.scales=\[2, 0\.5\]' must be two rising numbers above 0"),
        ({"scales": [0, 1]}, "two rising numbers"),
        ({"scales": [0.5, 1, 2]}, "two rising numbers"),
        ({"scales": 2}, "two rising numbers"),
        ({"scales": "ab"}, "two rising numbers"),
        ({"scales": [1, float("inf")]}, "two rising numbers"),
        ({"by": "weights"}, r"'data\.sampling\.weights=None' names none .*weights/\{id\}\.tif"),
        ({"by": "weights", "weights": "all.tif"}, r"'data\.sampling\.weights=all\.tif' names none"),
        ({"weights": "{id}.tif"}, r"'data\.sampling\.by=pixels' does not use it\. Type 'data\.sampling\.by=weights'"),
        ({"by": "polygon", "class_weights": {"water": 1}}, r"'data\.sampling\.by=polygon' does not use it"),
        ({"by": "class", "class_weights": {"water": -1}}, "a number, 0 or more, for each class"),
        ({"by": "class", "class_weights": [1, 2]}, "a number, 0 or more, for each class"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        Sampling.of(values)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"watr": 1}, r"names 'watr', which is no class\. Did you mean 'water'\? The classes are ground, water, roof"),
        (dict.fromkeys(NAMES, 0), "is 0 for every class"),
    ],
)
def test_class_weights_must_fit_the_classes(weights, said):
    with pytest.raises(ConfigError, match=said):
        Sampling.of({"by": "class", "class_weights": weights}).weights_of(NAMES)


def test_every_strategy_is_built_and_none_is_the_default(cases):
    maps = [WeightMap.of(MemorySource(np.ones((1, *case.shape))), case) for case in cases]
    for by in STRATEGIES:
        stream = stream_of(cases, maps=maps, by=by, **({"weights": "{id}.tif"} if by == "weights" else {}))
        assert sample_of(stream, 0)["image"].shape == (1, 1, 8, 8)
    assert Sampling.of(None) == Sampling.of({}) == Sampling()


def test_nothing_to_draw_is_said():
    bare = labelled("a", np.zeros((1, 9, 9)))
    with pytest.raises(DataError, match=r"No training case holds a labelled shape for 'data\.sampling\.by=polygon'"):
        stream_of([bare], by="polygon")
    with pytest.raises(DataError, match=r"'data\.sampling\.class_weights' is above 0"):
        stream_of([bare], by="class", class_weights={"ground": 0})
    blank = WeightMap.of(MemorySource(np.zeros((1, 1, 9, 9)), path="w.npy"), bare)
    with pytest.raises(DataError, match=r"The weights of all training cases are 0 \(w\.npy\)"):
        stream_of([bare], maps=[blank], by="weights", weights="{id}.tif")


def test_windows_of_a_block_stay_in_it():
    block = case_of("a", (1, 60, 60), 1).view(Window(0, 10, 20, 1, 30, 30), "#r0c0")
    for by in ("pixels", "uniform", "class", "polygon"):
        stream = stream_of([block], by=by)
        assert all(stream.spec(i).window.inside((1, 30, 30)) for i in range(30))
