"""Two runs of one recipe, compared number by number and bit by bit."""

from __future__ import annotations

import filecmp
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from voxtile.errors import RunError, VoxtileError, counted, listed
from voxtile.studies.manifest import segment
from voxtile.training import metrics_file
from voxtile.training.run_folder import RunFolder
from voxtile.training.weights import digests

WEIGHTS = ("best", "last")
MOST_SCORES = 8  # scores that are listed


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        identical: whether all numbers and all weights are the same bits.
        lines: sentences for the user.
    """

    identical: bool
    lines: list[str]


def compare(first: RunFolder, second: RunFolder) -> Comparison:
    """Compares a run with its reproduction."""
    if other := _other_recipe(first, second):
        return Comparison(False, [f"not the same run: {listed(other)} of the two are not the same, so nothing was reproduced"])
    rows, others = _metrics(first), _metrics(second)
    weights = {name: _weights(first, second, name) for name in WEIGHTS}
    differing = [key for key in rows if others.get(key) != rows[key]] + [key for key in others if key not in rows]
    if not differing and not any(weights.values()):
        number = counted(len(rows), "number")
        return Comparison(True, [f"identical: all {number} of metrics.csv, and the weights, bit for bit ({', '.join(WEIGHTS)})"])
    lines = [f"not identical: {len(differing)} of {counted(len({*rows, *others}), 'number')} of metrics.csv differ"]
    lines += [f"  weights {name}: {text}" for name, text in weights.items() if text]
    scores, found = (run.read("status.json", "best")["best"]["scores"] for run in (first, second))
    changed = [name for name in scores if scores[name] != found.get(name)]
    lines += [f"  {name}: {_moved(scores[name], found.get(name))}" for name in changed[:MOST_SCORES]]
    if not any(weights.values()):
        for step, name in differing[:MOST_SCORES]:
            lines.append(f"  step {step}, {name}: {rows.get((step, name))}, now {others.get((step, name))}")
        lines.append(f"The weights are the same, bit for bit, so the training was: {first.metrics} seems to have changed since.")
        return Comparison(False, lines)
    if first.read("status.json").get("weights") and (edited := changed_weights(first)):
        lines.append(f"The first has other weights than it was finished with, so that they cannot be the same: {listed(edited)}.")
        return Comparison(False, lines)
    lines.append(_causes(first, second))
    lines.append(_spread(first, scores["dice"], found["dice"]))
    return Comparison(False, lines)


def check_evidence(run: RunFolder) -> None:
    """Refuses a run that lacks what a reproduction of it is compared with, before anything is trained.

    Raises:
        RunError: Its numbers or weights are gone, or its best validation is not recorded.
    """
    names = ("metrics.csv", *(f"weights/{name}.safetensors" for name in WEIGHTS))
    if gone := [name for name in names if not (run.path / name).is_file()]:
        raise RunError(
            f"{run.path} cannot be compared with: {listed(gone)} {'is' if len(gone) == 1 else 'are'} gone. Put back what the run "
            "left, or train the run again."
        )
    run.read("status.json", "best")


def changed_weights(run: RunFolder) -> list[str]:
    """The weights that are not as they were recorded when the run was finished, one phrase each."""
    recorded = run.read("status.json").get("weights")
    if not recorded:
        return ["no digests of them are kept; the run was made by an older version"]
    found = digests(run.weights)
    return [f"{name} {'is gone' if name not in found else 'has changed'}" for name in recorded if found.get(name) != recorded[name]]


def _other_recipe(first: RunFolder, second: RunFolder) -> list[str]:
    """The parts of two runs' identities that differ."""
    mine, its = (run.read("recipe.json", "identity", "settings") for run in (first, second))
    if mine["identity"] == its["identity"]:
        return []
    names = {
        "data": "the data",
        "split": "the split",
        "stream": "the version of the sample stream",
        "parent": "the parent's weights",
    }
    settings = sorted(key for key in {*mine["settings"], *its["settings"]} if mine["settings"].get(key) != its["settings"].get(key))
    return [*(text for key, text in names.items() if mine.get(key) != its.get(key)), *settings]


