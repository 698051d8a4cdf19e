from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_bounds

from tests.testers.memory import memory_case
from tests.testers.places import at
from voxtile.cases.case import Case
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.data.blocks import BlockSplit
from voxtile.data.splits import Split
from voxtile.training import split_picture
from voxtile.training.split_picture import COLORS, SMALL, SOLE, draw_split

titled = split_picture._titled
WHITE, GROUND = (255, 255, 255), (235, 235, 235)


def count(picture, color):
    return int((np.asarray(picture) == color).all(axis=-1).sum())


def scene(path: Path, bounds=(500_000, 5_000_000, 501_000, 5_001_000), crs="EPSG:32633", group=None) -> Case:
    """A grey scene whose north-western quarter is bright."""
    array = np.full((1, 100, 100), 20, dtype=np.uint8)
    array[0, :50, :50] = 220
    with rasterio.open(
        path, "w", driver="GTiff", height=100, width=100, count=1, dtype="uint8", crs=crs, transform=from_bounds(*bounds, 100, 100)
    ) as file:
        file.write(array)
    return Case(path.stem, group or path.stem, GeoTiffSource([path]))


def test_one_scene_in_blocks_is_one_map_with_its_sides_over_it(tmp_path):
    split = BlockSplit((2, 2), val=0.25, test=0.25)([scene(tmp_path / "a.tif")])
    picture = draw_split(split)
    assert picture.width == SOLE
    assert all(count(picture, color) > 500 for color in COLORS.values())
    pixels = np.asarray(picture).astype(int)[32:]  # below the legend
    for side, cases in split.sides.items():
        for case in cases:
            # The middle of each quarter shows the scene, tinted by its side.
            row, column = (int(s > 0) for s in (case.box.y, case.box.x))
            y, x = (int(pixels.shape[0] * (0.5 + 0.2 * (2 * at - 1))) for at in (row, column))
            tint, grey = np.array(COLORS[side]), 255 if (row, column) == (0, 0) else 0
            assert pixels[y, x] == pytest.approx(0.65 * grey + 0.35 * tint, abs=3)


def test_whole_scenes_are_framed_and_keep_their_own_colours(tmp_path):
    near = [scene(tmp_path / "a.tif"), scene(tmp_path / "b.tif", (501_100, 5_000_000, 502_100, 5_001_000))]
    pixels = np.asarray(draw_split(Split(tuple(near[:1]), tuple(near[1:])))).astype(int)[32:]
    colors = {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}
    assert {COLORS["train"], COLORS["val"]} < colors
    assert {color for color in colors if len(set(color)) > 1} == {COLORS["train"], COLORS["val"]}


def test_small_maps_are_called_as_cases_are_and_lie_in_the_order_of_ids(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(split_picture, "_titled", lambda part, title: (titles.append(title), titled(part, title))[1])
    bounds = [(500_000 + 100_000 * n, 5_000_000, 501_000 + 100_000 * n, 5_001_000) for n in range(3)]
    scenes = [replace(scene(tmp_path / f"{n}_B.tif", edges), id=f"t{8 + n}") for n, edges in enumerate(bounds)]
    draw_split(Split((scenes[0], scenes[2]), (scenes[1],)))
    assert titles == ["t8", "t9", "t10", "all 3 places, each point one or more cases", "each place"]
    titles.clear()
    draw_split(BlockSplit((2, 2), val=0.25, test=0)(scenes[1:]))
    assert titles[:2] == ["t9", "t10"]


def test_blocks_are_not_compared_with_each_other(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr("voxtile.training.split_picture.pairs_within", lambda first, *_: compared.append(len(first)) or [])
    scenes = [scene(tmp_path / "a.tif"), scene(tmp_path / "b.tif", (700_000, 5_000_000, 701_000, 5_001_000))]
    draw_split(BlockSplit((20, 20), val=0.25, test=0)(scenes))
    assert compared == [2]


def test_north_is_up_whichever_way_a_file_lies(tmp_path):
    split = BlockSplit((2, 2), val=0.25, test=0)([scene(tmp_path / "a.tif", bounds=(500_000, 5_001_000, 501_000, 5_000_000))])
    pixels = np.asarray(draw_split(split)).astype(int)[32:].sum(axis=2)
    h, w = pixels.shape
    quarters = [pixels[int(h * y), int(w * x)] for y in (0.3, 0.7) for x in (0.3, 0.7)]
    assert int(np.argmax(quarters)) == 2  # its first row is the southernmost


def test_the_scale_is_as_long_as_it_says(tmp_path):
    split = BlockSplit((2, 2), val=0.25, test=0)([scene(tmp_path / "a.tif")])
    pixels = np.asarray(draw_split(split)).astype(int)
    rows = np.flatnonzero((pixels[-60:, 12:60] == 0).all(axis=(1, 2)))  # the black bar, which starts there
    bar = int((pixels[-60:][rows[0], :300] == 0).all(axis=-1).sum())
    outline = (pixels == COLORS["train"]).all(axis=-1) | (pixels == COLORS["val"]).all(axis=-1)
    columns = np.flatnonzero(outline[32:].any(axis=0))
    assert bar / (columns[-1] - columns[0]) == pytest.approx(200 / 1000, rel=0.03)  # 200 m of a scene of 1 km


def test_several_places_have_an_overview_and_small_maps(tmp_path):
    cases = [at(f"s{n:02d}", -170 + 20 * n, 3 * n - 25, 4326) for n in range(17)]
    split = Split(tuple(cases[:12]), tuple(cases[12:15]), tuple(cases[15:]))
    picture = draw_split(split)
    assert picture.height > 3 * SMALL
    assert all(count(picture, color) > 300 for color in COLORS.values())
    assert count(picture, GROUND) > 12 * 1000
    fewer = draw_split(Split(tuple(cases[:1]), tuple(cases[1:2])))
    assert count(fewer, COLORS["test"]) == 0
    assert fewer.height < picture.height


def test_scenes_near_each_other_are_one_place_in_any_system(tmp_path):
    near = [at("a", 17.99, 50, 32633), at("b", 18.0, 50, 32634)]
    assert draw_split(Split(tuple(near[:1]), tuple(near[1:]))).width == SOLE
    bounds = [(179.99, 9.99, 179.999, 10.0), (-179.999, 9.99, -179.99, 10.0)]
    over = [scene(tmp_path / f"{n}.tif", edges, "EPSG:4326") for n, edges in enumerate(bounds)]
    picture = draw_split(Split(tuple(over[:1]), tuple(over[1:])))
    assert count(picture, COLORS["train"]) > 500 < count(picture, COLORS["val"])
    pixels = np.asarray(picture)[32:]
    west, east = (np.flatnonzero((pixels == COLORS[side]).all(axis=-1).any(axis=0)).mean() for side in ("train", "val"))
    assert 100 < east - west < SOLE
    assert count(picture, GROUND) < 0.7 * pixels.shape[0] * SOLE  # both scenes are there


def test_what_lies_nowhere_is_not_drawn():
    assert draw_split(Split((memory_case("a", unit="mm"),), (memory_case("b", unit="mm"),))) is None
