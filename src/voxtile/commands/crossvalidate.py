"""Several runs evaluated together: each case by runs that never trained on its group, or test cases by all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from voxtile.cases.atomic import atomic_text
from voxtile.commands.evaluate import (
    asks_for_search,
    cases_of,
    folder_name,
    prepared_for,
    refuse_shared_search,
    say_look,
    say_search,
)
from voxtile.commands.folders import differences, folder_of_several
from voxtile.commands.measures import measures_of
from voxtile.commands.parents import Learned, learned_by
from voxtile.commands.postprocess import FILE, as_typed, background_of, made_with, postprocess_of, stored
from voxtile.commands.score_table import score_table, write_scores
from voxtile.commands.scoring import Job, Scored, Scorer, mean_dice
from voxtile.commands.sharing import count_of, score_all
from voxtile.commands.tables import print_folds
from voxtile.commands.trained import Trained
from voxtile.data.prepared import Prepared
from voxtile.errors import ConfigError, RunError, counted, listed
from voxtile.inference.postprocess import Postprocess
from voxtile.inference.postprocess_search import Search
from voxtile.scores.confusion import summarise
from voxtile.training.recipe import ADDED
from voxtile.training.run_folder import finite

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.cases.case import Case
    from voxtile.inference.predictor import Predictor

TITLE = "evaluating out of fold"
BEST = "the best weights of each run were chosen on the fold that is scored here, so these scores are optimistic"
PATIENCE = (
    "the runs stopped by 'training.patience', so that their length was chosen on the fold that is scored here: these scores are "
    "optimistic"
)
PARENT = (
    "the runs started from the best weights of others ('init_from'), which were chosen on validation cases: where those are scored "
    "here, these scores are optimistic"
)


@dataclass(frozen=True)
class Member:
    """One of several runs.

    Attributes:
        trained: the run.
        prepared: its data, compared with what it was trained on.
        learned: the cases that its weights were trained on, those of runs that it started from included.
    """

    trained: Trained
    prepared: Prepared
    learned: Sequence[Learned]

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """Its recipe.json."""
        return self.trained.home.read("recipe.json", "settings", "identity")

    @property
    def fold(self) -> str:
        """The number of its fold, "" where its split has none."""
        found = self.recipe["settings"]["split"].get("fold")
        return "" if found is None else str(found)

    @property
    def order(self) -> tuple[str, int, str]:
        """By which runs are sorted, so that the order in which they are named changes no bit."""
        return self.fold, int(self.recipe["settings"]["seed"]), self.recipe["identity"]

    @cached_property
    def _learned_names(self) -> tuple[set[str], set[str]]:
        """Groups that it has learned from, and cases, also those that blocks were cut from."""
        own = [case for case in self.learned if case.data == self.prepared.dataset.name]
        train = {case.group for case in self.prepared.split.train}
        return train | {case.group for case in own if case.group}, {case.id for case in own}

    def may_score(self, case: Case) -> bool:
        """Whether neither the case nor another one of its group was in the run's training."""
        groups, names = self._learned_names
        whole = case.id.rpartition("#")[0] if case.region else case.id
        return case.group not in groups and not {case.id, whole} & names


def evaluate_several(paths: Sequence[str], config: Mapping[str, Any], out: Console) -> int:
    """Scores several runs together.

    Raises:
        ConfigError: A setting would be chosen on the cases that are scored.
        RunError: The runs do not belong together.
        DataError: The data are not those of the runs.
    """
    testing, choosing = config["split"] == "test", asks_for_search(config["postprocess"])
    if not testing:
        _refuse_chosen(config)
    processes = count_of(config)
    refuse_shared_search(config, processes)
    opened = [Trained.open(path, config["weights"], config["trust"], config["root"], config["paths"]["cache"]) for path in paths]
    for each in opened:
        each.warn(out)
    data = opened[0].manifest["data"]
    if choosing:
        background_of(data)
    measures = measures_of(config, data)
    _refuse_other_recipes(opened)
    opened[0].predictor(config, opened)  # refuses before data are read
    members = [Member(each, prepared_for(each, config["split"], out), learned_by(each.home)) for each in opened]
    members.sort(key=lambda member: member.order)
    _refuse_other_data(members)
    home = folder_of_several(config, [member.trained.home for member in members])
    facts: dict[str, Any] = {
        "waived": list(dict.fromkeys(sentence for member in members for sentence in member.trained.manifest["data"]["waived"])),
        "runs": [
            {"run": m.trained.home.path.name, "identity": m.recipe["identity"], "fold": m.fold, **m.trained.file} for m in members
        ],
    }
    scorer = Scorer([(member.trained, member.prepared) for member in members], config, measures)
    together = _Together(members, config, scorer, processes, home, out)
    if testing:
        together.score_test(facts)
    else:
        together.score_out_of_fold(facts, choosing)
    return 0


