"""Images and classes in colours that a person can look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
UNJUDGED: Color = (90, 90, 110)  # where there are no data, or no class
# Names of channels that are red, green and blue light: in words, and Sentinel-2's and Landsat 8's.
_LIGHT = (("red", "green", "blue"), ("b04", "b03", "b02"), ("b4", "b3", "b2"))


def visible(channels: Sequence[str]) -> list[int]:
    """Which channels are shown as red, green and blue, or the one that is shown in grey.

    Those that are called so; else four channels or more are taken for blue, green, red, …, three for red, green, blue, and of fewer
    it is the first.
    """
    names = [name.lower() for name in channels]
    for light in _LIGHT:
        if all(name in names for name in light):
            return [names.index(name) for name in light]
    return [2, 1, 0] if len(names) > 3 else [0, 1, 2] if len(names) == 3 else [0]


def as_rgb(image: NDArray[Any], valid: NDArray[np.bool_], channels: Sequence[str] = ()) -> NDArray[np.uint8]:
    """An image [C, h, w] as uint8 [h, w, 3], stretched from the 2nd to the 98th percentile.

    Each channel is stretched by itself, since bands of a scene have scales of their own; those of pictures in 8 bits, which have
    one, together, or grey would get a colour.

    Args:
        image: the image.
        valid: where it holds data [h, w].
        channels: their names, by which `visible` chooses; numbers where there are none.
    """
    out = np.empty((*valid.shape, 3), dtype=np.uint8)
    shown = visible(channels or [str(number) for number in range(len(image))])
    together = image.dtype == np.uint8
    for position, channel in enumerate(shown if len(shown) == 3 else shown * 3):
        band = image[channel].astype(np.float64)
        measured = image[shown][:, valid] if together else band[valid]
        low, high = np.percentile(measured, (2, 98)) if valid.any() else (0.0, 1.0)
        out[..., position] = np.round(np.clip((np.where(valid, band, low) - low) / max(high - low, 1e-12), 0, 1) * 255)
    out[~valid] = UNJUDGED
    return out


def painted(classes: NDArray[np.uint8], colors: Sequence[Color]) -> NDArray[np.uint8]:
    """Class indices [h, w] in their colours, uint8 [h, w, 3]."""
    table = np.full((256, 3), UNJUDGED, dtype=np.uint8)
    table[: len(colors)] = colors
    return table[classes]
