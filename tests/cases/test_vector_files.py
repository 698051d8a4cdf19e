import json
import re
from concurrent.futures import ThreadPoolExecutor

import geopandas
import numpy as np
import pytest
import rasterio.features
import shapely
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from voxtile.cases import vector_files
from voxtile.cases.vector_files import files_of, read_shapes, stamps_of
from voxtile.cases.vector_settings import VectorSettings
from voxtile.errors import ConfigError, DataError

UTM = "EPSG:32633"
BOWTIE = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])


def frame(*shapes, crs=UTM, **columns):
    return geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)


def save(path, found, **options):
    if path.suffix == ".parquet":
        found.to_parquet(path)
    else:
        found.to_file(path, **options)
    return path


def geojson(path, *shapes, crs=..., properties=()):
    mapped = [None if shape is None else shapely.geometry.mapping(shape) for shape in shapes]
    features = [{"type": "Feature", "properties": dict(properties), "geometry": shape} for shape in mapped]
    document = {"type": "FeatureCollection", "features": features}
    if crs is not ...:
        document["crs"] = crs
    path.write_text(json.dumps(document))
    return path


def read(path, **settings):
    return read_shapes(path, VectorSettings.of(settings), stamps_of(path))


def squares(count):
    return [shapely.box(2 * i, 0, 2 * i + 1, 1) for i in range(count)]


@pytest.mark.parametrize("name", ["a.gpkg", "a.shp", "a.parquet", "a.geojson", "a.json"])
def test_every_format_gives_the_same_shapes(tmp_path, name):
    path = save(
        tmp_path / name, frame(*squares(3), kind=["lake", "wood", "lake"]), **({"driver": "GeoJSON"} if "json" in name else {})
    )
    before = sorted(tmp_path.iterdir())
    found = read(path, attribute="kind", values={"lake": 2, "wood": 1}, outside=0)
    assert shapely.equals(found.parts, squares(3)).all()
    assert [found.stored[code] for code in found.codes] == [2, 1, 2]
    assert found.stored == (0, 1, 2)
    assert found.crs == UTM
    assert found.bounds == (0, 0, 5, 1)
    assert found.features.tolist() == [0, 1, 2]
    assert sorted(tmp_path.iterdir()) == before  # inputs are never written to, nor is anything beside them


def test_a_semicolon_in_a_name_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x;y\.geojson has a semicolon in its name"):
        read(geojson(tmp_path / "x;y.geojson", *squares(1)))
    assert len(read(save(tmp_path / "x;y.parquet", frame(*squares(2)))).parts) == 2


def test_a_shapefiles_side_files_belong_to_it(tmp_path):
    path = save(tmp_path / "a.shp", frame(*squares(1), kind=[1]))
    assert {each.suffix for each in files_of(path)} == {".shp", ".shx", ".dbf", ".prj", ".cpg"}
    assert files_of(tmp_path / "a.gpkg") == (tmp_path / "a.gpkg",)


def test_a_file_is_read_once_for_all_threads_and_anew_when_it_was_replaced(tmp_path, monkeypatch):
    path, count, original = geojson(tmp_path / "a.geojson", *squares(2)), [], vector_files._read
    monkeypatch.setattr(vector_files, "_read", lambda *args: count.append(1) or original(*args))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read(path), range(8)))
    assert len(count) == 1
    assert all(each is found[0] for each in found)
    geojson(path, *squares(3))
    assert len(read(path).parts) == 3


@pytest.mark.parametrize("crs", [..., None, {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}])
def test_geojson_is_in_longitude_and_latitude(tmp_path, crs):
    assert read(geojson(tmp_path / "a.geojson", *squares(1), crs=crs)).crs.equals("EPSG:4326", ignore_axis_order=True)


def test_geojson_may_name_another_system(tmp_path):
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    assert read(geojson(tmp_path / "a.geojson", *squares(1), crs=crs)).crs == UTM


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_file_without_a_system_needs_one_from_the_settings(tmp_path):
    path = save(tmp_path / "a.gpkg", frame(*squares(1), crs=None))
    with pytest.raises(DataError, match=r"a\.gpkg names no coordinate reference system.*data\.vectors\.crs=EPSG"):
        read(path)
    assert read(path, crs=UTM).crs == UTM
    with pytest.raises(ConfigError, match=r"'data\.vectors\.crs=EPSG:0' is no coordinate reference system"):
        read(path, crs="EPSG:0")


