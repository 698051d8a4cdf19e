"""Hydra's launcher of jobs that each have a process of their own; Hydra finds it by its place. Light: every command imports it.

Settings and what they mean stand in conf/launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

for _name, _class in (("processes", "ProcessLauncher"), ("slurm", "SlurmLauncher"), ("ray", "RayLauncher")):
    _node = {"_target_": f"hydra_plugins.voxtile_launcher.{_class}"}
    ConfigStore.instance().store(group="hydra/launcher", name=_name, node=_node, provider="voxtile")


class ProcessLauncher(Launcher):
    """Starts `voxtile train` with the words of each job: a crash ends one job only, and a job may have several devices."""

    composes_all_first = True  # so that the sweeper need not

    def __init__(self, jobs: object, gpus: object) -> None:
        self.jobs, self.gpus = jobs, gpus

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remembers what Hydra gives."""
        self.config, self.context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs; a result is an outcome, also of a job that failed."""
        setup_globals()
        loader = self.context.config_loader
        distinct = dict.fromkeys(map(tuple, job_overrides))  # of a value that was typed twice
        jobs = [(list(words), loader.load_sweep_config(self.config, list(words))) for words in distinct]
        found = []
        for outcome in self._run(jobs, Path(self.config.hydra.sweep.dir).expanduser().absolute()):
            each = JobReturn(overrides=list(outcome.words), status=JobStatus.COMPLETED)
            each.return_value = outcome
            found.append(each)
        return found

    def _run(self, jobs: Sequence[tuple[Sequence[str], DictConfig]], folder: Path) -> Sequence[Any]:
        from voxtile.commands.sweep import Slots, launch

        return launch(jobs, Slots.of(self.jobs, self.gpus), folder)


class SlurmLauncher(ProcessLauncher):
    """Submits the jobs to Slurm."""

    def __init__(self, cluster: Any, poll: Any, **parameters: Any) -> None:
        self.cluster, self.poll, self.parameters = cluster, float(poll), parameters

    def _run(self, jobs: Sequence[tuple[Sequence[str], DictConfig]], folder: Path) -> Sequence[Any]:
        from voxtile.commands.engines import by_slurm, launch_by

        return launch_by(by_slurm({"cluster": self.cluster, "parameters": self.parameters}), jobs, folder, self.poll)


class RayLauncher(ProcessLauncher):
    """Hands the jobs to Ray."""

    def __init__(self, address: Any, cpus: Any, gpus: Any) -> None:
        self.settings = {"address": address, "cpus": cpus, "gpus": gpus}

    def _run(self, jobs: Sequence[tuple[Sequence[str], DictConfig]], folder: Path) -> Sequence[Any]:
        from voxtile.commands.engines import by_ray, launch_by

        return launch_by(by_ray(self.settings), jobs, folder, 0.5)
