"""Polygons of maps: burnt again they are the map."""

import json
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.transform import from_origin
from scipy import ndimage

from tests.testers.formats import file_size_limit
from tests.testers.maps import CLASSES, UTM, patches, scene_map
from voxtile.inference import polygons
from voxtile.inference.finished import FinishedMap
from voxtile.inference.instances import find_instances
from voxtile.inference.polygons import write_polygons


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons, "_CHUNK", 150)


def vectors(found: FinishedMap, path: Path, least: int = 1, simplify: float | None = None) -> geopandas.GeoDataFrame:
    write_polygons(found, find_instances(found, [1, 2], False, least), path, simplify)
    return geopandas.read_file(path)


def burnt(table: geopandas.GeoDataFrame, shape: tuple[int, int], transform: Affine = UTM) -> np.ndarray:
    pairs = list(zip(table.geometry, table["value"], strict=True))
    return rasterio.features.rasterize(pairs, shape, transform=transform, dtype="uint8")


@pytest.mark.parametrize("ending", ["gpkg", "geojson"])
@pytest.mark.parametrize("side", [1, 4])
def test_burnt_again_they_are_the_map(tmp_path: Path, ending: str, side: int) -> None:
    indices = patches(side, 57, 43, side)
    table = vectors(scene_map(tmp_path, indices), tmp_path / f"map.{ending}")
    assert table.crs == ("EPSG:32633" if ending == "gpkg" else "EPSG:4326")
    assert table.is_valid.all()
    assert set(table.geom_type) == {"Polygon"}
    np.testing.assert_array_equal(burnt(table.to_crs("EPSG:32633"), indices.shape), np.where(indices == 255, 0, indices))
    assert list(table["class"]) == [CLASSES[value] for value in table["value"]]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30), st.integers(20, 400))
def test_each_object_is_one_polygon_without_seams(tmp_path: Path, seed: int, height: int, width: int, slab: int) -> None:
    indices = patches(seed, height, width)
    found = scene_map(tmp_path, indices, slab_pixels=slab)
    pieces = dict(polygons.traced(found, find_instances(found, [1, 2], False)))
    traced_whole = rasterio.features.shapes(indices, mask=(indices == 1) | (indices == 2), connectivity=4)
    expected = sorted(shapely.normalize(shapely.geometry.shape(shape)).wkt for shape, _ in traced_whole)
    assert sorted(shapely.normalize(shape).wkt for shape in pieces.values()) == expected  # the same corners, and none on a seam


