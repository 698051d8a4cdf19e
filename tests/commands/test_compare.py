"""voxtile compare: the table against evaluations' own files, and what cannot be compared."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import Command, homes
from tests.testers.tiny import scene_words, scenes
from voxtile.commands.main import main
from voxtile.commands.words import list_word


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two runs: the second is a copy of the first that is evaluated with mirrors."""
    folder = tmp_path_factory.mktemp("compared")
    words = scene_words(folder)
    shutil.rmtree(folder / "scenes")
    scenes(folder / "scenes", count=10)
    with pytest.MonkeyPatch.context() as patch:

        def voxtile(*words: str) -> None:
            patch.setattr("sys.argv", ["voxtile", *words])
            assert main() == 0

        voxtile("train", *words, "split.val=0.5", "training.steps=12", "optimizer.lr=0.01")
        (home,) = homes(folder / "runs")
        home = home.rename(folder / "runs" / "plain")
        shutil.copytree(home, folder / "runs" / "mirrored")
        voxtile("evaluate", f"run={home}")
        voxtile("evaluate", f"run={folder / 'runs' / 'mirrored'}", "mirrors=[y,x]")
    return folder / "runs"


@pytest.fixture
def pair(runs: Path) -> tuple[Path, Path]:
    """The folders of two evaluations."""
    first, other = (next((runs / name / "evaluations").iterdir()) for name in ("plain", "mirrored"))
    return first, other


def cases(folder: Path) -> list[dict[str, str]]:
    with (folder / "cases.csv").open() as file:
        return list(csv.DictReader(file))


def test_an_evaluation_of_five_groups_shows_intervals(runs: Path, pair: tuple[Path, Path], voxtile: Command) -> None:
    said = voxtile("evaluate", f"run={runs / 'plain'}")
    spread = json.loads((pair[0] / "summary.json").read_text())["spread"]["dice/disc"]
    assert spread["low"] <= spread["mean"] <= spread["high"]
    assert f"{spread['low']:.4f} to {spread['high']:.4f}" in said.text
    assert "intervals rest on 5 groups: so few say little" in said.text


