"""Trackers beside the metrics file: TensorBoard and Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from voxtile.commands.allowed import build
from voxtile.training.run_folder import RunFolder


def make_loggers(config: Mapping[str, Any], home: RunFolder, begins: int) -> list[Any]:
    """Builds the loggers of the configuration, under the run's identity; one that cannot start never stops a run.

    It is called by the one process of a run that logs, whatever number Slurm gave it among others with runs of their own:
    Lightning's loggers write nothing where they take that number for one of theirs.

    Args:
        config: resolved.
        home: the run's folder.
        begins: the first step that is told: what a killed process has told of it, and of later ones, is told anew.
    """
    rank_zero_only.rank = 0  # type: ignore[attr-defined]  # Lightning keeps it on the function, for which types have none
    loggers = []
    for name, node in config["logger"].items():
        if name == "tensorboard":
            place = {"save_dir": str(home.path), "name": "tensorboard", "version": ""}
            loggers.append(build(node, "logger.tensorboard", config["trust"], **place, purge_step=begins))
        elif name == "wandb":
            loggers.append(_wandb(node, config, home))
        else:
            loggers.append(build(node, f"logger.{name}", config["trust"]))
    return loggers


def finish(loggers: Iterable[Any], well: bool) -> None:
    """Ends what the loggers began, `well` or not; else wandb would take the next run of a multirun for this one."""
    for logger in loggers:
        try:
            logger.finalize("success" if well else "failed")
            if hasattr(logger.experiment, "finish"):
                logger.experiment.finish(exit_code=0 if well else 1)
        except Exception as error:  # the run is saved; a tracker is no reason to call it failed
            print(f"{type(logger).__name__} did not end well: {error}")


def _wandb(node: Mapping[str, Any], config: Mapping[str, Any], home: RunFolder) -> Any:
    """A run under the run folder's own identity, offline where the server cannot be reached."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    identity = home.read("recipe.json")["identity"]
    common = {
        "project": node["project"], "id": identity[:16], "name": home.path.name, "dir": str(home.path), "resume": "allow",
        "group": os.environ.get("WANDB_RUN_GROUP"), "job_type": os.environ.get("WANDB_JOB_TYPE"),
        "tags": [str(config["data"]["name"]), *filter(None, [config["chosen"].get("model")])],
    }  # fmt: skip
    quiet = wandb.Settings(init_timeout=20, silent=True)
    try:
        run = wandb.init(**common, mode=node["mode"], settings=quiet)
    except Exception as error:  # wandb raises several types; none of them is a reason to lose a training
        print(f"wandb cannot be reached ({error}); logging offline, sync later with: wandb sync {home.path}/wandb/offline-run-*")
        run = wandb.init(**common, mode="offline", settings=quiet)
    return WandbLogger(experiment=run)
