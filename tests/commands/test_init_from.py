"""A run that starts from another: found or trained first, copied by name and shape, checked for leaks, part of the identity."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import load_file

from tests.commands.conftest import Command, Run, homes, with_manifest
from tests.testers.tiny import scene_words, scenes
from voxtile.cases.dataset import Dataset
from voxtile.cases.layouts import FolderLayout
from voxtile.commands import compose
from voxtile.commands.parents import Learned, check_leaks, learned_from
from voxtile.data.blocks import BlockSplit
from voxtile.data.normalise import Normalisation
from voxtile.data.prepared import prepare
from voxtile.data.splits import FileSplit
from voxtile.errors import ConfigError, DataError
from voxtile.training import run_folder
from voxtile.training.module import SegmentationModule
from voxtile.training.processes import start_time

ROOT = Path(__file__).parents[2]


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
    said = voxtile("status", f"paths.runs={tmp_path / 'runs'}")
    assert f"init_from={parent.name}" in "".join(said.text.split())
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


def test_a_network_of_slices_gives_nothing_to_one_of_boxes_and_leaves_no_folder(
    volume_run: Run, tmp_path: Path, voxtile: Command
) -> None:
    words = [*volume_run.words, f"paths.runs={tmp_path / 'runs'}", "model.dims=3", "data.window=[8,16,16]"]
    said = voxtile("train", *words, f"init_from={volume_run.home}")
    assert said.code == 2
    assert f"The network of {volume_run.home} sees slices (2D), and this one boxes (3D): no weight" in said.text
    assert "'model=unet model.dims=2'" in said.text
    assert not list((tmp_path / "runs").glob("*"))


def test_what_was_given_for_an_argument_that_the_parents_network_lacks_is_left_out(voxtile: Command) -> None:
    seen = []

    def task(config: dict) -> int:
        seen.append((config["model"], compose.again({"model": "deeplab_v1"})["model"]))
        with pytest.raises(ConfigError, match=r"cannot be composed with model=fcn32s, model\.side_init=msra.*side_init"):
            compose.again({"model": "fcn32s", "model.side_init": "msra"})
        return 0

    words = ["model=deeplab_v1_msc", "model.side_init=paper", "model.width=0.5", "model.train_only_new=true"]
    assert compose.run("train", words, task) == 0
    ((child, parent),) = seen
    assert (child["side_init"], child["train_only_new"], child["width"]) == ("paper", True, 0.5)
    assert parent["_target_"].endswith(".DeepLabV1")
    assert parent["width"] == 0.5
    assert not {"side_init", "train_only_new"} & set(parent)


def test_stages_of_other_networks_are_trained_one_after_the_other(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    own = [word for word in words if not word.startswith("model.")]
    given = ["model=fcn8s_atonce", "model.width=0.02", "model.scale4=0.5"]  # scale4 is for the last alone
    said = voxtile("train", *own, *given, "init_from={model: fcn16s, init_from: {model: fcn32s}}")
    assert said.code == 0, said.err
    by_model = {home.name.split("-")[1]: home for home in homes(tmp_path / "runs")}
    assert set(by_model) == {"fcn32s", "fcn16s", "fcn8s_atonce"}
    parents = {name: read(home, "manifest.json")["parent"] for name, home in by_model.items()}
    assert parents["fcn32s"] is None
    assert parents["fcn16s"]["run"] == str(by_model["fcn32s"])
    assert parents["fcn8s_atonce"]["run"] == str(by_model["fcn16s"])


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["data.window=[4,4]", "init_from={data.window: [16,16]}"], 2, "is smaller than"),
        (
            ["data.window=[4,4]", "init_from={data.window: [16,16], init_from: {seed: 1, data.window: [16,16]}}"],
            2,
            "is smaller than",
        ),
        (["split.seed=5", "init_from={split.seed: 0}"], 3, "is trained on what this one is judged by"),
    ],
)
def test_a_run_is_checked_before_the_one_it_starts_from_is_trained(
    words: list[str], tmp_path: Path, voxtile: Command, change: list[str], code: int, message: str
) -> None:
    said = voxtile("train", *words, *change)
    assert (said.code, message in said.text) == (code, True), said.text
    assert homes(tmp_path / "runs") == []


# --- leaks


def sides(home: Path) -> dict[str, list[str]]:
    """The ids of a run's cases by side."""
    split = read(home, "manifest.json")["data"]["split"]
    return {side: [case["id"] for case in split[side]] for side in ("train", "val", "test")}


