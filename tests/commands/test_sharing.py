"""Cases scored by several processes: the same integers, each pixel counted once, and a failure said once."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Command, Run, trained
from tests.testers.tiny import odd_words, scene_words, volume_words
from voxtile.commands import sharing
from voxtile.commands.children import Child, child
from voxtile.commands.scoring import Job


def written(home: Path, name: str = "val-best") -> dict[str, str]:
    folder = home / "evaluations" / name
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(found) == {"cases.csv", "summary.json"}
    shutil.rmtree(folder)  # or the next command might have written nothing
    return found


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with seven validation cases of odd sizes."""
    folder = tmp_path_factory.mktemp("odd")
    return trained(folder, [*odd_words(folder), f"paths.runs={folder / 'runs'}"])


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_processes_counts_the_same(odd_run: Run, voxtile: Command, count: int) -> None:
    """Seven cases of odd sizes, of which processes share some."""
    words = ["evaluate", f"run={odd_run.home}", "split=val"]
    alone = voxtile(*words)
    assert alone.code == 0, alone.text
    found = written(odd_run.home)
    said = voxtile(*words, f"devices={count}")
    assert said.code == 0, said.text
    assert "evaluating val, 7 cases: " in said.text
    assert written(odd_run.home) == found
    assert said.text.partition("whole cases")[2] == alone.text.partition("whole cases")[2]


@pytest.mark.slow
def test_cases_that_are_measured_are_not_cut(odd_run: Run, voxtile: Command) -> None:
    found = []
    for count in (1, 2):
        said = voxtile("evaluate", f"run={odd_run.home}", "objects=true", f"devices={count}")
        assert said.code == 0, said.text
        assert "evaluating val: 7 cases" in said.text
        found.append(written(odd_run.home))
    assert found[0] == found[1]


@pytest.mark.slow
def test_one_case_that_is_not_cut_is_left_to_one_process(tmp_path: Path, voxtile: Command) -> None:
    """What is said of how objects are joined does not depend on which process met one."""
    run = trained(tmp_path, [*volume_words(tmp_path), "data.limit=1"])
    found = []
    for count in (1, 2):
        said = voxtile("evaluate", f"run={run.home}", "objects=true", "lesions=true", f"devices={count}")
        assert said.code == 0, said.text
        found.append(written(run.home))
    assert found[0] == found[1]
    assert '"connectivity": 26' in found[0]["summary.json"]


@pytest.mark.slow
def test_blocks_and_looks_at_a_test_split_are_as_with_one_process(tmp_path: Path, voxtile: Command) -> None:
    words = [*scene_words(tmp_path), "split=blocks", "split.blocks=[2,2]", "split.test=0.25"]
    run = trained(tmp_path, words)
    assert any("#" in case["id"] for case in run.read("manifest.json")["data"]["split"]["test"])
    found = []
    for number, count in enumerate((1, 3), 1):
        said = voxtile("evaluate", f"run={run.home}", "split=test", f"devices={count}", f"paths.runs={tmp_path / 'runs'}")
        assert said.code == 0, said.text
        assert f"look number {number} at this test split" in said.text
        found.append(written(run.home, "test-best"))
    assert found[0] == found[1]
    (ledger,) = (tmp_path / "runs" / "test_ledger").iterdir()
    assert len(ledger.read_text().splitlines()) == 2


class _Row:
    def __init__(self, windows: int) -> None:
        self.tiles = range(windows)


class _Planned:
    """A scorer that only plans: rows of windows by case."""

    def __init__(self, cases: list[list[int]], whole: bool) -> None:
        self.cases, self.whole = cases, whole

    def rows(self, job: Any) -> list[_Row]:
        return [_Row(windows) for windows in self.cases[job.case]]

    def may_cut(self, job: Any) -> bool:
        return not self.whole


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("whole", [False, True])
def test_every_band_is_dealt_once_and_nobody_has_much_more(count: int, whole: bool) -> None:
    cases = [[4] * 50, [1], [3, 3, 3], [2] * 10, [7]]
    numbers: Any = range(len(cases))  # in place of cases
    jobs = [Job(number) for number in numbers]
    scorer: Any = _Planned(cases, whole)
    parts = sharing.dealt(scorer, jobs, count)
    assert len(parts) <= count
    assert all(parts)  # nobody is started for nothing
    done, loads = [], []
    for part in parts:
        rows = [(each.job, row) for each in part for row in range(*(each.rows or (0, len(cases[each.job]))))]
        assert all((each.rows is None) == (whole or count == 1) for each in part)
        done += rows
        loads.append(sum(cases[job][row] for job, row in rows))
    assert sorted(done) == [(job, row) for job, rows in enumerate(cases) for row in range(len(rows))]
    if not whole:
        assert max(loads) - sum(loads) / len(loads) <= 7


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """The processes that commands start from here on."""
    found: list[Child] = []

    @contextmanager
    def seen(module: str, order: dict[str, Any], environment: dict[str, str], log: Path) -> Iterator[Child]:
        with child(module, order, environment, log) as process:
            found.append(process)
            yield process

    monkeypatch.setattr(sharing, "child", seen)
    return found


def test_a_process_that_fails_is_named_and_the_others_end(
    odd_run: Run, voxtile: Command, monkeypatch: pytest.MonkeyPatch, started: list[Child]
) -> None:
    look = sharing._Others.look

    def killing(self: sharing._Others) -> bool:
        started[1].kill()
        started[1].wait()
        return look(self)

    monkeypatch.setattr(sharing._Others, "look", killing)
    said = voxtile("evaluate", f"run={odd_run.home}", "devices=3")
    assert said.code == 4
    assert "Process 2 of 3 (numbered from 0), which scored a part of the cases, failed: it was ended by SIGKILL" in said.text
    assert all(process.poll() is not None for process in started)


def test_a_command_that_is_ended_leaves_no_process_and_no_folder(
    odd_run: Run, voxtile: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: list[Child]
) -> None:
    monkeypatch.setattr(sharing._Others, "look", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = voxtile("evaluate", f"run={odd_run.home}", "devices=2")
    assert said.code == 130
    assert "Stopped." in said.text
    assert [process.poll() for process in started] == [-signal.SIGKILL]
    assert list(tmp_path.iterdir()) == []


def test_what_a_process_refuses_is_said_as_it_said_it(odd_run: Run, voxtile: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def told(module: str, order: dict[str, Any], environment: dict[str, str], log: Path) -> Iterator[Child]:
        with child(module, order | {"runs": [f"{odd_run.home}x"]}, environment, log) as process:
            process.wait()
            yield process

    monkeypatch.setattr(sharing, "child", told)
    said = voxtile("evaluate", f"run={odd_run.home}", "devices=2")
    assert said.code == 4
    assert f"{odd_run.home}x" in said.text
    assert "Process" not in said.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["devices=0"], "'devices=0' is no number of processes"),
        (["devices=all", "device=cpu"], "'devices=all' counts GPUs"),
        (["devices=2", "postprocess=search"], "'postprocess=search' compares all maps in one process. Type 'devices=1'."),
    ],
)
def test_what_cannot_be_shared_is_refused(scene_run: Run, voxtile: Command, words: list[str], message: str) -> None:
    said = voxtile("evaluate", f"run={scene_run.home}", *words)
    assert said.code == 2
    assert message in said.text
