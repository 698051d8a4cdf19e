"""voxtile evaluate: a run's scores on the whole cases of a split, or those of several runs (`crossvalidate.py`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.cases.case import Case
    from voxtile.commands.trained import Trained
    from voxtile.data.prepared import Prepared
    from voxtile.inference.postprocess import Postprocess
    from voxtile.inference.predictor import Predictor


def main(argv: Sequence[str]) -> int:
    """Composes and evaluates; see `voxtile evaluate --help`."""
    return compose.run("evaluate", argv, evaluate)


def evaluate(config: Mapping[str, Any]) -> int:
    """Scores the run, or the runs, that the configuration names."""
    from voxtile.commands.console import console
    from voxtile.commands.folders import run_folders
    from voxtile.errors import ConfigError

    out = console()
    if config["split"] not in ("val", "test"):
        raise ConfigError(f"'split={config['split']}' cannot be evaluated; choose val or test.")
    for name in ("crf", "postprocess"):
        if asks_for_search(config[name]) and config["split"] != "val":
            raise ConfigError(f"'{name}=search' chooses settings by scores: only 'split=val' may be used for that.")
    folders = run_folders(config, out)
    if len(folders) == 1:
        return _evaluate_one(folders[0], {**config, "weights": config["weights"] or "best"}, out)
    from voxtile.commands.crossvalidate import evaluate_several

    return evaluate_several(folders, {**config, "weights": config["weights"] or "last"}, out)


def asks_for_search(value: Any) -> bool:
    """Whether a command's `crf` or `postprocess` asks for a search: "search", or {search: …}."""
    return value == "search" or (isinstance(value, Mapping) and "search" in value)


def refuse_shared_search(config: Mapping[str, Any], processes: int) -> None:
    """Refuses to share what looks at all maps at once.

    Raises:
        ConfigError: A search of the CRF or of post-processing is asked for, and several processes.
    """
    from voxtile.errors import ConfigError

    if wanted := [name for name in ("crf", "postprocess") if processes > 1 and asks_for_search(config[name])]:
        raise ConfigError(f"'{wanted[0]}=search' compares all maps in one process. Type 'devices=1'.")


def _evaluate_one(path: str, config: Mapping[str, Any], out: Console) -> int:
    from dataclasses import asdict

    from voxtile.cases.atomic import atomic_text
    from voxtile.commands.crf import search_crf, search_of
    from voxtile.commands.measures import measures_of
    from voxtile.commands.postprocess import FILE, as_typed, background_of, made_with, postprocess_of, stored
    from voxtile.commands.score_table import score_table, write_scores
    from voxtile.commands.scoring import Job, Scorer, mean_dice
    from voxtile.commands.sharing import count_of, score_all
    from voxtile.commands.trained import Trained
    from voxtile.inference.postprocess_search import Search

    trained = Trained.open(path, config["weights"], config["trust"], config["root"], config["paths"]["cache"])
    if config["split"] == "test":
        trained.home.refuse_unfinished("test cases are looked at with the weights that a run ends with")
    trained.warn(out)
    data = trained.manifest["data"]
    measures = measures_of(config, data)
    searching, choosing = asks_for_search(config["crf"]), asks_for_search(config["postprocess"])
    processes = count_of(config)
    refuse_shared_search(config, processes)
    if searching:
        search_of(config["crf"], data["channels"])

    def post_of(predictor: Predictor) -> Postprocess | None:
        return None if choosing else postprocess_of(config["postprocess"], trained.home.path, data, made_with(config, predictor))

    # What can be refused is refused before data are read.
    predictor = trained.predictor({**config, "crf": None} if searching else config)
    post = None if searching else post_of(predictor)
    if choosing:
        background_of(data)
    prepared = prepared_for(trained, config["split"], out)
    cases = cases_of(trained, prepared, config["split"])
    for measure in measures:
        measure.check([case.native for case in cases])
    if config["split"] == "test":
        say_look(trained, config, prepared, trained.home.read("recipe.json")["identity"], out)
    if searching:
        best = search_crf(trained, config, prepared, out)
        config = {**config, "crf": asdict(best) if best else None}
        predictor = trained.predictor(config)
        post = post_of(predictor)
    scorer, jobs = Scorer([(trained, prepared)], config, measures, post), [Job(case) for case in cases]
    title = f"evaluating {config['split']}"
    if not choosing:
        scored = score_all(scorer, jobs, processes, out, title)
    else:
        kept = scorer.kept(jobs, out, title)
        found_best, tried = Search(kept, len(prepared.dataset.classes), background_of(data)).choose(range(len(kept)))
        plain, scored = (scorer.score_kept(kept, [each] * len(kept)) for each in (None, found_best))
        helps = mean_dice(scored, data) > mean_dice(plain, data)
        post = found_best if helps else None
        file = trained.home.path / FILE
        atomic_text(file, stored(as_typed(post, data["classes"]), made_with(config, predictor), tried, data["classes"]))
        how = " for these same cases, so its scores are optimistic"
        say_search(out, mean_dice(plain, data), mean_dice(scored, data), as_typed(post, data["classes"]), file, how)
        scored = scored if helps else plain
    name = folder_name(config["split"], config, predictor, as_typed(post, data["classes"]), [trained])
    folder = trained.home.path / "evaluations" / name
    facts = {"waived": list(data["waived"]), "run": trained.home.read("recipe.json")["identity"], **trained.file}
    facts |= {"changed_modules": changed} if (changed := trained.changed_modules) else {}
    write_scores(folder, score_table(scored, data, measures), config, predictor, as_typed(post, data["classes"]), facts, out)
    return 0


