"""NIfTI volumes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from voxtile.cases.grid import StoredGrid, nested
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.volumes import TOLERANCE, Header, VolumeSource, check_gzip, stored_grid, to_stored, undecodable
from voxtile.errors import DataError, reason

_UNITS = {1: ("metre", 1000.0), 2: ("mm", 1.0), 3: ("micrometre", 0.001)}  # NIfTI-1's codes; millimetres in one of them
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zlib.error, ImageFileError, HeaderDataError)


class NiftiSource(VolumeSource):
    """NIfTI files, 3D or 4D with channels last. The data type is the file's own, or float32 where the header scales it."""

    def _header(self, path: Path) -> Header:
        image = _load(path)
        channels = image.shape[3] if len(image.shape) == 4 else 1
        return Header(_stored_grid(image, path), channels, _dtype(image), tuple(_notes(image, path)))

    def _voxels(self, path: Path) -> NDArray[Any]:
        image = _load(path)
        try:
            if path.suffix.lower() == ".gz":
                with path.open("rb") as file:
                    check_gzip(file)
            if _is_scaled(image):
                voxels: NDArray[Any] = image.get_fdata(caching="unchanged", dtype=np.float32)
            else:
                voxels = image.dataobj.get_unscaled()
        except _UNREADABLE as error:
            raise undecodable(path, reason(error)) from error
        return voxels

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return f"{stem}.nii.gz"

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`; the finished file has the input's orientation, qform, sform, codes and units."""
        return MapWriter(path, self.canonical.shape, spec, _finisher(_load(self.path).header, self._turn, spec))


def _load(path: Path) -> Any:
    """Opens a NIfTI image without reading its voxels."""
    try:
        image = nib.load(path)
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as NIfTI: {reason(error)}. Expected an intact .nii or .nii.gz file.") from error
    if not isinstance(image, nib.Nifti1Pair):
        raise DataError(f"{path} is {type(image).__name__}, not NIfTI. Expected a .nii or .nii.gz file.")
    if len(image.shape) not in (3, 4) or 0 in image.shape:
        raise DataError(
            f"{path} has the shape {image.shape}. Expected a volume (x, y, z), or (x, y, z, channels): "
            "give a single slice a third axis of length 1, for example with nibabel."
        )
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(
            f"{path} holds values of type {image.get_data_dtype()}. Expected integers or real numbers; save colours as one channel "
            "each, complex numbers as magnitudes."
        )
    return image


def _stored_grid(image: Any, path: Path) -> StoredGrid:
    matrix = np.array(image.affine, dtype=np.float64)
    matrix[:3] *= _unit(image)[1]
    return stored_grid(matrix, image.shape[:3], path, "repair the header's qform or sform")


def _unit(image: Any) -> tuple[str, float]:
    return _UNITS.get(int(image.header["xyzt_units"]) & 7, ("mm", 1.0))


def _is_scaled(image: Any) -> bool:
    return (image.dataobj.slope, image.dataobj.inter) != (1.0, 0.0)


def _dtype(image: Any) -> np.dtype[Any]:
    if _is_scaled(image):
        return np.dtype(np.float32)
    stored: np.dtype[Any] = image.get_data_dtype().newbyteorder("=")
    return stored


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
        away = grid.corner_distance(StoredGrid(grid.shape, nested(scaled), "mm"))
        if away > TOLERANCE:
            notes.append(f"{path}: qform and sform disagree by {away:.2f} voxels at a corner; the sform is used.")
    if _unit(image)[0] != "mm":
        notes.append(f"{path} gives lengths in {_unit(image)[0]}s; they are converted to mm.")
    return notes


def _finisher(header: Any, turn: NDArray[np.float64], spec: MapSpec) -> Callable[[NDArray[Any], Path], None]:
    """Returns what turns a finished array [channels, D, H, W] back to the stored orientation and saves it under `header`."""
    kind: Any = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image

    def finish(array: NDArray[Any], making: Path) -> None:
        voxels = to_stored(array, turn)
        image = kind(voxels if voxels.shape[3] > 1 else voxels[..., 0], header.get_best_affine(), header)
        own = image.header
        own.set_data_dtype(spec.dtype)
        own.set_intent("none" if spec.heatmap else "label")
        own["cal_min"] = own["cal_max"] = 0  # the input's display range would hide the classes
        own["descrip"] = b"voxtile map; its classes are named in the header extension"
        # The input's own extensions may name the patient and are not copied.
        about = json.dumps(spec.about).encode()
        own.extensions[:] = [Nifti1Extension("comment", about)]
        nib.save(image, making)

    return finish
