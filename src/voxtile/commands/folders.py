"""The run folders that a command is to use: the one of `run`, or the several of `runs`."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands.words import list_word
from voxtile.errors import ConfigError, RunError, listed
from voxtile.training.recipe import PART_VERSION
from voxtile.training.run_folder import RunFolder, holds_run

if TYPE_CHECKING:
    from rich.console import Console


OURS = ("check", "evaluations", "reproductions", "studies", "test_ledger")  # beside run folders


def run_folders(config: Mapping[str, Any], out: Console) -> list[str]:
    """The folder of `run`, or the folders of `runs` in the order given, those of a pattern in that of their names.

    Raises:
        ConfigError: Not exactly one of the two is given, `run` holds several folders, or `runs` fewer than two or one twice.
        RunError: A folder is no run, or one of `runs` that is not finished.
    """
    run, runs = config["run"], config["runs"]
    if (run is None) == (runs is None):
        what = "neither 'run' nor 'runs' has a value" if run is None else "both 'run' and 'runs' have a value"
        raise ConfigError(
            f"It is not clear which run is meant: {what}. Type 'run=<folder>' for one run, or 'runs=[<folder>,<folder>]' or "
            "'runs=<pattern with *>' for several."
        )
    if run is not None:
        several = list(map(str, run)) if isinstance(run, list) else _typed_list(str(run))
        if several is None:
            RunFolder.existing(run, bundles=True)
            return [str(run)]
        raise ConfigError(f"'run' takes one folder, and several are given. Type {list_word('runs', several)}.")
    folders = named_folders(runs, out)
    if twice := first_twice(folders):
        raise ConfigError(f"'runs' names {twice} twice, which would only count it twice. Name each run once.")
    if len(folders) < 2:
        found = f"one run, {folders[0]}" if folders else "no run"
        raise ConfigError(f"'runs={runs}' names {found}, and takes two or more. Type 'run=<folder>' for one run.")
    _refuse_unfit(folders)
    return [str(folder) for folder in folders]


def named_folders(runs: Any, out: Console) -> list[Path]:
    """The folders that `runs` names, a list or a pattern, in the order given, those of a pattern in that of their names.

    Raises:
        RunError: A pattern finds none.
    """
    return named_paths(runs, lambda pattern, found: _runs_among(found, pattern, out))


def named_paths(given: Any, fitting: Callable[[str, list[Path]], list[Path]] = lambda pattern, found: found) -> list[Path]:
    """What one name or a list of names stands for, in the order given, what a pattern finds in that of its names.

    Args:
        given: a path or a pattern, or a list of such.
        fitting: chooses among what a pattern finds.
    """
    paths: list[Path] = []
    for name in map(str, given if isinstance(given, list) else _typed_list(str(given)) or [given]):
        path = Path(name).expanduser()
        if glob.has_magic(name) and not path.exists():
            there = next((parent for parent in path.parents if parent.is_dir()), Path())  # whose name is no pattern, `[x]` or not
            pattern = glob.escape(str(there)) + str(path).removeprefix(str(there)) if there.name else str(path)
            paths += fitting(name, [Path(each) for each in sorted(glob.glob(pattern))])  # noqa: PTH207  # Path.glob takes no pattern from /
        else:
            paths.append(path)
    return paths


def first_twice(paths: Sequence[Path]) -> Path | None:
    """The first path to what an earlier one leads to, or None."""
    known: set[Path] = set()
    for path in paths:
        if (place := path.resolve()) in known:
            return path
        known.add(place)
    return None


def home_of(config: Mapping[str, Any], homes: Sequence[RunFolder]) -> Path:
    """Where that is kept which belongs to a run, or to several together, in whatever order these are named.

    Args:
        config: of the command: that of several runs lies below `paths.runs`, or beside the run whose identity comes first.
        homes: the run, or the runs.
    """
    if len(homes) == 1:
        return homes[0].path
    recipes = [(home.read("recipe.json", "identity", "settings"), home.path) for home in homes]
    recipes.sort(key=lambda each: each[0]["identity"])
    digest = hashlib.sha256(" ".join(recipe["identity"] for recipe, _ in recipes).encode()).hexdigest()[:8]
    (first, path), *_ = recipes
    beside = Path(config["paths"]["runs"] or path.parent).expanduser()
    return beside / "evaluations" / f"{first['settings']['data.name']}-{len(homes)}runs-{digest}"


def evaluations_of(config: Mapping[str, Any], homes: Sequence[RunFolder]) -> Path:
    """The folder of the evaluations of a run, or of several together; arguments are those of `home_of`."""
    home = home_of(config, homes)
    return home / "evaluations" if len(homes) == 1 else home


def _typed_list(text: str) -> list[str] | None:
    """The entries of a list that Hydra's grammar could not read, since folders may hold any sign; None where it is no list."""
    if not (text.startswith("[") and text.endswith("]")) or Path(text).exists():
        return None
    parts = re.findall(r"\s*('[^']*'|\"[^\"]*\"|[^,]+)\s*(?:,|$)", text[1:-1])
    return [part.strip(" '\"") for part in parts if part.strip()]


def _runs_among(found: Sequence[Path], pattern: str, out: Console) -> list[Path]:
    """The run folders among what a pattern finds.

    Raises:
        RunError: There are none.
    """
    runs = [each for each in found if holds_run(each)]
    kept = set(runs)
    others = [each for each in found if each not in kept]
    if not runs:
        there = f"only {listed(others)}, which hold no recipe.json" if others else "nothing"
        raise RunError(f"'runs={pattern}' finds no run folder: the pattern fits {there}. Correct it, or name the folders.")
    if others := [each for each in others if each.name not in OURS]:
        out.print(f"passed over, since they are no runs: {listed(others)}", soft_wrap=True)
    return runs


def _refuse_unfit(folders: list[Path]) -> None:
    """Refuses folders that are no finished runs, and copies of one run.

    Raises:
        RunError: A folder is no finished run, or two hold the same run.
    """
    known: dict[str, Path] = {}
    for folder in folders:
        home = RunFolder.existing(folder, "runs", bundles=True)
        home.refuse_unfinished("its weights are not those that it will end with", ", or leave it out of 'runs'")
        identity = home.read("recipe.json", "identity")["identity"]
        if identity in known:
            raise RunError(
                f"{known[identity]} and {folder} are the same run ({identity}), which would only count twice. Name one of them."
            )
        known[identity] = folder


def differences(mine: Any, its: Any, path: str = "") -> list[str]:
    """Where two settings differ, each with both values: "model.dims (2 and 3)"."""
    if isinstance(mine, Mapping) and isinstance(its, Mapping):
        names = sorted({*mine, *its}, key=str)
        parts = (differences(mine.get(name), its.get(name), f"{path}.{name}" if path else str(name)) for name in names)
        found = [each for part in parts for each in part]
        return [each for each in found if f".{PART_VERSION} (" not in each] or found  # versions mostly follow from the others
    return [] if mine == its else [f"{path} ({mine} and {its})"]
