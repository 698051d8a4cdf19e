import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.testers.networks import NetworkTester, noise
from voxtile.models.sizes import crop_to, pad_to_multiple
from voxtile.models.unet import MaxPool3d, UNet

NORMS = ["batch", "instance", "group", "none"]


class TestUNet(NetworkTester):
    def make(self, in_channels, num_classes, dims=2):
        return UNet(in_channels, num_classes, width=4 / 64, depth=2, dims=dims)


class TestUNetWithInstanceNorm(NetworkTester):
    def make(self, in_channels, num_classes, dims=2):
        return UNet(in_channels, num_classes, width=6 / 64, depth=2, norm="instance", dims=dims)


class TestUNetWithGroupNorm(NetworkTester):
    def make(self, in_channels, num_classes, dims=2):
        return UNet(in_channels, num_classes, width=12 / 64, depth=2, norm="group", dims=dims)


class TestUNetAsInThePaper(NetworkTester):
    def make(self, in_channels, num_classes, dims=2):
        return UNet(in_channels, num_classes, width=4 / 64, depth=2, norm="none", dropout=0.5, dims=dims)


def test_volumes_are_pooled_as_pytorch_does():
    image = noise(2, 3, 4, 6, 8).requires_grad_()
    ours, theirs = MaxPool3d()(image), nn.MaxPool3d(2)(image)
    weight = noise(*ours.shape, seed=1)
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad((pooled * weight).sum(), image)[0] for pooled in (ours, theirs)))


def parameters(in_channels, classes, width, depth, most, norm, dims):
    """Weights of a U-Net, counted by hand."""
    widths = [min(width * 2**level, most) for level in range(depth + 1)]
    extra = 1 if norm == "none" else 2  # a bias, or scale and shift, per output channel

    def stage(a, b):
        return 3**dims * a * b + 3**dims * b * b + 2 * extra * b

    encoder = sum(stage(a, b) for a, b in zip([in_channels, *widths], widths, strict=False))
    decoder = sum(2**dims * below * here + here + stage(2 * here, here) for here, below in pairwise(widths))
    return encoder + decoder + widths[0] * classes + classes


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("width", "depth", "most"), [(64, 4, 1024), (32, 4, 512), (8, 5, 64), (5, 1, 512)])
def test_there_are_as_many_parameters_as_the_formula_says(norm, dims, width, depth, most):
    with torch.device("meta"):
        network = UNet(3, 7, width / 64, depth, most, norm, dims=dims)
    assert sum(value.numel() for value in network.parameters()) == parameters(3, 7, width, depth, most, norm, dims)


def test_the_papers_width_and_depth_give_31_million_parameters():
    with torch.device("meta"):
        network = UNet(1, 2, width=1.0, depth=4, max_width=1024, norm="none")
    assert round(sum(value.numel() for value in network.parameters()) / 1e6, 2) == 31.03  # as it is quoted everywhere


def test_the_first_weights_have_the_papers_standard_deviation():
    torch.manual_seed(0)
    network = UNet(3, 5, width=0.5, depth=3)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            taps = 9 if layer.kernel_size == (3, 3) else 1
            wanted = math.sqrt(2 / (taps * layer.in_channels))
            assert layer.weight.std().item() == pytest.approx(wanted, rel=4 / math.sqrt(2 * layer.weight.numel())), name
            assert layer.bias is None or not layer.bias.any()


def test_activations_keep_their_size_through_the_network_without_any_normalisation():
    torch.manual_seed(0)
    network, sizes = UNet(3, 5, width=32 / 64, depth=4, norm="none"), []
    for stage in (*network.encoder, *network.decoder):
        stage.register_forward_hook(lambda _, __, output: sizes.append(output.square().mean().item()))
    with torch.inference_mode():
        network(noise(2, 3, 64, 64))
    assert 0.05 < min(sizes) < max(sizes) < 20


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("instance", nn.GroupNorm), ("group", nn.GroupNorm)])
def test_every_convolution_is_followed_by_the_normalisation_asked_for(norm, kind):
    network = UNet(3, 5, width=8 / 64, depth=2, norm=norm)
    assert sum(isinstance(layer, kind) for layer in network.modules()) == 2 * 3 + 2 * 2
    if norm == "instance":
        assert all(layer.num_groups == layer.num_channels for layer in network.modules() if isinstance(layer, kind))


def test_instance_normalisation_is_pytorchs():
    network = UNet(3, 5, width=8 / 64, depth=1, norm="instance")
    reference = nn.InstanceNorm2d(8)
    image = noise(2, 8, 9, 7)
    torch.testing.assert_close(network.encoder[0][1](image), reference(image))


def test_every_level_feeds_its_decoder_level():
    network = UNet(1, 2, width=4 / 64, depth=3, norm="none").eval()
    for up in network.up:  # nothing comes from below any more
        nn.init.zeros_(up.weight)
    first, second = noise(1, 1, 32, 32), noise(1, 1, 32, 32, seed=1)
    with torch.inference_mode():
        assert not torch.equal(network(first), network(second))
        for stage in network.decoder:
            stage[0].weight[:, stage[0].weight.shape[1] // 2 :] = 0  # nor from beside
        assert torch.equal(network(first), network(second))


def test_dropout_is_at_the_end_of_the_contracting_path_only():
    network = UNet(3, 5, width=4 / 64, depth=3, dropout=0.5)
    assert [any(isinstance(layer, nn.Dropout) for layer in stage) for stage in network.encoder] == [False, False, True, True]
    assert not any(isinstance(layer, nn.Dropout) for layer in network.decoder.modules())


@pytest.mark.parametrize("wrong", [{"dims": 1}, {"depth": 0}, {"norm": "layer"}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="UNet takes dims 2 or 3"):
        UNet(3, 5, **wrong)


# --- sizes


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 16), (3, 5, 9)])
def test_padding_repeats_the_last_pixels_up_to_a_multiple_and_cropping_undoes_it(size):
    image = noise(2, 3, *size)
    padded = pad_to_multiple(image, 8)
    assert all(side % 8 == 0 and 0 <= side - before < 8 for before, side in zip(size, padded.shape[2:], strict=True))
    assert torch.equal(crop_to(padded, size), image)
    last = padded[(..., *(slice(-1, None),) * len(size))]
    assert torch.equal(last, image[(..., *(slice(-1, None),) * len(size))])
