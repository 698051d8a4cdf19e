"""The scores of a split, per case and over all: computed, written as `cases.csv` and `summary.json`, and shown."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from voxtile.cases.atomic import atomic_text
from voxtile.cases.case import Case
from voxtile.cases.csv_table import atomic_csv
from voxtile.cases.regions import structures_of
from voxtile.commands.evaluated import summary_in
from voxtile.commands.measures import MEASURES, Measure, as_typed
from voxtile.commands.scoring import Scored
from voxtile.commands.tables import print_scores, print_volumes
from voxtile.errors import counted, listed
from voxtile.inference.predictor import Predictor
from voxtile.scores.confusion import averaged_over, case_rows, summarise
from voxtile.scores.intervals import LEAST_GROUPS, Spread, spreads
from voxtile.scores.volumes import summarise_volumes, volume_columns
from voxtile.training.run_folder import clear_halves
from voxtile.values import finite

FEW_GROUPS = 10  # below which bootstrap intervals are too narrow


@dataclass(frozen=True)
class ScoreTable:
    """The scores of a split.

    Attributes:
        cases: the cases.
        classes: names of the classes.
        regions: class indices by name of region; empty where there are none.
        averaged: names of the classes or regions that means are over.
        measures: what was measured beside confusion matrices.
        rows: of `cases.csv`, one per case.
        scores: of all cases together, by name.
        spread: medians and intervals over groups, by the names of scores.
        confusion: int64 [K, K] of all cases: rows are label classes, columns predicted ones.
        volumes: names of the structures whose volumes are among the scores; none where cases are not in millimetres.
    """

    cases: Sequence[Case]
    classes: Sequence[str]
    regions: Mapping[str, Sequence[int]]
    averaged: Sequence[str]
    measures: Sequence[Measure]
    rows: Sequence[Mapping[str, Any]]
    scores: Mapping[str, float]
    spread: Mapping[str, Spread]
    confusion: NDArray[np.int64]
    volumes: Sequence[str]


def score_table(scored: Sequence[Scored], data: Mapping[str, Any], measures: Sequence[Measure]) -> ScoreTable:
    """The scores of what was counted on some cases.

    Args:
        scored: the cases.
        data: the manifest's `classes`, `background` and, of data with regions, `regions`.
        measures: what was measured of each.
    """
    classes, background, regions = data["classes"], data["background"], data.get("regions") or {}
    cases = [each.case for each in scored]
    stack = np.stack([each.matrix for each in scored])
    scores = summarise(stack, classes, background, regions)
    columns = case_rows(stack, [case.id for case in cases], classes, regions)
    spread = spreads(columns, stack, [case.group for case in cases], classes, background, regions)
    rows = [
        {"case": each.case.id, "group": each.case.group, **each.columns, "labels": f"{each.labels:016x}", **row}
        for each, row in zip(scored, columns, strict=True)
    ]
    structures = structures_of(classes, background, regions) if all(case.grid.unit == "mm" for case in cases) else {}
    if structures:
        sizes = [case.grid.cell() / 1000 for case in cases]
        volumes = [volume_columns(each.matrix, structures, ml) for each, ml in zip(scored, sizes, strict=True)]
        scores |= summarise_volumes(volumes, list(structures))
        rows = [{**row, **own} for row, own in zip(rows, volumes, strict=True)]
    for number, measure in enumerate(measures):
        measured = [each.measured[number] for each in scored]
        scores |= measure.scores(measured)
        rows = [{**row, **own} for row, own in zip(rows, measured, strict=True)]
    averaged = [(*classes, *regions)[index] for index in averaged_over(classes, background, regions)]
    return ScoreTable(
        cases=cases, classes=classes, regions=regions, averaged=averaged, measures=measures, rows=rows, scores=scores,
        spread=spread, confusion=stack.sum(axis=0), volumes=list(structures),
    )  # fmt: skip


def write_scores(
    folder: Path,
    table: ScoreTable,
    config: Mapping[str, Any],
    predictor: Predictor,
    post: object,
    facts: Mapping[str, Any],
    out: Console,
) -> None:
    """Writes cases.csv and summary.json, and prints the scores per class.

    Args:
        folder: where they go.
        table: the scores.
        config: of the command.
        predictor: what the maps were made with.
        post: settings of the post-processing, None for none.
        facts: what else is in summary.json; `waived` is printed, too.
        out: where it prints.
    """
    notes = {name: note for measure in table.measures for name, note in measure.note().items()}
    before = summary_in(folder)
    clear_halves(folder)
    atomic_csv(folder / "cases.csv", list(table.rows[0]), table.rows)
    summary = {
        "split": config["split"], "weights": config["weights"], "cases": len(table.cases), "overlap": config["overlap"],
        "scores": finite(table.scores),
        "spread": {name: each.as_dict() for name, each in table.spread.items()},
        "procedure": {
            "window": list(predictor.size), "crf": asdict(predictor.procedure.crf) if predictor.procedure.crf else None,
            "postprocess": post, **{name: config[name] for name in ("rotations", "mirrors", "halo", "samples", "precision")},
        },
        "confusion": table.confusion.tolist(), "classes": table.classes, "regions": table.regions, "averaged": table.averaged,
        "grid": grid_note(table.cases), **facts, "definitions": "docs/scores.md", **notes,
    }  # fmt: skip
    atomic_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    made = f"maps in {facts['maps']}" if "maps" in facts else f"{config['weights']} weights"
    _show(table, f"{config['split']}: {counted(len(table.cases), 'whole case')}, {made}", out)
    for sentence in facts["waived"]:
        out.print(f"waived: {sentence}")
    out.print(f"written      {folder / 'cases.csv'}\n             {folder / 'summary.json'}", soft_wrap=True)
    _say_replaced(before, summary, folder, out)


def _say_replaced(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path, out: Console) -> None:
    """Says what of an earlier evaluation in a folder is not in the one that has taken its place: last, where it is seen."""
    if "weights_sha256" in before and before["weights_sha256"] != now.get("weights_sha256"):
        steps = " and ".join(str(each.get("weights_step")) for each in (before, now))
        out.print(
            f"the earlier evaluation in {folder} was of other weights (of steps {steps}), and this one has taken its place",
            style="yellow", soft_wrap=True,
        )  # fmt: skip
    if before.get("fingerprint") != now.get("fingerprint") and before:
        said = f"the earlier evaluation in {folder} was of other cases, and this one has taken its place"
        out.print(said, style="yellow", soft_wrap=True)
    say_lost(before, now, f"the earlier evaluation in {folder} also held", "and this one has taken its place", out)


def say_lost(before: Mapping[str, Any], names: Collection[str], held: str, becomes: str, out: Console) -> None:
    """Says which measures an earlier evaluation holds that are not among those called `names`; nothing where there are none.

    Args:
        before: the earlier one's summary; empty where there is none.
        names: of measures.
        held: what the sentence begins with, before what it holds.
        becomes: what becomes of it.
        out: where it prints.
    """
    if lost := [name for name in MEASURES if name in before and name not in names]:
        words = " ".join(as_typed(name, before[name]) for name in lost)
        out.print(f"{held} {listed(lost)}, {becomes}: type {words}, too, to have that in it", style="yellow", soft_wrap=True)


def _show(table: ScoreTable, title: str, out: Console) -> None:
    """Prints the scores, and what to think of them."""
    print_scores(out, title, table.scores, table.classes, list(table.regions), table.spread)
    if table.volumes:
        print_volumes(out, table.scores, table.volumes)
    for measure in table.measures:
        measure.show(out, table.scores)
    if (grid := grid_note(table.cases)) != "stored":
        out.print(f"pixels are {grid}: scores on another grid are other scores")
    groups = len({case.group for case in table.cases})
    if groups < LEAST_GROUPS:
        out.print(
            f"no intervals: they would rest on {counted(groups, 'group')}, and fewer than {LEAST_GROUPS} say nothing of how far "
            "the scores would move with others",
            soft_wrap=True,
        )
    elif groups < FEW_GROUPS:
        out.print(f"intervals rest on {counted(groups, 'group')}: so few say little of how far the scores would move with others")


def grid_note(cases: Sequence[Case]) -> str:
    """On which pixels scores are counted: those of the files, or of what they were resampled to."""
    resampled = [case for case in cases if case.image.working.spacing != case.image.canonical.spacing]
    if not resampled:
        return "stored"
    sizes = sorted({f"{side:.4g} {case.grid.unit}" for case in resampled for side in case.grid.spacing[1:]})
    return f"resampled to {', '.join(sizes)}"
