"""A pixel in each labelled shape of a case: of vector labels as their file draws them, of rasters as connected areas."""

from __future__ import annotations

from collections.abc import Collection, Iterable
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

    def anchors(self, box: Window) -> NDArray[np.int32]:
        """(z, y, x) of one pixel of each shape inside a box, of those that reach into it, on the working grid, int32 [n, 3]."""


def shapes_are_cut(cases: Iterable[Case]) -> bool:
    """Whether some are parts of scenes whose label knows its shapes: those at their edges were once in one of them or in none."""
    return any(case.region is not None and case.labels is not None and isinstance(case.labels.source, Anchored) for case in cases)


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
        found: NDArray[np.int32] = source.anchors(case.box) - np.array(case.box.start, dtype=np.int32)
        return found
    whole = Window.whole(case.shape)
    if whole.pixels > MOST_PIXELS:
        raise ConfigError(
            f"'data.sampling.by=polygon' needs the connected areas of a raster label, and case '{case.id}' of shape {case.shape} "
            f"(D, H, W) has more than the {MOST_PIXELS:,} pixels that are searched. Give the label as a vector file, cut the case "
            "with 'split=blocks', or type 'data.sampling.by=class'."
        )
    label = case.read_label(whole)
    areas = [_middles(label == index) for index in sorted(classes)]
    return np.concatenate([np.empty((0, 3), dtype=np.int32), *areas])


def _middles(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The pixel in the middle, in reading order, of each area that is connected by faces: it lies inside whatever the shape."""
    areas, count = ndimage.label(mask)
    pixels = np.flatnonzero(areas)
    order = np.argsort(areas.ravel()[pixels], kind="stable")
    sizes = np.bincount(areas.ravel()[pixels], minlength=count + 1)[1:]
    middles = pixels[order[np.cumsum(sizes) - sizes + sizes // 2]]
    return np.stack(np.unravel_index(middles, mask.shape), axis=1).astype(np.int32)
