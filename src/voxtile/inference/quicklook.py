"""A small picture of a finished map beside what it was made from, to be looked at and passed on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from voxtile.cases.atomic import atomic_write
from voxtile.cases.case import Case
from voxtile.cases.grid import Grid
from voxtile.cases.window import IGNORE, Window
from voxtile.data.footprints import to_world
from voxtile.data.ground import geodesics
from voxtile.inference.colours import as_rgb, painted, visible
from voxtile.inference.finished import FinishedMap
from voxtile.inference.marks import drawn, edge_marks, legend, marked, round_length

MOST_SIDE = 2048  # pixels of image and map together along the longer side
_GAP, _TEXT = 8, 16  # pixels between panels; height of the letters


def write_quicklook(
    found: FinishedMap, case: Case, path: Path, colors: Sequence[tuple[int, int, int]], channels: Sequence[str] | None = None,
    background: int | None = None,
) -> None:  # fmt: skip
    """Writes a PNG of the case beside its map (above it, where it is wide), with a legend, the classes' shares and a scale bar.

    Every n-th row and column is read, so memory does not grow with a scene. Of a volume the slice with most foreground is shown, in
    the orientation of the canonical grid, front or top upwards, with letters for the patient's sides.

    Args:
        found: the map.
        case: what it was made from.
        path: the file.
        colors: (red, green, blue) per class.
        channels: names of those to show as red, green and blue, or of one to show in grey; where None, those of `visible`.
        background: the class that is no foreground, or None.
    """
    names = tuple(channels or (case.channels[place] for place in visible(case.channels)))
    _, height, width = case.shape
    wide = width > height
    room = MOST_SIDE // 2
    step = max(1, math.ceil(max(height / (room if wide else MOST_SIDE), width / (MOST_SIDE if wide else room))))
    z, counts = _fullest(found, background) if found.grid.shape[0] > 1 else (0, None)
    image = as_rgb(*_every(case, z, step, names))
    indices = _map_rows(found, z, step)
    factor = max(1, 256 // max(image.shape[:2]))  # a small picture is enlarged, or its legend would not fit
    panels = [drawn(panel, case.grid, factor) for panel in (image, painted(indices, colors))]
    panels[0] = marked(panels[0], edge_marks(case.grid))
    if counts is None:
        counts = np.bincount(indices.ravel(), minlength=IGNORE + 1)
    shares = counts / max(1, int(counts[:IGNORE].sum()))
    classes = [(f"{name} {shares[index]:.1%}", colors[index]) for index, name in enumerate(found.classes)]
    note = f"slice {z} of {found.grid.shape[0]}, shares of all" if found.grid.shape[0] > 1 else ""
    picture = _composed(panels, wide, classes, scale_bar(found.grid, step * image.shape[1] / panels[0].shape[1]), note)
    atomic_write(path, lambda making: picture.save(making, format="PNG"))


def _fullest(found: FinishedMap, background: int | None) -> tuple[int, NDArray[np.int64]]:
    """The slice with most pixels of classes other than `background`, and how many pixels of the volume have each value [256]."""
    filled, counts = [], np.zeros(IGNORE + 1, dtype=np.int64)
    for window in found.slabs():
        indices = found.read(window)
        filled += ((indices != background) & (indices != IGNORE)).sum(axis=(1, 2)).tolist()
        counts += np.bincount(indices.ravel(), minlength=IGNORE + 1)
    return int(np.argmax(filled)), counts


def _every(case: Case, z: int, step: int, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Every `step`-th pixel [C, h, w] of slice `z` and where there are data [h, w], read row by row."""
    _, height, width = case.shape
    rows = [case.read(Window(z, y, 0, 1, 1, width), names) for y in range(0, height, step)]
    return np.stack([row[:, 0, 0, ::step] for row, _ in rows], axis=1), np.stack([valid[0, 0, ::step] for _, valid in rows])


def _map_rows(found: FinishedMap, z: int, step: int) -> NDArray[np.uint8]:
    _, height, width = found.grid.shape
    return np.stack([found.read(Window(z, y, 0, 1, 1, width))[0, 0, ::step] for y in range(0, height, step)])


@dataclass(frozen=True)
class ScaleBar:
    """A length on the ground or in the patient that is a round number, and its length in the picture."""

    label: str
    pixels: int


def scale_bar(grid: Grid, step: float) -> ScaleBar | None:
    """A scale bar of 1, 2 or 5 times a power of ten, about 150 pixels long; None where pixels have no size, or no place."""
    if grid.unit == "px":
        return None
    one = _ground_width(grid) * step
    if not (math.isfinite(one) and one > 0):  # the middle of a scene may lie off the globe
        return None
    length = round_length(150 * one)
    unit, size = ("km", 1000.0) if grid.unit == "m" and length >= 1000 else (grid.unit, 1.0)
    return ScaleBar(f"{length / size:g} {unit}", round(length / one))


def _ground_width(grid: Grid) -> float:
    """Metres, or millimetres, that the middle pixel is wide; what a grid says itself where it has no place on Earth."""
    if grid.unit != "m" or not grid.crs or to_world(grid.crs) is None:
        return grid.spacing[2]
    _, height, width = grid.shape
    x, y = (np.array([[width / 2 - 1, height / 2, 0, 1], [width / 2, height / 2, 0, 1]]) @ grid.matrix.T).T[:2]
    longitudes, latitudes = to_world(grid.crs).transform(x, y)
    return float(geodesics().line_length(longitudes, latitudes))


def _composed(
    panels: Sequence[NDArray[np.uint8]],
    wide: bool,
    classes: Sequence[tuple[str, tuple[int, int, int]]],
    bar: ScaleBar | None,
    note: str,
) -> Image.Image:
    """Panels, and below them the legend, the note and the scale bar, for which a small picture is made wider."""
    height, width = panels[0].shape[:2]
    size = (width, 2 * height + _GAP) if wide else (2 * width + _GAP, height)
    font, line = ImageFont.load_default(_TEXT), _TEXT + _GAP
    below = legend(classes, size[0], _TEXT)
    lengths = [font.getlength(note), bar.pixels + _TEXT // 2 + font.getlength(bar.label) if bar else 0]
    more = bool(bar) + bool(note)
    picture = Image.new(
        "RGB", (max(below.width, *map(math.ceil, lengths)), size[1] + _GAP + below.height + line * more), "white"
    )  # fmt: skip
    for number, panel in enumerate(panels):
        picture.paste(Image.fromarray(panel), (0, number * (height + _GAP)) if wide else (number * (width + _GAP), 0))
    picture.paste(below, (0, size[1] + _GAP))
    draw = ImageDraw.Draw(picture)
    if note:
        draw.text((0, picture.height - more * line), note, fill="black", font=font)
    if bar:
        y = picture.height - line
        draw.rectangle((0, y + _TEXT // 2, bar.pixels, y + _TEXT // 2 + 3), fill="black")
        draw.text((bar.pixels + _TEXT // 2, y), bar.label, fill="black", font=font)
    return picture