def test_metres_that_are_said_to_be_degrees_are_found_out(tmp_path):
    path = geojson(tmp_path / "a.geojson", shapely.box(500_000, 5_300_000, 500_100, 5_300_100))
    with pytest.raises(DataError, match=r"a\.geojson is said to be in degrees.*5\.3e\+06.*'data\.vectors\.crs=EPSG:…'"):
        read(path)
    assert read(path, crs=UTM).crs == UTM


def test_layers_are_chosen_by_name(tmp_path):
    path = save(tmp_path / "a.gpkg", frame(*squares(1)), layer="houses")
    save(path, frame(*squares(2)), layer="streets")
    assert len(read(path, layer="streets").parts) == 2
    with pytest.raises(DataError, match=r"has several layers: houses, streets.*'data\.vectors\.layer=houses'"):
        read(path)
    with pytest.raises(DataError, match=r"has no layer 'street'.*it has houses, streets\. Did you mean 'streets'\?"):
        read(path, layer="street")
    with pytest.raises(DataError, match=r"b\.parquet has no layer 'houses'.*it has none"):
        read(save(tmp_path / "b.parquet", frame(*squares(1))), layer="houses")


@pytest.mark.parametrize("name", ["a.gpkg", "a.parquet"])
def test_an_attribute_that_is_not_there_is_named(tmp_path, name):
    path = save(tmp_path / name, frame(*squares(1), landuse=["x"], height=[2]))
    with pytest.raises(DataError, match=r"has no attribute 'landuze'.*it has landuse, height\. Did you mean 'landuse'\?"):
        read(path, attribute="landuze")


class TestValues:
    def test_numbers_may_be_the_stored_values_themselves(self, tmp_path):
        path = save(tmp_path / "a.gpkg", frame(*squares(3), number=[7, 3, 7], text=["7", "-3", "7"], part=[7.0, 3.0, 7.0]))
        for attribute, small in (("number", 3), ("text", -3), ("part", 3)):
            found = read(path, attribute=attribute)
            assert [found.stored[code] for code in found.codes] == [7, small, 7]

    def test_text_needs_a_meaning(self, tmp_path):
        path = save(tmp_path / "a.gpkg", frame(*squares(2), kind=["lake", "wood"]))
        with pytest.raises(DataError, match=r"'kind' holds 'lake', 'wood', which are no whole numbers.*values=\{lake: 1, …\}"):
            read(path, attribute="kind")

    def test_values_that_the_settings_do_not_know_are_listed(self, tmp_path):
        path = save(tmp_path / "a.gpkg", frame(*squares(3), kind=["lake", "wood", "moor"]))
        with pytest.raises(
            DataError, match=r"'kind' holds 'wood', 'moor', which 'data\.vectors\.values' does not know: it knows 'lake'"
        ):
            read(path, attribute="kind", values={"lake": 1})

    def test_a_star_is_every_other_value_and_a_missing_one(self, tmp_path):
        path = save(tmp_path / "a.gpkg", frame(*squares(3), kind=["lake", "wood", None]))
        with pytest.raises(DataError, match=r"holds 1 shape without a value of 'kind'.*'\*: ignore'"):
            read(path, attribute="kind", values={"lake": 1, "wood": 2})
        found = read(path, attribute="kind", values={"lake": 1, "*": "ignore"}, outside="ignore")
        assert [found.stored[code] for code in found.codes] == [1, None, None]

    def test_whole_numbers_beside_a_gap_are_found(self, tmp_path):
        path = save(tmp_path / "a.gpkg", frame(*squares(3), kind=[1, None, 2]))
        found = read(path, attribute="kind", values={1: 4, 2: 5, "*": 6})
        assert [found.stored[code] for code in found.codes] == [4, 6, 5]

    def test_codes_are_in_the_order_of_priority(self, tmp_path):
        path = save(tmp_path / "a.gpkg", frame(*squares(3), kind=[1, 2, 3]))
        assert read(path, attribute="kind").stored == (0, 1, 2, 3)
        assert read(path, attribute="kind", priority=[2, 1]).stored == (0, 3, 1, 2)

    @pytest.mark.parametrize(
        ("text", "key"),
        [("Wälder", '"Wälder"'), ("a,b", '"a,b"'), ("wood (old)", '"wood (old)"'), ("", '""'), ('"', '"\\""'), ("1e5", '"1e5"'),
         ("null", '"null"'), ("True", '"True"')],
    )  # fmt: skip
    def test_values_that_cannot_be_typed_go_into_the_configuration_file(self, tmp_path, text, key):
        path = save(tmp_path / "a.gpkg", frame(*squares(2), kind=["lake", text]))
        with pytest.raises(DataError) as refused:
            read(path, attribute="kind")
        assert f"in the data set's configuration file, since not all of them can be typed: 'values: {{{key}: 1, …}}' under" in str(
            refused.value
        )
        with pytest.raises(DataError) as refused:
            read(path, attribute="kind", values={"lake": 1})
        assert "Add them there in the data set's configuration file, since" in str(refused.value)
        assert f"'{key}: ignore'" in str(refused.value)
        values = yaml.safe_load(f"values: {{{key}: 2, lake: 1}}")["values"]
        assert read(path, attribute="kind", values=values).stored == (0, 1, 2)

    @pytest.mark.parametrize("text", ["lake", "deep lake", "1.5", "2-3", "a/b.c", "true", "3a"])
    def test_values_that_can_be_typed_mean_the_same_when_they_are(self, tmp_path, text):
        path = save(tmp_path / "a.gpkg", frame(*squares(1), kind=[text]))
        with pytest.raises(DataError, match=r"'data\.vectors\.values=(.*), …\}'") as refused:
            read(path, attribute="kind")
        typed = re.search(r"'(data\.vectors\.values=.*), …\}'", str(refused.value)).group(1) + "}"
        values = OverridesParser.create().parse_override(typed).value()
        assert read(path, attribute="kind", values=values).stored == (0, 1)

    @pytest.mark.parametrize("name", ["a.geojson", "a.parquet"])
    @pytest.mark.parametrize("several", [["a", "b"], {"a": 1}])
    def test_an_attribute_of_lists_or_tables_is_named(self, tmp_path, name, several):
        found = frame(*squares(2), kind=[several, several], crs="EPSG:4326")
        path = (
            save(tmp_path / name, found)
            if "parquet" in name
            else geojson(tmp_path / name, *squares(2), properties={"kind": several})
        )
        with pytest.raises(DataError, match=r"'kind' holds lists or tables, such as .*a.*'data\.vectors\.attribute=…'"):
            read(path, attribute="kind", values={"a": 1})

    def test_texts_of_a_shapefile_in_an_encoding_that_it_does_not_name(self, tmp_path):
        path = save(tmp_path / "a.shp", frame(*squares(1), kind=["Wälder"]), encoding="CP1252")
        code = path.with_suffix(".cpg")
        assert read(path, attribute="kind", values={"Wälder": 1}).stored == (0, 1)
        code.unlink()
        with pytest.raises(
            DataError, match=r"'kind' of .*a\.shp cannot be read: .*a\.cpg .* is not there.*'echo CP1252 > .*a\.cpg'"
        ):
            read(path, attribute="kind", values={"Wälder": 1})
        code.write_text("CP1252")
        assert read(path, attribute="kind", values={"Wälder": 1}).stored == (0, 1)


