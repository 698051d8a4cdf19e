"""Scores as a table on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table


def print_scores(out: Console, title: str, scores: Mapping[str, float | None], classes: Sequence[str]) -> None:
    """Prints Dice and IoU per class, the missed structures, and the FCN paper's four scores."""
    table = Table("class", "Dice (mean over cases)", "IoU (pooled)", "missed", "false alarms", title=title, title_justify="left")
    for name in classes:
        counts = [f"{scores.get(f'{kind}/{name}', 0):.0f}" for kind in ("missed", "false_alarm")]
        table.add_row(name, number(scores[f"dice/{name}"]), number(scores[f"iou/{name}"]), *counts)
    table.add_section()
    table.add_row("mean over foreground", number(scores["dice"]), number(scores["iou"]))
    out.print(table)
    four = {
        "pixel accuracy": "pixel_accuracy",
        "mean accuracy": "mean_accuracy",
        "mean IU": "mean_iu",
        "frequency-weighted IU": "fw_iu",
    }
    out.print("   ".join(f"{title} {number(scores[name])}" for title, name in four.items()), highlight=False)


def number(value: float | None) -> str:
    """Four digits, or "undefined"."""
    return "undefined" if value is None or value != value else f"{value:.4f}"
