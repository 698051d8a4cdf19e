"""Medical data sets by whole commands: nnU-Net's folders, BIDS, a folder per patient, .mha and .nrrd; and bad volumes."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # as its own documentation calls it

from tests.commands.conftest import Command, Outcome, homes
from tests.testers.tiny import SMALL, blob, configured, volume_words
from voxtile import open_run
from voxtile.cases.itk import about

SHAPE = (18, 16, 5)  # x, y, z


def write(path: Path, array: np.ndarray, corner: float = 0.0) -> None:
    """Writes `array` (x, y, z) in the format that the ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing((1.5, 1.5, 3.0))
    image.SetOrigin((corner, 0.0, 0.0))
    sitk.WriteImage(image, str(path))


def patient(rng: np.random.Generator, image: str, label: str, folder: Path, channels: list[str], number: int) -> None:
    """Writes a patient's channels, of which the first shows the disc of the label; the names say `{c}` for the channel."""
    mask = np.repeat(blob(rng, *SHAPE[:2])[..., None], SHAPE[2], axis=2)
    for index, channel in enumerate(channels):
        pixels = (mask * (400.0 if index == 0 else 0.0) + rng.normal(100, 30, SHAPE)).astype(np.int16)
        write(folder / image.format(c=channel), pixels, number)
    if label:
        write(folder / label, mask, number)


def words(folder: Path, layout: dict[str, object], **changes: object) -> list[str]:
    data = {
        "format": "volume", "layout": layout, "labels": {0: "ground", 1: "disc"}, "background": "ground", "window": [16, 16],
        "symmetry": {"flips": ["x"]},
    }  # fmt: skip
    return [
        *configured(folder, "tubes", **data | changes), "normalise=case", f"paths.cache={folder / 'cache'}",
        f"paths.runs={folder / 'runs'}", *SMALL,
    ]  # fmt: skip


def nnunet(folder: Path, ending: str = ".nii.gz", label_ending: str | None = None, count: int = 5) -> list[str]:
    """Makes nnU-Net's raw folder of two channels, and two cases without labels, and returns the words that train on it."""
    rng, root = np.random.default_rng(0), folder / "Dataset001_Tubes"
    for number in range(count):
        patient(
            rng, f"imagesTr/v{number}_{{c}}{ending}", f"labelsTr/v{number}{label_ending or ending}", root, ["0000", "0001"], number
        )
    for number in range(2):
        patient(rng, f"imagesTs/t{number}_{{c}}{ending}", "", root, ["0000", "0001"], number)
    document = {
        "channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"ground": 0, "disc": 1}, "file_ending": ending, "numTraining": count,
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(document))
    return words(folder, {"_target_": "voxtile.cases.layouts.NnUnetLayout", "root": str(root)})


def run_of(folder: Path) -> Path:
    (home,) = homes(folder / "runs")
    return home


def made(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".results"))


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_a_run_on_nnunets_folder_predicts_its_imagests(tmp_path: Path, voxtile: Command, ending: str) -> None:
    given = nnunet(tmp_path, ending)
    folds = [{"train": ["v0", "v1", "v2"], "val": ["v3", "v4"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    assert voxtile("train", *given, "split=file", f"split.file={tmp_path / 'splits_final.json'}").code == 0
    home, root, out = run_of(tmp_path), tmp_path / "Dataset001_Tubes", tmp_path / "out"
    manifest = json.loads((home / "manifest.json").read_text())
    assert manifest["data"]["channels"] == ["T1", "FLAIR"]
    assert [case["id"] for case in manifest["data"]["split"]["val"]] == ["v3", "v4"]

    said = voxtile("predict", f"run={home}", f"input={root / 'imagesTs'}", f"output={out}", "heatmaps=true", "instances=true")
    assert said.code == 0, said
    expected = [f"t{n}{kind}{ending}" for n in (0, 1) for kind in ("", "_heatmap", "_instances")]
    assert made(out) == sorted([*expected, "t0_instances.csv", "t1_instances.csv"])
    for name in ("t0", "t0_heatmap", "t0_instances"):
        image, found = (sitk.ReadImage(str(path)) for path in (root / f"imagesTs/t0_0000{ending}", out / f"{name}{ending}"))
        assert found.GetSize()[:3] == image.GetSize()
        np.testing.assert_allclose(found.GetOrigin()[:3], image.GetOrigin(), atol=1e-6)
    classes, ids = (sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"t0{kind}{ending}"))) for kind in ("", "_instances"))
    np.testing.assert_array_equal(ids > 0, classes == 1)
    if ending != ".nii.gz":
        assert about(out / f"t0{ending}")["classes"] == ["ground", "disc"]
    again = voxtile("predict", f"run={home}", f"input={root / 'imagesTs'}", f"output={out}", "heatmaps=true", "instances=true")
    assert again.text.count("is finished and was made by the same runs") == 2

    one = voxtile("predict", f"run={home}", f"input={root / 'imagesTs' / f't1_0001{ending}'}", f"output={tmp_path / 'one'}")
    assert one.code == 0
    assert made(tmp_path / "one") == [f"t1{ending}"]
    assert (tmp_path / "one" / f"t1{ending}").stat().st_size == (out / f"t1{ending}").stat().st_size


