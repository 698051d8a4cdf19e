"""Score maps: which pixels judge them, and what a network's output means to the trainer."""

import pytest
import torch

from voxtile.errors import ConfigError
from voxtile.models.network import Output, ScoreMap, margin_of, sampled, score_maps
from voxtile.models.unet import UNet
from voxtile.models.unet_paper import UNetPaper


def test_places_a_stride_apart_are_judged_by_the_nearest_pixel_and_those_past_the_end_by_none():
    assert sampled(5, 8, 33).tolist() == [0, 8, 16, 24, 32]
    assert sampled(5, 8, 32).tolist() == [0, 8, 16, 24, -1]
    assert sampled(4, 32 / 3, 33).tolist() == [0, 11, 21, 32]


def test_a_map_takes_the_labels_of_its_pixels():
    label = torch.arange(12, dtype=torch.uint8).view(1, 3, 4)
    found = ScoreMap(torch.zeros(1, 2, 2, 3), torch.tensor([2, -1]), torch.tensor([0, 3, -1])).label(label)
    assert found.tolist() == [[[8, 11, 255], [255, 255, 255]]]
    assert ScoreMap(torch.zeros(1, 2, 3, 4)).label(label) is label


def test_logits_are_one_map_of_the_images_size():
    logits = torch.zeros(1, 2, 3, 4)
    (only,) = score_maps(logits)
    assert (only.logits is logits, only.weight, only.rows) == (True, 1.0, None)
    maps = [ScoreMap(logits, weight=0.5)] * 2
    assert score_maps(Output(maps)) is maps


@pytest.mark.parametrize(
    ("network", "margin"),
    [(UNet(1, 2, 1 / 16, 1), (0, 0, 0)), (UNetPaper(1, 2, 0.01), (0, 92, 92)), (torch.nn.Identity(), (0,) * 3)],
)
def test_the_margin_lies_in_the_plane_of_a_network_that_sees_slices(network, margin):
    assert margin_of(network) == margin


@pytest.mark.parametrize("output", [(torch.zeros(1), torch.zeros(1)), {"out": torch.zeros(1)}])
def test_what_is_neither_logits_nor_an_output_is_refused(output: object) -> None:
    with pytest.raises(ConfigError, match=rf"returns a {type(output).__name__} in training; expected logits.*network.Output"):
        score_maps(output)
