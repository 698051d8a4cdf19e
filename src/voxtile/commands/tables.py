"""Scores as a table on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from voxtile.studies.manifest import segment

if TYPE_CHECKING:
    from voxtile.training.intervals import Spread
    from voxtile.training.run_folder import RunFolder


def print_scores(
    out: Console,
    title: str,
    scores: Mapping[str, float | None],
    classes: Sequence[str],
    regions: Sequence[str] = (),
    spread: Mapping[str, Spread] | None = None,
) -> None:
    """Prints Dice and IoU per class and region, the missed structures, and the FCN paper's four scores.

    Args:
        out: where it prints.
        title: of the table.
        scores: by name.
        classes: names of the classes.
        regions: names of the regions, which means are over where there are some.
        spread: medians and intervals over groups by the same names; None where there are none.
    """
    further = ("95 % interval", "median") if spread else ()
    columns = (_of(regions), "Dice (mean over cases)", *further, "IoU (pooled)", "missed", "false alarms")
    table = Table(*columns, title=title, title_justify="left")

    def spread_of(name: str) -> list[str]:
        if not spread:
            return []
        found = spread[name]
        interval = "undefined" if found.low != found.low else f"{found.low:.4f} to {found.high:.4f}"
        return [interval, "" if found.median is None else number(found.median)]

    for names in ([name for name in classes if name not in regions], regions):
        for name in names:
            counts = [f"{scores.get(f'{kind}/{name}', 0):.0f}" for kind in ("missed", "false_alarm")]
            table.add_row(name, number(scores[f"dice/{name}"]), *spread_of(f"dice/{name}"), number(scores[f"iou/{name}"]), *counts)
        table.add_section()
    table.add_row(_mean(regions), number(scores["dice"]), *spread_of("dice"), number(scores["iou"]))
    out.print(table)
    four = {
        "pixel accuracy": "pixel_accuracy",
        "mean accuracy": "mean_accuracy",
        "mean IU": "mean_iu",
        "frequency-weighted IU": "fw_iu",
    }
    out.print("   ".join(f"{title} {number(scores[name])}" for title, name in four.items()), highlight=False)


def _of(regions: Sequence[str]) -> str:
    """What a row of scores is about."""
    return "class or region" if regions else "class"


def _mean(regions: Sequence[str]) -> str:
    """What the means `dice` and `iou` are over."""
    return "mean over regions" if regions else "mean over foreground"


def print_folds(out: Console, folds: Sequence[Mapping[str, Any]], classes: Sequence[str], regions: Sequence[str]) -> None:
    """Prints Dice of each fold of a cross-validation, as the summary has them."""
    names = (*(name for name in classes if name not in regions), *regions)
    table = Table("fold", "cases", *names, _mean(regions), title="Dice by fold", title_justify="left")
    for fold in folds:
        dice = [number(fold["scores"][f"dice/{name}"]) for name in names]
        table.add_row(fold["fold"], str(fold["cases"]), *dice, number(fold["scores"]["dice"]))
    out.print(table)


def print_objects(out: Console, threshold: float, scores: Mapping[str, float], classes: Sequence[str]) -> None:
    """Prints precision, recall and F1 of objects, and how many there are."""
    title = f"objects, matched where their IoU is {threshold:g} or more"
    table = Table("class", "precision", "recall", "F1", "in label", "predicted", "matched", title=title, title_justify="left")
    for name in classes:
        shares = [number(scores[f"object_{kind}/{name}"]) for kind in ("precision", "recall", "f1")]
        table.add_row(name, *shares, *(f"{scores[f'{kind}_objects/{name}']:.0f}" for kind in ("label", "predicted", "matched")))
    out.print(table)


def print_lesions(out: Console, scores: Mapping[str, float], classes: Sequence[str]) -> None:
    """Prints how many lesions were found, and how many made up."""
    columns = ("sensitivity", "F1", "in label", "found", "false", "false per case")
    table = Table("class", *columns, title="lesions, shares are means over cases", title_justify="left")
    for name in classes:
        shares = [number(scores[f"lesion_{kind}/{name}"]) for kind in ("sensitivity", "f1")]
        counts = [f"{scores[f'{kind}_lesions/{name}']:.0f}" for kind in ("label", "found", "false")]
        table.add_row(name, *shares, *counts, f"{scores[f'false_lesions_per_case/{name}']:.2f}")
    out.print(table)


def print_surfaces(out: Console, unit: str, tolerances: Mapping[str, float], scores: Mapping[str, float]) -> None:
    """Prints distances between surfaces, mean and median over cases, and how many structures were missed."""
    columns = (f"HD95 ({unit})", "median", f"ASSD ({unit})", "median", "NSD", "median", f"tolerance ({unit})")
    title = "surfaces, mean and median over cases; a missed one is as far as the case is large"
    table = Table("class", *columns, "missed", "false alarms", title=title, title_justify="left")
    for name, tolerance in tolerances.items():
        values = [number(scores[f"{kind}{of}/{name}"]) for kind in ("hd95", "assd", "nsd") for of in ("", "_median")]
        counts = [f"{scores[f'{kind}/{name}']:.0f}" for kind in ("missed", "false_alarm")]
        table.add_row(name, *values, f"{tolerance:g}", *counts)
    out.print(table)


def print_volumes(out: Console, scores: Mapping[str, float], classes: Sequence[str]) -> None:
    """Prints errors of volume."""
    columns = ("error (ml)", "absolute (ml)", "relative", "absolute relative")
    table = Table("class", *columns, title="volume, means over cases", title_justify="left")
    for name in classes:
        kinds = ("volume_error_ml", "absolute_volume_error_ml", "relative_volume_error", "absolute_relative_volume_error")
        table.add_row(name, *(number(scores[f"{kind}/{name}"]) for kind in kinds))
    out.print(table)


def print_runs(out: Console, runs: Sequence[RunFolder]) -> None:
    """Prints the best validation of several finished runs, how many steps they took, and what a step cost."""
    table = Table("run", "Dice", "IoU", "steps", "s/step", "GiB", title=f"{len(runs)} runs, best validation", title_justify="left")
    for home in runs:
        status, made = home.read("status.json", "best", "step"), segment(home.read("manifest.json"))
        scores, seconds, memory = status["best"]["scores"], made.get("training_seconds"), made.get("peak_memory_gib")
        cost = ["" if seconds is None else f"{seconds / status['step']:.3f}", "" if memory is None else f"{memory:.2f}"]
        table.add_row(home.path.name, number(scores["dice"]), number(scores["iou"]), str(status["step"]), *cost)
    out.print(table)


def number(value: float | None) -> str:
    """Four digits, or "undefined"."""
    return "undefined" if value is None or value != value else f"{value:.4f}"
