"""Blocks of a case's own grid are tested with the other splits; here are those on the ground, folds of blocks and the buffer."""

import itertools
import math
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.crs import CRS
from shapely import Polygon, box
from shapely.affinity import affine_transform

from tests.testers.memory import memory_case, north_up
from tests.testers.places import UTM33, at, scene
from voxtile.data.block_grids import _Columns, margins
from voxtile.data.blocks import BlockKFold, BlockSplit
from voxtile.data.distances import split_distances
from voxtile.data.ground import metres_per_unit
from voxtile.data.leakage import find_leaks, suspicions
from voxtile.data.splits import KFold
from voxtile.errors import ConfigError, DataError

few = settings(max_examples=10, deadline=None)
cells = st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.sampled_from(["train", "val", "test"]), min_size=2)


def ground(cases, side, buffer=0.0, **more):
    return BlockSplit(side=side, buffer=buffer, grid="ground", **more)(cases)


def footprint(case):
    return box(*case.grid.footprint)


@settings(max_examples=100, deadline=None)
@given(cells, st.floats(0.1, 0.7), st.sampled_from([0.0, 0.3, -0.8]))
def test_margins_keep_any_blocks_of_a_grid_apart(sides, buffer, shear):
    """Also in grids with holes, where two blocks may meet at a corner and nowhere else, and in sheared ones."""
    height = 1 / math.hypot(1, shear)  # of a block between its left and right, of upper and lower it is 1
    lean = abs(shear) * height
    buffer *= 0.5 if shear else 1
    sides = {(0, *cell): side for cell, side in sides.items()}
    kept = {}
    for index, side in sides.items():
        lost = {face: loss / (height if face[0] == 2 else 1) for face, loss in margins(index, sides, buffer, lean=lean).items()}
        _, y, x = index
        kept[index] = box(x + lost[2, -1], y + lost[1, -1], x + 1 - lost[2, 1], y + 1 - lost[1, 1])
        assert kept[index].area > 0
        kept[index] = affine_transform(kept[index], [1, shear, 0, 1, 0, 0])
        around = {sides.get((0, y + b, x + a), side) for a, b in itertools.product((-1, 0, 1), repeat=2)}
        assert around != {side} or max(lost.values()) == 0
    for a, b in itertools.combinations(sides, 2):
        if sides[a] != sides[b]:
            assert kept[a].distance(kept[b]) >= buffer - 1e-9


@few
@given(st.floats(-40, 40), st.integers(0, 50), st.sampled_from([[3, 3], [1, 5]]))
def test_sheared_scenes_keep_the_buffer(angle, seed, blocks):
    x, y = 10.0, 10 * math.tan(math.radians(angle))
    affine = ((x, y, 0.0, 500_000.0), (0.0, -10.0, 0.0, 5e6), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    split = BlockSplit(blocks, buffer=100, seed=seed)([memory_case("a", (1, 300, 300), affine=affine, unit="m", crs=UTM33)])

    def outline(case):
        _, height, width = case.shape
        return Polygon([case.grid.transform @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height))])

    for side, other in itertools.combinations(split.sides.values(), 2):
        for a, b in itertools.product(side, other):
            assert outline(a).distance(outline(b)) >= 100 * (1 - 1e-6)


@pytest.mark.parametrize(("tilt", "step", "buffer", "gap"), [(25, 5.0, 29, 8), (0, float(np.float32(0.7)), 7, 10), (0, 0.7, 7, 10)])
def test_slabs_keep_the_buffer_across_a_tilted_stack_and_lose_nothing_to_rounding(tilt, step, buffer, gap):
    angle = math.radians(tilt)
    affine = (
        (1.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, step * math.sin(angle), 0.0),
        (0.0, 0.0, step * math.cos(angle), 0.0),
        (0, 0, 0, 1.0),
    )
    split = BlockSplit([6, 1, 1], buffer=buffer)([memory_case("v", (120, 4, 4), affine=affine, unit="mm")])
    slabs = sorted((case.box.z, case.box.stop[0]) for side in split.sides.values() for case in side)
    gaps = {above[0] - below[1] for below, above in itertools.pairwise(slabs)}
    assert gaps == {0, gap}
    assert gap * step * math.cos(angle) >= buffer * (1 - 1e-6)


