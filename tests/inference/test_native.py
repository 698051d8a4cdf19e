"""Maps on the grid of the file from networks that see another one."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.testers.nifti import save, turned_affine
from voxtile.cases.case import Case
from voxtile.cases.nifti import NiftiSource
from voxtile.cases.window import Window
from voxtile.cases.working import OnWorkingGrid
from voxtile.data.normalise import Intensity
from voxtile.errors import DataError
from voxtile.inference import postprocess
from voxtile.inference.native import native_bands, native_windows
from voxtile.inference.postprocess import Postprocess, class_bands
from voxtile.inference.predictor import Predictor
from voxtile.inference.procedure import Procedure
from voxtile.inference.together import Sight

PLAIN = Intensity((-np.inf,), (np.inf,), (0.0,), (1.0,))


class Bright(nn.Module):
    """Logits of two classes from a pixel's own brightness."""

    def __init__(self, dims=2):
        super().__init__()
        self.dims = dims

    def forward(self, image):
        return torch.cat([-image[:, :1], image[:, :1]], dim=1)


def case_of(path, spacing=None, axis="z", hole=False):
    z, y, x = np.indices((12, 18, 20))
    array = (6 - np.sqrt(((z - 6) * 2.0) ** 2 + (y - 9) ** 2 + (x - 8.0) ** 2)).astype(np.float32)
    if hole:
        array[:, :, 15:] = np.nan
    native = NiftiSource([save(path, array.T, turned_affine(20, (1.0, 1.0, 2.0)))])
    source = native if spacing is None and axis == "z" else OnWorkingGrid(native, spacing, axis, kernel="cubic")
    return Case("a", "a", source)


def whole(predictor, case, done=()):
    """Probabilities [2, D, H, W] and classes on the native grid, and how often each voxel was yielded."""
    shape = case.native.shape
    probabilities, classes = np.full((2, *shape), np.nan, np.float32), np.zeros(shape, np.uint8)
    times = np.zeros(shape, int)
    for band in native_bands(predictor, case, PLAIN, done):
        probabilities[:, *band.window.slices], classes[band.window.slices] = band.probabilities, band.classes()
        times[band.window.slices] += 1
    return probabilities, classes, times


@pytest.mark.parametrize(("dims", "size"), [(2, (1, 8, 8)), (3, (4, 8, 8))])
@pytest.mark.parametrize("axis", ["y", "x"])
def test_the_axis_of_slices_changes_nothing_for_a_network_that_sees_single_pixels(tmp_path, axis, dims, size):
    predictor = Predictor(Bright(dims), size)
    expected, _, _ = whole(predictor, case_of(tmp_path / "a.nii"))
    found, _, times = whole(predictor, case_of(tmp_path / "a.nii", axis=axis))
    assert (times == 1).all()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.5, 0.5), (3.0, 2.0, 2.0)])
@pytest.mark.parametrize("axis", ["z", "x"])
@pytest.mark.parametrize(("dims", "size"), [(2, (1, 8, 8)), (3, (4, 8, 8))])
def test_probabilities_come_back_to_the_files_grid(tmp_path, spacing, axis, dims, size):
    predictor = Predictor(Bright(dims), size)
    _, expected, _ = whole(predictor, case_of(tmp_path / "a.nii"))
    probabilities, classes, times = whole(predictor, case_of(tmp_path / "a.nii", spacing, axis))
    assert (times == 1).all()
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, rtol=1e-5)
    assert 2 * (expected & classes).sum() / (expected.sum() + classes.sum()) > (0.9 if max(spacing) > 2 else 0.97)


class Tripled(Bright):
    """Logits of a background and of two classes, which share the brightness: alone each of them rarely leads."""

    def forward(self, image):
        logits = super().forward(image)
        return torch.cat([logits, logits[:, 1:]], dim=1)


