"""voxtile evaluate: a run's scores on the whole cases of a split."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from voxtile.cases.case import Case
    from voxtile.commands.measures import Collector, Measure
    from voxtile.commands.trained import Trained
    from voxtile.data.normalise import Intensity
    from voxtile.inference.predictor import Predictor


def main(argv: Sequence[str]) -> int:
    """Composes and evaluates; see `voxtile evaluate --help`."""
    return compose.run("evaluate", argv, evaluate)


def evaluate(config: Mapping[str, Any]) -> int:
    """Scores the run that the configuration names."""
    from dataclasses import asdict

    from voxtile.commands.assemble import prepare_data
    from voxtile.commands.console import console, progress
    from voxtile.commands.crf import asks_for_search, search_crf, search_of
    from voxtile.commands.measures import measures_of
    from voxtile.commands.trained import Trained
    from voxtile.data.survey import survey
    from voxtile.errors import ConfigError, DataError
    from voxtile.training.ledger import record_look

    out = console()
    if isinstance(config["run"], list):
        raise ConfigError(f"'run={config['run']}' names several runs, and one is scored at a time. Several predict together.")
    if config["split"] not in ("val", "test"):
        raise ConfigError(f"'split={config['split']}' cannot be evaluated; choose val or test.")
    trained = Trained.open(str(config["run"]), config["weights"], config["trust"], config["root"], config["paths"]["cache"])
    measures = measures_of(config, trained.manifest["data"]["classes"], trained.manifest["data"]["background"])
    searching = asks_for_search(config["crf"])
    if searching:
        if config["split"] != "val":
            raise ConfigError("'crf=search' chooses settings by scores: only 'split=val' may be used for that.")
        search_of(config["crf"], trained.manifest["data"]["channels"])
    predictor = trained.predictor(dict(config) | {"crf": None} if searching else config)  # refuses before data are read
    root = trained.built.dataset.layout.root
    try:
        prepared = prepare_data(trained.built, out)
    except DataError as error:
        raise DataError(
            f"The data in {root} cannot be scored as those of the run {trained.home.path}: {error} If the run's data lie elsewhere "
            "now, say where with 'root=<folder>'."
        ) from error
    recipe = trained.home.read("recipe.json")
    same = prepared.split.digest == recipe["split"] and prepared.fingerprint == recipe["data"]
    if config["split"] == "test":
        same = same and prepared.test_fingerprint == trained.manifest["data"]["test_fingerprint"]
    if not same:
        raise DataError(
            f"The data in {root} are not what the run {trained.home.path} was trained on: files or split have changed. Put them "
            "back as they were (manifest.json lists the split), say with 'root=<folder>' where they are, or train a new run."
        )
    cases = prepared.split.val if config["split"] == "val" else prepared.split.test
    if not cases:
        raise DataError(f"The split of {trained.home.path} has no {config['split']} cases. Train with a split that has some.")
    for measure in measures:
        measure.check(cases)
    if config["split"] == "test":
        looks = record_look(trained.ledger(config), prepared.test_fingerprint, recipe["identity"], "evaluate")
        out.print(f"look number {looks} at this test split, recorded")
    if searching:
        best = search_crf(trained, config, prepared, out)
        predictor = trained.predictor(dict(config) | {"crf": asdict(best) if best else None})
    matrices = []
    if measures:
        predictor.widest = None  # objects are counted in bands as wide as their case
    with progress(out) as start:
        tick = start(len(cases), f"evaluating {config['split']}")
        for case in cases:
            found = prepared.surveys.get(case.id) or survey(case, len(prepared.dataset.classes), label=False)
            intensity = prepared.intensity_of(case, found)
            matrices.append(measured(predictor, case, intensity, len(prepared.dataset.classes), measures))
            tick()
    return write_scores(trained, config, predictor, cases, matrices, measures, trained.manifest["data"]["waived"])


def measured(
    predictor: Predictor, case: Case, intensity: Intensity, classes: int, measures: Sequence[Measure]
) -> NDArray[np.int64]:
    """The confusion matrix of a whole case, see `case_matrix`; each measure has a row more."""
    collectors = [measure.collector(case.native) for measure in measures]
    matrix = case_matrix(predictor, case, intensity, classes, collectors)
    for measure, collector in zip(measures, collectors, strict=True):
        measure.rows.append(collector.columns())
    return matrix


def case_matrix(
    predictor: Predictor, case: Case, intensity: Intensity, classes: int, collectors: Sequence[Collector] = ()
) -> NDArray[np.int64]:
    """The confusion matrix [K, K] of a whole case: rows are label classes, columns predicted ones; ignored pixels are left out.

    The collectors are given the same bands.
    """
    import torch

    from voxtile.cases.case import IGNORE
    from voxtile.inference.native import native_bands
    from voxtile.training.scores import confusion_matrix

    total: Any = 0
    native = case.native
    for band in native_bands(predictor, case, intensity):
        label = native.read_label(band.window)
        label[~band.valid] = IGNORE
        prediction = band.classes()
        total = total + confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(label), classes).numpy()
        for collector in collectors:
            collector.add(band.window, prediction, label)
    return total  # type: ignore[no-any-return]  # an array, since a case has a band or more


def procedure_name(config: Mapping[str, Any], crf: Mapping[str, Any] | None) -> str:
    """What tells evaluations with other procedures at test time apart, "" for the plain one."""
    import hashlib

    parts = [] if config["window"] is None else ["window" + "x".join(map(str, config["window"]))]
    if crf is not None:
        parts.append("crf" + hashlib.sha256(json.dumps(crf).encode()).hexdigest()[:6])
    parts += ["mirrors" + "".join(config["mirrors"])] if config["mirrors"] else []
    parts += [f"{name}{config[name]}" for name, plain in (("rotations", 1), ("halo", 0), ("samples", 0)) if config[name] != plain]
    return "".join(f"-{part}" for part in parts)


def folder_name(split: str, config: Mapping[str, Any], predictor: Predictor) -> str:
    """The folder below `evaluations/` for a split scored with a command's weights and settings."""
    from dataclasses import asdict

    crf = predictor.procedure.crf
    return f"{split}-{config['weights']}{procedure_name(config, asdict(crf) if crf else None)}"


