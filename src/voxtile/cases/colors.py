"""Colours for classes that were given none."""

from __future__ import annotations

import numpy as np


def default_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` distinguishable colours; the first is near black so that a background class recedes."""
    base = (
        (32, 32, 32), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
        (0, 114, 178), (213, 94, 0), (204, 121, 167), (153, 153, 153), (120, 80, 40),
    )  # fmt: skip  # Okabe and Ito's palette, which colour-blind readers can tell apart
    more = [np.random.default_rng(seed).integers(40, 256, 3) for seed in range(count - len(base))]
    return (*base[:count], *((int(red), int(green), int(blue)) for red, green, blue in more))
