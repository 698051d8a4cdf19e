"""Rows of the index of a TorchGeo GeoDataset as cases: files with coordinates, read by window."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from voxtile.cases.aligned import Target
from voxtile.cases.case import Source
from voxtile.cases.cog import open_cog
from voxtile.cases.grid import CanonicalGrid
from voxtile.cases.handles import HandleCache
from voxtile.cases.layouts import CaseFiles
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.raster import open_raster, scene_grid
from voxtile.cases.torchgeo_items import channel_names, sample_array
from voxtile.cases.window import Window
from voxtile.errors import DataError, reason

_READERS = HandleCache(most=32)
_SAMPLES = HandleCache(most=1)  # TorchGeo reads image and mask together; the label of a window is mostly asked for right after it


def rows(made: Any, root: Path, split: str, key: str) -> list[CaseFiles]:
    """One case for each row of a GeoDataset's index; `key` says how the data set was made."""
    cases = []
    for row in range(len(made)):
        files = _files(made, row, root)
        if not files:
            raise DataError(
                f"The index of TorchGeo's {type(made).__name__} names no file for its item {row}, so it could not be noticed when "
                "its data change. Expected a data set of raster files."
            )
        sources = functools.partial(_open_row, made, row, files, key)
        cases.append(CaseFiles(files[0].stem, tuple(files), split=split, sources=sources))
    return cases


def _files(made: Any, row: int, root: Path) -> list[Path]:
    """The files of a row of the index, those of further bands included."""
    texts = [value for value in made.index.iloc[row] if isinstance(value, str)]
    found = [path for text in texts for path in (Path(text), root / text) if path.is_file()]
    for leaf in _leaves(made):
        if getattr(leaf, "separate_files", False):  # the index names the file of one band
            found += [Path(leaf._update_filepath(band, str(path))) for path in tuple(found) for band in leaf.bands]
    return list(dict.fromkeys(path for path in found if path.is_file()))


def _leaves(made: Any) -> list[Any]:
    """The data sets that a combination is made of, itself where it is none."""
    return [leaf for part in made.datasets for leaf in _leaves(part)] if hasattr(made, "datasets") else [made]


def _only(made: Any, row: int | None, files: Sequence[Path]) -> Any:
    """A copy of a GeoDataset that holds one row of its index: neighbours that overlap it are not mixed into it."""
    one = copy.copy(made)
    if row is not None:
        one.index = made.index.iloc[[row]]
    elif "filepath" in made.index:
        one.index = made.index[made.index["filepath"].isin([str(path) for path in files])]
    if hasattr(made, "datasets"):
        one.datasets = [_only(part, None, files) for part in made.datasets]
        one.datasets = [part for part in one.datasets if len(part.index)]  # a union's row belongs to one of them
    return one


def _open_row(made: Any, row: int, files: Sequence[Path], key: str, nodata: float | None) -> tuple[Source, Source]:
    """Image and label of one row of a GeoDataset's index."""
    one = _only(made, row, files)
    x_size, y_size = (abs(float(value)) for value in made.res)
    left, bottom, right, top = (float(value) for value in one.index.total_bounds)
    # An intersection may begin between the pixels of the image: the case begins with the first whole one.
    corner_x, _, _, corner_y = (float(value) for value in _leaves(one)[0].index.total_bounds)
    first_x, first_y = _up((left - corner_x) / x_size), _up((corner_y - top) / y_size)
    width, height = -_up((corner_x - right) / x_size) - first_x, -_up((bottom - corner_y) / y_size) - first_y
    if width < 1 or height < 1:
        raise DataError(f"{files[0]}: its part in TorchGeo's {type(made).__name__} is smaller than one pixel. Leave the case out.")
    transform = Affine(x_size, 0, corner_x + first_x * x_size, 0, -y_size, corner_y - first_y * y_size)
    code = made.crs.to_epsg()  # the same system as a file's own only by its number: pyproj words it otherwise than GDAL
    crs = CRS.from_wkt(made.crs.to_wkt()) if code is None else CRS.from_epsg(code)
    frame = SimpleNamespace(transform=transform, width=width, height=height, crs=crs)
    # An intersection in space alone has no intervals of its own.
    times = [part.index.index for part in ([one] if hasattr(one.index.index, "left") else _leaves(one))]
    time = slice(min(each.left.min() for each in times), max(each.right.max() for each in times), 1)
    image = RowSource(one, "image", files, frame, time)
    image.nodata = _nodata_of(files[0], crs) if nodata is None else nodata
    label = RowSource(one, "mask", files, frame, time)
    image.key = label.key = repr((key, image.nodata, image.stored))  # the grid may be that of another file
    return image, label


