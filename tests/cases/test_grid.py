import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.cases.grid import CanonicalGrid, Grid, StoredGrid, WorkingGrid, degree_metres, plain_affine

quick = settings(max_examples=50, deadline=None)


def turned(degrees, spacing, origin=(0.0, 0.0, 0.0)):
    """Affine of a grid with `spacing` (x, y, z), turned about z."""
    a = math.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]]) @ np.diag(spacing)
    matrix[:3, 3] = origin
    return tuple(map(tuple, matrix.tolist()))


def test_a_plain_grid_has_its_spacing():
    assert Grid((2, 3, 4), plain_affine((3.0, 2.0, 0.5))).spacing == (3.0, 2.0, 0.5)


@quick
@given(st.floats(-180, 180), st.tuples(*[st.floats(0.1, 10)] * 3))
def test_turning_and_mirroring_keep_the_spacing(degrees, spacing):
    x, y, z = spacing
    for sign in (1, -1):
        grid = Grid((2, 3, 4), turned(degrees, (sign * x, y, z)), "mm")
        assert grid.spacing == pytest.approx((z, y, x))


@quick
@given(st.floats(-180, 180), st.tuples(*[st.floats(0.1, 10)] * 3))
def test_of_axes_at_right_angles_steps_and_cells_are_those_of_the_spacing(degrees, spacing):
    grid = Grid((2, 3, 4), turned(degrees, spacing), "mm")
    assert not grid.is_sheared
    np.testing.assert_array_equal(grid.steps, np.diag(grid.spacing))
    assert grid.cell() == math.prod(grid.spacing)
    assert grid.cell(planar=True) == math.prod(grid.spacing[1:])


def test_a_sheared_pixel_is_smaller_than_its_edges_say():
    tilt = math.radians(25)
    affine = np.array(turned(30, (0.5, 0.8, 1)))
    affine[:3, 2] = 3 * np.array([0, math.sin(tilt), math.cos(tilt)])  # slices 3 mm apart along the tilted axis
    grid = Grid((2, 3, 4), tuple(map(tuple, affine.tolist())), "mm")
    assert grid.is_sheared
    assert grid.spacing == pytest.approx((3, 0.8, 0.5))
    assert grid.cell() == pytest.approx(3 * 0.8 * 0.5 * math.cos(tilt)) == abs(np.linalg.det(affine[:3, :3]))
    assert grid.cell(planar=True) == pytest.approx(0.8 * 0.5)
    places = np.array([[1, 2, 3], [0, 1, 0]])  # (z, y, x)
    np.testing.assert_allclose(places @ grid.steps, places[:, ::-1] @ affine[:3, :3].T)
    shifted = Grid((1, 3, 4), ((0.3, 0.3, 0, 0), (0, 0.4, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)), "m", "feet", (2.0, 1.0))
    assert shifted.cell(planar=True) == pytest.approx(0.6 * 0.4)  # a parallelogram


def test_spacing_counts_metres_where_the_map_unit_is_another():
    feet = Grid((1, 5, 5), turned(0, (10, -10, 1)), "m", "feet", (0.3048, 0.3048))
    assert feet.spacing == pytest.approx((1, 3.048, 3.048))
    degrees = Grid((1, 5, 5), turned(0, (0.001, -0.001, 1)), "m", "EPSG:4326", degree_metres(60.0))
    assert degrees.spacing == pytest.approx((1, 111.32, 55.66), rel=1e-4)


@pytest.mark.parametrize("latitude", [0.0, 45.0, -45.0, 89.9])
def test_degrees_of_longitude_shrink_towards_the_poles(latitude):
    # On a sphere of radius R a degree of latitude is 2πR/360, of longitude cos(latitude) times that.
    circle = 2 * math.pi * 6_371_000 / 360
    along_x, along_y = degree_metres(latitude)
    assert along_y == pytest.approx(circle, rel=2e-3)
    assert along_x == pytest.approx(circle * math.cos(math.radians(latitude)), rel=2e-3)


def test_the_footprint_reaches_to_the_outer_edges():
    assert Grid((1, 3, 4), turned(0, (10, -10, 1), (5, 95, 0))).footprint == (0, 70, 40, 100)
    left, bottom, right, top = Grid((1, 2, 2), turned(45, (1, 1, 1))).footprint
    assert (right - left, top - bottom) == pytest.approx((2 * math.sqrt(2),) * 2)


@quick
@given(st.floats(0, 3), st.floats(0.2, 5))
def test_a_moved_grid_is_as_many_pixels_away_as_it_was_moved(pixels, spacing):
    here = Grid((3, 4, 5), turned(30, (spacing, 2 * spacing, 3 * spacing)), "mm")
    there = Grid((3, 4, 5), turned(30, (spacing, 2 * spacing, 3 * spacing), (0, pixels * spacing, 0)), "mm")
    assert here.corner_distance(there) == pytest.approx(pixels, abs=1e-9)
    assert here.corner_distance(here) == 0


def test_a_turned_grid_is_farthest_away_at_its_far_corner():
    here, there = (Grid((1, 11, 11), turned(degrees, (1, 1, 1))) for degrees in (0, 1))
    assert here.corner_distance(there) == pytest.approx(2 * math.sin(math.radians(0.5)) * math.hypot(10, 10))


def test_the_thickness_of_a_single_slice_is_no_measure_of_distance():
    here = Grid((1, 11, 11), turned(0, (10, 10, 1)))
    assert here.corner_distance(Grid((1, 11, 11), turned(0, (10, 10, 1), (5, 0, 0)))) == pytest.approx(0.5)


def test_the_kinds_of_grids_are_never_equal():
    assert StoredGrid((1, 2, 3), plain_affine()) != CanonicalGrid((1, 2, 3), plain_affine())
    assert StoredGrid((1, 2, 3), plain_affine()) == StoredGrid((1, 2, 3), plain_affine())


def test_a_grid_as_another_kind_keeps_everything():
    stored = StoredGrid((1, 2, 3), turned(30, (2.0, -2.0, 1)), "m", "EPSG:3857", (0.5, 0.6))
    working = stored.as_kind(WorkingGrid)
    assert type(working) is WorkingGrid
    assert vars(working) == vars(stored)
