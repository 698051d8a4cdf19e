import itertools
from dataclasses import replace

import networkx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.testers.memory import memory_case
from tests.testers.places import at, brute, scene
from voxtile.data.places import by_place
from voxtile.data.splits import GroupSplit
from voxtile.errors import DataError


def parts(cases):
    """Sets of the ids of each group."""
    found = {}
    for case in cases:
        found.setdefault(case.group, set()).add(case.id)
    return sorted(map(frozenset, found.values()), key=sorted)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), min_size=1, max_size=14, unique=True), st.integers(0, 15))
def test_scenes_that_are_connected_are_one_group(corners, gap):
    cases = [scene(f"s{n:02d}", *corner) for n, corner in enumerate(corners)]  # of 10 pixels of 10 m
    graph = networkx.Graph()
    graph.add_nodes_from(case.id for case in cases)
    for (n, a), (m, b) in itertools.combinations(enumerate(corners), 2):
        beside = [max(abs(p - q) - 10, 0) for p, q in zip(a, b, strict=True)]
        overlap = all(abs(p - q) < 10 for p, q in zip(a, b, strict=True))
        distance = 10 * (beside[0] ** 2 + beside[1] ** 2) ** 0.5
        assume(overlap or abs(distance - 10 * gap) > 1 or distance == 10 * gap)  # maps are wrong by less than this
        if overlap or (gap and distance < 10 * gap + 0.5):
            graph.add_edge(cases[n].id, cases[m].id)
    expected = sorted((frozenset(part) for part in networkx.connected_components(graph)), key=sorted)
    assert parts(by_place(cases, 10 * gap + 0.5 if gap else 0)) == expected


def test_a_place_in_two_systems_is_one_group_named_by_its_first():
    a, b, c = at("b", 17.99, 50, 32633), at("a", 18.0, 50, 32634), at("c", 18.01, 50, 4326)
    apart = brute(a, b), brute(b, c)
    assert parts(by_place([a, b, c], min(apart) - 20)) == [{"a"}, {"b"}, {"c"}]
    assert {case.group for case in by_place([a, b, c], max(apart) + 20)} == {"a"}


def test_groups_of_names_are_kept_together_and_dates_of_one_place_too():
    dates = [scene("a1", group="p"), scene("a2", group="q"), scene("b", left=50, group="q"), scene("far", left=500)]
    assert parts(by_place(dates, 0)) == [{"a1", "a2", "b"}, {"far"}]
    assert by_place(dates, None) == dates


def test_touching_scenes_are_two_places_at_a_gap_of_nothing():
    tiles = [scene("a"), scene("b", left=9.95)]
    assert len(parts(by_place(tiles, 0))) == 2
    assert len(parts(by_place(tiles, 0.5))) == 1


def test_a_place_never_is_on_two_sides():
    cases = [scene(f"s{n}", left=6 * n + 100 * (n // 3)) for n in range(18)]
    split = GroupSplit()(by_place(cases, 0))
    sides = {case.id: side for side, part in split.sides.items() for case in part}
    assert all(len({sides[f"s{n}"] for n in range(start, start + 3)}) == 1 for start in range(0, 18, 3))


def test_cases_without_a_place_are_refused():
    lost = replace(memory_case("p7", path="p7.tif"), group="g")
    with pytest.raises(DataError, match=r"'data.group.place'.* 1 of 2 cases .*p7 \(p7.tif\).*gdal_edit.*data.exclude=\[\"p7\"\]"):
        by_place([scene("a"), lost], 100)