@pytest.mark.parametrize("spacing", [None, (3.0, 2.0, 2.0)])
def test_regions_are_decided_on_the_files_grid(tmp_path, spacing):
    case = case_of(tmp_path / "a.nii", spacing)
    bands = list(native_bands(Predictor(Tripled(), (1, 8, 8), regions=[(1, 2)]), case, PLAIN))
    plain = list(native_bands(Predictor(Tripled(), (1, 8, 8)), case, PLAIN))
    for band in bands:
        inside = band.probabilities[1] + band.probabilities[2] > 0.5
        np.testing.assert_array_equal(band.classes() > 0, inside)
    assert sum((band.classes() > 0).sum() for band in bands) > sum((band.classes() > 0).sum() for band in plain) > 0


def test_voxels_without_data_have_no_class_and_do_not_darken_others(tmp_path):
    predictor = Predictor(Bright(), (1, 8, 8))
    probabilities, classes, _ = whole(predictor, case_of(tmp_path / "a.nii", (1.0, 1.0, 1.0), "z", hole=True))
    assert (classes[:, :, 15:] == 255).all()
    assert np.isnan(probabilities[:, :, :, 15:]).all()
    np.testing.assert_allclose(probabilities[..., :15].sum(axis=0), 1, rtol=1e-5)


@pytest.mark.parametrize(("axis", "spacing"), [("z", (1.0, 1.0, 1.0)), ("x", (3.0, 1.0, 1.0)), ("y", None)])
def test_what_is_done_is_not_yielded_again_and_the_rest_has_the_same_bits(tmp_path, axis, spacing):
    case, predictor = case_of(tmp_path / "a.nii", spacing, axis), Predictor(Bright(), (1, 8, 8))
    windows = native_windows(predictor, case)
    expected, _, _ = whole(predictor, case)
    assert sum(window.pixels for window in windows) == Window.whole(case.native.shape).pixels
    done = windows[: len(windows) // 2]
    found, _, times = whole(predictor, case, done)
    for window in windows:
        assert (times[window.slices] == (window not in done)).all()
    seen = times > 0
    np.testing.assert_array_equal(found[:, seen], expected[:, seen])


def test_scenes_and_volumes_on_their_own_grid_keep_their_bands(tmp_path):
    case, predictor = case_of(tmp_path / "a.nii"), Predictor(Bright(), (1, 8, 8))
    assert [band.window for band in native_bands(predictor, case, PLAIN)] == native_windows(predictor, case)
    assert native_windows(predictor, case) == [band.window for band in predictor.bands(case, PLAIN)]


def test_only_post_processing_limits_the_size_of_maps_whose_slices_lie_across_another_axis(tmp_path, monkeypatch):
    monkeypatch.setattr(postprocess, "MOST_PIXELS", 100)
    case, predictor = case_of(tmp_path / "a.nii", axis="x"), Predictor(Bright(), (1, 8, 8))
    ((window, classes),) = class_bands([Sight(predictor, case, [PLAIN])])
    assert window.size == classes.shape == case.native.shape
    with pytest.raises(DataError, match="'postprocess=null'"):
        list(class_bands([Sight(predictor, case, [PLAIN])], Postprocess(0, largest=(1,))))


class Doubtful(Bright):
    """Whose dropout leaves the same doubt everywhere."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, image):
        return super().forward(self.dropout(torch.ones_like(image[:, :1, :1, :1])) * torch.ones_like(image))


@pytest.mark.parametrize(("spacing", "axis"), [((1.0, 1.0, 1.0), "z"), ((2.0, 2.0, 2.0), "x"), (None, "x")])
def test_the_variance_is_as_large_beside_missing_data_as_elsewhere_and_unknown_there(tmp_path, spacing, axis):
    # One window a slice, so that a slice has one draw, and the variance is the same all over it.
    predictor = Predictor(Doubtful(), (1, 32, 48), procedure=Procedure(samples=4))
    case = case_of(tmp_path / "a.nii", spacing, axis, hole=True)
    for band in native_bands(predictor, case, PLAIN):
        assert band.variance is not None
        np.testing.assert_array_equal(band.variance.isnan(), ~band.valid)
        for part in band.variance.movedim({"z": 0, "x": 2}[axis], 0):
            held = part[~part.isnan()]
            assert not len(held) or torch.allclose(held, held[0].expand(len(held)), rtol=1e-4)
