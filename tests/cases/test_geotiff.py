import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import rasterio.control
import rasterio.shutil
import rasterio.warp
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError

from tests.testers.formats import FormatTester, few, windows
from tests.testers.geotiff import NORTH_UP, SPEC, UTM, bands, masked_beside, save, whole
from voxtile.cases import raster
from voxtile.cases.case import Case, Labels
from voxtile.cases.geotiff import GeoTiffSource, label_source
from voxtile.cases.maps import MapSpec
from voxtile.cases.scene import Scene
from voxtile.cases.window import Window
from voxtile.errors import DataError


class GeoTiffTester(FormatTester):
    def reopen(self, path):
        return GeoTiffSource([path])


class TestBytes(GeoTiffTester):
    def make(self, folder, array):
        return GeoTiffSource([save(folder / "a.tif", array[:, 0])])


class TestTiledDoublesOnARotatedGrid(GeoTiffTester):
    shape, dtype = (5, 1, 40, 33), "float64"

    def make(self, folder, array):
        rotated = NORTH_UP @ Affine.rotation(30)
        return GeoTiffSource(
            [save(folder / "a.tif", array[:, 0], transform=rotated, tiled=True, blockxsize=16, blockysize=16, compress="deflate")]
        )


class TestStackedFiles(GeoTiffTester):
    shape, dtype = (3, 1, 20, 31), "uint16"

    def make(self, folder, array):
        first = save(folder / "place_S1.tif", array[:2, 0], crs="EPSG:4326", transform=Affine(1e-4, 0, 30, 0, -1e-4, 50))
        second = save(folder / "place_S2.tif", array[2:, 0], crs="EPSG:4326", transform=Affine(1e-4, 0, 30, 0, -1e-4, 50))
        return GeoTiffSource([first, second])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
class TestWithoutGeoreference(GeoTiffTester):
    shape, dtype = (1, 1, 12, 13), "int16"

    def make(self, folder, array):
        return GeoTiffSource([save(folder / "a.tif", array[:, 0], crs=None, transform=Affine.identity())])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_the_data_type_is_the_files_own(tmp_path, dtype):
    stored = bands((2, 5, 6), dtype)
    source = GeoTiffSource([save(tmp_path / "a.tif", stored)])
    pixels, _ = whole(source)
    assert source.dtype == pixels.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(pixels[:, 0], stored)


def test_bands_of_a_vrt_have_types_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    stored = [rng.integers(0, 9, (1, 300, 300), dtype=np.uint8), rng.random((1, 300, 300), dtype=np.float32)]
    bands = ""
    for number, (array, kind) in enumerate(zip(stored, ("Byte", "Float32"), strict=True), 1):
        save(tmp_path / f"{number}.tif", array, tiled=True, blockxsize=128, blockysize=128)
        source = f'<SourceFilename relativeToVRT="1">{number}.tif</SourceFilename><SourceBand>1</SourceBand>'
        bands += f'<VRTRasterBand dataType="{kind}" band="{number}"><SimpleSource>{source}</SimpleSource></VRTRasterBand>'
    (tmp_path / "both.vrt").write_text(
        f'<VRTDataset rasterXSize="300" rasterYSize="300"><SRS>{UTM}</SRS>'
        f"<GeoTransform>{', '.join(map(str, NORTH_UP.to_gdal()))}</GeoTransform>{bands}</VRTDataset>"
    )
    window = Window(0, 20, 30, 1, 110, 100)
    for scene in (Scene(), Scene.of({"resolution": 2 * NORTH_UP.a})):
        source = GeoTiffSource([tmp_path / "both.vrt"], scene=scene)
        alone = np.concatenate([source.read(window, (channel,))[0] for channel in (0, 1)])
        assert alone[1].any()
        array, _ = source.read(window, (0, 1))
        np.testing.assert_array_equal(array, alone)
        into = np.empty_like(array)
        source.begin(into, window, (0, 1), None)()
        np.testing.assert_array_equal(into, alone)
        if scene.resolution is None:
            np.testing.assert_array_equal(alone[:, 0], np.concatenate(stored)[:, *window.slices[1:]])


