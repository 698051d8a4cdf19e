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


@dataclass
class SlurmLauncherConf:
    """Settings, below `hydra.launcher`; conf/launch/slurm.yaml says what they mean."""

    _target_: str = "hydra_plugins.voxtile_launcher.SlurmLauncher"
    cluster: Any = None
    poll: Any = 5.0
    timeout_min: Any = 60
    slurm_partition: Any = None
    slurm_account: Any = None
    slurm_array_parallelism: Any = 100
    slurm_max_num_timeout: Any = None
    gpus_per_node: Any = 1
    cpus_per_task: Any = 8
    mem_gb: Any = 32
    slurm_additional_parameters: Any = None


@dataclass
class RayLauncherConf:
    """Settings, below `hydra.launcher`; conf/launch/ray.yaml says what they mean."""

    _target_: str = "hydra_plugins.voxtile_launcher.RayLauncher"
    address: Any = None
    cpus: Any = 1
    gpus: Any = 0


ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmLauncherConf, provider="voxtile")
ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayLauncherConf, provider="voxtile")


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
