"""Cases that lie together on the ground are one group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from voxtile.cases.case import Case
from voxtile.data.footprints import near_pairs, to_world
from voxtile.data.ground import pairs_within
from voxtile.errors import DataError, listed, typed

EDGE = 0.1  # pixels that footprints may overlap and still only touch: coordinates in files are rounded


def by_place(cases: Sequence[Case], gap: float | None) -> list[Case]:
    """The cases with one group for each place.

    Groups of which two cases overlap, or are less than `gap` metres apart on the ground, become one, and so on from these to the
    next. It is called by the name, of theirs, that is first in the alphabet.

    Args:
        cases: whole cases.
        gap: metres; at 0 footprints must overlap, by more than a tenth of a pixel; None leaves the groups as they are.

    Raises:
        DataError: It cannot be told where a case lies.
    """
    if gap is None:
        return list(cases)
    check_placed(cases, "'data.group.place' groups scenes by where they lie")
    names = sorted({case.group for case in cases})
    number = {name: place for place, name in enumerate(names)}
    pairs = together(cases, gap)
    found = components(len(names), ((number[cases[i].group], number[cases[j].group]) for i, j in pairs))
    first = dict(zip(reversed(found), reversed(names), strict=True))
    return [replace(case, group=first[found[number[case.group]]]) for case in cases]


def check_placed(cases: Sequence[Case], why: str) -> None:
    """Refuses cases whose place on Earth is unknown.

    Raises:
        DataError: There are such cases; the message begins with `why` a place is needed.
    """
    lost = [case for case in cases if case.grid.crs is None or to_world(case.grid.crs) is None]
    if lost:
        raise DataError(
            f"{why}, and {len(lost)} of {len(cases)} cases have no coordinate reference system with a place on Earth: "
            f"{listed((case.id for case in lost), 4)} ({lost[0].image.path}). Give the files one, for example with 'gdal_edit.py "
            f"-a_srs EPSG:… <file>', leave them out with 'data.exclude={typed([case.id for case in lost[:4]])}', or group "
            "and split by names ('data.group.pattern=…', 'split=groups')."
        )


def together(cases: Sequence[Case], gap: float) -> list[tuple[int, int]]:
    """Pairs of cases, enough of them to connect each place, that overlap or are less than `gap` metres apart."""
    # Many dates of one place have one footprint: the first of them is compared for all.
    chief: dict[object, int] = {}
    same = [chief.setdefault((case.grid.crs, case.grid.affine, case.shape), place) for place, case in enumerate(cases)]
    chosen = sorted(set(same))
    ones = [cases[place] for place in chosen]
    pairs = {*near_pairs(ones, ones, -EDGE), *(pairs_within(ones, ones, gap) if gap > 0 else ())}
    return [(chosen[i], chosen[j]) for i, j in sorted(pairs) if i < j] + [(a, b) for a, b in enumerate(same) if a != b]


def components(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The number of the connected component of each of `count` things, of which `pairs` are connected."""
    edges = np.array(list(pairs), dtype=np.intp).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
    labels: list[int] = connected_components(graph, directed=False)[1].tolist()
    return labels
