"""The labelled cases of another data set, seen as a run sees its own: what `voxtile evaluate … dataset=<name>` scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from voxtile.commands import compose
from voxtile.commands.build import parts
from voxtile.commands.console import progress
from voxtile.errors import AbsentError, ConfigError, DataError, counted, listed, typed

if TYPE_CHECKING:
    from rich.console import Console

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
    from voxtile.data.leakage import settle
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
    prepared = Prepared(
        dataset, Split((), (), tuple(cases)), cache, surveys=surveys, images=images, test_files=(), waived=(),
        normalisation=run.built.normalisation, intensity=run.intensity,
    )  # fmt: skip

    def told(left: Sequence[Leak], waiver: str) -> str:
        last = {leak.case: leak for leak in left}  # one for each case says enough
        return (
            f"{run.home.path} was trained on what of '{dataset.name}' is to judge it, {counted(len(last), 'case')}: "
            f"{listed(last.values(), 4)}. Leave them out in the data set's file, 'exclude: {typed(last, 8)}', or accept them there "
            f"with 'waive: {typed(last, 8)}', which the scores will then say."
        )

    leaks = [replace(leak, other_side="training") for leak in leaks_of(learned_by(run.home), prepared)]
    leaks += _whole_scenes(run, prepared, out)
    waived = settle(leaks, data.get("waive") or (), told)
    known = run.manifest["data"].get("contents", {}).values()  # an older run does not say
    looked_at = {each["image"] for each in known} - {each.image for each in learned_by(run.home)}
    if chosen := [name for name, digest in images.items() if digest in looked_at]:
        said = f"{listed(chosen)} chose the weights of {run.home.path}: scores may be too good"
        out.print(said, style="yellow", soft_wrap=True)
    return replace(prepared, waived=tuple(waived))


def _whole_scenes(run: Trained, prepared: Prepared, out: Console) -> list[Leak]:
    """Cases that are copies of what the run was trained on blocks of: of a block, the manifest knows its own pixels only."""
    from voxtile.commands.parents import learned_by
    from voxtile.data.leakage import Leak
    from voxtile.data.survey import survey_all

    names = {each.file for each in learned_by(run.home) if each.region is not None}
    if not names:
        return []
    own = run.built.dataset
    try:
        cut = [own.open(files) for files in own.layout.find() if files.id in names]
    except DataError:
        said = (
            f"the data of {run.home.path} are not there, so it cannot be told whether these cases are scenes that it saw blocks of"
        )
        out.print(said, style="yellow", soft_wrap=True)
        return []
    found = survey_all(cut, len(own.classes), prepared.cache, label=False)
    seen = {each.image_digest: name for name, each in found.items()}
    return [
        Leak(name, "test", (seen[digest],), "training", "is the scene of which blocks were learned")
        for name, digest in prepared.images.items()
        if digest in seen
    ]


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
