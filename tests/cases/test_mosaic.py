import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from tests.testers.formats import few, windows
from tests.testers.geotiff import NORTH_UP, SPEC, UTM, bands, save, whole
from voxtile.cases.dataset import Dataset
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.layouts import FolderLayout
from voxtile.cases.mosaic import mosaic
from voxtile.errors import ConfigError, DataError

SIZE = (60, 70)  # of the scenes that are cut into tiles


def tile(folder, name, array, row, column, transform=NORTH_UP, **profile):
    """A tile whose first pixel is pixel (row, column) of a raster."""
    folder.mkdir(exist_ok=True)
    return save(folder / f"{name}.tif", array, transform=transform @ Affine.translation(column, row), **profile)


def pasted(tiles, nodata, count, dtype):
    """What NumPy makes of (array, row, column, nodata or mask): pixels, and where there are any."""
    low = np.min([place[1:3] for place in tiles], axis=0)
    high = np.max([np.add(place[1:3], place[0].shape[1:]) for place in tiles], axis=0)
    out = np.full((count, *(high - low)), 0 if nodata is None else nodata, dtype=dtype)
    held = np.zeros(out.shape, dtype=bool)
    for array, row, column, clear in tiles:
        at = np.s_[:, row - low[0] : row - low[0] + array.shape[1], column - low[1] : column - low[1] + array.shape[2]]
        keep = np.ones(array.shape, dtype=bool) if clear is None else np.broadcast_to(clear, array.shape)
        out[at] = np.where(keep, array, out[at])
        held[at] |= keep
    return out, held


@settings(few, max_examples=20)
@given(data=st.data(), nodata=st.sampled_from([None, 0, 7]), dtype=st.sampled_from(["uint8", "int16", "uint16", "float32"]))
def test_a_mosaic_is_what_numpy_pastes(tmp_path_factory, data, nodata, dtype):
    """Any tiles, overlapping or apart; nodata lets earlier ones through, and where no tile lies there is no data."""
    folder = tmp_path_factory.mktemp("tiles")
    places, paths = [], []
    for number in range(data.draw(st.integers(2, 5))):
        height, width, row, column = (data.draw(st.integers(a, b)) for a, b in ((1, 20), (1, 20), (-15, 30), (-15, 30)))
        array = np.random.default_rng(number).integers(0, 9, (2, height, width)).astype(dtype)
        places.append((array, row, column, None if nodata is None else array != nodata))
        paths.append(tile(folder, f"t{number}", array, row, column, nodata=nodata))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOXTILE_CACHE", str(folder / "cache"))
        source = GeoTiffSource([mosaic(paths, "s")])
        pixels, valid = whole(source)
        window = data.draw(windows(source.canonical.shape))
        part, part_valid = source.read(window, (1,))
    expected, held = pasted(places, nodata, 2, dtype)
    np.testing.assert_array_equal(pixels[:, 0], expected)
    sentinel = nodata == 7 and dtype in ("int16", "float32")  # which one band alone tells
    np.testing.assert_array_equal(valid[0], held.all(axis=0) if sentinel else held.any(axis=0))
    np.testing.assert_array_equal(part, pixels[1:, *window.slices])
    assert source.dtype == np.dtype(dtype)
    if nodata is None:
        np.testing.assert_array_equal(part_valid, valid[window.slices])


def test_nan_lets_earlier_tiles_through(tmp_path):
    first, second = bands((1, 9, 9), "float32"), bands((1, 9, 9), "float32", seed=1)
    second[0, :, :6] = np.nan
    paths = [tile(tmp_path, name, array, 0, at, nodata=np.nan) for name, array, at in (("a", first, 0), ("b", second, 4))]
    pixels, valid = whole(GeoTiffSource([mosaic(paths, "s")]))
    expected = np.concatenate([first[0], np.full((9, 4), np.nan, np.float32)], axis=1)
    expected[:, 10:] = second[0, :, 6:]
    np.testing.assert_array_equal(pixels[0, 0], expected)
    np.testing.assert_array_equal(valid[0], np.isfinite(expected))