shifts = st.lists(st.tuples(st.floats(0, 60), st.floats(0, 60)), min_size=1, max_size=4)


@few
@given(shifts, st.integers(300, 500), st.floats(0, 150), st.integers(0, 50), st.booleans())
def test_the_same_ground_is_on_one_side_and_sides_keep_the_buffer(corners, side, buffer, seed, folds):
    cases = [scene(f"s{n}", *corner, size=60) for n, corner in enumerate(corners)]
    scheme = BlockKFold(side=side, buffer=buffer, grid="ground", seed=seed, folds=2, test=0.2) if folds else None
    scheme = scheme or BlockSplit(side=side, buffer=buffer, grid="ground", seed=seed)
    split = None
    with suppress(DataError):  # of a side whose blocks are all narrower than the buffer, at the edge of the scene
        split = scheme(cases)
    assume(split is not None)
    for first, second in itertools.combinations(split.sides.values(), 2):
        apart = [footprint(a).distance(footprint(b)) for a in first for b in second]
        assert min(apart, default=np.inf) >= buffer - 1e-3
    for case in (*split.train, *split.val, *split.test):  # the cell that its name says, of the lattice through the origin
        x, y = (int(part) for part in case.id.rpartition("#x")[2].split("y"))
        assert box(x * side, y * side, (x + 1) * side, (y + 1) * side).buffer(1e-3).contains(footprint(case))
        assert case.group == f"EPSG:32633 {side} m#x{x}y{y}"
        assert case.within == case.id.partition("#")[0]
    assert find_leaks(split, {}) == []
    assert suspicions([*split.train, *split.val], {}) == []


def test_blocks_on_the_ground_cover_every_pixel_that_lies_in_one_cell():
    case = scene("s", 3, 7, size=60)  # pixels of 10 m on round hundreds: none lies in two cells
    split = ground([case], 200)
    count = np.zeros(case.shape, dtype=int)
    for block in (*split.train, *split.val, *split.test):
        count[block.box.slices] += 1
    assert count.min() == count.max() == 1
    shifted = scene("s", 3.5, 7.5, size=60)
    inside = np.zeros(shifted.shape, dtype=int)
    blocks = [block for part in ground([shifted], 200).sides.values() for block in part]
    for block in blocks:
        inside[block.box.slices] += 1
    edges = [shifted.grid.matrix[axis, axis] * np.arange(-0.5, 60) + shifted.grid.matrix[axis, 3] for axis in (1, 0)]
    whole = [np.floor(np.minimum(e[1:], e[:-1]) / 200) == np.ceil(np.maximum(e[1:], e[:-1]) / 200) - 1 for e in edges]
    assert np.array_equal(inside[0], np.outer(*whole))


def test_a_side_of_which_the_buffer_leaves_nothing_is_an_error():
    with pytest.raises(DataError, match=r"leaves nothing for 'train'.*more blocks, keep a smaller 'split.buffer'"):
        BlockKFold(side=317, buffer=1, grid="ground", seed=38, folds=2, test=0.2)([scene("s", 27, 36, size=60)])


def test_another_scene_does_not_move_the_cells():
    first = {block.id: block.box for part in ground([scene("a")], 30).sides.values() for block in part}
    both = {block.id: block.box for part in ground([scene("a"), scene("b", 3, 3)], 30).sides.values() for block in part}
    assert first.items() <= both.items()


@pytest.mark.parametrize("code", [4326, 3857])
def test_cells_in_degrees_and_in_web_mercator_are_squares_on_the_ground(code):
    case = at("s", 15.0, 60.0, code, size=400, pixel=2.0)
    split = ground([case], 100, buffer=20)
    assert all(block.group.startswith(f"EPSG:{code} 100 m at 60°#x") for block in split.train)
    widths = []
    for block in (*split.train, *split.val):
        left, bottom, right, top = block.grid.footprint
        lines = Transformer.from_crs(code, 32633, always_xy=True)
        (x0, y0), (x1, y1) = lines.transform(left, bottom), lines.transform(right, top)
        widths.append((x1 - x0, y1 - y0))
    assert np.max(widths, axis=0) == pytest.approx((100, 100), abs=3)
    distances = split_distances(split)
    assert min(found.length for found in distances.values()) == pytest.approx(20, abs=4)
    assert min(found.length for found in distances.values()) >= 20


