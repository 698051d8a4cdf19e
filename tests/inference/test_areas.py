"""Hectares against areas on the ellipsoid, and the adjustment against its paper's worked example."""

import csv
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import Geod, Transformer

from tests.testers.maps import CLASSES, UTM, patches, scene_map
from voxtile.cases import vector_files
from voxtile.errors import DataError
from voxtile.inference.areas import Places, adjusted, area_of, write_areas
from voxtile.inference.finished import FinishedMap


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32633", "EPSG:3857"])
def test_every_reference_system_gives_the_ground_s_hectares(tmp_path: Path, crs: str) -> None:
    """The same square kilometre at 60° north, mapped in each system, has the area that geodesics around it have."""
    lon, lat = [15.2, 15.218, 15.218, 15.2], [60.0, 60.0, 60.009, 60.009]
    expected = abs(Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)[0]) / 1e4
    square = shapely.Polygon(np.stack(Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat), axis=1))
    left, bottom, right, top = square.bounds
    size = (right - left) / 700, (top - bottom) / 700
    transform = Affine(size[0], 0, left - 20 * size[0], 0, -size[1], top + 20 * size[1])
    indices = np.ones((740, 740))
    indices[:, 370:] = 2
    path = tmp_path / "square.geojson"
    geopandas.GeoDataFrame(geometry=[shapely.Polygon(list(zip(lon, lat, strict=True)))], crs="EPSG:4326").to_file(path)
    found = scene_map(tmp_path, indices, crs=crs, transform=transform, slab_pixels=100_000)
    (place,) = Places(path).on(found.grid)
    area = area_of(found, place)
    assert area.size.sum() == pytest.approx(expected, rel=2e-3)  # pixel centres along the outline
    assert area.size[1] == pytest.approx(expected / 2, rel=2e-2)
    assert place.outside == 0


@pytest.fixture
def found(tmp_path: Path) -> FinishedMap:
    return scene_map(tmp_path, patches(0, 60, 80, 4))


def test_a_table_counts_each_class_in_each_place(found: FinishedMap, tmp_path: Path) -> None:
    corner, pixel = np.array([500_000, 5_000_000]), 10
    triangle = shapely.Polygon([(3.1, 5.2), (40.3, 11), (17, 51.4)])
    over = shapely.box(70, 50, 90, 70)  # half of its width and height is beside the scene
    shapes = [shapely.transform(shape, lambda places: corner + places * (pixel, -pixel)) for shape in (triangle, over)]
    areas = geopandas.GeoDataFrame({"name": ["a", "b"]}, geometry=shapes, crs="EPSG:32633").to_crs("EPSG:4326")
    areas.to_file(tmp_path / "areas.gpkg")
    write_areas(found, tmp_path / "areas.csv", "s1", Places(tmp_path / "areas.gpkg", "name").on(found.grid))
    whole, a, b = table(tmp_path / "areas.csv")
    assert [row["area"] for row in (whole, a, b)] == ["(all)", "a", "b"]
    assert float(a["outside"]) == 0
    assert float(b["outside"]) == pytest.approx(0.75, abs=2e-6)  # edges are straight in degrees, where they bend by a millimetre
    indices = patches(0, 60, 80, 4)
    y, x = np.mgrid[:60, :80] + 0.5
    inside = {"(all)": np.ones_like(y, dtype=bool), "a": shapely.contains_xy(triangle, x, y), "b": (x > 70) & (y > 50)}
    hectare = 0.01 / 0.9996**2
    for row in (whole, a, b):
        part = indices[inside[row["area"]]]
        assert [int(row[f"pixels/{name}"]) for name in CLASSES] == np.bincount(part, minlength=256)[:3].tolist()
        assert float(row["hectares/roof"]) == pytest.approx((part == 2).sum() * hectare, rel=1e-5)
        assert float(row["hectares"]) == pytest.approx(len(part) * hectare, rel=1e-5)
        assert float(row["unjudged"]) == pytest.approx((part == 255).mean(), rel=1e-5)