def test_files_of_several_types_are_stacked_in_the_widest_and_picked_in_any_order(tmp_path):
    first, second = bands((2, 5, 6), "int16"), bands((1, 5, 6), "float32", seed=1) / 3
    source = GeoTiffSource([save(tmp_path / "x_S2.tif", first), save(tmp_path / "x_S1.tif", second)])
    assert source.dtype == np.float32
    assert source.channels == ("S2_1", "S2_2", "S1")
    pixels, _ = whole(source, (2, 0, 1))
    np.testing.assert_array_equal(pixels[:, 0], np.concatenate([second, first]))


def test_channels_are_named_by_their_descriptions_unless_those_name_the_file(tmp_path):
    for name, descriptions, expected in (
        ("a.tif", ("red", "nir"), ("red", "nir")),
        ("a.tif", (None, None), ("band1", "band2")),
        ("scene7.tif", ("scene7_VV", "scene7_VH"), ("band1", "band2")),
        ("s7.tif", ("s7: VV", "s7: VH"), ("band1", "band2")),
        ("1.tif", ("B01", "B11"), ("B01", "B11")),
        ("red.tif", ("red", "red edge"), ("red", "red edge")),
        ("forest.tif", ("forest", "reforested"), ("forest", "reforested")),
        ("a.tif", ("same", "same"), ("band1", "band2")),
    ):
        path = save(tmp_path / name, bands((2, 5, 6)))
        with rasterio.open(path, "r+") as out:
            out.descriptions = descriptions
        assert GeoTiffSource([path]).channels == expected


def test_nan_in_any_band_is_no_data(tmp_path):
    stored = bands((2, 5, 6), "float32")
    stored[0, 1, 2], stored[1, 3, 4] = np.nan, np.nan
    _, valid = whole(GeoTiffSource([save(tmp_path / "a.tif", stored, nodata=np.nan)]))
    np.testing.assert_array_equal(valid[0], np.isfinite(stored).all(axis=0))


def test_a_pixel_is_nodata_only_where_all_bands_are(tmp_path):
    stored = bands((3, 5, 6), "int16")
    stored[:, 1, 2], stored[0, 3, 4] = 0, 0
    path = save(tmp_path / "a.tif", stored, nodata=0)
    _, valid = whole(GeoTiffSource([path]))
    assert np.argwhere(~valid[0]).tolist() == [[1, 2]]
    _, valid = whole(GeoTiffSource([path]), (0,))
    assert np.argwhere(~valid[0]).tolist() == [[1, 2], [3, 4]]
    stored[:, 0, 0] = -9
    _, valid = whole(GeoTiffSource([save(tmp_path / "a.tif", stored, nodata=0)], nodata=-9))
    assert np.argwhere(~valid[0]).tolist() == [[0, 0]]


@pytest.mark.parametrize("nodata", [-9999, np.nan])
def test_a_value_that_cannot_be_measured_is_no_data_in_any_band(tmp_path, nodata):
    red, height = bands((2, 5, 6), "uint16"), bands((1, 5, 6), "float32", seed=1)
    red[:, 0], red[1, 1], height[0, 2] = 0, 0, nodata
    image = save(tmp_path / "s_red.tif", red, nodata=0)
    source = GeoTiffSource([image, save(tmp_path / "s_dem.tif", height, nodata=nodata)])
    assert bool(source.key) == np.isnan(nodata)  # once such a scene was read otherwise, and surveys of it may be kept
    _, valid = whole(source)
    assert np.argwhere(~valid[0]).tolist() == [[y, x] for y in (0, 2) for x in range(6)]
    # What tells no nodata value has no say in it.
    _, valid = whole(GeoTiffSource([image, save(tmp_path / "s_tmp.tif", np.nan_to_num(height))]))
    assert np.argwhere(~valid[0]).tolist() == [[0, x] for x in range(6)]


