"""A sweep: a process for each job, killed and continued, and what its table says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from random import Random

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig
from rich.console import Console

from tests.commands.conftest import Command, homes
from tests.testers.tiny import scene_words
from voxtile.commands import job
from voxtile.commands.build import check_without_data
from voxtile.commands.compose import composed, job_config
from voxtile.commands.guard import STOPPED
from voxtile.commands.names import sweep_name
from voxtile.commands.sweep import NOT_BEGUN, Outcome, Slots
from voxtile.commands.tables import print_jobs
from voxtile.errors import ConfigError

ROOT = Path(__file__).parents[2]
OWN_NETWORKS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
RESULTS = ("weights/best.safetensors", "weights/last.safetensors", "metrics.csv", "status.json")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return ["-m", *scene_words(tmp_path), "seed=0,1"]


def begun(words: Sequence[str], runs: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *words, f"paths.runs={runs}"], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def jobs_of(process: subprocess.Popen[str]) -> list[int]:
    """The jobs that a sweep has under way."""
    found = []
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with suppress(FileNotFoundError):  # it has ended since
            if b"voxtile.commands.job" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def until(true: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def bits(runs: Path) -> dict[str, bytes]:
    return {f"{home.name}/{name}": (home / name).read_bytes() for home in homes(runs) for name in RESULTS}


def table(out: str) -> list[list[str]]:
    """The rows of the table at the end without what depends on the clock and the machine: seconds and memory."""
    rows = re.findall(r"^│(.*)│$", out.rpartition(" jobs, best validation")[2], re.MULTILINE)
    return [[cell.strip() for cell in row.split("│")][:-2] for row in rows]


def killed(words: Sequence[str], runs: Path, moment: Callable[[subprocess.Popen[str]], object]) -> None:
    """A sweep whose parent and jobs are killed at a moment."""
    with begun(words, runs) as process:
        try:
            moment(process)
        finally:
            pids = jobs_of(process) if process.poll() is None else []
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()


def test_a_killed_sweep_continued_ends_as_an_undisturbed_one(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    expected = voxtile("train", *words, "launch=here", f"paths.runs={calm}").out
    killed(words, rough, lambda process: until(lambda: list(rough.glob("*/resume.pt")), process))
    with begun(words, rough) as process:
        out = process.communicate(timeout=240)[0]
    assert process.returncode == 0, out
    assert table(out) == table(expected)
    assert [row[2] for row in table(out)] == ["finished", "finished"]
    assert bits(rough) == bits(calm)
    assert len(bits(calm)) == 2 * len(RESULTS)


@pytest.mark.slow
def test_a_sweep_killed_at_five_moments_ends_as_an_undisturbed_one(words: list[str], tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    words = [*words, "training.steps=60", "training.val_every=20", "model.dropout=0.2"]
    with begun(words, calm) as process:
        expected = process.communicate(timeout=600)[0]
    chance = Random(0)
    for _ in range(5):
        killed(words, rough, lambda _: time.sleep(chance.uniform(1, 25)))
    with begun(words, rough) as process:
        out = process.communicate(timeout=600)[0]
    assert process.returncode == 0, out
    assert table(out) == table(expected)
    assert bits(rough) == bits(calm)


@pytest.mark.slow
def test_a_job_that_is_killed_takes_no_other_with_it_and_only_what_is_new_or_left_is_trained(
    words: list[str], tmp_path: Path, voxtile: Command
) -> None:
    runs = tmp_path / "runs"
    with begun([*words, "training.steps=300", "training.val_every=300"], runs) as process:
        until(lambda: list(runs.glob("*/resume.pt")), process)
        (first,) = homes(runs)
        os.kill(jobs_of(process)[0], signal.SIGKILL)
        out = process.communicate(timeout=240)[0]
    assert process.returncode == 1, out
    assert "seed=0: its process said nothing and was ended by SIGKILL, as the system does where memory runs out" in out
    assert [row[1:3] for row in table(out)][1][1] == "finished"
    assert len(homes(runs)) == 2
    assert voxtile("status", f"runs={runs}/*").out.count("interrupted") == 1
    more = [*words[:-1], "seed=0,1,2", "training.steps=300", "training.val_every=300", f"paths.runs={runs}"]
    said = voxtile("train", *more)
    assert said.code == 0
    assert said.text.count("finished before: ") == 1
    assert "continuing at step" in said.text
    assert len(homes(runs)) == 3
    assert said.out.rpartition("3 jobs, best validation")[2].count("finished") == 3
    assert first in homes(runs)


def test_several_jobs_run_at_once_and_one_that_fails_is_told_by_the_exit_code(
    words: list[str], tmp_path: Path, voxtile: Command
) -> None:
    settings = ["launch=local", "hydra.launcher.jobs=2", "optimizer.lr=1e30,0.01", "training.clip=null"]
    said = voxtile("train", *words[:-1], "seed=0", *settings)
    assert said.code == 4
    begins = [
        said.out.index(f"job {number} of 2: optimizer.lr={rate}  begins, see") for number, rate in ((1, "1e+30"), (2, "0.01"))
    ]
    assert max(begins) < min(said.out.index(f"job {number} of 2", begins[number - 1] + 10) for number in (1, 2))
    assert "optimizer.lr=1e+30: The " in said.text
    (log,) = (tmp_path / "runs").glob(".multirun/*/1.log")
    assert "Lower the learning rate" in " ".join(log.read_text().split())
    states = [row[2] for row in table(said.out)]
    assert states == ["failed", "finished"]
    status = voxtile("status", f"runs={tmp_path}/runs/*")
    assert status.code == 4
    assert "Lower the learning rate" in status.text


@pytest.mark.slow
def test_ctrl_c_saves_the_job_under_way_and_begins_no_other(words: list[str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with begun([*words, "training.steps=100000", "training.val_every=100000"], runs) as process:
        until(lambda: list(runs.glob("*/resume.pt")), process)
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=120)[0]
    assert process.returncode == 130, out
    assert "Stopped by SIGINT at step" in out
    assert [row[2] for row in table(out)] == ["interrupted", "queued"]
    assert "1 job not begun" in out
    assert len(homes(runs)) == 1


@pytest.mark.parametrize(
    ("values", "message", "job"),
    [
        ("seed=0,abc", "'seed=abc' must be a whole number", "seed=abc"),
        ("model.width=0.0625,0", "'model' cannot be built", "model.width=0"),
        ("training.monitor=dice,dicee", "'training.monitor=dicee' is no score. Did you mean 'dice'?", "training.monitor=dicee"),
    ],
)
def test_a_value_that_no_job_can_have_stops_the_sweep_before_its_first_job(
    words: list[str], tmp_path: Path, voxtile: Command, values: str, message: str, job: str
) -> None:
    said = voxtile("train", *words[:-1], values)
    assert said.code == 2
    assert message in said.text
    assert f"This is of the job {job}; none was begun." in said.text
    assert "begins" not in said.text
    assert not homes(tmp_path / "runs")


def test_a_value_that_is_typed_twice_is_one_job(words: list[str], voxtile: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr("voxtile.commands.sweep.run_jobs", lambda *_, count: begun.append(count))
    said = voxtile("train", *words[:-1], "seed=0,0,1,0")
    assert begun == [2]
    assert said.out.startswith("looking at 2 jobs first\n")


@pytest.mark.parametrize(("launch", "each"), [("turn", 1), ("here", 2)])
def test_jobs_are_composed_once_where_all_of_them_are_before_the_first_one_begins(
    words: list[str], voxtile: Command, monkeypatch: pytest.MonkeyPatch, launch: str, each: int
) -> None:
    made: list[str] = []
    usual = ConfigLoaderImpl.load_sweep_config

    def composing(loader: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        made.append(sweep_overrides[-1])
        return usual(loader, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", composing)
    monkeypatch.setattr("voxtile.commands.sweep.run_jobs", lambda *_, count: None)
    monkeypatch.setattr("voxtile.commands.train.train_to_end", lambda *_, **__: None)
    voxtile("train", *words[:-1], f"launch={launch}", "seed=0,1,2")
    assert sorted(made) == sorted(each * ["seed=0", "seed=1", "seed=2"])


def test_jobs_that_have_not_begun_are_one_line() -> None:
    out = Console(file=StringIO(), width=120)
    jobs = [Outcome([f"seed={seed}"], STOPPED, reason="saved at step 3" if seed == 0 else NOT_BEGUN) for seed in range(5)]
    print_jobs(out, jobs)
    said = out.file.getvalue()
    assert "seed=0: saved at step 3\n4 jobs not begun\n" in said
    assert said.count("queued") == 5


@pytest.mark.parametrize("name", OWN_NETWORKS)
def test_every_network_of_ours_can_be_looked_at_before_a_sweep(name: str) -> None:
    config = job_config(composed("train", [f"model={name}", "data=satellite"], []))
    check_without_data(config)
    if "weights" in config["model"]:  # which are not looked for
        wide = {"width": 1.0} if "width" in config["model"] else {}
        check_without_data({**config, "model": {**config["model"], **wide, "weights": "missing.pth"}})
    with pytest.raises(ConfigError, match="takes no 'surplus'"):
        check_without_data({**config, "model": {**config["model"], "surplus": 1}})


def test_gpus_are_dealt_out_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.commands.sweep._gpus", lambda: ["0", "1", "5"])
    slots = Slots.of("auto", "auto")
    assert (slots.jobs, slots.gpus) == (3, 1)
    slots = Slots.of("auto", 2)
    assert slots.jobs == 1
    assert slots.take() == ["0", "1"]
    slots.free += ["0", "1"]
    assert slots.take() == ["5", "0"]
    with pytest.raises(ConfigError, match="asks for more GPUs for each job than the 3"):
        Slots.of(1, 4)
    for jobs, gpus in ((0, 0), ("many", 0), (1, -1), (True, 0)):
        with pytest.raises(ConfigError, match=r"hydra\.launcher\.(jobs|gpus)="):
            Slots.of(jobs, gpus)


def test_the_jobs_of_a_sweep_are_one_group_of_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_RUN_GROUP", "WANDB_JOB_TYPE"):  # which the job sets, and which are to be gone again
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    words = [*scene_words(tmp_path), "training.steps=2", "logger=wandb", "logger.wandb.mode=offline"]
    order = {"words": words, "report": str(tmp_path / "report.json"), "group": "model,seed data=discs", "kind": "sweep"}
    monkeypatch.setattr(job, "order_of", lambda: order)
    assert job.main() == 0
    (home,) = homes(tmp_path / "runs")
    (tracked,) = home.glob("wandb/offline-run-*/run-*.wandb")
    for kept in (b"model,seed data=discs", b"sweep", b"discs", b"unet"):
        assert kept in tracked.read_bytes()


def test_a_job_says_what_it_did_not_expect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ArithmeticError("no root of -9")

    report = tmp_path / "report.json"
    monkeypatch.setattr(job, "order_of", lambda: {"words": scene_words(tmp_path), "report": str(report)})
    monkeypatch.setattr("voxtile.commands.train.train_to_end", failing)
    assert job.main() == 1
    found = json.loads(report.read_text())
    assert (found["code"], found["reason"]) == (1, "no root of -9")


@pytest.mark.parametrize(
    ("jobs", "name"),
    [
        ("data=a seed=0 paths.runs=r, data=a seed=1 paths.runs=r", "seed data=a"),
        ("data=a seed=0, data=a seed=1, data=a seed=2", "seed data=a"),  # more of them are the same sweep
        ("model=x data=a seed=0, model=y data=a seed=0", "model data=a seed=0"),
        ("data=a launch=local", "sweep data=a"),
    ],
)
def test_a_sweep_has_one_name_whatever_its_values(jobs: str, name: str) -> None:
    assert sweep_name([words.split() for words in jobs.split(", ")]) == name
