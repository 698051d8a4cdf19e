"""Numbers and names that users give as settings."""

import math

import pytest

from voxtile.errors import ConfigError
from voxtile.values import is_number, is_whole, refuse_unknown


@pytest.mark.parametrize("value", [0, -3, 10**20])
def test_whole_numbers(value: int) -> None:
    assert is_whole(value)
    assert is_whole(value, value)
    assert not is_whole(value, value + 1)
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, None, "3", [3], math.nan, math.inf, -math.inf])
def test_what_is_no_number(value: object) -> None:
    assert not is_whole(value)
    assert not is_number(value)


def test_the_bounds_belong_to_a_range() -> None:
    assert not is_whole(1.0)
    assert is_number(0.5, 0.5, 0.5)
    assert not is_number(0.5, 0.51)
    assert not is_number(0.5, high=0.49)


def test_an_unknown_key_is_named_with_its_neighbour() -> None:
    refuse_unknown("data.sampling", ["by"], ("by", "jitter"))
    with pytest.raises(ConfigError) as error:
        refuse_unknown("data.sampling", ["by", "jiter"], ("by", "jitter"))
    assert str(error.value) == "'data.sampling' takes no 'jiter'. Did you mean 'jitter'? It takes by, jitter."
