"""Cases predicted by windows, against the network applied to a whole case at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from tests.testers.memory import memory_case
from voxtile.cases.window import Window
from voxtile.data.normalise import Intensity

CHANNELS, CLASSES = 2, 3
SCALE = Intensity((-np.inf,) * 2, (np.inf,) * 2, (100.0, 50.0), (60.0, 80.0))


class Convolutions(nn.Module):
    """Fixed convolutions that keep the size, with `margin` pixels of context: a 1x1 layer where it is 0."""

    def __init__(self, dims=2, margin=0):
        super().__init__()
        self.dims, self.margin, self.sent = dims, margin, []
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        generator = torch.Generator().manual_seed(0)
        channels = [CHANNELS, *[4] * max(margin - 1, 0), CLASSES]
        self.layers = nn.Sequential(*(conv(a, b, 3 if margin else 1) for a, b in pairwise(channels)))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5, generator=generator)
            nn.init.normal_(layer.bias, generator=generator)

    def forward(self, image, context=0):
        assert context == self.margin
        self.sent += [*image]
        return self.layers(image)


def case_of(shape, seed=0, valid=None, dtype=np.uint8):
    array = np.random.default_rng(seed).integers(0, 256, (CHANNELS, *shape)).astype(dtype)
    case = memory_case("a", array=array)
    if valid is not None:
        case.image.valid = valid
    return case


def joined(predictor, case):
    """Probabilities [K, D, H, W] and classes [D, H, W] of all bands, which must partition the case."""
    probabilities = np.full((CLASSES, *case.shape), -1, np.float32)
    classes, times = np.zeros(case.shape, np.uint8), np.zeros(case.shape, int)
    for band in predictor.bands(case, SCALE):
        assert band.probabilities.shape == (CLASSES, *band.window.size)
        assert band.probabilities.dtype == torch.float32
        probabilities[:, *band.window.slices] = band.probabilities
        classes[band.window.slices] = band.classes()
        times[band.window.slices] += 1
    assert (times == 1).all()
    return probabilities, classes


def whole(network, case):
    """What the network's layers say of the whole case at once, mirrored at its border."""
    pixels, valid = case.read(Window.whole(case.shape))
    image = (pixels - np.reshape(SCALE.mean, (-1, 1, 1, 1))) / np.reshape(SCALE.std, (-1, 1, 1, 1))
    image[:, ~valid] = 0
    margins = [(0, 0), (network.margin if network.dims == 3 else 0,) * 2, (network.margin,) * 2, (network.margin,) * 2]
    image = torch.from_numpy(np.pad(image, margins, mode="reflect")).float()
    with torch.inference_mode():
        if network.dims == 3:
            return torch.softmax(network.layers(image[None])[0], 0).numpy()
        return torch.softmax(network.layers(image.transpose(0, 1)).transpose(0, 1), 0).numpy()
