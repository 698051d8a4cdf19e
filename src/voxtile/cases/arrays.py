"""Pixels that a program already holds, read as a file would be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Source, everywhere
from voxtile.cases.grid import CanonicalGrid, StoredGrid, Unit, plain_affine
from voxtile.cases.maps import MapSpec
from voxtile.cases.window import Size3, Window
from voxtile.errors import DataError


class ArraySource(Source):
    """An array of pixels [C, D, H, W]; no file, so that no map can be written beside it.

    A pixel holds data where all its channels are finite, and where `valid` says so.
    """

    def __init__(
        self,
        pixels: NDArray[Any],
        channels: Sequence[str],
        valid: NDArray[np.bool_] | None = None,
        spacing: tuple[float, float, float] | None = None,
    ) -> None:
        """Takes the array as it is, without a copy.

        Args:
            pixels: [C, D, H, W], of whole or real numbers of up to 64 bits.
            channels: their names, in order.
            valid: which pixels hold data [D, H, W]; all where None.
            spacing: distance between pixels along (z, y, x) in mm; None where a pixel has no size.
        """
        shape: Size3 = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        affine = plain_affine(spacing or (1.0, 1.0, 1.0))
        unit: Unit = "mm" if spacing else "px"
        self.paths, self.channels, self.dtype = (Path("array"),), tuple(channels), pixels.dtype
        self.stored, self.canonical = StoredGrid(shape, affine, unit), CanonicalGrid(shape, affine, unit)
        self._pixels, self._valid = pixels, valid

    @property
    def files(self) -> tuple[Path, ...]:
        """None: see `Source.files`."""
        return ()

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        pixels = self._pixels[:, *window.slices][list(channels)]  # the window first: a list copies
        valid = everywhere(window.size) if self._valid is None else self._valid[window.slices]
        return pixels, valid & np.isfinite(pixels).all(axis=0) if pixels.dtype.kind == "f" else valid

    def open_map(self, path: Path, spec: MapSpec) -> NoReturn:
        """Refuses: there is no format to write it in.

        Raises:
            DataError: Always.
        """
        raise DataError(f"{path} cannot be written: its image is an array, which has no file format.")

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return f"{stem}.npy"
