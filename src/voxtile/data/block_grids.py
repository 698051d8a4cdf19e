"""Cutting cases into blocks: along grids of their own, or along one that is laid on the ground."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from rasterio.crs import CRS

from voxtile.cases.case import Case
from voxtile.cases.grid import WorkingGrid
from voxtile.cases.longitudes import TURN
from voxtile.cases.window import Window
from voxtile.data.footprints import to_world
from voxtile.data.ground import least_metres, metres_per_unit
from voxtile.data.places import check_placed, components, together
from voxtile.errors import ConfigError, DataError

Index = tuple[int, ...]  # of a block along (z, y, x)
Face = tuple[int, int]  # (axis, -1 or 1) of a block
MOST_BLOCKS = 100_000
_LAST = 89  # degrees of latitude at which a degree of longitude has a length; at the next one it has none
_NO_LENGTH = 1e-6  # metres of a degree or a pixel below which it is that of a pole
_ROUNDED = 1e-6  # share by which a length may lie beyond whole pixels: headers of volumes round to 6e-8 of it
_ROUNDING = 1e-6  # pixels by which a pixel's edge may lie beyond that of its block: coordinates in files are rounded


@dataclass(frozen=True)
class Block:
    """A part of a case, before anything is taken off for the buffer.

    Attributes:
        case: the part as a case of its own.
        lattice: name of the grid it belongs to; blocks of one grid that stand next to each other keep the buffer.
        index: its place there.
        around: how many blocks of that grid go around the world along x; 0 for a grid that does not.
        lean: cosine of the angle between its faces, see `Grid.lean`.
        trimmed: the case without margins, in the unit of `split.buffer`, at each of its faces; None where nothing is left.
    """

    case: Case
    lattice: str
    index: Index
    trimmed: Callable[[Mapping[Face, float]], Case | None]
    around: int = 0
    lean: float = 0.0


def margins(index: Index, sides: Mapping[Index, str], buffer: float, around: int = 0, lean: float = 0.0) -> dict[Face, float]:
    """What a block loses at each face so that blocks of different sides are at least `buffer` apart, from edge to edge.

    Blocks of different sides that share a face lose half the buffer each; blocks of one side lose nothing to each other. Where
    this does not keep two blocks apart that meet at a corner only, the one that lost more there, to others around that corner,
    keeps away from the other by itself: its two margins span a square with the buffer as its diagonal. Where both lost alike
    (nothing, beside corners of a scene) each of them spans half of it. On a sheared grid the square leans over, and its margins are
    as wide as its shorter diagonal asks for.

    Args:
        index: the block's place.
        sides: the side of each block of its grid, by place.
        buffer: least distance.
        around: see `Block`.
        lean: see `Block`.
    """
    faces = [(axis, step) for axis in range(3) for step in (-1, 1)]
    own = sides[index]
    lost = {face: buffer / 2 * (sides.get(_moved(index, face, around=around), own) != own) for face in faces}
    found = dict(lost)
    for first, second in itertools.combinations(faces, 2):
        other = sides.get(_moved(index, first, second, around=around), own)
        if first[0] == second[0] or other == own:
            continue
        beside = [sides.get(_moved(index, face, around=around)) for face in (first, second)]
        mine = [side is not None and side != own for side in beside]
        theirs = [side is not None and side != other for side in beside]
        # Along the first axis lie my margin to the first block between us, and theirs to the second; and the other way round.
        if (mine[0] and theirs[1]) or (mine[1] and theirs[0]) or sum(mine) < sum(theirs):
            continue
        alone = buffer * math.sqrt((1 + lean) / 2) / (1 if sum(mine) > sum(theirs) else 2)
        found |= {face: max(found[face], alone) for face in (first, second)}
    return found


def case_blocks(cases: Sequence[Case], counts: Sequence[int], side: float | None, buffer: float) -> Iterator[Block]:
    """Cuts each case along a grid of its own.

    Args:
        cases: whole cases.
        counts: how many blocks along (rows, columns) or (slabs, rows, columns).
        side: where given, rows and columns of about this length instead, in the unit of the case's grid.
        buffer: that the blocks are to keep, for checks.

    Raises:
        ConfigError: A block would be too small for the buffer, or has no width at all.
    """
    for case in cases:
        grid = _on_ground(case)
        spacing, heights = grid.spacing, grid.heights
        number: Index = (1, *counts)[-3:]
        if side is not None:
            number = (1, *(max(1, round(case.shape[axis] * spacing[axis] / side)) for axis in (1, 2)))
        _check_number(math.prod(number), case)
        _check_pole(case, spacing[2] if number[2] > 1 else math.inf, buffer)
        letters = "src"[-len(counts) :] if side is None else "rc"
        for index in itertools.product(*map(range, number)):
            start = [place * size // count for place, size, count in zip(index, case.shape, number, strict=True)]
            stop = [(place + 1) * size // count for place, size, count in zip(index, case.shape, number, strict=True)]
            size = [b - a for a, b in zip(start, stop, strict=True)]
            # A block between two others keeps these apart, so it must be as wide as the buffer itself.
            between = [axis for axis in range(3) if number[axis] > 2]
            if min(size) < 1 or any(size[axis] * heights[axis] < (1 - _ROUNDED) * buffer for axis in between):
                raise _too_small(case, size, number, buffer)
            suffix = "#" + "".join(f"{letter}{place}" for letter, place in zip(letters, index[-len(letters) :], strict=True))
            block = replace(case.view(Window.of(start, size), suffix), group=case.group + suffix, within=case.group)
            yield Block(block, case.id, index, partial(_without, block, heights, number, buffer), lean=grid.lean)


def _without(block: Case, heights: Sequence[float], number: Index, buffer: float, lost: Mapping[Face, float]) -> Case:
    # Rounding errors add none.
    pixels = {face: math.ceil((1 - _ROUNDED) * _units(length, heights[face[0]])) for face, length in lost.items()}
    low = [pixels[axis, -1] for axis in range(3)]
    size = [full - pixels[axis, -1] - pixels[axis, 1] for axis, full in enumerate(block.shape)]
    if min(size) < 1:
        raise _too_small(block, block.shape, number, buffer)
    return block.view(Window.of(low, size))


def _units(length: float, metres: float) -> float:
    """How many units of so many metres are a length: none for none, also at a pole, where a unit has no length."""
    return length / metres if length else 0.0


def _on_ground(case: Case) -> WorkingGrid:
    """The case's grid with lengths of the ground, where the case lies there."""
    return replace(case.grid, metres=least_metres(case))


