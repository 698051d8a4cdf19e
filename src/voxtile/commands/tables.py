"""Tables on the screen: of scores, of runs and of the jobs of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from voxtile.commands.compose import as_typed
from voxtile.commands.console import table_of
from voxtile.commands.guard import STOPPED
from voxtile.commands.names import titles
from voxtile.commands.sweep import NOT_BEGUN
from voxtile.commands.words import list_word
from voxtile.errors import RunError, counted, reason
from voxtile.studies.manifest import segment
from voxtile.training import metrics_file
from voxtile.training.run_folder import OtherVersionError, RunFolder

AS_TYPED = {"split.fold": "fold"}  # what a recipe calls otherwise
MOST_WORDS = 6  # about a run in a table
MOST_ROWS = 40  # of a table whose title is still on the screen when its end is

if TYPE_CHECKING:
    from voxtile.commands.sweep import Outcome
    from voxtile.scores.intervals import Spread


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
    table = table_of(*columns, title=title)

    def spread_of(name: str) -> list[str]:
        if not spread:
            return []
        found = spread[name]
        interval = "–" if found.low != found.low else f"{found.low:.4f} to {found.high:.4f}"
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
    rows = [["fold", "cases", *names, _mean(regions)]]
    for fold in folds:
        dice = [number(fold["scores"][f"dice/{name}"]) for name in names]
        rows.append([fold["fold"], str(fold["cases"]), *dice, number(fold["scores"]["dice"])])
    if len(names) > len(folds):  # a screen is narrower than it is long
        rows = [list(column) for column in zip(*rows, strict=True)]
    table = table_of(*rows[0], title="Dice by fold")
    for row in rows[1:]:
        table.add_row(*row)
    out.print(table)


def print_objects(out: Console, threshold: float, scores: Mapping[str, float], classes: Sequence[str]) -> None:
    """Prints precision, recall and F1 of objects, and how many there are."""
    title = f"objects, matched where their IoU is {threshold:g} or more"
    table = table_of("class", "precision", "recall", "F1", "in label", "predicted", "matched", title=title)
    for name in classes:
        shares = [number(scores[f"object_{kind}/{name}"]) for kind in ("precision", "recall", "f1")]
        table.add_row(name, *shares, *(f"{scores[f'{kind}_objects/{name}']:.0f}" for kind in ("label", "predicted", "matched")))
    out.print(table)


def print_lesions(out: Console, scores: Mapping[str, float], classes: Sequence[str]) -> None:
    """Prints how many lesions were found, and how many made up."""
    columns = ("sensitivity", "F1", "in label", "found", "false", "false per case")
    table = table_of("class", *columns, title="lesions, shares are means over cases")
    for name in classes:
        shares = [number(scores[f"lesion_{kind}/{name}"]) for kind in ("sensitivity", "f1")]
        counts = [f"{scores[f'{kind}_lesions/{name}']:.0f}" for kind in ("label", "found", "false")]
        table.add_row(name, *shares, *counts, f"{scores[f'false_lesions_per_case/{name}']:.2f}")
    out.print(table)


def print_surfaces(out: Console, unit: str, tolerances: Mapping[str, float], scores: Mapping[str, float]) -> None:
    """Prints distances between surfaces, mean and median over cases, and how many structures were missed."""
    columns = (f"HD95 ({unit})", "median", f"ASSD ({unit})", "median", "NSD", "median", f"tolerance ({unit})")
    title = "surfaces, mean and median over cases; a missed one is as far as the case is large"
    table = table_of("class", *columns, "missed", "false alarms", title=title)
    for name, tolerance in tolerances.items():
        values = [number(scores[f"{kind}{of}/{name}"]) for kind in ("hd95", "assd", "nsd") for of in ("", "_median")]
        counts = [f"{scores[f'{kind}/{name}']:.0f}" for kind in ("missed", "false_alarm")]
        table.add_row(name, *values, f"{tolerance:g}", *counts)
    out.print(table)


def print_volumes(out: Console, scores: Mapping[str, float], classes: Sequence[str]) -> None:
    """Prints errors of volume."""
    columns = ("error (ml)", "absolute (ml)", "relative", "absolute relative")
    table = table_of("class", *columns, title="volume, means over cases")
    for name in classes:
        kinds = ("volume_error_ml", "absolute_volume_error_ml", "relative_volume_error", "absolute_relative_volume_error")
        table.add_row(name, *(number(scores[f"{kind}/{name}"]) for kind in kinds))
    out.print(table)


def print_jobs(out: Console, jobs: Sequence[Outcome]) -> None:
    """Prints what became of the jobs of a sweep: state and best validation of their runs, and what a step cost."""
    table, troubles = _table_of_runs("job", title=f"{counted(len(jobs), 'job')}, best validation"), list[str]()
    left = 0
    for job, title in zip(jobs, titles([job.words for job in jobs]), strict=True):
        home, trouble = RunFolder(Path(job.home)) if job.home else None, ""
        row = ["", "queued" if job.code == STOPPED else "failed"]
        if home and home.path.exists():
            row, trouble = _row(home)
        table.add_row(title, *row)
        if job.reason == NOT_BEGUN and job.code == STOPPED:
            left += 1
        elif job.code:
            trouble = job.reason or "stopped; the same command goes on"
        troubles += [f"{title}: {trouble}"] if trouble else []
    out.print(table)
    for trouble in troubles:
        out.print(trouble, style="red", soft_wrap=True)
    if left:
        out.print(f"{counted(left, 'job')} not begun", style="red", soft_wrap=True)
    folds = [word.startswith("fold=") for title in titles([job.words for job in jobs]) for word in title.split()]
    if len(folds) == len(jobs) and all(folds) and not any(job.code for job in jobs):
        out.print(f"next         voxtile evaluate {list_word('runs', [job.home for job in jobs])}", soft_wrap=True)


def print_runs(out: Console, runs: Sequence[RunFolder]) -> bool:
    """Prints how far runs are: state, step, best validation, what a step cost, and why they failed.

    Returns:
        Whether one has failed, is damaged, or is of another version.
    """
    settings = _differences(runs)
    first = ("settings",) if any(settings) else ()
    table, troubles = _table_of_runs(*first, title=f"{counted(len(runs), 'run')}, best validation"), list[str]()
    states = Counter[str]()
    for home, differing in zip(runs, settings, strict=True):
        row, trouble = _row(home)
        states[row[1]] += 1
        table.add_row(*([differing] if first else []), *row)
        troubles += [f"{home.path}: {trouble}"] if trouble else []
    out.print(table)
    for trouble in troubles:
        out.print(trouble, style="red", soft_wrap=True)
    if len(runs) > MOST_ROWS:
        in_each = ", ".join(f"{number:,} {state}" for state, number in states.most_common())
        out.print(f"{counted(len(runs), 'run')}: {in_each}; 'runs=<pattern with *>' shows some of them", soft_wrap=True)
    return bool(troubles)


def _table_of_runs(*first: str, title: str) -> Table:
    return table_of(*first, "run", "state", "step", "Dice", "IoU", "s/step", "GiB", title=title)


def _row(home: RunFolder) -> tuple[list[str], str]:
    """A run's row in a table, and why it failed or what of it cannot be read; empty where all is well."""
    try:
        home.check()
        status = home.status
        made = segment(home.read("manifest.json")) if (home.path / "manifest.json").exists() else {}
        step = _step(home, status)
        scores = (status.get("best") or {}).get("scores", {})
        seconds, memory = made.get("training_seconds"), made.get("peak_memory_gib")
        of = "" if status["state"] == "finished" else f"/{status['steps']}" if "steps" in status else ""
        row = [
            home.path.name,
            status["state"],
            f"{step}{of}",
            *(number(scores[name]) if name in scores else "" for name in ("dice", "iou")),
            f"{seconds / step:.3f}" if seconds and step else "",
            "" if memory is None else f"{memory:.2f}",
        ]
    except RunError as error:
        return [home.path.name, "other version" if isinstance(error, OtherVersionError) else "damaged"], str(error)
    except (AttributeError, TypeError, ValueError) as error:  # of a text where a number belongs, say
        return [home.path.name, "damaged"], f"its status.json or manifest.json holds something else than a run's: {reason(error)}"
    return row, str(status.get("reason") or ("it failed" if status["state"] == "failed" else ""))


