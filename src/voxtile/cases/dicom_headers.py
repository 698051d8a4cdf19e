"""What is read of a DICOM header: an allow-list of geometry, pixel description and kind; identifiers as hashes only.

pydicom parses the elements named in `_READ` and passes over all others, so a patient's name is never in memory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import Dataset, config, dcmread
from pydicom.uid import UID

from voxtile.cases.cache import Stamp, stamp_of
from voxtile.errors import DataError, counted, listed, reason

_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # bits or fractions; a number a pixel
_SEGMENTATION = "Segmentation Storage"
_DIRECTORY = "1.2.840.10008.1.3.10"  # of a DICOMDIR
_IDENTIFIERS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")  # leave this module as hashes only
PIXEL_KEYWORDS = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "NumberOfFrames",
)  # fmt: skip
# What tells several pictures of one place apart; of these only the names are ever said.
_REPEATS = (
    "EchoTime", "EchoNumbers", "InversionTime", "FlipAngle", "TemporalPositionIdentifier", "TriggerTime", "DiffusionBValue",
    "AcquisitionNumber", "ImageType",
)  # fmt: skip
_GEOMETRY = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices", "SliceThickness", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_READ = (
    *_IDENTIFIERS, *PIXEL_KEYWORDS, *_REPEATS, *_GEOMETRY, "SOPClassUID", "Modality", "SeriesDescription", "BurnedInAnnotation",
    "ReferencedSeriesSequence",
)  # fmt: skip
# What brings a decoder for what pydicom cannot decode by itself.
_DECODERS = {"2000": "pylibjpeg pylibjpeg-openjpeg", "JPEG-LS": "pyjpegls", "JPEG": "pylibjpeg pylibjpeg-libjpeg"}


@dataclass(frozen=True)
class Frame:
    """One slice.

    Attributes:
        path: its file.
        number: which frame of the file, from 0.
        position: of its first pixel's centre in mm, towards left, posterior and superior.
        orientation: unit vectors along a row and along a column.
        spacing: mm between rows, and between columns.
        slope: what a stored value is multiplied by.
        intercept: what is added to it then.
        repeat: what could tell it apart from others at its place, by name.
    """

    path: Path
    number: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: float
    intercept: float
    repeat: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class PixelFormat:
    """How pixels are stored; the same in all slices of a volume."""

    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool
    photometric: str

    def __str__(self) -> str:
        sign = "signed" if self.signed else "unsigned"
        return f"{self.columns}x{self.rows} pixels of {self.stored} bits, {sign}, {self.photometric}"


@dataclass(frozen=True)
class FileHeader:
    """What is kept of one file's header.

    Attributes:
        path: the file.
        instance: hash of its SOPInstanceUID.
        series: hash of its SeriesInstanceUID.
        study: hash of its StudyInstanceUID.
        patient: hash of its PatientID, or of the study where it has none.
        modality: "CT", "MR", …
        description: the SeriesDescription, for the rules of `DicomLayout`; written nowhere.
        kind: the standard's name of the object's class.
        unfit: why it holds no slice of a volume, "" where it does.
        broken: why its slices cannot be decoded, "" where they can.
        pixels: how they are stored; None where it is unfit or broken.
        frames: its slices; empty where it is unfit.
        thickness: mm from slice to slice by the header, used where a series has one slice only.
        burned: whether the header says that text may be burned into the pixels.
        references: hashes of the series that a segmentation is of.
    """

    path: Path
    instance: str
    series: str
    study: str
    patient: str
    modality: str
    description: str = field(repr=False)
    kind: str
    unfit: str
    broken: str
    pixels: PixelFormat | None
    frames: tuple[Frame, ...]
    thickness: float
    burned: bool
    references: tuple[str, ...]

    @property
    def is_segmentation(self) -> bool:
        """Whether it is a DICOM segmentation."""
        return self.kind == _SEGMENTATION


def pseudonym(text: str) -> str:
    """A short hash of an identifier, keyed by the environment variable VOXTILE_DICOM_KEY where it is set, in hexadecimal."""
    key = os.environ.get("VOXTILE_DICOM_KEY", "voxtile").encode()
    return hashlib.blake2b(text.encode(), key=hashlib.sha256(key).digest(), digest_size=6).hexdigest()


def headers(paths: Iterable[Path]) -> tuple[list[FileHeader], list[Path]]:
    """The headers of DICOM files, and the files that are none, DICOMDIRs among them.

    Raises:
        DataError: A file cannot be read, is cut off, or is an image that this package does not read.
    """
    found, others = [], []
    for path in paths:
        header = read_header(path)
        if header is None:
            others.append(path)
        else:
            found.append(header)
    return found, others


def read_header(path: Path) -> FileHeader | None:
    """The header of a file, remembered until it changes; None where it is no DICOM.

    Raises:
        DataError: See `headers`.
    """
    try:
        stamp = stamp_of(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
    return _read_header(path, stamp, os.environ.get("VOXTILE_DICOM_KEY"))


@lru_cache(maxsize=100_000)
def _read_header(path: Path, stamp: Stamp, key: str | None) -> FileHeader | None:
    try:
        with path.open("rb") as file:
            file.seek(128)
            if file.read(4) != b"DICM":
                return None
            file.seek(0)
            dataset = parsed(file)
            left = stamp[0] - file.tell()
            if UID(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY:
                return None
            return _header(path, dataset, left)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
    except DataError:
        raise
    except Exception as error:  # pydicom's parsers have no error of their own, and a message could quote the header
        raise DataError(
            f"{path} begins like a DICOM file, and its header cannot be read ({type(error).__name__}). The file is probably cut "
            "off or damaged; fetch it again, or move it away."
        ) from None


def parsed(file: BinaryIO) -> Dataset:
    """What may be read of the header of an open file; values that break the standard's rules are taken without a word."""
    with in_silence():
        dataset: Dataset = dcmread(file, stop_before_pixels=True, specific_tags=list(_READ))
        for element in dataset:
            element.value  # noqa: B018  # values are parsed when they are asked for, and later it would not be in silence
    return dataset


