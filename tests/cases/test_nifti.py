import json
from pathlib import Path
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest

from tests.testers.formats import FormatTester
from tests.testers.nifti import ORIENTATIONS, save, turned_affine
from voxtile.cases import volumes
from voxtile.cases.cache import cached_array
from voxtile.cases.case import Case, Labels
from voxtile.cases.maps import MapSpec
from voxtile.cases.nifti import NiftiSource
from voxtile.cases.shared import Shared
from voxtile.cases.volumes import on_image
from voxtile.cases.window import Window
from voxtile.errors import DataError

SPEC = MapSpec(("ground", "front", "back"), tags=(("run", "7"),))


def numbered(shape, dtype="int16"):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def whole(source):
    return source.read(Window.whole(source.canonical.shape), range(len(source.channels)))


class NiftiTester(FormatTester):
    def reopen(self, path):
        return NiftiSource([path])


class TestChannelsLast(NiftiTester):
    shape, dtype = (2, 5, 7, 8), "int16"

    def make(self, folder, array):
        return NiftiSource([save(folder / "a.nii.gz", array.transpose(3, 2, 1, 0), turned_affine(10, (2, 1, 3)))])


class TestObliqueLeftHanded(NiftiTester):
    shape, dtype = (1, 6, 9, 7), "float32"

    def make(self, folder, array):
        stored = nib.Nifti1Image(array[0].T, turned_affine(25)).as_reoriented(np.array([[1, -1], [2, 1], [0, 1]]))
        assert np.linalg.det(stored.affine) < 0
        nib.save(stored, folder / "a.nii")
        return NiftiSource([folder / "a.nii"])


class TestStackedFiles(NiftiTester):
    shape, dtype = (3, 4, 8, 7), "uint8"

    def make(self, folder, array):
        names = ("p7_t1.nii.gz", "p7_flair.nii.gz", "p7_t2.nii.gz")
        return NiftiSource([save(folder / name, channel.T) for name, channel in zip(names, array, strict=True)])


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda ornt: "".join(nib.orientations.ornt2axcodes(ornt)))
def test_every_orientation_reads_as_nibabels_canonical_and_its_map_is_stored_like_the_input(tmp_path, orientation):
    ras = nib.Nifti1Image(numbered((3, 4, 5)), turned_affine(20, (1, 2, 3)))
    stored = ras.as_reoriented(orientation)
    nib.save(stored, tmp_path / "a.nii")
    source = NiftiSource([tmp_path / "a.nii"])
    reference = nib.as_closest_canonical(nib.load(tmp_path / "a.nii"))
    pixels, _ = whole(source)
    np.testing.assert_array_equal(pixels[0].T, np.asarray(reference.dataobj))
    np.testing.assert_allclose(source.canonical.matrix, reference.affine, atol=1e-5)
    np.testing.assert_allclose(source.stored.matrix, stored.affine, atol=1e-5)
    assert source.stored.shape == stored.shape[::-1]

    with source.open_map(tmp_path / "m.nii.gz", SPEC) as writer:
        writer.write(Window.whole(source.canonical.shape), (pixels[0] % 3).astype(np.uint8))
        written = nib.load(writer.close())
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(stored.dataobj) % 3)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "a.nii").affine)


def test_spacing_and_unit_are_in_mm(tmp_path):
    path = save(tmp_path / "a.nii", numbered((2, 3, 4)), turned_affine(30, (0.5, 1.25, 3)))
    grid = NiftiSource([path]).canonical
    assert grid.unit == "mm"
    assert grid.spacing == pytest.approx((3, 1.25, 0.5))


@pytest.mark.parametrize(("code", "name", "factor"), [(1, "metre", 1000), (3, "micrometre", 0.001)])
def test_other_units_of_length_are_converted_and_noted(tmp_path, code, name, factor):
    source = NiftiSource([save(tmp_path / "a.nii", numbered((2, 3, 4)), turned_affine(0, (1, 2, 3)), xyzt_units=code)])
    assert source.canonical.spacing == pytest.approx((3 * factor, 2 * factor, factor))
    assert any(name in note for note in source.notes())


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_the_data_type_is_the_files_own_whatever_its_byte_order(tmp_path, dtype):
    array = numbered((2, 3, 4), dtype)
    for order in "<>":
        image = nib.Nifti1Image(array, np.eye(4), nib.Nifti1Header(endianness=order))
        image.set_data_dtype(dtype)
        nib.save(image, tmp_path / "a.nii")
        assert nib.load(tmp_path / "a.nii").header.endianness == order
        source = NiftiSource([tmp_path / "a.nii"])
        pixels, _ = whole(source)
        assert source.dtype == pixels.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(pixels[0].T, array)