def test_a_parent_that_was_trained_on_what_judges_this_run_is_refused(
    words: list[str], scene_run: Run, voxtile: Command, tmp_path: Path
) -> None:
    said = voxtile("train", *words, f"init_from={scene_run.home}", "split.seed=5")
    assert said.code == 3
    assert "is trained on what this one is judged by" in said.text
    assert homes(tmp_path / "runs") == []


def test_a_leak_through_the_parent_is_waived_by_name_and_said(
    words: list[str], scene_run: Run, voxtile: Command, tmp_path: Path
) -> None:
    other = [*words, f"init_from={scene_run.home}", "split.seed=5"]
    waive = voxtile("train", *other).text.partition("type 'data.waive=")[2].partition("'")[0]
    assert json.loads(waive)
    said = voxtile("train", *other, f"data.waive={waive}")
    assert said.code == 0, said.err
    (home,) = homes(tmp_path / "runs")
    told = read(home, "manifest.json")["data"]["waived"]
    assert all("(the parent's training)" in sentence for sentence in told)
    assert {json.dumps(sentence.split("'")[1]) for sentence in told} == set(waive[1:-1].split(","))
    assert all(f"waived: {sentence}" in said.text for sentence in told)


def test_a_leak_that_was_waived_for_the_split_is_no_leak_through_a_parent_with_that_split(
    scene_run: Run, tmp_path: Path, voxtile: Command
) -> None:
    words = [*scene_words(tmp_path), "training.steps=2", "training.val_every=2"]
    ids = sides(scene_run.home)
    copied, judged = (tmp_path / "scenes" / "images" / f"{ids[side][0]}.tif" for side in ("train", "val"))
    with rasterio.open(copied) as source, rasterio.open(judged, "r+") as target:
        target.write(source.read())
    assert voxtile("train", *words).code == 3
    assert voxtile("train", *words, f"data.waive=[{ids['val'][0]}]").code == 0
    (parent,) = homes(tmp_path / "runs")
    said = voxtile("train", *words, f"data.waive=[{ids['val'][0]}]", f"init_from={parent}")
    assert said.code == 0, said.err
    (child,) = set(homes(tmp_path / "runs")) - {parent}
    (sentence,) = read(child, "manifest.json")["data"]["waived"]
    assert f"'{ids['val'][0]}' (val) has the same image as {ids['train'][0]} (train)" in sentence


def test_a_case_that_only_the_grandparent_was_trained_on_counts_too(
    words: list[str], scene_run: Run, voxtile: Command, tmp_path: Path
) -> None:
    ids = sides(scene_run.home)
    left_out, *learned = ids["train"]
    splits = {"parent": {"train": learned, "val": ids["val"]}, "child": {"train": learned, "val": [left_out]}}
    for name, split in splits.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(split))
    of = [*words, "split=file"]
    assert voxtile("train", *of, f"split.file={tmp_path / 'parent.json'}", f"init_from={scene_run.home}").code == 0
    (parent,) = homes(tmp_path / "runs")
    said = voxtile("train", *of, f"split.file={tmp_path / 'child.json'}", f"init_from={parent}")
    assert said.code == 3
    assert f"'{left_out}' (val)" in said.text
    # Without the grandparent, the same child would be right.
    assert voxtile("train", *of, f"split.file={tmp_path / 'parent.json'}", "seed=1").code == 0
    parent = next(home for home in homes(tmp_path / "runs") if "-s1-" in home.name)
    assert voxtile("train", *of, f"split.file={tmp_path / 'child.json'}", f"init_from={parent}").code == 0


