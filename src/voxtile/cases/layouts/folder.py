"""Cases by the names of their files."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxtile.cases.layouts.layout import SPLITS, CaseFiles, Layout
from voxtile.cases.names import natural_key
from voxtile.cases.vector_settings import VECTOR_SUFFIXES
from voxtile.errors import ConfigError, DataError, counted, listed
from voxtile.values import check_switch


class FolderLayout(Layout):
    """Cases by name patterns.

    A pattern is a path below the root in which `{name}` stands for text without a slash, `{name:d}` for digits and `*`
    for anything without a slash; a name that occurs twice stands for the same text. So `images/{id}.tif` and
    `labels/{id}.tif` are paired folders, `{split}/{id}.jpg` and `{split}annot/{id}.png` are folders per split, and
    `{patient}/{patient}_{slice:d}.tif` with `case="{patient}"` is a folder per patient with one file per slice.
    """

    def __init__(
        self,
        root: str,
        images: str | Sequence[str],
        labels: str | None = None,
        case: str = "{id}",
        splits: Mapping[str, str] | None = None,
        unlabelled: bool = False,
        mosaic: bool = False,
        incomplete: bool = False,
    ) -> None:
        """Remembers the patterns.

        Args:
            root: the data set's folder.
            images: pattern of the image files; several patterns where each holds other bands of the same cases.
            labels: pattern of the label files, made of names that `images` defines; None where there are none.
            case: the case's id made of those names. Files with the same id are slices, stacked in the order of their numbers.
            splits: what the values of `{split}` mean, for example `{training: train, validation: val}`.
            unlabelled: whether cases without a label are left out instead of being an error.
            mosaic: whether files with the same id are tiles of one scene instead of slices.
            incomplete: whether cases that lack the file of an image pattern are left out instead of being an error.

        Raises:
            ConfigError: A pattern is none, or does not lead below the root, or one after the first holds a '*'.
        """
        super().__init__(root)
        check_switch("data.layout.mosaic", mosaic)
        check_switch("data.layout.incomplete", incomplete)
        several = isinstance(images, Sequence) and not isinstance(images, str)
        self.images = [_checked("data.layout.images", pattern) for pattern in (map(str, images) if several else [images])]
        if not self.images:
            raise ConfigError("'data.layout.images' is empty. Give a pattern of file names, for example 'images/{id}.tif'.")
        self.labels = _checked("data.layout.labels", labels) if labels else None
        for setting, pattern in [("images", each) for each in self.images[1:]] + [("labels", self.labels or "")]:
            if "*" in pattern:
                raise ConfigError(
                    f"'{pattern}' in 'data.layout.{setting}' holds a '*', and files are found there by the names that "
                    f"'{self.images[0]}' defines. Write a name in the place of its '*', for example {{granule}}, and the same here."
                )
        self.case, self.unlabelled, self.mosaic, self.incomplete = case, unlabelled, mosaic, incomplete
        self.splits = dict(splits or {name: name for name in SPLITS})
        self._folders: tuple[str, ...] = ()  # below the root, in which alone files are looked for

    def patterns(self, channels: int) -> tuple[str, ...]:
        """See `Layout.patterns`."""
        return tuple(self.images) if len(self.images) > 1 else ()

    @property
    def depth(self) -> int:
        """See `Layout.depth`."""
        return max(pattern.count("/") for pattern in self.images)

    def images_below(self, root: Path, within: Path, suffixes: Sequence[str] = ()) -> list[CaseFiles]:
        """See `Layout.images_below`; by the same patterns, whatever the ending."""
        layout = FolderLayout(str(root), self.images, self.labels, self.case, self.splits, mosaic=self.mosaic)
        inside = within.relative_to(root)
        if within.is_dir():
            layout._folders = inside.parts
        elif not any(_expression(pattern).fullmatch(inside.as_posix()) for pattern in self.images):
            return []
        labels = layout._label_files()
        images = layout._image_files(labels)
        if len(self.images) > 1 and not self.mosaic:
            partners = {root / layout._format(pattern, fields) for fields in images.values() for pattern in self.images[1:]}
            images = {path: fields for path, fields in images.items() if path not in partners}
            known = labels | partners | set(images)
            for path, fields in (match for pattern in self.images[1:] for match in layout._match(pattern)):
                if path not in known and set(fields) == _names(self.images[0]):  # the case's first file is not there
                    images[root / layout._format(self.images[0], fields)] = fields
        if within.is_file():
            matches = [match for pattern in self.images for match in layout._match(pattern)]
            cases = {layout._format(self.case, fields) for path, fields in matches if path == within}
            images = {path: fields for path, fields in images.items() if layout._format(self.case, fields) in cases}
        else:
            images = {path: fields for path, fields in images.items() if path.is_relative_to(within)}
        layout.splits = {fields["split"]: "" for fields in images.values() if "split" in fields}  # no part of a data set's
        return layout._gathered(images, {}, complete=self.mosaic)

    def images_by_name(self, within: Path) -> list[CaseFiles]:
        """See `Layout.images_by_name`."""
        names = [pattern.rpartition("/")[2] for pattern in self.images]
        told = _names(names[0])
        if len(names) < 2 or len({*names}) < len(names) or not all(_names(each) <= told for each in (self.case, *names)):
            return []
        root = within if within.is_dir() else within.parent
        layout = FolderLayout(str(root), names, None, self.case, self.splits, mosaic=self.mosaic)
        cases = layout.images_below(root, within)
        return cases if any(all(path.exists() for path in files.images) for files in cases) else []

    def _expected(self) -> str:
        pattern = self.images[0]
        fixed = re.split(r"[{*]", pattern)[0].rpartition("/")[0]  # the folders before the first that may have any name
        folder = self.root / fixed
        if folder.is_dir():
            where = f"in {folder}"
        else:
            held = listed(sorted(path.name for path in self.root.iterdir())) or "nothing"
            where = f"since there is no folder {folder}; {self.root} holds {held}"
        return f"no file matches '{pattern}' (data.layout.images) {where}. Name the images there with 'data.layout.images=…'"

    def _find(self) -> list[CaseFiles]:
        label_files = self._label_files()
        images = self._image_files(label_files)
        if not images:
            return []
        lacking = self._lacking(images, label_files)
        whole = {path: fields for path, fields in images.items() if self._format(self.case, fields) not in lacking}
        if lacking and not (self.incomplete and whole):
            leave = "" if self.incomplete else ", or leave these cases out with '++data.layout.incomplete=true'"
            raise DataError(
                f"{counted(len(lacking), 'case')} below {self.root} {'lacks' if len(lacking) == 1 else 'lack'} a file: "
                f"{listed(f'{name} (no {path.relative_to(self.root)})' for name, path in lacking.items())}; every case needs one "
                f"file per pattern of 'data.layout.images'. Add the files{leave}."
            )
        if not self.labels:
            return self._gathered(whole, {})
        if lacking:
            label_files -= self._labels_of(lacking)
        label_of = {path: self.root / self._format(self.labels, fields) for path, fields in whole.items()}
        missing = {path: None for path, label in label_of.items() if not label.exists()}
        if missing and "{" not in self.labels:
            raise DataError(self._no_such_label(self.root / self.labels))
        self._check_pairs(list(missing), sorted(label_files - set(label_of.values())))
        return self._gathered({path: fields for path, fields in whole.items() if path not in missing}, label_of)

    def _no_such_label(self, file: Path) -> str:
        """What to say where the one label file of all cases is not there."""
        there = next(folder for folder in file.parents if folder.is_dir())
        held = listed(sorted(path.name for path in there.iterdir())) or "nothing"
        return f"There is no file {file} (data.layout.labels); {there} holds {held}. Name the label with 'data.layout.labels=…'."

    def _label_files(self) -> set[Path]:
        return {path for path, _ in self._match(self.labels)} if self.labels else set()

    def _image_files(self, label_files: set[Path]) -> dict[Path, dict[str, str]]:
        """Files of the first image pattern, with what its names stand for; "{id}.tif" finds "a_mask.tif" as well, so labels go."""
        return {path: fields for path, fields in self._match(self.images[0]) if path not in label_files}

    def _gathered(
        self, images: Mapping[Path, dict[str, str]], label_of: Mapping[Path, Path], complete: bool = False
    ) -> list[CaseFiles]:
        """Cases of files of the first image pattern, with the labels there are; all other files must be there if `complete`."""
        found: dict[str, list[tuple[tuple[Path, ...], Path | None, dict[str, str]]]] = {}
        for path, fields in images.items():
            files = (path, *(self._filled(pattern, fields, path, complete) for pattern in self.images[1:]))
            found.setdefault(self._format(self.case, fields), []).append((files, label_of.get(path), fields))
        return [self._case(name, found[name]) for name in sorted(found, key=natural_key)]

    def _lacking(self, images: Mapping[Path, dict[str, str]], label_files: set[Path]) -> dict[str, Path]:
        """Cases of which a file is not there, in the order of their names, with that file.

        Raises:
            DataError: A file of the further image patterns belongs to none of the first one, and its name tells no case.
        """
        lacking: dict[str, Path] = {}
        used: set[Path] = set()
        for fields in images.values():
            for path in (self.root / self._format(pattern, fields) for pattern in self.images[1:]):
                if path not in used and not path.exists():
                    lacking.setdefault(self._format(self.case, fields), path)
                else:
                    used.add(path)
        known = used | label_files | images.keys()
        for pattern in self.images[1:]:
            alone = {path: fields for path, fields in self._match(pattern) if path not in known}
            if strange := [path for path, fields in alone.items() if not _names(self.images[0]) <= fields.keys()]:
                raise DataError(
                    f"{listed(path.relative_to(self.root) for path in strange)} below {self.root} have no partner at "
                    f"'{self.images[0]}'; every case needs one file per pattern of 'data.layout.images'. Add it, or move them away."
                )
            for fields in alone.values():
                lacking.setdefault(self._format(self.case, fields), self.root / self._format(self.images[0], fields))
        return {name: lacking[name] for name in sorted(lacking, key=natural_key)}

    def _labels_of(self, cases: Collection[str]) -> set[Path]:
        """Label files that belong to cases: by their own names, and by those of images where labels' names tell too little."""
        assert self.labels is not None

        def theirs(fields: Mapping[str, str], told: set[str]) -> bool:
            return told <= fields.keys() and self._format(self.case, fields) in cases

        told = _names(self.case)
        found = {path for path, fields in self._match(self.labels) if theirs(fields, told)}
        images = (fields for pattern in self.images for _, fields in self._match(pattern))
        return found | {self.root / self._format(self.labels, each) for each in images if theirs(each, told | _names(self.labels))}

    def _check_pairs(self, missing: Sequence[Path], alone: Sequence[Path]) -> None:
        if missing and not self.unlabelled:
            raise DataError(
                f"{counted(len(missing), 'image')} below {self.root} {'has' if len(missing) == 1 else 'have'} no label at "
                f"'{self.labels}': {listed(p.relative_to(self.root) for p in missing)}. Add the "
                "labels, or leave these images out with '++data.layout.unlabelled=true'."
            )
        if alone:
            raise DataError(
                f"{counted(len(alone), 'label')} below {self.root} {'has' if len(alone) == 1 else 'have'} no image at "
                f"'{self.images[0]}': {listed(p.relative_to(self.root) for p in alone)}. Add the "
                "images, or move these labels away."
            )

    def _case(self, name: str, parts: list[tuple[tuple[Path, ...], Path | None, dict[str, str]]]) -> CaseFiles:
        parts = sorted(parts, key=lambda part: natural_key(str(part[0][0])))
        fields = parts[0][2]
        self._check_slices(name, [(part[0][0], part[2]) for part in parts])
        if len(parts) > 1 and len(self.images) > 1 and not self.mosaic:
            raise DataError(
                f"Case '{name}' below {self.root} has {len(parts)} files per image pattern; bands and slices cannot both be "
                "stacked."
            )
        images = parts[0][0] if len(self.images) > 1 else tuple(part[0][0] for part in parts)
        labels = tuple(dict.fromkeys(part[1] for part in parts if part[1] is not None))
        given = fields.get("split", "")
        if given and given not in self.splits:
            raise DataError(
                f"{parts[0][0][0]} belongs to split '{given}', which 'data.layout.splits' does not know: it knows "
                f"{listed(self.splits)}. Add it, for example 'data.layout.splits={{{given}: train, …}}'."
            )
        common = {key: value for key, value in fields.items() if all(part[2].get(key) == value for part in parts)}
        found = CaseFiles(name, images, labels, self.splits.get(given, ""), common)
        if not self.mosaic or len(parts) == 1:
            return found
        if len(labels) > 1 and labels[0].suffix.lower() in VECTOR_SUFFIXES:
            raise DataError(
                f"The tiles of '{name}' have {len(labels)} vector files as labels: {listed(labels)}. Only rasters are put "
                "together; make one vector file of them, for example with 'ogrmerge.py -single -o labels.gpkg …'."
            )
        from voxtile.cases.mosaic import mosaic

        columns = list(zip(*(part[0] for part in parts), strict=True))
        return replace(
            found,
            images=tuple(mosaic(tiles, name) for tiles in columns),
            labels=(mosaic(labels, name),) if len(labels) > 1 else labels,
            tiles=tuple(path for tiles in columns for path in tiles),
        )

    def _check_slices(self, name: str, parts: Sequence[tuple[Path, dict[str, str]]]) -> None:
        """Files of one id are slices only where a name tells them apart and where they lie in one split."""
        told_apart = {tuple(sorted((key, value) for key, value in fields.items() if key != "split")) for _, fields in parts}
        if len(told_apart) < len(parts) or len({fields.get("split") for _, fields in parts}) > 1:
            raise DataError(
                f"Several files below {self.root} make case '{name}' and are no slices of one: "
                f"{listed(path.relative_to(self.root) for path, _ in parts)}. Expected one split per case, and ids that tell "
                "cases apart: put more names of the pattern into the id, for example '++data.layout.case=\"{split}_{id}\"'."
            )

    def _match(self, pattern: str) -> list[tuple[Path, dict[str, str]]]:
        """Files below the root that match, with what the names stand for."""
        regex = _expression(pattern)
        wild = "".join("*" if _TOKEN.fullmatch(piece) else glob.escape(piece) for piece in _pieces(pattern))
        wild = re.sub(r"\*+", "*", wild)  # of names that follow one another; two would stand for folders
        if self._folders:
            wild = "/".join([*map(glob.escape, self._folders), *wild.split("/")[len(self._folders) :]])
        hits = []
        for path in sorted(self.root.glob(wild)):
            match = regex.fullmatch(path.relative_to(self.root).as_posix())
            if match and not path.name.startswith("._"):  # which macOS puts beside each file that it packs
                hits.append((path, match.groupdict()))
        return hits

    def _format(self, pattern: str | None, fields: Mapping[str, str]) -> str:
        try:
            return re.sub(r"\{(\w+)(?::d)?\}", lambda hit: fields[hit[1]], pattern or "")
        except KeyError as error:
            raise DataError(
                f"The pattern '{pattern}' uses {{{error.args[0]}}}, which 'data.layout.images={self.images[0]}' does not define; "
                f"it defines {listed(fields) or 'no name'}."
            ) from None

    def _filled(self, pattern: str, fields: Mapping[str, str], first: Path, complete: bool) -> Path:
        path = self.root / self._format(pattern, fields)
        if complete:
            check_partners((first, path))
        return path


