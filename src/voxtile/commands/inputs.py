"""Which files `voxtile predict` reads, and where their maps go."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from voxtile.commands.words import word
from voxtile.errors import DataError, listed

if TYPE_CHECKING:
    from voxtile.cases.case import Source
    from voxtile.cases.dataset import Dataset
    from voxtile.cases.layouts import CaseFiles
    from voxtile.cases.maps import MapSpec

UNCERTAINTY = "uncertainty"


def find_inputs(source: Path, dataset: Dataset, channels: int) -> tuple[list[CaseFiles], list[str]]:
    """The cases that a file or folder holds.

    Where a case has several files, any of them stands for it. A folder is searched with the run's own name patterns, as a data set
    of its own or as a part of one, such as one patient or one visit; where they find nothing, by the file names in the patterns of
    several files; and then for files of the run's format, which must be whole cases.

    Args:
        source: the file or folder.
        dataset: how the run's data lie and are read.
        channels: how many a case has.

    Returns:
        The cases, and the names of files of the format in this folder that the patterns have left out.

    Raises:
        DataError: There is nothing to predict.
    """
    if source.is_file() or source.is_dir():
        source = _with_parents(source, dataset.layout.depth)
    if dataset.format in ("dicom", "volume") and source.exists() and _holds_dicom(source, dataset):
        from voxtile.cases.dicom_layout import new_cases

        return new_cases(source, dataset.layout), []
    if source.is_file():
        return _of_file(source, dataset, channels), []
    if source.is_dir():
        return _in_folder(source, dataset, channels)
    raise DataError(f"The input {source} {_missing(source)}")


def _with_parents(source: Path, depth: int) -> Path:
    """The path as it was given, or the absolute one where it does not name all folders above it that are looked at."""
    from voxtile.cases.address import RemoteFile

    parts = source.parts
    if isinstance(source, RemoteFile):
        return source
    if ".." in parts:
        end = len(parts) - parts[::-1].index("..")
        return Path(*parts[:end]).resolve().joinpath(*parts[end:])
    return source if len(source.parents) > depth + 1 else source.absolute()


def _of_file(source: Path, dataset: Dataset, channels: int) -> list[CaseFiles]:
    """The case that a file is, or is one of the files of."""
    from voxtile.cases.formats import SUFFIXES
    from voxtile.cases.layouts import CaseFiles

    suffixes, layout = SUFFIXES[dataset.format], dataset.layout
    # Where a case has several files, one stands for all.
    if layout.patterns(channels) and (cases := layout.images_at(source, suffixes) or layout.images_by_name(source)):
        return cases
    found = [CaseFiles(_stem(source, suffixes), (source,))]
    _check_whole(found, source, dataset, channels)
    return found


def _in_folder(source: Path, dataset: Dataset, channels: int) -> tuple[list[CaseFiles], list[str]]:
    """The cases in a folder, and what of the format is left out; see `find_inputs`."""
    from voxtile.cases.formats import SUFFIXES
    from voxtile.cases.layouts import CaseFiles
    from voxtile.cases.names import natural_key

    suffixes, layout = SUFFIXES[dataset.format], dataset.layout
    paths = sorted(
        # macOS puts '._a.nii.gz' beside each 'a.nii.gz' that it packs.
        (path for path in source.iterdir() if path.name.lower().endswith(suffixes) and not path.name.startswith("._")),
        key=lambda path: natural_key(path.name),
    )
    for search in (partial(layout.images_at, source, suffixes), partial(layout.images_by_name, source)):
        if cases := [files for files in search() if not any(map(_is_pipe, files.found))]:
            used = {path for files in cases for path in files.found}
            return cases, [path.name for path in paths if path not in used]
    pipes = [path for path in paths if _is_pipe(path)]
    paths = [path for path in paths if path not in pipes]
    series = _dicom_folders(source) if dataset.format == "volume" else []
    if not paths and series:
        raise DataError(
            f"{source} holds DICOM series in {listed(path.relative_to(source) for path in series)} and other volumes beside them, "
            "so it is not clear what is meant. Name one of the folders with 'input=…'."
        )
    if not paths:
        raise DataError(f"{source} holds no file that ends in {listed(suffixes)}, the format of the run ('{dataset.format}').")
    found = [CaseFiles(_stem(path, suffixes), (path,)) for path in paths]
    twice = [a.id for a, b in pairwise(sorted(found, key=lambda files: files.id)) if a.id == b.id]
    if twice:
        raise DataError(
            f"{source} holds several files called {listed(twice)} with different endings; their maps would have one name."
        )
    _check_whole(found, source, dataset, channels)
    left_out = [f"{path.relative_to(source)} (a DICOM series)" for path in series]
    return found, [*left_out, *(f"{path.name} (no regular file)" for path in pipes)]


def _missing(source: Path) -> str:
    """What is wrong with an input that is neither a file nor a folder."""
    if source.exists():
        return "is neither a file nor a folder. Name one with 'input=…'."
    if glob.has_magic(str(source)):
        return "does not exist, and 'input' takes no patterns. Name the folder that holds the files: all of them are predicted."
    return "does not exist. Name a file or a folder with 'input=…'."


def _is_pipe(path: Path) -> bool:
    """Whether a name is that of a pipe, a socket or a device, from which a command may read for ever."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _dicom_folders(source: Path) -> list[Path]:
    """The folders below `source` that hold DICOM files."""
    from voxtile.cases.dicom_layout import is_dicom

    return sorted({path.parent for path in source.rglob("*") if path.is_file() and is_dicom(path)})


