"""Hydra's sweepers, which it finds by their place. Light: every command imports it.

Settings and what they mean stand in conf/sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

for _name, _class in (("combinations", "CombinationsSweeper"), ("study", "StudySweeper")):
    _node = {"_target_": f"hydra_plugins.voxtile_sweeper.{_class}"}
    ConfigStore.instance().store(group="hydra/sweeper", name=_name, node=_node, provider="voxtile")


class CombinationsSweeper(BasicSweeper):
    """Hydra's own sweeper, which says how many jobs it looks at, and composes them once where the launcher composes them all."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes each job, unless the launcher does so with all of them before the first one begins."""
        from voxtile.commands.console import console

        if (count := len(set(map(tuple, batch)))) > 1:  # each takes a fifth of a second
            console().print(f"looking at {count} jobs first", highlight=False, soft_wrap=True)
        if not getattr(self.launcher, "composes_all_first", False):
            super().validate_batch_is_legal(batch)


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
