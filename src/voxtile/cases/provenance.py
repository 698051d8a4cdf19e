"""What a finished map says of what it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxtile.errors import DataError


def tags_of(path: Path, kind: str) -> Mapping[str, str]:
    """The tags that a map was written with, see `voxtile.cases.maps.MapSpec`; none where the file is no such map.

    Args:
        path: the finished file, or the folder of slices, each of which has them.
        kind: the data format, "geotiff", "nifti" or "picture".
    """
    readers = {"geotiff": _scene, "nifti": _volume, "picture": _picture}
    try:
        found: Any = readers[kind](min(path.iterdir()) if path.is_dir() else path)
    except (DataError, OSError, ValueError, LookupError):  # somebody else's file may be anything
        return {}
    return found if isinstance(found, Mapping) else {}


def _scene(path: Path) -> Any:
    from voxtile.cases.raster import open_raster

    with open_raster(path) as dataset:
        return dataset.tags()


def _volume(path: Path) -> Any:
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        header: Any = nib.load(path).header
    except (ImageFileError, HeaderDataError) as error:
        raise DataError(f"{path} is no volume: {error}") from error
    return json.loads(header.extensions[0].get_content())["tags"]


def _picture(path: Path) -> Any:
    from PIL import ExifTags, Image

    with Image.open(path, formats=("PNG", "TIFF")) as image:
        described: Any = image.getexif().get(ExifTags.Base.ImageDescription)
        return json.loads(described) if image.format == "TIFF" else image.info