@pytest.mark.parametrize("resolution", [None, 5, 15])
def test_nodata_that_bands_have_of_their_own_does_not_bleed(tmp_path, resolution):
    red, height = np.full((1, 40, 40), 500, np.uint16), np.full((1, 40, 40), 100, np.float32)
    red[:, :6], height[:, 20:] = 0, -9999
    save(tmp_path / "red.tif", red, nodata=0)
    save(tmp_path / "dem.tif", height, nodata=-9999)
    text = '<VRTDataset rasterXSize="40" rasterYSize="40"><SRS>EPSG:32633</SRS>'
    text += "<GeoTransform>500000, 10, 0, 5300000, 0, -10</GeoTransform>"
    for number, (name, kind, nodata) in enumerate([("red", "UInt16", 0), ("dem", "Float32", -9999)], 1):
        text += f'<VRTRasterBand dataType="{kind}" band="{number}"><NoDataValue>{nodata}</NoDataValue><SimpleSource>'
        text += f'<SourceFilename relativeToVRT="1">{name}.tif</SourceFilename></SimpleSource></VRTRasterBand>'
    (tmp_path / "s.vrt").write_text(text + "</VRTDataset>")
    pixels, valid = whole(GeoTiffSource([tmp_path / "s.vrt"], scene=Scene.of({"resolution": resolution})))
    assert {tuple(each) for each in pixels[:, valid].T.tolist()} == {(500, 100)}
    assert 0.3 < valid.mean() < 0.52


@pytest.mark.parametrize(("empty", "nodata"), [(-9999, -9999), (np.nan, np.nan), (np.nan, None)])
def test_one_of_two_alike_bands_without_data_does_not_bleed(tmp_path, empty, nodata):
    stored = np.full((2, 40, 40), 5, np.float32)
    stored[0, :12], stored[1, 20::4, ::4] = empty, empty  # single pixels, of which those beside them know nothing
    source = GeoTiffSource([save(tmp_path / "a.tif", stored, nodata=nodata)], scene=Scene.of({"resolution": 15}))
    pixels, valid = whole(source)
    assert set(pixels[:, valid].ravel().tolist()) == {5}
    assert 0.6 < valid.mean() < 0.75
    assert ("NaN" in source.key) == bool(np.isnan(empty))  # such scenes were once read otherwise


@pytest.mark.parametrize("resolution", [None, 5, 15, 20])
def test_neither_nodata_nor_what_a_mask_hides_bleeds(tmp_path, resolution):
    stored, mask = np.full((1, 40, 40), 1000, np.uint16), np.ones((40, 40), bool)
    stored[:, :8], mask[:, -8:] = 0, False
    stored[:, 8:, -8:] = 9000
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = save(tmp_path / "a.tif", stored, nodata=0, mask=mask)
    pixels, valid = whole(GeoTiffSource([path], scene=Scene.of({"resolution": resolution})))
    assert set(pixels[:, valid].ravel().tolist()) == {1000}
    assert 0.55 < valid.mean() <= 0.65


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("resolution", [8, 15])
def test_a_band_that_is_0_is_not_taken_for_no_data_when_it_is_warped(tmp_path, alpha, resolution):
    stored = bands((4, 40, 40))
    stored[2, 10:20, 10:20], stored[3] = 0, 255
    path = save(tmp_path / "a.tif", stored if alpha else stored[:3], nodata=0, **({"ALPHA": "YES"} if alpha else {}))
    _, valid = whole(GeoTiffSource([path], scene=Scene.of({"resolution": resolution})))
    assert valid.all()


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("float32", None), ("int16", None)])
@pytest.mark.parametrize("resolution", [None, 20])
def test_alpha_counts_where_gdals_own_masks_pass_it_over(tmp_path, dtype, nodata, resolution):
    stored = np.full((2, 40, 40), 100, dtype)
    stored[0, :, -8:], stored[1] = 101, 255  # a collar that shines through nothing
    stored[1, :, -8:] = 0
    path = save(tmp_path / "a.tif", stored, nodata=nodata, ALPHA="YES")
    source = GeoTiffSource([path], scene=Scene.of({"resolution": resolution}))
    pixels, valid = whole(source)
    assert source.channels == ("band1",)
    assert set(pixels[:, valid].ravel().tolist()) == {100}
    assert valid.mean() == 0.8


