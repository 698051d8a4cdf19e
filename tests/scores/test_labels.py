"""Labels are known again, however they are read, and told from others."""

import numpy as np
import pytest

from voxtile.cases.window import IGNORE, Window
from voxtile.scores.labels import MODULUS, label_sum

SHAPE = (3, 41, 30)


def whole(label: np.ndarray) -> int:
    return label_sum(label, Window.whole(label.shape))


@pytest.fixture
def label() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.where(rng.random(SHAPE) < 0.2, IGNORE, rng.integers(0, 5, SHAPE)).astype(np.uint8)


@pytest.mark.parametrize("steps", [(1, 7, 30), (3, 10, 11)])
def test_the_sum_is_that_of_any_parts(label: np.ndarray, steps: tuple[int, int, int]) -> None:
    total = 0
    for z in range(0, SHAPE[0], steps[0]):
        for y in range(0, SHAPE[1], steps[1]):
            for x in range(0, SHAPE[2], steps[2]):
                part = label[z : z + steps[0], y : y + steps[1], x : x + steps[2]]
                total += label_sum(part, Window.of((z, y, x), part.shape))
    assert total % MODULUS == whole(label)


def test_the_definition_pixel_by_pixel() -> None:
    label = np.array([[[0, 3], [IGNORE, 1]]], dtype=np.uint8)
    ones = {place: label_sum(np.zeros((1, 1, 1), np.uint8), Window(0, *place, 1, 1, 1)) for place in ((0, 0), (0, 1), (1, 1))}
    assert whole(label) == (ones[0, 0] + 4 * ones[0, 1] + 2 * ones[1, 1]) % MODULUS


def test_labels_with_the_same_number_of_pixels_per_class_are_told_apart(label: np.ndarray) -> None:
    label[0, 0, :2] = 1, 2
    swapped = label.copy()
    swapped[0, 0, :2] = 2, 1
    others = [swapped, *(np.flip(label, axis) for axis in range(3)), np.roll(label, 1, axis=2), label.reshape(3, 30, 41)]
    assert len({whole(each) for each in (label, *others)}) == 7
