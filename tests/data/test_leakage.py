import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform, transform_bounds

from tests.testers.geotiff import NORTH_UP, bands, save
from tests.testers.memory import memory_case, north_up
from tests.testers.places import DEGREES, UTM33, UTM34, scene
from voxtile.cases.case import Case
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.window import Window
from voxtile.data.blocks import BlockSplit
from voxtile.data.footprints import near_pairs
from voxtile.data.leakage import (
    SAME_GROUP,
    SAME_IMAGE,
    alike_groups,
    alike_pairs,
    distinct_values,
    find_leaks,
    gate,
    of_one_file,
    single_values,
    suspicions,
    to_type,
)
from voxtile.data.splits import GroupSplit, Split
from voxtile.errors import ConfigError, DataError

few = settings(max_examples=40, deadline=None)


def leaks(train, val, test=(), contents=None):
    return [str(leak) for leak in find_leaks(Split(tuple(train), tuple(val), tuple(test)), contents or {})]


# --- on the ground


@few
@given(st.tuples(*[st.integers(-14, 14)] * 2), st.integers(3, 12), st.sampled_from([(UTM33, 10.0), (DEGREES, 1e-4)]))
def test_scenes_leak_where_they_share_a_pixel_and_only_there(offset, size, system):
    crs, pixel = system
    first = scene("a", crs=crs, pixel=pixel)
    second = scene("b", *offset, size=size, crs=crs, pixel=pixel)
    cover = np.zeros((60, 60), dtype=int)
    cover[20:30, 20:30] += 1
    cover[20 + offset[1] : 20 + offset[1] + size, 20 + offset[0] : 20 + offset[0] + size] += 1
    assert bool(leaks([first], [second])) == (cover.max() == 2)


def test_touching_scenes_may_overlap_by_a_rounding_error_only():
    assert not leaks([scene("a")], [scene("b", left=9.95)])
    assert leaks([scene("a")], [scene("b", left=9.85)]) == ["'b' (val) shows the same ground as a (train)"]


def test_turned_scenes_are_compared_as_they_lie_not_by_their_boxes():
    def turned(x):
        c = 10 * np.sqrt(0.5)
        affine = ((c, c, 0, x), (c, -c, 0, 5e6), (0, 0, 1, 0), (0, 0, 0, 1))
        return memory_case(f"t{x}", (1, 20, 20), affine=affine, crs=UTM33, unit="m")

    small = scene("small", size=2)
    corner = memory_case("corner", (1, 2, 2), affine=north_up(0, 5e6 + 130), crs=UTM33, unit="m")
    assert turned(0).grid.footprint[0] < corner.grid.footprint[0] < corner.grid.footprint[2] < turned(0).grid.footprint[2]
    assert near_pairs([turned(0)], [corner, small], -0.1) == []
    assert near_pairs([turned(0)], [turned(150)], -0.1) == [(0, 0)]
    assert near_pairs([turned(0)], [turned(283)], -0.1) == []  # tip to tip
    assert near_pairs([turned(0)], [turned(283)], 1.0) == [(0, 0)]


@few
@given(st.tuples(*[st.floats(-300, 300)] * 2))
def test_scenes_in_two_systems_leak_where_one_covers_a_point_of_the_other(offset):
    first = scene("a", size=100, crs=UTM33)
    (x,), (y,) = transform(UTM33, UTM34, [500_000.0 + 10 * offset[0]], [5_500_000.0 - 10 * offset[1]])
    second = memory_case("b", (1, 100, 100), affine=north_up(x, y, 10.0), crs=UTM34, unit="m")
    # Points inside the one, brought into the other's system by itself: independent of outlines and of degrees.
    left, bottom, right, top = second.grid.footprint
    grid = np.meshgrid(np.linspace(left, right, 80), np.linspace(bottom, top, 80))
    px, py = transform(UTM34, UTM33, grid[0].ravel(), grid[1].ravel())
    a, b, c, d = first.grid.footprint
    depth = np.minimum.reduce([np.array(px) - a, c - np.array(px), np.array(py) - b, d - np.array(py)]).max()
    if abs(depth) > 40:  # two pixels of the 80 x 80 points, and what lies between them
        assert bool(near_pairs([first], [second], -0.1)) == (depth > 0)


