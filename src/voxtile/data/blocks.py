"""Splitting by blocks: parts of large cases become cases of their own, with a buffer between sides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from voxtile.cases.case import Case
from voxtile.data.block_grids import Block, Index, case_blocks, ground_blocks, margins
from voxtile.data.ground import pairs_within
from voxtile.data.places import EDGE
from voxtile.data.splits import ClassCounts, GroupSplit, KFold, SplitScheme
from voxtile.errors import ConfigError, DataError, did_you_mean
from voxtile.values import is_number

GRIDS = ("case", "ground")
BLOCKS = (4, 4)  # where nothing is said of them


class _Blocks(SplitScheme):
    """Cuts every case into blocks, has another scheme deal them out as groups, and makes each a case.

    A block is a view, so no window reaches out of it. Between pixels of different sides, from edge to edge, lies at least
    `buffer`; blocks of one side lose nothing to each other. On a grid of each case, blocks at the same place of two cases of one
    group (two dates of one place) are on the same side; on a grid on the ground, all blocks of one cell are.

    The constructors of the subclasses write out what they hand on: commands refuse keys that a signature does not name.
    """

    def __init__(
        self, scheme: GroupSplit | KFold, blocks: Sequence[int], side: float | None, grid: str, buffer: float
    ) -> None:  # fmt: skip
        if len(blocks) not in (2, 3) or min(blocks) < 1 or sum(count > 1 for count in blocks) not in (1, 2):
            raise ConfigError(
                f"'split.blocks={list(blocks)}' must be [rows, columns] or [slabs, rows, columns], with more than one block along "
                "one or two axes, for example 'split.blocks=[4,4]' for a scene or 'split.blocks=[6,1,1]' for a stack."
            )
        if not is_number(buffer, 0):
            raise ConfigError(
                f"'split.buffer={buffer}' must be a number from 0 up: it is a distance in the unit of the case's grid."
            )
        if grid not in GRIDS:
            raise ConfigError(f"'split.grid={grid}' is unknown; choose case or ground.{did_you_mean(str(grid), GRIDS)}")
        if side is not None and not 0 < side < math.inf:
            raise ConfigError(f"'split.side={side}' is the length of a block in metres (mm for volumes). Type, for example, 5000.")
        if side is not None and side <= buffer * math.sqrt(2):
            raise ConfigError(
                f"'split.side={side:g}' leaves nothing of a block that keeps 'split.buffer={buffer:g}' from blocks around it: a "
                "side must be more than 1.42 times the buffer, both in metres (mm for volumes). Type a longer side or a smaller "
                f"buffer, for example 'split.buffer={side / 4:g}'."
            )
        if grid == "ground" and side is None:
            raise ConfigError("'split.grid=ground' needs the side of a block in metres. Type, for example, 'split.side=5000'.")
        self.scheme, self.blocks, self.side, self.grid, self.buffer = scheme, list(blocks), side, grid, float(buffer)
        if side is not None and tuple(blocks) != BLOCKS:
            self.remarks = [f"'split.side={side:g}' takes the place of 'split.blocks={self.blocks}', which is of no effect"]
        self.needs_counts = scheme.needs_counts
        self.remedy = "Cut into more blocks, keep a smaller 'split.buffer', or try another 'split.seed'."

    def _cut(self, cases: Sequence[Case]) -> list[Block]:
        if self.grid == "ground":
            assert self.side is not None  # see the constructor
            return list(ground_blocks(cases, self.side, self.buffer))
        return list(case_blocks(cases, self.blocks, self.side, self.buffer))

    def _sides(self, cases: Sequence[Case], counts: ClassCounts | None) -> tuple[dict[str, list[Case]], list[str]]:
        blocks = self._cut(cases)
        dealt, left_out = self.scheme._sides([block.case for block in blocks], counts)
        side_of = {case.id: side for side, part in dealt.items() for case in part}
        lattices: dict[str, dict[Index, str]] = {}
        for block in blocks:
            lattices.setdefault(block.lattice, {})[block.index] = side_of[block.case.id]
        sides: dict[str, list[Case]] = {side: [] for side in dealt}
        for block in blocks:
            kept = block.trimmed(margins(block.index, lattices[block.lattice], self.buffer, block.around, block.lean))
            if kept is None:
                left_out.append(block.case.id)
            else:
                sides[side_of[block.case.id]].append(kept)
        if self.buffer and self.grid == "case":
            self._check_between(sides)
        return sides, left_out

    def _check_between(self, sides: Mapping[str, Sequence[Case]]) -> None:
        """Looks whether the buffer is kept between scenes, too: blocks of each case know nothing of those of others.

        Raises:
            DataError: Blocks of two scenes lie closer than the buffer.
        """
        for side, other in (("val", "train"), ("test", "train"), ("test", "val")):
            first, second = sides[side], sides[other]
            slack = EDGE * min((min(case.grid.spacing[1:]) for case in (*first, *second)), default=0.0)
            for i, j in pairs_within(first, second, self.buffer - slack):
                if first[i].image.paths != second[j].image.paths:
                    raise DataError(
                        f"Block '{first[i].id}' ({side}) lies closer to '{second[j].id}' ({other}) than 'split.buffer="
                        f"{self.buffer:g}' metres: with 'split.grid=case' the buffer is kept within each scene only, and the two "
                        "are of different ones. Cut all scenes by one grid, for example 'split.grid=ground split.side=5000', or "
                        "type 'split.buffer=0'."
                    )

    def readable(self, cases: Sequence[Case]) -> list[Case]:
        """All blocks, before anything is taken off for the buffer, but those of test."""
        return self.scheme.readable([block.case for block in self._cut(cases)])


class BlockSplit(_Blocks):
    """Shares of the blocks, dealt out by rank as `GroupSplit` deals out groups."""

    def __init__(
        self,
        blocks: Sequence[int] = BLOCKS,
        buffer: float = 0.0,
        val: float = 0.2,
        test: float = 0.2,
        seed: int = 0,
        side: float | None = None,
        grid: str = "case",
        stratify: bool = False,
    ) -> None:
        """Remembers the settings.

        Args:
            blocks: (rows, columns) of blocks in a scene, or (slabs, rows, columns) in a volume; cut along two axes at most.
            buffer: least distance between sides, in the unit of the case's grid: m, mm, or pixels where it has none.
            val: share of the blocks for validation.
            test: share of the blocks for test, 0 for none.
            seed: of the order of blocks.
            side: length of a block in that unit, instead of `blocks`: rows and columns are about so long.
            grid: "case" for a grid of each case, "ground" for one of square cells on the ground (see `ground_blocks`).
            stratify: see `GroupSplit`.

        Raises:
            ConfigError: The blocks, the buffer or the shares make no sense.
        """
        super().__init__(GroupSplit(val, test, seed, stratify), blocks, side, grid, buffer)


class BlockKFold(_Blocks):
    """One fold of a cross-validation over blocks: each that is not for test is in validation in exactly one fold."""

    def __init__(
        self,
        blocks: Sequence[int] = BLOCKS,
        buffer: float = 0.0,
        folds: int = 5,
        fold: int = 0,
        test: float = 0.0,
        seed: int = 0,
        side: float | None = None,
        grid: str = "case",
        stratify: bool = False,
    ) -> None:
        """Remembers the settings; for those that are not here see `BlockSplit`.

        Args:
            blocks: how many.
            buffer: least distance between sides, whichever the fold.
            folds: how many folds.
            fold: which fold is validation, from 0.
            test: share of the blocks that is test in every fold, 0 for none.
            seed: of the order of blocks.
            side: of a block.
            grid: of blocks.
            stratify: see `GroupSplit`.

        Raises:
            ConfigError: The blocks or the buffer make no sense, or there is no such fold.
        """
        super().__init__(KFold(folds, fold, seed, test, stratify), blocks, side, grid, buffer)