class TestOddShapes:
    def test_invalid_polygons_are_repaired_with_a_note(self, tmp_path):
        path = geojson(tmp_path / "a.geojson", *squares(1), BOWTIE)
        found = read(path)
        assert shapely.is_valid(found.parts).all()
        assert shapely.area(found.parts[found.features == 1]).sum() == pytest.approx(8)
        (note,) = found.notes
        assert "holds 1 invalid polygon (" in note
        assert "shape 2: Self-intersection" in note

    def test_parts_that_overlap_are_one_area_as_gdal_burns_them(self, tmp_path):
        shape = shapely.MultiPolygon([shapely.box(0, 0, 4, 4), shapely.box(2, 2, 6, 6)])
        found = read(geojson(tmp_path / "a.geojson", shape))
        assert shapely.area(found.parts).sum() == rasterio.features.rasterize([shape], (6, 6)).sum() == 28

    def test_invalid_polygons_are_refused_on_request(self, tmp_path):
        path = geojson(tmp_path / "a.geojson", *squares(1), BOWTIE)
        with pytest.raises(DataError, match=r"holds 1 invalid polygon .*shape 2: Self-intersection.*'data\.vectors\.repair=true'"):
            read(path, repair=False)

    def test_shapes_without_a_geometry_are_left_out_with_a_note(self, tmp_path):
        path = geojson(tmp_path / "a.geojson", None, *squares(1), shapely.Polygon(), properties={"kind": 3})
        found = read(path, attribute="kind")
        assert found.features.tolist() == [1]
        assert found.stored[found.codes[0]] == 3
        assert "2 of 3 features without a geometry left out" in found.notes[0]

    @pytest.mark.parametrize(("shapes", "words"), [((), "holds no shape"), ((None, None), "holds 2 features without a geometry")])
    def test_a_file_without_shapes_is_refused_unless_it_may_be_empty(self, tmp_path, shapes, words):
        path = geojson(tmp_path / "a.geojson", *shapes)
        with pytest.raises(DataError, match=rf"a\.geojson {words}.*'data\.vectors\.empty=true'"):
            read(path)
        assert len(read(path, empty=True).parts) == 0

    @pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.parquet"])
    def test_a_file_without_shapes_needs_no_attribute(self, tmp_path, name):
        path = geojson(tmp_path / name) if "json" in name else save(tmp_path / name, frame(*squares(1)).iloc[:0])
        found = read(path, empty=True, attribute="kind", values={"lake": 2}, outside=7)
        assert (len(found.parts), found.stored) == (0, (7,))

    def test_a_collection_that_is_made_valid_keeps_its_lines_for_a_buffer(self, tmp_path):
        line = shapely.LineString([(9, 9), (12, 9)])
        path = geojson(tmp_path / "a.geojson", shapely.GeometryCollection([BOWTIE, line, shapely.Point(20, 20)]))
        found = read(path, buffer=1)
        assert shapely.area(found.parts).sum() == pytest.approx(8)
        assert [part.geom_type for part in found.parts if part.area == 0] == ["LineString", "Point"]
        assert shapely.area(read(path).parts).sum() == pytest.approx(8)

    def test_points_and_lines_need_a_buffer(self, tmp_path):
        shapes = [*squares(1), shapely.LineString([(0, 0), (5, 5)]), shapely.Point(3, 3)]
        path = geojson(tmp_path / "a.geojson", *shapes)
        with pytest.raises(DataError, match=r"holds points or lines.*2; the first is shape 2.*'data\.vectors\.buffer=<metres>'"):
            read(path)
        assert len(read(path, buffer=3).parts) == 3

    def test_collections_are_taken_apart(self, tmp_path):
        collection = shapely.GeometryCollection([shapely.MultiPolygon(squares(2)), shapely.box(9, 9, 10, 10)])
        found = read(geojson(tmp_path / "a.geojson", *squares(1), collection))
        assert found.features.tolist() == [0, 1, 1, 1]

    def test_heights_are_left_out(self, tmp_path):
        solid = shapely.force_3d(shapely.box(0, 0, 1, 1), 7)
        assert not shapely.has_z(read(geojson(tmp_path / "a.geojson", solid)).parts).any()

    @pytest.mark.filterwarnings("ignore:invalid value encountered")  # shapely's, of the same numbers
    def test_coordinates_that_are_no_numbers_are_named(self, tmp_path):
        (square,) = squares(1)
        holed = shapely.transform(square, lambda xy: np.where(xy[:, 1:] == 1, np.nan, xy))
        with pytest.raises(DataError, match=r"a\.parquet: shape 2 has coordinates that are no numbers"):
            read(save(tmp_path / "a.parquet", frame(*squares(1), holed)))


