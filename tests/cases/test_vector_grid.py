import json

import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import ProjError

from voxtile.cases.grid import CanonicalGrid
from voxtile.cases.vector_files import read_shapes, stamps_of
from voxtile.cases.vector_grid import SceneGrid
from voxtile.cases.vector_settings import VectorSettings
from voxtile.cases.window import Window
from voxtile.errors import DataError

HEIGHT, WIDTH = 48, 64


def scene(crs, left, top, pixel, rotation=0.0):
    """A grid of square pixels whose first corner lies at (left, top)."""
    t = Affine(pixel, 0, left, 0, -pixel, top) @ Affine.rotation(rotation) @ Affine.translation(0.5, 0.5)
    affine = ((t.a, t.b, 0.0, t.c), (t.d, t.e, 0.0, t.f), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    return CanonicalGrid((1, HEIGHT, WIDTH), affine, "m", CRS.from_user_input(crs).to_wkt())


def around(crs, longitude, latitude, pixel, rotation=0.0):
    """A grid with its middle at a place."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
    return scene(crs, x - WIDTH / 2 * pixel, y + HEIGHT / 2 * pixel, pixel, rotation)


def read(folder, shapes, crs="EPSG:4326", **settings):
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(shape)} for shape in shapes]
    path = folder / "l.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return read_shapes(path, VectorSettings.of({"crs": crs, **settings}), stamps_of(path))


def burnt(folder, grid, shapes, crs="EPSG:4326", buffer=0.0):
    found = read(folder, shapes, crs, buffer=buffer)
    return SceneGrid(grid, found.crs, buffer, 0.0).place(found, "l.geojson").burnt(Window.whole(grid.shape), all_touched=False) > 0


def places(grid, crs="EPSG:4326", dx=0.0, dy=0.0):
    """Coordinates (x, y) of the pixels' centres, or of points that far off them, in `crs` [2, H, W]."""
    rows, columns = np.indices((HEIGHT, WIDTH)).astype(float)
    x, y = np.einsum("ij,jhw->ihw", grid.matrix[:2], np.stack([columns + dx, rows + dy, 0 * rows, 0 * rows + 1]))
    return np.stack(Transformer.from_crs(grid.crs, crs, always_xy=True).transform(x, y))


def check_inside(found, grid, inside, crs="EPSG:4326", counts=True):
    """`inside(x, y)` must hold where `found` is, but for pixels whose centre lies within a twentieth of a pixel of an edge."""
    near = [inside(*places(grid, crs, dx, dy)) for dx, dy in ((0, 0), (0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05))]
    clear = np.all([each == near[0] for each in near], axis=0)
    assert clear.mean() > 0.9
    clear &= counts
    assert 0.02 < near[0].mean() < 0.98
    np.testing.assert_array_equal(found[clear], near[0][clear])


def contains(*shapes):
    return lambda x, y: np.any([shapely.contains_xy(shape, x, y) for shape in shapes], axis=0)


@pytest.mark.parametrize(
    "grid",
    [
        around("EPSG:32633", 15.5, 47.5, 1000),
        around("EPSG:32633", 15.5, 47.5, 1000, rotation=30),
        around("EPSG:3857", 15.5, 47.5, 1500),
        around("EPSG:4326", 15.5, 47.5, 0.01),
        around("EPSG:3035", 15.5, 47.5, 1000),
    ],
    ids=["utm", "turned", "mercator", "degrees", "laea"],
)
def test_straight_edges_are_straight_in_the_files_system(tmp_path, grid):
    # Edges of half a degree: a chord in UTM would be off by more than a tenth of a pixel.
    shape = shapely.Polygon(
        [(15.2, 47.3), (15.8, 47.35), (15.75, 47.65), (15.3, 47.7)], [[(15.4, 47.4), (15.6, 47.4), (15.5, 47.6)]]
    )
    check_inside(burnt(tmp_path, grid, [shape]), grid, contains(shape))


def test_the_file_may_be_in_metres_and_the_scene_in_degrees(tmp_path):
    grid = around("EPSG:4326", 15.5, 47.5, 0.01)
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:3035", always_xy=True).transform(15.5, 47.5)
    shape = shapely.box(x - 20_000, y - 9_000, x + 16_000, y + 12_000)
    check_inside(burnt(tmp_path, grid, [shape], "EPSG:3035"), grid, contains(shape), "EPSG:3035")


def test_huge_shapes_are_cut_to_the_scene(tmp_path):
    grid = around("EPSG:32633", 15.5, 47.5, 10)
    line = 47.5001  # the northern half of the Earth, more or less
    shape = shapely.box(-180, line, 180, 90)
    check_inside(burnt(tmp_path, grid, [shape]), grid, lambda x, y: y > line)
    placed = SceneGrid(grid, CRS("EPSG:4326"), 0.0, 0.0).place(read(tmp_path, [shape]), "l")
    assert np.abs(placed.points).max() < 2**24


CUT = [shapely.box(179.7, 51.1, 180, 51.3), shapely.box(-180, 51.1, -179.8, 51.3)]
WHOLE = shapely.box(179.7, 51.1, 180.2, 51.3)


@pytest.mark.parametrize(
    "grid",
    [
        around("EPSG:32601", -180, 51.2, 1000),
        around("EPSG:32660", 179.9, 51.2, 1000),
        around("EPSG:3832", 180, 51.2, 1500),
        around("EPSG:3413", 180, 51.2, 1000),
        scene("EPSG:4326", 179.6, 51.4, 0.01),
        scene("EPSG:4326", -180.4, 51.4, 0.01),
    ],
    ids=["utm 1", "utm 60", "pacific", "polar", "past 180", "before -180"],
)
@pytest.mark.parametrize("shapes", [CUT, [shapely.MultiPolygon(CUT)], [WHOLE], [shapely.affinity.translate(WHOLE, -360)]])
def test_shapes_on_both_sides_of_the_antimeridian(tmp_path, grid, shapes):
    check_inside(burnt(tmp_path, grid, shapes), grid, lambda x, y: shapely.contains_xy(WHOLE, np.mod(x, 360), y))


SINUSOIDAL = "+proj=sinu +R=6371007.181 +units=m"
WORLD_MAPS = ["EPSG:3857", "EPSG:3395", "EPSG:6933", "EPSG:4087", SINUSOIDAL, "ESRI:54009", "EPSG:8857"]
PACIFIC = shapely.box(179.7, 15.1, 180.2, 15.3).difference(shapely.box(179.9, 15.15, 180.1, 15.25))


@pytest.mark.parametrize("crs", WORLD_MAPS)
@pytest.mark.parametrize("longitude", [179.99, -179.99], ids=["east end", "west end"])
@pytest.mark.parametrize("turn", [0, -360])
def test_shapes_that_go_on_past_the_edge_of_a_map_of_the_world(tmp_path, crs, longitude, turn):
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, 15.2)
    grid = scene(crs, x - (longitude > 0) * WIDTH * 1000, y + HEIGHT / 2 * 1000, 1000)
    found = burnt(tmp_path, grid, [shapely.affinity.translate(PACIFIC, turn), shapely.box(20, 15.1, 21, 15.3)])
    inside = contains(PACIFIC, shapely.affinity.translate(PACIFIC, -360))
    on_map = np.abs(places(grid, crs) - Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*places(grid))) < 500
    check_inside(found, grid, inside, counts=on_map.all(axis=0))


