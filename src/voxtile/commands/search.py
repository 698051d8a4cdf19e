"""A search for settings: Optuna asks for trials, each is a run of its own, and the study on the disk goes on with any command."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import re
import shlex
import socket
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from voxtile.commands import compose
from voxtile.commands.guard import STOPPED, StoppedError
from voxtile.commands.names import NO_MATTER
from voxtile.commands.space import NOT_COMPOSED, TrialMaker, parsed_words, space_of, typed_words
from voxtile.commands.sweep import NOT_BEGUN, Job, Outcome, Slots, collected, run_jobs
from voxtile.errors import ConfigError, RunError, VoxtileError, did_you_mean, listed, reason
from voxtile.training.processes import exclusive, in_use, is_alive, is_here, is_in_use, this_process
from voxtile.training.run_folder import RunFolder
from voxtile.values import check_whole_number

if TYPE_CHECKING:
    import optuna
    from hydra.core.config_loader import ConfigLoader
    from optuna.trial import FrozenTrial, Trial
    from rich.console import Console

    from voxtile.cases.dataset import Dataset

SAMPLERS = {
    "tpe": "TPESampler", "cmaes": "CmaEsSampler", "random": "RandomSampler", "grid": "RandomSampler", "qmc": "QMCSampler",
    "gp": "GPSampler", "nsga2": "NSGAIISampler", "nsga3": "NSGAIIISampler",
}  # fmt: skip
PRUNERS = {
    "none": "NopPruner", "median": "MedianPruner", "percentile": "PercentilePruner", "halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}  # fmt: skip
COSTS = ("seconds_per_step", "peak_memory_gib")  # objectives that no validation gives
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
    from voxtile.commands.words import command_line

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
    if odd := [sign for sign in "?{}" if sign in str(place.absolute())]:
        raise ConfigError(
            f"The study's folder would be {place}, and in the address of its database '{odd[0]}' stands for something else. Choose "
            "another name with 'hydra.sweeper.name=…', or another place for runs with 'paths.runs=…'."
        )
    trials = settings["trials"]
    check_whole_number("hydra.sweeper.trials", trials)
    maker = TrialMaker(fixed, space, config, loader)
    _check_objectives(wanted, maker.check().dataset)
    slots = Slots.of(settings["jobs"], settings["gpus"], "hydra.sweeper")
    _check_made(wanted, settings)
    # Optuna's own sampler for grids works in its own loop only; the others would try some of few combinations twice.
    combinations = maker.combinations(trials + 1, settings["sampler"] == "grid")
    place.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive(place / ".lock"):
            study = _open(name, place, about, settings)
            if settings["sampler"] == "grid" or 0 < len(combinations) <= trials:
                trials = min(trials, len(combinations))
                for each in combinations[:trials]:
                    study.enqueue_trial(each, skip_if_exists=True)
            found = _Search(study, place, maker, wanted, trials, settings["pruner"] != "none")
            begun = sum(trial.state.name != "WAITING" for trial in study.trials)
            out.print(f"study {name}: {begun} of {trials} trials begun before; {place / 'study.db'}", soft_wrap=True)
            found.adopt()
        own = place / "jobs" / f"{socket.gethostname()}-{os.getpid()}"  # another command may work on the study
        _clear_up(own.parent)
        own.mkdir(parents=True, exist_ok=True)
        try:
            with in_use(own):
                stopped = run_jobs(found.take, slots, own, found.ended, found.look, trials)
        finally:
            if not any(own.iterdir()):
                own.rmdir()
            report(study, wanted, fixed, place, out)
    except (SQLAlchemyError, StorageInternalError) as error:
        raise RunError(
            f"The study {place / 'study.db'} cannot be read or written: {reason(error)}. Look whether the disk is full or the file "
            "damaged; where it is, move it away: the same command then begins a new study, and finds the runs that are finished."
        ) from error
    some = any(outcome.code == 0 for outcome in found.outcomes)
    for outcome in found.outcomes:
        outcome.told = True
        if some and outcome.code != STOPPED:
            outcome.code = 0  # that some settings cannot be trained with is what a search finds out
        collected(outcome)
    if stopped:
        out.print(f"Stopped. The same command continues the search: {command_line()}", soft_wrap=True)
        raise StoppedError
    return found.outcomes


def _clear_up(jobs: Path) -> None:
    """Takes away what killed commands have left of their jobs; what jobs have printed stays."""
    for left in jobs.glob(f"{glob.escape(socket.gethostname())}-*"):
        if not is_in_use(left):
            with suppress(OSError):  # not empty, or another command takes it away at this moment
                for order in left.glob("*.json"):
                    order.unlink()
                left.rmdir()


def _objectives(given: Any) -> dict[str, str]:
    """Whether each objective is maximized or, with a minus before it, minimized."""
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise ConfigError(
            f"'hydra.sweeper.objectives={given}' must be a list of scores, those with a minus to be as small as possible: type "
            "'hydra.sweeper.objectives=[dice,-seconds_per_step]'."
        )
    return {name.removeprefix("-"): "minimize" if name.startswith("-") else "maximize" for name in given}


def _check_objectives(wanted: Mapping[str, str], dataset: Dataset) -> None:
    """Refuses objectives that no run on a data set will have.

    Raises:
        ConfigError: An objective is no score of such a run.
    """
    from voxtile.scores.confusion import score_names

    known = [*score_names(dataset.classes, dataset.regions), *COSTS]
    if unknown := [name for name in wanted if name not in known]:
        raise _no_score(unknown[0], known)


def _no_score(name: str, known: Collection[str]) -> ConfigError:
    return ConfigError(
        f"'hydra.sweeper.objectives' names '{name}', which is no score.{did_you_mean(name, known)} Choose from {listed(known, 40)}."
    )


def _check_made(wanted: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Refuses a sampler or a pruner that cannot be made, before there is a study.

    Raises:
        ConfigError: One is unknown, its options do not fit it, or it does not go with several objectives.
    """
    import optuna

    if settings["pruner"] != "none" and len(wanted) > 1:
        raise ConfigError("A trial can be pruned by one objective only. Type 'hydra.sweeper.pruner=none', or leave one objective.")
    _made("pruner", PRUNERS, optuna.pruners, settings, {})
    _made("sampler", SAMPLERS, optuna.samplers, settings, {})


