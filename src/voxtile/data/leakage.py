"""The leakage gate: what must not be on two sides of a split, and what looks as if it should not."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from voxtile.cases.atomic import atomic_text
from voxtile.cases.case import Case
from voxtile.data.footprints import near_pairs
from voxtile.data.places import EDGE
from voxtile.data.rng import digest
from voxtile.data.splits import Split
from voxtile.data.survey import blocks
from voxtile.errors import ConfigError, DataError, VoxtileError, did_you_mean, listed, typed

MOST_VALUES = 512  # kept of a case's distinct grey values
LEAST_VALUES = 16  # fewer tell nothing
ROWS = 512  # cases that are compared with all others at once
ALIKE = 0.5  # share of grey values in common that is suspicious; parts of one scan measured 0.81 to 1, others below 0.01
REGROUP = "Give what belongs together one group, with 'data.group.pattern=…', 'data.group.expression=…' or 'data.group.csv=…'."
PLACES = " Scenes less than a metre apart, or on each other, become one group with 'data.group.place=1'."
SAME_GROUP, SAME_GROUND, SAME_IMAGE = "is of the same group as", "shows the same ground as", "has the same image as"
MOST_TYPED = 8  # names in a list that a user is to type; more are written into a file
Pairs = Iterable[tuple[int, int]]


@dataclass(frozen=True)
class Leak:
    """A case that is not independent of cases on another side of the split.

    Attributes:
        case: its id.
        side: "val" or "test".
        others: ids of the cases it depends on.
        other_side: "train", or "val" for a test case.
        why: a verb phrase that joins `case` and `others`.
        image: digest of the image that they have in common, where that is why: all leaks that are of it are said in one sentence.
    """

    case: str
    side: str
    others: tuple[str, ...]
    other_side: str
    why: str
    image: str = ""

    def __str__(self) -> str:
        return f"'{self.case}' ({self.side}) {self.why} {listed(self.others)} ({self.other_side})"


def find_leaks(split: Split, contents: Mapping[str, str], wholes: Mapping[tuple[Path, ...], str] | None = None) -> list[Leak]:
    """Finds what is on two sides of a split: one group, identical images, pixels of one file, one place on the ground.

    Footprints that only touch do not overlap. Views of one file are compared by their regions only, and so are those of copies.

    Args:
        split: the split.
        contents: digest of the image's content by case id; cases without one are not compared by content.
        wholes: digest of the whole image by its files, of which cases are parts; files of one digest are copies.
    """
    copy_of = wholes or {}
    leaks = []
    for side, other_side in (("val", "train"), ("test", "train"), ("test", "val")):
        first, second = split.sides[side], split.sides[other_side]
        found: dict[str, Iterable[tuple[int, Sequence[str]]]] = {
            SAME_GROUP: _of_one_group(first, second),
            "shares pixels of one file with": _by_case(_overlapping(first, second, lambda case: case.image.framing), second),
            SAME_IMAGE: _of_one_image(first, second, contents),
            "shares pixels of a copied file with": _by_case(
                (
                    (i, j)
                    for i, j in _overlapping(first, second, lambda case: filter(None, [copy_of.get(case.image.paths)]))
                    if not of_one_file(first[i], second[j])
                    and not (contents.get(first[i].id) and contents.get(first[i].id) == contents.get(second[j].id))
                ),
                second,
            ),
            SAME_GROUND: _by_case(
                ((i, j) for i, j in near_pairs(first, second, -EDGE) if not of_one_file(first[i], second[j])), second
            ),
        }
        for why, each in found.items():
            for i, others in each:
                image = contents[first[i].id] if why == SAME_IMAGE else ""
                leaks.append(Leak(first[i].id, side, tuple(others), other_side, why, image))
    return leaks


def clauses(leaks: Iterable[Leak], values: Mapping[str, str] | None = None) -> list[str]:
    """A clause for each leak, and one for all leaks that are of one image.

    Args:
        leaks: what was found.
        values: of all pixels, by the digest of an image that has but one, see `single_values`.
    """
    sets: dict[object, list[Leak]] = {}
    for number, leak in enumerate(leaks):
        sets.setdefault(leak.image or number, []).append(leak)
    return [str(each[0]) if len(each) == 1 else _set_said(each, (values or {}).get(each[0].image)) for each in sets.values()]


def _set_said(leaks: Sequence[Leak], value: str | None) -> str:
    """What is said of several leaks that are of one image."""
    sides: dict[str, dict[str, None]] = {}
    for leak in leaks:
        sides.setdefault(leak.side, {})[leak.case] = None
    for others, side in {(id(leak.others), leak.other_side): (leak.others, leak.other_side) for leak in leaks}.values():
        sides.setdefault(side, {}).update(dict.fromkeys(others))
    which = "one image" if value is None else f"one image, all of whose pixels are {value}"
    names = ", ".join(f"{listed(held, 4)} ({side})" for side, held in sides.items())
    return f"{sum(map(len, sides.values()))} cases hold {which}: {names}"


def single_values(leaks: Iterable[Leak], split: Split) -> dict[str, str]:
    """The value of all pixels, by the digest of each image that has but one and of which there are several leaks.

    Such are the empty tiles of a grid: of each image one case is read, up to the first pixel that differs.
    """
    found = Counter(leak.image for leak in leaks if leak.image)
    cases = {case.id: case for side in split.sides.values() for case in side}
    first = {leak.image: cases[leak.case] for leak in leaks if found[leak.image] > 1}
    return {image: value for image, case in first.items() if (value := _single_value(case)) is not None}


def _single_value(case: Case) -> str | None:
    """The value of all pixels with data of a case, None where they have several: "0", or "(0, 0, 255)" where channels differ."""
    first: NDArray[Any] | None = None
    for window in blocks(case.shape):
        pixels, valid = case.read(window)
        held = pixels[:, valid]
        if held.size and first is None:
            first = held[:, :1]
        if first is not None and (held != first).any():
            return None
    if first is None:
        return None
    numbers = [f"{value:g}" for value in first[:, 0].astype(np.float64)]
    return numbers[0] if len(set(numbers)) == 1 else f"({', '.join(numbers)})"


def gate(
    leaks: Sequence[Leak], waivers: Sequence[str] = (), known: Iterable[str] = (), values: Mapping[str, str] | None = None,
    exclude: Sequence[str] = (), lists: Path | None = None,
) -> list[str]:  # fmt: skip
    """Stops a run whose split leaks.

    Args:
        leaks: what `find_leaks` found.
        waivers: ids of cases whose leaks are accepted; a leak is waived by its case, or by all of its others. In a split
            without such a leak (another fold, say) a waiver is idle.
        known: ids of all cases.
        values: see `single_values`.
        exclude: ids of cases that are left out already.
        lists: folder of lists of cases, see `to_type`.

    Returns:
        One sentence for each waived leak, or for all that are of one image, to be printed in everything that reports the run.

    Raises:
        DataError: Leaks are left.
        ConfigError: A waiver names no case.
    """
    leaky = _names(leaks)
    cases = leaky.union(known)
    strange = [name for name in waivers if name not in cases]
    if strange:
        raise ConfigError(
            f"'data.waive' names {listed(strange)}, and no case is called so.{did_you_mean(strange[0], sorted(cases))} The cases "
            f"that leak are {listed(sorted(leaky)) or 'none'}. Take the name out."
        )

    def told(left: Sequence[Leak], waive: str) -> str:
        empty = [leak for leak in left if leak.image in (values or {})]
        if any("#" in name for name in _names(empty)):  # parts of scenes are cut after cases are left out
            empty = []
        reasons = {leak.why for leak in left}
        places = PLACES if SAME_GROUND in reasons else ""
        groups = ", or split by group ('split=groups')" if SAME_GROUP in reasons else ""
        remedies = f" {REGROUP}{places} Or leave cases out ('data.exclude=[…]'){groups}." if len(empty) < len(left) else ""
        if empty:
            names = _names(empty)
            remedies += (
                f" To leave out the {len(names)} cases whose pixels all have one value, type "
                f"'data.exclude={to_type([*exclude, *sorted(names)], lists)}'."
            )
        return (
            f"Leaks between the sides of the split ({len(left)}) would make its scores too good: {listed(clauses(left, values))}."
            f"{remedies} To accept the leaks, which every report will then say, type '{waive}'."
        )

    return settle(leaks, waivers, told, values, lists)


def settle(
    leaks: Sequence[Leak], waivers: Sequence[str], told: Callable[[Sequence[Leak], str], str],
    values: Mapping[str, str] | None = None, lists: Path | None = None,
) -> list[str]:  # fmt: skip
    """Refuses leaks that are not waived: by their case, or by all of its others.

    Args:
        leaks: what was found.
        waivers: ids of cases whose leaks are accepted.
        told: what is said of leaks that are left, given them and what is typed to waive them.
        values: see `single_values`.
        lists: folder of lists of cases, see `to_type`.

    Returns:
        One sentence for each waived leak, or for all that are of one image.

    Raises:
        DataError: Leaks are left.
    """
    accepted = set(waivers)
    covered = {key for key, others in _others(leaks).items() if accepted.issuperset(others)}
    waived, left = list[Leak](), list[Leak]()
    for leak in leaks:
        (waived if leak.case in accepted or id(leak.others) in covered else left).append(leak)
    if left:
        raise DataError(told(left, f"data.waive={to_type([*waivers, *(leak.case for leak in left)], lists)}"))
    return [f"Leak waived by the user: {sentence}." for sentence in clauses(waived, values)]


def to_type(names: Iterable[str], lists: Path | None) -> str:
    """Names as `data.exclude` and `data.waive` take them: a list, or of many the text file in which they are written down.

    Args:
        names: ids of cases.
        lists: folder of such files, of which each is called by what is in it; where it is None, or cannot be written to, the names
            after the first ones are "…".
    """
    names = list(dict.fromkeys(names))
    odd = any(name != name.strip() or len(name.splitlines()) > 1 for name in names)  # which no line of a file holds
    if lists is None or odd or len(names) <= MOST_TYPED:
        return typed(names, MOST_TYPED)
    path = lists.absolute() / f"cases-{f'{digest(names):032x}'[:8]}.txt"
    try:
        atomic_text(path, "".join(f"{name}\n" for name in names))
    except (OSError, VoxtileError):  # what is to be said is about the leaks
        return typed(names, MOST_TYPED)
    return str(path)


def _others(leaks: Iterable[Leak]) -> dict[int, tuple[str, ...]]:
    """The distinct lists of others, by identity: thousands of leaks may have one."""
    return {id(leak.others): leak.others for leak in leaks}


def _names(leaks: Sequence[Leak]) -> set[str]:
    """The cases that leak, and those that they depend on."""
    return {leak.case for leak in leaks}.union(*_others(leaks).values())


def shared_fields(split: Split, fields: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A sentence about cases on different sides whose names say the same of something that may be their patient or place.

    Args:
        split: which case is where.
        fields: what the layout's patterns find in the names of cases of whose groups nothing is said, by id.
    """
    sided = [(side, case.id) for side, cases in split.sides.items() for case in cases if case.region is None and case.id in fields]
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    apart: dict[str, str] = {}
    for side, name in sided:
        for field, value in fields[name].items():
            other, its = seen.setdefault((field, value), (side, name))
            if other != side and field != "split":
                apart.setdefault(field, f"'{field}' ({its} in {other} and {name} in {side} are both '{value}')")
    if not apart:
        return []
    first, *others = (field for field in dict.fromkeys(field for field, _ in seen) if field in apart)
    more = "".join(f", or 'expression: {other}'" for other in others)
    return [
        "'data.group' says nothing, so each case is a group of its own, and cases on different sides share "
        f"{listed(apart[field] for field in (first, *others))}: where that is a patient or a place, the scores are too good; type "
        f"'+data.group={{expression: {first}}}'{more}, or '+data.group={{expression: id}}' where all are independent"
    ]


