"""The Brain Imaging Data Structure, with masks in a derivative."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxtile.cases.layouts.layout import CaseFiles, Layout
from voxtile.cases.names import natural_key
from voxtile.errors import ConfigError, DataError, listed
from voxtile.values import check_switch

_ENDINGS = (".nii.gz", ".nii")
_NO_RAW = ("derivatives", "sourcedata", "code")  # folders of a data set that hold no raw images


@dataclass(frozen=True)
class _Name:
    """A name as BIDS has it: `sub-01_ses-2_label-lesion_mask` has three entities and the suffix "mask"."""

    entities: Mapping[str, str]
    suffix: str

    @classmethod
    def of(cls, text: str) -> _Name:
        *parts, suffix = text.split("_")
        return cls({key: value for key, _, value in (part.partition("-") for part in parts)}, suffix)

    def is_a(self, wanted: _Name) -> bool:
        """Whether it has the suffix that is wanted, and at least the entities."""
        return self.suffix == wanted.suffix and wanted.entities.items() <= self.entities.items()


class BidsLayout(Layout):
    """`sub-01/[ses-1/]anat/sub-01[_ses-1]_T1w.nii.gz` with masks in `derivatives/<pipeline>/sub-01/…`.

    A case is a subject's session; its group is the subject, unless `data.group` has a rule. Rules may use `subject` and `session`.
    """

    def __init__(
        self,
        root: str,
        suffixes: str | Sequence[str],
        derivative: str,
        mask: str = "dseg",
        folder: str = "anat",
        incomplete: bool = False,
    ) -> None:
        """Remembers the names.

        Args:
            root: the data set's folder.
            suffixes: of the images, one for each channel, in order: `[T1w, FLAIR]`. Entities before a suffix tell images apart
                that have the same: `acq-mprage_T1w`.
            derivative: the folder of the masks, below the root: `derivatives/lesions`.
            mask: the masks' suffix, with entities where several have it: `dseg`, `label-lesion_mask`.
            folder: the kind of data, which is a folder: anat, dwi, perf.
            incomplete: whether sessions that lack an image or the mask are left out instead of being an error.
        """
        super().__init__(root)
        self.suffixes = [suffixes] if isinstance(suffixes, str) else [str(suffix) for suffix in suffixes]
        if not self.suffixes:
            raise ConfigError("'data.layout.suffixes' is empty. Give one for each channel, for example '[T1w,FLAIR]'.")
        check_switch("data.layout.incomplete", incomplete)
        self.derivative, self.mask, self.folder, self.incomplete = derivative, mask, folder, incomplete

    def patterns(self, channels: int) -> tuple[str, ...]:
        """See `Layout.patterns`."""
        return tuple(f"sub-{{subject}}_{suffix}.nii.gz" for suffix in self.suffixes)

    def images_below(self, root: Path, within: Path, suffixes: Sequence[str] = ()) -> list[CaseFiles]:
        """See `Layout.images_below`; the files may lie in any folder below, and need not lie as in a data set."""
        if within.is_file():
            cases = self._cases(_sessions(within.parent.iterdir()))[0]
            return [files for files in cases if within in files.images]
        inner = (path for path in within.rglob("sub-*") if not set(path.relative_to(within).parts) & set(_NO_RAW))
        return self._cases(_sessions(inner))[0]

    def _expected(self) -> str:
        return f"no file is called 'sub-…/{self.folder}/sub-…_{self.suffixes[0]}.nii.gz' (data.layout.suffixes)"

    def _find(self) -> list[CaseFiles]:
        images, lacking = self._cases(self._below(self.root))
        masks = self._below(self.root / self.derivative)
        wanted = _Name.of(self.mask)
        cases = []
        for files in images:
            found = [path for path in masks.get(files.id, ()) if _name(path).is_a(wanted)]
            if len(found) > 1:
                raise self._several(files.id, found, f"mask: label-lesion_{wanted.suffix}")
            if found:
                cases.append(replace(files, labels=(found[0],)))
            else:
                lacking.append(f"{files.id} (the mask '{self.mask}' in {self.derivative})")
        if lacking and not self.incomplete:
            raise DataError(
                f"{len(lacking)} sessions below {self.root} lack a file: {listed(lacking)}. Add the files, correct "
                "'data.layout.suffixes', 'data.layout.derivative' or 'data.layout.mask', or leave these sessions out with "
                "'data.layout.incomplete=true'."
            )
        return cases

    def _below(self, root: Path) -> dict[str, list[Path]]:
        """The files of each session that lie as in a data set."""
        return _sessions(path for places in ("sub-*", "sub-*/ses-*") for path in root.glob(f"{places}/{self.folder}/sub-*"))

    def _cases(self, sessions: Mapping[str, Sequence[Path]]) -> tuple[list[CaseFiles], list[str]]:
        """Cases that have all images, without labels; and what others lack that have some."""
        cases, lacking = [], []
        for name in sorted(sessions, key=natural_key):
            images = []
            missing = []
            for suffix in self.suffixes:
                found = [path for path in sessions[name] if _name(path).is_a(_Name.of(suffix))]
                if len(found) > 1:
                    raise self._several(name, found, f"suffixes: [run-1_{suffix}]")
                images += found
                missing += [] if found else [suffix]
            if images and missing:
                lacking.append(f"{name} ({listed(missing)})")
            elif images:
                entities = _Name.of(f"{name}_").entities
                fields = {"subject": entities["sub"], "session": entities.get("ses", "")}
                cases.append(
                    CaseFiles(name, tuple(images), fields=fields, channels=tuple(self.suffixes), group=f"sub-{entities['sub']}")
                )
        return cases, lacking

    def _several(self, name: str, found: Sequence[Path], remedy: str) -> DataError:
        return DataError(
            f"{name} has several files where one is wanted: {listed(found)}. Say which with more of their names, as in "
            f"'{remedy}' (data.layout)."
        )


def _name(path: Path) -> _Name:
    return _Name.of(next(path.name.removesuffix(ending) for ending in _ENDINGS if path.name.endswith(ending)))


def _sessions(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Images by subject and session, `sub-01_ses-1`, sorted by name."""
    sessions: dict[str, list[Path]] = {}
    for path in sorted(paths):
        if path.name.startswith("sub-") and path.name.endswith(_ENDINGS):
            entities = _name(path).entities
            name = f"sub-{entities['sub']}" + (f"_ses-{entities['ses']}" if "ses" in entities else "")
            sessions.setdefault(name, []).append(path)
    return sessions