def degrees(name, left, top, width, height, pixel=0.001):
    return memory_case(name, (1, height, width), affine=north_up(left, top, pixel), crs=CRS.from_epsg(4326).to_wkt(), unit="m")


def test_the_same_ground_is_in_the_same_block_on_whichever_turn_a_file_names_it():
    for left in (-170.0371, 179.9123, 12.3):
        one, other = degrees("a", left, -17.0, 300, 60), degrees("b", left + 360 * (1 if left < 0 else -1), -17.0, 300, 60)
        blocks = ground([one, other], 3000, val=0.5, test=0)
        found = {"a": {}, "b": {}}
        for side, part in blocks.sides.items():
            for block in part:
                found[block.id.partition("#")[0]].setdefault(block.group, []).append((block.box, side))
        assert found["a"] == found["b"]
        assert len(found["a"]) > 20


def test_blocks_over_the_antimeridian_keep_the_buffer_and_others_stay_where_they_were():
    cases = [degrees("a", 179.8, 0.1, 200, 100), degrees("b", -180.0, 0.1, 200, 100), degrees("c", 179.9, 0.05, 200, 100)]
    for seed in range(4):
        split = ground(cases, 3000, 500, val=0.5, test=0, seed=seed)
        assert split_distances(split)["val"].length >= 500
        assert not find_leaks(split, {})
    names = {block.group for part in ground(cases, 3000).sides.values() for block in part}
    columns = sorted({int(name.rpartition("#x")[2].partition("y")[0]) for name in names})
    width = 3000 / metres_per_unit(CRS.from_epsg(4326).to_wkt(), np.array([(0.0, 0.0)]), 1.0)[0, 0]
    assert columns[0] == pytest.approx(-180 / width, abs=1)
    assert columns[-1] == pytest.approx(180 / width, abs=2)
    alone = {block.id: block.box for part in ground(cases[:1], 3000).sides.values() for block in part}
    together = {block.id: block.box for part in ground(cases, 3000).sides.values() for block in part}
    assert alone.items() <= together.items()


WORLD = [degrees("w", -180.0, 90.0, 36, 18, pixel=10.0)]


class TestAtThePoles:
    """A degree of longitude has no length there."""

    def test_blocks_of_a_scene_of_the_whole_world(self):
        split = BlockSplit((3, 4))(WORLD)
        assert sum(block.box.size[1] * block.box.size[2] for part in split.sides.values() for block in part) == 36 * 18
        above = BlockSplit((4, 1), buffer=500_000)(WORLD)
        assert split_distances(above)["val"].length >= 500_000
        for counts in ((3, 4), (1, 2)):
            with pytest.raises(ConfigError, match=r"'w' .*reaches to a pole.*'split\.buffer=1000'.*'split\.blocks=\[4,1\]'"):
                BlockSplit(counts, buffer=1000)(WORLD)

    @pytest.mark.parametrize("cases", [WORLD, [degrees("n", 10.0, 90.0, 40, 40, pixel=0.02)]], ids=["world", "near"])
    def test_blocks_on_the_ground(self, cases):
        side = 3_000_000 if cases is WORLD else 4_000
        split = ground(cases, side)
        assert sum(len(part) for part in split.sides.values()) > 3
        assert not find_leaks(split, {})
        with pytest.raises(ConfigError, match=r"reaches to a pole.*'split\.buffer=100' \(metres\)"):
            ground(cases, side, 100)


