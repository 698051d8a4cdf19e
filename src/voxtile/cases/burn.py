"""Burning polygons into pixels, exactly: the same pixels in whatever window they are asked for.

Coordinates are whole numbers of 1/256 pixel, counted from the scene's corner, right and down, and all comparisons are made in whole
numbers (64 bits, enough for scenes of 2^22 pixels a side). Nothing is rounded, so nothing depends on where a window begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from voxtile.cases.compiled import compiled
from voxtile.cases.vector_files import simple_parts
from voxtile.cases.window import Window

UNIT = 256  # steps in a pixel
HALF = 128


@dataclass(frozen=True)
class Placed:
    """Polygons in pixels of a scene, in the order in which they are burnt.

    Attributes:
        points: vertices (x, y) in 1/256 pixel from the scene's corner [P, 2].
        rings: where each ring begins in `points`, and where the last one ends [R + 1].
        polygons: where each polygon begins in `rings`, and where the last one ends [n + 1].
        codes: for each polygon, the place of its value in `Shapes.stored` [n].
        features: for each polygon, the number in the file of its shape [n].
        tree: spatial index of the polygons, in 1/256 pixel.
    """

    points: NDArray[np.int32]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]
    codes: NDArray[np.uint16]
    features: NDArray[np.int64]
    tree: shapely.STRtree

    @classmethod
    def of(cls, polygons: NDArray[np.object_], codes: NDArray[np.uint16], features: NDArray[np.int64]) -> Placed:
        """Packs polygons in pixels; vertices go to the nearest 1/256 pixel, so that all that follows is exact."""
        order = np.lexsort((features, codes))
        polygons, codes, features = polygons[order], codes[order], features[order]
        if not len(polygons):
            empty = np.zeros(1, dtype=np.int64)
            return cls(np.empty((0, 2), dtype=np.int32), empty, empty, codes, features, shapely.STRtree([]))
        _, points, (rings, starts) = shapely.to_ragged_array(polygons)
        points = np.rint(points * UNIT).astype(np.int32)
        first = rings[starts[:-1]]  # outer rings come first, but holes that follow lie inside them
        low, high = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)
        # A tree asks for bounding boxes only: a box's diagonal has the same and takes a third of the memory.
        tree = shapely.STRtree(shapely.linestrings(np.stack([low, high], axis=1)))
        return cls(points, rings.astype(np.int64), starts.astype(np.int64), codes, features, tree)

    def near(self, window: Window) -> NDArray[np.int64]:
        """Indices, rising, of the polygons whose bounding boxes meet `window`."""
        box = shapely.box(*(UNIT * side for side in (window.x, window.y, window.x + window.width, window.y + window.height)))
        return np.sort(self.tree.query(box)).astype(np.int64)

    def burnt(self, window: Window, all_touched: bool) -> NDArray[np.uint16]:
        """The codes [h, w] of the pixels of `window`, which may reach past the scene; 0 where no polygon is."""
        out = np.zeros((window.height, window.width), dtype=np.uint16)
        start = (window.y, window.x)
        burn(self.points, self.rings, self.polygons, self.codes, self.near(window), start, out, all_touched)
        return out

    def anchors(self, box: Window, wanted: NDArray[np.bool_]) -> NDArray[np.int32]:
        """(z, y, x) in pixels of the scene of one pixel inside each shape that reaches into a box, in the file's order [n, 3].

        Args:
            box: in pixels of the scene.
            wanted: by code, whether such shapes count.
        """
        near = self.near(box)
        if not len(near):
            return np.empty((0, 3), dtype=np.int32)
        rings, starts = _runs(self.polygons, near)
        points, ends = _runs(self.rings, rings)
        polygons = shapely.from_ragged_array(shapely.GeometryType.POLYGON, self.points[points] / UNIT, (ends, starts))
        right, bottom = box.x + box.width, box.y + box.height
        pieces, index = simple_parts(shapely.clip_by_rect(polygons, box.x, box.y, right, bottom), near)
        kept = (shapely.get_dimensions(pieces) == 2) & wanted[self.codes[index]]
        pieces, owners = pieces[kept], self.features[index[kept]]
        order = np.lexsort((-shapely.area(pieces), owners))  # of a shape in several parts, the largest one
        _, first = np.unique(owners[order], return_index=True)
        inside = shapely.get_coordinates(shapely.point_on_surface(pieces[order[first]]))
        column, row = np.clip(np.floor(inside), (box.x, box.y), (right - 1, bottom - 1)).T
        return np.stack([np.zeros_like(row), row, column], axis=1).astype(np.int32)


def _runs(starts: NDArray[np.int64], chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The members of some of many runs that lie one after the other, and where each begins among them, with the end [n + 1].

    Args:
        starts: where each run begins, and where the last one ends.
        chosen: indices of runs [n].
    """
    lengths = starts[chosen + 1] - starts[chosen]
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    return np.arange(ends[-1]) + np.repeat(starts[chosen] - ends[:-1], lengths), ends