def _moved(before: Any, now: Any) -> str:
    """Two values of a score, and their difference where both are numbers."""
    if not isinstance(before, float) or not isinstance(now, float):
        return f"{'undefined' if before is None else before}, now {'undefined' if now is None else now}"
    return f"{before:.6f}, now {now:.6f} ({now - before:+.6f})"


def _metrics(run: RunFolder) -> dict[tuple[int, str], str]:
    """Every number of a run's metrics file as it is written, by step and name."""
    return {(step, name): value for step, name, value in metrics_file.read(run.metrics)}


def _weights(first: RunFolder, second: RunFolder, name: str) -> str:
    """How two runs' weights differ; "" where they are the same bits."""
    from safetensors.torch import load_file

    mine, its = (run.weights / f"{name}.safetensors" for run in (first, second))
    if filecmp.cmp(mine, its, shallow=False):
        return ""
    a, b = load_file(mine), load_file(its)
    if {key: value.shape for key, value in a.items()} != {key: value.shape for key, value in b.items()}:
        return "other tensors"
    same = sum(bool((a[key] == b[key]).all()) for key in a)
    largest = max(float((a[key].double() - b[key].double()).abs().max()) for key in a if a[key].numel())
    return f"{same} of {len(a)} tensors are the same; the largest difference is {largest:.3g}"


def _causes(first: RunFolder, second: RunFolder) -> str:
    """What the two were made with that is not the same, as a sentence."""
    manifest, its = first.read("manifest.json", "code", "versions", "hardware"), segment(second.read("manifest.json"))
    found = []
    for mine in (manifest, *manifest.get("segments", [])):
        found += ["the code"] if mine["code"].get("sources") != its["code"].get("sources") else []
        trusted, others = mine["code"].get("trusted", {}), its["code"].get("trusted", {})
        found += [f"the trusted module '{name}'" for name in trusted if name in others and trusted[name] != others[name]]
        for part in ("versions", "hardware"):
            names = sorted({*mine[part], *its[part]})
            found += [
                f"{name} ({mine[part].get(name)}, now {its[part].get(name)})"
                for name in names
                if mine[part].get(name) != its[part].get(name)
            ]
    found = list(dict.fromkeys(found))
    if first.read("recipe.json", "settings")["settings"].get("training.minutes") is not None:
        found.append("the clock ('training.minutes')")
    if not found:
        known = "on a GPU, 'trainer.deterministic=true' asks for operations that always give the same bits"
        return f"Code, versions and hardware are the same, so the cause is an operation that is not deterministic: {known}."
    return f"Between the two have changed, and are the likely cause: {listed(found, 20)}."


def _spread(run: RunFolder, before: Any, now: Any) -> str:
    """Whether the difference lies within what other seeds of the same recipe came to, as a sentence."""
    if not isinstance(before, float) or not isinstance(now, float):
        return "The mean Dice is undefined in one of the two."
    values = list(_of_other_seeds(run))
    if len(values) < 2:
        return "How far apart seeds lie is not known: fewer than two finished runs with another seed lie beside this one."
    spread = statistics.stdev([before, *values])
    where = "within" if abs(now - before) <= spread else "more than"
    return (
        f"The mean Dice moved by {abs(now - before):.4f}, {where} the standard deviation {spread:.4f} of this recipe's "
        f"{len(values) + 1} seeds."
    )


def _of_other_seeds(run: RunFolder) -> Iterator[float]:
    recipe = run.read("recipe.json", "settings", "identity")
    mine, known = _seedless(recipe), {recipe["identity"]}
    for path in sorted(run.path.parent.glob("*/recipe.json")):
        other = RunFolder(path.parent)
        try:
            recipe = other.read("recipe.json", "settings", "identity")
            same = recipe["identity"] not in known and _seedless(recipe) == mine
            known.add(recipe["identity"])
            if same and other.status["state"] == "finished":
                yield float(other.read("status.json", "best")["best"]["scores"]["dice"])
        except (VoxtileError, KeyError, TypeError):  # not a run of this version
            continue


def _seedless(recipe: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in recipe["settings"].items() if key != "seed"}
    return {**{key: recipe.get(key) for key in ("data", "split", "stream")}, "settings": settings}
