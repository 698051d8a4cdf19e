"""DICOM segmentations: as labels, and as the maps of DICOM series, which viewers lay over the series that they are of.

What is read of one is an allow-list, as of images; what is written holds the patient and study of its series, as the standard asks.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import DataElement, Dataset, config, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from voxtile import __version__
from voxtile.cases.case import Source
from voxtile.cases.dicom import Series
from voxtile.cases.dicom_headers import PIXEL_KEYWORDS, functional_groups, group_item, in_silence
from voxtile.cases.maps import STEPS, MapSpec, MapWriter
from voxtile.cases.volumes import LPS_TO_RAS, TOLERANCE, Header, VolumeSource, to_stored, undecodable
from voxtile.cases.window import IGNORE, Size3
from voxtile.errors import DataError, reason

if TYPE_CHECKING:
    import highdicom

_READ = (
    *PIXEL_KEYWORDS, "SegmentationType", "MaximumFractionalValue", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
# Under these the map is filed: the patient's and the study's attributes that the standard asks for.
_FILED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
_GROUP, _CREATOR, _ABOUT = 0x0099, "voxtile", 0x01  # the private element that says of a map what it was made from
_NOT_JUDGED = "not judged"


class SegmentationSource(VolumeSource):
    """A DICOM segmentation on the grid of its image; where it has no frame, nothing is segmented.

    A voxel holds the number of its segment, 0 where it lies in none; of fractions the segment with the largest one, if it is at
    least a half.
    """

    def __init__(self, path: Path, image: Source, own: bool = False, heat: bool = False) -> None:
        """Reads the header.

        Args:
            path: the file.
            image: what it is a segmentation of.
            own: whether it is a map made here, whose voxels hold the indices of classes, `IGNORE` where nothing was judged.
            heat: whether it is a heatmap made here: a channel of probability per class.

        Raises:
            DataError: It cannot be read, or lies elsewhere than its image.
        """
        self._onto, self._image, self._own, self._heat = image, image.stored, own, heat
        text = repr((image.stored, own, heat))
        self.variant = f"seg{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        super().__init__([path])

    def _header(self, path: Path) -> Header:
        dataset = _read(path, stop_before_pixels=True)
        self._frames = _placed(path, dataset, self._image.matrix, self._image.shape)
        most = max((segment for segment, _ in self._frames), default=0)
        self._values, self._fill = _meaning(path) if self._own else (tuple(range(1, most + 1)), 0)
        if self._heat:
            return Header(self._image, max(most, 1), np.dtype(np.float32))
        # A label map's numbers are its pixels'.
        wide = most > IGNORE or dataset.get("BitsAllocated") == 16
        return Header(self._image, 1, np.dtype(np.uint16 if wide else np.uint8))

    def _voxels(self, path: Path) -> NDArray[Any]:
        dataset = _read(path)
        try:
            planes: NDArray[Any] = dataset.pixel_array if self._frames else np.empty(0)
        except Exception as error:  # each decoder has errors of its own
            raise undecodable(path, reason(error)) from error
        planes = planes.reshape(len(self._frames), *self._image.shape[1:])
        kind, most = str(dataset.SegmentationType), int(dataset.get("MaximumFractionalValue") or 1)
        if self._heat:
            return self._probabilities(planes, most)
        out = np.full(self._image.shape, self._fill, dtype=self.dtype)
        best = np.zeros(self._image.shape, dtype=planes.dtype) if kind == "FRACTIONAL" else None
        for (segment, z), plane in zip(self._frames, planes, strict=True):
            if kind == "LABELMAP":
                out[z] = plane
                continue
            here = plane > 0
            if best is not None:
                here = (plane > best[z]) & (2 * plane.astype(np.int32) >= most)
                best[z][here] = plane[here]
            elif (out[z][here] != self._fill).any():
                other = int(out[z][here & (out[z] != self._fill)][0])
                raise DataError(
                    f"{path} holds segments that overlap: {other} and {segment} share voxels of slice {z + 1}. A label has one "
                    "value per voxel; make a segmentation of it in which segments exclude one another."
                )
            out[z][here] = self._values[segment - 1]
        return out.transpose(2, 1, 0)

    def _probabilities(self, planes: NDArray[Any], most: int) -> NDArray[np.float32]:
        """Probabilities [x, y, z, class], NaN where those of all classes are 0: nothing was judged there."""
        out = np.zeros((len(self.channels), *self._image.shape), dtype=np.float32)
        for (segment, z), plane in zip(self._frames, planes, strict=True):
            out[segment - 1, z] = plane / np.float32(most)
        out[:, ~out.any(axis=0)] = np.nan
        return out.transpose(3, 2, 1, 0)

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return self._onto.map_name(stem, spec)

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`; the map is one of the image."""
        return self._onto.open_map(path, spec)


