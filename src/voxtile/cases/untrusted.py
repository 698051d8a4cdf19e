"""Rasters from elsewhere: files that would have GDAL read other files or addresses, or claim sizes that they cannot have."""

from __future__ import annotations

import math
import os
import re
import warnings
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from voxtile.cases.cache import Stamp, cache_folder, stamp_of
from voxtile.errors import DataError, reason

MOST_BANDS = 2000
MOST_BLOCK = 2**28  # bytes of a decoded block: GDAL allocates one whole, whatever little of it is asked for
_MOST_VRT = 2**26  # bytes of a VRT's text
_LEAST_ENTRY = 4  # bytes that each block's place takes in a TIFF's table at least, also where the block is left out
_MOST_ROWS = 2000  # of a TIFF in one strip; GDAL shows one of more rows as blocks of a row each, and reads most by rows, too
_DECODED_WHOLE = ("LERC", "WEBP", "JXL")  # what begins the names of compressions of which libtiff decodes a strip at once

# What begins a TIFF, a JPEG 2000 file or codestream, a PNG or a JPEG. GDAL opens the sources of a VRT by their content.
_PICTURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"\x89PNG", b"\xff\xd8\xff")
# A VRT may hold these elements and attributes and no others. What is missing computes (pixel functions, which may be Python), reads
# raw bytes of any file (VRTRawRasterBand), warps, sharpens, or opens more than one file.
_ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        """
        VRTDataset SRS GeoTransform GCPList GCP Metadata MDI VRTRasterBand Description UnitType Offset Scale CategoryNames Category
        ColorInterp ColorTable Entry NoDataValue HideNoDataValue Histograms HistItem HistMin HistMax BucketCount IncludeOutOfRange
        Approximate HistCounts MaskBand OverviewList BlockXSize BlockYSize SimpleSource ComplexSource SourceFilename SourceBand
        SourceProperties SrcRect DstRect NODATA ScaleOffset ScaleRatio LUT UseMaskBand ColorTableComponent
        """,
    )
)
_ATTRIBUTES = frozenset(
    re.findall(
        r"\w+",
        """
        rasterXSize rasterYSize dataType band blockXSize blockYSize relativeToVRT shared resampling xOff yOff xSize ySize
        RasterXSize RasterYSize DataType BlockXSize BlockYSize dataAxisToSRSAxisMapping coordinateEpoch domain format key
        c1 c2 c3 c4 Projection Id Info Pixel Line X Y Z
        """,
    )
)


def check_files(path: Path) -> None:
    """Looks at a raster before GDAL does, and at what lies beside it.

    Raises:
        DataError: It is a VRT that names files outside its folder, or files whose headers claim what cannot be, or does more than
            put files together; or a side file is no TIFF.
    """
    if path.suffix.lower() != ".vrt":
        _check_beside(path)
    elif not _own(path):
        sources = sources_of(path)
        for each in (path, *sources):
            _check_beside(each)
        for each in sources:
            _check_source(each, stamp_of(each))


@cache
def _check_source(path: Path, stamp: Stamp) -> None:
    """Looks at the header of a file that a VRT names, once: GDAL opens it by itself, when it is read from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as dataset:
                check_header(dataset, path)
        except RasterioError:  # GDAL says so as well when it reads there, and what it read before
            return


def _own(path: Path) -> bool:
    """Whether a VRT lies where voxtile alone writes, see `voxtile.cases.mosaic`."""
    return Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath((cache_folder() / "mosaics").absolute()))


def _check_beside(path: Path) -> None:
    for ending in (".msk", ".ovr"):  # GDAL takes them by their content, and would take a VRT
        side = path.with_name(path.name + ending)
        if side.is_file() and not _begins(side, _PICTURES[:4]):
            raise DataError(
                f"{side} lies beside {path} as its mask or overviews and is no TIFF, so it is not read. Expected what GDAL writes "
                "there; move it away, or make it anew with 'gdaladdo'."
            )


def sources_of(path: Path) -> list[Path]:
    """The files that a VRT is made of.

    Raises:
        DataError: It is damaged, names files that it may not, or does more than put files together.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= _MOST_VRT else ""
        # Entities, CDATA and comments can be read in two ways, and this is not GDAL's parser.
        if not text or "<!" in text or "<?" in text.removeprefix("<?"):
            raise ValueError("it is empty, larger than 64 MB, or holds '<!' or '<?'")
        root = ElementTree.fromstring(text)  # noqa: S314  # without a DOCTYPE there is nothing to expand
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(f"{path} cannot be read as a VRT: {reason(error)}. Expected what 'gdalbuildvrt' writes.") from error
    own, sources = _own(path), []
    for node in root.iter():
        strange = next((name for name in node.attrib if name not in _ATTRIBUTES), None)
        inner = node.tag == "SourceFilename" and len(node) > 0
        if node.tag not in _ELEMENTS or strange or inner:
            what = f"{strange}={node.attrib[strange]!r}" if strange else node[0].tag if inner else node.tag
            raise DataError(
                f"{path} holds '{what}': a VRT that does more than put files together could read any file or run a program, and is "
                f"refused. Make a file of it where you trust it, with 'gdal_translate {path.name} {path.stem}.tif'."
            )
        if node.tag == "SourceFilename":
            name = (node.text or "").strip()
            sources.append(Path(name) if own else _source(path, name, node.get("relativeToVRT") == "1"))
    return list(dict.fromkeys(sources))


