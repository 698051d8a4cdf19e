"""NIfTI volumes: any orientation, 3D or 4D, several files as channels, decoded once into a memory-mapped cache."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from voxtile.cases.cache import cached_array
from voxtile.cases.case import Source, distinct_names
from voxtile.cases.grid import CanonicalGrid, Grid, StoredGrid
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.window import Window
from voxtile.errors import DataError, reason

_UNITS = {1: ("metre", 1000.0), 2: ("mm", 1.0), 3: ("micrometre", 0.001)}  # NIfTI-1's codes; millimetres in one of them
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zlib.error, ImageFileError, HeaderDataError)
_TOLERANCE = 0.1  # of a voxel, at the corner that lies farthest apart


class NiftiSource(Source):
    """One NIfTI file, 3D or 4D with channels last, or several 3D files on one grid stacked as channels.

    The canonical grid's axes are the file's, permuted and flipped to point as near as can be towards right, anterior and
    superior; nothing is resampled. Arrays lie as (C, z, y, x). A voxel holds data where it is finite in all channels that
    are read. The data type is the file's own, or float32 where the header scales it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads the headers.

        Args:
            paths: .nii or .nii.gz files.

        Raises:
            DataError: A file cannot be read, holds no 3D or 4D image of real numbers, or lies on another grid than the first.
        """
        self.paths = tuple(paths)
        images = [_load(path) for path in self.paths]
        self.stored = _stored_grid(images[0], self.path)
        self._turn = io_orientation(self.stored.matrix)
        self.canonical = _canonical_grid(self.stored, self._turn)
        self._notes = [note for path, image in zip(self.paths, images, strict=True) for note in _notes(image, path)]
        for path, image in zip(self.paths[1:], images[1:], strict=True):
            self._notes += _compare(_stored_grid(image, path), self.stored, f"{path}", f"{self.path}")
        counts = [image.shape[3] if len(image.shape) == 4 else 1 for image in images]
        self._parts = [(file, number) for file, count in enumerate(counts) for number in range(count)]
        self.dtype = np.result_type(*(_dtype(image) for image in images))
        self.channels = tuple(f"channel{number + 1}" for number in range(len(self._parts)))
        if len(self.paths) > 1 and max(counts) == 1:
            self.channels = distinct_names(self.paths)

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        out = np.empty((len(channels), *window.size), dtype=self.dtype)
        for row, channel in enumerate(channels):
            file, number = self._parts[channel]
            out[row] = self._decoded(self.paths[file])[number][window.slices]
        return out, np.asarray(np.isfinite(out).all(axis=0))

    def _decoded(self, path: Path) -> NDArray[Any]:
        """All of a file in canonical orientation [C, D, H, W], from the cache."""
        array = cached_array(path, lambda: _decode(path, self._turn), "ras")
        if array.shape[1:] != self.canonical.shape:
            raise DataError(
                f"{path} holds an array of shape {array.shape[1:]} (D, H, W) now, and had {self.canonical.shape} when it was "
                "opened: it was replaced meanwhile. Give the same command again."
            )
        return array

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return f"{stem}.nii.gz"

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`; the finished file has the input's orientation, qform, sform, codes and units."""
        return MapWriter(path, self.canonical.shape, spec, _finisher(_load(self.path).header, self._turn, spec))

    def notes(self) -> list[str]:
        """See `Source.notes`."""
        return list(self._notes)


def nifti_label(path: Path, onto: NiftiSource) -> NiftiSource:
    """Opens a label volume, which must lie on the grid of its image; it may be stored in another orientation.

    Raises:
        DataError: The label is 4D, has another shape, or lies elsewhere by more than a tenth of a voxel.
    """
    label = NiftiSource([path])
    if len(label.channels) != 1:
        raise DataError(f"{path} has {len(label.channels)} channels (a 4D image); a label is 3D, one class value per voxel.")
    label._notes += _compare(label.canonical, onto.canonical, f"The label {path}", f"its image {onto.path}")
    return label


def _load(path: Path) -> Any:
    """Opens a NIfTI image without reading its voxels."""
    try:
        image = nib.load(path)
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as NIfTI: {reason(error)}. Expected an intact .nii or .nii.gz file.") from error
    if not isinstance(image, nib.Nifti1Pair):
        raise DataError(f"{path} is {type(image).__name__}, not NIfTI. Expected a .nii or .nii.gz file.")
    if len(image.shape) not in (3, 4) or 0 in image.shape:
        raise DataError(f"{path} has the shape {image.shape}. Expected a volume (x, y, z), or (x, y, z, channels).")
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(
            f"{path} holds values of type {image.get_data_dtype()}. Expected integers or real numbers; save colours as one channel "
            "each, complex numbers as magnitudes."
        )
    return image