def prepared_for(trained: Trained, split: str, out: Console, surveys: Path | None = None) -> Prepared:
    """The data of a run, which must be those that it was trained on.

    Args:
        trained: the run.
        split: the side that is looked at.
        out: where it prints.
        surveys: a folder to keep what is found out of each file, instead of the cache, by which files are known by their dates.

    Raises:
        DataError: They are other data, or cannot be read.
    """
    from voxtile.commands.assemble import prepare_data
    from voxtile.errors import DataError
    from voxtile.studies.manifest import other_contents

    root = trained.built.dataset.layout.root
    try:
        prepared = prepare_data(trained.built, out, surveys)
    except DataError as error:
        raise DataError(
            f"The data in {root} cannot be scored as those of the run {trained.home.path}: {error} If the run's data lie elsewhere "
            "now, say where with 'root=<folder>'."
        ) from error
    recipe = trained.home.read("recipe.json")
    same = prepared.split.digest == recipe["split"] and prepared.fingerprint == recipe["data"]
    if split == "test":
        same = same and prepared.test_fingerprint == trained.manifest["data"]["test_fingerprint"]
    if not same:
        which = other_contents(trained.manifest["data"], prepared) or "files or split have changed"
        raise DataError(
            f"The data in {root} are not what the run {trained.home.path} was trained on: {which}. Put them back as they were "
            "(manifest.json lists the split), say with 'root=<folder>' where they are, or train a new run."
        )
    return prepared


def cases_of(trained: Trained, prepared: Prepared, split: str) -> tuple[Case, ...]:
    """The cases of a side of a run's split.

    Raises:
        DataError: The split has no cases on that side.
    """
    from voxtile.errors import DataError

    if not (cases := prepared.split.sides[split]):
        raise DataError(f"The split of {trained.home.path} has no {split} cases. Train with a split that has some.")
    return cases


def say_look(trained: Trained, config: Mapping[str, Any], prepared: Prepared, identity: str, out: Console) -> None:
    """Records a look at test cases before they are scored, and says which one it is.

    Raises:
        DataError: A label cannot be read, which is found here for the first time and is to use up no look.
    """
    from voxtile.commands.console import progress
    from voxtile.data.survey import check_labels
    from voxtile.training.ledger import record_look

    with progress(out) as start:
        check_labels(prepared.split.test, start(len(prepared.split.test), "reading test labels"))
    looks = record_look(trained.ledger(config), prepared.test_fingerprint, identity, "evaluate")
    out.print(f"look number {looks} at this test split, recorded")


def say_search(out: Console, plain: float, chosen: float, settings: Mapping[str, Any] | None, file: Path, how: str) -> None:
    """Says what a search of post-processing came to."""
    kept = "nothing helps, which is what is kept" if settings is None else f"kept for 'postprocess=best': {json.dumps(settings)}"
    out.print(
        f"post-processing: Dice {plain:.4f} without, {chosen:.4f} with what was chosen{how}; {kept} in {file}", soft_wrap=True
    )


def procedure_name(config: Mapping[str, Any], crf: Mapping[str, Any] | None, post: object) -> str:
    """What tells evaluations with other procedures at test time apart, "" for the plain one."""
    import hashlib

    from voxtile.commands.results import EVALUATED

    parts = [] if config["window"] is None else ["window" + "x".join(map(str, config["window"]))]
    parts += [f"overlap{config['overlap']:g}"] if config["overlap"] != EVALUATED["overlap"] else []
    parts += [config["precision"]] if config["precision"] != EVALUATED["precision"] else []
    if crf is not None:
        parts.append("crf" + hashlib.sha256(json.dumps(crf).encode()).hexdigest()[:6])
    parts += ["mirrors" + "".join(config["mirrors"])] if config["mirrors"] else []
    parts += [f"{name}{config[name]}" for name, plain in (("rotations", 1), ("halo", 0), ("samples", 0)) if config[name] != plain]
    if post is not None:
        parts.append("postprocess" + hashlib.sha256(json.dumps(post, sort_keys=True).encode()).hexdigest()[:6])
    return "".join(f"-{part}" for part in parts)


def folder_name(split: str, config: Mapping[str, Any], predictor: Predictor, post: object, runs: Sequence[Trained]) -> str:
    """The folder below `evaluations/` for a split scored with a command's weights and settings.

    Args:
        split: "val" or "test".
        config: of the command.
        predictor: with the CRF that was found for it.
        post: settings of the post-processing, None for none.
        runs: those that are scored; where their networks' code has changed, the scores must not take the place of theirs.
    """
    from dataclasses import asdict

    crf = predictor.procedure.crf
    exchanged = "-exchanged" if predictor.procedure.exchanged else ""  # earlier versions left classes where they were
    changed = "-changed" if any(run.changed_modules for run in runs) else ""
    return f"{split}-{config['weights']}{procedure_name(config, asdict(crf) if crf else None, post)}{exchanged}{changed}"
