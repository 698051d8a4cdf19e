"""Which case is for training, validation and test: whole groups on one side, seeded, and stable when cases are added."""

from __future__ import annotations

import itertools
import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Case
from voxtile.cases.layouts import SPLITS
from voxtile.data.rng import digest
from voxtile.errors import ConfigError, DataError, counted, did_you_mean, listed, reason

MOST_STRATA = 5
ClassCounts = Mapping[str, Sequence[int] | NDArray[np.int64]]  # case id -> judged pixels of each class, the background first


@dataclass(frozen=True)
class Split:
    """Which case is where, each side in the order of ids.

    Attributes:
        train: cases to learn from.
        val: cases to choose the best weights by.
        test: cases that stay locked until `voxtile evaluate split=test`.
        left_out: ids of cases that are on no side.
    """

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def sides(self) -> dict[str, tuple[Case, ...]]:
        """Cases by side."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def as_dict(self) -> dict[str, Any]:
        """Plain types for a run's manifest: id and region (z, y, x, depth, height, width; None for a whole case) by side."""
        sides: dict[str, Any] = {
            side: [{"id": case.id, "region": list(case.region) if case.region else None} for case in cases]
            for side, cases in self.sides.items()
        }
        return sides | {"left_out": list(self.left_out)}

    @property
    def digest(self) -> str:
        """Changes with the ids and regions of any side, in no other way."""
        sides = {side: part for side, part in self.as_dict().items() if side in SPLITS}
        return f"{digest(json.dumps(sides, sort_keys=True)):032x}"


class SplitScheme(ABC):
    """Decides which case is where. A new scheme is one subclass and a file in `conf/split`.

    Attributes:
        needs_counts: whether the class counts of the cases that are not for test are needed.
        remedy: what to type where a side comes out empty.
        remarks: which of its settings do nothing beside others.
    """

    needs_counts: bool = False
    remedy: str = ""
    remarks: Sequence[str] = ()

    def __call__(self, cases: Sequence[Case], counts: ClassCounts | None = None) -> Split:
        """Splits `cases`.

        Args:
            cases: cases with unique ids, in any order.
            counts: judged pixels of each class by id of the `readable` cases; needed where `needs_counts`.

        Raises:
            ConfigError: The scheme does not fit the number of groups.
            DataError: Training or validation would be empty, or what the data set says about its split is wrong.
        """
        sides, left_out = self._sides(cases, counts)
        for side in ("train", "val"):
            if not sides.get(side):
                groups = {case.group for case in cases}
                found = listed(f"{len(sides.get(name, ()))} {name}" for name in SPLITS)
                raise DataError(
                    f"The split leaves nothing for '{side}': {counted(len(cases), 'case')} in {counted(len(groups), 'group')} "
                    f"became {found}. {self.remedy}"
                )
        parts = {side: tuple(sorted(part, key=lambda case: case.id)) for side, part in sides.items()}
        return Split(parts["train"], parts["val"], parts.get("test", ()), tuple(sorted(left_out)))

    def readable(self, cases: Sequence[Case]) -> list[Case]:
        """The cases whose labels may be read to split them: all that are not for test."""
        return list(cases)

    @abstractmethod
    def _sides(self, cases: Sequence[Case], counts: ClassCounts | None) -> tuple[dict[str, list[Case]], list[str]]:
        """Cases by side, and the ids of those on none."""


def unlike_given(split: Split) -> str:
    """A sentence where validation or test cases of the data set's own split are on other sides, else ""."""
    scenes = {(case.image.paths, case.split) for part in split.sides.values() for case in part}  # of which blocks are parts
    given = Counter(side for _, side in scenes)
    elsewhere = [case.id for side, part in split.sides.items() for case in part if case.split in {"val", "test"} - {side}]
    if not elsewhere:
        return ""
    own = listed(f"{given[side]} {side}" for side in SPLITS if given[side])
    return (
        f"The data set has a split of its own ({own}), which is not used: {counted(len(elsewhere), 'case')} of its validation and "
        "test are on other sides. 'split=given' uses it."
    )


