"""The flow of `voxtile evaluate`: what it refuses, in which order it looks at things, and what it writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.cases.atomic import atomic_text
from voxtile.commands.console import progress
from voxtile.commands.crf import asks_for_search, search_crf, search_of
from voxtile.commands.elsewhere import judged, side_of
from voxtile.commands.evaluated import folder_name, summary_in
from voxtile.commands.folders import differences, evaluations_of, home_of
from voxtile.commands.given_maps import GivenMaps
from voxtile.commands.measures import measures_of
from voxtile.commands.postprocess import FILE, as_typed, background_of, made_with, postprocess_of, stored
from voxtile.commands.score_table import say_lost, score_table, write_scores
from voxtile.commands.scoring import Job, Scored, Scorer, mean_dice
from voxtile.commands.sharing import score_all
from voxtile.commands.trained import Trained
from voxtile.data.survey import check_labels
from voxtile.errors import ConfigError, DataError, RunError, listed
from voxtile.inference.postprocess_search import Search
from voxtile.training.ledger import record_look
from voxtile.training.recipe import ADDED
from voxtile.training.run_folder import clear_halves

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.commands.measures import Measure
    from voxtile.data.prepared import Prepared
    from voxtile.inference.postprocess import Postprocess
    from voxtile.inference.postprocess_search import KeptMap, Trial
    from voxtile.inference.predictor import Predictor


def fold_of(run: Trained) -> str:
    """The number of a run's fold, "" where its split has none."""
    found = run.recipe["settings"]["split"].get("fold")
    return "" if found is None else str(found)


def order(run: Trained) -> tuple[str, int, str]:
    """By which runs are sorted, so that the order in which they are named changes no bit."""
    return fold_of(run), int(run.recipe["settings"]["seed"]), run.identity


