"""How slices are drawn: upright, of volumes in their proportions, with letters that say which side of the patient lies where."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from voxtile.cases.grid import Grid

OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
Marks = tuple[str, str, str, str]  # at the left, right, top and bottom edge
_TEXT = 14  # height of the letters


def edge_marks(grid: Grid) -> Marks | None:
    """The patient's sides at the edges of a slice [y, x] as `drawn` shows it; None where there is no patient.

    Volumes are read towards RAS+, in which x grows to the patient's right: axial and coronal slices have L at the left edge (the
    neurological convention), sagittal ones P; at the top is A or S. Of oblique grids the letters are those of the nearest axes.
    """
    if grid.unit != "mm":
        return None
    x, y, _ = aff2axcodes(grid.matrix)
    return OPPOSITE[x], x, y, OPPOSITE[y]


def drawn(panel: NDArray[np.uint8], grid: Grid | None, factor: int) -> NDArray[np.uint8]:
    """A slice uint8 [h, w, 3] enlarged by a whole factor, upright; of a volume in proportions of whole factors."""
    if grid is None or grid.unit != "mm":
        south_up = grid is not None and grid.crs is not None and grid.matrix[1, 1] > 0
        return (panel[::-1] if south_up else panel).repeat(factor, axis=0).repeat(factor, axis=1)
    _, y, x = grid.spacing
    down, across = (max(1, round(factor * side / min(y, x))) for side in (y, x))
    return panel[::-1].repeat(down, axis=0).repeat(across, axis=1)


def marked(panel: NDArray[np.uint8], marks: Marks | None) -> NDArray[np.uint8]:
    """A picture uint8 [h, w, 3] with a letter in the middle of each edge, white within black; itself without marks."""
    if marks is None:
        return panel
    picture = Image.fromarray(panel)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_TEXT)
    height, width = panel.shape[:2]
    places = (
        (3, height // 2, "lm"), (width - 3, height // 2, "rm"), (width // 2, 3, "mt"), (width // 2, height - 3, "mb"),
    )  # fmt: skip
    for letter, (x, y, anchor) in zip(marks, places, strict=True):
        draw.text((x, y), letter, fill="white", font=font, anchor=anchor, stroke_width=1, stroke_fill="black")
    return np.asarray(picture)


def legend(entries: Sequence[tuple[str, Sequence[int]]], width: int, letters: int) -> Image.Image:
    """Patches of colour, each with its text, in as many lines as they need, on white; wider than `width` where one entry is.

    Args:
        entries: texts, and their colours (red, green, blue).
        width: of the picture that it belongs to.
        letters: height of the letters and of the patches, in pixels; a line is half as much higher.
    """
    font = ImageFont.load_default(letters)
    indent = line = 3 * letters // 2
    lengths = [indent + math.ceil(font.getlength(text)) for text, _ in entries]
    places, x, y = [], 0, 0
    for length in lengths:
        if x and x + length > width:
            x, y = 0, y + line
        places.append((x, y))
        x += length + letters
    picture = Image.new("RGB", (max([width, *lengths]), y + line), "white")
    draw = ImageDraw.Draw(picture)
    for (text, color), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y, x + letters, y + letters), fill=tuple(color), outline="black")
        draw.text((x + indent, y), text, fill="black", font=font)
    return picture


def round_length(most: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not more; what only rounding makes more counts as well."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= most * (1 + 1e-9))
