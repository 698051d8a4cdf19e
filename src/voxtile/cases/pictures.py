"""Pictures: PNG, JPEG and TIFF by Pillow; a multi-page TIFF or a series of slice files is a volume."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from voxtile.cases.cache import Stamp, cached_array, stamp_of
from voxtile.cases.case import Source
from voxtile.cases.colors import default_colors
from voxtile.cases.grid import CanonicalGrid, StoredGrid, plain_affine
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.shared import Shared
from voxtile.cases.window import IGNORE, Size3, Window
from voxtile.errors import DataError, listed, reason, typed

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_BIG = 64_000_000  # bytes of a decoded file above which it goes through the disk cache, not the memory of each process
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_WIDTH, _HEIGHT, _SAMPLES = 256, 257, 277  # tags of a TIFF: pixels in a row, rows, values of a pixel
_BETWEEN = 0.1  # share of pixels that are neither clear nor opaque, above which an alpha channel looks like a measurement
# How viewers are asked to turn a picture: what undoes it where Pillow has followed.
_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@dataclass(frozen=True)
class _Slice:
    """One picture, or one page of a TIFF."""

    path: Path
    page: int
    stamp: Stamp  # a replaced file is not taken for the one decoded before

    def __str__(self) -> str:
        return f"{self.path} (page {self.page + 1})" if self.page else str(self.path)


@dataclass(frozen=True)
class _Kind:
    """What the slices of a volume must have in common."""

    height: int
    width: int
    mode: str  # Pillow's, after a palette is resolved
    alpha: bool  # whether the last plane of a decoded slice says where there is data

    def __str__(self) -> str:
        return f"{self.width}x{self.height} pixels of mode '{self.mode}'{' with transparency' if self.alpha else ''}"


class PictureSource(Source):
    """One picture, a multi-page TIFF as a volume, or several files as the slices of one, ordered by the numbers in their names.

    Pixels are read as they are stored, whatever orientation a file asks viewers for: masks that programs made lie on these, and
    maps are written for them. Palettes become red, green and blue; an alpha channel or a transparent colour says where there is
    no data and is no channel. As a label, a palette's indices are the values, transparent colours mean nothing, and grey that was
    saved as red, green and blue is taken as one channel.
    """

    def __init__(self, paths: Sequence[Path], label: bool = False, colored: bool = False) -> None:
        """Reads the headers.

        Args:
            paths: one file, or the slices of a volume in their order; a layout sorts images and takes their labels along.
            label: whether the values are classes.
            colored: whether the colours are: a file that calls one of them transparent takes none away, and white is 255 in a
                picture of one bit, too.

        Raises:
            DataError: A file cannot be read, slices differ in size or mode, or Pillow would silently lose precision or a band.
        """
        self.paths = tuple(paths)
        self._label, self._colored = label, colored
        self._notes: list[str] = []
        self._was_turned = False  # whether Pillow, and so an earlier version, turns pixels of these files
        self._was_otherwise = False  # whether an earlier version read other colours, or none
        self._alpha_is_band = False
        found = [pair for path in self.paths for pair in self._inspect(path)]
        self._slices = [part for part, _ in found]
        self._kind = found[0][1]
        for part, kind in found:
            if kind != self._kind:
                raise DataError(
                    f"{part} has {kind}, the first slice {self._slices[0]} {self._kind}. The slices of a volume must have one size "
                    "and one mode; convert this one, or leave it out of the pattern of file names."
                )
        if 1 < len(self.paths) < len(found):
            paged = next(part for part in self._slices if part.page)
            raise DataError(f"{paged.path} has several pages. Expected one per file where several files make a volume.")
        shape: Size3 = (len(found), self._kind.height, self._kind.width)
        self.stored = StoredGrid(shape, plain_affine())
        self.canonical = CanonicalGrid(shape, plain_affine())
        self.dtype = _dtype(self._kind.mode)
        self.channels = ("label",) if label else _channel_names(self._kind.mode)
        size = int(np.prod(shape)) * (len(self.channels) + self._kind.alpha) * self.dtype.itemsize
        self.key = " ".join(["as stored"] * self._was_turned + ["as drawn"] * self._was_otherwise)
        # Pages can only be reached one after the other, and a big picture is as slow to decode as a volume.
        self._on_disk = len(self.paths) == 1 and (len(found) > 1 or size > _BIG)

    def _inspect(self, path: Path) -> list[tuple[_Slice, _Kind]]:
        with _opened(path) as image:
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            stamp = stamp_of(path)
            found, is_turned = [], False
            for page in range(pages):
                image.seek(page)
                is_turned |= _orientation(image) != 1
                self._was_otherwise |= self._colored and ("transparency" in image.info or image.mode == "1")
                self._alpha_is_band |= image.mode in ("LA", "RGBA")
                found.append((_Slice(path, page, stamp), _kind(image, path, self._label, self._colored)))
            if is_turned:
                self._notes.append(
                    f"{path} asks viewers to turn it (its orientation tag); it is read as stored, and maps lie on that. Labels "
                    "drawn on the turned picture do not fit: turn them back, or write such pictures anew ('mogrify -auto-orient')."
                )
                self._was_turned |= image.format == "TIFF"
            return found

    @property
    def is_one_piece(self) -> bool:
        """See `Source.is_one_piece`."""
        return self._on_disk or len(self._slices) == 1

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`; only the slices in the window are decoded."""
        depths, rows, columns = window.slices
        out = np.empty((len(channels), *window.size), dtype=self.dtype)
        valid = np.ones(window.size, dtype=np.bool_)
        for depth, whole in enumerate(self._planes(depths)):
            planes = whole[:, rows, columns]
            out[:, depth] = planes[list(channels)]
            if self._kind.alpha:
                valid[depth] = planes[-1] > 0
        if self.dtype.kind == "f":
            valid &= np.isfinite(out).all(axis=0)
        return out, valid

    def _planes(self, depths: slice) -> Iterable[NDArray[Any]]:
        """Of some slices, one by one, the channels and the alpha where there is one [C, H, W]."""
        if self._on_disk:
            variant = ("label" if self._label else "image") + ("-stored" if self._was_turned else "")
            return cached_array(self.path, self._decode_all, variant + ("-drawn" if self._was_otherwise else ""))[depths]
        return map(self._slice, self._slices[depths])

    def _slice(self, part: _Slice) -> NDArray[Any]:
        return _SLICES.get((part, self._label, self._was_otherwise), lambda: self._decode([part])[0])

    def _decode_all(self) -> NDArray[Any]:
        return self._decode(self._slices)

    def _decode(self, parts: Sequence[_Slice]) -> NDArray[Any]:
        """Pixels [slices, C, H, W] of slices of one file."""
        with _opened(parts[0].path) as image:
            decoded = []
            for part in parts:
                image.seek(part.page)
                planes = _pixels(image, self._kind)
                decoded.append(self._one_channel(planes, part) if self._label else planes)
            return np.stack(decoded)

    def _one_channel(self, planes: NDArray[Any], part: _Slice) -> NDArray[Any]:
        values = planes[: len(planes) - self._kind.alpha]
        if (values != values[:1]).any():
            y, x = np.argwhere((values != values[:1]).any(axis=0))[0]
            pixel = values[:, y, x].tolist()
            told = f"The label {part} is a colour picture: its pixel (y {y}, x {x}) is {tuple(pixel)}."
            if part.path.suffix.lower() in (".jpg", ".jpeg"):
                raise DataError(f"{told} JPEG changes values, so that no label can be kept as one. Save the labels as PNG.")
            raise DataError(
                f"{told} Expected class values (grey, or a palette whose indices are the classes); where colours stand for "
                f"classes, name all of them: 'labels: {{\"#{bytes(pixel[:3]).hex()}\": road, …}}' in the data set's file."
            )
        return np.delete(planes, range(1, len(values)), axis=0)

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`; slice files end as a folder of files."""
        return stem if len(self.paths) > 1 else stem + self._suffix(spec)

    def _suffix(self, spec: MapSpec) -> str:
        return ".tif" if spec.heatmap or len(self._slices) > len(self.paths) else ".png"

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`.

        A picture ends as a PNG with a palette, a multi-page TIFF as one with the same pages, slice files as a folder of PNG
        files of the same names. Heatmaps are float32 TIFFs with one page per class (of a multi-page TIFF: all slices of the
        first class, then all of the second, …).
        """
        if len(self.paths) == 1:
            return MapWriter(path, self.canonical.shape, spec, lambda array, making: _save(np.concatenate(array), making, spec))
        stems = [each.stem for each in self.paths]
        if len(set(stems)) < len(stems):
            stems = [f"{number:04d}_{stem}" for number, stem in enumerate(stems)]
        names = [stem + self._suffix(spec) for stem in stems]
        foreign = {file.name for file in path.iterdir()} - set(names) if path.is_dir() else set()
        if foreign:
            raise DataError(f"The folder {path} holds other files ({listed(sorted(foreign), 3)}) than a map. Name another output.")

        def finish(array: NDArray[Any], making: Path) -> None:
            making.mkdir()
            for z, name in enumerate(names):
                _save(array[:, z], making / name, spec)

        return MapWriter(path, self.canonical.shape, spec, finish)

    def notes(self) -> list[str]:
        """See `Source.notes`."""
        return list(self._notes)

    def doubts(self) -> list[str]:
        """See `Source.doubts`: that viewers turn a picture, and whether alpha has values like those of a channel."""
        found = self._notes[:1]
        if self._label or not self._alpha_is_band or len(self._slices) > 1:
            return found
        try:
            alpha = next(iter(self._planes(slice(1))))[-1]
        except DataError:  # which is told when it is read
            return found
        low, high = int(alpha.min()), int(alpha.max())
        if ((alpha > 0) & (alpha < np.iinfo(alpha.dtype).max)).mean() > _BETWEEN and low < high:
            names = typed(f"band{number + 1}" for number in range(len(self.channels) + 1))
            found.append(
                f"{self.path} declares its last band as alpha, which says where the others hold data, and it has values from {low} "
                f"to {high}: many programs declare the fourth of 8-bit bands so. If it is a channel, such as near infrared, read "
                f"all bands with 'data.format=geotiff' and 'data.channels={names}'."
            )
        return found


_SLICES: Shared[NDArray[Any]] = Shared(128_000_000, lambda planes: planes.nbytes)


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Opens a picture; whatever Pillow raises in the block becomes a DataError that names the file."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too big for a picture: {error} Convert it to a GeoTIFF, which is read by window.") from error
    except _UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read as a picture: {reason(error)}. Expected an intact {', '.join(_FORMATS)} file of at most four "
            "channels (more, or double precision: read it with 'data.format=geotiff')."
        ) from error


def _kind(image: ImageFile.ImageFile, path: Path, label: bool, colored: bool) -> _Kind:
    """What the current page of an open picture is, from its header."""
    mode = image.mode
    arguments = image.tile[0].args if image.tile else ""
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    if image.format in ("PNG", "TIFF") and mode[0] not in "IF" and re.search(";(16|32)", str(raw)):
        raise DataError(
            f"{path} has more than 8 bits per channel in several channels, which Pillow would cut to 8. Read it with "
            "'data.format=geotiff', which takes PNG files as well, or save each channel as a file."
        )
    if colored and mode in ("LAB", "YCbCr", "CMYK"):
        raise DataError(
            f"The label {path} holds colours as {mode}, and 'data.labels' names them by red, green and blue. Write it anew, for "
            "example with 'mogrify -colorspace sRGB'."
        )
    samples, read = _samples(image), len(image.getbands())
    if samples > read and not label:
        left = f"the {'other is' if samples - read == 1 else 'others are'}"
        anew = f"write the file anew with the {read} alone"
        raise DataError(
            f"{path} has {samples} bands, of which Pillow reads {read}, since nothing says what {left}. "
            + (
                f"As a label whose colours are named, {anew}."
                if colored
                else f"Read all of them with 'data.format=geotiff', or {anew}: runs that were trained on such pictures saw no more."
            )
        )
    alpha = _has_alpha(mode) or (not label and not colored and "transparency" in image.info)
    if mode in ("P", "PA") and not label:
        mode = "RGBA" if alpha else "RGB"
    elif mode == "1" and colored:
        mode = "L"
    height, width = _stored_size(image)
    return _Kind(height, width, mode, alpha)


def _orientation(image: Image.Image) -> int:
    """How the current page asks viewers to turn it, from 1 (not) to 8; other numbers mean nothing."""
    try:
        # Not PNG's own way, which decodes the picture for it.
        found = int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except (*_UNREADABLE, TypeError):
        return 1
    return found if found in _BACK else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Rows and columns as they are stored; Pillow gives those of a TIFF as they are shown."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    return int(tags.get(_HEIGHT, image.height)), int(tags.get(_WIDTH, image.width))


def _samples(image: Image.Image) -> int:
    """How many values a pixel of the current page has, where the header says so."""
    return int(image.tag_v2.get(_SAMPLES, 1)) if isinstance(image, TiffImagePlugin.TiffImageFile) else 0


def _pixels(image: ImageFile.ImageFile, kind: _Kind) -> NDArray[Any]:
    """Decodes the current page into planes [C, H, W], the last of which is alpha where `kind` says so."""
    turned = _BACK.get(_orientation(image)) if image.format == "TIFF" else None  # which Pillow turns, as no other format
    if turned is not None:
        image.filename = ""  # lest Pillow maps the file into memory, by the wrong shape: the turned one
    image.load()
    if not kind.alpha:
        image.info.pop("transparency", None)  # of a label, of which Pillow's conversion would warn
    stored = image if image.mode == kind.mode else image.convert(kind.mode)
    if turned is not None:
        stored = stored.transpose(turned)
    array = np.asarray(stored).astype(_dtype(kind.mode), copy=False)
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    if kind.alpha and not _has_alpha(kind.mode):
        clear = np.reshape(image.info["transparency"], (-1, 1, 1))
        planes = np.concatenate([planes, (planes != clear).any(axis=0, keepdims=True).astype(planes.dtype)])
    return np.ascontiguousarray(planes)


def _has_alpha(mode: str) -> bool:
    return mode in ("LA", "PA", "RGBA")


def _dtype(mode: str) -> np.dtype[Any]:
    stored = np.asarray(Image.new(mode, (1, 1))).dtype
    return np.dtype(np.uint8) if stored == np.bool_ else stored.newbyteorder("=")


def _channel_names(mode: str) -> tuple[str, ...]:
    count = len(Image.getmodebandnames(mode)) - _has_alpha(mode)
    if mode in ("RGB", "RGBA"):
        return "red", "green", "blue"
    return ("grey",) if count == 1 else tuple(f"band{number + 1}" for number in range(count))


def _save(pages: NDArray[Any], path: Path, spec: MapSpec) -> None:
    """Writes pages [N, H, W] as a PNG (one page) or a TIFF, semantic maps with a palette in which 255 is transparent."""
    images = [Image.fromarray(np.ascontiguousarray(page)) for page in pages]
    if not spec.heatmap:
        colors = spec.colors or default_colors(len(spec.classes))
        palette = np.zeros((256, 3), dtype=np.uint8)  # all: Pillow packs a shorter one into fewer bits, which cannot hold 255
        palette[list(spec.numbers)] = colors
        for image in images:
            image.putpalette(palette.ravel().tolist())
    named = zip(spec.numbers, spec.classes, strict=True)
    about = dict(spec.tags) | {"classes": ", ".join(f"{number}={name}" for number, name in named)}
    if path.suffix == ".png":
        text = PngImagePlugin.PngInfo()
        for key, value in about.items():
            text.add_itxt(key, value)
        images[0].save(path, pnginfo=text, transparency=IGNORE)
    else:
        images[0].save(
            path, save_all=True, append_images=images[1:], compression="tiff_adobe_deflate", description=json.dumps(about),
            big_tiff=pages.nbytes > 2**31,
        )  # fmt: skip