def test_a_map_of_the_world_may_be_cut_elsewhere_and_go_on_past_its_edge(tmp_path):
    crs = "+proj=merc +lon_0=150 +datum=WGS84"  # cut at -30 degrees
    edge = float(Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(-30.0001, 0)[0])
    grid = scene(crs, edge - WIDTH / 2 * 2000, 24 * 2000, 2000)
    shape = shapely.box(-30.4, -0.3, -29.8, 0.2)
    check_inside(burnt(tmp_path, grid, [shape]), grid, contains(shape))


def test_a_file_in_metres_goes_on_past_the_edge_of_the_scenes_map(tmp_path):
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:3832", always_xy=True).transform(180, 15.2)
    shape = shapely.box(x - 30_000, y - 9_000, x + 16_000, y + 12_000).difference(shapely.box(x - 9_000, y, x + 9_000, y + 5000))
    for left in (20_037_508 - WIDTH * 1000, -20_037_508):
        grid = scene("EPSG:3857", left, y + HEIGHT / 2 * 1000, 1000)
        check_inside(burnt(tmp_path, grid, [shape], "EPSG:3832"), grid, contains(shape), "EPSG:3832")


@pytest.mark.parametrize("left", [-180, 180])
def test_a_scene_of_the_whole_world_in_metres(tmp_path, left):
    grid = scene("EPSG:3395", left / 180 * 20_037_508, 15_000_000, 626_172)  # 64 columns are 360°
    shapes = [shapely.box(150, -60, 230, 40), shapely.box(-100, -30, 20, 30)]
    inside = contains(*shapes, shapely.affinity.translate(shapes[0], -360))
    check_inside(burnt(tmp_path, grid, shapes), grid, inside)