@contextmanager
def in_silence() -> Iterator[None]:
    """Without pydicom's warnings, in the log and elsewhere, which quote what a header holds."""

    def refuse(record: logging.LogRecord) -> bool:
        return False

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config.logger.addFilter(refuse)
        try:
            yield
        finally:
            config.logger.removeFilter(refuse)


def _header(path: Path, dataset: Dataset, left: int) -> FileHeader:
    missing = [each for each in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID") if not dataset.get(each)]
    if missing:
        raise DataError(
            f"{path} has no {listed(missing)}: it does not say to which series it belongs. The file is probably cut off; fetch it "
            "again, or move it away."
        )
    uid = UID(dataset.get("SOPClassUID", ""))
    kind = uid.name if uid.is_valid and not uid.is_private and uid.name != uid else "an object of an unknown class"
    if uid in _SEGMENTATIONS:
        kind = _SEGMENTATION
    unfit = _unfit(path, dataset, kind)
    broken, pixels = "", None
    frames: tuple[Frame, ...] = ()
    if not unfit:
        try:
            frames, pixels = _frames(path, dataset), _pixels(path, dataset, left)
        except DataError as error:
            broken = str(error)
    study = pseudonym(dataset.StudyInstanceUID)
    references = [each for each in dataset.get("ReferencedSeriesSequence") or [] if "SeriesInstanceUID" in each]
    return FileHeader(
        path=path,
        instance=pseudonym(dataset.SOPInstanceUID),
        series=pseudonym(dataset.SeriesInstanceUID),
        study=study,
        patient=pseudonym(dataset.PatientID) if dataset.get("PatientID") else study,
        modality=str(dataset.get("Modality") or ""),
        description=str(dataset.get("SeriesDescription") or ""),
        kind=kind,
        unfit=unfit,
        broken=broken,
        pixels=pixels,
        frames=frames,
        thickness=float(dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness") or 0),
        burned=dataset.get("BurnedInAnnotation") == "YES",
        references=tuple(pseudonym(each.SeriesInstanceUID) for each in references),
    )


def _unfit(path: Path, dataset: Dataset, kind: str) -> str:
    """Why an object holds no slice of a volume."""
    photometric, groups = str(dataset.get("PhotometricInterpretation")), dataset.get("PerFrameFunctionalGroupsSequence")
    if "Rows" not in dataset and kind.endswith("Image Storage"):
        return (
            f"{path} is of the class {kind} and has no pixels: its header ends early. The file is probably cut off; fetch it "
            "again, or move it away."
        )
    if "Rows" not in dataset or kind == _SEGMENTATION:
        return f"{path} is no image: its class is {kind}. Expected slices of a volume, as of CT, MR or PET; move it away."
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or dataset.get("SamplesPerPixel", 1) != 1:
        return f"{path} is a picture in colours ({kind}). Expected slices of grey values; move the series away."
    if "LOCALIZER" in _image_type(dataset):
        return f"{path} is a localizer, a scout view that shows where slices lie. Expected slices of a volume; move it away."
    if "MOSAIC" in _image_type(dataset) and not groups:
        return (
            f"{path} is a mosaic: the slices of a volume side by side in one picture. Convert the series to NIfTI, for example "
            "with dcm2niix, and train on that."
        )
    if not groups and int(dataset.get("NumberOfFrames") or 1) > 1:
        return (
            f"{path} ({kind}) has several frames and says of none where it lies. Expected one slice per file, or an enhanced "
            "multi-frame object; convert the series first."
        )
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    if not groups and (lacking := [key for key in needed if not dataset.get(key)]):
        return (
            f"{path} ({kind}) lacks {listed(lacking)}, so it is not known where it lies in the patient. Expected slices of a "
            "volume, as of CT, MR or PET; move the series away."
        )
    return ""


def _image_type(dataset: Dataset) -> list[str]:
    found = dataset.get("ImageType") or []
    return [found] if isinstance(found, str) else [str(word) for word in found]


def _pixels(path: Path, dataset: Dataset, left: int) -> PixelFormat:
    """How the pixels are stored, of which `left` bytes lie in the file."""
    syntax, photometric = UID(dataset.file_meta.TransferSyntaxUID), str(dataset.PhotometricInterpretation)
    if "ModalityLUTSequence" in dataset:
        raise DataError(
            f"{path} maps its stored values by a table (Modality LUT). Expected a slope and an intercept; convert the series first."
        )
    try:
        allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
        pixels = PixelFormat(dataset.Rows, dataset.Columns, allocated, stored, dataset.PixelRepresentation == 1, photometric)
    except AttributeError as error:
        raise DataError(
            f"{path} lacks {error.name}, without which pixels cannot be decoded. The file is probably damaged; fetch it again."
        ) from None
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated or dataset.get("HighBit", stored - 1) != stored - 1:
        raise DataError(
            f"{path} stores {stored} of {allocated} bits, the highest at {dataset.get('HighBit')}. Expected 8, 16 or 32 bits whose "
            "lowest hold the values."
        )
    _check_syntax(path, syntax)
    frames = int(dataset.get("NumberOfFrames") or 1)
    needed = pixels.rows * pixels.columns * frames * allocated // 8
    if not syntax.is_encapsulated and not syntax.is_deflated and left < needed:
        raise DataError(
            f"{path} ends early: its pixels take {needed:,} bytes, and {max(left, 0):,} are left after the header. The file is cut "
            "off; fetch it again."
        )
    return pixels


@lru_cache(maxsize=64)
def _has_decoder(syntax: UID) -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:  # how pydicom says that it knows no decoder of this syntax
        return False


def _check_syntax(path: Path, syntax: UID) -> None:
    if (syntax.is_transfer_syntax and not syntax.is_encapsulated) or _has_decoder(syntax):
        return
    package = next((needed for word, needed in _DECODERS.items() if word in syntax.name), None)
    remedy = f"Type 'pip install {package}', or decompress" if package else "Decompress"
    raise DataError(
        f"{path} is compressed as {syntax.name} (transfer syntax {syntax}), and no decoder for it is installed. {remedy} the "
        "series first, for example with 'gdcmconv --raw'."
    )


def _frames(path: Path, dataset: Dataset) -> tuple[Frame, ...]:
    """The slices of an image, by its own header or by its functional groups."""
    groups = functional_groups(dataset)
    if not groups:
        repeat = tuple((key, str(dataset[key].value)) for key in _REPEATS if key in dataset)
        slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
        return (_frame(path, 0, dataset.get, slope, intercept, repeat),)
    if len(groups) != int(dataset.get("NumberOfFrames") or 1):
        raise DataError(
            f"{path} has {dataset.get('NumberOfFrames')} frames and describes {len(groups)} of them. It is damaged; fetch it again."
        )
    return tuple(_grouped(path, number, its) for number, its in enumerate(groups))


def functional_groups(dataset: Dataset) -> list[list[Dataset]]:
    """The functional groups of each frame of an enhanced object: its own before those that all frames share."""
    shared: Sequence[Dataset] = dataset.get("SharedFunctionalGroupsSequence") or []
    return [[own, *shared] for own in dataset.get("PerFrameFunctionalGroupsSequence") or []]


def group_item(groups: Sequence[Dataset], sequence: str) -> Dataset | None:
    """The item of a sequence in the first of a frame's functional groups that has one."""
    found = (group[sequence] for group in groups if sequence in group)
    return next((element.value[0] for element in found if element.VR == "SQ" and element.value), None)


def _grouped(path: Path, number: int, groups: Sequence[Dataset]) -> Frame:
    """One frame of an enhanced object by its functional groups."""

    def found(sequence: str, keyword: str) -> Any:
        return (group_item(groups, sequence) or Dataset()).get(keyword)

    frame_type = found("CTImageFrameTypeSequence", "FrameType") or found("MRImageFrameTypeSequence", "FrameType") or []
    if "LOCALIZER" in frame_type:
        raise DataError(f"{path} holds a localizer, a scout view. Expected slices of a volume; move it away.")
    named = {
        "EffectiveEchoTime": found("MREchoSequence", "EffectiveEchoTime"),
        "TemporalPositionIndex": found("FrameContentSequence", "TemporalPositionIndex"),
        "DiffusionBValue": found("MRDiffusionSequence", "DiffusionBValue"),
    }
    geometry = {
        "ImagePositionPatient": found("PlanePositionSequence", "ImagePositionPatient"),
        "ImageOrientationPatient": found("PlaneOrientationSequence", "ImageOrientationPatient"),
        "PixelSpacing": found("PixelMeasuresSequence", "PixelSpacing"),
    }
    if lacking := [key for key, value in geometry.items() if not value]:
        raise DataError(
            f"{path} lacks {listed(lacking)} for frame {number + 1}, so it is not known where that lies in the patient. Expected "
            "slices of a volume, as of CT, MR or PET; move the series away."
        )
    repeat = tuple((key, str(value)) for key, value in named.items() if value is not None)
    slope, intercept = (found("PixelValueTransformationSequence", key) for key in ("RescaleSlope", "RescaleIntercept"))
    return _frame(path, number, geometry.get, slope, intercept, repeat)


def _frame(
    path: Path, number: int, get: Callable[[str], Any], slope: Any, intercept: Any, repeat: tuple[tuple[str, str], ...]
) -> Frame:
    position, orientation, spacing = (
        tuple(float(value) for value in get(key)) for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    return Frame(
        path, number, position, orientation, spacing, 1.0 if slope is None else float(slope), float(intercept or 0), repeat
    )


def passed_over(others: Sequence[Path], where: Path) -> list[str]:
    """A note of files that are no DICOM images."""
    if not others:
        return []
    return [f"{where}: {counted(len(others), 'file')} passed over, since no DICOM image: {listed(path.name for path in others)}."]