@compiled
def burn(
    points: NDArray[np.int32],
    rings: NDArray[np.int64],
    polygons: NDArray[np.int64],
    codes: NDArray[np.uint16],
    chosen: NDArray[np.int64],
    start: tuple[int, int],
    out: NDArray[np.uint16],
    all_touched: bool,
) -> None:
    """Writes the codes of polygons into a window, the later ones over the earlier ones.

    A pixel belongs to a polygon when its centre lies inside by the even-odd rule; of a centre that lies on an edge, the side to
    its left decides, so that of two polygons that share the edge one has the pixel. With `all_touched` pixels whose interior an
    edge passes through belong to it as well: together these are all pixels whose interior the polygon reaches into.

    Args:
        points: vertices (x, y) in 1/256 pixel of the scene [P, 2]; rings are closed.
        rings: where each ring begins in `points`, and where the last one ends [R + 1].
        polygons: where each polygon begins in `rings`, and where the last one ends [n + 1].
        codes: what is written for each polygon [n].
        chosen: indices of the polygons that are burnt, in this order.
        start: the window's first row and column.
        out: the window [h, w], changed in place.
        all_touched: see above.
    """
    height, width = out.shape
    row0, column0 = start
    odd = np.zeros((height, width + 1), dtype=np.uint8)  # where a row's pixels change from outside to inside and back
    for index in chosen:
        code = codes[index]
        first_point, last_point = rings[polygons[index]], rings[polygons[index + 1]]
        left, upper = int(points[first_point, 0]), int(points[first_point, 1])
        right, lower = left, upper
        for place in range(first_point, last_point):
            left, right = min(left, int(points[place, 0])), max(right, int(points[place, 0]))
            upper, lower = min(upper, int(points[place, 1])), max(lower, int(points[place, 1]))
        top, bottom = max(upper // UNIT - row0, 0), min(lower // UNIT - row0 + 1, height)
        first, last = max(left // UNIT - column0, 0), min(right // UNIT - column0 + 1, width)
        if top >= bottom or first >= last:
            continue
        odd[top:bottom, first : last + 1] = 0
        for ring in range(polygons[index], polygons[index + 1]):
            for place in range(rings[ring], rings[ring + 1] - 1):
                x1, y1 = int(points[place, 0]), int(points[place, 1])
                x2, y2 = int(points[place + 1, 0]), int(points[place + 1, 1])
                if y1 > y2:
                    x1, y1, x2, y2 = x2, y2, x1, y1
                drop = y2 - y1
                # Rows whose centre UNIT * r + HALF lies in [y1, y2).
                for row in range(max((y1 + HALF - 1) // UNIT - row0, 0), min((y2 + HALF - 1) // UNIT - row0, height)):
                    across = (x1 - HALF) * drop + (UNIT * (row + row0) + HALF - y1) * (x2 - x1)
                    column = across // (UNIT * drop) + 1 - column0  # the first whose centre lies right of the edge
                    odd[row, min(max(column, first), last)] ^= 1
                if not all_touched:
                    continue
                # Rows whose interior the edge passes through; an edge that is level may lie between two.
                for row in range(max(y1 // UNIT - row0, 0), min((y2 + UNIT - 1) // UNIT - row0, height)):
                    if drop == 0:
                        low, high, unit = min(x1, x2), max(x1, x2), UNIT
                    else:
                        enter, leave = max(y1, UNIT * (row + row0)), min(y2, UNIT * (row + row0 + 1))
                        a, b = x1 * drop + (enter - y1) * (x2 - x1), x1 * drop + (leave - y1) * (x2 - x1)
                        low, high, unit = min(a, b), max(a, b), UNIT * drop
                    for column in range(max(low // unit - column0, 0), min(-(-high // unit) - column0, width)):
                        out[row, column] = code
        for row in range(top, bottom):
            inside = 0
            for column in range(first, last):
                inside ^= odd[row, column]
                if inside:
                    out[row, column] = code


@compiled
def near_change(codes: NDArray[np.uint16], width: float) -> NDArray[np.bool_]:
    """Where a pixel with another code is at most `width` pixels away, centre to centre, in `codes` [h, w]."""
    # Of two pixels with different codes, one is no farther from the other than a pixel that has another code right beside it.
    height, columns = codes.shape
    near = np.zeros(codes.shape, dtype=np.bool_)
    reach = int(width)
    for y in range(height):
        for x in range(columns):
            code = codes[y, x]
            level = (x > 0 and codes[y, x - 1] != code) or (x < columns - 1 and codes[y, x + 1] != code)
            upright = (y > 0 and codes[y - 1, x] != code) or (y < height - 1 and codes[y + 1, x] != code)
            if not (level or upright):
                continue
            for row in range(max(y - reach, 0), min(y + reach + 1, height)):
                for column in range(max(x - reach, 0), min(x + reach + 1, columns)):
                    if (row - y) ** 2 + (column - x) ** 2 <= width * width and codes[row, column] != code:
                        near[row, column] = True
    return near
