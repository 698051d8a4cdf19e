"""voxtile evaluate: whole cases, every pixel once, looks at the test split counted."""

import csv
import hashlib
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from safetensors.torch import load_file, save_file
from scipy import ndimage

from tests.commands.conftest import Command, Run, homes, trained
from tests.testers.tiny import scene_words, volume_words
from voxtile.commands.main import main
from voxtile.commands.measures import as_typed
from voxtile.scores.surfaces import surface_scores

CLASSES = ("ground", "disc")


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def counts(label: np.ndarray, prediction: np.ndarray) -> dict[str, tuple[int, int, int]]:
    """(hits, false alarms, misses) per class, counted pixel by pixel."""
    return {
        name: (
            int(((label == c) & (prediction == c)).sum()),
            int(((label != c) & (prediction == c)).sum()),
            int(((label == c) & (prediction != c)).sum()),
        )
        for c, name in enumerate(CLASSES)
    }


def dice(hits: int, false: int, missed: int) -> float:
    return 2 * hits / (2 * hits + false + missed) if hits + false + missed else math.nan


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on twelve scenes, of which five hold no disc."""
    folder = tmp_path_factory.mktemp("mixed_run")
    words = scene_words(folder)
    shutil.rmtree(folder / "scenes")
    from tests.testers.tiny import scenes

    scenes(folder / "scenes", count=12)
    for number in range(5):
        with rasterio.open(folder / "scenes" / "labels" / f"s{number}.tif", "r+") as label:
            label.write(np.zeros_like(label.read(1)), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["voxtile", "train", *words, "split.val=0.5", "training.steps=12", "optimizer.lr=0.01"])
        assert main() == 0
    (home,) = homes(folder / "runs")
    return Run(words, home, folder, "")


@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_equal_those_counted_on_the_maps_that_predict_writes(
    mixed_run: Run, tmp_path: Path, voxtile: Command, split: str
) -> None:
    where = [f"run={mixed_run.home}", "overlap=0.5", f"paths.runs={tmp_path}"]
    assert voxtile("evaluate", *where, f"split={split}").code == 0
    assert voxtile("predict", *where, f"input={mixed_run.folder / 'scenes' / 'images'}", f"output={tmp_path / 'maps'}").code == 0
    names = [case["id"] for case in mixed_run.read("manifest.json")["data"]["split"][split]]
    found = {
        name: counts(pixels(mixed_run.folder / "scenes" / "labels" / f"{name}.tif"), pixels(tmp_path / "maps" / f"{name}.tif"))
        for name in names
    }
    folder = mixed_run.home / "evaluations" / f"{split}-best-overlap0.5"  # the plain procedure's stays what it is
    with (folder / "cases.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert list(rows) == names
    for name, row in rows.items():
        for kind in CLASSES:
            hits, false, missed = found[name][kind]
            assert float(row[f"dice/{kind}"] or "nan") == pytest.approx(dice(hits, false, missed), nan_ok=True)
            assert int(row[f"label_pixels/{kind}"]) == hits + missed
            assert int(row[f"predicted_pixels/{kind}"]) == hits + false
    summary = json.loads((folder / "summary.json").read_text())
    scores = summary["scores"]
    for kind in CLASSES:
        each = [found[name][kind] for name in names]
        hits, false, missed = (sum(column) for column in zip(*each, strict=True))
        defined = [dice(*triple) for triple in each if sum(triple)]
        assert scores[f"iou/{kind}"] == pytest.approx(hits / (hits + false + missed))
        assert scores[f"pooled_dice/{kind}"] == pytest.approx(dice(hits, false, missed))
        assert scores[f"dice/{kind}"] == pytest.approx(np.mean(defined))
        assert scores[f"missed/{kind}"] == sum(h + m > 0 and h + f == 0 for h, f, m in each)
        assert scores[f"false_alarm/{kind}"] == sum(h + m == 0 and f > 0 for h, f, m in each)
        assert scores[f"undefined/{kind}"] == sum(h + f + m == 0 for h, f, m in each)
    assert np.sum(summary["confusion"]) == 40 * 36 * len(names)
    assert summary["run"] == mixed_run.read("recipe.json")["identity"]


def test_missed_and_absent_structures_are_counted(mixed_run: Run, voxtile: Command) -> None:
    assert voxtile("evaluate", f"run={mixed_run.home}").code == 0
    scores = json.loads((mixed_run.home / "evaluations" / "val-best" / "summary.json").read_text())["scores"]
    blank = {f"s{number}" for number in range(5)}
    absent = sum(case["id"] in blank for case in mixed_run.read("manifest.json")["data"]["split"]["val"])
    assert absent >= 1
    assert scores["false_alarm/disc"] + scores["undefined/disc"] == absent


def test_the_last_weights_have_scores_of_their_own(scene_run: Run, voxtile: Command, tmp_path: Path) -> None:
    said = voxtile("evaluate", f"run={scene_run.home}", "weights=last")
    assert said.code == 0
    assert "1 whole case, last weights" in said.text
    assert str(scene_run.home / "evaluations" / "val-last" / "cases.csv") in said.text


def test_measures_that_an_evaluation_takes_away_are_named(copied_run: Run, voxtile: Command) -> None:
    assert voxtile("evaluate", f"run={copied_run.home}", "objects=true").code == 0
    said = voxtile("evaluate", f"run={copied_run.home}")
    assert "also held objects, and this one has taken its place: type objects=true, too," in said.text
    before, after = said.text.split("1 whole case, best weights")
    assert "also holds objects, and this one will take its place: type objects=true, too," in before
    assert "taken its place" in after
    assert "no intervals: they would rest on 1 group, and fewer than 5 say nothing of how far" in said.text
    assert re.search("│ +– +│", said.out)
    assert "taken its place" not in voxtile("evaluate", f"run={copied_run.home}").text


@pytest.mark.parametrize("word", ["surface=10.123456789", "lesions={least: 200, overlap: 0.1, connectivity: 4}", "objects=0.25"])
def test_what_is_to_be_typed_for_measures_that_were_taken_away_measures_the_same(
    copied_run: Run, voxtile: Command, word: str
) -> None:
    folder = copied_run.home / "evaluations" / "val-best"
    assert voxtile("evaluate", f"run={copied_run.home}", word).code == 0
    before = (folder / "summary.json").read_text()
    said = voxtile("evaluate", f"run={copied_run.home}")
    assert "val-best/summary.json the earlier evaluation in" in said.text  # below the table, where it is seen
    (typed,) = shlex.split(said.text.partition("taken its place: type ")[2].partition(", too,")[0])
    assert voxtile("evaluate", f"run={copied_run.home}", typed).code == 0
    assert (folder / "summary.json").read_text() == before


def test_tolerances_of_classes_with_odd_names_can_be_typed() -> None:
    tolerances = {"a, b": 1.0, "c (d)": 0.123456789}
    (typed,) = shlex.split(as_typed("surface", {"tolerance": tolerances}))
    assert OverridesParser.create().parse_override(typed).value() == tolerances


def test_an_unfinished_run_is_said_to_be_one_and_spends_no_look_at_test_cases(
    copied_run: Run, tmp_path: Path, voxtile: Command
) -> None:
    status, best = copied_run.home / "status.json", copied_run.home / "weights" / "best.safetensors"
    folder = copied_run.home / "evaluations" / "val-best"
    finished, final = status.read_text(), best.read_bytes()
    save_file({name: value * 2 for name, value in load_file(best).items()}, best, metadata={"step": "3"})
    status.write_text(json.dumps({"state": "running", "step": 3, "steps": 6, "best": json.loads(finished)["best"]}))  # killed
    common = [f"run={copied_run.home}", f"paths.runs={tmp_path / 'elsewhere'}"]
    said = voxtile("evaluate", *common, "split=test")
    assert said.code == 4
    assert f"{copied_run.home} is interrupted, at step 3: test cases are looked at with the weights" in said.text
    assert "the command that began it (voxtile train --config-dir" in said.text
    assert not (tmp_path / "elsewhere").exists()
    image = copied_run.folder / "scenes" / "images" / f"{copied_run.read('manifest.json')['data']['split']['val'][0]['id']}.tif"
    predicting = ["predict", *common, f"input={image}", "areas=true"]
    for words in (["evaluate", *common], [*predicting, f"output={tmp_path / 'early'}"]):
        said = voxtile(*words)
        assert said.code == 0, said.text
        assert f"{copied_run.home} is interrupted and stands at step 3 of 6: its weights may still change" in said.text
    assert "adjusted hectares rest on evaluations/val-best" in said.text
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["weights_step"], summary["weights_sha256"]) == (3, hashlib.sha256(best.read_bytes()).hexdigest())

    best.write_bytes(final)
    status.write_text(finished)
    assert "there is no evaluation with these runs, weights" in voxtile(*predicting, f"output={tmp_path / 'late'}").text
    said = voxtile("verify", *common)
    assert said.code == 4
    assert "evaluations: of other weights than the run has now, so evaluate again: val-best (of step 3)" in said.text
    said = voxtile("evaluate", *common)
    step = json.loads(finished)["best"]["step"]
    assert f"was of other weights (of steps 3 and {step}), and this one has taken its place" in said.text
    assert "may still change" not in said.text
    said = voxtile("verify", *common)
    assert (said.code, "evaluations" in said.text) == (0, False), said.text


def test_each_look_at_test_is_recorded(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    data = scene_run.read("manifest.json")["data"]
    common = [f"run={scene_run.home}", f"paths.runs={tmp_path / 'runs'}"]
    ledger = tmp_path / "runs" / "test_ledger" / f"{data['test_fingerprint']}.jsonl"
    images = scene_run.folder / "scenes" / "images"
    (case,) = data["split"]["test"]
    (other,) = data["split"]["val"]
    assert voxtile("evaluate", *common).code == 0
    assert voxtile("predict", *common, f"input={images / other['id']}.tif", f"output={tmp_path / 'a'}").code == 0
    assert not ledger.exists()
    assert "look number 1 at this test split" in voxtile("evaluate", *common, "split=test").text
    assert voxtile("predict", *common, f"input={images / case['id']}.tif", f"output={tmp_path / 'b'}").code == 0
    assert "look number 3 at this test split" in voxtile("evaluate", *common, "split=test").text
    looks = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [look["what"] for look in looks] == ["evaluate", "predict", "evaluate"]
    assert {look["run"] for look in looks} == {scene_run.read("recipe.json")["identity"]}


def test_scores_that_could_not_be_kept_use_up_no_look(copied_run: Run, voxtile: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copied_run.home / "evaluations", ignore_errors=True)
    closed = copied_run.home.parent  # which nothing is written to
    monkeypatch.setattr("voxtile.commands.evaluation.os.access", lambda place, _: place != closed)  # root may write anywhere
    assert voxtile("evaluate", f"run={copied_run.home}", "split=val").code == 0
    shutil.rmtree(copied_run.home / "evaluations")
    closed = copied_run.home
    said = voxtile("evaluate", f"run={copied_run.home}", "split=test")
    assert said.code == 4
    assert f"Scores are kept in {copied_run.home}, which may not be written to." in said.text
    assert not (copied_run.home.parent / "test_ledger").exists()


def test_a_test_label_that_cannot_be_read_uses_up_no_look(tmp_path: Path, voxtile: Command) -> None:
    run = trained(tmp_path, scene_words(tmp_path))
    (case,) = run.read("manifest.json")["data"]["split"]["test"]
    path = tmp_path / "scenes" / "labels" / f"{case['id']}.tif"
    kept = path.read_bytes()
    with rasterio.open(path, "r+") as label:
        label.write(np.full((1, label.height, label.width), 9, np.uint8))
    common = [f"run={run.home}", f"paths.runs={tmp_path / 'runs'}", "split=test"]
    said = voxtile("evaluate", *common)
    assert (said.code, "holds 9 as label value" in said.err, "look number" in said.text) == (3, True, False), said.text
    assert not (tmp_path / "runs" / "test_ledger").exists()
    path.write_bytes(kept)
    assert "look number 1 at this test split" in voxtile("evaluate", *common).text


def test_a_moved_run_works_from_any_folder_and_keeps_its_ledger_beside_it(
    copied_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VOXTILE_RUNS")
    elsewhere = tmp_path / "a b"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert voxtile("evaluate", f"run=../runs/{copied_run.home.name}", "split=test").code == 0
    assert (copied_run.home / "evaluations" / "test-best" / "summary.json").exists()
    assert list((copied_run.home.parent / "test_ledger").iterdir())
    assert list(elsewhere.iterdir()) == []
    (elsewhere / "link").symlink_to(copied_run.home)
    assert "look number 2" in voxtile("evaluate", "run=link", "split=test").text
    monkeypatch.chdir(copied_run.home)
    assert "look number 3" in voxtile("evaluate", "run=.", "split=test").text
    assert not (copied_run.home / "test_ledger").exists()


def test_moved_data_are_found_with_root(copied_run: Run, tmp_path: Path, voxtile: Command) -> None:
    shutil.copytree(copied_run.folder / "scenes", tmp_path / "moved")
    assert voxtile("evaluate", f"run={copied_run.home}", f"root={tmp_path / 'moved'}").code == 0
    said = voxtile("evaluate", f"run={copied_run.home}", f"root={tmp_path / 'gone'}")
    assert said.code == 3
    assert f"The folder 'root={tmp_path / 'gone'}' does not exist" in said.text
    assert not (tmp_path / "gone").exists()  # where made-up data could be made


@pytest.mark.parametrize(("side", "kind"), [("val", "labels"), ("train", "images"), ("test", "images")])
def test_data_changed_after_training_are_refused(copied_run: Run, tmp_path: Path, voxtile: Command, side: str, kind: str) -> None:
    shutil.copytree(copied_run.folder / "scenes", tmp_path / "moved")
    (case, *_) = copied_run.read("manifest.json")["data"]["split"][side]
    with rasterio.open(tmp_path / "moved" / kind / f"{case['id']}.tif", "r+") as file:
        file.write(1 - file.read(1), 1)
    said = voxtile(
        "evaluate", f"run={copied_run.home}", f"root={tmp_path / 'moved'}", f"split={'test' if side == 'test' else 'val'}"
    )
    assert said.code == 3
    assert "are not what the run" in said.text
    assert not (copied_run.home / "evaluations").exists()


def test_training_and_validating_leave_the_labels_of_test_closed(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    words = scene_words(tmp_path)
    (case,) = scene_run.read("manifest.json")["data"]["split"]["test"]
    label = tmp_path / "scenes" / "labels" / f"{case['id']}.tif"
    with rasterio.open(label, "r+") as file:
        file.write(np.full((40, 36), 77, dtype=np.uint8), 1)  # whoever reads it stops
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    assert home.name == scene_run.home.name
    assert voxtile("evaluate", f"run={home}").code == 0
    said = voxtile("evaluate", f"run={home}", "split=test", f"paths.runs={tmp_path}")
    assert said.code == 3
    assert f"{label} holds 77 as label value" in said.text
    assert not (home / "evaluations" / "test-best").exists()


WRONG = {
    "split=tset": (2, "'split=tset' cannot be evaluated; choose val or test"),
    "model.width=8": (2, "no key 'model.width'. All keys: voxtile evaluate --cfg job"),
    "overlap=1": (2, "'overlap=1' is the share"),
    "overlap=much": (2, "'overlap=much' is the share"),
    "batch_size=0": (2, "'batch_size=0' must be a whole number from 1 up"),
    "workers=-1": (2, "'workers=-1' must be a whole number from 0 up"),
    "precision=float32": (2, "'precision=float32' is unknown. Choose from 32-true"),
    "device=gpu": (2, "Type 'device=cuda' for a GPU"),
    "weights=bset": (4, "holds no weights 'bset'. It has best, last. Did you mean 'best'?"),
    "ovrelap=0": (2, "no key 'ovrelap'. Did you mean 'overlap'?"),
}


@pytest.mark.parametrize(("word", "expected"), WRONG.items())
def test_a_wrong_setting_is_named(scene_run: Run, voxtile: Command, word: str, expected: tuple[int, str]) -> None:
    said = voxtile("evaluate", f"run={scene_run.home}", word)
    assert said.code == expected[0]
    assert expected[1] in said.text


def test_a_run_that_is_not_there_is_named_with_those_that_are(scene_run: Run, voxtile: Command) -> None:
    said = voxtile("evaluate", f"run={scene_run.home}x")
    assert said.code == 4
    assert f"{scene_run.home}x is no run folder" in said.text
    assert scene_run.home.name in said.text


def volume(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """A map as it lies in its file, and the size of its voxels in mm."""
    file = nibabel.load(path)
    return np.asarray(file.dataobj), tuple(map(float, file.header.get_zooms()))


@pytest.fixture(scope="module")
def learned_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on volumes that finds something."""
    folder = tmp_path_factory.mktemp("learned_run")
    words = volume_words(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["voxtile", "train", *words, "training.steps=40", "training.val_every=20", "optimizer.lr=0.01"])
        assert main() == 0
    (home,) = homes(folder / "runs")
    return Run(words, home, folder, "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_surfaces_lesions_and_volumes_are_those_of_the_maps_that_predict_writes(
    learned_run: Run, tmp_path: Path, voxtile: Command
) -> None:
    where = [f"run={learned_run.home}", f"paths.runs={tmp_path}"]
    folder = learned_run.home / "evaluations" / "val-best"
    assert voxtile("evaluate", *where).code == 0
    plain = json.loads((folder / "summary.json").read_text())
    said = voxtile("evaluate", *where, "surface={disc: 1.5}", "lesions={least: 20, overlap: 0.1}")
    assert said.code == 0
    assert all(word in said.text for word in ("HD95 (mm)", "lesions, shares are means", "volume, means over cases"))
    summary = json.loads((folder / "summary.json").read_text())
    scores = summary["scores"]
    assert {name: scores[name] for name in plain["scores"]} == plain["scores"]
    with (folder / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        name = row["case"]
        data = learned_run.folder / "volumes"
        voxtile("predict", *where, f"input={data / 'imagesTr' / name}.nii.gz", f"output={tmp_path / 'maps'}")
        label, sizes = volume(data / "labelsTr" / f"{name}.nii.gz")
        found, _ = volume(tmp_path / "maps" / f"{name}.nii.gz")
        assert (found == 1).any()
        one = [torch.from_numpy(array == 1)[None, None] for array in (found, label)]
        for kind, theirs in (
            ("hd95", compute_hausdorff_distance(*one, include_background=True, percentile=95, spacing=sizes)),
            ("nsd", compute_surface_dice(*one, [1.5], include_background=True, spacing=sizes)),
        ):
            assert float(row[f"{kind}/disc"]) == pytest.approx(float(theirs), rel=1e-5)
        assert float(row["label_ml/disc"]) == pytest.approx((label == 1).sum() * 1.5 * 1.5 * 3 / 1000)
        assert float(row["volume_error_ml/disc"]) == pytest.approx(((found == 1).sum() - (label == 1).sum()) * 6.75 / 1000)
        assert int(row["label_lesions/disc"]) == ndimage.label(label == 1, np.ones((3, 3, 3)))[1]
    assert scores["hd95/disc"] == pytest.approx(np.mean([float(row["hd95/disc"]) for row in rows]))
    assert summary["surface"]["tolerance"] == {"disc": 1.5}
    assert (summary["surface"]["unit"], summary["surface"]["percentile"]) == ("mm", 95)
    assert summary["lesions"] == {"least": 20, "unit": "mm3", "overlap": 0.1, "connectivity": 26}


def test_a_scene_has_surfaces_in_metres_and_lesions_in_squares_of_them(copied_run: Run, tmp_path: Path, voxtile: Command) -> None:
    where = [f"run={copied_run.home}", f"paths.runs={tmp_path}"]
    said = voxtile("evaluate", *where, "surface=true")
    assert said.code == 2
    assert "'surface=true' means a tolerance of 1 mm, and distances in these data are in m" in said.text
    assert not (copied_run.home / "evaluations").exists()
    assert voxtile("evaluate", *where, "surface={tolerance: 10}", "lesions=true").code == 0
    summary = json.loads((copied_run.home / "evaluations" / "val-best" / "summary.json").read_text())
    assert (summary["surface"]["tolerance"], summary["surface"]["unit"]) == ({"disc": 10}, "m")
    assert summary["lesions"] == {"least": 0, "unit": "m2", "overlap": 0, "connectivity": 8}
    (case,) = copied_run.read("manifest.json")["data"]["split"]["val"]
    images = copied_run.folder / "scenes"
    voxtile("predict", *where, f"input={images / 'images' / case['id']}.tif", f"output={tmp_path / 'maps'}")
    label, found = (pixels(at / f"{case['id']}.tif")[None] for at in (images / "labels", tmp_path / "maps"))
    in_pixels = surface_scores(label, found, 1, (1.0, 1.0, 1.0), 1.0)
    assert summary["scores"]["hd95/disc"] == pytest.approx(10 * in_pixels.hd95)
    assert summary["scores"]["nsd/disc"] == pytest.approx(in_pixels.nsd)
    assert "volume_error_ml/disc" not in summary["scores"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("surface=-1", "'surface=-1' must be true, false, a tolerance in mm from 0 up"),
        ("surface={disk: 1}", "one for each foreground class or region, by name: disc"),
        ("surface=wide", "'surface=wide' must be"),
        ("lesions=5", "'lesions=5' is no such setting"),
        ("lesions={lest: 5}", "takes no 'lest'. Did you mean 'least'? It takes least, overlap, connectivity."),
        ("lesions={overlap: 2}", "'overlap' a share from 0 to 1"),
        ("lesions={connectivity: 18}", "'connectivity' 26 or 6"),
    ],
)
def test_a_wrong_setting_of_surfaces_or_lesions_is_named(scene_run: Run, voxtile: Command, word: str, expected: str) -> None:
    said = voxtile("evaluate", f"run={scene_run.home}", word)
    assert said.code == 2
    assert expected in said.text