def test_the_table_holds_the_differences_of_the_cases(pair: tuple[Path, Path], tmp_path: Path, voxtile: Command) -> None:
    first, other = pair
    said = voxtile("compare", f"evaluations=[{first},{other}]", f"output={tmp_path / 'table.csv'}")
    assert said.code == 0
    with (tmp_path / "table.csv").open() as file:
        rows = {row["score"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["dice", "dice/ground", "dice/disc"]
    disc = [np.array([float(row["dice/disc"]) for row in cases(folder)]) for folder in pair]
    assert float(rows["dice/disc"]["difference"]) == pytest.approx((disc[1] - disc[0]).mean())
    assert rows["dice"]["difference"] == rows["dice/disc"]["difference"]  # the ground is in no mean
    assert float(rows["dice/disc"]["other"]) == pytest.approx(json.loads((other / "summary.json").read_text())["scores"]["dice"])
    assert float(rows["dice"]["low"]) <= float(rows["dice"]["difference"]) <= float(rows["dice"]["high"])
    assert f"{float(rows['dice']['difference']):+.4f}" in said.out
    assert "p cannot be below" in said.out  # few groups
    assert "chosen on the cases that are compared" in said.out


def test_scores_that_are_undefined_set_no_limit_and_of_others_the_fewest_groups_are_told(
    pair: tuple[Path, Path], tmp_path: Path, voxtile: Command
) -> None:
    for name, folder in zip("ab", pair, strict=True):
        shutil.copytree(folder, tmp_path / name)
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        summary |= {"classes": [*summary["classes"], "gone", "rare"], "cases": 2 * summary["cases"]}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
        rows = [
            {**row, "case": f"{row['case']}{again}", "group": f"{row['group']}{again}", "dice/gone": "", "dice/rare": ""}
            for again in range(2)
            for row in cases(folder)
        ]
        rows[0]["dice/rare"] = rows[1]["dice/rare"] = 0.5
        with (tmp_path / name / "cases.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    said = voxtile("compare", f"evaluations=[{tmp_path / 'a'},{tmp_path / 'b'}]")
    assert said.code == 0, said.text
    assert "dice/rare, on the fewest groups: with 2 groups of cases p cannot be below 0.5, whatever" in said.text
    assert "with 0 groups" not in said.text


def test_runs_stand_for_their_only_evaluation_and_several_are_corrected_for(
    pair: tuple[Path, Path], runs: Path, voxtile: Command, tmp_path: Path
) -> None:
    shutil.copytree(pair[1], tmp_path / "third")
    said = voxtile("compare", f"evaluations=[{runs / 'plain'},{runs / 'mirrored'},{tmp_path / 'third'}]", "scores=[case_iou]")
    assert said.code == 0
    assert "plain val-best (first) and mirrored val-best-mirrorsyx (other)" in said.out
    assert "plain val-best (first) and third (other)" in said.out
    assert "p (Holm)" in said.out
    assert "case_iou/disc" in said.out
    assert "dice" not in said.out


def test_a_pattern_finds_evaluations(pair: tuple[Path, Path], runs: Path, voxtile: Command) -> None:
    said = voxtile("compare", f"evaluations={runs}/*/evaluations/*").out
    assert "mirrored val-best-mirrorsyx (first) and plain val-best (other)" in said


@pytest.mark.parametrize("name", ["copy (1)", "w=2", "ü", "q'x", "sp, [x] ü"])
def test_a_folder_may_have_any_name(pair: tuple[Path, Path], tmp_path: Path, voxtile: Command, name: str) -> None:
    for which, folder in zip("ab", pair, strict=True):
        shutil.copytree(folder, tmp_path / name / which)
    (typed,) = shlex.split(list_word("evaluations", [tmp_path / name / which for which in "ab"]))
    for given in (typed, f"evaluations={tmp_path / name}/*"):
        said = voxtile("compare", given)
        assert (said.code, "a (first) and b (other)" in said.text) == (0, True), said.text
    if "," not in name:
        assert voxtile("compare", f"evaluations=[{tmp_path / name / 'a'},{tmp_path / name / 'b'}]").code == 0


def test_what_differs_is_said(pair: tuple[Path, Path], tmp_path: Path, voxtile: Command) -> None:
    said = voxtile("compare", f"evaluations=[{pair[0]},{pair[1]}]")
    assert "first and other differ in mirrors ([] and ['y', 'x'])" in said.out
    for folder, name in zip(pair, "ab", strict=True):
        shutil.copytree(folder, tmp_path / name)
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    summary["settings"]["model"]["width"] = 0.5
    (tmp_path / "b" / "summary.json").write_text(json.dumps(summary))
    said = voxtile("compare", f"evaluations=[{tmp_path / 'a'},{tmp_path / 'b'}]")
    assert "first and other differ in model.width (0.0625 and 0.5)" in said.out
    del summary["settings"]  # of an earlier version
    (tmp_path / "b" / "summary.json").write_text(json.dumps(summary))
    assert "differ in" not in voxtile("compare", f"evaluations=[{tmp_path / 'a'},{tmp_path / 'b'}]").out


def test_several_runs_are_told_by_their_folder(pair: tuple[Path, Path], tmp_path: Path, voxtile: Command) -> None:
    for name, folder in zip(("s-2runs-a", "s-2runs-b"), pair, strict=True):
        shutil.copytree(folder, tmp_path / "evaluations" / name / "val-last")
    said = voxtile("compare", f"evaluations={tmp_path}/evaluations/*/val-last/cases.csv")
    assert "s-2runs-a val-last (first) and s-2runs-b val-last (other)" in said.out


def test_only_tables_of_its_own_are_written_over(pair: tuple[Path, Path], tmp_path: Path, voxtile: Command) -> None:
    both = f"evaluations=[{pair[0]},{pair[1]}]"
    table = tmp_path / "table.csv"
    for _ in range(2):
        assert voxtile("compare", both, f"output={table}").code == 0
    other = tmp_path / "script.py"
    other.write_text("print('mine')\n")
    for path in (other, pair[0] / "cases.csv", tmp_path):
        before = path.read_bytes() if path.is_file() else None
        said = voxtile("compare", both, f"output={path}")
        assert said.code == 2
        assert "is no table that compare has written" in said.err
        assert before is None or path.read_bytes() == before
    said = voxtile("compare", both, f"output={table / 'below.csv'}")
    assert said.code == 3
    assert "name another file with 'output=…'" in said.text


def changed(folder: Path, tmp_path: Path, change: str) -> Path:
    """A copy of an evaluation of which something is otherwise."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    rows, summary = cases(copy), json.loads((copy / "summary.json").read_text())
    if change == "case":
        rows[0]["case"] = "another"
    elif change in rows[0]:
        rows[0][change] = "7"
    elif change == "unlabelled":
        rows = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
    elif change == "older":
        del summary["averaged"]
    elif change == "cut off":
        rows.pop()
    elif change in ("abc", "inf"):
        rows[0]["dice/disc"] = change
    else:
        summary[change] = "other"
    (copy / "summary.json").write_text(json.dumps(summary))
    with (copy / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return copy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("case", "do not hold the same cases: only one of them holds another"),
        ("group", "have other groups for case"),
        ("pixels", "have other numbers of judged pixels for case"),
        ("labels", "have other labels for case"),
        ("label_pixels/disc", "have other labels for case"),
        ("split", "are not of the same data: 'split' is val and other"),
        ("grid", "are not of the same data: 'grid' is stored and other"),
        ("older", "an older version has written it: summary.json lacks averaged"),
        ("cut off", "cases.csv holds 4 cases of 5"),
        ("abc", "could not convert string to float: 'abc'"),
        ("inf", "is inf"),
    ],
)
def test_what_was_counted_on_other_pixels_is_refused(
    pair: tuple[Path, Path], tmp_path: Path, voxtile: Command, change: str, words: str
) -> None:
    said = voxtile("compare", f"evaluations=[{pair[0]},{changed(pair[1], tmp_path, change)}]")
    assert said.code == 4
    assert words in said.text


def test_an_evaluation_without_digests_of_labels_is_compared(pair: tuple[Path, Path], tmp_path: Path, voxtile: Command) -> None:
    assert voxtile("compare", f"evaluations=[{pair[0]},{changed(pair[1], tmp_path, 'unlabelled')}]").code == 0


@pytest.mark.parametrize(
    ("setting", "first", "other", "refused"),
    [
        ("surface", "10", "12", {"nsd": "'tolerance' is 10.0 and 12.0"}),
        ("objects", "0.5", "0.3", {"object_f1": "'least_iou' is 0.5 and 0.3"}),
        ("lesions", "true", "{least: 3}", {"lesion_f1": "'least' is 0.0 and 3"}),
    ],
)
def test_scores_that_were_measured_with_other_settings_are_refused(
    runs: Path, tmp_path: Path, voxtile: Command, setting: str, first: str, other: str, refused: dict[str, str]
) -> None:
    for name, value in (("a", first), ("b", other)):
        shutil.copytree(runs / "plain", tmp_path / name, ignore=shutil.ignore_patterns("evaluations"))
        assert voxtile("evaluate", f"run={tmp_path / name}", f"{setting}={value}").code == 0
    both = f"evaluations=[{tmp_path / 'a'},{tmp_path / 'b'}]"
    ((score, words),) = refused.items()
    said = voxtile("compare", both, f"scores=[{score}]")
    assert (said.code, f"was measured with other settings: {words}" in said.text) == (4, True), said.text
    others = ["dice", *(["hd95", "assd"] if setting == "surface" else [])]  # which do not depend on it
    assert voxtile("compare", both, f"scores=[{','.join(others)}]").code == 0


def test_wrong_words_are_one_paragraph(pair: tuple[Path, Path], runs: Path, tmp_path: Path, voxtile: Command) -> None:
    first, other = pair
    both = f"evaluations=[{first},{other}]"
    assert "names 1 evaluation, and two or more are compared" in voxtile("compare", f"evaluations={first}").err
    assert "twice" in voxtile("compare", f"evaluations=[{first},{first}]").err
    said = voxtile("compare", both, "scores=[dise]")
    assert said.code == 2
    assert "Did you mean 'dice'?" in said.err
    assert "surface=true" in voxtile("compare", both, "scores=[hd95]").err
    for wrong in ("[]", "3", "[3]"):
        assert "must be a list of scores" in voxtile("compare", both, f"scores={wrong}").err
    (tmp_path / "empty").mkdir()
    assert "is no run that could" in voxtile("compare", f"evaluations=[{first},{tmp_path / 'empty'}]").err
    shutil.copy(runs / "plain" / "recipe.json", tmp_path / "empty")
    assert f"voxtile evaluate run={tmp_path / 'empty'}" in voxtile("compare", f"evaluations=[{first},{tmp_path / 'empty'}]").err
    shutil.copytree(runs / "plain", tmp_path / "two")
    shutil.copytree(other, tmp_path / "two" / "evaluations" / "other")
    assert "holds 2 evaluations. Name one of them" in voxtile("compare", f"evaluations=[{first},{tmp_path / 'two'}]").err
