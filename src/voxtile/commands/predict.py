"""voxtile predict: semantic maps of new files, in their own format and geometry."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from voxtile.commands import compose

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

    from voxtile.cases.case import Case
    from voxtile.cases.layouts import CaseFiles
    from voxtile.cases.maps import MapSpec
    from voxtile.commands.ensemble import Ensemble
    from voxtile.commands.results import Results
    from voxtile.data.survey import Survey
    from voxtile.inference.areas import Place
    from voxtile.inference.postprocess import Postprocess
    from voxtile.inference.predictor import Predictor

HEATMAPS = {False: None, True: "float32", "float16": "float16", "uint8": "uint8"}
Start = Callable[[int], Callable[[], object]]  # begins a progress bar of so many steps, and returns what advances it
STRANGE = 0.99  # share of a channel beyond what training images hold; of a volume, most may be air, which was not measured
SMALL = 64  # windows up to which nothing is said of memory and disk
OTHER = "was made of another image, by other runs or weights, or with other settings"
STAMP = "stamp"  # the tag of a map with a digest of all that it was made from but the image's pixels


def main(argv: Sequence[str]) -> int:
    """Composes and predicts; see `voxtile predict --help`."""
    return compose.run("predict", argv, predict)


def predict(config: Mapping[str, Any]) -> int:
    """Applies the run, or the runs, that the configuration names to its input."""
    from voxtile.cases.address import path_of
    from voxtile.cases.dataset import SUFFIXES
    from voxtile.cases.maps import BusyError
    from voxtile.commands.console import console, progress
    from voxtile.commands.ensemble import Ensemble
    from voxtile.commands.inputs import channels_as_cases, find_inputs
    from voxtile.commands.postprocess import made_with, postprocess_of
    from voxtile.commands.results import Results, said_of
    from voxtile.errors import DataError, PartialError, VoxtileError, listed
    from voxtile.inference.areas import OffPlacesError

    out = console()
    _check(config)
    runs = Ensemble.open(config, out)
    dataset = runs.first.built.dataset
    if config["heatmaps"] in ("float16", "uint8") and dataset.format != "geotiff":
        raise DataError(f"'heatmaps={config['heatmaps']}' is for scenes; type 'heatmaps=true' for format '{dataset.format}'.")
    source, target = path_of(str(config["input"])), Path(str(config["output"])).expanduser()
    channels = len(runs.first.manifest["data"]["channels"])
    found, left_out = find_inputs(source, dataset, channels)
    if left_out:
        out.print(f"left out, since they are not what the run's data set looks for: {listed(left_out)}", soft_wrap=True)
    if twice := channels_as_cases(found, channels):
        what = f"{listed(twice)} are predicted as cases of their own; in nnU-Net's folders such names are channels of one case"
        out.print(f"{what}, and this run has one channel", style="yellow", soft_wrap=True)
    folder = str(config["output"]).endswith("/")
    named = target.name.lower().endswith(SUFFIXES[dataset.format]) and not folder
    if source.is_dir() and not target.is_dir() and (target.exists() or named):
        raise DataError(f"The output {target} is a file, and {source} is a folder, whose maps need one. Name a folder.")
    predictor = runs.predictor(config)
    data = runs.first.manifest["data"]
    post = postprocess_of(config["postprocess"], runs.home(config), data, made_with(config, predictor))
    if post is None and config["postprocess"] == "best":
        out.print("the search for post-processing found nothing that helps: maps are as they are predicted", soft_wrap=True)
    if post is not None and config["heatmaps"]:
        out.print("heatmaps hold the networks' probabilities, which post-processing does not change", soft_wrap=True)
    work = Work(runs, predictor, post, Results.of(config, dataset), source, target, folder, config, out)
    work.check_names(found)
    for note in work.results.interest.notes if work.results.interest else ():
        out.print(note, style="yellow", soft_wrap=True)
    if work.results.areas:
        out.print(said_of(work.confusion, runs, config), soft_wrap=True)
    failed, elsewhere, off = [], [], []
    with progress(out) as start:
        tick = start(len(found), "predicting")
        for files in found:
            try:
                with _advised(files):
                    made = work.predict(files, partial(start, title=files.id, noun="band"))
                for path in made:
                    out.print(f"{path}", soft_wrap=True)
            except BusyError:
                if not config["share"]:
                    raise
                elsewhere.append(files.id)
            except OffPlacesError:
                if len(found) == 1:
                    raise
                off.append(files.id)
            except VoxtileError as error:
                if len(found) == 1:
                    raise
                failed.append(files.id)
                out.print(f"skipped {files.id}: {error}", style="red", soft_wrap=True)
            tick()
    if elsewhere:
        out.print(f"left to other processes, which are making these maps: {listed(elsewhere)}", soft_wrap=True)
    if off:
        out.print(f"left out, since no polygon of {work.results.places} overlaps them: {listed(off)}", soft_wrap=True)
    if len(off) == len(found):
        raise DataError(
            f"No polygon of {work.results.places} overlaps any of the {len(found)} inputs in {source}. Check that they belong "
            "together, or type 'areas=true' for the areas of whole maps."
        )
    if len(failed) + len(off) == len(found) > 1:
        raise DataError(f"None of the {len(found)} inputs in {source} could be predicted; each line above says why.")
    if failed:
        raise PartialError(
            f"{len(failed)} of {len(found)} inputs could not be predicted: {listed(failed)}. The others are in {target}."
        )
    return 0


@contextmanager
def _advised(files: CaseFiles) -> Iterator[None]:
    """Says of a damaged file what this command can do about it, and makes what the system refuses an error of one input.

    Raises:
        DataError: A file is damaged, cannot be read or written, or has a name that cannot be worked with.
    """
    from voxtile.errors import DamagedError, DataError, listed, reason

    try:
        yield
    except DamagedError as error:
        raise DataError(
            f"{error.found} The file is probably cut off or damaged there; fetch it again, or type 'damaged=nodata' for a map that "
            "holds no data where the file cannot be read."
        ) from error
    except UnicodeError as error:
        found = listed(files.found)
        if isinstance(error, UnicodeDecodeError):
            raise DataError(
                f"{found} holds text that is not UTF-8: {reason(error)}. Write the file anew with such text."
            ) from error
        raise DataError(
            f"The name of {found}, or that of its map, is no UTF-8 text, and the library of its format opens no others. Rename the "
            "file, or the folder that it lies in."
        ) from error
    except OSError as error:
        if not isinstance(error.filename, str | os.PathLike):  # not about a file
            raise
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(
                f"{error.filename} is a longer name than the file system takes. Give {listed(files.found)} a shorter one: what is "
                "made of it has some letters more."
            ) from error
        raise DataError(
            f"{error.filename} cannot be read or written: {error.strerror}. Expected a folder that this user may write to, with "
            "room; name one for maps with 'output=…', for the ledger of looks at test splits with 'paths.runs=…', and for decoded "
            "files with 'paths.cache=…'."
        ) from error


def _check(config: Mapping[str, Any]) -> None:
    """Refuses settings of this command that are out of range."""
    from voxtile.errors import ConfigError

    for name in ("uncertainty", "overwrite", "share"):
        if not isinstance(config[name], bool):
            raise ConfigError(f"'{name}={config[name]}' must be true or false.")
    if not isinstance(config["heatmaps"], bool | str) or config["heatmaps"] not in HEATMAPS:
        raise ConfigError(f"'heatmaps={config['heatmaps']}' is unknown; choose from false, true, float16, uint8.")
    if config["damaged"] not in ("error", "nodata"):
        raise ConfigError(f"'damaged={config['damaged']}' is unknown; choose from error, nodata.")
    if config["share"] and config["overwrite"]:
        raise ConfigError("'share=true' passes over maps that exist, and 'overwrite=true' replaces them. Leave one of them out.")
    if config["uncertainty"] and not config["samples"]:
        raise ConfigError("'uncertainty=true' needs samples to take the variance of. Type 'samples=40' too.")


@dataclass(frozen=True)
class Work:
    """What one command does with each of its inputs.

    Attributes:
        runs: the run or runs.
        predictor: with their networks.
        post: what is done to a map as a whole, or None.
        results: what is wanted to be made of finished maps.
        source: the command's input.
        target: the command's output.
        folder: whether that is a folder, whatever its name.
        config: its settings.
        out: where it prints.
    """

    runs: Ensemble
    predictor: Predictor
    post: Postprocess | None
    results: Results
    source: Path
    target: Path
    folder: bool
    config: Mapping[str, Any]
    out: Console

    @cached_property
    def confusion(self) -> dict[str, Any] | None:
        """The confusion matrix that areas are adjusted by, read once for all cases; None where there is none or none is needed."""
        from voxtile.commands.results import confusion_of

        return confusion_of(self.runs, self.config, self.predictor, self.post) if self.results.areas else None

    def check_names(self, found: Sequence[CaseFiles]) -> None:
        """Refuses inputs of which one's map would have the name of another one's heatmap or result.

        Raises:
            DataError: There are two.
        """
        from voxtile.commands.inputs import UNCERTAINTY
        from voxtile.errors import DataError

        by_id = {files.id: files for files in found}
        for files in found:
            for kind in ("heatmap", UNCERTAINTY, "instances", "quicklook"):
                other = by_id.get(f"{files.id}_{kind}")
                if other and (both := self._written(files) & self._written(other)):
                    raise DataError(
                        f"{min(both)} would be the map of '{other.id}' and of '{files.id}' the {kind}. Rename one of the inputs, "
                        "or predict them one by one into folders of their own."
                    )

    def _written(self, files: CaseFiles) -> set[Path]:
        """The maps and results of an input; none of one that cannot be opened, which is told when its turn comes."""
        from voxtile.errors import VoxtileError

        try:
            case = self._open(files)
            paths = self._outputs(case, files.id, self._specs(case))
        except (VoxtileError, OSError, UnicodeError):
            return set()
        return {*paths, *self.results.paths(paths[0]).values()}

    def predict(self, files: CaseFiles, start: Start) -> list[Path]:
        """Writes one case's map, its heatmaps where they are asked for, and what is wanted to be made of them.

        Args:
            files: the case's.
            start: begins a progress bar.

        Returns:
            The paths; none where the maps exist and work is shared.

        Raises:
            DataError: The file cannot be read, has not the runs' channels, or a result cannot be written.
            BusyError: Another process is writing the map.
        """
        from voxtile.cases.damaged import LEAST, Tolerant
        from voxtile.cases.raster import block_cache
        from voxtile.data.survey import survey
        from voxtile.errors import counted
        from voxtile.inference.postprocess import check_size

        case = self._open(files)
        if self.config["damaged"] == "nodata" and case.image.native is case.image:  # what is resampled is decoded as a whole
            case = replace(case, image=Tolerant(case.image))
        unread = self._specs(case)  # what can be said without the pixels: names, and stamps
        paths = self._paths(case, files.id, unread)
        if self.config["share"] and self._is_left(paths, unread):
            return []
        if self.post is not None:
            check_size(case.native)
        places = self.results.check(case.native)
        on_cpu = self.predictor.judge.device.type == "cpu"  # where the networks need the processors
        with block_cache(1 if on_cpu else min(16, os.cpu_count() or 1)):
            found = survey(case, len(self.runs.first.built.dataset.classes), label=False)
            specs = self._specs(case, found.image_digest)
            if self.config["share"] and paths[0].exists() and not self._same(paths[0], specs[0]):
                self._pass_over(paths[0])
                return []
            kept = self._kept(paths, specs)
            self._warn_of_strange(case, found)
            self._record_look(files, found)
            if kept and self.config["share"]:  # another process has made them since this one looked
                return self._results(case, paths, places)
            if kept:
                said = "is finished and was made by the same runs with the same settings: it is kept"
                self.out.print(f"{paths[0]} {said}", soft_wrap=True)
                return self._results(case, paths, places)
            if not found.valid:
                said = "no pixel that was sampled holds data: they are nodata, masked or NaN, and so will be the map where all are"
                self.out.print(f"{files.id}: {said}", style="yellow", soft_wrap=True)
            self._announce(case, found, specs, paths)
            made = self._write_maps(case, found, specs, paths, start)
        if isinstance(case.image, Tolerant) and case.image.lost:
            (first, why), number = min(case.image.lost.items()), len(case.image.lost)
            self.out.print(
                f"{files.id}: {counted(number, 'square')} of {LEAST}x{LEAST} pixels could not be read and are nodata, the "
                f"first at x {first.x}, y {first.y}: {why}", style="yellow", soft_wrap=True,
            )  # fmt: skip
        return made + self._results(case, paths, places) if made else []

    def _open(self, files: CaseFiles, in_area: bool = False) -> Case:
        """The case, or its part in the data set's area of interest.

        Its channels are those that the runs were trained on: found by name, or by their order where names are others.
        """
        from voxtile.errors import DataError, counted, listed

        first = self.runs.first
        case: Case = first.built.dataset.open(replace(files, labels=()), grouped=False, in_area=in_area)
        channels = first.manifest["data"]["channels"]
        if len(case.channels) != len(channels):
            raise DataError(
                f"{case.image.path} has {counted(len(case.channels), 'channel')} ({', '.join(case.channels)}), and the run "
                f"{first.home.path} was trained on {len(channels)} ({', '.join(channels)}). Expected the same: name an "
                "image like those of the training, no map or heatmap, with all its channels."
            )
        if sorted(case.channels) == sorted(channels):
            return case.with_channels(channels)
        moved = [name for place, name in enumerate(channels) if name in case.channels and case.channels[place] != name]
        if moved:
            raise DataError(
                f"{case.image.path} has the channels {', '.join(case.channels)}, and the run {first.home.path} was trained on "
                f"{', '.join(channels)}: {listed(moved)} stands in another place, so neither names nor their order say which "
                "is which. Expected the same names, in any order; or the same order, under other names."
            )
        return case

    def _warn_of_strange(self, case: Case, found: Survey) -> None:
        """Says where an image can hardly be one like those of the training; its map would look like any other."""
        from voxtile.cases.provenance import tags_of
        from voxtile.commands.results import MADE_FROM

        first, said = self.runs.first, ""
        if MADE_FROM in tags_of(case.image.path, first.built.dataset.format):
            said = "it is a map that voxtile has made"
        elif (known := first.intensity) is not None:
            for name, values, low, high in zip(case.channels, found.sample, *known.bounds, strict=True):
                outside = float(((values < low) | (values > high)).mean()) if values.size else 0.0
                if outside > STRANGE:
                    own, theirs = (f"{a:.4g} to {b:.4g}" for a, b in ((values.min(), values.max()), (low, high)))
                    said = (
                        f"{outside:.0%} of channel '{name}', which holds {own}, lie outside the {theirs} of the training images "
                        f"of {first.home.path}"
                    )
                    break
        if said:
            said = f"{case.image.path}: {said}, so this map may mean nothing. See whether the image has their kind, unit and scale."
            self.out.print(said, style="yellow", soft_wrap=True)

    def _key(self, case: Case, image_digest: str) -> str:
        """What the maps are made from: unfinished ones of another key are not continued."""
        from voxtile import __version__
        from voxtile.inference.predictor import VERSION

        settings = f"{VERSION} {self.predictor.size} {self.config['overlap']} {self.config['precision']} {self.config['damaged']}"
        weights = self.runs.weights(self.config["weights"])
        # The digest is of the pixels alone, and of a very large scene of a part of them.
        files = [(path.stat().st_size, path.stat().st_mtime_ns) for path in case.image.files]
        image = f"{image_digest} {files} {case.image.working.crs} {case.image.working.affine}"
        post = "" if self.post is None else f" {self.post}"
        return f"{self.runs.identity} {weights} {settings} {__version__} {image} {self.predictor.procedure}{post}"

    def _specs(self, case: Case, image_digest: str = "") -> list[MapSpec]:
        """The maps that are written: the semantic one, and heatmaps and uncertainty where they are asked for.

        Args:
            case: the case.
            image_digest: of its survey; without it, the specs hold what names and stamps depend on, and are not to be written.
        """
        from voxtile import __version__
        from voxtile.cases.maps import MapSpec
        from voxtile.commands.inputs import UNCERTAINTY
        from voxtile.commands.postprocess import as_typed
        from voxtile.commands.results import MADE_FROM

        dataset, stored = self.runs.first.built.dataset, HEATMAPS[self.config["heatmaps"]]
        said = (("software", f"voxtile {__version__}"), ("run", self.runs.identity), ("weights", self.config["weights"]))
        key = self._key(case, image_digest)

        def tags(further: str = "") -> tuple[tuple[str, str], ...]:
            digests = {MADE_FROM: key, STAMP: self._key(case, "")}
            made = ((name, hashlib.sha256(each.encode()).hexdigest()[:16]) for name, each in digests.items())
            return (*said, *((name, f"{digest}{further}") for name, digest in made))

        specs = [MapSpec(dataset.classes, colors=dataset.colors, tags=tags(), key=key, background=dataset.background)]
        if stored:
            specs.append(replace(specs[0], heatmap=True, stored=stored, tags=tags(f" {stored}")))
        if self.config["uncertainty"]:
            specs.append(replace(specs[0], classes=(UNCERTAINTY,), heatmap=True))
        if self.post is not None:  # of the classes only
            done = ("postprocess", json.dumps(as_typed(self.post, dataset.classes), sort_keys=True))
            specs[0] = replace(specs[0], tags=(*specs[0].tags, done))
        return specs

    def _paths(self, case: Case, name: str, specs: Sequence[MapSpec]) -> list[Path]:
        """Where the maps go.

        Raises:
            DataError: A map would take the place of an input, or of another file that is not to be replaced.
        """
        from voxtile.errors import DataError

        paths = self._outputs(case, name, specs)
        inputs = {each.resolve() for each in (*case.image.files, *self.results.inputs)}
        for path in [*paths, *self.results.paths(paths[0]).values()]:
            if path.resolve() in inputs or path.resolve() == self.source.resolve():
                raise DataError(f"The map {path} would overwrite its own input. Name another output.")
        if not (self.config["overwrite"] or self.config["share"]):
            self._check_free(paths)
        if not self.config["heatmaps"] and (stale := self._beside(case, name, specs[0])[0]).exists():
            self.out.print(f"{stale} is of an earlier command; this one writes no heatmaps", soft_wrap=True)
        return paths

    def _outputs(self, case: Case, name: str, specs: Sequence[MapSpec]) -> list[Path]:
        from voxtile.commands.inputs import output_of

        return [output_of(case.image, name, spec, self.source, self.target, self.folder) for spec in specs]

    def _beside(self, case: Case, name: str, spec: MapSpec) -> list[Path]:
        """Where a case's heatmap and variance go, whether this command writes them or not."""
        from voxtile.commands.inputs import UNCERTAINTY

        heat = replace(spec, heatmap=True)
        return self._outputs(case, name, [heat, replace(heat, classes=(UNCERTAINTY,))])

    def _check_free(self, paths: Sequence[Path]) -> None:
        """Refuses names that are taken, but for those of maps that this command may have made, which `_kept` looks at.

        Raises:
            DataError: A file is neither such a map, nor a result that a command with the same settings has made of it.
        """
        from voxtile.cases.provenance import tags_of
        from voxtile.commands.results import MADE_FROM, notes_of
        from voxtile.errors import DataError

        kind = self.runs.first.built.dataset.format
        for path in paths:
            if path.exists() and MADE_FROM not in tags_of(path, kind):
                raise DataError(f"{path} exists already. Name another output, or type 'overwrite=true' to have it replaced.")
        if taken := self.results.foreign(paths[0], bool(self.config["heatmaps"]), self.confusion):
            raise DataError(
                f"{taken[0]} exists already, and {notes_of(paths[0]).name} beside it does not say that it was made of this map "
                "with these settings. Name another output; move the file away, to have it made anew of the finished map; or type "
                "'overwrite=true' to have everything predicted and made anew."
            )

    def _is_left(self, paths: Sequence[Path], specs: Sequence[MapSpec]) -> bool:
        """Whether, where work is shared, nothing is to be done for a case: its files are there, or others, which is said.

        Each of many processes asks this of every case. So the image is not read: maps are compared by their stamps, and those
        without one, of an earlier version, later by what they were made from.
        """
        from voxtile.cases.provenance import tags_of
        from voxtile.commands.results import MADE_FROM

        known = True
        for path, spec in zip(paths, specs, strict=True):
            if not path.exists():
                known = False
                continue
            tags = tags_of(path, self.runs.first.built.dataset.format)
            if MADE_FROM not in tags or tags.get(STAMP, dict(spec.tags)[STAMP]) != dict(spec.tags)[STAMP]:
                self._pass_over(path)
                return True
            known = known and STAMP in tags
        if taken := self.results.foreign(paths[0], bool(self.config["heatmaps"]), self.confusion):
            self._pass_over(taken[0], "is not noted as made of this map with these settings")
            return True
        return known and all(path.exists() for path in self.results.paths(paths[0]).values())

    def _pass_over(self, path: Path, why: str = OTHER) -> None:
        self.out.print(f"{path} {why}: it is passed over", style="yellow", soft_wrap=True)

    @property
    def _replace(self) -> str:
        """What to type for files that are to be replaced."""
        return "type 'overwrite=true' in the place of 'share=true'" if self.config["share"] else "type 'overwrite=true'"

    def _same(self, path: Path, spec: MapSpec) -> bool:
        """Whether a finished map was made of the same image by the same runs with the same settings."""
        from voxtile.cases.provenance import tags_of
        from voxtile.commands.results import MADE_FROM

        return tags_of(path, self.runs.first.built.dataset.format).get(MADE_FROM) == dict(spec.tags)[MADE_FROM]

    def _kept(self, paths: Sequence[Path], specs: Sequence[MapSpec]) -> bool:
        """Whether the maps are there as this command would make them, so that nothing is to be predicted.

        Raises:
            DataError: A map is another one, or what is asked for beside it cannot be made of it.
        """
        from voxtile.errors import DataError

        if self.config["overwrite"]:
            return False
        for path, spec in zip(paths, specs, strict=True):
            if path.exists() and not self._same(path, spec):
                raise DataError(
                    f"{path} exists already, and {OTHER}. Name another output, give the settings that it was made with, or "
                    f"{self._replace} to have it replaced."
                )
        if not paths[0].exists():  # the last one that comes under its name: a kill may have left the others
            return False
        if missing := [path for path in paths if not path.exists()]:
            raise DataError(
                f"{paths[0]} is finished, and {missing[0]} is not there: it holds probabilities, which cannot be made of a map of "
                f"classes. Leave 'heatmaps' and 'uncertainty' out, or {self._replace} to have both predicted anew."
            )
        return True

    def _record_look(self, files: CaseFiles, found: Survey) -> None:
        """Records a look at a test split where the case is of one; one command is one look for each run."""
        from voxtile.cases.cache import content_hash
        from voxtile.cases.scene import OutsideAreaError
        from voxtile.data.survey import survey
        from voxtile.errors import DataError
        from voxtile.training.ledger import record_look

        known_by = {found.image_digest}
        if self.runs.first.built.dataset.format == "picture":  # slices of a stack are told by their files
            known_by |= {content_hash(path) for path in files.images}
        if self.runs.first.built.dataset.scene.area is not None:  # of which the data set knows a part of each scene
            try:
                part = survey(self._open(files, in_area=True), len(self.runs.first.built.dataset.classes), label=False)
                known_by.add(part.image_digest)
            except OutsideAreaError:
                pass
            except DataError as error:  # such as an area whose file is not on this machine
                said = f"{files.id} could not be compared with the run's test cases, which lie in an area of interest: {error}"
                self.out.print(said, style="yellow", soft_wrap=True)
        for run in self.runs.members:
            data = run.manifest["data"]
            if not known_by & set(data["test_files"]):
                continue
            if not run.looks:
                identity = run.home.read("recipe.json")["identity"]
                run.looks.append(record_look(run.ledger(self.config), data["test_fingerprint"], identity, "predict"))
            self.out.print(
                f"{files.id} is a test case of this run, or a part of one: look number {run.looks[0]} at this test split, recorded"
            )

    def _announce(self, case: Case, found: Survey, specs: Sequence[MapSpec], paths: Sequence[Path]) -> None:
        """Says of a large case what predicting it takes, before it begins.

        Raises:
            DataError: The disk has not so much room.
        """
        from voxtile.errors import listed, size
        from voxtile.inference.budget import check_room, memory_of
        from voxtile.inference.postprocess import MEMORY

        windows = sum(len(row.tiles) for strip in self.predictor.plan(case) for row in strip)
        if windows <= SMALL:
            return
        disk, free = check_room(paths, case.image.native.working.shape, specs)
        memory = memory_of(self.predictor, case, len(specs[0].classes), self.runs.intensities(found)[0])
        however = "with a CRF the more the wider the image is" if self.predictor.procedure.crf else "however large the image"
        if self.post is not None:
            memory, however = memory + MEMORY * math.prod(case.native.shape), "as post-processing needs for the whole map"
        made = listed(self.results.paths(paths[0]))  # what they take depends on the map, of polygons on each of their corners
        more = f"; what is made of the finished map ({made}) comes on top of both" if made else ""
        self.out.print(
            f"{case.id}: {windows:,} windows; about {memory / 1e6:,.0f} MB of memory, {however}, and up to "
            f"{size(disk)} of disk while it works ({size(free)} are free){more}", soft_wrap=True,
        )  # fmt: skip

    def _write_maps(
        self,
        case: Case,
        found: Survey,
        specs: Sequence[MapSpec],
        paths: Sequence[Path],
        start: Start,
    ) -> list[Path]:
        from voxtile.cases.maps import discard_probabilities
        from voxtile.errors import counted
        from voxtile.inference.native import native_bands, native_windows

        with ExitStack() as stack:
            writers = [stack.enter_context(case.open_map(path, spec)) for path, spec in zip(paths, specs, strict=True)]
            if self.config["share"] and all(path.exists() for path in paths):
                # Another process has made them since this one looked.
                for writer in writers:
                    writer.discard()
                return []
            # What a killed command of the same kind has brought to the disk is not computed again.
            done = set.intersection(*(set(writer.finished) for writer in writers))
            rows = len(native_windows(self.predictor, case))
            if done:
                self.out.print(f"{case.id}: continuing, {len(done)} of {counted(rows, 'part')} are done")
            tick = start(rows - len(done)) if rows > SMALL else lambda: None
            for band in native_bands(self.predictor, case, self.runs.intensities(found), done):
                writers[0].write(band.window, band.classes())
                if self.config["heatmaps"]:
                    writers[1].write(band.window, band.probabilities.cpu().numpy())
                if band.variance is not None and self.config["uncertainty"]:
                    writers[-1].write(band.window, band.variance[None].cpu().numpy())
                del band  # its memory is wanted for the next one
                tick()
            # All are made before the first one has its name: a command that was killed while they are made goes on where it was.
            writers[0].make(None if self.post is None else partial(self._processed, case))
            for writer in writers[1:]:
                writer.make()
            if self.config["overwrite"]:
                self.results.forget(paths[0])
            for other in self._beside(case, case.id, specs[0]):  # of a command that was killed, and wanted more
                if other not in paths:
                    discard_probabilities(other)
            for writer in reversed(writers):  # the first one's lock, which a process that shares the work asks for, goes last
                writer.close()
            return list(paths)

    def _processed(self, case: Case, side: NDArray[Any]) -> NDArray[Any]:
        """The classes [1, D, H, W] of a side file, post-processed; what is continued after a kill is the side file as it was."""
        from voxtile.inference.postprocess import pixel_size

        assert self.post is not None
        made = np.array(side)
        self.post.apply(made[0], pixel_size(case.native))
        return made

    def _results(self, case: Case, paths: Sequence[Path], places: list[Place]) -> list[Path]:
        heat = paths[1] if self.config["heatmaps"] else None
        return self.results.write(case.native, paths[0], heat, places, self.confusion)
