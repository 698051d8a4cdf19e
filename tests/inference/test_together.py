"""Networks on slices and on boxes, and on several grids, that predict a case together."""

import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from tests.testers.nifti import save, turned_affine
from voxtile.cases.case import Case
from voxtile.cases.nifti import NiftiSource
from voxtile.cases.raster import BLOCK_CACHE
from voxtile.cases.window import Window
from voxtile.cases.working import OnWorkingGrid
from voxtile.data.normalise import Intensity
from voxtile.inference.budget import ENDING, memory_of
from voxtile.inference.native import native_bands, slices_held
from voxtile.inference.postprocess import class_bands
from voxtile.inference.predictor import Band, Predictor
from voxtile.inference.procedure import Procedure
from voxtile.inference.together import Sight, bands_of, mean_band, windows_of

PLAIN = Intensity((-np.inf,), (np.inf,), (0.0,), (1.0,))
BETWEEN = Procedure(disagreement=True)
WHOLE = (12, 18, 20)  # of the volume: one window that sees all of it


class Bright(nn.Module):
    """Logits of two classes from a pixel's own brightness, whose softmax is a sigmoid of twice the brightness times a gain."""

    def __init__(self, dims: int = 2, gain: float = 1.0) -> None:
        super().__init__()
        self.dims, self.gain = dims, gain

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([-image[:, :1], image[:, :1]], dim=1) * self.gain


class Doubtful(Bright):
    """Whose dropout leaves the same doubt everywhere."""

    stochastic = True

    def __init__(self, dims: int = 2) -> None:
        super().__init__(dims)
        self.dropout = nn.Dropout(0.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        time.sleep(1e-4)  # lets another thread have its turn between seeding and drawing
        return super().forward(self.dropout(torch.ones(1)) * torch.ones_like(image))


def pixels(depth: int = 12) -> np.ndarray:
    z, y, x = np.indices((depth, 18, 20))
    return (6 - np.sqrt(((z - 6) * 2.0) ** 2 + (y - 9) ** 2 + (x - 8.0) ** 2)).astype(np.float32) / 4


def native(path, array: np.ndarray) -> NiftiSource:
    """A volume that lies obliquely."""
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    return NiftiSource([save(path, array.T, tilt @ turned_affine(20, (1.0, 1.0, 2.0)))])


def seen(source: NiftiSource, spacing=None, axis: str = "z") -> Case:
    return Case("a", "a", source if spacing is None and axis == "z" else OnWorkingGrid(source, spacing, axis, kernel="cubic"))


def sight(case: Case, networks, size, procedure: Procedure = BETWEEN, overlap: float = 0.25) -> Sight:
    return Sight(Predictor(networks, size, overlap, procedure=procedure), case, [PLAIN] * len(networks))


def whole(sights, done=()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [2, D, H, W], variance, and how often each voxel was yielded."""
    shape = sights[0].case.native.shape
    probabilities, variance, times = np.full((2, *shape), np.nan, np.float32), np.full(shape, np.nan), np.zeros(shape, int)
    for band in bands_of(sights, done):
        probabilities[:, *band.window.slices] = band.probabilities
        times[band.window.slices] += 1
        if band.variance is not None:
            variance[band.window.slices] = band.variance
        np.testing.assert_array_equal(band.valid, ~band.probabilities[0].isnan())
    return probabilities, variance, times


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-2 * values.astype(float)))


def test_slices_and_boxes_say_the_mean_over_networks_and_the_variance_between_them(tmp_path) -> None:
    array, gains = pixels(), (0.5, 2.0, -1.0)
    case = seen(native(tmp_path / "a.nii", array))
    sights = [sight(case, [Bright(2, gains[0]), Bright(2, gains[1])], (1, 8, 8)), sight(case, [Bright(3, gains[2])], (4, 8, 8))]
    probabilities, variance, times = whole(sights)
    each = np.stack([sigmoid(gain * array) for gain in gains])
    assert (times == 1).all()
    np.testing.assert_allclose(probabilities[1], each.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(variance, each.var(axis=0), atol=1e-6)  # of two classes each has the same
    made = np.concatenate([classes for _, classes in class_bands(sights)])
    np.testing.assert_array_equal(made, (each.mean(axis=0) > 0.5).astype(np.uint8))


class Constant(Bright):
    """Logits that no pixel changes."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.ones_like(image))


@pytest.mark.parametrize("axis", ["z", "y"])
def test_networks_on_several_grids_say_their_mean(tmp_path, axis: str) -> None:
    source, gains = native(tmp_path / "a.nii", pixels()), (0.3, 1.1, -0.4)
    sights = [
        sight(seen(source, spacing, axis), [Constant(dims, gain)], size)
        for gain, dims, size, spacing in zip(
            gains, (2, 2, 3), ((1, 8, 8), (1, 8, 8), (4, 8, 8)), (None, (1.0, 1.5, 1.0), (3.0, 2.0, 2.0)), strict=True
        )
    ]
    probabilities, variance, times = whole(sights)
    each = sigmoid(np.array(gains))
    assert (times == 1).all()
    np.testing.assert_allclose(probabilities[1], each.mean(), atol=1e-6)
    np.testing.assert_allclose(variance, each.var(), atol=1e-6)


@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 1.0)], ids=["its own grid", "a grid as fine"])
@pytest.mark.parametrize(("dims", "size"), [(2, (1, 18, 20)), (3, WHOLE)])
def test_one_kind_that_is_split_in_two_says_the_same(tmp_path, spacing, dims: int, size) -> None:
    case = seen(native(tmp_path / "a.nii", pixels()), spacing)
    networks = [Bright(dims, gain) for gain in (0.5, 2.0, -1.0)]
    together = whole([sight(case, networks, size)])
    for first in (1, 2):
        apart = whole([sight(case, networks[:first], size), sight(case, networks[first:], size)])
        np.testing.assert_allclose(apart[0], together[0], atol=1e-6)
        np.testing.assert_allclose(apart[1], together[1], atol=1e-6)


