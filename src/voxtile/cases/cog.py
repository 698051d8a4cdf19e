"""Writing maps of scenes as Cloud-Optimized GeoTIFFs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # leaves rasterio.shutil.copy unwrapped
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from voxtile.cases.maps import STEPS, MapSpec, MapWriter, write_at
from voxtile.cases.raster import plain_allowed
from voxtile.cases.window import IGNORE, Size3
from voxtile.errors import DataError

TILE = 512  # side of the finished file's tiles in pixels
THREADS = 8  # at most, each of which holds a chunk several times
CHUNK = 2**22  # bytes of a side file that are worked on at once: more would not stay in the cache of a core
_GDAL_TYPES = {"uint8": "Byte", "float32": "Float32"}


def open_cog(path: Path, shape: Size3, spec: MapSpec, profile: Mapping[str, Any]) -> MapWriter:
    """A writer of a map of `shape` (1, H, W) that ends as a Cloud-Optimized GeoTIFF; see `write_cog`.

    Raises:
        DataError: It could not be written under this name.
    """
    if "\\" in path.name:  # which GDAL takes for the end of a folder's name
        raise DataError(f"{path} has a backslash in its name, with which no map of a scene can be written. Give it another name.")
    return MapWriter(path, shape, spec, lambda array, making: write_cog(array[:, 0], making, spec, profile))


def write_cog(bands: NDArray[Any], path: Path, spec: MapSpec, profile: Mapping[str, Any]) -> None:
    """Writes a map as a Cloud-Optimized GeoTIFF: tiled, compressed, with overviews, colour table and class names.

    GDAL reads the side file itself, through a VRT that says what its bytes are and where its overviews lie; memory does not grow
    with the scene. GDAL would also make overviews, of which the most frequent class of each 2x2 pixels costs it several times as
    long as all the rest.

    Args:
        bands: a memory map [B, H, W] of the finished side file.
        path: of the finished file.
        spec: what the map holds.
        profile: "crs" and "transform" of the scene.

    Raises:
        OSError: The disk is full.
    """
    side: Path = Path(bands.filename)  # type: ignore[attr-defined]  # a memory map, see `Finish`
    work = path.with_name(f"{path.stem}.work")
    vrt = path.with_name(f"{path.stem}.vrt")  # beside the side file: GDAL opens no raw files elsewhere
    try:
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir()
        levels = list(_overviews(side, bands.shape, work, spec))
        _write_vrt(vrt, side, bands.shape, spec, profile, levels)
        with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"), plain_allowed():
            rasterio.shutil.copy(
                str(vrt), str(path), driver="COG", compress="deflate", level=4,
                predictor="yes" if spec.heatmap else "no", blocksize=TILE,
                BIGTIFF="IF_SAFER", overviews="force_use_existing" if levels else "none", num_threads="ALL_CPUS",
            )  # fmt: skip
            _check_written(side, bands.shape, path, spec)
    except (RasterioError, CPLE_BaseError) as error:
        raise OSError(f"{error} (is the disk full?)") from error
    finally:
        vrt.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)


def _overviews(side: Path, shape: tuple[int, ...], work: Path, spec: MapSpec) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """Halves a side file [B, H, W] until it fits into a tile; yields each level's file and shape."""
    count, height, width = shape
    level = 0
    while max(height, width) > TILE:
        level += 1
        half = (count, -(-height // 2), -(-width // 2))
        smaller = work / f"{level}.raw"
        with smaller.open("wb") as out:

            def halve(part: _Rows, larger: Path = side, file: int = out.fileno(), half: tuple[int, ...] = half) -> None:
                first = (part.band * half[1] + part.first // 2) * half[2] * spec.dtype.itemsize
                write_at(file, halved(part.read(larger, spec), spec).tobytes(), first)

            _each(halve, _parts((count, height, width), spec))
        side, (count, height, width) = smaller, half
        yield side, half


@dataclass(frozen=True)
class _Rows:
    """Some whole rows of one band of a raw file [B, H, W]: how many from which one on."""

    shape: tuple[int, ...]
    band: int
    first: int
    count: int

    def read(self, side: Path, spec: MapSpec) -> NDArray[Any]:
        """Their pixels [rows, W]."""
        _, height, width = self.shape
        first = (self.band * height + self.first) * width * spec.dtype.itemsize
        return np.fromfile(side, dtype=spec.dtype, count=self.count * width, offset=first).reshape(self.count, width)


def _parts(shape: tuple[int, ...], spec: MapSpec) -> list[_Rows]:
    """A raw file in parts of an even number of rows, but for the last one of each band."""
    count, height, width = shape
    step = max(2, CHUNK // (width * spec.dtype.itemsize) // 2 * 2)
    return [_Rows(shape, band, row, min(step, height - row)) for band in range(count) for row in range(0, height, step)]


def _each(work: Callable[[_Rows], None], parts: Sequence[_Rows]) -> None:
    """Does the same for all parts, by a few threads: NumPy and GDAL work without Python's lock."""
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(work, parts):
            pass


def halved(pixels: NDArray[Any], spec: MapSpec) -> NDArray[Any]:
    """Half as many rows and columns, rounded up: the most frequent class of each 2x2 pixels, or the mean probability.

    Pixels without a value are left out. Of classes that are equally frequent the one with the smaller number wins.

    Args:
        pixels: [H, W] of a map.
        spec: what the map holds.
    """
    if pixels.shape[0] % 2 or pixels.shape[1] % 2:
        pixels = np.pad(pixels, [(0, length % 2) for length in pixels.shape], constant_values=spec.nodata)
    four = [np.ascontiguousarray(pixels[a::2, b::2]) for a in (0, 1) for b in (0, 1)]
    if spec.heatmap:
        held = [part != IGNORE if spec.stored == "uint8" else np.isfinite(part) for part in four]
        total = sum(np.where(there, part, 0.0) for there, part in zip(held, four, strict=True))
        count = sum(there.astype(np.uint8) for there in held)
        mean: NDArray[Any] = np.where(count > 0, total / np.maximum(count, 1), spec.nodata)
        rounded: NDArray[Any] = np.rint(mean) if spec.stored == "uint8" else mean.astype(spec.stored)
        return rounded.astype(spec.dtype)
    a, b, c, d = four
    a, b, c, d = np.minimum(a, b), np.maximum(a, b), np.minimum(c, d), np.maximum(c, d)
    first, last, b, c = np.minimum(a, c), np.maximum(b, d), np.minimum(b, d), np.maximum(a, c)
    second, third = np.minimum(b, c), np.maximum(b, c)
    # In rising order equal ones stand side by side, and 255 stands last.
    best: NDArray[Any] = np.where((third == last) & (third != IGNORE), third, first)
    best = np.where((second == third) & (second != IGNORE), second, best)
    best = np.where(first == second, first, best)
    return best


def _write_vrt(
    path: Path,
    side: Path,
    shape: tuple[int, ...],
    spec: MapSpec,
    profile: Mapping[str, Any] | None,
    levels: list[tuple[Path, tuple[int, ...]]],
) -> None:
    """Writes a VRT over a raw file [B, H, W]; `profile` is None for an overview."""
    count, height, width = shape
    root = Xml.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    if profile is not None:
        if profile["crs"] is not None:
            Xml.SubElement(root, "SRS").text = CRS.from_user_input(profile["crs"]).to_wkt()
        if not profile["transform"].is_identity:
            Xml.SubElement(root, "GeoTransform").text = ", ".join(repr(value) for value in profile["transform"].to_gdal())
        named = zip(spec.numbers, spec.classes, strict=True)
        tags = dict(spec.tags) | {"classes": ", ".join(f"{number}={name}" for number, name in named)}
        metadata = Xml.SubElement(root, "Metadata")
        for key, value in tags.items():
            Xml.SubElement(metadata, "MDI", key=key).text = value
    for file, size in levels:
        _write_vrt(file.with_suffix(".vrt"), file, size, spec, None, [])
    pixel = spec.dtype.itemsize
    for index in range(count):
        band = Xml.SubElement(
            root, "VRTRasterBand", dataType=_GDAL_TYPES[spec.dtype.name], band=str(index + 1), subClass="VRTRawRasterBand"
        )
        # GDAL takes blanks away where a name begins with them.
        for name, content in (
            ("SourceFilename", f"./{side.name}"), ("ImageOffset", index * height * width * pixel), ("PixelOffset", pixel),
            ("LineOffset", width * pixel), ("ByteOrder", "LSB"), ("NoDataValue", spec.nodata),
        ):  # fmt: skip
            element = Xml.SubElement(band, name)
            element.text = str(content)
            if name == "SourceFilename":
                element.set("relativeToVRT", "1")
        if profile is not None:
            Xml.SubElement(band, "Description").text = spec.classes[index] if spec.heatmap else "class"
            if spec.stored == "uint8":
                Xml.SubElement(band, "Scale").text = repr(1 / STEPS)
            if not spec.heatmap and spec.colors:
                Xml.SubElement(band, "ColorInterp").text = "Palette"
                table = Xml.SubElement(band, "ColorTable")
                colors = {number: (*color, 255) for number, color in zip(spec.numbers, spec.colors, strict=True)}
                for number in range(256):
                    red, green, blue, alpha = colors.get(number, (0, 0, 0, 0 if number == IGNORE else 255))
                    Xml.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4=str(alpha))
        for file, _ in levels:
            overview = Xml.SubElement(band, "Overview")
            Xml.SubElement(overview, "SourceFilename", relativeToVRT="1").text = f"{file.parent.name}/{file.stem}.vrt"
            Xml.SubElement(overview, "SourceBand").text = str(index + 1)
    Xml.ElementTree(root).write(path)


def _check_written(side: Path, shape: tuple[int, ...], path: Path, spec: MapSpec) -> None:
    """Reads a map back, since GDAL keeps silent about a disk that is full when it closes a file."""

    def check(part: _Rows) -> None:
        with rasterio.open(path) as written:
            found = written.read(part.band + 1, window=RasterWindow(0, part.first, shape[2], part.count))
        rows = part.read(side, spec)
        if not np.array_equal(found, rows, equal_nan=spec.heatmap):
            raise OSError(f"what was written to {path} reads back differently")

    _each(check, _parts(shape, spec))