def _open(
    name: str, place: Path, about: Mapping[str, Any], settings: Mapping[str, Any]
) -> optuna.Study:  # fmt: skip
    """The study of this name, made where it does not exist."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
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
    mine = this_process() if others else ""  # two commands at once must not ask for the same
    seed = int.from_bytes(hashlib.sha256(f"{settings['seed']} {len(study.trials)} {mine}".encode()).digest()[:4], "big")
    study.sampler = _made("sampler", SAMPLERS, optuna.samplers, settings, {"seed": seed})
    return study


def _made(kind: str, names: Mapping[str, str], module: Any, settings: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """Optuna's sampler or pruner."""
    from optuna.exceptions import ExperimentalWarning

    name = settings[kind]
    options = {each.get_key_element(): each.value() for each in parsed_words(settings[f"{kind}_options"], f"{kind}_options")}
    if name not in names:
        raise ConfigError(f"'hydra.sweeper.{kind}={name}' is unknown.{did_you_mean(str(name), names)} Choose from {listed(names)}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return getattr(module, names[name])(**own, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"'hydra.sweeper.{kind}_options={settings[f'{kind}_options']}' do not fit Optuna's {names[name]}: {reason(error)}."
        ) from error


@dataclass
class _Begun:
    """A trial whose job is not at its end."""

    trial: Trial
    pruned: bool = False
    looked: float = -LOOK


