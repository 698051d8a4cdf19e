"""Folders of DICOM studies: which series make the channels of a case, and which segmentation is its label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from voxtile.cases.case import Source
from voxtile.cases.dicom import DicomSource, files_at
from voxtile.cases.dicom_headers import FileHeader, headers
from voxtile.cases.layouts import CaseFiles, FolderLayout, Layout
from voxtile.errors import ConfigError, DataError, counted, listed
from voxtile.values import refuse_unknown

SEGMENTATION = "seg"
_RULE = ("modality", "description")


@dataclass(frozen=True)
class _FoundSeries:
    """The files of one series that hold slices of a volume, or are meant to."""

    headers: tuple[FileHeader, ...]

    @property
    def uid(self) -> str:
        return self.headers[0].series

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(header.path for header in self.headers)

    def __str__(self) -> str:
        first = self.headers[0]
        return f"{first.path} ({first.modality}, {counted(len(self.headers), 'file')})"


class DicomLayout(Layout):
    """Every study below a folder is a case; rules choose the series that are its channels. Headers alone are read.

    No case is called by what a header says: ids are names of folders, or hashes. The field `patient`, for groups, is a hash.
    """

    def __init__(
        self,
        root: str,
        series: Mapping[str, Mapping[str, str]] | None = None,
        case: Literal["folder", "study"] = "folder",
        labels: str | None = None,
        unlabelled: bool = False,
    ) -> None:
        """Remembers the rules.

        Args:
            root: the data set's folder.
            series: for each channel, by its name, which series of a study it is: `modality` (CT, MR, PT, …), `description` (a
                regular expression that is searched in SeriesDescription), both or none; one channel, any volume, where None.
            case: what a case is called: `folder`, the folder below the root that holds the study, or `study`, a hash of its
                StudyInstanceUID.
            labels: `seg` for the DICOM segmentations of the study that refer to one of the series; or the pattern of a file below
                the root, made of `{folder}` and `{case}`; None where there are none.
            unlabelled: whether cases without a label are left out instead of being an error.

        Raises:
            ConfigError: A rule says what no rule takes, or is no regular expression.
        """
        super().__init__(root)
        self.series = {str(name): dict(rule or {}) for name, rule in (series or {"image": {}}).items()}
        self.case, self.labels, self.unlabelled = case, labels, unlabelled
        for name, rule in self.series.items():
            refuse_unknown(f"data.layout.series.{name}", rule, _RULE)
            try:
                re.compile(str(rule.get("description", "")))
            except re.error as error:
                raise ConfigError(
                    f"'data.layout.series.{name}.description={rule['description']}' is no regular expression: {error}. Expected, "
                    "for example, '(?i)flair'."
                ) from error

    def cases_below(self, root: Path) -> list[CaseFiles]:
        """Cases below another folder by the same rules, without labels; see `find`."""
        return DicomLayout(str(root), self.series, self.case).find()

    def _expected(self) -> str:
        return "none of the files below it is a slice of a DICOM volume with the letters 'DICM' at byte 128"

    def _find(self) -> list[CaseFiles]:
        found, others = headers(sorted(path for path in self.root.rglob("*") if path.is_file()))
        studies: dict[str, list[FileHeader]] = {}
        for header in found:
            studies.setdefault(header.study, []).append(header)
        beside: dict[Path, list[Path]] = {}
        for path in others:
            beside.setdefault(path.parent, []).append(path)
        cases, missing, contours = [], [], ""
        for its in studies.values():
            case = self._case(its, beside)
            if case is not None and self.labels and not case.labels:
                missing.append(case.id)
                contours = contours or next((str(header.path) for header in its if header.modality == "RTSTRUCT"), "")
            elif case is not None:
                cases.append(case)
        if missing and not self.unlabelled:
            what = "DICOM segmentation that refers to the series chosen" if self.labels == SEGMENTATION else f"file '{self.labels}'"
            unread = (
                f" {contours} holds an RTSTRUCT, whose contours are not read: convert it, for example with plastimatch or "
                "dcmrtstruct2nii, and name the files with 'data.layout.labels={folder}/seg.nii.gz'."
            )
            raise DataError(
                f"{counted(len(missing), 'case')} below {self.root} have no {what}: {listed(missing)}.{unread if contours else ''} "
                "Add the labels, or leave these cases out with '++data.layout.unlabelled=true'."
            )
        folders: dict[str, str] = {}
        for case in cases:
            if (other := folders.setdefault(case.id, case.fields["study"])) != case.fields["study"]:
                raise DataError(
                    f"The folder '{case.id}' below {self.root} holds several studies (hashes {other}, {case.fields['study']}). "
                    "Expected a folder per study; or call cases by a hash of their study with '++data.layout.case=study'."
                )
        return sorted(cases, key=lambda case: case.id)

    def _case(self, its: Sequence[FileHeader], others: Mapping[Path, Sequence[Path]]) -> CaseFiles | None:
        """The case of a study; None where it holds no volume. `others` are files that are no DICOM, by folder, which are noted."""
        grouped: dict[str, list[FileHeader]] = {}
        for header in its:
            grouped.setdefault(header.series, []).append(header)
        volumes = [_FoundSeries(tuple(each)) for each in grouped.values() if not all(header.unfit for header in each)]
        if not volumes:
            return None
        chosen = [self._chosen(name, rule, volumes) for name, rule in self.series.items()]
        if len({series.uid for series in chosen}) < len(chosen):
            raise DataError(
                f"Two rules of 'data.layout.series' choose the same series, {chosen[0]}. Expected a series per channel; make the "
                "rules narrower."
            )
        paths = tuple(path for series in chosen for path in series.paths)
        folder = self._folder(paths)
        name = folder if self.case == "folder" else its[0].study
        fields = {"patient": its[0].patient, "study": its[0].study, "folder": folder}
        label = self._label(its, {series.uid for series in chosen}, name, folder)
        folders = {path.parent for path in paths}
        beside = sorted(path for folder in folders for path in others.get(folder, ()) if path not in label)
        files = [list(series.paths) for series in chosen]
        opener = partial(_opened, [files[0] + beside, *files[1:]], tuple(self.series))
        return CaseFiles(name, paths, label, fields=fields, sources=opener)

    def _chosen(self, name: str, rule: Mapping[str, str], volumes: Sequence[_FoundSeries]) -> _FoundSeries:
        """The series of a study that a rule means.

        Raises:
            DataError: No series of the study fits the rule, or several do.
        """
        wanted, description = rule.get("modality"), str(rule.get("description", ""))
        matching = [
            series
            for series in volumes
            if wanted in (None, series.headers[0].modality) and re.search(description, series.headers[0].description)
        ]
        if len(matching) == 1:
            return matching[0]
        said = (
            f"The rule 'data.layout.series.{name}={rule}'"
            if rule
            else f"'data.layout.series.{name}', a rule that takes any series,"
        )
        if not matching:
            raise DataError(
                f"{said} matches none of the {len(volumes)} series of the study: {listed(volumes)}. Expected one; correct the rule "
                "(descriptions are not shown here, since they may name a person), or move the study away."
            )
        raise DataError(
            f"{said} matches {len(matching)} series of one study: {listed(matching)}. Expected one; make it narrower, for example "
            f"with 'data.layout.series.{name}.modality=MR' or 'data.layout.series.{name}.description=…'."
        )

    def _folder(self, paths: Sequence[Path]) -> str:
        """The folder below the root that holds a study's files; the root's own name where they lie in it.

        Raises:
            DataError: There are several.
        """
        inner = [path.relative_to(self.root).parts for path in paths]
        names = {parts[0] if len(parts) > 1 else self.root.resolve().name for parts in inner}
        if len(names) > 1 and self.case == "folder":
            raise DataError(
                f"The series of one study lie in several folders below {self.root}: {listed(sorted(names))}. Expected a folder per "
                "study; or call cases by a hash of their study with '++data.layout.case=study'."
            )
        return min(names)

    def _label(self, its: Sequence[FileHeader], chosen: set[str], name: str, folder: str) -> tuple[Path, ...]:
        """The label of a case, or nothing where there is none.

        Raises:
            DataError: There are several, or the pattern leads outside the root.
        """
        if self.labels is None:
            return ()
        if self.labels != SEGMENTATION:
            inner = Path(self.labels.replace("{case}", name).replace("{folder}", folder))
            if inner.is_absolute() or ".." in inner.parts:
                raise DataError(f"'data.layout.labels={self.labels}' leads outside {self.root}. Expected a path inside it.")
            path = self.root / inner
            return (path,) if path.is_file() else ()
        paths = [header.path for header in its if header.is_segmentation and chosen & set(header.references)]
        if len(paths) > 1:
            raise DataError(
                f"Case '{name}' has {len(paths)} DICOM segmentations that refer to its series: {listed(paths)}. Expected one; move "
                "the others away, or name the file by a pattern with 'data.layout.labels=…'."
            )
        return tuple(paths)


def _opened(series: Sequence[Sequence[Path]], names: Sequence[str], nodata: float | None) -> tuple[Source, None]:
    """The image of a case; its label is opened as any other."""
    return DicomSource(series, names), None


def is_dicom(path: Path) -> bool:
    """Whether a file begins like a DICOM file."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def new_cases(source: Path, layout: Layout) -> list[CaseFiles]:
    """The cases that a new folder of a series or of studies holds, or the series that a file is of.

    Args:
        source: the folder or file.
        layout: that of a run's data, whose rules apply where it is one of DICOM.

    Raises:
        DataError: The folder holds no case, or series cannot be told apart.
    """
    if source.is_file():
        files = files_at(source)
        return [CaseFiles(source.resolve().parent.name, tuple(files), sources=partial(_opened, [files], ()))]
    if isinstance(layout, FolderLayout) and (cases := layout.images_at(source)):
        return cases
    rules = layout if isinstance(layout, DicomLayout) else DicomLayout(str(source))
    return rules.cases_below(source)