def test_the_edges_of_a_large_scene_are_curves_in_another_system():
    large = memory_case("large", (1, 100, 100), affine=north_up(700_000, 6_600_000, 1000.0), crs=UTM33, unit="m", metres=(1, 1))
    # In degrees the middle of the northern edge lies 0.3 km north of the straight line between its ends.
    for inwards, overlaps in ((160, True), (-60, False)):
        (x,), (y,) = transform(UTM33, DEGREES, [750_000], [6_600_000 - inwards])
        small = memory_case("small", (1, 2, 2), affine=north_up(x, y, 2e-4), crs=DEGREES, unit="m")
        assert near_pairs([large], [small], -0.1) == [(0, 0)] * overlaps


def test_a_scene_over_the_antimeridian_is_not_everywhere():
    fiji = memory_case(
        "fiji", (1, 100, 100), affine=north_up(813_000, 8_000_000, 100.0), crs=CRS.from_epsg(32760).to_wkt(), unit="m"
    )
    bounds = transform_bounds(fiji.grid.crs, "EPSG:4326", *fiji.grid.footprint)
    assert bounds[0] > bounds[2]
    away = memory_case("away", (1, 10, 10), affine=north_up(20.0, bounds[3], 0.1), crs=DEGREES, unit="m", metres=(1e5, 1e5))
    assert near_pairs([fiji], [away, fiji], -0.1) == [(0, 1)]


@pytest.mark.parametrize(("polar", "ups"), [(3031, 32761), (3413, 32661)])
def test_scenes_at_a_pole_are_compared_across_systems(polar, ups):
    def at(name, x, y, code, size):
        return memory_case(
            name, (1, size, size), affine=north_up(x - 50 * size, y + 50 * size, 100.0), crs=CRS.from_epsg(code).to_wkt(), unit="m"
        )

    around = at("around", 0, 0, polar, 100)  # 10 km with the pole in the middle; its corners are 7 km from it
    places = {(0, 0): True, (3000, 2000): True, (-4500, 0): True, (-6500, 0): False, (0, 6500): False, (90_000, 0): False}
    others = [at(str(place), 2e6 + place[0], 2e6 + place[1], ups, 10) for place in places]
    turn = 45 if polar == 3413 else 0  # degrees by which its axes are turned against the other's
    if turn:
        places[-6500, 0] = places[0, 6500] = True  # towards the corners
    assert near_pairs([around], others, -0.1) == [(0, number) for number, near in enumerate(places.values()) if near]


def test_a_turn_of_the_earth_is_no_distance():
    east, west, far = (
        memory_case(name, (1, 10, 10), affine=north_up(x, 0.0, 0.1), crs=DEGREES, unit="m", metres=(1e5, 1e5))
        for name, x in (("east", 179.5), ("west", -179.9), ("far", 0.1))
    )
    assert near_pairs([east, west], [west, east, far], -0.1) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_scenes_whose_place_on_earth_is_unknown_are_compared_in_their_own_system_only():
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    site, shifted = (memory_case(name, (1, 9, 9), affine=north_up(x), crs=local, unit="m") for name, x in (("s", 0), ("t", 40)))
    assert near_pairs([site], [shifted, scene("a"), memory_case("plain")], -0.1) == [(0, 0)]


def test_volumes_and_pictures_lie_nowhere():
    assert not leaks([memory_case("a", unit="mm")], [memory_case("b", unit="mm")])


# --- groups, contents, files


