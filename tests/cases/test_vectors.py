import contextlib
import pickle
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from tests.testers.formats import few, tiles, windows
from voxtile.cases import vector_files
from voxtile.cases.case import Case, Labels
from voxtile.cases.dataset import Dataset
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.layouts import FolderLayout
from voxtile.cases.maps import MapSpec
from voxtile.cases.scene import Scene
from voxtile.cases.vector_settings import VectorSettings
from voxtile.cases.vectors import VectorLabel
from voxtile.cases.window import Window
from voxtile.data.survey import survey_key
from voxtile.errors import ConfigError, DataError

UTM = "EPSG:32633"
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_300_000)
SHAPE = (1, 60, 50)
WHOLE = Window.whole(SHAPE)
CLASSES = {0: "ground", 1: "house", 2: "lake", 3: "wood", 255: "ignore"}


def save_scene(path, crs=UTM, transform=NORTH_UP, shape=SHAPE[1:]):
    profile = {"driver": "GTiff", "width": shape[1], "height": shape[0], "count": 1, "dtype": "uint8", "crs": crs}
    with rasterio.open(path, "w", transform=transform, **profile) as out:
        out.write(np.ones((1, *shape), dtype=np.uint8))
    return GeoTiffSource([path])


@pytest.fixture
def scene(tmp_path):
    return save_scene(tmp_path / "scene.tif")


def at(shape, transform=NORTH_UP):
    """A shape given in pixels of a grid, in the grid's metres."""
    return shapely.transform(shape, lambda xy: np.stack(transform @ tuple(xy.T), axis=1))


RING = shapely.box(20.3, 19.3, 40.3, 49.3).difference(shapely.box(25.3, 24.3, 35.3, 44.3))
SHAPES = [
    shapely.Polygon([(3.3, 3.3), (30.3, 9.7), (11.1, 42.3)]),
    shapely.MultiPolygon([RING, shapely.Polygon([(1.3, 51.3), (9.3, 51.3), (8.8, 59.3)])]),
    shapely.box(28.1, 5.2, 70, 30.4),
]


def save(path, shapes=SHAPES, values=(1, 2, 3), crs=UTM, transform=NORTH_UP):
    geopandas.GeoDataFrame({"kind": list(values)[: len(shapes)]}, geometry=[at(s, transform) for s in shapes], crs=crs).to_file(
        path
    )
    return path


def label(path, scene, named=CLASSES, **settings):
    return VectorLabel(path, scene, VectorSettings.of(settings), named)


def whole(source):
    values, valid = source.read(WHOLE, (0,))
    return values[0, 0], valid[0]


def painted(shapes, values, all_touched=False):
    """Rasterio's burning of shapes in pixels, the later ones over the earlier ones."""
    return rasterio.features.rasterize(zip(shapes, values, strict=True), SHAPE[1:], all_touched=all_touched, dtype="uint8")


SETTINGS = [
    {},
    {"all_touched": True},
    {"border": 2.5},
    {"attribute": "kind"},
    {"attribute": "kind", "priority": [1, 3], "border": 3, "outside": "ignore", "all_touched": True},
    {"buffer": 25, "border": 1},
]


class TestWindows:
    @pytest.fixture(params=[NORTH_UP, NORTH_UP @ Affine.rotation(-20) @ Affine.scale(1.1, 0.9)], ids=["north up", "turned"])
    def turned(self, tmp_path, request):
        return save_scene(tmp_path / "a.tif", transform=request.param)

    @pytest.fixture(params=SETTINGS, ids=lambda settings: " ".join(settings) or "default")
    def source(self, tmp_path, turned, request):
        return label(save(tmp_path / "l.gpkg"), turned, **request.param)

    @few
    @given(data=st.data())
    def test_they_equal_burning_the_whole(self, source, data):
        window = data.draw(windows(SHAPE))
        for part, full in zip(source.read(window, (0,)), source.read(WHOLE, (0,)), strict=True):
            np.testing.assert_array_equal(part, full[..., *window.slices])
            assert part.shape[-3:] == window.size