def _refuse_chosen(config: Mapping[str, Any]) -> None:
    """Refuses what was, or would be, chosen on the folds that are scored.

    Raises:
        ConfigError: A setting was, or would be, chosen so.
    """
    if config["crf"] == "best" or asks_for_search(config["crf"]):
        raise ConfigError(
            f"'crf={config['crf']}' is chosen on validation cases, which are the ones that 'runs' with 'split=val' scores. Type "
            "the CRF's settings themselves, or 'crf=null'."
        )
    if config["postprocess"] == "best":
        raise ConfigError(
            "'postprocess=best' was chosen on validation cases, which are the ones that 'runs' with 'split=val' scores. Type "
            "'postprocess=search': it chooses for each fold by the other folds, and keeps the choice by all of them for predict."
        )


def _refuse_other_recipes(runs: Sequence[Trained]) -> None:
    """Refuses runs that differ in more than fold and seed: the table is about one recipe.

    Raises:
        RunError: Two recipes differ in more.
    """
    first = runs[0]
    for other in runs[1:]:
        mine, its = (_compared(run.home.read("recipe.json", "settings")) for run in (first, other))
        if unlike := differences(mine, its):
            raise RunError(
                f"{first.home.path} and {other.home.path} cannot be evaluated together: they differ in {listed(unlike)}. Expected "
                "runs of one recipe that differ in 'fold' and 'seed' only: name those, or give 'runs' a narrower pattern."
            )


def _refuse_other_data(members: Sequence[Member]) -> None:
    """Refuses runs on different data.

    Raises:
        RunError: Two differ in their test cases, or in the images of cases with one name.
    """
    first = members[0]
    for other in members[1:]:
        names = f"{first.trained.home.path} and {other.trained.home.path}"
        images = first.prepared.images, other.prepared.images
        regions = [{case.id: case.region for side in m.prepared.split.sides.values() for case in side} for m in (first, other)]
        shared = [name for name, region in regions[0].items() if name in regions[1] and regions[1][name] == region]
        changed = [name for name in shared if images[0][name] != images[1][name]]
        if changed or first.prepared.test_fingerprint != other.prepared.test_fingerprint:
            what = f"images of {listed(changed)}" if changed else "test cases"
            raise RunError(f"{names} cannot be evaluated together: their {what} differ. Expected runs on one data set and split.")


