import pytest

from voxtile.cases.windowing import Windowing
from voxtile.errors import ConfigError


def test_sides_are_those_of_a_box():
    assert Windowing.of([5, 6]).box == (1, 5, 6)
    assert Windowing.of([4, 5, 6]).box == (4, 5, 6)


@pytest.mark.parametrize(("axis", "names"), [("z", "zyx"), ("y", "yzx"), ("x", "yzx")])
def test_axes_of_the_volume_are_found_in_windows(axis, names):
    """Across sagittal slices (x) lies the window's first axis; its rows are z and its columns y."""
    found = Windowing.of([5, 6], axis)
    if axis == "x":
        assert [found.axis_of(name) for name in "xzy"] == ["z", "y", "x"]
    else:
        assert [found.axis_of(name) for name in names] == ["z", "y", "x"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (([5],), r"'data.window=\[5\]' must be"),
        (("big",), "'data.window=big' must be"),
        (([5, 0],), "must be"),
        (([5, True],), "must be"),
        (([5, 6], "w"), "'data.axis=w' is no axis of a volume; choose from z, y, x"),
        (([5, 6], "z", -1), "'data.neighbours=-1' must be a whole number from 0 to 16"),
        (([5, 6], "z", 1.5), "whole number"),
        (([4, 5, 6], "x"), "asks for boxes"),
        (([4, 5, 6], "z", 1), "asks for boxes"),
    ],
)
def test_what_makes_no_window_is_refused(given, found):
    with pytest.raises(ConfigError, match=found):
        Windowing.of(*given)
