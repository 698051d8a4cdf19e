"""A pixel in each labelled shape of a case: of vector labels as their file draws them, of rasters as connected areas."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxtile.cases.case import Case
from voxtile.cases.window import Window
from voxtile.errors import ConfigError

MOST_PIXELS = 2**24  # of a case whose connected areas are searched for; these need its whole label in memory


@runtime_checkable
class Anchored(Protocol):
    """A label's source that knows its shapes."""

    def anchors(self) -> NDArray[np.int32]:
        """(z, y, x) of one pixel inside each shape, on the working grid, int32 [n, 3]."""


def anchors_of(case: Case, classes: Collection[int]) -> NDArray[np.int32]:
    """One pixel in each labelled shape of the case.

    Args:
        case: with a label.
        classes: class indices whose connected areas count, where the label is a raster; all shapes of a vector file do.

    Returns:
        (z, y, x) in pixels of the case, int32 [n, 3], in a fixed order.

    Raises:
        ConfigError: The label is a raster, and the case is too large for its areas to be searched for.
    """
    source = case.labels.source if case.labels else None
    if isinstance(source, Anchored):
        inside = source.anchors().astype(np.int32) - np.array(case.box.start, dtype=np.int32)
        return inside[((inside >= 0) & (inside < case.shape)).all(axis=1)]
    whole = Window.whole(case.shape)
    if whole.pixels > MOST_PIXELS:
        raise ConfigError(
            f"'data.sampling.by=polygon' needs the connected areas of a raster label, and case '{case.id}' of shape {case.shape} "
            f"(D, H, W) has more than the {MOST_PIXELS:,} pixels that are searched. Give the label as a vector file, cut the case "
            "with 'split=blocks', or type 'data.sampling.by=class'."
        )
    label = case.read_label(whole)
    found = [_middles(label == index) for index in sorted(classes)]
    return np.concatenate([np.empty((0, 3), dtype=np.int32), *found])


def _middles(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The pixel in the middle, in reading order, of each area that is connected by faces: it lies inside whatever the shape."""
    areas, count = ndimage.label(mask)
    pixels = np.flatnonzero(areas)
    order = np.argsort(areas.ravel()[pixels], kind="stable")
    sizes = np.bincount(areas.ravel()[pixels], minlength=count + 1)[1:]
    middles = pixels[order[np.cumsum(sizes) - sizes + sizes // 2]]
    return np.stack(np.unravel_index(middles, mask.shape), axis=1).astype(np.int32)
