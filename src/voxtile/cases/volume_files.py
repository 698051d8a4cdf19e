"""Volumes by the endings of their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voxtile.cases.volumes import VolumeSource
from voxtile.errors import DataError, listed

ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")


def is_itk(path: Path) -> bool:
    """Whether a file is MetaImage or NRRD by its ending."""
    return path.suffix.lower() in ITK_SUFFIXES


def open_volume(paths: Sequence[Path]) -> VolumeSource:
    """Opens one volume, or several that are the channels of one.

    Raises:
        DataError: A file cannot be read, or the channels lie in files of several kinds.
    """
    if len({is_itk(path) for path in paths}) > 1:
        raise DataError(
            f"The channels of one case lie in files of several kinds: {listed(paths)}. Expected NIfTI, or MetaImage and NRRD; save "
            "them as one kind. Labels may be of another kind than images."
        )
    # Each format's library is imported only where the format is used.
    if is_itk(paths[0]):
        from voxtile.cases.itk import ItkSource

        return ItkSource(paths)
    from voxtile.cases.nifti import NiftiSource

    return NiftiSource(paths)
