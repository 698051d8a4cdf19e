"""A sweep on this machine: a process for each job, as many at once as there is room for, and a table of what became of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from voxtile.commands import compose
from voxtile.commands.children import POLL, SAVING, UNHEARD, Child, child, forwarding, how_it_ended
from voxtile.commands.devices import check_count
from voxtile.commands.guard import STOPPED, StoppedError
from voxtile.commands.names import sweep_name, titles
from voxtile.errors import ConfigError
from voxtile.values import is_whole

UNDER_WAY = -1  # stands for an exit code until there is one
NOT_BEGUN = "not begun"  # the reason of a job that the command was asked to stop before


@dataclass
class Outcome:
    """What became of a job.

    Attributes:
        words: its overrides.
        code: its exit code.
        home: its run folder; "" where it did not come so far.
        reason: why it failed.
        told: whether a table has shown it already.
    """

    words: Sequence[str]
    code: int = 0
    home: str = ""
    reason: str = ""
    told: bool = False

    def read(self, report: Path) -> None:
        """Takes over what the job's process has left in a file, see `report_of`."""
        vars(self).update(json.loads(report.read_text(encoding="utf-8")))


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
    def of(cls, jobs: object, gpus: object, settings: str = "hydra.launcher") -> Slots:
        """From `jobs` and `gpus` of the launcher, or of other `settings`.

        Raises:
            ConfigError: They are no numbers, or ask for more GPUs than there are.
        """
        if gpus != "auto" and not is_whole(gpus, 0):
            raise ConfigError(f"'{settings}.gpus={gpus}' must be auto or a whole number, 0 or more: how many each job has.")
        if jobs != "auto" and not is_whole(jobs, 1):
            raise ConfigError(f"'{settings}.jobs={jobs}' must be auto or a whole number from 1 up: how many run at once.")
        names = _gpus() if gpus or jobs == "auto" else []
        each = min(1, len(names)) if gpus == "auto" else int(str(gpus))
        check_count(f"{settings}.gpus={gpus}", each, len(names), each=" for each job")
        return cls(max(1, len(names) // max(1, each)) if jobs == "auto" else int(str(jobs)), each, names)

    def take(self) -> list[str]:
        """GPUs for a job, of which enough must be free."""
        taken, self.free = self.free[: self.gpus], self.free[self.gpus :]
        return taken


def _gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


@dataclass(eq=False)  # each is one of its own
class Job:
    """A job of a sweep.

    Attributes:
        title: what tells it from the others.
        outcome: what becomes of it.
        config: Hydra's, composed.
        order: what it is told instead of its words, where it is no job of a multirun.
        more: what it is told beside them.
        environment: variables of its own.
        process: the one that it runs in, once it does.
        gpus: names of those that it has.
        began: when its process did, by `time.monotonic`.
    """

    title: str
    outcome: Outcome
    config: DictConfig
    order: Mapping[str, Any] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    process: Child | None = None
    gpus: list[str] = field(default_factory=list)
    began: float = 0.0
    _stack: ExitStack = field(default_factory=ExitStack)
    _report: Path = Path()
    _asked: bool = False

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Asks it to save and end."""
        if self.process is not None and self.process.poll() is None:
            self._asked = True
            self.process.send_signal(number)

    @property
    def home(self) -> Path | None:
        """Its run folder, once it has one."""
        self._hear()
        return Path(self.outcome.home) if self.outcome.home else None

    def begin(self, gpus: list[str], report: Path, log: Path | None) -> None:
        """Starts its process."""
        report.unlink(missing_ok=True)
        environment = {**os.environ, **self.environment}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self.process = self._stack.enter_context(child("voxtile.commands.job", order_of_job(self, report), environment, log))
        self._report, self.gpus, self.began = report, gpus, time.monotonic()

    @property
    def has_ended(self) -> bool:
        """Whether its process has."""
        return self.process is not None and self.process.poll() is not None

    def end(self) -> None:
        """Takes down what became of it, now that its process has ended."""
        assert self.process is not None
        self._stack.close()
        code, outcome = self.process.returncode, self.outcome
        self._hear()
        if outcome.code == UNDER_WAY and (self._asked or code in (-signal.SIGINT, -signal.SIGTERM)):
            outcome.code, outcome.reason = STOPPED, "stopped before it could save"
        elif outcome.code == UNDER_WAY:
            outcome.code, outcome.reason = code if code > 0 else 1, f"its process said nothing and {how_it_ended(code)}"
        self._report.unlink(missing_ok=True)

    def kill(self) -> None:
        """Ends its process at once."""
        self._stack.close()

    def _hear(self) -> None:
        if self._report.is_file():
            self.outcome.read(self._report)
        elif self.process is not None:
            self.outcome.code = UNDER_WAY


def run_jobs(
    take: Callable[[], Job | None],
    slots: Slots,
    place: Path,
    ended: Callable[[Job], object],
    look: Callable[[Job], object] | None = None,
    count: int | None = None,
) -> bool:
    """Runs jobs, each in a process of its own.

    Args:
        take: gives the next job, None where there is no other; not called any more once the command was asked to stop.
        slots: room for them.
        place: a folder in which they leave what becomes of them, and print where several run at once.
        ended: given each job that has ended, or whose run was finished before.
        look: given each job under way, every now and then.
        count: how many there will be.

    Returns:
        Whether the command was asked to stop.
    """
    place.mkdir(parents=True, exist_ok=True)
    jobs = _Running(take, slots, place, ended, count)
    try:
        with forwarding(jobs.forward):
            while jobs.running or jobs.more:
                jobs.begin()
                jobs.end()
                if look:
                    for job in jobs.running:
                        look(job)
                time.sleep(POLL)
    except Exception:  # a study's file that cannot be written, say, which is not the jobs' fault
        jobs.save()
        raise
    finally:
        for job in jobs.running:
            job.kill()
    return bool(jobs.heard)


class _Running:
    """The jobs that are under way, for `run_jobs`, whose arguments these are.

    Attributes:
        running: the jobs.
        heard: signals that asked the command to stop.
    """

    def __init__(
        self, take: Callable[[], Job | None], slots: Slots, place: Path, ended: Callable[[Job], object], count: int | None
    ) -> None:  # fmt: skip
        from voxtile.commands.console import console

        self._take, self._slots, self._place, self._ended, self._count = take, slots, place, ended, count
        self.running, self.heard = list[Job](), list[int]()
        self._begun, self._last, self._out = 0, False, console()

    @property
    def more(self) -> bool:
        """Whether other jobs are to begin."""
        return not self._last and not self.heard

    def forward(self, number: int) -> None:
        """Hands on a signal that asks to stop; jobs that have not reacted to several are ended as they are."""
        self.heard.append(number)
        for job in self.running:
            job.kill() if self.heard.count(signal.SIGINT) >= UNHEARD else job.stop(number)

    def begin(self) -> None:
        """Begins jobs as long as there are some, and room for them."""
        while self.more and len(self.running) < self._slots.jobs and len(self._slots.free) >= self._slots.gpus:
            job = self._take()
            if job is None:
                self._last = True
                return
            self._begun += 1
            job.title = f"{self._begun}{f' of {self._count}' if self._count else ''}: {job.title}"
            if known := finished_before(job):
                self._say(job, known)
                self._ended(job)
            elif not self.heard:  # while it was looked for
                self._start(job)

    def _start(self, job: Job) -> None:
        gpus = self._slots.take()
        log = self._place / f"{self._begun}.log" if self._slots.jobs > 1 else None
        on = f" on GPU {','.join(gpus)}" if gpus else ""
        self._say(job, f"begins{on}{f', see {log}' if log else ''}")
        job.begin(gpus, self._place / f"{self._begun}.json", log)
        self.running.append(job)
        for signalled in self.heard:  # since then
            job.stop(signalled)

    def end(self) -> None:
        """Takes down what became of jobs that have ended."""
        for job in [job for job in self.running if job.has_ended]:
            self.running.remove(job)
            self._slots.free += job.gpus
            job.end()
            if self._slots.jobs > 1:
                how = {0: "done", STOPPED: "stopped"}.get(job.outcome.code, "failed")
                why = f": {job.outcome.reason}" if how == "failed" else ""
                self._say(job, f"{how} after {time.monotonic() - job.began:.0f} s{why}")
            self._ended(job)

    def save(self) -> None:
        """Asks the jobs to save and end, and waits for them for a while."""
        for job in self.running:
            job.stop()
        until = time.monotonic() + SAVING
        while time.monotonic() < until and not all(job.has_ended for job in self.running):
            time.sleep(POLL)

    def _say(self, job: Job, text: str) -> None:
        self._out.print(f"job {job.title}  {text}", soft_wrap=True)


def make_job_folder(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """The folder below `folder` in which this command's jobs leave what becomes of them; another command has another one."""
    digest = hashlib.sha256(json.dumps([outcome.words for outcome in outcomes]).encode()).hexdigest()[:8]
    place = folder / f"{digest}-{socket.gethostname()}-{os.getpid()}"
    place.mkdir(parents=True, exist_ok=True)
    return place


def order_of_job(job: Job, report: Path) -> dict[str, Any]:
    """What a job's process is told."""
    flags = [word for folder in compose.further_folders() for word in ("--config-dir", str(folder.absolute()))]
    return {**(job.order or {"words": [*flags, *job.outcome.words]}), **job.more, "report": str(report.absolute())}


def check_jobs(jobs: Sequence[tuple[Sequence[str], DictConfig]]) -> None:
    """Refuses a sweep with a value that no job could be trained with, before the first one begins.

    Raises:
        ConfigError: A job's configuration is invalid.
    """
    from voxtile.commands.build import check_without_data

    for (_, config), title in zip(jobs, titles([words for words, _ in jobs]), strict=True):
        try:
            check_without_data(compose.job_config(config))
        except ConfigError as error:
            raise ConfigError(f"{error} This is of the job {title or 'alone'}; none was begun.") from error


def jobs_of(jobs: Sequence[tuple[Sequence[str], DictConfig]], folder: Path) -> tuple[list[Job], Path]:
    """Jobs of a sweep, from (overrides, configuration) each, and the folder below `folder` in which they leave their outcomes.

    Raises:
        ConfigError: A job could not be trained as it is.
    """
    check_jobs(jobs)
    words = [tuple(words) for words, _ in jobs]
    more = {"group": sweep_name(words), "kind": "sweep"}
    made = [
        Job(name, Outcome(own, STOPPED, reason=NOT_BEGUN), config, more=more)
        for name, own, (_, config) in zip(titles(words), words, jobs, strict=True)
    ]
    return made, make_job_folder(folder, [job.outcome for job in made])


def launch(jobs: Sequence[tuple[Sequence[str], DictConfig]], slots: Slots, folder: Path) -> list[Outcome]:
    """Runs jobs, (overrides, configuration) each, and returns what became of each; more are not begun once one was asked to stop.

    Args:
        jobs: what is to be trained.
        slots: how many at once.
        folder: where jobs leave what became of them, and print where several run at once.

    Raises:
        ConfigError: A job could not be trained as it is.
    """
    from voxtile.commands.console import console

    waiting, place = jobs_of(jobs, folder)
    outcomes = [job.outcome for job in waiting]
    stopped = run_jobs(lambda: waiting.pop(0) if waiting else None, slots, place, lambda job: None, count=len(jobs))
    for outcome in outcomes:
        collected(outcome)
    if slots.jobs == 1 or not any(outcome.code for outcome in outcomes):
        shutil.rmtree(place)
    if stopped:
        console().print("The same command goes on with the sweep.")
        raise StoppedError
    return outcomes


def finished_before(job: Job) -> str:
    """What is to be said of a job whose run is finished already, without starting a process to look; "" of another one.

    What is wrong with it, its process will say.
    """
    from voxtile.commands.standing import finished_run

    runs = Path(str(OmegaConf.select(job.config, "paths.runs"))).expanduser()
    if job.order is not None or not any(runs.glob("*/recipe.json")):
        return ""
    try:
        with compose.cache_at(OmegaConf.select(job.config, "paths.cache")):
            found = finished_run(compose.job_config(job.config))
    except Exception:  # also of other people's layouts: the job's own process says it
        return ""
    if found is None:
        return ""
    home, changed = found
    job.outcome.code, job.outcome.home, job.outcome.reason = 0, str(home.path), ""
    return f"finished before: {home.path}{changed and '. Since then:' + changed}"


def report_of(outcome: Outcome) -> str:
    """A job's outcome as it is handed to the process that started it."""
    return json.dumps(asdict(outcome))