class Evaluation:
    """Cases of one side of a split, scored by one run, or by several that predict together.

    Args:
        runs: the runs; several are of one recipe.
        config: of the command.
        processes: that share the work.
        out: where it prints.

    Raises:
        VoxtileError: The runs do not belong together, or a setting is none.
    """

    def __init__(self, runs: Sequence[Trained], config: Mapping[str, Any], processes: int, out: Console) -> None:
        refuse_other_recipes(runs)
        self.runs: Sequence[Trained] = sorted(runs, key=order)
        self.config, self.processes, self.out = config, processes, out
        self.split: str = config["split"]
        self.side = side_of(config)
        self.data: Mapping[str, Any] = self.runs[0].manifest["data"]  # classes, background and regions are those of all
        self.measures: Sequence[Measure] = measures_of(config, self.data)
        self.choosing = asks_for_search(config["postprocess"])
        if self.choosing:
            background_of(self.data)
        self.searching = asks_for_search(config["crf"])
        if self.searching:
            search_of(config["crf"], self.data["channels"])
        self.predictor: Predictor = self.runs[0].predictor({**config, "crf": None} if self.searching else config, self.runs)
        self.post = None if self.searching else self._post_processing()
        self.prepared: Sequence[Prepared] = ()  # the data of each run, once they are read
        self.maps: GivenMaps | None = None  # that are scored in the place of predictions
        self._check_places()

    @cached_property
    def home(self) -> Path:
        """Where evaluations of these runs lie, and what searches have found for them."""
        return home_of(self.config, [run.home for run in self.runs])

    def write(self) -> None:
        """Reads the data, scores, and writes and shows the scores.

        Raises:
            VoxtileError: The data are not those of the runs, or what a case's scoring raised.
        """
        self.prepared = [judged(run, self.config, self.out) for run in self.runs]
        refuse_other_data(self.runs, self.prepared)
        jobs = self.jobs()
        for measure in self.measures:
            measure.check([job.case.native for job in jobs])
        if self.searching:
            best = search_crf(self.runs[0], self.config, self.prepared[0], self.out)
            self.config = {**self.config, "crf": asdict(best) if best else None}
            self.predictor = self.runs[0].predictor(self.config, self.runs)
            self.post = self._post_processing()
        if self.config["maps"] is not None:
            self.maps = self._given_maps(jobs)
        scorer = Scorer(list(zip(self.runs, self.prepared, strict=True)), self.config, self.measures, self.post, self.maps)
        for numbers in {job.runs: None for job in jobs} if self.maps is None else ():
            scorer.kinds(numbers)  # refuses what cannot be averaged, before it is a look
        if not self.choosing:  # minutes before it takes the place of what is there
            names = [name for measure in self.measures for name in measure.note()]
            folder = self.folder(self.typed(self.post))
            say_lost(
                summary_in(folder), names, f"the evaluation in {folder} also holds", "and this one will take its place", self.out
            )
        if self.side == "test":
            self._record_look()
        if self.choosing:
            scored, post = self.chosen(scorer, jobs)
        else:
            scored, post = score_all(scorer, jobs, self.processes, self.out, self.title), self.typed(self.post)
        table, facts = score_table(scored, self.data, self.measures), self.facts(scored)
        write_scores(self.folder(post), table, self.config, self.predictor, post, facts, self.out)
        self.show(facts)

    @property
    def title(self) -> str:
        """What a progress bar is called."""
        return f"evaluating {self.split}"

    def jobs(self) -> list[Job]:
        """The cases, each to be predicted by all runs.

        Raises:
            DataError: The split has none on this side.
        """
        if not (cases := self.prepared[0].split.sides[self.side]):
            raise DataError(f"The split of {self.runs[0].home.path} has no {self.side} cases. Train with a split that has some.")
        return [Job(case, tuple(range(len(self.runs)))) for case in cases]

    def chosen(self, scorer: Scorer, jobs: Sequence[Job]) -> tuple[list[Scored], object]:
        """Cases with the post-processing that is best for them, which is kept, and its settings."""
        maps = scorer.kept(jobs, self.out, self.title)
        best, tried = self.search(maps).choose(range(len(maps)))
        plain, scored = (scorer.score_kept(maps, [each] * len(maps)) for each in (None, best))
        helps = mean_dice(scored, self.data) > mean_dice(plain, self.data)
        settings = self.typed(best if helps else None)
        self.keep(settings, tried, plain, scored, " for these same cases, so its scores are optimistic")
        return scored if helps else plain, settings

    def search(self, maps: Sequence[KeptMap]) -> Search:
        """Chooses post-processing for some of the maps."""
        return Search(maps, len(self.data["classes"]), background_of(self.data))

    def keep(
        self,
        settings: Mapping[str, Any] | None,
        tried: Sequence[Trial],
        plain: Sequence[Scored],
        chosen: Sequence[Scored],
        how: str,
    ) -> None:
        """Keeps what a search of post-processing has found, and says what it came to.

        Args:
            settings: as they are typed; None where nothing helps.
            tried: all that was.
            plain: the cases without post-processing.
            chosen: the cases with what was chosen.
            how: it was chosen, to stand behind that.
        """
        file = self.home / FILE
        clear_halves(self.home)
        atomic_text(file, stored(settings, made_with(self.config, self.predictor), tried, self.data["classes"]))
        kept = (
            "nothing helps, which is what is kept" if settings is None else f"kept for 'postprocess=best': {json.dumps(settings)}"
        )
        dice = [mean_dice(scored, self.data) for scored in (plain, chosen)]
        self.out.print(
            f"post-processing: Dice {dice[0]:.4f} without, {dice[1]:.4f} with what was chosen{how}; {kept} in {file}",
            soft_wrap=True,
        )

    def folder(self, post: object) -> Path:
        """Where the scores go, of maps that were post-processed so."""
        if self.maps is not None:
            name = f"{self.split}-maps-{self.maps.name}"
        else:
            name = folder_name(self.split, self.config, self.predictor, post, self.runs)
        return evaluations_of(self.config, [run.home for run in self.runs]) / name

    def facts(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """What else is in summary.json: `waived`, and which runs these are."""
        waivers = [*(run.manifest["data"]["waived"] for run in self.runs), *(each.waived for each in self.prepared)]
        waived = list(dict.fromkeys(sentence for sentences in waivers for sentence in sentences))
        # By a name and a place alone, cases of another data set are not known.
        of: dict[str, Any] = {"fingerprint": self.prepared[0].test_fingerprint} if self.config["dataset"] else {}
        if self.maps is not None:
            nothing = dict.fromkeys(("weights", "overlap", "procedure"))  # what predictions are made with
            where = str(self.maps.folder.resolve())
            return {
                "waived": waived,
                "maps": self.maps.name,
                "maps_folder": where,
                "split_of": [run.identity for run in self.runs],
                **nothing,
                **of,
            }
        of["settings"] = common_settings(self.runs[0].recipe)
        if len(self.runs) > 1:
            runs = [{"run": run.home.path.name, "identity": run.identity, "fold": fold_of(run), **run.file} for run in self.runs]
            return {"waived": waived, "runs": runs, **of}
        (run,) = self.runs
        changed = {"changed_modules": run.changed_modules} if run.changed_modules else {}
        return {"waived": waived, "run": run.identity, **run.file, **changed, **of}

    def _post_processing(self) -> Postprocess | None:
        """What is done to whole maps; None for nothing, or what is still to be chosen."""
        if self.choosing:
            return None
        return postprocess_of(self.config["postprocess"], self.home, self.data, made_with(self.config, self.predictor))

    def show(self, facts: Mapping[str, Any]) -> None:
        """Shows what of the facts is more than the table of scores."""

    def typed(self, post: Postprocess | None) -> dict[str, Any] | None:
        """Settings of post-processing by the names of classes."""
        return as_typed(post, self.data["classes"])

    def _check_places(self) -> None:
        """Refuses, before anything is read or looked at, to score and to search what could not be kept.

        Raises:
            RunError: A folder that is to be written to may not be.
        """
        scores = evaluations_of(self.config, [run.home for run in self.runs])
        searched = [self.home] if self.choosing or self.searching else []
        there = [next(each for each in (place, *place.parents) if each.exists()) for place in (scores, *searched)]
        if not all(os.access(folder, os.W_OK) for folder in there):
            raise RunError(
                f"Scores are kept in {self.home}, which may not be written to. Copy the run folder to a place of your own, and "
                "name it there; 'root=…' says where its data set lies."
            )

    def _given_maps(self, jobs: Sequence[Job]) -> GivenMaps:
        """The maps that are scored in the place of predictions.

        Raises:
            ConfigError: The scores of another folder of the same name are there.
            DataError: A map does not fit.
        """
        folder, identities = Path(str(self.config["maps"])).expanduser(), [run.identity for run in self.runs]
        maps = GivenMaps(folder, self.prepared[0].dataset, identities)
        there = evaluations_of(self.config, [run.home for run in self.runs]) / f"{self.split}-maps-{maps.name}"
        before = summary_in(there).get("maps_folder")
        if before is not None and before != str(folder.resolve()):
            raise ConfigError(
                f"{there} holds the scores of the maps in {before}, another folder of the name '{maps.name}'. Rename one of the "
                "two folders, or move those scores away."
            )
        maps.check([job.case for job in jobs], whole=self.side == "test")
        return maps

    def _record_look(self) -> None:
        """Records a look at test cases before they are scored, and says which one it is.

        Raises:
            DataError: A label cannot be read, which is found here for the first time and is to use up no look.
        """
        first, prepared = self.runs[0], self.prepared[0]
        with progress(self.out) as start:
            check_labels(prepared.split.test, start(len(prepared.split.test), "reading test labels"))
        identity = "+".join(run.identity for run in self.runs)
        looks = record_look(first.ledger(self.config), prepared.test_fingerprint, identity, "evaluate")
        what = "this test split" if self.split == "test" else "these cases"
        self.out.print(f"look number {looks} at {what}, recorded")
        others: dict[tuple[Path, str], list[Trained]] = {}  # test splits of the runs that these cases are of, too
        for run in self.runs if self.split != "test" else ():
            own = run.manifest["data"]
            if set(prepared.test_files) & set(own["test_files"]) and own["test_fingerprint"] != prepared.test_fingerprint:
                others.setdefault((run.ledger(self.config).resolve(), own["test_fingerprint"]), []).append(run)
        for (ledger, fingerprint), runs in others.items():
            looks = record_look(ledger, fingerprint, "+".join(run.identity for run in runs), "evaluate")
            said = f"test cases of {listed(run.home.path for run in runs)} are among them: look number {looks} at their test split"
            self.out.print(f"{said}, recorded", soft_wrap=True)


def refuse_other_recipes(runs: Sequence[Trained]) -> None:
    """Refuses runs that differ in more than fold and seed: the table is about one recipe.

    Raises:
        RunError: Two recipes differ in more.
    """
    first = runs[0]
    for other in runs[1:]:
        mine, its = (common_settings(run.recipe) for run in (first, other))
        if unlike := differences(mine, its):
            raise RunError(
                f"{first.home.path} and {other.home.path} cannot be evaluated together: they differ in {listed(unlike)}. Expected "
                "runs of one recipe that differ in 'fold' and 'seed' only: name those, or give 'runs' a narrower pattern."
            )


def refuse_other_data(runs: Sequence[Trained], prepared: Sequence[Prepared]) -> None:
    """Refuses runs on different data.

    Raises:
        RunError: Two differ in their test cases, or in the images of cases with one name.
    """
    first = prepared[0]
    for run, other in zip(runs[1:], prepared[1:], strict=True):
        regions = [{case.id: case.region for side in each.split.sides.values() for case in side} for each in (first, other)]
        shared = [name for name, region in regions[0].items() if name in regions[1] and regions[1][name] == region]
        changed = [name for name in shared if first.images[name] != other.images[name]]
        if changed or first.test_fingerprint != other.test_fingerprint:
            what = f"images of {listed(changed)}" if changed else "test cases"
            raise RunError(
                f"{runs[0].home.path} and {run.home.path} cannot be evaluated together: their {what} differ. Expected runs on one "
                "data set and split."
            )


def common_settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that must be the same: all but seed and fold; one that was added later counts as what stood for it."""
    settings = recipe["settings"]
    kept = {name: value for name, value in settings.items() if name != "seed" and not (name in ADDED and value == ADDED[name])}
    split = {f"split.{name}": value for name, value in kept.pop("split").items() if name != "fold"}
    return kept | split | {"init_from": "a run" if recipe.get("parent") else "nothing"}
