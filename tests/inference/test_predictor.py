"""Sliding windows against applying the network to the whole case at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tests.testers.windows import CHANNELS, CLASSES, SCALE, Convolutions, case_of, joined, whole
from voxtile.cases.case import Case
from voxtile.cases.window import Window
from voxtile.inference.crf import DenseCRF
from voxtile.inference.predictor import Predictor
from voxtile.inference.procedure import Procedure

few = settings(max_examples=25, deadline=None)


@few
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 30)),
    side=st.tuples(st.integers(1, 12), st.integers(1, 40)),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    batch=st.integers(1, 7),
    trained=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_slices_through_windows_equal_the_whole_case_at_once(shape, side, overlap, batch, trained):
    network, case = Convolutions(), case_of(shape)
    probabilities, classes = joined(Predictor(network, (1, *side), overlap, batch, workers=0, trained_on=(1, *trained)), case)
    expected = whole(network, case)
    np.testing.assert_allclose(probabilities, expected, atol=2e-6)
    top = np.sort(expected, axis=0)
    clear = top[-1] - top[-2] > 1e-5
    np.testing.assert_array_equal(classes[clear], expected.argmax(axis=0)[clear])


@few
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 14), st.integers(1, 14)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 16)),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    trained=st.tuples(st.integers(1, 16), st.integers(1, 16), st.integers(1, 16)),
)
def test_boxes_through_windows_equal_the_whole_case_at_once(shape, size, overlap, trained):
    network, case = Convolutions(dims=3), case_of(shape)
    predictor = Predictor(network, size, overlap, workers=0, trained_on=trained)
    np.testing.assert_allclose(joined(predictor, case)[0], whole(network, case), atol=2e-6)


@pytest.mark.parametrize("margin", [1, 3])
@pytest.mark.parametrize(
    ("dims", "shape", "size"),
    [
        (2, (1, 31, 44), (1, 16, 16)),
        (2, (3, 9, 20), (1, 8, 8)),
        (2, (1, 5, 6), (1, 16, 16)),
        (3, (7, 12, 13), (4, 8, 8)),
    ],
)
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_a_network_with_a_margin_sees_real_neighbours_and_the_mirrored_border(dims, margin, shape, size, overlap):
    network, case = Convolutions(dims, margin), case_of(shape)
    predictor = Predictor(network, size, overlap, workers=0, trained_on=size)
    np.testing.assert_allclose(joined(predictor, case)[0], whole(network, case), atol=5e-6)


def test_a_case_smaller_than_the_trainings_windows_lies_in_the_middle_of_one_and_a_larger_one_is_not_filled():
    network = Convolutions()
    list(Predictor(network, (1, 8, 8), workers=0, trained_on=(1, 8, 8)).bands(case := case_of((1, 5, 20)), SCALE))
    assert {tuple(image.shape) for image in network.sent} == {(CHANNELS, 8, 8)}
    first = network.sent[0]
    own, _ = case.read(Window(0, 0, 0, 1, 5, 8))
    np.testing.assert_allclose(first[0, 2:7], (own[0, 0] - SCALE.mean[0]) / SCALE.std[0], rtol=1e-5)
    assert not first[:, :2].any()
    assert not first[:, 7:].any()
    network.sent.clear()
    around = Predictor(network, (1, 8, 8), workers=0, procedure=Procedure(halo=3), trained_on=(1, 8, 8))
    list(around.bands(case, SCALE))
    assert not network.sent[0][:, :5].any()  # no mirror image, which training has only for networks with a margin
    assert not network.sent[0][:, 10:].any()
    np.testing.assert_array_equal(network.sent[0][:, 3:-3, 3:-3], first)
    mirrored = network.sent[0][0, 5:10]
    np.testing.assert_array_equal(mirrored[:, :3], mirrored[:, 4:7].flip(1))  # along the axis on which the case is large
    network.sent.clear()
    list(Predictor(network, (1, 4, 8), workers=0, trained_on=(1, 8, 8)).bands(case, SCALE))
    assert {tuple(image.shape) for image in network.sent} == {(CHANNELS, 4, 8)}


def test_a_view_is_mirrored_at_its_own_border():
    network, scene = Convolutions(margin=2), case_of((1, 40, 40))
    view = scene.view(Window(0, 10, 8, 1, 17, 20))
    np.testing.assert_allclose(joined(Predictor(network, (1, 8, 8), workers=0), view)[0], whole(network, view), atol=5e-6)


class Constant(nn.Module):
    logits = torch.tensor([0.3, -1.0, 2.0])

    def forward(self, image):
        return self.logits[:, None, None].expand(len(image), -1, *image.shape[2:])


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.9])
def test_constant_logits_come_back_at_every_pixel(overlap):
    probabilities, classes = joined(Predictor(Constant(), (1, 10, 12), overlap, workers=0), case_of((2, 23, 31)))
    expected = torch.softmax(Constant.logits, 0).numpy()[:, None, None, None]
    np.testing.assert_allclose(probabilities, np.broadcast_to(expected, probabilities.shape), rtol=2e-6)
    assert (classes == 2).all()


# --- where there is no data


def test_pixels_without_data_are_255_and_nan_and_the_others_do_not_notice():
    valid = np.random.default_rng(1).random((2, 25, 33)) < 0.7
    network, case = Convolutions(), case_of((2, 25, 33), valid=valid)
    probabilities, classes = joined(Predictor(network, (1, 8, 8), workers=0), case)
    assert (classes[~valid] == 255).all()
    assert (classes[valid] < CLASSES).all()
    assert np.isnan(probabilities[:, ~valid]).all()
    np.testing.assert_allclose(probabilities[:, valid], whole(network, case)[:, valid], atol=2e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_window_without_data_is_not_sent_to_the_network(dtype, batch):
    valid = np.zeros((1, 32, 32), dtype=bool)
    valid[:, :8, 3], valid[:, 20, 30] = True, True
    network, case = Convolutions(), case_of((1, 32, 32), valid=valid, dtype=dtype)
    probabilities, _ = joined(Predictor(network, (1, 8, 8), 0.0, batch, workers=0), case)
    assert len(network.sent) == 2
    np.testing.assert_allclose(probabilities[:, valid], whole(network, case)[:, valid], atol=2e-6)


def test_of_a_case_without_data_one_window_is_sent_to_learn_the_number_of_classes():
    network, case = Convolutions(), case_of((1, 32, 32), valid=np.zeros((1, 32, 32), dtype=bool))
    probabilities, classes = joined(Predictor(network, (1, 8, 8), 0.0, workers=0), case)
    assert len(network.sent) == 1
    assert (classes == 255).all()
    assert np.isnan(probabilities).all()


def test_a_case_that_begins_without_data_still_has_all_classes_in_its_first_band():
    valid = np.zeros((1, 32, 16), dtype=bool)
    valid[:, 24:] = True
    network = Convolutions()
    joined(Predictor(network, (1, 8, 8), 0.0, 1, workers=0), case_of((1, 32, 16), valid=valid))
    assert len(network.sent) == 1 + 2


# --- bands and how they are made


@pytest.mark.parametrize(("dims", "size", "thickest"), [(2, (1, 8, 8), 1 * 8 * 30), (3, (4, 8, 8), 4 * 40 * 30)])
def test_bands_come_in_reading_order_and_are_no_thicker_than_a_window(dims, size, thickest):
    bands = list(Predictor(Convolutions(dims), size, 0.5, workers=0).bands(case_of((10, 40, 30)), SCALE))
    starts = [band.window.start for band in bands]
    assert starts == sorted(starts)
    assert max(band.window.pixels for band in bands) <= thickest


def test_a_band_that_was_handed_out_does_not_change():
    kept, copies = [], []
    for band in Predictor(Convolutions(), (1, 8, 8), 0.5, workers=0).bands(case_of((1, 40, 30)), SCALE):
        kept.append(band)
        copies.append((band.probabilities.clone(), band.valid.copy()))
    assert all(
        torch.equal(band.probabilities, a) and np.array_equal(band.valid, b) for band, (a, b) in zip(kept, copies, strict=True)
    )


@pytest.mark.parametrize(("dims", "size"), [(2, (1, 8, 8)), (3, (2, 8, 8))])
def test_reading_threads_change_no_bit(dims, size):
    valid = np.random.default_rng(2).random((4, 33, 29)) < 0.5
    case = case_of((4, 33, 29), valid=valid)
    results = [joined(Predictor(Convolutions(dims, margin=1), size, workers=workers), case) for workers in (0, 2)]
    for alone, together in zip(*results, strict=True):
        np.testing.assert_array_equal(alone, together)


def test_a_predictor_goes_over_many_cases():
    network = Convolutions()
    predictor = Predictor(network, (1, 16, 16), workers=2)
    for seed, shape in enumerate([(1, 20, 20), (3, 7, 40), (1, 1, 1)]):
        case = case_of(shape, seed)
        np.testing.assert_allclose(joined(predictor, case)[0], whole(network, case), atol=2e-6)


def test_the_network_is_taken_into_evaluation_mode():
    class Random(Constant):
        def forward(self, image):
            return functional.dropout(super().forward(image).contiguous(), 0.5, self.training)

    (band,) = Predictor(Random().train(), (1, 8, 8), workers=0).bands(case_of((1, 8, 8)), SCALE)
    assert band.probabilities[:, 0, 0, 0].numpy() == pytest.approx(torch.softmax(Constant.logits, 0).numpy(), rel=1e-6)


def test_an_unreadable_window_stops_the_prediction(monkeypatch):
    def broken(self, out, window, pad=None):
        raise OSError("cut off")

    monkeypatch.setattr(Case, "read_into", broken)
    for workers in (0, 2):
        with pytest.raises(OSError, match="cut off"):
            list(Predictor(Convolutions(), (1, 8, 8), workers=workers).bands(case_of((1, 20, 20)), SCALE))


def test_lower_precision_runs_the_network_in_it_and_returns_float32():
    kinds = set()

    class Watching(Convolutions):
        def forward(self, image):
            scores = self.layers(image)
            kinds.add(scores.dtype)
            return scores

    network, case = Watching(), case_of((1, 20, 20))
    probabilities, _ = joined(Predictor(network, (1, 8, 8), precision=torch.bfloat16, workers=0), case)
    assert kinds == {torch.bfloat16}
    np.testing.assert_allclose(probabilities, whole(network, case), atol=0.03)


@pytest.mark.parametrize("kept", [1, 3])
def test_a_continued_prediction_yields_the_bands_that_were_missing(kept: int) -> None:
    torch.manual_seed(0)
    network, case = torch.nn.Conv2d(2, 3, 1), case_of((2, 40, 24))
    predictor = Predictor(network, (1, 16, 16), overlap=0.5, batch_size=3, workers=0)
    whole = list(predictor.bands(case, SCALE))
    done = [band.window for band in whole[:kept]]
    rest = list(Predictor(network, (1, 16, 16), overlap=0.5, batch_size=3, workers=0).bands(case, SCALE, done))
    assert [band.window for band in rest] == [band.window for band in whole[kept:]]
    assert len(rest) > 0
    for again, before in zip(rest, whole[kept:], strict=True):
        torch.testing.assert_close(again.probabilities, before.probabilities)


# --- strips of wide scenes


@pytest.mark.parametrize("widest", [1, 9, 20, 40])
@pytest.mark.parametrize(("margin", "overlap"), [(0, 0.5), (2, 0.25), (1, 0.0)])
def test_strips_change_nothing_but_the_order(monkeypatch, widest, margin, overlap):
    valid = np.random.default_rng(5).random((2, 27, 61)) < 0.8
    valid[:, 5:18, 20:44] = False
    network, case = Convolutions(margin=margin), case_of((2, 27, 61), valid=valid)

    def found():
        return joined(Predictor(network, (1, 10, 12), overlap, 3, workers=0), case)

    one = found()
    monkeypatch.setattr("voxtile.inference.predictor.WIDEST", widest)
    assert len(Predictor(network, (1, 10, 12), overlap).plan(case)) > 2
    for strips, whole_width in zip(found(), one, strict=True):
        np.testing.assert_allclose(strips, whole_width, atol=1e-6)


@few
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 30), st.integers(1, 60)),
    side=st.tuples(st.integers(1, 12), st.integers(1, 20)),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    widest=st.sampled_from([9, 30, 100]),
    margin=st.sampled_from([0, 2]),
    seed=st.integers(0, 9),
)
def test_windows_cut_and_joined_in_bulk_as_on_a_gpu_differ_by_rounding_only(shape, side, overlap, widest, margin, seed):
    rng = np.random.default_rng(seed)
    valid = rng.random(shape) < 0.9
    valid[:, :, shape[2] // 3 : shape[2] // 2] = rng.random() < 0.5
    network, case = Convolutions(margin=margin), case_of(shape, valid=valid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxtile.inference.predictor.WIDEST", widest)
        one_by_one = joined(Predictor(network, (1, *side), overlap, 3, workers=0), case)
        patch.setattr(Predictor, "in_bulk", True)
        in_bulk = joined(Predictor(network, (1, *side), overlap, 3, workers=0), case)
    np.testing.assert_allclose(in_bulk[0], one_by_one[0], atol=1e-6)


@settings(max_examples=12, deadline=None)
@given(st.data(), st.sampled_from([1, 13, None]), st.sampled_from([0, 2]))
def test_whatever_bands_are_done_the_others_have_the_same_bits(data, widest, margin):
    valid = np.random.default_rng(6).random((2, 25, 29)) < 0.7
    case = case_of((2, 25, 29), valid=valid)
    predictor = Predictor(Convolutions(margin=margin), (1, 10, 12), 0.4, 2, workers=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxtile.inference.predictor.WIDEST", widest)
        everything = list(predictor.bands(case, SCALE))
        windows = [band.window for band in everything]
        done = data.draw(st.sets(st.sampled_from(windows)))
        rest = list(predictor.bands(case, SCALE, done))
    assert [band.window for band in rest] == [window for window in windows if window not in done]
    before = {band.window: band for band in everything}
    for band in rest:
        np.testing.assert_array_equal(band.probabilities, before[band.window].probabilities)
        np.testing.assert_array_equal(band.valid, before[band.window].valid)


def test_what_only_done_bands_need_is_not_sent_to_the_network():
    network, case = Convolutions(), case_of((1, 64, 16))
    predictor = Predictor(network, (1, 8, 8), 0.0, 1, workers=0)
    windows = [band.window for band in predictor.bands(case, SCALE)]
    network.sent.clear()
    assert list(predictor.bands(case, SCALE, windows)) == []
    assert network.sent == []
    list(predictor.bands(case, SCALE, windows[:-1]))
    assert len(network.sent) == 2  # the two windows of the last row


def test_a_crf_sees_the_scene_in_one_strip(monkeypatch):
    monkeypatch.setattr("voxtile.inference.predictor.WIDEST", 10)
    case = case_of((1, 20, 50))
    assert len(Predictor(Convolutions(), (1, 8, 8)).plan(case)) > 1
    (strip,) = Predictor(Convolutions(), (1, 8, 8), procedure=Procedure(crf=DenseCRF())).plan(case)
    assert {row.band.width for row in strip} == {50}


def test_a_network_that_views_its_tensors_is_judged_as_well():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Conv2d(2, 2, 1, bias=False)
            nn.init.eye_(self.same.weight[:, :, 0, 0])

        def forward(self, image):
            return self.same(image).view(len(image), -1).view(image.shape)

    case = case_of((1, 20, 24))
    (band,) = Predictor(Viewing(), (1, 20, 24)).bands(case, SCALE)
    mean, std = (np.array(numbers)[:, None, None] for numbers in (SCALE.mean, SCALE.std))
    scaled = (case.read(Window.whole(case.shape))[0][:, 0] - mean) / std
    np.testing.assert_array_equal(band.classes()[0], scaled.argmax(axis=0))
