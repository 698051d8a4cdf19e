"""Evaluations that are there: in which folder each lies, and what predict takes from it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands.folders import evaluations_of
from voxtile.commands.postprocess import as_typed
from voxtile.commands.words import list_word, word
from voxtile.training.run_folder import is_bundle

if TYPE_CHECKING:
    from voxtile.commands.ensemble import Ensemble
    from voxtile.commands.trained import Trained
    from voxtile.inference.postprocess import Postprocess
    from voxtile.inference.predictor import Predictor

EVALUATED: Mapping[str, Any] = {  # settings that an evaluation must share with a prediction, and what evaluate takes for one run
    "weights": "best", "window": None, "overlap": 0.25, "crf": None, "postprocess": None, "rotations": 1, "mirrors": [], "halo": 0,
    "samples": 0, "precision": "32-true",
}  # fmt: skip

COUNTED = ("confusion", "overlap", "weights_sha256")  # what hectares are adjusted by, of a summary


def procedure_name(config: Mapping[str, Any], crf: Mapping[str, Any] | None, post: object) -> str:
    """What tells evaluations with other procedures at test time apart, "" for the plain one."""
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
    crf = predictor.procedure.crf
    exchanged = "-exchanged" if predictor.procedure.swapped else ""  # earlier versions left classes where they were
    changed = "-changed" if any(run.changed_modules for run in runs) else ""
    return f"{split}-{config['weights']}{procedure_name(config, asdict(crf) if crf else None, post)}{exchanged}{changed}"


def summary_in(folder: Path) -> Mapping[str, Any]:
    """The summary of the evaluation in a folder; empty where there is none."""
    try:
        found: Any = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def said_of(confusion: Mapping[str, Any] | None, runs: Ensemble, config: Mapping[str, Any]) -> str:
    """What the command says of the adjusted areas, or of their absence."""
    if confusion is None:
        # Only numbers, names and lists of them, which read as they are printed, but for the settings of CRF and post-processing.
        given = [
            shlex.quote(f"{name}={json.dumps(config[name])}".replace('"', "").replace(" ", ""))
            for name, usual in EVALUATED.items()
            if config[name] != usual
        ]
        said = "hectares are those of the map: there is no evaluation with these runs, weights and settings to adjust them by"
        if any(is_bundle(member.home.path) for member in runs.members):  # which cannot be evaluated
            if len(runs.members) > 1:
                return f"{said}; one of the runs that bundles were exported from, with this 'paths.runs', counts for them, too"
            words = " ".join(["run=…", *given])
            return f"{said}; type first, with the run that was exported, and export it again: voxtile evaluate {words}"
        several = list_word("runs", [member.home.path for member in runs.members])
        alone = [word("run", runs.first.home.path)]
        which = alone if len(runs.members) == 1 else [several, f"weights={config['weights']}", "split=test"]
        return f"{said}; type first: voxtile evaluate {' '.join(dict.fromkeys([*which, *given]))}"
    return (
        f"adjusted hectares rest on {confusion['source']}: their intervals hold if its pixels are a random sample of this map "
        "within each class, which whole validation cases are not"
    )


def confusion_of(
    runs: Ensemble, config: Mapping[str, Any], predictor: Predictor, post: Postprocess | None
) -> dict[str, Any] | None:
    """The confusion matrix of the evaluation with the same weights, overlap and procedure, on test cases where there is one.

    Returns:
        `matrix` and `source`; None where there was no such evaluation. One of several runs out of fold is by each alone, and none.
    """
    classes = runs.first.manifest["data"]["classes"]
    for split in ("test", "val") if len(runs.members) == 1 else ("test",):
        folder = evaluations_of(config, runs.homes) / folder_name(split, config, predictor, as_typed(post, classes), runs.members)
        if not (summary := summary_in(folder)):
            continue
        of_these = {member.file["weights_sha256"] for member in runs.members}
        said = (each.get("weights_sha256") for each in summary.get("runs", [summary]))  # an older evaluation does not say
        whole = "confusion" in summary and summary.get("overlap") == config["overlap"]
        if whole and {digest for digest in said if digest} <= of_these:
            return {"matrix": summary["confusion"], "source": f"{folder.parent.name}/{folder.name}"}
    return None
