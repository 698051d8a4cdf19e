"""voxtile evaluate: a run's scores on the whole cases of a split, or those of several runs (`evaluation.py`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose
from voxtile.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.commands.trained import Trained
    from voxtile.data.prepared import Prepared
    from voxtile.inference.predictor import Predictor


def main(argv: Sequence[str]) -> int:
    """Composes and evaluates; see `voxtile evaluate --help`."""
    return compose.run("evaluate", argv, evaluate)


def evaluate(config: Mapping[str, Any]) -> int:
    """Scores the run, or the runs together, that the configuration names."""
    from voxtile.commands.console import console
    from voxtile.commands.evaluation import evaluation_of
    from voxtile.commands.folders import run_folders

    out = console()
    if config["split"] not in ("val", "test"):
        raise ConfigError(f"'split={config['split']}' cannot be evaluated; choose val or test.")
    for name in ("crf", "postprocess"):
        if asks_for_search(config[name]) and config["split"] != "val":
            raise ConfigError(f"'{name}=search' chooses settings by scores: only 'split=val' may be used for that.")
    folders = run_folders(config, out)
    weights = config["weights"] or ("best" if len(folders) == 1 else "last")
    evaluation_of(folders, {**config, "weights": weights}, out).write()
    return 0


def asks_for_search(value: Any) -> bool:
    """Whether a command's `crf` or `postprocess` asks for a search: "search", or {search: …}."""
    return value == "search" or (isinstance(value, Mapping) and "search" in value)


def prepared_for(trained: Trained, split: str, out: Console, surveys: Path | None = None) -> Prepared:
    """The data of a run, which must be those that it was trained on.

    Args:
        trained: the run.
        split: the side that is looked at.
        out: where it prints.
        surveys: a folder to keep what is found out of each file, instead of the cache, by which files are known by their dates.

    Raises:
        DataError: They are other data, or cannot be read.
    """
    from voxtile.commands.assemble import prepare_data
    from voxtile.studies.manifest import other_contents

    root = trained.built.dataset.layout.root
    try:
        prepared = prepare_data(trained.built, out, surveys)
    except DataError as error:
        raise DataError(
            f"The data in {root} cannot be scored as those of the run {trained.home.path}: {error} If the run's data lie elsewhere "
            "now, say where with 'root=<folder>'."
        ) from error
    recipe = trained.recipe
    same = prepared.split.digest == recipe["split"] and prepared.fingerprint == recipe["data"]
    if split == "test":
        same = same and prepared.test_fingerprint == trained.manifest["data"]["test_fingerprint"]
    if not same:
        which = other_contents(trained.manifest["data"], prepared) or "files or split have changed"
        raise DataError(
            f"The data in {root} are not what the run {trained.home.path} was trained on: {which}. Put them back as they were "
            "(manifest.json lists the split), say with 'root=<folder>' where they are, or train a new run."
        )
    return prepared


def procedure_name(config: Mapping[str, Any], crf: Mapping[str, Any] | None, post: object) -> str:
    """What tells evaluations with other procedures at test time apart, "" for the plain one."""
    import hashlib

    from voxtile.commands.results import EVALUATED

    parts = [] if config["window"] is None else ["window" + "x".join(map(str, config["window"]))]
    parts += [f"overlap{config['overlap']:g}"] if config["overlap"] != EVALUATED["overlap"] else []
    parts += [config["precision"]] if config["precision"] != EVALUATED["precision"] else []
    if crf is not None:
        parts.append("crf" + hashlib.sha256(json.dumps(crf).encode()).hexdigest()[:6])
    parts += ["mirrors" + "".join(config["mirrors"])] if config["mirrors"] else []
    parts += [f"{name}{config[name]}" for name, plain in (("rotations", 1), ("halo", 0), ("samples", 0)) if config[name] != plain]
    if post is not None:
        parts.append("postprocess" + hashlib.sha256(json.dumps(post, sort_keys=True).encode()).hexdigest()[:6])
    return "".join(f"-{part}" for part in parts)


def folder_name(split: str, config: Mapping[str, Any], predictor: Predictor, post: object, runs: Sequence[Trained]) -> str:
    """The folder below `evaluations/` for a split scored with a command's weights and settings.

    Args:
        split: "val" or "test".
        config: of the command.
        predictor: with the CRF that was found for it.
        post: settings of the post-processing, None for none.
        runs: those that are scored; where their networks' code has changed, the scores must not take the place of theirs.
    """
    from dataclasses import asdict

    crf = predictor.procedure.crf
    exchanged = "-exchanged" if predictor.procedure.swapped else ""  # earlier versions left classes where they were
    changed = "-changed" if any(run.changed_modules for run in runs) else ""
    return f"{split}-{config['weights']}{procedure_name(config, asdict(crf) if crf else None, post)}{exchanged}{changed}"
