"""The objects of a finished map: connected components of its classes, with what can be said of each.

Two passes over the map: the first finds which pixels belong together and measures, the second gives each pixel its object's id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.csv_table import atomic_csv
from voxtile.cases.window import Window
from voxtile.inference.finished import FinishedMap
from voxtile.scores.components import Components

_CHUNK = 20_000  # rows of a table that are made at once


@dataclass(frozen=True)
class Instances:
    """The objects of a map; N of them, numbered from 1 class by class in reading order. Row n of an array is object n + 1.

    Attributes:
        final: the object of each provisional id that `Components` gives in a pass over the map; 0 for objects that are left out.
        classes: the class indices that have objects.
        corners: whether pixels that meet at corners only are one object.
        index: class index [N].
        pixels: how many [N].
        size: hectares of ground or millilitres [N]; None where neither is known.
        low: first pixel (z, y, x) of the bounding box [N, 3].
        high: one past its last pixel (z, y, x) [N, 3].
        centre: mean (z, y, x) of the pixels' centres [N, 3].
        probability: mean probability of the object's class over its pixels [N]; None without a heatmap.
    """

    final: NDArray[np.int64]
    classes: tuple[int, ...]
    corners: bool
    index: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    size: NDArray[np.float64] | None
    low: NDArray[np.int32]
    high: NDArray[np.int32]
    centre: NDArray[np.float64]
    probability: NDArray[np.float64] | None

    def ids(self, found: FinishedMap) -> Iterator[tuple[Window, NDArray[np.int64]]]:
        """Object ids [d, h, w] slab by slab, 0 where there is no object."""
        components = Components(self.classes, self.corners, found.axis)
        for window in found.slabs():
            yield window, self.final[components.add(found.read(window))]


def find_instances(found: FinishedMap, classes: Sequence[int], corners: bool, min_pixels: int = 1) -> Instances:
    """Finds and measures the objects of a map.

    Args:
        found: the map.
        classes: the class indices that have objects.
        corners: whether pixels that meet at corners only are one object.
        min_pixels: smaller objects are left out.
    """
    components = Components(classes, corners, found.axis)
    parts = [_measured(found, window, components) for window in found.slabs()]
    final, index = components.joined()
    owner, count = final[1:] - 1, len(index) - 1

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([part.pop(name) for part in parts])  # and gone, since there may be millions of objects

    def summed(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(owner, values, count).astype(np.float64, copy=False)

    pixels = np.rint(summed(joined("pixels"))).astype(np.int64)
    kept = pixels >= min_pixels
    number = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)])
    low, high = (corner[kept] for corner in _box(owner, joined("low"), joined("high"), count))
    sums = joined("sum")
    centre = np.stack([(summed(sums[:, axis]) / pixels)[kept] for axis in range(3)], axis=1)
    del sums
    size = summed(joined("size"))[kept] if "size" in parts[0] else None
    probability = (summed(joined("probability")) / pixels)[kept] if "probability" in parts[0] else None
    return Instances(
        number[final], tuple(classes), corners, index[1:][kept], pixels[kept], size, low, high, centre, probability
    )  # fmt: skip


def _measured(found: FinishedMap, window: Window, components: Components) -> dict[str, NDArray[Any]]:
    """Sums over the pixels of each provisional id that a slab adds, in their order."""
    before = components.count
    indices = found.read(window)
    ids = components.add(indices)
    count = components.count - before
    inside = ids > 0
    # Of the type of the boxes: NumPy takes thirty times as long where it must convert each value.
    places = (np.stack(np.nonzero(inside), axis=1) + window.start).astype(np.int32)
    owner = ids[inside] - before - 1
    low, high = _box(owner, places, places + 1, count)
    out: dict[str, NDArray[Any]] = {
        "pixels": np.bincount(owner, minlength=count).astype(np.int32),
        "low": low,
        "high": high,
        "sum": np.stack([np.bincount(owner, places[:, axis], count) for axis in range(3)], axis=1),
    }
    if found.measure is not None:
        out["size"] = np.bincount(owner, np.broadcast_to(found.sizes(window), inside.shape)[inside], count)
    probability = found.probability(window, indices)
    if probability is not None:
        out["probability"] = np.bincount(owner, probability[inside], count)
    return out


def _box(
    owner: NDArray[np.int64], low: NDArray[Any], high: NDArray[Any], count: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The least of `low` and the greatest of `high` [n, 3] over the rows of each owner [count, 3]."""
    least, greatest = np.full((3, count), np.iinfo(np.int32).max, dtype=np.int32), np.zeros((3, count), dtype=np.int32)
    for axis in range(3):
        np.minimum.at(least[axis], owner, low[:, axis])
        np.maximum.at(greatest[axis], owner, high[:, axis])
    return least.T, greatest.T


def write_table(instances: Instances, found: FinishedMap, path: Path) -> None:
    """Writes one row per object as CSV.

    Columns: `id`, `class`, `pixels`, `hectares` or `millilitres`, the centroid `x`, `y` (and `z` in volumes), the bounding box
    `x_min` … `y_max` of the pixels' outer edges, and `probability`. Coordinates are those of the map's grid: map units of the CRS,
    millimetres (RAS+), or pixels.
    """
    matrix = found.grid.matrix
    axes = range(3 if found.grid.shape[0] > 1 else 2)

    def world(places: NDArray[np.float64]) -> NDArray[np.float64]:  # (z, y, x) to (x, y, z)
        return (places[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3])[:, axes]

    names = [
        "id", "class", "pixels", *([found.measure] if found.measure else []), *("xyz"[axis] for axis in axes),
        *(f"{'xyz'[axis]}_min" for axis in axes), *(f"{'xyz'[axis]}_max" for axis in axes),
        *(["probability"] if instances.probability is not None else []),
    ]  # fmt: skip

    def placed(part: slice) -> list[NDArray[np.float64]]:
        """Centres, least and greatest coordinates of some objects."""
        edges = [instances.low[part] - 0.5, instances.high[part] - 0.5]
        corners = [
            world(np.stack([edges[z][:, 0], edges[y][:, 1], edges[x][:, 2]], axis=1)) for z, y, x in product((0, 1), repeat=3)
        ]
        return [world(instances.centre[part]), np.min(corners, axis=0), np.max(corners, axis=0)]

    def rows() -> Iterator[dict[str, object]]:
        for first in range(0, len(instances.index), _CHUNK):
            columns = placed(slice(first, first + _CHUNK))
            for n, coordinates in enumerate(np.concatenate(columns, axis=1), first):
                row: list[object] = [n + 1, found.classes[instances.index[n]], int(instances.pixels[n])]
                row += [] if instances.size is None else [f"{instances.size[n]:.9g}"]
                row += [f"{value:.12g}" for value in coordinates]
                row += [] if instances.probability is None else [f"{instances.probability[n]:.6g}"]
                yield dict(zip(names, row, strict=True))

    atomic_csv(path, names, rows())
