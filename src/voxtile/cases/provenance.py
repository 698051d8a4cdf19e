"""What a finished map says of what it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def tags_of(path: Path, kind: str) -> Mapping[str, str]:
    """The tags that a map was written with, see `voxtile.cases.maps.MapSpec`; none where the file is no such map.

    Args:
        path: the finished file, or the folder of slices, each of which has them.
        kind: the data format, "geotiff", "volume", "dicom" or "picture"; a map that ends in .dcm is of a DICOM series, whatever its
            run was trained on.
    """
    readers = {"geotiff": _scene, "volume": _volume, "dicom": _segmentation, "picture": _picture}
    try:
        reader = readers["dicom" if path.name.endswith(".dcm") else kind]
        found: Any = reader(min(path.iterdir()) if path.is_dir() else path)
    except Exception:  # somebody else's file may be anything, and each library has errors of its own
        return {}
    return found if isinstance(found, Mapping) else {}


def _scene(path: Path) -> Any:
    from voxtile.cases.raster import open_raster

    with open_raster(path) as dataset:
        return dataset.tags()


def _volume(path: Path) -> Any:
    from voxtile.cases.volume_files import is_itk

    if is_itk(path):
        from voxtile.cases.itk import about

        return about(path)["tags"]
    import nibabel as nib

    header: Any = nib.load(path).header
    return json.loads(header.extensions[0].get_content())["tags"]


def _segmentation(path: Path) -> Any:
    from voxtile.cases.dicom_seg import about

    return about(path)["tags"]


def _picture(path: Path) -> Any:
    from PIL import ExifTags, Image

    with Image.open(path, formats=("PNG", "TIFF")) as image:
        described: Any = image.getexif().get(ExifTags.Base.ImageDescription)
        return json.loads(described) if image.format == "TIFF" else image.info
