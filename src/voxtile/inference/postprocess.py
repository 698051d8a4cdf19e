"""What is done to the finished semantic map of a whole case: components removed, holes filled.

A component of a class is connected by sides, edges and corners (8 neighbours in a plane, 26 in a volume), as objects are. A hole is
what a class encloses, so that no path of pixels that share sides (4, 6 neighbours) leads out to the case's border.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxtile.cases.case import Case
from voxtile.cases.window import IGNORE, Size3, Window
from voxtile.cases.working import OnWorkingGrid
from voxtile.data.normalise import Intensity
from voxtile.errors import DataError
from voxtile.inference.native import native_bands
from voxtile.inference.predictor import Predictor

MOST = 2**27  # pixels of the largest map that is worked on
MEMORY = 9  # bytes of memory for each pixel: the map, a class's mask and its components' ids, and what stays of them
SIZES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # least sizes that a search tries, in mm³ of volumes and pixels of others
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
            if (found := _components(classes, index)) is not None:
                part, ids, sizes = found
                lost = ~_stays(sizes, index in self.largest, self.smallest.get(index, 0) / pixel)
                lost[0] = False
                part[lost[ids]] = self.background
        for index in sorted(self.holes):
            _fill(classes, index, self.background)


def pixel_size(case: Case) -> float:
    """What one pixel counts for in sizes: its mm³ in volumes, 1 in scenes and pictures."""
    return math.prod(case.grid.spacing) if case.grid.unit == "mm" else 1.0


def check_size(case: Case) -> None:
    """Refuses a case whose map is too large to be worked on as a whole.

    Raises:
        DataError: It is.
    """
    if (pixels := math.prod(case.shape)) > MOST:
        raise DataError(
            f"{case.id} has {pixels:,} pixels, and post-processing looks at whole maps, which it does up to {MOST:,} pixels. Type "
            "'postprocess=null'; small polygons and objects of a scene are left out by 'min_pixels' of predict."
        )


def class_bands(
    predictor: Predictor,
    case: Case,
    intensity: Intensity | Sequence[Intensity],
    postprocess: Postprocess | None = None,
    skipped: Collection[Window] = (),
) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """The semantic map of a case, on the grid of its file, in bands [d, h, w] in reading order, and where each lies.

    It is 255 where there are no data. Slices across another axis than z come in one band, once all are there.

    Args:
        predictor: predicts it.
        case: the case.
        intensity: see `Predictor.bands`.
        postprocess: of the whole map.
        skipped: bands that are not wanted, where nothing is done with the map as a whole.
    """
    native = case.native
    bands = ((band.window, band.classes()) for band in native_bands(predictor, case, intensity, skipped))
    ordered = not isinstance(case.image, OnWorkingGrid) or list(case.image.order) == [0, 1, 2]
    if postprocess is None and ordered:
        yield from bands
        return
    if postprocess is not None:
        check_size(native)
    windows, whole = _joined(bands, native.shape)
    if postprocess is not None:
        postprocess.apply(whole, pixel_size(native))
    yield from ((window, whole[window.slices]) for window in (windows if ordered else [Window.whole(native.shape)]))


def _joined(bands: Iterable[tuple[Window, NDArray[np.uint8]]], shape: Size3) -> tuple[list[Window], NDArray[np.uint8]]:
    """The windows of bands, and the map [D, H, W] that they make up."""
    whole, windows = np.full(shape, IGNORE, dtype=np.uint8), []
    for window, part in bands:
        whole[window.slices] = part
        windows.append(window)
    return windows, whole


@dataclass(frozen=True)
class KeptMap:
    """A predicted map of a labelled case, compressed, so that those of many cases fit into memory.

    Attributes:
        case: the case.
        windows: its bands.
        packed: the map's bytes.
    """

    case: Case
    windows: tuple[Window, ...]
    packed: bytes

    @classmethod
    def of(cls, case: Case, bands: Iterable[tuple[Window, NDArray[np.uint8]]]) -> KeptMap:
        """Takes the bands of a map.

        Raises:
            DataError: The map is too large.
        """
        check_size(case)
        windows, whole = _joined(bands, case.shape)
        return cls(case, tuple(windows), zlib.compress(whole.tobytes(), 1))

    def classes(self) -> NDArray[np.uint8]:
        """The map [D, H, W] as it was predicted."""
        return np.frombuffer(bytearray(zlib.decompress(self.packed)), dtype=np.uint8).reshape(self.case.shape)

    def bands(self, postprocess: Postprocess | None) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """The map in its bands, post-processed."""
        whole = self.classes()
        if postprocess is not None:
            postprocess.apply(whole, pixel_size(self.case))
        yield from ((window, whole[window.slices]) for window in self.windows)


@dataclass(frozen=True)
class Trial:
    """An option that was tried for a class, and the mean Dice over the cases where it is defined.

    Attributes:
        index: of the class.
        option: "as it is", "largest", "smallest <size>", or "holes" after what was chosen of these.
        dice: the mean; NaN where the class is in no label and no map.
    """

    index: int
    option: str
    dice: float


class Search:
    """Chooses post-processing by the mean Dice over cases, class by class: an option is taken where it makes that mean larger.

    As in nnU-Net (Isensee et al. 2021, Nature Methods 18), where keeping the largest component is the one option. A removal changes
    one class and the background alone, so that no other class gets worse by it; so does filling where the background stands.
    """

    def __init__(self, maps: Sequence[KeptMap], classes: int, background: int) -> None:
        """Labels the components of each map once.

        Args:
            maps: of labelled cases.
            classes: K.
            background: index of the background class.
        """
        self._maps, self._background = maps, background
        self._known: dict[tuple[object, ...], float] = {}
        self.classes = [index for index in range(classes) if index != background]
        # Dice of each case, class and removal.
        self._removed = np.array([[_removal_dice(each, index) for index in self.classes] for each in maps])

    def choose(self, cases: Collection[int]) -> tuple[Postprocess, list[Trial]]:
        """What is best for some of the cases, by their places, and what was tried."""
        chosen, tried = Postprocess(self._background), []
        for place, index in enumerate(self.classes):
            means = [_mean(self._removed[list(cases), place, option]) for option in range(len(REMOVALS))]
            tried += [Trial(index, option, mean) for option, mean in zip(REMOVALS, means, strict=True)]
            best = max(range(len(means)), key=lambda option: (means[option], -option)) if not math.isnan(means[0]) else 0
            largest, least = list(REMOVALS.values())[best]
            own = Postprocess(self._background, (index,) if largest else (), {index: least} if least else {})
            filled = _mean(np.array([self._filled_dice(number, own, index) for number in cases]))
            tried.append(Trial(index, "holes", filled))
            holes = filled > means[best]
            chosen = Postprocess(
                self._background, chosen.largest + own.largest, {**chosen.smallest, **own.smallest},
                (*chosen.holes, index) if holes else chosen.holes,
            )  # fmt: skip
        return chosen, tried

    def _filled_dice(self, number: int, removal: Postprocess, index: int) -> float:
        """Dice of a class in one case after a removal and the filling of its holes; the same is asked for by several folds."""
        key = (number, index, removal.largest, tuple(removal.smallest.items()))
        if key not in self._known:
            kept = self._maps[number]
            classes = kept.classes()
            own = Postprocess(self._background, removal.largest, removal.smallest, (index,))
            own.apply(classes, pixel_size(kept.case))
            label = kept.case.read_label(Window.whole(kept.case.shape))
            label[classes == IGNORE] = IGNORE
            mine, judged = classes == index, label != IGNORE
            self._known[key] = _dice(
                np.array([np.count_nonzero(mine & (label == index))]), np.count_nonzero(label == index),
                np.array([np.count_nonzero(mine & judged)]),
            )[0]  # fmt: skip
        return self._known[key]


# Name of a removal -> whether the largest component alone is kept, and the least size of a component.
REMOVALS: Mapping[str, tuple[bool, float]] = {
    "as it is": (False, 0.0), "largest": (True, 0.0), **{f"smallest {size:g}": (False, size) for size in SIZES}
}  # fmt: skip


def _removal_dice(kept: KeptMap, index: int) -> list[float]:
    """Dice of a class in one case after each of `REMOVALS`; NaN where it is in neither label nor map."""
    classes = kept.classes()
    label = kept.case.read_label(Window.whole(kept.case.shape))
    label[classes == IGNORE] = IGNORE
    in_label = np.count_nonzero(label == index)
    found = _components(classes, index)
    if found is None:
        return [0.0 if in_label else math.nan] * len(REMOVALS)
    _, ids, sizes = found
    part = label[_box(classes == index)]
    judged, hit = (_counted(ids, len(sizes), mask) for mask in (part != IGNORE, part == index))
    pixel = pixel_size(kept.case)
    stays = [_stays(sizes, largest, least / pixel)[1:] for largest, least in REMOVALS.values()]
    hits, predicted = (np.array([counts[1:][each].sum() for each in stays]) for counts in (hit, judged))
    return _dice(hits, in_label, predicted)


def _dice(hits: NDArray[np.int64], in_label: np.integer[Any] | int, predicted: NDArray[np.int64]) -> list[float]:
    return [2 * h / (in_label + p) if in_label + p else math.nan for h, p in zip(hits.tolist(), predicted.tolist(), strict=True)]


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of what is defined, NaN where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The smallest box that holds all of a mask [D, H, W]; None where there is nothing."""
    sides = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides) if sides[0].size else None


def _components(classes: NDArray[np.uint8], index: int) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int64]] | None:
    """The part of a map that holds a class, its components' ids there, from 1, and their pixels by id; None without one."""
    if (box := _box(classes == index)) is None:
        return None
    part = classes[box]
    ids, count = ndimage.label(part == index, _CORNERS)
    return part, ids, _counted(ids, count + 1)


def _counted(ids: NDArray[np.int32], count: int, where: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """How many pixels each id from 0 to `count` - 1 has, of those in a mask."""
    total = np.zeros(count, dtype=np.int64)
    flat = ids.reshape(-1)
    mask = None if where is None else where.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        total += np.bincount(piece if mask is None else piece[mask[start : start + _CHUNK]], minlength=count)
    return total


def _stays(sizes: NDArray[np.int64], largest: bool, least: float) -> NDArray[np.bool_]:
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