def _read(path: Path, stop_before_pixels: bool = False) -> Dataset:
    """What is needed of a segmentation.

    Raises:
        DataError: It cannot be read, or is none.
    """
    keywords = [*_READ, *([] if stop_before_pixels else ["PixelData"])]
    try:
        dataset: Dataset = dcmread(path, stop_before_pixels=stop_before_pixels, specific_tags=keywords)
        found = dataset.get("SegmentationType")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}. Expected a DICOM segmentation.") from error
    except Exception as error:  # pydicom's parsers have no error of their own, and a message could quote the header
        raise DataError(f"{path} cannot be read as DICOM ({type(error).__name__}). Expected a DICOM segmentation.") from None
    if found not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise DataError(f"{path} is no DICOM segmentation. Expected an object of that class (SEG), or a volume as .nii or .nii.gz.")
    return dataset


def _placed(path: Path, dataset: Dataset, matrix: NDArray[np.float64], shape: Size3) -> tuple[tuple[int, int], ...]:
    """The segment and the slice of each frame, on the image of `shape` (D, H, W) and of the affine `matrix`.

    Raises:
        DataError: A frame lies on no slice of the image.
    """
    depth, height, width = shape
    if (dataset.Rows, dataset.Columns) != (height, width):
        raise DataError(
            f"{path} has frames of {dataset.Columns}x{dataset.Rows} pixels, and its image slices of {width}x{height}. Expected a "
            "segmentation on the grid of its image; resample one of them."
        )
    corners = np.array([(x, y) for x in (0, width - 1) for y in (0, height - 1)], dtype=np.float64)
    inverse = np.linalg.inv(matrix)
    frames = []
    for number, groups in enumerate(functional_groups(dataset)):
        affine = _affine(path, groups)
        world = np.c_[corners, np.zeros(4), np.ones(4)] @ affine.T
        index = (np.c_[world, np.ones(4)] @ inverse.T)[:, :3]
        z = int(np.rint(index[:, 2].mean()))
        away = float(np.abs(index - np.c_[corners, np.full(4, z)]).max())
        if away > TOLERANCE or not 0 <= z < depth:
            raise DataError(
                f"Frame {number + 1} of {path} lies on no slice of its image: nearest is slice {z + 1} of {depth}, {away:.3g} "
                "voxels away at a corner. Expected a segmentation on the grid of its image; check that they belong together, or "
                "resample one of them."
            )
        identified = group_item(groups, "SegmentIdentificationSequence")
        frames.append((int(identified.ReferencedSegmentNumber) if identified else 1, z))
    return tuple(frames)


def _affine(path: Path, groups: Sequence[Dataset]) -> NDArray[np.float64]:
    """From (column, row, 0, 1) of a frame to mm towards right, anterior and superior [3, 4]."""
    items = [group_item(groups, f"{name}Sequence") or Dataset() for name in ("PlanePosition", "PlaneOrientation", "PixelMeasures")]
    try:
        origin = np.array(items[0].ImagePositionPatient, dtype=np.float64)
        directions = np.array(items[1].ImageOrientationPatient, dtype=np.float64)
        rows, columns = (float(value) for value in items[2].PixelSpacing)
    except AttributeError as error:
        raise DataError(f"{path} does not say where its frames lie in the patient. Expected a segmentation of a volume.") from error
    affine = np.stack([directions[:3] * columns, directions[3:] * rows, np.zeros(3), origin], axis=1)
    return np.asarray(affine * LPS_TO_RAS[:, None])


def about(path: Path) -> dict[str, Any]:
    """What a map made here says of itself: its "tags", and the class index of each segment and of the rest; empty where none is.

    Raises:
        OSError: It cannot be read.
        ValueError: The file is no map made here.
    """
    dataset = dcmread(path, stop_before_pixels=True, specific_tags=[Tag(_GROUP, 0x10), Tag(_GROUP, 0x1000 + _ABOUT)])
    found: dict[str, Any] = json.loads(dataset.private_block(_GROUP, _CREATOR)[_ABOUT].value)
    return found


