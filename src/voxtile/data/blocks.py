"""Splitting one or a few large cases: blocks of each case become cases of their own, with a buffer between splits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from voxtile.cases.case import Case
from voxtile.cases.window import Window
from voxtile.data.splits import Shares, SplitScheme, deal, ranked, shares_of, sides_of
from voxtile.errors import ConfigError

Index = tuple[int, ...]  # of a block along (z, y, x)


class BlockSplit(SplitScheme):
    """Cuts every case into blocks, deals them out by rank as `GroupSplit` deals out groups, and makes each a case.

    A block is a view, so no window reaches out of it. Blocks at the same place of two cases of one group (two dates of one
    place) are on the same side. Between pixels of different sides of a case, from edge to edge, lies at least `buffer`:
    blocks that face each other lose half of it each, rounded up to whole pixels. Blocks of one side lose nothing to each
    other.
    """

    def __init__(self, blocks: Sequence[int], buffer: float = 0.0, val: float = 0.2, test: float = 0.2, seed: int = 0) -> None:
        """Remembers the settings.

        Args:
            blocks: (rows, columns) of blocks in a scene, or (slabs, rows, columns) in a volume; cut along two axes at most.
            buffer: least distance between sides, in the unit of the case's grid: m, mm, or pixels where it has none.
            val: share of the blocks for validation.
            test: share of the blocks for test, 0 for none.
            seed: of the order of blocks.

        Raises:
            ConfigError: The blocks, the buffer or the shares make no sense.
        """
        if len(blocks) not in (2, 3) or min(blocks) < 1 or sum(count > 1 for count in blocks) not in (1, 2):
            raise ConfigError(
                f"'split.blocks={list(blocks)}' must be [rows, columns] or [slabs, rows, columns], with more than one block along "
                "one or two axes, for example 'split.blocks=[4,4]' for a scene or 'split.blocks=[6,1,1]' for a stack."
            )
        if buffer < 0:
            raise ConfigError(f"'split.buffer={buffer}' must not be negative: it is a distance in the unit of the case's grid.")
        self.letters = "src"[-len(blocks) :]
        self.counts: Index = (1, *blocks)[-3:]
        self.buffer, self.seed, self.parts = float(buffer), seed, shares_of(val, test)

    def _sides(self, cases: Sequence[Case], shares: Shares | None) -> tuple[dict[str, list[Case]], list[str]]:
        indices = list(itertools.product(*map(range, self.counts)))
        whole = {(case.id, index): self._block(case, index) for case in cases for index in indices}
        side_of = sides_of(ranked(whole.values(), self.seed), self.parts)
        blocks = []
        for case in cases:
            sides = {index: side_of[whole[case.id, index].group] for index in indices}
            blocks += [self._trimmed(whole[case.id, index], index, sides) for index in indices]
        return deal(blocks, side_of), []

    def _block(self, case: Case, index: Index) -> Case:
        """The block before anything is taken off for the buffer."""
        start = [place * size // count for place, size, count in zip(index, case.shape, self.counts, strict=True)]
        stop = [(place + 1) * size // count for place, size, count in zip(index, case.shape, self.counts, strict=True)]
        size = [b - a for a, b in zip(start, stop, strict=True)]
        # A block between two others keeps these apart, so it must be as wide as the buffer itself.
        between = [axis for axis in range(3) if self.counts[axis] > 2]
        if min(size) < 1 or any(size[axis] * case.grid.spacing[axis] < self.buffer for axis in between):
            raise self._too_small(case, size)
        suffix = "#" + "".join(f"{letter}{place}" for letter, place in zip(self.letters, index[-len(self.letters) :], strict=True))
        return replace(case.view(Window.of(start, size), suffix), group=case.group + suffix)

    def _trimmed(self, block: Case, index: Index, sides: Mapping[Index, str]) -> Case:
        """The block without its part of the buffer."""
        spacing = block.grid.spacing
        steps = [(axis, step) for axis in range(3) for step in (-1, 1) if _moved(index, (axis, step)) in sides]
        margin = dict.fromkeys(itertools.product(range(3), (-1, 1)), 0)
        for face in steps:
            if sides[_moved(index, face)] != sides[index]:
                margin[face] = _pixels(self.buffer / 2, spacing[face[0]])
        for first, second in itertools.combinations(steps, 2):
            if first[0] == second[0]:
                continue
            around = {sides[_moved(index, *path)] for path in ([first], [second], [first, second])}
            if len(around) == 1 and sides[index] not in around:
                # Alone against three blocks of another side, it alone keeps away from the one at the corner, which faces
                # its own side only: its two margins span a square with the buffer as its diagonal.
                for face in (first, second):
                    margin[face] = _pixels(self.buffer * math.sqrt(0.5), spacing[face[0]])
        low = [margin[axis, -1] for axis in range(3)]
        size = [full - margin[axis, -1] - margin[axis, 1] for axis, full in enumerate(block.shape)]
        if min(size) < 1:
            raise self._too_small(block, block.shape)
        return block.view(Window.of(low, size))

    def _too_small(self, case: Case, size: Sequence[int]) -> ConfigError:
        unit, spacing = case.grid.unit, " x ".join(f"{length:.4g}" for length in case.grid.spacing)
        return ConfigError(
            f"'split.blocks={[*self.counts[-len(self.letters) :]]}' gives case '{case.id}' ({case.image.path}) a block of "
            f"{tuple(size)} pixels (D, H, W) of {spacing} {unit}, too small to keep 'split.buffer={self.buffer:g}' ({unit}) "
            "between sides of the split. Ask for fewer blocks or a smaller buffer."
        )


def _moved(index: Index, *steps: tuple[int, int]) -> Index:
    """The index after going by each (axis, step)."""
    place = list(index)
    for axis, step in steps:
        place[axis] += step
    return tuple(place)


def _pixels(distance: float, spacing: float) -> int:
    """How many pixels of `spacing` it takes to cover `distance`; rounding errors add none."""
    return math.ceil(distance / spacing - 1e-9)
