"""evaluate and predict with a CRF, turned copies and Monte-Carlo samples."""

import json
from pathlib import Path

import pytest
import rasterio
from omegaconf import OmegaConf

from tests.commands.conftest import Command, Run, homes


@pytest.fixture(scope="module")
def images(scene_run: Run):
    return scene_run.folder / "scenes" / "images"


@pytest.fixture
def able_run(scene_run: Run, tmp_path: Path, voxtile: Command) -> Path:
    """A run that has learned enough for a CRF to help."""
    words = ["training.steps=20", "training.val_every=20", "training.batch_size=4", "optimizer.lr=1e-2"]
    assert voxtile("train", *scene_run.words, *words, f"paths.runs={tmp_path / 'runs'}").code == 0
    (home,) = homes(tmp_path / "runs")
    return home


def test_the_crfs_settings_are_searched_on_validation_kept_and_used(able_run: Path, voxtile: Command) -> None:
    without = voxtile("evaluate", f"run={able_run}", "crf=best")
    assert (without.code, "crf=search" in without.text) == (4, True)
    settings = "{search: {bilateral_value: [30, 60]}, bilateral_position: 5, smooth_weight: 1, iterations: 3, channels: [band1]}"
    said = voxtile("evaluate", f"run={able_run}", f"crf={settings}")
    assert said.code == 0, said.err
    kept = json.loads((able_run / "crf.json").read_text())
    assert [trial["settings"] and trial["settings"]["bilateral_value"] for trial in kept["tried"]] == [None, 30, 60, 45]
    assert {(t["settings"]["iterations"], tuple(t["settings"]["channels"])) for t in kept["tried"][1:]} == {(3, (0,))}
    best = max(kept["tried"], key=lambda trial: trial["mean_iu"])
    assert kept["settings"] == best["settings"] is not None
    (folder,) = (able_run / "evaluations").glob("val-best-crf*")
    summary, first = json.loads((folder / "summary.json").read_text()), (folder / "cases.csv").read_bytes()
    assert summary["procedure"]["crf"] == kept["settings"]
    assert summary["scores"]["mean_iu"] == pytest.approx(best["mean_iu"], rel=1e-12)  # these cases fit into one piece each
    (folder / "cases.csv").unlink()
    assert voxtile("evaluate", f"run={able_run}", "crf=best").code == 0
    assert (folder / "cases.csv").read_bytes() == first
    assert voxtile("evaluate", f"run={able_run}", "crf={bilateral_weight: 4}").code == 0
    assert len(list((able_run / "evaluations").glob("val-best-crf*"))) == 2


def test_settings_that_do_not_help_are_not_kept_for_later(copied_run: Run, voxtile: Command) -> None:
    said = voxtile("evaluate", f"run={copied_run.home}", "crf={search: {bilateral_weight: [0]}, smooth_weight: 0}")
    assert (said.code, "none is better than no CRF" in said.text) == (0, True)
    assert (copied_run.home / "evaluations" / "val-best" / "summary.json").exists()
    refused = voxtile("evaluate", f"run={copied_run.home}", "crf=best")
    assert (refused.code, "found no settings better" in refused.text) == (4, True)


def test_a_search_on_test_cases_is_refused_before_anybody_has_looked(copied_run: Run, voxtile: Command) -> None:
    refused = voxtile("evaluate", f"run={copied_run.home}", "split=test", "crf=search")
    assert (refused.code, "only 'split=val'" in refused.text) == (2, True)
    assert not list(copied_run.home.parent.rglob("test_ledger/*"))


def test_windows_of_another_size_judge_the_whole_case(copied_run: Run, voxtile: Command) -> None:
    for window in ("[32,24]", "[64,64]"):  # the second is larger than the scenes
        assert voxtile("evaluate", f"run={copied_run.home}", f"window={window}").code == 0
    summaries = [
        json.loads(path.read_text()) for path in sorted((copied_run.home / "evaluations").glob("val-best-window*/summary.json"))
    ]
    assert [summary["procedure"]["window"] for summary in summaries] == [[1, 32, 24], [1, 64, 64]]
    assert len({sum(map(sum, summary["confusion"])) for summary in summaries}) == 1