@pytest.mark.parametrize("nodata", [256, -1, 254.5])
def test_a_nodata_value_that_no_pixel_can_have_is_refused(tmp_path, nodata):
    path = save(tmp_path / "a.tif", bands((1, 5, 6)))
    with pytest.raises(DataError, match=rf"'data\.nodata={nodata}' is no value that .*a\.tif can hold, whose pixels are uint8"):
        GeoTiffSource([path], nodata=nodata)
    other = save(tmp_path / "b.tif", bands((1, 5, 6), "int16"))
    assert GeoTiffSource([path, other], nodata=-1).channels == ("a", "b")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_ground_control_points_are_noted(tmp_path):
    path = save(tmp_path / "a.tif", bands((1, 5, 6)), crs=None, transform=None)
    assert GeoTiffSource([path]).notes() == []
    points = [rasterio.control.GroundControlPoint(row, col, 15 + col, 50 - row) for row, col in ((0, 0), (0, 5), (4, 0), (4, 5))]
    with rasterio.open(path, "r+") as out:
        out.gcps = points, rasterio.CRS.from_epsg(4326)
    assert "Ground control points" in GeoTiffSource([path]).notes()[0]


def test_a_file_without_a_channel_is_refused(tmp_path):
    path = save(tmp_path / "a.tif", bands((1, 5, 6)))
    with rasterio.open(path, "r+") as out:
        out.colorinterp = [ColorInterp.alpha]
    with pytest.raises(DataError, match=r"a\.tif has no channel"):
        GeoTiffSource([path])


def test_an_alpha_band_is_no_channel_and_says_where_data_is(tmp_path):
    stored = bands((4, 5, 6))
    stored[3] = 255
    stored[3, 2, 2:4] = 0
    path = save(tmp_path / "a.tif", stored)
    with rasterio.open(path, "r+") as out:
        out.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    source = GeoTiffSource([path])
    pixels, valid = whole(source)
    assert len(source.channels) == 3
    np.testing.assert_array_equal(pixels[:, 0], stored[:3])
    np.testing.assert_array_equal(valid[0], stored[3] > 0)


ALL_FOUR = ("band1", "band2", "band3", "band4")


def test_a_fourth_band_that_is_declared_as_alpha_is_a_channel_where_it_is_asked_for(tmp_path):
    stored = np.random.default_rng(0).integers(0, 255, (4, 40, 40), dtype=np.uint8)
    stored[3, :20] = 0  # water in near infrared
    path = save(tmp_path / "a.tif", stored, ALPHA="YES")
    source = GeoTiffSource([path], asked=ALL_FOUR)
    pixels, valid = whole(source)
    assert source.channels == ALL_FOUR
    assert valid.all()
    np.testing.assert_array_equal(pixels[:, 0], stored)
    assert source.key != GeoTiffSource([path]).key
    assert source.doubts() == []
    with pytest.raises(DataError, match=r"gdal_edit\.py -colorinterp_4 undefined"):
        GeoTiffSource([path], scene=Scene.of({"resolution": 20}), asked=ALL_FOUR)


def test_an_alpha_band_that_has_values_like_a_channel_is_noted(tmp_path):
    stored = np.random.default_rng(0).integers(0, 255, (4, 40, 40), dtype=np.uint8)
    (note,) = GeoTiffSource([save(tmp_path / "a.tif", stored, ALPHA="YES")]).doubts()
    assert "declares its band 4 as alpha" in note
    assert '\'data.channels=["band1","band2","band3","band4"]\'' in note
    stored[3] = np.where(stored[3] > 100, 255, 0)
    assert GeoTiffSource([save(tmp_path / "b.tif", stored, ALPHA="YES")]).doubts() == []


@pytest.mark.parametrize("internal", [True, False])
def test_masks_inside_the_file_and_beside_it_are_kept(tmp_path, internal):
    mask = np.random.default_rng(0).random((5, 6)) > 0.5
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        path = save(tmp_path / "a.tif", bands((2, 5, 6)), mask=mask)
    assert (tmp_path / "a.tif.msk").exists() != internal
    for _ in range(2):
        _, valid = whole(GeoTiffSource([path]))
        np.testing.assert_array_equal(valid[0], mask)
        if not internal:  # another one is put there, beside the same file
            mask = ~mask
            masked_beside(path, mask)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", ["a.tfw", "a.TFW", "a.tifw", "a.wld"])
