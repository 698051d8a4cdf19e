"""Cases that live in memory, for tests of everything after reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxtile.cases.case import Case, Labels, Source
from voxtile.cases.grid import CanonicalGrid, StoredGrid, plain_affine
from voxtile.cases.maps import MapSpec, MapWriter


class MemorySource(Source):
    """An array [C, D, H, W] on a grid of choice; maps of it are written as .npy files."""

    def __init__(self, array, *, valid=None, path="memory.npy", **grid):
        """Takes the pixels.

        Args:
            array: pixels [C, D, H, W].
            valid: where they hold data [D, H, W]; everywhere where None.
            path: the name of the file that this source stands for.
            **grid: attributes of the grid, see `Grid`: affine, unit, crs, metres.
        """
        self.array = np.asarray(array)
        self.valid = np.ones(self.array.shape[1:], dtype=np.bool_) if valid is None else np.asarray(valid, dtype=np.bool_)
        self.paths = (Path(path),)
        self.channels = tuple(f"channel{index + 1}" for index in range(len(self.array)))
        self.dtype = self.array.dtype
        shape = self.array.shape[1:]
        self.stored = StoredGrid(shape, **{"affine": plain_affine()} | grid)
        self.canonical = CanonicalGrid(shape, **{"affine": plain_affine()} | grid)

    def read(self, window, channels):
        return self.array[(list(channels), *window.slices)], self.valid[window.slices]

    def map_name(self, stem: str, spec: MapSpec) -> str:
        return f"{stem}.npy"

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        def finish(array, making: Path) -> None:
            with making.open("wb") as file:
                np.save(file, array)

        return MapWriter(path, self.canonical.shape, spec, finish)


def north_up(left=0.0, top=0.0, pixel=10.0):
    """The affine of a scene whose first pixel's outer corner lies at (left, top), in map units."""
    return ((pixel, 0.0, 0.0, left + pixel / 2), (0.0, -pixel, 0.0, top - pixel / 2), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def memory_case(name, shape=(1, 4, 4), *, group=None, split="", array=None, label=None, path=None, **grid) -> Case:
    """A case of zeros of `shape` (D, H, W), or of the pixels `array` [C, D, H, W], with class indices `label` [D, H, W]."""
    pixels = np.zeros((1, *shape), dtype=np.uint8) if array is None else array
    image = MemorySource(pixels, path=path or f"{name}.npy", **grid)
    labels = None
    if label is not None:
        source = MemorySource(np.asarray(label)[None], path=f"{name}_label.npy", **grid)
        labels = Labels(source, {int(value): int(value) for value in np.unique(label)})
    return Case(name, name if group is None else group, image, labels, split=split)
