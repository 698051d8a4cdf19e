"""The search of post-processing on predicted maps of labelled cases, which are kept in memory for it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Case
from voxtile.cases.window import IGNORE, Window
from voxtile.inference.postprocess import Postprocess, check_size, components_of, joined, pixel_size, pixels_by_id, which_stay
from voxtile.scores.confusion import Counts, mean_of, scores_of

SIZES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # least sizes that a search tries, in mm³ of volumes and pixels of others


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
        windows, whole = joined(bands, case.shape)
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
        self._removed = np.array([_removal_dice(each, self.classes) for each in maps])

    def choose(self, cases: Collection[int]) -> tuple[Postprocess, list[Trial]]:
        """What is best for some of the cases, by their places, and what was tried."""
        chosen, tried = Postprocess(self._background), []
        for place, index in enumerate(self.classes):
            means = [mean_of(self._removed[list(cases), place, option]) for option in range(len(REMOVALS))]
            tried += [Trial(index, option, mean) for option, mean in zip(REMOVALS, means, strict=True)]
            best = max(range(len(means)), key=lambda option: (means[option], -option)) if not math.isnan(means[0]) else 0
            largest, least = list(REMOVALS.values())[best]
            own = Postprocess(self._background, (index,) if largest else (), {index: least} if least else {})
            filled = mean_of(np.array([self._filled_dice(number, own, index) for number in cases]))
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
            pixels = (np.count_nonzero(each) for each in (mine & (label == index), label == index, mine & judged))
            self._known[key] = float(scores_of(Counts(*map(np.asarray, pixels))).dice)
        return self._known[key]


# Name of a removal -> whether the largest component alone is kept, and the least size of a component.
REMOVALS: Mapping[str, tuple[bool, float]] = {
    "as it is": (False, 0.0), "largest": (True, 0.0), **{f"smallest {size:g}": (False, size) for size in SIZES}
}  # fmt: skip


def _removal_dice(kept: KeptMap, indices: Sequence[int]) -> list[list[float]]:
    """Dice of each class in one case after each of `REMOVALS`; NaN where it is in neither label nor map."""
    classes = kept.classes()
    label = kept.case.read_label(Window.whole(kept.case.shape))
    label[classes == IGNORE] = IGNORE
    return [_dice_of_class(classes, label, index, pixel_size(kept.case)) for index in indices]


def _dice_of_class(classes: NDArray[np.uint8], label: NDArray[np.uint8], index: int, pixel: float) -> list[float]:
    """See `_removal_dice`, of one class in a map and a label [D, H, W]; `pixel` is the size of a pixel."""
    in_label = np.count_nonzero(label == index)
    found = components_of(classes, index)
    if found is None:
        return [0.0 if in_label else math.nan] * len(REMOVALS)
    box, ids, sizes = found
    part = label[box]
    judged, hit = (pixels_by_id(ids, len(sizes), mask) for mask in (part != IGNORE, part == index))
    stays = [which_stay(sizes, largest, least / pixel)[1:] for largest, least in REMOVALS.values()]
    hits, predicted = (np.array([counts[1:][each].sum() for each in stays]) for counts in (hit, judged))
    return list(scores_of(Counts(hits, np.full(len(hits), in_label), predicted)).dice)