def test_images_and_labels_may_be_of_different_kinds(tmp_path: Path, voxtile: Command) -> None:
    rng = np.random.default_rng(0)
    for number in range(5):
        patient(rng, f"v{number}.mha", f"v{number}_seg.nii.gz", tmp_path / "set", ["t1"], number)
    layout = {
        "_target_": "voxtile.cases.layouts.FolderLayout", "root": str(tmp_path / "set"), "images": "{id}.mha",
        "labels": "{id}_seg.nii.gz",
    }  # fmt: skip
    given = words(tmp_path, layout)
    assert voxtile("train", *given).code == 0
    home = run_of(tmp_path)
    # The older name of the format is the same: the same identity, the same run.
    said = voxtile("train", *given, "data.format=nifti")
    assert said.code == 0
    assert "finished" in said.text
    assert homes(tmp_path / "runs") == [home]


def test_a_run_on_bids_keeps_subjects_together_and_predicts_new_ones(tmp_path: Path, voxtile: Command) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "ds"
    for number, (subject, session) in enumerate((s, e) for s in ("01", "02", "03", "04") for e in ("a", "b")):
        place, name = f"sub-{subject}/ses-{session}/anat", f"sub-{subject}_ses-{session}"
        mask = f"derivatives/lesions/{place}/{name}_label-lesion_mask.nii.gz"
        patient(rng, f"{place}/{name}_{{c}}.nii.gz", mask, root, ["T1w", "FLAIR"], number)
    patient(rng, "sub-09/anat/sub-09_{c}.nii.gz", "", tmp_path / "new", ["T1w", "FLAIR"], 9)
    layout = {
        "_target_": "voxtile.cases.layouts.BidsLayout", "root": str(root), "suffixes": ["T1w", "FLAIR"],
        "derivative": "derivatives/lesions", "mask": "label-lesion_mask",
    }  # fmt: skip
    assert voxtile("train", *words(tmp_path, layout)).code == 0
    home = run_of(tmp_path)
    split = json.loads((home / "manifest.json").read_text())["data"]["split"]
    sides = [{case["id"].partition("_")[0] for case in split[side]} for side in ("train", "val", "test")]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 4
    for place in ("new", "new/sub-09", "new/sub-09/anat/sub-09_FLAIR.nii.gz"):
        out = tmp_path / "out" / place.replace("/", "_").partition(".")[0]
        said = voxtile("predict", f"run={home}", f"input={tmp_path / place}", f"output={out}/")
        assert said.code == 0, said
        assert made(out) == ["sub-09.nii.gz"]