def test_a_group_on_two_sides_leaks_for_each_pair_of_sides():
    train = [memory_case("t1", group="p"), memory_case("t2", group="p"), memory_case("t3", group="q")]
    found = leaks(train, [memory_case("v", group="p")], [memory_case("x", group="p")])
    assert found == [
        "'v' (val) is of the same group as t1, t2 (train)",
        "'x' (test) is of the same group as t1, t2 (train)",
        "'x' (test) is of the same group as v (val)",
    ]


def test_identical_images_leak():
    train, val = [memory_case("a"), memory_case("b")], [memory_case("c"), memory_case("d")]
    assert leaks(train, val, contents={"a": "1", "b": "2", "c": "3", "d": "2"}) == ["'d' (val) has the same image as b (train)"]
    assert leaks(train, val, contents={"a": "", "c": ""}) == []


@few
@given(st.randoms(use_true_random=False))
def test_leaks_by_group_and_image_are_all_pairs_that_have_one_in_common(random):
    def case(number):
        name, group = f"c{number:02}", random.choice("pqrs")
        whole = memory_case(name, (1, 4, 40), group=group, path=random.choice(["one.npy", "two.npy", f"{name}.npy"]))
        block = replace(whole.view(Window(0, 0, number, 1, 4, 1)), group=f"{group}#{number % 3}", within=group)
        return random.choice([whole, block])

    cases = [case(number) for number in range(24)]
    contents = {each.id: random.choice(["", "1", "2"]) for each in cases if random.random() < 0.8}
    split = Split(tuple(cases[:10]), tuple(cases[10:18]), tuple(cases[18:]))

    def related(a, b):
        return a.group == b.group or a.within == b.group or a.group == b.within

    def alike(a, b):
        return contents.get(a.id) and contents.get(a.id) == contents.get(b.id) and not of_one_file(a, b)

    expected = [
        (one.id, side, others, other_side, why)
        for side, other_side in (("val", "train"), ("test", "train"), ("test", "val"))
        for why, test in ((SAME_GROUP, related), (SAME_IMAGE, alike))
        for one in split.sides[side]
        if (others := tuple(other.id for other in split.sides[other_side] if test(one, other)))
    ]
    found = [leak for leak in find_leaks(split, contents) if leak.why in (SAME_GROUP, SAME_IMAGE)]
    assert [(leak.case, leak.side, leak.others, leak.other_side, leak.why) for leak in found] == expected


def test_thousands_of_cases_with_one_image_or_one_group_are_told_by_one_list_of_others():
    split = Split(
        tuple(memory_case(f"t{number}", group="p") for number in range(900)),
        tuple(memory_case(f"v{n}", group="p") for n in range(300)),
    )
    found = find_leaks(split, {case.id: "blank" for side in split.sides.values() for case in side})
    assert len(found) == 600
    assert len({id(leak.others) for leak in found}) == 2


def test_views_of_one_file_leak_only_where_their_regions_meet():
    whole = scene("a")
    left, right, middle = (whole.view(Window(0, 0, x, 1, 10, 5), f"#{x}") for x in (0, 5, 3))
    left, right, middle = (replace(case, group=case.id) for case in (left, right, middle))
    same = {case.id: "nothing but zeros" for case in (left, right, middle)}
    assert leaks([left], [right], contents=same) == []
    assert leaks([left], [middle], contents=same) == ["'a#3' (val) shares pixels of one file with a#0 (train)"]


def test_blocks_do_not_leak_into_each_other_but_overlapping_scenes_do():
    split = BlockSplit((2, 2), test=0.25)([scene("a"), scene("far", left=100)])
    assert find_leaks(split, {}) == []
    split = BlockSplit((2, 2), test=0.25)([scene("a"), scene("near", left=3)])
    assert {leak.why for leak in find_leaks(split, {})} == {"shows the same ground as"}