def _meaning(path: Path) -> tuple[tuple[int, ...], int]:
    """The class index of each segment of a map made here, and of what lies in none."""
    try:
        found = about(path)
        return tuple(int(value) for value in found["values"]), int(found["rest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is a segmentation that does not say which class each segment is: it was made elsewhere, or its private "
            "elements were taken out. Expected a map made by 'voxtile predict'."
        ) from error


def open_segmentation(path: Path, spec: MapSpec, series: Series, shape: Size3, turn: NDArray[np.float64]) -> MapWriter:
    """A writer of a map of a series that ends as a DICOM segmentation.

    Of a semantic map each class but the background is a binary segment; of a heatmap each class is a fractional one in steps of
    1/254. Its UIDs are made of its content, so the same map has the same ones and another one others.

    Args:
        path: the file.
        spec: what it holds.
        series: what it is a map of.
        shape: of the series in canonical orientation (D, H, W).
        turn: how that follows from the stored orientation, as nibabel's orientations.

    Raises:
        DataError: No segmentation can be of this series, or hold this.
    """
    if spec.values:
        raise DataError(
            f"{series.files[0]} is DICOM, whose segmentations have a segment per class and no values, so 'values=stored' cannot be "
            "followed. Take it out; segments are called as the classes."
        )
    with in_silence():
        first = dcmread(series.files[0], stop_before_pixels=True, specific_tags=["FrameOfReferenceUID", "NumberOfFrames"])
    if not first.get("FrameOfReferenceUID"):
        raise DataError(
            f"{series.files[0]} has no frame of reference (FrameOfReferenceUID), which a DICOM segmentation needs. Convert the "
            "series to NIfTI, for example with dcm2niix, and predict that."
        )
    if len(series.files) > 1 and len(series.files) < len(series.slices):
        raise DataError(
            f"The series of {series.files[0]} has several multi-frame files, and a DICOM segmentation is of one. Convert it to "
            "single frames, or to NIfTI, for example with dcm2niix, and predict that."
        )
    if spec.heatmap:
        spec = replace(spec, stored="uint8")  # which is how the file stores them
    with _refused(series):  # now, and not when all is predicted
        _empty_heat(replace(spec, classes=spec.classes[:1]), series, "")

    def finish(array: NDArray[Any], making: Path) -> None:
        stored = to_stored(array, turn).transpose(3, 2, 1, 0)  # (channel, z, y, x)
        write = _write_heat if spec.heatmap else _write_classes
        with _refused(series):
            write(stored, making, spec, series)

    return MapWriter(path, shape, spec, finish)


@contextmanager
def _refused(series: Series) -> Iterator[None]:
    """Says of what highdicom refuses that it does, without its words, which quote the header."""
    try:
        with in_silence():
            yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"No DICOM segmentation of the series of {series.files[0]} could be made ({type(error).__name__}): its headers lack "
            "what the standard asks of images that a segmentation refers to. Convert the series to NIfTI, for example with "
            "dcm2niix, and predict that."
        ) from None


def _write_classes(stored: NDArray[Any], making: Path, spec: MapSpec, series: Series) -> None:
    """Writes class indices [1, z, y, x] as binary segments."""
    values = [index for index in range(len(spec.classes)) if index != spec.background]
    left = bool((stored == IGNORE).any())
    names = [spec.classes[index] for index in values] + [_NOT_JUDGED] * left
    values += [IGNORE] * left
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[values] = np.arange(1, len(values) + 1)
    rest = IGNORE if spec.background is None else spec.background
    array = numbers[stored[0]]
    if len(series.files) == 1:  # highdicom takes the frames of a multi-frame file in that file's order
        array = array[np.argsort([number for _, number in series.slices])]
    segmentation = _segmentation(
        array, "BINARY", names, [spec.colors[index] if index < len(spec.colors) else None for index in values],
        spec, series, _digest(stored), _sources(series),
    )  # fmt: skip
    _describe(segmentation, {"values": values, "rest": rest, "tags": dict(spec.tags)})
    segmentation.save_as(making)


def _write_heat(stored: NDArray[Any], making: Path, spec: MapSpec, series: Series) -> None:
    """Writes steps of probability [class, z, y, x] as fractional segments, slice by slice.

    highdicom would take all of them as real numbers at once. It is given slices of one pixel, and the frames that it describes are
    then put in.
    """
    segmentation = _empty_heat(spec, series, _digest(stored))
    _describe(segmentation, {"tags": dict(spec.tags)})
    segmentation.Rows, segmentation.Columns = stored.shape[2:]
    inverse = np.linalg.inv(series.grid.matrix)
    with tempfile.TemporaryFile(dir=making.parent) as file:
        for groups in functional_groups(segmentation):
            segment, position = (group_item(groups, f"{name}Sequence") for name in ("SegmentIdentification", "PlanePosition"))
            assert segment is not None  # highdicom writes both
            assert position is not None
            z = int(np.rint(inverse[2, :3] @ (LPS_TO_RAS * np.array(position.ImagePositionPatient, dtype=float)) + inverse[2, 3]))
            plane = stored[segment.ReferencedSegmentNumber - 1, z]
            file.write(np.where(plane == IGNORE, 0, plane).astype(np.uint8).tobytes())
        if file.tell() % 2:
            file.write(b"\0")
        file.seek(0)
        del segmentation.PixelData
        segmentation.add(DataElement("PixelData", "OB", file))
        segmentation.save_as(making)