@pytest.mark.parametrize("crs", ["EPSG:4087", SINUSOIDAL, "ESRI:54009"])
def test_shapes_all_around_the_world(tmp_path, crs):
    grid = scene(crs, -18_100_000, 13_000_000, 565_000)
    on_map = np.abs(places(grid, crs) - Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*places(grid))) < 1e5
    for shape in (shapely.box(-180, -90, 180, 20), shapely.box(0.5, -40, 359.5, 50)):
        inside = contains(shape, shapely.affinity.translate(shape, -360))
        check_inside(burnt(tmp_path, grid, [shape]), grid, inside, counts=on_map.all(axis=0))


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:6933"])
def test_buffers_over_the_edge_of_a_map_of_the_world(tmp_path, crs):
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(179.9999, -17)
    grid = scene(crs, x - (WIDTH - 1) * 100, y + HEIGHT / 2 * 100, 100)
    geod = Geod(ellps="WGS84")
    longitude, latitude = places(grid)
    expected = geod.inv(np.full_like(longitude, 179.998), np.full_like(longitude, -17), longitude, latitude)[2] < 1500
    for at in (179.998, -180.002):
        assert (burnt(tmp_path, grid, [shapely.Point(at, -17)], buffer=1500) != expected).mean() < 0.01
    assert 0.02 < expected.mean() < 0.5


def test_a_file_whose_own_plane_is_cut_at_the_antimeridian(tmp_path):
    grid = around("EPSG:32601", -180, 51.2, 1000)
    to_plane = Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True)
    inner = [shapely.box(179.7, 51.1, 179.999999, 51.3), shapely.box(-179.999999, 51.1, -179.8, 51.3)]
    elsewhere = shapely.box(10, 10, 11, 11)
    shapes = [shapely.transform(each, to_plane.transform, interleaved=False) for each in (*inner, elsewhere)]
    check_inside(burnt(tmp_path, grid, shapes, "EPSG:3857"), grid, lambda x, y: shapely.contains_xy(WHOLE, np.mod(x, 360), y))


@pytest.mark.parametrize(("crs", "sign"), [("EPSG:3413", 1), ("EPSG:3031", -1)])
def test_scenes_over_a_pole(tmp_path, crs, sign):
    grid = scene(crs, -32 * 40_000 + 7_000, 24 * 40_000 + 3_000, 40_000)
    cap = shapely.box(-180, min(85.05 * sign, 90 * sign), 180, max(85.05 * sign, 90 * sign))
    check_inside(burnt(tmp_path, grid, [cap]), grid, lambda x, y: sign * y > 85.05)
    wedge = shapely.box(-170, min(83 * sign, 90 * sign), -20, max(83 * sign, 90 * sign))
    check_inside(burnt(tmp_path, grid, [wedge]), grid, contains(wedge))


@pytest.mark.parametrize("left", [-180, 0])
def test_scenes_all_around_the_world(tmp_path, left):
    grid = scene("EPSG:4326", left, 90, 5.625)  # 64 columns are 360°
    shapes = [shapely.box(-100, -60, 20, 40), shapely.box(150, -30, 179, 30)]
    inside = contains(*shapes)
    check_inside(burnt(tmp_path, grid, shapes), grid, lambda x, y: inside(np.mod(x + 180, 360) - 180, y))


