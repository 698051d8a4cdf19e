"""Connected components of maps that come in slabs, so that a map of any size is never in memory as a whole.

A slab is a part of a map [d, h, w] that is whole along two of its axes; slabs follow each other along the third one. Components
are found slab by slab under provisional ids; which of them are one is known when the last slab has come.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from voxtile.cases.window import Size3


def slab_axis(shape: Size3) -> int:
    """The axis along which a map of `shape` (D, H, W) comes in slabs: rows of scenes and pictures, slices of volumes."""
    return 1 if shape[0] == 1 else 0


class Components:
    """Finds the connected components of each class.

    Attributes:
        count: how many provisional ids there are; they run from 1.
    """

    def __init__(self, classes: Sequence[int], corners: bool, axis: int) -> None:
        """Starts before the first slab.

        Args:
            classes: the class indices that have components.
            corners: whether pixels that meet at a corner or edge only are connected (8 neighbours in a plane, 26 in a volume), or
                sides alone connect (4, 6).
            axis: along which slabs follow each other.
        """
        self.classes, self.corners, self.axis = tuple(classes), corners, axis
        self.count = 0
        self._structure = ndimage.generate_binary_structure(3, 3 if corners else 1)
        self._class_of = [np.zeros(1, dtype=np.uint8)]  # of provisional ids
        self._same = [np.zeros((2, 0), dtype=np.int64)]  # pairs of provisional ids
        self._last: tuple[NDArray[np.int64], NDArray[np.uint8]] | None = None  # ids and classes next to the coming slab

    def add(self, slab: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Takes the next slab's class indices [d, h, w] and returns its provisional ids, 0 where there is no component."""
        ids = np.zeros(slab.shape, dtype=np.int64)
        for index in self.classes:
            mask = slab == index
            found, count = ndimage.label(mask, self._structure)
            if count:
                ids[mask] = found[mask] + self.count
                self.count += count
                self._class_of.append(np.full(count, index, dtype=np.uint8))
        along = (np.moveaxis(ids, self.axis, 0), np.moveaxis(slab, self.axis, 0))
        first, last = (along[0][0], along[1][0]), (along[0][-1].copy(), along[1][-1].copy())  # the slab itself can go
        if self._last is not None:
            self._same.append(_meeting(self._last, first, self.corners))
        self._last = last
        return ids

    def joined(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """What the provisional ids come to after the last slab.

        Returns:
            The final id of each provisional one (of 0: 0) and the class of each final one (of 0: 0). Final ids run from 1, class by
            class and in reading order of a component's first pixel.
        """
        class_of = np.concatenate(self._class_of)
        a, b = np.concatenate(self._same, axis=1)
        graph = coo_array((np.ones(len(a), dtype=np.bool_), (a, b)), shape=(self.count + 1,) * 2)
        _, component = connected_components(graph, directed=False)
        _, first = np.unique(component, return_index=True)  # within a class, provisional ids are in reading order
        order = np.lexsort((first, class_of[first], first > 0))
        final = np.empty(len(first), dtype=np.int64)
        final[order] = np.arange(len(first))
        return final[component], class_of[first[order]]


def _meeting(
    before: tuple[NDArray[np.int64], NDArray[np.uint8]], after: tuple[NDArray[np.int64], NDArray[np.uint8]], corners: bool
) -> NDArray[np.int64]:
    """Pairs of ids [2, n] that are one component across the border of two slabs, from ids and classes [a, b] on both sides."""
    pairs = []
    reach = (-1, 0, 1) if corners else (0,)
    for shift in product(reach, reach):
        here = tuple(slice(max(-s, 0), min(n - s, n)) for s, n in zip(shift, before[0].shape, strict=True))
        there = tuple(slice(max(s, 0), min(n + s, n)) for s, n in zip(shift, before[0].shape, strict=True))
        one = (before[0][here] > 0) & (before[1][here] == after[1][there])
        pairs.append(np.stack([before[0][here][one], after[0][there][one]]))
    a, b = np.concatenate(pairs, axis=1)
    width = int(b.max(initial=0)) + 1
    both = a * width + b  # one number for a pair, since rows and columns are sorted far slower
    both = both[np.flatnonzero(np.diff(both, prepend=-1))]  # along a row the same pair comes again and again
    return np.stack(np.divmod(np.unique(both), width))