def test_views_of_one_file_leak_where_a_pixel_is_in_both():
    rng = np.random.default_rng(0)
    whole = memory_case("w", (6, 20, 20), path="one.npy")
    boxes = [(rng.integers(0, (4, 12, 12)), rng.integers(1, (3, 8, 8))) for _ in range(60)]
    views = [replace(whole.view(Window.of(*map(tuple, box)), f"#{n}"), group=str(n)) for n, box in enumerate(boxes)]
    painted = [np.zeros((6, 20, 20), dtype=bool) for _ in views]
    for view, pixels in zip(views, painted, strict=True):
        pixels[view.box.slices] = True
    found = {(leak.case, other) for leak in find_leaks(Split(tuple(views[:30]), tuple(views[30:])), {}) for other in leak.others}
    shared = {(views[i].id, views[j].id) for i in range(30, 60) for j in range(30) if (painted[i] & painted[j]).any()}
    assert found == shared
    assert 0 < len(shared) < 900


def test_a_file_that_is_stacked_on_all_scenes_makes_no_leak_and_hides_none(tmp_path):
    """A map of heights of the whole region, on a grid of its own; a further band on the scene's grid is a file like the first."""
    rng = np.random.default_rng(0)
    heights = save(tmp_path / "dem.tif", rng.random((1, 20, 300), dtype=np.float32), transform=NORTH_UP @ Affine.scale(3))
    further = save(tmp_path / "further.tif", bands((1, 30, 30)))

    def stacked(name, x, second=heights):
        path = save(tmp_path / f"{name}.tif", bands((1, 30, 30)), transform=NORTH_UP @ Affine.translation(x, 0))
        return Case(name, name, GeoTiffSource([path, second]))

    first, far, copy = stacked("a", 0), stacked("b", 500), stacked("c", 0)
    assert leaks([first], [far]) == []
    assert suspicions([first, far], {}) == []
    assert leaks([first], [copy], contents={"a": "1", "c": "1"}) == [
        "'c' (val) has the same image as a (train)", "'c' (val) shows the same ground as a (train)"
    ]  # fmt: skip
    assert suspicions([first, copy], {})[0].startswith("Cases in different groups touch or overlap")
    shared = leaks([stacked("d", 0, further)], [stacked("e", 0, further)])
    assert shared == ["'e' (val) shares pixels of one file with d (train)"]


@few
@given(st.integers(3, 30), st.integers(1, 3), st.integers(0, 9))
def test_a_split_by_group_never_leaks(count, per_group, seed):
    cases = [memory_case(f"c{number}", group=f"g{number // per_group}") for number in range(count * per_group)]
    assert find_leaks(GroupSplit(seed=seed)(cases), {case.id: case.group for case in cases}) == []


# --- the gate


@pytest.fixture
def leaking():
    split = Split(
        (memory_case("t#1", group="p"), memory_case("t 2", group="p")),
        (memory_case("12", group="p"),),
        (memory_case("x", group="p"),),
    )
    return find_leaks(split, {"t#1": "same", "12": "same"})


def test_the_gate_lists_leaks_and_its_advice_can_be_typed(leaking):
    with pytest.raises(DataError) as caught:
        gate(leaking)
    text = str(caught.value)
    assert "the sides of the split (4)" in text
    assert "'12' (val) is of the same group as t#1, t 2 (train)" in text
    assert "'12' (val) has the same image as t#1 (train)" in text
    typed = text[text.index("data.waive=") : text.rindex("'")]
    names = OverridesParser.create().parse_override(typed).value()
    assert gate(leaking, [str(name) for name in names]) == [f"Leak waived by the user: {leak}." for leak in leaking]


def test_the_gates_advice_fits_the_leaks(leaking):
    for found, place, groups in ((leaking, False, True), (find_leaks(Split((scene("a"),), (scene("b"),)), {}), True, False)):
        with pytest.raises(DataError) as caught:
            gate(found)
        assert ("'data.group.place=1'" in str(caught.value), "'split=groups'" in str(caught.value)) == (place, groups)


