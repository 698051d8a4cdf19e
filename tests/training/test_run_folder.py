"""Who may write to a run folder, and what its files say of its state."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from voxtile.errors import RunError
from voxtile.training import run_folder
from voxtile.training.processes import start_time
from voxtile.training.recipe import Recipe
from voxtile.training.run_folder import SILENCE, RunFolder, clear_halves

RECIPE = Recipe({"seed": 0}, "data", "split", 1)


@pytest.fixture
def home(tmp_path: Path) -> RunFolder:
    return RunFolder.of(tmp_path, "a-unet-s0", RECIPE)


@pytest.fixture
def other():
    """A living process that is not this one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate(b"\n")


def held_by(home: RunFolder, pid: int, started: str, host: str = os.uname().nodename, age: float = 0) -> None:
    """What a process leaves when it is killed, or while it trains."""
    home._make()
    lease = home.path / "lease.json"
    lease.write_text(json.dumps({"host": host, "pid": pid, "started": started}))
    os.utime(lease, (time.time() - age,) * 2)
    home.set_status("running", step=3)


def test_the_folder_is_made_with_its_recipe_by_the_first_lease(home: RunFolder) -> None:
    assert home.path.name == f"a-unet-s0-{RECIPE.identity[:8]}"
    assert not home.path.exists()
    assert home.status == {"state": "queued"}
    with home.lease():
        assert home.read("recipe.json") == RECIPE.as_dict() | {"identity": RECIPE.identity}
        assert home.read("lease.json")["pid"] == os.getpid()
    assert not (home.path / "lease.json").exists()
    assert RunFolder.existing(home.path).read("recipe.json")["identity"] == RECIPE.identity


def test_a_run_is_found_by_its_recipe_under_another_name(home: RunFolder, tmp_path: Path) -> None:
    with home.lease():
        pass
    assert RunFolder.of(tmp_path, "a-fcn8s-s0", RECIPE).path == home.path
    other = replace(RECIPE, data="other")
    assert RunFolder.of(tmp_path, "a-fcn8s-s0", other).path.name == f"a-fcn8s-s0-{other.identity[:8]}"
    (home.path / "export.json").write_text("{}")  # a bundle is no run to go on with
    assert RunFolder.of(tmp_path, "a-fcn8s-s0", RECIPE).path != home.path
    (home.path / "export.json").unlink()
    home.path.rename(tmp_path / f"old-{home.path.name}")  # as a user moves a run away
    assert RunFolder.of(tmp_path, "a-unet-s0", RECIPE).path == home.path


def test_a_living_process_keeps_its_run(home: RunFolder, other: subprocess.Popen) -> None:
    held_by(home, other.pid, start_time(other.pid), age=10 * SILENCE)  # a busy process may be late with its heartbeat
    assert home.status["state"] == "running"
    with pytest.raises(RunError, match=f"is being trained by process {other.pid} on {os.uname().nodename}"), home.lease():
        pass
    assert home.read("lease.json")["pid"] == other.pid


def test_numbers_of_processes_say_nothing_of_another_container(home: RunFolder) -> None:
    """One of the same host name, in which a living process may have a number that nobody has here."""
    lease = home.path / "lease.json"
    for age, lives in ((0, True), (2 * SILENCE, False)):
        held_by(home, 10**9, "1", age=age)
        lease.write_text(json.dumps(json.loads(lease.read_text()) | {"numbers": "pid:[1]"}))
        os.utime(lease, (time.time() - age,) * 2)
        assert home.status["state"] == ("running" if lives else "interrupted")


def test_the_same_process_cannot_take_a_run_twice(home: RunFolder) -> None:
    with home.lease():
        with pytest.raises(RunError, match="is being trained"), home.lease():
            pass
        assert home.read("lease.json")["pid"] == os.getpid()


def test_who_waits_says_so_once_and_keeps_nobody_from_being_refused(
    home: RunFolder, other: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "POLL", 0.01)
    held_by(home, other.pid, start_time(other.pid))
    told: list[str] = []
    waiting, refused = threading.Event(), threading.Event()

    def wait() -> None:
        with home.lease(wait=lambda sentence: (told.append(sentence), waiting.set())):
            told.append("held")

    def ask() -> None:
        with pytest.raises(RunError, match="is being trained"), home.lease():
            pass
        refused.set()

    waiter, third = (threading.Thread(target=target, daemon=True) for target in (wait, ask))
    waiter.start()
    assert waiting.wait(10)
    third.start()
    assert refused.wait(10)
    time.sleep(0.1)  # ten more looks
    assert told == [f"waiting: the run {home.path} is being trained by process {other.pid} on {os.uname().nodename}"]
    (home.path / "lease.json").unlink()
    waiter.join(10)
    assert told[1:] == ["held"]


