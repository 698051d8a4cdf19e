"""Cutting a case into windows that together cover it, and the weights that join their results without a seam."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.window import Size3, Window


@dataclass(frozen=True)
class Tile:
    """One window of a case.

    Attributes:
        window: inside the case, smaller than asked for where the case is smaller.
        core: the part that is this tile's own; the cores of a case's tiles partition it.
        weights: per axis (z, y, x), the share of this tile in each of its pixels; over all tiles they sum to 1 in every pixel.
    """

    window: Window
    core: Window
    weights: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

    @cached_property
    def alone(self) -> bool:
        """Whether no other tile shares a pixel with this one."""
        return all(bool((axis == 1).all()) for axis in self.weights)


def starts(length: int, side: int, overlap: float) -> list[int]:
    """First pixels of windows of `side` that cover `length` and share at least `overlap` of their side, evenly spread."""
    if side >= length:
        return [0]
    step = max(1, math.floor(side * (1 - overlap)))
    count = math.ceil((length - side) / step) + 1
    return [round(value) for value in np.linspace(0, length - side, count)]


def _axis(length: int, side: int, overlap: float) -> list[tuple[int, int, int, NDArray[np.float32]]]:
    """Per window along one axis: start, start and stop of its core, and its weights."""
    side = min(side, length)
    first = starts(length, side, overlap)
    # Neighbouring cores meet in the middle of what the windows share.
    edges = [0, *((a + side + b) // 2 for a, b in pairwise(first)), length]
    # A Gaussian with a standard deviation of an eighth of the side trusts a window's middle more than its border.
    bell = np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 8)) ** 2).clip(1e-4)
    total = np.zeros(length)
    for a in first:
        total[a : a + side] += bell
    return [(a, edges[i], edges[i + 1], (bell / total[a : a + side]).astype(np.float32)) for i, a in enumerate(first)]


def tiles(shape: Size3, size: Size3, overlap: float = 0.0) -> list[Tile]:
    """Covers a case of `shape` (D, H, W) with windows of `size` (depth, height, width), in reading order.

    Args:
        shape: of the case.
        size: of the windows.
        overlap: least share of its side that a window has in common with the next, 0 <= overlap < 1.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must lie in [0, 1), not {overlap}")
    axes = [_axis(length, side, overlap) for length, side in zip(shape, size, strict=True)]
    side = [min(a, b) for a, b in zip(shape, size, strict=True)]
    found = []
    for parts in product(*axes):
        low = [part[1] for part in parts]
        core = Window.of(low, [part[2] - part[1] for part in parts])
        z, y, x = (part[3] for part in parts)
        found.append(Tile(Window.of([part[0] for part in parts], side), core, (z, y, x)))
    return found