@pytest.mark.parametrize("transform", [NORTH_UP, NORTH_UP @ Affine.rotation(30)], ids=["north up", "turned"])
def test_pixels_are_those_of_rasterio(tmp_path, transform):
    source = label(save(tmp_path / "l.gpkg", transform=transform), save_scene(tmp_path / "a.tif", transform=transform))
    values, valid = whole(source)
    np.testing.assert_array_equal(values, painted(SHAPES, [1, 1, 1]))
    assert 0 < values.mean() < 1
    assert values.dtype == np.uint8
    assert valid.all()


def test_an_attribute_gives_the_value_and_larger_ones_win(tmp_path, scene):
    path = save(tmp_path / "l.gpkg", values=(3, 2, 1))
    values, _ = whole(label(path, scene, attribute="kind"))
    np.testing.assert_array_equal(values, painted(SHAPES[::-1], [1, 2, 3]))
    values, _ = whole(label(path, scene, attribute="kind", priority=[2, 1]))
    np.testing.assert_array_equal(values, painted([SHAPES[0], SHAPES[2], SHAPES[1]], [3, 1, 2]))


def test_shapes_and_what_lies_outside_may_be_ignored(tmp_path, scene):
    path = save(tmp_path / "l.gpkg", values=("house", "lake", "cloud"))
    meant = {"house": 1, "lake": 2, "cloud": "ignore"}
    values, valid = whole(label(path, scene, attribute="kind", values=meant, outside="ignore"))
    expected = painted(SHAPES, [1, 2, 9])
    np.testing.assert_array_equal(valid, (expected == 1) | (expected == 2))
    np.testing.assert_array_equal(values[valid], expected[valid])
    _, valid = whole(label(path, scene, attribute="kind", values=meant, outside=0))
    np.testing.assert_array_equal(valid, expected != 9)


@pytest.mark.parametrize("border", [1, 1.5, 3])
def test_pixels_near_another_value_are_not_judged(tmp_path, border):
    path = save(
        tmp_path / "l.gpkg", [shapely.box(10, 10, 20, 20), shapely.box(20, 10, 30, 20), shapely.box(30, 10, 40, 20)], (1, 2, 2)
    )
    scene = save_scene(tmp_path / "a.tif", shape=(30, 45))
    values, valid = (
        part.squeeze() for part in label(path, scene, attribute="kind", border=border).read(Window(0, 0, 0, 1, 30, 45), (0,))
    )
    places = np.argwhere(values >= 0)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    near = ((distance <= border) & (values.ravel()[:, None] != values.ravel()[None])).any(axis=1).reshape(values.shape)
    np.testing.assert_array_equal(valid, ~near)
    assert not valid[15, 19:21].any()  # between different values
    assert valid[15, 29:31].all()  # not between parts of one


def test_a_shape_that_goes_on_past_the_scene_has_no_border_there(tmp_path, scene):
    path = save(tmp_path / "l.gpkg", [shapely.box(-40, -40, 90, 90)])
    assert whole(label(path, scene, border=4))[1].all()
    beside = save(tmp_path / "m.gpkg", [shapely.box(52, -40, 90, 90), shapely.box(10, 10, 20, 20)])  # begins two pixels outside
    assert np.flatnonzero(~whole(label(beside, scene, border=4))[1][50]).tolist() == [48, 49]


def test_the_data_type_holds_every_named_value(tmp_path, scene):
    path = save(tmp_path / "l.gpkg", values=(1, 2, 300))
    values, _ = whole(label(path, scene, {-1: "a", 0: "b", 1: "c", 2: "d", 300: "e"}, attribute="kind", outside=-1))
    assert set(np.unique(values)) == {-1, 1, 2, 300}


def test_classes_are_read_through_a_case(tmp_path, scene):
    source = label(save(tmp_path / "l.gpkg"), scene, {0: "a", 1: "b"}, border=1)
    values, valid = whole(source)
    found = Case("a", "a", scene, Labels(source, {0: 1, 1: 0})).read_label(WHOLE)[0]
    np.testing.assert_array_equal(found, np.where(valid, 1 - values, 255))