def _compared(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that must be the same: all but seed and fold; one that was added later counts as what stood for it."""
    settings = recipe["settings"]
    kept = {name: value for name, value in settings.items() if name != "seed" and not (name in ADDED and value == ADDED[name])}
    split = {f"split.{name}": value for name, value in kept.pop("split").items() if name != "fold"}
    return kept | split | {"init_from": "a run" if recipe.get("parent") else "nothing"}


@dataclass(frozen=True)
class _Together:
    """What is done with runs that belong together.

    Attributes:
        members: the runs, in their order.
        config: of the command.
        scorer: scores cases by them.
        processes: that share the work.
        home: where evaluations of these runs lie.
        out: where it prints.
    """

    members: Sequence[Member]
    config: Mapping[str, Any]
    scorer: Scorer
    processes: int
    home: Path
    out: Console

    @property
    def data(self) -> Mapping[str, Any]:
        """Classes, background and regions, which all have in common."""
        found: Mapping[str, Any] = self.members[0].trained.manifest["data"]
        return found

    def score_test(self, facts: dict[str, Any]) -> None:
        """The mean of all runs on the test cases, one recorded look."""
        first, everybody = self.members[0], tuple(range(len(self.members)))
        predictor = self.scorer.predictor(everybody)
        self._post_process(predictor)
        cases = cases_of(first.trained, first.prepared, "test")
        for measure in self.scorer.measures:
            measure.check([case.native for case in cases])
        identity = "+".join(member.recipe["identity"] for member in self.members)
        say_look(first.trained, self.config, first.prepared, identity, self.out)
        scored = score_all(self.scorer, [Job(case, everybody) for case in cases], self.processes, self.out, "evaluating test")
        self._write(scored, predictor, as_typed(self.scorer.post, self.data["classes"]), facts)

    def _post_process(self, predictor: Predictor) -> None:
        """Has maps post-processed as the command says."""
        made = made_with(self.config, predictor)
        self.scorer.post = postprocess_of(self.config["postprocess"], self.home, self.data, made)

    def score_out_of_fold(self, facts: dict[str, Any], choosing: bool) -> None:
        """Each case by the runs that never trained on its group, and the pooled table."""
        jobs, unscored = _plan(self.members)
        if not jobs:
            raise RunError(
                f"No validation case of the {len(self.members)} runs may be scored: each run was trained on their groups. Expected "
                "runs whose validation cases are independent of their training."
            )
        for measure in self.scorer.measures:
            measure.check([job.case.native for job in jobs])
        warnings, predictor = self._warnings(unscored), self.scorer.predictor()
        if choosing:
            scored, posts = self._search(jobs)
        else:
            self._post_process(predictor)
            scored = score_all(self.scorer, jobs, self.processes, self.out, TITLE)
            posts = as_typed(self.scorer.post, self.data["classes"])
        folds = []
        for fold in sorted({each.columns["fold"] for each in scored}):
            matrices = np.stack([each.matrix for each in scored if each.columns["fold"] == fold])
            scores = summarise(matrices, self.data["classes"], self.data["background"], self.data.get("regions"))
            folds.append({"fold": fold, "cases": len(matrices), "scores": finite(scores)})
        self._write(scored, predictor, posts, facts | {"unscored": unscored, "warnings": warnings, "folds": folds})
        print_folds(self.out, folds, self.data["classes"], list(self.data.get("regions") or {}))
        for sentence in warnings:
            self.out.print(f"careful: {sentence}", style="yellow", soft_wrap=True)

    def _warnings(self, unscored: Sequence[str]) -> list[str]:
        """What makes the table less than a cross-validation, one sentence each."""
        found = [BEST] if self.config["weights"] == "best" else []
        if self.members[0].recipe["settings"].get("training.patience") is not None:
            found.append(PATIENCE)
        if any(member.recipe.get("parent") for member in self.members):
            found.append(PARENT)
        if unscored:
            found.append(
                f"{counted(len(unscored), 'case')} of training and validation in no table, since no run may score them: each run "
                f"was trained on their groups, or left them out: {listed(unscored)}"
            )
        folds = [member.fold for member in self.members]
        if len({folds.count(fold) for fold in folds}) > 1:
            numbers = listed(f"fold {fold}: {folds.count(fold)}" for fold in sorted(set(folds)))
            found.append(f"folds have different numbers of runs ({numbers}), whose probabilities are averaged")
        return found

    def _search(self, jobs: Sequence[Job]) -> tuple[list[Scored], object]:
        """Cases post-processed by what the other folds choose; the choice by all folds is kept for predict.

        Raises:
            RunError: There is one fold only.
        """
        maps, columns = self.scorer.kept(jobs, self.out, TITLE), [job.columns for job in jobs]
        classes = self.data["classes"]
        search = Search(maps, len(classes), background_of(self.data))
        of_fold: dict[str, Postprocess] = {}
        for fold in sorted({more["fold"] for more in columns}):
            held = {each.case.group for each, more in zip(maps, columns, strict=True) if more["fold"] == fold}
            others = [number for number, each in enumerate(maps) if each.case.group not in held]
            if not others:
                raise RunError(
                    "'postprocess=search' chooses for each fold by the others, and the cases of these runs are all of one fold. "
                    "Name runs of several folds, or search with one run: 'run=<folder> postprocess=search'."
                )
            of_fold[fold], _ = search.choose(others)
        scored = self.scorer.score_kept(maps, [of_fold[more["fold"]] for more in columns], columns)
        everything, tried = search.choose(range(len(maps)))
        plain, all_chosen = (self.scorer.score_kept(maps, [each] * len(maps), measured=False) for each in (None, everything))
        settings = as_typed(everything, classes) if mean_dice(all_chosen, self.data) > mean_dice(plain, self.data) else None
        atomic_text(self.home / FILE, stored(settings, made_with(self.config, self.scorer.predictor()), tried, classes))
        how = " for each fold by the other folds"
        say_search(self.out, mean_dice(plain, self.data), mean_dice(scored, self.data), settings, self.home / FILE, how)
        return scored, {"chosen by the other folds": {fold: as_typed(each, classes) for fold, each in of_fold.items()}}

    def _write(self, scored: Sequence[Scored], predictor: Predictor, post: object, facts: Mapping[str, Any]) -> None:
        name = folder_name(self.config["split"], self.config, predictor, post, [member.trained for member in self.members])
        table = score_table(scored, self.data, self.scorer.measures)
        write_scores(self.home / name, table, self.config, predictor, post, facts, self.out)


def _plan(members: Sequence[Member]) -> tuple[list[Job], list[str]]:
    """Which members score which case, in the order of ids, and the ids of the training and validation cases that none may."""
    scorers: dict[tuple[str, object], list[int]] = {}
    cases: dict[tuple[str, object], Case] = {}
    for number, member in enumerate(members):
        for case in member.prepared.split.val:
            if member.may_score(case):
                cases.setdefault((case.id, case.region), case)
                scorers.setdefault((case.id, case.region), []).append(number)
    jobs = []
    for key, case in cases.items():
        scoring = [members[number] for number in scorers[key]]
        columns = {
            "fold": "+".join(dict.fromkeys(member.fold for member in scoring)),
            "run": "+".join(member.trained.home.path.name for member in scoring),
        }
        jobs.append(Job(case, tuple(scorers[key]), columns))
    known = {case.id for m in members for side in (m.prepared.split.train, m.prepared.split.val) for case in side}
    return sorted(jobs, key=lambda job: (job.case.id, job.runs)), sorted(known - {name for name, _ in scorers})