def grid_note(cases: Sequence[Case]) -> str:
    """On which pixels scores are counted: those of the files, or of what they were resampled to."""
    natives = [case.image.native for case in cases]  # volumes are judged on the grid of their files
    resampled = [image.working for image in natives if image.working.spacing != image.canonical.spacing]
    if not resampled:
        return "stored"
    sizes = sorted({f"{side:.4g} {grid.unit}" for grid in resampled for side in grid.spacing[1:]})
    return f"resampled to {', '.join(sizes)}"


def write_scores(
    trained: Trained,
    config: Mapping[str, Any],
    predictor: Predictor,
    cases: Sequence[Case],
    matrices: Sequence[NDArray[np.int64]],
    measures: Sequence[Measure],
    waived: Sequence[str],
) -> int:
    """Writes cases.csv and summary.json and prints the scores per class."""
    from dataclasses import asdict

    import numpy as np

    from voxtile.cases.maps import atomic_text
    from voxtile.commands.console import console
    from voxtile.commands.tables import print_scores, print_volumes
    from voxtile.errors import counted
    from voxtile.training.scores import case_rows, summarise
    from voxtile.training.volumes import summarise_volumes, volume_columns

    data = trained.manifest["data"]
    stack = np.stack(matrices)
    scores = summarise(stack, data["classes"], data["background"])
    rows = case_rows(stack, [case.id for case in cases], data["classes"])
    rows = [{"case": case.id, "group": case.group} | row for case, row in zip(cases, rows, strict=True)]
    foreground = {index: name for index, name in enumerate(data["classes"]) if index != data["background"]}
    volumes = all(case.grid.unit == "mm" for case in cases)
    if volumes:
        sizes = [float(np.prod(case.grid.spacing)) / 1000 for case in cases]
        columns = [volume_columns(matrix, foreground, size) for matrix, size in zip(matrices, sizes, strict=True)]
        scores |= summarise_volumes(columns, list(foreground.values()))
        rows = [row | own for row, own in zip(rows, columns, strict=True)]
    notes: dict[str, Any] = {}
    for measure in measures:
        scores |= measure.scores()
        rows = [row | own for row, own in zip(rows, measure.rows, strict=True)]
        notes |= measure.note()
    crf = asdict(predictor.procedure.crf) if predictor.procedure.crf else None
    folder = trained.home.path / "evaluations" / folder_name(config["split"], config, predictor)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_text(folder / "cases.csv", text.getvalue())
    summary = {
        "split": config["split"], "weights": config["weights"], "cases": len(cases), "overlap": config["overlap"], "scores": scores,
        "procedure": {"window": list(predictor.size), "crf": crf} | {
            name: config[name] for name in ("rotations", "mirrors", "halo", "samples")
        },
        "confusion": stack.sum(axis=0).tolist(), "classes": data["classes"], "waived": list(waived), "grid": grid_note(cases),
        "run": trained.home.read("recipe.json")["identity"], "definitions": "docs/scores.md",
    }  # fmt: skip
    # JSON has no NaN: what is undefined is null.
    clean = {name: None if value != value else value for name, value in scores.items()}
    atomic_text(folder / "summary.json", json.dumps(summary | {"scores": clean} | notes, indent=1) + "\n")
    out = console()
    print_scores(
        out, f"{config['split']}: {counted(len(cases), 'whole case')}, {config['weights']} weights", scores, data["classes"]
    )
    if volumes:
        print_volumes(out, scores, list(foreground.values()))
    for measure in measures:
        measure.show(out, scores)
    if summary["grid"] != "stored":
        out.print(f"pixels are {summary['grid']}: scores on another grid are other scores")
    for sentence in waived:
        out.print(f"waived: {sentence}")
    out.print(f"written      {folder / 'cases.csv'}\n             {folder / 'summary.json'}", soft_wrap=True)
    return 0