def test_a_clean_split_passes_the_gate():
    assert gate([]) == []


def test_a_waiver_frees_the_leaks_of_its_case_only(leaking):
    with pytest.raises(DataError) as caught:
        gate(leaking, ["12"])
    assert "the sides of the split (1)" in str(caught.value)
    assert "'x' (test) is of the same group as t#1, t 2 (train)" in str(caught.value)
    assert len(gate(leaking, ["t#1", "t 2", "12"])) == 4  # the leaks' other cases, all of them
    with pytest.raises(DataError, match=r"sides of the split \(3\)"):
        gate(leaking, ["t#1"])  # one of two, and the only one with the same image


@pytest.fixture
def empty():
    """A split of which 4 training, 5 validation and 3 test cases hold one image, and of each side one does not."""
    sides = {"t": 4, "v": 5, "x": 3}
    split = Split(*(tuple(memory_case(f"{side}{number}") for number in range(count + 1)) for side, count in sides.items()))
    contents = {f"{side}{number}": "blank" for side, count in sides.items() for number in range(count)}
    return split, find_leaks(split, contents)


def test_many_cases_with_one_image_are_one_sentence_and_the_file_that_it_names_can_be_typed(empty, tmp_path):
    split, found = empty
    with pytest.raises(DataError) as caught:
        gate(found, [], values=single_values(found, split), exclude=["gone"], lists=tmp_path / "check")
    text = str(caught.value)
    hold = "12 cases hold one image, all of whose pixels are 0: "
    hold += "v0, v1, v2, v3 and 1 more (val), x0, x1, x2 (test), t0, t1, t2, t3 (train)."
    assert text.count(hold) == 1
    assert "group" not in text
    names = {key: text.partition(f"'data.{key}=")[2].partition("'")[0] for key in ("exclude", "waive")}
    assert set(Path(names["exclude"]).read_text().split("\n")) == {
        "gone", "", *(f"{side}{number}" for side, count in {"t": 4, "v": 5, "x": 3}.items() for number in range(count))
    }  # fmt: skip
    assert names["waive"] == '["v0","v1","v2","v3","v4","x0","x1","x2"]'
    waived = Path(names["exclude"]).read_text().split()
    (sentence,) = gate(found, waived, ["gone"], single_values(found, split))
    assert sentence.startswith("Leak waived by the user: 12 cases hold one image, all of whose pixels are 0: v0, ")


def test_blocks_cannot_be_left_out_and_are_not_advised_to_be():
    sides = [tuple(memory_case(f"s0#r{row}c{column}") for column in range(4)) for row in range(2)]
    split = Split(*sides)
    found = find_leaks(split, {case.id: "blank" for side in sides for case in side})
    with pytest.raises(DataError) as caught:
        gate(found, values=single_values(found, split))
    assert "type 'data.exclude=" not in str(caught.value)
    assert "Give what belongs together" in str(caught.value)


def test_names_that_no_line_of_a_file_holds_are_typed(tmp_path):
    names = [f"t{number}" for number in range(12)]
    assert Path(to_type(names, tmp_path)).read_text().split() == names
    assert to_type([*names, "t "], tmp_path).startswith('["t0",')


def test_what_is_left_of_one_image_is_refused(empty):
    for waived in (["v0"], ["v0", "v1", "v2", "v3", "x0", "x1", "x2"], ["t0", "t1", "t2"]):
        with pytest.raises(DataError, match=r"hold one image|has the same image"):
            gate(empty[1], waived)
    assert len(gate(empty[1], ["t0", "t1", "t2", "t3", "x0", "x1", "x2"])) == 1  # all others of validation