@pytest.mark.parametrize("ending", ["gpkg", "geojson", "parquet"])
def test_each_polygon_has_a_row_and_a_name(found: FinishedMap, tmp_path: Path, ending: str) -> None:
    """One beside the scene has zeros, one without a name its number."""
    path = tmp_path / f"areas.{ending}"
    shapes = [shapely.box(*UTM @ (x, 20), *UTM @ (x + 10, 10)) for x in (5, 500, 20, 35)]
    areas = geopandas.GeoDataFrame({"name": ["a", None, None, " "]}, geometry=shapes, crs="EPSG:32633")
    areas.to_parquet(path) if ending == "parquet" else areas.to_crs("EPSG:4326").to_file(path)
    write_areas(found, tmp_path / "areas.csv", "s1", Places(path, "name").on(found.grid))
    rows = table(tmp_path / "areas.csv")[1:]
    assert [row["area"] for row in rows] == ["a", "2", "3", "4"]
    assert [row["outside"] for row in rows] == ["0", "1", "0", "0"]
    assert (rows[1]["hectares"], rows[1]["unjudged"], rows[1]["pixels/roof"], rows[1]["hectares/roof"]) == ("0", "", "0", "0")


# Olofsson et al. 2014, table 8: rows by map, columns by reference; deforestation, forest gain, stable forest, stable non-forest.
SAMPLE = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
MAPPED = np.array([200_000, 150_000, 3_200_000, 6_450_000])  # pixels of 30 m


def test_the_paper_s_worked_example() -> None:
    """It gives 235,086 ± 68,418 pixels of deforestation, which are 21,158 ± 6158 ha."""
    pixels = adjusted(MAPPED.astype(float), SAMPLE.T)
    assert round(pixels.size[0]) == 235_086
    assert pixels.margin[0] == pytest.approx(68_418, abs=1)
    hectares = adjusted(MAPPED * 0.09, SAMPLE.T)
    assert round(hectares.size[0]) == 21_158
    assert round(hectares.margin[0]) == 6158
    assert pixels.size.sum() == pytest.approx(MAPPED.sum())


def test_a_mapped_class_without_samples_leaves_areas_undefined() -> None:
    sample = SAMPLE.copy()
    sample[1] = 0
    assert np.isnan(adjusted(MAPPED.astype(float), sample.T).size).all()
    nowhere = adjusted(MAPPED * [1, 0, 1, 1], sample.T)  # a class that is not on the map needs none
    assert np.isfinite(nowhere.size).all()
    assert np.isfinite(nowhere.margin).all()


def test_adjusted_areas_stand_in_the_first_row_with_what_they_assume(found: FinishedMap, tmp_path: Path) -> None:
    matrix = [[50, 5, 0], [2, 40, 3], [1, 0, 30]]
    write_areas(found, tmp_path / "areas.csv", "s1", [], {"matrix": matrix, "source": "evaluations/val-best"})
    (row,) = table(tmp_path / "areas.csv")
    mapped = np.array([float(row[f"hectares/{name}"]) for name in CLASSES])
    share = np.array(matrix) / np.sum(matrix, axis=0)
    for index, name in enumerate(CLASSES):
        assert float(row[f"adjusted_hectares/{name}"]) == pytest.approx((mapped * share[index]).sum())
    assert "evaluations/val-best, as if its pixels were a stratified random sample" in row["adjusted_by"]


