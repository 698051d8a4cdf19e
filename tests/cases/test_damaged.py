"""What is lost of a damaged file, and what is not."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.testers.geotiff import NORTH_UP, save
from tests.testers.memory import MemorySource
from voxtile.cases.damaged import Tolerant
from voxtile.cases.fetch import FetchError
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.window import Window
from voxtile.errors import DataError

SIDE, TILE = 400, 128
STORED = np.random.default_rng(0).integers(0, 255, (2, SIDE, SIDE), dtype=np.uint8)


def tiled(path):
    return save(path, STORED, tiled=True, blockxsize=TILE, blockysize=TILE, compress="deflate", interleave="pixel")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A file whose tile in row 1, column 2 (pixels x 256 to 383, y 128 to 255) cannot be unpacked."""
    path = tiled(tmp_path_factory.mktemp("damaged") / "a.tif")
    with rasterio.open(path) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))  # column, row
    with path.open("rb+") as file:
        file.seek(start)
        file.write(b"\0" * 1000)
    return path


LOST = np.zeros((SIDE, SIDE), dtype=bool)
LOST[128:256, 256:384] = True


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_window_is_read_the_tile_is_lost_and_nothing_else(damaged, data):
    y, x = (data.draw(st.integers(0, SIDE - 1)) for _ in range(2))
    window = Window(0, y, x, 1, data.draw(st.integers(1, SIDE - y)), data.draw(st.integers(1, SIDE - x)))
    pixels, valid = Tolerant(GeoTiffSource([damaged])).read(window, (1, 0))
    _, rows, columns = window.slices
    np.testing.assert_array_equal(valid[0], ~LOST[rows, columns])
    expected = np.where(LOST, 0, STORED[::-1])[:, rows, columns]
    np.testing.assert_array_equal(pixels[:, 0], expected)


def test_each_lost_square_is_named_once_with_the_tile(damaged):
    source = Tolerant(GeoTiffSource([damaged]))
    for window in (Window(0, 0, 0, 1, 300, SIDE), Window(0, 100, 190, 1, 200, 100), Window(0, 0, 0, 1, SIDE, SIDE)):
        source.read(window, (0,))
    assert sorted(source.lost) == [Window(0, y, x, 1, 64, 64) for y in (128, 192) for x in (256, 320)]
    assert all("tile in row 1, column 2" in why for why in source.lost.values())


def test_without_it_the_tile_is_an_error(damaged):
    with pytest.raises(DataError, match=r"tile in row 1, column 2 of the file's tiles \(pixels x 256 to 383, y 128 to 255\)"):
        GeoTiffSource([damaged]).read(Window(0, 0, 0, 1, SIDE, SIDE), (0,))


def test_of_a_file_that_was_cut_off_the_tiles_before_the_cut_are_read(tmp_path):
    path = tiled(tmp_path / "a.tif")
    with rasterio.open(path) as dataset:
        cut = int(dataset.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=1)) + 10  # the tile in row 2, column 1, is the first lost
    with path.open("rb+") as file:
        file.truncate(cut)
    source = Tolerant(GeoTiffSource([path]))
    pixels, valid = source.read(Window(0, 0, 0, 1, SIDE, SIDE), (0, 1))
    held = np.zeros((SIDE, SIDE), dtype=bool)
    held[:256], held[256:384, :128] = True, True
    np.testing.assert_array_equal(valid[0], held)
    np.testing.assert_array_equal(pixels[:, 0, held], STORED[:, held])
    assert max(source.lost) == Window(0, 384, 384, 1, 16, 16)  # at the end of the scene


def test_an_intact_file_is_read_as_it_is(tmp_path):
    plain = GeoTiffSource([save(tmp_path / "a.tif", STORED, nodata=7)])
    source = Tolerant(plain)
    for mine, its in zip(source.read(Window(0, 3, 5, 1, 90, 80), (0,)), plain.read(Window(0, 3, 5, 1, 90, 80), (0,)), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert source.lost == {}
    assert (source.channels, source.dtype, source.working, source.files) == (
        plain.channels,
        plain.dtype,
        plain.working,
        plain.files,
    )


def test_a_file_on_another_grid_frames_no_scene_here_either(tmp_path):
    fine = save(tmp_path / "a.tif", STORED[:1])
    plain = GeoTiffSource([fine, save(tmp_path / "b.tif", STORED[:1], transform=NORTH_UP @ Affine.scale(2))])
    assert Tolerant(plain).framing == plain.framing == (fine,)


def test_a_file_that_cannot_be_fetched_is_not_damaged():
    class Away(MemorySource):
        def read(self, window, channels):
            raise FetchError("the server is away")

    with pytest.raises(FetchError, match="away"):
        Tolerant(Away(np.zeros((1, 1, 256, 256)))).read(Window.whole((1, 256, 256)), (0,))
