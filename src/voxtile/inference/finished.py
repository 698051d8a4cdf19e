"""A finished semantic map, read again in slabs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Source
from voxtile.cases.maps import as_indices
from voxtile.cases.pixel_area import HECTARE, PixelAreas
from voxtile.cases.window import Window
from voxtile.data.footprints import to_world
from voxtile.scores.components import slab_axis

SLAB_PIXELS = 2_000_000  # of a slab; what is made of a slab takes some 100 bytes a pixel


class FinishedMap:
    """A semantic map on disk, and its heatmap where there is one.

    Attributes:
        source: a number per class, 255 where nothing was judged.
        heat: one channel of probability per class on the same grid, or None.
        classes: names in the order of their indices.
        slab_pixels: most pixels of a slab, unless one row has more.
        values: the number that stands for each class in the source; its index where empty.
    """

    def __init__(
        self,
        source: Source,
        classes: tuple[str, ...],
        heat: Source | None = None,
        slab_pixels: int = SLAB_PIXELS,
        values: tuple[int, ...] = (),
    ) -> None:
        self.source, self.classes, self.heat, self.slab_pixels, self.values = source, classes, heat, slab_pixels, values
        self.grid = source.canonical
        self.axis = slab_axis(self.grid.shape)

    def slabs(self, box: Window | None = None) -> Iterator[Window]:
        """Windows that partition the map, or a box of it, whole along two axes and thin along the third, in reading order."""
        box = box or Window.whole(self.grid.shape)
        length = box.size[self.axis]
        thick = max(1, self.slab_pixels * length // box.pixels)
        for start in range(0, length, thick):
            first, size = list(box.start), list(box.size)
            first[self.axis] += start
            size[self.axis] = min(thick, length - start)
            yield Window.of(first, size)

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class indices [d, h, w]."""
        indices: NDArray[np.uint8] = as_indices(self.source.read(window, (0,))[0][0], self.values)
        return indices

    def probability(self, window: Window, indices: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """The probability of each pixel's own class [d, h, w], NaN where none was judged; None without a heatmap."""
        if self.heat is None:
            return None
        heat, _ = self.heat.read(window, range(len(self.classes)))
        own = np.take_along_axis(heat, np.minimum(indices, len(self.classes) - 1)[None].astype(np.intp), axis=0)[0]
        return np.where(indices < len(self.classes), own, np.nan).astype(np.float64)

    @property
    def measure(self) -> str | None:
        """What `sizes` counts: "hectares" of scenes with a place on Earth, "millilitres" of volumes, None where none is known."""
        known = {"m": "hectares" if self.grid.crs and to_world(self.grid.crs) else None, "mm": "millilitres", "px": None}
        return known[self.grid.unit]

    def sizes(self, window: Window) -> NDArray[np.float64]:
        """The size of each pixel of a slab, in the unit of `measure`, to be broadcast to [d, h, w]."""
        if self.measure == "hectares":
            return self._areas.cells(window)[None] / HECTARE
        return np.full((1, 1, 1), self.grid.cell() / 1000)  # of mm³

    @cached_property
    def _areas(self) -> PixelAreas:
        return PixelAreas(self.grid)
