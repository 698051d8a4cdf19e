"""The dense CRF on blended bands: what it sees, that joints do not show, and that a map goes on in the same bits."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.testers.memory import memory_case
from voxtile.data.normalise import Intensity
from voxtile.inference import refining
from voxtile.inference.crf import DenseCRF
from voxtile.inference.predictor import Predictor
from voxtile.inference.procedure import Procedure

SCALE = Intensity((0.0,) * 2, (255.0,) * 2, (127.0,) * 2, (60.0,) * 2)
CRF = DenseCRF(bilateral_position=6.0, bilateral_value=40.0, smooth_position=1.0, iterations=4)


class Pixels(nn.Module):
    """Judges each pixel by itself, of a slice or a volume; three classes."""

    margin = 0

    def __init__(self, dims=2):
        super().__init__()
        self.dims = dims

    def forward(self, image):
        first, second = image[:, :1], image[:, 1:2]
        return torch.cat([first, second, -first - second], dim=1)


def scene(shape=(1, 60, 44)):
    """Blocks of two brightnesses under noise, with a corner without data."""
    rng = np.random.default_rng(0)
    _, height, width = shape
    plane = np.where((np.arange(height)[:, None] // 15 + np.arange(width) // 11) % 2, 170, 80)
    array = np.clip(plane + rng.normal(0, 45, (2, *shape)), 0, 255).astype(np.uint8)
    valid = np.ones(shape, np.bool_)
    valid[:, -9:, :7] = False
    case = memory_case("a", array=array)
    case.image.valid = valid
    return case


def bands_of(case, crf=CRF, dims=2, size=(1, 16, 16), done=(), workers=0, **procedure):
    predictor = Predictor(Pixels(dims), size, batch_size=5, workers=workers, procedure=Procedure(crf=crf, **procedure))
    return list(predictor.bands(case, SCALE, done))


def joined(bands, shape):
    found = torch.full((3, *shape), -1.0)
    for band in bands:
        found[(slice(None), *band.window.slices)] = band.probabilities
    return found


@pytest.fixture
def in_blocks(monkeypatch):
    """Small slices count as large ones."""
    monkeypatch.setattr(refining, "WHOLE", 100)
    monkeypatch.setattr(refining, "BLOCK_SIDE", 12)


@pytest.mark.parametrize(("dims", "size"), [(2, (1, 16, 16)), (3, (2, 16, 16))])
def test_slices_are_refined_whole_however_small_the_windows(dims, size):
    case = scene((3, 60, 44))
    plain, valid = joined(bands_of(case, None, dims, size), case.shape), case.image.valid
    expected = CRF.refine(plain.numpy(), case.image.array, valid)
    found = joined(bands_of(case, dims=dims, size=size), case.shape)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # windows may be blended in another order
    assert (found.numpy().argmax(axis=0) != plain.numpy().argmax(axis=0))[valid].mean() > 0.1
    assert found.isnan().any(dim=0).equal(torch.from_numpy(~valid))


@pytest.mark.parametrize(("dims", "size"), [(2, (1, 16, 16)), (3, (2, 16, 16))])
@pytest.mark.usefixtures("in_blocks")
def test_blocks_see_enough_around_them_for_joints_not_to_show(dims, size):
    case = scene((2, 60, 44))
    assert refining.reach(CRF, case.shape) == 12
    valid = case.image.valid
    expected = CRF.refine(joined(bands_of(case, None, dims, size), case.shape).numpy(), case.image.array, valid)
    found = joined(bands_of(case, dims=dims, size=size), case.shape).numpy()
    # Measured: 98.9 and 99.3 % of the pixels, mean differences of 0.006 and 0.005, in blocks no larger than what they see around.
    assert (found.argmax(axis=0) == expected.argmax(axis=0))[valid].mean() > 0.985
    assert np.abs(found - expected)[:, valid].mean() < 0.01


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("shape", [(1, 60, 44), (2, 40, 20), (1, 120, 16)])
def test_what_is_left_after_any_interruption_has_the_same_bits(request, blocks, shape):
    if blocks:
        request.getfixturevalue("in_blocks")
    case = scene(shape)
    bands = bands_of(case)
    assert [band.window for band in bands] == [band.window for band in bands_of(case, None)]
    windows = [band.window for band in bands]
    for done in [windows[:count] for count in range(1, len(windows))] + [windows[1::2], windows[:1] + windows[-1:], windows[1:-1]]:
        rest = bands_of(case, done=done, workers=2)
        left = [band for band in bands if band.window not in done]
        assert [band.window for band in rest] == [band.window for band in left]
        for one, other in zip(rest, left, strict=True):
            np.testing.assert_array_equal(one.probabilities.numpy(), other.probabilities.numpy())


def test_a_kernel_of_no_weight_is_not_seen_far():
    large = (1, 5000, 5000)
    assert refining.reach(DenseCRF(bilateral_position=50, smooth_position=3), large) == 100
    assert refining.reach(DenseCRF(bilateral_weight=0, bilateral_position=50, smooth_position=3), large) == 6
    assert refining.reach(DenseCRF(bilateral_weight=0, smooth_weight=0), large) == 0


def test_the_variance_of_samples_stays_beside_the_refined_classes():
    class Dropping(Pixels):
        stochastic = True

        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, image):
            return super().forward(self.drop(image))

    def variances(crf):
        predictor = Predictor(Dropping(), (1, 16, 16), workers=0, procedure=Procedure(samples=3, crf=crf))
        return list(predictor.bands(scene(), SCALE))

    for with_crf, without in zip(variances(CRF), variances(None), strict=True):
        assert len(with_crf.probabilities) == len(without.probabilities) == 3
        np.testing.assert_array_equal(with_crf.variance.numpy(), without.variance.numpy())


@pytest.mark.parametrize(("dims", "size"), [(2, (1, 16, 16)), (3, (2, 16, 16))])
def test_a_case_as_a_whole_is_what_its_bands_hold(dims, size):
    case = scene((3, 30, 20))
    case = memory_case("a", array=case.image.array, label=(case.image.array[0] > 120).astype(np.uint8))
    predictor = Predictor(Pixels(dims), size, workers=0)
    probabilities, image, label, valid = predictor.whole(case, SCALE)
    np.testing.assert_array_equal(probabilities, joined(predictor.bands(case, SCALE), case.shape).numpy())
    np.testing.assert_array_equal(image, case.image.array)
    np.testing.assert_array_equal(label, case.image.array[0] > 120)
    assert valid.all()
