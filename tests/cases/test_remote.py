import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine

from tests.testers.geotiff import NORTH_UP, UTM, save, whole
from tests.testers.web import serving
from voxtile.cases import fetch, range_cache, remote
from voxtile.cases.address import RemoteFile
from voxtile.cases.cells import CELLS
from voxtile.cases.dataset import Dataset
from voxtile.cases.geotiff import GeoTiffSource, label_source
from voxtile.cases.layouts import FolderLayout, ListLayout
from voxtile.cases.raster import HANDLES
from voxtile.cases.window import Window
from voxtile.data.survey import survey_all
from voxtile.errors import DataError

SIDE, TILE = 768, 96
SCENE = np.random.default_rng(0).integers(0, 4000, (4, SIDE, SIDE), dtype=np.uint16)
LABEL = (SCENE[:1] % 2).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A Cloud-Optimized GeoTIFF of 64 tiles of about 60 kB, the same in strips, and its label."""
    folder = tmp_path_factory.mktemp("web")
    save(folder / "plain.tif", SCENE)
    rasterio.shutil.copy(folder / "plain.tif", folder / "scene.tif", driver="COG", blocksize=TILE, compress="deflate")
    save(folder / "label.tif", LABEL, tiled=True, blockxsize=TILE, blockysize=TILE, compress="deflate")
    return folder


@pytest.fixture
def web(files, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "WAITS", (0.01,))
    with serving(files) as server:
        yield server


def another_process():
    """Forgets what a process remembers; what is on the disk stays."""
    fetch._FACTS.clear()
    HANDLES._local = threading.local()
    with CELLS.off():
        pass


def test_one_window_costs_the_header_and_its_tiles(files, web):
    source = GeoTiffSource([RemoteFile(f"{web.url}/scene.tif")])
    assert web.served == fetch.HEAD  # one request for what is said of the file and its first page
    with rasterio.open(files / "scene.tif") as dataset:
        tiles = [dataset.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=1) for x in (2, 3) for y in (4, 5)]
    needed = sum(int(size) for size in tiles)
    web.forget()
    array, valid = source.read(Window(0, 400, 200, 1, 100, 180), range(4))  # tiles 4 and 5 down, 2 and 3 across
    np.testing.assert_array_equal(array[:, 0], SCENE[:, 400:500, 200:380])
    assert valid.all()
    assert needed <= web.served <= needed + len(tiles) * 2 * range_cache.BLOCK + 2 * remote.AHEAD
    assert web.served < (files / "scene.tif").stat().st_size / 10
    assert set(web.all) == {"/scene.tif"}  # no side file, no folder


def test_a_scene_in_strips_is_fetched_by_the_hundred_kilobytes(web):
    source = GeoTiffSource([RemoteFile(f"{web.url}/plain.tif")])
    array, _ = source.read(Window(0, 0, 0, 1, 200, SIDE), range(4))
    np.testing.assert_array_equal(array[:, 0], SCENE[:, :200])
    assert len(web.all) <= 3 + array.nbytes / remote.AHEAD
    assert web.served <= array.nbytes + 2 * remote.AHEAD


def test_an_epoch_is_fetched_once(web):
    source = GeoTiffSource([RemoteFile(f"{web.url}/scene.tif")])
    windows = [Window(0, y, x, 1, 256, 256) for y in range(0, SIDE, 256) for x in range(0, SIDE, 256)]
    first = [source.read(window, range(4))[0] for window in windows]
    size = source.path.stat().st_size
    assert web.served <= 1.05 * size
    another_process()
    web.forget()
    again = GeoTiffSource([RemoteFile(f"{web.url}/scene.tif")])
    for window, pixels in zip(windows, first, strict=True):
        np.testing.assert_array_equal(again.read(window, range(4))[0], pixels)
        np.testing.assert_array_equal(pixels[:, 0], SCENE[:, *window.slices[1:]])
    assert web.served == fetch.HEAD  # asks whether the file is still the same, and that is all


def test_a_file_that_has_changed_since_is_fetched_anew(tmp_path, web, monkeypatch):
    for seed in (0, 1):
        stored = np.random.default_rng(seed).integers(0, 255, (1, 300, 300), dtype=np.uint8)
        monkeypatch.setattr(web, "root", tmp_path)
        save(tmp_path / "a.tif", stored)
        np.testing.assert_array_equal(whole(GeoTiffSource([RemoteFile(f"{web.url}/a.tif")]))[0][:, 0], stored)
        another_process()


def test_without_a_cache_windows_are_fetched_again_and_right(web, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(range_cache, "_told", set())
    source = GeoTiffSource([RemoteFile(f"{web.url}/scene.tif")])
    for at in (0, 300):
        array, _ = source.read(Window(0, at, 0, 1, 100, 100), range(4))
        np.testing.assert_array_equal(array[:, 0], SCENE[:, at : at + 100, :100])
    assert web.served < 1_000_000
    assert len(caplog.messages) == 1


def test_threads_share_what_comes(web):
    source = GeoTiffSource([RemoteFile(f"{web.url}/scene.tif")])

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(12):
            y, x = rng.integers(0, SIDE - 200, 2).tolist()
            array, _ = source.read(Window(0, y, x, 1, 200, 200), (2, 0))
            np.testing.assert_array_equal(array[:, 0], SCENE[[2, 0], y : y + 200, x : x + 200])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    another_process()
    web.forget()
    np.testing.assert_array_equal(whole(GeoTiffSource([RemoteFile(f"{web.url}/scene.tif")]))[0][:, 0], SCENE)
    assert web.served <= source.path.stat().st_size


def test_a_label_elsewhere_is_aligned(web, tmp_path):
    label = label_source(RemoteFile(f"{web.url}/label.tif"), GeoTiffSource([RemoteFile(f"{web.url}/scene.tif")]))
    np.testing.assert_array_equal(label.read(Window(0, 500, 500, 1, 50, 50), (0,))[0][:, 0], LABEL[:, 500:550, 500:550])
    small = GeoTiffSource([save(tmp_path / "s.tif", SCENE[:, 100:164, 200:264], transform=NORTH_UP @ Affine.translation(200, 100))])
    cut = label_source(RemoteFile(f"{web.url}/label.tif"), small)
    np.testing.assert_array_equal(whole(cut)[0][:, 0], LABEL[:, 100:164, 200:264])


def test_a_request_that_fails_under_way_is_said_as_what_it_is(web):
    source = GeoTiffSource([RemoteFile(f"{web.url}/scene.tif")])
    web.status, web.times = 503, 10**6
    for _ in range(2):
        with pytest.raises(DataError, match=r"scene\.tif cannot be fetched: the server answers with status 503"):
            source.read(Window(0, 600, 300, 1, 10, 10), (0,))
    web.times = 0
    np.testing.assert_array_equal(source.read(Window(0, 600, 300, 1, 10, 10), (0,))[0][0, 0], SCENE[0, 600:610, 300:310])


def test_what_is_no_geotiff_is_said_after_a_page(web, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "root", tmp_path)
    (tmp_path / "a.tif").write_bytes(b"<html>" * 100_000)
    with pytest.raises(DataError, match=r"/a\.tif cannot be read as a GeoTIFF"):
        GeoTiffSource([RemoteFile(f"{web.url}/a.tif")])
    assert web.served <= 2 * fetch.HEAD


# --- in a data set


@pytest.fixture
def listed(web, tmp_path):
    """A data set of one scene elsewhere with its label, and one label here."""
    root = tmp_path / "root"
    root.mkdir()
    save(root / "here.tif", LABEL)
    (root / "train.txt").write_text(f"{web.url}/scene.tif?sig=hunter2 {web.url}/label.tif\n{web.url}/plain.tif here.tif\n")
    return Dataset("d", "geotiff", ListLayout(str(root), {"train": "train.txt"}), {0: "ground", 1: "water"})


def test_a_list_names_files_elsewhere(listed):
    cases = listed.cases()
    assert [(case.id, case.shape, case.split) for case in cases] == [(n, (1, SIDE, SIDE), "train") for n in ("scene", "plain")]
    for case in cases:
        np.testing.assert_array_equal(case.read_label(Window(0, 40, 50, 1, 60, 70))[0], LABEL[0, 40:100, 50:120])
        with pytest.raises(DataError) as error:
            case.read(Window(0, 0, 0, 1, SIDE + 1, 1))
        assert "hunter2" not in str(error.value)


def test_surveys_of_them_are_kept_until_they_change(listed, web, tmp_path, monkeypatch):
    first = survey_all(listed.cases(), 2, tmp_path / "cache")
    assert first["scene"].counts.tolist() == np.bincount(LABEL.ravel()).tolist()
    another_process()
    web.forget()
    survey_all(listed.cases(), 2, tmp_path / "cache")
    assert len(web.all) == 3  # one question for each file
    another_process()
    web.etag = "changed"
    monkeypatch.setattr("voxtile.data.survey.survey", lambda *arguments: pytest.fail("surveyed anew"))
    with pytest.raises(BaseException, match="surveyed anew"):
        survey_all(listed.cases(), 2, tmp_path / "cache")


def test_a_map_of_one_lies_here(listed, tmp_path):
    from tests.testers.geotiff import SPEC

    case = listed.cases()[0]
    with case.open_map(tmp_path / "map.tif", SPEC) as writer, rasterio.open(writer.close()) as found:
        assert (found.crs, found.transform, found.shape) == (UTM, NORTH_UP, (SIDE, SIDE))


def test_a_folder_elsewhere_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"https://\*\*\*@host/scenes, and folders elsewhere cannot be listed.*ListLayout") as error:
        FolderLayout("https://me:hunter2@host/scenes", "{id}.tif").find()
    assert "hunter2" not in str(error.value)


def test_a_line_that_is_no_pair_shows_no_secret(web, tmp_path):
    (tmp_path / "train.txt").write_text(f"{web.url}/a.tif?sig=hunter2\n")
    with pytest.raises(DataError, match=r"line 1: expected 'image label', found 'http.*a\.tif\?sig=\*\*\*'"):
        ListLayout(str(tmp_path), {"train": "train.txt"}).find()


def test_a_file_of_another_format_elsewhere_is_refused(web, tmp_path):
    (tmp_path / "train.txt").write_text(f"{web.url}/a.png {web.url}/label.tif\n")
    with pytest.raises(DataError, match=r"ends in '\.png', and only GeoTIFFs"):
        ListLayout(str(tmp_path), {"train": "train.txt"}).find()
    (tmp_path / "train.txt").write_text(f"{web.url}/scene.tif {web.url}/label.tif\n")
    with pytest.raises(DataError, match=r"scene\.tif"):
        Dataset("d", "picture", ListLayout(str(tmp_path), {"train": "train.txt"}), {0: "a", 1: "b"}).cases()