def test_many_scenes_share_one_file_that_is_read_once(tmp_path, monkeypatch):
    count, original = [], vector_files._read
    monkeypatch.setattr(vector_files, "_read", lambda *args: count.append(1) or original(*args))
    path = save(tmp_path / "l.gpkg", [shapely.box(0, 0, 20, 20), shapely.box(100, 0, 120, 20)])
    scenes = [save_scene(tmp_path / f"{i}.tif", transform=NORTH_UP @ Affine.translation(100 * i, 0)) for i in range(2)]
    for each in scenes:
        values, _ = whole(label(path, each))
        assert values[:20, :20].all()
        assert values.sum() == 400
    assert len(count) == 1


def test_it_pickles_small_and_threads_may_read_at_the_same_time(tmp_path, scene):
    shapes = [shapely.box(x + 0.5, y, x + 1.2, y + 0.8) for x in range(50) for y in range(60)]
    source = label(save(tmp_path / "l.gpkg", shapes, [1] * len(shapes)), scene, all_touched=True)
    full = whole(source)[0]
    packed = pickle.dumps(source)
    assert len(packed) < 10_000
    wanted = tiles(SHAPE, (1, 7, 9)) * 3
    with ThreadPoolExecutor(4) as pool:
        for window, (values, _) in zip(wanted, pool.map(lambda w: pickle.loads(packed).read(w, (0,)), wanted), strict=True):
            np.testing.assert_array_equal(values[0, 0], full[window.slices[1:]])


def test_a_file_that_was_replaced_is_read_anew(tmp_path, scene):
    for shapes in ([shapely.box(0, 0, 9, 9)], [shapely.box(0, 0, 20, 20)]):
        path = save(tmp_path / "l.gpkg", shapes)
        assert whole(label(path, scene))[0].sum() == shapes[0].area
        path.unlink()


def test_anchors_are_pixels_of_the_shapes_in_the_scene(tmp_path, scene):
    outside, cloud = shapely.box(100, 100, 120, 120), shapely.box(0, 30, 9, 40)
    path = save(tmp_path / "l.gpkg", [SHAPES[2], outside, SHAPES[1], cloud], ("lake", "lake", "house", "cloud"))
    source = label(path, scene, attribute="kind", values={"lake": 2, "house": 1, "cloud": "ignore"})
    values, _ = whole(source)
    assert [values[y, x] for z, y, x in source.anchors(Window.whole(source.working.shape))] == [2, 1]  # in the file's order


def test_maps_lie_on_the_scenes_grid(tmp_path, scene):
    source, spec = label(save(tmp_path / "l.gpkg"), scene), MapSpec(("a", "b"))
    assert source.map_name("m", spec) == "m.tif"
    with source.open_map(tmp_path / "m.tif", spec) as writer:
        assert GeoTiffSource([writer.close()]).stored == scene.stored