@dataclass
class _Search:
    """Asks a study for trials and tells it what became of them."""

    study: optuna.Study
    place: Path
    maker: TrialMaker
    objectives: Mapping[str, str]
    trials: int
    prunes: bool
    outcomes: list[Outcome] = field(default_factory=list)
    orphans: list[Trial] = field(default_factory=list)
    begun: dict[Job, _Begun] = field(default_factory=dict)

    def adopt(self) -> None:
        """Takes over the trials of commands that are gone, while no other command asks; their runs go on where they were."""
        import optuna
        from optuna.trial import TrialState

        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _lives(frozen):
                continue
            trial = optuna.trial.Trial(self.study, frozen._trial_id)
            trial.set_user_attr(OWNER, this_process())
            self.orphans.append(trial)

    def take(self) -> Job | None:
        """The job of the next trial that can be composed; one that cannot has failed."""
        while (trial := self._next()) is not None:
            if (job := self._job(trial)) is not None:
                return job
        return None

    def _next(self) -> Trial | None:
        """A trial that was left, or a new one."""
        if self.orphans:
            return self.orphans.pop(0)

        with exclusive(self.place / ".lock"):  # in which a trial without an owner is one of a command that is gone
            known = self.study.get_trials(deepcopy=False)
            if len(known) >= self.trials and not any(trial.state.name == "WAITING" for trial in known):
                return None
            trial = self.study.ask(self.maker.groups)
            trial.set_user_attr(OWNER, this_process())
        return trial

    def _job(self, trial: Trial) -> Job | None:
        """The job of a trial, once it has been asked for all settings that the chosen options have; None where it has failed."""
        from optuna.trial import TrialState

        from voxtile.commands.explain import explain

        params: dict[str, Any] = {}
        try:
            params |= {group: trial._suggest(group, each) for group, each in self.maker.groups.items()}
            params |= {path: trial._suggest(path, self.maker.space[path]) for path in self.maker.fitting(params)}
            config = self.maker.composed(params)
        except (*NOT_COMPOSED, VoxtileError) as error:
            outcome = Outcome(self.maker.words(params), ConfigError.exit_code)
            try:
                explain(error, "train", [compose.conf_dir(), *compose.further_folders()])
            except VoxtileError as explained:
                outcome.reason = str(explained)
            self.outcomes.append(outcome)
            trial.set_user_attr(REASON, outcome.reason)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            return None
        outcome = Outcome(self.maker.words(params), STOPPED, reason=NOT_BEGUN)
        # Two trials may ask for the same settings, which are one run: the later one waits for it.
        more = {"patient": True, "group": self.study.study_name, "kind": "search"}
        job = Job(" ".join(typed_words(params)), outcome, config, more=more)
        self.outcomes.append(outcome)
        self.begun[job] = _Begun(trial)
        return job

    def look(self, job: Job) -> None:
        """Reports the validations of a job under way, and stops it where they are too bad."""
        begun = self.begun[job]
        if time.monotonic() - begun.looked < LOOK or begun.pruned or job.home is None:
            return
        begun.looked = time.monotonic()
        if RUN not in begun.trial.user_attrs:
            begun.trial.set_user_attr(RUN, str(job.home.absolute()))
        if self.prunes and self._reported(begun.trial, job.home):
            begun.pruned = True
            job.stop()

    def _reported(self, trial: Trial, home: Path) -> bool:
        """Tells the study a trial's validations, and returns whether it should be pruned by one of them."""
        (name,) = self.objectives
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

        begun, outcome = self.begun.pop(job), job.outcome
        trial = begun.trial
        if outcome.home:
            trial.set_user_attr(RUN, outcome.home)
        if outcome.code == 0 and len(self.objectives) == 1:
            self._reported(trial, Path(outcome.home))  # what came since the last look; too late to be pruned
        if outcome.code == 0:
            values = _values(Path(outcome.home), self.objectives)
            if missing := [name for name, value in values.items() if value is None or not math.isfinite(value)]:
                outcome.code, outcome.reason = RunError.exit_code, f"{listed(missing)} came out undefined"
            else:
                self.study.tell(trial, [float(value or 0) for value in values.values()], skip_if_finished=True)
                return
        if begun.pruned and outcome.code == STOPPED:
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

    folder = RunFolder(home)
    status, made = folder.read("status.json", "best", "step"), segment(folder.read("manifest.json"))
    scores = dict(status["best"]["scores"])
    scores["seconds_per_step"] = made.get("training_seconds", math.nan) / max(1, status["step"])
    scores["peak_memory_gib"] = made.get("peak_memory_gib", math.nan)
    if unknown := [name for name in objectives if name not in scores]:
        raise _no_score(unknown[0], scores)
    return {name: scores[name] for name in objectives}


def _lives(trial: FrozenTrial) -> bool:
    """Whether the command that asked for a trial is still there.

    Of one on another machine that is not known, but that it is gone where nobody holds the trial's run any more.
    """
    owner, run = trial.user_attrs.get(OWNER), trial.user_attrs.get(RUN)
    if owner is None:
        return False
    if is_here(owner):
        return is_alive(owner["pid"], owner["started"])
    return run is None or RunFolder(Path(run)).status["state"] != "interrupted"


def report(study: optuna.Study, objectives: Mapping[str, str], fixed: Sequence[str], place: Path, out: Console) -> None:
    """Prints a study's trials, and writes the best settings as a configuration where a trial has come to its end."""
    from optuna.trial import TrialState

    from voxtile.commands.console import table_of

    def is_anothers(trial: FrozenTrial) -> bool:
        """Whether another command is at a trial, which ours no longer is."""
        return _lives(trial) and trial.user_attrs.get(OWNER) != this_process()

    table = table_of("trial", "state", *objectives, "settings", "run", title=f"study {study.study_name}")
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
