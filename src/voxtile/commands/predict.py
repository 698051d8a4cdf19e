"""voxtile predict: semantic maps of new files, in their own format and geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.cases.case import Source
    from voxtile.cases.dataset import Dataset
    from voxtile.cases.layouts import CaseFiles
    from voxtile.cases.maps import MapSpec
    from voxtile.commands.results import Results
    from voxtile.commands.trained import Trained
    from voxtile.inference.predictor import Predictor

UNCERTAINTY = "uncertainty"


def main(argv: Sequence[str]) -> int:
    """Composes and predicts; see `voxtile predict --help`."""
    return compose.run("predict", argv, predict)


def predict(config: Mapping[str, Any]) -> int:
    """Applies the run that the configuration names to its input."""
    from voxtile.cases.dataset import SUFFIXES
    from voxtile.commands.console import console, progress
    from voxtile.commands.results import Results
    from voxtile.commands.trained import Trained
    from voxtile.errors import ConfigError, DataError, PartialError, VoxtileError, listed

    out = console()
    for name in ("heatmaps", "uncertainty", "overwrite"):
        if not isinstance(config[name], bool):
            raise ConfigError(f"'{name}={config[name]}' must be true or false.")
    if config["uncertainty"] and not config["samples"]:
        raise ConfigError("'uncertainty=true' needs samples to take the variance of. Type 'samples=40' too.")
    trained = Trained.open(str(config["run"]), config["weights"], config["trust"])
    source, target = Path(str(config["input"])).expanduser(), Path(str(config["output"])).expanduser()
    found, left_out = find_inputs(source, trained.built.dataset)
    if left_out:
        out.print(f"left out, since the run's name patterns for images do not find them: {listed(left_out)}", soft_wrap=True)
    suffixes = SUFFIXES[trained.built.dataset.format]
    if source.is_dir() and not target.is_dir() and (target.exists() or target.name.lower().endswith(suffixes)):
        raise DataError(f"The output {target} is a file, and {source} is a folder, whose maps need one. Name a folder.")
    predictor = trained.predictor(config)
    wanted = Results.of(config, trained.built.dataset)
    failed: list[str] = []
    with progress(out) as start:
        tick = start(len(found), "predicting")
        for files in found:
            try:
                for path in predict_case(trained, predictor, files, source, target, config, wanted, out):
                    out.print(f"{path}", soft_wrap=True)
            except VoxtileError as error:
                if len(found) == 1:
                    raise
                failed.append(files.id)
                out.print(f"skipped {files.id}: {error}", style="red", soft_wrap=True)
            tick()
    if len(failed) == len(found) > 1:
        raise DataError(f"None of the {len(found)} inputs in {source} could be predicted; each line above says why.")
    if failed:
        raise PartialError(
            f"{len(failed)} of {len(found)} inputs could not be predicted: {listed(failed)}. The others are in {target}."
        )
    return 0


def find_inputs(source: Path, dataset: Dataset) -> tuple[list[CaseFiles], list[str]]:
    """The cases that a file or folder holds.

    A folder is searched with the run's own name patterns, as a data set of its own or as a part of one; where they find nothing,
    for files of the run's format.

    Returns:
        The cases, and the names of files of the format in this folder that the patterns have left out.

    Raises:
        DataError: There is nothing to predict.
    """
    from voxtile.cases.dataset import SUFFIXES
    from voxtile.cases.layouts import CaseFiles, FolderLayout
    from voxtile.cases.pictures import natural_key
    from voxtile.errors import DataError, listed

    suffixes = SUFFIXES[dataset.format]
    layout = dataset.layout
    if source.is_file():
        return [CaseFiles(_stem(source, suffixes), (source,))], []
    if not source.is_dir():
        raise DataError(f"The input {source} does not exist. Name a file or a folder with 'input=…'.")
    paths = sorted(
        (path for path in source.iterdir() if path.name.lower().endswith(suffixes)), key=lambda path: natural_key(path.name)
    )
    if isinstance(layout, FolderLayout):
        for root in (source, source.parent):
            cases = [files for files in layout.images_below(root) if all(path.is_relative_to(source) for path in files.images)]
            if cases:
                used = {path for files in cases for path in files.images}
                return cases, [path.name for path in paths if path not in used]
    if not paths:
        raise DataError(f"{source} holds no file that ends in {listed(suffixes)}, the format of the run ('{dataset.format}').")
    found = [CaseFiles(_stem(path, suffixes), (path,)) for path in paths]
    twice = [a.id for a, b in pairwise(sorted(found, key=lambda files: files.id)) if a.id == b.id]
    if twice:
        raise DataError(
            f"{source} holds several files called {listed(twice)} with different endings; their maps would have one name."
        )
    return found, []


def _stem(path: Path, suffixes: Sequence[str]) -> str:
    ending = max((s for s in suffixes if path.name.lower().endswith(s)), key=len, default=path.suffix)
    return path.name[: len(path.name) - len(ending)] if ending else path.name


def predict_case(
    trained: Trained, predictor: Predictor, files: CaseFiles, source: Path, target: Path, config: Mapping[str, Any],
    wanted: Results, out: Console,
) -> list[Path]:  # fmt: skip
    """Writes one case's map, its heatmaps where they are asked for, and what is wanted to be made of them; returns the paths.

    Raises:
        DataError: The file cannot be read, has not the run's channels, or a result cannot be written.
    """
    from voxtile import __version__
    from voxtile.cases.cache import content_hash
    from voxtile.cases.maps import MapSpec
    from voxtile.commands.results import confusion_of, said_of
    from voxtile.data.survey import survey
    from voxtile.errors import DataError, counted
    from voxtile.training.ledger import record_look

    data = trained.manifest["data"]
    identity = trained.home.read("recipe.json")["identity"]
    case = trained.built.dataset.open(replace(files, labels=()), grouped=False)
    if len(case.channels) != len(data["channels"]):
        raise DataError(
            f"{case.image.path} has {counted(len(case.channels), 'channel')} ({', '.join(case.channels)}), and the run "
            f"{trained.home.path} was trained on {len(data['channels'])} ({', '.join(data['channels'])}). Expected the same."
        )
    places = wanted.check(case)
    found = survey(case, len(data["classes"]), label=False)
    known_by = {found.image_digest}
    if trained.built.dataset.format == "picture":  # slices of a stack are told by their files
        known_by |= {content_hash(path) for path in files.images}
    if known_by & set(data["test_files"]):
        if not trained.looks:  # one command is one look
            trained.looks.append(record_look(trained.ledger(config), data["test_fingerprint"], identity, "predict"))
        out.print(
            f"{files.id} is a test case of this run, or a part of one: look number {trained.looks[0]} at this test split, recorded"
        )
    intensity = trained.intensity or trained.built.normalisation.of_case(found.sample)
    weights = content_hash(trained.home.weights / f"{config['weights']}.safetensors")
    made = f"{identity} {weights} {predictor.size} {config['overlap']} {config['precision']} {__version__} {found.image_digest} "
    made += str(predictor.procedure)
    tags = (("software", f"voxtile {__version__}"), ("run", identity), ("weights", config["weights"]))
    spec = MapSpec(tuple(data["classes"]), False, trained.built.dataset.colors, tags, made)
    specs = [spec]
    if config["heatmaps"]:
        specs.append(replace(spec, heatmap=True))
    if config["uncertainty"]:
        specs.append(replace(spec, classes=(UNCERTAINTY,), heatmap=True))
    paths = [_output(case.image, files.id, s, source, target) for s in specs]
    for path in [*paths, *wanted.paths(paths[0]).values()]:
        if path.resolve() in {each.resolve() for each in (*case.image.paths, *wanted.inputs)} or path.resolve() == source.resolve():
            raise DataError(f"The map {path} would overwrite its own input. Name another output.")
        if path.exists() and not config["overwrite"]:
            raise DataError(f"{path} exists already. Name another output, or type 'overwrite=true' to have it replaced.")
    stale = _output(case.image, files.id, replace(spec, heatmap=True), source, target)
    if not config["heatmaps"] and stale.exists():
        out.print(f"{stale} is of an earlier command; this one writes no heatmaps", soft_wrap=True)
    with ExitStack() as stack:
        writers = [stack.enter_context(case.open_map(path, s)) for path, s in zip(paths, specs, strict=True)]
        # What a killed command of the same kind has brought to the disk is not computed again.
        done = set.intersection(*(set(writer.finished) for writer in writers))
        for band in predictor.bands(case, intensity, done):
            writers[0].write(band.window, band.classes())
            if config["heatmaps"]:
                writers[1].write(band.window, band.probabilities.numpy())
            if band.variance is not None and config["uncertainty"]:
                writers[-1].write(band.window, band.variance[None].numpy())
        made_of = [writer.close() for writer in writers]
    confusion = None
    if wanted.areas:
        confusion = confusion_of(trained, config, predictor)
        out.print(said_of(confusion), soft_wrap=True)
    return made_of + wanted.write(case, paths[0], paths[1] if config["heatmaps"] else None, places, confusion)


def _output(image: Source, name: str, spec: MapSpec, source: Path, target: Path) -> Path:
    """Where a map goes: below the output folder, or at the output itself where it is a file name for a single input file.

    Raises:
        DataError: The output's ending is not that of the input's format.
    """
    from voxtile.errors import DataError

    ending_of_name = f"_{UNCERTAINTY}" if spec.classes == (UNCERTAINTY,) else "_heatmap" if spec.heatmap else ""
    if not (source.is_file() and target.suffix and not target.is_dir()):
        return target / image.map_name(name + ending_of_name, spec)
    ending = image.map_name("", spec)
    stem = _stem(target, (image.map_name("", replace(spec, heatmap=False)),))
    if not spec.heatmap and not target.name.lower().endswith(ending):
        raise DataError(
            f"The output {target} ends in '{target.suffix}', and a map of {source} is a '{ending}' file. Type that ending."
        )
    return target.with_name(image.map_name(f"{stem}{ending_of_name}", spec)) if spec.heatmap else target
