import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from tests.testers.memory import memory_case, north_up
from tests.testers.places import GEOD, at, brute, wkt
from voxtile.data.footprints import near_pairs
from voxtile.data.ground import least_metres, metres_per_unit, nearest, pairs_within

few = settings(max_examples=12, deadline=None)
SYSTEMS = {"degrees": 4326, "mercator": 3857, "utm": 32633, "feet": 2225, "polar": 3413}


@few
@given(st.sampled_from(sorted(SYSTEMS)), st.sampled_from(sorted(SYSTEMS)), st.floats(0, 360), st.floats(1_500, 30_000))
def test_the_distance_of_two_scenes_is_that_of_geodesics(one, other, azimuth, far):
    place = (-120.5, 38.5) if "feet" in (one, other) else (15.2, 71.0 if "polar" in (one, other) else 50.0)
    there = GEOD.fwd(*place, azimuth, far)[:2]
    first, second = at("a", *place, SYSTEMS[one]), at("b", *there, SYSTEMS[other])
    metres, i, j = nearest([first], [second])
    assert (i, j) == (0, 0)
    assert metres <= brute(first, second) * 1.0001 + 1e-3
    assert metres >= brute(first, second) * 0.9999 - 3  # points of two edges are at most 20 m apart, and the scenes 500 m or more


@pytest.mark.parametrize(("code", "latitude"), [(4326, 60.0), (3857, 60.0), (32633, 60.0), (4326, 0.0), (3857, 0.5)])
def test_scenes_side_by_side_are_as_far_apart_as_a_geodesic_between_their_edges(code, latitude):
    first = at("a", 15.0, latitude, code, pixel=20.0)
    left, bottom, right, top = first.grid.footprint
    gap = (right - left) / 7
    second = memory_case("b", (1, 50, 50), affine=north_up(right + gap, top, (right - left) / 50), crs=wkt(code), unit="m")
    lines = Transformer.from_crs(code, 4326, always_xy=True)
    ends = [GEOD.inv(*lines.transform(right, y), *lines.transform(right + gap, y))[2] for y in np.linspace(bottom, top, 50)]
    assert nearest([first], [second])[0] == pytest.approx(min(ends), rel=2e-4)


def test_far_scenes_over_the_antimeridian_and_at_the_pole():
    fiji, tonga = at("a", 179.9, -17.0, 32760), at("b", -179.9, -17.0, 4326)
    metres, *_ = nearest([fiji], [tonga])
    assert metres == pytest.approx(brute(fiji, tonga), abs=15)
    assert metres < 25_000
    far = at("c", 100.0, 60.0, 3857)
    assert nearest([fiji], [far])[0] == pytest.approx(brute(fiji, far), rel=1e-4)
    around = [at(f"p{lon}", lon, 89.9, 3413) for lon in (0.0, 90.0, 180.0)]
    assert nearest(around[:1], around[2:])[0] == pytest.approx(brute(around[0], around[2]), abs=15)
    assert pairs_within(around, around, 25_000) == list(itertools.product(range(3), repeat=2))


def test_scenes_on_both_sides_of_the_antimeridian_overlap_in_two_systems():
    first, second = at("a", 180.0, -17.0, 32701), at("b", -179.999, -17.0, 4326)
    assert near_pairs([first], [second], -0.1) == near_pairs([second], [first], -0.1) == [(0, 0)]


def test_overlap_is_no_distance_and_what_lies_nowhere_has_none():
    big, small, site = at("a", 15, 50, 32633), at("b", 15, 50, 4326, size=4), memory_case("v", unit="mm")
    assert nearest([site, big], [small])[0] == 0
    assert nearest([site], [small]) is None
    assert nearest([], [small]) is None
    local = memory_case("l", crs='LOCAL_CS["site",UNIT["metre",1]]', unit="m")
    assert nearest([local], [local]) is None
    assert pairs_within([site, big], [small, site], 10.0) == [(1, 0)]


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.floats(1, 40_000))
def test_pairs_within_a_gap_and_the_nearest_pair_are_those_of_all_pairs(seed, gap):
    rng = np.random.default_rng(seed)
    cases = [
        at(f"c{n}", *(15 + rng.uniform(-0.4, 0.4), 50 + rng.uniform(-0.3, 0.3)), code, int(rng.choice([2, 50, 1500])))
        for n, code in enumerate(rng.choice([4326, 3857, 32633], 8))
    ]
    apart = np.array([[nearest([a], [b])[0] for b in cases] for a in cases])
    assert pairs_within(cases, cases, gap) == [(int(i), int(j)) for i, j in np.argwhere(apart < gap)]
    # How finely outlines are stepped depends on the longest scene compared, here of 15 km: metres of several hundred.
    assert nearest(cases[:4], cases[4:])[0] == pytest.approx(apart[:4, 4:].min(), abs=5.0)


@pytest.mark.parametrize(("code", "latitude"), [(4326, 10.0), (4326, 70.0), (3857, 60.0), (32633, 47.0), (2225, 40.0)])
def test_metres_of_a_map_unit_are_measured(code, latitude):
    longitude = -122.0 if code == 2225 else 15.0
    lines = Transformer.from_crs(4326, code, always_xy=True)
    x, y = lines.transform(longitude, latitude)
    step = 1e-4 if code == 4326 else 10.0
    for axis in range(2):
        ends = [lines.transform(*(np.array((x, y)) + sign * step * np.eye(2)[axis]), direction="INVERSE") for sign in (-1, 1)]
        expected = GEOD.inv(*ends[0], *ends[1])[2] / (2 * step)
        assert metres_per_unit(wkt(code), np.array([(x, y)]), step)[0, axis] == pytest.approx(expected)


def test_a_projection_that_is_true_to_scale_is_taken_at_its_word_and_mercator_is_not():
    assert least_metres(at("a", 15, 50, 32633)) == (1.0, 1.0)
    assert least_metres(at("b", 15, 60, 3857)) == pytest.approx((0.5, 0.5), rel=0.01)
    assert least_metres(memory_case("v", unit="mm")) == (1.0, 1.0)
