"""Many files as one scene: a VRT of tiles, written into the cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags

from voxtile.cases.atomic import atomic_text
from voxtile.cases.cache import cache_folder, stamp_of
from voxtile.cases.raster import band_names, open_raster
from voxtile.errors import DataError, reason

NEAR = 0.1  # pixels by which a tile may lie beside the first tile's raster: coordinates in files are rounded
# GDAL's names of data types.
_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "uint64": "UInt64", "int64": "Int64", "float32": "Float32", "float64": "Float64",
    "complex_int16": "CInt16", "complex64": "CFloat32", "complex128": "CFloat64",
}  # fmt: skip


class _Band(NamedTuple):
    """What a tile's header says of a band."""

    description: str
    dtype: str
    color: ColorInterp
    scale: float
    offset: float
    nodata: float | None


@dataclass(frozen=True)
class _Tile:
    """What a tile's header says.

    Attributes:
        path: the file, absolute.
        size: (height, width) in pixels.
        transform: pixel corners to map units.
        block: (height, width) of its blocks.
        like: what all tiles must have alike, by the words that an error says it with; "" for the order of bands without names.
        bands: of each.
        masked: whether a mask or an alpha band says where it holds data.
    """

    path: Path
    size: tuple[int, int]
    transform: Affine
    block: tuple[int, int]
    like: dict[str, Any]
    bands: tuple[_Band, ...]
    masked: bool

    @classmethod
    def of(cls, path: Path) -> _Tile:
        with open_raster(path) as dataset:
            nodata, names = tuple(dataset.nodatavals), band_names(dataset, path)
            like: dict[str, Any] = {
                "coordinate reference system": dataset.crs,
                "number of bands": dataset.count,
                "order of bands": ", ".join(name or "unnamed" for name in names) if any(names) else "",
                "alpha band": next((n for n, color in enumerate(dataset.colorinterp, 1) if color == ColorInterp.alpha), "none"),
                "data type": ", ".join(dict.fromkeys(dataset.dtypes)),
                "nodata value": ", ".join(dict.fromkeys(map(str, nodata))),
                "scale and offset": ", ".join(dict.fromkeys(map(str, zip(dataset.scales, dataset.offsets, strict=True)))),
            }
            facts = zip(names, dataset.dtypes, dataset.colorinterp, dataset.scales, dataset.offsets, nodata, strict=True)
            bands = tuple(_Band(*each) for each in facts)
            # An alpha band sets the flag as well.
            masked = any(MaskFlags.per_dataset in flags for flags in dataset.mask_flag_enums)
            return cls(path.absolute(), dataset.shape, dataset.transform, dataset.block_shapes[0], like, bands, masked)


def mosaic(paths: Sequence[Path], name: str) -> Path:
    """Puts tiles together as one scene.

    Where tiles overlap, a later one lies over an earlier one, except, band by band, where it holds nodata. Where no tile lies there
    is nodata or, where the tiles name no nodata value, the scene's mask says so.

    Args:
        paths: the tiles, all with one CRS, number of bands, data type and nodata value, on one raster of pixels.
        name: the scene's name.

    Returns:
        A VRT in the cache folder, named by the scene and by what the tiles' names have in common, so that stacked mosaics give
        their channels the same names in every case. Its folder is named by its content and the tiles' sizes and times of change: a
        new tile makes a new file.

    Raises:
        DataError: The tiles do not fit, or the cache folder cannot be written to.
    """
    tiles = [_Tile.of(path) for path in paths]
    places = _places(tiles)
    text = ElementTree.tostring(_vrt(tiles, places), encoding="unicode")
    stamps = [stamp_of(tile.path) for tile in tiles]
    key = hashlib.sha256(f"{text}{stamps}".encode()).hexdigest()[:16]
    words = [tile.path.name.split(".")[0].split("_") for tile in tiles]
    shared = [word for word in dict.fromkeys(words[0]) if all(word in each for each in words)]
    file = cache_folder() / "mosaics" / key / f"{'_'.join([name.replace(os.sep, '-'), *shared])}.vrt"
    try:
        if not file.is_file():
            atomic_text(file, text)
    except OSError as error:
        raise DataError(
            f"The mosaic of {len(tiles)} tiles of '{name}' could not be written to {file}: {reason(error)}. Expected a writable "
            "cache folder with room; set VOXTILE_CACHE to another one."
        ) from error
    return file.absolute()


