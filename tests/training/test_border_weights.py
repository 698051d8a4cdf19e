import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.cases.window import IGNORE
from voxtile.training import border_weights as module
from voxtile.training.border_weights import border_weights


def pixels_of_objects(sample, background):
    """The pixels of each object, by walking from side to side."""
    left = {at for at in np.ndindex(sample.shape) if sample[at] not in (background, IGNORE)}
    found = []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            here = edge.pop()
            part.add(here)
            for axis, step in itertools.product(range(sample.ndim), (-1, 1)):
                there = tuple(a + step * (i == axis) for i, a in enumerate(here))
                if there in left and sample[there] == sample[here]:
                    left.remove(there)
                    edge.append(there)
        found.append(part)
    return found


def by_definition(sample, background, w0, sigma):
    objects, weights = pixels_of_objects(sample, background), np.zeros(sample.shape)
    for at in np.ndindex(sample.shape):
        if sample[at] == background and len(objects) > 1:
            first, second = sorted(min(math.dist(at, other) for other in part) for part in objects)[:2]
            weights[at] = w0 * math.exp(-((first + second) ** 2) / (2 * sigma**2))
    return weights


def blobs(*shape, seed, values=(0, 0, 0, 1, 2, IGNORE), size=3):
    """Random labels in patches of up to `size` pixels."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for at in rng.integers(0, shape, (math.prod(shape) // 4, len(shape))):
        box = tuple(slice(a, a + n) for a, n in zip(at, rng.integers(1, size + 1, len(shape)), strict=True))
        label[box] = rng.choice(values)
    return label


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    seed=st.integers(0, 10**6),
    background=st.sampled_from([0, 1, 7]),
    w0=st.sampled_from([10.0, 3.0]),
    sigma=st.sampled_from([5.0, 0.7]),
)
def test_weights_are_those_of_the_definition(shape, seed, background, w0, sigma):
    label = blobs(*shape, seed=seed)
    weights = border_weights(label[None], background, w0, sigma)
    np.testing.assert_allclose(weights[0], by_definition(label, background, w0, sigma), rtol=1e-6, atol=1e-7)


def test_with_dozens_of_objects_too():
    label = blobs(28, 30, seed=3, values=(0, 0, 1, 2), size=2)
    assert len(pixels_of_objects(label, 0)) > 32
    np.testing.assert_allclose(border_weights(label[None], 0)[0], by_definition(label, 0, 10, 5), rtol=1e-6, atol=1e-7)


def test_in_volumes_too():
    label = blobs(4, 6, 5, seed=1)
    assert len(pixels_of_objects(label, 0)) > 2
    np.testing.assert_allclose(border_weights(label[None], 0)[0], by_definition(label, 0, 10, 5), rtol=1e-6, atol=1e-7)


def test_a_gap_of_one_pixel_weighs_what_the_formula_says():
    label = torch.zeros(1, 1, 9, dtype=torch.uint8)
    label[..., 3] = label[..., 5] = 1
    weights = border_weights(label, 0)[0, 0].double()
    sums = torch.tensor([8.0, 6, 4, 0, 2, 0, 4, 6, 8], dtype=torch.float64)  # d1 + d2
    torch.testing.assert_close(weights, torch.where(sums > 0, 10 * torch.exp(-(sums**2) / 50), 0), rtol=1e-6, atol=0)


def test_a_diagonal_border_of_one_pixel_separates_two_objects():
    label = 1 - torch.eye(6, dtype=torch.uint8)[None]
    weights = border_weights(label, 0)
    assert torch.allclose(weights[0].diagonal(), torch.tensor(10 * math.exp(-4 / 50)))
    assert not weights[label == 1].any()


def test_neighbours_of_two_classes_are_two_objects_and_of_one_class_one():
    label = torch.tensor([[[0, 1, 1, 0]], [[0, 1, 2, 0]]], dtype=torch.uint8)
    weights = border_weights(label, 0)
    assert not weights[0].any()
    assert weights[1, 0].tolist() == pytest.approx([10 * math.exp(-9 / 50), 0, 0, 10 * math.exp(-9 / 50)])


def test_ignored_pixels_are_neither_object_nor_background():
    label = torch.tensor([[[IGNORE, 1, 0, IGNORE, 0]]], dtype=torch.uint8)
    assert not border_weights(label, 0).any()
    label[..., 4] = 1
    weights = border_weights(label, 0)
    assert weights.nonzero().tolist() == [[0, 0, 2]]


@pytest.mark.parametrize("label", [torch.zeros(2, 5, 6), torch.full((2, 5, 6), IGNORE), torch.ones(2, 5, 6), torch.zeros(0, 5, 6)])
@pytest.mark.parametrize("background", [0, 1, None])
def test_without_two_objects_there_is_no_weight(label, background):
    weights = border_weights(label.to(torch.uint8), background)
    assert weights.shape == label.shape
    assert weights.dtype == torch.float32
    assert not weights.any()


def test_without_a_background_there_is_no_weight():
    assert not border_weights(torch.tensor([[[0, 1, 0, 2]]], dtype=torch.uint8), None).any()


def test_each_sample_has_its_own_objects_and_the_label_is_left_as_it_was():
    label = np.stack([blobs(9, 9, seed=seed) for seed in range(3)])
    given = torch.from_numpy(label.copy())
    weights = border_weights(given, 0)
    assert torch.equal(weights, torch.cat([border_weights(sample[None], 0) for sample in given]))
    assert np.array_equal(given.numpy(), label)
    assert not weights.requires_grad


def test_two_distance_transforms_per_binary_digit_serve_any_number_of_objects(monkeypatch):
    label = np.zeros((1, 80, 80), np.uint8)
    label[:, 2::8, 2::8] = 1  # 100 objects
    sizes = []
    transform = module.ndimage.distance_transform_edt
    monkeypatch.setattr(module.ndimage, "distance_transform_edt", lambda x, **how: (sizes.append(x.shape), transform(x, **how))[1])
    border_weights(label, 0)
    assert sizes == [(80, 80)] * (1 + 2 * 7)


@pytest.mark.parametrize("wrong", [{"w0": -1.0}, {"sigma": 0.0}, {"label": torch.zeros(4)}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="border_weights takes a label"):
        border_weights(**({"label": torch.zeros(1, 4, 4), "background": 0} | wrong))
