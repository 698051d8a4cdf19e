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
from voxtile.inference.colours import as_rgb, painted, visible
from voxtile.inference.finished import FinishedMap
from voxtile.inference.marks import drawn, edge_marks, marked, round_length

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
    legend = [(f"{name} {shares[index]:.1%}", colors[index]) for index, name in enumerate(found.classes)]
    note = f"slice {z} of {found.grid.shape[0]}, shares of all" if found.grid.shape[0] > 1 else ""
    picture = _composed(panels, wide, legend, scale_bar(found.grid, step * image.shape[1] / panels[0].shape[1]), note)
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
    """A scale bar of 1, 2 or 5 times a power of ten, about 150 pixels long; None where pixels have no size."""
    if grid.unit == "px":
        return None
    one = _ground_width(grid) * step
    length = round_length(150 * one)
    unit, size = ("km", 1000.0) if grid.unit == "m" and length >= 1000 else (grid.unit, 1.0)
    return ScaleBar(f"{length / size:g} {unit}", round(length / one))


def _ground_width(grid: Grid) -> float:
    """Metres, or millimetres, that the middle pixel is wide; what a grid says itself where it has no place on Earth."""
    if grid.unit != "m" or not grid.crs or to_world(grid.crs) is None:
        return grid.spacing[2]
    from pyproj import CRS, Geod, Transformer

    crs = CRS.from_user_input(grid.crs)
    assert crs.geodetic_crs is not None
    assert crs.ellipsoid is not None
    _, height, width = grid.shape
    ends = np.array([[width / 2 - 1, height / 2, 0, 1], [width / 2, height / 2, 0, 1]]) @ grid.matrix.T
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    (a, b), (c, d) = zip(*to_degrees.transform(ends[:, 0], ends[:, 1]), strict=True)
    geod = Geod(a=crs.ellipsoid.semi_major_metre, b=crs.ellipsoid.semi_minor_metre)
    return float(geod.inv(a, b, c, d)[2])


def _composed(
    panels: Sequence[NDArray[np.uint8]],
    wide: bool,
    legend: Sequence[tuple[str, tuple[int, int, int]]],
    bar: ScaleBar | None,
    note: str,
) -> Image.Image:
    """Panels, and below them the legend, the note and the scale bar."""
    height, width = panels[0].shape[:2]
    size = (width, 2 * height + _GAP) if wide else (2 * width + _GAP, height)
    font = ImageFont.load_default(_TEXT)
    entries = [(text, color, 3 * _TEXT // 2 + int(font.getlength(text)) + _TEXT) for text, color in legend]
    rows = _rows([entry[2] for entry in entries], size[0])
    line = _TEXT + _GAP
    more = bool(bar) + bool(note)
    picture = Image.new("RGB", (size[0], size[1] + _GAP + line * (max(rows, default=0) + 1 + more)), "white")
    for number, panel in enumerate(panels):
        picture.paste(Image.fromarray(panel), (0, number * (height + _GAP)) if wide else (number * (width + _GAP), 0))
    draw = ImageDraw.Draw(picture)
    x, last = 0, 0
    for (text, color, length), row in zip(entries, rows, strict=True):
        x, last = (0 if row != last else x), row
        y = size[1] + _GAP + row * line
        draw.rectangle((x, y, x + _TEXT, y + _TEXT), fill=tuple(color), outline="black")
        draw.text((x + 3 * _TEXT // 2, y), text, fill="black", font=font)
        x += length
    if note:
        draw.text((0, picture.height - more * line), note, fill="black", font=font)
    if bar:
        y = picture.height - line
        draw.rectangle((0, y + _TEXT // 2, bar.pixels, y + _TEXT // 2 + 3), fill="black")
        draw.text((bar.pixels + _TEXT // 2, y), bar.label, fill="black", font=font)
    return picture


def _rows(lengths: Sequence[int], width: int) -> list[int]:
    """The line that each entry of a legend stands on."""
    rows, row, x = [], 0, 0
    for length in lengths:
        if x and x + length > width:
            row, x = row + 1, 0
        rows.append(row)
        x += length
    return rows
