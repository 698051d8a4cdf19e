"""Working grids of volumes against the world: what lies at a place must stay there, however axes, spacings and slices lie."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.testers.memory import memory_case
from tests.testers.nifti import ORIENTATIONS, save, turned_affine
from voxtile.cases.case import Case, Labels
from voxtile.cases.nifti import NiftiSource
from voxtile.cases.volumes import on_image
from voxtile.cases.window import Window
from voxtile.cases.windowing import ORDERS
from voxtile.cases.working import OnWorkingGrid, linear_taps, resampled_image, resampled_label
from voxtile.errors import DataError

SLOPE = np.array([0.7, -1.3, 2.1])  # of a field that grows evenly in space, per mm along (X, Y, Z)


def places(grid):
    """World coordinates [3, D, H, W] of a grid's voxels."""
    z, y, x = np.indices(grid.shape)
    return np.tensordot(grid.matrix[:3], np.stack([x, y, z, np.ones_like(x)]), 1)


def field(grid):
    return np.tensordot(SLOPE, places(grid), 1)


def ramp(path, orientation=((0, 1), (1, 1), (2, 1)), spacing=(1.0, 1.5, 4.0)):
    """A volume of the field, oblique, stored in any orientation."""
    shape = (14, 12, 10)
    affine = turned_affine(25, spacing)
    index = np.stack([*np.indices(shape), np.ones(shape)])
    image = nib.Nifti1Image(np.tensordot(SLOPE @ affine[:3], index, 1).astype(np.float32), affine)
    nib.save(image.as_reoriented(np.array(orientation)), path)
    return NiftiSource([path])


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("spacing", [None, (2.0, None, 3.0)])
def test_what_lies_at_a_place_stays_there(tmp_path, orientation, axis, spacing):
    source = OnWorkingGrid(ramp(tmp_path / "a.nii", orientation), spacing, axis, kernel="cubic")
    array, valid = source.read(Window.whole(source.working.shape), (0,))
    assert valid.all()
    assert source.working.shape[0] == source.native.working.shape[ORDERS[axis][0]] or spacing
    inner = (slice(3, -3),) * 3  # past the border there is nothing for a kernel to see
    np.testing.assert_allclose(array[0][inner], field(source.working)[inner], atol=0.02)


def test_the_outer_edges_stay_and_the_spacing_is_as_near_as_whole_voxels_allow(tmp_path):
    native = NiftiSource([save(tmp_path / "a.nii", np.zeros((14, 12, 10), np.int16), turned_affine(0, (1.0, 1.5, 4.0)))])
    grid = OnWorkingGrid(native, (1.0, 4.0, None), "z", kernel="cubic").working
    assert grid.shape == (40, 4, 14)  # 40 mm by 1, 18 mm by 4 is 4.5, as it was
    assert grid.spacing == pytest.approx((1.0, 4.5, 1.0))
    for corner, side in ((0, -0.5), (-1, 0.5)):
        edges = [places(each)[:, corner, corner, corner] + side * np.array(each.spacing[::-1]) for each in (grid, native.working)]
        np.testing.assert_allclose(*edges)


def test_windows_are_parts_of_the_whole_in_any_orientation(tmp_path):
    for axis, spacing in itertools.product("zyx", (None, (2.0, 1.0, 1.0))):
        source = OnWorkingGrid(ramp(tmp_path / "a.nii"), spacing, axis, kernel="cubic")
        whole, _ = source.read(Window.whole(source.working.shape), (0,))
        window = Window(1, 2, 3, 4, 5, 6)
        np.testing.assert_array_equal(source.read(window, (0,))[0], whole[:, *window.slices])


