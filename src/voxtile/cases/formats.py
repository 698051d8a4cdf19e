"""The formats of data sets: how their files end, and how images, labels and maps are opened and the tags of maps read.

Each format's library is imported only where the format is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from voxtile.cases import id_maps
from voxtile.cases.atomic import atomic_write
from voxtile.cases.cache import Stamp, stamp_of
from voxtile.cases.case import Source
from voxtile.cases.id_maps import Slabs
from voxtile.cases.scene import Scene
from voxtile.cases.vector_settings import VECTOR_SUFFIXES, VectorSettings
from voxtile.errors import DataError


@dataclass(frozen=True)
class Format:
    """What a format is: one row of `FORMATS`.

    Attributes:
        suffixes: how images end, in small letters, the usual ending first.
        map_suffixes: how maps end, longer endings first; that of a stack of slices is a folder.
        open_image: see `open_image`, without its `kind`; so are the next three.
        open_label: see `open_label`.
        open_map: see `open_map`.
        read_tags: the tags of a map; may raise anything, or return anything, where the file is no map.
        write_ids: writes slabs of object numbers on the grid of a map to a path.
    """

    suffixes: tuple[str, ...]
    map_suffixes: tuple[str, ...]
    open_image: Callable[[Sequence[Path], float | None, Scene, Collection[str]], Source]
    open_label: Callable[[Sequence[Path], Source, Mapping[int, int], VectorSettings], Source]
    open_map: Callable[[Path, Path | None, Source], tuple[Source, Source | None]]
    read_tags: Callable[[Path], Any]
    write_ids: Callable[[Slabs, Source, Path], None]


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
    return FORMATS[kind].open_image(paths, nodata, scene, asked)


def open_label(
    kind: str, paths: Sequence[Path], image: Source, meaning: Mapping[int, int], vectors: VectorSettings, colored: bool = False
) -> Source:
    """Opens a label, or another raster of one channel, on the grid of its image.

    Args:
        kind: the format of the image.
        paths: the label's files.
        image: what it is a label of.
        meaning: stored value -> class index; none for a raster of other numbers.
        vectors: what the shapes of a vector file mean.
        colored: whether stored values stand for colours; of scenes and pictures only.

    Raises:
        DataError: It cannot be read, or does not fit its image.
    """
    if paths[0].suffix.lower() == ".json" and _is_coco(paths[0]):
        raise DataError(
            f"{paths[0]} holds COCO's annotations, of all images in one file. Expected a label for each image: draw them once, "
            "with the lines that docs/data.md has for it."
        )
    if not colored:
        return FORMATS[kind].open_label(paths, image, meaning, vectors)
    return _picture_colors(paths) if kind == "picture" else _scene_colors(paths[0], image, meaning)


def open_map(kind: str, path: Path, heat: Path | None, image: Source) -> tuple[Source, Source | None]:
    """Opens a finished map and, where there is one, its heatmap; not that of a picture, whose pages are classes.

    Args:
        kind: the format of the run's data; a map that ends in .dcm is of a DICOM series, whatever its run was trained on.
        path: the map, or the folder of its slices.
        heat: its heatmap.
        image: what it is a map of.
    """
    return _of_map(kind, path).open_map(path, heat, image)


def tags_of(path: Path, kind: str) -> Mapping[str, str]:
    """The tags that a map was written with, see `voxtile.cases.maps.MapSpec`; none where the file is no such map.

    Args:
        path: the finished file, or the folder of slices, each of which has them.
        kind: the data format, "geotiff", "volume", "dicom" or "picture"; a map that ends in .dcm is of a DICOM series, whatever its
            run was trained on.
    """
    try:
        found: Any = _of_map(kind, path).read_tags(min(path.iterdir()) if path.is_dir() else path)
    except Exception:  # somebody else's file may be anything, and each library has errors of its own
        return {}
    return found if isinstance(found, Mapping) else {}


def write_id_map(slabs: Slabs, source: Source, kind: str, path: Path) -> None:
    """Writes numbers [d, h, w], 0 where there is no object, as a file on the grid of a map, see `voxtile.cases.id_maps`.

    Args:
        slabs: windows that partition the map in reading order, with their numbers.
        source: the semantic map.
        kind: the format: of "geotiff" a Cloud-Optimized GeoTIFF, in memory that does not grow with the scene, of volumes the map's
            kind of file, orientation and header, of "picture" a TIFF with a page of 32 bits per slice.
        path: the file.

    Raises:
        OSError: It cannot be written; nothing is left under its name.
    """
    atomic_write(path, lambda making: FORMATS[kind].write_ids(slabs, source, making))


def _of_map(kind: str, path: Path) -> Format:
    return FORMATS["dicom" if path.name.endswith(".dcm") else kind]


def _scene(paths: Sequence[Path], nodata: float | None, scene: Scene, asked: Collection[str]) -> Source:
    from voxtile.cases.geotiff import GeoTiffSource

    return GeoTiffSource(paths, nodata, scene, asked)


def _scene_label(paths: Sequence[Path], image: Source, meaning: Mapping[int, int], vectors: VectorSettings) -> Source:
    if paths[0].suffix.lower() in VECTOR_SUFFIXES:
        from voxtile.cases.vectors import VectorLabel

        return VectorLabel(paths[0], image, vectors, meaning)
    from voxtile.cases.aligned import OnTarget
    from voxtile.cases.geotiff import label_source

    assert isinstance(image, OnTarget)
    return label_source(paths[0], image, meaning)


def _scene_colors(path: Path, image: Source, meaning: Mapping[int, int]) -> Source:
    if path.suffix.lower() in VECTOR_SUFFIXES:
        raise DataError(f"{path} is a vector file, whose shapes have no colours. Name stored values in 'data.labels'.")
    from voxtile.cases.aligned import OnTarget
    from voxtile.cases.geotiff import color_source

    assert isinstance(image, OnTarget)
    return color_source(path, image, meaning)


def _is_coco(path: Path) -> bool:
    """Whether a file is a COCO annotation file."""
    return path.is_file() and _holds_coco(path, stamp_of(path))


@lru_cache(maxsize=64)  # a vector file may be large, and the label of many scenes
def _holds_coco(path: Path, stamp: Stamp) -> bool:
    """Reads a file of this stamp; GeoJSON is mostly known by its beginning."""
    with path.open("rb") as file:
        start = file.read(4096)
        text = b"" if b'"FeatureCollection"' in start else start + file.read()
    return all(key in text for key in (b'"images"', b'"annotations"', b'"categories"'))


def _scene_map(path: Path, heat: Path | None, image: Source) -> tuple[Source, Source | None]:
    from voxtile.cases.geotiff import GeoTiffSource

    return GeoTiffSource([path]), GeoTiffSource([heat]) if heat else None


def _scene_tags(path: Path) -> Any:
    from voxtile.cases.raster import open_raster

    with open_raster(path) as dataset:
        return dataset.tags()


def _volume(paths: Sequence[Path], *_: Any) -> Source:
    from voxtile.cases.volume_files import open_volume

    return open_volume(paths)


def _volume_label(paths: Sequence[Path], image: Source, *_: Any) -> Source:
    from voxtile.cases.volume_files import open_volume
    from voxtile.cases.volumes import on_image

    return on_image(open_volume(paths), image)


def _volume_map(path: Path, heat: Path | None, image: Source) -> tuple[Source, Source | None]:
    from voxtile.cases.volume_files import open_volume

    return open_volume([path]), open_volume([heat]) if heat else None


def _volume_tags(path: Path) -> Any:
    from voxtile.cases.volume_files import is_itk

    if is_itk(path):
        from voxtile.cases.itk import about

        return about(path)["tags"]
    import nibabel as nib

    header: Any = nib.load(path).header
    return json.loads(header.extensions[0].get_content())["tags"]


def _series(paths: Sequence[Path], *_: Any) -> Source:
    from voxtile.cases.dicom import DicomSource

    return DicomSource.at(paths)


def _series_label(paths: Sequence[Path], image: Source, *_: Any) -> Source:
    if paths[0].name.lower().endswith(SUFFIXES["volume"]):
        return _volume_label(paths, image)
    from voxtile.cases.dicom_seg import SegmentationSource

    return SegmentationSource(paths[0], image)


def _series_map(path: Path, heat: Path | None, image: Source) -> tuple[Source, Source | None]:
    if not path.name.endswith(".dcm"):
        return _volume_map(path, heat, image)
    from voxtile.cases.dicom_seg import SegmentationSource

    return SegmentationSource(path, image, own=True), SegmentationSource(heat, image, heat=True) if heat else None


def _series_tags(path: Path) -> Any:
    from voxtile.cases.dicom_seg import about

    return about(path)["tags"]


def _picture(paths: Sequence[Path], *_: Any) -> Source:
    from voxtile.cases.pictures import PictureSource

    return PictureSource(paths)


def _picture_label(paths: Sequence[Path], *_: Any) -> Source:
    from voxtile.cases.pictures import PictureSource

    return PictureSource(paths, label=True)


def _picture_colors(paths: Sequence[Path]) -> Source:
    from voxtile.cases.label_colors import ColorLabel
    from voxtile.cases.pictures import PictureSource

    return ColorLabel(PictureSource(paths, colored=True))


def _picture_map(path: Path, heat: Path | None, image: Source) -> tuple[Source, Source | None]:
    from voxtile.cases.names import natural_key

    files = sorted(path.iterdir(), key=lambda file: natural_key(file.name)) if path.is_dir() else [path]
    return _picture_label(files), None


def _picture_tags(path: Path) -> Any:
    from PIL import ExifTags, Image

    with Image.open(path, formats=("PNG", "TIFF")) as image:
        described: Any = image.getexif().get(ExifTags.Base.ImageDescription)
        return json.loads(described) if image.format == "TIFF" else image.info


# By the names that `data.format` takes.
FORMATS = {
    "geotiff": Format(
        (".tif", ".tiff", ".vrt", ".jp2"), (".tif",), _scene, _scene_label, _scene_map, _scene_tags, id_maps.write_scene,
    ),
    "volume": Format(
        (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr"), (".nii.gz", ".nii", ".mha", ".nrrd"), _volume, _volume_label,
        _volume_map, _volume_tags, id_maps.write_volume,
    ),
    "dicom": Format((".dcm",), (".dcm",), _series, _series_label, _series_map, _series_tags, id_maps.write_volume),
    "picture": Format(
        (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"), (".png",), _picture, _picture_label, _picture_map, _picture_tags,
        id_maps.write_pages,
    ),
}  # fmt: skip
SUFFIXES = {name: each.suffixes for name, each in FORMATS.items()}
MAP_SUFFIXES = tuple(suffix for each in FORMATS.values() for suffix in each.map_suffixes)