class GivenSplit(SplitScheme):
    """The split that the data set gives; validation may be carved out of its training groups where it gives none."""

    def __init__(self, val: float | None = None, seed: int = 0) -> None:
        """Remembers the settings.

        Args:
            val: share of the training groups that becomes validation, for data sets that give no validation cases.
            seed: of the order of groups.
        """
        self.val = None if val is None else share("val", val)
        self.seed = seed
        self.remedy = (
            "Carve validation out of training with 'split.val=0.2', or choose another scheme, for example 'split=groups'."
            if val is None
            else "Choose another scheme, for example 'split=groups'."
        )

    def _sides(self, cases: Sequence[Case], counts: ClassCounts | None) -> tuple[dict[str, list[Case]], list[str]]:
        without = [case.id for case in cases if not case.split]
        if without:
            raise DataError(
                f"The data set gives no split for {len(without)} of {len(cases)} cases: {listed(without)}. Let one be made with "
                "'split=groups' or 'split=kfold', or read one with 'split=file split.file=…'."
            )
        unknown = sorted({case.split for case in cases} - set(SPLITS))
        if unknown:
            raise DataError(
                f"The data set calls splits {listed(unknown)}; expected {listed(SPLITS)}.{did_you_mean(unknown[0], SPLITS)} Say "
                "what they mean with 'data.layout.splits={…: train, …}', or in a layout of your own."
            )
        sides = {side: [case for case in cases if case.split == side] for side in SPLITS}
        if self.val is None:
            return sides, []
        if sides["val"]:
            raise ConfigError(
                f"'split.val={self.val:g}' would carve validation out of training, but the data set gives {len(sides['val'])} "
                "validation cases. Leave 'split.val' out, or choose another scheme, for example 'split=groups'."
            )
        val, train = (set(part) for part in cut(ranked(sides["train"], self.seed), [self.val]))
        return sides | {
            "train": [case for case in sides["train"] if case.group in train],
            "val": [case for case in sides["train"] if case.group in val],
        }, []


class GroupSplit(SplitScheme):
    """Shares of the groups, cut as contiguous blocks of an order that is a hash of seed and group.

    The first block is test, the second validation, the rest training. An added group moves at most one other group over
    each boundary, and the test groups do not change with `val`. Stratified, this holds for validation within strata only,
    whose own boundaries move with the quantiles; test is drawn before, since the labels of its cases stay closed.
    """

    def __init__(self, val: float = 0.2, test: float = 0.2, seed: int = 0, stratify: bool = False) -> None:
        """Remembers the settings.

        Args:
            val: share of the groups for validation.
            test: share of the groups for test, 0 for none.
            seed: of the order of groups.
            stratify: sort the groups that are not for test by their share of foreground pixels, cut them into up to five
                strata at the quantiles and deal out each stratum on its own, so that training and validation both get
                empty, middling and full ones.

        Raises:
            ConfigError: The shares leave nothing for training.
        """
        self.parts = shares_of(val, test)
        self.seed, self.needs_counts = seed, stratify

    def _sides(self, cases: Sequence[Case], counts: ClassCounts | None) -> tuple[dict[str, list[Case]], list[str]]:
        side_of = sides_of(ranked(cases, self.seed), self.parts)
        if self.needs_counts:
            rest = [case for case in cases if side_of[case.group] != "test"]
            part = self.parts[-1] / (1 - sum(self.parts[:-1]))
            dealt: dict[str, str] = {}
            for stratum in _strata(rest, counts, self.seed, math.ceil(1 / min(part, 1 - part))):
                dealt |= sides_of(stratum, [part], dealt)
            side_of |= dealt
        return deal(cases, side_of), []

    def readable(self, cases: Sequence[Case]) -> list[Case]:
        """All but the test cases."""
        side_of = sides_of(ranked(cases, self.seed), self.parts)
        return [case for case in cases if side_of[case.group] != "test"]


