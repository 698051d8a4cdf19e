"""Volumes as slices across any axis, with neighbours and as boxes, on their own grid and on others, from training to maps."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.commands.conftest import Command, homes
from tests.testers.tiny import volume_words

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


def test_a_median_spacing_is_that_of_the_training_cases_and_is_kept(tmp_path: Path, voxtile: Command) -> None:
    words = [*volume_words(tmp_path), "data.spacing=median"]
    odd = tmp_path / "volumes" / "imagesTr" / "v4.nii.gz"
    for path in (odd, tmp_path / "volumes" / "labelsTr" / "v4.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])), path)
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    manifest = json.loads((home / "manifest.json").read_text())
    assert manifest["data"]["spacing"] == [3.0, 1.5, 1.5]
    assert voxtile("evaluate", f"run={home}", "split=val").code == 0


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


def test_runs_on_different_grids_do_not_predict_together(tmp_path: Path, voxtile: Command) -> None:
    words = volume_words(tmp_path)
    for more in ([], ["data.spacing=[3,2,2]"]):
        assert voxtile("train", *words, *more, "training.steps=1", "training.val_every=1").code == 0
    source = tmp_path / "volumes" / "imagesTr" / "v1.nii.gz"
    runs = ",".join(map(str, homes(tmp_path / "runs")))
    said = voxtile("predict", f"runs=[{runs}]", f"input={source}", f"output={tmp_path / 'maps'}")
    assert said.code != 0
    assert "cannot predict together: their reading differ" in said.text
