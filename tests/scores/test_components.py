"""Components found slab by slab against scipy's labelling of the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from voxtile.scores.components import Components, slab_axis


def whole(array: np.ndarray, classes: tuple[int, ...], corners: bool) -> tuple[np.ndarray, list[int]]:
    """Ids class by class, each by one call for the whole array, and the class of each id."""
    ids, of = np.zeros(array.shape, dtype=np.int64), [0]
    for index in classes:
        found, count = ndimage.label(array == index, np.ones((3, 3, 3)) if corners else None)
        ids[found > 0] = found[found > 0] + len(of) - 1
        of += [index] * count
    return ids, of


def by_slabs(array: np.ndarray, classes: tuple[int, ...], corners: bool, cuts: list[int]) -> tuple[np.ndarray, list[int]]:
    axis = slab_axis(array.shape)
    components = Components(classes, corners, axis)
    ids = np.concatenate([components.add(slab) for slab in np.split(array, cuts, axis)], axis)
    final, of = components.joined()
    return final[ids], of.tolist()


@given(st.integers(0, 10**6), st.sampled_from([(1, 24, 17), (9, 8, 7)]), st.booleans(), st.sampled_from([0.3, 0.5, 0.8]))
def test_ids_are_those_of_the_whole(seed: int, shape: tuple[int, int, int], corners: bool, share: float) -> None:
    rng = np.random.default_rng(seed)
    array = np.where(rng.random(shape) < share, rng.integers(1, 4, shape), 0).astype(np.uint8)
    length = shape[slab_axis(shape)]
    cuts = sorted(set(rng.integers(1, length, rng.integers(0, 6)).tolist()))
    classes = (1, 3)
    ids, of = by_slabs(array, classes, corners, cuts)
    expected, expected_of = whole(array, classes, corners)
    np.testing.assert_array_equal(ids, expected)
    assert of == expected_of


def test_arms_that_meet_late_are_one_object_and_corners_count_only_when_asked_for() -> None:
    array = np.array([[1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]], dtype=np.uint8)[None]
    assert by_slabs(array, (1,), False, [1, 2, 3])[1] == [0, 1, 1]
    assert by_slabs(array, (1,), True, [1, 2, 3])[1] == [0, 1]


@pytest.mark.parametrize("fill", [0, 255])
def test_a_map_without_objects_has_none(fill: int) -> None:
    ids, of = by_slabs(np.full((1, 6, 5), fill, dtype=np.uint8), (1, 2), True, [3])
    assert not ids.any()
    assert of == [0]
