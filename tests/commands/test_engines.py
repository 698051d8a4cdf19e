"""Jobs of a sweep by Slurm and Ray, with submitit's own executor on this machine and a cluster of one machine."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Command as Voxtile
from tests.commands.conftest import homes
from tests.testers.tiny import scene_words
from voxtile.commands.engines import Command

LOCAL = [
    "launch=slurm", "hydra.launcher.cluster=local", "hydra.launcher.poll=0.2", "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.mem_gb=null", "hydra.launcher.cpus_per_task=1",
]  # fmt: skip


@pytest.mark.slow
def test_submitted_jobs_are_trained_and_one_that_fails_is_told(tmp_path: Path, voxtile: Voxtile) -> None:
    words = ["train", "-m", *scene_words(tmp_path), "training.clip=null", "optimizer.lr=1e30,0.01"]
    said = voxtile(*words, *LOCAL)
    assert said.code == 4
    assert "job 2 of 2: optimizer.lr=0.01  done" in said.out
    assert "optimizer.lr=1e+30: The " in said.text
    assert len(homes(tmp_path / "runs")) == 2
    again = voxtile(*words[:-1], "optimizer.lr=0.01,0.02", *LOCAL)
    assert again.code == 0
    assert again.text.count("finished before: ") == 1


@pytest.mark.slow
def test_a_job_that_is_moved_saves_and_goes_on_where_it_is_started_next(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    words = [*scene_words(tmp_path), "training.steps=400", "training.val_every=400", "training.log_every=100"]
    runs = tmp_path / "runs"
    command = Command({"words": words, "report": str(tmp_path / "report.json")})
    moves: list[Any] = []

    def move() -> None:
        until = time.monotonic() + 120
        while not list(runs.glob("*/resume.pt")) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, lambda number, frame: moves.append(command.checkpoint()))  # as submitit does
    try:
        threading.Thread(target=move).start()
        assert command() == 130
    finally:
        signal.signal(signal.SIGUSR2, before)
    (moved,) = moves
    assert isinstance(moved, submitit.helpers.DelayedSubmission)
    (home,) = homes(runs)
    saved = json.loads((home / "status.json").read_text())
    assert saved["state"] == "interrupted"
    assert saved["step"] > 0
    assert moved.function() == 0
    assert json.loads((home / "status.json").read_text())["state"] == "finished"
    assert json.loads((tmp_path / "report.json").read_text())["home"] == str(home)
    assert "segments" in json.loads((home / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["hydra.launcher.timeout_min=soon"], "submitit or Slurm refuses the settings of 'hydra.launcher'"),
        (["hydra.launcher.cluster=condor"], "submitit or Slurm refuses the settings of 'hydra.launcher'"),
    ],
)
def test_settings_that_submitit_does_not_take_are_said(tmp_path: Path, voxtile: Voxtile, more: list[str], message: str) -> None:
    said = voxtile("train", "-m", *scene_words(tmp_path), *LOCAL, *more, "seed=0,1")
    assert said.code == 2
    assert message in said.text
    assert not homes(tmp_path / "runs")


@pytest.mark.slow
def test_ray_trains_jobs_and_loses_one_only(tmp_path: Path, voxtile: Voxtile) -> None:
    ray = pytest.importorskip("ray")
    words = ["train", "-m", *scene_words(tmp_path), "launch=ray", "training.clip=null", "optimizer.lr=1e30,0.01,0.02"]
    try:
        said = voxtile(*words)
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray puts its own there
    assert said.code == 4
    assert said.out.count("  done") == 2
    assert len(homes(tmp_path / "runs")) == 3