def bad_file(folder: Path, what: str) -> Path:
    path = folder / f"{what}.gpkg"
    shapes = [shapely.box(500_100, 4_999_700, 500_300, 4_999_900)]
    if what == "elsewhere":
        shapes = [shapely.box(0, 0, 1, 1)]
    elif what == "exchanged":  # northing first
        shapes = [shapely.box(4_999_700, 500_100, 4_999_900, 500_300)]
    elif what == "points":
        shapes = [shapely.Point(500_100, 4_999_900)]
    if what == "text":
        path.write_text("no vectors")
    elif what == "no_crs":
        path = path.with_suffix(".shp")
        with pytest.warns(UserWarning, match="crs"):
            geopandas.GeoDataFrame({"name": ["a"]}, geometry=shapes).to_file(path)
    elif what != "missing":
        geopandas.GeoDataFrame({"name": ["a"]}, geometry=shapes, crs="EPSG:32633").to_file(path)
    return path


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", "does not exist"),
        ("text", "cannot be read as GPKG: it does not begin as such a file does"),
        ("no_crs", "names no coordinate reference system"),
        ("elsewhere", r"No polygon of .* in WGS 84 / UTM zone 33N\) overlaps the scene"),
        ("exchanged", "They would meet with x and y exchanged"),
        ("points", "holds no polygons"),
        ("attribute", "has no attribute 'nmae' \\('area_name'\\); it has name. Did you mean 'name'"),
    ],
)
def test_a_bad_file_of_areas_is_named(found: FinishedMap, tmp_path: Path, what: str, words: str) -> None:
    path = bad_file(tmp_path, what)
    with pytest.raises(DataError, match=words) as caught:
        Places(path, "nmae" if what == "attribute" else None).on(found.grid)
    assert str(path) in str(caught.value)
    assert ("exchanged" in str(caught.value).replace(str(path), "")) == (what == "exchanged")


def test_shapes_without_an_area_are_counted(found: FinishedMap, tmp_path: Path) -> None:
    shapes = [shapely.box(500_100, 4_999_700, 500_300, 4_999_900), shapely.Point(500_100, 4_999_900), None]
    shapes.append(shapely.LineString([(500_100, 4_999_700), (500_300, 4_999_900)]))
    path = tmp_path / "mixed.gpkg"
    geopandas.GeoDataFrame({"name": list("abcd")}, geometry=shapes, crs="EPSG:32633").to_file(path)
    places = Places(path)
    assert f"{path}: 2 shapes without an area (points or lines) left out" in places.notes
    assert [place.name for place in places.on(found.grid)] == ["1"]


