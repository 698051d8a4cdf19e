"""Scores of objects: how many were found, whatever their size. Defined in `docs/scores.md`.

An object is a connected component of one class. Objects of label and prediction are matched one to one where their IoU reaches a
threshold, as in Kirillov et al. 2019, "Panoptic Segmentation", CVPR, section 4 (IoU > 0.5), and in SpaceNet's building challenges
(Van Etten et al. 2018, IoU >= 0.5). N cases, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from voxtile.cases.window import IGNORE, Size3, Window
from voxtile.scores.components import Components, slab_axis
from voxtile.scores.confusion import mean_of

COUNTS = ("label_objects", "predicted_objects", "matched_objects")
_PIXELS = 2_000_000  # that are looked at together; ids and what is made of them take some 100 bytes each


class Objects(NamedTuple):
    """The objects of one case, of all counted classes: A of the label, B predicted ones; index 0 is none.

    Attributes:
        label_class: class of each object of the label [A].
        predicted_class: class of each predicted object [B].
        size: pixels of each object of the label [A].
        judged: judged pixels of each predicted object [B].
        ignored: its other pixels [B].
        common: pixels that an object of the label and a predicted one of the same class share, sparse [A, B].
    """

    label_class: NDArray[np.uint8]
    predicted_class: NDArray[np.uint8]
    size: NDArray[Any]
    judged: NDArray[Any]
    ignored: NDArray[Any]
    common: coo_array


def neighbours(shape: Size3, corners: bool = True) -> int:
    """Most neighbours of a pixel of a case [D, H, W] are of its object: 8 in a plane, 26 in a volume; without corners 4, 6."""
    return (8 if corners else 4) if shape[0] == 1 else (26 if corners else 6)


class ObjectFinder(ABC):
    """Finds the objects of one case that comes in bands; memory grows with the number of objects, not of pixels."""

    def __init__(self, shape: Size3, classes: Mapping[int, str], corners: bool = True) -> None:
        """Starts before the first band.

        Args:
            shape: (D, H, W) of the case.
            classes: names of the classes that have objects, by index.
            corners: whether pixels that meet at a corner or edge only are connected, see `Components`.
        """
        self.shape, self.classes = shape, dict(classes)
        axis = slab_axis(shape)
        self._label, self._predicted = (Components(list(classes), corners, axis) for _ in range(2))
        self._sizes: list[NDArray[np.int64]] = []  # pixels of each object of the label, slab by slab
        self._judged: list[NDArray[np.int64]] = []  # judged pixels of each predicted object
        self._ignored: list[NDArray[np.int64]] = []  # the others
        self._common: list[NDArray[np.int64]] = []  # [3, n]: label's id, prediction's id, pixels
        self._waiting: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []

    def add(self, window: Window, prediction: NDArray[np.uint8], label: NDArray[np.uint8]) -> None:
        """Takes the next band [d, h, w], as wide as the case; bands come in reading order.

        Args:
            window: where it lies.
            prediction: class indices, 255 where there are no data.
            label: class indices, `IGNORE` where nothing is judged.
        """
        self._waiting.append((prediction, label))
        if self.shape[0] > 1 and window.stop[1] < self.shape[1]:  # of a volume a slab is a whole slice
            return
        prediction, label = (np.concatenate(parts, axis=1) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        axis = slab_axis(self.shape)
        pieces = min(-(-label.size // _PIXELS), label.shape[axis])  # a slice of a volume cannot be cut, however large it is
        for part in zip(*(np.array_split(array, pieces, axis) for array in (prediction, label)), strict=True):
            self._add(*part)

    def _add(self, prediction: NDArray[np.uint8], label: NDArray[np.uint8]) -> None:
        """Takes the next slab."""
        before = self._label.count, self._predicted.count
        a, b = self._label.add(label), self._predicted.add(prediction)
        here = self._label.count - before[0], self._predicted.count - before[1]
        judged = label != IGNORE
        self._sizes.append(_counted(a[a > 0], before[0], here[0]))
        self._judged.append(_counted(b[(b > 0) & judged], before[1], here[1]))
        self._ignored.append(_counted(b[(b > 0) & ~judged], before[1], here[1]))
        both = (a > 0) & (b > 0) & (label == prediction)
        pairs, pixels = np.unique((a[both] - before[0]) * (here[1] + 1) + (b[both] - before[1]), return_counts=True)
        mine, theirs = np.divmod(pairs, here[1] + 1)
        self._common.append(np.stack([mine + before[0], theirs + before[1], pixels]))

    def found(self) -> Objects:
        """The objects, after the last band."""
        assert not self._waiting
        (mine, my_class), (theirs, their_class) = self._label.joined(), self._predicted.joined()
        size = np.bincount(mine[1:], np.concatenate(self._sizes), len(my_class))
        judged = np.bincount(theirs[1:], np.concatenate(self._judged), len(their_class))
        ignored = np.bincount(theirs[1:], np.concatenate(self._ignored), len(their_class))
        a, b, pixels = np.concatenate(self._common, axis=1)
        # Pieces of two objects that meet in several slabs are added up.
        common = csr_array((pixels, (mine[a], theirs[b])), shape=(len(my_class), len(their_class))).tocoo()
        return Objects(my_class, their_class, size, judged, ignored, common)

    @abstractmethod
    def columns(self) -> dict[str, float]:
        """The columns of `cases.csv`, after the last band."""


class ObjectCounter(ObjectFinder):
    """Counts objects that are matched by their IoU."""

    def __init__(self, shape: Size3, classes: Mapping[int, str], threshold: float) -> None:
        """Starts before the first band.

        Args:
            shape: (D, H, W) of the case.
            classes: names of the classes whose objects are counted, by index.
            threshold: the least IoU at which two objects are the same, above 0.
        """
        super().__init__(shape, classes)
        self.threshold = threshold

    def columns(self) -> dict[str, float]:
        """Scores and counts of the case, see `object_scores`."""
        return object_scores(self.counts(), list(self.classes.values()))

    def counts(self) -> NDArray[np.int64]:
        """Objects of the label, predicted ones and matched pairs of each class [classes, 3]."""
        return matched_counts(self.found(), list(self.classes), self.threshold)


def matched_counts(found: Objects, classes: Sequence[int], threshold: float) -> NDArray[np.int64]:
    """Objects of the label, predicted ones and matched pairs of each class [classes, 3].

    Args:
        found: the objects of a case.
        classes: the class indices whose objects are counted.
        threshold: the least IoU at which two objects are the same, above 0.
    """
    common, size, judged = found.common, found.size, found.judged
    a, b = common.coords
    reached = common.data / (size[a] + judged[b] - common.data) >= threshold
    graph = csr_array((reached[reached], (a[reached], b[reached])), shape=common.shape)
    partner = maximum_bipartite_matching(graph, perm_type="column")  # of each object of the label, -1 without one
    matched = np.zeros(len(judged), dtype=np.bool_)
    matched[partner[partner >= 0]] = True
    counted = matched | (found.ignored <= judged)  # what lies mostly where nothing is judged is no false alarm
    mine, theirs = found.label_class[1:], found.predicted_class[1:]
    return np.array(
        [[(mine == c).sum(), (counted[1:] & (theirs == c)).sum(), (matched[1:] & (theirs == c)).sum()] for c in classes],
        dtype=np.int64,
    )


def _counted(ids: NDArray[np.int64], before: int, count: int) -> NDArray[np.int64]:
    """How often each of the `count` ids after `before` occurs."""
    return np.bincount(ids - before - 1, minlength=count)


def object_scores(counts: NDArray[np.int64], names: Sequence[str]) -> dict[str, float]:
    """Scores by name from counts [..., classes, 3] of one case, or of all, which are added up; NaN where undefined.

    Args:
        counts: what `matched_counts` returns, of one case or of several.
        names: of the counted classes.
    """
    total = counts.reshape(-1, len(names), len(COUNTS)).sum(axis=0)
    out: dict[str, float] = {}
    for name, (label, predicted, matched) in zip(names, total.tolist(), strict=True):
        out[f"object_f1/{name}"] = _ratio(2 * matched, label + predicted)
        out[f"object_precision/{name}"] = _ratio(matched, predicted)
        out[f"object_recall/{name}"] = _ratio(matched, label)
        out |= {f"{kind}/{name}": count for kind, count in zip(COUNTS, (label, predicted, matched), strict=True)}
    return out


def summarise_objects(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Scores of a split from its cases' columns: those of `object_scores`, pooled, and `object_f1`, their mean where defined."""
    counts = np.array([[[row[f"{kind}/{name}"] for kind in COUNTS] for name in names] for row in rows])
    scores = object_scores(counts, names)
    return {"object_f1": mean_of(np.array([scores[f"object_f1/{name}"] for name in names]))} | scores


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
