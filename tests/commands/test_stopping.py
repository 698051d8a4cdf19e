"""Ctrl-C, SIGTERM and Slurm's warning save first; the same command continues; a run that is under way belongs to one process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from tests.commands.conftest import Command, Run, homes
from voxtile.training.module import SegmentationModule
from voxtile.training.processes import start_time
from voxtile.training.stopping import StopRequest

ROOT = Path(__file__).parents[2]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
SLURM = {"SLURM_JOB_ID": "11", "SLURM_JOB_NAME": "train.sh", "SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}


@pytest.fixture
def words(scene_run: Run, tmp_path: Path) -> list[str]:
    return [*scene_run.words, f"paths.runs={tmp_path / 'runs'}"]


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, signal.Signals, int], None]:
    """Lets the module's `count`-th call of a method be met by a signal."""

    def arrange(method: str, number: signal.Signals, count: int) -> None:
        inner, calls = getattr(SegmentationModule, method), []

        def wrapped(self: SegmentationModule, *args: object) -> object:
            calls.append(1)
            if len(calls) == count:
                os.kill(os.getpid(), number)
            return inner(self, *args)

        monkeypatch.setattr(SegmentationModule, method, wrapped)

    return arrange


@pytest.mark.parametrize(
    ("number", "method", "count", "step", "environment"),
    [
        (signal.SIGINT, "training_step", 4, 4, {}),
        (signal.SIGTERM, "validation_step", 1, 3, {}),
        (signal.SIGTERM, "on_train_epoch_start", 1, 1, {}),  # before the first step, where Lightning would have handlers of its own
        (signal.SIGUSR1, "training_step", 4, 4, SLURM),  # for which Lightning has signals, checkpoints and rules of its own
    ],
)
def test_a_signal_saves_and_the_same_command_ends_in_the_same_bits(
    scene_run: Run, words: list[str], tmp_path: Path, voxtile: Command, signalled: Callable, monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals, method: str, count: int, step: int, environment: dict[str, str],
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = [signal.getsignal(n) for n in SIGNALS]
    signalled(method, number, count)
    said = voxtile("train", *words)
    assert said.code == 130
    assert f"Stopped by {number.name} at step {step} of 6; the state is saved" in said.text
    assert "The same command continues it: voxtile train --config-dir" in said.text
    assert [signal.getsignal(n) for n in SIGNALS] == before
    (home,) = homes(tmp_path / "runs")
    run = Run(words, home, tmp_path, "")
    assert (run.read("status.json")["state"], run.read("status.json")["step"]) == ("interrupted", step)
    assert (home / "resume.pt").exists()
    assert not (home / "lease.json").exists()
    assert not list(home.glob("*.ckpt"))
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["voxtile"])
    load = Mock(side_effect=torch.load)
    monkeypatch.setattr("voxtile.training.weights.torch.load", load)
    said = voxtile("train", *words)
    assert said.code == 0
    assert f"continuing at step {step} of 6" in said.text
    load.assert_called_once()  # states may be large
    assert not (home / "resume.pt").exists()
    for name in ("weights/best.safetensors", "weights/last.safetensors", "metrics.csv", "status.json"):
        assert (home / name).read_bytes() == (scene_run.home / name).read_bytes()


def test_a_thread_of_a_program_trains_without_listening(scene_run: Run, words: list[str], tmp_path: Path, voxtile: Command) -> None:
    with ThreadPoolExecutor() as pool:
        assert pool.submit(voxtile, "train", *words).result().code == 0
    (home,) = homes(tmp_path / "runs")
    assert (home / "metrics.csv").read_bytes() == (scene_run.home / "metrics.csv").read_bytes()


def test_stopping_a_multirun_starts_no_further_run(words: list[str], tmp_path: Path, voxtile: Command, signalled: Callable) -> None:
    signalled("training_step", signal.SIGINT, 1)
    said = voxtile("train", "-m", *words, "launch=here", "seed=0,1")
    assert said.code == 130
    assert len(homes(tmp_path / "runs")) == 1


def test_ctrl_c_ends_a_child_that_does_not_listen_yet() -> None:
    code = "from voxtile.commands.children import order_of; order_of(); print('told', flush=True); import signal; signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("{}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "told\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT


def started(words: list[str], runs: Path) -> subprocess.Popen[str]:
    """A training process that has taken its first steps."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *words, "training.steps=100000", "training.val_every=100000"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    while not list(runs.glob("*/resume.pt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    return process


def test_a_running_process_keeps_its_run_and_stops_when_asked(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    process = started(words, tmp_path / "runs")
    try:
        (home,) = homes(tmp_path / "runs")
        said = voxtile("train", *words, "training.steps=100000", "training.val_every=100000")
        assert said.code == 4
        assert f"is being trained by process {process.pid} on" in said.text
        resumed = (home / "resume.pt").stat().st_mtime_ns
        deadline = time.monotonic() + 60
        while (home / "resume.pt").stat().st_mtime_ns == resumed:  # it goes on
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, out
    assert "Stopped by SIGTERM at step" in out
    assert f"python {ROOT / 'train.py'} --config-dir" in " ".join(out.split())
    assert "Traceback" not in out
    run = Run(words, home, tmp_path, "")
    assert run.read("status.json")["state"] == "interrupted"


def test_a_process_that_died_leaves_its_run_to_the_next(copied_run: Run, voxtile: Command) -> None:
    """What a kill leaves: a lease and the state "running"; nothing has to be cleaned up by hand."""
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    started = start_time(gone.pid)
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and keeps its number, since nobody has asked how
    (copied_run.home / "status.json").write_text('{"state": "running", "step": 2}')
    (copied_run.home / "lease.json").write_text(f'{{"host": "{os.uname().nodename}", "pid": {gone.pid}, "started": "{started}"}}')
    assert voxtile("train", *copied_run.words).code == 0
    assert copied_run.read("status.json")["state"] == "finished"
    gone.wait()


def test_a_second_sigterm_does_not_end_a_run_that_saves_and_a_second_ctrl_c_does() -> None:
    stop = StopRequest()
    for _ in range(3):  # from whoever ends a group of processes, and from the process above
        stop(signal.SIGTERM, None)
    assert stop.signal == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)


def test_a_handler_that_was_set_outside_python_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, original = [], signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else original(number))
    monkeypatch.setattr(signal, "signal", lambda number, handler: taken.append(number) or original(number))
    with StopRequest().installed():
        assert taken == [signal.SIGINT, signal.SIGUSR1]
    assert taken == [signal.SIGINT, signal.SIGUSR1] * 2