def test_slope_and_intercept_are_applied_in_float32(tmp_path):
    image = nib.Nifti1Image(numbered((2, 3, 4)), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii.gz")  # stores (value + 3) / 0.5
    source = NiftiSource([tmp_path / "a.nii.gz"])
    pixels, _ = whole(source)
    assert source.dtype == pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[0].T, nib.load(tmp_path / "a.nii.gz").get_fdata())


def test_voxels_that_are_not_finite_in_a_channel_that_is_read_hold_no_data(tmp_path):
    array = np.zeros((2, 3, 4, 2), dtype=np.float32)
    array[0, 1, 2, 0], array[1, 2, 3, 1] = np.nan, np.inf
    source = NiftiSource([save(tmp_path / "a.nii", array)])
    _, valid = whole(source)
    assert sorted(map(tuple, np.argwhere(~valid))) == [(2, 1, 0), (3, 2, 1)]
    _, valid = source.read(Window(0, 0, 0, 4, 3, 2), (0,))
    assert np.argwhere(~valid).tolist() == [[2, 1, 0]]


def test_a_window_asks_the_cache_once_for_each_file(tmp_path, monkeypatch):
    source = NiftiSource([save(tmp_path / name, numbered((2, 3, 4, 3))) for name in ("a.nii", "b.nii")])
    expected, asked = whole(source)[0], []
    monkeypatch.setattr(volumes, "cached_array", lambda *args, **options: asked.append(args[0]) or cached_array(*args, **options))
    np.testing.assert_array_equal(source.read(Window(0, 0, 0, 4, 3, 2), (4, 0, 5, 1))[0], expected[[4, 0, 5, 1]])
    assert sorted(asked) == [(path,) for path in source.paths]


def test_float_labels_are_compared_by_value(tmp_path):
    image = NiftiSource([save(tmp_path / "a.nii", numbered((2, 3, 4)))])
    stored = np.zeros((2, 3, 4), dtype=np.float32)
    stored[1], stored[0, 0, 0] = 2.0, np.nan
    label = on_image(NiftiSource([save(tmp_path / "l.nii.gz", stored)]), image)
    case = Case("a", "a", image, Labels(label, {0: 0, 2: 1}))
    found = case.read_label(Window(0, 0, 0, 4, 3, 2))
    assert found[0, 0, 0] == 255
    assert (found[:, :, 1] == 1).all()
    assert np.unique(found).tolist() == [0, 1, 255]


def test_a_label_stored_in_another_orientation_is_laid_over_its_image(tmp_path):
    ras = nib.Nifti1Image(numbered((3, 4, 5), "uint8"), turned_affine(20))
    nib.save(ras, tmp_path / "a.nii")
    nib.save(ras.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]])), tmp_path / "l.nii")
    image = NiftiSource([tmp_path / "a.nii"])
    label = on_image(NiftiSource([tmp_path / "l.nii"]), image)
    np.testing.assert_array_equal(whole(label)[0], whole(image)[0])
    assert label.notes() == []


def test_a_label_that_lies_elsewhere_is_refused_and_a_small_distance_noted(tmp_path):
    image = NiftiSource([save(tmp_path / "a.nii", numbered((5, 5, 5)), turned_affine(0, (2, 2, 2)))])
    for offset, refused in ((1.0, True), (0.1, False), (0.0, False)):
        affine = turned_affine(0, (2, 2, 2))
        affine[0, 3] += offset
        path = save(tmp_path / "l.nii", numbered((5, 5, 5), "uint8"), affine)
        if refused:
            with pytest.raises(DataError, match=r"l\.nii lies 0\.5 voxels away from its image .*a\.nii"):
                on_image(NiftiSource([path]), image)
        else:
            assert len(on_image(NiftiSource([path]), image).notes()) == (offset > 0)