class TestRefusals:
    @pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
    def test_a_scene_without_reference_system(self, tmp_path):
        plain = save_scene(tmp_path / "a.tif", crs=None, transform=Affine.identity())
        with pytest.raises(
            DataError, match=r"a\.tif has no coordinate reference system, so the shapes of .*l\.gpkg cannot be placed"
        ):
            label(save(tmp_path / "l.gpkg"), plain)

    def test_a_file_and_a_scene_far_apart(self, tmp_path, scene):
        far = save(tmp_path / "l.gpkg", transform=NORTH_UP @ Affine.translation(999, 0))
        with pytest.raises(DataError, match=r"l\.gpkg cover 510003 .*scene\.tif 499.*do not overlap.*'data\.vectors\.crs=EPSG:…'"):
            label(far, scene)

    def test_latitude_before_longitude(self, tmp_path, scene):
        path = save(tmp_path / "l.gpkg")
        frame = geopandas.read_file(path)
        turned = shapely.transform(frame.geometry.to_numpy(), lambda points: points[:, ::-1])
        frame.set_geometry(geopandas.GeoSeries(turned, crs=frame.crs)).to_file(path)
        with pytest.raises(DataError, match=r"do not overlap\. They would meet with x and y exchanged") as caught:
            label(path, scene)
        assert "data.vectors.crs" not in str(caught.value)

    def test_a_number_that_the_labels_do_not_know(self, tmp_path, scene):
        path = save(tmp_path / "l.gpkg", values=(1, 2, 7))
        with pytest.raises(
            DataError, match=r"'kind' holds 7, which 'data\.labels' does not know: it maps 0, 1, 2, 3, 255.*'7: ignore'"
        ):
            label(path, scene, attribute="kind")

    def test_an_outside_that_the_labels_do_not_know(self, tmp_path, scene):
        with pytest.raises(ConfigError, match=r"'data\.vectors\.outside' uses the stored value 0"):
            label(save(tmp_path / "l.gpkg"), scene, {1: "a", 2: "b"})

    def test_shapes_without_an_attribute_where_no_class_has_the_value_1(self, tmp_path, scene):
        with pytest.raises(
            DataError,
            match=r"Without an attribute every shape of .*l\.gpkg is 1.*'data\.labels' does not know.*'data\.vectors\.attribute=…'",
        ):
            label(save(tmp_path / "l.gpkg"), scene, {0: "a", 2: "b"})


def test_a_scene_between_the_shapes_is_noted(tmp_path, scene):
    path = save(tmp_path / "l.gpkg", [shapely.box(-90, 0, -80, 9), shapely.box(90, 0, 99, 9)])
    (note,) = label(path, scene).notes()
    assert note.startswith(f"no shape of {path} lies on {scene.path}: all of it is 0")
    assert not whole(label(path, scene))[0].any()
    (note,) = label(path, scene, outside="ignore").notes()
    assert note.endswith("nothing of it is judged")
    assert label(save(tmp_path / "m.gpkg"), scene).notes() == []


def test_what_is_odd_in_the_file_is_noted(tmp_path, scene):
    bowtie = shapely.Polygon([(0, 0), (40, 40), (40, 0), (0, 40)])
    assert "used as made valid" in label(save(tmp_path / "l.gpkg", [bowtie]), scene).notes()[0]


def test_an_empty_file_is_a_scene_without_shapes_where_that_is_wanted(tmp_path, scene):
    path = save(tmp_path / "l.gpkg", [])
    with pytest.raises(DataError, match="holds no shape"):
        label(path, scene)
    source = label(path, scene, empty=True, border=2)
    assert not whole(source)[0].any()
    assert source.anchors(Window.whole(source.working.shape)).shape == (0, 3)


class TestWorkingGrid:
    """Shapes on the grid that windows lie on, where `data.scene` makes that another one than the file's."""

    def source(self, scene, **settings):
        return GeoTiffSource(scene.paths, scene=Scene.of(settings))

    def test_shapes_lie_on_the_resolution_asked_for(self, tmp_path, scene):
        source = self.source(scene, resolution=20)
        found = label(save(tmp_path / "l.gpkg"), source, attribute="kind")
        values, _ = found.read(Window.whole((1, 30, 25)), (0,))
        coarse = [shapely.transform(shape, lambda xy: xy / 2) for shape in SHAPES]
        expected = rasterio.features.rasterize(zip(coarse, (1, 2, 3), strict=True), (30, 25), dtype="uint8")
        np.testing.assert_array_equal(values[0, 0], expected)
        assert (found.anchors(Window.whole((1, 30, 25))) < (1, 30, 25)).all()

    def test_shapes_lie_in_the_area_of_interest(self, tmp_path, scene):
        part = geopandas.GeoDataFrame(geometry=[at(shapely.box(22, 12, 46, 55))], crs=UTM)
        part.to_file(tmp_path / "area.gpkg")
        source = self.source(scene, area=str(tmp_path / "area.gpkg"))
        values, _ = label(save(tmp_path / "l.gpkg"), source, attribute="kind").read(Window.whole((1, 43, 24)), (0,))
        np.testing.assert_array_equal(values[0, 0], painted(SHAPES, [1, 2, 3])[12:55, 22:46])

    def test_an_area_without_shapes_in_a_scene_that_has_some_is_all_outside(self, tmp_path, scene):
        geopandas.GeoDataFrame(geometry=[at(shapely.box(42, 52, 48, 58))], crs=UTM).to_file(tmp_path / "area.gpkg")
        source = self.source(scene, area=str(tmp_path / "area.gpkg"))
        found = label(save(tmp_path / "l.gpkg", SHAPES[:1]), source)
        assert not found.read(Window.whole((1, 6, 6)), (0,))[0].any()
        assert "no shape of" in found.notes()[-1]


