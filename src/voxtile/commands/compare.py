"""voxtile compare: whether the scores of evaluations differ, case by case."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose
from voxtile.commands.folders import first_twice, named_paths
from voxtile.commands.measures import measured_with
from voxtile.commands.words import word
from voxtile.errors import ConfigError, DataError, RunError, counted, did_you_mean, listed, reason
from voxtile.training.run_folder import EXPORT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from voxtile.scores.paired import Difference

COLUMNS = ("evaluation", "compared_with", "score", "first", "other", "difference", "low", "high", "p", "p_holm", "cases", "groups")
FEW_GROUPS = 6  # fewer come to no p below 0.05, whatever they differ by


def main(argv: Sequence[str]) -> int:
    """Composes and compares; see `voxtile compare --help`."""
    return compose.run("compare", argv, compare)


@dataclass(frozen=True)
class Evaluation:
    """What `voxtile evaluate` has written.

    Attributes:
        folder: where it lies.
        summary: its summary.json.
        cases: the rows of its cases.csv by case.
    """

    folder: Path
    summary: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, str]]

    @property
    def name(self) -> str:
        """That of its run, or of the runs that were evaluated together, and its own."""
        run, of_several = self.folder.parent.parent, self.folder.parent
        if of_several.name == "evaluations":
            return f"{run.name} {self.folder.name}"
        return f"{of_several.name} {self.folder.name}" if run.name == "evaluations" else self.folder.name

    def values(self, columns: Sequence[str], cases: Sequence[str]) -> NDArray[np.float64]:
        """Columns of some cases [N, S], NaN where a score is undefined."""
        import numpy as np

        return np.array([[float(self.cases[case][name] or "nan") for name in columns] for case in cases])


def compare(config: Mapping[str, Any]) -> int:
    """Compares the evaluations that the configuration names with the first of them."""
    path = None if config["output"] is None else Path(config["output"]).expanduser()
    first, *others = _named(config["evaluations"])
    from voxtile.cases.csv_table import atomic_csv  # takes seconds, and comes after what is not there is refused
    from voxtile.commands.console import console
    from voxtile.scores.paired import differences, holm

    out = console()
    if path is not None:
        _check_output(path)
    for other in others:
        _check_same(first, other)
    ids = list(first.cases)
    groups = [first.cases[case]["group"] for case in ids]
    columns = _scores(config["scores"], [first, *others])
    for other in others:
        _check_measures(first, other, dict.fromkeys(name for own in columns.values() for name in own))
    pairs = [(first.values(own, ids), other.values(own, ids)) for own in columns.values() for other in others]
    each_difference = iter(differences(pairs, groups))
    found = {score: [next(each_difference) for _ in others] for score in columns}
    adjusted = {score: holm([each.p for each in row]) for score, row in found.items()}
    rows = []
    for place, other in enumerate(others):
        own = {score: (row[place], adjusted[score][place]) for score, row in found.items()}
        _show(out, f"{first.name} (first) and {other.name} (other)", own, len(others))
        _say_unlike(out, first.summary, other.summary)
        for score, (each, p_holm) in own.items():
            row = {"evaluation": other.folder, "compared_with": first.folder, "score": score, **each._asdict(), "p_holm": p_holm}
            rows.append({name: "" if value != value else value for name, value in row.items()})
    _say_limits(out, [first, *others], {score: min(each.groups for each in row) for score, row in found.items()})
    if path is not None:
        try:
            atomic_csv(path, COLUMNS, rows)
        except OSError as error:
            raise DataError(
                f"The table cannot be written to {path}: {reason(error)}. Expected a folder that may be written to, with room; "
                "name another file with 'output=…'."
            ) from error
        out.print(f"written      {path}", soft_wrap=True)
    return 0


def _check_output(path: Path) -> None:
    """Refuses to write over what is no table of comparisons.

    Raises:
        ConfigError: Something else is there.
    """
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            ours = file.readline().rstrip("\n") == ",".join(COLUMNS)
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise ConfigError(f"'output={path}' is there already, and is no table that compare has written. Name another file.")


def _named(given: Any) -> list[Evaluation]:
    """The evaluations that are named, in their order; those that a pattern finds in that of their names.

    Raises:
        ConfigError: There are fewer than two, or one comes twice.
        RunError: A folder holds no evaluation, or several.
    """
    folders = [_evaluation_in(path) for path in named_paths(given)]
    if len(folders) < 2:
        raise ConfigError(
            f"'evaluations={given}' names {counted(len(folders), 'evaluation')}, and two or more are compared. Type "
            "'evaluations=[runs/<one>/evaluations/val-best,runs/<other>/evaluations/val-best]', or a pattern."
        )
    if twice := first_twice(folders):
        raise ConfigError(f"'evaluations' names {twice} twice. Name each once.")
    return [_read(folder) for folder in folders]


def _evaluation_in(path: Path) -> Path:
    """The folder of an evaluation: `path`, that of its cases.csv, or the only one of the run there."""
    if path.name == "cases.csv" and path.is_file():
        return path.parent
    if (path / "cases.csv").exists():
        return path
    found = sorted(file.parent for file in path.glob("evaluations/*/cases.csv"))
    if len(found) == 1:
        return found[0]
    if found:
        raise RunError(f"{path} holds {counted(len(found), 'evaluation')}. Name one of them: {listed(found)}.")
    if (path / "recipe.json").exists() and not (path / EXPORT).exists():
        raise RunError(f"{path} holds no evaluation (no cases.csv). Make one: voxtile evaluate {word('run', path)}")
    raise RunError(
        f"{path} holds no evaluation (no cases.csv), and is no run that could. Name a folder that 'voxtile evaluate' has written, "
        "or a run that was evaluated."
    )


def _read(folder: Path) -> Evaluation:
    """The evaluation in a folder.

    Raises:
        RunError: It cannot be read, or an older version has written less.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        with (folder / "cases.csv").open(encoding="utf-8", newline="") as file:
            rows = {row["case"]: row for row in csv.DictReader(file)}
        wrong = _wrong(summary, rows)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        wrong = reason(error)
    if wrong:
        raise RunError(
            f"The evaluation in {folder} is damaged, or an older version has written it: {wrong}. Make it again with 'voxtile "
            "evaluate'."
        )
    return Evaluation(folder, summary, rows)


