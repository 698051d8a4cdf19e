"""The box through which every case is read and written, and the ignore index of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

IGNORE = 255  # ignore index: unlabelled, invalid or padded pixels
Size3 = tuple[int, int, int]


class Window(NamedTuple):
    """A box in pixels of a case's working grid, axis order (z, y, x); depth is 1 for scenes and pictures.

    It may reach past the case's border: what lies there is a matter of padding, see `Case.read`.
    """

    z: int
    y: int
    x: int
    depth: int
    height: int
    width: int

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Window:
        """The window that covers a case of `shape` (D, H, W)."""
        depth, height, width = shape
        return cls(0, 0, 0, depth, height, width)

    @classmethod
    def of(cls, start: Sequence[int], size: Sequence[int]) -> Window:
        """The window that starts at (z, y, x) and has size (depth, height, width)."""
        return cls(*(int(value) for value in (*start, *size)))

    @property
    def start(self) -> Size3:
        """(z, y, x) of the first pixel."""
        return self[0], self[1], self[2]

    @property
    def size(self) -> Size3:
        """(depth, height, width)."""
        return self[3], self[4], self[5]

    @property
    def stop(self) -> Size3:
        """(z, y, x) one past the last pixel."""
        return self[0] + self[3], self[1] + self[4], self[2] + self[5]

    @property
    def middle(self) -> Size3:
        """(z, y, x) of the pixel in the middle, of two the later."""
        return self[0] + self[3] // 2, self[1] + self[4] // 2, self[2] + self[5] // 2

    @property
    def pixels(self) -> int:
        """How many pixels the window holds."""
        return self.depth * self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices into an array [D, H, W] of the whole case."""
        return slice(self[0], self.stop[0]), slice(self[1], self.stop[1]), slice(self[2], self.stop[2])

    def shifted(self, offset: Sequence[int]) -> Window:
        """The same box moved by `offset` (z, y, x)."""
        return Window.of([a + b for a, b in zip(self.start, offset, strict=True)], self.size)

    def grown(self, margin: Sequence[int]) -> Window:
        """The box with `margin` (z, y, x) pixels added on both sides of each axis."""
        return Window.of(
            [a - m for a, m in zip(self.start, margin, strict=True)],
            [s + 2 * m for s, m in zip(self.size, margin, strict=True)],
        )

    def filled(self, shape: Sequence[int], size: Sequence[int]) -> Window:
        """The box that a network trained on windows of `size` (depth, height, width) sees for this one.

        Where a case of `shape` (D, H, W) is smaller than such a window, and this box spans it, the case lies in its middle.
        """
        start, sides = list(self.start), list(self.size)
        for axis, (length, side) in enumerate(zip(shape, size, strict=True)):
            if self.size[axis] == length < side:
                start[axis], sides[axis] = (length - side) // 2, side
        return Window.of(start, sides)

    def clipped(self, shape: Sequence[int]) -> Window:
        """The part of the box inside a case of `shape` (D, H, W); a size is 0 where nothing is left."""
        start = [min(max(a, 0), n) for a, n in zip(self.start, shape, strict=True)]
        stop = [min(max(b, 0), n) for b, n in zip(self.stop, shape, strict=True)]
        return Window.of(start, [max(b - a, 0) for a, b in zip(start, stop, strict=True)])

    def clipped_to(self, outer: Window) -> Window:
        """The part of the box inside `outer`; a size is 0 where nothing is left."""
        return self.shifted([-a for a in outer.start]).clipped(outer.size).shifted(outer.start)

    def inside(self, shape: Sequence[int]) -> bool:
        """Whether the box lies wholly inside a case of `shape` (D, H, W)."""
        z, y, x, depth, height, width = self  # written out: every read asks this
        return min(z, y, x) >= 0 and z + depth <= shape[0] and y + height <= shape[1] and x + width <= shape[2]

    def within(self, outer: Window) -> tuple[slice, slice, slice]:
        """Slices of this box into an array [d, h, w] that holds the window `outer`."""
        return self.shifted([-a for a in outer.start]).slices