def test_the_variance_over_samples_is_the_mean_over_networks_however_they_are_split(tmp_path) -> None:
    case, sampled = seen(native(tmp_path / "a.nii", pixels())), Procedure(samples=5)
    for size in ((1, 18, 20), (1, 10, 10)):
        networks = [Doubtful(), Doubtful(), Bright()]
        together = whole([sight(case, networks, size, sampled)])
        apart = whole([sight(case, networks[:2], size, sampled), sight(case, networks[2:], size, sampled)])
        again = whole([sight(case, networks[:2], size, sampled), sight(case, networks[2:], size, sampled)])
        for place in (0, 1):
            np.testing.assert_allclose(apart[place], together[place], atol=1e-6)
            np.testing.assert_array_equal(apart[place], again[place])
        assert together[1].max() > 0.01


def test_two_kinds_that_draw_at_once_draw_what_each_draws_alone(tmp_path) -> None:
    case, sampled = seen(native(tmp_path / "a.nii", pixels())), Procedure(samples=3)
    sights = [sight(case, [Doubtful(2)], (1, 10, 10), sampled), sight(case, [Doubtful(3)], (4, 10, 10), sampled)]
    alone = [whole([each])[:2] for each in sights]
    both = whole(sights)
    for place in (0, 1):
        np.testing.assert_allclose(both[place], (alone[0][place] + alone[1][place]) / 2, atol=1e-6)


def kinds(source: NiftiSource) -> list[Sight]:
    """A kind on the file's own grid by boxes, one on a coarser grid by slices, one on a finer grid by boxes."""
    return [
        sight(seen(source), [Bright(3, 0.7)], (4, 8, 8)),
        sight(seen(source, (3.0, 1.5, 1.5)), [Bright(2, 2.0), Bright(2, -1.0)], (1, 8, 8)),
        sight(seen(source, (1.0, 1.0, 1.0)), [Bright(3, 1.0)], (5, 8, 8)),
    ]


@pytest.mark.parametrize("part", [lambda z: z < 5, lambda z: z > 7, lambda z: z % 3 == 1], ids=["half", "the end", "some"])
def test_what_is_done_is_not_yielded_again_and_the_rest_has_the_same_bits(tmp_path, part) -> None:
    sights = kinds(native(tmp_path / "a.nii", pixels()))
    windows = windows_of(sights)
    assert windows == [Window(z, 0, 0, 1, 18, 20) for z in range(12)]
    expected = whole(sights)
    done = [window for window in windows if part(window.z)]
    found = whole(sights, done)
    assert [band.window for band in bands_of(sights, done)] == [window for window in windows if window not in done]
    missing = found[2] > 0
    assert missing.any(axis=(1, 2)).tolist() == [not part(z) for z in range(12)]
    for place in (0, 1):
        np.testing.assert_array_equal(found[place][..., missing], expected[place][..., missing])


def test_no_pixel_that_the_file_holds_is_lost_since_one_kind_has_no_data_there(tmp_path) -> None:
    array = pixels()
    array[:, :, 13:] = np.nan
    array[4, 4, 17] = 1.0  # alone between voxels without data: a coarser grid loses it
    source = native(tmp_path / "a.nii", array)
    fine = sight(seen(source), [Constant(2, 0.5)], (1, 8, 8))
    coarse = sight(seen(source, (6.0, 4.0, 4.0)), [Constant(3, -1.0)], (2, 8, 8))
    assert np.isnan(whole([coarse])[0][0, 4, 4, 17])
    probabilities, variance, _ = whole([coarse, fine])
    np.testing.assert_array_equal(np.isnan(probabilities[0]), np.isnan(array))
    np.testing.assert_array_equal(np.isnan(variance), np.isnan(array))
    assert probabilities[1, 4, 4, 17] == pytest.approx(sigmoid(np.array(0.5)), abs=1e-6)
    assert variance[4, 4, 17] == 0
    assert probabilities[1, 4, 4, 3] == pytest.approx(sigmoid(np.array([0.5, -1.0])).mean(), abs=1e-6)


