"""voxtile train: what a run leaves, what makes it another run, and what the options do."""

import csv
import itertools
import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import rasterio
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from tests.commands.conftest import Command, Run, homes, read
from tests.testers.formats import file_size_limit
from tests.testers.tiny import SMALL, scene_words, volume_words
from voxtile.commands.build import parts
from voxtile.commands.compose import plain
from voxtile.commands.standing import changed_since, interrupted_on_other_data
from voxtile.data.normalise import NUMBERS, normalise
from voxtile.errors import ConfigError
from voxtile.models.unet_paper import UNetPaper
from voxtile.studies.manifest import Devices, trusted
from voxtile.training import pictures
from voxtile.training.border_weights import border_weights
from voxtile.training.module import SegmentationModule
from voxtile.training.pictures import HEADER, LETTERS
from voxtile.training.recipe import Recipe
from voxtile.training.run_folder import RunFolder

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parents[2] / "docs" / "manifest.schema.json").read_text()),
    format_checker=jsonschema.FormatChecker(),
)  # fmt: skip


def losses(home: Path, name: str = "train/loss") -> list[float]:
    with (home / "metrics.csv").open() as rows:
        return [float(row["value"]) for row in csv.DictReader(rows) if row["name"] == name]


@pytest.fixture
def words(scene_run: Run, tmp_path: Path) -> list[str]:
    """Trains on the session's scenes in a folder of the test's own."""
    return [*scene_run.words, f"paths.runs={tmp_path / 'runs'}", "workers=0"]


@pytest.fixture
def short(words: list[str]) -> list[str]:
    """Two steps and one validation."""
    return [*words, "training.steps=2", "training.val_every=2"]


def test_a_run_leaves_its_whole_folder(scene_run: Run, volume_run: Run) -> None:
    for run in (scene_run, volume_run):
        files = {str(path.relative_to(run.home)) for path in run.home.rglob("*") if path.is_file()}
        files = {name for name in files if not name.startswith("evaluations")}  # other tests' work
        assert files == {
            ".lock", "recipe.json", "config.yaml", "manifest.json", "status.json", "metrics.csv", "validation.json",
            "weights/best.safetensors", "weights/last.safetensors", "pictures/validation.png",
        }  # fmt: skip
        status = run.read("status.json")
        assert (status["state"], status["step"], status["steps"]) == ("finished", 6, 6)
        assert run.home.name.endswith(run.read("recipe.json")["identity"][:8])
        assert len(losses(run.home)) == 6
        assert len(losses(run.home, "val/dice")) == 2


def test_a_run_says_dice_and_iou_per_class_and_what_comes_next(scene_run: Run) -> None:
    scores = scene_run.read("status.json")["best"]["scores"]
    lines = scene_run.said.splitlines()
    for name in ("ground", "disc"):
        row = next(line for line in lines if line.split()[1:2] == [name])
        assert f"{scores[f'dice/{name}']:.4f}" in row
        assert f"{scores[f'iou/{name}']:.4f}" in row
    assert f"voxtile evaluate run={scene_run.home} split=val" in scene_run.said
    assert f"voxtile predict run={scene_run.home} input=" in scene_run.said
    assert str(scene_run.home / "pictures" / "validation.png") in scene_run.said


