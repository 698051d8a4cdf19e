import math
import re
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.testers.networks import (
    NetworkTester,
    VariantTester,
    by_formula,
    configured,
    counted,
    described,
    noise,
    varied,
    without_numbers,
)
from tests.testers.sequence import executed, numbered
from voxtile.models.sizes import crop_to, pad_to_multiple
from voxtile.models.unet import MaxPool3d, UNet

NORMS = ["batch", "instance", "group", "none"]


class TestUNet(NetworkTester):
    def make(self, in_channels, num_classes, dims=2):
        return UNet(in_channels, num_classes, width=4 / 64, depth=2, dims=dims)


class TestUNetWithInstanceNorm(NetworkTester):
    def make(self, in_channels, num_classes, dims=2):
        return UNet(in_channels, num_classes, width=6 / 64, depth=2, norm="instance", dims=dims)


class TestUNetWithGroupNorm(VariantTester):
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
@pytest.mark.parametrize(("width", "depth", "most"), [(32, 4, 512), (8, 5, 64), (5, 1, 512)])
def test_there_are_as_many_parameters_as_the_formula_says(norm, dims, width, depth, most):
    with without_numbers():
        network = UNet(3, 7, width / 64, depth, most, norm, dims=dims)
    assert sum(value.numel() for value in network.parameters()) == parameters(3, 7, width, depth, most, norm, dims)


@pytest.mark.parametrize(
    ("channels", "changes", "count"),
    [
        (3, {}, 31_037_698),  # as quoted of the best-known port, which pads and normalises too
        (1, {"norm": "none"}, 31_030_658),  # the paper's: padding takes no weights
    ],
)
def test_at_the_papers_width_there_are_31_million_parameters(channels, changes, count):
    for classes in (2, 3, 11, 12, 21):
        total = count + 65 * (classes - 2)
        assert counted(described("unet", channels, classes, **changes)) == (total, total)


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


def test_dropout_is_at_the_end_of_the_contracting_path_only():
    network = UNet(3, 5, width=4 / 64, depth=3, dropout=0.5)
    assert [any(isinstance(layer, nn.Dropout) for layer in stage) for stage in network.encoder] == [False, False, True, True]
    assert not any(isinstance(layer, nn.Dropout) for layer in network.decoder.modules())


# --- what is executed

UNET = """
    padded: replication_pad2d <- image
    d0: conv 64x{channels}x3x3 s1 p1 nobias, bn 64, relu, conv 64x64x3x3 s1 p1 nobias, bn 64, relu <- padded
    d1: maxpool k2 s2 p0, conv 128x64x3x3 s1 p1 nobias, bn 128, relu, conv 128x128x3x3 s1 p1 nobias, bn 128, relu <- d0
    d2: maxpool k2 s2 p0, conv 256x128x3x3 s1 p1 nobias, bn 256, relu, conv 256x256x3x3 s1 p1 nobias, bn 256, relu <- d1
    d3: maxpool k2 s2 p0, conv 512x256x3x3 s1 p1 nobias, bn 512, relu, conv 512x512x3x3 s1 p1 nobias, bn 512, relu{drop} <- d2
    d4: maxpool k2 s2 p0, conv 1024x512x3x3 s1 p1 nobias, bn 1024, relu, conv 1024x1024x3x3 s1 p1 nobias, bn 1024, relu{drop} <- d3
    up3: deconv 1024x512x2x2 s2 p0 <- d4
    both3: concat <- up3, d3
    u3: conv 512x1024x3x3 s1 p1 nobias, bn 512, relu, conv 512x512x3x3 s1 p1 nobias, bn 512, relu <- both3
    up2: deconv 512x256x2x2 s2 p0 <- u3
    both2: concat <- up2, d2
    u2: conv 256x512x3x3 s1 p1 nobias, bn 256, relu, conv 256x256x3x3 s1 p1 nobias, bn 256, relu <- both2
    up1: deconv 256x128x2x2 s2 p0 <- u2
    both1: concat <- up1, d1
    u1: conv 128x256x3x3 s1 p1 nobias, bn 128, relu, conv 128x128x3x3 s1 p1 nobias, bn 128, relu <- both1
    up0: deconv 128x64x2x2 s2 p0 <- u1
    both0: concat <- up0, d0
    u0: conv 64x128x3x3 s1 p1 nobias, bn 64, relu, conv 64x64x3x3 s1 p1 nobias, bn 64, relu <- both0
    score: conv {classes}x64x1x1 s1 p0, crop 2 0:35, crop 3 0:50 <- u0
"""
VOLUME = """
    padded: replication_pad3d <- image
    d0: conv 64x1x3x3x3 s1 p1 nobias, bn 64, relu, conv 64x64x3x3x3 s1 p1 nobias, bn 64, relu <- padded
    pooled: maxpool k2 s2 p0, maxpool k2x1 s2x1 p0 <- d0
    d1: conv 128x64x3x3x3 s1 p1 nobias, bn 128, relu, conv 128x128x3x3x3 s1 p1 nobias, bn 128, relu <- pooled
    up0: deconv 128x64x2x2x2 s2 p0 <- d1
    both0: concat <- up0, d0
    u0: conv 64x128x3x3x3 s1 p1 nobias, bn 64, relu, conv 64x64x3x3x3 s1 p1 nobias, bn 64, relu <- both0
    score: conv 4x64x1x1x1 s1 p0, crop 2 0:3, crop 3 0:5, crop 4 0:7 <- u0
"""
NORMALISED = {
    "batch": r" nobias, bn \1",
    "instance": r" nobias, groupnorm \1 of \1",
    "group": r" nobias, groupnorm 8 of \1",
    "none": "",
}


