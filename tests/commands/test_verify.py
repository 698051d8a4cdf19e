"""Whether a run is what its folder says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from safetensors.torch import load_file, save_file

from tests.commands.conftest import Command, Run, other_label, with_manifest
from voxtile.commands.build import parts
from voxtile.errors import ConfigError
from voxtile.training.recipe import Recipe


def test_a_run_is_what_it_says(copied_run: Run, voxtile: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_, **__: pytest.fail("surveys of all cases go into the temporary folder"))
    said = voxtile("verify", f"run={copied_run.home}", "cases=all", f"paths.cache={copied_run.folder / 'cache'}")
    assert said.code == 0, said.text
    assert "weights: as recorded" in said.text
    assert "labels, and sampled blocks of images, as in the training" in said.text
    assert (
        "scores: 1 of 1 validation cases scored again with the best weights; the same count of every pair of classes" in said.text
    )


def test_a_run_whose_training_would_be_refused_today_is_opened(copied_run: Run, tmp_path: Path, voxtile: Command) -> None:
    config = yaml.safe_load((copied_run.home / "config.yaml").read_text())
    config["augment"]["affine"] = {"_target_": "voxtile.data.warp.Affine", "translation": 1.5}
    config["scheduler"] = {"_target_": "voxtile.training.schedules.Poly", "power": -1}
    config["loss"] |= {"class_weights": "none that there is"}
    with pytest.raises(ConfigError, match="translation"):
        parts(config)
    config["data"]["colors"] = {"disc": [9, 8, 7], "no class": [1, 2, 3]}
    with pytest.raises(ConfigError, match="no class"):
        parts(config)
    (copied_run.home / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    recipe = Recipe.written(copied_run.read("recipe.json")).remade(config)
    (copied_run.home / "recipe.json").write_text(json.dumps(recipe.as_dict() | {"identity": recipe.identity}))
    home = copied_run.home.rename(tmp_path / f"older-{recipe.identity[:8]}")
    said = voxtile("verify", f"run={home}")
    assert said.code == 0, said.text
    assert "identity: as configuration and recipe make it" in said.text
    assert voxtile("evaluate", f"run={home}").code == 0
    source = next(copied_run.folder.rglob("s0.tif"))
    assert voxtile("predict", f"run={home}", f"input={source}", f"output={tmp_path / 'out'}").code == 0
    with rasterio.open(tmp_path / "out" / "s0.tif") as written:
        assert written.colormap(1)[1] == (9, 8, 7, 255)


def test_the_counts_by_case_add_up_to_the_scores(scene_run: Run) -> None:
    counted, best = scene_run.read("validation.json"), scene_run.read("status.json")["best"]
    assert counted["step"] == best["step"]
    ((name, matrix),) = counted["cases"].items()
    hit, label, predicted = matrix[1][1], sum(matrix[1]), matrix[0][1] + matrix[1][1]
    assert best["scores"]["dice"] == 2 * hit / (label + predicted)
    assert name == scene_run.read("manifest.json")["data"]["split"]["val"][0]["id"]


def test_changed_weights_and_counts_are_told(copied_run: Run, voxtile: Command) -> None:
    file = copied_run.home / "weights" / "best.safetensors"
    weights = load_file(file)
    name = next(key for key in weights if key.endswith("weight") and weights[key].ndim > 1)
    weights[name] *= -1
    save_file(weights, file)
    said = voxtile("verify", f"run={copied_run.home}")
    assert said.code == 4
    assert "weights: best has changed" in said.text
    assert "other counts in s" in said.text
    assert "since the training" not in said.text
    manifest = copied_run.home / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"torch": "', '"torch": "0.'))
    assert "since the training, torch was 0." in voxtile("verify", f"run={copied_run.home}").text
    counted = copied_run.read("validation.json")
    ((case, matrix),) = counted["cases"].items()
    assert f"other counts in {case} (" in said.text
    (copied_run.home / "validation.json").write_text(json.dumps({**counted, "cases": {}}))
    assert f"other counts in {case} (not recorded)" in voxtile("verify", f"run={copied_run.home}").text
    assert sum(map(sum, matrix)) > 0
    (copied_run.home / "weights" / "last.safetensors").unlink()
    assert "last is gone" in voxtile("verify", f"run={copied_run.home}").text


def test_a_changed_manifest_is_told_and_no_map_is_made_by_it(copied_run: Run, tmp_path: Path, voxtile: Command) -> None:
    manifest = copied_run.read("manifest.json")
    manifest["data"]["channels"].reverse()
    (copied_run.home / "manifest.json").write_text(json.dumps(manifest))
    said = voxtile("verify", f"run={copied_run.home}")
    assert said.code == 4
    assert "manifest: what manifest.json says of the data has changed since the run was finished" in said.text
    words = [f"run={copied_run.home}", f"input={copied_run.folder / 'scenes' / 'images'}", f"output={tmp_path / 'maps'}"]
    said = voxtile("predict", *words)
    assert (said.code, "says other things of the data than when the run was finished" in said.text) == (4, True), said.text
    with_manifest(copied_run.home, manifest)
    assert "manifest:" not in voxtile("verify", f"run={copied_run.home}").text


DAMAGED = {
    "no best": ("status.json", lambda said: {**said, "best": None}, "says under 'best' neither step nor scores"),
    "no scores": ("status.json", lambda said: {**said, "best": {"step": 3}}, "says under 'best' neither step nor scores"),
    "a list": ("validation.json", lambda said: {**said, "cases": []}, "something else than a matrix of 2 by 2 counts"),
    "no matrix": ("validation.json", lambda said: {**said, "cases": {"s1": "x"}}, "something else than a matrix of 2 by 2"),
    "uneven": ("validation.json", lambda said: {**said, "cases": {"s1": [[1], [1, 2]]}}, "something else than a matrix of 2 by 2"),
}


def test_digests_that_are_none_are_told(copied_run: Run, voxtile: Command) -> None:
    (copied_run.home / "status.json").write_text(json.dumps(copied_run.read("status.json") | {"weights": {}}))
    said = voxtile("verify", f"run={copied_run.home}")
    assert (said.code, "weights: no digests of them are kept" in said.text) == (4, True), said.text


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_one_paragraph(copied_run: Run, voxtile: Command, damage: str) -> None:
    name, change, told = DAMAGED[damage]
    (copied_run.home / name).write_text(json.dumps(change(copied_run.read(name))))
    said = voxtile("verify", f"run={copied_run.home}")
    assert (said.code, told in said.text) == (4, True), said.text


def test_numbers_that_are_no_text_are_one_paragraph(copied_run: Run, voxtile: Command) -> None:
    (copied_run.home / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    said = voxtile("verify", f"run={copied_run.home}")
    assert (said.code, "metrics.csv cannot be read: 'utf-8' codec" in said.text) == (4, True), said.text


def test_a_changed_score_is_told(copied_run: Run, voxtile: Command) -> None:
    status = copied_run.read("status.json")
    status["best"]["scores"]["dice"] += 0.1
    (copied_run.home / "status.json").write_text(json.dumps(status))
    said = voxtile("verify", f"run={copied_run.home}")
    assert said.code == 4
    assert "in status.json are not those of the recorded counts: dice" in said.text


CHANGED = {
    "config.yaml": (r"lr: 0\.\d+", "lr: 0.1", "optimizer.lr (0.1 and 0.003) in config.yaml and recipe.json"),
    "recipe.json": ('"seed": 0', '"seed": 1', "its settings make "),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_configuration_or_recipe_that_is_another_is_told(copied_run: Run, tmp_path: Path, voxtile: Command, name: str) -> None:
    file, (pattern, other, told) = copied_run.home / name, CHANGED[name]
    assert re.search(pattern, file.read_text())
    file.write_text(re.sub(pattern, other, file.read_text(), count=1))
    said = voxtile("verify", f"run={copied_run.home}")
    assert (said.code, told in said.text) == (4, True), said.text
    said = voxtile("reproduce", f"run={copied_run.home}", f"output={tmp_path / 'again'}", "code=here")
    assert said.code == 4
    assert f"{copied_run.home} would be trained again as another run than it is: " in said.text
    assert told in said.text
    assert not (tmp_path / "again").exists()


def test_a_folder_with_the_name_of_another_run_is_told_and_no_fault(copied_run: Run, tmp_path: Path, voxtile: Command) -> None:
    other, remark = copied_run.home.rename(copied_run.home.with_name("discs-unet-s0-01234567")), "name: the folder is named after "
    said = voxtile("verify", f"run={other}")
    assert (said.code, f"{remark}01234567, and recipe.json says " in said.text) == (0, True)
    said = voxtile("reproduce", f"run={other}", f"output={tmp_path / 'again'}", "code=here")
    assert (said.code, f"{remark}01234567, and recipe.json says " in said.text) == (0, True)
    other = other.rename(other.with_name("my-run-20261127"))
    said = voxtile("verify", f"run={other}")
    assert (said.code, remark in said.text) == (0, False)


def test_changed_numbers_are_told(copied_run: Run, voxtile: Command) -> None:
    file, step = copied_run.home / "metrics.csv", copied_run.read("status.json")["best"]["step"]
    rows = file.read_text()
    file.write_text(re.sub(rf"(?m)^{step},val/dice,.*$", f"{step},val/dice,0.9375", rows))
    said = voxtile("verify", f"run={copied_run.home}")
    assert said.code == 4
    assert f"numbers: of the best validation, at step {step}: val/dice is 0.9375 in metrics.csv scores: 1 of 1" in said.text
    file.write_text(re.sub(rf"(?m)^{step},val/dice,.*\n", "", rows))
    assert "val/dice is not there in metrics.csv" in voxtile("verify", f"run={copied_run.home}").text
    file.unlink()
    said = voxtile("verify", f"run={copied_run.home}")
    assert (said.code, "metrics.csv is gone" in said.text) == (4, True)


def test_data_are_read_anew_however_old_they_look(
    copied_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtile.data.survey.survey_key", lambda case, *_: case.id)  # as though no date had changed
    words = [f"run={copied_run.home}", f"paths.cache={tmp_path / 'cache'}"]
    assert voxtile("evaluate", *words).code == 0
    with other_label(copied_run, "val") as case:
        assert voxtile("evaluate", *words).code == 0
        said = voxtile("verify", *words)
    assert said.code == 3
    assert f"changed: label of {case}" in said.text


def test_changed_data_are_told(copied_run: Run, voxtile: Command) -> None:
    with other_label(copied_run, "val") as case:
        said = voxtile("verify", f"run={copied_run.home}")
    assert said.code == 3
    assert "are not what the run" in said.text
    assert f"changed: label of {case}. Put them back" in said.text
    assert np.isfinite(copied_run.read("status.json")["best"]["score"])


def test_what_cannot_be_verified_is_said(copied_run: Run, voxtile: Command) -> None:
    assert "'cases=0' must be all or a whole number" in voxtile("verify", f"run={copied_run.home}", "cases=0").text
    (copied_run.home / "validation.json").unlink()
    said = voxtile("verify", f"run={copied_run.home}")
    assert said.code == 4
    assert "made by an older version" in said.text
    (copied_run.home / "status.json").write_text('{"state": "failed", "step": 2}')
    assert "what it holds is not final" in voxtile("verify", f"run={copied_run.home}").text