class TestBrokenFiles:
    @pytest.mark.parametrize(
        "text",
        ["", "[]", "{}", '{"features": 3}', '{"features": [{"geometry": {"type": "Polygon"}}]}', "<OGRVRTDataSource/>"],
    )
    def test_what_is_no_geojson_is_named(self, tmp_path, text):
        (tmp_path / "l.geojson").write_text(text)
        with pytest.raises(DataError, match=r"l\.geojson cannot be read as GeoJSON.*Expected an intact vector file"):
            read(tmp_path / "l.geojson")

    @pytest.mark.parametrize("name", ["a.gpkg", "a.shp", "a.parquet", "a.geojson"])
    def test_a_file_that_was_cut_off_is_named(self, tmp_path, name):
        path = save(tmp_path / name, frame(*squares(2000)))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=f"{name} cannot be read as"):
            read(path)

    def test_a_damaged_geopackage_is_named(self, tmp_path):
        path = save(tmp_path / "a.gpkg", frame(*squares(20_000)))
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size // 2)
            file.write(b"\xff" * (size // 4))
        with pytest.raises(DataError, match=r"a\.gpkg cannot be read as GPKG"):
            read(path)

    def test_a_shapefile_without_its_index_is_named(self, tmp_path):
        path = save(tmp_path / "a.shp", frame(*squares(2)))
        path.with_suffix(".shx").unlink()
        with pytest.raises(DataError, match=r"a\.shp cannot be read as ESRI Shapefile.*a\.shx"):
            read(path)

    def test_a_table_without_shapes_is_named(self, tmp_path):
        frame(*squares(1), kind=[1])[["kind"]].to_parquet(tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
            read(tmp_path / "a.parquet")

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"a\.gpkg cannot be read.*Expected a vector file there"):
            read(tmp_path / "a.gpkg")
