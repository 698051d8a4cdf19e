"""Pictures of what a network does: input, label, prediction and error side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from voxtile.cases.atomic import atomic_write
from voxtile.cases.case import Case
from voxtile.cases.grid import Grid
from voxtile.cases.window import IGNORE
from voxtile.inference.colours import UNJUDGED, Color, as_rgb, painted
from voxtile.inference.marks import drawn, edge_marks, legend, marked

RIGHT, WRONG = (46, 46, 46), (220, 50, 47)
HEADER = 14  # pixels of the line with a title
LETTERS = 10  # height of the legend's


def telling_slice(label: NDArray[np.uint8], counts: Sequence[int] | NDArray[np.int64]) -> int:
    """Which slice of a label [D, h, w] shows most of its rarest class, the one nearest to the middle of several.

    Args:
        label: class indices.
        counts: pixels of each class by which one is rarer than another.
    """
    present = [int(index) for index in np.unique(label) if index < len(counts)]
    rarest = min(present, key=lambda index: int(counts[index]), default=IGNORE)
    sizes = (label == rarest).sum(axis=(1, 2))
    most = np.flatnonzero(sizes == sizes.max())
    return int(most[np.argmin(abs(most - len(label) // 2))])


def place_of(case: Case, pixel: Sequence[int]) -> str:
    """Where a pixel (z, y, x) of a case is found in its file: a volume's voxel, or row and column of the whole scene, from 0.

    Voxels count in the file's own order, as viewers do, whatever spacing and axis networks see the volume in.
    """
    whole, stored = case.image.working, case.image.stored
    z, y, x = (each + start for each, start in zip(pixel, case.box.start, strict=True))
    if whole.crs == stored.crs:
        place = np.linalg.solve(stored.matrix, whole.matrix @ (x, y, z, 1))
        x, y, z = (round(float(value)) for value in place[:3])
    return f"voxel x y z = ({x}, {y}, {z})" if whole.unit == "mm" or whole.shape[0] > 1 else f"row {y}, column {x}"


def errors(label: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where the prediction is wrong, uint8 [h, w, 3]; pixels that are not judged have a colour of their own."""
    out = np.full((*label.shape, 3), RIGHT, dtype=np.uint8)
    out[label != prediction] = WRONG
    out[label == IGNORE] = UNJUDGED
    return out


def row(
    image: NDArray[Any], valid: NDArray[np.bool_], label: NDArray[np.uint8], prediction: NDArray[np.uint8], colors: Sequence[Color],
    grid: Grid | None = None, channels: Sequence[str] = (),
) -> NDArray[np.uint8]:  # fmt: skip
    """One slice's input, label, prediction and error beside each other; of a volume's grid the input has letters for its sides."""
    return _beside(
        [as_rgb(image, valid, channels), painted(label, colors), painted(prediction, colors), errors(label, prediction)], grid
    )


def pair(
    image: NDArray[Any], label: NDArray[np.uint8], colors: Sequence[Color], grid: Grid | None = None
) -> NDArray[np.uint8]:  # fmt: skip
    """A sample as the network sees it, beside its label, upright; it may be mirrored, so no letter names its sides."""
    return _beside([as_rgb(image, np.ones(label.shape, dtype=np.bool_)), painted(label, colors)], grid, letters=False)


def _beside(panels: Sequence[NDArray[np.uint8]], grid: Grid | None = None, letters: bool = True) -> NDArray[np.uint8]:
    """Panels side by side, enlarged by a whole factor to about 200 pixels' height, the first one with its marks."""
    factor = max(1, round(200 / panels[0].shape[0]))
    large = [drawn(panel, grid, factor) for panel in panels]
    large[0] = marked(large[0], edge_marks(grid) if grid and letters else None)
    gap = np.full((large[0].shape[0], 4, 3), 255, dtype=np.uint8)
    return np.concatenate([part for panel in large for part in (panel, gap)][:-1], axis=1)


def sheet(rows: Sequence[tuple[str, NDArray[np.uint8]]], classes: Sequence[str], colors: Sequence[Color]) -> Image.Image:
    """Rows under each other, each with its case's name, under the legend."""
    entries = [*zip(classes, colors, strict=True), ("no data, or not judged", UNJUDGED)]
    above = legend(entries, max(panels.shape[1] for _, panels in rows), LETTERS)
    picture = Image.new("RGB", (above.width, above.height + sum(panels.shape[0] + HEADER for _, panels in rows)), "white")
    picture.paste(above)
    draw = ImageDraw.Draw(picture)
    y = above.height
    for name, panels in rows:
        draw.text((2, y + 1), name, fill="black")
        picture.paste(Image.fromarray(panels), (0, y + HEADER))
        y += HEADER + panels.shape[0]
    return picture


def save(picture: Image.Image, path: Path) -> Path:
    """Writes a PNG, whole or not at all."""
    atomic_write(path, lambda making: picture.save(making, format="PNG"))
    return path
