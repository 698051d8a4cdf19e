"""Running statistics that are measured anew, and networks that keep none."""

import pytest
import torch
from torch import nn

from voxtile.training.norms import measurable, measure


class Frozen(nn.BatchNorm2d):
    """Stays in evaluation."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 1), nn.BatchNorm2d(1, track_running_stats=False), Frozen(1)])
def test_nothing_is_read_where_no_statistics_can_be_measured(norm: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), norm)
    network.eval()
    images = iter([torch.zeros(1, 1, 2, 2)])
    measure(network, images, network)
    assert not measurable(network)
    assert len(list(images)) == 1


@pytest.mark.parametrize("training", [True, False])
def test_looking_for_what_can_be_measured_leaves_it_as_it_was(training: bool) -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), Frozen(1)).train(training)
    assert measurable(network) == [network[0]]
    assert network[0].training == training
    assert not network[1].training