def test_channels_of_several_files_are_kept_apart_in_the_cache(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(8, 8, 8)).astype(np.float32) for _ in range(3)]
    one, two, three = (save(tmp_path / f"p_{name}.nii", array) for name, array in zip(("a", "b", "c"), arrays, strict=True))
    first, second = (OnWorkingGrid(NiftiSource([one, other]), (2.0, 2.0, 2.0), "z", kernel="cubic") for other in (two, three))
    read = [source.read(Window.whole((4, 4, 4)), (0, 1))[0] for source in (first, second)]
    np.testing.assert_array_equal(read[0][0], read[1][0])
    assert not np.allclose(read[0][1], read[1][1])


def test_nothing_aliases_where_the_grid_gets_coarser():
    stripes = np.zeros((24, 24, 24), np.float32)
    stripes[:, :, ::2] = 1  # finer than the new grid can hold
    made = resampled_image(stripes, np.ones(stripes.shape, bool), (24, 24, 5))
    assert np.abs(made[..., 1:-1] - 0.5).max() < 0.06


def test_constants_stay_and_missing_voxels_are_left_out():
    array, valid = np.full((6, 7, 8), 5, np.int16), np.ones((6, 7, 8), bool)
    np.testing.assert_allclose(resampled_image(array, valid, (9, 3, 8)), 5, rtol=1e-6)
    valid[:, :, 4:] = False
    array[:, :, 4:] = 30000  # whatever stands there
    made = resampled_image(array, valid, (6, 7, 16))
    assert np.isnan(made[..., 8:]).all()
    np.testing.assert_allclose(made[..., :8], 5, rtol=1e-4)


def test_a_label_keeps_its_values_and_shapes():
    z, y, x = np.indices((20, 20, 20))
    ball = ((z - 9.5) ** 2 + (y - 9.5) ** 2 + (x - 9.5) ** 2 < 36).astype(np.uint8) * 7
    fine = resampled_label(ball, np.ones(ball.shape, bool), (40, 30, 20))
    assert set(np.unique(fine)) == {0, 7}
    assert (fine == 7).sum() / fine.size == pytest.approx((ball == 7).sum() / ball.size, rel=0.03)
    back = resampled_label(fine, np.ones(fine.shape, bool), (20, 20, 20))
    assert (back == ball).mean() > 0.99


def test_labels_without_data_stay_ignored(tmp_path):
    stored = np.zeros((8, 8, 8), np.float32)
    stored[4:] = np.nan
    image = NiftiSource([save(tmp_path / "a.nii", np.zeros((8, 8, 8), np.float32))])
    label = on_image(NiftiSource([save(tmp_path / "l.nii", stored)]), image)
    sources = [OnWorkingGrid(each, (2.0, 1.0, 1.0), "x", kind) for each, kind in ((image, "cubic"), (label, "label"))]
    case = Case("a", "a", sources[0], Labels(sources[1], {0: 0}))
    found = case.read_label(Window.whole(case.shape))
    assert found.shape == (8, 4, 8)
    np.testing.assert_array_equal(found, np.repeat([[[0]], [[255]]], 4, axis=0) * np.ones((8, 4, 8), np.uint8))


def test_pictures_have_no_millimetres():
    source = memory_case("a", array=np.zeros((1, 4, 5, 6), np.uint8)).image
    with pytest.raises(DataError, match=r"no spacing in millimetres, so 'data.spacing=\[1.0, 1.0, 1.0\]'"):
        OnWorkingGrid(source, (1.0, 1.0, 1.0), "z", kernel="cubic")


@pytest.mark.parametrize(("count", "of"), [(5, 5), (7, 3), (3, 7), (1, 4), (4, 1), (10, 9)])
def test_taps_are_those_of_torch_s_linear_kernel(count, of):
    found = np.zeros((count, of), np.float32)
    for row, (first, weights) in zip(found, linear_taps(count, of), strict=True):
        row[np.arange(first, first + len(weights))] = weights  # refuses places past the last slice
    slices = torch.eye(of)[None, :, None]  # [1, of, 1, of]: each slice alone
    wanted = torch.nn.functional.interpolate(slices, (1, count), mode="bilinear", antialias=True)[0, :, 0].T
    np.testing.assert_allclose(found, wanted, atol=1e-6)
