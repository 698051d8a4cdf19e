import numpy as np
import rasterio.features
import shapely
from hypothesis import given
from hypothesis import strategies as st

from tests.testers.formats import few, tiles, windows
from voxtile.cases.burn import Placed, burn, near_change
from voxtile.cases.window import Window

SHAPE = (1, 23, 31)
WHOLE = Window.whole(SHAPE)


def placed(polygons, codes=None):
    count = len(polygons)
    codes = np.arange(1, count + 1) if codes is None else np.asarray(codes)
    return Placed.of(np.array(polygons, dtype=object), codes.astype(np.uint16), np.arange(count))


@st.composite
def polygons(draw, step):
    """Valid polygons, some with holes, with vertices at multiples of `step` pixels in and around the scene."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        x, y = draw(st.integers(-5, 30)), draw(st.integers(-5, 22))
        place = st.tuples(*[st.integers(0, 12 * step)] * 2)
        offsets = draw(st.lists(place, min_size=3, max_size=8, unique=True))
        hull = shapely.convex_hull(shapely.multipoints([(x + a / step, y + b / step) for a, b in offsets]))
        if hull.geom_type != "Polygon":
            continue
        inner = shapely.affinity.scale(hull, 0.5, 0.5)
        hole = shapely.set_precision(inner, 1 / step)
        cut = hull.difference(hole) if draw(st.booleans()) else hull
        found += [part for part in shapely.get_parts(cut) if part.geom_type == "Polygon"]
    return found


def snapped(polygon):
    """The polygon with its vertices at the nearest 1/256 pixel."""
    return shapely.transform(polygon, lambda xy: np.rint(xy * 256) / 256)


@few
@given(data=st.data(), all_touched=st.booleans(), step=st.sampled_from([1, 2, 7, 256]))
def test_a_window_is_a_slice_of_the_whole(data, all_touched, step):
    shapes = placed(data.draw(polygons(step)))
    whole = shapes.burnt(WHOLE, all_touched)
    window = data.draw(windows(SHAPE))
    np.testing.assert_array_equal(shapes.burnt(window, all_touched), whole[window.slices[1:]])


@few
@given(data=st.data())
def test_the_filled_pixels_are_gdals(data):
    # No edge of these lies level on pixel centres: GDAL gives pixels on such an edge to both sides.
    found = [snapped(each) for each in data.draw(polygons(7))]
    expected = np.zeros(SHAPE[1:], dtype=np.uint16)
    if found:
        rasterio.features.rasterize([(each, code) for code, each in enumerate(found, 1)], out=expected)
    np.testing.assert_array_equal(placed(found).burnt(WHOLE, all_touched=False), expected)


@few
@given(data=st.data(), step=st.sampled_from([1, 2, 7]))
def test_touched_pixels_are_those_whose_interior_the_polygon_reaches_into(data, step):
    ys, xs = np.indices(SHAPE[1:])
    pixels = shapely.box(xs, ys, xs + 1, ys + 1)
    for polygon in map(snapped, data.draw(polygons(step))):
        if not polygon.is_valid or polygon.area == 0:  # snapping made a line of it, which has no interior
            continue
        expected = shapely.intersects(polygon, pixels) & ~shapely.touches(polygon, pixels)
        np.testing.assert_array_equal(placed([polygon]).burnt(WHOLE, all_touched=True) > 0, expected)


def test_of_polygons_that_share_an_edge_on_pixel_centres_one_has_the_pixel():
    grid = [shapely.box(x + 0.5, y + 0.5, x + 3.5, y + 3.5) for x in range(0, 30, 3) for y in range(0, 21, 3)]
    counts = sum(placed([each]).burnt(WHOLE, all_touched=False) for each in grid)
    assert counts.max() == 1
    assert counts.sum() == 9 * len(grid)


def test_polygons_on_pixel_edges_touch_no_pixel_outside():
    square = shapely.box(3, 4, 7, 9)
    for all_touched in (False, True):
        out = placed([square]).burnt(WHOLE, all_touched)
        assert out[4:9, 3:7].all()
        assert out.sum() == 20


def test_a_level_sliver_and_a_speck_are_touched():
    sliver = shapely.Polygon([(2.25, 3.5), (9.75, 3.5), (9.75, 3.5)])
    speck = shapely.Polygon([(20.5, 8.25), (20.5, 8.25), (20.5, 8.25)])
    out = placed([sliver, speck]).burnt(WHOLE, all_touched=True)
    assert np.argwhere(out == 1).tolist() == [[3, x] for x in range(2, 10)]
    assert np.argwhere(out == 2).tolist() == [[8, 20]]


def test_far_away_vertices_stay_exact():
    far = 2**21
    wedge = placed([shapely.Polygon([(-far, -far), (far, far), (-far, far)])])  # its long edge goes through pixel centres
    expected = np.tri(*SHAPE[1:], dtype=np.uint16)  # a centre on the edge belongs to what lies left of it
    for window in (WHOLE, *tiles(SHAPE, (1, 5, 4))):
        np.testing.assert_array_equal(wedge.burnt(window, all_touched=False), expected[window.slices[1:]])


def test_the_higher_code_wins_whatever_the_order():
    a, b = shapely.box(0, 0, 9, 9), shapely.box(5, 5, 15, 15)
    for order in ([a, b], [b, a]):
        codes = [1 if each is a else 2 for each in order]
        assert placed(order, codes).burnt(WHOLE, all_touched=False)[7, 7] == 2


def test_no_polygon_burns_nothing():
    assert not placed([]).burnt(WHOLE, all_touched=True).any()
    assert placed([]).anchors(Window(0, 0, 0, 1, 23, 31), np.ones(2, dtype=bool)).shape == (0, 3)


def test_anchors_lie_inside_the_largest_part_in_the_scene():
    ring = shapely.box(2, 2, 12, 12).difference(shapely.box(4, 4, 11, 11))
    parts = [shapely.box(20, 15, 22, 17), ring, shapely.box(24, 3, 90, 20), shapely.box(100, 0, 110, 9)]
    features = np.array([2, 0, 2, 1])
    shapes = Placed.of(np.array(parts, dtype=object), np.array([1, 2, 1, 1], dtype=np.uint16), features)
    found = shapes.anchors(WHOLE, np.array([True, True, True]))
    assert found.dtype == np.int32
    codes = shapes.burnt(WHOLE, all_touched=False)
    assert [codes[y, x] for _, y, x in found] == [2, 1]  # shape 0, shape 2; shape 1 lies outside
    assert 24 <= found[1][2] < 31
    assert [codes[y, x] for _, y, x in shapes.anchors(WHOLE, np.array([True, True, False]))] == [1]
    halves = [shapes.anchors(Window(0, 0, x, 1, 23, 8), np.ones(3, dtype=bool)) for x in (0, 8, 16)]
    assert [[codes[y, x] for _, y, x in half] for half in halves] == [[2], [2], [1]]
    assert [half[0][2] // 8 for half in halves] == [0, 1, 2]  # each inside its box


@few
@given(data=st.data(), width=st.sampled_from([1, 1.5, 2, 3.7]))
def test_near_changes_equal_a_search_of_all_pairs(data, width):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    codes = np.repeat(np.repeat(rng.integers(0, 3, (3, 4)), 4, axis=0), 3, axis=1).astype(np.uint16)
    places = np.argwhere(codes >= 0)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    differs = codes.ravel()[:, None] != codes.ravel()[None]
    expected = ((distance <= width) & differs).any(axis=1).reshape(codes.shape)
    np.testing.assert_array_equal(near_change(codes, width), expected)


def test_what_is_burnt_compiled_is_what_python_burns():
    polygons = [shapely.Polygon([(1.3, 2.1), (20.7, 5.2), (8.8, 19.9)]), shapely.box(3, 3, 9.5, 9.5)]
    shapes = placed(polygons)
    out = np.zeros(SHAPE[1:], dtype=np.uint16)
    arrays = [shapes.points, shapes.rings, shapes.polygons, shapes.codes, np.arange(2)]
    burn.py_func(*arrays, (0, 0), out, True)
    np.testing.assert_array_equal(out, shapes.burnt(WHOLE, all_touched=True))
