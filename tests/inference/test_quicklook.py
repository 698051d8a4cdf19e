"""The quick-look picture: every pixel where it belongs, small however big the scene."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from PIL import Image, ImageDraw

from tests.testers.maps import CLASSES, UTM, patches, scene_map, written
from tests.testers.memory import memory_case
from voxtile.cases.case import Case
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.inference import quicklook
from voxtile.inference.colours import UNJUDGED
from voxtile.inference.finished import FinishedMap
from voxtile.inference.quicklook import write_quicklook

COLORS = ((10, 20, 30), (0, 0, 250), (250, 0, 0))


def pictured(
    found: FinishedMap, case: Case, path: Path, channels: list[str] | None = None, background: int | None = 0
) -> np.ndarray:
    write_quicklook(found, case, path, COLORS, channels, background)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def scene_case(folder: Path, height: int, width: int) -> Case:
    rng = np.random.default_rng(0)
    bands = rng.integers(100, 3000, (4, height, width), dtype=np.uint16)
    return Case("scene", "scene", GeoTiffSource([written(folder / "scene.tif", bands)]))


@pytest.mark.parametrize(("height", "width"), [(300, 260), (260, 300)])
def test_image_and_map_are_beside_each_other(tmp_path: Path, height: int, width: int) -> None:
    indices = patches(0, height, width, 20)
    case = scene_case(tmp_path, height, width)
    shown = pictured(scene_map(tmp_path, indices), case, tmp_path / "q.png")
    table = np.array([*COLORS, *[UNJUDGED] * 253])
    at = (slice(height + 8, 2 * height + 8), slice(0, width)) if width > height else (slice(0, height), slice(width + 8, None))
    np.testing.assert_array_equal(shown[at], table[indices])
    image, _ = case.read(quicklook.Window.whole(case.shape), ["band3", "band2", "band1"])
    low, high = np.percentile(image, (2, 98), axis=(1, 2, 3))
    stretched = np.clip((np.moveaxis(image[:, 0], 0, -1) - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(shown[:height, :width], stretched, atol=1)
    below = shown[max(at[0].stop, height) :]
    for color in COLORS:  # the legend
        assert (below == color).all(axis=2).any()


def test_named_channels_are_shown(tmp_path: Path) -> None:
    case, found = scene_case(tmp_path, 300, 260), scene_map(tmp_path, patches(0, 300, 260))
    default = pictured(found, case, tmp_path / "a.png")[:300, :260]
    turned = pictured(found, case, tmp_path / "b.png", ["band1", "band2", "band3"])[:300, :260]
    np.testing.assert_array_equal(turned, default[..., ::-1])
    grey = pictured(found, case, tmp_path / "c.png", ["band2"])[:300, :260]
    np.testing.assert_array_equal(grey, default[..., [1, 1, 1]])


def test_a_big_scene_is_decimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quicklook, "MOST_SIDE", 128)
    indices = patches(0, 400, 300, 10)
    shown = pictured(scene_map(tmp_path, indices), scene_case(tmp_path, 400, 300), tmp_path / "q.png")
    step = 5  # 300 / 64
    table = np.array([*COLORS, *[UNJUDGED] * 253])
    part = table[indices[::step, ::step]].repeat(3, 0).repeat(3, 1)  # enlarged to be legible
    np.testing.assert_array_equal(shown[: part.shape[0], part.shape[1] + 8 :], part)


@pytest.mark.parametrize(("crs", "metres"), [("EPSG:32633", 10), ("EPSG:3857", 10 * np.cos(np.radians(40.9)))])
def test_the_scale_bar_is_as_long_as_it_says(tmp_path: Path, crs: str, metres: float) -> None:
    found = scene_map(tmp_path, patches(0, 300, 260), crs=crs, transform=UTM)
    bar = quicklook.scale_bar(found.grid, 1)
    assert bar is not None
    assert bar.label == "1 km"
    assert bar.pixels == pytest.approx(1000 / metres, abs=1.5)


def test_a_pixel_of_a_turned_scene_is_as_wide_as_along_its_rows(tmp_path: Path) -> None:
    turned = Affine.rotation(30) @ Affine.scale(10, -25)
    found = scene_map(tmp_path, patches(0, 30, 26), crs="EPSG:32633", transform=Affine.translation(500_000, 4_500_000) @ turned)
    bar = quicklook.scale_bar(found.grid, 1)
    assert bar is not None
    assert (bar.label, bar.pixels) == ("1 km", 100)


def test_where_the_middle_of_a_scene_is_off_the_globe_there_is_no_scale_bar(tmp_path: Path) -> None:
    crs, corner = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +units=m", Affine(3000, 0, -5_500_000, 0, -3000, 5_500_000)
    found = scene_map(tmp_path, patches(0, 60, 50), crs=crs, transform=corner)
    assert quicklook.scale_bar(found.grid, 1) is None
    assert pictured(found, scene_case(tmp_path, 60, 50), tmp_path / "q.png").shape[1] > 0


@pytest.mark.parametrize(("height", "width"), [(600, 20), (60, 150), (3000, 5)])
def test_a_narrow_picture_is_made_as_wide_as_what_stands_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    ends: list[float] = []
    write = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, at: tuple[float, float], words: str, **more: Any) -> None:
        ends.append(at[0] + more["font"].getlength(words))
        write(self, at, words, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    found = scene_map(tmp_path, patches(0, height, width, 20), transform=Affine(7, 0, 500_000, 0, -7, 4_500_000))
    shown = pictured(found, scene_case(tmp_path, height, width), tmp_path / "q.png")
    assert len(ends) == len(CLASSES) + 1  # the classes, and the length of the bar
    assert max(ends) <= shown.shape[1]


@pytest.mark.parametrize(("background", "fullest"), [(0, 2), (2, 0), (None, 0)])
def test_a_volume_shows_its_fullest_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: int | None, fullest: int
) -> None:
    label = np.zeros((4, 64, 40), dtype=np.uint8)
    label[1, 5:9, 5:9], label[2, 10:40, 10:30] = 1, 2
    rng = np.random.default_rng(0)
    case = memory_case("volume", array=rng.normal(size=(1, 4, 64, 40)), unit="mm")
    found = FinishedMap(memory_case("map", array=label[None]).image, CLASSES)
    said: list[str] = []
    write = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, at: tuple[float, float], words: str, **more: object) -> None:
        said.append(words)
        write(self, at, words, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    shown = pictured(found, case, tmp_path / "q.png", background=background)
    assert f"{CLASSES[2]} {600 / label.size:.1%}" in said  # of all slices
    assert f"slice {fullest} of 4, shares of all" in said
    monkeypatch.setattr(quicklook, "edge_marks", lambda grid: None)
    bare = pictured(found, case, tmp_path / "bare.png", background=background)
    letters = (shown != bare).any(axis=2)
    assert letters[:, : 40 * 4].any()  # on the image; nothing on the map
    assert not letters[:, 40 * 4 :].any()
    np.testing.assert_array_equal(shown[: 64 * 4 : 4, 40 * 4 + 8 : 80 * 4 + 8 : 4], np.array(COLORS)[label[fullest, ::-1]])
