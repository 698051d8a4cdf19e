"""Scenes read as the settings of `data.scene` say, against NumPy, rasterio and hand-made expectations."""

from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import rasterio.features
import rasterio.warp
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import Resampling
from shapely import transform
from shapely.geometry import Point, Polygon, box

from tests.testers.formats import few, windows
from tests.testers.geotiff import NORTH_UP, SPEC, UTM, bands, save, whole
from voxtile.cases.case import Case, Labels
from voxtile.cases.dataset import Dataset
from voxtile.cases.geotiff import GeoTiffSource, label_source
from voxtile.cases.layouts import FolderLayout
from voxtile.cases.scene import MissingBandError, OutsideAreaError, Scene
from voxtile.cases.window import Window
from voxtile.commands.check import look_at_files
from voxtile.commands.score_table import grid_note
from voxtile.data.footprints import near_pairs
from voxtile.data.survey import survey
from voxtile.errors import ConfigError, DataError

POLAR = "EPSG:3413"
# Scenes across the antimeridian, 10° north: CRS, transform, side in pixels.
PACIFIC = {
    "utm": ("EPSG:32601", Affine(50, 0, 163_000, 0, -50, 1_115_000), 300),
    "east": ("EPSG:4326", Affine(0.001, 0, 179.9, 0, -0.001, 10.1), 200),
    "west": ("EPSG:4326", Affine(0.001, 0, -180.1, 0, -0.001, 10.1), 200),
    "fine": ("EPSG:4258", Affine(0.0005, 0, 179.95, 0, -0.0005, 10.05), 200),
}
ORIGINS = {"east": 179.5, "west": -180.5, "zero": 0.0, "other": -180.5}  # first longitude of labels; from 0 all around the world


def named(path, *names):
    with rasterio.open(path, "r+") as out:
        out.descriptions = names
    return path


def read(source, *names, window=None):
    """Pixels [C, H, W] of channels by name, and validity [H, W]."""
    pixels, valid = source.read(window or Window.whole(source.working.shape), [source.channels.index(name) for name in names])
    return pixels[:, 0], valid[0]


def scene(**settings):
    return Scene.of(settings)


