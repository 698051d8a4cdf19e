"""Commands on DICOM studies: maps lie over their series, and nothing that names a patient leaves the input."""

import gzip
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest

from tests.commands.conftest import Command, Run, homes, renumbered
from tests.testers import dicom as made
from tests.testers.tiny import SMALL, blob
from voxtile.cases.dicom import DicomSource
from voxtile.commands.main import main

CANARY = "Qanari"
SHAPE = (5, 18, 20)
TAGS = (
    "PatientName", "PatientID", "PatientComments", "OtherPatientIDs", "PatientAddress", "InstitutionName", "InstitutionAddress",
    "ReferringPhysicianName", "OperatorsName", "AccessionNumber", "StudyID", "StudyDescription", "SeriesDescription",
    "ProtocolName", "DeviceSerialNumber", "StationName", "ImageComments", "PatientBirthDate", "StudyDate", "ContentTime",
)  # fmt: skip


def unruly(dataset: pydicom.Dataset, index: int) -> None:
    """Writes the canary wherever a header may hold words, and where it may hold none."""
    for keyword in TAGS:
        vr = pydicom.datadict.dictionary_VR(keyword)
        dataset.add(pydicom.DataElement(keyword, vr, f"{CANARY}{keyword}", validation_mode=pydicom.config.IGNORE))
    dataset.PatientID = CANARY + dataset.PatientID
    dataset.private_block(0x0009, f"{CANARY}creator", create=True).add_new(0x01, "LO", CANARY)
    inner = pydicom.Dataset()
    inner.CodeMeaning = CANARY
    dataset.ProcedureCodeSequence = [inner]


def studies(root: Path, each: Callable[[pydicom.Dataset, int], None] | None = None) -> Path:
    """Six studies of six patients, whose CT shows the disc of the segmentation."""
    rng = np.random.default_rng(0)
    for number in range(6):
        label = np.repeat(blob(rng, *SHAPE[1:])[None], SHAPE[0], axis=0)
        label[number % 2] = 0
        image = (label * 400.0 + rng.normal(100, 30, SHAPE)).astype(np.int16)
        names = {"study": f"study{number}", "patient": f"p{number}", "orientation": made.turned(10, 5)}

        def both(dataset: pydicom.Dataset, index: int, number: int = number) -> None:
            if each:
                each(dataset, index)
                dataset.PatientID = f"{CANARY}{number}"

        made.series(root / f"s{number}" / "ct", image, each=both, RescaleSlope=1, RescaleIntercept=-50, **names)
        headers = [pydicom.dcmread(path) for path in (root / f"s{number}" / "ct").iterdir()]
        for header in headers:  # highdicom takes no dates that are none
            for keyword in TAGS:
                header.add(pydicom.DataElement(keyword, pydicom.datadict.dictionary_VR(keyword), ""))
        headers.sort(key=lambda header: header.ImagePositionPatient[2])
        path = made.segmentation(root / f"s{number}" / "seg.dcm", headers, label, 1)
        if each:
            segmentation = pydicom.dcmread(path)
            each(segmentation, 0)
            segmentation.save_as(path)
    return root


def words(folder: Path) -> list[str]:
    return [
        "data=dicom", f"data.layout.root={folder / 'studies'}", "data.window=[16,16]", "normalise=case", "split.test=0.2",
        f"paths.cache={folder / 'cache'}", f"paths.runs={folder / 'runs'}", *SMALL,
    ]  # fmt: skip


def contents(path: Path) -> bytes:
    """A file's bytes, and those of what is packed in it."""
    data = path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            data += b"".join(packed.read(name) for name in packed.namelist())
    return data + (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else b"")