def test_a_world_file_beside_the_file_places_it(tmp_path, name):
    path = save(tmp_path / "a.tif", bands((1, 5, 6)), crs=None, transform=None)
    (tmp_path / name).write_text("10\n0\n0\n-10\n505\n895\n")
    source = GeoTiffSource([path])
    assert source.stored.footprint == (500, 850, 560, 900)
    assert source.beside == (tmp_path / name,)


def test_a_system_without_a_place_on_earth_is_kept_in_maps_and_counts_as_none(tmp_path):
    path = save(tmp_path / "a.tif", bands((1, 5, 6)), crs='LOCAL_CS["of a drone",UNIT["metre",1]]')
    source = GeoTiffSource([path])
    assert (source.stored.crs, source.stored.unit) == (None, "px")
    assert "without a place on Earth" in source.notes()[0]
    np.testing.assert_array_equal(whole(source)[0][:, 0], bands((1, 5, 6)))
    with source.open_map(tmp_path / "m.tif", SPEC) as writer, rasterio.open(path) as dataset, rasterio.open(writer.close()) as made:
        assert (made.crs, made.transform) == (dataset.crs, dataset.transform)


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326", None])
def test_a_variable_of_another_program_that_leaves_no_system_known_is_named(tmp_path, monkeypatch, crs):
    def unknown(code):
        raise CRSError("The EPSG code is unknown. PROJ: internal_proj_create_from_database: Cannot find proj.db")

    path = save(tmp_path / "a.tif", np.zeros((1, 4, 4), np.uint8), crs=crs)
    monkeypatch.setenv("PROJ_LIB", "/opt/other")
    monkeypatch.delenv("PROJ_DATA", raising=False)
    monkeypatch.setattr(raster, "CRS", SimpleNamespace(from_epsg=unknown))
    raster._check_systems.cache_clear()
    with pytest.raises(DataError, match=r"has PROJ_LIB=/opt/other, .* type 'unset PROJ_LIB PROJ_DATA'"):
        GeoTiffSource([path])


def test_a_name_that_gdal_cannot_open_is_told(tmp_path):
    path = save(tmp_path / "a.tif", np.zeros((1, 4, 4), np.uint8))
    with pytest.raises(DataError, match=r"is no UTF-8 text.*Rename the file"):
        GeoTiffSource([path.rename(tmp_path / os.fsdecode(b"a_\xe9.tif"))])


@pytest.mark.parametrize(("readable", "said"), [(True, "Expected an intact raster"), (False, "Give yourself the right")])
def test_a_file_without_the_right_to_read_it_is_not_called_damaged(tmp_path, monkeypatch, readable, said):
    (tmp_path / "a.tif").write_bytes(b"II")
    monkeypatch.setattr(os, "access", lambda path, mode: readable)  # root may read every file
    with pytest.raises(DataError, match=said):
        GeoTiffSource([tmp_path / "a.tif"])


def test_scale_and_offset_tags_are_applied_after_nodata(tmp_path):
    stored = bands((2, 5, 6), "uint16")
    stored[:, 0, 0] = 0
    path = save(tmp_path / "a.tif", stored, nodata=0)
    with rasterio.open(path, "r+") as out:
        out.scales, out.offsets = (0.1, 1.0), (-5.0, 0.0)
    source = GeoTiffSource([path])
    pixels, valid = whole(source)
    assert source.dtype == pixels.dtype == np.float32
    np.testing.assert_allclose(
        pixels[:, 0], stored * np.array([0.1, 1])[:, None, None] + np.array([-5, 0])[:, None, None], rtol=1e-6
    )
    assert np.argwhere(~valid[0]).tolist() == [[0, 0]]