def _places(tiles: Sequence[_Tile]) -> NDArray[np.int64]:
    """(row, column) of each tile's first pixel on the first tile's raster [n, 2].

    Raises:
        DataError: A tile is unlike the first, or lies on another raster.
    """
    first = tiles[0]
    places = np.zeros((len(tiles), 2), dtype=np.int64)
    for number, tile in enumerate(tiles):
        for what, value in tile.like.items():
            if value != first.like[what] and not (what == "order of bands" and "" in (value, first.like[what])):
                raise DataError(
                    f"{tile.path} and {first.path} cannot be tiles of one mosaic: the {what} is {value} in the one and "
                    f"{first.like[what]} in the other. Expected the same in all; change one with 'gdalwarp' or 'gdal_translate', "
                    "or give such files ids of their own with '++data.layout.case=…'."
                )
        height, width = tile.size
        onto = ~first.transform @ tile.transform  # the tile's pixels to the first's
        column, row = round(onto.c), round(onto.f)
        corners = [(x, y) for x in (0, width) for y in (0, height)]
        off = max(np.hypot(*np.subtract(onto @ (x, y), (x + column, y + row))) for x, y in corners)
        if off > NEAR:
            raise DataError(
                f"{tile.path} and {first.path} cannot be tiles of one mosaic: their pixels lie up to {off:.3g} pixels beside each "
                f"other ({tile.transform.to_gdal()} and {first.transform.to_gdal()}), and {NEAR} is allowed. Warp the one onto the "
                f"other's raster, with 'gdalwarp -tap -tr {abs(first.transform.a):g} {abs(first.transform.e):g} …'."
            )
        places[number] = row, column
    return places


def _vrt(tiles: Sequence[_Tile], places: NDArray[np.int64]) -> Element:
    """The VRT's XML, see gdal.org/drivers/raster/vrt.html."""
    first = tiles[0]
    sizes = np.array([tile.size for tile in tiles])
    low = places.min(axis=0)
    height, width = (places + sizes).max(axis=0) - low
    root = Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    if crs := first.like["coordinate reference system"]:
        SubElement(root, "SRS").text = crs.to_wkt()
    corner = first.transform @ Affine.translation(int(low[1]), int(low[0]))
    SubElement(root, "GeoTransform").text = ", ".join(repr(float(value)) for value in corner.to_gdal())
    laid = list(zip(tiles, places - low, _over_others(places, sizes), strict=True))
    masked = any(tile.masked for tile in tiles)
    alpha = any(band.color == ColorInterp.alpha for band in first.bands)
    for number, facts in enumerate(first.bands, 1):
        band = SubElement(root, "VRTRasterBand", dataType=_TYPES[facts.dtype], band=str(number))
        if facts.description:
            SubElement(band, "Description").text = facts.description
        if facts.nodata is not None:
            SubElement(band, "NoDataValue").text = repr(facts.nodata)
        SubElement(band, "ColorInterp").text = facts.color.name.capitalize()
        SubElement(band, "Offset").text, SubElement(band, "Scale").text = repr(facts.offset), repr(facts.scale)
        clear = {"NODATA": "0"} if facts.color == ColorInterp.alpha else {"UseMaskBand": "true"} if masked else {}
        if facts.nodata is not None:
            clear = {"NODATA": repr(facts.nodata)}
        for tile, place, over in laid:
            _source(band, tile, place, str(number), clear if over else {})
    if not alpha and (masked or first.bands[0].nodata is None):
        band = SubElement(SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
        for tile, place, over in laid:
            _source(band, tile, place, "mask,1", {"NODATA": "0"} if over else {})
    return root


def _source(band: Element, tile: _Tile, place: NDArray[np.int64], number: str, clear: dict[str, str]) -> None:
    """Adds a tile to a band; `clear` says where it lets earlier tiles through."""
    node = SubElement(band, "ComplexSource" if clear else "SimpleSource")
    SubElement(node, "SourceFilename", relativeToVRT="0").text = str(tile.path)
    SubElement(node, "SourceBand").text = number
    (height, width), (row, column) = tile.size, place
    # With these GDAL opens a tile when it is read from, not all tiles with the mosaic.
    SubElement(
        node, "SourceProperties", RasterXSize=str(width), RasterYSize=str(height), DataType=band.attrib["dataType"],
        BlockXSize=str(tile.block[1]), BlockYSize=str(tile.block[0]),
    )  # fmt: skip
    for name, x, y in (("SrcRect", 0, 0), ("DstRect", column, row)):
        SubElement(node, name, xOff=str(x), yOff=str(y), xSize=str(width), ySize=str(height))
    for name, value in clear.items():
        SubElement(node, name).text = value


def _over_others(places: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[bool]:
    """Whether each tile lies over a pixel of an earlier one; the others are copied, which is faster than looking for nodata."""
    ends = places + sizes
    return [
        bool((np.maximum(places[:number], places[number]) < np.minimum(ends[:number], ends[number])).all(axis=1).any())
        for number in range(len(places))
    ]
