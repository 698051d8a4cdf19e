"""Folders of DICOM studies."""

from pathlib import PurePath

import nibabel
import numpy as np
import pydicom
import pytest

from tests.testers import dicom as made
from voxtile.cases.dataset import Dataset
from voxtile.cases.dicom_layout import DicomLayout
from voxtile.cases.layouts import FolderLayout
from voxtile.cases.window import Window
from voxtile.errors import ConfigError, DataError

SHAPE = (4, 6, 7)
LABELS = {0: "background", 1: "liver", 2: "tumour"}


def plain(seed=0):
    return np.random.default_rng(seed).integers(0, 1000, SHAPE).astype(np.int16)


def stored_label(seed=0):
    return np.random.default_rng(seed).integers(0, 3, SHAPE, dtype=np.uint8)


def sorted_headers(folder):
    return sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda header: header.ImagePositionPatient[2])


def studies(root, label=True):
    """Three studies of two patients, each with a localizer, a T1 and a FLAIR, a report, and a segmentation of the FLAIR."""
    for number, patient in enumerate(("ann", "bob", "ann")):
        study, folder = f"study{number}", root / f"s{number}"
        names = {"study": study, "patient": patient}
        made.series(folder / "0", plain()[:1], "MR", series="scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **names)
        made.series(folder / "1", plain(number), "MR", series="t1", SeriesDescription="t1_mprage SAG", **names)
        made.series(folder / "2", plain(number + 9), "MR", series="flair", SeriesDescription="T2 FLAIR", **names)
        made.save(made.header("1.2.840.10008.5.1.4.1.1.88.11", series="report", **names), folder / "report")
        if label:
            made.segmentation(folder / "seg.dcm", sorted_headers(folder / "2"), stored_label(number), 2)
    return root


RULES = {"flair": {"modality": "MR", "description": "(?i)flair"}, "t1": {"description": "^t1_"}}


def dataset(layout, **changes):
    return Dataset("d", "dicom", layout, LABELS, background="background", **changes)


def test_rules_choose_the_series_that_are_channels_in_their_order(tmp_path):
    layout = DicomLayout(str(studies(tmp_path)), RULES, labels="seg")
    cases = dataset(layout, group={"expression": "patient"}).cases()
    assert [case.id for case in cases] == ["s0", "s1", "s2"]
    assert cases[0].channels == ("flair", "t1")
    for number, case in enumerate(cases):
        window = Window.whole(case.shape)
        expected = np.stack([plain(number + 9), plain(number)])[:, :, ::-1, ::-1]
        np.testing.assert_array_equal(case.read(window)[0], expected)
        np.testing.assert_array_equal(case.read_label(window), stored_label(number)[:, ::-1, ::-1])


def test_groups_are_patients_and_no_name_comes_from_a_header(tmp_path):
    found = DicomLayout(str(studies(tmp_path)), RULES, case="study").find()
    patients = [case.fields["patient"] for case in sorted(found, key=lambda case: case.fields["folder"])]
    assert patients[0] == patients[2] != patients[1]
    for case in found:
        assert len(case.id) == 12
        assert int(case.id, 16)
        assert not {"ann", "bob"} & {case.id, *case.fields.values()}
        header = pydicom.dcmread(case.images[0])
        assert header.StudyInstanceUID not in {case.id, *case.fields.values()}


def test_hashes_follow_the_key(tmp_path, monkeypatch):
    layout = DicomLayout(str(studies(tmp_path)), RULES, case="study")
    without = [case.id for case in layout.find()]
    assert without == [case.id for case in layout.find()]
    monkeypatch.setenv("VOXTILE_DICOM_KEY", "secret")
    with_key = [case.id for case in layout.find()]
    assert not set(with_key) & set(without)


def test_files_may_lie_in_one_folder(tmp_path):
    root = tmp_path / "all"
    made.series(root, plain(1), series="a", study="one", name="a")
    made.series(root, plain(2), series="b", study="two", name="b")
    with pytest.raises(DataError, match=r"The folder 'all' .* holds several studies .*data\.layout\.case=study"):
        DicomLayout(str(root)).find()
    assert len(DicomLayout(str(root), case="study").find()) == 2


def test_files_beside_a_series_that_are_no_dicom_are_noted(tmp_path):
    root = studies(tmp_path)
    (root / "s0" / "2" / "README").write_text("about")
    notes = [case.image.notes() for case in dataset(DicomLayout(str(root), RULES, labels="seg")).cases()]
    assert "1 file passed over, since no DICOM image: README" in notes[0][0]
    assert notes[1:] == [[], []]


def test_files_beside_series_are_looked_at_once_each_and_not_once_per_study(tmp_path, monkeypatch):
    for number in range(6):
        made.series(tmp_path / f"s{number}", plain()[:1], "MR", study=f"study{number}")

    def asked():
        """How often a folder is asked for."""
        calls = []
        with monkeypatch.context() as patch:
            of = PurePath.parent.fget
            patch.setattr(PurePath, "parent", property(lambda path: calls.append(path) or of(path)))
            assert len(DicomLayout(str(tmp_path)).find()) == 6
        return len(calls)

    asked()  # headers are remembered now
    before = asked()
    for number in range(20):
        (tmp_path / "s0" / f"{number}.txt").touch()
    asked()
    assert asked() - before <= 40


def test_a_series_may_lie_in_several_folders(tmp_path):
    paths = made.series(tmp_path / "s" / "a", plain())
    (tmp_path / "s" / "b").mkdir()
    for path in paths[::2]:
        path.rename(tmp_path / "s" / "b" / path.name)
    (case,) = dataset(DicomLayout(str(tmp_path))).cases()
    np.testing.assert_array_equal(case.read(Window.whole(case.shape))[0][0], plain()[:, ::-1, ::-1])


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"ct": {"modality": "CT"}}, r"series\.ct=.* matches none of the 2 series of the study: .*1/IM.*\(MR, 4 files\)"),
        ({"mr": {"modality": "MR"}}, r"matches 2 series of one study"),
        (None, r"a rule that takes any series, matches 2 series"),
        ({"a": {"description": "FLAIR"}, "b": {"description": "T2"}}, "Two rules .* choose the same series"),
    ],
)  # fmt: skip
def test_a_rule_means_one_series(tmp_path, rules, words):
    with pytest.raises(DataError, match=words) as caught:
        DicomLayout(str(studies(tmp_path)), rules).find()
    assert "mprage" not in str(caught.value)  # a description may hold anything