def test_labels_of_another_shape_or_with_channels_are_refused(tmp_path):
    image = NiftiSource([save(tmp_path / "a.nii", numbered((4, 5, 6)))])
    with pytest.raises(DataError, match=r"l\.nii has \(6, 5, 3\) voxels"):
        on_image(NiftiSource([save(tmp_path / "l.nii", numbered((3, 5, 6)))]), image)
    with pytest.raises(DataError, match=r"l\.nii has 2 channels"):
        on_image(NiftiSource([save(tmp_path / "l.nii", numbered((4, 5, 6, 2)))]), image)


def test_stacked_files_are_named_by_what_tells_them_apart_and_share_the_widest_type(tmp_path):
    paths = [
        save(tmp_path / "p1_0000.nii.gz", numbered((2, 3, 4), "uint8")),
        save(tmp_path / "p1_0001.nii.gz", numbered((2, 3, 4), "int16")),
    ]
    source = NiftiSource(paths)
    assert source.channels == ("0000", "0001")
    assert source.dtype == np.int16
    paths.append(save(tmp_path / "p1_0002.nii.gz", numbered((2, 3, 5))))
    with pytest.raises(DataError, match=r"p1_0002\.nii\.gz has \(5, 3, 2\) voxels"):
        NiftiSource(paths)


def test_a_map_keeps_the_headers_forms_codes_and_units(tmp_path):
    image = nib.Nifti1Image(numbered((4, 5, 6)), None)
    image.set_qform(turned_affine(15, (1, 2, 3)), code=1)
    image.set_sform(turned_affine(15.02, (1, 2, 3)), code=4)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(2, 1)
    image.header["cal_max"] = 900
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"patient: Doe"))
    nib.save(image, tmp_path / "a.nii.gz")
    source = NiftiSource([tmp_path / "a.nii.gz"])
    with source.open_map(tmp_path / "m.nii.gz", SPEC) as writer:
        writer.write(Window(0, 0, 0, 6, 5, 4), np.ones((6, 5, 4), np.uint8))
        written = nib.load(writer.close())
    stored = nib.load(tmp_path / "a.nii.gz").header
    for form in ("get_qform", "get_sform"):
        matrix, code = getattr(written.header, form)(coded=True)
        np.testing.assert_array_equal(matrix, getattr(stored, form)(coded=True)[0])
        assert code == getattr(stored, form)(coded=True)[1]
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert written.header.get_data_dtype() == np.uint8
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    assert written.header["cal_max"] == 0
    assert written.header.get_intent()[0] == "label"
    (about,) = written.header.extensions
    assert json.loads(about.get_content()) == {"classes": list(SPEC.classes), "tags": {"run": "7"}}


def test_a_heatmap_is_4d_with_classes_last(tmp_path):
    source = NiftiSource([save(tmp_path / "a.nii", numbered((4, 5, 6)), np.diag([-1.0, 1, 1, 1]))])
    spec = MapSpec(("ground", "front"), heatmap=True)
    heat = np.random.default_rng(0).random((2, 6, 5, 4), dtype=np.float32)
    assert source.map_name("m", spec) == "m.nii.gz"
    with source.open_map(tmp_path / "m.nii.gz", spec) as writer:
        writer.write(Window(0, 0, 0, 6, 5, 2), heat[..., :2])
        written = nib.load(writer.close())
    stored = np.asarray(written.dataobj)
    assert stored.shape == (4, 5, 6, 2)
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored[::-1].T[..., :2], heat[..., :2])
    assert np.isnan(stored[::-1][2:]).all()


def test_a_heatmap_of_one_map_is_3d(tmp_path):
    source = NiftiSource([save(tmp_path / "a.nii", numbered((4, 5, 6)), np.eye(4))])
    with source.open_map(tmp_path / "u.nii.gz", MapSpec(("uncertainty",), heatmap=True)) as writer:
        writer.write(Window(0, 0, 0, 6, 5, 4), np.full((1, 6, 5, 4), 0.5, dtype=np.float32))
        assert nib.load(writer.close()).shape == (4, 5, 6)


def test_a_nifti_2_file_ends_as_a_nifti_2_map(tmp_path):
    nib.save(nib.Nifti2Image(numbered((4, 5, 6)), turned_affine(5)), tmp_path / "a.nii")
    source = NiftiSource([tmp_path / "a.nii"])
    with source.open_map(tmp_path / "m.nii.gz", SPEC) as writer:
        writer.write(Window(0, 0, 0, 6, 5, 4), np.ones((6, 5, 4), np.uint8))
        assert isinstance(nib.load(writer.close()), nib.Nifti2Image)


