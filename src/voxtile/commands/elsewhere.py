"""The labelled cases of another data set, seen as a run sees its own: what `voxtile evaluate … dataset=<name>` scores."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from voxtile.commands import compose
from voxtile.commands.build import parts
from voxtile.commands.console import progress
from voxtile.errors import AbsentError, ConfigError, DataError, counted, listed

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.cases.dataset import Dataset
    from voxtile.commands.trained import Trained
    from voxtile.data.leakage import Leak
    from voxtile.data.prepared import Prepared

# Of the run, whatever the other data set's file says: what the network has learned with, and what scores are about.
OWN = ("window", "axis", "neighbours", "spacing", "background", "regions", "symmetry")


def side_of(config: Mapping[str, Any]) -> str:
    """The side of the split whose cases `voxtile evaluate` scores: those of another data set are on the test side."""
    return "test" if config["dataset"] else str(config["split"])


def judged(run: Trained, config: Mapping[str, Any], out: Console) -> Prepared:
    """The data whose cases `voxtile evaluate` scores: the run's own, or those of another data set, which `dataset` describes.

    Raises:
        VoxtileError: See `prepared_for` and `prepared_on`.
    """
    from voxtile.commands.trained import prepared_for

    return prepared_on(run, config["dataset"], out) if config["dataset"] else prepared_for(run, config["split"], out)


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings below `data` of the data set that a command's `dataset` names, as a training would take them.

    Args:
        config: of the command: its `root`, where there is one, is the folder in which these data lie.

    Raises:
        ConfigError: There is no such data set, or its file is wrong.
        DataError: The folder does not exist.
    """
    option, cache = config["dataset"], config["paths"]["cache"]
    if not isinstance(option, str):
        raise ConfigError(f"'dataset={option}' names no data set. Type the name of one, as in 'data=<name>' of a training.")
    words = [f"data={option}", *([] if cache is None else [f"paths.cache={compose.as_typed(cache)}"])]
    try:
        found: dict[str, Any] = compose.beside("train", words)["data"]
    except (HydraException, OmegaConfBaseException) as error:
        from voxtile.commands.explain import explain

        try:
            explain(error, "train", [compose.conf_dir(), *compose.further_folders()])
        except ConfigError as told:
            raise ConfigError(str(told).replace(f"'data={option}'", f"'dataset={option}'")) from error
        raise
    if missing := [key for key in ("name", "format", "layout", "labels") if not found.get(key)]:
        raise ConfigError(f"The data set '{option}' says no '{missing[0]}'. Write it under 'data:' in its file.")
    if (root := config["root"]) is not None:
        if not Path(root).expanduser().is_dir():
            raise DataError(f"The folder 'root={root}' does not exist. Name the one in which the data set '{option}' lies.")
        found["layout"]["root"] = str(root)
    return found


def prepared_on(run: Trained, data: Mapping[str, Any], out: Console) -> Prepared:
    """All cases of another data set, on the test side: no weights are chosen by them, and each scoring of them is a look.

    Intensities are brought to the scale of the run, volumes onto its grid, scenes to its ground resolution where it has one.

    Args:
        run: the run.
        data: settings, see `described`.
        out: where it prints.

    Raises:
        ConfigError: The data set has a class that the run has not, or its settings are wrong.
        DataError: A file cannot be read or has not the run's channels; or the run was trained on a case.
    """
    from voxtile.commands.parents import leaks_of, learned_by
    from voxtile.data.leakage import clauses, settle, to_type
    from voxtile.data.places import by_place
    from voxtile.data.prepared import Prepared
    from voxtile.data.splits import Split
    from voxtile.data.survey import survey_all

    dataset = parts(_as_seen(run, data), trained=True, classes=_classes(run, data)).dataset
    try:
        there = dataset.cases()
    except AbsentError as error:
        raise DataError(f"{error.found} Correct its place in the data set's file, or name it with 'root=<folder>'.") from error
    cases = [run.ordered(case) for case in by_place(there, dataset.grouping.place)]
    cache = Path(run.built.config["paths"]["cache"]).expanduser()
    with progress(out) as start:
        surveys = survey_all(cases, len(dataset.classes), cache, label=False, tick=start(len(cases), "reading data"))
    images = {name: found.image_digest for name, found in surveys.items()}
    known_again = _known_again(dataset, cache)
    prepared = Prepared(
        dataset, Split((), (), tuple(cases)), cache, surveys=surveys, images=images,
        test_files=tuple(sorted(set().union(*known_again.values()))), waived=(), normalisation=run.built.normalisation,
        intensity=run.intensity,
    )  # fmt: skip

    lists = run.home.path.parent / "check" / dataset.name

    def told(left: Sequence[Leak], waiver: str) -> str:
        last = {leak.case: leak for leak in left}  # one for each case says enough
        names = to_type(last, lists)
        return (
            f"{run.home.path} was trained on what of '{dataset.name}' is to judge it, {counted(len(last), 'case')}: "
            f"{listed(clauses(last.values()), 4)}. Leave them out in the data set's file, 'exclude: {names}', or accept them there "
            f"with 'waive: {names}', which the scores will then say."
        )

    leaks = [replace(leak, other_side="training") for leak in leaks_of(learned_by(run.home), prepared)]
    already = {leak.case for leak in leaks}
    leaks += [leak for leak in _parts(run, known_again, cache, out) if leak.case not in already]
    waived = settle(leaks, data.get("waive") or (), told, lists=lists)
    for remark in _remarks(run, prepared):
        out.print(remark, style="yellow", soft_wrap=True)
    return replace(prepared, waived=tuple(waived))


