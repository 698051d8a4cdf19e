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
from rasterio.transform import from_origin

from tests.testers.formats import file_size_limit
from tests.testers.maps import CLASSES, UTM, patches, scene_map
from voxtile.inference import finished, polygons
from voxtile.inference.finished import FinishedMap
from voxtile.inference.instances import find_instances
from voxtile.inference.polygons import write_polygons


@pytest.fixture(autouse=True)
def _small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished, "_PIXELS", 200)  # many slabs, and polygons that cross them
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
def test_each_object_is_one_polygon_without_seams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, height: int, width: int, slab: int
) -> None:
    indices = patches(seed, height, width)
    found = scene_map(tmp_path, indices)
    monkeypatch.setattr(finished, "_PIXELS", slab)
    pieces = dict(polygons.traced(found, find_instances(found, [1, 2], False)))
    traced_whole = rasterio.features.shapes(indices, mask=(indices == 1) | (indices == 2), connectivity=4)
    expected = sorted(shapely.normalize(shapely.geometry.shape(shape)).wkt for shape, _ in traced_whole)
    assert sorted(shapely.normalize(shape).wkt for shape in pieces.values()) == expected  # the same corners, and none on a seam


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
def test_a_map_without_objects_is_an_empty_file(tmp_path: Path, ending: str) -> None:
    found = scene_map(tmp_path, np.zeros((20, 30)))
    write_polygons(found, find_instances(found, [1, 2], False), tmp_path / f"map.{ending}", simplify=10)
    assert pyogrio.read_info(tmp_path / f"map.{ending}")["features"] == 0


@pytest.mark.parametrize("ending", ["gpkg", "geojson"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, ending: str) -> None:
    found = scene_map(tmp_path, patches(0, 60, 60))
    objects = find_instances(found, [1, 2], False)
    with file_size_limit(120_000), pytest.raises(OSError, match=r"File too large|is the disk full") as caught:
        write_polygons(found, objects, tmp_path / "out" / f"map.{ending}")
    assert "could not be written" not in str(caught.value)  # which is said by who knows the file by the user's name
    assert list((tmp_path / "out").iterdir()) == []
