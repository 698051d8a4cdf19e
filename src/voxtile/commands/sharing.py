"""The cases of `voxtile evaluate` scored by several processes, one on each device.

The rows of windows of all cases, in order, are cut into parts of as many windows for each process, so that a big case is shared
and a small one is not. Each counts integers, so sums do not depend on the number of processes. This process counts the first
part; others are started as `python -m voxtile.commands.sharing`, each told the runs, the settings and its part.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from voxtile.cases.window import Window
from voxtile.commands.children import POLL, Child, child, forwarding, how_it_ended, order_of, retold, told
from voxtile.commands.console import console, progress
from voxtile.commands.devices import check_count, device_called
from voxtile.commands.elsewhere import judged, side_of
from voxtile.commands.postprocess import as_typed, postprocess_of
from voxtile.commands.scoring import Job, Scored, Scorer
from voxtile.commands.trained import Trained
from voxtile.errors import ConfigError, RunError, VoxtileError, counted
from voxtile.scores.labels import MODULUS
from voxtile.values import is_whole

if TYPE_CHECKING:
    from rich.console import Console

GLANCE = 1.0  # seconds between looks at the others while this process works itself


@dataclass(frozen=True)
class Part:
    """What one process does of a case.

    Attributes:
        job: the case's place.
        rows: the first of its rows of windows, and the one after the last; None for a case that is not cut.
    """

    job: int
    rows: tuple[int, int] | None = None


def count_of(config: Mapping[str, Any]) -> int:
    """How many processes are to score, by the `devices` of a command's settings.

    Raises:
        ConfigError: There are not as many devices, or it is no number.
    """
    devices, kind = config["devices"], device_called(config["device"])
    if devices != "all" and not is_whole(devices, 1):
        raise ConfigError(
            f"'devices={devices}' is no number of processes. Type a whole one from 1 up, or all for every GPU of this machine."
        )
    if devices == 1:
        return 1
    if kind.type == "cpu" and devices == "all":
        raise ConfigError("'devices=all' counts GPUs. On the CPU, type how many processes share the work: 'devices=2'.")
    if kind.type == "cpu":
        return int(devices)
    if kind.type != "cuda" or kind.index is not None:
        raise ConfigError(
            f"'device={config['device']}' is one device, and 'devices={devices}' asks for more. Leave one of them out."
        )
    there = torch.cuda.device_count()
    if devices != "all":
        check_count(f"devices={devices}", devices, there, f" Type 'devices={there}'.")
    return there if devices == "all" else int(devices)


def score_all(scorer: Scorer, jobs: Sequence[Job], count: int, out: Console, title: str) -> list[Scored]:
    """Scores cases by up to `count` processes, with a progress bar; the same whatever the count.

    Raises:
        VoxtileError: What one of the processes raised, or a RunError where one was killed.
    """
    found: list[list[Scored]] = [[] for _ in jobs]
    parts = dealt(scorer, jobs, count)
    pieces = sum(map(len, parts))
    with progress(out) as start:
        cut = pieces > len(jobs)
        tick = start(pieces, f"{title}, {counted(len(jobs), 'case')}" if cut else title, "part" if cut else "case")
        with _others(scorer, jobs, parts[1:], tick) as others:
            for part in parts[0]:
                found[part.job].append(scorer.score(jobs[part.job], part.rows, others.glance))
                tick()
            for number, scored in others.all():
                found[number].append(scored)
    # Cases that were scored as a whole have one part.
    matrices = [np.sum([part.matrix for part in each], axis=0) for each in found]
    labels = [sum(part.labels for part in each) % MODULUS for each in found]
    return [replace(each[0], matrix=a, labels=b) for each, a, b in zip(found, matrices, labels, strict=True)]


def dealt(scorer: Scorer, jobs: Sequence[Job], count: int) -> list[list[Part]]:
    """What each of up to `count` processes does: rows that follow one another, with about as many windows for each."""
    if count == 1:
        return [[Part(number) for number in range(len(jobs))]]
    rows: list[tuple[int, int | None, int]] = []  # job, its row or all of them, windows
    for number, job in enumerate(jobs):
        each = [len(row.tiles) for row in scorer.rows(job)]
        if scorer.may_cut(job):
            rows += [(number, place, windows) for place, windows in enumerate(each)]
        else:
            rows.append((number, None, sum(each)))
    total, before = sum(windows for *_, windows in rows), 0
    parts: list[list[Part]] = [[] for _ in range(count)]
    for number, place, windows in rows:
        mine = parts[(2 * before + windows) * count // (2 * total)]  # by the middle of the row
        before += windows
        if place is None:
            mine.append(Part(number))
        elif mine and mine[-1].job == number and mine[-1].rows is not None:
            mine[-1] = Part(number, (mine[-1].rows[0], place + 1))
        else:
            mine.append(Part(number, (place, place + 1)))
    return [part for part in parts if part]


class _Other:
    """One of the other processes, and what it has said so far."""

    def __init__(self, process: Child, report: Path, log: Path) -> None:
        self.process, self.log = process, log
        self.said: list[dict[str, Any]] = []
        self._report, self._read = report, 0

    def hear(self) -> int:
        """Reads on, and returns how many lines there were."""
        if not self._report.exists():
            return 0
        with self._report.open("rb") as report:
            report.seek(self._read)
            new = report.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        lines = [json.loads(line) for line in whole.splitlines()]
        self.said += lines
        return len(lines)


class _Others:
    """The other processes."""

    def __init__(self, processes: Sequence[_Other], jobs: Sequence[Job], tick: Callable[[], object]) -> None:
        self._processes, self._jobs, self._tick = processes, jobs, tick
        self._looked = time.monotonic()

    def glance(self) -> None:
        """Looks after them, but not at every call."""
        if time.monotonic() - self._looked >= GLANCE:
            self.look()

    def look(self) -> bool:
        """Shows how far they are, and returns whether all have ended.

        Raises:
            VoxtileError: A process has failed.
        """
        self._looked = time.monotonic()
        codes = [each.process.poll() for each in self._processes]  # before what they have said is read
        for _ in range(sum(each.hear() for each in self._processes)):
            self._tick()
        for rank, code in enumerate(codes):
            if code:
                raise _failure(rank + 1, len(codes) + 1, code, self._processes[rank])
        return None not in codes

    def all(self) -> Iterator[tuple[int, Scored]]:
        """Waits until all have ended, and gives the places of cases and what was counted of them."""
        while not self.look():
            time.sleep(POLL)
        for each in self._processes:
            for found in each.said:
                job = self._jobs[found["job"]]
                matrix = np.array(found["matrix"])
                yield found["job"], Scored(job.case.native, matrix, found["measured"], job.columns, found["labels"])


def _failure(rank: int, count: int, code: int, other: _Other) -> VoxtileError:
    failed = other.said[-1].get("failed") if other.said else None
    if failed and failed["known"]:
        return retold(failed)
    if failed:
        why = failed["message"]
    else:
        printed = other.log.read_text(encoding="utf-8", errors="replace").split() if code > 0 and other.log.exists() else []
        why = f"it {how_it_ended(code)}" + (f" and printed: {' '.join(printed)[-300:]}" if printed else "")
    return RunError(
        f"Process {rank} of {count} (numbered from 0), which scored a part of the cases, failed: {why}. The others were ended. "
        "Give the command again, or type 'devices=1'."
    )


@contextmanager
def _others(scorer: Scorer, jobs: Sequence[Job], parts: Sequence[Sequence[Part]], tick: Callable[[], object]) -> Iterator[_Others]:
    """Starts a process for each part; while this is open, they and this one share the processors."""
    if not parts:
        yield _Others([], jobs, tick)
        return
    on_gpus, threads = device_called(scorer.config["device"]).type == "cuda", torch.get_num_threads()
    each = threads if on_gpus else max(1, threads // (len(parts) + 1))
    environment = os.environ | {"OMP_NUM_THREADS": str(each)}
    runs = [str(trained.home.path) for trained, _ in scorer.runs]
    settings = {**scorer.config, "devices": 1, "postprocess": as_typed(scorer.post, scorer.dataset.classes)}
    torch.set_num_threads(each)
    try:
        with forwarding(_stop), TemporaryDirectory(prefix="voxtile-") as folder, ExitStack() as stack:
            processes = []
            for rank, mine in enumerate(parts, 1):
                report, log = Path(folder) / f"{rank}.jsonl", Path(folder) / f"{rank}.log"
                own = settings | ({"device": f"cuda:{rank}"} if on_gpus else {})
                ordered = [_ordered(part, jobs[part.job]) for part in mine]
                order = {"config": own, "runs": runs, "report": str(report), "parts": ordered}
                process = stack.enter_context(child("voxtile.commands.sharing", order, environment, log))
                processes.append(_Other(process, report, log))
            yield _Others(processes, jobs, tick)
    finally:
        torch.set_num_threads(threads)


def _stop(number: int) -> None:
    """What ends this process ends the others, and takes away what they have written."""
    raise KeyboardInterrupt


def _ordered(part: Part, job: Job) -> dict[str, Any]:
    region = None if job.case.region is None else list(job.case.region)
    return {"job": part.job, "case": job.case.id, "region": region, "runs": list(job.runs), "rows": part.rows}


def main() -> int:
    """Counts the part that the starter names, and writes a line for each case."""
    order = order_of()
    for number in (signal.SIGINT, signal.SIGTERM):  # the starter ends this process
        signal.signal(number, signal.SIG_IGN)
    with Path(order["report"]).open("a", encoding="utf-8") as report:

        def say(line: Mapping[str, Any]) -> None:
            report.write(json.dumps(line, default=lambda number: number.item()) + "\n")
            report.flush()

        try:
            _count(order, say)
        except Exception as error:
            if not isinstance(error, VoxtileError):
                traceback.print_exc()
            failed = told(error)
            say({"failed": failed})
            return int(failed["exit_code"])
    return 0


def _count(order: Mapping[str, Any], say: Callable[[Mapping[str, Any]], None]) -> None:
    from voxtile.commands.heap import keep_heap
    from voxtile.commands.measures import measures_of

    keep_heap()
    config, out = order["config"], console()
    out.quiet = True
    opened = [Trained.of(config, path, config["weights"]) for path in order["runs"]]
    runs = [(trained, judged(trained, config, out)) for trained in opened]
    data = opened[0].manifest["data"]
    post = postprocess_of(config["postprocess"], Path(), data, {})  # settings, as the starter has found them
    scorer = Scorer(runs, config, measures_of(config, data), post)
    sides = [{(case.id, case.region): case for case in prepared.split.sides[side_of(config)]} for _, prepared in runs]
    for part in order["parts"]:
        region = None if part["region"] is None else Window(*part["region"])
        case = sides[part["runs"][0]][part["case"], region]
        scored = scorer.score(Job(case, tuple(part["runs"])), part["rows"])
        counted_there = {"matrix": scored.matrix.tolist(), "labels": scored.labels, "measured": list(scored.measured)}
        say({"job": part["job"], **counted_there})


if __name__ == "__main__":
    sys.exit(main())
