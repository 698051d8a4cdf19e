"""The tables of runs: what tells runs apart, and what is said of those that are damaged."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.conftest import Command, Run
from voxtile.commands.console import console
from voxtile.commands.names import titles
from voxtile.commands.sweep import Outcome
from voxtile.commands.tables import print_jobs


@pytest.fixture
def damaged(copied_run: Run) -> Path:
    """A run that cannot be read, beside one that can."""
    home = copied_run.home.with_name("other")
    shutil.copytree(copied_run.home, home)
    return home


@pytest.mark.parametrize("name", ["status.json", "manifest.json", "recipe.json"])
def test_a_damaged_run_takes_no_other_out_of_the_table(damaged: Path, copied_run: Run, voxtile: Command, name: str) -> None:
    os.truncate(damaged / name, 100)
    said = voxtile("status", f"runs={damaged.parent}/*")
    assert said.code == 4
    rows = [line.replace("│", " ").split() for line in said.out.splitlines()]
    assert ["other", "damaged"] in rows
    assert any(row[:2] == [copied_run.home.name, "finished"] for row in rows)
    assert f"{damaged}: {damaged / name} cannot be read" in said.text


def test_a_long_table_ends_with_how_many_runs_are_in_each_state(
    damaged: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(damaged / "status.json", 100)
    assert "2 runs: " not in voxtile("status", f"runs={damaged.parent}/*").out
    monkeypatch.setattr("voxtile.commands.tables.MOST_ROWS", 1)
    said = voxtile("status", f"runs={damaged.parent}/*").out
    assert re.search(r"2 runs: 1 (finished, 1 damaged|damaged, 1 finished); 'runs=<pattern with \*>' shows some", said)


@pytest.mark.parametrize("part", ["status.json", "metrics.csv"])
def test_a_run_whose_files_hold_something_else_is_damaged(damaged: Path, voxtile: Command, part: str) -> None:
    status = json.loads((damaged / "status.json").read_text())
    if part == "status.json":
        status["best"]["scores"]["dice"] = "good"
    else:
        status["state"] = "interrupted"
        (damaged / part).write_bytes(b"\xff\xfe")
    (damaged / "status.json").write_text(json.dumps(status))
    said = voxtile("status", f"runs={damaged.parent}/*")
    assert (said.code, part in said.text) == (4, True), said.text
    rows = [line.replace("│", " ").split() for line in said.out.splitlines()]
    assert ["other", "damaged"] in rows
    assert any("finished" in row for row in rows)


def test_a_run_that_this_user_may_not_enter_takes_no_other_out_of_the_table(
    damaged: Path, copied_run: Run, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(inner: Callable) -> Callable:
        def refusing(self: Path, *args: object, **kwargs: object) -> object:
            if self.parent == damaged:
                raise PermissionError(errno.EACCES, "Permission denied", str(self))
            return inner(self, *args, **kwargs)

        return refusing

    for name in ("stat", "open"):
        monkeypatch.setattr(Path, name, locked(getattr(Path, name)))
    said = voxtile("status", f"runs={damaged.parent}/*")
    assert said.code == 4
    rows = [line.replace("│", " ").split() for line in said.out.splitlines()]
    assert ["other", "damaged"] in rows
    assert any(row[:2] == [copied_run.home.name, "finished"] for row in rows)
    why = f"{damaged / 'recipe.json'} cannot be read: [Errno 13] Permission denied"
    assert f"{damaged}: {why}" in said.text
    assert "Give yourself the right to read it." in said.text
    assert why in voxtile("evaluate", f"run={damaged}").text


def test_a_run_of_another_version_is_called_so(damaged: Path, voxtile: Command) -> None:
    recipe = json.loads((damaged / "recipe.json").read_text())
    (damaged / "recipe.json").write_text(json.dumps(recipe | {"version": 0}))
    said = voxtile("status", f"runs={damaged.parent}/*")
    assert said.code == 4
    assert ["other", "other", "version"] in [line.replace("│", " ").split() for line in said.out.splitlines()]
    assert f"{damaged}: {damaged} was written by version 0 of the run format" in said.text


def test_a_sweep_s_table_shows_a_damaged_run_and_why_others_failed(
    damaged: Path, copied_run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    os.truncate(damaged / "status.json", 100)
    jobs = [
        Outcome(["seed=0"], home=str(copied_run.home)),
        Outcome(["seed=1"], home=str(damaged)),
        Outcome(["seed=2"], 3, reason="no such data"),
    ]
    print_jobs(console(), jobs)
    said = capfd.readouterr().out
    rows = [line.replace("│", " ").split() for line in said.splitlines()]
    assert any(row[:3] == ["seed=0", copied_run.home.name, "finished"] for row in rows)
    assert ["seed=1", "other", "damaged"] in rows
    assert f"seed=1: {damaged / 'status.json'} cannot be read" in said
    assert "seed=2: no such data" in said


def test_the_settings_in_which_runs_differ_are_shown(copied_run: Run, voxtile: Command) -> None:
    kind, _, identity = copied_run.home.name.rsplit("-", 2)
    for fold in (0, 1):
        home = copied_run.home.with_name(f"{kind}-s0-{fold}{identity[1:]}")
        shutil.copytree(copied_run.home, home)
        recipe = copied_run.read("recipe.json")
        recipe["settings"]["split"]["fold"] = fold
        recipe["settings"]["optimizer"]["lr"] = 0.5 + fold
        (home / "recipe.json").write_text(json.dumps(recipe))
    alone = voxtile("status", f"runs={copied_run.home}").out
    assert "settings" not in alone
    rows = [line.replace("│", " ").split() for line in voxtile("status", f"runs={home.parent}/{kind}-s0-[01]*").out.splitlines()]
    assert any(row[:2] == ["optimizer.lr=0.5", "fold=0"] for row in rows)
    assert any(row[:2] == ["optimizer.lr=1.5", "fold=1"] for row in rows)


def test_jobs_that_are_one_have_titles_all_the_same() -> None:
    assert titles([["seed=0"], ["seed=0"]]) == ["seed=0", "seed=0"]
    assert titles([["a=1", "seed=0"], ["a=1", "seed=1"]]) == ["seed=0", "seed=1"]
