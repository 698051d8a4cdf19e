from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from rasterio.env import get_gdal_config, set_gdal_config

from tests.testers.geotiff import save
from voxtile.cases import raster
from voxtile.cases.cells import CELLS, GDALS_PART, TRIED, CellCache, put_together
from voxtile.cases.copying import Copies, Pixels
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.window import Window

STORED = np.random.default_rng(0).integers(0, 5000, (3, 700, 900), dtype=np.uint16)


@pytest.fixture
def total():
    """What GDAL may take, as a new process finds it."""
    before = get_gdal_config("GDAL_CACHEMAX")
    set_gdal_config("GDAL_CACHEMAX", 800)
    yield 800
    set_gdal_config("GDAL_CACHEMAX", before)


def part(size):
    return np.zeros((1, 1, size), np.uint8)


def random_windows(count):
    rng = np.random.default_rng(1)
    for _ in range(count):
        height, width = (int(side) for side in rng.integers(1, 300, 2))
        y, x = int(rng.integers(700 - height + 1)), int(rng.integers(900 - width + 1))
        yield Window(0, y, x, 1, height, width)


@pytest.mark.parametrize("tile", [64, 128, 256])
def test_windows_have_the_same_pixels_whether_tiles_are_kept_or_not_and_by_any_thread(tmp_path, tile):
    path = save(tmp_path / "a.tif", STORED, tiled=True, blockxsize=tile, blockysize=tile, compress="deflate")
    source, windows = GeoTiffSource([path]), list(random_windows(60))

    def right(window):
        for channels in ((0, 1, 2), (2, 0)):
            array, _ = source.read(window, channels)
            into = np.empty_like(array)
            source.begin(into, window, channels, None)()
            expected = STORED[list(channels), *window.slices[1:]]
            np.testing.assert_array_equal(array[:, 0], expected)
            np.testing.assert_array_equal(into[:, 0], expected)
            array[...] = 0  # what is kept must not be what callers write to

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(right, windows * 2))
    with CELLS.off():
        for window in windows[:10]:
            right(window)


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    options = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    window = Window(0, 100, 100, 1, 100, 100)
    for stored in (STORED, STORED[:, ::-1].copy()):
        source = GeoTiffSource([save(tmp_path / "a.tif", stored, **options)])
        np.testing.assert_array_equal(source.read(window, (0,))[0][0, 0], stored[0, 100:200, 100:200])


def test_cells_and_the_blocks_that_gdal_keeps_take_together_what_gdal_was_given(total):
    cells = CellCache()
    assert cells.most + total // GDALS_PART == total
    assert get_gdal_config("GDAL_CACHEMAX") == total // GDALS_PART


def test_the_cell_that_was_used_longest_ago_goes_first(total):
    cells, made = CellCache(), []

    def get(name):
        return cells.get(name, [(0, 0)], lambda row, column: made.append(name) or part(total * 3 // 10))

    for name in "ababacaba":  # the third does not fit
        get(name)
    assert "".join(made) == "abcb"


@pytest.mark.parametrize(("cells_of_data", "worth"), [(8, True), (100, False)])
def test_gdal_has_all_of_the_room_where_few_cells_are_found_again(total, cells_of_data, worth):
    cells, rng = CellCache(), np.random.default_rng(0)
    for name in rng.integers(cells_of_data, size=20 * TRIED).tolist():
        if not cells.keeps(Window(0, 0, 0, 1, 1, 1), (1, 1)):
            break
        cells.get("file", [(0, name)], lambda row, column: part(total // 8))
    assert (cells.most > 0) == worth
    assert get_gdal_config("GDAL_CACHEMAX") == (total // GDALS_PART if worth else total)


def test_nothing_is_kept_while_it_is_off(total):
    cells, made = CellCache(), []

    def get():
        cells.get("a", [(0, 0)], lambda row, column: made.append(1) or part(1))

    with cells.off():
        for _ in range(2):
            get()
        assert not cells.keeps(Window(0, 0, 0, 1, 10, 10), (256, 256))
    get()
    get()
    assert len(made) == 3
    assert cells.keeps(Window(0, 0, 0, 1, 10, 10), (256, 256))


def test_large_windows_are_not_put_together():
    assert CELLS.keeps(Window(0, 0, 0, 1, 512, 512), (256, 256))
    assert not CELLS.keeps(Window(0, 0, 0, 1, 256, 8192), (256, 256))


def test_windows_are_put_together_of_the_cells_that_they_touch_and_no_others():
    asked = set()

    def cells_at(places):
        asked.update(places)
        return [Pixels.of(STORED[:, row * 64 : row * 64 + 64, column * 100 : column * 100 + 100]) for row, column in places]

    out = np.empty((3, 64, 150), np.uint16)
    for given in (None, out):
        made = put_together((3, 64, 150), 64, 99, (64, 100), cells_at, given)
        np.testing.assert_array_equal(made, STORED[:, 64:128, 99:249])
    assert made is out
    assert asked == {(1, 0), (1, 1), (1, 2)}


def test_noted_copies_are_made_at_once_and_only_where_rows_are_contiguous_and_types_agree():
    def cells_at(places):  # of which nobody else holds the cells
        cut = [STORED[:, row * 64 : row * 64 + 64, column * 100 : column * 100 + 100] for row, column in places]
        return [Pixels.of(cell.copy()) for cell in cut]

    for dtype, step, noted in ((np.uint16, 1, True), (np.uint32, 1, False), (np.uint16, 2, False)):
        batch, copies = np.zeros((2, 3, 64, 150 * step), dtype), Copies()
        places = [batch[row, :, :, ::step] for row in range(2)]
        for place, left in zip(places, (99, 300), strict=True):
            put_together((3, 64, 150), 64, left, (64, 100), cells_at, place, copies)
        assert batch.any() != noted
        copies.make()
        for place, left in zip(places, (99, 300), strict=True):
            np.testing.assert_array_equal(place, STORED[:, 64:128, left : left + 150])
            place[...] = 0


def test_gdal_gets_half_of_the_room_where_files_are_read_without_cells(total):
    cells = CellCache()
    cells.leave_half()  # nothing is kept yet, and all of it is GDAL's
    assert get_gdal_config("GDAL_CACHEMAX") == total
    cells.get("a", [(0, 0)], lambda row, column: part(total * 5 // 8))
    cells.leave_half()
    assert cells.most == get_gdal_config("GDAL_CACHEMAX") == total // 2
    made = []
    cells.get("a", [(0, 0)], lambda row, column: made.append(1) or part(1))
    assert made  # it did not fit any more


def test_while_a_map_is_made_gdal_keeps_megabytes_and_voxtile_nothing():
    with raster.block_cache(threads=3):
        assert int(get_gdal_config("GDAL_CACHEMAX")) == raster.BLOCK_CACHE * 2**20
        assert int(get_gdal_config("GDAL_NUM_THREADS")) == 3
        assert CELLS.most == 0
    assert CELLS.most > 0
