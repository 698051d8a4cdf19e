"""Pixels drawn by rasters of weights: real files on any grid, against the whole raster in memory."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from tests.testers.geotiff import save
from tests.testers.memory import MemorySource, memory_case
from voxtile.cases.dataset import Dataset
from voxtile.cases.layouts import FolderLayout
from voxtile.cases.window import Window
from voxtile.data import weight_map as module
from voxtile.data.normalise import Normalisation
from voxtile.data.prepared import prepare
from voxtile.data.rng import generator
from voxtile.data.sampling import Sampling
from voxtile.data.splits import GroupSplit
from voxtile.data.weight_map import WeightMap, open_weights
from voxtile.errors import DataError


def write(path, array, pixel=10.0, **options):
    save(path, array[None], transform=from_origin(500_000 + 10_000 * ord(path.stem[0]), 5_500_000, pixel, pixel), **options)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        write(tmp_path / "images" / f"{name}.tif", rng.integers(1, 99, (20, 30), dtype=np.uint8))
        write(tmp_path / "labels" / f"{name}.tif", rng.integers(0, 2, (20, 30), dtype=np.uint8))
        write(tmp_path / "weights" / f"{name}.tif", rng.random((20, 30), dtype=np.float32))
    return tmp_path


def dataset(root):
    return Dataset("d", "geotiff", FolderLayout(str(root), "images/{id}.tif", "labels/{id}.tif"), {0: "ground", 1: "roof"})


def opened(root, cases=None):
    among = dataset(root).cases()
    return open_weights(dataset(root), "weights/{id}.tif", cases or among[:1], among)


def draws(found, count=1000):
    return np.array([found.draw(generator(0, index, "test")) for index in range(count)])


def check(found, expected, count=1000):
    """Draws fall on each row and column as often as the weights say, and never where they are 0."""
    places = draws(found, count)
    z, y, x = places.T
    assert (expected[z, y, x] > 0).all()
    chances = expected / expected.sum()
    for axis in range(3):
        rows = chances.sum(axis=tuple(other for other in range(3) if other != axis))
        seen = np.bincount(places[:, axis], minlength=len(rows)) / count
        assert (np.abs(seen - rows) < 5 * np.sqrt(rows / count) + 1e-9).all()


@pytest.fixture(params=[256, 7], ids=["one cell", "many cells"])
def _cell(request, monkeypatch):
    monkeypatch.setattr(module, "CELL", request.param)


@pytest.mark.usefixtures("_cell")
def test_pixels_come_by_their_weights():
    weights = np.random.default_rng(1).random((3, 20, 30)) ** 3
    weights[:, 5:12, 9:20] = 0
    found = WeightMap.of(MemorySource(weights[None]), memory_case("a", (3, 20, 30)))
    assert found.total == pytest.approx(weights.sum())
    check(found, weights)


@pytest.mark.usefixtures("_cell")
def test_nodata_and_nan_weigh_nothing(root):
    weights = np.ones((20, 30), np.float32)
    weights[:10], weights[:, :5] = -9999, np.nan
    write(root / "weights" / "a.tif", weights, nodata=-9999)
    check(opened(root)["a"], np.where(weights == 1, 1.0, 0.0)[None])


@pytest.mark.usefixtures("_cell")
def test_weights_on_another_grid_are_those_of_the_nearest_pixel(root):
    weights = np.random.default_rng(2).integers(0, 4, (4, 6)).astype(np.uint8)
    write(root / "weights" / "a.tif", weights, pixel=50.0)
    check(opened(root)["a"], weights.repeat(5, axis=0).repeat(5, axis=1)[None].astype(float))


def test_a_block_is_drawn_by_its_part_of_the_scenes_weights(root):
    block = dataset(root).cases()[0].view(Window(0, 5, 10, 1, 8, 12), "#r0c0")
    with rasterio.open(root / "weights" / "a.tif") as file:
        check(opened(root, [block])["a#r0c0"], file.read()[:, 5:13, 10:22].astype(float))


def test_only_sums_of_cells_are_kept():
    found = WeightMap.of(MemorySource(np.ones((1, 2, 600, 300))), memory_case("a", (2, 600, 300)))
    assert found.ends.tolist()[:6] == np.cumsum([256 * 256, 256 * 44] * 2 + [88 * 256, 88 * 44]).tolist()
    assert len(found.ends) == 12


@pytest.mark.parametrize("share", [0.0, 0.5, 1 - 2**-53])
def test_rounding_never_draws_a_weight_of_0(share):
    class Draw:
        def random(self):
            return share

    weights = np.zeros((1, 1, 5, 7))
    weights[0, 0, 2, 1:4] = 0.1
    z, y, x = WeightMap.of(MemorySource(weights), memory_case("a", (1, 5, 7))).draw(Draw())
    assert weights[0, z, y, x] > 0


@pytest.mark.parametrize("value", [-0.5, np.inf])
def test_a_weight_that_is_none_is_refused(value):
    weights = np.ones((1, 1, 20, 30), np.float32)
    weights[0, 0, 3, 4] = value
    with pytest.raises(DataError, match=rf"w\.npy holds the weight {value:g} .*0 or more"):
        WeightMap.of(MemorySource(weights, path="w.npy"), memory_case("a", (1, 20, 30)))


def test_missing_rasters_are_named(root):
    (root / "weights" / "a.tif").unlink()
    with pytest.raises(DataError, match=r"1 rasters of weights do not exist: .*a\.tif.*'data\.exclude"):
        opened(root)


def test_the_weights_of_training_cases_are_part_of_the_fingerprint(root):
    def fingerprint(weights):
        scheme, sampling = GroupSplit(val=0.3, test=0), Sampling("weights", weights=weights) if weights else Sampling()
        found = prepare(dataset(root), scheme, Normalisation("dataset"), root / "cache", sampling=sampling)
        assert set(found.weight_maps) == ({case.id for case in found.split.train} if weights else set())
        return found.fingerprint

    without, before = fingerprint(None), fingerprint("weights/{id}.tif")
    for name in "abc":
        write(root / "weights" / f"{name}.tif", np.ones((20, 30), np.float32))
    assert len({without, before, fingerprint("weights/{id}.tif")}) == 3
    assert fingerprint(None) == without