class TestFilesOnOtherGrids:
    """A 10 m file with a 20 m and a 60 m one, as Sentinel-2 comes."""

    @pytest.fixture
    def files(self, tmp_path):
        rng = np.random.default_rng(1)
        sizes = {"B04": (1, 120), "B11": (2, 60), "B01": (6, 20)}
        return [
            save(
                tmp_path / f"s_{name}.tif", rng.integers(1, 4000, (1, n, n)).astype(np.uint16), transform=NORTH_UP @ Affine.scale(k)
            )
            for name, (k, n) in sizes.items()
        ]

    def test_channels_are_named_by_their_files(self, files):
        assert GeoTiffSource(files).channels == ("B04", "B11", "B01")

    @pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic"])
    def test_coarser_files_equal_rasterios_reprojection(self, files, resampling):
        pixels, valid = read(GeoTiffSource(files, scene=scene(resampling=resampling)), "B04", "B11", "B01")
        assert pixels.dtype == np.uint16
        assert valid.all()
        for row, path in enumerate(files):
            with rasterio.open(path) as dataset:
                expected = np.zeros((120, 120), np.uint16)
                rasterio.warp.reproject(
                    dataset.read(1), expected, src_crs=UTM, src_transform=dataset.transform, dst_crs=UTM, dst_transform=NORTH_UP,
                    resampling=Resampling[resampling],
                )  # fmt: skip
            assert abs(pixels[row].astype(int) - expected).max() <= 1  # of rounding

    def test_a_finer_file_is_averaged(self, files):
        pixels, _ = read(GeoTiffSource(files[::-1]), "B04")
        with rasterio.open(files[0]) as dataset:
            blocks = dataset.read(1).reshape(20, 6, 20, 6).mean(axis=(1, 3))
        assert abs(pixels[0] - blocks).max() <= 0.5 + 1e-6

    @pytest.mark.parametrize(
        ("crs", "transform"),
        [(UTM, NORTH_UP @ Affine.translation(-3, 4) @ Affine.rotation(10) @ Affine.scale(0.7)),
         ("EPSG:4326", Affine(1.1e-4, 0, 15.0399, 0, -0.8e-4, 47.8535))],
    )  # fmt: skip
    def test_windows_are_slices_of_one_whole(self, tmp_path, crs, transform):
        first = save(tmp_path / "s_a.tif", bands((1, 300, 700), "uint16"))
        second = save(tmp_path / "s_b.tif", bands((2, 450, 900), "uint16", 1) * 31, crs=crs, transform=transform, nodata=31)
        source = GeoTiffSource([first, second])
        full, full_valid = whole(source)
        assert 0.2 < full_valid.mean() < 1

        @few
        @given(window=windows(source.working.shape))
        def check(window):
            pixels, valid = source.read(window, range(3))
            np.testing.assert_array_equal(pixels, full[:, *window.slices])
            np.testing.assert_array_equal(valid, full_valid[window.slices])

        check()

    @pytest.mark.parametrize("nodata", [None, 0])
    @pytest.mark.parametrize("dtype", ["uint16", "float32"])
    def test_pixels_past_a_files_edge_hold_no_data(self, tmp_path, dtype, nodata):
        first = save(tmp_path / "s_a.tif", bands((1, 40, 50), dtype), nodata=nodata)
        half = save(tmp_path / "s_b.tif", bands((1, 10, 10), dtype, 1), transform=NORTH_UP @ Affine.scale(2), nodata=nodata)
        expected = np.zeros((40, 50), bool)
        expected[:20, :20] = True
        np.testing.assert_array_equal(whole(GeoTiffSource([first, half]))[1][0], expected)
        assert read(GeoTiffSource([first, half]), "a")[1].all()  # the other file is not asked

    def test_nodata_does_not_bleed_into_neighbours(self, tmp_path):
        first = save(tmp_path / "s_a.tif", np.full((1, 40, 40), 7, np.uint16), nodata=0)
        stored = np.full((1, 20, 20), 1000, np.uint16)
        stored[:, 5:9, 5:9] = 0
        second = save(tmp_path / "s_b.tif", stored, transform=NORTH_UP @ Affine.scale(2), nodata=0)
        pixels, valid = read(GeoTiffSource([first, second]), "b")
        assert set(np.unique(pixels)) == {0, 1000}
        np.testing.assert_array_equal(valid, pixels[0] > 0)

    def test_masks_of_a_file_on_another_grid_are_kept(self, tmp_path):
        first = save(tmp_path / "s_a.tif", bands((1, 40, 40)))
        mask = np.random.default_rng(0).random((20, 20)) > 0.3
        second = save(tmp_path / "s_b.tif", bands((1, 20, 20)), transform=NORTH_UP @ Affine.scale(2), mask=mask)
        _, valid = read(GeoTiffSource([first, second], scene=scene(resampling="nearest")), "b")
        np.testing.assert_array_equal(valid, np.kron(mask, np.ones((2, 2), bool)))

    @pytest.mark.parametrize("crs", ["+proj=ortho +lat_0=10 +lon_0=20", "+proj=geos +h=35785831 +lon_0=0 +sweep=y"])
    def test_a_label_of_all_the_earth_lies_under_a_view_of_a_part_of_it(self, tmp_path, crs):
        at = Affine(1000, 0, 500_000, 0, -1000, 900_000)
        image = GeoTiffSource([save(tmp_path / "a.tif", bands((1, 40, 40)), crs=crs, transform=at)])
        earth = np.broadcast_to((np.arange(180) // 10).astype(np.uint8)[:, None], (180, 360))  # by latitude
        path = save(tmp_path / "l.tif", earth[None], crs="EPSG:4326", transform=Affine(1, 0, -180, 0, -1, 90))
        label, valid = whole(label_source(path, image))
        centres = np.meshgrid(np.arange(40) + 0.5, np.arange(40) + 0.5)
        _, latitude = rasterio.warp.transform(crs, "EPSG:4326", *(part.ravel().tolist() for part in at @ tuple(centres)))
        assert valid.all()
        np.testing.assert_array_equal(label[0, 0].ravel(), np.floor(90 - np.array(latitude)).astype(int) // 10)

    def test_a_file_off_by_a_tenth_of_a_pixel_is_read_as_it_is(self, tmp_path):
        stored = bands((1, 20, 30), seed=1)
        first = save(tmp_path / "s_a.tif", bands((1, 20, 30)))
        near = save(tmp_path / "s_b.tif", stored, transform=NORTH_UP @ Affine.translation(0.09, 0))
        np.testing.assert_array_equal(read(GeoTiffSource([first, near]), "b")[0], stored)

    def test_two_dates_of_one_place_are_told_apart(self, tmp_path):
        files = [named(save(tmp_path / f"p_{year}.tif", bands((2, 8, 9), seed=year)), "B04", "B08") for year in (2019, 2021)]
        source = GeoTiffSource(files, scene=scene(derived={"change": "'2021_B04' - '2019_B04'"}))
        assert source.channels == ("2019_B04", "2019_B08", "2021_B04", "2021_B08", "change")
        pixels, _ = read(source, "change", "2021_B04", "2019_B04")
        np.testing.assert_array_equal(pixels[0], pixels[1] - pixels[2])


class TestAroundTheWorld:
    """Degrees that go on past 180°, beside files that count them otherwise; labels are 1 west of the antimeridian and 2 east."""

    @pytest.mark.parametrize("place", PACIFIC)
    @pytest.mark.parametrize("origin", ORIGINS)
    def test_a_label_lies_where_it_lies_on_earth(self, tmp_path, place, origin):
        crs, transform, side = PACIFIC[place]
        image = GeoTiffSource([save(tmp_path / "s.tif", np.ones((1, side, side), np.uint8), crs=crs, transform=transform)])
        left, step = ORIGINS[origin], 0.5 if origin == "zero" else 0.0025
        width = 720 if origin == "zero" else 400
        west = np.arange(width) * step + left < (180 if left >= 0 else -180)
        rows, top = (40, 20.0) if origin == "zero" else (400, 10.5)
        values = np.broadcast_to(np.where(west, 1, 2).astype(np.uint8), (1, rows, width))
        at = Affine(step, 0, left, 0, -step, top)
        path = save(tmp_path / "l.tif", values, crs="EPSG:4269" if origin == "other" else "EPSG:4326", transform=at)
        found, valid = label_source(path, image, {1: 0, 2: 1}).read(Window.whole(image.working.shape), (0,))
        columns, rows = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
        x, y = transform @ (columns.ravel(), rows.ravel())
        longitude = np.asarray(rasterio.warp.transform(crs, "EPSG:4326", x, y)[0]).reshape(side, side)
        expected = np.where(np.mod(longitude, 360) < 180, 1, 2)
        assert valid.all()
        assert (found[0, 0] == expected).mean() > 0.99  # but for pixels on the line


class TestResolution:
    @pytest.mark.parametrize("crs", [UTM, "EPSG:4326", POLAR])
    def test_the_working_grid_has_it(self, tmp_path, crs):
        transform = Affine(1.2e-4, 0, 15, 0, -1e-4, 60) if crs == "EPSG:4326" else NORTH_UP
        source = GeoTiffSource(
            [save(tmp_path / "a.tif", bands((1, 99, 80)), crs=crs, transform=transform)], scene=scene(resolution=25)
        )
        assert source.working.spacing[1:] == pytest.approx((25, 25))
        assert source.stored.shape == (1, 99, 80)
        for edge, own in zip(source.working.footprint, source.stored.footprint, strict=True):
            assert abs(edge - own) <= 12.6 / source.working.metres[0]
        with source.open_map(tmp_path / "m.tif", SPEC) as writer, rasterio.open(writer.close()) as written:
            assert written.shape == source.working.shape[1:]
            assert written.transform == source.profile["transform"]
            assert written.bounds[:] == pytest.approx(source.working.footprint)

    def test_image_and_label_are_read_through_it(self, tmp_path):
        stored = bands((2, 40, 60), "float32")
        image = GeoTiffSource([save(tmp_path / "a.tif", stored)], scene=scene(resolution=20))
        label = label_source(save(tmp_path / "l.tif", (stored[:1] > 50).astype(np.uint8)), image)
        case = Case("a", "a", image, Labels(label, {0: 0, 1: 1}))
        pixels, valid = case.read(Window.whole(case.shape))
        assert case.shape == (1, 20, 30)
        assert valid.all()
        np.testing.assert_allclose(pixels[:, 0], stored.reshape(2, 20, 2, 30, 2).mean(axis=(2, 4)), rtol=1e-5)
        classes = case.read_label(Window.whole(case.shape))[0]
        assert any(np.array_equal(classes, stored[0, y::2, x::2] > 50) for y in (0, 1) for x in (0, 1))  # never mixed
        assert survey(case, 2).pixels == 600

    def test_the_files_own_resolution_changes_nothing(self, tmp_path):
        stored = bands((1, 20, 30))
        np.testing.assert_array_equal(
            whole(GeoTiffSource([save(tmp_path / "a.tif", stored)], scene=scene(resolution=10)))[0][:, 0], stored
        )

    @pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
    def test_it_needs_a_reference_system_and_a_pixel(self, tmp_path):
        plain = save(tmp_path / "a.tif", bands((1, 20, 30)), crs=None, transform=Affine.identity())
        with pytest.raises(DataError, match=r"a\.tif has no coordinate.*resolution=20' metres mean nothing.*gdal_edit"):
            GeoTiffSource([plain], scene=scene(resolution=20))
        with pytest.raises(DataError, match=r"b\.tif covers 200 x 300 m, less than a pixel"):
            GeoTiffSource([save(tmp_path / "b.tif", bands((1, 20, 30)))], scene=scene(resolution=1000))

    @pytest.mark.parametrize("latitude", [0, 60, 80])
    def test_a_map_unit_of_web_mercator_is_no_metre(self, tmp_path, latitude):
        x, y = (value[0] for value in rasterio.warp.transform("EPSG:4326", "EPSG:3857", [10], [latitude]))
        source = GeoTiffSource(
            [save(tmp_path / "a.tif", bands((1, 20, 20)), crs="EPSG:3857", transform=Affine(10, 0, x, 0, -10, y))]
        )
        assert source.stored.spacing[1:] == pytest.approx([10 * np.cos(np.radians(latitude))] * 2, rel=8e-3)


class TestArithmetic:
    @pytest.fixture
    def path(self, tmp_path):
        stored = bands((3, 20, 30), "uint16") * 40
        stored[:, 0, 0], stored[0, 1, 1], stored[1, 1, 1] = 0, 0, 0
        return named(save(tmp_path / "a.tif", stored, nodata=0), "B04", "B08", "B12"), stored.astype(np.float64)

    def test_scale_and_offset_take_the_place_of_the_tags(self, path):
        file, stored = path
        with rasterio.open(file, "r+") as out:
            out.scales, out.offsets = (2.0, 2.0, 2.0), (1.0, 1.0, 1.0)
        source = GeoTiffSource([file], scene=scene(scale=0.0001, offset={"B04": -1000, "B08": -1000}))
        pixels, valid = read(source, "B04", "B12")
        np.testing.assert_allclose(pixels, [(stored[0] - 1000) * 1e-4, stored[2] * 1e-4], rtol=1e-5, atol=1e-7)
        assert np.argwhere(~valid).tolist() == [[0, 0]]
        pixels, _ = read(GeoTiffSource([file], scene=scene(offset={"B04": -1000})), "B04", "B08")
        np.testing.assert_allclose(pixels, [stored[0] - 1000, stored[1] * 2 + 1], rtol=1e-6)

    def test_derived_channels_are_chosen_like_others(self, path):
        file, stored = path
        source = GeoTiffSource([file], scene=scene(derived={"ndvi": "ndvi(B08, B04)", "nbr": "nbr(B08, B12)"}))
        assert source.channels == ("B04", "B08", "B12", "ndvi", "nbr")
        pixels, valid = read(source, "nbr", "B04", "ndvi")
        with np.errstate(all="ignore"):
            expected = (stored[1] - stored[[0]]) / (stored[1] + stored[[0]])
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels[2][valid], expected[0][valid], rtol=1e-5)
        np.testing.assert_array_equal(pixels[1], stored[0])
        assert np.argwhere(~valid).tolist() == [[0, 0], [1, 1]]  # no data, and a division by zero
        assert np.argwhere(~read(source, "nbr", "B04")[1]).tolist() == [[0, 0]]

    def test_bands_that_nothing_asks_for_are_not_read(self, tmp_path):
        files = [save(tmp_path / f"s_{name}.tif", bands((1, 300, 300), seed=2)) for name in ("B04", "B08", "B12")]
        source = GeoTiffSource(files, scene=scene(derived={"ndvi": "ndvi(B08, B04)"}))
        files[2].write_bytes(files[2].read_bytes()[:200])
        assert read(source, "ndvi")[1].all()
        with pytest.raises(DataError, match=r"s_B12\.tif"):
            read(source, "B12")

    def test_decibels_of_linear_power(self, tmp_path):
        power = np.random.default_rng(0).random((2, 9, 8)).astype(np.float32)
        power[0, 2, 3], power[1, 4, 5], power[0, 6, 6] = 0, -1, np.nan
        source = GeoTiffSource([named(save(tmp_path / "a.tif", power), "VV", "VH")], scene=scene(decibel=["VV", "VH"]))
        pixels, valid = read(source, "VV", "VH")
        np.testing.assert_allclose(pixels[:, valid], 10 * np.log10(power[:, valid]), rtol=1e-5)
        assert np.argwhere(~valid).tolist() == [[2, 3], [4, 5], [6, 6]]

    def test_decibels_of_bytes_are_as_exact_as_of_others(self, tmp_path):
        power = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
        source = GeoTiffSource([named(save(tmp_path / "a.tif", power), "VV")], scene=scene(decibel=["VV"]))
        pixels, valid = read(source, "VV")
        np.testing.assert_allclose(pixels[:, valid], 10 * np.log10(power[:, valid].astype(float)), rtol=1e-6)
        assert valid.sum() == 255

    @pytest.mark.parametrize(
        "settings",
        [{"scale": {"B8": 1}}, {"offset": {"B8": 1}}, {"decibel": ["B8"]}, {"derived": {"x": "B8 + 1"}},
         {"masks": [{"band": "B8", "values": [1]}]}],
    )  # fmt: skip
    def test_a_band_that_is_not_there_is_named(self, path, settings):
        with pytest.raises(
            MissingBandError, match=r"a\.tif has no band 'B8', which 'data\.scene\..*it has B04, B08, B12.*mean 'B08'"
        ):
            GeoTiffSource([path[0]], scene=scene(**settings))

    def test_a_derived_channel_needs_a_name_of_its_own(self, path):
        with pytest.raises(DataError, match=r"derived\.B04' has the name of a band"):
            GeoTiffSource([path[0]], scene=scene(derived={"B04": "B08 + 1"}))


class TestMasks:
    def test_classes_at_another_resolution_make_pixels_invalid(self, tmp_path):
        classes = np.random.default_rng(0).integers(0, 12, (1, 20, 20)).astype(np.uint8)
        image = named(save(tmp_path / "s_image.tif", bands((2, 40, 40), "uint16"), nodata=0), "B04", "B08")
        other = save(tmp_path / "s_SCL.tif", classes, transform=NORTH_UP @ Affine.scale(2), nodata=0)
        settings = scene(masks=[{"band": "SCL", "values": [3, 8, 9, 10]}], scale=0.5)
        source = GeoTiffSource([image, other], scene=settings)
        assert source.channels == ("B04", "B08")
        expected = ~np.isin(np.kron(classes[0], np.ones((2, 2), int)), (3, 8, 9, 10))
        np.testing.assert_array_equal(read(source, "B08")[1], expected)
        asked = GeoTiffSource([image, other], scene=settings, asked=("SCL",))
        assert asked.channels == ("B04", "B08", "SCL")
        np.testing.assert_array_equal(
            read(asked, "SCL")[0][0], np.kron(classes[0], np.ones((2, 2), int))
        )  # neither scaled nor mixed

    def test_bits_make_pixels_invalid_and_floats_have_none(self, tmp_path):
        quality = np.array([[[1, 8, 16, 64, 24, 2]]], np.uint16)
        stored = np.concatenate([bands((1, 1, 6), "uint16"), quality])
        path = named(save(tmp_path / "a.tif", stored), "red", "QA_PIXEL")
        source = GeoTiffSource([path], scene=scene(masks=[{"band": "QA_PIXEL", "bits": [3, 4]}]))
        assert read(source, "red")[1].tolist() == [[True, False, False, True, False, True]]
        floats = named(save(tmp_path / "b.tif", stored.astype("float32")), "red", "QA_PIXEL")
        with pytest.raises(DataError, match=r"'QA_PIXEL' of .*b\.tif holds float32 numbers, which have no bits"):
            GeoTiffSource([floats], scene=scene(masks=[{"band": "QA_PIXEL", "bits": [3]}]))
        with pytest.raises(DataError, match=r"holds uint16 numbers, which have 16 bits, from 0 on; .* asks for 3, 16"):
            GeoTiffSource([path], scene=scene(masks=[{"band": "QA_PIXEL", "bits": [3, 16]}]))


class TestArea:
    @staticmethod
    def file(path, shapes, crs=UTM):
        geopandas = pytest.importorskip("geopandas")
        geopandas.GeoSeries(shapes, crs=crs).to_file(path)
        return str(path)

    @staticmethod
    def degrees(source):
        """Longitudes and latitudes of a scene's pixel centres [2, H, W]."""
        _, height, width = source.working.shape
        x, y = source.working.transform @ tuple(np.mgrid[:height, :width][::-1].reshape(2, -1) + 0.5)
        return np.reshape(rasterio.warp.transform(source.working.crs, "EPSG:4326", x, y)[:2], (2, height, width))

    def test_a_label_that_has_nothing_of_the_area_belongs_to_the_scene_all_the_same(self, tmp_path):
        path = save(tmp_path / "a.tif", bands((2, 60, 50)))
        label = save(tmp_path / "l.tif", bands((1, 20, 50)))  # of the upper third
        source = GeoTiffSource(
            [path], scene=scene(area=self.file(tmp_path / "area.gpkg", [box(500_100, 5_299_500, 500_200, 5_299_600)]))
        )
        assert not label_source(label, source).read(Window.whole(source.working.shape), (0,))[1].any()

    def test_pixels_outside_are_not_valid_and_outside_the_box_not_read(self, tmp_path):
        shapes = [Point(500_205, 5_299_755).buffer(77), box(500_301, 5_299_602, 500_333, 5_299_688)]
        path = save(tmp_path / "a.tif", bands((2, 60, 50)))
        source = GeoTiffSource([path], scene=scene(area=self.file(tmp_path / "area.gpkg", shapes)))
        inside = rasterio.features.rasterize(shapes, (60, 50), transform=NORTH_UP).astype(bool)
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        y, x = (
            round(value) for value in ((5_300_000 - source.working.footprint[3]) / 10, (source.working.footprint[0] - 500_000) / 10)
        )
        _, height, width = source.working.shape
        assert (y, x) == pytest.approx((rows[0], columns[0]), abs=1)
        assert (height, width) == pytest.approx((np.ptp(rows) + 1, np.ptp(columns) + 1), abs=2)  # a shape ends between centres
        pixels, valid = whole(source)
        np.testing.assert_array_equal(pixels[:, 0], bands((2, 60, 50))[:, y : y + height, x : x + width])
        np.testing.assert_array_equal(valid[0], inside[y : y + height, x : x + width])
        label = label_source(save(tmp_path / "l.tif", bands((1, 60, 50), seed=3)), source)
        np.testing.assert_array_equal(whole(label)[0][0, 0], bands((1, 60, 50), seed=3)[0, y : y + height, x : x + width])

    @few
    @given(data=st.data())
    def test_windows_are_slices_of_one_whole(self, tmp_path, data):
        path = save(tmp_path / "a.tif", bands((1, 60, 50)), transform=NORTH_UP @ Affine.rotation(20))
        source = GeoTiffSource([path], scene=scene(area=[15.0005, 47.8491, 15.0061, 47.8532]))
        window = data.draw(windows(source.working.shape))
        for part, full in zip(source.read(window, (0,)), whole(source), strict=True):
            np.testing.assert_array_equal(part, full[..., *window.slices])

    @pytest.mark.parametrize(
        ("crs", "corner", "step"),
        [("EPSG:32601", (117_000, 1_998_000), 1000), ("EPSG:4326", (179.5, -16.5), 0.02), ("EPSG:4326", (-180.5, -16.5), 0.02),
         (POLAR, (-50_000, 50_000), 1000)],
    )  # fmt: skip
    def test_bounds_over_the_antimeridian_and_the_pole(self, tmp_path, crs, corner, step):
        transform = Affine(step, 0, corner[0], 0, -step, corner[1])
        path = save(tmp_path / "a.tif", bands((1, 90, 90)), crs=crs, transform=transform)
        middle = transform @ (45, 45)
        longitude, latitude = (value[0] for value in rasterio.warp.transform(crs, "EPSG:4326", [middle[0]], [middle[1]]))
        if crs == POLAR:
            area = [-180, 89.7, 180, 90]
        else:
            area = [(longitude - 0.2 + 180) % 360 - 180, latitude - 0.2, (longitude + 0.2 + 180) % 360 - 180, latitude + 0.2]
        source = GeoTiffSource([path], scene=scene(area=area))
        rows, columns = np.mgrid[:90, :90] + 0.5
        x, y = transform @ (columns.ravel(), rows.ravel())
        lon, lat = (np.reshape(values, (90, 90)) for values in rasterio.warp.transform(crs, "EPSG:4326", x, y))
        near = np.mod(lon - area[0], 360) < np.mod(area[2] - area[0], 360) if crs != POLAR else np.ones((90, 90), bool)
        expected = near & (lat > area[1]) & (lat < area[3])
        _, valid = whole(source)
        assert expected.sum() > 20
        assert abs(int(valid.sum()) - int(expected.sum())) <= 0.03 * expected.sum() + 2

    @pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:6933"])
    def test_areas_go_on_past_the_edge_of_a_map_of_the_world(self, tmp_path, crs):
        (x,), (y,) = rasterio.warp.transform("EPSG:4326", crs, [179.99999], [-16.5])
        area = self.file(tmp_path / "area.geojson", [box(179.5, -17, 180.3, -16.5)], crs="EPSG:4326")
        path = save(tmp_path / "a.tif", bands((1, 60, 90)), crs=crs, transform=Affine(1000, 0, x - 90_000, 0, -1000, y + 3000))
        source = GeoTiffSource([path], scene=scene(area=area))
        lon, lat = self.degrees(source)
        np.testing.assert_array_equal(whole(source)[1][0], (lon > 179.5) & (lat > -17) & (lat < -16.5))
        assert source.working.shape[2] < 60

    @pytest.mark.parametrize("crs", [POLAR, "EPSG:3031"])
    def test_edges_of_areas_are_curves_to_a_part_of_a_pixel(self, tmp_path, crs):
        low, high = (85, 90) if crs == POLAR else (-90, -85)
        path = save(tmp_path / "a.tif", bands((1, 120, 120)), crs=crs, transform=Affine(10_000, 0, -600_000, 0, -10_000, 600_000))
        for area in ([-180, low, 180, high], self.file(tmp_path / "area.gpkg", [box(-180, low, 180, high)], crs="EPSG:4326")):
            source = GeoTiffSource([path], scene=scene(area=area))
            lat = self.degrees(source)[1]
            np.testing.assert_array_equal(whole(source)[1][0], (lat > low) & (lat < high))

    def test_an_area_over_the_edges_of_a_scene_of_the_whole_world(self, tmp_path):
        path = save(tmp_path / "a.tif", bands((1, 90, 180)), crs="EPSG:4326", transform=Affine(2, 0, 0, 0, -2, 90))
        source = GeoTiffSource([path], scene=scene(area=[-31.5, -21.5, 49.5, 39.5]))
        lon, lat = self.degrees(source)
        np.testing.assert_array_equal(whole(source)[1][0], (np.mod(lon + 31.5, 360) < 81) & (lat > -21.5) & (lat < 39.5))

    def test_scenes_elsewhere_are_left_out_and_all_of_them_is_an_error(self, tmp_path):
        for number, crs in ((1, UTM), (2, "EPSG:32634")):
            save(tmp_path / f"s{number}.tif", bands((1, 60, 50)), crs=crs)
            save(tmp_path / f"l{number}.tif", bands((1, 60, 50)) % 2, crs=crs)
        layout = FolderLayout(str(tmp_path), "s{id}.tif", "l{id}.tif")

        def dataset(area):
            return Dataset("d", "geotiff", layout, {0: "a", 1: "b"}, scene={"area": area})

        found = dataset([15.0, 47.849, 15.003, 47.852])
        assert [case.id for case in found.cases()] == ["1"]
        assert "s2.tif" in found.left_out[0]
        assert "not touched by 'data.scene.area=[15.0" in found.left_out[0]
        with pytest.raises(DataError, match="No scene touches the area of interest"):
            dataset([0, 0, 1, 1]).cases()
        files = next(files for files in layout.find() if files.id == "2")
        assert found.open(files, grouped=False, in_area=False).shape == (1, 60, 50)  # a new file is read whole
        with pytest.raises(OutsideAreaError):
            found.open(files)

    def test_an_area_with_latitude_first_is_told_from_one_elsewhere(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.tif", bands((1, 60, 50)))
        turned = self.file(tmp_path / "area.geojson", [box(47.849, 15.0, 47.852, 15.003)], crs="EPSG:4326")
        monkeypatch.chdir(tmp_path)
        for area in ([47.849, 15.0, 47.852, 15.003], turned, "area.geojson"):
            with pytest.raises(OutsideAreaError, match=r"with x and y exchanged: longitude \(x\) comes first"):
                GeoTiffSource([path], scene=scene(area=area))
        with pytest.raises(OutsideAreaError) as error:
            GeoTiffSource([path], scene=scene(area=[40.0, 15.0, 41.0, 15.003]))
        assert "exchanged" not in str(error.value)
        with pytest.raises(DataError, match=f"The area {tmp_path / 'absent.gpkg'} .* does not exist"):
            GeoTiffSource([path], scene=scene(area="absent.gpkg"))

    def test_many_shapes_are_those_of_rasterio_in_any_window(self, tmp_path):
        rng = np.random.default_rng(0)
        places = rng.uniform((500_000, 5_299_400), (500_500, 5_300_000), (300, 2))
        shapes = [Point(place).buffer(size) for place, size in zip(places, rng.uniform(5, 30, 300), strict=True)]
        path = save(tmp_path / "a.tif", bands((1, 60, 50)))
        source = GeoTiffSource([path], scene=scene(area=self.file(tmp_path / "area.gpkg", shapes)))
        assert source.working.shape == (1, 60, 50)
        snapped = [transform(shape, lambda xy: np.round(np.stack(~NORTH_UP @ tuple(xy.T), axis=1) * 256) / 256) for shape in shapes]
        inside = rasterio.features.rasterize(snapped, (60, 50)).astype(bool)
        assert 0.2 < inside.mean() < 0.8
        for window in (Window.whole((1, 60, 50)), Window(0, 13, 7, 1, 20, 31)):
            np.testing.assert_array_equal(source.read(window, (0,))[1][0], inside[window.slices[1:]])

    def test_areas_that_cross_themselves_are_made_valid_with_a_note(self, tmp_path):
        path = save(tmp_path / "a.tif", bands((1, 60, 50)))
        corners = [(10, 10), (40, 50), (40, 10), (10, 50)]
        bow = self.file(tmp_path / "area.gpkg", [Polygon([NORTH_UP @ corner for corner in corners])])
        source = GeoTiffSource([path], scene=scene(area=bow))
        assert source.working.shape == (1, 40, 30)
        assert source.read(Window.whole((1, 40, 30)), (0,))[1].mean() == pytest.approx(0.5, abs=0.02)
        assert any("area.gpkg holds 1 invalid polygon (shape 1: Self-intersection" in note for note in source.notes())

    @pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
    def test_what_is_no_area_is_named(self, tmp_path):
        path = save(tmp_path / "a.tif", bands((1, 60, 50)))
        (tmp_path / "broken.gpkg").write_text("no")
        points = self.file(tmp_path / "points.gpkg", [Point(500_205, 5_299_755)])
        good = self.file(tmp_path / "good.gpkg", [box(500_100, 5_299_500, 500_200, 5_299_600)])
        elsewhere = (
            f"<OGRVRTDataSource><OGRVRTLayer name='good'><SrcDataSource>{good}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"
        )
        for name in ("a.vrt", "a.geojson"):  # which GDAL would follow
            (tmp_path / name).write_text(elsewhere)
        for area, words in (
            (str(tmp_path / "absent.gpkg"), "does not exist"),
            (str(tmp_path / "broken.gpkg"), "cannot be read"),
            (str(tmp_path / "a.vrt"), "ends like no vector file"),
            (str(tmp_path / "a.geojson"), "cannot be read as GeoJSON: it does not begin"),
            (points, "holds no polygons"),
        ):
            with pytest.raises(DataError, match=rf"The area .*{words}"):
                GeoTiffSource([path], scene=scene(area=area))
        plain = save(tmp_path / "b.tif", bands((1, 60, 50)), crs=None, transform=Affine.identity())
        with pytest.raises(DataError, match=r"b\.tif has no coordinate reference system, so the area"):
            GeoTiffSource([plain], scene=scene(area=[0, 0, 1, 1]))


class TestManyScenes:
    def make(self, folder, *scenes):
        for number, (count, names, dtype, crs) in enumerate(scenes):
            named(save(folder / f"s{number}.tif", bands((count, 60, 50), dtype, number), crs=crs), *names)
            save(folder / f"l{number}.tif", bands((1, 60, 50), seed=number) % 2, crs=crs)
        return FolderLayout(str(folder), "s{id}.tif", "l{id}.tif")

    def dataset(self, layout, **settings):
        return Dataset("d", "geotiff", layout, {0: "a", 1: "b"}, **settings)

    def test_each_lies_in_its_own_zone(self, tmp_path):
        layout = self.make(tmp_path, (1, ("r",), "uint8", UTM), (1, ("r",), "uint8", "EPSG:32634"))
        cases = self.dataset(layout).cases()
        assert [rasterio.crs.CRS.from_wkt(case.grid.crs).to_epsg() for case in cases] == [32633, 32634]
        assert [survey(case, 2).judged for case in cases] == [3000, 3000]
        assert near_pairs(cases, cases, 5) == [(0, 0), (1, 1)]

    def test_a_band_missing_in_one_scene_is_named_with_what_the_others_have(self, tmp_path):
        layout = self.make(tmp_path, (2, ("B04", "B08"), "uint8", UTM), (1, ("B04",), "uint8", UTM))
        words = r"Case '1': .*s1\.tif has no band 'B08'.*derived\.x.*s0\.tif has B04, B08.*data\.exclude=\[\"1\"\]"
        with pytest.raises(MissingBandError, match=words):
            self.dataset(layout, scene={"derived": {"x": "B08 + 1"}}).cases()
        with pytest.raises(MissingBandError, match=r"Case '1': .*s1\.tif has no channel B08.*s0\.tif has B04, B08"):
            self.dataset(layout, channels=["B08"]).cases()
        with pytest.raises(
            DataError, match=r"s1\.tif has 1 channel \(B04\), .*those that all have with 'data\.channels=\[\"B04\"\]'"
        ):
            self.dataset(layout).cases()

    def test_bands_in_another_order_are_refused(self, tmp_path):
        layout = self.make(tmp_path, (2, ("B04", "B08"), "uint8", UTM), (2, ("B08", "B04"), "uint8", UTM))
        with pytest.raises(DataError, match=r"in another order, .*: B04, B08.*data\.channels=\[\"B04\",\"B08\"\]"):
            self.dataset(layout).cases()
        assert len(self.dataset(layout, channels=["B04", "B08"]).cases()) == 2

    def test_settings_are_for_geotiffs(self, tmp_path):
        with pytest.raises(ConfigError, match=r"'data\.scene' is for 'data\.format=geotiff' only"):
            Dataset("d", "nifti", FolderLayout(str(tmp_path), "s{id}.nii", "l{id}.nii"), {0: "a", 1: "b"}, scene={"resolution": 5})


def test_a_constant_corner_without_a_nodata_value_is_noted(tmp_path):
    stored = bands((2, 60, 50))
    stored[:, :20, 30:] = 0
    source = GeoTiffSource([save(tmp_path / "a.tif", stored)])
    assert source.notes()[0].endswith("type 'data.nodata=0'.")
    assert GeoTiffSource([tmp_path / "a.tif"], nodata=0).notes() == []
    assert label_source(save(tmp_path / "l.tif", stored[:1]), source).notes() == []
    assert GeoTiffSource([save(tmp_path / "b.tif", bands((2, 60, 50)))]).notes() == []


@pytest.mark.parametrize("resolution", [None, 20])
def test_a_damaged_tile_in_the_middle_is_named(tmp_path, resolution):
    stored = np.random.default_rng(0).integers(0, 255, (1, 320, 320), dtype=np.uint8)
    path = save(tmp_path / "a.tif", stored, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    with rasterio.open(path) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_3_2", "TIFF", bidx=1))  # column, row
    with path.open("rb+") as file:
        file.seek(start)
        file.write(b"\0" * 1000)
    source = GeoTiffSource([path], scene=scene(resolution=resolution))
    with pytest.raises(
        DataError, match=r"The tile in row 2, column 3 of the file's tiles \(pixels x 192 to 255, y 128 to 191\) cannot"
    ):
        whole(source)
    if resolution is None:
        assert source.read(Window(0, 0, 0, 1, 40, 40), (0,))[1].all()


def test_scores_on_another_grid_say_so(tmp_path):
    path = save(tmp_path / "a.tif", bands((1, 60, 50)))
    cases = [Case("a", "a", GeoTiffSource([path], scene=scene(**settings))) for settings in ({}, {"resolution": 20})]
    assert grid_note(cases[:1]) == "stored"
    assert grid_note(cases) == "resampled to 20 m"


def test_scenes_of_several_types_are_noted(tmp_path):
    cases = [
        Case(kind, kind, GeoTiffSource([save(tmp_path / f"{kind}.tif", bands((1, 60, 50), kind))])) for kind in ("uint8", "uint16")
    ]
    surveys = {case.id: survey(case, 2, label=False) for case in cases}
    for chosen, expected in ((cases, 1), (cases[:1], 0)):
        prepared = SimpleNamespace(split=SimpleNamespace(train=chosen, val=[]), surveys=surveys)
        found = [note for note in look_at_files(prepared) if "several types" in note]
        assert len(found) == expected
        assert all(str(tmp_path / f"{kind}.tif") in note for note in found for kind in ("uint8", "uint16"))
