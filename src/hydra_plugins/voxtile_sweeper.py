"""Hydra's sweeper that searches settings with Optuna; Hydra finds it by its place. Light: every command imports it.

Not with postponed annotations: Hydra imports plugins without registering them, and a dataclass would look its module up.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class StudySweeperConf:
    """Settings, below `hydra.sweeper`; conf/sweep/optuna.yaml says what they mean."""

    _target_: str = "hydra_plugins.voxtile_sweeper.StudySweeper"
    name: Any = None
    trials: Any = 20
    objectives: Any = field(default_factory=lambda: ["dice"])
    space: Any = field(default_factory=list)
    sampler: Any = "tpe"
    sampler_options: Any = field(default_factory=list)
    pruner: Any = "none"
    pruner_options: Any = field(default_factory=list)
    seed: Any = 0
    jobs: Any = 1
    gpus: Any = 0


ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudySweeperConf, provider="voxtile")


class StudySweeper(Sweeper):
    """Asks Optuna for settings and tells it how well they did."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remembers what Hydra gives."""
        self.config, self.context = config, hydra_context

    def sweep(self, arguments: list[str]) -> Any:
        """Searches; `arguments` are what the user typed."""
        from voxtile.commands.compose import plain
        from voxtile.commands.search import search

        assert self.config is not None
        return search(arguments, plain(OmegaConf.create(self.settings)), self.config, self.context.config_loader)