@pytest.mark.parametrize(("array", "value"), [([[0, 0], [255, 255]], {"blank": "(0, 255)"}), ([[0, 1], [0, 0]], {})])
def test_an_image_is_called_by_the_value_of_all_its_pixels(empty, array, value):
    split, found = empty
    pixels = np.array(array, dtype=np.uint8).reshape(2, 1, 1, 2)
    split = Split(*(tuple(memory_case(case.id, array=pixels) for case in side) for side in split.sides.values()))
    assert single_values(found, split) == value
    with pytest.raises(DataError) as caught:
        gate(found, values=value)
    assert ("Give what belongs together" in str(caught.value), "(0, 255): v0" in str(caught.value)) == (not value, bool(value))


def test_a_waiver_that_is_to_be_typed_keeps_those_that_were(leaking):
    with pytest.raises(DataError, match=r'data\.waive=\["12","x"\]'):
        gate(leaking, ["12"])


def test_a_waiver_that_names_no_case_is_an_error(leaking):
    with pytest.raises(ConfigError, match=r"names y, .*12, t 2, t#1, x\."):
        gate(leaking, ["12", "x", "y"])
    with pytest.raises(ConfigError, match="are none"):
        gate([], ["12"])


def test_a_waiver_is_idle_in_a_split_without_its_leak():
    assert gate([], ["12"], known=["12", "13"]) == []


# --- suspicions


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        (("p01", "P1", "p2"), "only: 'P1' and 'p01'. Where"),
        (("p-1", "p_1", "p 1", "p12"), "'p 1' and 'p-1' and 'p_1'. Where"),
        (("1_11", "11_1", "111", "1_01"), ""),
        (("2020-01-02", "2020_1_2"), "'2020-01-02' and '2020_1_2'"),
        (("p10", "p1", "p100", "0"), ""),
        (("a-b", "AB", "P1", "p1"), "'AB' and 'a-b', 'P1' and 'p1'"),
    ],
)
def test_groups_that_differ_in_writing_only_are_named(groups, told):
    train, *others = [memory_case(f"c{number}", group=name) for number, name in enumerate(groups)]
    found = alike_groups(Split((train,), (others[0],), tuple(others[1:])))
    assert len(found) == bool(told)
    assert told in "".join(found)


def scans(number, step, seed):
    """Two parts of one scan: multiples of `step` in float32, bell-shaped around different greys."""
    rng = np.random.default_rng([seed, number])
    parts = {f"{number}{side}": rng.normal(centre, 45, 9000).clip(0, 400).astype(int) for side, centre in (("l", 150), ("r", 170))}
    return {name: distinct_values((grey * step).astype(np.float32)) for name, grey in parts.items()}


def names_of(pairs, cases):
    return {(cases[i].id, cases[j].id) for i, j, _ in pairs}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30))
def test_parts_of_one_scan_are_found_by_their_grey_values_and_others_are_not(seed, count):
    steps = np.random.default_rng(seed).uniform(3, 10, count)
    distinct = {name: values for n, step in enumerate(steps) for name, values in scans(n, step, seed).items()}
    cases = [memory_case(name) for name in distinct]
    assert names_of(alike_pairs(cases, distinct), cases) == {(f"{n}l", f"{n}r") for n in range(count)}
    grouped = [memory_case(name, group=name[:-1]) for name in distinct]
    assert alike_pairs(grouped, distinct) == []


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.sampled_from(["uint8", "halves", "unit", "uint16", "continuous"]))
def test_images_of_one_format_are_not_alike(seed, count, form):
    rng = np.random.default_rng(seed)
    distinct = {}
    for number in range(count):
        grey = rng.normal(rng.uniform(90, 160), rng.uniform(20, 60), 20000).clip(0, 255).astype(np.uint8)
        image = {
            "uint8": grey,
            "halves": (grey[::2].astype(float) + grey[1::2]) / 2,
            "unit": grey.astype(np.float32) / 255,
            "uint16": grey.astype(np.uint16) * 257,
            "continuous": rng.normal(0, 1, 20000).astype(np.float32),
        }[form]
        distinct[f"c{number}"] = distinct_values(image)
    assert alike_pairs([memory_case(name) for name in distinct], distinct) == []