def _holds_dicom(source: Path, dataset: Dataset) -> bool:
    """Whether the input is DICOM, which a run on other volumes takes where none of its own format is there."""
    from voxtile.cases.dicom_layout import is_dicom
    from voxtile.cases.formats import SUFFIXES

    if dataset.format == "dicom":
        return True
    if source.is_file():
        return is_dicom(source)
    files = [path for path in source.rglob("*") if path.is_file()]
    return not any(path.name.lower().endswith(SUFFIXES["volume"]) for path in files) and any(map(is_dicom, files))


def _check_whole(found: Sequence[CaseFiles], source: Path, dataset: Dataset, channels: int) -> None:
    """Refuses files that the name patterns of a run whose cases have several do not find, unless one has all channels.

    Raises:
        DataError: None of the files has all channels.
    """
    patterns = dataset.layout.patterns(channels)
    if len(patterns) < 2:
        return
    for files in found:
        with suppress(DataError):
            if len(dataset.open(files, grouped=False, in_area=False).channels) == channels:
                return
    folder = patterns[0].rpartition("/")[0]
    begin = f"the folder in which '{folder}/' begins, one below it" if folder else "the folder that holds them"
    raise DataError(
        f"A case of this run has {len(patterns)} files, {listed(patterns)} (data.layout), and these patterns find nothing at "
        f"{source}, nor do the file names in them; no file there has all channels either. Put the files of each case under such "
        f"names, and give {begin}, or one of the files, with 'input=…'."
    )


def channels_as_cases(found: Sequence[CaseFiles], channels: int) -> list[str]:
    """Names that are those of one case's channels in nnU-Net's folders, which a run of one channel takes for cases."""
    parts = [files.id.rpartition("_") for files in found]
    numbered = {(name, number) for name, _, number in parts if len(number) == 4 and number.isdigit()}
    first = sorted(name for name, number in numbered if number == "0000" and (name, "0001") in numbered)
    return [f"{name}_{number}" for name in first for number in ("0000", "0001")] if channels == 1 else []


def _stem(path: Path, suffixes: Sequence[str]) -> str:
    ending = max((s for s in suffixes if path.name.lower().endswith(s)), key=len, default=path.suffix)
    return path.name[: len(path.name) - len(ending)] if ending else path.name


def output_of(image: Source, name: str, spec: MapSpec, source: Path, target: Path, folder: bool = False) -> Path:
    """Where a map goes: below the output folder, or at the output itself where it is a file name for a single input file.

    Args:
        image: the case's.
        name: the case's.
        spec: what the map holds.
        source: the command's input.
        target: the command's output.
        folder: whether it is a folder, whatever its name.

    Raises:
        DataError: The output's ending is not that of the input's format.
    """
    ending_of_name = f"_{UNCERTAINTY}" if spec.classes == (UNCERTAINTY,) else "_heatmap" if spec.heatmap else ""
    if folder or not (source.is_file() and target.suffix and not target.is_dir()):
        return target / image.map_name(name + ending_of_name, spec)
    ending = image.map_name("", spec)
    stem = _stem(target, (image.map_name("", replace(spec, heatmap=False)),))
    if not spec.heatmap and not target.name.lower().endswith(ending):
        raise DataError(
            f"The output {target} ends in '{target.suffix}', and a map of {source} is a '{ending}' file. Type that ending; or, for "
            f"a folder of this name, a slash behind it: {word('output', f'{target}/')}."
        )
    return target.with_name(image.map_name(f"{stem}{ending_of_name}", spec)) if spec.heatmap else target
