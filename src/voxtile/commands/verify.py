"""voxtile verify: whether a run's weights, data and scores are what its folder says."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from voxtile.commands import compose
from voxtile.errors import ConfigError, RunError, listed
from voxtile.values import is_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

    from voxtile.commands.trained import Trained
    from voxtile.data.prepared import Prepared
    from voxtile.training.run_folder import RunFolder


def main(argv: Sequence[str]) -> int:
    """Composes and verifies; see `voxtile verify --help`."""
    return compose.run("verify", argv, verify)


def verify(config: Mapping[str, Any]) -> int:
    """Compares the run that the configuration names with what was recorded when it was trained."""
    from voxtile.training.run_folder import RunFolder

    RunFolder.existing(config["run"])  # before what takes seconds to import
    from voxtile.commands.console import console
    from voxtile.commands.trained import Trained, prepared_for

    out, wanted = console(), config["cases"]
    if wanted != "all" and not is_whole(wanted, 1):
        raise ConfigError(f"'cases={wanted}' must be all or a whole number from 1 up.")
    trained = Trained.of(config, config["run"], "best", changed=True)
    home = trained.home
    home.refuse_unfinished("what it holds is not final")
    best_of(home)  # refuses, before the data are read, what cannot be looked at
    wrong = look_at_files(trained, out)
    prepared = prepared_for(trained, "val", out, anew=True)
    what = "labels, and sampled blocks of images, as in the training"
    out.print(f"data: {what} (fingerprint {prepared.fingerprint})", soft_wrap=True)
    recorded = recorded_counts(home, len(prepared.dataset.classes))
    wrong += look_at_scores(trained, prepared, recorded, out)
    wrong += score_again(trained, prepared, recorded, config, out)
    return RunError.exit_code if wrong else 0


def best_of(home: RunFolder) -> dict[str, Any]:
    """What status.json of a finished run says of its best validation.

    Raises:
        RunError: It says nothing of it.
    """
    best = home.read("status.json", "best")["best"]
    if not isinstance(best, dict) or not isinstance(best.get("scores"), dict) or "step" not in best:
        raise RunError(
            f"{home.path / 'status.json'} says under 'best' neither step nor scores of a validation. Copy the file anew from where "
            "the run was trained, or train the run again."
        )
    return best


def recorded_counts(home: RunFolder, classes: int) -> dict[str, NDArray[np.int64]]:
    """The confusion matrices [K, K] of the best validation, by case.

    Raises:
        RunError: There are none, or something else.
    """
    if not (home.path / "validation.json").exists():
        raise RunError(f"{home.path} keeps no counts by case (validation.json); it was made by an older version. Train it again.")
    cases = home.read("validation.json", "step", "cases")["cases"]
    try:
        found = {name: np.array(matrix) for name, matrix in cases.items()}
        fits = all(matrix.shape == (classes, classes) and matrix.dtype.kind in "if" for matrix in found.values())
    except (AttributeError, ValueError):  # no object, or rows of several lengths
        fits = False
    if not fits:
        raise RunError(
            f"{home.path / 'validation.json'} holds under 'cases' something else than a matrix of {classes} by {classes} counts "
            "for each case. Copy the file anew from where the run was trained, or train the run again."
        )
    return found


def look_at_files(trained: Trained, out: Console) -> list[str]:
    """Says, and returns, what of the recipe, the weights and the evaluations is not as the folder says elsewhere."""
    from voxtile.commands.trained import other_data
    from voxtile.studies.reproduction import changed_weights
    from voxtile.training.recipe import Recipe

    home = trained.home
    identity, weights, stale = other_identity(home), changed_weights(home), stale_evaluations(home)
    out.print(f"identity: {listed(identity) or 'as configuration and recipe make it'}", soft_wrap=True)
    if remark := other_name(home):
        out.print(f"name: {remark}", soft_wrap=True)
    if Recipe.written(trained.recipe).is_outdated:
        remark = "of an older version; by now its network or its augmentation comes to other numbers in training"
        out.print(f"recipe: {remark}", soft_wrap=True)
    out.print(f"weights: {'; '.join(weights) or 'as recorded when the run was finished'}", soft_wrap=True)
    manifest = ["what manifest.json says of the data has changed since the run was finished"] if other_data(home) else []
    if manifest:
        out.print(f"manifest: {manifest[0]}", soft_wrap=True)
    if stale:
        out.print(f"evaluations: of other weights than the run has now, so evaluate again: {listed(stale)}", soft_wrap=True)
    return [*identity, *weights, *manifest, *stale]


def look_at_scores(trained: Trained, prepared: Prepared, recorded: Mapping[str, NDArray[np.int64]], out: Console) -> list[str]:
    """Says, and returns, which numbers of the best validation do not follow from the counts by case, `recorded`."""
    scores = other_scores(trained, recorded, [case.id for case in prepared.split.val])
    if scores:
        out.print(f"scores: in status.json are not those of the recorded counts: {listed(scores)}", soft_wrap=True)
    if numbers := other_metrics(trained.home):
        step = best_of(trained.home)["step"]
        out.print(f"numbers: of the best validation, at step {step}: {listed(numbers)}", soft_wrap=True)
    return [*scores, *numbers]


def score_again(
    trained: Trained, prepared: Prepared, recorded: Mapping[str, NDArray[np.int64]], config: Mapping[str, Any], out: Console
) -> list[str]:  # fmt: skip
    """Scores as many validation cases again as the command says; says, and returns, of which the counts are not those recorded."""
    import torch

    from voxtile.commands.devices import device_called
    from voxtile.studies.manifest import Devices, changes

    names = [case.id for case in prepared.split.val]
    count = len(names) if config["cases"] == "all" else min(int(config["cases"]), len(names))
    chosen = sorted({round(place) for place in np.linspace(0, len(names) - 1, count)})
    moved = []
    for number, matrix in counted_again(trained, prepared, chosen, config["device"]).items():
        before = recorded.get(names[number])
        if before is None:
            moved.append(f"{names[number]} (not recorded)")
        elif not np.array_equal(before, matrix):
            moved.append(f"{names[number]} ({int(np.abs(before - matrix).sum()) // 2} pixels)")
    of = f"{len(chosen)} of {len(names)} validation cases scored again with the best weights"
    if not moved:
        out.print(f"scores: {of}; the same count of every pair of classes", soft_wrap=True)
        return []
    out.print(f"scores: {of}; other counts in {listed(moved, 8)}", soft_wrap=True)
    if since := changes(trained.manifest, Devices(device_called(config["device"]).type, 1, torch.get_num_threads())):
        out.print(f"since the training, {listed(since)}, which may be why", soft_wrap=True)
    return moved


def other_identity(home: RunFolder) -> list[str]:
    """In what config.yaml and recipe.json of a run contradict each other, one phrase each."""
    from voxtile.commands.folders import differences
    from voxtile.commands.trained import configuration
    from voxtile.training.recipe import Recipe

    written = home.read("recipe.json", "identity", "settings", "data", "split", "stream")
    recorded = Recipe.written(written)
    made = recorded.remade(configuration(home))
    found = [f"{each} in config.yaml and recipe.json" for each in differences(made.settings, recorded.settings)]
    if not found and made.identity != recorded.identity:
        found.append("the order of settings, or how numbers are written, in config.yaml and recipe.json")
    if recorded.identity != written["identity"]:
        found.append(f"recipe.json says {written['identity']}, and its settings make {recorded.identity}")
    return found


def other_name(home: RunFolder) -> str:
    """What to say of a folder with the name of another run, as it may have been given when it was copied; else empty."""
    identity = home.read("recipe.json", "identity")["identity"]
    name = re.search("-s[0-9]+-([0-9a-f]{8})$", home.path.resolve().name)  # other names, as with a date, are the user's own
    if name is None or name[1] == identity[:8]:
        return ""
    return f"the folder is named after {name[1]}, and recipe.json says {identity}"


def other_scores(trained: Trained, recorded: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> list[str]:
    """The scores of the best validation that do not follow from the counts by case."""
    from voxtile.scores.confusion import summarise

    data = trained.manifest["data"]
    if not all(name in recorded for name in names):
        return []  # which is told case by case
    found = summarise(np.array([recorded[name] for name in names]), data["classes"], data["background"], data.get("regions"))
    said = best_of(trained.home)["scores"]
    return [name for name, value in found.items() if said.get(name) != (value if math.isfinite(value) else None)]


def other_metrics(home: RunFolder) -> list[str]:
    """What metrics.csv says otherwise of the best validation than status.json, one phrase each."""
    from voxtile.training import metrics_file

    if not home.metrics.is_file():
        return ["metrics.csv is gone"]
    best = best_of(home)
    rows = {name: value for step, name, value in metrics_file.read(home.metrics) if step == best["step"]}
    names = {f"val/{name}": value for name, value in best["scores"].items()}
    same = {name: ("nan", "inf", "-inf") if value is None else (repr(float(value)),) for name, value in names.items()}
    return [f"{name} is {rows.get(name, 'not there')} in metrics.csv" for name in names if rows.get(name) not in same[name]]


def stale_evaluations(home: RunFolder) -> list[str]:
    """The evaluations in a run's folder that are of other weights than those with which it was finished."""
    from voxtile.commands.evaluated import summary_in

    recorded, found = home.read("status.json").get("weights") or {}, []
    for folder in sorted((home.path / "evaluations").glob("*")):
        summary = summary_in(folder)  # of an older version, which names no digest, nothing is known
        name, digest = summary.get("weights"), summary.get("weights_sha256")
        if digest is not None and digest != recorded.get(name, digest):
            found.append(f"{folder.name} (of step {summary.get('weights_step')})")
    return found


