"""From probabilities to classes, without regions and with them."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from voxtile.cases.window import Window
from voxtile.inference.decoding import (
    best_class,
    best_class_on_device,
    class_in_regions,
    class_in_regions_on_device,
    classes_of_logits,
)  # fmt: skip
from voxtile.inference.predictor import Band

NESTED = [(1, 2, 3), (2, 3), (3,)]  # as in BraTS: whole tumour, core, enhancing


def probabilities(count: int, shape: tuple[int, ...], sharpness: float = 2.0) -> NDArray[np.float32]:
    generator = torch.Generator().manual_seed(1)
    return (sharpness * torch.randn(count, *shape, generator=generator)).softmax(dim=0).numpy()


def thresholded(values: NDArray[np.float32], members: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where a region is more probable than not."""
    return sum(values[index] for index in members) > 0.5


def pixels(*values: list[float]) -> NDArray[np.float32]:
    """Probabilities [K, 1, 1, pixels] of some pixels."""
    return np.array(values, dtype=np.float32).T[:, None, None]


def test_a_device_finds_the_same_class_as_the_processor() -> None:
    equal = np.random.default_rng(0).integers(0, 4, (6, 2, 33, 65)).astype(np.float32)  # often equally probable
    assert np.array_equal(best_class_on_device(torch.from_numpy(equal)).numpy(), best_class(equal))


@pytest.mark.parametrize("regions", [NESTED, [(1, 2), (1,), (2,)], [tuple(range(first, 14)) for first in range(1, 14)]])
def test_a_device_finds_the_same_class_in_regions(regions: list[tuple[int, ...]]) -> None:
    values = probabilities(1 + max(regions[0]), (2, 37, 50), sharpness=3.0)
    values[:, :, 5] = 1 / len(values)
    found = class_in_regions_on_device(torch.from_numpy(values), regions)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), class_in_regions(values, regions))


def test_the_best_class_is_the_first_maximum() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 30):
        values = rng.integers(0, 4, (count, 2, 37, 11)).astype(np.float32)  # many ties
        np.testing.assert_array_equal(best_class(values), values.argmax(axis=0))


@pytest.mark.parametrize("regions", [NESTED, NESTED[::-1], [(1, 2, 3), (3,)], [(1, 2, 3, 4, 5), (2, 3, 4, 5), (3,)]])
def test_of_nested_regions_a_map_has_exactly_those_above_a_half(regions: list[tuple[int, ...]]) -> None:
    values = probabilities(6 if 5 in regions[0] else 4, (3, 37, 50))
    found = class_in_regions(values, regions)
    for members in regions:
        inside = np.isin(found, members)
        assert 0.1 < inside.mean() < 0.9
        np.testing.assert_array_equal(inside, thresholded(values, members))
    assert (found != best_class(values)).any()


def test_rounding_at_a_half_does_not_take_nested_regions_apart() -> None:
    # Probabilities whose sums lie a few units in the last place around a half.
    rng = np.random.default_rng(2)
    parts = rng.random((3, 1, 64, 500), dtype=np.float32)
    values = np.float32(0.5) * parts / parts.sum(axis=0) + np.spacing(np.float32(0.125)) * rng.integers(-4, 5, parts.shape)
    values = np.concatenate([1 - values.sum(axis=0, keepdims=True), values]).astype(np.float32)
    values[1, :, :32] = 0  # where the whole is as large as the core
    found = class_in_regions(values, NESTED)
    assert 0.1 < thresholded(values, NESTED[0]).mean() < 0.9
    for members in NESTED:
        np.testing.assert_array_equal(np.isin(found, members), thresholded(values, members))


def test_of_the_classes_in_the_right_regions_it_is_the_most_probable() -> None:
    values = pixels([0.4, 0.15, 0.25, 0.2])
    assert class_in_regions(values, [(1, 2, 3)]).item() == 2  # 0.6 for the region, although the background is 0.4
    assert class_in_regions(values, [(1, 2)]).item() == 0  # 0.4 for the region; the background is ahead of class 3
    assert class_in_regions(pixels([0.2, 0.4, 0.4]), [(1, 2)]).item() == 1


def test_regions_that_contradict_each_other_leave_the_most_probable_class() -> None:
    # The first two pixels are in the whole and in neither of the two that it is made of: there is no such class.
    values = pixels([0.3, 0.32, 0.38], [0.4, 0.3, 0.3], [0.1, 0.3, 0.6])
    assert class_in_regions(values, [(1, 2), (1,), (2,)]).flatten().tolist() == [2, 0, 2]


def test_many_regions_are_told_apart() -> None:
    values = probabilities(14, (2, 20, 20), sharpness=8.0)
    chain = [tuple(range(first, 14)) for first in range(1, 14)]  # more than a byte has bits
    found = class_in_regions(values, chain)
    for members in chain:
        np.testing.assert_array_equal(np.isin(found, members), thresholded(values, members))


@pytest.mark.parametrize("space", [(9, 11), (5, 9, 40)])
def test_logits_are_decided_like_probabilities(space: tuple[int, ...]) -> None:
    logits = torch.randn(2, 4, *space, generator=torch.Generator().manual_seed(4))
    assert torch.equal(classes_of_logits(logits, []), logits.argmax(dim=1))
    found = classes_of_logits(logits, NESTED)
    assert found.shape == (2, *space)
    for number in (0, 1):
        volume = logits[number].softmax(dim=0).view(4, -1, *space[-2:]).numpy()
        np.testing.assert_array_equal(found[number].view(volume.shape[1:]), class_in_regions(volume, NESTED))


def test_a_band_has_its_regions_and_keeps_what_holds_no_data() -> None:
    values = probabilities(4, (1, 20, 12))
    valid = np.ones((1, 20, 12), dtype=np.bool_)
    valid[0, 3:5] = False
    values[:, ~valid] = np.nan
    window = Window.whole((1, 20, 12))
    plain, united = (Band(window, torch.from_numpy(values), valid, regions=regions).classes() for regions in ((), NESTED))
    assert (plain[~valid] == 255).all()
    assert (united[~valid] == 255).all()
    np.testing.assert_array_equal(plain[valid], best_class(values)[valid])
    np.testing.assert_array_equal(united[valid], class_in_regions(values, NESTED)[valid])
    assert (plain != united).any()