def test_where_classes_change_places_in_copies_maps_and_evaluations_are_not_those_of_versions_that_left_them(
    copied_run: Run, images: Path, tmp_path: Path, voxtile: Command
) -> None:
    def words(name: str) -> list[str]:
        return [f"run={copied_run.home}", f"input={images / 's1.tif'}", f"output={tmp_path / name}", f"paths.runs={tmp_path}"]

    def made_from(name: str, mirrors: str) -> str:
        assert voxtile("predict", *words(name), mirrors).code == 0
        with rasterio.open(tmp_path / name / "s1.tif") as made:
            return made.tags()["made_from"]

    before = [made_from(f"before{mirrors}", mirrors) for mirrors in ("mirrors=[x]", "mirrors=[y]")]
    assert voxtile("evaluate", f"run={copied_run.home}", "mirrors=[x]", "postprocess=search").code == 0
    config = OmegaConf.load(copied_run.home / "config.yaml")
    config.data.symmetry = config.augment.symmetry = {"flips": ["x"], "swap": {"x": [["ground", "disc"]]}}
    OmegaConf.save(config, copied_run.home / "config.yaml")
    after = [made_from(f"after{mirrors}", mirrors) for mirrors in ("mirrors=[x]", "mirrors=[y]")]
    assert (after[0] == before[0], after[1] == before[1]) == (False, True)
    said = voxtile("evaluate", f"run={copied_run.home}", "mirrors=[x]", "postprocess=best")
    assert (said.code, "made with exchanged=False, and these are made with exchanged=True" in said.text) == (4, True)
    assert voxtile("evaluate", f"run={copied_run.home}", "mirrors=[x]").code == 0
    assert (copied_run.home / "evaluations" / "val-best-mirrorsx-exchanged").exists()


def test_turned_copies_are_averaged(copied_run: Run, voxtile: Command) -> None:
    assert voxtile("evaluate", f"run={copied_run.home}", "rotations=3").code == 0
    assert (copied_run.home / "evaluations" / "val-best-rotations3" / "summary.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["crf=always"], "none of null, best"),
        (["crf={bilateral: 3}"], "takes no 'bilateral'"),
        (["crf={iterations: 0}"], "iterations"),
        (["crf={channels: [0,5]}"], "'crf.channels' names 5, and the run has 2 channels"),
        (["crf={channels: [band1,red]}"], "names red, and"),
        (["crf={bilateral_value: 1e-5}"], "Type 0.1 or more"),
        (["crf={search: 3}"], "'crf.search=3'"),
        (["crf={search: {bilateral: [3]}}"], "Did you mean"),
        (["window=16"], "'window=16' must be 2 whole numbers"),
        (["rotations=0"], "'rotations=0' must be"),
        (["samples=3"], "not made for it"),
    ],
)
def test_a_procedure_that_cannot_be_is_refused(copied_run: Run, voxtile: Command, words: list[str], message: str) -> None:
    said = voxtile("evaluate", f"run={copied_run.home}", *words)
    assert (said.code, message in said.text) == (2, True), said.text


@pytest.mark.parametrize("words", [["uncertainty=true"], ["samples=40", "uncertainty=true"]])
def test_uncertainty_of_a_network_without_dropout_is_refused_at_once(
    scene_run: Run, images, tmp_path, voxtile: Command, words: list[str]
) -> None:
    said = voxtile("predict", f"run={scene_run.home}", f"input={images}", f"output={tmp_path / 'out'}", *words)
    assert said.code == 2
    assert f"'{' '.join(words)}' asks for Monte-Carlo dropout, and this network is not made for it. Leave it out" in said.text


def test_bayesian_segnet_predicts_how_unsure_it_is(scene_run: Run, images, tmp_path, voxtile: Command) -> None:
    own = [word for word in scene_run.words if not word.startswith(("model.", "data.window"))]
    words = [
        "model=bayesian_segnet",
        "model.width=0.02",
        "data.window=[20,20]",
        "training.steps=2",
        f"paths.runs={tmp_path / 'runs'}",
    ]
    assert voxtile("train", *own, *words).code == 0
    (home,) = (path.parent for path in (tmp_path / "runs").glob("*/recipe.json"))
    scene = sorted(images.iterdir())[0]
    lacking = voxtile("predict", f"run={home}", f"input={scene}", f"output={tmp_path / 'out'}", "uncertainty=true")
    assert (lacking.code, "samples=40" in lacking.text) == (2, True)
    said = voxtile("predict", f"run={home}", f"input={scene}", f"output={tmp_path / 'out'}", "uncertainty=true", "samples=3")
    assert said.code == 0, said.err
    with rasterio.open(scene) as image, rasterio.open(tmp_path / "out" / f"{scene.stem}_uncertainty.tif") as found:
        assert (found.count, found.shape, found.transform) == (1, image.shape, image.transform)
        values = found.read(1, masked=True)
    assert 0 <= values.min() < values.max() < 1
