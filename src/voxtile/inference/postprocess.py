"""What is done to the finished semantic map of a whole case: components removed, holes filled.

A component of a class is connected by sides, edges and corners (8 neighbours in a plane, 26 in a volume), as objects are. A hole is
what a class encloses, so that no path of pixels that share sides (4, 6 neighbours) leads out to the case's border.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxtile.cases.case import Case
from voxtile.cases.window import IGNORE, Size3, Window
from voxtile.cases.working import OnWorkingGrid
from voxtile.errors import DataError
from voxtile.inference.native import of_each
from voxtile.inference.together import Sight, bands_of

MOST_PIXELS = 2**27  # pixels of the largest map that is worked on
BYTES_PER_PIXEL = 9  # of memory: the map, a class's mask and its components' ids, and what stays of them
_CHUNK = 2**22  # pixels that are counted at once: counting takes 8 bytes for each
_CORNERS, _SIDES = ndimage.generate_binary_structure(3, 3), ndimage.generate_binary_structure(3, 1)


@dataclass(frozen=True)
class Postprocess:
    """What is done to a map: first components are removed, class by class in the order of their indices, then holes are filled.

    Attributes:
        background: index of the class that what is removed becomes, and that holes are filled where it stands.
        largest: classes of which the largest component alone is kept; of several as large, the first in reading order.
        smallest: class -> size, in mm³ of volumes and pixels of others, below which a component is removed.
        holes: classes whose holes are filled.
    """

    background: int
    largest: tuple[int, ...] = ()
    smallest: Mapping[int, float] = field(default_factory=dict)
    holes: tuple[int, ...] = ()

    def apply(self, classes: NDArray[np.uint8], pixel: float) -> None:
        """Changes a map in place.

        Args:
            classes: class indices [D, H, W] of a whole case, 255 where there are no data, which stay so.
            pixel: what one pixel counts for in `smallest`, see `pixel_size`.
        """
        for index in sorted({*self.largest, *self.smallest}):
            if (found := components_of(classes, index)) is not None:
                box, ids, sizes = found
                lost = ~which_stay(sizes, index in self.largest, self.smallest.get(index, 0) / pixel)
                lost[0] = False
                classes[box][lost[ids]] = self.background
        for index in sorted(self.holes):
            _fill(classes, index, self.background)


def pixel_size(case: Case) -> float:
    """What one pixel counts for in sizes: its mm³ in volumes, 1 in scenes and pictures."""
    return case.grid.cell() if case.grid.unit == "mm" else 1.0


def check_size(case: Case) -> None:
    """Refuses a case whose map is too large to be worked on as a whole.

    Raises:
        DataError: The map has more than `MOST_PIXELS` pixels.
    """
    if (pixels := math.prod(case.shape)) > MOST_PIXELS:
        raise DataError(
            f"{case.id} has {pixels:,} pixels, and post-processing looks at whole maps, which it does up to {MOST_PIXELS:,}. "
            "Type 'postprocess=null'; small polygons and objects of a scene are left out by 'min_pixels' of predict."
        )


def class_bands(
    sights: Sequence[Sight],
    postprocess: Postprocess | None = None,
    skipped: Collection[Window] = (),
) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """The semantic map of a case, on the grid of its file, in bands [d, h, w] in reading order, and where each lies.

    It is 255 where there are no data. Slices across another axis than z come in one band, once all are there.

    Args:
        sights: the case as each kind of networks that predict it sees it.
        postprocess: of the whole map.
        skipped: bands that are not wanted, where nothing is done with the map as a whole.
    """
    case = sights[0].case
    native = case.native
    bands = of_each(bands_of(sights, skipped), lambda band: (band.window, band.classes()), sights[0].predictor.sums)
    ordered = not isinstance(case.image, OnWorkingGrid) or list(case.image.order) == [0, 1, 2]
    if postprocess is None and ordered:
        yield from bands
        return
    if postprocess is not None:
        check_size(native)
    windows, whole = joined(bands, native.shape)
    if postprocess is not None:
        postprocess.apply(whole, pixel_size(native))
    yield from ((window, whole[window.slices]) for window in (windows if ordered else [Window.whole(native.shape)]))


def joined(bands: Iterable[tuple[Window, NDArray[np.uint8]]], shape: Size3) -> tuple[list[Window], NDArray[np.uint8]]:
    """The windows of bands, and the map [D, H, W] that they make up."""
    whole, windows = np.full(shape, IGNORE, dtype=np.uint8), []
    for window, part in bands:
        whole[window.slices] = part
        windows.append(window)
    return windows, whole


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The smallest box that holds all of a mask [D, H, W]; None where there is nothing."""
    sides = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides) if sides[0].size else None


def components_of(classes: NDArray[np.uint8], index: int) -> tuple[tuple[slice, ...], NDArray[np.int32], NDArray[np.int64]] | None:
    """The smallest box of a map that holds a class, its components' ids there, from 1, and their pixels by id; None without one."""
    if (box := _box(classes == index)) is None:
        return None
    ids, count = ndimage.label(classes[box] == index, _CORNERS)
    return box, ids, pixels_by_id(ids, count + 1)


def pixels_by_id(ids: NDArray[np.int32], count: int, where: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """How many pixels each id from 0 to `count` - 1 has, of those in a mask."""
    total = np.zeros(count, dtype=np.int64)
    flat = ids.reshape(-1)
    mask = None if where is None else where.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        total += np.bincount(piece if mask is None else piece[mask[start : start + _CHUNK]], minlength=count)
    return total


def which_stay(sizes: NDArray[np.int64], largest: bool, least: float) -> NDArray[np.bool_]:
    """Which ids stay, given the pixels of each; the first, 0, is no component."""
    stays: NDArray[np.bool_] = sizes >= least
    if largest:
        stays &= np.arange(len(sizes)) == 1 + int(np.argmax(sizes[1:]))
    return stays


def _fill(classes: NDArray[np.uint8], index: int, background: int) -> None:
    """Gives a class the background that it encloses; what of other classes lies in a hole stays."""
    if (box := _box(classes == index)) is None:
        return
    part = classes[box]  # around it there is nothing of the class: what touches its faces from within leads to the border
    ids, count = ndimage.label(part != index, _SIDES)
    closed = np.ones(count + 1, dtype=np.bool_)
    closed[0] = False
    for axis in range(3):
        if axis == 0 and classes.shape[0] == 1:  # a plane's only slice
            continue
        for face in (0, -1):
            closed[np.unique(ids.take(face, axis))] = False
    part[closed[ids] & (part == background)] = index
