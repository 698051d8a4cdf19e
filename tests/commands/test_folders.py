"""`run` and `runs`: which run folders a command is to use."""

import json
import shutil
from pathlib import Path

import pytest

from tests.commands.conftest import Command, Run


@pytest.fixture
def pair(scene_run: Run, tmp_path: Path) -> Path:
    """A folder with two finished runs, `a-0` and `a-1`, and a folder `a-notes` that is none."""
    runs = tmp_path / "pair"
    for number in range(2):
        shutil.copytree(scene_run.home, runs / f"a-{number}", ignore=shutil.ignore_patterns("evaluations"))
        recipe = json.loads((runs / f"a-{number}" / "recipe.json").read_text())
        (runs / f"a-{number}" / "recipe.json").write_text(json.dumps(recipe | {"identity": str(number) * 32}))
    (runs / "a-notes").mkdir()
    return runs


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_exactly_one_of_run_and_runs_is_asked_for(command: str, pair: Path, tmp_path: Path, voxtile: Command) -> None:
    where = ["input=a.tif", f"output={tmp_path / 'out'}"] if command == "predict" else []
    for words, found in (
        ([], "neither 'run' nor 'runs' has a value. Type 'run=<folder>' for one run"),
        ([f"run={pair / 'a-0'}", f"runs={pair}/a-*"], "both 'run' and 'runs' have a value"),
        ([f"run=[{pair / 'a-0'},{pair / 'a-1'}]"], f"Type 'runs=[{pair / 'a-0'},{pair / 'a-1'}]'"),
    ):
        said = voxtile(command, *words, *where)
        assert (said.code, found in said.text) == (2, True), said.text
    assert not (tmp_path / "out").exists()


def test_a_pattern_finds_runs_and_says_what_else_it_fits(scene_run: Run, pair: Path, tmp_path: Path, voxtile: Command) -> None:
    words = [f"input={scene_run.folder}/scenes/images/s1.tif", f"output={tmp_path / 'out'}", f"paths.runs={tmp_path}"]
    said = voxtile("predict", f"runs={pair}/a-*", *words)
    assert said.code == 0, said.text
    assert f"passed over, since they are no runs: {pair / 'a-notes'}" in said.text
    shutil.rmtree(tmp_path / "out")
    assert voxtile("predict", f"runs=[{pair}/a-1,{pair}/a-[0]]", *words).code == 0  # patterns in a list


@pytest.mark.parametrize(
    ("runs", "code", "found"),
    [
        ("[]", 2, "names no run, and takes two or more"),
        ("{pair}/a-0*", 2, "names one run, {pair}/a-0, and takes two or more. Type 'run=<folder>'"),
        ("[{pair}/a-0]", 2, "names one run"),
        ("{pair}/b-*", 4, "finds no run folder: the pattern fits nothing"),
        ("{pair}/a-n*", 4, "the pattern fits only {pair}/a-notes, which hold no recipe.json"),
        ("[{pair}/a-0,{pair}/a-1,{pair}/../pair/a-0]", 2, "/a-0 twice, which would only count it twice"),
        ("[{pair}/a-0,{pair}/a-notes]", 4, "{pair}/a-notes is no run folder: it has no recipe.json. Name the folder of a run"),
        ("[{pair}/a-0,{pair}/a-9]", 4, "{pair}/a-9 is no run folder: it does not exist"),
    ],
)
def test_runs_that_are_not_there_or_not_several_are_refused(
    runs: str, code: int, found: str, pair: Path, tmp_path: Path, voxtile: Command
) -> None:
    said = voxtile("evaluate", f"runs={runs.format(pair=pair)}")
    assert (said.code, found.format(pair=pair) in said.text) == (code, True), said.text


def test_an_unfinished_run_and_a_copy_of_a_run_are_refused(pair: Path, voxtile: Command) -> None:
    shutil.copytree(pair / "a-0", pair / "a-2")
    said = voxtile("evaluate", f"runs={pair}/a-*")
    assert (said.code, f"{pair / 'a-0'} and {pair / 'a-2'} are the same run" in said.text) == (4, True), said.text
    (pair / "a-1" / "status.json").write_text(json.dumps({"state": "failed", "step": 3, "reason": "no"}))
    said = voxtile("evaluate", f"runs=[{pair}/a-0,{pair}/a-1]")
    assert (said.code, f"{pair / 'a-1'} is failed, at step 3" in said.text) == (4, True), said.text