def test_pictures_of_volumes_have_letters_for_the_patients_sides_and_those_of_scenes_none(scene_run: Run, volume_run: Run) -> None:
    lettered = []
    for run in (scene_run, volume_run):
        with Image.open(run.home / "pictures" / "validation.png") as picture:
            panel = np.asarray(picture)[3 * LETTERS // 2 + HEADER :][:192, :192]
        blocks = panel.reshape(16, 12, 16, 12, 3)  # a window of 16 pixels, each enlarged to 12
        lettered.append(bool((blocks != blocks[:, :1, :, :1]).any()))
    assert lettered == [False, True]


def test_pictures_leave_out_what_is_predicted_where_there_are_no_data(
    tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, shown = scene_words(tmp_path, nodata=-9), []
    for path in (tmp_path / "scenes" / "images").iterdir():
        with rasterio.open(path, "r+") as file:
            file.write(np.full((2, 40, 9), -9, np.float32), window=((0, 40), (9, 18)))
    row = pictures.row
    monkeypatch.setattr(pictures, "row", lambda *given: (shown.append(given[1:4]), row(*given))[1])
    assert voxtile("train", *words).code == 0
    assert len(shown) >= 4
    for valid, _, prediction in shown:
        np.testing.assert_array_equal(prediction == 255, ~valid)
    assert not all(valid.all() for valid, _, _ in shown)


def test_the_manifest_says_what_made_the_run(scene_run: Run) -> None:
    manifest = scene_run.read("manifest.json")
    assert manifest["command"].startswith("voxtile train ")
    assert {"torch", "lightning", "numpy", "voxtile", "python"} <= set(manifest["versions"])
    split = manifest["data"]["split"]
    assert sorted(len(split[side]) for side in ("train", "val", "test")) == [1, 1, 4]
    assert manifest["data"]["classes"] == ["ground", "disc"]
    distance = manifest["data"]["distance"]
    assert distance["val"]["unit"] == distance["test"]["unit"] == "m"
    val, train = distance["val"]["cases"]
    assert val in {case["id"] for case in split["val"]}
    assert train in {case["id"] for case in split["train"]}
    # Scenes of 360 m, a kilometre from one to the next.
    assert distance["val"]["length"] == pytest.approx(1000 * abs(int(val[1:]) - int(train[1:])) - 360, rel=2e-3)
    assert "segments" not in manifest
    assert manifest["cpu_seconds"] > 0
    assert set(manifest["data"]["contents"]) == {case["id"] for side in ("train", "val") for case in split[side]}


@pytest.mark.parametrize("kind", ["scene_run", "volume_run"])
def test_manifests_keep_to_their_schema(kind: str, request: pytest.FixtureRequest) -> None:
    manifest = request.getfixturevalue(kind).read("manifest.json")
    SCHEMA.validate(manifest)
    for wrong in ({"version": 2}, {"command": 1}, {"code": {"sources": "?"}}, {"data": {**manifest["data"], "more": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            SCHEMA.validate(manifest | wrong)


def test_the_same_command_reports_at_once(scene_run: Run, voxtile: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in scene_run.home.rglob("*") if path.is_file()}
    said = voxtile("train", *scene_run.words)
    assert said.code == 0
    assert "This run is finished; nothing was trained." in said.text
    assert said.out.splitlines()[-6:] == scene_run.said.splitlines()[-6:]  # the same scores and folders
    assert {path: path.stat().st_mtime_ns for path in scene_run.home.rglob("*") if path.is_file()} == before


def test_a_finished_run_says_when_versions_have_changed_since(copied_run: Run, voxtile: Command) -> None:
    manifest = copied_run.home / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"torch": "', '"torch": "0.'))
    said = voxtile("train", *copied_run.words)
    assert said.code == 0
    assert "torch was 0." in said.text


def test_a_finished_run_says_when_the_code_has_changed_since(
    scene_run: Run, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtile.studies.manifest.own_sources", lambda: "1" * 64)
    assert "nothing was trained. Since then: the code has changed." in voxtile("train", *scene_run.words).text


def test_a_finished_run_says_that_nothing_is_profiled(scene_run: Run, voxtile: Command) -> None:
    assert "Nothing was profiled either: type another 'seed'" in voxtile("train", *scene_run.words, "+trainer.profiler=simple").text


@pytest.mark.parametrize(
    "change", ["workers=2", "training.log_every=3", "training.save_every=1", "logger=tensorboard", "retry=true"]
)
def test_what_changes_no_number_keeps_the_identity(scene_run: Run, voxtile: Command, change: str) -> None:
    said = voxtile("train", *scene_run.words, change)
    assert said.code == 0
    assert "nothing was trained" in said.text
    assert len(homes(scene_run.home.parent)) == 1


def test_a_run_elsewhere_has_the_same_identity_and_bits(scene_run: Run, words: list[str], tmp_path: Path, voxtile: Command) -> None:
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    assert home.name == scene_run.home.name
    for name in ("weights/best.safetensors", "weights/last.safetensors", "metrics.csv"):
        assert (home / name).read_bytes() == (scene_run.home / name).read_bytes()


def test_weights_by_class_name_are_those_of_a_list(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    for weights in ("{disc: 3}", "[1,3]"):
        assert voxtile("train", *words, f"loss.class_weights={weights}").code == 0
    one, other = homes(tmp_path / "runs")
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    "change", ["seed=1", "training.batch_size=3", "trainer.precision=bf16-mixed", "training.steps=3", "split.seed=1"]
)  # fmt: skip
def test_what_changes_numbers_is_another_run(
    scene_run: Run, words: list[str], tmp_path: Path, voxtile: Command, change: str
) -> None:
    said = voxtile("train", *words, change)
    assert said.code == 0
    (home,) = homes(tmp_path / "runs")
    assert home.name != scene_run.home.name
    assert (home / "metrics.csv").read_bytes() != (scene_run.home / "metrics.csv").read_bytes()


def test_another_label_pixel_is_another_run(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    words = scene_words(tmp_path)
    case = scene_run.read("manifest.json")["data"]["split"]["train"][0]
    with rasterio.open(tmp_path / "scenes" / "labels" / f"{case['id']}.tif", "r+") as label:
        label.write(1 - label.read(1, window=((0, 1), (0, 1))), 1, window=((0, 1), (0, 1)))
    assert voxtile("train", *words, "training.steps=2").code == 0
    recipes = [read(home, "recipe.json") for home in (scene_run.home, *homes(tmp_path / "runs"))]
    assert recipes[0]["split"] == recipes[1]["split"]
    assert recipes[0]["data"] != recipes[1]["data"]


MISSPELT = {
    "training.stepz=1": "'training.stepz'. Did you mean 'training.steps'?",
    "+training.stepz=1": "'training' takes no 'stepz'. Did you mean 'steps'?",
    "+model.widht=8": "takes no 'widht'. Did you mean 'width'?",
    "+trainer.precison=1": "'trainer' takes no 'precison'. Did you mean 'precision'?",
    "batch_size=3": "Did you mean 'training.batch_size'?",
    "model=unett": "'model=unett' does not exist. Did you mean 'unet'?",
    "data=dics": "'data=dics' does not exist. Did you mean 'discs'?",
    "modle=unet": "'modle'. Did you mean 'model'?",
    "debug=fats": "Did you mean 'fast'?",
    "training.monitor=dise": "'training.monitor=dise' is no score. Did you mean 'dice'?",
    "training.groups=[{pattern: '^scoer'}]": "matches none of the network's",
    "trainer.precision=bf16-mixd": "Did you mean 'bf16-mixed'?",
    "training.steps=abc": "'training.steps=abc' must be a whole number",
    "steps": "'steps'",
    "model.norm=bacth": "'model.norm=bacth' must be one of batch, instance, group, none. Did you mean 'batch'?",
}
WRONG = {
    "data.windwo=[8,8]": "'data' takes no 'windwo'. Did you mean 'window'?",
    "~training.steps": "lacks 'training.steps'",
    "training.steps=0": "'training.steps=0' must be 1 or more",
    "training.patience=0": "'training.patience=0' must be 1 or more",
    "training.ema=1.5": "'training.ema=1.5'",
    "training.clip=0": "'training.clip=null'",
    "training.minutes=0": "'training.minutes=null'",
    "training.groups=[1]": "'training.groups=[1]' must hold",
    "seed=x": "'seed=x' must be a whole number",
    "optimizer.lr=fast": "'optimizer.lr=fast' must be a number",
    "data.window=16": "'data.window=16' must be",
    "data.labels=2": "'data.labels=2' must name",
    "data.limit=0": "'data.limit=0' must be",
    "trust=torch": "'trust=[torch]'",
}


@pytest.mark.parametrize(("word", "hint"), MISSPELT.items())
def test_a_wrong_setting_is_named_with_the_right_one(
    words: list[str], tmp_path: Path, voxtile: Command, word: str, hint: str
) -> None:
    said = voxtile("train", *words, word)
    assert said.code == 2
    assert hint in said.text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("word", "hint"), WRONG.items())
def test_a_value_out_of_its_range_is_named_with_what_is_expected(scene_run: Run, word: str, hint: str) -> None:
    config = OmegaConf.load(scene_run.home / "config.yaml")
    path, _, value = word.removeprefix("~").partition("=")
    if word.startswith("~"):
        del config[path.split(".")[0]][path.split(".")[1]]
    else:
        OmegaConf.update(config, path, yaml.safe_load(value))
    with pytest.raises(ConfigError, match=re.escape(hint)):
        parts(plain(config))


@pytest.mark.parametrize("name", ["fast", "overfit", "limit", "profile"])
def test_ways_of_debugging_run(scene_run: Run, tmp_path: Path, voxtile: Command, name: str) -> None:
    own = [word for word in scene_run.words if word not in SMALL or word.startswith(("model", "trainer"))]
    few = ["training.steps=2", *([] if name == "fast" else ["training.batch_size=2"])]
    said = voxtile("train", *own, f"paths.runs={tmp_path}", f"debug={name}", *few)
    assert said.code == 0
    assert ("'training.steps=2' takes the place of 'training.steps=" in said.out) == (name != "fast")
    assert said.out.count("takes the place of") == (name != "fast")
    (home,) = homes(tmp_path)
    assert read(home, "status.json")["step"] == 2
    limit = {"overfit": 2, "limit": 4}.get(name, 4)
    assert len(read(home, "manifest.json")["data"]["split"]["train"]) == limit
    assert ("optimizer_step" in said.out) == (name == "profile")


def test_tensorboard_gets_scalars_and_pictures(
    short: list[str], tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.utilities import rank_zero_only
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning takes it from Slurm's number of a task
    assert voxtile("train", *short, "logger=tensorboard").code == 0
    (home,) = homes(tmp_path / "runs")
    events = EventAccumulator(str(home / "tensorboard"))
    events.Reload()
    (dice,) = events.Scalars("val/dice")
    assert (dice.step, dice.value) == (2, pytest.approx(losses(home, "val/dice")[0]))
    assert events.Images("validation")


def test_tensorboard_shows_each_step_of_a_killed_run_once(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = [*words, "logger=tensorboard", "training.log_every=1"]
    home = killed_after(5, words, tmp_path, voxtile).home
    assert "continuing at step 4 of 6" in voxtile("train", *words).text
    events = EventAccumulator(str(home / "tensorboard"))
    events.Reload()
    assert [row.step for row in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_run_killed_while_its_best_picture_is_drawn_has_all_of_that_validation_once(
    words: list[str], tmp_path: Path, voxtile: Command
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def killed(*given: object) -> None:
        raise ZeroDivisionError

    words = [*words, "logger=tensorboard", "training.log_every=1", "training.steps=3", "training.val_every=3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxtile.training.fit.draw_validation", killed)
        with pytest.raises(ZeroDivisionError):
            voxtile("train", *words)
    (home,) = homes(tmp_path / "runs")
    (home / "status.json").write_text('{"state": "interrupted", "step": 3}')
    assert voxtile("train", *words).code == 0
    assert (home / "pictures" / "validation.png").exists()
    events = EventAccumulator(str(home / "tensorboard"))
    events.Reload()
    assert [row.step for row in events.Scalars("val/dice")] == [3]
    assert [row.step for row in events.Scalars("train/loss")] == [1, 2, 3]


def test_wandb_can_be_disabled(short: list[str], tmp_path: Path, voxtile: Command) -> None:
    assert voxtile("train", *short, "logger=wandb", "logger.wandb.mode=disabled").code == 0
    (home,) = homes(tmp_path / "runs")
    assert read(home, "status.json")["state"] == "finished"
    assert not list(home.glob("wandb/offline-run-*"))


def test_a_network_of_monai_trains_on_boxes(tmp_path: Path, voxtile: Command) -> None:
    words = [word for word in volume_words(tmp_path, window=[4, 16, 16]) if not word.startswith("model.")]
    (tmp_path / "conf" / "model").mkdir()
    (tmp_path / "conf" / "model" / "basic.yaml").write_text(
        "_target_: monai.networks.nets.UNet\nspatial_dims: 3\nout_channels: 2\nchannels: [4, 4]\nstrides: [2]\n"
    )
    assert voxtile("train", *words, "model=basic", "training.steps=2", "training.val_every=2").code == 0
    (home,) = homes(tmp_path / "runs")
    assert voxtile("evaluate", f"run={home}").code == 0


def test_runs_of_a_multirun_are_tracked_apart_without_a_network(
    short: list[str], tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert voxtile("train", *short, "logger=wandb", "logger.wandb.mode=offline", "launch=here", "-m", "seed=0,1").code == 0
    for home in homes(tmp_path / "runs"):
        (folder,) = home.glob("wandb/offline-run-*")
        assert folder.name.endswith(read(home, "recipe.json")["identity"][:16])


def test_a_multirun_finds_options_in_several_folders(short: list[str], tmp_path: Path, voxtile: Command) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "experiment").mkdir(parents=True)
        (tmp_path / name / "experiment" / f"in_{name}.yaml").write_text("# @package _global_\nseed: 5\n")
    folders = [word for name in ("a", "b") for word in ("--config-dir", str(tmp_path / name))]
    said = voxtile("train", "-m", *folders, "launch=here", *short, "experiment=in_a,in_b")
    assert said.code == 0, said.text
    assert len(homes(tmp_path / "runs")) == 1  # both are the run with seed 5


def test_a_run_with_a_table_of_groups_is_opened_from_anywhere(
    tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = scene_words(tmp_path)
    (tmp_path / "places.csv").write_text("id,group\n" + "".join(f"s{n},p{n}\n" for n in range(6)))
    monkeypatch.chdir(tmp_path)
    assert voxtile("train", *words, "data.group={csv: places.csv}").code == 0
    (home,) = homes(tmp_path / "runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert voxtile("evaluate", f"run={home}").code == 0
    (tmp_path / "places.csv").unlink()
    assert voxtile("predict", f"run={home}", f"input={tmp_path}/scenes/images/s0.tif", f"output={tmp_path / 'out'}").code == 0


def test_a_multirun_reports_every_run(short: list[str], tmp_path: Path, voxtile: Command) -> None:
    said = voxtile("train", *short, "-m", "launch=here", "seed=0,1")
    assert said.code == 0
    found = homes(tmp_path / "runs")
    assert len(found) == 2
    assert all(f"run folder {home} " in said.text for home in found)
    assert len({read(home, "recipe.json")["identity"] for home in found}) == 2
    again = voxtile("train", *short, "--multirun", "seed=0,1")
    assert again.text.count("finished before: ") == 2
    for said_again in (said, again):
        table = said_again.out.partition("2 jobs, best validation")[2]
        for home in found:
            status, made = (read(home, f"{name}.json") for name in ("status", "manifest"))
            row = next(line.replace("│", " ").split() for line in table.splitlines() if home.name in line)
            scores, cost = status["best"]["scores"], made["training_seconds"] / 2
            shown = [home.name, "finished", "2", *(f"{scores[name]:.4f}" for name in ("dice", "iou"))]
            assert row == [row[0], *shown, f"{cost:.3f}", row[-1]]
            assert 0 < float(row[-1]) == made["peak_memory_gib"]


def test_a_multirun_goes_on_after_a_run_that_failed(short: list[str], tmp_path: Path, voxtile: Command) -> None:
    said = voxtile("train", "-m", "launch=here", *short, "data.window=[4,4],[16,16]")
    assert said.code == 2
    assert "A side of 'data.window=[4, 4]', 4 pixels, is smaller than" in said.text
    assert len(homes(tmp_path / "runs")) == 1


def test_a_failed_run_is_refused_until_told_to_retry(copied_run: Run, voxtile: Command) -> None:
    status = copied_run.home / "status.json"
    status.write_text('{"state": "failed", "step": 4, "reason": "The cable was pulled."}')
    said = voxtile("train", *copied_run.words)
    assert said.code == 4
    assert "failed before, at step 4, and said: The cable was pulled." in said.text
    assert "train it again from its start, since no state of it is saved, with 'retry=true'" in said.text
    (copied_run.home / "resume.pt").touch()
    assert "train it again from its last saved state with 'retry=true'" in voxtile("train", *copied_run.words).text
    (copied_run.home / "resume.pt").unlink()
    assert voxtile("train", *copied_run.words, "retry=true").code == 0
    assert copied_run.read("status.json")["state"] == "finished"


def killed_after(steps: int, words: list[str], folder: Path, voxtile: Command) -> Run:
    """A run whose process was killed after so many steps."""

    def killed(self: SegmentationModule, batch: dict, index: int) -> None:
        if self.step == steps:
            raise ZeroDivisionError
        step(self, batch, index)

    step = SegmentationModule.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationModule, "training_step", killed)
        with pytest.raises(ZeroDivisionError):
            voxtile("train", *words)
    (home,) = homes(folder / "runs")
    (home / "status.json").write_text(json.dumps({"state": "interrupted", "step": steps}))
    return Run(words, home, folder, "")


@pytest.fixture
def half_run(words: list[str], tmp_path: Path, voxtile: Command) -> Run:
    """A run whose process was killed after its fourth step."""
    return killed_after(4, words, tmp_path, voxtile)


def test_an_interrupted_run_with_other_versions_continues_only_when_told_to(half_run: Run, voxtile: Command) -> None:
    manifest = half_run.home / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"torch": "', '"torch": "0.'))
    said = voxtile("train", *half_run.words)
    assert said.code == 4
    assert "torch was 0." in said.text
    assert "'inexact=true'" in said.text
    said = voxtile("train", *half_run.words, "inexact=true")
    assert said.code == 0
    assert "continuing at step 4 of 6" in said.text
    done = half_run.read("manifest.json")
    assert done["versions"]["torch"].startswith("0.")
    (segment,) = done["segments"]
    assert "0." + segment["versions"]["torch"] == done["versions"]["torch"]
    assert "inexact=true" in segment["command"]
    assert segment["seconds"] > 0
    SCHEMA.validate(done)


def test_an_interrupted_run_whose_data_have_changed_is_named_beside_the_new_one(tmp_path: Path, voxtile: Command) -> None:
    words = [*scene_words(tmp_path), "workers=0"]
    half_run = killed_after(4, words, tmp_path, voxtile)
    case = half_run.read("manifest.json")["data"]["split"]["train"][0]["id"]
    with rasterio.open(tmp_path / "scenes" / "images" / f"{case}.tif", "r+") as scene:
        scene.write(scene.read() + 1)
    said = voxtile("train", *words)
    assert said.code == 0
    assert f"{half_run.home} has the same settings and stopped at step 4, and its data was another" in said.text
    assert "continuing" not in said.text
    assert half_run.read("status.json")["state"] == "interrupted"
    assert "the same settings" not in voxtile("train", *words).text


def test_what_was_another_in_an_interrupted_run_of_the_same_settings_is_named(half_run: Run) -> None:
    recipe, name = Recipe.written(half_run.read("recipe.json")), half_run.home.name.rpartition("-")[0]
    others: list[tuple[dict[str, Any], str]] = [({"split": "0" * 32}, "split"), ({"stream": 0}, "sample stream")]
    for other, what in others:
        said = interrupted_on_other_data(RunFolder.of(half_run.home.parent, name, replace(recipe, **other)))
        assert f"stopped at step 4, and its {what} was another" in str(said)
    for other in ({"settings": {**recipe.settings, "training.steps": 7}}, {"parent": "0" * 64}):
        assert interrupted_on_other_data(RunFolder.of(half_run.home.parent, name, replace(recipe, **other))) is None


def test_a_run_begun_on_a_gpu_does_not_go_on_here_unless_told_to(half_run: Run, voxtile: Command) -> None:
    manifest = half_run.home / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    said = voxtile("train", *half_run.words)
    assert said.code == 4
    assert "device was cuda, is cpu" in said.text


def test_an_interrupted_run_does_not_go_on_with_another_version_of_a_trusted_module(half_run: Run, voxtile: Command) -> None:
    found = half_run.read("manifest.json")
    assert "trusted" not in found["code"]
    found["code"]["trusted"] = trusted(["json.decoder"])
    (half_run.home / "manifest.json").write_text(json.dumps(found))
    assert changed_since(RunFolder(half_run.home), Devices("cpu", 1, torch.get_num_threads())) == ""
    found["code"]["trusted"] = {"json": "0" * 64}
    (half_run.home / "manifest.json").write_text(json.dumps(found))
    said = voxtile("train", *half_run.words)
    assert said.code == 4
    assert "was interrupted, and since then: the trusted module 'json' has changed" in said.text
    assert said.text.endswith("or move the folder away: the same command then trains it from its start.")
    RunFolder(half_run.home).set_status("failed", reason="mine", step=1, steps=6)
    assert f"The run {half_run.home} failed, and since then" in voxtile("train", *half_run.words, "retry=true").text


def test_trusted_code_that_changed_since_the_training_is_told_and_makes_other_maps(
    words: list[str], scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "lab_of_tests.py"
    module.write_text("from voxtile.models.unet import UNet\n\nclass Own(UNet):\n    pass\n")
    own = [word for word in words if not word.startswith("model.")]
    network = ["model.width=0.0625", "model.depth=2", "model._target_=lab_of_tests.Own", "trust=[lab_of_tests]"]
    assert voxtile("train", *own, *network).code == 0
    (home,) = homes(tmp_path / "runs")
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    common = [f"run={home}", "trust=[lab_of_tests]"]
    where = ["predict", *common, f"input={source}", f"output={tmp_path / 'maps'}"]
    assert "trusted code" not in voxtile(*where).text
    assert "it is kept" in voxtile(*where).text
    assert voxtile("evaluate", *common).code == 0
    evaluated = (home / "evaluations" / "val-best" / "summary.json").read_bytes()
    module.write_text(module.read_text() + "\n# another version\n")
    said = voxtile(*where)
    assert (said.code, "before the trusted code of lab_of_tests changed" in said.text) == (3, True)
    assert "by other runs or weights" in said.text
    said = voxtile("evaluate", *common)
    assert (said.code, "before the trusted code of lab_of_tests changed" in said.text) == (0, True)
    summary = json.loads((home / "evaluations" / "val-best-changed" / "summary.json").read_text())
    assert summary["changed_modules"] == ["lab_of_tests"]
    assert (home / "evaluations" / "val-best" / "summary.json").read_bytes() == evaluated


def test_where_nothing_was_saved_there_is_nothing_to_continue(half_run: Run, voxtile: Command) -> None:
    (half_run.home / "resume.pt").unlink()
    manifest = half_run.home / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"torch": "', '"torch": "0.'))
    assert voxtile("train", *half_run.words).code == 0
    done = half_run.read("manifest.json")
    assert "segments" not in done
    assert not done["versions"]["torch"].startswith("0.")


def test_what_was_trusted_stands_in_the_commands_to_come(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    own = [word for word in words if not word.startswith("model.")]
    said = voxtile("train", *own, "model.width=0.0625", "model.depth=2", "trust=[my.nets]", f"paths.runs={tmp_path / 'my runs'}")
    assert said.code == 0
    line = next(line for line in said.out.splitlines() if line.strip().startswith("voxtile predict"))
    assert line.endswith("output=predictions 'trust=[my.nets]'")
    (home,) = homes(tmp_path / "my runs")
    made = json.loads((home / "manifest.json").read_text())
    SCHEMA.validate(made)
    assert made["code"]["trusted"] == {"my": None}  # there is none
    typed = shlex.split(line)
    assert voxtile(*typed[1:-2], f"output={tmp_path / 'out'}").code == 0


@pytest.mark.parametrize("loss", ["ce", "dice_ce"])
def test_accumulated_parts_give_the_gradient_of_the_whole(words: list[str], tmp_path: Path, voxtile: Command, loss: str) -> None:
    common = [*words, f"loss={loss}", "model.norm=group", "model.dropout=0", "training.batch_size=4", "training.val_every=6"]
    curves = []
    for count in (1, 2):
        runs = tmp_path / str(count)
        assert voxtile("train", *common, f"training.accumulate={count}", f"paths.runs={runs}").code == 0
        curves.append(losses(homes(runs)[0]))
    assert len(curves[0]) == 6
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_accumulated_parts_of_several_score_maps_give_the_gradient_of_the_whole(
    words: list[str], tmp_path: Path, voxtile: Command
) -> None:
    own = [word for word in words if not word.startswith("model.")]
    network = ["model=deeplab_v2", "model.width=0.03", "model.depth=50", "model.scales=[1.0,0.5]", "model.frozen_norm=true"]
    settings = ["loss=dice_ce", "training.batch_size=4", "training.steps=3", "optimizer.lr=1e-4"]
    curves = []
    for count in (1, 2):
        runs = tmp_path / str(count)
        assert voxtile("train", *own, *network, *settings, f"training.accumulate={count}", f"paths.runs={runs}").code == 0
        curves.append(losses(homes(runs)[0]))
    assert len(curves[0]) == 3
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_a_network_that_wants_context_trains_and_is_judged_with_real_pixels(
    words: list[str], tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [word for word in words if not word.startswith("model.")]
    sizes, judged = set(), set()
    forward, weigh = UNetPaper.forward, border_weights

    def seen(self: UNetPaper, image: torch.Tensor, context: int = 0) -> torch.Tensor:
        sizes.add((context, *image.shape[2:]))
        return forward(self, image, context)

    def weighed(label: torch.Tensor, *rest: object) -> torch.Tensor:
        judged.add(tuple(label.shape[1:]))
        return weigh(label, *rest)

    monkeypatch.setattr(UNetPaper, "forward", seen)
    monkeypatch.setattr("voxtile.training.losses.border_weights", weighed)
    network = ["model=unet_paper", "model.width=0.02", "loss=border_ce"]
    said = voxtile("train", *own, *network, "training.steps=2", "training.accumulate=2", "augment=default")
    assert said.code == 0
    (home,) = homes(tmp_path / "runs")
    assert voxtile("evaluate", f"run={home}").code == 0
    assert sizes - {(0, 16, 16), (0, 15, 15)} == {(92, 200, 200)}  # the first two: whether model and window fit
    assert judged == {(200, 200), (16, 16)}  # with the objects around the window; in validation each window by itself


def test_normalisations_statistics_are_measured_on_the_first_batches_before_a_validation(
    words: list[str], tmp_path: Path, voxtile: Command
) -> None:
    kept = {}
    for number in ("null", "2"):
        runs = tmp_path / number
        assert voxtile("train", *words, f"training.norm_statistics={number}", f"paths.runs={runs}").code == 0
        kept[number] = load_file(homes(runs)[0] / "weights" / "last.safetensors")
    measured = [name for name in kept["2"] if "running" in name]
    assert measured
    for name, value in kept["2"].items():
        same = torch.equal(value, kept["null"][name])
        assert same == (name not in measured and "num_batches" not in name), name
    assert all(int(value) == 2 for name, value in kept["2"].items() if "num_batches" in name)


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_measured_statistics_are_the_plain_means_over_the_streams_first_batches(
    words: list[str], voxtile: Command, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    measured = []

    def measure(self: SegmentationModule, count: int) -> None:
        norms = [m for m in self.evaluated.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        inputs = {m: [] for m in (self.evaluated, *norms)}
        hooks = [m.register_forward_pre_hook(lambda m, given: inputs[m].append(given[0].clone())) for m in inputs]
        inner(self, count)
        for hook in hooks:
            hook.remove()
        first = self.trainer.datamodule.stream.batch(range(2 * count))  # two a batch
        plain = normalise(*(first[name] for name in ("image", "valid", *NUMBERS))).squeeze(2)
        assert torch.equal(torch.cat(inputs[self.evaluated]), plain)
        for norm in norms:
            assert {given.dtype for given in inputs[norm]} == {dtype}
            means, variances = (
                torch.stack([f(given.double(), (0, 2, 3)) for given in inputs[norm]]).mean(0) for f in (torch.mean, torch.var)
            )
            torch.testing.assert_close(norm.running_mean.double(), means, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(norm.running_var.double(), variances, rtol=1e-4, atol=1e-5)
        measured.append(len(norms))

    inner = SegmentationModule._measure_norms
    monkeypatch.setattr(SegmentationModule, "_measure_norms", measure)
    assert voxtile("train", *words, "training.norm_statistics=3", f"trainer.precision={precision}", "augment=default").code == 0
    assert len(measured) == 2  # validations
    assert min(measured) > 1


def test_training_passes_are_compiled_and_validations_are_not(
    words: list[str], tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        """Runs what was traced operation by operation, which changes no bit."""

        def run(*given: torch.Tensor) -> object:
            seen.append(torch.is_grad_enabled())
            return graph.forward(*given)

        return run

    torch.compiler.reset()  # what was traced before may be of the same code
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    for name, words_of in (("plain", words), ("compiled", [*words, "training.compile=true"])):
        assert voxtile("train", *words_of, "training.ema=0.9", f"paths.runs={tmp_path / name}").code == 0
    assert seen == [True] * 6  # a pass for each step, none for validation
    plain, compiled = (homes(tmp_path / name)[0] for name in ("plain", "compiled"))
    assert plain.name != compiled.name
    assert (plain / "metrics.csv").read_bytes() == (compiled / "metrics.csv").read_bytes()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's own, after its break at what it cannot trace
def test_a_network_that_needs_another_kernel_at_every_step_is_not_compiled(
    words: list[str], voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    monkeypatch.setattr("voxtile.training.compiling.KERNELS", 2)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)  # so that it is put back after the test
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    noisy = ["model._target_=tests.testers.noisy.Noisy", "trust=[tests.testers.noisy]"]
    said = voxtile("train", *words, *noisy, "training.steps=20", "training.compile=true")
    assert said.code == 4
    assert "(Noisy) could not be compiled: it asks for more than 2 kernels of one function" in said.text


def test_a_network_that_cannot_be_compiled_is_one_paragraph(
    short: list[str], voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        raise RuntimeError("no compiler was found\n\nSet TORCH_LOGS for more")

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    said = voxtile("train", *short, "training.compile=true")
    assert said.code == 4
    assert "(UNet) could not be compiled" in said.err
    assert "no compiler was found. 'training.compile=true' needs a C++ compiler" in said.err
    assert "TORCH_LOGS" not in said.err


def test_a_state_that_does_not_fit_on_the_disk_is_one_paragraph(short: list[str], tmp_path: Path, voxtile: Command) -> None:
    with file_size_limit(20_000):
        said = voxtile("train", *short)
    assert said.code == 4
    assert "resume.pt: PyTorch could not write all of it; the disk is probably full. Nothing was saved before" in said.text
    (home,) = homes(tmp_path / "runs")
    assert not list(home.glob("*resume*"))
    assert voxtile("train", *short, "retry=true").code == 0


def test_patience_stops_when_the_score_stays(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    settings = ["training.steps=50", "training.val_every=1", "training.patience=2", "optimizer.lr=0"]
    assert voxtile("train", *words, *settings, "model.norm=none").code == 0
    status = read(homes(tmp_path / "runs")[0], "status.json")
    assert status["state"] == "finished"
    assert status["step"] == 3  # the first score, and two that are no better
    assert status["best"]["step"] == 1


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training looks at a clock that moves by twenty seconds each time."""
    ticks = itertools.count(0.0, 20.0)
    monkeypatch.setattr("voxtile.training.module.monotonic", lambda: next(ticks))


@pytest.mark.usefixtures("slow_clock")
def test_minutes_end_a_run_as_if_that_had_been_its_last_step(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    common = [*words, "training.val_every=2", "scheduler=constant"]
    for name, limit in (("time", ["training.steps=1000", "training.minutes=1"]), ("steps", ["training.steps=3"])):
        assert voxtile("train", *common, *limit, f"paths.runs={tmp_path / name}").code == 0
    (timed,), (counted,) = (homes(tmp_path / name) for name in ("time", "steps"))
    assert read(timed, "manifest.json")["training_seconds"] == 60
    assert read(timed, "status.json")["step"] == 3
    assert timed.name != counted.name
    for name in ("weights/best.safetensors", "weights/last.safetensors", "metrics.csv"):
        assert (timed / name).read_bytes() == (counted / name).read_bytes()


@pytest.mark.usefixtures("slow_clock")
def test_minutes_go_on_counting_where_an_interrupted_run_stopped(
    words: list[str], tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = [*words, "training.steps=1000", "training.minutes=1", "training.save_every=1"]
    step = SegmentationModule.training_step

    def stopped(self: SegmentationModule, *given: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "training_step", stopped)
        assert voxtile("train", *timed).code == 130
    assert "continuing at step 1 of 1000" in voxtile("train", *timed).text
    status = read(homes(tmp_path / "runs")[0], "status.json")
    assert (status["state"], status["step"]) == ("finished", 3)


def test_the_average_of_the_weights_is_judged_and_kept(scene_run: Run, words: list[str], tmp_path: Path, voxtile: Command) -> None:
    assert voxtile("train", *words, "training.ema=0.9").code == 0
    (home,) = homes(tmp_path / "runs")
    assert losses(home) == losses(scene_run.home)  # training itself is untouched
    assert losses(home, "val/loss") != losses(scene_run.home, "val/loss")
    assert (home / "weights" / "last.safetensors").read_bytes() != (scene_run.home / "weights" / "last.safetensors").read_bytes()


def test_a_group_of_parameters_has_its_own_rate(short: list[str], tmp_path: Path, voxtile: Command) -> None:
    from safetensors.torch import load_file

    frozen = "training.groups=[{pattern: '^score', lr_scale: 0, weight_decay: 0}]"
    weights = []
    for steps in (1, 2):
        assert voxtile("train", *short, f"training.steps={steps}", frozen, f"paths.runs={tmp_path / str(steps)}").code == 0
        weights.append(load_file(homes(tmp_path / str(steps))[0] / "weights" / "last.safetensors"))
    moved = {name for name in weights[0] if not weights[0][name].equal(weights[1][name])}
    assert not any(name.startswith("score") for name in moved)
    assert "encoder.0.0.weight" in moved


def test_the_rate_in_the_metrics_is_that_of_no_group(scene_run: Run, words: list[str], tmp_path: Path, voxtile: Command) -> None:
    assert voxtile("train", *words, "training.groups=[{pattern: '^score', lr_scale: 20}]").code == 0
    (home,) = homes(tmp_path / "runs")
    rates = losses(home, "train/lr")
    assert rates == losses(scene_run.home, "train/lr")
    assert len(set(rates)) == 6


def test_volumes_can_be_trained_on_boxes(tmp_path: Path, voxtile: Command) -> None:
    words = volume_words(tmp_path, window=[8, 16, 16])
    said = voxtile("train", *words, "model.dims=3", "training.steps=2", "training.val_every=2")
    assert said.code == 0
    assert read(homes(tmp_path / "runs")[0], "status.json")["state"] == "finished"