def test_a_run_of_an_older_version_is_known_by_its_split(copied_run: Run, voxtile: Command) -> None:
    manifest = copied_run.read("manifest.json")
    del manifest["data"]["learned"]
    with_manifest(copied_run.home, manifest)
    few = ["training.steps=2", "training.val_every=2", f"init_from={copied_run.home}"]
    assert voxtile("train", *copied_run.words, *few).code == 0
    said = voxtile("train", *copied_run.words, *few, "split.seed=5")
    assert said.code == 3
    assert "is trained on what this one is judged by" in said.text
    manifest["data"]["split"]["train"][0]["id"] = "gone"
    with_manifest(copied_run.home, manifest)
    said = voxtile("train", *copied_run.words, *few)
    assert said.code == 3
    assert "cannot be told: the manifest.json of their run keeps no digests of images, and names gone" in said.text
    recipe = copied_run.read("recipe.json") | {"parent": "0" * 64}
    (copied_run.home / "recipe.json").write_text(json.dumps(recipe))
    said = voxtile("train", *copied_run.words, *few)
    assert said.code == 4
    assert "does not say what that one was trained on" in said.text


def discs(folder: Path, **settings: object) -> Dataset:
    return Dataset(
        "discs", "geotiff", FolderLayout(str(folder), "images/{id}.tif", "labels/{id}.tif"), {0: "ground", 1: "disc"}, **settings
    )


def file_split(folder: Path, **split: list[str]) -> FileSplit:
    path = folder / f"{'-'.join(split['train'])}.json"
    path.write_text(json.dumps(split))
    return FileSplit(str(path))