@pytest.mark.parametrize("kind", ["mask", "alpha"])
def test_masks_and_alpha_let_earlier_tiles_through(tmp_path, kind):
    places, paths = [], []
    for number, (row, column) in enumerate([(0, 0), (5, 6), (30, 40)]):
        array, mask = bands((3, 20, 18), seed=number), np.random.default_rng(number).random((20, 18)) > 0.5
        places.append((array, row, column, mask))
        if kind == "alpha":
            array = np.concatenate([array, mask[None] * np.uint8(255)])
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            paths.append(tile(tmp_path, f"t{number}", array, row, column, mask=mask if kind == "mask" else None))
        if kind == "alpha":
            with rasterio.open(paths[-1], "r+") as out:
                out.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    pixels, valid = whole(GeoTiffSource([mosaic(paths, "s")]))
    expected, held = pasted(places, None, 3, "uint8")
    np.testing.assert_array_equal(valid[0], held[0])
    np.testing.assert_array_equal(pixels[:, 0][:, valid[0]], expected[:, valid[0]])


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "EPSG:3035", None])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_mosaic_lies_where_its_tiles_lie(tmp_path, crs):
    transform = Affine(1e-3, 0, 15, 0, -1e-3, 50) if crs == "EPSG:4326" else NORTH_UP @ Affine.rotation(20)
    array = bands((1, *SIZE))
    cut = [(0, 0, 30, 40), (30, 0, 30, 70), (0, 40, 30, 30)]
    paths = [
        tile(tmp_path, f"t{r}{c}", array[:, r : r + h, c : c + w], r, c, transform=transform, crs=crs)
        for r, c, h, w in reversed(cut)
    ]
    whole_scene, together = (
        GeoTiffSource([save(tmp_path / "w.tif", array, crs=crs, transform=transform)]),
        GeoTiffSource([mosaic(paths, "s")]),
    )
    assert together.stored.shape == whole_scene.stored.shape
    assert together.stored.corner_distance(whole_scene.stored) < 1e-6
    assert (together.profile["crs"], together.stored.unit) == (whole_scene.profile["crs"], whole_scene.stored.unit)
    np.testing.assert_array_equal(whole(together)[0], whole(whole_scene)[0])


def test_what_headers_say_of_bands_is_kept(tmp_path):
    paths = []
    for number in range(2):
        paths.append(tile(tmp_path, f"t{number}_S2", bands((2, 5, 6), "int16"), 0, 6 * number, nodata=0))
        with rasterio.open(paths[-1], "r+") as out:
            out.descriptions, out.scales, out.offsets = ("red", f"t{number}_S2 nir"), (0.5, 1.0), (-1.0, 0.0)
    source = GeoTiffSource([mosaic(paths, "s")])
    assert source.channels == ("red", "band2")  # a name that holds a tile's is that tile's alone
    np.testing.assert_array_equal(whole(source)[0][0, 0, :, 6:], bands((2, 5, 6), "int16")[0] * 0.5 - 1)


def test_tiles_with_their_bands_in_another_order_are_named(tmp_path):
    paths = [tile(tmp_path, f"t{number}", bands((2, 5, 6)), 0, number * 6) for number in range(3)]
    for path, names in zip(paths, [("red", "nir"), (None, None), ("nir", "red")], strict=True):
        with rasterio.open(path, "r+") as out:
            out.descriptions = names
    assert GeoTiffSource([mosaic(paths[:2], "s")]).channels == ("red", "nir")  # what has no names is taken as it is
    with pytest.raises(DataError, match="the order of bands is nir, red in the one and red, nir in the other"):
        mosaic(paths, "s")


def test_tiles_may_call_their_colours_otherwise(tmp_path):
    paths = [
        tile(tmp_path, f"t{number}", bands((3, 5, 6)), 0, number * 6, photometric=kind)
        for number, kind in enumerate(["RGB", "MINISBLACK"])
    ]
    assert GeoTiffSource([mosaic(paths, "s")]).working.shape == (1, 5, 12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crs": "EPSG:32634"}, "the coordinate reference system is EPSG:32634 in the one and EPSG:32633 in the other.*gdalwarp"),
        ({"count": 2}, "the number of bands is 2 in the one and 1"),
        ({"dtype": "uint16"}, "the data type is uint16 in the one and uint8"),
        ({"nodata": 3}, r"the nodata value is 3\.0 in the one and None"),
        ({"transform": NORTH_UP @ Affine.translation(0.3, 0)}, r"up to 0\.3 pixels beside each other.*gdalwarp -tap -tr 10 10"),
        ({"transform": NORTH_UP @ Affine.scale(2)}, "pixels beside each other"),
        ({"transform": NORTH_UP @ Affine.rotation(5)}, "pixels beside each other"),
    ],
)
def test_tiles_that_do_not_fit_are_named_both(tmp_path, change, words):
    first = tile(tmp_path, "a", bands((1, 9, 9)), 0, 0)
    options = {"count": 1, "dtype": "uint8"} | change
    array = bands((options.pop("count"), 9, 9), options.pop("dtype"))
    with pytest.raises(DataError, match=rf"b\.tif and .*a\.tif cannot be tiles of one mosaic: .*{words}"):
        mosaic([first, tile(tmp_path, "b", array, 0, 9, **options)], "s")