def test_a_draw_of_many_values_keeps_the_share_in_common():
    rng = np.random.default_rng(0)
    pool = rng.random(90_000)
    images = {"a": pool[:60_000], "b": pool[15_000:75_000], "c": rng.random(60_000), "d": rng.random(1000), "e": pool[:6000]}
    distinct = {name: distinct_values(values) for name, values in images.items()}
    assert all(len(values) == 512 for values in distinct.values())
    cases = [memory_case(name) for name in images] + [memory_case(f"other{n}") for n in range(9)]
    distinct |= {f"other{n}": distinct_values(rng.random(3000)) for n in range(9)}
    found = {(cases[i].id, cases[j].id): share for i, j, share in alike_pairs(cases, distinct)}
    assert found.keys() == {("a", "b"), ("a", "e")}
    assert found["a", "e"] == 1
    assert found["a", "b"] == pytest.approx(0.75, abs=0.08)


def test_what_cannot_tell_scans_apart_is_dropped():
    values = np.array([[1, 2.5, 3.25, np.nan], [np.inf, 0.3, -0.7, 0.3]])
    assert distinct_values(values).tolist() == [-0.7, 0.3]
    assert distinct_values(np.arange(9, dtype=np.uint8)).size == 0
    many = np.random.default_rng(1).random(5000)
    assert np.array_equal(distinct_values(many), distinct_values(distinct_values(many)))


def test_a_thousand_cases_are_compared():
    distinct = {f"c{n:04d}": np.arange(1, 300) * (1 + n // 2 * 1e-3 + 1 / 3) for n in range(1000)}
    cases = [memory_case(name) for name in distinct]
    found = names_of(alike_pairs(cases, distinct), cases)
    assert {(f"c{n:04d}", f"c{n + 1:04d}") for n in range(0, 1000, 2)} == found


def test_check_is_told_of_scenes_that_touch_and_scans_that_are_alike():
    cases = [
        scene("a"),
        scene("b", left=10.9),
        scene("c", top=11.1),
        scene("d", left=10, group="a"),
        *(memory_case(n) for n in "xyz"),
    ]
    lattice = np.arange(1, 100) * 1.2345
    distinct = {"x": lattice, "y": lattice[5:], "z": lattice * 1.11}
    ground, grey = suspicions(cases, distinct)
    assert ground.startswith("Cases in different groups touch or overlap on the ground (2 pairs): a and b, b and d. ")
    head = "Cases in different groups share most of their grey values, as parts of one scan do (1 pairs): x and y (100%). "
    assert grey.startswith(head)
    assert "data.group.expression" in grey
    assert ("data.group.place=1" in ground, "data.group.place=1" in grey) == (True, False)
    assert suspicions([scene("a"), scene("b", left=20)], {}) == []


def test_blocks_of_one_file_are_not_suspicious():
    split = BlockSplit((2, 2), test=0.25)([scene("a", size=20)])
    blocks = [*split.train, *split.val, *split.test]
    distinct = {case.id: np.arange(1, 100) * step for case, step in zip(blocks, (1.2345, 1.2345, 1.357, 1.468), strict=True)}
    assert len(alike_pairs(blocks, distinct)) == 1
    assert suspicions(blocks, distinct) == []


def test_a_thousand_scenes_are_gone_through():
    places = list(itertools.product(range(32), range(32)))
    tiles = [scene(f"s{x}_{y}", 10 * x, 10 * y) for x, y in places]
    split = Split(tuple(tiles[::2]), tuple(tiles[1::2]))
    assert find_leaks(split, {}) == []
    moved = replace(tiles[600], id="moved", group="moved", image=scene("moved", 10 * 18, 10 * 24 + 1).image)
    assert [str(leak) for leak in find_leaks(replace(split, val=(*split.val, moved)), {})] == [
        "'moved' (val) shows the same ground as s18_24 (train)"
    ]
