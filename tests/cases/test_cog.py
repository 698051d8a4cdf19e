"""Maps of scenes as files: overviews, what is written beside the pixels, and how the bytes lie."""

import subprocess
import sys

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.testers.formats import few
from tests.testers.maps import UTM, written
from voxtile.cases.cog import TILE, halved
from voxtile.cases.formats import write_id_map
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.maps import MapSpec
from voxtile.cases.raster import plain_allowed
from voxtile.cases.window import Window

COLORS = ((9, 8, 7), (0, 0, 255), (255, 0, 0))
CLASSES = MapSpec(("ground", "water", "roof"), colors=COLORS, tags=(("run", "7"), ("software", "a < b & c")))
HEAT = {kind: MapSpec(("ground", "water"), heatmap=True, stored=kind) for kind in ("float32", "float16", "uint8")}
sides = st.tuples(st.integers(1, 9), st.integers(1, 9))


def squares(pixels):
    """The 2x2 pixels [up to 4] of each pixel of the next level, row by row."""
    height, width = pixels.shape
    return [[pixels[y : y + 2, x : x + 2].ravel() for x in range(0, width, 2)] for y in range(0, height, 2)]


def by_mode(four):
    held = sorted(value for value in four.tolist() if value != 255)
    return max(held, key=held.count) if held else 255  # max takes the first of equals, which is the smallest


def by_mean(four):
    held = four[np.isfinite(four)].astype(float)
    return held.mean() if len(held) else np.nan


@few
@given(arrays(np.uint8, sides, elements=st.sampled_from([0, 1, 2, 254, 255])))
def test_half_a_map_has_the_most_frequent_class_of_each_four_pixels(pixels):
    expected = [[by_mode(four) for four in row] for row in squares(pixels)]
    np.testing.assert_array_equal(halved(pixels, CLASSES), expected)


@few
@given(arrays(np.float32, sides, elements=st.one_of(st.just(np.nan), st.floats(0, 1, width=32))))
def test_half_a_heatmap_has_the_mean_of_what_holds_a_probability(pixels):
    found = halved(pixels, HEAT["float32"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[by_mean(four) for four in row] for row in squares(pixels)], rtol=1e-6, atol=1e-30)


@few
@given(arrays(np.uint8, sides, elements=st.sampled_from([0, 1, 7, 200, 254, 255])))
def test_half_a_heatmap_of_bytes_rounds_the_mean(pixels):
    found = halved(pixels, HEAT["uint8"])
    assert found.dtype == np.uint8
    expected = [[by_mean(np.where(four == 255, np.nan, four)) for four in row] for row in squares(pixels)]
    np.testing.assert_array_equal(found == 255, np.isnan(expected))
    assert np.nanmax(np.abs(np.where(found == 255, np.nan, found) - expected), initial=0) <= 0.5


def made(folder, values, spec, name="map.tif"):
    """Writes a map [K or 1, H, W] in bands of rows, as predicting does."""
    _, height, width = values.shape
    source = GeoTiffSource([written(folder / "scene.tif", np.zeros((1, height, width), np.uint8))])
    with source.open_map(folder / name, spec) as writer:
        for y in range(0, height, 300):
            window = Window(0, y, 0, 1, min(300, height - y), width)
            writer.write(window, values[:, None, y : y + window.height])
        return writer.close()


def a_map(height, width, seed=0):
    return np.random.default_rng(seed).choice([0, 1, 2, 255], (1, height, width)).astype(np.uint8)


def some_heat(height, width, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.random((height, width), dtype=np.float32)
    heat = np.stack([first, 1 - first])
    heat[:, rng.random((height, width)) < 0.1] = np.nan
    return heat


@pytest.mark.parametrize("kind", ["classes", "float32", "float16", "uint8"])
def test_overviews_are_the_map_halved_again_and_again(tmp_path, kind):
    spec, values = (CLASSES, a_map(1301, 640)) if kind == "classes" else (HEAT[kind], some_heat(1301, 640))
    path = made(tmp_path, values, spec)
    with rasterio.open(path) as found:
        stored = found.read()
        np.testing.assert_array_equal(stored, spec.encoded(values))
        assert [found.overviews(band) for band in found.indexes] == [[2, 4]] * len(values)
    for level in range(2):
        stored = np.stack([halved(band, spec) for band in stored])
        with rasterio.open(path, overview_level=level) as smaller:
            np.testing.assert_array_equal(smaller.read(), stored)
    assert max(stored.shape) <= TILE


def test_a_map_of_one_tile_has_no_overviews(tmp_path):
    with rasterio.open(made(tmp_path, a_map(TILE, TILE), CLASSES)) as found:
        assert found.overviews(1) == []


@pytest.mark.parametrize("size", [(700, 520), (60, 50)])
def test_a_map_says_what_it_holds_where_it_lies_and_what_it_was_made_by(tmp_path, size):
    with rasterio.open(made(tmp_path, a_map(*size), CLASSES)) as found:
        assert (found.crs.to_epsg(), found.transform, found.nodata, found.dtypes) == (32633, UTM, 255, ("uint8",))
        assert found.tags()["classes"] == "0=ground, 1=water, 2=roof"
        assert (found.tags()["run"], found.tags()["software"]) == ("7", "a < b & c")
        table = found.colormap(1)
        assert [table[value][:3] for value in range(3)] == list(COLORS)
        assert table[255][3] == 0
        assert found.colorinterp[0].name == "palette"


@pytest.mark.parametrize("kind", ["classes", "float32", "float16", "uint8"])
def test_the_bytes_lie_as_a_reader_over_the_web_wants_them(tmp_path, kind):
    """GDAL knows the layout, tiles are square, and what a reader wants first comes first: headers, then the smallest overview."""
    spec, values = (CLASSES, a_map(1301, 640)) if kind == "classes" else (HEAT[kind], some_heat(1301, 640))
    with rasterio.open(made(tmp_path, values, spec)) as found:
        assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert found.compression.name == "deflate"
        assert set(found.block_shapes) == {(TILE, TILE)}
        levels = [{}, {"ovr": 0}, {"ovr": 1}]
        headers = [int(found.get_tag_item("IFD_OFFSET", "TIFF", bidx=1, **level)) for level in levels]
        pixels = [int(found.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1, **level)) for level in levels]
    assert headers == sorted(headers)
    assert pixels == sorted(pixels, reverse=True)
    assert headers[-1] < pixels[-1]


