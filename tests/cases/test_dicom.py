"""DICOM series as volumes."""

import itertools
import warnings

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import ExplicitVRBigEndian, JPEGLosslessSV1, RLELossless

from tests.testers import dicom as made
from tests.testers.formats import FormatTester
from voxtile.cases.dicom import DicomSource
from voxtile.cases.dicom_headers import read_header
from voxtile.cases.dicom_seg import SegmentationSource
from voxtile.cases.volumes import TOLERANCE
from voxtile.cases.window import Window
from voxtile.errors import DataError


def numbered(shape=(4, 6, 7), dtype="int16"):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def whole(source):
    return source.read(Window.whole(source.canonical.shape), range(len(source.channels)))[0]


def itk(folder):
    """The volume as SimpleITK reads it: values [z, y, x], and the affine towards right, anterior and superior."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def test_pydicoms_settings_are_left_alone():
    assert pydicom.config.settings.reading_validation_mode == pydicom.config.WARN
    assert pydicom.config.settings.writing_validation_mode == pydicom.config.WARN


class DicomTester(FormatTester):
    differ = 64  # identifiers are random, and not of one length

    def make(self, folder, array):
        self.source = self.written(folder, array)
        return self.source

    def reopen(self, path):
        return SegmentationSource(path, self.source, own=True)


class TestComputedTomography(DicomTester):
    shape, dtype = (1, 4, 6, 7), "int16"

    def written(self, folder, array):  # columns grow to the left, rows to the back: both are flipped on reading
        made.series(folder / "ct", array[0][:, ::-1, ::-1], RescaleSlope=1, RescaleIntercept=0)
        return DicomSource.at([folder / "ct"])


class TestObliqueChannels(DicomTester):
    shape, dtype = (2, 5, 6, 8), "float32"

    @pytest.fixture
    def array(self):
        return (np.random.default_rng(0).integers(0, 4000, self.shape) * 0.5 + 3).astype(np.float32)

    def written(self, folder, array):
        for name, channel in zip(("t1", "flair"), array, strict=True):
            values = ((channel - 3) * 2).astype(np.uint16)[:, ::-1, ::-1]
            about = {"series": name, "RescaleSlope": 0.5, "RescaleIntercept": 3, "orientation": made.turned(20, 10)}
            made.series(folder / name, values, "MR", **about)
        return DicomSource.at([folder / "t1", folder / "flair"])


class TestEnhanced(DicomTester):
    shape, dtype = (1, 4, 6, 7), "int16"

    def written(self, folder, array):
        path = made.enhanced(folder / "e" / "a.dcm", array[0][:, ::-1, ::-1], order=(2, 0, 3, 1), orientation=made.turned(15))
        return DicomSource.at([path])


ORIENTATIONS = {
    "axial": made.AXIAL,
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "from below": (-1, 0, 0, 0, 1, 0),
    "oblique": made.turned(25, 12),
}


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_geometry_and_values_are_simpleitks(tmp_path, orientation, modality):
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024} if modality == "CT" else {}
    made.series(tmp_path, numbered(dtype="uint16"), modality, orientation, stored=12, **rescale)
    source = DicomSource.at([tmp_path])
    values, affine = itk(tmp_path)
    np.testing.assert_allclose(source.stored.matrix, affine, atol=1e-5)
    assert source.stored.shape == values.shape
    assert source.dtype == np.int16
    np.testing.assert_array_equal(source._voxels(source.path).transpose(2, 1, 0), values)
    assert source.stored.spacing == pytest.approx((3, 1.5, 1.25))
    turned = np.abs(source.canonical.matrix[:3, :3]) if orientation != ORIENTATIONS["oblique"] else np.eye(3)
    assert (np.argmax(turned, axis=0) == [0, 1, 2]).all()
    # The same voxel lies at the same place after turning.
    z, y, x = np.unravel_index(int(np.argmax(whole(source)[0])), source.canonical.shape)
    at = np.unravel_index(int(np.argmax(values)), values.shape)[::-1]
    np.testing.assert_allclose(source.canonical.matrix @ [x, y, z, 1], affine @ [*at, 1], atol=1e-4)


def test_a_sloping_stack_has_a_sheared_affine(tmp_path):
    step = np.array([0.0, 0.6, 3.0])  # by a gantry tilted by 11.3 degrees
    made.series(tmp_path, numbered(), step=step)
    source = DicomSource.at([tmp_path])
    np.testing.assert_allclose(source.stored.matrix[:3, 2], step * [-1, -1, 1], atol=1e-6)
    for index in range(4):
        position = np.array([-20, 5, 33]) + index * step
        np.testing.assert_allclose((source.stored.matrix @ [0, 0, index, 1])[:3], position * [-1, -1, 1], atol=1e-6)
    assert any("tilt of 11.3°" in note for note in source.notes())


def test_each_slice_is_scaled_by_its_own_slope(tmp_path):
    def scale(dataset, index):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 * (index + 1), index

    array = numbered(dtype="uint16")
    made.series(tmp_path, array, "PT", each=scale)
    source = DicomSource.at([tmp_path])
    expected = array * (0.5 * np.arange(1, 5))[:, None, None] + np.arange(4)[:, None, None]
    assert source.dtype == np.float32
    np.testing.assert_allclose(whole(source)[0], expected[:, ::-1, ::-1])


def test_each_frame_of_a_file_is_scaled_by_its_own_slope(tmp_path):
    array = numbered()
    made.enhanced(tmp_path / "a", array, order=(3, 1, 0, 2), slopes={0: 1, 1: 2, 2: 3, 3: 4})
    expected = array * np.arange(1, 5)[:, None, None]
    np.testing.assert_allclose(whole(DicomSource.at([tmp_path]))[0], expected[:, ::-1, ::-1])


@pytest.mark.parametrize(
    ("dtype", "stored", "intercept", "expected"),
    [
        ("uint8", 8, 0, "int16"), ("uint16", 12, -1024, "int16"), ("int16", 16, 0, "int16"), ("uint16", 16, 0, "float32"),
        ("int16", 16, -1, "float32"), ("uint16", 12, 0.5, "float32"),
    ],
)  # fmt: skip
def test_the_data_type_holds_all_that_can_be_stored(tmp_path, dtype, stored, intercept, expected):
    array = numbered(dtype=dtype)
    made.series(tmp_path, array, stored=stored, RescaleSlope=1, RescaleIntercept=intercept)
    source = DicomSource.at([tmp_path])
    assert source.dtype == np.dtype(expected)
    np.testing.assert_array_equal(whole(source)[0], (array.astype(float) + intercept)[:, ::-1, ::-1])


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_bits_that_hold_no_value_are_not_read(tmp_path, dtype):
    values = np.array([[[-2, -1, 0, 5]]] * 2) if dtype == "int16" else np.array([[[0, 1, 4095, 5]]] * 2)
    noisy = ((values & 0x0FFF) | 0xA000).astype(np.uint16).view(dtype)  # an overlay in the bits above the twelve stored
    made.series(tmp_path, noisy, stored=12)
    np.testing.assert_array_equal(whole(DicomSource.at([tmp_path]))[0], values[:, ::-1, ::-1])


def test_low_values_shown_bright_are_read_as_they_are(tmp_path):
    made.series(tmp_path, numbered(), PhotometricInterpretation="MONOCHROME1")
    source = DicomSource.at([tmp_path])
    np.testing.assert_array_equal(whole(source)[0], numbered()[:, ::-1, ::-1])
    assert any("MONOCHROME1" in note for note in source.notes())


def test_compressed_and_big_endian_files_are_read_as_plain_ones(tmp_path):
    for path in made.series(tmp_path, numbered()):
        dataset = pydicom.dcmread(path)
        if path.name.endswith(("0", "2")):
            dataset.compress(RLELossless, generate_instance_uid=False)
            dataset.save_as(path)
        else:
            big = pydicom.Dataset()
            for element in dataset:
                big.add(element)
            big.PixelData = dataset.pixel_array.astype(">i2").tobytes()
            made.save(big, path, ExplicitVRBigEndian)
    np.testing.assert_array_equal(whole(DicomSource.at([tmp_path]))[0], numbered()[:, ::-1, ::-1])


def test_a_transfer_syntax_without_a_decoder_is_named_with_what_to_install(tmp_path):
    for path in made.series(tmp_path, numbered()):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.save_as(path)
    with pytest.raises(DataError, match=r"1\.2\.840\.10008\.1\.2\.4\.70.*pip install pylibjpeg pylibjpeg-libjpeg"):
        DicomSource.at([tmp_path])


def test_a_file_stands_for_its_series_in_a_folder_of_several(tmp_path):
    ours = made.series(tmp_path, numbered(), series="a")
    made.series(tmp_path, numbered() + 1, series="b", name="X")
    source = DicomSource.at([ours[2]])
    assert set(source.files) == set(ours)
    np.testing.assert_array_equal(whole(source)[0], numbered()[:, ::-1, ::-1])
    with pytest.raises(DataError, match=r"files of 2 series \(SeriesInstanceUID\): 4 files like IM0000 \(CT\), 4 files like X0000"):
        DicomSource.at([tmp_path])


def test_files_that_are_no_dicom_are_passed_over_and_noted(tmp_path):
    made.series(tmp_path, numbered())
    (tmp_path / "README").write_text("about")
    directory = made.header("1.2.840.10008.1.3.10")
    made.save(directory, tmp_path / "DICOMDIR")
    source = DicomSource.at([tmp_path])
    assert len(source.files) == 4
    assert any("2 files passed over" in note and "DICOMDIR, README" in note for note in source.notes())


def test_a_folder_without_dicom_says_what_was_looked_for(tmp_path):
    (tmp_path / "a.dcm").write_text("no")
    with pytest.raises(DataError, match="'DICM'"):
        DicomSource.at([tmp_path])


@pytest.mark.parametrize(("gone", "places"), [([3], "1 slice in 1 place"), ([2, 3, 6], "3 slices in 2 places")])
def test_missing_slices_are_counted_and_placed(tmp_path, gone, places):
    paths = made.series(tmp_path, numbered((9, 4, 5)))
    for index in gone:
        paths[index].unlink()
    with pytest.raises(DataError, match=f"lacks {places}: between {paths[gone[0] - 1].name} at .* mm along the normal where 3 mm"):
        DicomSource.at([tmp_path])


def test_a_missing_slice_of_three_is_found(tmp_path):
    made.series(tmp_path, numbered((4, 4, 5)))[1].unlink()
    with pytest.raises(DataError, match="lacks 1 slice"):
        DicomSource.at([tmp_path])


def test_uneven_spacing_is_refused_and_a_little_of_it_noted(tmp_path):
    def moved(by):
        def move(dataset, index):
            dataset.ImagePositionPatient[2] = float(dataset.ImagePositionPatient[2]) + by * (index == 3)

        return move

    made.series(tmp_path / "much", numbered((7, 4, 5)), each=moved(1.0))
    with pytest.raises(DataError, match="spaced unevenly in 2 places, most of all between"):
        DicomSource.at([tmp_path / "much"])
    made.series(tmp_path / "little", numbered((7, 4, 5)), each=moved(0.1))
    assert any("0.1 mm away from even distances" in note for note in DicomSource.at([tmp_path / "little"]).notes())


def test_spacing_that_grows_is_refused(tmp_path):
    def grow(dataset, index):
        dataset.ImagePositionPatient[2] = 33 + 3 * index + 0.05 * index * index

    made.series(tmp_path, numbered((9, 4, 5)), each=grow)
    with pytest.raises(DataError, match=r"unevenly|straight line"):
        DicomSource.at([tmp_path])


def test_slices_shifted_sideways_are_refused(tmp_path):
    def shift(dataset, index):
        dataset.ImagePositionPatient[0] = -20 + (2.0 if index == 2 else 0.0)

    made.series(tmp_path, numbered((6, 4, 5)), each=shift)
    with pytest.raises(DataError, match=r"straight line at even distances: slice 3 of 6 lies 0 mm along and 2 mm across"):
        DicomSource.at([tmp_path])


def test_copies_and_repeats_at_one_place_are_told_apart(tmp_path):
    made.series(tmp_path / "copies", numbered(), name="a")
    made.series(tmp_path / "copies", numbered(), name="b")
    with pytest.raises(DataError, match=r"4 slices .* lie where another one lies.*nothing in the headers tells them apart"):
        DicomSource.at([tmp_path / "copies"])
    for echo, name in ((5, "a"), (90, "b")):
        made.series(tmp_path / "echoes", numbered(), "MR", name=name, EchoTime=echo)
    with pytest.raises(DataError, match="they differ in EchoTime, so the series holds several volumes"):
        DicomSource.at([tmp_path / "echoes"])


def odd_one(**changes):
    def change(dataset, index):
        if index == 1:
            for key, value in changes.items():
                setattr(dataset, key, value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, r"different orientation \(ImageOrientationPatient\): 1 of 4"),
        ({"PixelSpacing": [1.5, 1.3]}, r"different spacing \(PixelSpacing\): 1 of 4"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "mixes slices: .* MONOCHROME"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "is a localizer"),
        ({"PhotometricInterpretation": "RGB"}, "picture in colours"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "is a mosaic"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "by a table"),
        ({"ImagePositionPatient": None}, "lacks ImagePositionPatient"),
        ({"SeriesInstanceUID": ""}, "has no SeriesInstanceUID"),
        ({"HighBit": 14}, "Expected 8, 16 or 32 bits"),
        ({"NumberOfFrames": 3}, "several frames and says of none where it lies"),
    ],
)  # fmt: skip
def test_a_slice_that_does_not_belong_is_refused(tmp_path, change, words):
    made.series(tmp_path, numbered(), each=odd_one(**change))
    with pytest.raises(DataError, match=words):
        DicomSource.at([tmp_path])


def test_slices_of_another_size_are_refused(tmp_path):
    made.series(tmp_path, numbered())
    made.series(tmp_path, numbered((4, 6, 8)), name="b", origin=(-20, 5, 45))
    with pytest.raises(DataError, match=r"mixes slices: .*7x6 pixels.*8x6"):
        DicomSource.at([tmp_path])


def test_directions_that_are_not_at_right_angles_are_refused(tmp_path):
    made.series(tmp_path, numbered(), orientation=(1, 0, 0, 0.5, 0.8, 0))
    with pytest.raises(DataError, match="Expected two unit vectors at right angles"):
        DicomSource.at([tmp_path])


def test_an_object_that_is_no_image_is_refused(tmp_path):
    made.series(tmp_path, numbered())
    made.save(made.header("1.2.840.10008.5.1.4.1.1.481.3"), tmp_path / "rtstruct.dcm")
    with pytest.raises(DataError, match=r"rtstruct\.dcm is no image: its class is RT Structure Set Storage"):
        DicomSource.at([tmp_path])


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, share):
    path = made.series(tmp_path, numbered((4, 40, 40)))[1]
    data = path.read_bytes()
    path.write_bytes(data[: max(140, int(share * len(data)))])
    with pytest.raises(DataError, match=rf"{path.name}.*(cut off|damaged)"):
        DicomSource.at([tmp_path])


def test_pixels_damaged_after_opening_name_the_file(tmp_path):
    made.series(tmp_path, numbered())
    source = DicomSource.at([tmp_path])
    path = source.files[1]
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(DataError, match=f"{path.name} could not be decoded"):
        whole(source)


def test_one_slice_is_as_thick_as_its_header_says(tmp_path):
    made.series(tmp_path, numbered((1, 6, 7)))
    source = DicomSource.at([tmp_path])
    assert source.stored.spacing == pytest.approx((9, 1.5, 1.25))
    assert any("one slice" in note for note in source.notes())


def test_series_on_different_grids_are_no_channels(tmp_path):
    made.series(tmp_path / "t1", numbered(), "MR", series="t1")
    made.series(tmp_path / "t2", numbered(), "MR", series="t2", origin=(-20, 5, 36))
    with pytest.raises(DataError, match=r"t2/IM\d+ lies 2\.4 voxels away from .*t1/IM\d+ at a corner"):
        DicomSource.at([tmp_path / "t1", tmp_path / "t2"])
    assert TOLERANCE == 0.1


def test_a_changed_slice_is_decoded_anew(tmp_path):
    paths = made.series(tmp_path, numbered())
    first = whole(DicomSource.at([tmp_path]))
    dataset = pydicom.dcmread(paths[2])
    dataset.PixelData = (dataset.pixel_array + 100).astype("<i2").tobytes()
    dataset.save_as(paths[2])
    difference = whole(DicomSource.at([tmp_path])) - first
    assert [int(plane.max()) for plane in difference[0]] == [0, 0, 100, 0]


def test_warnings_about_broken_values_are_not_passed_on(tmp_path):
    made.series(tmp_path, numbered(), PatientBirthDate="", SeriesDescription="x")
    for path in tmp_path.iterdir():  # too long for the standard, which pydicom says with the value
        path.write_bytes(path.read_bytes().replace(b"1.2.826.0.1.3680043.8.498.", b"1.2.826.0.1.3680043.8.498a"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(read_header(path) for path in tmp_path.iterdir())


def test_a_header_keeps_no_identifier(tmp_path):
    (path, *_) = made.series(tmp_path, numbered(), patient="CANARY", InstitutionName="CANARY", SeriesDescription="plain")
    header = read_header(path)
    shown = repr(header)
    original = pydicom.dcmread(path)
    for text in ("CANARY", "plain", original.SeriesInstanceUID, original.StudyInstanceUID, original.SOPInstanceUID):
        assert text not in shown


@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=2)), ids=str)
def test_left_handed_directions_are_stacked_along_their_normal(tmp_path, flips):
    orientation = (flips[0], 0, 0, 0, flips[1], 0)
    normal = np.cross(orientation[:3], orientation[3:])
    array = numbered()
    made.series(tmp_path, array, orientation=orientation, step=-3 * normal)  # named against the normal
    source = DicomSource.at([tmp_path])
    values, affine = itk(tmp_path)
    np.testing.assert_allclose(source.stored.matrix, affine, atol=1e-6)
    np.testing.assert_array_equal(source._voxels(source.path).transpose(2, 1, 0), values)
