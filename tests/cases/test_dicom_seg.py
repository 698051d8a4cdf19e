"""DICOM segmentations: as labels, and as maps that lie over the series that they are of."""

import json
import logging

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.coding import Code

from tests.testers import dicom as made
from voxtile.cases.case import Case, Labels
from voxtile.cases.dicom import DicomSource
from voxtile.cases.dicom_seg import SegmentationSource
from voxtile.cases.formats import tags_of
from voxtile.cases.maps import MapSpec
from voxtile.cases.window import IGNORE, Window
from voxtile.errors import DataError

SPEC = MapSpec(("ground", "liver", "tumour"), colors=((0, 0, 0), (200, 100, 0), (0, 0, 250)), tags=(("run", "7"),), background=0)
SHAPE = (5, 9, 7)  # 63 pixels a slice: frames do not begin at whole bytes


def volume(folder, orientation=None, **elements):
    array = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
    made.series(folder, array, orientation=orientation or made.turned(20, 10), **elements)
    return DicomSource.at([folder])


def classes(shape, seed=1, count=3):
    return np.random.default_rng(seed).integers(0, count, shape, dtype=np.uint8)


def written(source, path, values, spec=SPEC):
    with source.open_map(path, spec) as writer:
        writer.write(Window.whole(source.canonical.shape), values)
        return writer.close()


def whole(source):
    return source.read(Window.whole(source.canonical.shape), range(len(source.channels)))[0]


def headers(folder):
    """The headers of a series from below upwards, as other programs sort them."""
    found = [pydicom.dcmread(path) for path in folder.iterdir()]
    normal = np.cross(found[0].ImageOrientationPatient[:3], found[0].ImageOrientationPatient[3:])
    return sorted(found, key=lambda header: np.dot(header.ImagePositionPatient, normal))


SERIES = {
    "axial": {"orientation": made.AXIAL}, "oblique": {"orientation": made.turned(20, 10)},
    "sagittal": {"orientation": (0, 1, 0, 0, 0, -1)}, "from below": {"orientation": (-1, 0, 0, 0, 1, 0)},
}  # fmt: skip


