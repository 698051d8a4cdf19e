"""A run that starts from another: found or trained first, copied by name and shape, checked for leaks, part of the identity."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.commands.conftest import Command, Run, homes
from voxtile.training.module import SegmentationModule


@pytest.fixture
def words(scene_run: Run, tmp_path: Path) -> list[str]:
    return [*scene_run.words, f"paths.runs={tmp_path / 'runs'}", "workers=0", "training.steps=2", "training.val_every=2"]


def read(home: Path, name: str) -> dict:
    return json.loads((home / name).read_text())


def weights(home: Path) -> dict[str, torch.Tensor]:
    return load_file(home / "weights" / "best.safetensors")


def test_the_parent_is_trained_first_and_once(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    start = "init_from={training.steps: 1, training.val_every: 1}"
    said = voxtile("train", *words, start)
    assert said.code == 0, said.err
    assert "starting from " in said.text
    parent, child = sorted(homes(tmp_path / "runs"), key=lambda home: (home / "recipe.json").stat().st_mtime)
    before = {path: path.stat().st_mtime_ns for path in parent.rglob("*")}
    assert voxtile("train", *words, start, "optimizer.lr=0.5").code == 0  # another child
    assert voxtile("train", *words, start).text.count("This run is finished") == 2
    assert {path: path.stat().st_mtime_ns for path in parent.rglob("*")} == before
    manifest = read(child, "manifest.json")
    assert manifest["parent"]["run"] == str(parent)
    assert read(child, "recipe.json")["parent"] == manifest["parent"]["weights"]
    assert len(homes(tmp_path / "runs")) == 4  # another rate is another parent too


def test_training_begins_at_the_parents_weights(
    words: list[str], scene_run: Run, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def step(self: SegmentationModule, *rest: object) -> None:
        seen.append({name: value.clone() for name, value in self.network.state_dict().items()})
        raise ZeroDivisionError

    monkeypatch.setattr(SegmentationModule, "training_step", step)
    with pytest.raises(ZeroDivisionError):
        voxtile("train", *words, f"init_from={scene_run.home}")
    given = weights(scene_run.home)
    assert all(torch.equal(seen[0][name], value) for name, value in given.items())


def test_layers_of_another_size_stay_as_they_were_initialised(words: list[str], scene_run: Run, voxtile: Command) -> None:
    said = voxtile("train", *words, f"init_from={scene_run.home}", "model.depth=1")
    assert said.code == 0
    assert "; new: " in said.text


def test_a_parent_that_was_trained_on_what_judges_this_run_is_refused(
    words: list[str], scene_run: Run, voxtile: Command, tmp_path: Path
) -> None:
    said = voxtile("train", *words, f"init_from={scene_run.home}", "split.seed=5")
    assert said.code == 3
    assert "was trained on" in said.text
    assert "that this one is judged by" in said.text
    assert homes(tmp_path / "runs") == []


def test_what_a_grandparent_was_trained_on_counts_too(words: list[str], scene_run: Run, voxtile: Command, tmp_path: Path) -> None:
    assert voxtile("train", *words, f"init_from={scene_run.home}").code == 0
    (child,) = homes(tmp_path / "runs")
    training = read(child, "manifest.json")["data"]["training"]
    assert training == scene_run.read("manifest.json")["data"]["training"]
    assert training["groups"]
    assert training["images"]


@pytest.mark.parametrize(
    ("start", "code", "message"),
    [
        ("init_from=/nowhere/run", 4, "no run folder"),
        ("init_from=[a,b]", 2, "neither a run folder nor overrides"),
        ("init_from={}", 2, "neither a run folder nor overrides"),
        ("init_from={model: no_such_model}", 2, "no_such_model"),
        ("init_from={training.stepz: 1}", 2, "stepz"),
    ],
)
def test_what_cannot_be_started_from_is_said(
    start: str, code: int, message: str, words: list[str], voxtile: Command, tmp_path: Path
) -> None:
    said = voxtile("train", *words, start)
    assert (said.code, message in said.text) == (code, True), said.text
    assert homes(tmp_path / "runs") == []


def test_a_run_whose_layers_do_not_fit_at_all_is_refused(words: list[str], scene_run: Run, voxtile: Command) -> None:
    said = voxtile("train", *words, f"init_from={scene_run.home}", "model.width=0.05", "model.depth=1")
    assert said.code == 2
    assert "No weight of" in said.text
