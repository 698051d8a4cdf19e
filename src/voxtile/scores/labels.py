"""By what a case's judged labels are known again: a sum over pixels, so that it is the same in whatever bands they are read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.window import Window

MODULUS = 2**64


def label_sum(label: NDArray[np.uint8], window: Window) -> int:
    """What a part of a case adds to the sum, modulo `MODULUS`: for each judged pixel its class + 1 times a number of its place.

    Args:
        label: class indices [d, h, w], `IGNORE` where nothing is judged, which adds nothing.
        window: where in the case the part lies.
    """
    found = (label + np.uint8(1)).astype(np.uint64)  # 255 becomes 0
    for axis in (2, 1, 0):
        found = found @ _numbers(window.start[axis], window.size[axis], axis)
    return int(found)


def _numbers(start: int, count: int, axis: int) -> NDArray[np.uint64]:
    """An odd number for each place along an axis, as splitmix64 mixes them (Steele, Lea and Flood 2014, OOPSLA)."""
    mixed = (np.arange(start, start + count, dtype=np.uint64) + np.uint64(axis << 40)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
