"""MetaImage and NRRD volumes (.mha, .mhd, .nrrd, .nhdr), by SimpleITK."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  # as its own documentation calls it
from numpy.typing import NDArray

from voxtile.cases.itk_header import read_header
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.volumes import LPS_TO_RAS, Header, VolumeSource, check_gzip, stored_grid, to_stored, undecodable
from voxtile.errors import DataError, reason

ABOUT = "voxtile"  # the metadata key of what a map says of itself
_MOST_ABOUT = 32_000  # characters: MetaIO writes longer values and cannot read them (33,000 failed, 32,000 did not)
_READERS = {".mha": "MetaImageIO", ".mhd": "MetaImageIO", ".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO"}
_ONE_FILE = {".mhd": ".mha", ".nhdr": ".nrrd"}  # a map is one file, which can come under its name at once
_DTYPES = {
    f"{vector}{kind}": dtype
    for vector in ("sitk", "sitkVector")
    for kind, dtype in {
        "UInt8": "u1", "Int8": "i1", "UInt16": "u2", "Int16": "i2", "UInt32": "u4", "Int32": "i4", "UInt64": "u8", "Int64": "i8",
        "Float32": "f4", "Float64": "f8",
    }.items()
}  # fmt: skip
_NUMPY = {getattr(sitk, name): np.dtype(dtype) for name, dtype in _DTYPES.items()}


class ItkSource(VolumeSource):
    """MetaImage or NRRD files; the components of a voxel are channels. The data type is the file's own."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads the headers; see `VolumeSource`."""
        self._data: dict[Path, Path] = {}  # header -> the file of its own that holds the voxels
        super().__init__(paths)

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Source.files`."""
        return (*self.paths, *self._data.values())

    def _header(self, path: Path) -> Header:
        text = read_header(path)
        if text.data:
            self._data[path] = text.data
        reader = _opened(path)
        size, channels = reader.GetSize(), reader.GetNumberOfComponents()
        if len(size) != 3 or 0 in size:
            raise DataError(
                f"{path} has the size {size}. Expected a volume (x, y, z), whose channels are the components of its voxels or lie "
                "in files of their own."
            )
        if reader.GetPixelID() not in _NUMPY:
            raise DataError(
                f"{path} holds values of type {sitk.GetPixelIDValueAsString(reader.GetPixelID())}. Expected integers or real "
                "numbers; save complex numbers as magnitudes."
            )
        dtype = _NUMPY[reader.GetPixelID()]
        wanted = text.claimed or int(np.prod(size, dtype=np.int64)) * channels * dtype.itemsize
        if text.stored is not None and not text.text and text.stored < wanted:
            raise DataError(
                f"{text.data or path} could not be decoded: it holds {text.stored:,} bytes of voxels, and {wanted:,} are "
                "announced. The file is cut off; fetch it again, or leave it out (of a training by 'data.exclude=[…]')."
            )
        matrix, facing = np.eye(4), np.diag(LPS_TO_RAS)
        matrix[:3, :3] = facing @ np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
        matrix[:3, 3] = facing @ reader.GetOrigin()
        notes = (
            () if text.placed else (f"{path} does not say which way its axes point: where left and right are is taken on trust.",)
        )
        return Header(stored_grid(matrix, size, path, "repair the header"), channels, dtype, notes)

    def _voxels(self, path: Path) -> NDArray[Any]:
        try:
            _check_whole(path)
            image = _opened(path).Execute()
        except (RuntimeError, MemoryError, OSError, EOFError, zlib.error) as error:
            raise undecodable(path, _why(error)) from error
        voxels = sitk.GetArrayFromImage(image)
        return voxels.transpose(2, 1, 0, *range(3, voxels.ndim))

    def _files(self, path: Path) -> tuple[Path, ...]:
        return (path, self._data[path]) if path in self._data else (path,)

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        suffix = self.path.suffix.lower()
        return stem + _ONE_FILE.get(suffix, suffix)

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`; the finished file has the input's origin, spacing and direction, and nothing else of it."""
        return MapWriter(path, self.canonical.shape, spec, lambda array, making: self.save(array, making, spec.about))

    def save(self, array: NDArray[Any], path: Path, about: Mapping[str, Any]) -> None:
        """Writes an array [C, D, H, W] on this source's grid; several channels become the components of a voxel.

        Args:
            array: in canonical orientation.
            path: the file, in any format of SimpleITK.
            about: what the file says of itself, as JSON under the key "voxtile"; without "classes" where their names are too long.

        Raises:
            OSError: It cannot be written.
        """
        voxels = np.ascontiguousarray(to_stored(array, self._turn).transpose(2, 1, 0, 3))
        several = voxels.shape[3] > 1
        image = sitk.GetImageFromArray(voxels if several else voxels[..., 0], isVector=several)
        header = _opened(self.path)
        image.SetOrigin(header.GetOrigin())
        image.SetSpacing(header.GetSpacing())
        image.SetDirection(header.GetDirection())
        text = json.dumps(about)
        image.SetMetaData(ABOUT, text if len(text) <= _MOST_ABOUT else json.dumps({**about, "classes": []}))
        try:
            sitk.WriteImage(image, str(path), useCompression=True)
            _check_whole(path)  # ITK keeps silent about a disk that is full when it closes a file
        except (RuntimeError, DataError, EOFError, zlib.error) as error:
            raise OSError(_why(error)) from error


def about(path: Path) -> Any:
    """What a map says of itself: its classes and tags."""
    read_header(path)
    return json.loads(_opened(path).GetMetaData(ABOUT))


def _check_whole(path: Path) -> None:
    """Raises an error where packed voxels have lost their end or their checksum is wrong, to which ITK does not come."""
    text = read_header(path)
    if not text.packed:
        return
    with (text.data or path).open("rb") as file:
        file.seek(text.begins)
        if text.packed == "gzip":
            check_gzip(file)
            return
        unpacked = zlib.decompressobj()
        while not unpacked.eof:
            some = file.read(2**16)
            if not some:
                raise EOFError("the file ends before the checksum of its voxels")
            unpacked.decompress(some)


def _opened(path: Path) -> sitk.ImageFileReader:
    """A reader that has read the header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_READERS[path.suffix.lower()])
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read: {_why(error)}. Expected an intact MetaImage or NRRD file.") from error
    return reader


def _why(error: BaseException) -> str:
    """The last line of ITK's long story, without the names of its classes."""
    lines = [
        line
        for line in str(error).splitlines()
        if line.strip() and line not in ("Reason: Success", "Reason: Inappropriate ioctl for device")
    ]
    return (
        reason(RuntimeError(re.sub(r"^.*?(?:ERROR: \w+\(0x\w+\): |\[nrrd\] \w+: |Reason: )", "", lines[-1])))
        if lines
        else reason(error)
    )