@pytest.mark.parametrize(
    ("grid", "pixel"),
    [
        (around("EPSG:32633", 15, 60, 10), 10),
        (around("EPSG:3857", 15, 60, 20), 10),  # a map unit is half a metre on the ground there
        (around("EPSG:4326", 15, 60, 1e-4), 5.6),
        (around("EPSG:2263", -74, 40.7, 30), 9.1),  # feet
        (around("EPSG:3413", 180, 75, 10), 10),
    ],
    ids=["utm", "mercator", "degrees", "feet", "polar"],
)
def test_buffers_are_metres_on_the_ground(tmp_path, grid, pixel):
    longitude, latitude = places(grid)[:, HEIGHT // 2, WIDTH // 2]
    radius = 16 * pixel
    geod = Geod(ellps="WGS84")

    def inside(x, y):
        return np.asarray(geod.inv(np.full_like(x, longitude), np.full_like(y, latitude), x, y)[2]) < radius

    found = burnt(tmp_path, grid, [shapely.Point(longitude, latitude)], buffer=radius)
    expected = inside(*places(grid))
    assert (found != expected).mean() < 0.01  # the circle has 64 corners
    assert found.sum() == pytest.approx(expected.sum(), rel=0.02)


def test_a_line_outside_the_scene_reaches_in_by_its_buffer(tmp_path):
    grid = around("EPSG:3857", 15, 60, 20)
    left = places(grid, dx=-20)[0, 0, 0]  # 20 pixels, 200 metres, left of the first one
    line = shapely.LineString([(left, 59.9), (left, 60.1)])
    assert burnt(tmp_path, grid, [line], buffer=250.0)[:, :4].all()
    assert not burnt(tmp_path, grid, [line], buffer=150.0).any()


def test_a_long_buffered_line_follows_the_files_straight_line(tmp_path):
    grid = around("EPSG:4326", 15, 60, 0.05)
    line = shapely.LineString([(13.6, 59.5), (16.4, 60.5)])
    found = burnt(tmp_path, grid, [line], buffer=8000.0)
    x, y = places(grid)
    on_line = np.abs(y - 59.5 - (x - 13.6) / 2.8) < 0.02
    assert found[on_line & (x > 13.7) & (x < 16.3)].all()
    assert found.mean() < 0.2


def test_shapes_may_be_in_the_own_system_of_a_scene_without_a_place_on_earth(tmp_path):
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    grid = scene(local, 100, 200, 1)
    shape = shapely.box(110.3, 160.3, 140.7, 180.7)
    assert burnt(tmp_path, grid, [shape], local).sum() == 31 * 21
    with pytest.raises(ProjError):
        burnt(tmp_path, grid, [shape], local, buffer=1.0)


def test_shapes_that_reach_to_where_the_scenes_system_ends_are_refused(tmp_path):
    # The scene's system covers half of the globe, and its box in the file's system reaches all around.
    grid = scene("+proj=ortho +lat_0=0 +lon_0=0 +ellps=WGS84", -6.4e6, 6.4e6, 200_000)
    with pytest.raises(DataError, match=r"l\.geojson: shape 2 reaches to where the scene's.*ogr2ogr -clipsrc"):
        burnt(tmp_path, grid, [shapely.box(5, 5, 30, 30), shapely.box(60, 0, 150, 20)])
    found = read(tmp_path, [shapely.box(5, 5, 30, 30), shapely.box(140, 0, 150, 20)])
    placed = [SceneGrid(grid, found.crs, 0.0, 0.0).place(found, "l") for _ in range(2)]
    assert placed[0].features.tolist() == [0]
    np.testing.assert_array_equal(placed[0].points, placed[1].points)
    assert found.points == 10  # what scenes share stays as it was read


def test_the_scenes_box_in_the_files_system_holds_the_scene():
    grid = around("EPSG:32633", 15.5, 47.5, 1000, rotation=30)
    x, y = places(grid)
    (_, (left, bottom, right, top), _) = SceneGrid(grid, CRS("EPSG:4326"), 0.0, 0.0).boxes
    assert left < x.min()
    assert right > x.max()
    assert bottom < y.min()
    assert top > y.max()
    assert right - left < 2 * np.ptp(x)
