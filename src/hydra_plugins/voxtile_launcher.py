"""Hydra's launcher of jobs that each have a process of their own; Hydra finds it by its place. Light: every command imports it.

Not with postponed annotations: Hydra imports plugins without registering them, and a dataclass would look its module up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ProcessLauncherConf:
    """Settings, below `hydra.launcher`.

    Attributes:
        jobs: how many run at once; "auto" for as many as GPUs last, one on the CPU.
        gpus: of each job; 0 for all that are there.
    """

    _target_: str = "hydra_plugins.voxtile_launcher.ProcessLauncher"
    jobs: Any = 1
    gpus: Any = 0


ConfigStore.instance().store(group="hydra/launcher", name="processes", node=ProcessLauncherConf, provider="voxtile")


class ProcessLauncher(Launcher):
    """Starts `voxtile train` with the words of each job: a crash ends one job only, and a job may have several devices."""

    def __init__(self, jobs: object, gpus: object) -> None:
        self.jobs, self.gpus = jobs, gpus

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remembers what Hydra gives."""
        self.config, self.context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs; a result is an outcome, also of a job that failed."""
        from voxtile.commands.sweep import Slots, launch

        setup_globals()
        loader = self.context.config_loader
        jobs = [(list(words), loader.load_sweep_config(self.config, list(words))) for words in job_overrides]
        outcomes = launch(jobs, Slots.of(self.jobs, self.gpus), Path(self.config.hydra.sweep.dir).expanduser())
        found = []
        for outcome in outcomes:
            each = JobReturn(overrides=list(outcome.words), status=JobStatus.COMPLETED)
            each.return_value = outcome
            found.append(each)
        return found