def _remarks(run: Trained, prepared: Prepared) -> Iterator[str]:
    """What is odd about judging a run on other data without being wrong: pixels of other sizes, cases that chose its weights."""
    from voxtile.commands.parents import learned_by
    from voxtile.data.pixel_sizes import unlike

    data = run.manifest["data"]
    sizes, cases = data.get("pixel_sizes"), prepared.split.test
    if strange := {case.id: sentence for case in cases if (sentence := unlike(sizes, case, run.built.windowing))}:
        name, sentence = next(iter(strange.items()))
        more = f" (and {counted(len(strange) - 1, 'case')} like it)" if len(strange) > 1 else ""
        yield f"{name}{more}: {sentence}"
    known = data.get("contents", {}).values()  # an older run does not say
    looked_at = {each["image"] for each in known} - {each.image for each in learned_by(run.home)}
    if chosen := [name for name, digest in prepared.images.items() if digest in looked_at]:
        yield f"{listed(chosen)} chose the weights of {run.home.path}: scores may be too good"


def _known_again(dataset: Dataset, cache: Path, names: Collection[str] | None = None) -> dict[str, set[str]]:
    """Digests by which the files of cases are known again, by id: of the whole image, and of pictures those of each file.

    Args:
        dataset: whose cases they are.
        cache: where surveys are kept.
        names: of the cases; all where None.

    Raises:
        DataError: The data are not there, or cannot be read.
    """
    from voxtile.cases.cache import content_hash
    from voxtile.data.survey import survey_all

    found = [each for each in dataset.layout.find() if names is None or each.id in names]
    whole = [dataset.open(files, grouped=False, in_area=False) for files in found if files.id not in dataset.exclude]
    surveys = survey_all(whole, len(dataset.classes), cache, label=False)
    pictures = dataset.format == "picture"
    return {
        case.id: {surveys[case.id].image_digest, *(content_hash(path, cache) for path in case.image.paths if pictures)}
        for case in whole
    }


def _parts(run: Trained, known: Mapping[str, set[str]], cache: Path, out: Console) -> list[Leak]:
    """Cases of whose files the run was trained on other parts: of these, its manifest knows their own pixels only.

    Args:
        run: the run.
        known: of the cases, see `_known_again`.
        cache: where surveys are kept.
        out: where it prints.
    """
    from voxtile.commands.parents import learned_by
    from voxtile.data.leakage import Leak

    own, learned = run.built.dataset, learned_by(run.home)
    try:
        trained_on = _known_again(own, cache, {each.file for each in learned if each.data == own.name})
    except DataError:
        if own.scene.area is not None or own.format == "picture" or any(each.region for each in learned):
            said = f"the data of {run.home.path} are not there: whether these cases hold parts that it saw cannot be told"
            out.print(said, style="yellow", soft_wrap=True)
        return []
    same = {name: tuple(other for other, its in trained_on.items() if its & mine) for name, mine in known.items()}
    return [Leak(name, "test", others, "training", "is of the same files as") for name, others in same.items() if others]


def _as_seen(run: Trained, data: Mapping[str, Any]) -> dict[str, Any]:
    """The run's configuration with another data set."""
    own = run.built.config["data"]
    scene = dict(data.get("scene") or {})
    if resolution := (own.get("scene") or {}).get("resolution"):
        scene["resolution"] = resolution
    seen = {name: own.get(name) for name in OWN} | {"scene": scene or None}
    if data.get("channels") is None:
        seen["channels"] = own.get("channels")
    return {**run.built.config, "data": {**data, **seen}}


def _classes(run: Trained, data: Mapping[str, Any]) -> list[str]:
    """The run's classes, of which those of the data set are some.

    Raises:
        ConfigError: One is not.
    """
    classes: list[str] = run.manifest["data"]["classes"]
    labels = data["labels"]
    if isinstance(labels, Mapping):
        strange = [name for name in dict.fromkeys(labels.values()) if name not in (*classes, "ignore")]
        if strange:
            raise ConfigError(
                f"'data.labels' of '{data['name']}' holds {listed(strange)}, and the classes of {run.home.path} are "
                f"{listed(classes, 30)}. Give its stored values the names of these classes, or 'ignore', in a file of its own for "
                "this evaluation."
            )
    return classes
