"""Opening rasters, and where their pixels lie."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import rasterio
import rasterio.warp
from affine import Affine
from rasterio._err import CPLE_BaseError  # GDAL's own errors, which have no public name
from rasterio.crs import CRS
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError

from voxtile.cases.address import RemoteFile
from voxtile.cases.cells import CELLS
from voxtile.cases.grid import G, Grid, StoredGrid, degree_metres
from voxtile.cases.handles import HandleCache
from voxtile.cases.remote import open_remote, raise_failed_request
from voxtile.cases.untrusted import check_files, check_header
from voxtile.errors import DataError, listed, reason

_ECCENTRICITY = 0.0818191908426215  # of the WGS 84 ellipsoid
HANDLES = HandleCache(most=32)
MASK, NOTED = ".msk", ".aux.xml"  # endings that GDAL puts behind a raster's name
BLOCK_CACHE = 24  # megabytes, while a map is made
# GDAL looks for a scene's side files (.msk, .tfw) by their names and does not list its folder, which may be huge, at every open.
# Options are set around opening only: setting and resetting GDAL's cache size around each read would empty the cache each time.
_ENV = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE"}
# GDAL opens the files of a VRT when they are read from, where no such options are set: these are kept for the process, unless the
# user has chosen others. By default 100 of a mosaic's tiles stay open, and reading across more opens and decodes each again.
_ENV_OF_VRT = _ENV | {"GDAL_MAX_DATASET_POOL_SIZE": "500"}
# By the file's ending and not by its content: a text file could tell GDAL to read other files or addresses.
_DRIVERS = {".jp2": "JP2OpenJPEG", ".png": "PNG", ".vrt": "VRT"}


def open_raster(path: Path) -> rasterio.DatasetReader:
    """Opens a raster by the driver that its ending names; one at an address is fetched from as it is read.

    Raises:
        DataError: It cannot be opened, or is not to be trusted, see `voxtile.cases.untrusted`.
    """
    with plain_allowed():
        try:
            with rasterio.Env(**_ENV):
                if isinstance(path, RemoteFile):
                    return check_header(open_remote(path), path)
                check_files(path)
                if path.suffix.lower() == ".vrt":
                    for name, value in _ENV_OF_VRT.items():
                        os.environ.setdefault(name, value)
                return check_header(rasterio.open(path, driver=_DRIVERS.get(path.suffix.lower(), "GTiff")), path)
        except RasterioError as error:
            raise_failed_request()
            intact = "Expected an intact raster file."
            if not isinstance(path, RemoteFile) and path.exists() and not os.access(path, os.R_OK):
                intact = "Give yourself the right to read it."
            raise DataError(f"{path} cannot be read as a GeoTIFF: {reason(error)}. {intact}") from error
        except UnicodeEncodeError as error:
            raise DataError(
                f"The name of {path} is no UTF-8 text, and the library of its format opens no others. Rename the file, or the "
                "folder that it lies in."
            ) from error


def beside(dataset: rasterio.DatasetReader, path: Path) -> tuple[Path, ...]:
    """The files that GDAL reads with an open raster: its mask, a world file, what other programs noted in an `.aux.xml`.

    Not its overviews, which are the same pixels, nor what a VRT is made of, nor a vendor's metadata, of which nothing is used.
    """
    if isinstance(path, RemoteFile):
        return ()
    vrt, names = path.suffix.lower() == ".vrt", [path.name + ending for ending in (MASK, NOTED)]
    if not vrt:
        kind = path.suffix[1:].lower()
        endings = (kind[:1] + kind[-1:] + "w", kind + "w", "wld", "tab")
        names += [path.name + MASK.upper(), *(f"{path.stem}.{each}" for ending in endings for each in (ending, ending.upper()))]
    there = [name for name in names if path.with_name(name).is_file()]
    # GDAL lists what it reads by looking for dozens of names, and lists all sources of a VRT. It is asked where something lies
    # there, since it may pass that over, as a world file of a GeoTIFF that says its place itself.
    if vrt or not there:
        return tuple(map(path.with_name, there))
    return tuple(each for each in map(Path, dataset.files) if each.name in there)


@contextmanager
def plain_allowed() -> Iterator[None]:
    """Lets rasters without a georeference be opened, read and written without a warning: they are fine images; `check` says so.

    Python's filters are those of the whole process, so that a thread that leaves the block may take the filter away from another
    one that is in it: commands, which read by several threads, set it for good (see `voxtile.commands.main`).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def band_names(dataset: rasterio.DatasetReader, path: Path) -> list[str]:
    """The descriptions of a file's bands, "" where there is none, or one that holds the file's name, as some writers have it.

    Such names differ from scene to scene. Files named by three letters or a number are not looked for: `red.tif` may have a band
    "red edge", and `1.tif` one "band 1".
    """
    stem = path.stem.split(".")[0]
    telling = len(stem) > 3 or (re.search(r"\d", stem) and re.search(r"[^\W\d_]", stem))
    word = re.compile(rf"(?<![^\W_]){re.escape(stem)}(?![^\W_])|^{re.escape(stem)}(?![a-z])")
    names = [(description or "").strip() for description in dataset.descriptions]
    return ["" if telling and word.search(name) and (len(names) == 1 or name != stem) else name for name in names]


