"""evaluate and predict with post-processing of whole maps."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio
from scipy import ndimage

from tests.commands.conftest import Command, Run, homes, with_manifest
from tests.testers.predicting import forked

ONE = "postprocess={largest: [disc], holes: [disc]}"


@pytest.fixture(scope="module")
def images(scene_run: Run) -> Path:
    return scene_run.folder / "scenes" / "images"


def classes(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def cleaned(found: np.ndarray) -> np.ndarray:
    """The largest component of class 1 with its holes filled, as SciPy says."""
    ids, count = ndimage.label(found == 1, np.ones((3,) * found.ndim))
    kept = ids == 1 + np.argmax(np.bincount(ids.ravel())[1:]) if count else ids > 0
    return np.where(ndimage.binary_fill_holes(kept), 1, np.where(found == 255, 255, 0))


@pytest.fixture(scope="module")
def rough_run(scene_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on few steps, whose maps are speckled."""
    from voxtile.commands.main import main

    folder = tmp_path_factory.mktemp("rough")
    words = ["training.steps=20", "training.val_every=20", "training.batch_size=4", "optimizer.lr=3e-3", "model.depth=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["voxtile", "train", *scene_run.words, *words, f"paths.runs={folder}"])
        assert main() == 0
    return homes(folder)[0]


def test_maps_are_post_processed_as_a_whole_and_say_so(rough_run: Path, images: Path, tmp_path: Path, voxtile: Command) -> None:
    where = [f"run={rough_run}", f"input={images}", f"paths.runs={tmp_path}", "heatmaps=true"]
    assert voxtile("predict", *where, f"output={tmp_path / 'plain'}").code == 0
    said = voxtile("predict", *where, f"output={tmp_path / 'post'}", ONE)
    assert (said.code, "post-processing does not change" in said.text) == (0, True), said.text
    changed = 0
    for path in sorted((tmp_path / "plain").glob("s?.tif")):
        plain, post = classes(path), classes(tmp_path / "post" / path.name)
        np.testing.assert_array_equal(post, cleaned(plain))
        changed += (plain != post).any()
        with rasterio.open(tmp_path / "post" / path.name) as file:
            assert json.loads(file.tags()["postprocess"]) == {"holes": ["disc"], "largest": ["disc"], "smallest": {}}
    assert changed > 1
    # Another command finds its own maps only.
    again = voxtile("predict", *where, f"output={tmp_path / 'post'}", ONE)
    assert (again.code, again.text.count("it is kept")) == (0, 6), again.text
    other = voxtile("predict", *where, f"output={tmp_path / 'post'}", "postprocess={largest: [disc]}")
    assert (other.code, "with other settings" in other.text) == (3, True), other.text


def test_evaluate_scores_the_maps_that_predict_writes(rough_run: Path, images: Path, tmp_path: Path, voxtile: Command) -> None:
    assert voxtile("evaluate", f"run={rough_run}", ONE, "objects=true").code == 0
    wanted = {"largest": ["disc"], "smallest": {}, "holes": ["disc"]}
    found = [json.loads(path.read_text()) for path in (rough_run / "evaluations").glob("val-best-postprocess*/summary.json")]
    (summary,) = [each for each in found if each["procedure"]["postprocess"] == wanted and "objects" in each]
    (case,) = json.loads((rough_run / "manifest.json").read_text())["data"]["split"]["val"]
    words = [f"run={rough_run}", f"input={images / case['id']}.tif", f"output={tmp_path}", f"paths.runs={tmp_path}"]
    assert voxtile("predict", *words, ONE).code == 0
    found, label = classes(tmp_path / f"{case['id']}.tif"), classes(images.parent / "labels" / f"{case['id']}.tif")
    expected = [[int(((label == a) & (found == b)).sum()) for b in range(2)] for a in range(2)]
    assert summary["confusion"] == expected
    assert summary["scores"]["predicted_objects/disc"] == 1


def test_a_volume_is_one_map(volume_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"
    where = [f"run={volume_run.home}", f"input={source}", f"paths.runs={tmp_path}"]
    size = "postprocess={smallest: {disc: 100.5}}"
    assert voxtile("predict", *where, f"output={tmp_path / 'plain'}").code == 0
    assert voxtile("predict", *where, f"output={tmp_path / 'post'}", size).code == 0
    plain, post = (np.asarray(nibabel.load(tmp_path / name / "v1.nii.gz").dataobj) for name in ("plain", "post"))
    ids, _ = ndimage.label(plain == 1, np.ones((3, 3, 3)))
    sizes = np.bincount(ids.ravel()) * 1.5 * 1.5 * 3.0  # mm³
    np.testing.assert_array_equal(post == 1, (ids > 0) & (sizes[ids] >= 100.5))


def test_what_helps_on_validation_is_searched_kept_and_used(
    rough_run: Path, images: Path, tmp_path: Path, voxtile: Command
) -> None:
    where = [f"run={rough_run}", f"input={images}", f"paths.runs={tmp_path}"]
    early = voxtile("evaluate", f"run={rough_run}", "postprocess=best")
    assert (early.code, "postprocess=search" in early.text) == (4, True), early.text
    said = voxtile("evaluate", f"run={rough_run}", "postprocess=search")
    assert (said.code, "kept for 'postprocess=best'" in said.text) == (0, True), said.text
    kept = json.loads((rough_run / "postprocess.json").read_text())
    assert kept["settings"] is not None
    means = {trial["option"]: trial["dice"] for trial in kept["tried"]}
    (folder,) = [
        path.parent
        for path in (rough_run / "evaluations").glob("val-best-postprocess*/summary.json")
        if json.loads(path.read_text())["procedure"]["postprocess"] == kept["settings"]
    ]
    found = json.loads((folder / "summary.json").read_text())["scores"]["dice/disc"]
    assert found > means["as it is"]
    assert found in (pytest.approx(max(means.values())), pytest.approx(means["holes"]))
    (folder / "cases.csv").unlink()
    assert voxtile("evaluate", f"run={rough_run}", "postprocess=best").code == 0
    assert (folder / "cases.csv").exists()
    halves = [rough_run / f".{10**8}-5.postprocess.json", folder / f".{10**8}-5.cases.csv"]  # of processes that were killed
    for half in halves:
        half.touch()
        os.utime(half, (0, 0))
    assert voxtile("evaluate", f"run={rough_run}", "postprocess=search").code == 0
    assert not any(half.exists() for half in halves)
    typed = json.dumps(kept["settings"]).replace('"', "")
    assert voxtile("predict", *where, f"output={tmp_path / 'best'}", "postprocess=best").code == 0
    assert voxtile("predict", *where, f"output={tmp_path / 'typed'}", f"postprocess={typed}").code == 0
    for path in sorted((tmp_path / "best").iterdir()):
        assert path.read_bytes() == (tmp_path / "typed" / path.name).read_bytes()
    other = voxtile("predict", *where, f"output={tmp_path / 'other'}", "postprocess=best", "overlap=0.5")
    assert (other.code, "maps made with overlap=0.25, and these are made with overlap=0.5" in other.text) == (4, True), other.text
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_command_that_was_killed_post_processes_once(rough_run: Path, images: Path, tmp_path: Path, voxtile: Command) -> None:
    common = ["predict", f"run={rough_run}", f"input={images / 's1.tif'}", f"paths.runs={tmp_path}", ONE]
    assert voxtile(*common, f"output={tmp_path / 'once'}").code == 0
    words, log = [*common, f"output={tmp_path / 'killed'}"], tmp_path / "said.txt"
    assert forked([[(words, ("making", 0), log)]]) == ["[-9]"], log.read_text()
    assert (tmp_path / "killed" / "s1.tif.part").exists()
    assert voxtile(*words).code == 0
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["s1.tif"]
    assert (tmp_path / "killed" / "s1.tif").read_bytes() == (tmp_path / "once" / "s1.tif").read_bytes()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("postprocess=always", "'postprocess=always' is none of null, best"),
        ("postprocess={bigest: [disc]}", "takes no 'bigest'"),
        ("postprocess={largest: disc}", "'postprocess.largest=disc' must name classes. Type, for example, 'largest: [disc]'"),
        (
            "postprocess={largest: [disk]}",
            "names 'disk', and the classes that can be post-processed are disc. Did you mean 'disc'?",
        ),
        ("postprocess={largest: [ground]}", "names 'ground'"),
        ("postprocess={smallest: [disc]}", "Type, for example, 'smallest: {disc: 30}'"),
        ("postprocess={smallest: {disc: 0}}", "'postprocess.smallest.disc=0' must be a size above 0: mm³"),
        ("postprocess={smallest: {disc: inf}}", "'postprocess.smallest.disc=inf' must be a size above 0: mm³"),
    ],
)
def test_settings_that_cannot_be_are_refused(scene_run: Run, tmp_path: Path, voxtile: Command, word: str, message: str) -> None:
    for words in (["evaluate"], ["predict", f"input={scene_run.folder}/scenes/images/s1.tif", f"output={tmp_path / 'out'}"]):
        said = voxtile(*words, f"run={scene_run.home}", word)
        assert (said.code, message in said.text) == (2, True), said.text
    assert not (tmp_path / "out").exists()


def test_a_search_on_test_cases_and_one_without_a_background_are_refused(copied_run: Run, voxtile: Command) -> None:
    said = voxtile("evaluate", f"run={copied_run.home}", "split=test", "postprocess=search")
    assert (said.code, "only 'split=val'" in said.text) == (2, True), said.text
    manifest = copied_run.read("manifest.json")
    manifest["data"]["background"] = None
    with_manifest(copied_run.home, manifest)
    said = voxtile("evaluate", f"run={copied_run.home}", "postprocess=search")
    assert (said.code, "name no class 'data.background'" in said.text) == (2, True), said.text


def test_a_scene_too_large_to_be_looked_at_as_a_whole_is_refused(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtile.inference.postprocess.MOST_PIXELS", 1000)
    words = [f"run={scene_run.home}", f"input={scene_run.folder}/scenes/images/s1.tif", f"output={tmp_path / 'out'}"]
    said = voxtile("predict", *words, ONE, f"paths.runs={tmp_path}")
    assert (said.code, "s1 has 1,440 pixels" in said.text) == (3, True), said.text
    assert not (tmp_path / "out").exists()
