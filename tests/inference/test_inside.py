"""A scene's pixels in polygons of another system, against a look at every pixel; some of its blocks lie on the map's edge."""

import numpy as np
import pytest
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer

from voxtile.cases.grid import Grid
from voxtile.cases.pixel_area import PixelAreas
from voxtile.cases.window import Window
from voxtile.inference.inside import SceneCells, folded

PARTS = 4  # a side, of a pixel
DEGREES = CRS("EPSG:4326")
SCENE = "ESRI:54009"  # Mollweide's map of the world, of which the grid shows the edge between 0° and 60° north, and what is off it
TRANSFORM = Affine(60_000, 0, 1.3e7, 0, -60_000, 6.1e6)
HEIGHT, WIDTH = 70, 90
PLACES = {
    "to the edge": shapely.box(160.3, 10.2, 180, 70.1),
    "over the edge": shapely.box(150.3, -20.2, 200, 60.1),
    "triangle": shapely.Polygon([(179.9, 8.3), (171.7, 60.2), (130.1, 33.4)]),
}
SMALL = shapely.Point(140, 30).buffer(4)


@pytest.fixture(scope="module")
def grid() -> Grid:
    a, b, c, d, e, f = (TRANSFORM @ Affine.translation(0.5, 0.5))[:6]
    affine = ((a, b, 0.0, c), (d, e, 0.0, f), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    return Grid((1, HEIGHT, WIDTH), affine, "m", CRS(SCENE).to_wkt())


@pytest.fixture(scope="module")
def cells(grid: Grid) -> SceneCells:
    return SceneCells(grid, DEGREES)


def looked_at(polygon: shapely.Polygon, parts: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which parts of pixels [h, parts, w, parts] have their middles in a polygon, and which have any place."""
    y, x = (np.mgrid[: HEIGHT * parts, : WIDTH * parts] + 0.5) / parts
    longitude, latitude = Transformer.from_crs(SCENE, DEGREES, always_xy=True).transform(*TRANSFORM @ (x, y))
    found = shapely.contains_xy(polygon, longitude, latitude) | shapely.contains_xy(polygon, longitude + 360, latitude)
    shape = HEIGHT, parts, WIDTH, parts
    return found.reshape(shape), np.isfinite(longitude).reshape(shape)


@pytest.mark.parametrize("polygon", [*PLACES.values(), SMALL], ids=[*PLACES, "small"])
def test_every_pixel_whose_centre_is_in_a_polygon_is_found(cells: SceneCells, polygon: shapely.Polygon) -> None:
    (shape,) = folded(np.array([polygon], dtype=object), DEGREES)
    near = cells.near(shape)
    expected = looked_at(polygon, 1)[0][:, 0, :, 0]
    assert expected.any()
    np.testing.assert_array_equal(cells.inside(shape, near, Window.whole((1, HEIGHT, WIDTH))), expected)
    part = Window.of((0, 13, 21), (1, 40, 37))
    np.testing.assert_array_equal(cells.inside(shape, near, part), expected[13:53, 21:58])
    box = cells.box(shape, near)
    assert expected[box.y : box.y + box.height, box.x : box.x + box.width].sum() == expected.sum()


@pytest.mark.parametrize("polygon", PLACES.values(), ids=PLACES)
def test_the_share_on_the_scene_counts_parts_of_pixels_on_the_maps_edge(
    grid: Grid, cells: SceneCells, polygon: shapely.Polygon
) -> None:
    (shape,) = folded(np.array([polygon], dtype=object), DEGREES)
    found, known = looked_at(polygon, PARTS)
    part = found.sum(axis=(1, 3)) / np.maximum(known.sum(axis=(1, 3)), 1)
    on_scene = (PixelAreas(grid).cells(Window.whole(grid.shape)) * part).sum()
    ring = shapely.get_coordinates(shapely.segmentize(polygon, 0.05))
    ground = abs(Geod(ellps="WGS84").polygon_area_perimeter(*ring.T)[0])
    near = cells.near(shape)
    assert 5 < (~cells.plain[near]).sum() < 20
    assert cells.share(shape, polygon, near) == pytest.approx(on_scene / ground, abs=2e-4)