def _empty_heat(spec: MapSpec, series: Series, digest: str) -> highdicom.seg.Segmentation:
    """A fractional segmentation of slices of one pixel."""
    sources = _sources(series)
    for source in sources:
        source.Rows, source.Columns = 1, 1
    colors = [*spec.colors, *[None] * len(spec.classes)][: len(spec.classes)]
    empty = np.zeros((len(series.slices), 1, 1, len(spec.classes)), dtype=np.uint8)
    return _segmentation(empty, "FRACTIONAL", spec.classes, colors, spec, series, digest, sources)


def _digest(stored: NDArray[Any]) -> str:
    found = hashlib.sha256()
    for plane in chain.from_iterable(stored):
        found.update(np.ascontiguousarray(plane).data)
    return found.hexdigest()


def _sources(series: Series) -> list[Dataset]:
    """The whole headers of a series, in the order of its slices."""
    return [dcmread(path, stop_before_pixels=True) for path in series.files]


def _segmentation(
    array: NDArray[np.uint8],
    kind: str,
    names: Sequence[str],
    colors: Sequence[tuple[int, int, int] | None],
    spec: MapSpec,
    series: Series,
    digest: str,
    sources: Sequence[Dataset],
) -> highdicom.seg.Segmentation:
    """A segmentation whose voxels are `array`: segment numbers [z, y, x], or one segment per last axis."""
    import highdicom

    filed = {keyword: sources[0].get(keyword) for keyword in _FILED}
    spacing = series.grid.spacing
    step, normal = series.grid.matrix[:3, 2], np.cross(*series.grid.matrix[:3, :2].T)
    apart = float(abs(step @ normal) / np.linalg.norm(normal))
    for source in sources:
        source.SliceThickness = source.get("SliceThickness") or apart  # which highdicom asks for
        for keyword in _FILED:  # highdicom checks them, and refuses or logs what many scanners write
            source.add(DataElement(keyword, dictionary_VR(keyword), ""))
    first = sources[0]
    made_from = [str(first.SeriesInstanceUID), json.dumps([spec.classes, spec.tags, kind]), digest]
    found = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=array,
        segmentation_type=kind,
        segment_descriptions=[_described(n, name, color) for n, (name, color) in enumerate(zip(names, colors, strict=True), 1)],
        series_instance_uid=generate_uid(entropy_srcs=["series", *made_from]),
        series_number=1000 + max(int(first.get("SeriesNumber") or 0), 0),
        sop_instance_uid=generate_uid(entropy_srcs=["instance", *made_from]),
        instance_number=1,
        manufacturer="voxtile",
        manufacturer_model_name="voxtile",
        software_versions=__version__,
        device_serial_number=dict(spec.tags).get("run", "0")[:64],
        max_fractional_value=STEPS,
        content_label="VOXTILE",
        content_description="Heatmap" if spec.heatmap else "Semantic map",
        series_description=f"voxtile {'heatmap' if spec.heatmap else 'segmentation'}",
        pixel_measures=highdicom.PixelMeasuresSequence(
            pixel_spacing=spacing[1:], slice_thickness=float(first.SliceThickness), spacing_between_slices=apart
        ),
        omit_empty_frames=kind == "BINARY" and bool(array.any()),
        specific_character_set="ISO_IR 192",
    )
    if kind == "FRACTIONAL":
        found.SegmentsOverlap = "UNDEFINED"
    dimensions = generate_uid(entropy_srcs=["dimensions", *made_from])  # highdicom draws one, and the same map is to be the same
    for item in (*found.DimensionOrganizationSequence, *found.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    for keyword, value in filed.items():
        text = "" if value is None else str(value)
        element = DataElement(keyword, dictionary_VR(keyword), text, validation_mode=config.IGNORE)
        found.add(element)
    return found


def _described(number: int, name: str, color: tuple[int, int, int] | None) -> highdicom.seg.SegmentDescription:
    """A segment called by its class. What a class is, in the words of a terminology, is not known: its code is private."""
    import highdicom
    from pydicom.sr.coding import Code

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=Code("309825002", "SCT", "Spatial and Relational Concept"),
        segmented_property_type=Code(hashlib.sha256(name.encode()).hexdigest()[:12], "99VOXTILE", name[:64]),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="voxtile", family=Code("123110", "DCM", "Artificial Intelligence"), version=__version__
        ),
        display_color=None if color is None else highdicom.color.CIELabColor.from_rgb(*color),
    )


def _describe(segmentation: Dataset, found: dict[str, Any]) -> None:
    """Says of a map what it was made from, in a private element, which viewers pass over."""
    segmentation.private_block(_GROUP, _CREATOR, create=True).add_new(_ABOUT, "UT", json.dumps(found))
