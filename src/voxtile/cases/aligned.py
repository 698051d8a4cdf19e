"""One raster file read by windows of a grid: directly where its pixels are the grid's, else warped on read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import rasterio
import rasterio.dtypes
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # GDAL's own errors, which have no public name
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from voxtile.cases.cache import stamp_of
from voxtile.cases.cells import CELLS, put_together
from voxtile.cases.copying import Copies, Pixels
from voxtile.cases.grid import Grid, StoredGrid, WorkingGrid
from voxtile.cases.longitudes import TURN, TURNS, east_end
from voxtile.cases.raster import HANDLES, beside, grid_at, open_raster, scene_grid
from voxtile.cases.remote import raise_failed_request
from voxtile.cases.window import Window
from voxtile.errors import DamagedError, DataError, counted, reason

CLOSE = 0.1  # pixels that a file may be off and still be read directly
FINER = 0.95  # a file whose pixels are smaller than this many of the grid's is averaged, so that it does not alias
TOLERANCE = 1e-3  # pixels that a warped place may be off; GDAL's own 0.125 shows in nearest neighbours
# A warped file is read in these cells of the grid and never otherwise: what the warper makes of a pixel depends in its last bits on
# the rows and columns that it does at once, and each window must be a slice of one and the same whole. They are GDAL's own blocks
# of warped data sets.
CELL = (128, 512)  # rows, columns
LEAST, LARGEST = 128, 1024  # rows or columns of the tiles of a file that are kept as cells
MOST_TRIED = 4096  # tiles of a damaged file


@dataclass(frozen=True)
class Target:
    """The grid that files are read on.

    Attributes:
        path: the file that it comes from.
        stored: that file's own grid.
        place: the transform of that grid, from pixel corners to map units.
        grid: the working grid: the stored one, resampled and cut where the configuration says so.
        transform: of the working grid.
    """

    path: Path
    stored: StoredGrid
    place: Affine
    grid: WorkingGrid
    transform: Affine

    @classmethod
    def of(cls, path: Path, dataset: rasterio.DatasetReader, resolution: float | None = None) -> Target:
        """The grid of an open file, with pixels of `resolution` metres where that is given.

        Pixels of the new grid are those whose centres lie in the file's extent; the upper left corner stays.

        Raises:
            DataError: The file has no CRS, so the size of its pixels is not known, or `resolution` leaves none.
        """
        stored, transform = scene_grid(dataset), dataset.transform
        _, height, width = stored.shape
        if resolution is not None:
            if stored.crs is None:
                raise DataError(
                    f"{path} has no coordinate reference system, so 'data.scene.resolution={resolution:g}' metres mean nothing on "
                    "it. Give the file one (gdal_edit.py -a_srs EPSG:…), or take the setting out."
                )
            factors = [resolution / side for side in stored.spacing[1:]]
            height, width = (math.floor(size / factor + 0.5) for size, factor in zip((height, width), factors, strict=True))
            if not height or not width:
                raise DataError(
                    f"{path} covers {dataset.height * stored.spacing[1]:.0f} x {dataset.width * stored.spacing[2]:.0f} m, less "
                    f"than a pixel of 'data.scene.resolution={resolution:g}' metres. Choose a finer one."
                )
            transform = transform @ Affine.scale(factors[1], factors[0])
        grid = grid_at(WorkingGrid, (height, width), transform, stored)
        return cls(path, stored, dataset.transform, grid, transform)

    def cut(self, box: Window) -> Target:
        """The part `box` of this grid as a grid."""
        transform = self.transform @ Affine.translation(box.x, box.y)
        grid = grid_at(WorkingGrid, (box.height, box.width), transform, self.stored)
        return Target(self.path, self.stored, self.place, grid, transform)

    def divided(self, parts: tuple[int, int]) -> Target:
        """This grid with each pixel cut into parts along (y, x)."""
        transform = self.transform @ Affine.scale(1 / parts[1], 1 / parts[0])
        _, height, width = self.grid.shape
        grid = grid_at(WorkingGrid, (height * parts[0], width * parts[1]), transform, self.stored)
        return replace(self, grid=grid, transform=transform)

    def offset_in(self, place: Affine, grid: StoredGrid) -> tuple[int, int] | None:
        """(columns, rows) from the first pixel of a file to the first of this grid; None where their pixels are not the same."""
        moved = ~place @ self.transform
        offset = round(moved.c), round(moved.f)
        _, height, width = self.grid.shape
        for x, y in ((0, 0), (width, 0), (0, height), (width, height)):
            column, row = moved @ (x, y)
            if math.hypot(column - x - offset[0], row - y - offset[1]) > CLOSE:
                return None
        return offset if Window(0, offset[1], offset[0], 1, height, width).inside(grid.shape) else None


@runtime_checkable
class OnTarget(Protocol):
    """A scene on whose grid other files can be read."""

    target: Target


def alpha_of(dataset: rasterio.DatasetReader) -> int | None:
    """The number of the band that a file declares as alpha, None where it declares none."""
    return next((number for number, color in enumerate(dataset.colorinterp, 1) if color == ColorInterp.alpha), None)


class AlignedFile:
    """A raster file on a grid that need not be its own.

    Attributes:
        direct: whether its pixels are the grid's.
        frames: whether its own grid is that of the file that the grid comes from.
        by_nan: whether it is warped and several bands of floats name no other value than NaN for pixels without data.
        masked: whether a mask or alpha band says where it holds data.
        alpha: the number of the band that does, None where there is none.
        beside: the files that are read with it, see `voxtile.cases.raster.beside`.
    """

    def __init__(
        self,
        path: Path,
        dataset: rasterio.DatasetReader,
        onto: Target,
        nodata: Mapping[int, float | None],
        resampling: str,
        label: bool = False,
        alpha: bool = True,
    ) -> None:
        """Looks where the file lies.

        Args:
            path: the file.
            dataset: the file, open.
            onto: the grid to be read on.
            nodata: by number of band, the value of pixels without data, or None.
            resampling: how a file as coarse as the grid, or coarser, is brought onto it.
            label: whether it is a label: one of the image's size may lack a place, as many masks do, and can only mean its pixels.
            alpha: whether a band that the file declares as alpha says where it holds data; else it is a band like the others.

        Raises:
            DataError: The file does not overlap the grid, or has no CRS by which it could be placed; or it is to be brought onto
                the grid and declares a channel as alpha.
        """
        self._path, self._onto, self._label = path, onto, label
        self.beside = beside(dataset, path)
        # No open handle of a file that was replaced since is used, nor of one whose own mask was. Not so for sources of a VRT.
        self._key = str(path), *(stamp_of(each) for each in (path, *self.beside))
        self.alpha = alpha_of(dataset) if alpha else None
        flags = {flag for flags in dataset.mask_flag_enums for flag in flags}
        # Beside a nodata value, and in other types than GDAL expects of it, GDAL's own masks pass over an alpha band.
        flagged = alpha if MaskFlags.alpha in flags else MaskFlags.per_dataset in flags
        self._mask_of_alpha = not flagged
        self.masked = flagged or self.alpha is not None
        self._own, self._place = scene_grid(dataset), dataset.transform
        self.frames = self._own == onto.stored
        self._dtypes = dataset.dtypes
        self._nodata: dict[int, float | None] = {}
        self._alike = len(set(self._dtypes)) == 1  # whether any bands can be read together
        self._tile = _tile_of(dataset)
        self._offset = self._direct_offset()
        self.direct, self.by_nan = self._offset is not None, False
        if self.direct:
            return
        if not alpha and (number := alpha_of(dataset)):
            raise DataError(
                f"{path} declares its band {number} as alpha, and is to be brought onto another grid, for which GDAL takes that "
                "band for where the others hold data, and for no channel. Say in the file what it is: "
                f"gdal_edit.py -colorinterp_{number} undefined {path}"
            )
        self._crs = self._unrolled()
        self._check_place()
        for band, value in nodata.items():
            dtype = np.dtype(self._dtypes[band - 1])
            # Beside an alpha band, which says it all, GDAL would count that as one of the bands that must be empty.
            fits = value is not None and rasterio.dtypes.in_dtype_range(value, dtype.name) and self.alpha is None
            # Outside of a file of floats is NaN, where it names no other value; whole numbers get a band that says where it is.
            self._nodata[band] = value if fits else math.nan if dtype.kind == "f" and not self.masked else None
        sentinels = [is_sentinel(value, np.dtype(self._dtypes[band - 1])) for band, value in nodata.items()]
        # What no measurement is, NaN as well, empties one band and leaves the others.
        alone = any(sentinels) or any(value is not None and math.isnan(value) for value in self._nodata.values())
        self._together = len({str(value) for value in self._nodata.values()}) == 1 and not alone
        self.by_nan = len(self._nodata) > 1 and {str(value) for value in self._nodata.values()} == {str(math.nan)}
        self._alike = self._alike and len({str(value) for value in self._nodata.values()}) == 1
        self._everywhere = self._covers()
        finer = min(a / b for a, b in zip(self._own.spacing[1:], onto.grid.spacing[1:], strict=True)) < FINER
        self._resampling = "average" if finer and resampling != "nearest" else resampling

    def read(
        self,
        bands: Sequence[int],
        window: Window,
        nearest: bool = False,
        out: NDArray[Any] | None = None,
        copies: Copies | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Reads bands, numbered from 1, at a window of the grid.

        Args:
            bands: the numbers.
            window: inside the grid.
            nearest: whether values are kinds of things, which cannot be averaged.
            out: where pixels go [n, h, w], of the file's data type; for files that are read directly.
            copies: may take down what is to be copied to `out` instead of its being copied now.

        Returns:
            Pixels as stored [n, h, w], and which of them the file, its mask or its alpha band allow [h, w]; None for all.

        Raises:
            DataError: The file is damaged there.
        """
        # The bands of a VRT may be of any type, and GDAL knows one nodata value for all that it warps together.
        if not self._alike and len({(self._dtypes[band - 1], str(self._nodata.get(band))) for band in bands}) > 1:
            parts = [self.read([band], window, nearest) for band in bands]
            pixels = np.concatenate([part for part, _ in parts])
            if out is not None:
                out[...] = pixels
            masks = [allowed for _, allowed in parts if allowed is not None]
            return pixels, np.logical_and.reduce(masks) if masks else None
        try:
            if self._offset is None:
                return self._warped(bands, window, "nearest" if nearest else self._resampling)
            if any(self._offset):
                window = window.shifted((0, self._offset[1], self._offset[0]))
            if self._tile is not None and CELLS.keeps(window, self._tile):
                pixels = self._cells(self._key, self._open, bands, window, self._tile, self._own.shape, out, copies)
            else:
                CELLS.leave_half()
                pixels = HANDLES.get(self._key, self._open).read(bands, window=_area(window), out=out)
            if not self.masked:
                return pixels, None
            dataset = HANDLES.get(self._key, self._open)
            of_alpha = self.alpha is not None and self._mask_of_alpha
            mask = dataset.read(self.alpha, window=_area(window)) if of_alpha else dataset.dataset_mask(window=_area(window))
            return pixels, mask > 0
        except RasterioError as error:
            raise_failed_request()
            raise self._damaged(window, error) from error

    def _direct_offset(self) -> tuple[int, int] | None:
        onto = self._onto
        if None not in (self._own.crs, onto.stored.crs):
            return onto.offset_in(self._place, self._own) if self._own.crs == onto.stored.crs else None
        if self._own.shape != onto.stored.shape:
            return None  # without a place on Earth only files of one size can be meant to lie on each other
        if self._label:
            return onto.offset_in(onto.place, onto.stored)
        return onto.offset_in(self._place, self._own) if self._own.crs == onto.stored.crs else None

    def _unrolled(self) -> str | None:
        """The file's system, and where degrees go on past 180°, with longitudes on the file's side of the world.

        PROJ gives longitudes from -180° to 180°, so a part of a file from 170° to 190°, or from 0° to 360°, would not be found.
        """
        own = self._own
        past = any(max(-each.footprint[0], each.footprint[2]) > TURN / 2 for each in (own, self._onto.grid) if _degrees(each))
        if own.crs is None or not _degrees(own) or not past:
            return own.crs
        middle = (own.footprint[0] + own.footprint[2]) / 2
        return str(CRS.from_proj4(f"{CRS.from_wkt(own.crs).to_proj4()} +lon_wrap={middle}").to_wkt())

    def _check_place(self) -> None:
        what = "its image" if self._label else "the first file"
        first, own, grid = self._onto.path, self._own, self._onto.stored  # in an area of interest it may have nothing
        if own.crs is None or grid.crs is None:
            raise DataError(
                f"{self._path} has {own.shape[1]}x{own.shape[2]} pixels, {what} {first} {self._onto.stored.shape[1]}x"
                f"{self._onto.stored.shape[2]}, and without a coordinate reference system on both the one cannot be aligned on the "
                "other. Expected files of one size and resolution, or a CRS in both (gdal_edit.py -a_srs EPSG:…)."
            )
        left, bottom, right, top = rasterio.warp.transform_bounds(self._crs, grid.crs, *own.footprint)
        if not all(map(math.isfinite, (left, bottom, right, top))):  # such as the whole Earth in a view of one side of it
            return
        a, b, c, d = grid.footprint
        end = east_end(left, right)
        turns = TURNS if _degrees(grid) else (0.0,)
        around = _degrees(own) and own.footprint[2] - own.footprint[0] >= TURN - 1  # of all longitudes GDAL makes 0 to 0
        apart = bottom >= d or top <= b or not (around or any(left + turn < c and end + turn > a for turn in turns))
        # In a view of one side of it, bounds of the whole Earth may come out as those of some part.
        if apart and not self._inside(self._in_file(Window.whole(grid.shape)), 0).any():
            raise DataError(
                f"{self._path} covers {left:.6g} … {right:.6g}, {bottom:.6g} … {top:.6g} and {what} {first} {a:.6g} … {c:.6g}, "
                f"{b:.6g} … {d:.6g} in the CRS of {first.name}: they do not overlap. Check that they belong together."
            )

    def _in_file(self, window: Window) -> NDArray[np.float64]:
        """Points around a window of the grid, in pixels (x, y) of the file [n, 2]."""
        steps = np.linspace(0, 1, 22)[:-1]
        around = np.concatenate([np.stack(side, axis=1) for side in (
            (steps, 0 * steps), (1 + 0 * steps, steps), (1 - steps, 1 + 0 * steps), (0 * steps, 1 - steps)
        )])  # fmt: skip
        columns, rows = (around * (window.width, window.height) + (window.x, window.y)).T
        x, y = self._onto.transform @ (columns, rows)
        if self._crs != self._onto.grid.crs:
            x, y = np.asarray(rasterio.warp.transform(self._onto.grid.crs, self._crs, x, y))[:2]
        return np.stack(~self._place @ (np.asarray(x), np.asarray(y)), axis=1)

    def _covers(self) -> bool:
        """Whether the file lies under all of the grid."""
        try:
            points = self._in_file(Window.whole(self._onto.grid.shape))
        except CPLE_BaseError:  # a part of the grid has no place in the file's system
            return False
        return bool(self._inside(points, CLOSE).all())

    def _inside(self, points: NDArray[np.float64], beyond: float) -> NDArray[np.bool_]:
        """Which points in pixels (x, y) [n, 2] lie in the file, or so many pixels beyond its edge."""
        size = np.array(self._own.shape[:0:-1])
        return np.asarray((np.isfinite(points) & (points >= -beyond) & (points <= size + beyond)).all(axis=1))

    def _warped(self, bands: Sequence[int], window: Window, resampling: str) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        def read(bands: Sequence[int], resampling: str, nodata: float | None) -> NDArray[Any]:
            key = (*self._key, self._onto.grid, resampling, nodata)
            return self._cells(key, partial(self._open_warped, resampling, nodata), bands, window, CELL, self._onto.grid.shape)

        nodata = self._nodata[bands[0]]  # that of the others, see `read`
        if self._everywhere and not self.masked:
            return read(bands, resampling, nodata), None
        if nodata is None:
            pixels = read([*bands, 0], resampling, None)
            return pixels[:-1], pixels[-1] > 0
        if self.masked:
            # GDAL heeds a nodata value or a mask. Where both ways come to the same value, nothing of either is in it.
            pixels, masked = read(bands, resampling, nodata), read([*bands, 0], resampling, None)
            # A value that came to nodata where there are data GDAL moves by the least that the type can tell.
            same = np.isclose(pixels.astype(np.float64), masked[:-1], rtol=1e-6, atol=1.0 if pixels.dtype.kind in "ui" else 1e-30)
            return pixels, (masked[-1] > 0) & same.all(axis=0)
        if math.isnan(nodata):
            return read(bands, resampling, nodata), None
        # Two files stacked are empty where all bands are, see `GeoTiffSource`; past one file's edge there is nothing either way.
        edge = read([0], "nearest", None)
        return read(bands, resampling, nodata), edge[0] > 0

    def _cells(
        self,
        key: tuple[Any, ...],
        open_file: Callable[[], Any],
        bands: Sequence[int],
        window: Window,
        size: tuple[int, int],
        shape: tuple[int, int, int],
        out: NDArray[Any] | None = None,
        copies: Copies | None = None,
    ) -> NDArray[Any]:
        """Bands [n, h, w] of an open file at a window of it, read in whole cells; band 0 is the one that says where data is.

        Args:
            key: of the open file.
            open_file: opens it.
            bands: numbers, from 1.
            window: inside the file.
            size: (rows, columns) of a cell.
            shape: of the file, (1, H, W).
            out: where pixels go.
            copies: see `read`.
        """
        numbers = tuple(bands)

        def read(row: int, column: int) -> NDArray[Any]:
            dataset, y, x = HANDLES.get(key, open_file), row * size[0], column * size[1]
            cell = Window(0, y, x, 1, *size).clipped(shape)
            pixels: NDArray[Any] = dataset.read([band or dataset.count for band in numbers], window=_area(cell))
            return pixels

        def cells_at(places: Sequence[tuple[int, int]]) -> Iterable[Pixels]:
            if CELLS.keeps(window, size):
                return CELLS.get((key, numbers), places, read)
            return (Pixels.of(read(row, column)) for row, column in places)

        return put_together((len(numbers), *window.size[1:]), window.y, window.x, size, cells_at, out, copies)

    def _open(self) -> rasterio.DatasetReader:
        return open_raster(self._path)

    def _open_warped(self, resampling: str, nodata: float | None) -> WarpedVRT:
        _, height, width = self._onto.grid.shape
        return WarpedVRT(
            open_raster(self._path), src_crs=self._crs,
            crs=self._onto.grid.crs, transform=self._onto.transform, width=width, height=height,
            resampling=Resampling[resampling], tolerance=TOLERANCE, add_alpha=nodata is None and self.alpha is None,
            src_nodata=nodata, nodata=nodata, UNIFIED_SRC_NODATA="YES" if self._together else "NO",
            XSCALE="1", YSCALE="1",  # of the kernel, which GDAL would widen by what it guesses of each cell
        )  # fmt: skip

    def _damaged(self, window: Window, error: RasterioError) -> DamagedError:
        place = ""
        if tiles := list(self._damaged_tiles(window)):
            (row, column), at = tiles[0]
            more = f" and {counted(len(tiles) - 1, 'more tile')} of this window" if len(tiles) > 1 else ""
            place = (
                f" The tile in row {row}, column {column} of the file's tiles (pixels x {at.x} to {at.stop[2] - 1}, y {at.y} to "
                f"{at.stop[1] - 1}){more} cannot be decoded."
            )
        why = reason(error.__cause__ or error)  # rasterio's own message only says that GDAL's has the details
        return DamagedError(
            f"{self._path} could not be read at window {tuple(window)} (z, y, x, depth, height, width): {why}.{place}"
        )

    def _damaged_tiles(self, window: Window) -> Iterator[tuple[tuple[int, int], Window]]:
        """((row, column) of the tile, its pixels) for each tile under the window that cannot be decoded."""
        if self._offset is not None:
            under = window.shifted((0, self._offset[1], self._offset[0]))
        else:
            points = self._in_file(window)
            low, high = np.floor(points.min(axis=0)).astype(int) - 2, np.ceil(points.max(axis=0)).astype(int) + 2
            under = Window(0, low[1], low[0], 1, high[1] - low[1], high[0] - low[0]).clipped(self._own.shape)
        with open_raster(self._path) as dataset:
            shape = dataset.block_shapes[0]
            for tile in list(_tiles(under, self._own.shape, shape))[:MOST_TRIED]:
                try:
                    dataset.read(window=RasterWindow(tile.x, tile.y, tile.width, tile.height))
                except RasterioError:
                    yield (tile.y // shape[0], tile.x // shape[1]), tile


def is_sentinel(nodata: float | None, dtype: np.dtype[Any]) -> bool:
    """Whether a nodata value cannot be a measurement, so that one band that holds it marks the pixel as empty.

    0 can be measured, and so can any value of an unsigned type.
    """
    return nodata is not None and nodata != 0 and not math.isnan(nodata) and dtype.kind != "u"


def _area(window: Window) -> RasterWindow:
    return RasterWindow(window.x, window.y, window.width, window.height)


def _degrees(grid: Grid) -> bool:
    """Whether map units are degrees."""
    return grid.crs is not None and bool(CRS.from_wkt(grid.crs).is_geographic)


def _tiles(window: Window, shape: tuple[int, int, int], size: tuple[int, int]) -> Iterator[Window]:
    """The cells of a grid of `shape`, cut into cells of `size` from its first pixel, that a window touches."""
    for y in range(window.y // size[0] * size[0], window.stop[1], size[0]):
        for x in range(window.x // size[1] * size[1], window.stop[2], size[1]):
            yield Window(0, y, x, 1, *size).clipped(shape)


def _tile_of(dataset: rasterio.DatasetReader) -> tuple[int, int] | None:
    """(rows, columns) of the tiles of an open file; None where it has none, or they are too small or too large to keep."""
    shapes = set(dataset.block_shapes)
    rows, columns = shapes.pop()
    fit = min(rows, columns) >= LEAST and max(rows, columns) <= LARGEST and columns < dataset.width
    return (rows, columns) if fit and not shapes else None
