"""DICOM series as volumes: slices sorted by where they lie, in the units that the rescale slope and intercept give."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from voxtile.cases.case import distinct_names
from voxtile.cases.dicom_headers import PIXEL_KEYWORDS, FileHeader, Frame, PixelFormat, headers, passed_over, read_header
from voxtile.cases.grid import StoredGrid
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.volumes import LPS_TO_RAS, TOLERANCE, Header, VolumeSource, stored_grid, undecodable
from voxtile.errors import DataError, counted, listed, reason

_SAME_DIRECTION = 1e-3  # of a unit vector's component: scanners round them
_SAME_PLACE = 0.01  # mm
_TILTED = 0.1  # degrees


@dataclass(frozen=True)
class Series:
    """The slices of one volume, in the order in which they lie along their normal.

    Attributes:
        files: without repetition, in that order.
        slices: for each slice the index of its file and its frame there.
        scales: slope and intercept of each slice.
        grid: how the voxels lie; x along a row, y along a column, z from slice to slice.
        pixels: how they are stored.
        notes: what is odd.
    """

    files: tuple[Path, ...]
    slices: tuple[tuple[int, int], ...]
    scales: tuple[tuple[float, float], ...]
    grid: StoredGrid
    pixels: PixelFormat
    notes: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """int16 where slopes are 1 and intercepts whole and all that can be stored fits, else float32."""
        low = -(2 ** (self.pixels.stored - 1)) if self.pixels.signed else 0
        high = low + 2**self.pixels.stored - 1
        whole = all(slope == 1 and intercept.is_integer() for slope, intercept in self.scales)
        fits = all(low + intercept >= -(2**15) and high + intercept < 2**15 for _, intercept in self.scales)
        return np.dtype(np.int16 if whole and fits else np.float32)


class DicomSource(VolumeSource):
    """One DICOM series, or several on one grid stacked as channels.

    `paths` holds the first file of each series, `files` all of them, both in the order in which slices lie.
    """

    def __init__(self, series: Sequence[Sequence[Path]], names: Sequence[str] = ()) -> None:
        """Reads the headers.

        Args:
            series: the files of each series, in any order.
            names: of the channels; as for other volumes where empty.

        Raises:
            DataError: A file is cut off or no slice of a volume, slices are missing or of several volumes, or series lie on
                different grids.
        """
        sorted_series = [read_series(files) for files in series]
        self._series = {each.files[0]: each for each in sorted_series}
        super().__init__([each.files[0] for each in sorted_series])
        if names:
            self.channels = tuple(names)

    @classmethod
    def at(cls, paths: Sequence[Path]) -> DicomSource:
        """The series that `paths` stand for, each a folder with the files of one series, or a file of the series in its folder."""
        return cls([files_at(path) for path in paths], distinct_names(paths) if len(paths) > 1 else ())

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Source.files`."""
        return tuple(path for each in self._series.values() for path in each.files)

    def _files(self, path: Path) -> tuple[Path, ...]:
        return self._series[path].files

    def _header(self, path: Path) -> Header:
        series = self._series[path]
        return Header(series.grid, 1, series.dtype, series.notes)

    def _voxels(self, path: Path) -> NDArray[Any]:
        series = self._series[path]
        out = np.empty(series.grid.shape, dtype=series.dtype)
        places = sorted(range(len(out)), key=lambda z: series.slices[z])
        for index, its in itertools.groupby(places, key=lambda z: series.slices[z][0]):
            planes = _planes(series.files[index], series.pixels)
            for z in its:
                slope, intercept = series.scales[z]
                plane = planes[series.slices[z][1]]
                out[z] = plane * slope + intercept if out.dtype.kind == "f" else plane + np.int32(intercept)
        return out.transpose(2, 1, 0)

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return f"{stem}.dcm"

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`; the finished file is a DICOM segmentation of the (first) series."""
        from voxtile.cases.dicom_seg import open_segmentation

        return open_segmentation(path, spec, self._series[self.path], self.canonical.shape, self._turn)


def files_at(path: Path) -> list[Path]:
    """The files of one series: of a folder all, of a file those in its folder that belong to its series.

    Raises:
        DataError: `path` is a file that is no DICOM.
    """
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    header = read_header(path)
    if header is None:
        raise DataError(f"{path} is no DICOM file: the letters 'DICM' do not stand at byte 128. Expected a slice of a series.")
    siblings, _ = headers(sorted(file for file in path.parent.iterdir() if file.is_file()))
    return [each.path for each in siblings if each.series == header.series]


def read_series(paths: Sequence[Path]) -> Series:
    """Sorts the slices of one series.

    Raises:
        DataError: The slices make no volume; the message says why.
    """
    found, others = headers(paths)
    where = paths[0].parent
    if not found:
        raise DataError(
            f"{where} holds no DICOM image: in none of {counted(len(paths), 'file')} do the letters 'DICM' stand at byte 128. "
            "Expected the files of a series."
        )
    _check_one_series(found, where)
    for header in found:
        if header.unfit or header.broken:
            raise DataError(header.unfit or header.broken)
    _check_alike(found, where)
    frames = [frame for header in found for frame in header.frames]
    affine, order, notes = _place(frames, max(header.thickness for header in found), where)
    pixels = found[0].pixels
    assert pixels is not None  # those of broken files
    frames = [frames[index] for index in order]
    files = tuple(dict.fromkeys(frame.path for frame in frames))
    number = {path: index for index, path in enumerate(files)}
    notes = [*passed_over(others, where), *notes]
    if pixels.photometric == "MONOCHROME1":
        notes.append(f"{where} asks viewers to show low values bright (MONOCHROME1); values are read as they are.")
    if any(header.burned for header in found):
        notes.append(f"{where}: the headers say that text is burned into the pixels; it may name the patient.")
    return Series(
        files,
        tuple((number[frame.path], frame.number) for frame in frames),
        tuple((frame.slope, frame.intercept) for frame in frames),
        stored_grid(affine, (pixels.columns, pixels.rows, len(frames)), files[0], "repair the headers' positions"),
        pixels,
        tuple(notes),
    )


def _check_one_series(found: Sequence[FileHeader], where: Path) -> None:
    """Refuses files of several series."""
    first: dict[str, FileHeader] = {}
    for header in found:
        first.setdefault(header.series, header)
    if len(first) > 1:
        counts = Counter(header.series for header in found)
        parts = [f"{counted(counts[key], 'file')} like {header.path.name} ({header.modality})" for key, header in first.items()]
        raise DataError(
            f"{where} holds files of {len(first)} series (SeriesInstanceUID): {listed(parts)}. Expected one; put each into a "
            "folder of its own, or choose by rules with 'data.layout._target_=voxtile.cases.dicom_layout.DicomLayout'."
        )


def _check_alike(found: Sequence[FileHeader], where: Path) -> None:
    """Refuses slices of one series that differ in size, kind of pixels, orientation or spacing."""
    first = found[0]
    for header in found:
        if header.pixels != first.pixels:
            raise DataError(
                f"The series in {where} mixes slices: {first.path.name} has {first.pixels}, {header.path.name} {header.pixels}. "
                "Expected slices of one kind; put each kind into a folder of its own."
            )
    frames = [frame for header in found for frame in header.frames]
    for kind, tolerance in (("orientation", _SAME_DIRECTION), ("spacing", _SAME_DIRECTION * max(frames[0].spacing))):
        values = np.array([getattr(frame, kind) for frame in frames])
        away = np.abs(values - values[0]).max(axis=1)
        if (away > tolerance).any():
            odd = int(np.argmax(away > tolerance))
            name = {"orientation": "ImageOrientationPatient", "spacing": "PixelSpacing"}[kind]
            raise DataError(
                f"The series in {where} mixes slices of different {kind} ({name}): {int((away > tolerance).sum())} of "
                f"{len(frames)} differ from {frames[0].path.name}, the first of them {frames[odd].path.name}: {_said(values[odd])} "
                f"instead of {_said(values[0])}. Expected parallel slices of one spacing; put each stack into a folder of its own."
            )


def _said(values: Sequence[float] | NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _place(frames: Sequence[Frame], thickness: float, where: Path) -> tuple[NDArray[np.float64], list[int], list[str]]:
    """Where the slices of a volume lie.

    Returns:
        The affine [4, 4] from (x, y, z) to mm towards right, anterior and superior; the indices of the frames in the order of z;
        and notes.

    Raises:
        DataError: Slices are missing, or several lie at one place, or they do not lie one behind the other.
    """
    row, column = np.array(frames[0].orientation[:3]), np.array(frames[0].orientation[3:])
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > _SAME_DIRECTION:
        raise DataError(
            f"{frames[0].path} gives the directions of rows and columns as {_said(frames[0].orientation)}. Expected two unit "
            "vectors at right angles (ImageOrientationPatient); repair the header."
        )
    normal = np.cross(row, column)
    positions = np.array([frame.position for frame in frames])
    along = positions @ normal
    order = [int(index) for index in np.argsort(along, kind="stable")]
    positions, along = positions[order], along[order]
    notes = []
    if len(frames) == 1:
        step = normal * (thickness or 1.0)
        notes.append(f"{where} holds one slice; its thickness is taken as {thickness or 1.0:g} mm.")
    else:
        _check_places([frames[index] for index in order], along, where)
        step = (positions[-1] - positions[0]) / (len(frames) - 1)
        notes += _check_line(positions, step, normal, max(frames[0].spacing), where)
    columns = [row * frames[0].spacing[1], column * frames[0].spacing[0], step, positions[0]]
    affine = np.eye(4)
    affine[:3] = np.stack(columns, axis=1) * LPS_TO_RAS[:, None]
    return affine, order, notes


def _check_places(frames: Sequence[Frame], along: NDArray[np.float64], where: Path) -> None:
    """Refuses several slices at one place, and missing ones; `along` says where sorted slices lie along their normal, in mm."""
    gaps = np.diff(along)
    if (same := np.flatnonzero(gaps < _SAME_PLACE)).size:
        first, second = frames[same[0]], frames[same[0] + 1]
        theirs = dict(second.repeat)
        differing = [name for name, value in first.repeat if theirs.get(name) != value]
        names = [f"{frame.path.name} (frame {frame.number + 1})" if frame.number else frame.path.name for frame in (first, second)]
        what = (
            f"they differ in {listed(differing)}, so the series holds several volumes (echoes, times, directions). Put each into a "
            "folder of its own, or convert the series to 4D NIfTI, for example with dcm2niix"
            if differing
            else "nothing in the headers tells them apart. Take the copies away"
        )
        raise DataError(
            f"{counted(same.size, 'slice')} of the series in {where} lie where another one lies, first {names[0]} and "
            f"{names[1]}, both at {along[same[0]]:.2f} mm along the normal: {what}."
        )
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower median: of few slices a gap must not count as usual
    off = np.flatnonzero(np.abs(gaps - usual) > 2 * TOLERANCE * usual)
    if not off.size:
        return
    worst = int(off[np.argmax(np.abs(gaps[off] - usual))])
    before, after = frames[worst], frames[worst + 1]
    between = (
        f"between {before.path.name} at {_said(before.position)} and {after.path.name} at {_said(after.position)} (mm, "
        f"ImagePositionPatient) lie {gaps[worst]:.4g} mm along the normal where {usual:.4g} mm are usual"
    )
    missing = np.rint(gaps[off] / usual).astype(int) - 1
    if (missing > 0).all() and np.abs(gaps[off] - (missing + 1) * usual).max() <= 2 * TOLERANCE * usual:
        raise DataError(
            f"The series in {where} lacks {counted(int(missing.sum()), 'slice')} in {counted(off.size, 'place')}: {between}. Fetch "
            "the series again, or leave it out (of a training by 'data.exclude=[…]')."
        )
    raise DataError(
        f"The slices of the series in {where} are spaced unevenly in {counted(off.size, 'place')}, most of all {between}. Expected "
        "even spacing; slices are missing, or the series holds several stacks. Fetch it again, or resample it to an even spacing."
    )


def _check_line(
    positions: NDArray[np.float64], step: NDArray[np.float64], normal: NDArray[np.float64], pixel: float, where: Path
) -> list[str]:
    """Refuses slices that do not lie on a line at even distances; notes a tilt, and small deviations."""
    off = positions - positions[0] - np.arange(len(positions))[:, None] * step
    forward = off @ normal
    sideways = np.linalg.norm(off - forward[:, None] * normal, axis=1)
    thick = float(step @ normal)
    worst = int(np.argmax(np.maximum(np.abs(forward) / thick, sideways / pixel)))
    if abs(forward[worst]) > TOLERANCE * thick or sideways[worst] > TOLERANCE * pixel:
        raise DataError(
            f"The slices of the series in {where} do not lie on a straight line at even distances: slice {worst + 1} of "
            f"{len(positions)} lies {abs(forward[worst]):.3g} mm along and {sideways[worst]:.3g} mm across the normal from "
            f"where the first and the last one put it. Expected at most a tenth of {thick:.3g} mm and of a pixel; "
            "resample the series."
        )
    notes = []
    away = float(np.linalg.norm(off, axis=1).max())
    if away > _SAME_PLACE:
        notes.append(f"{where}: slices lie up to {away:.2g} mm away from even distances, taken as even.")
    tilt = float(np.degrees(np.arccos(np.clip(thick / np.linalg.norm(step), -1, 1))))
    if tilt > _TILTED:
        notes.append(
            f"{where}: slices are shifted against each other by a tilt of {tilt:.1f}° (gantry tilt); the affine is sheared."
        )
    return notes


def _planes(path: Path, pixels: PixelFormat) -> NDArray[Any]:
    """The stored values of a file's frames [frame, row, column], without what other bits than the stored ones hold."""
    keywords = [*PIXEL_KEYWORDS, "PixelData", "PlanarConfiguration"]
    try:
        planes: NDArray[Any] = dcmread(path, specific_tags=keywords).pixel_array
    except Exception as error:  # each decoder has errors of its own
        raise undecodable(path, reason(error)) from error
    planes = planes.reshape(-1, *planes.shape[-2:])
    if planes.shape[1:] != (pixels.rows, pixels.columns):
        raise DataError(
            f"{path} holds slices of {planes.shape[1:]} pixels now, and had {(pixels.rows, pixels.columns)} when it was opened: it "
            "was replaced meanwhile. Give the same command again."
        )
    spare = 8 * planes.itemsize - pixels.stored
    kind = np.dtype(f"{'i' if pixels.signed else 'u'}{planes.itemsize}")
    values: NDArray[Any] = planes.astype(planes.dtype.newbyteorder("="), copy=False).view(kind)
    return np.right_shift(np.left_shift(values, spare), spare) if spare else values
