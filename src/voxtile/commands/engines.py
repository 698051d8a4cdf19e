"""Jobs of a sweep on other machines: by Slurm, through submitit, and by Ray. All of them must see the same files."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from voxtile.commands.children import POLL, SAVING, Child, child, forwarding, how_it_ended
from voxtile.commands.guard import STOPPED, StoppedError
from voxtile.commands.sweep import UNDER_WAY, Outcome, collected, finished_before, jobs_of, order_of_job
from voxtile.errors import ConfigError, reason

LATE = 3.0  # seconds after which a file that another machine has written is seen here, too


class Command:
    """Trains one job in a process of its own, wherever it is called."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.order, self.folder = dict(order), str(Path.cwd())  # relative paths are the user's, wherever it runs
        self._process: Child | None = None

    def __call__(self) -> int:
        """Runs the job, and returns its exit code."""
        Path(self.order["report"]).unlink(missing_ok=True)  # of an earlier life, before it was moved
        with child("voxtile.commands.job", self.order, os.environ, folder=self.folder) as process:
            self._process = process
            while process.poll() is None:  # not `wait`, in which `checkpoint`, called by a signal, could not wait, too
                time.sleep(POLL)
            return int(process.returncode)

    def checkpoint(self) -> Any:
        """What submitit calls before Slurm moves the job: it saves, and goes on where it is started next."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            until = time.monotonic() + SAVING  # after which it goes on from what was saved before
            while self._process.poll() is None and time.monotonic() < until:
                time.sleep(POLL)
        self._process = None
        return DelayedSubmission(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_process": None}


class Submitted(Protocol):
    """A job that an engine has."""

    def done(self) -> bool:
        """Whether it has ended, for good."""

    def failure(self) -> str:
        """Why it left no outcome."""

    def cancel(self) -> object:
        """Has the engine end it."""


def launch_by(
    engine: Callable[[Sequence[Command], Path], Sequence[Submitted]],
    jobs: Sequence[tuple[Sequence[str], DictConfig]],
    folder: Path,
    poll: float,
) -> list[Outcome]:
    """Hands jobs to an engine and waits for all of them.

    Args:
        engine: takes what is to be called and a folder for its own files.
        jobs: (overrides, configuration) each.
        folder: where they leave what becomes of them.
        poll: seconds between looks at them.
    """
    from voxtile.commands.console import console

    out = console()
    made, place = jobs_of(jobs, folder)
    outcomes, names = [job.outcome for job in made], [job.title for job in made]
    waiting: dict[int, Submitted] = {}
    known = [finished_before(job) for job in made]
    left = [number for number, said in enumerate(known) if not said]
    for number, (job, said) in enumerate(zip(made, known, strict=True)):
        out.print(f"job {number + 1} of {len(made)}: {job.title}  {said}", soft_wrap=True)
    reports = {number: place / f"{number}.json" for number in left}
    for report in reports.values():
        report.unlink(missing_ok=True)
    heard: list[int] = []

    def stop(number: int) -> None:
        heard.append(number)
        for each in waiting.values():
            each.cancel()

    with forwarding(stop):
        waiting = dict(zip(left, engine([Command(order_of_job(made[n], reports[n])) for n in left], place), strict=True))
        for each in waiting.values() if heard else ():  # asked to stop while they were submitted
            each.cancel()
        with forwarding(stop):  # again, since Ray has put handlers of its own there
            while waiting and not heard:
                for number, each in [(number, each) for number, each in waiting.items() if each.done()]:
                    del waiting[number]
                    _hear(outcomes[number], reports[number], each)
                    how = {0: "done", STOPPED: "stopped"}.get(outcomes[number].code, f"failed: {outcomes[number].reason}")
                    out.print(f"job {number + 1} of {len(made)}: {names[number]}  {how}", soft_wrap=True)
                time.sleep(poll if waiting else 0)
    for number in waiting:  # cancelled
        if reports[number].is_file():
            outcomes[number].read(reports[number])
            outcomes[number].code = STOPPED
    for outcome in outcomes:
        collected(outcome)
    if heard:
        raise StoppedError
    return outcomes


def _hear(outcome: Outcome, report: Path, job: Submitted) -> None:
    """Takes down what became of a job that has ended."""
    until = time.monotonic() + LATE
    while not report.is_file() and time.monotonic() < until:
        time.sleep(POLL)
    if report.is_file():
        outcome.read(report)
        report.unlink()
    else:
        outcome.code = UNDER_WAY
    if outcome.code == UNDER_WAY:
        outcome.code, outcome.reason = 1, job.failure()


def by_slurm(settings: Mapping[str, Any]) -> Callable[[Sequence[Command], Path], Sequence[Submitted]]:
    """The engine that submits jobs to Slurm as one array; submitit's own settings are given by their names.

    Raises:
        ConfigError: submitit is not installed, or refuses a setting.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("'launch=slurm' needs submitit. Type pip install 'voxtile[slurm]'.") from error

    class Held:
        def __init__(self, job: submitit.Job[int]) -> None:
            self.job = job

        def done(self) -> bool:
            return bool(self.job.done())

        def failure(self) -> str:
            said = (self.job.stderr() or "").strip().splitlines()
            why = f": {said[-1]}" if said else ""
            return f"Slurm's job {self.job.job_id} ended as {self.job.state} and left no outcome{why}; see {self.job.paths.stderr}"

        def cancel(self) -> object:
            self.job.cancel()
            return None

    def submit(commands: Sequence[Command], place: Path) -> list[Submitted]:
        if not commands:
            return []
        try:
            given = {name: value for name, value in settings["parameters"].items() if value is not None}
            moves = {"slurm_max_num_timeout": given.pop("slurm_max_num_timeout")} if "slurm_max_num_timeout" in given else {}
            executor = submitit.AutoExecutor(folder=place, cluster=settings["cluster"], **moves)
            executor.update_parameters(**given)
            with executor.batch():
                submitted = [executor.submit(command) for command in commands]
        except (submitit.core.utils.FailedJobError, AssertionError, NameError, ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(f"submitit or Slurm refuses the settings of 'hydra.launcher': {reason(error)}.") from error
        return [Held(job) for job in submitted]

    return submit


def by_ray(settings: Mapping[str, Any]) -> Callable[[Sequence[Command], Path], Sequence[Submitted]]:
    """The engine that hands jobs to a Ray cluster, or to one that it starts on this machine.

    Raises:
        ConfigError: Ray is not installed, or no cluster is at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("'launch=ray' needs Ray. Type pip install 'voxtile[ray]'.") from error

    class Held:
        def __init__(self, reference: Any) -> None:
            self.reference = reference

        def done(self) -> bool:
            return bool(ray.wait([self.reference], timeout=0)[0])

        def failure(self) -> str:
            try:
                return f"its process said nothing and {how_it_ended(ray.get(self.reference))}"
            except Exception as error:  # Ray raises many types for what happens to a task
                return f"Ray lost the job: {reason(error)}"

        def cancel(self) -> object:
            return ray.cancel(self.reference, force=True)

    def submit(commands: Sequence[Command], place: Path) -> list[Submitted]:
        try:
            if not ray.is_initialized():
                ray.init(address=settings["address"], log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"'hydra.launcher.address={settings['address']}' leads to no Ray cluster: {reason(error)}."
            ) from error
        task = ray.remote(num_cpus=settings["cpus"], num_gpus=settings["gpus"], max_retries=0)(_call)
        return [Held(task.remote(command)) for command in commands]

    return submit


def _call(command: Command) -> int:
    return command()
