import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

from voxtile.cases.grid import Grid, nested
from voxtile.cases.windowing import Windowing
from voxtile.data.pixel_sizes import mixed, pixel_sizes, squeezed, unlike
from voxtile.data.symmetry import Symmetry

SLICES, NEIGHBOURS, BOXES = Windowing((32, 32)), Windowing((32, 32), neighbours=1), Windowing((8, 32, 32))


@dataclass
class Case:
    """What is asked of a case here."""

    grid: Grid
    id: str = ""


def case(z, y, x, unit="mm"):
    return Case(Grid((4, 4, 4), nested(np.diag([x, y, z, 1.0])), unit))


TRAINED = pixel_sizes([case(3, 1, 1), case(5, 0.9, 0.8)])


def test_the_range_is_that_of_the_training_cases():
    assert TRAINED == {"unit": "mm", "smallest": [3, 0.9, 0.8], "largest": [5, 1, 1]}


def test_random_resolutions_widen_it():
    assert pixel_sizes([case(1, 10, 10, "m")], (0.5, 2.0)) == {"unit": "m", "smallest": [0.5, 5, 5], "largest": [2, 20, 20]}


@pytest.mark.parametrize("cases", [[case(1, 1, 1, "px")], [case(1, 1, 1), case(1, 1, 1, "m")]])
def test_without_a_unit_in_common_nothing_is_known_and_nothing_said(cases):
    assert pixel_sizes(cases) is None
    assert unlike(None, case(9, 9, 9), SLICES) == ""
    assert unlike(TRAINED, case(9, 9, 9, "px"), SLICES) == ""


@pytest.mark.parametrize("sides", [(3, 1, 1), (4, 0.95, 0.9), (7, 1.4, 0.6), (20, 1, 1)])
def test_alike_sizes_are_passed_over(sides):
    assert unlike(TRAINED, case(*sides), SLICES) == ""


@pytest.mark.parametrize(
    ("sides", "windowing", "said"),
    [
        ((4, 2, 2), SLICES, "voxels measure 2x2 mm in a slice, and in training they measured 0.9x0.8 to 1x1"),
        ((1, 1, 1), NEIGHBOURS, "voxels measure 1x1x1 mm (from slice to slice, then within one), and in training"),
        ((20, 1, 1), BOXES, "voxels measure 20x1x1 mm (z, y, x), and in training they measured 3x0.9x0.8 to 5x1x1"),
    ],
)
def test_what_a_network_has_not_seen_is_told_with_what_to_do(sides, windowing, said):
    sentence = unlike(TRAINED, case(*sides), windowing)
    assert said in sentence
    assert "data.spacing=median" in sentence


@pytest.mark.parametrize(
    ("train", "val", "windowing", "scales", "said"),
    [
        ([(1, 10, 10), (1, 10, 10), (1, 20, 20)], [], SLICES, None, "1 training or .* 10x10 m: x2 (20x20 m). .*resolution=10'"),
        ([(1, 10, 10)], [(1, 5, 5), (1, 9, 9)], SLICES, None, "1 training or validation case .*: x1 (5x5 m)"),
        ([(1, 10, 10), (1, 10, 10), (1, 20, 20)], [], SLICES, (0.5, 1.5), ""),
        ([(1, 10, 10)], [(1, 14, 14)], SLICES, None, ""),
        ([(1, 11.13, 9), (1, 11.13, 7)], [], SLICES, None, ""),  # one raster in degrees, at two latitudes
        ([(5, 1, 1), (5.4, 1, 1), (4.1, 1, 1), (1, 1, 1)], [], SLICES, None, ""),
        ([(5, 1, 1), (5.4, 1, 1), (4.1, 1, 1)], [], BOXES, None, ""),
        ([(5, 1, 1), (5, 1, 1), (1, 1, 1)], [], BOXES, None, "5x1x1 mm (z, y, x): x2 (1x1x1 mm). .*'data.spacing=median'"),
        ([(5, 1, 1), (5, 1, 1)], [(5, 2, 2)], NEIGHBOURS, None, "5x1x1 mm (from slice to slice, then within one): x2 (5x2x2 mm)"),
    ],
)
def test_cases_unlike_most_of_the_training_are_told_with_what_to_do(train, val, windowing, scales, said):
    unit = "m" if train[0][0] == 1 else "mm"
    cases = [replace(case(*sides, unit), id=f"x{number}") for number, sides in enumerate([*train, *val])]
    found = mixed(cases[: len(train)], cases[len(train) :], windowing, scales)
    assert len(found) == bool(said)
    if said:
        assert re.search(re.escape(said).replace(r"\.\*", ".*"), found[0])


def test_of_cases_without_a_unit_in_common_no_size_is_told():
    assert mixed([case(1, 1, 1, "px"), case(1, 9, 9, "px")], [], SLICES) == []
    assert mixed([case(1, 1, 1)], [case(9, 9, 9, "px")], SLICES) == []


def test_scenes_are_told_in_metres():
    sentence = unlike(pixel_sizes([case(1, 10, 10, "m")]), case(1, 0.5, 0.5, "m"), SLICES)
    assert "its pixels measure 0.5x0.5 m, and in training they measured 10x10." in sentence
    assert "data.scene.resolution=10" in sentence


@pytest.mark.parametrize(
    ("sides", "unit", "rot90", "said"),
    [
        ((1, 11.13, 5.57), "m", True, "of x1, 11.1x5.57 m (y, x): .*squeezed 2 times.*'data.scene.resolution=11.13'"),
        ((3, 1, 1.5), "mm", True, "of x1, 1x1.5 mm (y, x): .*squeezed 1.5 times.*'data.spacing'"),
        ((1, 11.13, 5.57), "m", False, None),
        ((1, 10, 9.5), "m", True, None),
        ((9, 1, 1), "mm", True, None),
    ],
)
def test_quarter_turns_of_pixels_that_are_not_square_are_told(sides, unit, rot90, said):
    cases = [case(1, 1, 1, unit), case(*sides, unit)]
    for number, each in enumerate(cases):
        each.id = f"x{number}"
    found = squeezed(cases, Symmetry(rot90=rot90))
    assert len(found) == (said is not None)
    if said:
        assert re.search(said.replace("(", r"\(").replace(")", r"\)"), found[0])
        assert "pixels of 1 training case are not square" in found[0]
