from hypothesis import given
from hypothesis import strategies as st

from tests.testers.formats import few
from voxtile.cases.names import natural_key


@few
@given(st.lists(st.integers(0, 300), min_size=2, max_size=8, unique=True), st.booleans())
def test_names_are_ordered_by_their_numbers(numbers, padded):
    names = [f"Slice_{number:03d}_mask.png" if padded else f"Slice_{number}_mask.png" for number in numbers]
    assert sorted(names, key=natural_key) == [name for _, name in sorted(zip(numbers, names, strict=True))]


def test_names_that_begin_with_numbers_and_differ_in_case_can_be_compared():
    assert sorted(["b", "10", "2a", "A2", "a10", "", "2"], key=natural_key) == ["", "2", "2a", "10", "A2", "a10", "b"]
