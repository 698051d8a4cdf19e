"""nnU-Net's raw data, version 2."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtile.cases.layouts.layout import CaseFiles, Declared, Layout
from voxtile.cases.names import natural_key
from voxtile.errors import DataError, counted, listed

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})")
_KEYS = ("channel_names", "labels", "file_ending", "numTraining")


class NnUnetLayout(Layout):
    """`dataset.json` with channel_names, labels, file_ending and numTraining.

    Channels lie in `imagesTr/<case>_0000<ending>`, `…_0001…`, labels in `labelsTr/<case><ending>`, or where its "dataset" says.
    What lies in `imagesTs` has no label and is no case.
    """

    def patterns(self, channels: int) -> tuple[str, ...]:
        """See `Layout.patterns`."""
        return tuple(f"{{case}}_{number:04d}" for number in range(channels))

    def declared(self) -> Declared:
        """See `Layout.declared`."""
        return self._declared(self._document())

    def images_below(self, root: Path, within: Path, suffixes: Sequence[str] = ()) -> list[CaseFiles]:
        """See `Layout.images_below`; the files lie side by side, as in `imagesTs`."""
        folder = within if within.is_dir() else within.parent
        cases = [CaseFiles(name, files) for name, files in self._gathered(folder, suffixes).items()]
        return cases if within.is_dir() else [files for files in cases if within in files.images]

    @property
    def _listing(self) -> Path:
        return self.root / "dataset.json"

    def _expected(self) -> str:
        return "there is no label in labelsTr, and its dataset.json lists none under 'dataset'"

    def _document(self) -> dict[str, Any]:
        try:
            document: Any = json.loads(self._listing.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self._listing} cannot be read: {error!r}. Expected nnU-Net's JSON, with {listed(_KEYS)}.") from error
        if not isinstance(document, dict):
            raise DataError(f"{self._listing} is a list or a value. Expected nnU-Net's JSON, with {listed(_KEYS)}.")
        if missing := [key for key in _KEYS if key not in document]:
            if "modality" in document or "training" in document:
                raise DataError(self._of_version_1(document))
            raise DataError(f"{self._listing} lacks {listed(missing)}. Expected nnU-Net's JSON of version 2, with {listed(_KEYS)}.")
        return document

    def _of_version_1(self, document: Mapping[str, Any]) -> str:
        """What to type where `dataset.json` lists pairs under "training": as in the Decathlon, and in nnU-Net before version 2."""
        said = (
            f"{self._listing} is of nnU-Net's version 1 or of the Medical Segmentation Decathlon: it has "
            f"{listed(key for key in ('modality', 'training') if key in document)}, and version 2, which NnUnetLayout reads, has "
            f"{listed(_KEYS)}. "
        )
        cases = self._gathered(self.root / "imagesTr", [".nii.gz"])
        if not cases:
            return said + "Type 'data.layout._target_=voxtile.cases.layouts.MsdLayout'."
        channels = [f"imagesTr/{{id}}_{path.name[-11:]}" for path in next(iter(cases.values()))]
        return said + (
            f"Describe its files with FolderLayout: 'images: {json.dumps(channels)}' and 'labels: \"labelsTr/{{id}}.nii.gz\"'."
        )

    def _declared(self, document: Mapping[str, Any]) -> Declared:
        values: dict[int, str] = {}
        regions: dict[str, tuple[int, ...]] = {}
        labels = document["labels"]
        for name, value in labels.items() if isinstance(labels, dict) else ():
            if isinstance(value, list) and value and all(type(each) is int for each in value):
                regions[str(name)] = tuple(value)
            elif type(value) is int and value not in values:
                values[value] = str(name)
            else:
                raise DataError(
                    f"{self._listing}, 'labels', says {name!r}: {value!r}. Expected a whole number that no other name has, or "
                    "a list of them for a region."
                )
        if not values and not regions:
            raise DataError(f'{self._listing} names no labels. Expected, for example, "labels": {{"background": 0, "tumor": 1}}.')
        if regions:  # beside which a name with one value is a region, too, but for the background and what is ignored
            regions |= {name: (value,) for value, name in values.items() if value != 0 and name != "ignore"}
            values = {value: name for value, name in values.items() if name not in regions}
        return Declared(self._listing, values, regions)

    def _find(self) -> list[CaseFiles]:
        document = self._document()
        listed_files = document.get("dataset")
        found = self._listed(listed_files) if listed_files is not None else self._in_folders(str(document["file_ending"]))
        if type(document["numTraining"]) is int and found and len(found) != document["numTraining"]:
            raise DataError(
                f"{self._listing} says that there are {counted(document['numTraining'], 'training case')} (numTraining), and "
                f"{len(found)} were found. Fetch the others, or correct the number."
            )
        names = self._channel_names(document)
        # One file may hold all channels, but is the only one left where other cases have one for each.
        separate = listed_files is None and any(len(files.images) == len(names) > 1 for files in found)
        for files in found:
            count = len(files.images)
            if count != len(names) and (count > 1 or separate):
                missing = [f"{files.id}_{number:04d}{document['file_ending']}" for number in range(count, len(names))]
                lacking = f", and lacks {listed(missing)}" if listed_files is None and missing else ""
                raise DataError(
                    f"Case '{files.id}' below {self.root} has {counted(count, 'image file')}, "
                    f"{listed(path.name for path in files.images)}{lacking}. Expected one for each of {listed(names)}, the "
                    "channel_names of dataset.json."
                )
        return [CaseFiles(files.id, files.images, files.labels, channels=names) for files in found]

    def _channel_names(self, document: Mapping[str, Any]) -> tuple[str, ...]:
        given = document["channel_names"]
        if not isinstance(given, dict) or sorted(given) != sorted(map(str, range(len(given)))) or not given:
            raise DataError(
                f"{self._listing}, 'channel_names', says {given!r}. Expected names by number from 0 on, for example "
                '{"0": "T1", "1": "FLAIR"}.'
            )
        names = [str(given[str(number)]) for number in range(len(given))]
        # A name also says how nnU-Net normalises the channel, so several may be called alike.
        return tuple(name if names.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(names))

    def _listed(self, entries: Any) -> list[CaseFiles]:
        """The cases that "dataset" lists: {case: {"images": [paths], "label": path}}."""
        cases = []
        where = f"{self._listing}, 'dataset',"
        for name, entry in entries.items() if isinstance(entries, dict) else [("", {})]:
            given = entry if isinstance(entry, dict) else {}
            images, label = given.get("images"), given.get("label")
            if not isinstance(images, list) or not images or not isinstance(label, str) or "/" in name:
                raise DataError(f'{where} has {name!r}: {entry!r}. Expected {{"case": {{"images": [paths], "label": path}}}}.')
            files = tuple(self._inside(str(image), where) for image in images)
            cases.append(CaseFiles(str(name), files, (self._inside(label, where),)))
        return cases

    def _in_folders(self, ending: str) -> list[CaseFiles]:
        images = self._gathered(self.root / "imagesTr", [ending])
        labels = {path.name.removesuffix(ending): path for path in _files(self.root / "labelsTr", [ending])}
        for missing, what, where in (
            ([name for name in images if name not in labels], "images without a label", "labelsTr"),
            ([name for name in labels if name not in images], "labels without images", "imagesTr"),
        ):
            if missing:
                raise DataError(
                    f"{self.root} holds {what}: {listed(missing)}. Expected, in {where}, names that end "
                    f"in '{ending}' (file_ending), behind '_0000' and so on in imagesTr. Add the files, or move these away."
                )
        return [CaseFiles(name, images[name], (labels[name],)) for name in sorted(images, key=natural_key)]

    def _gathered(self, folder: Path, endings: Sequence[str]) -> dict[str, tuple[Path, ...]]:
        """The files `<case>_0000<ending>`, `<case>_0001<ending>`, … in a folder by case, in the order of their numbers."""
        found: dict[str, list[Path]] = {}
        for path in _files(folder, endings):
            ending = max((each for each in endings if path.name.lower().endswith(each.lower())), key=len)
            if match := _CHANNEL.fullmatch(path.name[: -len(ending)]):
                files = found.setdefault(match["case"], [])
                files.append(path)
                if int(match["channel"]) != len(files) - 1:
                    missing = f"{match['case']}_{len(files) - 1:04d}{ending}"
                    lacking = "one in several kinds of file" if int(match["channel"]) < len(files) - 1 else f"no {missing}"
                    raise DataError(
                        f"Case '{match['case']}' in {folder} has the files {listed(each.name for each in files)}, and {lacking}. "
                        "Expected _0000, _0001, … without a gap, once each."
                    )
        return {name: tuple(found[name]) for name in sorted(found, key=natural_key)}


def _files(folder: Path, endings: Iterable[str]) -> list[Path]:
    """The files in a folder with one of these endings, sorted, without hidden ones."""
    ends = tuple(ending.lower() for ending in endings)
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(ends) and not path.name.startswith("."))