def scene_grid(dataset: rasterio.DatasetReader) -> StoredGrid:
    """The grid of an open raster, with the affine moved from pixel corners to pixel centres."""
    size, transform = (dataset.height, dataset.width), dataset.transform
    if dataset.crs is not None or not transform.is_identity:  # without its table PROJ gives no system, or a wrong one
        _check_systems()
    if dataset.crs is None or not (dataset.crs.is_geographic or dataset.crs.is_projected):  # such as a drone's local one
        return StoredGrid((1, *size), _centred(transform))
    if dataset.crs.is_geographic:
        metres = degree_metres((transform @ (dataset.width / 2, dataset.height / 2))[1])
    else:
        factor = float(dataset.crs.linear_units_factor[1]) if dataset.crs.is_projected else 1.0  # a site's own: no unit is told
        metres = _ground_metres(dataset.crs, transform @ (dataset.width / 2, dataset.height / 2), factor)
    return StoredGrid((1, *size), _centred(transform), "m", dataset.crs.to_wkt(), metres)


@cache
def _check_systems() -> None:
    """Looks whether PROJ, by which GDAL knows coordinate systems, finds its table of them.

    Raises:
        DataError: It does not: other programs leave variables behind that name a folder without one, or with one of another PROJ.
    """
    try:
        CRS.from_epsg(4326)
    except CRSError as error:
        given = [f"{name}={os.environ[name]}" for name in ("PROJ_LIB", "PROJ_DATA") if name in os.environ]
        blamed = f"The environment has {listed(given)}, which another program may have set: type 'unset PROJ_LIB PROJ_DATA' first."
        raise DataError(
            f"No coordinate system is known: PROJ finds no table of them that fits ({reason(error)}). "
            f"{blamed if given else 'Install rasterio anew, which brings one.'}"
        ) from error


def _ground_metres(crs: rasterio.crs.CRS, middle: tuple[float, float], factor: float) -> tuple[float, float]:
    """Metres on the ground in one map unit along (x, y) at a place.

    Maps that keep lengths within a hundredth, as UTM does in its zone, keep their own unit; Web Mercator's is 0.5 m at 60°.
    """
    step = 100.0 / factor
    x, y = ([middle[axis], middle[axis] + step * (axis == 0), middle[axis] + step * (axis == 1)] for axis in range(2))
    with rasterio.Env():  # without it GDAL prints its errors
        try:
            longitude, latitude = np.radians(rasterio.warp.transform(crs, "EPSG:4326", x, y)[:2])
        except CPLE_BaseError:  # a system without a place on Earth
            return factor, factor
    # Chords between points on the WGS 84 ellipsoid: longitudes may jump at the antimeridian and the poles.
    radius = 6_378_137.0 / np.sqrt(1 - (_ECCENTRICITY * np.sin(latitude)) ** 2)
    points = np.stack(
        [
            radius * np.cos(latitude) * np.cos(longitude),
            radius * np.cos(latitude) * np.sin(longitude),
            radius * (1 - _ECCENTRICITY**2) * np.sin(latitude),
        ]
    )
    along = [float(np.linalg.norm(points[:, axis + 1] - points[:, 0])) / step for axis in range(2)]
    x_metres, y_metres = (own if math.isfinite(own) and abs(own / factor - 1) > 0.01 else factor for own in along)
    return x_metres, y_metres


def grid_at(kind: type[G], size: tuple[int, int], transform: Affine, like: Grid) -> G:
    """A grid of (height, width) pixels at a transform from pixel corners, in the system and units of another."""
    return replace(like.as_kind(kind), shape=(1, *size), affine=_centred(transform))


def _centred(corners: Affine) -> tuple[tuple[float, ...], ...]:
    transform: Affine = corners @ Affine.translation(0.5, 0.5)
    return (
        (transform.a, transform.b, 0.0, transform.c),
        (transform.d, transform.e, 0.0, transform.f),
        (0.0, 0.0, 1.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
    )


@contextmanager
def block_cache(threads: int = 1) -> Iterator[None]:
    """Bounds the memory in which GDAL keeps decoded blocks, by default a twentieth of the machine's, while a map is made.

    Rows of windows are read from top to bottom, so that more than the blocks that two of them share is never wanted again.

    Args:
        threads: by which GDAL decodes the blocks of one read, of files that are opened from now on, unless the user has chosen
            a number of them; 1 for what each format does by itself.
    """
    options = {"GDAL_CACHEMAX": BLOCK_CACHE * 2**20}  # rasterio hands the size to GDAL as bytes
    if threads > 1 and "GDAL_NUM_THREADS" not in os.environ:
        options["GDAL_NUM_THREADS"] = threads
    with CELLS.off(), rasterio.Env(**options):
        yield
