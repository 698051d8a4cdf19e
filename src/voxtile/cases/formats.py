"""The formats of data sets: how their files end, and how images, labels and maps are opened and the tags of maps read.

Each format's library is imported only where the format is used.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtile.cases.case import Source
from voxtile.cases.scene import Scene
from voxtile.cases.vector_settings import VECTOR_SUFFIXES, VectorSettings

# How images end, in small letters, the usual ending first; by the names that `data.format` takes.
SUFFIXES = {
    "geotiff": (".tif", ".tiff", ".vrt", ".jp2"),
    "volume": (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr"),
    "dicom": (".dcm",),
    "picture": (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"),
}


def open_image(kind: str, paths: Sequence[Path], nodata: float | None, scene: Scene, asked: Collection[str]) -> Source:
    """Opens an image.

    Args:
        kind: the format.
        paths: the image's files.
        nodata: overrides the nodata value of scenes.
        scene: how the pixels of scenes are read.
        asked: names of channels that are wanted, also where they are masks of a scene.

    Raises:
        DataError: It cannot be read.
    """
    if kind == "geotiff":
        from voxtile.cases.geotiff import GeoTiffSource

        return GeoTiffSource(paths, nodata, scene, asked)
    if kind == "volume":
        from voxtile.cases.volume_files import open_volume

        return open_volume(paths)
    if kind == "dicom":
        from voxtile.cases.dicom import DicomSource

        return DicomSource.at(paths)
    from voxtile.cases.pictures import PictureSource

    return PictureSource(paths)


def open_label(kind: str, paths: Sequence[Path], image: Source, named: Collection[int], vectors: VectorSettings) -> Source:
    """Opens a label, or another raster of one channel, on the grid of its image.

    Args:
        kind: the format of the image.
        paths: the label's files.
        image: what it is a label of.
        named: stored values that have a meaning.
        vectors: what the shapes of a vector file mean.

    Raises:
        DataError: It cannot be read, or does not fit its image.
    """
    if kind == "geotiff" and paths[0].suffix.lower() in VECTOR_SUFFIXES:
        from voxtile.cases.vectors import VectorLabel

        return VectorLabel(paths[0], image, vectors, named)
    if kind == "geotiff":
        from voxtile.cases.aligned import OnTarget
        from voxtile.cases.geotiff import label_source

        assert isinstance(image, OnTarget)
        return label_source(paths[0], image, named)
    if kind == "dicom" and not paths[0].name.lower().endswith(SUFFIXES["volume"]):
        from voxtile.cases.dicom_seg import SegmentationSource

        return SegmentationSource(paths[0], image)
    if kind in ("volume", "dicom"):
        from voxtile.cases.volume_files import open_volume
        from voxtile.cases.volumes import on_image

        return on_image(open_volume(paths), image)
    from voxtile.cases.pictures import PictureSource

    return PictureSource(paths, label=True)


def open_map(kind: str, path: Path, heat: Path | None, image: Source) -> tuple[Source, Source | None]:
    """Opens a finished map and, where there is one, its heatmap; not that of a picture, whose pages are classes.

    Args:
        kind: the format of the run's data; a map that ends in .dcm is of a DICOM series, whatever its run was trained on.
        path: the map, or the folder of its slices.
        heat: its heatmap.
        image: what it is a map of.
    """
    if path.name.endswith(".dcm"):
        from voxtile.cases.dicom_seg import SegmentationSource

        return SegmentationSource(path, image, own=True), SegmentationSource(heat, image, heat=True) if heat else None
    if kind == "picture":
        from voxtile.cases.names import natural_key
        from voxtile.cases.pictures import PictureSource

        files = sorted(path.iterdir(), key=lambda file: natural_key(file.name)) if path.is_dir() else [path]
        return PictureSource(files, label=True), None
    from voxtile.cases.geotiff import GeoTiffSource
    from voxtile.cases.volume_files import open_volume

    opened = GeoTiffSource if kind == "geotiff" else open_volume
    return opened([path]), opened([heat]) if heat else None


def tags_of(path: Path, kind: str) -> Mapping[str, str]:
    """The tags that a map was written with, see `voxtile.cases.maps.MapSpec`; none where the file is no such map.

    Args:
        path: the finished file, or the folder of slices, each of which has them.
        kind: the data format, "geotiff", "volume", "dicom" or "picture"; a map that ends in .dcm is of a DICOM series, whatever its
            run was trained on.
    """
    readers = {"geotiff": _scene_tags, "volume": _volume_tags, "dicom": _segmentation_tags, "picture": _picture_tags}
    try:
        reader = readers["dicom" if path.name.endswith(".dcm") else kind]
        found: Any = reader(min(path.iterdir()) if path.is_dir() else path)
    except Exception:  # somebody else's file may be anything, and each library has errors of its own
        return {}
    return found if isinstance(found, Mapping) else {}


def _scene_tags(path: Path) -> Any:
    from voxtile.cases.raster import open_raster

    with open_raster(path) as dataset:
        return dataset.tags()


def _volume_tags(path: Path) -> Any:
    from voxtile.cases.volume_files import is_itk

    if is_itk(path):
        from voxtile.cases.itk import about

        return about(path)["tags"]
    import nibabel as nib

    header: Any = nib.load(path).header
    return json.loads(header.extensions[0].get_content())["tags"]


def _segmentation_tags(path: Path) -> Any:
    from voxtile.cases.dicom_seg import about

    return about(path)["tags"]


def _picture_tags(path: Path) -> Any:
    from PIL import ExifTags, Image

    with Image.open(path, formats=("PNG", "TIFF")) as image:
        described: Any = image.getexif().get(ExifTags.Base.ImageDescription)
        return json.loads(described) if image.format == "TIFF" else image.info