def _too_small(case: Case, size: Sequence[int], number: Index, buffer: float) -> ConfigError:
    unit, spacing = case.grid.unit, " x ".join(f"{length:.4g}" for length in _on_ground(case).heights)
    return ConfigError(
        f"{list(number)} blocks (slabs, rows, columns) give case '{case.id}' ({case.image.path}) one of {tuple(size)} pixels "
        f"(D, H, W) of {spacing} {unit}, too small to keep 'split.buffer={buffer:g}' ({unit}) between sides of the split. Ask for "
        "fewer blocks ('split.blocks=[…]'), a longer 'split.side', or a smaller buffer."
    )


def _check_pole(case: Case, width: float, buffer: float) -> None:
    """Refuses a buffer between blocks side by side that are nowhere in the case wider than `width`, in metres, a unit."""
    if buffer and width < _NO_LENGTH:
        raise ConfigError(
            f"Case '{case.id}' ({case.image.path}) reaches to a pole, where all its columns meet: no number of pixels keeps "
            f"'split.buffer={buffer:g}' (metres) between blocks side by side there. Cut it off before the pole, for example with "
            "'data.scene.area=[-180,-89,180,89]', warp it to a polar system with 'gdalwarp -t_srs EPSG:…', ask for blocks one "
            "above the other ('split.blocks=[4,1]'), or take the buffer out ('split.buffer=0')."
        )