def check_partners(files: Sequence[Path]) -> None:
    """Refuses a case of several files of which one is not there.

    Raises:
        DataError: It is not.
    """
    there = [path for path in files if path.exists()]  # a folder may be a DICOM series
    if missing := [path for path in files if path not in there]:
        raise DataError(
            f"{there[0] if there else files[0]} has no partner {missing[0]}; every case needs one file per pattern of "
            "'data.layout.images'."
        )


_TOKEN = re.compile(r"\*|\{(?P<name>\w+)(?::(?P<kind>d))?\}")


def _pieces(pattern: str) -> list[str]:
    """A pattern cut into names in braces, '*' and what lies between them."""
    return re.split(r"(\{\w+(?::d)?\}|\*)", pattern)


def _expression(pattern: str) -> re.Pattern[str]:
    """What matches the files of a pattern, by their paths below the root."""
    seen: set[str] = set()

    def part(hit: re.Match[str]) -> str:
        name, digits = hit["name"], hit["kind"] == "d"
        if hit[0] == "*":
            return "[^/]*"
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{r'[0-9]+' if digits else r'[^/]+?'})"

    return re.compile("".join(_TOKEN.sub(part, each) if _TOKEN.fullmatch(each) else re.escape(each) for each in _pieces(pattern)))


def _names(pattern: str) -> set[str]:
    """What stands in braces."""
    return set(re.findall(r"\{(\w+)(?::d)?\}", pattern))


def _checked(setting: str, pattern: Any) -> str:
    """A pattern that was typed for `setting`.

    Raises:
        ConfigError: `pattern` names no file, or does not lead below the root.
    """
    if not isinstance(pattern, str):
        fault = "is not one text"
    elif not Path(pattern).parts:
        fault = "names no file"
    elif Path(pattern).is_absolute():
        fault = "is an absolute path"
    elif unnamed := [name for name in re.findall(r"\{(\w+)(?::d)?\}", pattern) if not name.isidentifier()]:
        fault = f"calls a part of a file's name '{unnamed[0]}', which does not begin with a letter"
    else:
        return pattern
    raise ConfigError(
        f"'{setting}={pattern}' {fault}. Expected a pattern of file names below the folder 'data.layout.root'; type, for example, "
        f"'{setting}=\"{setting.rpartition('.')[2]}/{{id}}.tif\"'."
    )
