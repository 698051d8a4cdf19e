"""What is done at test time: Monte-Carlo dropout, turned copies, the image that the CRF sees."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.testers.memory import memory_case
from tests.testers.networks import noise
from voxtile.data.normalise import Intensity
from voxtile.inference.predictor import Predictor
from voxtile.inference.procedure import Procedure, crf_image, dropout_on, monte_carlo, rotated_mean

SIZE = (1, 24, 24)
SCALE = Intensity((0.0,) * 2, (255.0,) * 2, (127.0,) * 2, (60.0,) * 2)


class Dropping(nn.Module):
    """A network of single pixels whose features are dropped."""

    dims, margin, stochastic = 2, 0, True

    def __init__(self):
        super().__init__()
        self.features, self.norm, self.drop, self.score = nn.Conv2d(2, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 3, 1)
        for number, value in enumerate(self.parameters()):
            with torch.no_grad():
                value.copy_(noise(*value.shape, seed=number))

    def forward(self, image):
        return self.score(self.drop(self.norm(self.features(image)).relu()))


def predicted(network, procedure, batch_size=3, shape=(1, 40, 50)):
    array = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.uint8)
    predictor = Predictor(network, SIZE, batch_size=batch_size, procedure=procedure, workers=0)
    bands = list(predictor.bands(memory_case("a", array=array), SCALE))
    variances = None if bands[0].variance is None else torch.cat([band.variance for band in bands], dim=1)
    return torch.cat([band.probabilities for band in bands], dim=2), variances


def test_only_dropout_is_switched_on_and_off_again():
    network = Dropping().eval()
    with dropout_on(network):
        assert [layer.training for layer in (network.drop, network.norm, network)] == [True, False, False]
    assert not network.drop.training


def test_samples_give_the_mean_and_the_variance_of_passes_with_dropout():
    network, images = Dropping().eval(), noise(2, 2, 6, 5)
    passes = []

    def softmax(image):
        with torch.no_grad():
            passes.append(torch.softmax(network(image), dim=1)[0])
        return passes[-1][None]

    found = monte_carlo(softmax, network, images, torch.zeros(2, 3, dtype=torch.int64), 5)
    first = torch.stack(passes[:5])
    assert not torch.equal(first[0], first[1])
    torch.testing.assert_close(found[0, :3], first.mean(dim=0))
    torch.testing.assert_close(found[0, 3], first.var(dim=0, correction=0).mean(dim=0), rtol=1e-4, atol=1e-6)


def test_samples_depend_on_the_window_and_not_on_the_batch_or_what_was_drawn_before():
    results, network = [], Dropping()
    for batch_size in (1, 4):
        torch.manual_seed(batch_size)
        state = torch.get_rng_state()
        results.append(predicted(network, Procedure(samples=4), batch_size))
        assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    probabilities, variance = results[0]
    torch.testing.assert_close(probabilities.sum(dim=0), torch.ones(1, 40, 50))
    assert variance.max() > 1e-3
    assert predicted(Dropping(), None)[1] is None


class Blurring(nn.Module):
    """A network that sees alike in all directions: a round blur that says one of two classes."""

    dims, margin = 2, 4

    def __init__(self):
        super().__init__()
        grid = torch.arange(-4, 5.0)
        line = torch.exp(-(grid**2) / 4)
        self.kernel = nn.Parameter((torch.outer(line, line) / line.sum() ** 2)[None, None])

    def forward(self, image, context=0):
        assert context == self.margin
        level = nn.functional.conv2d(image[:, :1], self.kernel)
        return torch.cat([level, -level], dim=1)


@pytest.mark.parametrize("shape", [(1, 40, 50), (1, 20, 50), (1, 50, 8), (1, 10, 12)])
@pytest.mark.parametrize("rotations", [2, 4])
def test_copies_turned_by_quarters_change_nothing_for_a_network_that_sees_alike_in_all_directions(rotations, shape):
    found, expected = (predicted(Blurring(), Procedure(rotations=n), shape=shape)[0] for n in (rotations, 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_four_copies_are_the_mean_over_quarter_turns_of_a_network_that_sees_sideways():
    kernel = noise(3, 2, 3, 3)

    def softmax(image):
        return torch.softmax(nn.functional.conv2d(image, kernel, padding=1), dim=1)

    image = noise(2, 2, 20, 20)
    turned = [softmax(image.rot90(k, dims=(2, 3))).rot90(-k, dims=(2, 3)) for k in range(4)]
    expected = torch.stack(turned).mean(dim=0)
    torch.testing.assert_close(rotated_mean(softmax, image, (20, 20), 4), expected, rtol=1e-4, atol=1e-4)
    assert (expected - turned[0]).abs().max() > 0.1


def test_seven_copies_are_turned_back_to_where_they_came_from():
    blob = torch.exp(-((torch.arange(60.0)[:, None] - 33) ** 2 + (torch.arange(60.0) - 24) ** 2) / 60)[None, None]

    def softmax(image):
        return torch.cat([image, 1 - image], dim=1)

    found = rotated_mean(softmax, blob, (36, 36), 7)
    torch.testing.assert_close(found[:, :1], blob[:, :, 12:48, 12:48], rtol=0, atol=0.02)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, 36, 36))


def test_turned_copies_want_the_windows_diagonal_around_it():
    _, y, x = Procedure(rotations=7).margin((1, 30, 40))
    assert 30 + 2 * y >= math.hypot(30, 40) <= 40 + 2 * x
    assert Procedure().margin((1, 30, 40)) == (0, 0, 0)


def test_the_crf_sees_the_range_that_normalisation_keeps_as_0_to_255():
    image = torch.tensor([[[100.0, 150.0, 900.0]]])
    assert crf_image(image, Intensity((100.0,), (200.0,), (150.0,), (10.0,))).tolist() == [[[0.0, 127.5, 255.0]]]
    open_ends = Intensity((-math.inf,), (math.inf,), (150.0,), (25.0,))
    assert crf_image(image, open_ends).tolist() == [[[0.0, 127.5, 255.0]]]
    eight = torch.tensor([[[0, 100, 255]]], dtype=torch.uint8)
    assert crf_image(eight, open_ends).tolist() == [[[0.0, 100.0, 255.0]]]