def test_what_was_learned_is_grouped_by_the_rule_of_the_run_that_starts_from_it(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")
    parent = prepare(discs(folder), file_split(tmp_path, train=["s0", "s2"], val=["s1"]), Normalisation(), tmp_path / "cache")
    pairs = {"expression": "number // 2"}  # s0 and s1 are one place
    for excluded in ([], ["s0"]):
        child = discs(folder, group=pairs, exclude=excluded)
        ready = prepare(child, file_split(tmp_path, train=["s2", "s3"], val=["s1"]), Normalisation(), tmp_path / "cache")
        with pytest.raises(DataError, match=r"'s1' \(val\) is of the same group as s0 \(the parent's training\)"):
            check_leaks(learned_from(parent), ready, [])
        assert len(check_leaks(learned_from(parent), ready, ["s1"])) == 1
        assert len(check_leaks(learned_from(parent), ready, ["s0"])) == 1
    ready = prepare(child, file_split(tmp_path, train=["s2", "s3"], val=["s4"]), Normalisation(), tmp_path / "cache")
    assert check_leaks(learned_from(parent), ready, []) == []


def test_what_was_learned_is_grouped_by_place_where_the_run_that_starts_from_it_is(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")  # a kilometre from one to the next
    parent = prepare(discs(folder), file_split(tmp_path, train=["s0", "s5"], val=["s2"]), Normalisation(), tmp_path / "cache")
    for gap, leaks in ((500, 0), (700, 1)):
        child = discs(folder, group={"place": gap}, exclude=["s0", "s3"])
        ready = prepare(child, file_split(tmp_path, train=["s4", "s5"], val=["s1"]), Normalisation(), tmp_path / "cache")
        found = check_leaks(learned_from(parent), ready, ["s1"])
        assert found == ["Leak waived by the user: 's1' (val) is of the same group as s0 (the parent's training)."] * leaks


def test_a_block_is_of_one_group_with_a_whole_case_that_was_learned(tmp_path: Path) -> None:
    data = discs(scenes(tmp_path / "scenes", count=3), group={"expression": "number // 2"})
    whole = prepare(data, file_split(tmp_path, train=["s0", "s1"], val=["s2"]), Normalisation(), tmp_path / "cache")
    child = discs(tmp_path / "scenes", group={"expression": "number // 2"}, exclude=["s1", "s2"])
    ready = prepare(child, BlockSplit([2, 2], test=0, val=0.25), Normalisation(), tmp_path / "cache")
    (learned,) = (case for case in learned_from(whole) if case.id == "s1")
    with pytest.raises(DataError, match=r"'s0#.*' \(val\) is of the same group as s1 \(the parent's training\)"):
        check_leaks([learned], ready, [])


def test_a_block_of_a_copy_of_what_was_learned_is_known(tmp_path: Path) -> None:
    data = discs(scenes(tmp_path / "scenes", count=4))
    for kind in ("images", "labels"):  # elsewhere on the ground, where its pixels were copied to
        shutil.copy(tmp_path / "scenes" / kind / "s0.tif", tmp_path / "scenes" / kind / "s3.tif")
    for kind in ("images", "labels"):
        with rasterio.open(tmp_path / "scenes" / kind / "s3.tif", "r+") as copied:
            copied.transform = copied.transform.translation(900_000, 0) @ copied.transform
    parent = prepare(data, file_split(tmp_path, train=["s0", "s1"], val=["s2"]), Normalisation(), tmp_path / "cache")
    child = discs(tmp_path / "scenes", exclude=["s0", "s1", "s2"])
    ready = prepare(child, BlockSplit([2, 2], test=0, val=0.25), Normalisation(), tmp_path / "cache")
    with pytest.raises(DataError, match=r"'s3#.*' \(val\) shares pixels of a copied file with s0 \(the parent's training\)"):
        check_leaks(learned_from(parent), ready, [])


def test_blocks_of_one_cell_on_the_ground_belong_together(tmp_path: Path) -> None:
    data = discs(scenes(tmp_path / "scenes", count=2))  # s0 from 500 to 500.36 km east, s1 from 501 km
    scheme = BlockSplit(side=2000, grid="ground", test=0, val=0.5)
    with pytest.raises(ConfigError, match="the split needs at least 2"):
        prepare(data, scheme, Normalisation(), tmp_path / "cache")
    scheme = BlockSplit(side=200, grid="ground", test=0, val=0.5)
    ready = prepare(data, scheme, Normalisation(), tmp_path / "cache")
    case = ready.split.val[0]
    other = "s1" if case.id.startswith("s0") else "s0"
    learned = Learned("discs", other + case.id[2:], (0, 0, 0, 1, 5, 5), case.group, "another image")
    with pytest.raises(DataError, match=rf"'{case.id}' \(val\) is of the same group as {learned.id} \(the parent's training\)"):
        check_leaks([learned], ready, [])


def test_what_this_data_set_does_not_hold_is_known_by_image_and_group(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")
    ready = prepare(discs(folder), file_split(tmp_path, train=["s0"], val=["s1"], test=["s2"]), Normalisation(), tmp_path / "cache")
    (own,) = learned_from(ready)
    elsewhere = replace(own, data="other", id="x", group="s1")
    assert check_leaks([elsewhere, replace(elsewhere, data="discs", group="x")], ready, []) == []
    with pytest.raises(DataError, match=r"'s2' \(test\) has the same image as x \(the parent's training\)"):
        check_leaks([replace(elsewhere, image=ready.images["s2"])], ready, [])
    with pytest.raises(DataError, match=r"'s1' \(val\) is of the same group as x \(the parent's training\)"):
        check_leaks([replace(elsewhere, data="discs")], ready, [])


def test_blocks_of_one_scene_are_compared_by_their_regions(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes", count=2)
    for path in (folder / "images").iterdir():  # four equal blocks
        with rasterio.open(path, "r+") as scene:
            scene.write(np.tile(scene.read()[:, :20, :18], (1, 2, 2)))
    quarters, thirds = (
        prepare(discs(folder), BlockSplit(blocks, test=0, val=0.25), Normalisation(), tmp_path / "cache")
        for blocks in ([2, 2], [3, 1])
    )
    learned = learned_from(quarters)
    assert set(quarters.images.values()) <= {case.image for case in learned}
    assert check_leaks(learned, quarters, []) == []
    assert check_leaks([replace(case, group="") for case in learned], quarters, []) == []  # not known as its own training
    with pytest.raises(DataError, match="shares pixels of one file with"):
        check_leaks(learned, thirds, [])
    whole = prepare(discs(folder), file_split(tmp_path, train=["s0"], val=["s1"]), Normalisation(), tmp_path / "cache")
    with pytest.raises(DataError, match=r"#.*' \(val\) shares pixels of one file with s0 \(the parent's training\)"):
        check_leaks(learned_from(whole), quarters, [])


def test_blocks_at_one_place_of_two_scenes_of_a_group_belong_together(tmp_path: Path) -> None:
    data = discs(scenes(tmp_path / "scenes", count=2), group={"expression": "number // 2"})
    ready = prepare(data, BlockSplit([2, 2], test=0, val=0.25), Normalisation(), tmp_path / "cache")
    first, second = ready.split.val
    assert (first.id[:2], second.id[:2]) == ("s0", "s1")
    learned = Learned("discs", first.id, tuple(first.region), "another rule's", "another image")
    with pytest.raises(DataError, match=rf"'{second.id}' \(val\) is of the same group as {first.id} \(the parent's training\)"):
        check_leaks([learned], ready, [])


# --- several processes


@pytest.fixture
def other():
    """A living process that is not this one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate(b"\n")


@pytest.mark.parametrize("end", ["finished", "failed"])
def test_a_parent_that_another_process_trains_is_waited_for(
    end: str, words: list[str], tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch, other: subprocess.Popen
) -> None:
    start = "init_from={training.steps: 1, training.val_every: 1}"
    assert voxtile("train", *words, "training.steps=1", "training.val_every=1").code == 0
    (home,) = homes(tmp_path / "runs")
    done = shutil.move(home, tmp_path / "done")
    held = {"host": socket.gethostname(), "pid": other.pid, "started": start_time(other.pid)}
    home.mkdir()
    shutil.copy(done / "recipe.json", home)
    for name, content in (("lease", held), ("status", {"state": "running", "step": 0})):
        (home / f"{name}.json").write_text(json.dumps(content))
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            shutil.copytree(done, home, dirs_exist_ok=True)
            if end == "failed":
                (home / "status.json").write_text(json.dumps({"state": end, "step": 0, "reason": "The cable was pulled."}))
            (home / "lease.json").unlink()

    monkeypatch.setattr(run_folder, "time", SimpleNamespace(sleep=sleep, time=time.time))
    said = voxtile("train", *words, start)
    assert len(slept) == 3
    assert said.text.count(f"waiting: the run {home} is being trained by process {other.pid} on {held['host']}") == 1
    if end == "failed":
        assert said.code == 4
        assert "failed before, at step 0, and said: The cable was pulled." in said.text
        assert homes(tmp_path / "runs") == [home]
        return
    assert said.code == 0, said.err
    assert len(homes(tmp_path / "runs")) == 2
    kept, made = (folder / "weights" / "best.safetensors" for folder in (home, done))
    assert kept.stat().st_mtime_ns == made.stat().st_mtime_ns


@pytest.mark.slow
def test_two_processes_that_start_from_one_untrained_run_train_it_once(words: list[str], tmp_path: Path) -> None:
    start = "init_from={seed: 7, training.steps: 200, training.val_every: 200, training.save_every: 200}"
    commands = [[sys.executable, ROOT / "train.py", *words, start, f"seed={seed}"] for seed in (0, 1)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    found = {home.name.split("-")[2]: home for home in homes(tmp_path / "runs")}
    assert set(found) == {"s0", "s1", "s7"}
    assert "segments" not in read(found["s7"], "manifest.json")
    for name in ("s0", "s1"):
        assert read(found[name], "manifest.json")["parent"]["run"] == str(found["s7"])
    assert sum(" ".join(out.split()).count(f"run {found['s7']} 4 training") for out, _ in said) == 1


# --- what cannot be started from


@pytest.mark.parametrize(
    ("start", "code", "message"),
    [
        ("init_from=/nowhere/run", 4, "no run folder: it does not exist. Name the folder of a run with 'init_from=<folder>'"),
        ("init_from={modle: fcn32s}", 2, "there is no 'modle'. Did you mean 'model'"),
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
    assert re.search(r"have other sizes, such as '\S+', \d+x\d+x3x3 there and \d+x\d+x3x3 here", said.text), said.text
    assert "The two differ in model.depth (2 and 1), model.width (0.0625 and 0.05): type what that run" in said.text, said.text