def test_of_two_that_look_at_once_one_holds_the_run(home: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path, text: str) -> None:
        time.sleep(0.1 * (path.name == "lease.json"))
        write(path, text)

    def hold() -> None:
        try:
            with home.lease():
                ends.append("held")
                done.wait(10)
        except RunError:
            ends.append("refused")
            done.set()

    write, done = run_folder.atomic_text, threading.Event()
    monkeypatch.setattr(run_folder, "atomic_text", slow)
    home._make()
    ends: list[str] = []
    threads = [threading.Thread(target=hold, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(ends) == ["held", "refused"]


def test_a_dead_process_loses_its_run(home: RunFolder) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held_by(home, gone.pid, "1")
    assert home.status == {"state": "interrupted", "step": 3}
    with home.lease():
        assert home.read("lease.json")["pid"] == os.getpid()


def test_a_later_process_with_the_same_number_is_told_apart(home: RunFolder, other: subprocess.Popen) -> None:
    held_by(home, other.pid, "1")  # ticks after the system's start, long before this process
    assert home.status["state"] == "interrupted"
    with home.lease():
        assert home.read("lease.json")["pid"] == os.getpid()


def test_another_machine_s_process_lives_while_its_heart_beats(home: RunFolder) -> None:
    held_by(home, 1, "1", host="elsewhere", age=SILENCE / 2)
    assert home.status["state"] == "running"
    with pytest.raises(RunError, match="process 1 on elsewhere"), home.lease():
        pass
    held_by(home, 1, "1", host="elsewhere", age=SILENCE + 5)
    assert home.status["state"] == "interrupted"
    with home.lease():
        assert home.read("lease.json")["host"] == os.uname().nodename


def test_the_heart_beats(home: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "HEARTBEAT", 0.01)
    with home.lease():
        lease = home.path / "lease.json"
        os.utime(lease, (0, 0))
        deadline = time.monotonic() + 30
        while lease.stat().st_mtime < time.time() - 60:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_lease_that_is_cut_off_is_nobodys(home: RunFolder) -> None:
    held_by(home, os.getpid(), start_time(os.getpid()))
    (home.path / "lease.json").write_text('{"host": "a')
    assert home.status["state"] == "interrupted"
    with home.lease():
        assert home.read("lease.json")["pid"] == os.getpid()


def test_what_killed_processes_were_writing_goes_and_what_others_are_writing_stays(home: RunFolder) -> None:
    left = [home.path / f".{number}-5.resume.pt" for number in (os.getpid(), 10**8, 10**12)]  # no process has the large numbers
    kept = [
        home.path / f".{os.getppid()}-5.crf.json",
        home.path / "evaluations" / "test-best" / f".{10**8}-5.cases.csv",  # a process of another machine
        home.path / ".1-a.txt",
    ]
    for file in (*left, *kept):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with home.lease():
        assert [file for file in (*left, *kept) if file.exists()] == kept


def test_without_a_lease_what_other_machines_may_be_writing_stays(tmp_path: Path) -> None:
    names = (f".{10**8}-5.cases.csv", f".{10**8}-6.cases.csv", f".{os.getppid()}-5.cases.csv", ".1-a.txt", "cases.csv")
    for name in names:
        (tmp_path / name).touch()
        if name != names[1]:
            os.utime(tmp_path / name, (0, 0))
    clear_halves(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])


def test_the_lease_ends_with_an_error_too(home: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError), home.lease():
        raise ZeroDivisionError
    assert not (home.path / "lease.json").exists()


@pytest.mark.parametrize("state", ["interrupted", "failed", "finished"])
def test_a_state_comes_back_with_its_facts(home: RunFolder, state: str) -> None:
    home._make()
    home.set_status(state, step=7, best={"score": 0.5})
    assert home.status == {"state": state, "step": 7, "best": {"score": 0.5}}


def test_a_folder_of_another_version_is_refused(home: RunFolder, tmp_path: Path) -> None:
    home.write("recipe.json", RECIPE.as_dict() | {"version": 2})
    for opened in (lambda: RunFolder.existing(home.path), lambda: RunFolder.of(tmp_path, "a-unet-s0", RECIPE)):
        with pytest.raises(RunError, match="written by version 2 of the run format; this program reads version 1"):
            opened()


def test_what_is_no_run_folder_is_named_with_the_runs_beside_it(home: RunFolder) -> None:
    with home.lease(), pytest.raises(RunError, match=rf"is no run folder.*'run=<folder>'.*{home.path.name}"):
        RunFolder.existing(home.path.parent / "b")


def test_a_file_that_is_cut_off_is_named(home: RunFolder) -> None:
    home.write("status.json", {"state": "running"})
    (home.path / "status.json").write_text('{"sta')
    with pytest.raises(RunError, match=r"status\.json cannot be read"):
        _ = home.status


HUGE = json.dumps({"host": os.uname().nodename, "pid": 10**30, "started": "1"})


@pytest.mark.parametrize("lease", ["{}", "[]", '{"host": "a", "pid": "b", "started": ""}', HUGE])
def test_a_lease_that_is_none_is_nobodys(home: RunFolder, lease: str) -> None:
    held_by(home, os.getpid(), start_time(os.getpid()))
    (home.path / "lease.json").write_text(lease)
    assert home.status["state"] == "interrupted"


def test_a_process_whose_run_was_taken_over_writes_nothing_more(home: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "HEARTBEAT", 0.01)
    theirs = json.dumps({"host": "elsewhere", "pid": 1, "started": "2"})
    with home.lease():
        home.check_held()
        (home.path / "lease.json").write_text(theirs)
        assert home.lost.wait(10)
        with pytest.raises(RunError, match="taken over by another machine"):
            home.check_held()
    assert (home.path / "lease.json").read_text() == theirs
