import numpy as np
import pytest
import rasterio

from tests.cases.test_geotiff import save
from tests.testers.memory import MemorySource
from voxtile.cases.damaged import LEAST, Tolerant
from voxtile.cases.fetch import FetchError
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.window import Window

TILE = 128


@pytest.mark.parametrize("start", [(0, 0), (37, 50)])
def test_what_cannot_be_decoded_is_not_valid_and_all_around_it_is_read(tmp_path, start):
    array = np.random.default_rng(0).integers(1, 255, (1, 4 * TILE, 4 * TILE), dtype=np.uint8)
    path = save(tmp_path / "a.tif", array, tiled=True, blockxsize=TILE, blockysize=TILE, compress="deflate")
    with rasterio.open(path) as dataset:
        place = int(dataset.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))  # column, row
    with path.open("rb+") as file:
        file.seek(place)
        file.write(b"\0" * 1000)
    source = Tolerant(GeoTiffSource([path]))
    window = Window.of((0, *start), (1, 400, 400))
    pixels, valid = source.read(window, (0,))
    np.testing.assert_array_equal(pixels[0][valid], array[0, *window.slices[1:]][valid[0]])
    broken = np.zeros(array.shape, dtype=bool)
    broken[0, TILE : 2 * TILE, 2 * TILE : 3 * TILE] = True
    here = broken[window.slices]
    assert not valid[here].any()
    assert not pixels[0][~valid].any()
    near = np.zeros_like(broken)
    near[0, TILE - LEAST : 2 * TILE + LEAST, 2 * TILE - LEAST : 3 * TILE + LEAST] = True
    assert valid[~near[window.slices]].all()
    assert sum(each.pixels for each in source.lost) == np.count_nonzero(~valid)
    assert all("cannot be decoded" in why for why in source.lost.values())


def test_where_nothing_is_broken_it_is_the_source(tmp_path):
    source = MemorySource(np.arange(24).reshape(1, 1, 4, 6))
    tolerant = Tolerant(source)
    np.testing.assert_array_equal(tolerant.read(Window.whole((1, 4, 6)), (0,))[0], source.array)
    assert (tolerant.working, tolerant.files, tolerant.lost) == (source.working, source.files, {})


def test_a_file_that_cannot_be_fetched_is_not_damaged():
    class Away(MemorySource):
        def read(self, window, channels):
            raise FetchError("the server is away")

    with pytest.raises(FetchError, match="away"):
        Tolerant(Away(np.zeros((1, 1, 256, 256)))).read(Window.whole((1, 256, 256)), (0,))
