"""Volumes on a working grid of their own: resampled to a spacing, and turned so that slices lie across an axis."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from voxtile.cases.cache import Known, cached_array
from voxtile.cases.case import Source, Wrapped
from voxtile.cases.grid import Grid, WorkingGrid, nested
from voxtile.cases.window import Size3, Window
from voxtile.cases.windowing import ORDERS
from voxtile.errors import DataError

Kernel = Literal["cubic", "linear", "label"]  # of images; of what must not overshoot, as weights; of kinds of things
Spacing = Sequence[float | None]  # mm along (z, y, x) of the canonical grid; None where it stays
SLICES = 2**24  # pixels that are resampled at once
_RESAMPLING = threading.BoundedSemaphore(4)  # volumes, each of which takes several times its size of memory


class OnWorkingGrid(Wrapped):
    """A volume as networks see it.

    Resampling keeps the volume's outer edges: the spacing is the wanted one as nearly as a whole number of voxels allows. Images
    become float32 by a cubic kernel (Keys, a = -0.5) of local support, which is widened where the grid gets coarser so that nothing
    aliases; weights by a linear one; labels by a linear kernel for each value, of which the largest wins. It is done once; the
    result lies in the cache.

    Attributes:
        native: the volume as it lies in the file.
        order: where each axis (z, y, x) of arrays comes from.
    """

    def __init__(self, native: Source, spacing: Spacing | None, axis: str, kernel: Kernel) -> None:
        """Works out the grid.

        Args:
            native: the volume.
            spacing: see `Spacing`; None for the volume's own.
            axis: across which slices lie, "z", "y" or "x".
            kernel: by which values are interpolated.

        Raises:
            DataError: The volume has no spacing in mm.
        """
        super().__init__(native)
        self._kernel = kernel
        self._known: Known = {}
        self.order = ORDERS[axis]
        grid = native.working
        if spacing is not None and grid.unit != "mm":
            raise DataError(
                f"{native.path} has no spacing in millimetres, so 'data.spacing={list(spacing)}' means nothing for it. Take the "
                "setting out."
            )
        size = resampled_size(grid, spacing) if spacing is not None else grid.shape
        self._size = size  # before turning
        self.resampled = size != grid.shape
        self.dtype = np.dtype(np.float32) if self.resampled and kernel != "label" else native.dtype
        factors = [old / new for old, new in zip(grid.shape, size, strict=True)]
        matrix = grid.matrix @ _centres(factors)
        matrix[:, :3] = matrix[:, [2 - axis for axis in self.order[::-1]]]
        depth, height, width = (size[axis] for axis in self.order)
        self._grid = replace(grid, shape=(depth, height, width), affine=nested(matrix))
        self.key = f"{native.key} on {list(size)} {axis}"

    @property
    def working(self) -> WorkingGrid:
        """See `Source.working`."""
        return self._grid

    @property
    def native(self) -> Source:
        """See `Source.native`."""
        return self.source

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        inner = turned_back(window, self.order)
        turn = (0, *(axis + 1 for axis in self.order))
        if not self.resampled:
            array, valid = self.source.read(inner, channels)
            return array.transpose(turn), valid.transpose(self.order)
        if self.source.files:
            volume = cached_array(self.source.files, self._made, self._variant(), known=self._known)
        else:
            volume = self._in_memory
        array = np.ascontiguousarray(volume[list(channels), *inner.slices].transpose(turn))
        return array, np.asarray(np.isfinite(array).all(axis=0))

    def _variant(self) -> str:
        """What tells this volume from others that are made of the same files."""
        native = hashlib.sha256(f"{self.source.key} {getattr(self.source, 'variant', '')}".encode()).hexdigest()[:16]
        return "-".join(["x".join(map(str, self._size)), self._kernel, native])

    @cached_property
    def _in_memory(self) -> NDArray[Any]:
        """Of pixels that a program holds, which no file tells from others, as `_made`."""
        return self._made()

    def _made(self) -> NDArray[Any]:
        """All channels [C, D, H, W], resampled; images are NaN where there are no data."""
        with _RESAMPLING:
            array, valid = self.source.whole(range(len(self.channels)))
            made = np.empty((len(array), *self._size), dtype=self.dtype)
            for channel, values in enumerate(array):
                if self._kernel == "label":
                    made[channel] = resampled_label(values, valid, self._size)
                else:
                    made[channel] = resampled_image(values, valid, self._size, self._kernel)
            return made

    @property
    def is_one_piece(self) -> bool:
        """See `Source.is_one_piece`."""
        return True

    @property
    def decoded_bytes(self) -> int:
        """See `Source.decoded_bytes`."""
        if not self.resampled:
            return self.source.decoded_bytes
        return Window.whole(self._size).pixels * len(self.channels) * self.dtype.itemsize


def resampled_size(grid: Grid, spacing: Spacing) -> Size3:
    """Voxels along (z, y, x) with which a grid's extent comes nearest to a spacing in mm."""
    depth, height, width = (
        count if wanted is None else max(1, round(count * own / wanted))
        for count, own, wanted in zip(grid.shape, grid.spacing, spacing, strict=True)
    )
    return depth, height, width