@pytest.mark.parametrize(("kind", "off"), [("float32", 0), ("float16", 2**-12), ("uint8", 1 / 508 + 1e-7)])
def test_a_heatmap_reopens_as_probabilities(tmp_path, kind, off):
    heat = some_heat(90, 70)
    source = GeoTiffSource([made(tmp_path, heat, HEAT[kind])])
    found, valid = source.read(Window(0, 0, 0, 1, 90, 70), (0, 1))
    assert source.channels == ("ground", "water")
    np.testing.assert_array_equal(valid[0], np.isfinite(heat[0]))
    assert np.abs(found[:, 0] - heat)[:, valid[0]].max() <= off
    with rasterio.open(tmp_path / "map.tif") as stored:
        empty = stored.read()[:, ~valid[0]]
        assert stored.dtypes[0] == ("uint8" if kind == "uint8" else "float32")
        # GDAL does not convert what pads the tiles at the border to 16 bits: it is whatever lay in memory.
        assert "NBITS" not in stored.tags(1, ns="IMAGE_STRUCTURE")
    assert (empty == 255).all() if kind == "uint8" else np.isnan(empty).all()


def test_heatmaps_that_are_rounded_are_smaller_and_sum_to_one_in_the_mean(tmp_path):
    heat = some_heat(600, 500)
    size = {}
    for kind in ("float32", "float16"):
        path = made(tmp_path, heat, HEAT[kind], f"{kind}.tif")
        size[kind] = path.stat().st_size
    found = GeoTiffSource([path]).read(Window(0, 0, 0, 1, 600, 500), (0, 1))[0]
    assert abs(np.nanmean(found[:, 0].sum(axis=0)) - 1) < 1e-5
    assert size["float16"] < 0.75 * size["float32"]


def test_a_scene_without_a_georeference_is_no_reason_to_warn(tmp_path):
    """Neither of its map nor of its objects: warnings are errors here."""
    with plain_allowed():
        path = written(tmp_path / "scene.tif", a_map(70, 60), crs=None, transform=Affine.identity())
    source = GeoTiffSource([path])
    with source.open_map(tmp_path / "map.tif", CLASSES) as writer:
        writer.write(Window(0, 0, 0, 1, 70, 60), a_map(70, 60))
        writer.close()
    slabs = [(Window(0, 0, 0, 1, 70, 60), np.ones((1, 70, 60), dtype=np.uint32))]
    write_id_map(slabs, GeoTiffSource([tmp_path / "map.tif"]), "geotiff", tmp_path / "ids.tif")
    assert GeoTiffSource([tmp_path / "ids.tif"]).working.shape == (1, 70, 60)


def test_nothing_is_left_beside_a_map_nor_of_a_process_that_was_killed_while_it_was_made(tmp_path):
    (tmp_path / ".making.map.work").mkdir()
    for name in (".making.map.work/1.raw", ".making.map.vrt", ".making.map.tif"):
        (tmp_path / name).write_bytes(b"half")
    made(tmp_path, a_map(700, 520), CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.tif", "scene.tif"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_map(tmp_path):
    code = """
import resource, sys
from pathlib import Path
import numpy as np
import rasterio
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.maps import MapSpec
from voxtile.cases.raster import block_cache
from voxtile.cases.window import Window

folder, side = Path(sys.argv[1]), int(sys.argv[2])
with rasterio.open(
    folder / "scene.tif", "w", driver="GTiff", height=side, width=side, count=1, dtype="uint8", tiled=True, sparse_ok=True,
    crs="EPSG:32633", transform=rasterio.transform.from_origin(5e5, 5e6, 10, 10),
):
    pass
source = GeoTiffSource([folder / "scene.tif"])
band = np.random.default_rng(0).choice(np.array([0, 1], np.uint8), (1, 200, side))
with block_cache(), source.open_map(folder / "map.tif", MapSpec(("a", "b"))) as writer:
    for y in range(0, side, 200):
        writer.write(Window(0, y, 0, 1, 200, side), band)
    writer.close()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    peaks = []
    for side in (1_000, 20_000):
        run = subprocess.run([sys.executable, "-c", code, tmp_path, str(side)], capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout))
    # The map has 400 MB. GDAL's blocks take 48, a strip of a side file 4, and a row of tiles of each level a few more.
    assert peaks[1] - peaks[0] < 150, peaks