def _source(path: Path, name: str, relative: bool) -> Path:
    """A file that a VRT names, once it is known to lie where it may."""
    found = Path(os.path.normpath(path.absolute().parent / name if relative else Path(name)))
    folders = [path.absolute().parent, *map(Path, filter(None, os.environ.get("VOXTILE_VRT_FOLDERS", "").split(os.pathsep)))]
    inside = found.is_absolute() and any(found.is_relative_to(os.path.normpath(folder)) for folder in folders)
    odd = re.search(r"^/vsi|[:<>|?]", name)
    if not odd and not found.is_absolute():
        raise DataError(
            f"{path} names '{name}', neither by its whole path nor from the VRT's own folder, so it is unknown where that is. "
            f"Build the VRT anew with whole paths: gdalbuildvrt {path.name} /folder/*.tif."
        )
    if not inside or odd:
        raise DataError(
            f"{path} names '{name}', which lies outside its folder {path.parent}. A VRT from elsewhere could so have any file or "
            "address read. Move it to the files it names, or where you trust it, name the folder that it may read from before the "
            f"command: VOXTILE_VRT_FOLDERS=/folder (several with '{os.pathsep}'). Addresses are for lists ('data.layout.lists')."
        )
    if not _begins(found, _PICTURES):
        what = "is no TIFF, JPEG 2000, PNG or JPEG" if found.is_file() else "does not exist"
        raise DataError(f"{path} names '{name}', and {found} {what}. Expected a raster file; fetch it, or build the VRT anew.")
    return found


def _begins(path: Path, signs: tuple[bytes, ...]) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8).startswith(signs)
    except OSError:
        return False


def check_header(dataset: rasterio.DatasetReader, path: Path) -> rasterio.DatasetReader:
    """Returns an open raster whose header claims what can be; nothing of its size has been allocated until then.

    Raises:
        DataError: It has too many bands, blocks that fill the memory, or more blocks than its file has room to name, or it
            names another file.
    """
    problem = _header_problem(dataset, path)
    if problem:
        dataset.close()
        raise DataError(f"{path} {problem}")
    return dataset


def _header_problem(dataset: rasterio.DatasetReader, path: Path) -> str:
    if dataset.count > MOST_BANDS:
        return f"claims {dataset.count} bands, and {MOST_BANDS} is the most that is read. Choose some, with 'gdal_translate -b …'."
    together = dataset.count if dataset.interleaving and dataset.interleaving.name == "pixel" else 1
    height, width = dataset.block_shapes[0]
    size = height * width * together * max(math.ceil(_bits(name) / 8) for name in dataset.dtypes)
    packed = dataset.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION", "") if dataset.driver == "GTiff" else ""
    # One strip, or as many as there are rows: GDAL shows both alike.
    by_rows = packed and (height, width) == (1, dataset.width) and dataset.height > _MOST_ROWS
    if by_rows and size * dataset.height > MOST_BLOCK and packed.startswith(_DECODED_WHOLE):
        height = _rows_of_strips(dataset)
        size *= height
    if size > MOST_BLOCK:
        return (
            f"is stored in blocks of {height} x {width} pixels, {size / 1e6:,.0f} MB each when decoded, and "
            f"{MOST_BLOCK / 1e6:,.0f} MB is the most that is read. Rewrite it in tiles, with 'gdal_translate -of COG'."
        )
    if dataset.driver == "GTiff":
        file, across = path.stat().st_size, math.ceil(dataset.width / width) * (1 if together > 1 else dataset.count)
        blocks = math.ceil(dataset.height / height) * across
        if by_rows and size * dataset.height <= MOST_BLOCK and blocks * min(_LEAST_ENTRY, size) > file:
            # One strip has one place, and may be compressed to less than places of all its rows would take. One that is not
            # compressed is read row by row, without a table.
            blocks = math.ceil(dataset.height / _rows_of_strips(dataset)) * across
        if blocks * min(_LEAST_ENTRY, size) > file:
            return (
                f"claims {dataset.height:,} x {dataset.width:,} pixels in {blocks:,} blocks, and with its {file:,} bytes has no "
                "room even to say where each of them lies. The file is cut off or made to deceive; fetch it again, or where you "
                "trust it, rewrite it in tiles, with 'gdal_translate -of COG'."
            )
    for domain, key in (("OVERVIEWS", "OVERVIEW_FILE"), ("ProxyOverviewRequest", "FILENAME")):
        if key in dataset.tags(ns=domain):
            other = dataset.tags(ns=domain)[key]
            return f"says that its overviews lie in {other!r}, a file that would be read with it. Take the tag {key} out."
    return ""


def _rows_of_strips(dataset: rasterio.DatasetReader) -> int:
    """Rows of a strip as the file has them, also where GDAL shows blocks of a row."""
    with rasterio.Env(GDAL_ENABLE_TIFF_SPLIT=False), rasterio.open(dataset.name, driver="GTiff", sharing=False) as same:
        return int(same.block_shapes[0][0])


def _bits(dtype: str) -> int:
    """Bits of a value by the name of its type, such as 16 for "uint16" and "complex_int16" (of each part)."""
    bits = int(re.sub(r"\D", "", dtype) or 8)
    return 2 * bits if dtype == "complex_int16" else bits
