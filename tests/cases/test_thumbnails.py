import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from voxtile.cases import thumbnails
from voxtile.cases.thumbnails import thumbnail


def write(path, array, crs="EPSG:32633", **more):
    count, height, width = array.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=array.dtype, crs=crs,
        transform=from_origin(500_000, 5_000_000, 10, 10), **more,
    ) as file:  # fmt: skip
        file.write(array)
    return path


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


def test_a_very_large_scene_is_seen_through_its_overviews_only(tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "MOST_PIXELS", 1000)
    path = write(tmp_path / "a.tif", np.ones((1, 100, 100), dtype=np.uint8))
    assert thumbnail(path, 10) is None
    with rasterio.open(path, "r+") as file:
        file.build_overviews([4], Resampling.nearest)
    assert thumbnail(path, 10).image.shape == (1, 10, 10)