@pytest.mark.parametrize(
    ("changes", "channels", "classes"),
    [({}, 3, 2), ({"norm": "instance"}, 1, 21), ({"norm": "group"}, 5, 11), ({"norm": "none", "dropout": 0.5}, 13, 3)],
)
def test_what_is_executed_is_the_specification(changes, channels, classes):
    text = re.sub(r" nobias, bn (\d+)", NORMALISED[changes.get("norm", "batch")], UNET)
    text = text.format(channels=channels, classes=classes, drop=", dropout" if "dropout" in changes else "")
    network = described("unet", channels, classes, **changes).train("dropout" in changes)
    assert executed(network, torch.empty(2, channels, 35, 50, device="meta")) == numbered(text)


def test_what_is_executed_on_volumes_is_the_specification():
    network = described("unet", 1, 4, depth=1, dims=3).eval()
    assert executed(network, torch.empty(2, 1, 3, 5, 7, device="meta")) == numbered(VOLUME)


# --- an independent build


def normalised(state, name, x, norm):
    if norm == "none":
        return x
    scale, shift = (state[f"{name}.{part}"].view(-1, *[1] * (x.ndim - 2)) for part in ("weight", "bias"))
    if norm == "batch":
        mean, var = (state[f"{name}.running_{part}"].view_as(scale) for part in ("mean", "var"))
    else:
        groups = {"instance": x.shape[1], "group": 8}[norm]
        parts = x.unflatten(1, (groups, -1))
        over = tuple(range(2, parts.ndim))
        mean, var = (part.expand_as(parts).flatten(1, 2) for part in (parts.mean(over, True), parts.var(over, False, keepdim=True)))
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def plain(state, image, depth, norm):
    conv, pool, up = {
        4: (functional.conv2d, functional.max_pool2d, functional.conv_transpose2d),
        5: (functional.conv3d, functional.max_pool3d, functional.conv_transpose3d),
    }[image.ndim]

    def stage(x, name):
        for number in (0, 3):
            x = conv(x, state[f"{name}.{number}.weight"], state.get(f"{name}.{number}.bias"), padding=1)
            x = functional.relu(normalised(state, f"{name}.{number + 1}", x, norm))
        return x

    x, skips = image, []
    for axis in range(2, image.ndim):
        last = x.narrow(axis, x.shape[axis] - 1, 1)
        x = torch.cat([x, *[last] * (-x.shape[axis] % 2**depth)], axis)
    for level in range(depth):
        x = stage(x, f"encoder.{level}")
        skips.append(x)
        x = pool(x, 2)
    x = stage(x, f"encoder.{depth}")
    for number in range(depth):
        x = up(x, state[f"up.{number}.weight"], state[f"up.{number}.bias"], stride=2)
        x = stage(torch.cat([x, skips.pop()], 1), f"decoder.{number}")
    x = conv(x, state["score.weight"], state["score.bias"])
    return x[(..., *(slice(side) for side in image.shape[2:]))]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("depth", "size"), [(4, (35, 50)), (2, (5, 9, 14))])
def test_logits_are_those_of_a_plain_build_of_the_specification(norm, depth, size):
    network = configured("unet", 3, 4, width=1 / 8, depth=depth, norm=norm, dims=len(size)).double()
    image = noise(2, 3, *size).double()
    with torch.inference_mode():
        expected = plain(by_formula(network).state_dict(), image, depth, norm)
        torch.testing.assert_close(network.eval()(image), varied(expected), rtol=1e-9, atol=1e-9)


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