def test_places_may_be_rounded(tmp_path):
    paths = [tile(tmp_path, "a", bands((1, 9, 9)), 0, 0), tile(tmp_path, "b", bands((1, 9, 9), seed=1), 0.04, 8.96)]
    np.testing.assert_array_equal(whole(GeoTiffSource([mosaic(paths, "s")]))[0][0, 0, :, 9:], bands((1, 9, 9), seed=1)[0])


def test_a_tile_that_changes_makes_another_mosaic(tmp_path):
    paths = [tile(tmp_path, name, bands((1, 9, 9)), 0, at) for name, at in (("a", 0), ("b", 9))]
    first = mosaic(paths, "s")
    assert mosaic(paths, "s") == first
    tile(tmp_path, "b", bands((1, 9, 9), seed=1), 0, 9)
    assert mosaic(paths, "s") != first


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"mosaic of 2 tiles of 's' could not be written to .*VOXTILE_CACHE"):
        mosaic([tile(tmp_path, name, bands((1, 9, 9)), 0, at) for name, at in (("a", 0), ("b", 9))], "s")


# --- as a layout


@pytest.fixture
def places(tmp_path):
    """Two places of four tiles each in two files per tile, red and nir, with a label file for each tile."""
    arrays = {}
    for place in ("p1", "p2"):
        arrays[place] = bands((3, *SIZE), seed=int(place[1]))
        arrays[place][2] %= 2
        for row in (0, 30):
            for column in (0, 35):
                part = arrays[place][:, row : row + 30, column : column + 35]
                for band, name in enumerate(("red", "nir", "label")):
                    tile(tmp_path / place, f"{row}-{column}_{name}", part[[band]], row + 100 * int(place[1]), column)
    return tmp_path, arrays


def layout(root, **changes):
    patterns = {
        "images": ["{place}/{tile}_red.tif", "{place}/{tile}_nir.tif"],
        "labels": "{place}/{tile}_label.tif",
        "case": "{place}",
    }
    return FolderLayout(str(root), **patterns | {"mosaic": True} | changes)


def test_files_of_one_case_are_tiles_of_one_scene(places):
    root, arrays = places
    cases = Dataset("d", "geotiff", layout(root), {0: "ground", 1: "water"}).cases()
    assert [(case.id, case.shape, case.channels) for case in cases] == [(p, (1, *SIZE), ("red", "nir")) for p in ("p1", "p2")]
    for case in cases:
        box = case.box
        np.testing.assert_array_equal(case.read(box)[0][:, 0], arrays[case.id][:2])
        np.testing.assert_array_equal(case.read_label(box)[0], arrays[case.id][2])


def test_its_map_is_one_file_and_never_takes_a_tiles_place(places, tmp_path):
    root, _ = places
    case = Dataset("d", "geotiff", layout(root), {0: "ground", 1: "water"}).cases()[0]
    with case.open_map(tmp_path / "map.tif", SPEC) as writer:
        writer.write(case.box, np.ones((1, *SIZE), np.uint8))
        with rasterio.open(writer.close()) as found:
            assert (found.shape, found.crs, found.transform) == (SIZE, UTM, NORTH_UP @ Affine.translation(0, 100))
    for inside in ("p1/0-35_nir.tif", "p1/30-0_label.tif"):
        with pytest.raises(DataError, match="would take the place of an input"):
            case.open_map(root / inside, SPEC)


def test_a_case_of_one_file_is_that_file(places):
    root, _ = places
    (case,) = layout(root, images="p1/0-0_{band}.tif", labels=None, case="{band}").find()[:1]
    assert (case.images, case.found) == ((root / "p1/0-0_label.tif",),) * 2


def test_other_folders_are_searched_for_tiles_too(places):
    root, _ = places
    cases = layout(root, labels=None).images_below(root, root)
    assert [len(case.found) for case in cases] == [8, 8]
    assert {path.parent.name for path in cases[0].found} == {"p1"}


def test_mosaic_is_true_or_false(tmp_path):
    with pytest.raises(ConfigError, match=r"'data\.layout\.mosaic=yes' must be true or false"):
        layout(tmp_path, mosaic="yes")


def test_vector_files_are_not_put_together(places):
    root, _ = places
    for path in root.glob("*/*_label.tif"):
        path.rename(path.with_suffix(".geojson"))
    with pytest.raises(DataError, match=r"The tiles of 'p1' have 4 vector files as labels: .*Only rasters are put together"):
        layout(root, labels="{place}/{tile}_label.geojson").find()