def test_a_rotated_grid_is_placed_as_rasterio_places_it(tmp_path):
    transform = NORTH_UP @ Affine.rotation(30) @ Affine.scale(1, 2)
    path = save(tmp_path / "a.tif", bands((1, 5, 6)), transform=transform)
    grid = GeoTiffSource([path]).canonical
    assert grid.spacing == pytest.approx((1, 20, 10))
    assert grid.unit == "m"
    with rasterio.open(path) as dataset:
        for row, column in ((0, 0), (4, 5)):
            np.testing.assert_allclose((grid.matrix @ (column, row, 0, 1))[:2], dataset.xy(row, column))


def test_degrees_become_metres_at_the_scenes_latitude(tmp_path):
    transform = Affine(0.001, 0, 15, 0, -0.001, 60)
    grid = GeoTiffSource([save(tmp_path / "a.tif", bands((1, 5, 6)), crs="EPSG:4326", transform=transform)]).canonical
    assert grid.spacing == pytest.approx((1, 111.3, 55.7), rel=5e-3)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_files_that_cannot_be_aligned_are_not_stacked(tmp_path):
    first = save(tmp_path / "a_1.tif", bands((1, 5, 6)))
    far = save(tmp_path / "a_2.tif", bands((1, 5, 6)), crs="EPSG:32634")
    with pytest.raises(DataError, match=r"a_2\.tif covers .* and the first file .*a_1\.tif .*do not overlap"):
        GeoTiffSource([first, far])
    plain = [save(tmp_path / f"b_{n}.tif", bands((1, 5, n)), crs=None, transform=Affine.identity()) for n in (6, 7)]
    with pytest.raises(DataError, match=r"b_7\.tif has 5x7 pixels, the first file .*b_6\.tif 5x6, and without a coord.*gdal_edit"):
        GeoTiffSource(plain)


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    for seed in (0, 1):
        stored = bands((1, 5, 6), seed=seed)
        np.testing.assert_array_equal(whole(GeoTiffSource([save(tmp_path / "a.tif", stored)]))[0][:, 0], stored)


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0not a picture")
    for name in ("a.tif", "absent.tif"):
        with pytest.raises(DataError, match=f"{name} cannot be read as a GeoTIFF"):
            GeoTiffSource([tmp_path / name])


