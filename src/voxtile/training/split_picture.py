"""A picture of a split on the map: where training, validation and test lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from voxtile.cases.case import Case
from voxtile.cases.grid import degree_metres
from voxtile.cases.layouts import SPLITS
from voxtile.cases.longitudes import TURN, beside
from voxtile.cases.names import natural_key, whole_id
from voxtile.cases.thumbnails import thumbnail
from voxtile.data.footprints import to_world, world_outlines
from voxtile.data.ground import pairs_within
from voxtile.data.places import components
from voxtile.data.splits import Split
from voxtile.errors import counted
from voxtile.inference.colours import UNJUDGED, Color, as_rgb
from voxtile.inference.marks import legend, round_length

# Of the palette of Okabe and Ito (2008), whose colours people with any kind of colour vision can tell apart.
COLORS: dict[str, Color] = {"train": (0, 114, 178), "val": (230, 159, 0), "test": (204, 121, 167)}
NAMES = {"train": "training", "val": "validation", "test": "test"}
SOLE, SMALL, WIDE = 720, 174, 720  # pixels: the side of the one place's map, of one of several, and the width of the overview
MOST_PLACES = 12  # with a map of their own; the overview shows all
TITLE, GAP = 18, 8
FILLED = 0.35  # how much of the colour lies over blocks; over whole scenes, which it would change to look at, none
MOST_FILES = 16  # drawn below one map


@dataclass(frozen=True)
class _Frame:
    """What a map shows: the plane that touches the Earth at (longitude, latitude), north up, `metres` per pixel."""

    longitude: float
    latitude: float
    metres: float
    size: tuple[int, int]  # (width, height)

    @classmethod
    def around(cls, outlines: NDArray[np.float64], size: tuple[int, int]) -> _Frame:
        """The frame that shows all outlines [n, p, (longitude, latitude)] with a little around them."""
        low, high = outlines.min(axis=(0, 1)), outlines.max(axis=(0, 1))
        longitude, latitude = (low + high) / 2
        x, y = degree_metres(latitude)
        width, height = (high - low) * (x, y)
        return cls(longitude, latitude, 1.12 * max(width / size[0], height / size[1], 1e-6), size)

    def pixels(self, degrees: NDArray[np.float64]) -> NDArray[np.float64]:
        """(column, row) of points [..., (longitude, latitude)]."""
        x, y = degree_metres(self.latitude)
        offset = (degrees - (self.longitude, self.latitude)) * (x / self.metres, -y / self.metres)
        moved: NDArray[np.float64] = offset + np.array(self.size) / 2
        return moved

    def degrees(self) -> NDArray[np.float64]:
        """(longitude, latitude) of the middle of each pixel [height, width, 2]."""
        columns, rows = np.meshgrid(np.arange(self.size[0]) + 0.5, np.arange(self.size[1]) + 0.5)
        x, y = degree_metres(self.latitude)
        offset = (np.stack([columns, rows], axis=-1) - np.array(self.size) / 2) * (self.metres / x, -self.metres / y)
        moved: NDArray[np.float64] = offset + np.array((self.longitude, self.latitude))
        return moved


def draw_split(split: Split) -> Image.Image | None:
    """Draws the cases of each side, coloured, over small pictures of their scenes, with a legend, a scale and north up.

    One place is one map. Of several, up to twelve have small maps of their own, in the order of ids, below an overview of them
    all. None where no case has a place on Earth.
    """
    cases = [(case, side) for side in SPLITS for case in split.sides[side]]
    outlines = world_outlines([case for case, _ in cases])
    placed = np.flatnonzero(np.isfinite(outlines).all(axis=(1, 2)))
    if not len(placed):
        return None
    cases, outlines = [cases[place] for place in placed], outlines[placed]
    places = _places(cases)
    above = _legend(split)
    if len(places) == 1:
        return _joined([above, _map(cases, outlines, SOLE)], axis=1)
    maps = []
    wholes = [whole_id(case.id, case.region) for case, _ in cases]
    shown = [(sorted({wholes[member] for member in members}, key=natural_key), members) for members in places]
    for names, members in sorted(shown[:MOST_PLACES], key=lambda each: natural_key(each[0][0])):
        title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        maps.append(_titled(_map([cases[member] for member in members], outlines[members], SMALL), title))
    columns = (WIDE + GAP) // (SMALL + GAP)
    rows = [_joined(maps[start : start + columns], axis=0) for start in range(0, len(maps), columns)]
    points = f"all {counted(len(places), 'place')}, each point one or more cases"
    below = f"{MOST_PLACES} of {len(places)} places" if len(places) > MOST_PLACES else "each place"
    overview = _titled(_overview([side for _, side in cases], outlines), points)
    return _joined([above, overview, _titled(None, below), *rows], axis=1)


def _places(sided: Sequence[tuple[Case, str]]) -> list[list[int]]:
    """Indices of the cases of each place, whose scenes lie less than the length of a scene apart.

    The place with the most cases comes first; of equal ones, one of each side in turn.
    """
    # Blocks go by their scene: of thousands, all pairs would be less than its length apart.
    footprints = [(case.image.working.crs, case.image.working.affine, case.image.working.shape) for case, _ in sided]
    scenes = {footprint: replace(case, region=None) for footprint, (case, _) in zip(footprints, sided, strict=True)}
    wholes = list(scenes.values())
    sizes = [max(side * step for side, step in zip(case.shape[1:], case.grid.spacing[1:], strict=True)) for case in wholes]
    place_of = dict(zip(scenes, components(len(wholes), pairs_within(wholes, wholes, float(np.median(sizes)))), strict=True))
    members: dict[int, list[int]] = {}
    for number, footprint in enumerate(footprints):
        members.setdefault(place_of[footprint], []).append(number)
    turns: dict[tuple[int, str], int] = {}
    ranked = []
    for place in members.values():
        kind = (len(place), sided[place[0]][1])
        turns[kind] = turns.get(kind, 0) + 1
        ranked.append((-len(place), turns[kind], place))
    return [place for _, _, place in sorted(ranked)]


def _map(cases: Sequence[tuple[Case, str]], outlines: NDArray[np.float64], side: int) -> Image.Image:
    """One place: its scenes, the cases over them, a scale and an arrow to the north."""
    outlines = outlines.copy()
    outlines[..., 0] -= TURN * np.round((outlines[:, :1, 0] - outlines[0, 0, 0]) / TURN)  # a place may lie over the antimeridian
    x, y = degree_metres(float(outlines[..., 1].mean()))
    width, height = (outlines.max(axis=(0, 1)) - outlines.min(axis=(0, 1))) * (x, y)
    shape = (side, int(np.clip(side * height / max(width, 1e-9), side / 2, side)))
    frame = _Frame.around(outlines, shape if side == SOLE else (side, side))
    picture = _ground(frame, list(dict.fromkeys(path for case, _ in cases for path in case.image.paths))[:MOST_FILES])
    over = picture.copy()
    draw, polygons = ImageDraw.Draw(over), [[tuple(point) for point in frame.pixels(outline)] for outline in outlines]
    for (case, name), polygon in zip(cases, polygons, strict=True):
        if case.region:
            draw.polygon(polygon, fill=COLORS[name])
    picture = Image.blend(picture, over, FILLED)
    draw = ImageDraw.Draw(picture)
    for (case, name), polygon in zip(cases, polygons, strict=True):
        draw.line([*polygon, polygon[0]], fill=COLORS[name], width=2 if case.region else 4)
    _draw_scale(draw, frame)
    return picture


def _ground(frame: _Frame, paths: Sequence[Path]) -> Image.Image:
    """The scenes of a frame, each pixel of the picture looked up in them."""
    canvas = np.full((frame.size[1], frame.size[0], 3), 235, dtype=np.uint8)
    degrees = frame.degrees()
    for path in reversed(paths):
        small = thumbnail(path, 2 * max(frame.size))
        if small is None or (world := to_world(small.crs)) is None:
            continue
        x, y = world.transform(degrees[..., 0], degrees[..., 1], direction="INVERSE")
        if world.source_crs.is_geographic:  # the frame may lie a turn further east or west
            x = beside(x, (small.transform @ (small.valid.shape[1] / 2, 0))[0])
        columns, rows = (np.nan_to_num(values, nan=-1, posinf=-1, neginf=-1) for values in ~small.transform @ (x, y))
        height, width = small.valid.shape
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        at = rows[inside].astype(int), columns[inside].astype(int)
        canvas[inside] = np.where(small.valid[at][:, None], as_rgb(small.image, small.valid)[at], UNJUDGED)
    return Image.fromarray(canvas)


def _overview(sides: Sequence[str], outlines: NDArray[np.float64]) -> Image.Image:
    """All places as points in longitude and latitude, with a grid of round degrees."""
    middles = outlines.mean(axis=1)
    low, high = middles.min(axis=0), middles.max(axis=0)
    middle, span = (low + high) / 2, np.maximum(high - low, 0.05) * 1.25
    stretch = math.cos(math.radians(float(np.clip(middle[1], -80, 80))))
    span = np.maximum(span, (span[1] / stretch * 1.8, span[0] * stretch / 3))  # two to three times as wide as high
    height = round(WIDE * span[1] / (span[0] * stretch))
    picture = Image.new("RGB", (WIDE, height), (245, 245, 245))
    draw, font = ImageDraw.Draw(picture), _font(11)
    corner = middle + np.array((-span[0] / 2, span[1] / 2))
    scale = np.array((WIDE / span[0], -height / span[1]))
    step = round_length(float(max(span[0] / 4, span[1] / 2)))
    for axis in range(2):
        ends = sorted((corner[axis], corner[axis] + (span[0], -span[1])[axis]))
        for number in range(math.ceil(ends[0] / step), math.floor(ends[1] / step) + 1):
            place = float((number * step - corner[axis]) * scale[axis])
            draw.line([(place, 0), (place, height)] if axis == 0 else [(0, place), (WIDE, place)], fill=(215, 215, 215))
            label = _degree(number * step, "EW" if axis == 0 else "NS")
            draw.text((place + 2, height - 14) if axis == 0 else (2, place + 1), label, fill=(110, 110, 110), font=font)
    for name in SPLITS:
        for x, y in ((middles[[side == name for side in sides]] - corner) * scale).tolist():
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=COLORS[name], outline="white")
    return picture


def _legend(split: Split) -> Image.Image:
    entries = []
    for side in (side for side in SPLITS if split.sides[side]):
        groups = len({case.group for case in split.sides[side]})
        said = f"{NAMES[side]}: {counted(len(split.sides[side]), 'case')} in {counted(groups, 'group')}"
        entries.append((said, COLORS[side]))
    return legend(entries, WIDE, 13)


def _draw_scale(draw: ImageDraw.ImageDraw, frame: _Frame) -> None:
    """A bar of a round length, at most a third of the width, and an arrow to the north."""
    length = round_length(frame.metres * frame.size[0] / 3)
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    width, bottom, font = length / frame.metres, frame.size[1] - 8, _font(12)
    plate = max(width, draw.textlength(label, font=font)) + 16
    draw.rectangle((4, bottom - 24, 4 + plate, bottom + 4), fill="white")
    draw.text((12, bottom - 22), label, fill="black", font=font)
    draw.rectangle((12, bottom - 5, 12 + width, bottom - 1), fill="black")
    right = frame.size[0] - 16
    draw.rectangle((right - 10, 4, right + 10, 38), fill="white")
    draw.polygon([(right, 7), (right - 6, 20), (right + 6, 20)], fill="black")
    draw.text((right - 4, 21), "N", fill="black", font=font)


def _joined(parts: Sequence[Image.Image], axis: int) -> Image.Image:
    """Parts from left to right (axis 0), or from top to bottom (1)."""
    size = [max(part.size[each] for part in parts) for each in range(2)]
    size[axis] = sum(part.size[axis] + GAP for part in parts)
    picture, place = Image.new("RGB", (size[0], size[1]), "white"), [0, 0]
    for part in parts:
        picture.paste(part, (place[0], place[1]))
        place[axis] += part.size[axis] + GAP
    return picture


def _titled(part: Image.Image | None, title: str) -> Image.Image:
    """A part below a line that says what it shows, cut to its width."""
    width = part.width if part else WIDE
    picture = Image.new("RGB", (width, TITLE + (part.height if part else 0)), "white")
    draw, font = ImageDraw.Draw(picture), _font(12)
    while draw.textlength(title, font=font) > width:
        title = title.rstrip("…")[:-1] + "…"
    draw.text((2, 2), title, fill="black", font=font)
    if part:
        picture.paste(part, (0, TITLE))
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _degree(value: float, letters: str) -> str:
    return f"{abs(value):.6g}°{'' if abs(value) < 1e-9 else letters[0 if value > 0 else 1]}"