def _up(value: float) -> int:
    """The next whole number, where a hair more than a whole one counts as that one."""
    return math.ceil(value - 1e-6)


def _nodata_of(path: Path, crs: CRS) -> float | None:
    """By which value TorchGeo fills what it has no pixel for: the header's nodata, and 0 where it warps a file without one."""
    try:
        with open_raster(path) as dataset:
            if dataset.nodata is not None:
                return float(dataset.nodata)
            return None if dataset.crs == crs else 0.0
    except DataError:  # in a format that TorchGeo reads otherwise
        return None


class RowSource(Source):
    """The image or the mask of one row of a GeoDataset's index.

    TorchGeo does not say where pixels hold data: a pixel does where all bands are finite and not all equal the nodata value.
    """

    nodata: float | None = None

    def __init__(self, one: Any, key: str, files: Sequence[Path], frame: SimpleNamespace, time: slice) -> None:
        """Reads a corner of it, which says how many bands there are and of which type.

        Args:
            one: the data set with this row only.
            key: "image" or "mask".
            files: that TorchGeo reads the row from.
            frame: transform, width, height and crs of the case.
            time: the interval that is read.

        Raises:
            DataError: Its samples hold no such key, or one of an unexpected shape.
        """
        self.paths, self._one, self._key, self._time = tuple(files), one, key, time
        self.stored = scene_grid(frame)
        self.canonical = self.stored.as_kind(CanonicalGrid)
        self.profile = {"crs": frame.crs, "transform": frame.transform}
        self.target = Target(self.path, self.stored, frame.transform, self.working, frame.transform)
        corner = self._array(Window(0, 0, 0, 1, min(16, frame.height), min(16, frame.width)))
        self.dtype = corner.dtype
        self.channels = ("label",) if key == "mask" else channel_names(_leaves(one), len(corner))

    def _array(self, window: Window) -> NDArray[Any]:
        """The key's array [C, h, w] at `window`."""
        sample = _SAMPLES.get((id(self._one), window), lambda: _Held(self._one, self._sample(window))).value
        return sample_array(sample, self._key, type(self._one).__name__, str(self.path), window.size[1:])

    def _sample(self, window: Window) -> Mapping[str, Any]:
        transform: Affine = self.profile["transform"]
        left, top = transform @ (window.x, window.y)
        right, bottom = transform @ (window.x + window.width, window.y + window.height)
        # File handles of GDAL may not be shared by threads, and TorchGeo keeps them in the data set.
        reader = _READERS.get(id(self._one), lambda: _Held(self._one, copy.deepcopy(self._one))).value
        query = (slice(left, right, transform.a), slice(bottom, top, -transform.e), self._time)
        try:
            sample: Mapping[str, Any] = reader[query]
        except Exception as error:  # each class fails in its own way
            raise DataError(
                f"TorchGeo's {type(self._one).__name__} could not read {self.path} at window {tuple(window)} (z, y, x, depth, "
                f"height, width): {reason(error)}. Fetch the file again, or leave the case out with 'data.exclude=[…]'."
            ) from error
        return sample

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        array = self._array(window)[list(channels)]
        valid = np.isfinite(array).all(axis=0)
        if self.nodata is not None:
            valid &= (array != array.dtype.type(self.nodata)).any(axis=0)
        return array[:, None], valid[None]

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return f"{stem}.tif"

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`; the finished file is a Cloud-Optimized GeoTIFF."""
        return open_cog(path, self.canonical.shape, spec, self.profile)


class _Held:
    """A value in a `HandleCache`, with what its key was the id of, so that nothing else gets that id meanwhile."""

    def __init__(self, owner: Any, value: Any) -> None:
        self.owner, self.value = owner, value

    def close(self) -> None:
        """Nothing to give back: rasterio closes files that nobody holds."""
