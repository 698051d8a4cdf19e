"""Volumes as slices across any axis, with neighbours and as boxes, on their own grid and on others, from training to maps."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.commands.conftest import Command, homes
from tests.testers.nifti import save
from tests.testers.tiny import configured, volume_words, volumes
from voxtile.cases.case import Case
from voxtile.cases.nifti import NiftiSource
from voxtile.cases.window import Window
from voxtile.commands.measures import LesionMeasure, SurfaceMeasure
from voxtile.commands.score_table import score_table
from voxtile.commands.scoring import Scored
from voxtile.data.planning import facts_of
from voxtile.data.survey import survey
from voxtile.inference.finished import FinishedMap
from voxtile.inference.postprocess import pixel_size

WAYS = {
    "slices with neighbours": ["data.neighbours=1"],
    "sagittal slices on the median grid": ["data.axis=x", "data.window=[8,16]", "data.spacing=median"],
    "coronal slices, resampled": ["data.axis=y", "data.window=[8,16]", "data.spacing=[1.5,2.0,null]", "data.neighbours=1"],
    "boxes, resampled": ["data.window=[8,8,8]", "data.spacing=[2.0,2.0,2.0]", "model.dims=3", "model.depth=2"],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_judged_and_its_maps_lie_on_the_grid_of_the_files(tmp_path: Path, voxtile: Command, way: str) -> None:
    words = [*volume_words(tmp_path), *WAYS[way]]
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    assert voxtile("evaluate", f"run={home}", "split=val").code == 0
    stacked = ["channel1[-1]", "channel1[+0]", "channel1[+1]"]
    manifest = json.loads((home / "manifest.json").read_text())["data"]
    expected = (stacked, "repeat") if "data.neighbours=1" in WAYS[way] else (["channel1"], None)
    assert (manifest["inputs"], manifest["past_the_border"]) == expected
    (summary,) = (home / "evaluations").glob("*/summary.json")
    scores = json.loads(summary.read_text())
    assert scores["grid"] == "stored"
    assert np.sum(scores["confusion"]) == scores["cases"] * 18 * 16 * 5
    source = tmp_path / "volumes" / "imagesTr" / "v1.nii.gz"
    said = voxtile("predict", f"run={home}", f"input={source}", f"output={tmp_path / 'maps'}", "heatmaps=true")
    assert said.code == 0, said.text
    image, made = (nibabel.load(path) for path in (source, tmp_path / "maps" / "v1.nii.gz"))
    assert made.shape == image.shape
    np.testing.assert_array_equal(made.affine, image.affine)
    heat = nibabel.load(tmp_path / "maps" / "v1_heatmap.nii.gz").get_fdata()
    np.testing.assert_allclose(heat.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(heat.argmax(axis=-1), made.get_fdata())


@pytest.mark.parametrize("words", [["data.neighbours=1"], ["data.window=[8,24,24]", "model.dims=3"]], ids=["slices", "boxes"])
def test_volumes_smaller_than_a_window_are_evaluated_as_they_were_validated(
    tmp_path: Path, voxtile: Command, words: list[str]
) -> None:
    assert voxtile("train", *volume_words(tmp_path, window=[24, 24]), *words).code == 0
    (home,) = homes(tmp_path / "runs")
    validated = sum(np.array(each) for each in json.loads((home / "validation.json").read_text())["cases"].values())
    assert (validated > 0).all()
    assert voxtile("evaluate", f"run={home}", "split=val").code == 0
    (summary,) = (home / "evaluations").glob("*/summary.json")
    np.testing.assert_array_equal(json.loads(summary.read_text())["confusion"], validated)


def test_what_is_measured_of_a_tilted_scan_counts_its_voxels_as_they_are(tmp_path: Path) -> None:
    tilt = np.deg2rad(25)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 2] = [0, 4 * np.sin(tilt), 4 * np.cos(tilt)]
    source = NiftiSource([save(tmp_path / "a.nii", np.ones((6, 5, 4), np.uint8), affine)])
    case, voxel = Case("a", "a", source), 4 * np.cos(tilt)  # mm³
    classes = {1: "organ"}
    assert pixel_size(case) == pytest.approx(voxel)
    assert FinishedMap(source, ("rest", "organ")).sizes(Window.whole(case.shape)) == pytest.approx(voxel / 1000)
    lesions = LesionMeasure(classes, {}, 10.0, 0.0, True)
    assert lesions.collector_of(case, classes).least == pytest.approx(10 / voxel, rel=1e-4)
    np.testing.assert_array_equal(
        SurfaceMeasure(classes, {}, {"organ": 1.0}, True).collector_of(case, classes).steps, case.grid.steps
    )
    data = {"classes": ["rest", "organ"], "background": 0}
    (row,) = score_table([Scored(case, np.array([[3, 0], [2, 5]]), ())], data, []).rows
    assert (row["label_ml/organ"], row["predicted_ml/organ"]) == pytest.approx((7 * voxel / 1000, 5 * voxel / 1000))
    found = replace(survey(case, 2, label=False), counts=np.array([0, 120]))
    np.testing.assert_allclose(facts_of([case], [found]).volumes, [[0, 0.12 * voxel]])


def stretched(folder: Path, factors: dict[str, float]) -> None:
    """Has the voxels of some of the volumes grow."""
    for name, factor in factors.items():
        for path in folder.glob(f"volumes/*/{name}.nii.gz"):
            image = nibabel.load(path)
            nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([factor] * 3 + [1.0])), path)


def test_a_median_spacing_is_that_of_the_training_cases_and_is_kept(tmp_path: Path, voxtile: Command) -> None:
    words = [*volume_words(tmp_path), "data.spacing=median"]
    stretched(tmp_path, {"v4": 2.0})
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    manifest = json.loads((home / "manifest.json").read_text())
    assert manifest["data"]["spacing"] == [3.0, 1.5, 1.5]
    assert voxtile("evaluate", f"run={home}", "split=val").code == 0


def test_folds_with_a_median_each_are_evaluated_and_averaged(tmp_path: Path, voxtile: Command) -> None:
    words = [*volume_words(tmp_path), "data.spacing=median", "split=kfold", "split.folds=2", "split.test=0.2", "training.steps=20"]
    stretched(tmp_path, {"v3": 1.5, "v4": 2.0})
    assert voxtile("train", "-m", *words, "launch=here", "fold=0,1", "training.val_every=20", "optimizer.lr=0.02").code == 0
    first, second = homes(tmp_path / "runs")
    medians = [json.loads((home / "manifest.json").read_text())["data"]["spacing"] for home in (first, second)]
    assert medians[0] != medians[1]
    said = voxtile("evaluate", f"runs=[{first},{second}]")
    assert said.code == 0, said.text
    said = voxtile("evaluate", f"runs=[{first},{second}]", "split=test", "crf={bilateral_weight: 4}", f"paths.runs={tmp_path}")
    assert (said.code, "see slices and boxes, other neighbours or other spacings. Type 'crf=null'" in said.text) == (2, True)
    assert not (tmp_path / "test_ledger").exists()
    (held_out,) = json.loads((first / "manifest.json").read_text())["data"]["split"]["test"]
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes((tmp_path / "volumes" / "imagesTr" / f"{held_out['id']}.nii.gz").read_bytes())
    for number, home in enumerate((first, second)):
        said = voxtile(
            "predict", f"run={home}", f"input={copy}", f"output={tmp_path / 'maps' / str(number)}", f"paths.runs={tmp_path}"
        )
        assert (said.code, "is a test case of this run" in said.text) == (0, True), said.text
    assert len(list((tmp_path / "test_ledger").iterdir())) == 1  # one ledger of both
    layout = {"_target_": "voxtile.cases.layouts.MsdLayout", "root": str(volumes(tmp_path / "clinic", shape=(21, 15, 7)))}
    _, conf, _ = configured(tmp_path, "clinic", format="volume", layout=layout, labels={0: "ground", 1: "disc"}, window=[8, 8])
    shared = [f"runs=[{first},{second}]", "weights=last", f"paths.runs={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    # The map that both predict is scored, by one process or two: of the cases of another data set, and of the split's.
    for name, words, images, labels in (
        ("on-clinic", ["--config-dir", conf, "dataset=clinic", "devices=2", "device=cpu"], "clinic/imagesTr", "clinic"),
        ("test", ["split=test", "surface=true"], f"volumes/imagesTr/{held_out['id']}.nii.gz", "volumes"),
    ):
        said = voxtile("evaluate", *shared, *words)
        assert said.code == 0, said.text
        (summary,) = tmp_path.glob(f"evaluations/*/{name}-last/summary.json")
        said = voxtile("predict", *shared, f"input={tmp_path / images}", f"output={tmp_path / name}/", "heatmaps=true")
        assert said.code == 0, said.text
        counted = np.zeros((2, 2), dtype=int)
        for path in (tmp_path / name).glob("v?.nii.gz"):
            label, made = (np.asarray(nibabel.load(at).dataobj) for at in (tmp_path / labels / "labelsTr" / path.name, path))
            np.add.at(counted, (label.astype(int), made.astype(int)), 1)
        assert json.loads(summary.read_text())["confusion"] == counted.tolist()
        assert (counted.sum(axis=0) > 0).all(), counted


@pytest.mark.parametrize("spacing", ["median", "[2.0,1.5,1.5]"])
def test_blocks_lie_on_one_grid(tmp_path: Path, voxtile: Command, spacing: str) -> None:
    said = voxtile("train", *volume_words(tmp_path), "split=blocks", "split.blocks=[8,8]", f"data.spacing={spacing}")
    assert (said.code, "Split by whole cases (for example 'split=groups')" in said.text) == (3, True), said.text


def test_a_run_on_another_grid_takes_every_setting_of_predict(tmp_path: Path, voxtile: Command) -> None:
    words = [*volume_words(tmp_path), "data.axis=x", "data.window=[8,16]", "data.spacing=[2.0,2.0,2.0]", "data.neighbours=1"]
    assert voxtile("train", *words, "training.steps=1", "training.val_every=1").code == 0
    (home,) = homes(tmp_path / "runs")
    source = tmp_path / "volumes" / "imagesTr" / "v1.nii.gz"
    where = [f"run={home}", f"input={source}"]
    for number, more in enumerate(
        (["damaged=nodata", "quicklook=true", "instances=true"], ["mirrors=[z,y]"], ["rotations=3", "halo=field"], ["crf={}"])
    ):
        said = voxtile("predict", *where, f"output={tmp_path / str(number)}", *more)
        assert said.code == 0, said.text
        assert nibabel.load(tmp_path / str(number) / "v1.nii.gz").shape == nibabel.load(source).shape
    said = voxtile("predict", *where, f"output={tmp_path / 'maps'}", "mirrors=[x]")  # across the slices
    assert (said.code, "'mirrors=[x]' must be a list of axes among z, y" in said.text) == (2, True), said.text


def test_rasters_of_weights_are_resampled_without_overshooting(tmp_path: Path, voxtile: Command) -> None:
    words = [*volume_words(tmp_path), "data.spacing=[2.0,1.0,1.0]", "training.steps=1", "training.val_every=1"]
    (tmp_path / "volumes" / "weights").mkdir()
    for path in (tmp_path / "volumes" / "labelsTr").iterdir():
        image = nibabel.load(path)
        nibabel.save(
            nibabel.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine),
            tmp_path / "volumes" / "weights" / path.name,
        )
    said = voxtile("train", *words, "data.sampling.by=weights", 'data.sampling.weights="weights/{id}.nii.gz"')
    assert said.code == 0, said.text


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["data.spacing=[1,1]"], "'data.spacing=[1, 1]' must be 'median' or three lengths in mm"),
        (["data.spacing=mean"], "'data.spacing=mean' must be 'median'"),
        (["data.spacing=[1,1,0]"], "three lengths in mm"),
        (["data.axis=q"], "'data.axis=q' is no axis"),
        (["data.neighbours=99"], "'data.neighbours=99' must be a whole number"),
        (["data.window=[4,8,8]", "model.dims=3", "data.neighbours=1"], "asks for boxes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, voxtile: Command, words: list[str], found: str) -> None:
    said = voxtile("train", *volume_words(tmp_path), *words)
    assert said.code != 0
    assert found in said.text