def counted_again(trained: Trained, prepared: Prepared, chosen: Sequence[int], device_name: str) -> dict[int, NDArray[np.int64]]:
    """Confusion matrices [K, K] of some validation cases, counted as the training counted them, by the case's number."""
    import torch

    from voxtile.commands.assemble import assembled
    from voxtile.commands.devices import device_called, torch_type
    from voxtile.inference.decoding import classes_of_logits
    from voxtile.models.network import logits_of
    from voxtile.scores.confusion import CaseConfusion

    where = device_called(device_name)
    module, data = assembled(trained.bare, prepared)
    module.network.load_state_dict(trained.network.state_dict())
    module.to(where).eval()
    confusion = CaseConfusion(len(prepared.split.val), len(prepared.dataset.classes))
    batches: Iterable[Any] = data.val_dataloader(chosen)
    kind = torch_type(trained.built.config["trainer"]["precision"])
    with torch.inference_mode(), torch.autocast(where.type, dtype=kind, enabled=kind != torch.float32):
        for batch in batches:
            image, label = module.inputs(data.transfer_batch_to_device(batch, where, 0), augment=False)
            classes = classes_of_logits(logits_of(module.network, image), list(module.regions.values()))
            confusion.update(batch["case"].tolist(), classes, label)
    matrices = confusion.compute().numpy()
    return {number: matrices[number] for number in chosen}