def alike_groups(split: Split) -> list[str]:
    """A sentence about groups whose names are one but for capitals, leading zeros, hyphens, underscores and blanks."""
    names = sorted({case.within or case.group for cases in split.sides.values() for case in cases})
    alike: dict[str, list[str]] = {}
    for name in names:
        plain = re.sub(r"(?<!\d)0+(?=\d)", "", name.casefold())
        # Between digits a sign tells numbers apart: 1_11 is not 11_1.
        plain = re.sub(r"(?<=\d)[-_\s]+(?=\d)", "-", plain)
        alike.setdefault(re.sub(r"[_\s]|(?<!\d)-|-(?!\d)", "", plain), []).append(name)
    same = [" and ".join(f"'{name}'" for name in each) for each in alike.values() if len(each) > 1]
    if not same:
        return []
    return [
        f"groups differ in capitals, leading zeros, '-', '_' or blanks only: {listed(same)}. Where these are names of one "
        f"patient or place, it may lie on several sides of the split, and the scores are too good. {REGROUP}"
    ]


def suspicions(cases: Sequence[Case], distinct: Mapping[str, NDArray[Any]]) -> list[str]:
    """Sentences about cases in different groups that look as if they belonged together, for `voxtile check`.

    Blocks of one file or one grid are not looked at: that they lie side by side is meant.

    Args:
        cases: the cases.
        distinct: grey values of each case by id, see `distinct_values`; cases without are not compared.
    """
    sentences = []
    touching = [(i, j) for i, j in near_pairs(cases, cases, 1.0) if i < j and _unrelated(cases[i], cases[j])]
    if touching:
        names = listed(f"{cases[i].id} and {cases[j].id}" for i, j in touching)
        sentences.append(
            f"Cases in different groups touch or overlap on the ground ({len(touching)} pairs): {names}. {REGROUP}{PLACES}"
        )
    alike = [(i, j, share) for i, j, share in alike_pairs(cases, distinct) if _unrelated(cases[i], cases[j])]
    if alike:
        names = listed(f"{cases[i].id} and {cases[j].id} ({share:.0%})" for i, j, share in alike)
        what = "share most of their grey values, as parts of one scan do"
        sentences.append(f"Cases in different groups {what} ({len(alike)} pairs): {names}. {REGROUP}")
    return sentences


