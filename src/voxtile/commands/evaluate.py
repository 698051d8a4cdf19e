"""voxtile evaluate: a run's scores on the whole cases of a split, or those of several runs (`evaluation.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose
from voxtile.commands.crf import asks_for_search
from voxtile.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.commands.evaluation import Evaluation


def main(argv: Sequence[str]) -> int:
    """Composes and evaluates; see `voxtile evaluate --help`."""
    return compose.run("evaluate", argv, evaluate)


def evaluate(config: Mapping[str, Any]) -> int:
    """Scores the run, or the runs together, that the configuration names."""
    from voxtile.commands.console import console
    from voxtile.commands.folders import run_folders

    out = console()
    if config["split"] not in ("val", "test"):
        raise ConfigError(f"'split={config['split']}' cannot be evaluated; choose val or test.")
    if config["dataset"] is not None:
        config = _elsewhere(config)
    if config["maps"] is not None:
        from voxtile.commands import given_maps

        given_maps.check(config)
    for name in ("crf", "postprocess"):
        if asks_for_search(config[name]) and config["split"] != "val":
            raise ConfigError(f"'{name}=search' chooses settings by scores: only 'split=val' may be used for that.")
    folders = run_folders(config, out)
    weights = config["weights"] or ("best" if len(folders) == 1 else "last")
    _evaluation_of(folders, {**config, "weights": weights}, out).write()
    return 0


def _elsewhere(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation on another data set: `dataset` describes it, and `split` is called after it.

    Raises:
        VoxtileError: There is no such data set, or it has no sides.
    """
    from voxtile.commands.elsewhere import described

    if config["split"] != "val":
        raise ConfigError("'split' is a side of the run's own data, and 'dataset' has all of another scored. Leave one out.")
    data = described(config)
    return {**config, "dataset": data, "split": f"on-{data['name']}", "root": None}


def _evaluation_of(folders: Sequence[str], config: Mapping[str, Any], out: Console) -> Evaluation:
    """What scores the runs in some folders; what can be refused before data are read has been.

    Raises:
        VoxtileError: Runs cannot be opened, do not belong together, or a setting is none.
    """
    from voxtile.commands.crossvalidate import OutOfFold, refuse_chosen
    from voxtile.commands.evaluation import Evaluation
    from voxtile.commands.sharing import count_of
    from voxtile.commands.trained import Trained

    out_of_fold = len(folders) > 1 and config["split"] == "val"
    if out_of_fold:
        refuse_chosen(config)
    processes = count_of(config)
    if wanted := [name for name in ("crf", "postprocess") if processes > 1 and asks_for_search(config[name])]:
        raise ConfigError(f"'{wanted[0]}=search' compares all maps in one process. Type 'devices=1'.")
    runs = [Trained.of(config, folder, config["weights"]) for folder in folders]
    for run in runs:
        if config["split"] != "val":
            run.home.refuse_unfinished("test cases are looked at with the weights that a run ends with")
        run.warn(out)
    return (OutOfFold if out_of_fold else Evaluation)(runs, config, processes, out)
