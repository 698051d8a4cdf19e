"""Ground areas of pixels against areas on the ellipsoid, by formula and by geodesics."""

import itertools
import math

import numpy as np
import pytest
from affine import Affine
from pyproj import CRS, Geod, Transformer

from voxtile.cases.grid import StoredGrid, degree_metres
from voxtile.cases.pixel_area import PixelAreas
from voxtile.cases.window import Window

A, F = 6378137.0, 1 / 298.257223563  # of WGS 84
WORLD = 20037508.342789244  # half the equator, in Web Mercator's metres


def grid(crs: str, transform: Affine, shape: tuple[int, int], latitude: float = 0.0) -> StoredGrid:
    t = transform @ Affine.translation(0.5, 0.5)
    affine = ((t.a, t.b, 0.0, t.c), (t.d, t.e, 0.0, t.f), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    metres = degree_metres(latitude) if CRS(crs).is_geographic else (1.0, 1.0)
    return StoredGrid((1, *shape), affine, "m", CRS(crs).to_wkt(), metres)


def whole(found: StoredGrid) -> np.ndarray:
    return PixelAreas(found).cells(Window.whole(found.shape))


def between_parallels(south: float, north: float, degrees: float) -> float:
    """Square metres of the ellipsoid between two parallels and two meridians, in closed form (Snyder 1987, equation 3-12)."""
    e = math.sqrt(F * (2 - F))

    def q(latitude: float) -> float:
        s = math.sin(math.radians(latitude))
        return (1 - e * e) * (s / (1 - e * e * s * s) + math.atanh(e * s) / e)

    return A * A * math.radians(degrees) * (q(north) - q(south)) / 2


def test_pixels_in_degrees_are_those_of_the_ellipsoid() -> None:
    cells = whole(grid("EPSG:4326", Affine(0.5, 0, -180, 0, -0.5, 90), (360, 720)))
    rows = [between_parallels(90 - (row + 1) / 2, 90 - row / 2, 0.5) for row in range(360)]
    np.testing.assert_allclose(cells, np.repeat(np.array(rows)[:, None], 720, axis=1), rtol=1e-9)


def test_web_mercator_shows_less_ground_than_its_metres_say() -> None:
    size = 2 * WORLD / 512
    cells = whole(grid("EPSG:3857", Affine(size, 0, -WORLD, 0, -size, WORLD), (512, 512)))
    edge = math.degrees(math.atan(math.sinh(math.pi)))  # Web Mercator takes the ellipsoid's latitude for a sphere's
    assert cells.sum() == pytest.approx(between_parallels(-edge, edge, 360), rel=1e-9)
    assert cells[64, 0] < 0.1 * size**2  # at 79° north


@pytest.mark.parametrize(
    ("crs", "left", "top", "pixel", "tolerance"),
    [
        ("EPSG:32633", 200_000, 6_000_000, 100, 1e-6),  # at the edge of its zone
        ("EPSG:32636", 453_000, 35_000, 0.3, 1e-6),
        ("EPSG:3413", -50_000, 50_000, 100, 1e-6),  # the pole in its middle
        ("EPSG:3857", 1_100_000, 8_000_000, 50, 1e-5),
        ("EPSG:32760", 300_000, 8_000_000, 1000, 1e-5),  # over the antimeridian
        ("EPSG:2263", 980_000, 200_000, 30, 1e-5),  # in feet
        ("EPSG:4326", 179.9, 60, 0.0002, 1e-5),
    ],
)
def test_a_scene_s_pixels_add_up_to_its_outline_s_area(crs: str, left: float, top: float, pixel: float, tolerance: float) -> None:
    count = 1000
    cells = whole(grid(crs, Affine(pixel, 0, left, 0, -pixel, top), (count, count), latitude=top))
    side = np.linspace(0, count, 501)
    none, full = np.zeros(501), np.full(501, count)
    x = left + pixel * np.concatenate([side, full, side[::-1], none])
    y = top - pixel * np.concatenate([none, side, full, side[::-1]])
    geodetic = CRS(crs).geodetic_crs
    area, _ = geodetic.get_geod().polygon_area_perimeter(*Transformer.from_crs(crs, geodetic, always_xy=True).transform(x, y))
    assert cells.sum() == pytest.approx(abs(area), rel=tolerance)


def test_a_turned_scene_shows_as_much_ground() -> None:
    turned = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(10, -10)
    straight = Affine.translation(500_000, 5_000_000) @ Affine.scale(10, -10)
    for transform in (turned, straight):
        np.testing.assert_allclose(whole(grid("EPSG:32633", transform, (9, 7))), 100 / 0.9996**2, rtol=1e-6)


def test_a_window_s_areas_are_a_part_of_the_whole() -> None:
    found = grid("EPSG:32633", Affine(1000, 0, 100_000, 0, -1000, 7_000_000), (300, 200))
    window = Window(0, 33, 17, 1, 120, 90)
    np.testing.assert_allclose(PixelAreas(found).cells(window), whole(found)[window.slices[1:]], rtol=1e-6)


def test_geodesics_agree_in_a_pixel() -> None:
    lon, lat = 32.5, 47.25
    cell = whole(grid("EPSG:4326", Affine(0.01, 0, lon, 0, -0.01, lat), (1, 1), lat))[0, 0]
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter([lon, lon, lon + 0.01, lon + 0.01], [lat, lat - 0.01, lat - 0.01, lat])
    assert cell == pytest.approx(area, rel=1e-6)


@pytest.mark.parametrize("degrees", [1.25, 0.75])
def test_pixels_whose_centres_are_the_poles_end_there(degrees: float) -> None:
    """The grid of ERA5: its first and last rows are half a pixel beyond the poles."""
    height, width = round(180 / degrees) + 1, round(360 / degrees)
    found = grid("EPSG:4326", Affine(degrees, 0, -180 - degrees / 2, 0, -degrees, 90 + degrees / 2), (height, width))
    cells = whole(found)
    edges = np.clip(90 + degrees / 2 - degrees * np.arange(height + 1), -90, 90)
    rows = [between_parallels(south, north, degrees) for north, south in itertools.pairwise(edges)]
    np.testing.assert_allclose(cells, np.repeat(np.array(rows)[:, None], width, axis=1), rtol=1e-9)


@pytest.mark.parametrize("crs", ["ESRI:54009", "EPSG:8857", "+proj=sinu +datum=WGS84", "ESRI:54030"])
@pytest.mark.parametrize("pixel", [200_000, 4000])  # the latter is interpolated
def test_pixels_off_the_globe_have_no_area(crs: str, pixel: float) -> None:
    back = Transformer.from_crs(CRS(crs).geodetic_crs, crs, always_xy=True)
    left, top = (-18_100_000.0, 9_100_000.0) if pixel > 1e5 else np.add(back.transform(-180, 70), (-90 * pixel, 45 * pixel))
    corner = Affine(pixel, 0, left, 0, -pixel, top)
    found = grid(crs, corner, (91, 181))
    cells = whole(found)
    to_world = Transformer.from_crs(crs, CRS(crs).geodetic_crs, always_xy=True)
    tenths = (np.mgrid[: 91 * 10, : 181 * 10] + 0.5) / 10
    x, y = corner.a * tenths[1] + corner.c, corner.e * tenths[0] + corner.f
    again_x, again_y = back.transform(*to_world.transform(x, y))
    on_map = np.abs(again_x - x) + np.abs(again_y - y) < 1
    share = on_map.reshape(91, 10, 181, 10).mean(axis=(1, 3))
    assert (share == 0).any()
    assert (cells[share == 0] == 0).all()
    assert (cells[share == 1] > 0).all()
    if "54030" not in crs:  # the others show areas in proportion, Mollweide's to those of a sphere
        assert np.median(np.abs(cells[share == 1] / pixel**2 - 1)) < 8e-3
        assert cells.sum() == pytest.approx((share * pixel**2).sum(), rel=8e-3)
    np.testing.assert_allclose(
        PixelAreas(found).cells(Window(0, 3, 5, 1, 40, 60)), cells[3:43, 5:65], rtol=1e-3, atol=pixel**2 / 50
    )


def test_a_scene_all_off_the_globe_has_no_area() -> None:
    assert (whole(grid("ESRI:54009", Affine(1000, 0, -18_000_000, 0, -1000, 9_000_000), (9, 7))) == 0).all()


@pytest.mark.parametrize(("crs", "left"), [("EPSG:3832", 3_100_000), ("EPSG:3857", WORLD - 80_000)])
def test_mercator_goes_on_past_the_antimeridian(crs: str, left: float) -> None:
    cells = whole(grid(crs, Affine(6000, 0, left, 0, -6000, 4_000_000), (30, 100)))
    np.testing.assert_allclose(cells, np.repeat(cells[:, :1], 100, axis=1), rtol=1e-9)