class KFold(SplitScheme):
    """One fold of a cross-validation: contiguous blocks of the same order of groups as `GroupSplit`.

    Every group that is not held out for test is in validation in exactly one fold. The test groups are those of a
    `GroupSplit` with the same share and seed. Stratified, each stratum of the others is cut into folds, whose sizes differ by one
    at most.
    """

    def __init__(self, folds: int = 5, fold: int = 0, seed: int = 0, test: float = 0.0, stratify: bool = False) -> None:
        """Remembers the settings.

        Args:
            folds: how many folds.
            fold: which fold is validation, from 0.
            seed: of the order of groups.
            test: share of the groups that is test in every fold, 0 for none.
            stratify: see `GroupSplit`.

        Raises:
            ConfigError: There is no such fold.
        """
        if folds < 2 or not 0 <= fold < folds:
            many = f"expected one from 0 to {folds - 1}" if folds >= 2 else "expected 2 folds or more"
            raise ConfigError(f"'fold={fold}' of 'split.folds={folds}' does not exist; {many}.")
        self.folds, self.fold, self.seed, self.needs_counts = folds, fold, seed, stratify
        self.parts = [share("test", test)] if test else []

    def _sides(self, cases: Sequence[Case], counts: ClassCounts | None) -> tuple[dict[str, list[Case]], list[str]]:
        test, rest = self._cut(cases)
        if len(rest) < self.folds:
            raise ConfigError(
                f"'split.folds={self.folds}' needs a group for every fold, and {counted(len(cases), 'case')} in "
                f"{counted(len(test) + len(rest), 'group')} leave {len(rest)} (test aside). Type "
                f"'split.folds={max(2, len(rest))}', or make more groups ('data.group') or blocks ('split.blocks', 'split.side')."
            )
        start, stop = (_half_up(edge * len(rest) / self.folds) for edge in (self.fold, self.fold + 1))
        val = set(rest[start:stop])
        if self.needs_counts:
            strata = _strata([case for case in cases if case.group not in test], counts, self.seed, self.folds)
            if len(strata) > 1:
                val = set(self._part(strata))
        side_of = {group: "val" if group in val else "train" for group in rest} | dict.fromkeys(test, "test")
        return deal(cases, side_of), []

    def readable(self, cases: Sequence[Case]) -> list[Case]:
        """All but the test cases."""
        test, _ = self._cut(cases)
        return [case for case in cases if case.group not in test]

    def _part(self, strata: Sequence[Sequence[str]]) -> list[str]:
        """This fold's block of each of several strata; of each, and of all together, the folds' sizes differ by one at most."""
        part: list[str] = []
        before = 0  # groups in earlier strata
        for stratum in strata:
            # As if all strata together were dealt out in turn, like cards: that many of this one come to each fold.
            turns = [(number - before) % self.folds for number in range(self.folds)]
            sizes = [math.ceil((len(stratum) - turn) / self.folds) for turn in turns]
            start = sum(sizes[: self.fold])
            part += stratum[start : start + sizes[self.fold]]
            before += len(stratum)
        return part

    def _cut(self, cases: Sequence[Case]) -> tuple[list[str], list[str]]:
        """The groups that are test in every fold, and the others, ranked."""
        *test, rest = cut(ranked(cases, self.seed), self.parts)
        return [group for part in test for group in part], rest


class FileSplit(SplitScheme):
    """A split from a JSON file: nnU-Net's `splits_final.json` (a list of {"train", "val"}), or one {"train", "val", "test"}.

    Cases that the file does not name are left out, and `Split.left_out` says which.
    """

    def __init__(self, file: str, fold: int = 0) -> None:
        """Remembers the settings.

        Args:
            file: the JSON file.
            fold: which entry of a list, from 0.
        """
        self.file, self.fold = Path(file).expanduser(), fold
        self.remedy = f"Correct {self.file}, or choose another fold with 'fold=…'."

    def _sides(self, cases: Sequence[Case], counts: ClassCounts | None) -> tuple[dict[str, list[Case]], list[str]]:
        by_id = {case.id: case for case in cases}
        names = self._read()
        unknown = [name for part in names.values() for name in part if name not in by_id]
        if unknown:
            raise DataError(
                f"{self.file} names {counted(len(unknown), 'case')} that the data set does not have: "
                f"{listed(unknown)}.{did_you_mean(unknown[0], by_id)} Expected the ids of cases as 'voxtile check' shows them, for "
                f"example {listed(by_id, 3)}; take the others out of the file."
            )
        used = Counter(name for part in names.values() for name in part)
        if twice := sorted(name for name, count in used.items() if count > 1):
            raise DataError(f"{self.file} names {listed(twice)} more than once. Expected each case on one side, once.")
        return {side: [by_id[name] for name in part] for side, part in names.items()}, [name for name in by_id if name not in used]

    def _read(self) -> dict[str, list[str]]:
        try:
            document = json.loads(self.file.read_text(encoding="utf-8-sig"))  # Windows writes a byte order mark
        except (OSError, ValueError) as error:
            raise DataError(
                f"The split file {self.file} cannot be read: {reason(error)}. Expected a JSON file; name it with 'split.file=…'."
            ) from error
        if isinstance(document, dict) and self.fold:
            raise ConfigError(f"'fold={self.fold}' was asked for, and {self.file} holds one split. Type 'fold=0'.")
        if isinstance(document, list):
            if not 0 <= self.fold < len(document):
                raise ConfigError(f"'fold={self.fold}' does not exist: {self.file} holds {len(document)} folds, counted from 0.")
            document = document[self.fold]
        fits = isinstance(document, dict) and {"train", "val"} <= document.keys() <= set(SPLITS)
        if not fits or not all(
            isinstance(part, list) and all(isinstance(name, str) for name in part) for part in document.values()
        ):
            raise DataError(
                f'{self.file} is no split: expected {{"train": [ids], "val": [ids]}}, with "test" where there is one, or a list of '
                "such folds as in nnU-Net's splits_final.json."
            )
        return dict(document)