def test_nothing_of_a_header_leaves_the_input(
    tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = studies(tmp_path / "studies", unruly)
    slices = sorted(root.rglob("IM*"))
    assert all(CANARY.encode() in path.read_bytes() for path in slices)
    secrets = [CANARY.encode()]
    for path in slices:
        header = pydicom.dcmread(path)
        secrets += [str(header[key].value).encode() for key in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")]
    (tmp_path / "home").mkdir()
    for name, place in (("HOME", "home"), ("VOXTILE_CACHE", "cache")):
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setenv("WANDB_SILENT", "false")
    monkeypatch.chdir(tmp_path)

    def kept(said: str) -> None:
        (tmp_path / f"said{len(list(tmp_path.glob('said*')))}").write_text(said)

    def ran(*command: object, code: int = 0) -> None:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("default")
            said = voxtile(*command)
        kept(said.out + said.err + "".join(str(each.message) for each in warned))
        assert said.code == code, said.text

    ran("check", *words(tmp_path))
    ran("train", *words(tmp_path), "training.steps=2", "training.val_every=2", "logger=wandb", "logger.wandb.mode=offline")
    (home,) = homes(tmp_path / "runs")
    run = [f"run={home}", f"paths.cache={tmp_path / 'cache'}"]
    ran("evaluate", *run, "split=val")
    ran("export", *run, "format=bundle")
    predict = ["predict", *run, f"input={root}", f"output={tmp_path / 'maps'}"]
    ran(*predict, "heatmaps=true", "instances=true", "quicklook=true")
    slices[2].unlink()
    with monkeypatch.context() as patch:  # with its traceback, which says where the slice is missing
        patch.setattr(sys, "argv", ["voxtile", *predict, "debug_errors=true", "overwrite=true"])
        assert main() == 5
    kept("".join(capfd.readouterr()))
    ran("check", *words(tmp_path), "data.layout.series.image.description=none", code=3)
    made_files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(root)]
    assert any("wandb" in path.parts for path in made_files)
    assert any(path.suffix == ".npy" for path in made_files)
    maps = [path for path in made_files if path.suffix == ".dcm"]
    assert len(maps) == 12
    for path in made_files:
        found = [secret for secret in secrets if secret in contents(path) or secret.decode() in path.name]
        assert not found or path in maps, (path, found)
    named = pydicom.dcmread(maps[0])
    assert (str(named.PatientName), named.get("InstitutionName")) == (f"{CANARY}PatientName", None)


@pytest.fixture(scope="module")
def dicom_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("dicom_run")
    studies(folder / "studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["voxtile", "train", *words(folder)])
        from voxtile.commands.main import main

        assert main() == 0
    (home,) = homes(folder / "runs")
    return Run(words(folder), home, folder, "")


def test_studies_a_series_and_a_file_of_it_have_the_same_map(dicom_run: Run, tmp_path: Path, voxtile: Command) -> None:
    root = dicom_run.folder / "studies"
    series = root / "s1" / "ct"
    inputs = {"studies": root, "series": series, "file": series / "IM0001", "twice": series}
    for name, source in inputs.items():
        folder = tmp_path / ("series" if name == "twice" else name)
        done = voxtile("predict", f"run={dicom_run.home}", f"input={source}", f"output={folder}", "heatmaps=true")
        assert done.code == 0, done.text
        assert ("it is kept" in done.text) == (name == "twice")
    assert sorted(path.name for path in (tmp_path / "studies").glob("s?.dcm")) == [f"s{number}.dcm" for number in range(6)]
    paths = [tmp_path / "studies" / "s1.dcm", tmp_path / "series" / "ct.dcm", tmp_path / "file" / "ct.dcm"]
    found = [highdicom.seg.segread(path) for path in paths]
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in DicomSource.at([series]).files]
    classes = [each.get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=True) for each in found]
    assert all((each == classes[0]).all() for each in classes)
    heat = highdicom.seg.segread(tmp_path / "studies" / "s1_heatmap.dcm")
    lesion = heat.get_pixels_by_source_instance(uids)[..., 1]
    clear = np.abs(lesion - 0.5) > 1 / 254
    np.testing.assert_array_equal(classes[0][clear] == 1, lesion[clear] > 0.5)


def test_objects_are_numbered_on_the_series_grid(dicom_run: Run, tmp_path: Path, voxtile: Command) -> None:
    series = dicom_run.folder / "studies" / "s2" / "ct"
    done = voxtile("predict", f"run={dicom_run.home}", f"input={series}", f"output={tmp_path}", "instances=true", "heatmaps=true")
    assert done.code == 0, done.text
    numbers = nibabel.load(tmp_path / "ct_instances.nii.gz")
    grid = DicomSource.at([series]).stored
    np.testing.assert_allclose(numbers.affine, grid.matrix, atol=1e-4)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in DicomSource.at([series]).files]
    classes = highdicom.seg.segread(tmp_path / "ct.dcm").get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(np.asarray(numbers.dataobj).transpose(2, 1, 0) > 0, classes > 0)


def test_a_run_on_nifti_predicts_dicom(volume_run: Run, tmp_path: Path, voxtile: Command) -> None:
    image = nibabel.load(volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz")
    stored = np.asarray(image.dataobj).transpose(2, 1, 0)
    turned = {"orientation": (1, 0, 0, 0, -1, 0), "step": (0, 0, 3), "spacing": (1.5, 1.5)}
    made.series(tmp_path / "p1" / "mr", stored, "MR", **turned)
    for source in (tmp_path / "p1", volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"):
        done = voxtile("predict", f"run={volume_run.home}", f"input={source}", f"output={tmp_path / 'maps'}")
        assert done.code == 0, done.text
    again = voxtile("predict", f"run={volume_run.home}", f"input={tmp_path / 'p1'}", f"output={tmp_path / 'maps'}")
    assert "it is kept" in again.text
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in DicomSource.at([tmp_path / "p1" / "mr"]).files]
    found = highdicom.seg.segread(tmp_path / "maps" / "mr.dcm").get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    expected = np.asarray(nibabel.load(tmp_path / "maps" / "v1.nii.gz").dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(found, expected)
    home = renumbered(volume_run, tmp_path / "runs")
    said = voxtile("predict", f"run={home}", f"input={tmp_path / 'p1'}", f"output={tmp_path / 'stored'}", "values=stored")
    assert (said.code, "segmentations have a segment per class and no values, so 'values=stored'" in said.text) == (3, True)
    assert not list((tmp_path / "stored").glob("*"))