def test_outlines_of_a_slab_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A speckled one has a million, which as lists would take gigabytes."""
    found = scene_map(tmp_path, patches(0, 30, 40), slab_pixels=600)
    objects, read, shapes = find_instances(found, [1, 2], False), list[int](), rasterio.features.shapes
    whole = {row: shape.wkt for row, shape in polygons.traced(found, objects)}
    monkeypatch.setattr(polygons, "_CHUNK", 7)
    monkeypatch.setattr(rasterio.features, "shapes", lambda *a, **b: (read.append(1) or each for each in shapes(*a, **b)))
    parts = polygons.traced(found, objects)
    row, shape = next(parts)
    assert len(read) <= 14 < len(objects.index)
    assert {row: shape.wkt, **{row: shape.wkt for row, shape in parts}} == whole


def test_attributes_say_how_much_ground_and_how_sure(tmp_path: Path) -> None:
    indices = np.zeros((20, 30))
    indices[3:9, 4:24], indices[12:15, 2:5] = 2, 1
    heat = np.stack([np.zeros((20, 30)), np.full((20, 30), 0.6), np.linspace(0, 1, 600).reshape(20, 30)])
    table = vectors(scene_map(tmp_path, indices, heat), tmp_path / "map.gpkg").set_index("class")
    assert table.loc["roof", "area_ha"] == pytest.approx(120 * 0.01 / 0.9996**2, rel=1e-6)
    assert table.loc["roof", "probability"] == pytest.approx(heat[2, 3:9, 4:24].mean(), rel=1e-5)
    assert table.loc["water", "probability"] == pytest.approx(0.6)
    assert table.loc["water"].geometry.bounds == (500_020, 4_999_850, 500_050, 4_999_880)


def test_geojson_follows_the_standard(tmp_path: Path) -> None:
    indices = np.ones((12, 12))
    indices[4:6, 4:6] = 0
    found = scene_map(tmp_path, indices, crs="EPSG:3857", transform=from_origin(3_626_836, 32_650, 0.0746, 0.0746))
    vectors(found, tmp_path / "map.geojson")
    document = json.loads((tmp_path / "map.geojson").read_text())
    (feature,) = document["features"]
    outer, hole = feature["geometry"]["coordinates"]
    assert "crs" not in document
    assert shapely.LinearRing(outer).is_ccw
    assert not shapely.LinearRing(hole).is_ccw
    assert outer[0] == pytest.approx([32.5803, 0.2933], abs=1e-3)


@pytest.mark.parametrize(("easting", "antimeridian"), [(811_000, 180), (815_000, -180)])
def test_geojson_over_the_antimeridian_goes_on_past_it(tmp_path: Path, easting: int, antimeridian: int) -> None:
    found = scene_map(tmp_path, np.ones((12, 30)), crs="EPSG:32760", transform=from_origin(easting, 8_000_000, 300, 300))
    table = vectors(found, tmp_path / "map.geojson")
    left, _, right, _ = table.total_bounds
    assert left < antimeridian < right
    assert right - left < 0.1
    assert table["area_ha"].sum() == pytest.approx(table.to_crs("+proj=cea +lon_0=180 +over").area.sum() / 1e4, rel=1e-3)


WORLDS = {
    "arctic": ("EPSG:3413", Affine(50_000, 0, -2e6, 0, -50_000, 1.5e6), (60, 80)),
    "pole on a side": ("EPSG:3413", Affine(50_000, 0, -2.025e6, 0, -50_000, 2e6), (80, 80)),
    "antarctic": ("EPSG:3031", Affine(100_000, 0, -3.03e6, 0, -100_000, 3.01e6), (61, 60)),
    "mollweide": ("ESRI:54009", Affine(300_000, 0, -1.81e7, 0, -300_000, 9.15e6), (61, 121)),
    "sinusoidal": ("+proj=sinu +R=6371007.181 +type=crs", Affine(300_000, 0, -2.02e7, 0, -300_000, 1.005e7), (67, 135)),
    "pacific": ("EPSG:3832", Affine(400_000, 0, -1.6e7, 0, -400_000, 4e6), (20, 80)),
    "world": ("EPSG:3857", Affine(500_000, 0, -20_037_508.34, 0, -500_000, 1e7), (40, 80)),
    "degrees": ("EPSG:4326", Affine(5, 0, -180, 0, -5, 90), (36, 72)),
    "turn": ("EPSG:4326", Affine(5, 0, 0, 0, -5, 50), (20, 72)),
    "reanalysis": ("EPSG:4326", Affine(5, 0, -182.5, 0, -5, 92.5), (37, 72)),
    "fiji": ("EPSG:32760", Affine(20_000, 0, 500_000, 0, -20_000, 8.2e6), (40, 50)),
    "europe": ("EPSG:3035", Affine(80_000, 0, 2.5e6, 0, -80_000, 5.5e6), (48, 50)),
    "turned": ("EPSG:3995", Affine.rotation(20) @ Affine.scale(60_000, -60_000) @ Affine.translation(-25, -30), (70, 50)),
}


def map_of_three(shape: tuple[int, int]) -> np.ndarray:
    """One class has holes and reaches over all edges; borders are long."""
    indices = np.full(shape, 1)
    indices[shape[0] // 5 : shape[0] // 3] = 2
    indices[shape[0] // 2 - 4 : shape[0] // 2 + 5, shape[1] // 2 - 6 : shape[1] // 2 + 4] = 0
    indices[shape[0] // 2 - 2 : shape[0] // 2 + 3, shape[1] // 2 - 2 : shape[1] // 2 + 2] = 2
    indices[-shape[0] // 4 :, : shape[1] // 3] = 2
    indices[-6:-3, 3:7] = 0
    return indices


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ["few", "many"])
def test_geojson_of_any_part_of_the_world_is_the_map(tmp_path: Path, world: str, kind: str) -> None:
    """Places in pixels, in degrees, lie in the polygon of their class and in no other."""
    crs, transform, shape = WORLDS[world]
    indices = map_of_three(shape) if kind == "few" else patches(3, *shape, 3, unjudged=0.02)
    found = scene_map(tmp_path, indices, crs=crs, transform=transform)
    write_polygons(found, find_instances(found, [0, 1, 2], False), path := tmp_path / "map.geojson")
    features = json.loads(path.read_text(), parse_constant=pytest.fail)["features"]
    shown = [feature for feature in features if feature["geometry"] is not None]
    shapes = np.array([shapely.geometry.shape(feature["geometry"]) for feature in shown])
    values = np.array([feature["properties"]["value"] for feature in shown])
    assert shapely.is_valid(shapes).all()
    assert np.abs(shapely.bounds(shapes)[:, [1, 3]]).max() <= 90
    rng = np.random.default_rng(0)
    y, x = (
        np.arange(size)[axis] + rng.uniform(0.12, 0.88, shape)
        for size, axis in zip(shape, ((slice(None), None), (None,)), strict=True)
    )
    places = np.stack(transform @ (x, y))
    to_world = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    degrees = np.stack(to_world.transform(*places))
    again = np.stack(Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform(*degrees))
    there = np.isfinite(degrees).all(axis=0) & (np.abs(degrees[1]) < 90)
    if world in ("mollweide", "sinusoidal"):  # beyond the map's edge PROJ goes on around the globe
        there &= np.linalg.norm(again - places, axis=0) < 1
        inner = np.stack([np.roll(there, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]).all(axis=0)
    else:
        inner = there
    counts = np.zeros((3, *shape), dtype=int)
    for value, geometry in zip(values, shapes, strict=True):
        shapely.prepare(geometry)
        counts[value] += sum(shapely.contains_xy(geometry, degrees[0] + turn, degrees[1]) for turn in (-720, -360, 0, 360, 720))
    expected = np.stack([indices == value for value in range(3)]).astype(int)
    np.testing.assert_array_equal(counts[:, inner], expected[:, inner])
    assert (np.abs(counts - expected)[:, there].sum(axis=0) > 0).mean() < 0.02  # where the outline of the globe is a few corners


def test_longitudes_go_on_past_the_antimeridian_for_each_ring(tmp_path: Path) -> None:
    indices = np.zeros((10, 72))
    indices[2:5, 32:40], indices[6:8, 0:3], indices[6:8, 60:65] = 1, 2, 2
    found = scene_map(tmp_path, indices, crs="EPSG:4326", transform=Affine(5, 0, 0, 0, -5, 25))
    bounds = vectors(found, tmp_path / "map.geojson").bounds.to_numpy().tolist()
    assert sorted(bounds) == [[-60, -15, -35, -5], [0, -15, 15, -5], [160, 0, 200, 15]]


@pytest.mark.parametrize("pole", [90, -90])
def test_a_polygon_around_a_pole_is_closed_over_it(tmp_path: Path, pole: int) -> None:
    indices = np.zeros((20, 20))
    indices[4:16, 4:16] = 1
    indices[8:12, 8:12] = 2
    crs = "EPSG:3995" if pole > 0 else "EPSG:3031"
    found = scene_map(tmp_path, indices, crs=crs, transform=Affine(1e5, 0, -1e6, 0, -1e5, 1e6))
    table = vectors(found, tmp_path / "map.geojson").set_index("class")
    assert table.is_valid.all()
    west, south, east, north = table.loc["roof"].geometry.bounds
    assert (west, east, max(south, north, key=abs)) == (-180, 180, pole)
    assert table.loc["water"].geometry.bounds[::2] == (-180, 180)
    around = table.segmentize(0.1).to_crs("+proj=cea +over")
    np.testing.assert_allclose(around.area / 1e4, table["area_ha"], rtol=1e-2)  # a 64th of a pixel all around


def test_neighbours_hardly_overlap_and_files_hardly_grow(tmp_path: Path) -> None:
    """Long borders of large pixels are curves in degrees; ordinary scenes need no more corners."""
    indices = np.ones((700, 700))
    indices[:350, 100:] = 2
    indices[500:, :400] = 0
    found = scene_map(tmp_path, indices, crs="EPSG:3035", transform=Affine(1000, 0, 4.1e6, 0, -1000, 4.5e6), slab_pixels=10**6)
    table = vectors(found, tmp_path / "map.geojson").to_crs("+proj=cea")
    assert table.geometry[0].intersection(table.geometry[1]).area < 1e-6 * table.area.sum()
    assert shapely.get_num_coordinates(table.geometry).sum() < 600
    north = Affine(10, 0, 300_000, 0, -10, 7_000_000)
    near = scene_map(tmp_path / "near", patches(0, 300, 400, 30), transform=north, slab_pixels=10**6)
    plain, degrees = (vectors(near, tmp_path / f"near.{ending}").geometry for ending in ("gpkg", "geojson"))
    assert shapely.get_num_coordinates(degrees).sum() == shapely.get_num_coordinates(plain).sum()


def test_an_unknown_number_is_null(tmp_path: Path) -> None:
    indices = np.ones((4, 6))
    found = scene_map(tmp_path, indices, np.full((3, 4, 6), np.nan))
    write_polygons(found, find_instances(found, [1], False), path := tmp_path / "map.geojson")
    (feature,) = json.loads(path.read_text(), parse_constant=pytest.fail)["features"]
    assert feature["properties"]["probability"] is None


def test_what_is_off_the_globe_has_no_geometry(tmp_path: Path) -> None:
    found = scene_map(tmp_path, np.ones((4, 6)), crs="ESRI:54009", transform=Affine(1e5, 0, -1.8e7, 0, -1e5, 9e6))
    write_polygons(found, find_instances(found, [1], False), path := tmp_path / "map.geojson")
    (feature,) = json.loads(path.read_text(), parse_constant=pytest.fail)["features"]
    assert (feature["geometry"], feature["properties"]["area_ha"]) == (None, 0)


def test_a_turned_scene_s_polygons_are_turned(tmp_path: Path) -> None:
    indices = patches(5, 21, 33, 3, unjudged=0)
    turned = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(10, -10)
    table = vectors(scene_map(tmp_path, indices, transform=turned), tmp_path / "map.gpkg")
    np.testing.assert_array_equal(burnt(table, indices.shape, turned), indices)


def test_small_ones_are_left_out(tmp_path: Path) -> None:
    indices = np.zeros((20, 30))
    indices[3:9, 4:24], indices[12:15, 2:5] = 2, 1
    assert list(vectors(scene_map(tmp_path, indices), tmp_path / "map.gpkg", least=10)["class"]) == ["roof"]


def test_simplified_neighbours_have_no_gap_and_no_overlap(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rough = 20 + np.cumsum(rng.integers(-1, 2, 60))  # a ragged border from top to bottom
    indices = np.where(np.arange(40) < rough[:, None], 1, 2)
    table = vectors(scene_map(tmp_path, indices), tmp_path / "map.gpkg", simplify=40)
    plain = vectors(scene_map(tmp_path, indices), tmp_path / "plain.gpkg")
    assert shapely.get_num_coordinates(table.geometry).sum() < 0.3 * shapely.get_num_coordinates(plain.geometry).sum()
    assert shapely.coverage_is_valid(table.geometry.to_numpy())
    united = shapely.union_all(table.geometry.to_numpy())
    assert united.area == pytest.approx(table.area.sum())
    assert len(united.interiors) == 0
    assert united.area == pytest.approx(60 * 40 * 100)
    assert shapely.hausdorff_distance(table.geometry[0], plain.geometry[0]) < 80
    np.testing.assert_allclose(table["area_ha"], plain["area_ha"])  # of the map


@pytest.mark.parametrize("ending", ["gpkg", "geojson"])
@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32633", Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)),
        ("EPSG:4326", Affine(2e-4, 0, 15, 0, -1e-4, 60)),
        ("EPSG:32633", Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(0.3, -0.3)),
    ],
)
def test_simplified_polygons_are_valid_where_pixels_are_no_round_number_of_metres(
    tmp_path: Path, crs: str, transform: Affine, ending: str
) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=(100, 90)), 0.6)
    found = scene_map(tmp_path, np.digitize(noise, [-0.05, 0.05]), crs=crs, transform=transform)
    pixel = np.sqrt(np.prod(found.grid.spacing[1:]))
    table = vectors(found, tmp_path / f"map.{ending}", simplify=3 * pixel)
    assert len(table) > 100
    assert table.is_valid.all()


@pytest.mark.parametrize("ending", ["gpkg", "geojson"])
def test_a_map_without_objects_is_an_empty_file(tmp_path: Path, ending: str) -> None:
    found = scene_map(tmp_path, np.zeros((20, 30)))
    write_polygons(found, find_instances(found, [1, 2], False), tmp_path / f"map.{ending}", simplify=10)
    assert pyogrio.read_info(tmp_path / f"map.{ending}")["features"] == 0


@pytest.mark.parametrize("ending", ["gpkg", "geojson"])
def test_a_name_may_hold_a_semicolon(tmp_path: Path, ending: str) -> None:
    table = vectors(scene_map(tmp_path, patches(0, 20, 30)), tmp_path / "out" / f"a.{ending}")
    (tmp_path / "out" / f"a.{ending}").unlink()
    found = scene_map(tmp_path, patches(0, 20, 30))
    write_polygons(found, find_instances(found, [1, 2], False), path := tmp_path / "out" / f"semi;colon.{ending}")
    assert [each.name for each in (tmp_path / "out").iterdir()] == [path.name]
    assert len(geopandas.read_file(path.rename(tmp_path / f"plain.{ending}"))) == len(table)


def test_a_geopackage_without_its_index_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that is full when GDAL closes the file it only warns."""
    whole = pyogrio.write_dataframe
    monkeypatch.setattr(pyogrio, "write_dataframe", lambda *args, **more: whole(*args, **more, SPATIAL_INDEX="NO"))
    found = scene_map(tmp_path, patches(0, 20, 30))
    with pytest.raises(OSError, match="spatial index could not be written"):
        write_polygons(found, find_instances(found, [1, 2], False), tmp_path / "out" / "map.gpkg")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("ending", ["gpkg", "geojson"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, ending: str) -> None:
    found = scene_map(tmp_path, patches(0, 60, 60))
    objects = find_instances(found, [1, 2], False)
    with file_size_limit(120_000), pytest.raises(OSError, match=r"File too large|is the disk full") as caught:
        write_polygons(found, objects, tmp_path / "out" / f"map.{ending}")
    assert "could not be written" not in str(caught.value)  # which is said by who knows the file by the user's name
    assert list((tmp_path / "out").iterdir()) == []
