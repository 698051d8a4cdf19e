"""How far a network sees: found by trying, against theory."""

import pytest
import torch
from torch import nn

from tests.testers.field import receptive_field
from tests.testers.networks import configured
from tests.testers.sequence import executed
from voxtile.errors import ConfigError
from voxtile.inference.field import reach_of


def stack(*layers, stride=1):
    network = nn.Sequential(*layers)
    network.stride = stride
    return network.eval()


def conv(kernel=3, dilation=1, stride=1, channels=(2, 2)):
    return nn.Conv2d(*channels, kernel, stride, dilation * (kernel // 2), dilation)


KNOWN = {
    "one pixel": (stack(conv(1)), 0),
    "3x3": (stack(conv()), 1),
    "five of 3x3": (stack(*(conv() for _ in range(5))), 5),
    "7x7 and ReLU": (stack(conv(7), nn.ReLU(), conv(7)), 6),
    "dilated by 4 and 8": (stack(conv(dilation=4), conv(dilation=8)), 12),
    "batch statistics that were learnt": (stack(conv(), nn.BatchNorm2d(2), nn.ReLU(), conv()), 2),
    # From the first of two pixels with one score: 1 to its right, and the next two.
    "pooled by 2, 3x3, repeated": (stack(nn.MaxPool2d(2), conv(), nn.Upsample(scale_factor=2), stride=2), 3),
    "strided by 2, repeated": (stack(conv(stride=2), nn.Upsample(scale_factor=2), stride=2), 2),
    "pooled by 2 and 2, repeated": (stack(nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Upsample(scale_factor=4), stride=4), 3),
    "wider than the first image that is tried": (stack(conv(dilation=150)), 150),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_reach_is_that_of_theory(name):
    network, reach = KNOWN[name]
    assert reach <= reach_of(network, 2) < reach + network.stride


@pytest.mark.parametrize(
    ("option", "changes", "mixed"),
    [
        ("unet", {"depth": 2}, 0),
        ("unet", {"depth": 4}, 0),
        ("fcn32s", {}, 32),
        ("deeplab_v1", {"width": 1 / 64}, 8),
        ("deeplab_v1_4x4", {"width": 1 / 64}, 8),
        ("deeplab_v1_msc", {"width": 1 / 64}, 8),
        ("deeplab_v2_vgg16", {"width": 1 / 64}, 8),
    ],  # the last step mixes coarse scores, FCN's 32 pixels apart, DeepLab's 8
)
def test_the_projects_networks_reach_half_the_field_that_their_operators_have(option, changes, mixed):
    network = configured(option, 3, 5, **{"width": 1 / 16} | changes).eval()
    half = receptive_field(executed(network, torch.empty(1, 3, 224, 224)), 5) // 2
    assert half <= reach_of(network, 3) < half + mixed + network.stride


def test_a_gradient_sees_no_farther():
    """The reach is a bound for every place that a pixel can have on the coarsest map."""
    torch.manual_seed(0)
    network = configured("unet", 2, 3, width=1 / 16, depth=2).double().eval()
    reach, side = reach_of(network.float(), 2), 128
    network.double()
    farthest = 0
    for y in range(60, 60 + network.stride):
        image = torch.rand(1, 2, side, side, dtype=torch.float64, requires_grad=True)
        network(image)[0, :, y, y].sum().backward()
        rows = image.grad[0].abs().amax(dim=(0, 2)).nonzero().flatten()
        farthest = max(farthest, y - int(rows.min()), int(rows.max()) - y)
    assert reach - network.stride < farthest <= reach


class Shrinking(nn.Module):
    """Convolutions without padding, which want their margin around the image."""

    margin, stride = 2, 1

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))

    def forward(self, image, context=0):
        assert context == self.margin
        return self.layers(image)


def test_what_the_margin_shows_is_no_halo():
    assert reach_of(Shrinking().eval(), 1) == 0


class Everything(nn.Module):
    def forward(self, image):
        return image - image.mean(dim=(2, 3), keepdim=True)


def test_a_network_that_sees_everything_is_told_apart():
    with pytest.raises(ConfigError, match=r"'halo=field' found no end .*Give the halo in pixels, or leave it out"):
        reach_of(Everything(), 1)


def test_a_network_that_sees_volumes_is_not_measured():
    network = nn.Conv3d(1, 2, 3)
    network.dims = 3
    with pytest.raises(ConfigError, match=r"sees volumes\. Give the halo in pixels"):
        reach_of(network, 1)
