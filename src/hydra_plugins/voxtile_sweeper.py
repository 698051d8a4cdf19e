"""Hydra's sweeper that searches settings with Optuna; Hydra finds it by its place. Light: every command imports it.

Settings and what they mean stand in conf/sweep/optuna.yaml.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

_node = {"_target_": "hydra_plugins.voxtile_sweeper.StudySweeper"}
ConfigStore.instance().store(group="hydra/sweeper", name="study", node=_node, provider="voxtile")


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
