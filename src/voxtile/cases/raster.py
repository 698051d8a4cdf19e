"""Opening rasters, and where their pixels lie."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from voxtile.cases.address import RemoteFile
from voxtile.cases.grid import StoredGrid, degree_metres
from voxtile.cases.handles import HandleCache
from voxtile.cases.remote import open_remote, raise_failed_request
from voxtile.cases.untrusted import check_files, check_header
from voxtile.errors import DataError, reason

HANDLES = HandleCache(most=32)
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a plain TIFF is a fine image; `check` says so
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
            raise DataError(f"{path} cannot be read as a GeoTIFF: {reason(error)}. Expected an intact raster file.") from error


def stamp(path: Path) -> int:
    """Changes when the file does: no open handle of a file that was replaced since is used."""
    status = path.stat()
    return hash((status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def scene_grid(dataset: rasterio.DatasetReader) -> StoredGrid:
    """The grid of an open raster, with the affine moved from pixel corners to pixel centres."""
    transform: Affine = dataset.transform @ Affine.translation(0.5, 0.5)
    affine = (
        (transform.a, transform.b, 0.0, transform.c),
        (transform.d, transform.e, 0.0, transform.f),
        (0.0, 0.0, 1.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
    )
    shape = (1, dataset.height, dataset.width)
    if dataset.crs is None:
        return StoredGrid(shape, affine)
    if dataset.crs.is_geographic:
        middle = transform.d * dataset.width / 2 + transform.e * dataset.height / 2 + transform.f
        metres = degree_metres(middle)
    else:
        factor = float(dataset.crs.linear_units_factor[1])
        metres = (factor, factor)
    return StoredGrid(shape, affine, "m", dataset.crs.to_wkt(), metres)
