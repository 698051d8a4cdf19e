import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from tests.testers.geotiff import save
from voxtile.cases import thumbnails
from voxtile.cases.thumbnails import thumbnail


def write(path, array, crs="EPSG:32633", **more):
    return save(path, array, crs, from_origin(500_000, 5_000_000, 10, 10), **more)


def test_a_scene_is_made_small_and_stays_in_its_place(tmp_path):
    array = np.arange(6 * 200 * 100, dtype=np.float32).reshape(6, 200, 100)
    array[:, :20] = np.nan
    small = thumbnail(write(tmp_path / "a.tif", array), 50)
    assert small.image.shape == (4, 50, 25)
    assert np.isin(small.image[:, 5:], array[:4]).all()
    assert np.array_equal(small.valid, np.repeat([[False], [True]], [5, 45], axis=0) & np.ones((1, 25), dtype=bool))
    assert small.transform @ (25, 50) == (500_000 + 1000, 5_000_000 - 2000)
    assert rasterio.crs.CRS.from_wkt(small.crs).to_epsg() == 32633
    assert thumbnail(tmp_path / "a.tif", 5000).image.shape == (4, 200, 100)


def test_nodata_is_not_valid(tmp_path):
    array = np.ones((1, 10, 10), dtype=np.uint8)
    array[0, :5] = 0
    assert thumbnail(write(tmp_path / "a.tif", array, nodata=0), 10).valid.sum() == 50


def test_what_lies_nowhere_or_cannot_be_read_has_no_thumbnail(tmp_path):
    (tmp_path / "text.tif").write_text("no raster")
    assert thumbnail(tmp_path / "text.tif", 5) is None
    assert thumbnail(tmp_path / "none.tif", 5) is None
    assert thumbnail(write(tmp_path / "plain.tif", np.ones((1, 10, 10), dtype=np.uint8), crs=None), 5) is None


def test_a_very_large_scene_without_overviews_is_seen_coarsely_through_some_of_its_blocks(tmp_path, monkeypatch):
    array = np.arange(640, dtype=np.uint16)[None, :, None] + np.zeros((1, 640, 960), dtype=np.uint16)
    tiled = write(tmp_path / "a.tif", array, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    strips = write(tmp_path / "b.tif", array, blockysize=1, compress="deflate")
    assert thumbnail(tiled, 64).image.shape == (1, 43, 64)
    monkeypatch.setattr(thumbnails, "MOST_PIXELS", 100 * 16 * 16)
    few = thumbnail(tiled, 64)
    _, height, width = few.image.shape
    assert 60 <= height * width <= 100  # a block each
    assert few.valid.all()
    assert few.transform @ (width, height) == (500_000 + 9600, 5_000_000 - 6400)
    middles = (np.arange(height) + 0.5) * 640 / height
    assert np.abs(few.image[0] - middles[:, None]).max() <= 1
    assert thumbnail(strips, 64).image.shape[1] in range(20, 27)  # all of a strip is decoded for any of its pixels
    with rasterio.open(tiled, "r+") as file:
        file.build_overviews([8], Resampling.nearest)
    assert thumbnail(tiled, 64).image.shape == (1, 43, 64)


def test_only_the_blocks_that_hold_a_pixel_of_the_picture_are_decoded(tmp_path, monkeypatch):
    """Every block but those is damaged."""
    array = np.ones((1, 640, 960), dtype=np.uint16)
    path = write(tmp_path / "a.tif", array, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    monkeypatch.setattr(thumbnails, "MOST_PIXELS", 100 * 16 * 16)
    _, height, width = thumbnail(path, 64).image.shape
    used = {(int((y + 0.5) * 640 / height) // 16, int((x + 0.5) * 960 / width) // 16) for y in range(height) for x in range(width)}
    with rasterio.open(path) as file:
        unused = [(y, x) for y in range(40) for x in range(60) if (y, x) not in used]
        places = [int(file.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=1)) for y, x in unused]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place : place + 4] = b"\xff" * 4
    path.write_bytes(data)
    assert (thumbnail(path, 64).image == 1).all()
    monkeypatch.undo()
    assert thumbnail(path, 640) is None  # which needs them
