import pytest

from voxtile.cases.colors import default_colors


@pytest.mark.parametrize("count", [1, 3, 10, 40])
def test_default_colours_are_as_many_as_asked_for_and_distinct(count):
    colors = default_colors(count)
    assert len(set(colors)) == len(colors) == count
    assert all(0 <= value < 256 for color in colors for value in color)
    assert default_colors(50)[:count] == colors
