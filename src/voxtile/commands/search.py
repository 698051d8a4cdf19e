"""A search for settings: Optuna asks for trials, each is a run of its own, and the study on the disk goes on with any command."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import shlex
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig

from voxtile.commands import compose
from voxtile.commands.guard import STOPPED, StoppedError
from voxtile.commands.sweep import Job, Outcome, Slots, collected, run_jobs
from voxtile.errors import ConfigError, RunError, did_you_mean, listed, reason
from voxtile.values import is_whole

if TYPE_CHECKING:
    import optuna
    from hydra.core.config_loader import ConfigLoader
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial
    from rich.console import Console

SAMPLERS = {
    "tpe": "TPESampler", "cmaes": "CmaEsSampler", "random": "RandomSampler", "grid": "RandomSampler", "qmc": "QMCSampler",
    "gp": "GPSampler", "nsga2": "NSGAIISampler", "nsga3": "NSGAIIISampler",
}  # fmt: skip
PRUNERS = {
    "none": "NopPruner", "median": "MedianPruner", "percentile": "PercentilePruner", "halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}  # fmt: skip
COSTS = ("seconds_per_step", "peak_memory_gib")  # objectives that no validation gives
NO_MATTER = ("retry=", "inexact=", "workers=", "debug_errors=", "paths.", "logger", "trust=")  # to a trial's numbers
SEARCHES = ("choice", "range", "interval", "tag")  # the words of Hydra's grammar by which several values are given
LOOK = 1.0  # seconds between looks at the validations of a trial
OWNER, REASON, RUN = "owner", "reason", "run"  # attributes of a trial


def search(arguments: Sequence[str], settings: Mapping[str, Any], config: DictConfig, loader: ConfigLoader) -> list[Outcome]:
    """Runs trials until the study has as many as were asked for, and writes down the best settings.

    Args:
        arguments: the user's words, some of which say what is searched.
        settings: `hydra.sweeper`.
        config: of the sweep.
        loader: composes the configuration of a trial.

    Raises:
        ConfigError: A setting makes no sense, or the study of that name searches something else.
        RunError: The study's file cannot be read or written.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    from voxtile.commands.console import console
    from voxtile.commands.train import command_line
    from voxtile.training.run_folder import exclusive

    out = console()
    if (chosen := config.hydra.runtime.choices.get("launch", "turn")) != "turn":
        raise ConfigError(
            f"'launch={chosen}' is for sweeps over typed values. A search runs its trials on this machine, several at once with "
            "'hydra.sweeper.jobs=2' and 'hydra.sweeper.gpus=1'; start the same command on other machines, too, for more."
        )
    fixed, space = space_of(arguments, settings["space"])
    wanted = _objectives(settings["objectives"])
    kept = sorted(word for word in fixed if not word.lstrip("+~").startswith(NO_MATTER))
    about = {"fixed": kept, "space": {path: repr(each) for path, each in space.items()}, "objectives": wanted}
    name = str(settings["name"] or "study-" + hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8])
    place = Path(config.paths.runs).expanduser() / "studies" / name
    trials = settings["trials"]
    if not is_whole(trials, 1):
        raise ConfigError(f"'hydra.sweeper.trials={trials}' must be a whole number from 1 up.")
    first = _words({path: getattr(each, "choices", [getattr(each, "low", None)])[0] for path, each in space.items()})
    if not all("." in path for path in space):  # of an option that is chosen, another one may have what is searched
        first = []
    _check_objectives(wanted, loader.load_sweep_config(config, [*fixed, *first, "sweep=optuna"]))  # refuses what is misspelt
    slots = Slots.of(settings["jobs"], settings["gpus"], "hydra.sweeper")
    place.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive(place / ".lock"):
            study = _open(name, place, about, settings)
            # Optuna's own sampler for grids works in its own loop only; the others would try some of few combinations twice.
            if settings["sampler"] == "grid" or _combinations(space) <= trials:
                values = _grid(space)
                combinations = [dict(zip(values, each, strict=True)) for each in islice(product(*values.values()), trials)]
                trials = len(combinations)
                for each in combinations:
                    study.enqueue_trial(each, skip_if_exists=True)
            found = _Search(study, place, fixed, space, wanted, trials, config, loader, settings["pruner"] != "none")
            out.print(f"study {name}: {len(study.trials)} of {trials} trials; {place / 'study.db'}", soft_wrap=True)
            found.adopt()
        own = place / "jobs" / f"{socket.gethostname()}-{os.getpid()}"  # another command may work on the study
        own.mkdir(parents=True, exist_ok=True)
        stopped = run_jobs(found.take, slots, own, found.ended, found.look, trials)
        if not any(own.iterdir()):
            own.rmdir()
        report(study, wanted, fixed, place, out)
    except (SQLAlchemyError, StorageInternalError) as error:
        raise RunError(
            f"The study {place / 'study.db'} cannot be read or written: {reason(error)}. Look whether the disk is full or the file "
            "damaged; where it is, move it away: the same command then begins a new study, and finds the runs that are finished."
        ) from error
    some = any(job.outcome.code == 0 for job in found.jobs)
    for job in found.jobs:
        job.outcome.told = True
        if some and job.outcome.code != STOPPED:
            job.outcome.code = 0  # that some settings cannot be trained with is what a search finds out
        collected(job.outcome)
    if stopped:
        out.print(f"Stopped. The same command continues the search: {command_line()}", soft_wrap=True)
        raise StoppedError
    return [job.outcome for job in found.jobs]


