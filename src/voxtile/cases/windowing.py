"""What a training window is: a slice across an axis, a slice with its neighbours, or a box."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxtile.cases.window import Size3
from voxtile.errors import ConfigError, listed
from voxtile.values import is_whole

AXES = ("z", "y", "x")
# Axis of slices -> where each axis (z, y, x) of arrays turned along it comes from.
ORDERS: Mapping[str, Size3] = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}
MOST_NEIGHBOURS = 16


@dataclass(frozen=True)
class Windowing:
    """What networks see of a case.

    Attributes:
        size: (height, width) of slices or (depth, height, width) of boxes, in pixels of the working grid.
        axis: along which slices are cut: "z" for axial ones, "y" for coronal and "x" for sagittal ones of a volume.
        neighbours: slices on each side that are channels of a slice, too; past the border the last one repeats.
    """

    size: tuple[int, ...]
    axis: str = "z"
    neighbours: int = 0

    @classmethod
    def of(cls, size: Any, axis: Any = "z", neighbours: Any = 0) -> Windowing:
        """Takes `data.window`, `data.axis` and `data.neighbours`.

        Raises:
            ConfigError: A value is out of range, or boxes were given what only slices have.
        """
        if not isinstance(size, list) or len(size) not in (2, 3) or not all(is_whole(side, 1) for side in size):
            raise ConfigError(
                f"'data.window={size}' must be [height, width] or [depth, height, width] in pixels, for example [96,96]."
            )
        if axis not in AXES:
            raise ConfigError(f"'data.axis={axis}' is no axis of a volume; choose from {listed(AXES)}.")
        if not is_whole(neighbours, 0) or neighbours > MOST_NEIGHBOURS:
            raise ConfigError(
                f"'data.neighbours={neighbours}' must be a whole number from 0 to {MOST_NEIGHBOURS}: slices on each side."
            )
        if len(size) == 3 and (axis != "z" or neighbours):
            raise ConfigError(
                f"'data.window={size}' asks for boxes, and 'data.axis={axis}' and 'data.neighbours={neighbours}' are about slices. "
                "Give the window two sides, or type 'data.axis=z data.neighbours=0'."
            )
        return cls(tuple(size), axis, neighbours)

    @property
    def box(self) -> Size3:
        """(depth, height, width)."""
        depth, height, width = (1, *self.size) if len(self.size) == 2 else self.size
        return depth, height, width

    def axis_of(self, name: str) -> str:
        """What an axis of the volume, "z", "y" or "x", is called in windows, where slices lie across the first one."""
        return AXES[ORDERS[self.axis].index(AXES.index(name))]