@pytest.mark.parametrize("visit", ["", "/2022"])
def test_a_run_on_a_folder_per_patient_or_visit_predicts_new_folders(
    tmp_path: Path, voxtile: Command, visit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for number in range(5):
        patient(rng, f"p{number}{visit}/{{c}}.nii.gz", f"p{number}{visit}/seg.nii.gz", tmp_path / "set", ["t1", "flair"], number)
    for number in (8, 9):
        patient(rng, f"p{number}{visit}/{{c}}.nii.gz", "", tmp_path / "new", ["t1", "flair"], number)
    below = "{patient}/{date:d}" if visit else "{patient}"
    layout = {
        "_target_": "voxtile.cases.layouts.FolderLayout", "root": str(tmp_path / "set"),
        "images": [f"{below}/t1.nii.gz", f"{below}/flair.nii.gz"], "labels": f"{below}/seg.nii.gz", "case": "{patient}",
    }  # fmt: skip
    assert voxtile("train", *words(tmp_path, layout)).code == 0
    home = run_of(tmp_path)
    assert json.loads((home / "manifest.json").read_text())["data"]["channels"] == ["t1", "flair"]
    found = open_run(home).predict(tmp_path / f"new/p9{visit}").labels
    np.testing.assert_array_equal(open_run(home).predict(tmp_path / f"new/p9{visit}/flair.nii.gz").labels, found)
    monkeypatch.chdir(tmp_path / "new/p9")
    said = voxtile("predict", f"run={home}", f"input={visit.strip('/') or '.'}", f"output={tmp_path / 'here'}/")
    assert said.code == 0, said
    assert made(tmp_path / "here") == ["p9.nii.gz"]
    places = [("new", ["p8", "p9"]), ("new/p8", ["p8"]), (f"new/p8{visit}", ["p8"]), (f"new/p9{visit}/flair.nii.gz", ["p9"])]
    for place, names in dict(places).items():
        out = tmp_path / "out" / place.replace("/", "_").partition(".")[0]
        said = voxtile("predict", f"run={home}", f"input={tmp_path / place}", f"output={out}/")
        assert said.code == 0, said
        assert made(out) == [f"{name}.nii.gz" for name in names]


def test_what_macos_leaves_beside_its_files_is_no_input(tmp_path: Path, voxtile: Command) -> None:
    given = volume_words(tmp_path)
    assert voxtile("train", *given).code == 0
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(tmp_path / "volumes/imagesTr/v0.nii.gz", new / "a.nii.gz")
    (new / "._a.nii.gz").write_bytes(b"\0\5\26\7")
    assert voxtile("predict", f"run={run_of(tmp_path)}", f"input={new}", f"output={tmp_path / 'out'}").code == 0
    assert made(tmp_path / "out") == ["a.nii.gz"]


# --- bad volumes


def refused(said: Outcome, code: int, *parts: object) -> None:
    """The command ended with `code` and said every one of `parts`, in one paragraph."""
    assert said.code == code, said
    for part in parts:
        assert str(part) in said.text
    assert len(said.err.strip().splitlines()) == 1, said.err


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Words for a data set of five volumes below `volumes`."""
    return volume_words(tmp_path)


def image_of(folder: Path, number: int = 0) -> Path:
    return folder / "volumes" / "imagesTr" / f"v{number}.nii.gz"


def label_of(folder: Path, number: int = 0) -> Path:
    return folder / "volumes" / "labelsTr" / f"v{number}.nii.gz"


def rewritten(path: Path, change=lambda array: array, offset: float = 0.0) -> None:
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[0, 3] += offset
    nibabel.save(nibabel.Nifti1Image(change(np.asarray(image.dataobj)), affine), path)


def test_a_label_that_lies_elsewhere_is_an_error_and_a_small_distance_a_note(given, tmp_path, voxtile) -> None:
    rewritten(label_of(tmp_path), offset=0.14)  # of 1.5 mm
    said = voxtile("check", *given)
    assert said.code == 0
    assert f"The label {label_of(tmp_path)} lies 0.093 voxels away from its image {image_of(tmp_path)}" in said.text
    rewritten(label_of(tmp_path), offset=0.02)
    refused(voxtile("check", *given), 3, label_of(tmp_path), "lies 0.107 voxels away from its image", image_of(tmp_path))


def test_a_label_with_channels(given, tmp_path, voxtile) -> None:
    rewritten(label_of(tmp_path), lambda label: np.stack([label, label], axis=-1))
    refused(voxtile("check", *given), 3, f"{label_of(tmp_path)} has 2 channels (a 4D image", "a label is 3D")


def test_masks_without_foreground_are_a_note_and_ignored_ones_an_error(given, tmp_path, voxtile) -> None:
    train = _side(voxtile, given, tmp_path)
    for case in train[:2]:
        rewritten(label_of(tmp_path, case), np.zeros_like)
    said = voxtile("check", *given)
    assert said.code == 0
    assert f"2 training cases without any foreground: v{train[0]}, v{train[1]};" in said.text
    rewritten(label_of(tmp_path, train[0]), lambda label: np.full_like(label, 9))
    refused(
        voxtile("check", *given, "+data.labels={9: ignore}"), 3, "hold no pixel that can be judged", f'data.exclude=["v{train[0]}"]'
    )


def _side(voxtile: Command, given: list[str], tmp_path: Path) -> list[int]:
    """Numbers of the training cases."""
    assert voxtile("train", *given, "training.steps=1", "training.val_every=1").code == 0
    split = json.loads((run_of(tmp_path) / "manifest.json").read_text())["data"]["split"]
    return [int(case["id"][1:]) for case in split["train"]]


def test_voxels_that_are_no_numbers_are_counted(given, tmp_path, voxtile) -> None:
    (train, *_) = _side(voxtile, given, tmp_path)

    def holed(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array[0, 0, 0], array[3, 4, :2] = np.nan, np.inf
        return array

    for number in range(5):  # one data type for all
        rewritten(image_of(tmp_path, number), holed if number == train else lambda array: array.astype(np.float32))
    said = voxtile("check", *given)
    assert said.code == 0
    assert f"{image_of(tmp_path, train)} has 3 voxels of 1,440 with NaN or infinity in a channel" in said.text
    assert said.text.count("with NaN or infinity") == 1
    said = voxtile("check", *given, "data.axis=x", "data.window=[8,16]")
    assert "has, on the grid that networks see, 3 voxels of 1,440 with NaN" in said.text


def test_the_same_voxels_under_two_names_are_a_leak(tmp_path, voxtile) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        patient(rng, f"imagesTr/v{number}.nii.gz", f"labelsTr/v{number}.nii.gz", tmp_path / "set", ["x"], number)
    pairs = [{"image": f"imagesTr/v{n}.nii.gz", "label": f"labelsTr/v{n}.nii.gz"} for n in range(6)]
    # The same scan once more, under another patient's name, as another kind of file and in another orientation.
    scan = nibabel.load(tmp_path / "set/imagesTr/v0.nii.gz")
    nibabel.save(scan.as_reoriented(np.array([[1, -1], [0, 1], [2, 1]])), tmp_path / "turned.nii")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "turned.nii")), str(tmp_path / "set/imagesTr/w7.mha"))
    pairs.append({"image": "imagesTr/w7.mha", "label": "labelsTr/v0.nii.gz"})
    (tmp_path / "set/dataset.json").write_text(json.dumps({"training": pairs}))
    given = words(tmp_path, {"_target_": "voxtile.cases.layouts.MsdLayout", "root": str(tmp_path / "set")})
    fold = {"train": ["v0", "v1", "v2", "v3"], "val": ["v4", "w7"]}
    (tmp_path / "split.json").write_text(json.dumps(fold))
    said = voxtile("check", *given, "split=file", f"split.file={tmp_path / 'split.json'}")
    refused(said, 3, "'w7' (val) has the same image as v0 (train)", "data.waive")


@pytest.mark.parametrize("kind", ["empty file", "no voxels", "cut off", "cut off behind its voxels"])
def test_a_file_that_is_not_whole(given, tmp_path, voxtile, kind) -> None:
    path = image_of(tmp_path)
    whole = path.read_bytes()
    plain = gzip.decompress(whole)
    shape = np.array([3, 0, 16, 5], dtype="<i2").tobytes()
    path.write_bytes(
        {
            "empty file": b"", "no voxels": gzip.compress(plain[:40] + shape + plain[48:]), "cut off": whole[: len(whole) // 2],
            "cut off behind its voxels": whole[:-6],
        }[kind]
    )  # fmt: skip
    refused(voxtile("check", *given), 3, path)


def test_a_listing_that_points_outside_the_data_folder(given, tmp_path, voxtile) -> None:
    listing = tmp_path / "volumes" / "dataset.json"
    listing.write_text(listing.read_text().replace("./imagesTr/v0.nii.gz", "../../secret.nii.gz"))
    refused(voxtile("check", *given), 3, f"{listing} names '../../secret.nii.gz', which lies outside")


def test_a_header_that_points_outside_its_folder(tmp_path, voxtile) -> None:
    given = nnunet(tmp_path, ".mhd")
    header = tmp_path / "Dataset001_Tubes/imagesTr/v0_0000.mhd"
    header.write_text(header.read_text().replace("ElementDataFile = v0_0000.raw", "ElementDataFile = /etc/hostname"))
    refused(voxtile("check", *given), 3, f"{header} names '/etc/hostname' as the file of its voxels")


def test_labels_that_contradict_the_data_set(tmp_path, voxtile) -> None:
    given = nnunet(tmp_path)
    said = voxtile("check", *given, "~data.labels", "+data.labels={0: ground, 1: tumour}")
    refused(said, 2, "Expected 'labels: {0: ground, 1: disc}'", "type '~data.labels' '+data.labels={0: ground, 1: disc}'")
    assert voxtile("check", *given, "~data.labels", "+data.labels={0: ground, 1: disc}").code == 0
