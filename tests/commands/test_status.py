"""The tables of runs: what they say of runs that are damaged."""

import os
import shutil
from pathlib import Path

import pytest

from tests.commands.conftest import Command, Run
from voxtile.commands.console import console
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
