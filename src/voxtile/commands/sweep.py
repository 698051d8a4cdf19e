"""A sweep on this machine: a process for each job, as many at once as there is room for, and a table of what became of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from voxtile.commands import compose
from voxtile.commands.children import Child, child, forwarding
from voxtile.errors import ConfigError, VoxtileError

POLL = 0.1  # seconds between looks at the jobs
STOPPED = 130  # exit code of a job that was asked to stop


@dataclass
class Outcome:
    """What became of a job.

    Attributes:
        words: its overrides.
        code: its exit code.
        home: its run folder; "" where it did not come so far.
        reason: why it failed.
    """

    words: Sequence[str]
    code: int = 0
    home: str = ""
    reason: str = ""


_OUTCOMES: ContextVar[list[Outcome]] = ContextVar("outcomes")


@contextmanager
def collecting() -> Iterator[list[Outcome]]:
    """The outcomes of the jobs that run while this is open, in their order."""
    token = _OUTCOMES.set([])
    try:
        yield _OUTCOMES.get()
    finally:
        _OUTCOMES.reset(token)


def collected(outcome: Outcome) -> None:
    """Adds an outcome to those that are collected."""
    _OUTCOMES.get().append(outcome)


@dataclass
class Slots:
    """Room for jobs: how many run at once, and the GPUs that are free.

    Attributes:
        jobs: at once.
        gpus: of each job; 0 where jobs share all that there are.
        free: names of GPUs that no job has.
    """

    jobs: int
    gpus: int = 0
    free: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, jobs: object, gpus: object) -> Slots:
        """From `hydra.launcher.jobs` and `hydra.launcher.gpus`.

        Raises:
            ConfigError: They are no numbers, or ask for more GPUs than there are.
        """
        if gpus != "auto" and (not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 0):
            raise ConfigError(f"'hydra.launcher.gpus={gpus}' must be auto or a whole number, 0 or more: how many each job has.")
        if jobs != "auto" and (not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1):
            raise ConfigError(f"'hydra.launcher.jobs={jobs}' must be auto or a whole number from 1 up: how many run at once.")
        names = _gpus() if gpus or jobs == "auto" else []
        each = min(1, len(names)) if gpus == "auto" else int(str(gpus))
        if each > len(names):
            raise ConfigError(
                f"'hydra.launcher.gpus={gpus}' asks for more GPUs for each job than the {len(names)} that PyTorch finds here."
            )
        return cls(max(1, len(names) // max(1, each)) if jobs == "auto" else int(str(jobs)), each, names)

    def take(self) -> list[str] | None:
        """GPUs for a job; None where too few are free."""
        if len(self.free) < self.gpus:
            return None
        taken, self.free = self.free[: self.gpus], self.free[self.gpus :]
        return taken


def _gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else []
    return names or [str(number) for number in range(torch.cuda.device_count())]


@dataclass
class _Running:
    number: int
    outcome: Outcome
    process: Child
    report: Path
    gpus: list[str]
    began: float
    stack: ExitStack


def launch(jobs: Sequence[tuple[Sequence[str], DictConfig]], slots: Slots, folder: Path) -> list[Outcome]:
    """Runs jobs, (overrides, configuration) each, and returns what became of each; more are not begun once one was asked to stop.

    Args:
        jobs: what is to be trained.
        slots: how many at once.
        folder: where jobs leave what became of them, and print where several run at once.
    """
    from voxtile.commands.console import console
    from voxtile.commands.tables import titles

    out = console()
    outcomes = [Outcome(tuple(words)) for words, _ in jobs]
    name = hashlib.sha256(json.dumps([outcome.words for outcome in outcomes]).encode()).hexdigest()[:8]
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    waiting: list[int] = list(range(len(jobs)))
    running: list[_Running] = []
    heard: list[int] = []
    names = titles([outcome.words for outcome in outcomes])

    def forward(number: int) -> None:
        heard.append(number)
        for each in running:
            if each.process.poll() is None:
                each.process.send_signal(number)

    def say(number: int, text: str) -> None:
        out.print(f"job {number + 1} of {len(jobs)}: {names[number]}  {text}".rstrip(), soft_wrap=True)

    try:
        with forwarding(forward):
            while running or (waiting and not heard):
                while waiting and not heard and len(running) < slots.jobs:
                    number = waiting[0]
                    if _is_known(outcomes[number], jobs[number][1]):
                        say(waiting.pop(0), f"finished before: {outcomes[number].home}")
                        continue
                    gpus = slots.take()
                    if gpus is None:
                        break
                    log = place / f"{number}.log" if slots.jobs > 1 else None
                    say(waiting.pop(0), f"begins{f' on GPU {chr(44).join(gpus)}' if gpus else ''}{f', see {log}' if log else ''}")
                    running.append(_begun(number, outcomes[number], gpus, place, log))
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    slots.free += each.gpus
                    _end(each)
                    if slots.jobs > 1:
                        ended = {0: "done", STOPPED: "stopped"}.get(each.outcome.code, f"failed: {each.outcome.reason}")
                        say(each.number, f"{ended} after {time.monotonic() - each.began:.0f} s")
                time.sleep(POLL)
    finally:
        for each in running:
            each.stack.close()
    for number in waiting:
        outcomes[number].code, outcomes[number].reason = STOPPED, "not begun"
    for number, outcome in enumerate(outcomes):
        collected(outcome)
        (place / f"{number}.json").unlink(missing_ok=True)
    if slots.jobs == 1 or not any(outcome.code for outcome in outcomes):
        shutil.rmtree(place)
    if heard:
        raise compose.StoppedError
    return outcomes


def _is_known(outcome: Outcome, config: DictConfig) -> bool:
    """Whether a job's run is finished already, without starting a process to look. What is wrong with it, the process will say."""
    from voxtile.commands.train import finished_run

    if not any(Path(str(OmegaConf.select(config, "paths.runs"))).expanduser().glob("*/recipe.json")):
        return False
    try:
        with compose.cache_at(OmegaConf.select(config, "paths.cache")):
            home = finished_run(compose.job_config(config))
    except (VoxtileError, OSError):
        return False
    outcome.home = "" if home is None else str(home.path)
    return home is not None


def _begun(number: int, outcome: Outcome, gpus: list[str], place: Path, log: Path | None) -> _Running:
    report = place / f"{number}.json"
    report.unlink(missing_ok=True)
    environment: Mapping[str, str] = os.environ
    if gpus:
        environment = {**environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    flags = [word for folder in compose.further_folders() for word in ("--config-dir", str(folder))]
    order = {"words": [*flags, *outcome.words], "report": str(report.absolute())}
    stack = ExitStack()
    process = stack.enter_context(child("voxtile.commands.job", order, environment, log))
    return _Running(number, outcome, process, report, gpus, time.monotonic(), stack)


def _end(job: _Running) -> None:
    """Takes down what became of a job whose process has ended."""
    job.stack.close()
    code, outcome = job.process.returncode, job.outcome
    if job.report.exists():
        found = json.loads(job.report.read_text(encoding="utf-8"))
        outcome.code, outcome.home, outcome.reason = found["code"], found["home"], found["reason"]
    else:
        number = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        outcome.code = code if code > 0 else 1
        outcome.reason = f"its process ended with {number} and said nothing" + (
            ", as where memory runs out" if code == -signal.SIGKILL else ""
        )


def report_of(outcome: Outcome) -> str:
    """A job's outcome as it is handed to the process that started it."""
    return json.dumps(asdict(outcome))