def _wrong(summary: Mapping[str, Any], rows: Mapping[str, Mapping[str, str]]) -> str:
    """What keeps an evaluation from being compared, "" where nothing does."""
    if lacking := sorted({"split", "weights", "classes", "regions", "grid", "averaged"} - summary.keys()):
        return f"summary.json lacks {listed(lacking)}"
    if len(rows) != summary["cases"]:
        return f"cases.csv holds {counted(len(rows), 'case')} of {summary['cases']}"
    for case, row in rows.items():
        if lacking := [name for name in ("group", "pixels") if name not in row]:
            return f"cases.csv lacks {listed(lacking)}"
        for name, value in row.items():
            if "/" in name and value and math.isinf(float(value)):
                return f"{name} of {case} is {value}"
    return ""


def _check_same(first: Evaluation, other: Evaluation) -> None:
    """Refuses what was not counted on the same pixels.

    Raises:
        RunError: Split, classes, grid, cases, groups, numbers of judged pixels or labels are not the same.
    """
    both = f"{first.folder} and {other.folder}"
    for key in ("split", "classes", "regions", "grid", "averaged"):
        mine, its = first.summary[key], other.summary[key]
        if mine != its:
            raise RunError(
                f"{both} are not of the same data: '{key}' is {mine} and {its}. Compare evaluations of one split of one data set."
            )
    if apart := sorted(first.cases.keys() ^ other.cases.keys()):
        raise RunError(
            f"{both} do not hold the same cases: only one of them holds {listed(apart)}. Compare evaluations of one split (the "
            "same 'split.seed' and 'fold'), or of whole cross-validations."
        )
    for case, row in first.cases.items():
        sizes = dict.fromkeys((key for key in row if key.startswith("label_pixels/")), "labels")
        for key, what in ({"group": "groups", "pixels": "numbers of judged pixels"} | sizes | {"labels": "labels"}).items():
            its = other.cases[case].get(key)
            if key in row and its is not None and row[key] != its:  # older ones hold no digest of labels
                raise RunError(
                    f"{both} have other {what} for case {case}: '{key}' is {row[key]} and {its}. Labels, or 'data.group', have "
                    "changed between the two; evaluate again."
                )