def space_of(arguments: Sequence[str], written: Any) -> tuple[list[str], dict[str, BaseDistribution]]:
    """What is the same in all trials, as typed, and what is searched, by its path.

    Args:
        arguments: the user's words; they take the place of what is written for the same path.
        written: words of the configuration.

    Raises:
        ConfigError: Nothing is searched, or it is not clear among what.
    """
    from optuna.distributions import CategoricalDistribution

    space: dict[str, BaseDistribution] = {}
    for override in _parsed(written, "space"):
        if not override.is_sweep_override():
            raise ConfigError(
                f"'hydra.sweeper.space' holds '{override.input_line}', which is one value. Expected words as they are typed, for "
                "example 'optimizer.lr=tag(log, interval(1e-4, 1e-2))' or 'model.depth=choice(2,3)'."
            )
        space[override.get_key_element()] = _typed(override)
    fixed: list[Override] = []
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        space.pop(override.get_key_element(), None)
        if override.is_sweep_override():
            space[override.get_key_element()] = _typed(override)
        else:
            fixed.append(override)
    if not space:
        near = "".join(map(_misspelt, fixed))
        raise ConfigError(
            f"'sweep=optuna' searches nothing.{near} Say among what: type 'optimizer.lr=tag(log, interval(1e-4, 1e-2))' or "
            "'model.width=choice(0.125,0.25)' in quotes, or write such words into 'hydra.sweeper.space'."
        )
    for path, each in space.items():
        if isinstance(each, CategoricalDistribution) and len(each.choices) < 2:
            raise ConfigError(f"'{path}' is to be searched among one value, {each.choices[0]}. Give it more, or set it.")
    return [str(each.input_line) for each in fixed if each.get_key_element() not in ("sweep", *space)], space


def _misspelt(override: Override) -> str:
    """A sentence about a word with one value that seems to be meant as a search, such as a=chioce(1,2); empty about others."""
    key, _, value = str(override.input_line).partition("=")
    value = value.strip("'")  # what Hydra's grammar does not know was put in quotes
    called = re.fullmatch(r"(\w+)(\(.*\))", value)
    near = difflib.get_close_matches(called[1], SEARCHES, n=1, cutoff=0.6) if called else []
    return f" '{key}={value}' is one value, a text: did you mean '{key}={near[0]}{called[2]}'?" if called and near else ""


def _parsed(words: Any, name: str) -> list[Override]:
    """The words of a list among the settings, as Hydra reads them."""
    if isinstance(words, str) and re.fullmatch(r"\[.*=.*\]", words):  # Hydra takes [a=1,b=2] for text
        words = [word.strip() for word in words[1:-1].split(",")]
    if not isinstance(words, list) or not all(isinstance(word, str) and "=" in word for word in words):
        raise ConfigError(f"'hydra.sweeper.{name}={words}' must be a list of words, each like '<name>=<value>'.")
    try:
        return OverridesParser.create().parse_overrides(words)
    except HydraException as error:
        raise ConfigError(f"'hydra.sweeper.{name}' cannot be read: {reason(error)}.") from error