@pytest.mark.parametrize(
    ("rule", "words"), [({"modalty": "MR"}, "Did you mean 'modality'"), ({"description": "(a"}, "no regular expression")]
)
def test_a_wrong_rule_is_refused(tmp_path, rule, words):
    with pytest.raises(ConfigError, match=words):
        DicomLayout(str(tmp_path), {"image": rule})


def test_channels_on_different_grids_are_named(tmp_path):
    made.series(tmp_path / "s" / "1", plain(), "MR", series="t1", SeriesDescription="t1_")
    made.series(tmp_path / "s" / "2", plain(), "MR", series="flair", SeriesDescription="flair", spacing=(1.5, 1.0))
    with pytest.raises(DataError, match=r"s/1/IM\d+ lies .* voxels away from .*s/2/IM\d+ at a corner"):
        dataset(DicomLayout(str(tmp_path), RULES)).cases()


def test_labels_may_be_files_by_a_pattern(tmp_path):
    root = studies(tmp_path / "root", label=False)
    for number in range(3):
        image = DicomLayout(str(root), {"t1": RULES["t1"]}).find()[number].sources(None)[0]
        label = nibabel.Nifti1Image(stored_label(number).transpose(2, 1, 0), image.stored.matrix)
        nibabel.save(label, root / f"s{number}" / "label.nii.gz")
    layout = DicomLayout(str(root), RULES, labels="{folder}/label.nii.gz")
    case = dataset(layout).cases()[1]
    np.testing.assert_array_equal(case.read_label(Window.whole(case.shape)), stored_label(1)[:, ::-1, ::-1])
    with pytest.raises(DataError, match="leads outside"):
        DicomLayout(str(root), RULES, labels="../{folder}.nii.gz").find()


@pytest.mark.parametrize("labels", ["seg", "{case}/seg.nii.gz"])
def test_a_case_without_a_label_is_an_error_unless_it_is_left_out(tmp_path, labels):
    studies(tmp_path)
    for number in range(3):
        nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE[::-1], np.uint8), np.eye(4)), tmp_path / f"s{number}" / "seg.nii.gz")
    (tmp_path / "s1" / "seg.dcm").unlink()
    (tmp_path / "s1" / "seg.nii.gz").unlink()
    with pytest.raises(DataError, match=r"1 case below .* have no .*: s1\. Add the labels"):
        DicomLayout(str(tmp_path), RULES, labels=labels).find()
    assert [case.id for case in DicomLayout(str(tmp_path), RULES, labels=labels, unlabelled=True).find()] == ["s0", "s2"]


def test_contours_are_said_not_to_be_read_where_they_are_all_there_is(tmp_path):
    studies(tmp_path)
    (tmp_path / "s1" / "seg.dcm").unlink()
    contours = made.header("1.2.840.10008.5.1.4.1.1.481.3", series="rt", study="study1", patient="bob", Modality="RTSTRUCT")
    made.save(contours, tmp_path / "s1" / "rt.dcm")
    with pytest.raises(DataError, match=r": s1\. .*rt\.dcm holds an RTSTRUCT, whose contours are not read: convert it, "):
        DicomLayout(str(tmp_path), RULES, labels="seg").find()


def test_two_segmentations_of_a_series_are_refused_and_those_of_others_not_looked_at(tmp_path):
    root = studies(tmp_path)
    made.segmentation(root / "s0" / "other.dcm", sorted_headers(root / "s0" / "1"), stored_label(), 2)
    only_flair = {"flair": RULES["flair"]}
    assert DicomLayout(str(root), only_flair, labels="seg").find()[0].labels == (root / "s0" / "seg.dcm",)
    with pytest.raises(DataError, match=r"Case 's0' has 2 DICOM segmentations"):
        DicomLayout(str(root), RULES, labels="seg").find()


def test_a_folder_without_volumes_says_so(tmp_path):
    made.save(made.header("1.2.840.10008.5.1.4.1.1.88.11"), tmp_path / "report")
    with pytest.raises(DataError, match="none of the files below it is a slice of a DICOM volume"):
        DicomLayout(str(tmp_path)).find()


def test_folders_of_series_go_by_name_patterns_too(tmp_path):
    root = studies(tmp_path)
    layout = FolderLayout(str(root), ["{study}/2", "{study}/1"], "{study}/seg.dcm", case="{study}")
    cases = dataset(layout).cases()
    assert [case.id for case in cases] == ["s0", "s1", "s2"]
    np.testing.assert_array_equal(cases[1].read(Window.whole(cases[1].shape))[0][0], plain(10)[:, ::-1, ::-1])
    np.testing.assert_array_equal(cases[1].read_label(Window.whole(cases[1].shape)), stored_label(1)[:, ::-1, ::-1])
