"""voxtile plan writes an experiment that trains."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from tests.commands.conftest import Command, homes
from tests.testers.tiny import scene_words, volume_words
from voxtile.commands.plan import STEP, step_bytes
from voxtile.models.unet import UNet

FEW = ["training.steps=2", "training.val_every=2", "trainer=cpu"]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_plan_can_be_trained_and_is_not_lost_by_another(tmp_path: Path, voxtile: Command, dims: int) -> None:
    data = volume_words(tmp_path, neighbours=1, axis="y")  # of slices: boxes have neither
    words = [word for word in data if not word.startswith(("model.", "normalise=", "training.", "trainer="))]
    more = [f"plan.dims={dims}", "plan.memory=0.2"]
    half = tmp_path / "conf" / "experiment" / f".{10**8}-5.tubes_{dims}d.yaml"  # of a process that was killed
    half.parent.mkdir()
    half.write_text("defaults:")
    os.utime(half, (0, 0))
    said = voxtile("train", *words, "experiment=tubes")
    assert "The options of 'experiment' are: " in said.text
    assert half.stem not in said.text
    assert voxtile("plan", *words, *more).code == 0
    path = tmp_path / "conf" / "experiment" / f"tubes_{dims}d.yaml"
    assert list(half.parent.iterdir()) == [path]
    text = path.read_text()
    settings = yaml.safe_load(text)
    assert settings["model"]["dims"] == dims
    assert settings["data"]["spacing"] == [3.0, 1.5, 1.5]
    assert settings["data"]["neighbours"] == (1 if dims == 2 else 0)
    assert settings["data"]["axis"] == "z"
    assert "all training cases have 3x1.5x1.5 mm" in text
    again = voxtile("plan", *words, *more)
    assert again.code == 2
    assert "tubes_" in again.text
    assert "plan.overwrite=true" in again.text
    assert path.read_text() == text
    assert voxtile("plan", *words, *more, "plan.overwrite=true").code == 0
    assert path.read_text() == text
    said = voxtile("train", *[word for word in words if not word.startswith("data=")], f"experiment={path.stem}", *FEW)
    assert said.code == 0, said.text
    assert len(homes(tmp_path / "runs")) == 1


def test_a_plan_has_no_name_of_an_experiment_that_comes_along(tmp_path: Path, voxtile: Command) -> None:
    words = [word for word in volume_words(tmp_path) if not word.startswith("model.")]
    assert voxtile("plan", *words, "data.name=hippocampus", "plan.memory=0.2").code == 0
    assert [path.name for path in (tmp_path / "conf" / "experiment").iterdir()] == ["hippocampus_2d_plan.yaml"]
    said = voxtile("plan", *words, "plan.name=hippocampus_3d")
    assert said.code == 2
    assert "'plan.name=hippocampus_3d' is an experiment that comes with voxtile" in said.text


def test_a_plan_keeps_what_was_typed_and_turns_no_window_that_is_not_square(tmp_path: Path, voxtile: Command) -> None:
    words = [word for word in volume_words(tmp_path, symmetry={"flips": ["x"], "rot90": True}) if not word.startswith("model.")]
    said = voxtile("plan", *words, "data.limit=2", "data.neighbours=1", "model.width=0.75", "model=segnet",
                   f"plan.output={tmp_path / 'plans'}",
                   "plan.name=mine", "plan.memory=0.2")  # fmt: skip
    assert said.code == 0, said.text
    text = (tmp_path / "plans" / "experiment" / "mine.yaml").read_text()
    settings = yaml.safe_load(text)
    square = len(set(settings["data"]["window"])) == 1
    assert settings["data"].get("symmetry", {}).get("rot90", square) == square
    assert {"override /data": "tubes"} in settings["defaults"]
    command = f"voxtile train --config-dir {tmp_path / 'plans'} --config-dir {tmp_path / 'conf'} data=tubes"
    assert command in text
    assert "data.limit=2" in text.splitlines()[1]
    assert "plan." not in text.splitlines()[1]
    assert settings["data"]["neighbours"] == 1
    assert "neighbours" not in text.splitlines()[1]
    assert "left out model.width=0.75, model=segnet: the plan decides" in said.text
    assert text.splitlines()[1].removeprefix("# ") in said.out
    train = [word for word in said.out.splitlines()[-1].split() if word][3:]
    assert voxtile("train", *train, *FEW).code == 0


def test_scenes_and_wrong_settings_are_refused(tmp_path: Path, voxtile: Command) -> None:
    said = voxtile("plan", *scene_words(tmp_path / "scenes"), f"plan.output={tmp_path}")
    assert said.code == 2
    assert "works out spacing and windows of volumes in millimetres" in said.text
    words = volume_words(tmp_path / "volumes")
    for word, found in (
        ("plan.dims=4", "'plan.dims=4' must be 2 for slices or 3 for boxes"),
        ("plan.memory=0", "'plan.memory=0' must be the gigabytes"),
        ("plan.overwrite=maybe", "'plan.overwrite=maybe' must be true or false"),
    ):
        said = voxtile("plan", *words, word)
        assert said.code == 2
        assert found in said.text


def test_a_step_is_counted_by_its_feature_maps() -> None:
    values = {"model.width": 0.25, "model.depth": 2, "model.dims": 2, "data.window": [32, 32], "training.batch_size": 4}
    network = UNet(1, 3, 0.25, 2)
    maps = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, inputs, output: maps.append(output.numel()))
    network(torch.zeros(4, 1, 32, 32))
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert step_bytes(values, 1, 3) == int(4 * (STEP * sum(maps) + 4 * weights))