def _stored_grid(image: Any, path: Path) -> StoredGrid:
    matrix = np.array(image.affine, dtype=np.float64)
    matrix[:3] *= _unit(image)[1]
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or lengths.min() == 0 or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise DataError(
            f"{path} places its voxels by the affine {matrix[:3].tolist()}, which is singular. Expected three independent "
            "directions and non-zero voxel sizes; repair the header's qform or sform."
        )
    width, height, depth = image.shape[:3]
    return StoredGrid((depth, height, width), _nested(matrix), "mm")


def _canonical_grid(stored: StoredGrid, turn: NDArray[np.float64]) -> CanonicalGrid:
    """The grid after turning: `turn` gives for each stored axis (x, y, z) the canonical axis and the direction, 1 or -1."""
    sizes = stored.shape[::-1]
    x, y, z = (sizes[axis] for axis in np.argsort(turn[:, 0]))
    return CanonicalGrid((z, y, x), _nested(stored.matrix @ inv_ornt_aff(turn, sizes)), "mm")


def _nested(matrix: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in matrix)


def _unit(image: Any) -> tuple[str, float]:
    return _UNITS.get(int(image.header["xyzt_units"]) & 7, ("mm", 1.0))


def _is_scaled(image: Any) -> bool:
    return (image.dataobj.slope, image.dataobj.inter) != (1.0, 0.0)


def _dtype(image: Any) -> np.dtype[Any]:
    if _is_scaled(image):
        return np.dtype(np.float32)
    stored: np.dtype[Any] = image.get_data_dtype().newbyteorder("=")
    return stored


def _decode(path: Path, turn: NDArray[np.float64]) -> NDArray[Any]:
    """Reads all voxels in canonical orientation [C, D, H, W]."""
    image = _load(path)
    try:
        scaled = _is_scaled(image)
        voxels = image.get_fdata(caching="unchanged", dtype=np.float32) if scaled else image.dataobj.get_unscaled()
    except _UNREADABLE as error:
        raise DataError(
            f"{path} could not be decoded: {reason(error)}. The file is probably cut off or damaged; fetch it again, or leave the "
            "case out with 'data.exclude=[…]'."
        ) from error
    turned = apply_orientation(voxels.reshape(*voxels.shape[:3], -1), turn)
    return np.ascontiguousarray(turned.transpose(3, 2, 1, 0), dtype=_dtype(image))


def _notes(image: Any, path: Path) -> list[str]:
    """What is odd about a header."""
    header, notes = image.header, []
    grid = _stored_grid(image, path)
    qform, q_code = header.get_qform(coded=True)
    _, s_code = header.get_sform(coded=True)
    if q_code == 0 and s_code == 0:
        notes.append(f"{path} has neither qform nor sform: where left and right are is taken on trust.")
    elif q_code > 0 and s_code > 0:
        scaled = np.diag([_unit(image)[1]] * 3 + [1.0]) @ qform
        away = grid.corner_distance(StoredGrid(grid.shape, _nested(scaled), "mm"))
        if away > _TOLERANCE:
            notes.append(f"{path}: qform and sform disagree by {away:.2f} voxels at a corner; the sform is used.")
    if _unit(image)[0] != "mm":
        notes.append(f"{path} gives lengths in {_unit(image)[0]}s; they are converted to mm.")
    return notes


def _compare(grid: Grid, other: Grid, name: str, other_name: str) -> list[str]:
    """Notes a small distance between two grids that must be one, and raises DataError for a large one."""
    if grid.shape != other.shape:
        raise DataError(
            f"{name} has {grid.shape} voxels and {other_name} {other.shape} (D, H, W). Expected one grid; check that the files "
            "belong together, or resample one of them."
        )
    away = other.corner_distance(grid)
    if away > _TOLERANCE:
        raise DataError(
            f"{name} lies {away:.3g} voxels away from {other_name} at a corner, by the affines of their headers. Expected the same "
            "place; check that the files belong together, then copy the right header, or resample one of them."
        )
    return [f"{name} lies {away:.2g} voxels away from {other_name} at a corner, taken as the same place."] if away > 1e-3 else []


def _finisher(header: Any, turn: NDArray[np.float64], spec: MapSpec) -> Callable[[NDArray[Any], Path], None]:
    """Returns what turns a finished array [channels, D, H, W] back to the stored orientation and saves it under `header`."""
    kind: Any = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    back = ornt_transform(axcodes2ornt("RAS"), turn)

    def finish(array: NDArray[Any], making: Path) -> None:
        voxels = apply_orientation(array.transpose(3, 2, 1, 0), back)
        image = kind(voxels if spec.heatmap else voxels[..., 0], header.get_best_affine(), header)
        own = image.header
        own.set_data_dtype(spec.dtype)
        own.set_intent("none" if spec.heatmap else "label")
        own["cal_min"] = own["cal_max"] = 0  # the input's display range would hide the classes
        own["descrip"] = b"voxtile map; its classes are named in the header extension"
        # The input's own extensions may name the patient and are not copied.
        about = json.dumps({"classes": spec.classes, "tags": dict(spec.tags)}).encode()
        own.extensions[:] = [Nifti1Extension("comment", about)]
        nib.save(image, making)

    return finish
