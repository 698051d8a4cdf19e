"""Samples of TorchGeo, and the items of its NonGeoDatasets as cases: pictures without coordinates, each decoded once."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from voxtile.cases.atomic import atomic_write
from voxtile.cases.cache import cache_folder
from voxtile.cases.case import Source
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.layouts import CaseFiles
from voxtile.errors import DataError, listed, reason


def sample_array(sample: Mapping[str, Any], key: str, name: str, where: str, size: tuple[int, ...] | None = None) -> NDArray[Any]:
    """The image [C, h, w] or mask [1, h, w] of a sample.

    Raises:
        DataError: The sample has no such key, or its shape is another.
    """
    if key not in sample:
        combine = "dataset1: {…images}, dataset2: {…labels}"
        hint = {
            "mask": f"A data set of images alone can be combined with one of labels: torchgeo.datasets.IntersectionDataset with "
            f"'{combine}'.",
            "image": "Expected one image [C, H, W]; data sets of several images or of none cannot be read.",
        }
        raise DataError(f"Samples of TorchGeo's {name} ({where}) hold {listed(sample)} and no '{key}'. {hint[key]}")
    array: NDArray[Any] = np.asarray(sample[key])
    if key == "mask" and array.ndim == 2:
        array = array[None]
    fits = array.ndim == 3 and (key == "image" or len(array) == 1) and size in (None, array.shape[1:])
    if not fits:
        expected = "[C, H, W]" if key == "image" else "[H, W]"
        of_size = f" of {size[0]}x{size[1]} pixels" if size else ""
        raise DataError(
            f"TorchGeo's {name} gives a '{key}' of shape {array.shape} for {where}. Expected {expected}{of_size}; leave "
            "time series and several masks out by the data set's own arguments."
        )
    return array


def channel_names(parts: Iterable[Any], count: int) -> tuple[str, ...]:
    """Names of the bands, as the data sets of images among `parts` call them; numbers where they do not."""
    names: list[str] = []
    for part in parts:
        if getattr(part, "is_image", True):
            names += [str(band) for band in getattr(part, "bands", None) or getattr(part, "all_bands", None) or ()]
    return tuple(names if len(names) == len(set(names)) == count else (f"band{number + 1}" for number in range(count)))


class DecodedSource(GeoTiffSource):
    """An item of a NonGeoDataset, decoded into a plain TIFF."""

    def notes(self) -> list[str]:
        """See `Source.notes`; that such items have no coordinates is what the class says."""
        return []


def decoded(made: Any, root: Path, split: str, key: str) -> list[CaseFiles]:
    """One case for each item of a NonGeoDataset; items are decoded where an earlier call of the same `key` has not done so."""
    listing = sorted(
        (str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns)
        for folder, _, names in os.walk(root)
        for path in (Path(folder, name) for name in names)
    )
    facts = repr((key, str(root), listing))
    folder = cache_folder() / "torchgeo" / f"{type(made).__name__}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
    cases = []
    for number, name in enumerate(_names(made, split)):
        image, label = (folder / part / f"{number}.tif" for part in ("images", "labels"))
        if not (image.exists() and label.exists()):
            _decode(made, number, image, label)
        cases.append(CaseFiles(name, (image,), split=split, sources=functools.partial(_open_decoded, image, label)))
    return cases


def _names(made: Any, split: str) -> list[str]:
    """Ids of the items: the names of their files where the class keeps a list of them, else numbers."""
    for listed_as in ("ids", "files"):
        found = getattr(made, listed_as, None)
        if isinstance(found, Sequence) and not isinstance(found, str) and len(found) == len(made):
            texts = [each.get("image") if isinstance(each, Mapping) else each for each in found]
            if all(isinstance(text, str | Path) for text in texts):
                return [re.sub(r"[^\w.-]+", "_", Path(str(text).strip()).name.split(".")[0]) for text in texts]
    return [f"{split}_{number:05d}".lstrip("_") for number in range(len(made))]


def _decode(made: Any, number: int, image: Path, label: Path) -> None:
    """Writes image and mask of an item as TIFF files of the smallest data type that holds their values."""
    name, where = type(made).__name__, f"item {number}"
    try:
        sample = made[number]
    except Exception as error:  # each class fails in its own way
        raise DataError(
            f"TorchGeo's {name} could not read its {where}: {reason(error)}. Its files are probably damaged; fetch them again."
        ) from error
    pixels = sample_array(sample, "image", name, where)
    mask = sample_array(sample, "mask", name, where, pixels.shape[1:])
    _write(image, pixels, channel_names([made], len(pixels)))
    _write(label, mask, ("label",))


def _write(path: Path, array: NDArray[Any], names: Sequence[str]) -> None:
    count, height, width = array.shape
    array = _narrowed(array)

    def write(making: Path) -> None:
        # Without a transform GDAL warns at each opening; this one counts pixels from the lower left corner.
        with rasterio.open(
            making, "w", driver="GTiff", count=count, height=height, width=width, dtype=array.dtype, compress="deflate", zlevel=1,
            tiled=True, blockxsize=256, blockysize=256, transform=from_origin(0, height, 1, 1),
        ) as out:  # fmt: skip
            out.write(array)
            for number, name in enumerate(names, 1):
                out.set_band_description(number, name)

    atomic_write(path, write)


def _narrowed(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in the smallest type that holds them: TorchGeo makes 8-bit pictures float32 and masks int64."""
    if array.dtype.kind != "b" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        return array.astype(np.float64 if array.dtype == np.float64 else np.float32)
    for kind in (np.uint8, np.uint16, np.int16, np.int32):
        if np.iinfo(kind).min <= array.min() and array.max() <= np.iinfo(kind).max:
            return array.astype(kind)
    return array.astype(np.float64)


def _open_decoded(image: Path, label: Path, nodata: float | None) -> tuple[Source, Source]:
    return DecodedSource([image], nodata), DecodedSource([label])