@pytest.mark.parametrize("about", SERIES.values(), ids=SERIES)
def test_a_map_opened_by_highdicom_lies_on_the_series(tmp_path, about):
    source = volume(tmp_path / "in", **about)
    values = classes(source.canonical.shape)
    path = written(source, tmp_path / "m.dcm", values)
    found = highdicom.seg.segread(path)
    assert found.segmentation_type is highdicom.seg.SegmentationTypeValues.BINARY
    assert [segment.segment_label for segment in found.SegmentSequence] == ["liver", "tumour"]
    laid = found.get_volume(combine_segments=True)
    # Every voxel of the segmentation, by the affine that highdicom gives it, against the canonical voxel at that place.
    index = np.stack(np.meshgrid(*map(np.arange, laid.array.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    world = np.c_[index, np.ones(len(index))] @ laid.affine.T @ np.diag([-1, -1, 1, 1])
    x, y, z, _ = np.rint(world @ np.linalg.inv(source.canonical.matrix).T).astype(int).T
    np.testing.assert_array_equal(laid.array.ravel(), values[z, y, x])
    assert laid.array.size == values.size


def test_a_frame_refers_to_the_slice_that_it_is_of(tmp_path):
    source = volume(tmp_path / "in")
    values = classes(source.canonical.shape)
    found = highdicom.seg.segread(written(source, tmp_path / "m.dcm", values))
    originals = headers(tmp_path / "in")
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == originals[0].SeriesInstanceUID
    assert (found.StudyInstanceUID, found.FrameOfReferenceUID) == (originals[0].StudyInstanceUID, originals[0].FrameOfReferenceUID)
    uids = [original.SOPInstanceUID for original in originals]
    pixels = found.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(pixels, values[:, ::-1, ::-1])


def test_a_map_of_a_tilted_series_lies_on_its_slices(tmp_path):
    made.series(tmp_path / "in", np.zeros(SHAPE, dtype=np.int16), step=(0, 0.6, 3))
    source = DicomSource.at([tmp_path / "in"])
    values = classes(source.canonical.shape)
    path = written(source, tmp_path / "m.dcm", values)
    np.testing.assert_array_equal(whole(SegmentationSource(path, source, own=True))[0], values)
    found = highdicom.seg.segread(path)
    pixels = found.get_pixels_by_source_instance([each.SOPInstanceUID for each in headers(tmp_path / "in")], combine_segments=True)
    np.testing.assert_array_equal(pixels, values[:, ::-1, ::-1])


@pytest.mark.parametrize("heatmap", [False, True], ids=["classes", "heatmap"])
def test_a_map_of_a_multi_frame_object_follows_its_frames(tmp_path, heatmap):
    order = (3, 0, 4, 1, 2)
    path = made.enhanced(tmp_path / "in" / "a.dcm", np.zeros(SHAPE, dtype=np.int16), order=order)
    source = DicomSource.at([path])
    values = classes(source.canonical.shape)
    hot = np.eye(3, dtype=np.float32)[values].transpose(3, 0, 1, 2)
    spec = MapSpec(SPEC.classes, heatmap=True) if heatmap else SPEC
    found = highdicom.seg.segread(written(source, tmp_path / "m.dcm", hot if heatmap else values, spec))
    uid = pydicom.dcmread(path).SOPInstanceUID
    pixels = found.get_pixels_by_source_frame(uid, [1, 2, 3, 4, 5], combine_segments=not heatmap)
    expected = values[list(order), ::-1, ::-1]
    np.testing.assert_array_equal(pixels.argmax(axis=-1) if heatmap else pixels, expected)


def test_a_heatmap_holds_fractions_in_steps_of_1_254th(tmp_path):
    source = volume(tmp_path / "in")
    heat = np.random.default_rng(2).dirichlet(np.ones(3), source.canonical.shape).transpose(3, 0, 1, 2).astype(np.float32)
    heat[:, 1, 2, 3] = np.nan  # nothing was judged there
    path = written(source, tmp_path / "h.dcm", heat, MapSpec(SPEC.classes, heatmap=True, colors=SPEC.colors))
    found = highdicom.seg.segread(path)
    assert found.segmentation_fractional_type is highdicom.seg.SegmentationFractionalTypeValues.PROBABILITY
    uids = [original.SOPInstanceUID for original in headers(tmp_path / "in")]
    laid = found.get_pixels_by_source_instance(uids).transpose(3, 0, 1, 2)[..., ::-1, ::-1]
    np.testing.assert_allclose(laid, np.nan_to_num(heat), atol=0.5 / 254 + 1e-6)
    again = whole(SegmentationSource(path, source, heat=True))
    np.testing.assert_allclose(again, heat, atol=0.5 / 254 + 1e-6)


def test_the_background_is_no_segment_wherever_it_stands(tmp_path):
    source = volume(tmp_path / "in")
    values = classes(source.canonical.shape)
    for background, names in ((None, ["ground", "liver", "tumour"]), (1, ["ground", "tumour"])):
        path = written(source, tmp_path / f"{background}.dcm", values, MapSpec(SPEC.classes, background=background))
        assert [each.segment_label for each in highdicom.seg.segread(path).SegmentSequence] == names
        np.testing.assert_array_equal(whole(SegmentationSource(path, source, own=True))[0], values)


def test_a_map_without_foreground_is_a_segmentation_too(tmp_path, caplog):
    source = volume(tmp_path / "in")
    with caplog.at_level(logging.WARNING):
        path = written(source, tmp_path / "m.dcm", np.zeros(source.canonical.shape, dtype=np.uint8))
    assert not caplog.records
    assert highdicom.seg.segread(path).number_of_segments == 2
    assert not whole(SegmentationSource(path, source, own=True)).any()


def test_a_map_says_who_made_it_of_what(tmp_path):
    source = volume(tmp_path / "in", PatientID="p7", StudyDescription="abdomen")
    values = classes(source.canonical.shape)
    path = written(source, tmp_path / "m.dcm", values)
    assert tags_of(path, "dicom") == tags_of(path, "nifti") == {"run": "7"}
    found = pydicom.dcmread(path)
    assert (found.PatientID, found.StudyDate, found.Modality, found.Manufacturer) == ("p7", "20200101", "SEG", "voxtile")
    algorithm = found.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("voxtile", found.SoftwareVersions)
    assert tags_of(tmp_path / "in" / "IM0000", "dicom") == {}


def test_uids_follow_from_the_content(tmp_path):
    source = volume(tmp_path / "in")
    values = classes(source.canonical.shape)
    found = [pydicom.dcmread(written(source, tmp_path / f"{n}.dcm", values if n < 2 else values[::-1])) for n in range(3)]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert found[0][keyword].value == found[1][keyword].value != found[2][keyword].value
    for each in found:  # nothing but the times at which they were made tells the same maps apart
        each.walk(lambda within, element: within.__delitem__(element.tag) if element.VR in ("DA", "TM", "DT") else None)
    assert found[0] == found[1] != found[2]


def test_patients_that_break_the_standards_rules_are_filed_as_they_are(tmp_path, caplog, recwarn):
    odd = {"PatientName": "Jos\u00e9=no caret", "PatientSex": "U", "SpecificCharacterSet": "ISO_IR 100"}

    def unruly(dataset, index):
        for keyword, value in {"PatientBirthDate": "1970", "StudyTime": "noon", "PatientID": "p" * 70}.items():
            vr = pydicom.datadict.dictionary_VR(keyword)
            dataset.add(pydicom.DataElement(keyword, vr, value, validation_mode=pydicom.config.IGNORE))

    source = volume(tmp_path / "in", each=unruly, **odd)
    spec = MapSpec(("ground", "\u809d\u81d3"), background=0)
    values = classes(source.canonical.shape, count=2)
    with caplog.at_level(logging.WARNING):
        path = written(source, tmp_path / "m.dcm", values, spec)
    assert not caplog.records
    assert not recwarn.list
    found = pydicom.dcmread(path)
    assert (str(found.PatientName), found.PatientSex, found.PatientID) == ("Jos\u00e9=no caret", "U", "p" * 70)
    assert (str(found.get_item("PatientBirthDate").value.decode()).strip(), found.SegmentSequence[0].SegmentLabel) == (
        "1970",
        "\u809d\u81d3",
    )


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "StudyDate", "AccessionNumber", "SliceThickness", "SeriesNumber"])
def test_headers_without_what_the_standard_asks_for_are_enough(tmp_path, keyword):
    source = volume(tmp_path / "in", each=lambda dataset, index: delattr(dataset, keyword))
    values = classes(source.canonical.shape)
    np.testing.assert_array_equal(
        whole(SegmentationSource(written(source, tmp_path / "m.dcm", values), source, own=True))[0], values
    )


def test_a_series_without_a_frame_of_reference_is_refused_before_anything_is_predicted(tmp_path):
    source = volume(tmp_path / "in", each=lambda dataset, index: delattr(dataset, "FrameOfReferenceUID"))
    with pytest.raises(DataError, match="FrameOfReferenceUID"):
        source.open_map(tmp_path / "m.dcm", SPEC)


def test_what_highdicom_refuses_is_said_before_anything_is_predicted_without_the_header(tmp_path, monkeypatch):
    source = volume(tmp_path / "in")

    def refuse(*args, **settings):
        raise ValueError("'CANARY' is no name")

    monkeypatch.setattr(highdicom.seg, "Segmentation", refuse)
    with pytest.raises(DataError, match=r"No DICOM segmentation of the series of .* could be made \(ValueError\)") as caught:
        source.open_map(tmp_path / "m.dcm", SPEC)
    assert "CANARY" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# As labels.


def label(source, path, values):
    return Labels(SegmentationSource(path, source), values)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_segment_numbers_are_label_values(tmp_path, kind):
    source = volume(tmp_path / "in")
    stored = classes(SHAPE)
    path = made.segmentation(tmp_path / "s.dcm", headers(tmp_path / "in"), stored, 2, kind)
    read = label(source, path, {0: 0, 1: 2, 2: 1}).read(Window.whole(source.canonical.shape))
    np.testing.assert_array_equal(read, np.array([0, 2, 1])[stored[:, ::-1, ::-1]])


def test_slices_without_a_frame_are_background(tmp_path):
    source = volume(tmp_path / "in")
    stored = np.zeros(SHAPE, dtype=np.uint8)
    stored[3, 2:5, 1:4] = 1
    path = made.segmentation(tmp_path / "s.dcm", headers(tmp_path / "in"), stored, 1)
    assert pydicom.dcmread(path).NumberOfFrames == 1
    np.testing.assert_array_equal(whole(SegmentationSource(path, source))[0], stored[:, ::-1, ::-1])


def test_of_fractions_the_largest_that_is_at_least_a_half_counts(tmp_path):
    source = volume(tmp_path / "in")
    fractions = np.zeros((*SHAPE, 2))
    fractions[0, 0, :4] = [(0.49, 0.3), (0.6, 0.8), (0.8, 0.6), (0.2, 0.51)]
    path = made.segmentation(tmp_path / "s.dcm", headers(tmp_path / "in"), fractions, 2, "FRACTIONAL")
    found = whole(SegmentationSource(path, source))[0][:, ::-1, ::-1]
    assert found[0, 0, :4].tolist() == [0, 2, 1, 2]
    assert np.count_nonzero(found) == 3


def test_segments_that_overlap_are_refused(tmp_path):
    source = volume(tmp_path / "in")
    stacked = np.zeros((*SHAPE, 2), dtype=np.uint8)
    stacked[2, 1:3, 1:3, 0] = stacked[2, 2:4, 2:4, 1] = 1
    path = made.segmentation(tmp_path / "s.dcm", headers(tmp_path / "in"), stacked, 2)
    with pytest.raises(DataError, match="segments that overlap: 1 and 2 share voxels of slice 3"):
        whole(SegmentationSource(path, source))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"origin": (-20.0, 5.0, 34.0)}, r"lies on no slice of its image: nearest is slice \d of 5"),
        ({"orientation": made.turned(21, 10)}, "lies on no slice"),
        ({"spacing": (1.5, 1.3)}, "lies on no slice"),
    ],
)
def test_a_segmentation_of_another_place_is_refused(tmp_path, change, words):
    source = volume(tmp_path / "in")
    volume(tmp_path / "other", **change)
    path = made.segmentation(tmp_path / "s.dcm", headers(tmp_path / "other"), classes(SHAPE), 2)
    with pytest.raises(DataError, match=words):
        SegmentationSource(path, source)


