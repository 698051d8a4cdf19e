"""Volumes in any orientation, whatever their file format: turned to face right, anterior and superior, decoded once."""

from __future__ import annotations

import gzip
import threading
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from voxtile.cases.cache import Known, cached_array, forget
from voxtile.cases.case import Source, distinct_names
from voxtile.cases.grid import CanonicalGrid, Grid, StoredGrid, nested
from voxtile.cases.window import Window
from voxtile.errors import DataError

_DECODING = threading.BoundedSemaphore(4)
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])  # axes of DICOM and ITK point left, posterior and superior
TOLERANCE = 0.1  # of a voxel, at the corner that lies farthest apart


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        grid: how its voxels lie, in mm.
        channels: how many values a voxel has.
        dtype: their type once they are scaled as the header says.
        notes: what is odd about it without being wrong.
    """

    grid: StoredGrid
    channels: int
    dtype: np.dtype[Any]
    notes: tuple[str, ...] = ()


class VolumeSource(Source):
    """One volume, with or without channels, or several on one grid stacked as channels; a file format is one subclass.

    The canonical grid's axes are the file's, permuted and flipped to point as near as can be towards right, anterior and
    superior; nothing is resampled. Arrays lie as (C, z, y, x). A voxel holds data where it is finite in all channels that
    are read.

    Attributes:
        variant: names what is made of the same files' content, in the cache.
    """

    variant = "ras"

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads the headers.

        Args:
            paths: files.

        Raises:
            DataError: A file cannot be read, holds no volume of real numbers, or lies on another grid than the first.
        """
        self.paths = tuple(paths)
        self._known: Known = {}
        headers = [self._header(path) for path in self.paths]
        self.stored = headers[0].grid
        self._turn = io_orientation(self.stored.matrix)
        self.canonical = _canonical_grid(self.stored, self._turn)
        self._notes = [note for header in headers for note in header.notes]
        for path, header in zip(self.paths[1:], headers[1:], strict=True):
            self._notes += compare(header.grid, self.stored, f"{path}", f"{self.path}")
        self._parts = [(file, number) for file, header in enumerate(headers) for number in range(header.channels)]
        self.dtype = np.result_type(*(header.dtype for header in headers))
        self.channels = tuple(f"channel{number + 1}" for number in range(len(self._parts)))
        if len(self.paths) > 1 and max(header.channels for header in headers) == 1:
            self.channels = distinct_names(self.paths)

    @abstractmethod
    def _header(self, path: Path) -> Header:
        """What a file says of itself, checked."""

    @abstractmethod
    def _voxels(self, path: Path) -> NDArray[Any]:
        """All of a file's voxels in the stored order, [x, y, z] or [x, y, z, channel], of the header's data type."""

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        out = np.empty((len(channels), *window.size), dtype=self.dtype)
        parts = [self._parts[channel] for channel in channels]
        arrays = {file: self._decoded(self.paths[file]) for file in {file for file, _ in parts}}
        for row, (file, number) in enumerate(parts):
            out[row] = arrays[file][number][window.slices]
        return out, np.asarray(np.isfinite(out).all(axis=0))

    def whole(self, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.whole`."""
        parts = [self._decode(path) for path in self.paths]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts).astype(self.dtype, copy=False)
        if list(channels) != list(range(len(array))):
            array = array[list(channels)]
        return array, np.asarray(np.isfinite(array).all(axis=0))

    @property
    def is_one_piece(self) -> bool:
        """See `Source.is_one_piece`."""
        return True

    @property
    def decoded_bytes(self) -> int:
        """See `Source.decoded_bytes`."""
        return Window.whole(self.stored.shape).pixels * len(self.channels) * self.dtype.itemsize

    def _decode(self, path: Path) -> NDArray[Any]:
        """All of a file in canonical orientation [C, D, H, W]; few at a time, since each takes several times its size of memory."""
        with _DECODING:
            return self._turned(self._voxels(path))

    def _files(self, path: Path) -> tuple[Path, ...]:
        """The files that the volume at `path` is made of, in an order that is part of it."""
        return (path,)

    def _decoded(self, path: Path) -> NDArray[Any]:
        """All of a file in canonical orientation [C, D, H, W], from the cache."""
        array = cached_array(self._files(path), lambda: self._decode(path), self.variant, known=self._known)
        if array.shape[1:] != self.canonical.shape:
            left = forget(array)  # where it is the cache that is wrong, the file is decoded again then
            held = f"holds a wrong array of it: delete {left}" if left else "held a wrong array of it, which is deleted now"
            raise DataError(
                f"{path} holds an array of shape {array.shape[1:]} (D, H, W) now, and had {self.canonical.shape} when it was "
                f"opened: it was replaced meanwhile, or the cache {held}. Give the same command again."
            )
        return array

    def _turned(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """Stored voxels in canonical orientation [C, D, H, W]."""
        turned = apply_orientation(voxels.reshape(*voxels.shape[:3], -1), self._turn)
        return np.ascontiguousarray(turned.transpose(3, 2, 1, 0), dtype=voxels.dtype.newbyteorder("="))

    def notes(self) -> list[str]:
        """See `Source.notes`."""
        return list(self._notes)


def to_stored(array: NDArray[Any], turn: NDArray[np.float64]) -> NDArray[Any]:
    """An array [C, D, H, W] in canonical orientation as a file stores it, [x, y, z, channel].

    `turn` says how the canonical orientation follows from the stored one, as nibabel's orientations.
    """
    return np.asarray(apply_orientation(array.transpose(3, 2, 1, 0), ornt_transform(axcodes2ornt("RAS"), turn)))


def on_image(label: VolumeSource, image: Source) -> VolumeSource:
    """A label volume, which must lie on the grid of its image; it may be stored in another orientation or format.

    Raises:
        DataError: The label is 4D, has another shape, or lies elsewhere by more than a tenth of a voxel.
    """
    if len(label.channels) != 1:
        raise DataError(
            f"{label.path} has {len(label.channels)} channels (a 4D image, or several values per voxel); a "
            "label is 3D, one class value per voxel. Write one channel, or each voxel's class index, to a file of its own."
        )
    label._notes += compare(label.canonical, image.canonical, f"The label {label.path}", f"its image {image.path}")
    return label


def compare(grid: Grid, other: Grid, name: str, other_name: str) -> list[str]:
    """Notes a small distance between two grids that must be one, and raises DataError for a large one."""
    if grid.shape != other.shape:
        raise DataError(
            f"{name} has {grid.shape} voxels and {other_name} {other.shape} (D, H, W). Expected one grid; check that the files "
            "belong together, or resample one of them."
        )
    away = other.corner_distance(grid)
    if away > TOLERANCE:
        raise DataError(
            f"{name} lies {away:.3g} voxels away from {other_name} at a corner, by the affines of their headers. Expected the same "
            "place; check that the files belong together, then copy the right header, or resample one of them."
        )
    return [f"{name} lies {away:.2g} voxels away from {other_name} at a corner, taken as the same place."] if away > 1e-3 else []


def stored_grid(matrix: NDArray[np.float64], shape: Sequence[int], path: Path, remedy: str) -> StoredGrid:
    """The grid of a file of `shape` (x, y, z), given its affine [4, 4] in mm, towards right, anterior and superior.

    Raises:
        DataError: The affine is singular; the message ends with `remedy`.
    """
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or lengths.min() == 0 or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise DataError(
            f"{path} places its voxels by the affine {matrix[:3].tolist()}, which is singular. Expected three independent "
            f"directions and non-zero voxel sizes; {remedy}."
        )
    width, height, depth = shape
    return StoredGrid((depth, height, width), nested(matrix), "mm")


def undecodable(path: Path, why: str) -> DataError:
    """The error for a file whose header is right and whose voxels cannot be decoded."""
    return DataError(
        f"{path} could not be decoded: {why}. The file is probably cut off or damaged; fetch it again, or leave it out (of a "
        "training by 'data.exclude=[…]')."
    )


def check_gzip(file: BinaryIO) -> None:
    """Reads gzipped voxels to their end, where a checksum lies that no library comes to which stops at the last voxel.

    What follows the end and is not gzipped is let be.

    Raises:
        OSError, EOFError, zlib.error: The checksum is missing or not that of the voxels.
    """
    with gzip.GzipFile(fileobj=file) as voxels:
        try:
            while voxels.read(2**20):
                pass
        except gzip.BadGzipFile as error:
            if "Not a gzipped file" not in str(error):
                raise


def _canonical_grid(stored: StoredGrid, turn: NDArray[np.float64]) -> CanonicalGrid:
    """The grid after turning: `turn` gives for each stored axis (x, y, z) the canonical axis and the direction, 1 or -1."""
    sizes = stored.shape[::-1]
    x, y, z = (sizes[axis] for axis in np.argsort(turn[:, 0]))
    return CanonicalGrid((z, y, x), nested(stored.matrix @ inv_ornt_aff(turn, sizes)), "mm")
