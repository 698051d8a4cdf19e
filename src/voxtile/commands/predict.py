"""voxtile predict: semantic maps of new files, in their own format and geometry."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose
from voxtile.errors import ConfigError, DamagedError, DataError, PartialError, VoxtileError, listed, reason
from voxtile.values import check_switch

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.cases.layouts import CaseFiles
    from voxtile.commands.predicting import Work


def main(argv: Sequence[str]) -> int:
    """Composes and predicts; see `voxtile predict --help`."""
    return compose.run("predict", argv, predict)


def predict(config: Mapping[str, Any]) -> int:
    """Applies the run, or the runs, that the configuration names to its input."""
    from voxtile.commands.console import console, progress
    from voxtile.commands.folders import run_folders

    out = console()
    folders = run_folders(config, out)  # before what takes seconds to import
    _check(config)
    work, inputs = _work(config, folders, out)
    tally = Tally(work, len(inputs))
    with progress(out) as start:
        tick = start(len(inputs), "predicting")
        for files in inputs:
            with tally.counting(files):
                with _advised(files):
                    made = work.predict(files, partial(start, title=files.id, noun=""))
                for path in made:
                    out.print(f"{path}", soft_wrap=True)
            tick()
    tally.conclude()
    return 0


def _work(config: Mapping[str, Any], folders: Sequence[str], out: Console) -> tuple[Work, list[CaseFiles]]:
    """What is to be made by which runs, and of which inputs; says what may not be as the user thinks.

    Raises:
        VoxtileError: The runs, the inputs or a setting will not do.
    """
    from voxtile.cases.address import path_of
    from voxtile.cases.formats import SUFFIXES
    from voxtile.commands.ensemble import Ensemble
    from voxtile.commands.evaluated import said_of
    from voxtile.commands.inputs import channels_as_cases, find_inputs
    from voxtile.commands.postprocess import made_with, postprocess_of
    from voxtile.commands.predicting import Work
    from voxtile.commands.results import Results

    runs = Ensemble.open(config, folders, out)
    dataset, data = runs.first.built.dataset, runs.first.manifest["data"]
    if config["heatmaps"] in ("float16", "uint8") and dataset.format != "geotiff":
        raise DataError(f"'heatmaps={config['heatmaps']}' is for scenes; type 'heatmaps=true' for format '{dataset.format}'.")
    source, target = path_of(str(config["input"])), Path(str(config["output"])).expanduser()
    inputs, left_out = find_inputs(source, dataset, len(data["channels"]))
    if left_out:
        out.print(f"left out, since they are not what the run's data set looks for: {listed(left_out)}", soft_wrap=True)
    if twice := channels_as_cases(inputs, len(data["channels"])):
        what = f"{listed(twice)} are predicted as cases of their own; in nnU-Net's folders such names are channels of one case"
        out.print(f"{what}, and this run has one channel", style="yellow", soft_wrap=True)
    folder = str(config["output"]).endswith("/")
    named = target.name.lower().endswith(SUFFIXES[dataset.format]) and not folder
    if source.is_dir() and not target.is_dir() and (target.exists() or named):
        raise DataError(f"The output {target} is a file, and {source} is a folder, whose maps need one. Name a folder.")
    predictors = runs.predictors(config)
    post = postprocess_of(config["postprocess"], runs.home(config), data, made_with(config, predictors[0]))
    results = Results.of(config, dataset)
    if post is None and config["postprocess"] == "best":
        out.print("the search for post-processing found nothing that helps: maps are as they are predicted", soft_wrap=True)
    if post is not None and config["heatmaps"]:
        out.print("heatmaps hold the networks' probabilities, which post-processing does not change", soft_wrap=True)
    work = Work(runs, predictors, post, results, source, target, folder, config, out)
    work.check_names(inputs)
    for note in results.interest.notes if results.interest else ():
        out.print(note, style="yellow", soft_wrap=True)
    if results.areas:
        out.print(said_of(work.confusion, runs, config), soft_wrap=True)
    return work, inputs


class Tally:
    """What became of a command's inputs, of which one that fails does not stop the others.

    Args:
        work: what is made of them.
        count: how many there are.
    """

    def __init__(self, work: Work, count: int) -> None:
        self._work, self._count = work, count
        self.failed, self.elsewhere, self.off = list[str](), list[str](), list[str]()
        self._said: dict[str, list[CaseFiles]] = {}  # inputs that failed, by the reason without their names

    @contextmanager
    def counting(self, files: CaseFiles) -> Iterator[None]:
        """While this is open, an input is worked on; notes how it ends.

        Raises:
            VoxtileError: It failed, and is the only one; or another process makes its map, and work is not shared.
        """
        from voxtile.cases.atomic import BusyError
        from voxtile.inference.areas import OffPlacesError

        try:
            yield
        except BusyError:
            if not self._work.config["share"]:
                raise
            self.elsewhere.append(files.id)
        except OffPlacesError:
            if self._count == 1:
                raise
            self.off.append(files.id)
        except VoxtileError as error:
            if self._count == 1:
                raise
            self.failed.append(files.id)
            alike = self._said.setdefault(_unnamed(str(error), files), [])
            alike.append(files)
            said = str(error) if len(alike) == 1 else f"for the same reason as {alike[0].id}"
            self._work.out.print(f"skipped {files.id}: {said}", style="red", soft_wrap=True)

    def conclude(self) -> None:
        """Says which inputs have no map, and why.

        Raises:
            DataError: None has one that should.
            PartialError: Some have none.
        """
        out, source, places = self._work.out, self._work.source, self._work.results.places
        if self.elsewhere:
            out.print(f"left to other processes, which are making these maps: {listed(self.elsewhere)}", soft_wrap=True)
        if self.off:
            out.print(f"left out, since no polygon of {places} overlaps them: {listed(self.off)}", soft_wrap=True)
        if len(self.off) == self._count:
            raise DataError(
                f"No polygon of {places} overlaps any of the {self._count} inputs in {source}. Check that they belong together, or "
                "type 'areas=true' for the areas of whole maps."
            )
        if len(self.failed) + len(self.off) == self._count > 1:
            raise DataError(f"None of the {self._count} inputs in {source} could be predicted; each line above says why.")
        if self.failed:
            raise PartialError(
                f"{len(self.failed)} of {self._count} inputs could not be predicted: {listed(self.failed)}. The others are in "
                f"{self._work.target}."
            )


def _unnamed(text: str, files: CaseFiles) -> str:
    """A message about an input without the names of its files, but for those that are missed."""
    for path in sorted((str(each) for each in files.found if each.exists()), key=len, reverse=True):
        text = text.replace(path, "…")
    return text


@contextmanager
def _advised(files: CaseFiles) -> Iterator[None]:
    """Says of a damaged file what this command can do about it, and makes what the system refuses an error of one input.

    Raises:
        DataError: A file is damaged, cannot be read or written, or has a name that cannot be worked with.
    """
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
    from voxtile.commands.results import HEATMAPS

    for name in ("uncertainty", "overwrite", "share"):
        check_switch(name, config[name])
    if not isinstance(config["heatmaps"], bool | str) or config["heatmaps"] not in HEATMAPS:
        raise ConfigError(f"'heatmaps={config['heatmaps']}' is unknown; choose from false, true, float16, uint8.")
    if config["damaged"] not in ("error", "nodata"):
        raise ConfigError(f"'damaged={config['damaged']}' is unknown; choose from error, nodata.")
    if config["share"] and config["overwrite"]:
        raise ConfigError("'share=true' passes over maps that exist, and 'overwrite=true' replaces them. Leave one of them out.")
