"""Several runs evaluated out of fold: each validation case by the runs that never trained on its group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from voxtile.cases.names import whole_id
from voxtile.commands.crf import asks_for_search
from voxtile.commands.evaluation import Evaluation, fold_of
from voxtile.commands.parents import Learned, learned_by
from voxtile.commands.scoring import Job, Scored, Scorer, mean_dice
from voxtile.commands.tables import print_folds
from voxtile.commands.trained import Trained
from voxtile.data.prepared import Prepared
from voxtile.errors import ConfigError, RunError, counted, listed
from voxtile.inference.postprocess import Postprocess
from voxtile.scores.confusion import summarise
from voxtile.values import finite

if TYPE_CHECKING:
    from voxtile.cases.case import Case

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
    def _learned_names(self) -> tuple[set[str], set[str]]:
        """Groups that it has learned from, and cases, also those that blocks were cut from."""
        own = [case for case in self.learned if case.data == self.prepared.dataset.name]
        train = {case.group for case in self.prepared.split.train}
        return train | {case.group for case in own if case.group}, {case.id for case in own}

    def may_score(self, case: Case) -> bool:
        """Whether neither the case nor another one of its group was in the run's training."""
        groups, names = self._learned_names
        return case.group not in groups and not {case.id, whole_id(case.id, case.region)} & names


def refuse_chosen(config: Mapping[str, Any]) -> None:
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


class OutOfFold(Evaluation):
    """Validation cases of several runs, each scored by the runs that never trained on its group, and the pooled table."""

    title = "evaluating out of fold"
    _unscored: Sequence[str] = ()

    def jobs(self) -> list[Job]:
        """The cases that some of the runs may score.

        Raises:
            RunError: There are none.
        """
        pairs = zip(self.runs, self.prepared, strict=True)
        jobs, self._unscored = _plan([Member(run, prepared, learned_by(run.home)) for run, prepared in pairs])
        if not jobs:
            raise RunError(
                f"No validation case of the {len(self.runs)} runs may be scored: each run was trained on their groups. Expected "
                "runs whose validation cases are independent of their training."
            )
        if self.config["maps"] is not None:  # which none of these runs has made
            return [replace(job, columns={"fold": job.columns["fold"]}) for job in jobs]
        return jobs

    def chosen(self, scorer: Scorer, jobs: Sequence[Job]) -> tuple[list[Scored], object]:
        """Cases post-processed by what the other folds choose, and that; the choice by all folds is kept for predict.

        Raises:
            RunError: There is one fold only.
        """
        maps, columns = scorer.kept(jobs, self.out, self.title), [job.columns for job in jobs]
        search = self.search(maps)
        of_fold: dict[str, Postprocess | None] = {}

        def counted_with(post: Postprocess | None, numbers: Sequence[int]) -> list[Scored]:
            return scorer.score_kept([maps[number] for number in numbers], [post] * len(numbers), measured=False)

        plain = counted_with(None, range(len(maps)))
        for fold in sorted({more["fold"] for more in columns}):
            held = {each.case.group for each, more in zip(maps, columns, strict=True) if more["fold"] == fold}
            others = [number for number, each in enumerate(maps) if each.case.group not in held]
            if not others:
                raise RunError(
                    "'postprocess=search' chooses for each fold by the others, and the cases of these runs are all of one fold. "
                    "Name runs of several folds, or search with one run: 'run=<folder> postprocess=search'."
                )
            best, _ = search.choose(others)
            better, as_is = (mean_dice(each, self.data) for each in (counted_with(best, others), [plain[n] for n in others]))
            of_fold[fold] = best if better > as_is else None
        scored = scorer.score_kept(maps, [of_fold[more["fold"]] for more in columns], columns)
        everything, tried = search.choose(range(len(maps)))
        helps = mean_dice(counted_with(everything, range(len(maps))), self.data) > mean_dice(plain, self.data)
        self.keep(self.typed(everything if helps else None), tried, plain, scored, " for each fold by the other folds")
        return scored, {"chosen by the other folds": {fold: self.typed(each) for fold, each in of_fold.items()}}

    def facts(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """What else is in summary.json: the cases that no run may score, what to think of the table, and each fold's scores."""
        folds = []
        for fold in sorted({each.columns["fold"] for each in scored}):
            matrices = np.stack([each.matrix for each in scored if each.columns["fold"] == fold])
            scores = summarise(matrices, self.data["classes"], self.data["background"], self.data.get("regions"))
            folds.append({"fold": fold, "cases": len(matrices), "scores": finite(scores)})
        return super().facts(scored) | {"unscored": self._unscored, "warnings": self._warnings(), "folds": folds}

    def show(self, facts: Mapping[str, Any]) -> None:
        """Shows each fold's scores, and what to think of the table."""
        print_folds(self.out, facts["folds"], self.data["classes"], list(self.data.get("regions") or {}))
        for sentence in facts["warnings"]:
            self.out.print(f"careful: {sentence}", style="yellow", soft_wrap=True)

    def _warnings(self) -> list[str]:
        """What makes the table less than a cross-validation, one sentence each."""
        found = []
        if self.maps is None:
            found += [BEST] if self.config["weights"] == "best" else []
            found += [PATIENCE] if self.runs[0].recipe["settings"].get("training.patience") is not None else []
            found += [PARENT] if any(run.recipe.get("parent") for run in self.runs) else []
        if self._unscored:
            found.append(
                f"{counted(len(self._unscored), 'case')} of training and validation in no table, since no run may score them: each "
                f"run was trained on their groups, or left them out: {listed(self._unscored)}"
            )
        folds = [fold_of(run) for run in self.runs]
        if self.maps is None and len({folds.count(fold) for fold in folds}) > 1:
            numbers = listed(f"fold {fold}: {folds.count(fold)}" for fold in sorted(set(folds)))
            found.append(f"folds have different numbers of runs ({numbers}), whose probabilities are averaged")
        return found


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
            "fold": "+".join(dict.fromkeys(fold_of(member.trained) for member in scoring)),
            "run": "+".join(member.trained.home.path.name for member in scoring),
        }
        jobs.append(Job(case, tuple(scorers[key]), columns))
    known = {case.id for m in members for side in (m.prepared.split.train, m.prepared.split.val) for case in side}
    return sorted(jobs, key=lambda job: (job.case.id, job.runs)), sorted(known - {name for name, _ in scorers})
