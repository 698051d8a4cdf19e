"""Labels that are coloured pictures: a colour stands for a class, and is handled as one number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Source, Wrapped
from voxtile.cases.window import Window
from voxtile.errors import DataError, listed

_COLOR = re.compile(r"#([0-9a-fA-F]{6})")


def packed(text: object) -> int | None:
    """The number that stands for a colour such as '#804080', red x 65536 + green x 256 + blue; None where `text` is none."""
    found = _COLOR.fullmatch(text) if isinstance(text, str) else None
    return int(found[1], 16) if found else None


def color_text(number: int) -> str:
    """The colour that a number stands for, as '#804080'."""
    return f"#{number:06x}"


def red_green_blue(number: int) -> tuple[int, int, int]:
    """The colour that a number stands for, each part from 0 to 255."""
    return number >> 16, number >> 8 & 255, number & 255


class ColorLabel(Wrapped):
    """A coloured raster or picture as a label of one channel, whose values are those of `packed`."""

    def __init__(self, source: Source) -> None:
        """Takes the image that the label is.

        Args:
            source: opened as an image is, of red, green and blue; grey is all three.

        Raises:
            DataError: It has other channels, or more than 8 bits in each.
        """
        super().__init__(source)
        if len(source.channels) not in (1, 3) or source.dtype != np.uint8:
            raise DataError(
                f"The label {source.path} has {listed(source.channels)} of type {source.dtype}, and 'data.labels' names colours. "
                "Expected red, green and blue of 8 bits; where the file holds class values, name those: '{0: ground, 1: building}'."
            )
        self._from = tuple(range(len(source.channels)))
        self.channels, self.dtype, self.key = ("label",), np.dtype(np.uint32), f"{source.key} colours"

    @property
    def is_one_piece(self) -> bool:
        """See `Source.is_one_piece`."""
        return self.source.is_one_piece

    @property
    def decoded_bytes(self) -> int:
        """See `Source.decoded_bytes`."""
        return self.source.decoded_bytes

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`."""
        pixels, valid = self.source.read(window, self._from)
        red, green, blue = np.broadcast_to(pixels, (3, *pixels.shape[1:])).astype(np.uint32)
        return ((red << 16) | (green << 8) | blue)[None], valid

    def value_text(self, value: int) -> str:
        """See `Source.value_text`."""
        return color_text(value)
