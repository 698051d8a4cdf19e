"""What is exported is the network, runs where it should, and tells no more than it must."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml

from tests.commands.conftest import Command, Run, homes, opened
from tests.testers.composing import ROOT
from tests.testers.tiny import scene_words
from voxtile.commands.export import made_whole
from voxtile.errors import DataError


def exported(run: Run, target: Path, kind: str, voxtile: Command, *words: str) -> dict:
    said = voxtile("export", f"run={run.home}", f"format={kind}", f"output={target}", *words, f"paths.cache={run.folder / 'cache'}")
    assert said.code == 0, said.text
    description = json.loads((target / "export.json").read_text())
    assert f"{description['check']['windows']} validation windows" in said.text
    return description


def windows(description: dict, count: int) -> torch.Tensor:
    _, *shape = description["input"]["shape"]
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32))


def test_a_bundle_predicts_the_same_bytes_as_its_run(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    description = exported(scene_run, tmp_path / "bundle", "bundle", voxtile)
    assert description["check"]["largest_error"] == 0
    assert description["check"]["largest_logit"] > 0
    scene = next((scene_run.folder / "scenes" / "images").iterdir())
    maps = []
    for name, run in (("run", scene_run.home), ("bundle", tmp_path / "bundle")):
        said = voxtile("predict", f"run={run}", f"input={scene}", f"output={tmp_path / name}.tif")
        assert said.code == 0, said.text
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            maps.append(file.read())
    np.testing.assert_array_equal(*maps)


def test_a_bundle_adjusts_hectares_as_its_run_does(copied_run: Run, tmp_path: Path, voxtile: Command) -> None:
    exported(copied_run, tmp_path / "bundle", "bundle", voxtile)
    scene = next((copied_run.folder / "scenes" / "images").iterdir())
    where = [f"input={scene}", f"paths.runs={tmp_path}", "areas=true", "overlap=0.5"]
    said = voxtile("predict", f"run={tmp_path / 'bundle'}", f"output={tmp_path / 'early.tif'}", *where)
    assert said.code == 0
    assert "with the run that was exported, and export it again: voxtile evaluate run=… overlap=0.5" in said.text
    (copied_run.home / "evaluations" / "val-maps-nnunet").mkdir(parents=True)
    (copied_run.home / "evaluations" / "val-maps-nnunet" / "summary.json").write_text('{"confusion": [], "maps_folder": "/home"}')
    assert voxtile("evaluate", f"run={copied_run.home}", "overlap=0.5", f"paths.runs={tmp_path}").code == 0
    exported(copied_run, tmp_path / "bundle", "bundle", voxtile)
    assert exported(copied_run, tmp_path / "bundle", "bundle", voxtile)["format"] == "bundle"  # it is known as an export
    (summary,) = (tmp_path / "bundle" / "evaluations").rglob("*.json")
    assert set(json.loads(summary.read_text())) == {"confusion", "overlap", "weights_sha256"}
    for name, run in (("run", copied_run.home), ("bundle", tmp_path / "bundle")):
        said = voxtile("predict", f"run={run}", f"output={tmp_path / name / 's.tif'}", *where)
        assert (said.code, "adjusted hectares rest on evaluations/val-best-overlap0.5" in said.text) == (0, True)
    areas = [(tmp_path / name / "s_areas.csv").read_text() for name in ("run", "bundle")]
    assert areas[0] == areas[1]
    assert "adjusted_by" in areas[0]


@pytest.mark.parametrize("name", ["crf", "postprocess"])
def test_a_bundle_without_a_search_is_not_to_be_searched(scene_run: Run, tmp_path: Path, voxtile: Command, name: str) -> None:
    exported(scene_run, tmp_path / "bundle", "bundle", voxtile)
    scene = next((scene_run.folder / "scenes" / "images").iterdir())
    said = voxtile("predict", f"run={tmp_path / 'bundle'}", f"input={scene}", f"output={tmp_path / 'maps'}", f"{name}=best")
    assert said.code == 4
    assert f"Type 'voxtile evaluate run=… split=val {name}=search' with that run, and export it again" in said.text


def test_a_bundle_needs_no_code_that_was_for_the_training_only(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "code")
    (tmp_path / "code" / "lab_net.py").write_text("from voxtile.models.unet import UNet\n\nclass Own(UNet):\n    pass\n")
    training = tmp_path / "code" / "lab_training.py"
    training.write_text(
        "from voxtile.cases.layouts import FolderLayout\nfrom voxtile.data.augment import Augment\n\n"
        "from voxtile.training.losses import CrossEntropy\n\n"
        "class Scenes(FolderLayout):\n    pass\n\nclass More(Augment):\n    pass\n\nclass Own(CrossEntropy):\n    pass\n"
    )
    trust = "trust=[lab_net,lab_training]"
    own = ["model._target_=lab_net.Own", "augment._target_=lab_training.More", "data.layout._target_=lab_training.Scenes", trust]
    own += ["loss=ce", "loss._target_=lab_training.Own"]
    assert voxtile("train", *scene_run.words, *own, f"paths.runs={tmp_path / 'runs'}").code == 0
    (home,) = homes(tmp_path / "runs")
    said = voxtile("export", f"run={home}", "format=bundle", f"output={tmp_path / 'bundle'}", trust)
    assert (said.code, "'trust=[lab_net]'" in said.text) == (0, True), said.text
    training.unlink()
    monkeypatch.delitem(sys.modules, "lab_training")
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    where = ["predict", f"run={tmp_path / 'bundle'}", f"input={source}", f"output={tmp_path / 'maps'}"]
    assert voxtile(*where).code == 2  # the network is code, too
    said = voxtile(*where, "trust=[lab_net]")
    assert (said.code, "changed" in said.text) == (0, False), said.text


def leaves(value: Any) -> Iterator[str]:
    """All keys and values of nested settings, as text."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield str(value)