def _differences(runs: Sequence[RunFolder]) -> list[str]:
    """What each run was told otherwise than the others of the same data and network; nothing of one that cannot be read."""
    told: list[dict[str, Any]] = []
    for home in runs:
        told.append({})
        with suppress(RunError, AttributeError, KeyError):
            settings = home.read("recipe.json", "settings")["settings"]
            began = home.read("manifest.json").get("parent") if (home.path / "manifest.json").exists() else None
            told[-1]["init_from"] = Path(began["run"]).name if began else None
            told[-1] |= {AS_TYPED.get(path, path): value for path, value in _leaves(settings)}
    kinds = [home.path.name.rsplit("-", 2)[0] for home in runs]  # <data set>-<network>-s<seed>-<identity>
    first: dict[tuple[str, str], Any] = {}
    differing = {
        (kind, path)
        for mine, kind in zip(told, kinds, strict=True)
        for path, value in mine.items()
        if first.setdefault((kind, path), value) != value
    }
    found = []
    for mine, kind in zip(told, kinds, strict=True):
        words = [_word(path, value) for path, value in mine.items() if (kind, path) in differing]
        found.append(" ".join(words[:MOST_WORDS]) + (" …" if len(words) > MOST_WORDS else ""))
    return found


def _word(path: str, value: Any) -> str:
    """A setting in a table; of what is built, the name of its class."""
    if path.endswith("._target_"):
        return f"{path.removesuffix('._target_')}={str(value).rpartition('.')[2]}"
    return f"{path}={as_typed(value)}"


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every path with its value."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _step(home: RunFolder, status: Mapping[str, Any]) -> int:
    """The step that a run has reached; of one that is running, or was killed, the last that it has logged."""
    step = int(status.get("step", 0))
    if status["state"] in ("running", "interrupted") and home.metrics.exists():
        step = max([step, *(logged for logged, _, _ in metrics_file.read(home.metrics)[-1:])])
    return step


def number(value: float | None) -> str:
    """Four digits, or "undefined"."""
    return "undefined" if value is None or value != value else f"{value:.4f}"
