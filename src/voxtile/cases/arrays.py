"""Pixels that a program already holds, read as a file would be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Source
from voxtile.cases.grid import CanonicalGrid, StoredGrid, Unit, plain_affine
from voxtile.cases.maps import MapSpec
from voxtile.cases.window import Size3, Window
from voxtile.errors import DataError


class ArraySource(Source):
    """An array of pixels [C, D, H, W]; no file, so that no map can be written beside it.

    A pixel holds data where all its channels are finite.
    """

    def __init__(self, pixels: NDArray[Any], channels: Sequence[str], spacing: tuple[float, float, float] | None = None) -> None:
        """Takes the array as it is, without a copy.

        Args:
            pixels: [C, D, H, W], of whole or real numbers.
            channels: their names, in order.
            spacing: distance between pixels along (z, y, x) in mm; None where a pixel has no size.

        Raises:
            DataError: The pixels are no numbers, there are none, or there are more or fewer channels than names.
        """
        if pixels.dtype.kind not in "uif" or pixels.ndim != 4 or not pixels.size or len(pixels) != len(channels):
            raise DataError(
                f"The array has the shape {pixels.shape} and the type {pixels.dtype}. Expected whole or real numbers [C, H, W] "
                f"of a slice, or [C, D, H, W] of a volume, with {len(channels)} in the place of C: {', '.join(channels)}."
            )
        shape: Size3 = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        affine = plain_affine(spacing or (1.0, 1.0, 1.0))
        unit: Unit = "mm" if spacing else "px"
        self.paths, self.channels, self.dtype = (Path("array"),), tuple(channels), pixels.dtype
        self.stored, self.canonical = StoredGrid(shape, affine, unit), CanonicalGrid(shape, affine, unit)
        self._pixels = pixels

    @property
    def files(self) -> tuple[Path, ...]:
        """None: see `Source.files`."""
        return ()

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        pixels = self._pixels[list(channels)][:, *window.slices]
        return pixels, np.isfinite(pixels).all(axis=0)

    def open_map(self, path: Path, spec: MapSpec) -> NoReturn:
        """Refuses: there is no format to write it in.

        Raises:
            DataError: Always.
        """
        raise DataError(f"{path} cannot be written: its image is an array, which has no file format.")

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return f"{stem}.npy"
