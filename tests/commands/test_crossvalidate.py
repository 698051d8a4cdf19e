"""voxtile evaluate with several runs: out of fold, and the ensemble on test cases."""

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.commands.conftest import Command, homes, with_manifest
from tests.testers.tiny import configured, volumes
from voxtile.commands.main import main
from voxtile.inference.postprocess import Postprocess

WORDS = ["model.width=0.0625", "model.depth=2", "training.steps=6", "training.val_every=3", "training.batch_size=2", "trainer=cpu"]


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight volumes, two of each patient; one patient is for test, each other one a fold. `runs` holds fold 0 to 2, `more` a second
    seed of fold 0, and fold 1 with another learning rate."""
    folder = tmp_path_factory.mktemp("folds")
    volumes(folder / "volumes", count=8)
    layout = {"_target_": "voxtile.cases.layouts.MsdLayout", "root": str(folder / "volumes")}
    words = configured(
        folder, "tubes", format="nifti", layout=layout, labels={0: "ground", 1: "disc"}, background="ground", window=[16, 16],
        symmetry={"flips": ["x"]}, group={"expression": "number // 2"},
    )  # fmt: skip
    words += ["split=kfold", "split.folds=3", "split.test=0.25", "normalise=dataset", f"paths.cache={folder / 'cache'}", *WORDS]
    jobs = [("runs", ["-m", "launch=here", "fold=0,1,2"]), ("more", ["seed=1"]), ("other", ["fold=1", "optimizer.lr=0.01"])]
    for name, more in jobs:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["voxtile", "train", *words, f"paths.runs={folder / name}", *more])
            assert main() == 0
    return folder


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def recipe(home: Path) -> dict:
    return json.loads((home / "recipe.json").read_text())


def sides(home: Path) -> dict[str, list[str]]:
    split = json.loads((home / "manifest.json").read_text())["data"]["split"]
    return {side: [case["id"] for case in split[side]] for side in ("train", "val", "test")}


def patient(name: str) -> int:
    return int(name.removeprefix("v")) // 2


def evaluated(runs: Path, name: str = "val-last") -> Path:
    (found,) = (runs / "evaluations").glob(f"*/{name}")
    return found


def test_each_case_is_scored_once_by_the_run_that_never_saw_its_patient(folds: Path, tmp_path: Path, voxtile: Command) -> None:
    said = voxtile("evaluate", f"runs={folds / 'runs'}/tubes-*", f"paths.runs={tmp_path}")
    assert said.code == 0, said.text
    folder = evaluated(tmp_path)
    assert folder.parent.name.startswith("tubes-3runs-")
    rows = table(folder / "cases.csv")
    test = sides(homes(folds / "runs")[0])["test"]
    assert sorted([*rows, *test]) == sorted(f"v{number}" for number in range(8))
    for home in homes(folds / "runs"):
        fold = str(recipe(home)["settings"]["split"]["fold"])
        own = [row for row in rows.values() if row["run"] == home.name]
        assert [row["case"] for row in own] == sides(home)["val"]
        assert {row["fold"] for row in own} == {fold}
        assert not {patient(row["case"]) for row in own} & {patient(name) for name in sides(home)["train"]}
        assert voxtile("evaluate", f"run={home}", "weights=last").code == 0
        for name, alone in table(home / "evaluations" / "val-last" / "cases.csv").items():
            assert alone == {key: value for key, value in rows[name].items() if key not in ("fold", "run")}
    summary = json.loads((folder / "summary.json").read_text())
    dice = [float(row["dice/disc"]) for row in rows.values()]
    spread = summary["spread"]["dice/disc"]
    assert (summary["weights"], summary["cases"], summary["unscored"], summary["warnings"]) == ("last", 6, [], [])
    assert summary["scores"]["dice/disc"] == spread["mean"] == pytest.approx(np.mean(dice))
    assert spread["median"] == pytest.approx(np.median(dice))
    assert (spread["low"], spread["high"]) == (None, None)
    assert [(fold["fold"], fold["cases"]) for fold in summary["folds"]] == [("0", 2), ("1", 2), ("2", 2)]
    by_fold = [np.mean([float(row["dice/disc"]) for row in rows.values() if row["fold"] == str(fold)]) for fold in range(3)]
    assert [fold["scores"]["dice/disc"] for fold in summary["folds"]] == pytest.approx(by_fold)
    assert "no intervals: they would rest on 3 groups" in said.text
    assert not (tmp_path / "test_ledger").exists()
    before = [(folder / name).read_bytes() for name in ("cases.csv", "summary.json")]
    again = ",".join(map(str, reversed(homes(folds / "runs"))))
    assert voxtile("evaluate", f"runs=[{again}]", f"paths.runs={tmp_path}").code == 0
    assert [(evaluated(tmp_path) / name).read_bytes() for name in ("cases.csv", "summary.json")] == before


@pytest.mark.slow
def test_folds_are_scored_by_several_processes_as_by_one(folds: Path, tmp_path: Path, voxtile: Command) -> None:
    for count in (1, 2):
        words = f"runs={folds / 'runs'}/tubes-*", f"paths.runs={tmp_path / str(count)}", f"devices={count}"
        said = voxtile("evaluate", *words, "surface=true", "postprocess={largest: [disc]}")
        assert said.code == 0, said.text
    for path in evaluated(tmp_path / "1", "val-last-*").iterdir():
        assert (evaluated(tmp_path / "2", "val-last-*") / path.name).read_text() == path.read_text()


def test_a_case_that_no_run_may_score_is_named_and_counted(folds: Path, tmp_path: Path, voxtile: Command) -> None:
    for home in homes(folds / "runs"):
        shutil.copytree(home, tmp_path / home.name)
    first, second, third = sorted(homes(tmp_path), key=lambda home: recipe(home)["settings"]["split"]["fold"])
    missing = sides(third)["val"]
    said = voxtile("evaluate", f"runs=[{first},{second}]", f"paths.runs={tmp_path}")
    assert (said.code, "2 cases of training and validation in no table" in said.text) == (0, True), said.text
    summary = json.loads((evaluated(tmp_path) / "summary.json").read_text())
    assert summary["unscored"] == missing
    assert sorted(table(evaluated(tmp_path) / "cases.csv")) == sorted([*sides(first)["val"], *sides(second)["val"]])
    # Another volume of a validated patient was learned by a run that this one started from.
    manifest = json.loads((first / "manifest.json").read_text())
    (group,) = {patient(name) for name in sides(first)["val"]}
    manifest["data"]["learned"].append({"data": "tubes", "id": "v99", "region": None, "group": str(group), "image": ""})
    with_manifest(first, manifest)
    assert voxtile("evaluate", f"runs={tmp_path}/tubes-*", f"paths.runs={tmp_path}").code == 0
    summary = json.loads(next((tmp_path / "evaluations").glob("tubes-3runs-*/val-last/summary.json")).read_text())
    assert summary["unscored"] == sides(first)["val"]
    assert summary["cases"] == 4


def test_several_seeds_of_a_fold_score_by_their_mean(folds: Path, tmp_path: Path, voxtile: Command) -> None:
    (more,) = homes(folds / "more")
    (first,) = [home for home in homes(folds / "runs") if recipe(home)["settings"]["split"]["fold"] == 0]
    rest = [home for home in homes(folds / "runs") if home != first]
    said = voxtile("evaluate", f"runs=[{more},{first},{rest[0]},{rest[1]}]", f"paths.runs={tmp_path}")
    assert (said.code, "different numbers of runs (fold 0: 2, fold 1: 1, fold 2: 1)" in said.text) == (0, True), said.text
    rows = table(evaluated(tmp_path) / "cases.csv")
    for name in sides(first)["val"]:
        assert rows[name]["run"] == f"{first.name}+{more.name}"
        source = folds / "volumes" / "imagesTr" / f"{name}.nii.gz"
        words = [
            f"runs=[{first},{more}]",
            "weights=last",
            f"input={source}",
            f"output={tmp_path / 'maps'}",
            f"paths.runs={tmp_path}",
        ]
        assert voxtile("predict", *words).code == 0
        label, found = (
            np.asarray(nibabel.load(path).dataobj) == 1
            for path in (folds / "volumes" / "labelsTr" / f"{name}.nii.gz", tmp_path / "maps" / f"{name}.nii.gz")
        )
        assert float(rows[name]["dice/disc"]) == pytest.approx(2 * (label & found).sum() / (label.sum() + found.sum()))


def test_what_was_chosen_on_the_scored_fold_is_refused_or_said(folds: Path, tmp_path: Path, voxtile: Command) -> None:
    where = [f"runs={folds / 'runs'}/tubes-*", f"paths.runs={tmp_path}"]
    for word, found in (
        ("crf=best", "'crf=best' is chosen on validation cases"),
        ("crf=search", "'crf=search' is chosen on validation cases"),
        ("postprocess=best", "Type 'postprocess=search'"),
    ):
        said = voxtile("evaluate", *where, word)
        assert (said.code, found in said.text) == (2, True), said.text
    assert not (tmp_path / "evaluations").exists()
    said = voxtile("evaluate", *where, "weights=best")
    assert (said.code, "these scores are optimistic" in said.text) == (0, True), said.text
    summary = json.loads((evaluated(tmp_path, "val-best") / "summary.json").read_text())
    assert "the best weights of each run were chosen on the fold that is scored here" in summary["warnings"][0]


def test_a_length_that_was_chosen_on_the_scored_fold_is_said(folds: Path, tmp_path: Path, voxtile: Command) -> None:
    for home in homes(folds / "runs"):
        shutil.copytree(home, tmp_path / home.name)
        held = recipe(home)
        held["settings"]["training.patience"] = 3
        (tmp_path / home.name / "recipe.json").write_text(json.dumps(held))
    said = voxtile("evaluate", f"runs={tmp_path}/tubes-*", f"paths.runs={tmp_path}")
    assert (said.code, "the runs stopped by 'training.patience'" in said.text) == (0, True), said.text


def test_a_start_that_was_chosen_on_validation_cases_is_said(folds: Path, tmp_path: Path, voxtile: Command) -> None:
    for home in homes(folds / "runs"):
        shutil.copytree(home, tmp_path / home.name)
        (tmp_path / home.name / "recipe.json").write_text(json.dumps(recipe(home) | {"parent": "0" * 64}))
    said = voxtile("evaluate", f"runs={tmp_path}/tubes-*", f"paths.runs={tmp_path}")
    assert (said.code, "started from the best weights of others ('init_from')" in said.text) == (0, True), said.text
    (first, *_), (_, second, _) = homes(folds / "runs"), homes(tmp_path)
    said = voxtile("evaluate", f"runs=[{first},{second}]", f"paths.runs={tmp_path}")
    assert (said.code, "differ in init_from (nothing and a run)" in said.text) == (4, True), said.text


def test_runs_of_other_recipes_or_data_are_refused(folds: Path, tmp_path: Path, voxtile: Command) -> None:
    (other,) = homes(folds / "other")
    first, second, _ = homes(folds / "runs")
    said = voxtile("evaluate", f"runs=[{first},{other}]", f"paths.runs={tmp_path}")
    assert (said.code, "differ in optimizer.lr (" in said.text) == (4, True), said.text
    changed = tmp_path / "changed"
    shutil.copytree(second, changed)
    held = recipe(second)
    held["settings"]["split"]["seed"] = 5
    (changed / "recipe.json").write_text(json.dumps(held))
    said = voxtile("evaluate", f"runs=[{first},{changed}]", f"paths.runs={tmp_path}")
    assert (said.code, "differ in split.seed (0 and 5)" in said.text) == (4, True), said.text
    assert not (tmp_path / "evaluations").exists()


def test_what_was_found_for_runs_in_several_folders_is_found_again_in_whatever_order(
    folds: Path, tmp_path: Path, voxtile: Command
) -> None:
    places = [tmp_path / str(number) / home.name for number, home in enumerate(homes(folds / "runs"))]
    for place in places:
        shutil.copytree(folds / "runs" / place.name, place)
    said = voxtile("evaluate", f"runs=[{','.join(map(str, places))}]", "postprocess=search")
    assert said.code == 0, said.text
    source = folds / "volumes" / "imagesTr" / "v1.nii.gz"
    for number in range(3):
        runs = f"runs=[{','.join(map(str, places[number:] + places[:number]))}]"
        words = [runs, f"input={source}", f"output={tmp_path / f'maps{number}'}", "postprocess=best", "weights=last"]
        said = voxtile("predict", *words)
        assert said.code == 0, said.text


def test_the_ensemble_on_test_cases_is_one_look(folds: Path, tmp_path: Path, voxtile: Command) -> None:
    where = [f"runs={folds / 'runs'}/tubes-*", f"paths.runs={tmp_path}"]
    said = voxtile("evaluate", *where, "split=test")
    assert (said.code, "look number 1 at this test split" in said.text) == (0, True), said.text
    (ledger,) = (tmp_path / "test_ledger").iterdir()
    (look,) = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert sorted(look["run"].split("+")) == sorted(recipe(home)["identity"] for home in homes(folds / "runs"))
    rows = table(evaluated(tmp_path, "test-last") / "cases.csv")
    assert list(rows) == sides(homes(folds / "runs")[0])["test"]
    for name, row in rows.items():
        source = folds / "volumes" / "imagesTr" / f"{name}.nii.gz"
        assert voxtile("predict", *where, "weights=last", f"input={source}", f"output={tmp_path / 'maps'}").code == 0
        found = np.asarray(nibabel.load(tmp_path / "maps" / f"{name}.nii.gz").dataobj)
        assert int(row["predicted_pixels/disc"]) == (found == 1).sum()


def test_post_processing_that_makes_the_mean_worse_is_in_no_fold(
    folds: Path, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = [f"runs={folds / 'runs'}/tubes-*", f"paths.runs={tmp_path}"]
    assert voxtile("evaluate", *where).code == 0
    nothing = Postprocess(0, smallest={1: 1e9})  # of which no map keeps anything
    monkeypatch.setattr("voxtile.inference.postprocess_search.Search.choose", lambda self, cases: (nothing, []))
    said = voxtile("evaluate", *where, "postprocess=search")
    assert (said.code, "nothing helps, which is what is kept" in said.text) == (0, True), said.text
    folder = next((tmp_path / "evaluations").glob("*/val-last-postprocess*"))
    chosen = json.loads((folder / "summary.json").read_text())["procedure"]["postprocess"]["chosen by the other folds"]
    assert chosen == {"0": None, "1": None, "2": None}
    assert table(folder / "cases.csv") == table(folder.parent / "val-last" / "cases.csv")


def test_post_processing_is_chosen_by_the_other_folds_and_kept_for_predict(folds: Path, tmp_path: Path, voxtile: Command) -> None:
    where = [f"runs={folds / 'runs'}/tubes-*", f"paths.runs={tmp_path}"]
    source = folds / "volumes" / "imagesTr" / "v1.nii.gz"
    early = voxtile("predict", *where, f"input={source}", f"output={tmp_path / 'maps'}", "postprocess=best")
    assert (early.code, "holds no postprocess.json" in early.text) == (4, True), early.text
    said = voxtile("evaluate", *where, "postprocess=search")
    assert (said.code, "with what was chosen for each fold by the other folds" in said.text) == (0, True), said.text
    folder = next((tmp_path / "evaluations").glob("*/val-last-postprocess*"))
    kept = json.loads((folder.parent / "postprocess.json").read_text())
    assert kept["searched_with"]["weights"] == "last"
    assert {trial["class"] for trial in kept["tried"]} == {"disc"}
    nested = json.loads((folder / "summary.json").read_text())["procedure"]["postprocess"]["chosen by the other folds"]
    assert sorted(nested) == ["0", "1", "2"]
    by_hand = {"largest": ["disc"], "smallest": {}, "holes": []}
    (folder.parent / "postprocess.json").write_text(json.dumps(kept | {"settings": by_hand}))
    words = [*where, f"input={source}", f"output={tmp_path / 'maps'}", "postprocess=best"]
    unlike = voxtile("predict", *words)
    assert (unlike.code, "made with weights=last, and these are made with weights=best" in unlike.text) == (4, True), unlike.text
    assert voxtile("predict", *words, "weights=last").code == 0
    other = tmp_path / "other"
    plain = [*where, f"input={source}", f"output={other}", "weights=last"]
    assert voxtile("predict", *plain, "postprocess={largest: [disc]}").code == 0
    assert (tmp_path / "maps" / "v1.nii.gz").read_bytes() == (other / "v1.nii.gz").read_bytes()
    refused = voxtile("predict", *plain)
    assert (refused.code, "with other settings" in refused.text) == (3, True), refused.text


def test_runs_on_slices_and_on_boxes_are_told_apart_before_data_are_read(folds: Path, tmp_path: Path, voxtile: Command) -> None:
    words = ["--config-dir", str(folds / "conf"), "data=tubes", "split=kfold", "split.folds=3", "split.test=0.25", *WORDS]
    more = ["normalise=dataset", "model.dims=3", "data.window=[4,16,16]", "model.depth=1", f"paths.runs={tmp_path}"]
    assert voxtile("train", *words, *more, f"paths.cache={folds / 'cache'}", "training.steps=1", "training.val_every=1").code == 0
    said = voxtile("evaluate", f"runs=[{homes(folds / 'runs')[0]},{homes(tmp_path)[0]}]")
    assert said.code == 4
    assert "they differ in data.window ([16, 16] and [4, 16, 16]), model.depth (2 and 1), model.dims (2 and 3)" in said.text