def share(name: str, value: float) -> float:
    """Returns `value`, checked to lie between 0 and 1.

    Raises:
        ConfigError: It lies elsewhere; the message calls the setting `split.<name>`.
    """
    if not 0 < value < 1:
        raise ConfigError(f"'split.{name}={value}' must lie between 0 and 1: it is a share of the groups, for example 0.2.")
    return float(value)


def shares_of(val: float, test: float) -> list[float]:
    """The shares [test, val], or [val] where `test` is 0, checked to leave something for training.

    Raises:
        ConfigError: A share lies outside (0, 1), or their sum is 1 or more.
    """
    parts = [*([share("test", test)] if test else []), share("val", val)]
    if sum(parts) >= 1:
        raise ConfigError(f"'split.val={val:g}' and 'split.test={test:g}' leave nothing for training. Expected a sum below 1.")
    return parts


def ranked(cases: Iterable[Case], seed: int) -> list[str]:
    """The groups of `cases` in an order in which the place of two never depends on a third."""
    return sorted({case.group for case in cases}, key=lambda group: (digest("split", seed, group), group))


def cut(groups: Sequence[str], parts: Sequence[float], before: Sequence[int] = ()) -> list[list[str]]:
    """Cuts `groups` into contiguous blocks with the shares `parts`, then the rest; each gets at least one group.

    A boundary after the share s of n groups lies at floor(s n + 1/2), moved where a block would be empty: one group more
    moves it by one place or by none. The sizes of blocks cut `before` count in, so that what was rounded there is made up for here.

    Raises:
        ConfigError: There are fewer groups than blocks.
    """
    count, blocks = len(groups), len(parts) + 1
    if count < blocks:
        without = "do without a test split ('split.test=0'), " if count == 2 < blocks else ""
        raise ConfigError(
            f"The data set has {counted(count, 'group')} ({listed(groups)}), and the split needs at least {blocks}: one for each "
            f"side. Check 'data.group' (cases of one group stay together), {without}or cut a large scene into blocks with "
            "'split=blocks'."
        )
    edges = [0]
    for number in range(len(parts)):
        edge = _half_up(sum(parts[: number + 1]) * (count + sum(before))) - sum(before[: number + 1])
        edges.append(min(max(edge, edges[-1] + 1), count - blocks + number + 1))
    return [list(groups[a:b]) for a, b in zip(edges, [*edges[1:], count], strict=True)]


def sides_of(groups: Sequence[str], parts: Sequence[float], before: Mapping[str, str] | None = None) -> dict[str, str]:
    """The side of each of the ranked `groups`, for the shares [test, val] or [val], given the sides of those dealt `before`."""
    names = ("test", "val", "train")[2 - len(parts) :]
    dealt = [list((before or {}).values()).count(name) for name in names]
    return {group: side for side, block in zip(names, cut(groups, parts, dealt), strict=True) for group in block}


def deal(cases: Iterable[Case], side_of: Mapping[str, str]) -> dict[str, list[Case]]:
    """Cases by side, given the side of each group."""
    sides: dict[str, list[Case]] = {side: [] for side in SPLITS}
    for case in cases:
        sides[side_of[case.group]].append(case)
    return sides


def _half_up(value: float) -> int:
    return math.floor(value + 0.5)


def _strata(cases: Sequence[Case], counts: ClassCounts | None, seed: int, least: int) -> list[list[str]]:
    """Groups cut by quantiles of their foreground share into strata of `least` groups or more, each ranked."""
    missing = [case.id for case in cases if counts is None or case.id not in counts]
    if counts is None or missing:
        raise ConfigError(
            f"'split.stratify=true' needs the labels of all cases; {listed(missing)} have none. Type 'split.stratify=false'."
        )
    foreground: dict[str, int] = {}
    judged: dict[str, int] = {}
    for case in cases:
        own = [int(count) for count in counts[case.id]]
        foreground[case.group] = foreground.get(case.group, 0) + sum(own[1:])
        judged[case.group] = judged.get(case.group, 0) + sum(own)
    place = {group: number for number, group in enumerate(ranked(cases, seed))}
    order = sorted(place, key=lambda group: (foreground[group] / max(judged[group], 1), place[group]))
    count = min(MOST_STRATA, max(1, len(order) // least))
    edges = [number * len(order) // count for number in range(count + 1)]
    return [sorted(order[a:b], key=place.__getitem__) for a, b in itertools.pairwise(edges)]