def test_the_mean_of_bands_is_by_hand() -> None:
    window = Window(0, 0, 0, 1, 1, 2)
    first = torch.tensor([[[[0.2, 0.4]]], [[[0.8, 0.6]]]])
    second = torch.tensor([[[[0.5, torch.nan]]], [[[0.5, torch.nan]]]])
    bands = [
        Band(window, first, np.array([[[True, True]]]), torch.tensor([[[0.01, 0.02]]])),
        Band(window, second, np.array([[[True, False]]]), torch.tensor([[[0.03, torch.nan]]])),
    ]
    found = mean_band(bands, [1, 3], between=True)
    mean = (0.2 + 3 * 0.5) / 4
    apart = (0.01 + (0.2 - mean) ** 2 + 3 * (0.03 + (0.5 - mean) ** 2)) / 4
    assert found.probabilities[0].flatten().tolist() == pytest.approx([mean, 0.4])
    assert found.variance is not None
    assert found.variance.flatten().tolist() == pytest.approx([apart, 0.02])
    sampled = mean_band(bands, [1, 3], between=False)
    assert sampled.variance is not None
    assert sampled.variance.flatten().tolist() == pytest.approx([(0.01 + 3 * 0.03) / 4, 0.02])


def test_no_kind_s_slice_is_held_while_the_next_one_is_made(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Band]] = []

    def watched(*given, **further):
        for band in native_bands(*given, **further):
            made.append(weakref.ref(band))
            yield band
            del band
            assert made.pop(0)() is None

    monkeypatch.setattr("voxtile.inference.together.native_bands", watched)
    assert len(list(bands_of(kinds(native(tmp_path / "a.nii", pixels()))))) == 12


def test_slices_that_are_held_are_those_that_one_of_the_file_is_made_of(tmp_path) -> None:
    """With the variance a row's slices (4, 1 or 5), 1, 2 or 4 that a slice is made of, their mean, and what is added to it."""
    held = [slices_held(each.predictor, each.case, by_slices=True) for each in kinds(native(tmp_path / "a.nii", pixels()))]
    assert held == [(4 + 1 + 2, 0), (1 + 2 + 2, 2), (5 + 4 + 2, 2)]
    (own, other, _) = kinds(native(tmp_path / "a.nii", pixels()))
    assert slices_held(own.predictor, own.case) == (0, 0)
    assert slices_held(other.predictor, other.case) == held[1]


@pytest.mark.parametrize("depth", [24, 96])
def test_of_no_kind_more_slices_are_held_the_deeper_the_volume_is(tmp_path, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    sights = kinds(native(tmp_path / "a.nii", pixels(depth)))
    heard = [0.0] * len(sights)  # how far each kind has been judged, in slices of the file
    inner = Predictor.bands

    def watched(predictor: Predictor, case: Case, *further):
        (number,) = (place for place, each in enumerate(sights) if each.predictor is predictor)
        for band in inner(predictor, case, *further):
            heard[number] = band.window.stop[0] * depth / case.shape[0]
            yield band

    monkeypatch.setattr(Predictor, "bands", watched)
    ahead = [max(heard) - band.window.stop[0] for band in bands_of(sights)]
    assert len(ahead) == depth
    assert 0 < max(ahead) <= 6  # a box, and what interpolating sees of the next one


def test_kinds_judge_with_all_threads_and_leave_them_as_they_were(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        sights = kinds(native(tmp_path / "a.nii", pixels()))
        monkeypatch.setattr("voxtile.inference.budget.most_resident", lambda: 0)
        fixed = BLOCK_CACHE * 2**20 + ENDING
        memory, alone = memory_of(sights, 2) - fixed, [memory_of([each], 2) - fixed for each in sights]
        assert torch.get_num_threads() == 3
        bands = bands_of(sights)
        next(bands)
        for each in sights:
            with each.predictor.judge.threads() as count:
                counts.append(count)
        bands.close()
        assert (counts, torch.get_num_threads()) == ([3, 3, 3], 3)
        # Two classes and their variance, of: slices of the first kind, which alone has none (a row of boxes that is copied, a
        # slice, and two to make one of it), and where all meet, the slices of three kinds, the mean, and one on its way into it.
        assert memory == sum(alone) + 3 * 4 * 18 * 20 * ((4 + 1 + 2) + (3 + 2))
    finally:
        torch.set_num_threads(before)
