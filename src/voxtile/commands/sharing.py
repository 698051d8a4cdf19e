"""The cases of `voxtile evaluate` scored by several processes, one on each device.

The bands of all cases, in order, are cut into parts of as many windows for each process, so that a big case is shared and a small
one is not. What each counts are integers, whose sums do not depend on how many count. This process counts the first part; others
are started as `python -m voxtile.commands.sharing`, each told the runs, the settings and its part.
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
from voxtile.commands.children import Child, child, order_of
from voxtile.commands.console import console, progress
from voxtile.commands.postprocess import as_typed, postprocess_of
from voxtile.commands.scoring import Job, Scored, Scorer
from voxtile.commands.trained import Trained, device
from voxtile.errors import ConfigError, DataError, RunError, VoxtileError, reason

if TYPE_CHECKING:
    from rich.console import Console

POLL = 0.2  # seconds


@dataclass(frozen=True)
class Part:
    """What one process does of a case.

    Attributes:
        job: the case's place.
        skipped: its bands that others do.
    """

    job: int
    skipped: tuple[Window, ...] = ()


def count_of(config: Mapping[str, Any]) -> int:
    """How many processes are to score, by the `devices` of a command's settings.

    Raises:
        ConfigError: There are not as many devices, or it is no number.
    """
    devices, kind = config["devices"], device(config["device"])
    if devices != "all" and (not isinstance(devices, int) or isinstance(devices, bool) or devices < 1):
        raise ConfigError(f"'devices={devices}' must be a whole number from 1 up, or all for every GPU of this machine.")
    if devices == 1:
        return 1
    if kind.type == "cpu":
        if devices == "all":
            raise ConfigError("'devices=all' counts GPUs. On the CPU, type how many processes share the work: 'devices=2'.")
        return int(devices)
    if kind.index is not None:
        raise ConfigError(
            f"'device={config['device']}' is one device, and 'devices={devices}' asks for more. Leave one of them out."
        )
    there = torch.cuda.device_count()
    if devices != "all" and devices > there:
        raise ConfigError(
            f"'devices={devices}' asks for more GPUs than the {there} that PyTorch finds here. Type 'devices={there}'."
        )
    return there if devices == "all" else int(devices)


def score_all(scorer: Scorer, jobs: Sequence[Job], count: int, out: Console, title: str) -> list[Scored]:
    """Scores cases by `count` processes, with a progress bar; the same whatever the count.

    Raises:
        VoxtileError: What one of the processes raised, or a RunError where one was killed.
    """
    found: list[list[Scored]] = [[] for _ in jobs]
    parts = dealt(scorer, jobs, count)
    with ExitStack() as stack:
        start = stack.enter_context(progress(out))
        noun = "case" if sum(map(len, parts)) == len(jobs) else "part of a case"
        tick = start(sum(map(len, parts)), title, noun)
        others = stack.enter_context(_others(scorer, jobs, parts, tick))
        for part in parts[0]:
            found[part.job].append(scorer.score(jobs[part.job], part.skipped))
            tick()
            others.look()
        for number, scored in others.all():
            found[number].append(scored)
    # Cases that were scored as a whole have one part.
    return [replace(each[0], matrix=np.sum([part.matrix for part in each], axis=0)) for each in found]


def dealt(scorer: Scorer, jobs: Sequence[Job], count: int) -> list[list[Part]]:
    """What each of `count` processes does: runs of bands that follow one another, with about as many windows for each."""
    if count == 1:
        return [[Part(number) for number in range(len(jobs))]]
    bands: list[tuple[int, Window | None, int]] = []  # job, band or all of them, windows
    for number, job in enumerate(jobs):
        pieces = scorer.pieces(job)
        whole = sum(len(row.tiles) for strip in scorer.predictor(job.runs).plan(job.case) for row in strip)
        bands += [(number, band, windows) for band, windows in pieces] or [(number, None, whole)]
    total, before = sum(windows for *_, windows in bands), 0
    owners = []
    for *_, windows in bands:  # by the middle of each
        owners.append(min(count - 1, (2 * before + windows) * count // (2 * total)))
        before += windows
    parts: list[list[Part]] = [[] for _ in range(count)]
    for number in range(len(jobs)):
        mine = [(owner, band) for owner, (job, band, _) in zip(owners, bands, strict=True) if job == number]
        for owner in sorted({owner for owner, _ in mine}):
            parts[owner].append(Part(number, tuple(band for other, band in mine if other != owner and band is not None)))
    return parts


class _Others:
    """The other processes, and what they have counted so far."""

    def __init__(self, processes: Sequence[tuple[Child, Path, Path]], jobs: Sequence[Job], tick: Callable[[], object]) -> None:
        self._processes, self._jobs, self._tick = processes, jobs, tick
        self._heard = 0

    def _said(self, report: Path) -> list[Mapping[str, Any]]:
        lines = report.read_text(encoding="utf-8").splitlines(keepends=True) if report.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def look(self) -> bool:
        """Shows how far they are, and returns whether all have ended.

        Raises:
            VoxtileError: One has failed.
        """
        said = [self._said(report) for _, report, _ in self._processes]
        for _ in range(sum(map(len, said)) - self._heard):
            self._tick()
        self._heard = sum(map(len, said))
        codes = [process.poll() for process, *_ in self._processes]
        for rank, code in enumerate(codes):
            if code:
                _, report, log = self._processes[rank]
                raise _failure(rank + 1, len(codes) + 1, code, self._said(report), log)
        return None not in codes

    def all(self) -> Iterator[tuple[int, Scored]]:
        """Waits until all have ended, and gives the places of cases and what was counted of them."""
        while not self.look():
            time.sleep(POLL)
        for _, report, _ in self._processes:
            for found in self._said(report):
                job = self._jobs[found["job"]]
                yield found["job"], Scored(job.case.native, np.array(found["matrix"]), found["measured"], job.columns)


def _failure(rank: int, count: int, code: int, said: Sequence[Mapping[str, Any]], log: Path) -> VoxtileError:
    told = said[-1].get("failed") if said else None
    if told and told["exit_code"]:
        kind = next((kind for kind in (ConfigError, DataError) if kind.exit_code == told["exit_code"]), RunError)
        return kind(told["message"])
    if told:
        why = told["message"]
    elif code < 0:
        why = f"it was ended by {signal.Signals(-code).name}" + (", as the system does where memory runs out" if code == -9 else "")
    else:
        printed = log.read_text(encoding="utf-8", errors="replace").split() if log.exists() else []
        why = f"it ended with exit code {code}" + (f" and printed: {' '.join(printed)[-300:]}" if printed else "")
    return RunError(
        f"Process {rank} of {count} (numbered from 0), which scored a part of the cases, failed: {why}. The others were ended. "
        "Give the command again, or type 'devices=1'."
    )


@contextmanager
def _others(
    scorer: Scorer, jobs: Sequence[Job], parts: Sequence[Sequence[Part]], tick: Callable[[], object]
) -> Iterator[_Others]:  # fmt: skip
    """Starts a process for every part but the first; while this is open, all share the processors."""
    if len(parts) == 1:
        yield _Others([], jobs, tick)
        return
    on_gpus, threads = device(scorer.config["device"]).type == "cuda", torch.get_num_threads()
    each = threads if on_gpus else max(1, threads // len(parts))
    environment = os.environ | {"OMP_NUM_THREADS": str(each)}
    torch.set_num_threads(each)
    with TemporaryDirectory(prefix="voxtile-") as folder, ExitStack() as stack:
        processes = []
        for rank, mine in enumerate(parts[1:], 1):
            report, log = Path(folder) / f"{rank}.jsonl", Path(folder) / f"{rank}.log"
            typed = as_typed(scorer.post, scorer.dataset.classes)
            settings = {**scorer.config, "devices": 1, "postprocess": typed} | ({"device": f"cuda:{rank}"} if on_gpus else {})
            order = {
                "config": settings, "runs": [str(trained.home.path) for trained, _ in scorer.runs], "report": str(report),
                "parts": [_told(part, jobs[part.job]) for part in mine],
            }  # fmt: skip
            process = stack.enter_context(child("voxtile.commands.sharing", order, environment, log))
            processes.append((process, report, log))
        try:
            yield _Others(processes, jobs, tick)
        finally:
            torch.set_num_threads(threads)


def _told(part: Part, job: Job) -> dict[str, Any]:
    region = None if job.case.region is None else list(job.case.region)
    skipped = [list(window) for window in part.skipped]
    return {"job": part.job, "case": job.case.id, "region": region, "runs": list(job.runs), "skipped": skipped}


def main() -> int:
    """Counts the part that the starter names, and writes a line for each case."""
    order = order_of()
    for number in (signal.SIGINT, signal.SIGTERM):  # the starter ends this process
        signal.signal(number, signal.SIG_IGN)
    code = 0
    with Path(order["report"]).open("a", encoding="utf-8") as report:

        def say(line: Mapping[str, Any]) -> None:
            report.write(json.dumps(line, default=lambda number: number.item()) + "\n")
            report.flush()

        try:
            _count(order, say)
        except VoxtileError as error:
            code = error.exit_code
            say({"failed": {"message": str(error), "exit_code": code}})
        except Exception as error:
            traceback.print_exc()
            code = 1
            say({"failed": {"message": f"{type(error).__name__}: {reason(error)}", "exit_code": 0}})
    return code


def _count(order: Mapping[str, Any], say: Callable[[Mapping[str, Any]], None]) -> None:
    from voxtile.commands.evaluate import prepared_for
    from voxtile.commands.heap import keep_heap
    from voxtile.commands.measures import measures_of

    keep_heap()
    config, out = order["config"], console()
    out.quiet = True
    given = config["weights"], config["trust"], config["root"], config["paths"]["cache"]
    opened = [Trained.open(path, *given) for path in order["runs"]]
    runs = [(trained, prepared_for(trained, config["split"], out)) for trained in opened]
    data = opened[0].manifest["data"]
    post = postprocess_of(config["postprocess"], Path(), data, {})  # settings, as the starter has found them
    scorer = Scorer(runs, config, measures_of(config, data), post)
    for part in order["parts"]:
        sides = runs[part["runs"][0]][1].split.sides[config["split"]]
        region = None if part["region"] is None else Window(*part["region"])
        case = next(case for case in sides if case.id == part["case"] and case.region == region)
        scored = scorer.score(Job(case, tuple(part["runs"])), [Window(*window) for window in part["skipped"]])
        say({"job": part["job"], "matrix": scored.matrix.tolist(), "measured": list(scored.measured)})


if __name__ == "__main__":
    sys.exit(main())
