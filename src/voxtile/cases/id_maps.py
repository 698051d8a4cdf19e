"""Maps of object numbers, uint32, written slab by slab in the format and geometry of a semantic map."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.atomic import rows_of
from voxtile.cases.case import Source
from voxtile.cases.window import Window

Slabs = Iterable[tuple[Window, NDArray[Any]]]


def id_map_name(stem: str, path: Path) -> str:
    """The name of an id map called `stem` of the semantic map `path`; pictures of all kinds end as one TIFF."""
    from voxtile.cases.volume_files import is_itk

    if is_itk(path):
        return stem + path.suffix.lower()
    return stem + (".nii.gz" if path.name.lower().endswith((".nii", ".nii.gz", ".dcm")) else ".tif")


def write_scene(slabs: Slabs, source: Source, making: Path) -> None:
    """A Cloud-Optimized GeoTIFF, in memory that does not grow with the scene; see `voxtile.cases.formats.write_id_map`."""
    import rasterio
    import rasterio.shutil
    from rasterio._err import CPLE_BaseError  # leaves rasterio.shutil.copy unwrapped
    from rasterio.errors import RasterioError
    from rasterio.windows import Window as RasterWindow

    from voxtile.cases.geotiff import GeoTiffSource
    from voxtile.cases.raster import plain_allowed

    assert isinstance(source, GeoTiffSource)
    _, height, width = source.canonical.shape
    rows = rows_of(making)  # as they come; tiles are made from it
    sums: list[tuple[RasterWindow, int]] = []
    try:
        with rasterio.Env(), plain_allowed():
            with rasterio.open(
                rows, "w", driver="GTiff", width=width, height=height, count=1, dtype="uint32", nodata=0, compress="zstd",
                zstd_level=1, BIGTIFF="IF_SAFER", **source.profile,
            ) as out:  # fmt: skip
                for window, ids in slabs:
                    area = RasterWindow(0, window.y, width, window.height)
                    values = np.ascontiguousarray(ids[0], dtype=np.uint32)
                    out.write(values, 1, window=area)
                    sums.append((area, zlib.crc32(values.tobytes())))
                out.set_band_description(1, "object")
            rasterio.shutil.copy(
                rows, making, driver="COG", compress="deflate", predictor=2, blocksize=512, BIGTIFF="IF_SAFER",
                overview_resampling="nearest",
            )  # fmt: skip
            with rasterio.open(making) as written:  # GDAL keeps silent about a disk that is full when it closes a file
                if any(zlib.crc32(written.read(1, window=area).tobytes()) != value for area, value in sums):
                    raise OSError(f"what was written to {making} reads back differently")
    except (RasterioError, CPLE_BaseError) as error:
        raise OSError(f"{error} (is the disk full?)") from error
    finally:
        rows.unlink(missing_ok=True)


def write_volume(slabs: Slabs, source: Source, making: Path) -> None:
    """The map's kind of file, orientation and header; a NIfTI file on the grid of a DICOM series."""
    import nibabel as nib
    from nibabel.orientations import io_orientation

    from voxtile.cases.dicom_seg import SegmentationSource
    from voxtile.cases.volume_files import is_itk
    from voxtile.cases.volumes import to_stored

    whole = _whole(slabs, source, np.uint32)
    if is_itk(source.path):
        from voxtile.cases.itk import ItkSource

        assert isinstance(source, ItkSource)
        source.save(whole[None], making, {"objects": "0 is none"})
        return
    affine = source.stored.matrix
    if isinstance(source, SegmentationSource):  # the objects are numbered in a NIfTI file on the series' grid
        image: Any = nib.Nifti1Image(np.empty((1, 1, 1), dtype=np.uint32), affine)
        image.header.set_xyzt_units("mm")
    else:
        image = nib.load(source.path)
        affine = image.affine
    header = image.header.copy()
    header.set_data_dtype(np.uint32)
    header.extensions[:] = []  # they name classes
    header["descrip"] = b"voxtile objects; 0 is none"
    nib.save(type(image)(to_stored(whole[None], io_orientation(affine))[..., 0], affine, header), making)


def write_pages(slabs: Slabs, source: Source, making: Path) -> None:
    """A TIFF with a page of 32 bits per slice."""
    from PIL import Image

    whole = _whole(slabs, source, np.int32)  # the only whole numbers of 32 bits that Pillow has
    first, *rest = (Image.fromarray(page) for page in whole)
    first.save(making, save_all=True, append_images=rest, compression="tiff_adobe_deflate", big_tiff=whole.nbytes > 2**31)


def _whole(slabs: Slabs, source: Source, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """All slabs as one array [D, H, W]: volumes and pictures are not larger than memory."""
    whole = np.empty(source.canonical.shape, dtype=dtype)
    for window, ids in slabs:
        whole[window.slices] = ids
    return whole