def turned_back(window: Window, order: Sequence[int]) -> Window:
    """A window of arrays whose axes come from `order`, in the order (z, y, x) they come from."""
    back = [list(order).index(axis) for axis in range(3)]
    return Window.of([window.start[axis] for axis in back], [window.size[axis] for axis in back])


def resampled_image(
    array: NDArray[Any], valid: NDArray[np.bool_], size: Size3, kernel: Literal["cubic", "linear"] = "cubic"
) -> NDArray[np.float32]:
    """A volume [D, H, W] on another number of voxels of the same extent, float32; NaN where most of what is seen has no data."""
    if valid.all():
        mode = "bicubic" if kernel == "cubic" else "bilinear"
        return _resized(torch.from_numpy(array.astype(np.float32)), size, mode).numpy()
    known, values = (torch.from_numpy(each.astype(np.float32)) for each in (valid, np.where(valid, array, 0)))
    weight = _resized(known, size, "bilinear")
    # Where the cubic kernel would see voxels without data, the linear one, which has no negative weights, leaves them out.
    linear = _resized(values, size, "bilinear") / weight.clamp_min(1e-4)
    made = linear
    if kernel == "cubic":
        untouched = (_resized(known, size, "bicubic") - 1).abs() < 1e-4
        made = torch.where(untouched, _resized(values, size, "bicubic"), linear)
    return torch.where(weight >= 0.5, made, torch.nan).numpy()


def resampled_label(array: NDArray[Any], valid: NDArray[np.bool_], size: Size3) -> NDArray[Any]:
    """Stored values [D, H, W] on another number of voxels of the same extent: the value of the largest share, the lower of two.

    Floats that are not valid stay so: they are NaN, which counts as one more value.
    """
    best = torch.full(size, -1.0)
    out = np.zeros(size, dtype=array.dtype)
    values: list[Any] = np.unique(array[valid]).tolist()
    for value in [*values, *([] if valid.all() else [np.nan])]:
        share = _resized(torch.from_numpy(((array == value) if value == value else ~valid).astype(np.float32)), size, "bilinear")
        won = (share > best).numpy()
        out[won] = value
        torch.maximum(best, share, out=best)
    return out


def _resized(volume: Tensor, size: Size3, mode: str) -> Tensor:
    """A float32 volume [D, H, W] resized by a separable kernel, in the plane and then along the depth."""
    depth, height, width = volume.shape

    def resize(part: Tensor, to: tuple[int, int]) -> Tensor:
        return functional.interpolate(part, to, mode=mode, align_corners=False, antialias=True)

    if (height, width) != size[1:]:
        step = max(1, SLICES // max(height * width, size[1] * size[2]))
        volume = torch.cat([resize(volume[z : z + step, None], (size[1], size[2]))[:, 0] for z in range(0, depth, step)])
    if depth == size[0]:
        return volume
    columns = volume.reshape(1, 1, depth, -1)
    step = max(1, SLICES // max(depth, size[0]))
    parts = (columns[..., at : at + step] for at in range(0, columns.shape[3], step))
    return torch.cat([resize(part, (size[0], part.shape[3])) for part in parts], dim=3).reshape(size)


def _centres(factors: Sequence[float]) -> NDArray[np.float64]:
    """The affine [4, 4] from indices (x, y, z) of the new voxels to those of the old ones; outer edges are the same."""
    z, y, x = factors
    return np.array([[x, 0, 0, (x - 1) / 2], [0, y, 0, (y - 1) / 2], [0, 0, z, (z - 1) / 2], [0, 0, 0, 1.0]])


def linear_taps(count: int, of: int) -> list[tuple[int, NDArray[np.float32]]]:
    """For each of `count` places spread over `of` slices, the first slice that it is made of and the weights from there on.

    A linear kernel, widened where there are fewer places than slices.
    """
    scale = of / count
    reach = max(scale, 1.0)
    taps = []
    for place in range(count):
        centre = (place + 0.5) * scale - 0.5
        first, last = max(0, int(np.floor(centre - reach)) + 1), min(of - 1, int(np.ceil(centre + reach)) - 1)
        weights = np.clip(1 - np.abs(np.arange(first, last + 1) - centre) / reach, 0, None)
        if not weights.sum():  # the border: nothing lies on the other side
            first = min(max(round(centre), 0), of - 1)
            weights = np.ones(1)
        taps.append((first, (weights / weights.sum()).astype(np.float32)))
    return taps
