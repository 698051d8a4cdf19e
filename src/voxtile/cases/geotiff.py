"""GeoTIFF scenes: any number of bands, any data type, in one file or several, read as the settings of `data.scene` say."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.dtypes
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from voxtile.cases.address import RemoteFile
from voxtile.cases.aligned import AlignedFile, OnTarget, Target, alpha_of, is_sentinel
from voxtile.cases.area import SceneArea, area_on, exchanged
from voxtile.cases.bands import Derived, Layer, Mask, decibel
from voxtile.cases.case import Source, distinct_names, everywhere
from voxtile.cases.cog import open_cog
from voxtile.cases.copying import Copies
from voxtile.cases.finer import Parts, any_part, divided, majority, parts_of
from voxtile.cases.grid import CanonicalGrid
from voxtile.cases.label_colors import ColorLabel
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.raster import MASK, NOTED, band_names, open_raster, scene_grid
from voxtile.cases.scene import MissingBandError, OutsideAreaError, Scene
from voxtile.cases.untrusted import sources_of
from voxtile.cases.window import Window
from voxtile.errors import DataError, did_you_mean, listed, typed

EXACT = 2**53  # whole numbers up to here are floats, as which rasterio gives nodata values
CORNER = 16  # side in pixels of the corners that `notes` looks at
NO_CLASSES: Mapping[int, int] = MappingProxyType({})
GLANCED = 128  # side in pixels of the five squares that `doubts` looks at


@dataclass(frozen=True)
class Band:
    """A stored band.

    Attributes:
        file: index of its file.
        number: from 1, in the file.
        name: the channel's.
        dtype: as stored.
        nodata: the value of pixels without data, as the data type holds it; None where none is told, or no pixel can have it.
        linear: (gain, bias) with value = stored * gain + bias, or None.
        decibel: whether the value is linear power that is read as 10 log10 of it.
        kinds: whether values are kinds of things, which cannot be averaged.
    """

    file: int
    number: int
    name: str
    dtype: np.dtype[Any]
    nodata: float | None
    linear: tuple[float, float] | None = None
    decibel: bool = False
    kinds: bool = False

    @property
    def sentinel(self) -> bool:
        """Whether the nodata value cannot be a measurement."""
        return is_sentinel(self.nodata, self.dtype)

    @property
    def telling(self) -> bool:
        """Whether its nodata value says something together with that of the other bands: it may be a measurement, and no NaN."""
        return self.nodata is not None and not self.sentinel and not math.isnan(self.nodata)

    def value(self, stored: Layer) -> Layer:
        """What pixels as stored mean."""
        if self.linear is not None:
            stored = stored * np.float64(self.linear[0]) + self.linear[1]
        return decibel(stored) if self.decibel else stored


@dataclass(frozen=True)
class Picked:
    """Bands that are read together.

    Attributes:
        bands: the bands.
        numbers: theirs, in the file.
        dtypes: theirs.
        full: whether no pixel can lack data.
    """

    bands: Sequence[Band]
    numbers: tuple[int, ...]
    dtypes: frozenset[np.dtype[Any]]
    full: bool

    def hold_data(self, pixels: NDArray[Any]) -> NDArray[np.bool_]:
        """Where pixels as stored [n, h, w] hold data [1, h, w]."""
        return everywhere((1, *pixels.shape[1:])) if self.full else _hold_data(pixels, self.bands)


class GeoTiffSource(Source):
    """One GeoTIFF, or several whose bands are stacked in the order given, on the grid of the first.

    A pixel is empty where a band is NaN; where a band has a nodata value that cannot be a measurement (-9999); where all bands that
    have another nodata value (0) equal it, since one alone may be 0 in a valid pixel, as Sentinel-2's cirrus band; where a mask or
    alpha band says so; outside any of the files; and outside the masks and the area of the scene's settings. Alpha and mask bands
    are not channels. Bands with scale or offset, of the file or the settings, become float32.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        nodata: float | None = None,
        scene: Scene | None = None,
        asked: Collection[str] = (),
        onto: Target | None = None,
    ) -> None:
        """Reads the headers.

        Args:
            paths: the files.
            nodata: overrides the files' own nodata value.
            scene: how pixels are read; plainly where None.
            asked: names of channels that are wanted, also where they are masks.
            onto: for a label, the grid of its image; values are then kinds of things.

        Raises:
            DataError: A file cannot be opened or placed, a band is missing, no channel is left, or the area of interest lies
                elsewhere.
        """
        self.paths, self.scene, self._label = tuple(paths), scene or Scene(), onto is not None
        self._inexact = False  # whether a nodata value is too large to be known exactly
        self._as_channels: list[str] = []  # bands that are declared as alpha, and are asked for as channels
        bands: list[Band] = []
        found: list[Path] = []
        noted: list[object] = []
        self._files: list[AlignedFile] = []
        # Of files that are finer than the grid, by their index: as they are read in parts of pixels, and these parts.
        self._finer: dict[int, tuple[AlignedFile, Parts]] = {}
        for number, path in enumerate(self.paths):
            with open_raster(path) as dataset:
                if number == 0:
                    self.target, self._area = (onto, None) if onto else self._worked_out(dataset)
                    self._by_points = bool(dataset.gcps[0])
                alpha = self._alpha_in(dataset, number, asked)
                bands += self._bands_of(dataset, number, nodata, alpha)
                own = {band.number: band.nodata for band in bands if band.file == number}
                resampling = "nearest" if self._label else self.scene.resampling
                aligned = AlignedFile(path, dataset, self.target, own, resampling, self._label, alpha is not None)
                self._files.append(aligned)
                parts = parts_of(scene_grid(dataset), self.target)
                if self.scene.masks and parts != (1, 1) and not aligned.direct:
                    in_parts = self.target.divided(parts)
                    self._finer[number] = AlignedFile(path, dataset, in_parts, own, "nearest", alpha=alpha is not None), parts
                found += aligned.beside
                if any(each.name.endswith(NOTED) and _says_of_pixels(each) for each in aligned.beside):
                    noted.append(_facts(dataset))
                if number == 0:
                    self.profile = {"crs": dataset.crs if onto is None else onto.grid.crs, "transform": self.target.transform}
        # What a program noted beside a file is known by what it says of pixels: mostly that is nothing, see `_says_of_pixels`.
        self._beside = tuple(each for each in found if not each.name.endswith(NOTED))
        self.stored, self.working = self.target.stored, self.target.grid
        self.canonical = self.stored.as_kind(CanonicalGrid)
        if nodata is not None and not self._label and bands and all(band.nodata is None for band in bands):
            raise DataError(
                f"'data.nodata={nodata:g}' is no value that {self.path} can hold, whose pixels are "
                f"{listed(dict.fromkeys(band.dtype.name for band in bands))}. Name one that stands where there are no data, or "
                "take the setting out."
            )
        self._bands = self._named(bands)
        self._check_names()
        masks = {mask.band for mask in self.scene.masks}
        self._kept = [band for band in self._bands.values() if band.name not in masks or band.name in asked]
        self.channels = (*(band.name for band in self._kept), *(derived.name for derived in self.scene.derived))
        if not self.channels:
            raise DataError(
                f"{self.path} has no channel: its bands are {listed(self._bands, 20)}, without alpha, and all of them are masks. "
                "Expected an image; add the files of its bands."
            )
        kinds = [band.dtype for band in self._kept] + [np.dtype(np.float32)] * len(self.scene.derived)
        if np.result_type(*kinds).kind == "c":
            raise DataError(f"{self.path} holds complex numbers. Expected real ones; save magnitude and phase as bands.")
        changed = any(band.linear is not None or band.decibel for band in self._kept)
        self.dtype = np.dtype(np.float32) if changed else np.result_type(*kinds)
        self._plain = len(self._files) == 1 and self._files[0].direct and not self._files[0].masked and self._area is None
        self._plain = self._plain and not changed and not self.scene.derived and not self.scene.masks
        self._known: dict[tuple[int, ...], Picked] = {}
        self.key = "" if (nodata, self.scene) == (None, Scene()) else f"{nodata} {self.scene.key} {sorted(masks & set(asked))}"
        self.key += f" channels {self._as_channels}" if self._as_channels else ""
        used = [band for name, band in self._bands.items() if name not in masks]
        told_by_nan = any(band.nodata is not None and math.isnan(band.nodata) for band in used)
        if any(file.by_nan for file in self._files) or (told_by_nan and any(band.telling for band in used)):
            self.key += " NaN tells of its band alone"  # which such scenes were once read without
        self.key += f" {noted}" if noted else ""
        if any(self._bands[mask.band].file in self._finer for mask in self.scene.masks):
            self.key += " masked where a part is"  # of which a single part once spoke for the pixel

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """See `Source.files`; a VRT is made of others, all of which are opened to find them: once, since it may be many cases."""
        return (*self.paths, *(each for path in self.paths if path.suffix.lower() == ".vrt" for each in sources_of(path)))

    @property
    def framing(self) -> tuple[Path, ...]:
        """See `Source.framing`; a file of a whole region, stacked on each scene, is none of them."""
        return tuple(path for path, file in zip(self.paths, self._files, strict=True) if file.frames)

    @cached_property
    def beside(self) -> tuple[Path, ...]:
        """See `Source.beside`; of what a VRT is made of, masks."""
        masks = [each.with_name(each.name + MASK) for each in self.files[len(self.paths) :]]
        return (*self._beside, *(each for each in masks if each.is_file()))

    def _worked_out(self, dataset: rasterio.DatasetReader) -> tuple[Target, SceneArea | None]:
        """The working grid, and the area on it."""
        target = Target.of(self.path, dataset, self.scene.resolution)
        if self.scene.area is None:
            return target, None
        if target.grid.crs is None:
            raise DataError(
                f"{self.path} has no coordinate reference system, so the area of 'data.scene.area' cannot be found on it. Give the "
                "file one (gdal_edit.py -a_srs EPSG:…), or take the setting out."
            )
        area = area_on(self.scene.area, target.grid)
        if area is None:
            left, bottom, right, top = target.grid.footprint
            raise OutsideAreaError(
                f"{self.path} ({left:.6g} … {right:.6g}, {bottom:.6g} … {top:.6g} in its CRS) is not touched by "
                f"'data.scene.area={list(self.scene.area) if isinstance(self.scene.area, tuple) else self.scene.area}'."
                f"{exchanged(self.scene.area, target.grid)}"
            )
        return target.cut(area.box), area

    def _alpha_in(self, dataset: rasterio.DatasetReader, file: int, asked: Collection[str]) -> int | None:
        """The band of a file that says where it holds data; None where there is none, or it is asked for as a channel.

        Libraries declare the fourth band of 8-bit files as alpha unless they are told otherwise, also where it is near infrared.
        """
        if (alpha := alpha_of(dataset)) is None:
            return None
        name = self._as_channel(dataset, file, alpha)
        unnamed = not any(dataset.descriptions) and len(self.paths) == 1
        if name in asked or (unnamed and len(asked) == dataset.count):
            self._as_channels.append(name)
            return None
        return alpha

    def _as_channel(self, dataset: rasterio.DatasetReader, file: int, alpha: int) -> str:
        """What a band that is declared as alpha is called as a channel."""
        own = band_names(dataset, self.paths[file])[alpha - 1]
        return own or (f"band{alpha}" if len(self.paths) == 1 else f"{distinct_names(self.paths)[file]}_{alpha}")

    def _bands_of(self, dataset: rasterio.DatasetReader, file: int, nodata: float | None, alpha: int | None) -> list[Band]:
        """The bands of a file but its alpha; those without a good name are called by their number in the file alone."""
        found, names = [], band_names(dataset, self.paths[file])
        for number in dataset.indexes:
            if number == alpha:
                continue
            dtype = np.dtype(dataset.dtypes[number - 1])
            empty = _fitting(nodata if nodata is not None else dataset.nodatavals[number - 1], dtype)
            if (
                nodata is None
                and not self._label
                and dtype.kind in "ui"
                and MaskFlags.nodata in dataset.mask_flag_enums[number - 1]
            ):
                told = dataset.nodatavals[number - 1]
                self._inexact |= told is None or abs(told) >= EXACT
            tags = dataset.scales[number - 1], dataset.offsets[number - 1]
            found.append(
                Band(file, number, names[number - 1], dtype, empty, None if tags == (1.0, 0.0) else tags, kinds=self._label)
            )
        return found

    def _named(self, bands: Sequence[Band]) -> dict[str, Band]:
        """Bands by their final names, with what the settings say of each."""
        files = distinct_names(self.paths)
        names = []
        for band in bands:
            alone = sum(other.file == band.file for other in bands) == 1
            several = files[band.file] if alone else f"{files[band.file]}_{band.number}"
            names.append(band.name or (f"band{band.number}" if len(files) == 1 else several))
        if len(set(names)) < len(names):  # the same bands of several dates
            names = [f"{files[band.file]}_{name}" if band.name else name for band, name in zip(bands, names, strict=True)]
        if len(set(names)) < len(names):
            names = [f"band{place + 1}" for place in range(len(names))]
        masks = {mask.band for mask in self.scene.masks}
        out = {}
        for band, name in zip(bands, names, strict=True):
            linear = None if name in masks else self.scene.linear(name) or band.linear
            kinds = name in masks or band.kinds
            out[name] = replace(band, name=name, linear=linear, decibel=name in self.scene.decibel, kinds=kinds)
        return out

    def _check_names(self) -> None:
        """Raises an error where the settings name bands that are not there, or cannot be used as they say."""
        scene = self.scene
        uses = [(f"{key}.{name}", name) for key in ("scale", "offset") for name, _ in getattr(scene, key) if name]
        uses += [("decibel", name) for name in scene.decibel] + [("masks", mask.band) for mask in scene.masks]
        uses += [(f"derived.{derived.name}", name) for derived in scene.derived for name in derived.bands]
        for setting, name in uses:
            if name not in self._bands:
                raise MissingBandError(
                    f"{self.path} has no band '{name}', which 'data.scene.{setting}' names; it has {listed(self._bands, 20)}."
                    f"{did_you_mean(name, self._bands)}"
                )
        if twice := [derived.name for derived in scene.derived if derived.name in self._bands]:
            raise DataError(f"'data.scene.derived.{twice[0]}' has the name of a band of {self.path}. Choose another.")
        for mask in scene.masks:
            dtype = self._bands[mask.band].dtype
            if mask.bits and (dtype.kind not in "ui" or max(mask.bits) >= 8 * dtype.itemsize):
                lack = f"{8 * dtype.itemsize} bits, from 0 on" if dtype.kind in "ui" else "no bits"
                raise DataError(
                    f"Band '{mask.band}' of {self.path} holds {dtype} numbers, which have {lack}; 'data.scene.masks' asks for "
                    f"{listed(mask.bits)}. Name bits that they have, or the values of the pixels that are to be left out: "
                    "'data.scene.masks=[{band: …, values: […]}]'."
                )

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        if self._plain:  # nothing but reading: this is the path that sampling and prediction spend their time on
            picked = self._picked(tuple(channels))
            pixels, _ = self._files[0].read(picked.numbers, window)
            return pixels.astype(self.dtype, copy=False)[:, None], picked.hold_data(pixels)
        everything: tuple[Band | Derived, ...] = (*self._kept, *self.scene.derived)
        wanted = [everything[channel] for channel in channels]
        used = {name for each in wanted for name in (each.bands if isinstance(each, Derived) else (each.name,))}
        whole = {mask.band for mask in self.scene.masks if self._bands[mask.band].file not in self._finer}
        stored, valid = self._stored(window, used | whole)
        bands = [band for name, band in self._bands.items() if name in used]
        valid = valid & _hold_data([stored[band.name] for band in bands], bands)[0]
        for mask in self.scene.masks:
            valid &= ~(mask.marks(stored[mask.band]) if mask.band in whole else self._marked_in_part(mask, window))
        if self._area is not None:
            valid &= self._area.inside(window)
        values = {band.name: band.value(stored[band.name]) for band in bands}
        out = np.empty((len(wanted), *window.size), dtype=self.dtype)
        for row, channel in enumerate(wanted):
            out[row, 0] = channel(values) if isinstance(channel, Derived) else values[channel.name]
            if isinstance(channel, Derived) or channel.decibel:
                valid &= np.isfinite(out[row, 0])
        return out, valid[None]

    def begin(
        self, out: NDArray[Any], window: Window, channels: Sequence[int], copies: Copies | None
    ) -> Callable[[], NDArray[np.bool_]]:
        """See `Source.begin`; what needs no work after reading is read straight into its place."""
        if not self._plain or out.dtype != self.dtype:
            return super().begin(out, window, channels, copies)
        picked, pixels = self._picked(tuple(channels)), out[:, 0]
        if picked.dtypes != {self.dtype}:
            return super().begin(out, window, channels, copies)
        self._files[0].read(picked.numbers, window, out=pixels, copies=copies)
        return partial(picked.hold_data, pixels)

    def _picked(self, channels: tuple[int, ...]) -> Picked:
        """What there is to know of channels that are stored bands."""
        if channels not in self._known:
            bands = [self._kept[channel] for channel in channels]
            numbers, dtypes = tuple(band.number for band in bands), frozenset(band.dtype for band in bands)
            self._known[channels] = Picked(bands, numbers, dtypes, not _may_lack_data(bands))
        return self._known[channels]

    def _stored(self, window: Window, names: Collection[str]) -> tuple[dict[str, Layer], NDArray[np.bool_]]:
        """Pixels as stored by name of band [h, w], and which of them the files allow [h, w]."""
        found: dict[str, Layer] = {}
        valid = np.ones(window.size[1:], dtype=np.bool_)
        wanted = [band for name, band in self._bands.items() if name in names]
        for number, kinds in sorted({(band.file, band.kinds) for band in wanted}):
            part = [band for band in wanted if (band.file, band.kinds) == (number, kinds)]
            pixels, allowed = self._files[number].read([band.number for band in part], window, kinds)
            found.update(zip((band.name for band in part), pixels, strict=True))
            if allowed is not None:
                valid &= allowed
        return found, valid

    def _marked_in_part(self, mask: Mask, window: Window) -> NDArray[np.bool_]:
        """Pixels [h, w] of which a part is marked, since the other bands are averages of all parts, or nothing lies in the file."""
        band = self._bands[mask.band]
        file, parts = self._finer[band.file]
        stored, allowed = file.read([band.number], divided(window, parts), nearest=True)
        if allowed is None:
            return any_part(mask.marks(stored[0]), parts)
        return any_part(mask.marks(stored[0]) & allowed, parts) | ~any_part(allowed, parts)

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return f"{stem}.tif"

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`; the finished file is a Cloud-Optimized GeoTIFF on the working grid."""
        return open_cog(path, self.working.shape, spec, self.profile)

    def notes(self) -> list[str]:
        """See `Source.notes`."""
        found: list[str] = []
        if self._label:  # maps are its image's
            pass
        elif self.stored.crs is None and self.profile["crs"] is None:
            if self.target.place.is_identity and not self._by_points:  # a picture, of which nobody expects a place
                return found + self._notes_on_pixels()
            where = " Ground control points say where it lies, which are not followed: 'gdalwarp' makes a scene of it."
            found.append(
                f"{self.path} has no coordinate reference system; its maps will have none either.{where if self._by_points else ''}"
            )
        elif self.stored.crs is None:
            found.append(f"{self.path} has a coordinate reference system without a place on Earth: it counts as having none.")
        return found + self._notes_on_pixels()

    def _notes_on_pixels(self) -> list[str]:
        """What is odd about values, wherever they lie."""
        found: list[str] = []
        if self._inexact:
            found.append(
                f"{self.path} declares a nodata value beyond 2^53, of which only the nearest floating-point number can be read: "
                "such pixels may count as data. See it with 'gdalinfo', and type it as 'data.nodata=<value>', which is exact."
            )
        found += self._area.notes if self._area else ()
        if not self._label and (constant := self._constant_corner()) is not None:
            found.append(
                f"{self.path} holds {constant:g} in every band of a whole corner, and declares no nodata value: if that means 'no "
                f"data', type 'data.nodata={constant:g}'."
            )
        return found

    def doubts(self) -> list[str]:
        """See `Source.doubts`: whether a band that says which pixels hold data has values like those of a channel."""
        for number, (path, file) in enumerate(zip(self.paths, self._files, strict=True)):
            if file.alpha is None or self._label or isinstance(path, RemoteFile):
                continue
            try:
                with open_raster(path) as dataset:
                    values = np.unique(
                        np.concatenate([dataset.read(file.alpha, window=at).ravel() for at in _glances(dataset.shape)])
                    )
                    name = self._as_channel(dataset, number, file.alpha)
            except (DataError, RasterioError):  # which is told when it is read
                continue
            if len(values) > 2:
                names = typed([*(band.name for band in self._kept), name])
                remedy = (
                    f"name all channels: 'data.channels={names}'"
                    if len(self.paths) == 1
                    else f"say so in the files: gdal_edit.py -colorinterp_{file.alpha} undefined {path}"
                )
                return [
                    f"{path} declares its band {file.alpha} as alpha, which says where the others hold data, and it has values "
                    f"from {values[0]:g} to {values[-1]:g}: many programs declare the fourth of 8-bit bands so. If it is a "
                    f"channel, such as near infrared, {remedy}."
                ]
        return []

    def _constant_corner(self) -> float | None:
        """The value that all bands of one of the first file's corners have, where nothing says which pixels hold data."""
        bands = [band for band in self._bands.values() if band.file == 0 and not band.kinds]
        if not bands or self._files[0].masked or any(band.nodata is not None for band in bands):
            return None
        _, height, width = self.working.shape
        side_y, side_x = min(CORNER, height), min(CORNER, width)
        for y in (0, height - side_y):
            for x in (0, width - side_x):
                pixels, _ = self._files[0].read([band.number for band in bands], Window(0, y, x, 1, side_y, side_x))
                if pixels.size > len(bands) and (pixels == pixels.flat[0]).all():
                    return float(pixels.flat[0])
        return None


def _says_of_pixels(path: Path) -> bool:
    """Whether an `.aux.xml` holds more than metadata and histograms, such as the statistics of a program that showed the raster."""
    try:
        text = path.read_text(encoding="utf-8")
        if "<!" in text:  # entities, which nothing is expanded of
            return True
        root = ElementTree.fromstring(text)  # noqa: S314  # without entities it cannot grow
    except (OSError, ValueError, ElementTree.ParseError):
        return True
    of_bands = [each for band in root.iter("PAMRasterBand") for each in band]
    return not {each.tag for each in (*root, *of_bands)} <= {"PAMRasterBand", "Metadata", "Histograms"}


def _facts(dataset: rasterio.DatasetReader) -> tuple[object, ...]:
    """What decides how pixels of an open raster are read and where they lie."""
    bands = (dataset.nodatavals, dataset.scales, dataset.offsets, dataset.descriptions, [int(each) for each in dataset.colorinterp])
    return (dataset.crs and dataset.crs.to_wkt(), tuple(dataset.transform), *bands)


def _glances(shape: tuple[int, int]) -> list[RasterWindow]:
    """Five squares of a raster of `shape` (height, width): in its corners and its middle."""
    height, width = shape
    side_y, side_x = min(GLANCED, height), min(GLANCED, width)
    low, high = (0, 0), (height - side_y, width - side_x)
    middle = (high[0] // 2, high[1] // 2)
    places = {(y, x) for y in (low[0], high[0]) for x in (low[1], high[1])} | {middle}
    return [RasterWindow(x, y, side_x, side_y) for y, x in sorted(places)]


def _fitting(nodata: float | None, dtype: np.dtype[Any]) -> float | None:
    """A nodata value as pixels of a type hold it, so that comparing converts no pixel; None where none can have it."""
    if nodata is not None and dtype.kind == "f":
        with np.errstate(over="ignore"):  # what lies beyond is infinite, and no data
            return float(dtype.type(nodata))
    if nodata is None or dtype.kind not in "ui":
        return nodata
    return int(nodata) if rasterio.dtypes.in_dtype_range(nodata, dtype.name) and nodata == int(nodata) else None


def _may_lack_data(bands: Sequence[Band]) -> bool:
    return any(band.dtype.kind == "f" or band.nodata is not None for band in bands)


def _hold_data(layers: Sequence[Layer] | NDArray[Any], bands: Sequence[Band]) -> NDArray[np.bool_]:
    """Where pixels as stored, bands x [h, w], hold data [1, h, w]."""
    valid = everywhere((1, *layers[0].shape))
    for layer, band in zip(layers, bands, strict=True):
        # Most windows hold finite numbers only: least and most show that in half the time of asking each.
        if band.dtype.kind == "f" and not (math.isfinite(layer.min()) and math.isfinite(layer.max())):
            valid = valid & np.isfinite(layer)
        if band.sentinel and np.count_nonzero(empty := layer == band.nodata):
            valid = valid & ~empty
    telling = [number for number, band in enumerate(bands) if band.telling]
    if telling:
        empty = layers[telling[0]] == bands[telling[0]].nodata
        if np.count_nonzero(empty):  # most windows are settled by one band
            for number in telling[1:]:
                empty &= layers[number] == bands[number].nodata
            valid = valid & ~empty
    return valid


def label_source(path: Path, onto: OnTarget, meaning: Mapping[int, int] = NO_CLASSES) -> Source:
    """Opens a label raster, aligned to the grid of its image where it lies on another one.

    Its pixels that are as large as the grid's, or larger, come by nearest neighbour; of smaller ones the most frequent class.

    Args:
        path: the raster.
        onto: its image.
        meaning: stored value -> class index; none for what has no classes, of which nearest neighbours are taken. A nodata tag does
            not take its meaning away from a value, since many a tool writes nodata=0 into masks in which 0 is a class.

    Raises:
        DataError: The label has several bands, or cannot be aligned.
    """
    return majority(path, lambda target: _label_on(path, target, meaning), onto.target, meaning)


def color_source(path: Path, onto: OnTarget, meaning: Mapping[int, int]) -> Source:
    """Opens a raster in whose colours a label is drawn, aligned as `label_source` does.

    Args:
        path: the raster.
        onto: its image.
        meaning: colour -> class index, see `voxtile.cases.label_colors`; a nodata tag does not take a meaning away.

    Raises:
        DataError: It has one band, whose numbers are no colours, or cannot be aligned.
    """
    return majority(path, lambda target: ColorLabel(_colors_on(path, target, meaning)), onto.target, meaning)


def _label_on(path: Path, target: Target, named: Collection[int]) -> GeoTiffSource:
    label = GeoTiffSource([path], onto=target)
    if len(label.channels) != 1:
        beside = " beside alpha" * any(file.alpha is not None for file in label._files)
        raise DataError(
            f"{path} has {len(label.channels)} bands{beside}; a label has one band of class values. Where each band is a class, "
            "write the number of the class, for example by label.argmax(axis=0); where bands are colours, name these in "
            "'data.labels'."
        )
    if next(iter(label._bands.values())).nodata in named:
        return GeoTiffSource([path], nodata=math.nan, onto=target)  # which no whole number equals
    return label


def _colors_on(path: Path, target: Target, named: Collection[int]) -> GeoTiffSource:
    label = GeoTiffSource([path], onto=target)
    if len(label.channels) == 1:
        raise DataError(
            f"{path} has one band, of numbers, and 'data.labels' names colours. Name the numbers; those of a palette are read as "
            "its colours with 'data.format=picture'."
        )
    empty = {band.nodata for band in label._bands.values()}
    if any(nodata in empty and nodata * 0x010101 in named for nodata in range(256)):  # a grey: no data is what all bands say
        return GeoTiffSource([path], nodata=math.nan, onto=target)
    return label