def test_a_cut_off_file_is_named_with_the_window(tmp_path):
    stored = np.random.default_rng(0).integers(0, 255, (1, 300, 300), dtype=np.uint8)
    path = save(tmp_path / "a.tif", stored, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    with path.open("rb+") as file:
        file.truncate(40_000)
    source = GeoTiffSource([path])
    with pytest.raises(DataError, match=r"a\.tif could not be read at window \(0, 200, 200, 1, 64, 64\).*cut off"):
        source.read(Window(0, 200, 200, 1, 64, 64), (0,))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_missing_reference_system_is_noted(tmp_path):
    assert GeoTiffSource([save(tmp_path / "a.tif", bands((1, 5, 6)))]).notes() == []
    plain = save(tmp_path / "b.tif", bands((1, 5, 6)), crs=None, transform=Affine.scale(2))
    image = GeoTiffSource([plain])
    assert "no coordinate reference system" in image.notes()[0]
    assert label_source(plain, image).notes() == []  # no map is made of it
    assert GeoTiffSource([save(tmp_path / "b.tif", bands((1, 5, 6)), crs=None, transform=None)]).notes() == []  # a picture


class TestLabels:
    @pytest.fixture
    def scene(self, tmp_path):
        return GeoTiffSource([save(tmp_path / "scene.tif", bands((2, 60, 50)))])

    def test_a_label_on_the_same_grid_is_read_as_it_is(self, tmp_path, scene):
        stored = bands((1, 60, 50), seed=1)
        label = label_source(save(tmp_path / "l.tif", stored), scene)
        np.testing.assert_array_equal(whole(label)[0][:, 0], stored)

    @pytest.mark.parametrize(
        ("crs", "transform"),
        [
            (UTM, NORTH_UP @ Affine.translation(-3, 4) @ Affine.scale(0.5)),
            (UTM, NORTH_UP @ Affine.translation(5, 5) @ Affine.rotation(10)),
            ("EPSG:4326", Affine(1e-4, 0, 15.001, 0, -1e-4, 47.853)),
        ],
    )
    def test_a_label_on_another_grid_equals_rasterios_reprojection(self, tmp_path, scene, crs, transform):
        stored = bands((1, 64, 80), seed=1)
        label = label_source(save(tmp_path / "l.tif", stored, crs=crs, transform=transform), scene)
        expected = np.zeros((60, 50), dtype=np.uint8)
        rasterio.warp.reproject(stored[0], expected, src_crs=crs, src_transform=transform, dst_crs=UTM, dst_transform=NORTH_UP)
        values, valid = whole(label)
        np.testing.assert_array_equal(values[0, 0], expected)
        np.testing.assert_array_equal(valid[0], expected > 0)  # `bands` holds no zero
        assert valid.any()

    @pytest.mark.parametrize("shift", [0, 1])
    def test_a_value_that_the_configuration_names_counts_whatever_the_nodata_tag_says(self, tmp_path, scene, shift):
        stored = np.zeros((1, *scene.stored.shape[1:]), dtype=np.uint8)
        stored[0, 2, 3] = 1
        path = save(tmp_path / "l.tif", stored, transform=NORTH_UP @ Affine.translation(shift, 0), nodata=0)
        for named, judged in (({0: 0, 1: 1}, True), ({1: 0}, False)):
            _, valid = whole(label_source(path, scene, named))
            assert valid[0, 2, 3 + shift]
            assert valid[0, 5, 5] == judged
            assert valid[0, 5, 0] == (judged and not shift)  # past the label's own edge there is nothing to name

    def test_nodata_of_an_aligned_label_is_not_judged(self, tmp_path, scene):
        stored = bands((1, 60, 50), seed=1) % 3
        path = save(tmp_path / "l.tif", stored, transform=NORTH_UP @ Affine.translation(1, 0), nodata=0)
        values, valid = whole(label_source(path, scene))
        np.testing.assert_array_equal(values[0, 0, :, 1:][valid[0, :, 1:]], stored[0, :, :-1][stored[0, :, :-1] > 0])
        np.testing.assert_array_equal(valid[0, :, 1:], stored[0, :, :-1] > 0)

    @few
    @given(data=st.data())
    def test_a_window_of_an_aligned_label_is_a_slice_of_the_whole(self, tmp_path, scene, data):
        stored = bands((1, 64, 80), seed=1)
        label = label_source(save(tmp_path / "l.tif", stored, transform=NORTH_UP @ Affine.rotation(10)), scene)
        window = data.draw(windows(scene.canonical.shape))
        for part, full in zip(label.read(window, (0,)), whole(label), strict=True):
            np.testing.assert_array_equal(part, full[..., *window.slices])

    def test_maps_of_an_aligned_label_lie_on_the_scenes_grid(self, tmp_path, scene):
        label = label_source(save(tmp_path / "l.tif", bands((1, 30, 30)), transform=NORTH_UP @ Affine.scale(2)), scene)
        assert label.map_name("m", SPEC) == "m.tif"
        with label.open_map(tmp_path / "m.tif", SPEC) as writer:
            assert GeoTiffSource([writer.close()]).stored == scene.stored

    def test_a_label_that_cannot_be_laid_over_its_scene_is_refused(self, tmp_path, scene):
        for path, words in (
            (save(tmp_path / "two.tif", bands((2, 60, 50))), "has 2 bands"),
            (save(tmp_path / "far.tif", bands((1, 9, 9)), transform=NORTH_UP @ Affine.translation(99, 0)), "do not overlap"),
        ):
            with pytest.raises(DataError, match=f"{path.name}.*{words}"):
                label_source(path, scene)

    @pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
    def test_a_label_of_another_size_without_reference_system_is_refused(self, tmp_path, scene):
        path = save(tmp_path / "l.tif", bands((1, 9, 9)), crs=None, transform=Affine.identity())
        with pytest.raises(DataError, match=r"l\.tif has 9x9 pixels, its image .*scene\.tif 60x50"):
            label_source(path, scene)

    def test_labels_read_as_classes(self, tmp_path, scene):
        stored = bands((1, 60, 50), seed=1) % 3
        label = label_source(save(tmp_path / "l.tif", stored, nodata=2), scene)
        found = Case("a", "a", scene, Labels(label, {0: 1, 1: 0})).read_label(Window(0, 0, 0, 1, 60, 50))
        np.testing.assert_array_equal(found[0], np.array([1, 0, 255])[stored[0]])


def written(source, path, spec, values):
    with source.open_map(path, spec) as writer:
        writer.write(Window.whole(source.canonical.shape), values)
        return writer.close()


def test_a_map_is_a_cloud_optimized_geotiff_that_names_its_classes(tmp_path):
    source = GeoTiffSource([save(tmp_path / "a.tif", np.zeros((1, 1300, 1100), np.uint8))])
    labels = np.random.default_rng(0).integers(0, 3, (1, 1300, 1100), dtype=np.uint8)
    with rasterio.open(written(source, tmp_path / "m.tif", SPEC, labels)) as dataset:
        np.testing.assert_array_equal(dataset.read(), labels)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.tags()["classes"] == "0=ground, 1=water, 2=roof"
        assert dataset.tags()["run"] == "7"
        assert dataset.overviews(1) == [2, 4]
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.compression.name == "deflate"
        assert (dataset.nodata, dataset.dtypes) == (255, ("uint8",))
        assert (dataset.crs, dataset.transform) == (rasterio.crs.CRS.from_string(UTM), NORTH_UP)
        colors = dataset.colormap(1)
        assert [colors[index][:3] for index in range(3)] == list(SPEC.colors)
        assert colors[255][3] == 0


def test_a_heatmap_has_one_described_band_per_class(tmp_path):
    source = GeoTiffSource([save(tmp_path / "a.tif", bands((1, 60, 50)))])
    spec = MapSpec(("ground", "water"), heatmap=True)
    heat = np.random.default_rng(0).random((2, 1, 60, 50), dtype=np.float32)
    heat[:, 0, :5] = np.nan
    with rasterio.open(written(source, tmp_path / "m.tif", spec, heat)) as dataset:
        assert dataset.descriptions == ("ground", "water")
        assert dataset.dtypes == ("float32", "float32")
        assert math.isnan(dataset.nodata)
        np.testing.assert_array_equal(dataset.read(), heat[:, 0])


def test_complex_numbers_are_refused(tmp_path):
    path = save(tmp_path / "slc.tif", np.ones((1, 8, 9), dtype=np.complex64))
    with pytest.raises(DataError, match="holds complex numbers"):
        GeoTiffSource([path])


@pytest.mark.parametrize(("kind", "value"), [("int64", -(2**53) - 1), ("int64", 2**63 - 1), ("uint64", 2**64 - 1)])
def test_nodata_beyond_the_floats_is_noted_and_exact_where_it_is_typed(tmp_path, kind, value):
    array = np.full((1, 4, 4), value, dtype=kind)
    array[0, 0, :2] = 7, value - 1 if value > 0 else value + 1
    place = {"driver": "GTiff", "width": 4, "height": 4, "count": 1, "dtype": kind, "crs": UTM}
    with rasterio.open(tmp_path / "raw.tif", "w", transform=NORTH_UP, **place) as out:
        out.write(array)
    name = {"int64": "Int64", "uint64": "UInt64"}[kind]
    (tmp_path / "raw.vrt").write_text(  # rasterio itself writes such values as floats
        f'<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="{name}" band="1"><NoDataValue>{value}</NoDataValue>'
        '<SimpleSource><SourceFilename relativeToVRT="1">raw.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    rasterio.shutil.copy(tmp_path / "raw.vrt", tmp_path / "a.tif", driver="GTiff")
    assert any("a.tif declares a nodata value beyond 2^53" in note for note in GeoTiffSource([tmp_path / "a.tif"]).notes())
    typed = GeoTiffSource([tmp_path / "a.tif"], nodata=value)
    assert not any("2^53" in note for note in typed.notes())
    assert typed.read(Window.whole((1, 4, 4)), (0,))[1].sum() == 2