def distinct_values(values: NDArray[Any]) -> NDArray[np.float64]:
    """The grey values that can tell one scan from another, at most 512 of them, sorted.

    Whole numbers tell nothing: every 8-bit image has the same 256. Nor do halves and quarters, the means of two and four
    of them. What is left is drawn by a hash of the value, so that two images with a value in common both keep it or both
    drop it.

    Args:
        values: grey values in any shape; some or all of an image's.
    """
    values = np.unique(values[np.isfinite(values)].astype(np.float64))
    values = values[4 * values != np.rint(4 * values)]
    return np.sort(values[np.argsort(_hashes(values), kind="stable")[:MOST_VALUES]])


def alike_pairs(cases: Sequence[Case], distinct: Mapping[str, NDArray[Any]]) -> list[tuple[int, int, float]]:
    """Pairs of cases in different groups that share most of their grey values.

    An image that was scaled after it was digitised holds multiples of a number that belongs to its scan, and two parts of
    one scan hold the same ones. The measure is containment: of the values of the case that has fewer, the share that the
    other has too. A scale that more than a quarter of the groups share (or all groups, where there are few) is the file
    format's, such as 1/255, and not counted.

    Args:
        cases: the cases.
        distinct: grey values by case id, see `distinct_values`.

    Returns:
        (index, index, containment), sorted by index.
    """
    kept = [(place, distinct_values(distinct[case.id])) for place, case in enumerate(cases) if case.id in distinct]
    kept = [(place, values) for place, values in kept if len(values) >= LEAST_VALUES]
    if not kept:
        return []
    places, values = zip(*kept, strict=True)
    names = [cases[place].group for place in places]
    groups, group = np.unique(names, return_inverse=True)
    most = min(max(1, len(groups) // 4), len(groups) - 2)
    found: list[tuple[int, int, float]] = []
    few = np.zeros(len(values), dtype=np.bool_)  # whether so few groups share most of a case's values that the scale is its own
    for first, contained in _containment(values):
        shared = (contained >= ALIKE) & (group[first : first + len(contained), None] != group[None])
        for i, row in enumerate(shared, first):
            few[i] = len(np.unique(group[row])) <= most
            if few[i]:
                found += [(i, int(j), float(contained[i - first, j])) for j in np.flatnonzero(row[i:]) + i]
    return [(places[i], places[j], share) for i, j, share in found if few[j]]


def _containment(values: Sequence[NDArray[np.float64]]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Of the values of the case that has fewer, the share that the other has too: a first case, and rows from it on [., n].

    A full set of values is all of a case's below its highest hash, so two are compared below the lower of theirs.
    """
    hashes = [np.sort(_hashes(part)) for part in values]
    whole = np.iinfo(np.uint64).max
    highest = np.array([part[-1] if len(part) == MOST_VALUES else whole for part in hashes], dtype=np.uint64)
    everything, column, held = np.unique(np.concatenate(hashes), return_inverse=True, return_counts=True)
    row = np.repeat(np.arange(len(hashes)), [len(part) for part in hashes])
    holds = csr_array((np.ones(len(row), dtype=np.float32), (row, column)), shape=(len(hashes), len(everything)))
    # Values of a common scale, which many cases hold, are counted as whole matrices: sparse ones would take a minute for some
    # thousands of cases.
    common = held * 16 > len(hashes)
    often, seldom = holds[:, common].toarray(), holds[:, ~common]
    for first in range(0, len(hashes), ROWS):
        part = slice(first, first + ROWS)
        # How many values of each are comparable: those of a row's case below the other's highest, and the other way round.
        below = np.array([np.searchsorted(hashes[i], highest, side="right") for i in range(len(hashes))[part]])
        above = np.array([np.searchsorted(each, highest[part], side="right") for each in hashes]).T
        fewer = np.minimum(below, above)
        together = often[part] @ often.T + (seldom[part] @ seldom.T).toarray()
        yield first, np.where(fewer >= LEAST_VALUES, together / np.maximum(fewer, 1), 0.0)


def _hashes(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """A well mixed number for each value (the finaliser of SplitMix64, Steele et al. 2014)."""
    bits = values.view(np.uint64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _of_one_group(first: Sequence[Case], second: Sequence[Case]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Indices of cases, and the ids of those that are of their group: also of a block's whole case, and of a whole case's blocks.

    Cases of one group have one tuple.
    """
    groups, wholes = _holders(second, lambda case: case.group), _holders(second, lambda case: case.within)

    @cache
    def related(group: str, within: str) -> tuple[str, ...]:
        places = {*groups.get(group, ()), *(wholes.get(group, ()) if group else ()), *(groups.get(within, ()) if within else ())}
        return tuple(second[place].id for place in sorted(places))

    for place, case in enumerate(first):
        if others := related(case.group, case.within or ""):
            yield place, others


def _of_one_image(
    first: Sequence[Case], second: Sequence[Case], contents: Mapping[str, str]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Indices of cases, and the ids of those with the same image that are no views of the same file.

    Cases with one image have one tuple, but where a view of their file holds it, too.
    """
    images = _holders(second, lambda case: contents.get(case.id, ""))
    files = {image: {path for place in places for path in second[place].image.framing} for image, places in images.items()}
    shared: dict[tuple[str, tuple[Path, ...]], tuple[str, ...]] = {}
    for place, case in enumerate(first):
        if not (image := contents.get(case.id, "")) or image not in images:
            continue
        framing = () if files[image].isdisjoint(case.image.framing) else tuple(case.image.framing)
        if (others := shared.get((image, framing))) is None:
            others = tuple(second[j].id for j in images[image] if not framing or not of_one_file(case, second[j]))
            shared[image, framing] = others
        if others:
            yield place, others


def _holders(cases: Sequence[Case], key: Callable[[Case], str]) -> dict[str, list[int]]:
    """Indices of the cases by what they hold."""
    holders: dict[str, list[int]] = {}
    for place, case in enumerate(cases):
        holders.setdefault(key(case), []).append(place)
    return holders


def _by_case(pairs: Pairs, second: Sequence[Case]) -> Iterator[tuple[int, list[str]]]:
    """Indices of cases, and the ids of those with which they make pairs."""
    for place, group in itertools.groupby(sorted(pairs), key=lambda pair: pair[0]):
        yield place, [second[other].id for _, other in group]


def _unrelated(a: Case, b: Case) -> bool:
    """Whether two cases have neither a group, a file nor a grid of blocks in common: that blocks lie side by side is meant."""
    of_one_grid = a.region is not None and b.region is not None and a.group.rpartition("#")[0] == b.group.rpartition("#")[0]
    return a.group != b.group and not of_one_grid and not of_one_file(a, b)


def of_one_file(a: Case, b: Case) -> bool:
    """Whether two cases are views of one file, on whose grid both lie: a file of a whole region may be stacked on both."""
    return not set(a.image.framing).isdisjoint(b.image.framing)


def _overlapping(first: Sequence[Case], second: Sequence[Case], files: Callable[[Case], Iterable[Hashable]]) -> Pairs:
    """The pairs of views whose regions share a pixel of a file; `files` says of which files a case is a view."""
    import shapely

    members: dict[Hashable, tuple[list[int], list[int]]] = {}
    for side, cases in enumerate((first, second)):
        for place, case in enumerate(cases):
            for path in files(case):
                members.setdefault(path, ([], []))[side].append(place)
    pairs: set[tuple[int, int]] = set()
    for rows, columns in members.values():
        if rows and columns:
            # Boxes (z, y, x, z, y, x). Of thousands of blocks a tree leaves out most pairs.
            a = np.array([(*first[place].box.start, *first[place].box.stop) for place in rows])
            b = np.array([(*second[place].box.start, *second[place].box.stop) for place in columns])
            i, j = shapely.STRtree(shapely.box(b[:, 2], b[:, 1], b[:, 5], b[:, 4])).query(
                shapely.box(a[:, 2], a[:, 1], a[:, 5], a[:, 4])
            )
            shared = ((a[i, :3] < b[j, 3:]) & (b[j, :3] < a[i, 3:])).all(axis=1)
            pairs |= {(rows[m], columns[n]) for m, n in zip(i[shared].tolist(), j[shared].tolist(), strict=True)}
    return pairs