def ground_blocks(cases: Sequence[Case], side: float, buffer: float) -> Iterator[Block]:
    """Cuts the cases along square cells on the ground, so that the same ground is in the same block whichever case shows it.

    The cells are those of a lattice through the origin of the cases' own coordinate reference system, `side` metres wide. In
    degrees, and in projections that stretch lengths by more than 1 % (Web Mercator), a cell is so wide at the nearest whole degree
    of latitude of its place: the connected cases, none of them `buffer` or more from the next. In degrees the lattice goes once
    around the world, so that 190° is in the cell of -170°; the cell on the antimeridian takes what is left over, and is up to twice
    as wide as the others. A pixel that lies in two cells is in no block.

    Args:
        cases: whole scenes, north up.
        side: of a cell, in metres.
        buffer: in metres; scenes in different systems must be as far apart.

    Raises:
        DataError: A scene has no place on Earth or is turned, or scenes in different systems are too near each other.
        ConfigError: There are too many blocks, or at a pole they cannot keep the buffer.
    """
    check_placed(cases, "'split.grid=ground' lays blocks on the ground")
    turned = [case for case in cases if np.abs(case.grid.matrix[[0, 1], [1, 0]]).max() > 1e-9 * np.abs(case.grid.matrix).max()]
    if turned:
        raise DataError(
            f"Scene '{turned[0].id}' ({turned[0].image.path}) is turned against the axes of its coordinate reference system, and "
            "'split.grid=ground' cuts along these. Warp it north up with 'gdalwarp <file> <new file>', or type 'split.grid=case'."
        )
    places: dict[int, list[Case]] = {}
    for case, place in zip(cases, components(len(cases), together(cases, buffer)), strict=True):
        places.setdefault(place, []).append(case)
    for members in places.values():
        yield from _place_blocks(members, side, buffer)


def _place_blocks(cases: Sequence[Case], side: float, buffer: float) -> Iterator[Block]:
    names = {_crs_name(str(case.grid.crs)): case for case in cases}
    if len(names) > 1:
        (first, a), (second, b) = list(names.items())[:2]
        raise DataError(
            f"Scenes of one place lie in different coordinate reference systems: '{a.id}' ({a.image.path}) in {first}, '{b.id}' "
            f"({b.image.path}) in {second}. 'split.grid=ground' cuts the same ground alike in one system only. Warp them to "
            "one with 'gdalwarp -t_srs EPSG:…', or keep scenes of one place together: 'split=groups data.group.place=0'."
        )
    bounds = np.array([case.grid.footprint for case in cases])
    low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
    where, width = _cell(str(cases[0].grid.crs), (low + high) / 2, cases[0].grid.metres, side)
    lattice = f"{next(iter(names))} {side:g} m{where}"
    columns = _Columns(width[0], TURN if to_world(str(cases[0].grid.crs)).source_crs.is_geographic else 0.0)
    metres = np.min([least_metres(case) for case in cases], axis=0)  # of the place, so that each block keeps the buffer
    _check_pole(cases[0], float(metres.min()), buffer)
    for case in cases:
        left, bottom, right, top = case.grid.footprint
        begin = columns.of(left + 1e-9 * width[0])
        end = columns.of(math.nextafter(right - 1e-9 * width[0], -math.inf)) + 1
        rows = range(math.floor(bottom / width[1] + 1e-9), math.ceil(top / width[1] - 1e-9))
        _check_number((end - begin) * len(rows), case)
        for y, x in itertools.product(rows, range(begin, end)):
            once = _once_around(x, columns.around)
            edges = (columns.edge(x), columns.edge(x + 1)), (y * width[1], (y + 1) * width[1])
            cut = partial(_cell_of, case, edges, f"#x{x}y{y}", f"{lattice}#x{once}y{y}")
            if (whole := cut((0.0, 0.0), (0.0, 0.0))) is not None:
                yield Block(whole, lattice, (0, y, once), partial(_trimmed, cut, metres), columns.around)