def test_a_bundle_names_no_case_and_no_folder(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    (tmp_path / "groups.csv").write_text("id,group\n" + "".join(f"s{n},place{n}\n" for n in range(6)))
    words = [*scene_run.words, f"paths.runs={tmp_path / 'runs'}", f"data.group={{csv: {tmp_path / 'groups.csv'}}}"]
    words += ["data.exclude=[s0]", "data.waive=[s1]", "data.sampling.by=class", "+data.sampling.class_weights.disc=2"]
    assert voxtile("train", *words, "training.steps=2", "training.val_every=2").code == 0
    (home,) = homes(tmp_path / "runs")
    run = Run(words, home, scene_run.folder, "")
    exported(run, tmp_path / "bundle", "bundle", voxtile)
    data = run.read("manifest.json")["data"]
    names = [case["id"] for side in ("train", "val", "test") for case in data["split"][side]]
    names += [case[key] for case in data["learned"] for key in ("group", "image")]
    names.append("s0")
    said = {path: set(leaves(yaml.safe_load(path.read_text()))) for path in (tmp_path / "bundle").glob("*.*")}
    assert {path.name for path in said} == {"config.yaml", "recipe.json", "manifest.json", "status.json", "export.json"}
    assert set(names) <= {*leaves(run.read("manifest.json")), *leaves(yaml.safe_load((home / "config.yaml").read_text()))}
    for path, found in said.items():
        assert not found & set(names), path
        assert not [text for text in found if str(tmp_path) in text or str(scene_run.folder) in text], path


@pytest.mark.parametrize(
    ("kind", "name"), [("torch_export", "network.pt2"), pytest.param("onnx", "network.onnx", marks=pytest.mark.slow)]
)
def test_a_file_holds_no_image_and_no_folder(scene_run: Run, tmp_path: Path, voxtile: Command, kind: str, name: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnx")
    exported(scene_run, tmp_path / "made", kind, voxtile)
    file = tmp_path / "made" / name
    for place in (ROOT, Path(torch.__file__).parent, Path.home()):
        assert str(place).encode() not in file.read_bytes()
    if kind == "torch_export":
        (image,), _ = torch.export.load(file).example_inputs
        assert not image.any()


def test_cases_smaller_than_a_window_are_filled_up(tmp_path: Path, voxtile: Command) -> None:
    words = scene_words(tmp_path, window=[48, 48])  # the scenes are smaller than that
    assert voxtile("train", *words, "training.steps=2", "training.val_every=2").code == 0
    (home,) = homes(tmp_path / "runs")
    description = exported(Run(words, home, tmp_path, ""), tmp_path / "made", "torch_export", voxtile)
    assert description["input"]["shape"][2:] == [48, 48]
    assert torch.export.load(tmp_path / "made" / "network.pt2").module()(windows(description, 2)).shape == (2, 2, 48, 48)


def test_status_passes_bundles_over(copied_run: Run, voxtile: Command) -> None:
    exported(copied_run, copied_run.home.parent / "bundle", "bundle", voxtile)
    said = voxtile("status", f"runs={copied_run.home.parent}/*")
    assert said.code == 0
    assert copied_run.home.name in said.text
    assert "1 run, best validation" in said.text
    assert f"passed over, since they are bundles: {copied_run.home.parent / 'bundle'}" in said.text
    said = voxtile("status", f"runs={copied_run.home.parent / 'bundle'}")
    assert said.code == 4
    assert "is a bundle, which is for 'voxtile predict'" in said.text


@pytest.mark.parametrize("command", ["evaluate", "verify", "reproduce", "export"])
def test_a_bundle_is_for_predicting_only(scene_run: Run, tmp_path: Path, voxtile: Command, command: str) -> None:
    exported(scene_run, tmp_path / "bundle", "bundle", voxtile)
    said = voxtile(command, f"run={tmp_path / 'bundle'}", *(["format=onnx"] if command == "export" else []))
    assert said.code == 4
    assert "is a bundle, which is for 'voxtile predict'" in said.text


@pytest.mark.parametrize("command", ["predict", "export"])
def test_weights_that_have_changed_are_refused(copied_run: Run, tmp_path: Path, voxtile: Command, command: str) -> None:
    exported(copied_run, tmp_path / "bundle", "bundle", voxtile)
    scene = next((copied_run.folder / "scenes" / "images").iterdir())
    words = [f"input={scene}", f"output={tmp_path / 'maps'}"] if command == "predict" else ["format=bundle"]
    for run in (copied_run.home, *([tmp_path / "bundle"] if command == "predict" else [])):
        file = run / "weights" / "best.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        said = voxtile(command, f"run={run}", *words)
        assert said.code == 4
        assert "best.safetensors has changed since the run was finished" in said.text


def test_nothing_in_a_bundle_is_executed(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    exported(scene_run, tmp_path / "bundle", "bundle", voxtile)
    config = tmp_path / "bundle" / "config.yaml"
    config.write_text(config.read_text().replace("voxtile.models.unet.UNet", "os.system"))
    scene = next((scene_run.folder / "scenes" / "images").iterdir())
    said = voxtile("predict", f"run={tmp_path / 'bundle'}", f"input={scene}", f"output={tmp_path / 'maps'}")
    assert said.code == 2
    assert "os.system" in said.text


def test_a_torch_program_needs_torch_alone_and_takes_any_number_of_windows(
    scene_run: Run, tmp_path: Path, voxtile: Command
) -> None:  # fmt: skip
    description = exported(scene_run, tmp_path / "made", "torch_export", voxtile)
    inside = {"voxtile.json": ""}
    forward = torch.export.load(tmp_path / "made" / "network.pt2", extra_files=inside).module()
    assert json.loads(inside["voxtile.json"]) == {key: value for key, value in description.items() if key != "check"}
    network = opened(scene_run).network.eval()
    for count in (1, 3):
        image = windows(description, count)
        with torch.no_grad():
            np.testing.assert_allclose(forward(image), network(image), rtol=1e-4, atol=1e-5)


def test_onnx_runs_in_its_own_runtime(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    description = exported(scene_run, tmp_path / "made", "onnx", voxtile, "weights=last")
    file = tmp_path / "made" / "network.onnx"
    (inside,) = [each.value for each in onnx.load(file).metadata_props if each.key == "voxtile"]
    assert json.loads(inside) == {key: value for key, value in description.items() if key != "check"}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [axes.shape[0] for axes in (*session.get_inputs(), *session.get_outputs())] == ["batch", "batch"]
    network = opened(scene_run, "last").network.eval()
    for count in (1, 3):
        image = windows(description, count)
        with torch.no_grad():
            np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], network(image), rtol=1e-4, atol=1e-4)


def test_what_is_said_is_enough_to_normalise_a_window(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    description = exported(scene_run, tmp_path / "made", "torch_export", voxtile, "windows=1")
    assert description["check"]["windows"] == 1
    forward = torch.export.load(tmp_path / "made" / "network.pt2").module()
    case = scene_run.read("manifest.json")["data"]["split"]["val"][0]["id"]
    _, channels, height, width = description["input"]["shape"]
    with rasterio.open(scene_run.folder / "scenes" / "images" / f"{case}.tif") as file:
        window, profile = file.read()[:, :height, :width], file.profile | {"height": height, "width": width}
    with rasterio.open(tmp_path / "window.tif", "w", **profile) as file:
        file.write(window)
    rows = {name: np.array(row)[:, None, None] for name, row in description["normalisation"]["values"].items() if name != "masked"}
    image = (np.clip(window.astype(np.float64), rows["low"].astype(float), rows["high"].astype(float)) - rows["mean"]) / rows["std"]
    logits = forward(torch.from_numpy(image[None].astype(np.float32)))
    assert logits.shape == (1, len(description["output"]["classes"]), height, width)
    assert channels == len(description["input"]["channels"])
    voxtile("predict", f"run={scene_run.home}", f"input={tmp_path / 'window.tif'}", f"output={tmp_path / 'map.tif'}")
    with rasterio.open(tmp_path / "map.tif") as file:
        np.testing.assert_array_equal(logits[0].argmax(0).numpy(), file.read(1))


def test_volumes_say_across_which_axis_their_slices_lie(volume_run: Run, tmp_path: Path, voxtile: Command) -> None:
    description = exported(volume_run, tmp_path / "made", "bundle", voxtile)
    assert description["input"]["slices_across"] == "z"
    assert description["input"]["orientation"].startswith("RAS+")
    assert description["normalisation"]["per"] == "case"
    assert description["normalisation"]["values"] is None


def test_an_export_that_is_another_network_is_not_kept(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voxtile.inference import exporting

    right = exporting.open_torch
    monkeypatch.setattr(exporting, "open_torch", lambda file: lambda image: right(file)(image) * 1.01)
    said = voxtile("export", f"run={scene_run.home}", "format=torch_export", f"output={tmp_path / 'made'}")
    assert said.code == 4
    assert "What was exported is not the network: a logit differs by" in said.text
    assert list(tmp_path.iterdir()) == []


def test_a_later_export_takes_the_place_of_an_earlier_one_and_of_nothing_else(
    scene_run: Run, tmp_path: Path, voxtile: Command
) -> None:  # fmt: skip
    target = tmp_path / "made"
    exported(scene_run, target, "bundle", voxtile)
    assert exported(scene_run, target, "bundle", voxtile, "weights=last")["weights"]["name"] == "last"
    assert [path.name for path in (target / "weights").iterdir()] == ["last.safetensors"]
    (target / "maps").mkdir()  # of the user's
    said = voxtile("export", f"run={scene_run.home}", "format=bundle", f"output={target}")
    assert said.code == 3
    assert "or holds more than that" in said.text
    assert (target / "maps").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "export.json").write_text("{}")
    said = voxtile("export", f"run={scene_run.home}", "format=bundle", f"output={tmp_path / 'mine'}")
    assert said.code == 3
    assert "exists and is no export of this program" in said.text


def test_an_earlier_export_stays_where_a_new_one_cannot_take_its_place(
    scene_run: Run, tmp_path: Path, voxtile: Command
) -> None:  # fmt: skip
    target = tmp_path / "made"
    exported(scene_run, target, "bundle", voxtile)
    before = sorted(path.name for path in target.iterdir())
    with pytest.raises(DataError, match="cannot be written"), made_whole(target) as making:
        making.rmdir()
    assert sorted(path.name for path in target.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_an_export_that_a_killed_command_left_comes_back_and_none_of_another_name(tmp_path: Path) -> None:
    left = [tmp_path / name for name in (".77-my-bundle-before", ".78-bundle-before", ".x-bundle-before", ".79-bundle-before")]
    for folder in left:
        folder.mkdir()
        (folder / "export.json").write_text(json.dumps(dict.fromkeys(["version", "format", "voxtile", "run"], folder.name)))
    (left[1] / "notes.txt").touch()  # no export, or one that holds more than that
    with pytest.raises(KeyError), made_whole(tmp_path / "bundle"):
        raise KeyError
    assert {path.name for path in tmp_path.iterdir()} == {*(folder.name for folder in left[:3]), "bundle"}
    assert json.loads((tmp_path / "bundle" / "export.json").read_text())["run"] == left[3].name
    (tmp_path / "bundle").rename(tmp_path / ".80-a[b]-before")
    with pytest.raises(KeyError), made_whole(tmp_path / "a[b]"):
        raise KeyError
    assert (tmp_path / "a[b]").is_dir()


def test_what_killed_exports_left_is_taken_away_and_what_others_are_making_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, gone = tmp_path / "a[b]", 2**22 + 1  # a number that no process has
    names = (f".{gone}-a[b]", f".{os.getpid()}-a[b]", f".{gone}-a[b]-before", f".{gone + 1}-a[b]", f".{os.getppid()}-a[b]")
    ours, stay = [tmp_path / name for name in names[:3]], [tmp_path / name for name in (*names[3:], f".{gone}-other")]
    for folder in (target, *ours, *stay):
        (folder / "weights").mkdir(parents=True)
        (folder / f".{gone}-1.export.json").touch()
    (target / f".{gone}-1.export.json").rename(target / "export.json")
    (target / "export.json").write_text(json.dumps(dict.fromkeys(["version", "format", "voxtile", "run"], 1)))
    (stay[0] / "notes.txt").touch()  # of the user's
    with pytest.raises(KeyError), made_whole(target):
        raise KeyError
    assert set(tmp_path.iterdir()) == {target, *ours, *stay}  # another machine may be filling them
    now = time.time()
    monkeypatch.setattr("voxtile.commands.export.time.time", lambda: now + 4000)
    with pytest.raises(KeyError), made_whole(target):
        raise KeyError
    assert set(tmp_path.iterdir()) == {target, *stay}


def test_half_an_export_takes_no_place(copied_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("export", f"run={copied_run.home}", "format=bundle", f"output={tmp_path / 'bundle'}")
    assert voxtile(*words).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "bundle").rglob("*") if path.is_file()}

    def swept(*_: object) -> dict[str, float]:
        for folder in tmp_path.glob(".*-bundle"):
            shutil.rmtree(folder)
        return {"windows": 1, "largest_error": 0.0, "largest_logit": 1.0, "other_class": 0, "pixels": 1}

    monkeypatch.setattr("voxtile.commands.export.compared", swept)
    assert voxtile(*words).code != 0
    assert {path: path.read_bytes() for path in (tmp_path / "bundle").rglob("*") if path.is_file()} == before


def test_what_cannot_be_exported_is_said(copied_run: Run, voxtile: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "with one of bundle, onnx, torch_export" in voxtile("export", f"run={copied_run.home}").text
    assert "Did you mean 'onnx'?" in voxtile("export", f"run={copied_run.home}", "format=onx").text
    assert "'windows=0' must be" in voxtile("export", f"run={copied_run.home}", "format=bundle", "windows=0").text
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        said = voxtile("export", f"run={copied_run.home}", "format=onnx")
    assert said.code == 2
    assert "pip install 'voxtile[onnx]'" in said.text
    (copied_run.home / "status.json").write_text('{"state": "failed", "step": 2}')
    assert "its weights are not those that it will end with" in voxtile("export", f"run={copied_run.home}", "format=bundle").text
