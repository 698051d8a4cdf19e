import numpy as np
import pytest
from affine import Affine

from voxtile.cases.grid import StoredGrid
from voxtile.cases.longitudes import beside, east_end, unrolled
from voxtile.cases.raster import grid_at


def test_longitudes_are_named_by_the_turn_around_a_middle():
    longitudes = np.array([-190.0, -180.0, 0.0, 170.0, 359.0, 550.0])
    for middle in (-400.0, -10.0, 0.0, 175.0):
        found = beside(longitudes, middle)
        assert ((middle - 180 <= found) & (found < middle + 180)).all()
        np.testing.assert_allclose((found - longitudes) % 360, 0)
    assert beside(np.array([190.0]), -170.0) == -170.0


def test_rings_go_on_past_the_antimeridian_and_those_around_a_pole_are_told():
    across, around, plain = [170, -170, -175, 170], [0, 120, -120, 0], [10, 20, 10]
    longitudes, turns = unrolled(np.array([*across, *around, *plain], dtype=float), np.array([4, 4, 3]))
    assert longitudes.tolist() == [170, 190, 185, 170, 0, 120, 240, 360, 10, 20, 10]
    assert turns.tolist() == [0, 1, 0]
    assert [len(each) for each in unrolled(np.empty(0), np.empty(0, dtype=np.int64))] == [0, 0]


@pytest.mark.parametrize(("left", "right", "end"), [(170, -170, 190), (10, 20, 20), (-180, 180, 180)])
def test_an_east_end_lies_east(left, right, end):
    assert east_end(left, right) == end


def test_a_grid_s_transform_begins_at_a_corner():
    transform = Affine(3.0, 1.0, 100.0, -2.0, 5.0, 7.0)
    grid = grid_at(StoredGrid, (4, 6), transform, StoredGrid((1, 1, 1), np.eye(4).tolist()))
    assert grid.transform.almost_equals(transform)
    assert grid.transform @ (0.5, 0.5) == pytest.approx(tuple(grid.matrix[:2, 3]))