@pytest.mark.parametrize("width", [0.027, 0.1, 7.0, 100.0, 130.0, 250.0, 400.0])
def test_columns_go_once_around_the_world(width):
    columns = _Columns(width, 360.0)
    first = -(columns.around // 2)
    assert columns.edge(first + columns.around) == pytest.approx(columns.edge(first) + 360)
    for column in (first, first + columns.around // 3, first + columns.around - 1):
        low, high = columns.edge(column), columns.edge(column + 1)
        last = column == first + columns.around - 1
        assert high - low == pytest.approx(width, rel=1e-6) if not last else high - low >= min(width, 360) - 1e-6
        assert high - low < 2 * width
        for turn in (-1, 0, 1):
            place = low + 0.4 * (high - low) + 360 * turn
            assert columns.of(place) == column + turn * columns.around
            assert columns.edge(column + turn * columns.around) == pytest.approx(low + 360 * turn)


def test_what_has_no_place_or_is_turned_or_lies_in_two_systems_is_refused():
    with pytest.raises(DataError, match=r"'split.grid=ground'.*no coordinate reference system.*v \(v.npy\)"):
        ground([memory_case("v")], 30)
    c = 10 * np.sqrt(0.5)
    turned = memory_case("t", (1, 9, 9), affine=((c, c, 0, 5e5), (c, -c, 0, 5e6), (0, 0, 1, 0), (0, 0, 0, 1)), crs=UTM33, unit="m")
    with pytest.raises(DataError, match=r"'t' \(t.npy\) is turned.*gdalwarp.*split.grid=case"):
        ground([turned], 30)
    a, b = at("a", 18.0, 50, 32633), at("b", 18.0, 50, 32634)
    with pytest.raises(DataError, match=r"'a' \(a.npy\) in EPSG:32633, 'b' \(b.npy\) in EPSG:32634.*data.group.place=0"):
        ground([a, b], 100)
    far = at("far", 19.0, 50, 32634)
    assert {block.group.partition("#")[0] for block in ground([a, far], 100).train} == {"EPSG:32633 100 m", "EPSG:32634 100 m"}


def test_one_system_written_in_two_ways_is_one():
    old = CRS.from_epsg(32633).to_wkt(version="WKT1_ESRI")
    assert old != UTM33
    other = memory_case("b", (1, 10, 10), affine=north_up(500_000, 5_500_000), crs=old, unit="m")
    names = [block.group.partition("#")[0] for block in ground([scene("a"), other], 50).train]
    assert set(names) == {"EPSG:32633 50 m"}


def test_a_side_in_metres_cuts_a_case_along_its_own_grid():
    split = BlockSplit(side=30, test=0)([scene("a", size=12), scene("b", left=90, size=6)])  # of 10 m: 120 and 60 m
    sizes = {case.id.partition("#")[0]: case.shape for case in (*split.train, *split.val)}
    assert sizes == {"a": (1, 3, 3), "b": (1, 3, 3)}
    assert len(split.train) + len(split.val) == 16 + 4
    mercator = at("m", 15, 60, 3857, size=40)  # of 10 units, 5 m on the ground
    assert {case.shape for case in BlockSplit(side=50, test=0)([mercator]).train} == {(1, 10, 10)}
    distance = split_distances(BlockSplit(side=50, buffer=10, test=0)([mercator]))["val"]
    assert distance.length >= 10


def test_a_buffer_that_scenes_beside_each_other_do_not_keep_is_refused():
    touching, apart = ([scene("a", size=40), scene("b", left=at_pixel, size=40)] for at_pixel in (40, 46))
    cut = BlockSplit(blocks=[2, 2], buffer=50, test=0)
    with pytest.raises(DataError, match=r"of different ones.*split\.grid=ground"):
        cut(touching)
    distances = split_distances(cut(apart))
    assert distances["val"].length >= 50
    assert split_distances(BlockSplit(blocks=[2, 2], test=0)(touching))["val"].length == 0  # nothing was asked for


@few
@given(st.integers(2, 5), st.integers(0, 30), st.sampled_from([0.0, 0.2]), st.booleans())
def test_every_block_is_validated_once_and_the_buffer_is_kept_in_every_fold(folds, seed, test, stratify):
    case = scene("s", size=40)
    given = {f"s#r{r}c{c}": [100, 7 * r + c] for r, c in itertools.product(range(4), repeat=2)}
    schemes = [BlockKFold((4, 4), 20.0, folds, fold, test, seed, stratify=stratify) for fold in range(folds)]
    assert all(scheme.needs_counts == stratify for scheme in schemes)
    shares = {block.id: given[block.id] for block in schemes[0].readable([case])}  # the labels of test stay closed
    splits = [scheme([case], shares) for scheme in schemes]
    locked = {block.id for block in splits[0].test}
    assert shares.keys() == given.keys() - locked
    assert sorted(block.id for split in splits for block in split.val) == sorted(given.keys() - locked)
    for split in splits:
        assert {block.id for block in split.test} == locked
        for first, second in itertools.combinations(split.sides.values(), 2):
            assert min((footprint(a).distance(footprint(b)) for a in first for b in second), default=20) >= 20 - 1e-6


def test_strata_of_blocks_share_out_the_foreground():
    case = scene("s", size=40)
    shares = {f"s#r{r}c{c}": [100, 900 if r < 2 else 0] for r, c in itertools.product(range(4), repeat=2)}
    for fold in range(4):
        split = BlockKFold((4, 4), folds=4, fold=fold, stratify=True)([case], shares)
        assert sorted(block.id < "s#r2" for block in split.val) == [False, False, True, True]
    split = BlockSplit((4, 4), val=0.25, test=0, stratify=True)([case], shares)
    assert sorted(block.id < "s#r2" for block in split.val) == [False, False, True, True]


def test_folds_of_blocks_are_those_of_groups():
    case = scene("s", size=40)
    split = BlockKFold((4, 4), fold=1)([case])
    blocks = [replace(memory_case(block.id), group=block.group) for part in split.sides.values() for block in part]
    assert {block.id for block in KFold(fold=1)(blocks).val} == {block.id for block in split.val}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 17}, r"'split.folds=17' .* 16 groups leave 16 .*'split.folds=16'.*'split.blocks', 'split.side'"),
        ({"folds": 4, "fold": 4}, r"'fold=4' of 'split.folds=4' does not exist"),
        ({"buffer": -1.0}, r"'split.buffer=-1.0' must be a number from 0 up"),
        ({"buffer": np.nan}, r"'split.buffer=nan' must be a number from 0 up"),
        ({"side": 100, "buffer": 80.0}, r"'split.side=100' leaves nothing .*'split.buffer=80'.*1.42 times.*'split.buffer=25'"),
        ({"side": -1}, r"'split.side=-1' is the length"),
        ({"grid": "ground"}, r"'split.grid=ground' needs the side.*'split.side=5000'"),
        ({"grid": "grond", "side": 9}, r"'split.grid=grond' is unknown.*Did you mean 'ground'"),
        ({"side": 0.01, "grid": "ground"}, r"cuts case 's' \(s.npy\) into 1,600,000,000 blocks, and 100,000 are the most"),
        ({"stratify": True}, r"'split.stratify=true' needs the labels.*s#r0c0.*split.stratify=false"),
    ],
)
def test_blocks_that_make_no_sense_are_an_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        BlockKFold(**settings)([scene("s", size=40)])


def test_a_block_is_of_one_group_with_whole_cases_of_its_scenes_group():
    split = BlockSplit((2, 2), test=0.25)([scene("a", group="p"), scene("far", left=90, group="q")])
    sibling = scene("b", left=300, group="p")
    found = [str(leak) for leak in find_leaks(replace(split, train=(sibling,), test=()), {})]
    expected = [f"'{case.id}' (val) is of the same group as b (train)" for case in split.val if case.id.startswith("a")]
    assert found == expected
    other_way = find_leaks(replace(split, val=(sibling,), test=()), {})
    names = tuple(case.id for case in split.train if case.id.startswith("a"))
    assert [(leak.case, leak.others, leak.why) for leak in other_way] == [("b", names, "is of the same group as")]
    assert find_leaks(replace(split, train=(scene("c", left=300),), test=()), {}) == []