def _check_measures(first: Evaluation, other: Evaluation, columns: Iterable[str]) -> None:
    """Refuses scores that were measured with other settings.

    Raises:
        RunError: A column of cases.csv that is compared depends on a setting that is not the same.
    """
    for column in columns:
        mine, its = (measured_with(column, each.summary) for each in (first, other))
        for key in mine.keys() & its.keys():
            if mine[key] != its[key]:
                raise RunError(
                    f"'{column}' of {first.folder} and of {other.folder} was measured with other settings: '{key}' is {mine[key]} "
                    f"and {its[key]}. Evaluate one of them again with the settings of the other, or compare other scores."
                )


def _scores(wanted: Any, evaluations: Sequence[Evaluation]) -> dict[str, list[str]]:
    """The scores that are compared, and the columns of cases.csv that each is a mean over.

    A kind of scores, such as "dice", stands for its mean over what means are over, and for each class and region.

    Raises:
        ConfigError: An evaluation has no such score, or none is named.
    """
    scores = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(scores, list) or not scores or not all(isinstance(score, str) for score in scores):
        raise ConfigError(f"'scores={wanted}' must be a list of scores: type, for example, 'scores=[dice,case_iou]'.")
    summary = evaluations[0].summary
    headers = [list(next(iter(each.cases.values()))) for each in evaluations]
    columns = [name for name in headers[0] if "/" in name and all(name in header for header in headers)]
    found = {}
    for score in scores:
        own = [f"{score}/{name}" for name in (*summary["classes"], *summary["regions"]) if f"{score}/{name}" in columns]
        averaged = [f"{score}/{name}" for name in summary["averaged"]]
        if score not in columns and not own:
            kinds = list(dict.fromkeys(name.partition("/")[0] for name in columns))
            raise ConfigError(
                f"'scores' names '{score}', which is not in the cases.csv of all of these evaluations."
                f"{did_you_mean(score, [*kinds, *columns])} Choose from {listed(kinds, 20)}, or name single columns. Distances "
                "between surfaces are there after 'voxtile evaluate … surface=true'."
            )
        if set(averaged) <= set(own):
            found[score] = averaged
        found |= {name: [name] for name in own or [score]}
    return found


def _show(out: Console, title: str, found: Mapping[str, tuple[Difference, float]], comparisons: int) -> None:
    from voxtile.commands.console import table_of
    from voxtile.commands.tables import number

    further = ("p (Holm)",) if comparisons > 1 else ()
    columns = ("score", "first", "other", "difference", "95 % interval", "p", *further, "cases", "groups")
    table = table_of(*columns, title=title)
    for score, (each, adjusted) in found.items():
        interval = "–" if each.low != each.low else f"{each.low:+.4f} to {each.high:+.4f}"
        apart = "undefined" if each.difference != each.difference else f"{each.difference:+.4f}"
        chances = [number(each.p), *([number(adjusted)] if further else [])]
        counts = (str(each.cases), str(each.groups))
        table.add_row(score, number(each.first), number(each.other), apart, interval, *chances, *counts)
    out.print(table)


def _say_unlike(out: Console, first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Prints in what the runs differ, and what was done with them; of other programs' maps, and older evaluations, not known."""
    from voxtile.commands.folders import differences

    if first.get("settings") is None or other.get("settings") is None:
        return
    both = [
        each["settings"] | each["procedure"] | {"weights": each["weights"], "overlap": each["overlap"]} for each in (first, other)
    ]
    unlike = differences(*both)
    same = "first and other have the same settings, but for seed and fold"
    said = f"first and other differ in {listed(unlike, 8)}" if unlike else same
    out.print(said, markup=False, highlight=False, soft_wrap=True)


def _say_limits(out: Console, evaluations: Sequence[Evaluation], groups: Mapping[str, int]) -> None:
    """Prints what keeps the comparison from saying much; `groups` is how many each score rests on, 0 where it is undefined."""
    from voxtile.scores.intervals import LEAST_GROUPS

    known = {score: number for score, number in groups.items() if number}
    few = {score: number for score, number in known.items() if number < FEW_GROUPS}
    if few:
        fewest = min(few.values())
        least = f"{min(1.0, 2 / 2**fewest):.2g}"
        none = f"; with fewer than {LEAST_GROUPS} there is no interval" if fewest < LEAST_GROUPS else ""
        some = "" if len(few) == len(known) else f"{listed(few, 4)}, on the fewest groups: "
        out.print(f"{some}with {counted(fewest, 'group')} of cases p cannot be below {least}, whatever the difference{none}")
    if any((each.summary["split"], each.summary["weights"]) == ("val", "best") for each in evaluations):
        out.print("the best weights were chosen on the cases that are compared here, so scores are optimistic, and not all alike")
