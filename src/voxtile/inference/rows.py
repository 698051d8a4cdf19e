"""In which order a case's windows are gone through, so that memory grows with neither its width nor its height."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from voxtile.cases.tiling import Tile, tiles
from voxtile.cases.window import Size3, Window

# Pixels of a strip of a scene: wider ones need wider buffers, and where two meet, windows are judged twice. It is a little more
# than 4096, since sides are often a multiple of that and windows end a little past it.
WIDEST = 4096 + 256


@dataclass(frozen=True)
class Row:
    """Windows of one strip that begin together, in y for planar ones, in z for boxes.

    Attributes:
        tiles: the windows; at the sides of a strip they may reach out of it.
        box: what they cover of the strip.
        axis: along which rows follow one another: 1 (y) or 0 (z).
        thick: pixels along the axis from this row's start to the next one's, or to the end.
    """

    tiles: tuple[Tile, ...]
    box: Window
    axis: int
    thick: int

    @property
    def band(self) -> Window:
        """The part of the box that is finished once the windows are added: no later row reaches it. Bands partition the case."""
        return Window.of(self.box.start, [self.thick if a == self.axis else side for a, side in enumerate(self.box.size)])

    @property
    def span(self) -> tuple[int, int]:
        """Start and stop of the box along the axis."""
        return self.box.start[self.axis], self.box.stop[self.axis]


@lru_cache(maxsize=1)  # a case's rows are asked for some times, and those of a large scene take seconds
def strips(
    shape: Size3, size: Size3, overlap: float, planar: bool, widest: int | None = WIDEST
) -> tuple[tuple[Row, ...], ...]:  # fmt: skip
    """The rows of a case's strips: of each slice the strips from left to right, of each strip the rows from top to bottom.

    A window that reaches over the side of a strip belongs to both.

    Args:
        shape: of the case, (D, H, W).
        size: of the windows, (depth, height, width).
        overlap: least share of its side that a window has in common with the next.
        planar: whether windows are slices. Volumes that are predicted by boxes have one strip, with rows along z.
        widest: pixels; strips are cut where the cores of windows meet, and no strip is wider than this or one core. None for one
            strip.
    """
    axis = 1 if planar else 0
    planes: dict[tuple[int, ...], dict[int, list[Tile]]] = {}
    for tile in tiles(shape, size, overlap):
        planes.setdefault(tile.window.start[:axis], {}).setdefault(tile.window.start[axis], []).append(tile)
    found = []
    for by_start in planes.values():
        first = next(iter(by_start.values()))
        for left, right in _sides(first, widest) if planar and widest else [(0, shape[2])]:
            columns = [place for place, tile in enumerate(first) if tile.window.x < right and tile.window.stop[2] > left]
            rows = []
            for start, after in pairwise([*by_start, shape[axis]]):
                inside = tuple(by_start[start][columns[0] : columns[-1] + 1])
                window = inside[0].window
                z, y = window.start[:2] if planar else (window.z, 0)
                box = Window(z, y, left, window.depth, window.height if planar else shape[1], right - left)
                rows.append(Row(inside, box, axis, after - start))
            found.append(tuple(rows))
    return tuple(found)


def _sides(row: Sequence[Tile], widest: int) -> list[tuple[int, int]]:
    """(left, right) of strips that are cut where cores meet."""
    cuts = [0]
    for tile, after in pairwise(row):
        if after.core.stop[2] - cuts[-1] > widest:
            cuts.append(tile.core.stop[2])
    return list(pairwise([*cuts, row[-1].core.stop[2]]))


def needed(strip: Sequence[Row], done: Collection[Window], margin: int = 0) -> list[Row]:
    """The rows that reach into a band which is not done, or come closer to it than `margin` pixels."""
    if not done:
        return list(strip)
    missing = [row for row in strip if row.band not in done]
    # Rows are in order, and so are the ends of what is missing: of one that a row meets, the start is before the row's stop, and
    # the stop is not before its start.
    starts, stops = [row.span[0] - margin for row in missing], [row.span[0] + row.thick + margin for row in missing]
    return [row for row in strip if bisect_right(stops, row.span[0]) < bisect_left(starts, row.span[1])]