@dataclass(frozen=True)
class _Columns:
    """The columns of a lattice, numbered from the one east of x = 0, and on through all turns where x goes round.

    Attributes:
        width: of a column, in map units. Where x goes round, the last one before each antimeridian takes what is left over.
        turn: map units once around the world; 0 where x does not go round.
    """

    width: float
    turn: float

    @property
    def around(self) -> int:
        """How many go once around the world; 0 where x does not go round."""
        return max(1, math.floor(self.turn / self.width + 1e-9)) if self.turn else 0

    def of(self, x: float) -> int:
        """The column that a place is in."""
        if not self.turn:
            return math.floor(x / self.width)
        first = -(self.around // 2)
        rounds = math.floor((x - first * self.width) / self.turn)
        return rounds * self.around + min(math.floor((x - rounds * self.turn) / self.width), first + self.around - 1)

    def edge(self, column: int) -> float:
        """Where a column begins."""
        once = _once_around(column, self.around)
        return once * self.width + ((column - once) // self.around * self.turn if self.turn else 0.0)


def _once_around(column: int, around: int) -> int:
    """The number that a column has on the turn around x = 0."""
    return (column + around // 2) % around - around // 2 if around else column


def _trimmed(cut: Callable[..., Case | None], metres: Sequence[float], lost: Mapping[Face, float]) -> Case | None:
    x, y = metres
    return cut((_units(lost[2, -1], x), _units(lost[1, -1], y)), (_units(lost[2, 1], x), _units(lost[1, 1], y)))


def _cell_of(
    case: Case, cell: tuple[tuple[float, float], tuple[float, float]], suffix: str, group: str,
    low: tuple[float, float], high: tuple[float, float],
) -> Case | None:  # fmt: skip
    """The pixels of a case that lie wholly in a cell, from edge to edge along (x, y), without the margins `low` and `high`."""
    start, stop = [0, 0], [1, 1]
    for axis in range(2):
        step, origin = case.grid.matrix[axis, axis], case.grid.matrix[axis, 3] - case.grid.matrix[axis, axis] / 2
        edges = (cell[axis][0] + low[axis], cell[axis][1] - high[axis])
        a, b = sorted((edge - origin) / step for edge in edges)  # rows mostly count downwards
        start[axis] = max(0, math.ceil(a - _ROUNDING))
        stop[axis] = min(case.shape[2 - axis], math.floor(b + _ROUNDING))
        if edges[0] >= edges[1] or start[axis] >= stop[axis]:
            return None
    region = Window.of((0, *start[::-1]), (case.shape[0], stop[1] - start[1], stop[0] - start[0]))
    return replace(case.view(region, suffix), group=group, within=case.group)


def _cell(crs: str, centre: np.ndarray, declared: tuple[float, float], side: float) -> tuple[str, tuple[float, float]]:
    """Which latitude a lattice's cells are measured at, for its name, and a cell's width in map units along (x, y)."""
    world = to_world(crs)
    longitude, latitude = world.transform(*centre)
    degree = round(latitude)
    if world.source_crs.is_geographic:
        degree = max(-_LAST, min(degree, _LAST))
    point = np.array([world.transform(longitude, degree, direction="INVERSE")])
    step = 1.0 / max(declared)
    measured = metres_per_unit(crs, point, step)[0]
    if not world.source_crs.is_geographic and max(abs(measured / declared - 1)) < 0.01:
        return "", (side / declared[0], side / declared[1])
    return f" at {degree}°", (side / float(measured[0]), side / float(measured[1]))


def _crs_name(crs: str) -> str:
    """One name for a system, in whichever way files write it."""
    authority = CRS.from_wkt(crs).to_authority()
    return ":".join(authority) if authority else str(to_world(crs).source_crs.name)


def _check_number(blocks: int, case: Case) -> None:
    if blocks > MOST_BLOCKS:
        raise ConfigError(
            f"The split cuts case '{case.id}' ({case.image.path}) into {blocks:,} blocks, and {MOST_BLOCKS:,} are the most. "
            "Type a longer 'split.side', in metres, or fewer 'split.blocks'."
        )


def _moved(index: Index, *steps: Face, around: int) -> Index:
    """The index after going by each (axis, step)."""
    place = list(index)
    for axis, step in steps:
        place[axis] += step
    place[2] = _once_around(place[2], around)
    return tuple(place)