def _typed(override: Override) -> BaseDistribution:
    """A distribution of a word, such as `optimizer.lr=interval(1e-4,1e-2)`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    log = "log" in getattr(value, "tags", ())
    try:
        if isinstance(value, IntervalSweep):
            if value.start is None or value.end is None:
                raise ValueError("an interval has two ends")
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=log)
            return FloatDistribution(float(value.start), float(value.end), log=log)
        if isinstance(value, RangeSweep):
            first, last, step = (float(each or 0) for each in (value.start, value.stop, value.step))
            count = max(1, math.ceil((last - first) / step - 1e-9))  # as Python's range, without its end
            if all(isinstance(each, int) for each in (value.start, value.stop, value.step)):
                return IntDistribution(int(first), int(first + (count - 1) * step), step=int(step))
            return FloatDistribution(first, float(f"{first + (count - 1) * step:.12g}"), step=step)
        if not isinstance(value, ChoiceSweep):
            raise ValueError("expected choice(…), range(…) or interval(…)")
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"'{override.input_line}' cannot be searched: {reason(error)}.") from error


def _objectives(given: Any) -> dict[str, str]:
    """Whether each objective is maximized or, with a minus before it, minimized."""
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise ConfigError(
            f"'hydra.sweeper.objectives={given}' must be a list of scores, those with a minus to be as small as possible: type "
            "'hydra.sweeper.objectives=[dice,-seconds_per_step]'."
        )
    return {name.removeprefix("-"): "minimize" if name.startswith("-") else "maximize" for name in given}


def _check_objectives(wanted: Mapping[str, str], config: DictConfig) -> None:
    """Refuses objectives that no run will have.

    Raises:
        ConfigError: An objective is no score of such a run.
    """
    import numpy as np

    from voxtile.training.scores import summarise

    labels, regions = config.data.get("labels"), config.data.get("regions")
    if labels is None or "?" in map(str, labels.values()):
        return  # what is not known before the data are read is found out by the first trial
    classes = list(dict.fromkeys(str(name) for name in labels.values() if name != "ignore"))
    if any(str(each) not in classes for members in (regions or {}).values() for each in members):
        return  # which the first trial says
    named = {str(name): [classes.index(str(each)) for each in members] for name, members in (regions or {}).items()}
    known = [*summarise(np.zeros((1, len(classes), len(classes)), dtype=np.int64), classes, None, named), *COSTS]
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(
            f"'hydra.sweeper.objectives' names '{unknown[0]}', which is no score.{did_you_mean(unknown[0], known)} Choose from "
            f"{listed(known, 40)}."
        )


def _open(
    name: str, place: Path, about: Mapping[str, Any], settings: Mapping[str, Any]
) -> optuna.Study:  # fmt: skip
    """The study of this name, made where it does not exist."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if settings["pruner"] != "none" and len(about["objectives"]) > 1:
        raise ConfigError("A trial can be pruned by one objective only. Type 'hydra.sweeper.pruner=none', or leave one objective.")
    pruner = _made("pruner", PRUNERS, optuna.pruners, settings, {})
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{place.absolute()}/study.db", engine_kwargs={"connect_args": {"timeout": 120}}
    )  # fmt: skip
    study = optuna.create_study(
        study_name=name, storage=storage, pruner=pruner, load_if_exists=True, directions=list(about["objectives"].values())
    )
    known = study.user_attrs.get("about")
    if known is None:
        study.set_user_attr("about", json.dumps(about))
    elif known != json.dumps(about):
        raise ConfigError(
            f"The study '{name}' in {place} searches something else: {known}. Give this one another name with "
            "'hydra.sweeper.name=…', or leave the name out."
        )
    # Another seed for each number of trials, or a continued study would ask for its first trials once more.
    others = [trial.number for trial in study.trials if trial.state.name == "RUNNING" and _lives(trial)]
    mine = _me() if others else ""  # two commands at once must not ask for the same
    seed = int.from_bytes(hashlib.sha256(f"{settings['seed']} {len(study.trials)} {mine}".encode()).digest()[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = _made("sampler", SAMPLERS, optuna.samplers, settings, {"seed": seed})
    return study


def _made(kind: str, names: Mapping[str, str], module: Any, settings: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """Optuna's sampler or pruner."""
    name = settings[kind]
    options = {each.get_key_element(): each.value() for each in _parsed(settings[f"{kind}_options"], f"{kind}_options")}
    if name not in names:
        raise ConfigError(f"'hydra.sweeper.{kind}={name}' is unknown.{did_you_mean(str(name), names)} Choose from {listed(names)}.")
    try:
        return getattr(module, names[name])(**own, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"'hydra.sweeper.{kind}_options={settings[f'{kind}_options']}' do not fit Optuna's {names[name]}: {reason(error)}."
        ) from error


def _grid(space: Mapping[str, BaseDistribution]) -> dict[str, list[Any]]:
    """The values of each setting that a grid has.

    Raises:
        ConfigError: One has no steps.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, list[Any]] = {}
    for path, each in space.items():
        if isinstance(each, CategoricalDistribution):
            found[path] = list(each.choices)
        elif isinstance(each, IntDistribution) and not each.log:
            found[path] = list(range(each.low, each.high + 1, each.step))
        elif isinstance(each, FloatDistribution) and each.step:
            count = round((each.high - each.low) / each.step) + 1
            found[path] = [float(f"{each.low + number * each.step:.12g}") for number in range(count)]
        else:
            raise ConfigError(f"A grid needs steps, and '{path}' has none. Type '{path}=choice(…)' or '{path}=range(…)'.")
    return found


def _combinations(space: Mapping[str, BaseDistribution]) -> float:
    """How many combinations of settings there are, infinitely many where one has no steps."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    count = 1.0
    for each in space.values():
        if isinstance(each, CategoricalDistribution):
            count *= len(each.choices)
        elif isinstance(each, IntDistribution | FloatDistribution) and each.step and not each.log:
            count *= round((each.high - each.low) / each.step) + 1
        else:
            return math.inf
    return count


def _words(values: Mapping[str, Any]) -> list[str]:
    """The words of settings that are searched."""
    return [f"{path}={value if isinstance(value, str) else repr(value)}" for path, value in values.items()]


@dataclass
class _Search:
    """Asks a study for trials and tells it what became of them."""

    study: optuna.Study
    place: Path
    fixed: Sequence[str]
    space: dict[str, BaseDistribution]
    objectives: Mapping[str, str]
    trials: int
    config: DictConfig
    loader: ConfigLoader
    prunes: bool
    jobs: list[Job] = field(default_factory=list)
    orphans: list[Trial] = field(default_factory=list)
    of: dict[int, Trial] = field(default_factory=dict)  # trial by the identity of its job
    pruned: set[int] = field(default_factory=set)
    looked: dict[int, float] = field(default_factory=dict)

    def adopt(self) -> None:
        """Takes over the trials of commands that are gone, while no other command asks; their runs go on where they were."""
        import optuna
        from optuna.trial import TrialState

        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _lives(frozen):
                continue
            trial = optuna.trial.Trial(self.study, frozen._trial_id)
            if set(frozen.params) == set(self.space):
                trial.set_user_attr(OWNER, _me())
                self.orphans.append(trial)
            else:
                trial.set_user_attr(REASON, "its command was killed while it asked for settings")
                self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def take(self) -> Job | None:
        """The job of a trial that was left, or of a new one."""
        if self.orphans:
            return self._job(self.orphans.pop(0))
        from voxtile.training.run_folder import exclusive

        with exclusive(self.place / ".lock"):  # in which a trial without an owner is one of a command that is gone
            known = self.study.get_trials(deepcopy=False)
            if len(known) >= self.trials and not any(trial.state.name == "WAITING" for trial in known):
                return None
            trial = self.study.ask(self.space)
            trial.set_user_attr(OWNER, _me())
        return self._job(trial)

    def _job(self, trial: Trial) -> Job:
        searched = _words(trial.params)
        words = [*self.fixed, *searched]
        outcome = Outcome(words, STOPPED, reason="not begun")
        config = self.loader.load_sweep_config(self.config, [*words, "sweep=optuna"])  # to which `hydra.sweeper.…` belong
        # Two trials may ask for the same settings, which are one run: the later one waits for it.
        more = {"patient": True, "group": self.study.study_name, "kind": "search"}
        job = Job(" ".join(searched), outcome, config, more=more)
        self.jobs.append(job)
        self.of[id(job)] = trial
        return job

    def look(self, job: Job) -> None:
        """Reports the validations of a job under way, and stops it where they are too bad."""
        if time.monotonic() - self.looked.get(id(job), -LOOK) < LOOK or id(job) in self.pruned or job.home is None:
            return
        self.looked[id(job)] = time.monotonic()
        trial = self.of[id(job)]
        if RUN not in trial.user_attrs:
            trial.set_user_attr(RUN, str(job.home.absolute()))
        if self.prunes and self._reported(job, job.home):
            self.pruned.add(id(job))
            job.stop()

    def _reported(self, job: Job, home: Path) -> bool:
        """Tells the study a trial's validations, and returns whether it should be pruned by one of them."""
        trial, (name,) = self.of[id(job)], self.objectives
        frozen = self.study._storage.get_trial(trial._trial_id)
        for step, value in validations(home, name):
            if step not in frozen.intermediate_values:
                trial.report(value, step)
                if trial.should_prune():
                    return True
        return False

    def ended(self, job: Job) -> None:
        """Tells the study what became of a job. One that was stopped by the user stays as it is, and is taken up again."""
        from optuna.trial import TrialState

        trial, outcome = self.of[id(job)], job.outcome
        if outcome.home:
            trial.set_user_attr(RUN, outcome.home)
        if outcome.code == 0 and len(self.objectives) == 1:
            self._reported(job, Path(outcome.home))  # what came since the last look; too late to be pruned
        if outcome.code == 0:
            values = _values(Path(outcome.home), self.objectives)
            if missing := [name for name, value in values.items() if value is None or not math.isfinite(value)]:
                outcome.code, outcome.reason = RunError.exit_code, f"{listed(missing)} came out undefined"
            else:
                self.study.tell(trial, [float(value or 0) for value in values.values()], skip_if_finished=True)
                return
        if id(job) in self.pruned and outcome.code == STOPPED:
            outcome.code, outcome.reason = 0, ""
            self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        elif outcome.code != STOPPED:
            trial.set_user_attr(REASON, outcome.reason)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def validations(home: Path, score: str) -> list[tuple[int, float]]:
    """(step, score) of each validation that a run has logged."""
    from voxtile.training import metrics_file

    file = home / "metrics.csv"
    rows = metrics_file.read(file) if file.exists() else []
    return [(step, float(value)) for step, name, value in rows if name == f"val/{score}"]


def _values(home: Path, objectives: Mapping[str, str]) -> dict[str, float | None]:
    """What the objectives came out as.

    Raises:
        ConfigError: A run has no such score.
    """
    from voxtile.studies.manifest import segment
    from voxtile.training.run_folder import RunFolder

    folder = RunFolder(home)
    status, made = folder.read("status.json", "best", "step"), segment(folder.read("manifest.json"))
    scores = dict(status["best"]["scores"])
    scores["seconds_per_step"] = made.get("training_seconds", math.nan) / max(1, status["step"])
    scores["peak_memory_gib"] = made.get("peak_memory_gib", math.nan)
    if unknown := [name for name in objectives if name not in scores]:
        raise ConfigError(
            f"'hydra.sweeper.objectives' names '{unknown[0]}', which is no score.{did_you_mean(unknown[0], scores)} Choose from "
            f"{listed(scores, 40)}."
        )
    return {name: scores[name] for name in objectives}


def _me() -> dict[str, Any]:
    from voxtile.training.run_folder import start_time

    return {"host": socket.gethostname(), "pid": os.getpid(), "started": start_time(os.getpid())}


def _lives(trial: FrozenTrial) -> bool:
    """Whether the command that asked for a trial is still there.

    Of one on another machine that is not known, but that it is gone where nobody holds the trial's run any more.
    """
    from voxtile.training.run_folder import RunFolder, is_alive

    owner, run = trial.user_attrs.get(OWNER), trial.user_attrs.get(RUN)
    if owner is None:
        return False
    if owner["host"] == socket.gethostname():
        return is_alive(owner["pid"], owner["started"])
    return run is None or RunFolder(Path(run)).status["state"] != "interrupted"


def report(study: optuna.Study, objectives: Mapping[str, str], fixed: Sequence[str], place: Path, out: Console) -> None:
    """Prints a study's trials, and writes the best settings as a configuration where a trial has come to its end."""
    from optuna.trial import TrialState
    from rich.table import Table

    def is_anothers(trial: FrozenTrial) -> bool:
        """Whether another command is at a trial, which ours no longer is."""
        return _lives(trial) and trial.user_attrs.get(OWNER) != _me()

    table = Table("trial", "state", *objectives, "settings", "run", title=f"study {study.study_name}", title_justify="left")
    for trial in study.trials:
        values = [f"{value:.4f}" for value in trial.values] if trial.values else [""] * len(objectives)
        params = " ".join(f"{path}={value if isinstance(value, str) else f'{value:.4g}'}" for path, value in trial.params.items())
        state = trial.state.name.lower() if trial.state.name != "RUNNING" or is_anothers(trial) else "stopped"
        table.add_row(str(trial.number), state, *values, params, Path(trial.user_attrs.get(RUN, "")).name)
    out.print(table)
    for trial in study.trials:
        if trial.state == TrialState.FAIL:
            out.print(f"trial {trial.number}: {trial.user_attrs.get(REASON, 'no reason is known')}", style="red", soft_wrap=True)
    best = study.best_trials
    if not best:
        return
    names = ["best" if len(objectives) == 1 else f"best_{trial.number}" for trial in best]
    for old in (place / "experiment").glob("best*.yaml"):
        if re.fullmatch(r"best(_[0-9]+)?", old.stem) and old.stem not in names:  # others are the user's
            old.unlink()
    for trial, name in zip(best, names, strict=True):
        _write_best(trial, name, fixed, place)
    title = "best" if len(objectives) == 1 else "best (none is better in all objectives)"
    out.print(f"{title}: {listed(f'trial {trial.number}' for trial in best)}", soft_wrap=True)
    out.print(f"train it     {_command(fixed, place, name)}", soft_wrap=True)
    out.print(f"look at all  optuna-dashboard sqlite:///{place / 'study.db'}", soft_wrap=True)


def _command(fixed: Sequence[str], place: Path, name: str) -> str:
    """What trains with the settings that were written down."""
    folders = [word for folder in (*compose.further_folders(), place) for word in ("--config-dir", str(folder))]
    words = [word for word in fixed if not word.startswith("experiment=")]  # on which the new one is built
    return shlex.join(["voxtile", "train", *folders, *words, f"experiment={name}"])


def _write_best(trial: FrozenTrial, name: str, fixed: Sequence[str], place: Path) -> None:
    """Writes a trial's settings as an experiment's configuration."""
    from omegaconf import OmegaConf

    from voxtile.cases.atomic import atomic_text

    groups = [path for path in trial.params if path in compose.groups_of("train")]
    settings = OmegaConf.create({})
    for path, value in trial.params.items():
        if path not in groups:
            parsed = OverridesParser.create().parse_override(f"{path}={value}").value() if isinstance(value, str) else value
            OmegaConf.update(settings, path.lstrip("+"), parsed, force_add=True)
    text = f"# @package _global_\n# {_command(fixed, place, name)}\n"
    text += f"# Trial {trial.number} of the study in this folder: {', '.join(f'{value:.4f}' for value in trial.values)}.\n"
    base = [word.partition("=")[2] for word in fixed if word.startswith("experiment=")]
    overridden = [group for group in groups if group != "experiment"]
    base += [trial.params["experiment"]] if "experiment" in groups else []
    if overridden or base:
        text += "defaults:\n" + "".join(f"  - {option}\n" for option in base)
        text += "".join(f"  - override /{group}: {trial.params[group]}\n" for group in overridden) + "  - _self_\n"
    if settings:
        text += OmegaConf.to_yaml(settings)
    (place / "experiment").mkdir(exist_ok=True)
    atomic_text(place / "experiment" / f"{name}.yaml", text)