def test_a_segmentation_of_another_size_is_refused(tmp_path):
    source = volume(tmp_path / "in")
    made.series(tmp_path / "other", np.zeros((5, 9, 8), dtype=np.int16))
    path = made.segmentation(tmp_path / "s.dcm", headers(tmp_path / "other"), classes((5, 9, 8)), 2)
    with pytest.raises(DataError, match="frames of 8x9 pixels, and its image slices of 7x9"):
        SegmentationSource(path, source)


def test_what_is_no_segmentation_is_refused(tmp_path):
    source = volume(tmp_path / "in")
    (tmp_path / "a.dcm").write_text("no")
    for path in (source.path, tmp_path / "a.dcm", tmp_path / "none.dcm"):
        with pytest.raises(DataError, match=r"Expected a DICOM segmentation|no DICOM segmentation"):
            SegmentationSource(path, source)


def test_a_segmentation_made_elsewhere_is_no_map_of_ours(tmp_path):
    source = volume(tmp_path / "in")
    path = made.segmentation(tmp_path / "s.dcm", headers(tmp_path / "in"), classes(SHAPE), 2)
    with pytest.raises(DataError, match="does not say which class each segment is"):
        SegmentationSource(path, source, own=True)


def test_the_cache_tells_what_a_segmentation_is_read_as(tmp_path):
    source = volume(tmp_path / "in")
    values = classes(source.canonical.shape)
    path = written(source, tmp_path / "m.dcm", values, MapSpec(SPEC.classes, background=2))
    own = whole(SegmentationSource(path, source, own=True))[0]
    numbers = whole(SegmentationSource(path, source))[0]
    np.testing.assert_array_equal(own, values)
    np.testing.assert_array_equal(numbers, np.array([1, 2, 0])[values])
    assert IGNORE not in own


def test_a_case_with_a_segmentation_reads_windows(tmp_path):
    source = volume(tmp_path / "in")
    stored = classes(SHAPE)
    path = made.segmentation(tmp_path / "s.dcm", headers(tmp_path / "in"), stored, 2)
    case = Case("a", "a", source, label(source, path, {0: 0, 1: 1, 2: 2}))
    window = Window(1, 2, 3, 2, 4, 3)
    np.testing.assert_array_equal(case.read_label(window), stored[:, ::-1, ::-1][window.slices])


def test_the_private_element_is_legal_and_holds_json(tmp_path):
    source = volume(tmp_path / "in")
    dataset = pydicom.dcmread(written(source, tmp_path / "m.dcm", classes(source.canonical.shape)))
    held = json.loads(dataset.private_block(0x0099, "voxtile")[0x01].value)
    assert held == {"values": [1, 2], "rest": 0, "tags": {"run": "7"}}
    kind = dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert Code(kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning).meaning == "liver"