@pytest.mark.parametrize("name", ["areas.vrt", "areas.geojson"])
def test_a_file_that_would_have_another_read_is_refused(found: FinishedMap, tmp_path: Path, name: str) -> None:
    good = bad_file(tmp_path, "good")
    layer = f"<OGRVRTLayer name='good'><SrcDataSource>{good}</SrcDataSource></OGRVRTLayer>"
    (tmp_path / name).write_text(f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>")
    assert len(Places(good).on(found.grid)) == 1
    with pytest.raises(DataError, match=r"ends like no vector file|it does not begin as such a file does"):
        Places(tmp_path / name)


def test_polygons_reach_over_the_end_of_a_system_or_lie_beyond_it(found: FinishedMap, tmp_path: Path) -> None:
    half = "+proj=ortho +lat_0=45 +lon_0=15 +type=crs"  # shows half of the Earth
    scene = scene_map(tmp_path / "half", np.ones((60, 80)), crs=half, transform=Affine(10, 0, 100, 0, -10, 17_000))
    shapes = [shapely.box(14, 44, 16, 46), shapely.box(-170, -80, 20, 60), shapely.box(-170, -80, -160, -70)]
    geopandas.GeoDataFrame({"name": ["here", "far", "beyond"]}, geometry=shapes, crs="EPSG:4326").to_file(tmp_path / "areas.gpkg")
    for each in (found, scene):
        places = Places(tmp_path / "areas.gpkg", "name").on(each.grid)
        assert [area_of(each, place).pixels.sum() for place in places] == [4800, 4800, 0]
        assert [place.outside for place in places[1:]] == [1, 1]  # of "far" to a millionth


@pytest.mark.parametrize("left", [179.996, -180.004])
def test_a_place_beyond_the_antimeridian_is_found(tmp_path: Path, left: float) -> None:
    found = scene_map(tmp_path, np.ones((10, 80)), crs="EPSG:4326", transform=Affine(1e-4, 0, left, 0, -1e-4, 1e-3))
    both = shapely.MultiPolygon([shapely.box(179.998, 0, 180, 1e-3), shapely.box(-180, 0, -179.999, 1e-3)])
    east = shapely.box(-179.999, 0, -179.995, 1e-3)  # a quarter of it is beside the scene
    areas = geopandas.GeoDataFrame({"name": ["both", "east"]}, geometry=[both, east], crs="EPSG:4326")
    areas.to_file(tmp_path / "areas.gpkg")
    places = Places(tmp_path / "areas.gpkg", "name").on(found.grid)
    assert [(place.name, place.outside) for place in places] == [("both", 0), ("east", pytest.approx(0.25))]
    assert [area_of(found, place).pixels.sum() for place in places] == [300, 300]


SCENES = {
    "utm": ("EPSG:32636", Affine(100, 0, 495_000, 0, -100, 6_660_000), (100, 100)),
    "turned": ("EPSG:32633", Affine.translation(5e5, 6e6) @ Affine.rotation(30) @ Affine.scale(2000, -2000), (90, 150)),
    "arctic": ("EPSG:3413", Affine(20_000, 0, -2e6, 0, -20_000, 1.5e6), (150, 200)),
    "antarctic": ("EPSG:3031", Affine(40_000, 0, -3e6, 0, -40_000, 3e6), (150, 150)),
    "europe": ("EPSG:3035", Affine(7000, 0, 4.1e6, 0, -7000, 4.5e6), (100, 100)),
    "mollweide": ("ESRI:54009", Affine(150_000, 0, -1.81e7, 0, -150_000, 9.1e6), (122, 242)),
    "pacific": ("EPSG:3832", Affine(160_000, 0, -1.6e7, 0, -160_000, 4e6), (50, 200)),
    "degrees": ("EPSG:4326", Affine(2, 0, -180, 0, -2, 90), (90, 180)),
    "turn": ("EPSG:4326", Affine(2, 0, 0, 0, -2, 50), (50, 180)),
    "reanalysis": ("EPSG:4326", Affine(2.5, 0, -181.25, 0, -2.5, 91.25), (73, 144)),
    "fiji": ("EPSG:32760", Affine(2000, 0, 500_000, 0, -2000, 8.2e6), (100, 200)),
}
SHAPES = {
    "world": ("EPSG:4326", shapely.box(-180, -90, 180, 90)),
    "north": ("EPSG:4326", shapely.box(-180, 0, 180, 84)),
    "south of 70": ("EPSG:4326", shapely.box(-180, -90, 180, -70)),
    "quarter": ("EPSG:4326", shapely.box(0, -80, 90, -70)),
    "wide": ("EPSG:4326", shapely.box(30, 60.03, 36, 61)),
    "long": ("EPSG:4326", shapely.box(8.3, 55.4, 16.3, 61.4)),
    "antimeridian": ("EPSG:4326", shapely.box(170, -40, 200, 75)),
    "beyond": ("EPSG:4326", shapely.box(-200, -60, -150, 60)),
    "around": ("EPSG:4326", shapely.box(-10, 0.2, 350, 78)),
    "triangle": ("EPSG:4326", shapely.Polygon([(-170, -35), (100, 80), (20, -20)])),
    "pole": ("EPSG:3413", shapely.Point(3e5, -2e5).buffer(1.2e6)),
    "plane": ("EPSG:3832", shapely.box(-1.008e7, -3.04e6, 1.2e7, 5e6)),
    "zone": ("EPSG:32636", shapely.box(2e5, 1e5, 8e5, 7e6)),
    "equal": ("ESRI:54009", shapely.box(-4e6, -5e6, 9e6, 8e6)),
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_pixel_belongs_to_a_polygon_where_its_centre_lies_in_the_polygon_s_own_system(tmp_path: Path, scene: str) -> None:
    crs, transform, shape = SCENES[scene]
    found = scene_map(tmp_path, np.ones(shape), crs=crs, transform=transform)
    x, y = transform @ tuple(np.mgrid[: shape[0], : shape[1]][::-1] + 0.5)
    covered = 0
    for name, (system, polygon) in SHAPES.items():
        there = np.stack(Transformer.from_crs(crs, system, always_xy=True).transform(x, y))
        known = np.nan_to_num(there, posinf=1e9)
        inside, sure = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
        shapely.prepare([polygon, border := polygon.boundary])
        for turn in (-720, -360, 0, 360, 720) if system == "EPSG:4326" else (0,):
            inside |= shapely.contains_xy(polygon, there[0] + turn, there[1])
            sure &= ~shapely.dwithin(border, shapely.points(known[0] + turn, known[1]), 1e-7)
        geopandas.GeoDataFrame(geometry=[polygon], crs=system).to_file(tmp_path / f"{name}.gpkg")
        try:
            (place,) = Places(tmp_path / f"{name}.gpkg").on(found.grid)
        except DataError:
            assert not (inside & sure).any(), name
            continue
        own = np.concatenate([place.inside(window) for window in found.slabs()])
        np.testing.assert_array_equal(own[sure], inside[sure], err_msg=name)
        assert area_of(found, place).pixels.sum() == own.sum(), name
        covered += own.any()
    assert covered >= 3


@pytest.mark.parametrize(
    ("scene", "shape", "outside"),
    [
        ("antarctic", "quarter", 0), ("antarctic", "south of 70", 0), ("mollweide", "north", 0), ("mollweide", "triangle", 0),
        ("degrees", "pole", 0), ("degrees", "plane", 0), ("degrees", "world", 0), ("reanalysis", "world", 0),
        ("turn", "beyond", None), ("pacific", "plane", None), ("fiji", "antimeridian", None), ("utm", "wide", None),
        ("arctic", "pole", None),
    ],
)  # fmt: skip
def test_the_share_outside_is_one_of_ground(tmp_path: Path, scene: str, shape: str, outside: float | None) -> None:
    crs, transform, size = SCENES[scene]
    found = scene_map(tmp_path, np.ones(size), crs=crs, transform=transform)
    system, polygon = SHAPES[shape]
    geopandas.GeoDataFrame(geometry=[polygon], crs=system).to_file(tmp_path / "areas.gpkg")
    (place,) = Places(tmp_path / "areas.gpkg").on(found.grid)
    if outside is None:  # by the pixels inside, and the ground around which geodesics run
        ring = shapely.get_coordinates(shapely.segmentize(polygon, polygon.length / 4000))
        geod = Geod(ellps="WGS84")
        whole = (
            abs(geod.polygon_area_perimeter(*Transformer.from_crs(system, "EPSG:4326", always_xy=True).transform(*ring.T))[0]) / 1e4
        )
        outside = 1 - area_of(found, place).size.sum() / whole
    assert place.outside == pytest.approx(outside, abs=2e-3)


def test_neighbours_share_no_pixel_and_leave_none_out(tmp_path: Path) -> None:
    """Borders run through the pixels' centres."""
    found = scene_map(tmp_path, np.ones((73, 144)), crs="EPSG:4326", transform=Affine(2.5, 0, -181.25, 0, -2.5, 91.25))
    boxes = [shapely.box(x, y, x + 30, y + 45) for x in range(-180, 180, 30) for y in range(-90, 90, 45)]
    geopandas.GeoDataFrame(geometry=boxes, crs="EPSG:4326").to_file(tmp_path / "areas.gpkg")
    counts = sum(place.inside(next(found.slabs())).astype(int) for place in Places(tmp_path / "areas.gpkg").on(found.grid))
    assert (counts == 1).all()


def test_a_place_goes_on_past_the_edge_of_a_map_of_the_world(tmp_path: Path) -> None:
    edge = 20_037_508.34
    found = scene_map(tmp_path, np.ones((10, 80)), crs="EPSG:3857", transform=Affine(10, 0, edge - 800, 0, -10, 100))
    pixel = 10 / edge * 180
    box = shapely.box(180 - 30 * pixel, 0, 180 + 10 * pixel, 10.1 * pixel)
    geopandas.GeoDataFrame({"name": ["both"]}, geometry=[box], crs="EPSG:4326").to_file(tmp_path / "areas.geojson")
    (place,) = Places(tmp_path / "areas.geojson", "name").on(found.grid)
    assert area_of(found, place).pixels.sum() == 300
    assert place.outside == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("ending", ["gpkg", "geojson", "shp", "parquet"])
def test_places_without_a_name_have_their_number_and_odd_names_are_names(
    found: FinishedMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    names = ["None", None, "nan", " ", "Nantes"]
    left, bottom, _, _ = found.grid.footprint
    frame = geopandas.GeoDataFrame(
        {"name": names}, geometry=[shapely.box(left, bottom, left + 9, bottom + 9)] * 5, crs=found.grid.crs
    )
    path = tmp_path / f"areas.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_file(path)
    read: list[object] = []
    monkeypatch.setattr(vector_files, "_frame", lambda *args, inner=vector_files._frame: read.append(args) or inner(*args))
    assert [place.name for place in Places(path, "name").on(found.grid)] == ["None", "2", "nan", "4", "Nantes"]
    assert len(read) == 1


def test_places_in_a_system_without_a_place_on_earth_are_named(found: FinishedMap, tmp_path: Path) -> None:
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    geopandas.GeoDataFrame({"name": ["a"]}, geometry=[shapely.box(0, 0, 9, 9)], crs=local).to_parquet(tmp_path / "areas.parquet")
    with pytest.raises(DataError, match=r"areas\.parquet is in .*'site' .*there is no way .*ogr2ogr -a_srs"):
        Places(tmp_path / "areas.parquet", "name").on(found.grid)


def test_of_a_large_scene_little_more_than_a_small_place_is_read(tmp_path: Path) -> None:
    found = scene_map(tmp_path, np.ones((100, 9000)), crs="EPSG:32633", transform=UTM)
    corner = np.array(UTM @ (4500, 60))
    geopandas.GeoDataFrame(geometry=[shapely.box(*corner, *(corner + 200))], crs="EPSG:32633").to_file(tmp_path / "areas.gpkg")
    (place,) = Places(tmp_path / "areas.gpkg").on(found.grid)
    assert area_of(found, place).pixels.sum() == 400
    assert place.box is not None
    assert place.box.width <= 2 * 64 + 20


def test_a_spike_has_no_area(found: FinishedMap, tmp_path: Path) -> None:
    spiked = shapely.Polygon([UTM @ place for place in ((10, 10), (30, 10), (30, 30), (10, 30), (10, 10), (10, 2), (10, 10))])
    geopandas.GeoDataFrame(geometry=[spiked], crs="EPSG:32633").to_file(tmp_path / "spike.gpkg")
    (place,) = Places(tmp_path / "spike.gpkg").on(found.grid)
    assert area_of(found, place).pixels.sum() == 400


def test_polygons_that_cross_themselves_are_mended(found: FinishedMap, tmp_path: Path) -> None:
    bow = shapely.Polygon([UTM @ place for place in ((10, 10), (30, 30), (30, 10), (10, 30))])
    geopandas.GeoDataFrame(geometry=[bow], crs="EPSG:32633").to_file(tmp_path / "bow.geojson", driver="GeoJSON")
    places = Places(tmp_path / "bow.geojson")
    assert "bow.geojson holds 1 invalid polygon (shape 1: Self-intersection" in places.notes[0]
    (place,) = places.on(found.grid)
    assert area_of(found, place).pixels.sum() == pytest.approx(200, abs=20)
