"""A run on several devices: started, stopped, killed and continued as the user does it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.commands.conftest import Command, Run, homes
from tests.testers.tiny import scene_words

ROOT = Path(__file__).parents[2]
WORDS = ["trainer=ddp_sim", "model.norm=group", "training.batch_size=3"]
LONG = ["training.steps=400", "training.val_every=400", "training.log_every=100"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [*scene_words(tmp_path), *WORDS]


def begun(words: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that train, in order; their starter may have other children for a moment."""
    found = {}
    for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        line = Path(f"/proc/{number}/cmdline").read_bytes()
        if b"voxtile.commands.worker" in line:
            found[Path(f"/proc/{number}/environ").read_bytes().partition(b"\0RANK=")[2].partition(b"\0")[0]] = int(number)
    return [found[key] for key in sorted(found)]


@pytest.fixture
def running(words: list[str], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int], Path]]:
    """A run in two processes that has saved its state once: its starter, its processes and its folder."""
    process = begun([*words, *LONG])
    try:
        while not list((tmp_path / "runs").glob("*/resume.pt")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        (home,) = homes(tmp_path / "runs")
        yield process, children(process), home
    finally:
        process.kill()
        with process:  # closes the pipe
            pass


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: Sequence[int], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(alive, pids))


@pytest.mark.slow
def test_two_processes_train_a_run_and_another_number_goes_on_only_when_told_to(
    words: list[str], tmp_path: Path, voxtile: Command, running: tuple[subprocess.Popen[str], list[int], Path]
) -> None:
    process, ranks, home = running
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    assert "2 processes" in out
    assert "Stopped by SIGINT at step" in out
    assert out.count("is saved in") == 1
    assert "Traceback" not in out
    assert gone(ranks)
    run = Run(words, home, tmp_path, "")
    status = run.read("status.json")
    assert status["state"] == "interrupted"
    assert 0 < status["step"] < 400

    one = [*words, *LONG, "trainer.devices=1"]
    said = voxtile("train", *one)
    assert said.code == 4
    assert "devices was 2, is 1" in said.text
    assert "'inexact=true'" in said.text
    said = voxtile("train", *one, "inexact=true")
    assert said.code == 0, said.text
    assert f"continuing at step {status['step']} of 400" in said.text
    manifest = run.read("manifest.json")
    assert [part["hardware"]["devices"] for part in (manifest, *manifest["segments"])] == [2, 1]


def test_the_run_folder_says_which_process_died_and_all_end(
    running: tuple[subprocess.Popen[str], list[int], Path], tmp_path: Path
) -> None:
    process, ranks, home = running
    os.kill(ranks[1], signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 4, out
    assert "Process 1 of 2 (numbered from 0) was ended by SIGKILL" in " ".join(out.split())
    assert out.count("Run error") == 1
    assert gone(ranks)
    status = json.loads((home / "status.json").read_text())
    assert status["state"] == "failed"
    assert "Process 1 of 2" in status["reason"]
    assert status["step"] > 0
    assert not (home / "lease.json").exists()


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_it(running: tuple[subprocess.Popen[str], list[int], Path]) -> None:
    process, ranks, _ = running
    assert len(ranks) == 2
    process.kill()
    assert gone(ranks)


@pytest.mark.slow
def test_what_one_process_raises_is_said_once_and_kept(words: list[str], tmp_path: Path) -> None:
    process = begun([*words, "optimizer.lr=1e30", "training.clip=null"])
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 4, out
    assert out.count("Run error") == 1
    assert "became" in out
    named = re.search(r"samples of the cases ([s0-9, ]+)\.", " ".join(out.split()))
    assert named is not None
    assert len(named[1].split(", ")) >= 2  # also those of the other process
    (home,) = homes(tmp_path / "runs")
    status = json.loads((home / "status.json").read_text())
    assert status["state"] == "failed"
    assert "Lower the learning rate" in status["reason"]


@pytest.mark.slow
def test_a_finished_run_is_that_of_one_process_in_all_but_the_hardware(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    process = begun(words)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    (home,) = homes(tmp_path / "runs")
    assert {path.name for path in home.iterdir()} == {
        "config.yaml", "manifest.json", "metrics.csv", "pictures", "recipe.json", "status.json", "validation.json", "weights",
        ".lock",
    }  # fmt: skip
    manifest = json.loads((home / "manifest.json").read_text())
    assert manifest["hardware"]["devices"] == 2
    assert manifest["hardware"]["threads"] == 1
    assert manifest["peak_memory_gib"] > 0
    said = voxtile("train", *words)
    assert said.code == 0
    assert "This run is finished" in said.text
    one = voxtile("train", *words, "trainer.devices=1")
    assert one.code == 0
    assert "devices was 2, is 1" in one.text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.devices=0", "'trainer.devices=0' must be a whole number from 1 up"),
        ("trainer.devices=all", "'trainer.devices=all' counts GPUs"),
        ("trainer.strategy=dp", "'trainer.strategy=dp' is unknown"),
        ("trainer.sync_batchnorm=true", "PyTorch's SyncBatchNorm refuses the CPU"),
        ("trainer.devices=4", "on each of 4 devices give it 0. Type 'training.batch_size=4'"),
        ("+trainer.profiler=simple", "'trainer.profiler' measures one process"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    words: list[str], tmp_path: Path, voxtile: Command, word: str, message: str
) -> None:  # fmt: skip
    said = voxtile("train", *words, word)
    assert said.code == 2
    assert message in said.text
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_processes_that_torchrun_has_started_train_one_run_together(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    """Two machines, as torchrun sees it, each with one process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1", ROOT / "train.py", *words, "trainer=cpu",
    ]  # fmt: skip
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    nodes = [subprocess.Popen(torchrun, **settings) for _ in range(2)]
    said = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sum("2 processes" in text for text in said) == 1
    (home,) = homes(tmp_path / "runs")
    assert json.loads((home / "status.json").read_text())["state"] == "finished"
    assert json.loads((home / "manifest.json").read_text())["hardware"]["devices"] == 2
    one = voxtile("train", *words, "trainer.devices=1", f"paths.runs={tmp_path / 'one'}")
    assert one.code == 0
    (other,) = homes(tmp_path / "one")
    assert other.name == home.name
    losses = [
        [float(row.split(",")[2]) for row in (run / "metrics.csv").read_text().splitlines() if ",train/loss," in row]
        for run in (home, other)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_killed_and_stopped_end_in_the_same_bits(words: list[str], tmp_path: Path, strategy: str) -> None:
    words = [*words, f"trainer.strategy={strategy}", "training.ema=0.9", "model.dropout=0.2", "training.steps=60"]
    words += ["training.val_every=20", "training.save_every=5"]
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    with begun([*words, f"paths.runs={calm}"]) as process:
        out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        with begun([*words, f"paths.runs={rough}"]) as process:
            before = {path: path.stat().st_mtime_ns for path in rough.glob("*/resume.pt")}
            while {path: path.stat().st_mtime_ns for path in rough.glob("*/resume.pt")} == before:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.02)
            process.send_signal(number)
            out, _ = process.communicate(timeout=120)
        assert process.returncode == code, out
    with begun([*words, f"paths.runs={rough}"]) as process:
        out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert "continuing at step" in out
    (one,), (other,) = homes(calm), homes(rough)
    for name in ("weights/best.safetensors", "weights/last.safetensors", "metrics.csv", "validation.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