class TestDataset:
    def dataset(self, folder, labels="l.gpkg", meaning=CLASSES, **more):
        layout = FolderLayout(str(folder), "{id}.tif", labels)
        return Dataset("places", "geotiff", layout, meaning, **more)

    def test_any_vector_file_is_a_label(self, tmp_path, scene):
        save(tmp_path / "l.gpkg")
        (case,) = self.dataset(tmp_path, vectors={"attribute": "kind", "outside": "ignore"}).cases()
        expected = painted(SHAPES, [1, 2, 3])
        np.testing.assert_array_equal(case.read_label(WHOLE)[0], np.where(expected > 0, expected, 255))

    def test_settings_are_part_of_what_a_survey_is_kept_under(self, tmp_path, scene):
        save(tmp_path / "l.gpkg")
        given = ({}, {"border": 2}, {"all_touched": True}, {"attribute": "kind"})
        keys = [survey_key(self.dataset(tmp_path, vectors=each).cases()[0], 4, label=True) for each in given]
        assert len(set(keys)) == len(keys)
        again = self.dataset(tmp_path, vectors={"border": 2.0}).cases()[0]
        assert survey_key(again, 4, label=True) == keys[1]
        locked = [survey_key(self.dataset(tmp_path, vectors=each).cases()[0], 4, label=False) for each in given]
        assert len(set(locked)) == 1  # of a label that is not read

    def test_settings_for_other_formats_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"'data\.vectors' is for 'data\.format=geotiff' only"):
            Dataset("a", "nifti", FolderLayout(str(tmp_path), "{id}.nii"), CLASSES, vectors={"border": 2})
        Dataset("a", "nifti", FolderLayout(str(tmp_path), "{id}.nii"), CLASSES, vectors={"border": 0, "layer": None})


class TestSystemsWithoutAPlace:
    LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'

    @staticmethod
    def without(path):
        """A GeoPackage whose layer has no coordinate reference system: "undefined" (-1)."""
        with contextlib.closing(sqlite3.connect(save(path))) as file, file:
            for table in ("gpkg_geometry_columns", "gpkg_contents"):
                file.execute(f"UPDATE {table} SET srs_id = -1")
        return path

    def test_they_are_no_system_of_a_label(self, tmp_path, scene):
        path = self.without(tmp_path / "l.gpkg")
        with pytest.raises(
            DataError, match=r"l\.gpkg, the label of .*scene\.tif, is in .*no way from.*'data\.vectors\.crs=EPSG:…'"
        ):
            label(path, scene)
        with pytest.raises(DataError, match=r"is in the coordinate reference system 'site' .*no way from one to the other"):
            label(path, scene, crs=self.LOCAL)
        np.testing.assert_array_equal(whole(label(path, scene, crs=UTM))[0], painted(SHAPES, [1, 1, 1]))

    def test_they_are_no_system_of_an_area(self, tmp_path, scene):
        area = str(self.without(tmp_path / "area.gpkg"))
        with pytest.raises(DataError, match=r"The area of interest .*area\.gpkg is in .*no way from.*ogr2ogr -a_srs"):
            GeoTiffSource(scene.paths, scene=Scene.of({"area": area}))