def test_odd_headers_are_noted(tmp_path):
    image = nib.Nifti1Image(numbered((9, 9, 9)), None)
    image.set_qform(turned_affine(0), code=1)
    image.set_sform(turned_affine(0, origin=(-22, 5, 33)), code=1)
    nib.save(image, tmp_path / "a.nii")
    assert any("disagree by 2.00 voxels" in note for note in NiftiSource([tmp_path / "a.nii"]).notes())
    image = nib.Nifti1Image(numbered((9, 9, 9)), None)
    nib.save(image, tmp_path / "a.nii")
    assert any("neither qform nor sform" in note for note in NiftiSource([tmp_path / "a.nii"]).notes())
    assert NiftiSource([save(tmp_path / "a.nii", numbered((9, 9, 9)))]).notes() == []


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("left", [0, 100, 400, -50])
def test_a_cut_off_file_is_named(tmp_path, name, left):
    path = save(tmp_path / name, np.random.default_rng(0).integers(0, 999, (9, 9, 9), dtype=np.int16))
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DataError, match=f"{name} c"):
        whole(NiftiSource([path]))


@pytest.mark.parametrize("change", [lambda data: data[:-6], lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]])
def test_a_file_without_the_checksum_of_its_voxels_is_refused(tmp_path, change):
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 999, (9, 9, 9), dtype=np.int16))
    whole_file = path.read_bytes()
    path.write_bytes(whole_file + b"what some tools append")
    whole(NiftiSource([path]))
    path.write_bytes(change(whole_file))
    nib.load(path).get_fdata()  # to which nibabel does not come
    with pytest.raises(DataError, match=r"a\.nii\.gz could not be decoded: .*(end-of-stream|CRC)"):
        whole(NiftiSource([path]))


def test_files_that_hold_no_volume_of_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.nii cannot be read"):
        NiftiSource([tmp_path / "absent.nii"])
    for array in (np.zeros((4, 5), np.uint8), np.zeros((2, 3, 4, 1, 3), np.uint8)):
        with pytest.raises(DataError, match=r"has the shape"):
            NiftiSource([save(tmp_path / "a.nii", array)])
    with pytest.raises(DataError, match="complex64"):
        NiftiSource([save(tmp_path / "a.nii", np.zeros((2, 3, 4), np.complex64))])
    nib.save(nib.MGHImage(np.zeros((2, 3, 4), np.uint8), np.eye(4)), tmp_path / "a.mgz")
    with pytest.raises(DataError, match="MGHImage, not NIfTI"):
        NiftiSource([tmp_path / "a.mgz"])


def test_a_singular_affine_is_refused(tmp_path):
    image = nib.Nifti1Image(numbered((2, 3, 4)), None)
    image.header["sform_code"], image.header["srow_x"], image.header["srow_y"] = 1, (1, 0, 0, 0), (2, 0, 0, 0)
    image.header["srow_z"] = (0, 0, 1, 0)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match="singular"):
        NiftiSource([tmp_path / "a.nii"])


def test_a_file_replaced_by_one_of_another_shape_is_noticed(tmp_path):
    source = NiftiSource([save(tmp_path / "a.nii", numbered((2, 3, 4)))])
    save(tmp_path / "a.nii", numbered((2, 3, 5)))
    with pytest.raises(DataError, match="replaced meanwhile"):
        whole(source)


@pytest.mark.parametrize("deletable", [True, False])
def test_a_wrong_array_in_the_cache_is_made_again_by_the_next_look(tmp_path, monkeypatch, deletable):
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path / "arrays"))
    source = NiftiSource([save(tmp_path / "a.nii", numbered((2, 3, 4)))])
    right = whole(source)[0].copy()
    (file,) = (tmp_path / "arrays").glob("*.npy")
    file.unlink()
    np.save(file, np.zeros((1, 4, 3, 3)))
    monkeypatch.setattr("voxtile.cases.cache._MAPPED", Shared(64, lambda array: 1))  # as in a new process
    if not deletable:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", Mock(side_effect=PermissionError))
            with pytest.raises(DataError, match=f"cache holds a wrong array of it: delete {file}"):
                whole(source)
        file.unlink()
    else:
        with pytest.raises(DataError, match="the cache held a wrong array"):
            whole(source)
    np.testing.assert_array_equal(whole(source)[0], right)
