import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.testers.networks import NetworkTester, counted, described, noise
from tests.testers.sequence import executed, operators
from voxtile.models.unet_paper import UNetPaper

# The layers of the paper's network for one channel and two classes, in the order in which they are passed.
PAPER = {
    "conv_d0a_b": (64, 1, 3, 3),
    "conv_d0b_c": (64, 64, 3, 3),
    "conv_d1a_b": (128, 64, 3, 3),
    "conv_d1b_c": (128, 128, 3, 3),
    "conv_d2a_b": (256, 128, 3, 3),
    "conv_d2b_c": (256, 256, 3, 3),
    "conv_d3a_b": (512, 256, 3, 3),
    "conv_d3b_c": (512, 512, 3, 3),
    "conv_d4a_b": (1024, 512, 3, 3),
    "conv_d4b_c": (1024, 1024, 3, 3),
    "upconv_u3a": (1024, 512, 2, 2),
    "conv_u3b_c": (512, 1024, 3, 3),
    "conv_u3c_d": (512, 512, 3, 3),
    "upconv_u2a": (512, 256, 2, 2),
    "conv_u2b_c": (256, 512, 3, 3),
    "conv_u2c_d": (256, 256, 3, 3),
    "upconv_u1a": (256, 128, 2, 2),
    "conv_u1b_c": (128, 256, 3, 3),
    "conv_u1c_d": (128, 128, 3, 3),
    "upconv_u0a": (128, 64, 2, 2),
    "conv_u0b_c": (64, 128, 3, 3),
    "conv_u0c_d": (64, 64, 3, 3),
    "conv_u0d_score": (2, 64, 1, 1),
}
RELEASE = PAPER | {"upconv_u0a": (128, 128, 2, 2), "conv_u0b_c": (64, 192, 3, 3)}
both = pytest.mark.parametrize("release", [False, True])
OPTIONS = {False: "unet_paper", True: "unet_release"}


class TestUNetPaper(NetworkTester):
    dims = (2,)
    aligned = (68, 68)

    def make(self, in_channels, num_classes, dims=2):
        return UNetPaper(in_channels, num_classes, width=1 / 16)


class TestUNetRelease(NetworkTester):
    dims = (2,)
    aligned = (68, 68)

    def make(self, in_channels, num_classes, dims=2):
        return UNetPaper(in_channels, num_classes, width=1 / 16, release=True)


# --- what the specification says


@both
@pytest.mark.parametrize(("in_channels", "classes"), [(1, 2), (3, 2), (1, 21), (13, 11)])
def test_layers_have_the_specifications_names_and_shapes(release, in_channels, classes):
    shapes = {}
    for name, shape in (RELEASE if release else PAPER).items():
        if name == "conv_d0a_b":
            shape = (64, in_channels, 3, 3)
        if name == "conv_u0d_score":
            shape = (classes, 64, 1, 1)
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[1:2] if name.startswith("up") else shape[:1]}
    state = described(OPTIONS[release], in_channels, classes).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == shapes


@pytest.mark.parametrize(
    ("release", "counts"),
    [
        (False, {2: 31_030_658, 3: 31_030_723, 11: 31_031_243, 12: 31_031_308, 21: 31_031_893}),
        (True, {2: 31_100_354, 3: 31_100_419, 11: 31_100_939, 12: 31_101_004, 21: 31_101_589}),
    ],
)
def test_there_are_as_many_parameters_as_the_specification_says(release, counts):
    for classes, count in counts.items():
        assert counted(described(OPTIONS[release], 1, classes)) == (count, count)
    assert counted(described(OPTIONS[release], 3, 2))[1] == counts[2] + 2 * 576


# An arrow names the lines that an input came from. Each number in front is that of its line.
DOWN = """
1  conv 64x1x3x3 s1 p0 <- image
2  relu <- 1
3  conv 64x64x3x3 s1 p0 <- 2
4  relu <- 3
5  maxpool k2 s2 p0 <- 4
6  conv 128x64x3x3 s1 p0 <- 5
7  relu <- 6
8  conv 128x128x3x3 s1 p0 <- 7
9  relu <- 8
10 maxpool k2 s2 p0 <- 9
11 conv 256x128x3x3 s1 p0 <- 10
12 relu <- 11
13 conv 256x256x3x3 s1 p0 <- 12
14 relu <- 13
15 maxpool k2 s2 p0 <- 14
16 conv 512x256x3x3 s1 p0 <- 15
17 relu <- 16
18 conv 512x512x3x3 s1 p0 <- 17
19 relu <- 18
20 maxpool k2 s2 p0 <- 19
21 conv 1024x512x3x3 s1 p0 <- 20
22 relu <- 21
23 conv 1024x1024x3x3 s1 p0 <- 22
24 relu <- 23
"""
PAPER_UP = """
25 deconv 1024x512x2x2 s2 p0 <- 24
26 crop 2 4:60 <- 19
27 crop 3 4:60 <- 26
28 concat <- 25, 27
29 conv 512x1024x3x3 s1 p0 <- 28
30 relu <- 29
31 conv 512x512x3x3 s1 p0 <- 30
32 relu <- 31
33 deconv 512x256x2x2 s2 p0 <- 32
34 crop 2 16:120 <- 14
35 crop 3 16:120 <- 34
36 concat <- 33, 35
37 conv 256x512x3x3 s1 p0 <- 36
38 relu <- 37
39 conv 256x256x3x3 s1 p0 <- 38
40 relu <- 39
41 deconv 256x128x2x2 s2 p0 <- 40
42 crop 2 40:240 <- 9
43 crop 3 40:240 <- 42
44 concat <- 41, 43
45 conv 128x256x3x3 s1 p0 <- 44
46 relu <- 45
47 conv 128x128x3x3 s1 p0 <- 46
48 relu <- 47
49 deconv 128x64x2x2 s2 p0 <- 48
50 crop 2 88:480 <- 4
51 crop 3 88:480 <- 50
52 concat <- 49, 51
53 conv 64x128x3x3 s1 p0 <- 52
54 relu <- 53
55 conv 64x64x3x3 s1 p0 <- 54
56 relu <- 55
57 conv 2x64x1x1 s1 p0 <- 56
"""
RELEASE_UP = """
25 deconv 1024x512x2x2 s2 p0 <- 24
26 relu <- 25
27 crop 2 4:60 <- 19
28 crop 3 4:60 <- 27
29 concat <- 26, 28
30 conv 512x1024x3x3 s1 p0 <- 29
31 relu <- 30
32 conv 512x512x3x3 s1 p0 <- 31
33 relu <- 32
34 deconv 512x256x2x2 s2 p0 <- 33
35 relu <- 34
36 crop 2 16:120 <- 14
37 crop 3 16:120 <- 36
38 concat <- 35, 37
39 conv 256x512x3x3 s1 p0 <- 38
40 relu <- 39
41 conv 256x256x3x3 s1 p0 <- 40
42 relu <- 41
43 deconv 256x128x2x2 s2 p0 <- 42
44 relu <- 43
45 crop 2 40:240 <- 9
46 crop 3 40:240 <- 45
47 concat <- 44, 46
48 conv 128x256x3x3 s1 p0 <- 47
49 relu <- 48
50 conv 128x128x3x3 s1 p0 <- 49
51 relu <- 50
52 deconv 128x128x2x2 s2 p0 <- 51
53 relu <- 52
54 crop 2 88:480 <- 4
55 crop 3 88:480 <- 54
56 concat <- 53, 55
57 conv 64x192x3x3 s1 p0 <- 56
58 relu <- 57
59 conv 64x64x3x3 s1 p0 <- 58
60 relu <- 59
61 conv 2x64x1x1 s1 p0 <- 60
"""


def lines(text, first=1):
    rows = [row.split(maxsplit=1) for row in text.strip().splitlines()]
    assert [int(number) for number, _ in rows] == list(range(first, first + len(rows)))
    return [row for _, row in rows]


def passed(network, side, context):
    return executed(lambda image: network(image, context), torch.empty(1, 1, side, side, device="meta"))


@pytest.mark.parametrize(("release", "up"), [(False, PAPER_UP), (True, RELEASE_UP)])
def test_what_is_executed_is_the_specification(release, up):
    found = passed(described(OPTIONS[release], 1, 2).eval(), 572, 92)
    assert found == lines(DOWN.strip() + up)
    assert operators(found)["conv"] + operators(found)["deconv"] == 23


@both
def test_a_bare_image_is_mirrored_first_and_nothing_else_changes(release):
    network = described(OPTIONS[release], 1, 2).eval()
    found = passed(network, 388, 0)
    assert found[:3] == ["index_select <- image", "index_select <- 1", "conv 64x1x3x3 s1 p0 <- 2"]
    assert [line.split(" <- ")[0] for line in found[2:]] == [line.split(" <- ")[0] for line in passed(network, 572, 92)]


def test_levels_have_the_papers_sizes():
    network, sizes = described("unet_paper", 1, 2), {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _, __, output, name=name: sizes.update({name: tuple(output.shape[2:])}))
    network(torch.empty(1, 1, 572, 572, device="meta"), 92)
    ends = ["d0b_c", "d1b_c", "d2b_c", "d3b_c", "d4b_c", "u3c_d", "u2c_d", "u1c_d", "u0c_d", "u0d_score"]
    assert [sizes[f"conv_{name}"] for name in ends] == [(n, n) for n in (568, 280, 136, 64, 28, 52, 100, 196, 388, 388)]


# --- an independent build


def by_formula(release, width, in_channels, classes):
    """Weights of every layer from the sine of a running index squared, of about the size that keeps signals alive.

    Without the square, a layer's weights would be a matrix of rank 2, and hardly anything would pass.
    """
    weights = {}
    for name, (a, b, *kernel) in (RELEASE if release else PAPER).items():
        a, b = (classes if name.endswith("score") else a // width), (in_channels if name == "conv_d0a_b" else b // width)
        count = a * b * math.prod(kernel)
        incoming, outputs = (a, b) if name.startswith("up") else (count // a, a)
        index = torch.arange(count, dtype=torch.float64) + len(weights)
        weights[f"{name}.weight"] = (torch.sin(index**2 * 0.37) * 2 / math.sqrt(incoming)).float().view(a, b, *kernel)
        weights[f"{name}.bias"] = (torch.sin(torch.arange(outputs) + 0.5 + len(weights)) * 0.1).float()
    return weights


def plain(x, weights, release):
    """The specification for a tile whose sides are 16·k + 60, written out."""

    def conv(x, name):
        return functional.conv2d(x, weights[f"conv_{name}.weight"], weights[f"conv_{name}.bias"])

    def up(x, name):
        x = functional.conv_transpose2d(x, weights[f"upconv_{name}.weight"], weights[f"upconv_{name}.bias"], stride=2)
        return functional.relu(x) if release else x

    def two(x, first, second):
        return functional.relu(conv(functional.relu(conv(x, first)), second))

    def joined(above, skip, border):
        return torch.cat([above, skip[:, :, border:-border, border:-border]], 1)

    d0 = two(x, "d0a_b", "d0b_c")
    d1 = two(functional.max_pool2d(d0, 2), "d1a_b", "d1b_c")
    d2 = two(functional.max_pool2d(d1, 2), "d2a_b", "d2b_c")
    d3 = two(functional.max_pool2d(d2, 2), "d3a_b", "d3b_c")
    d4 = two(functional.max_pool2d(d3, 2), "d4a_b", "d4b_c")
    u3 = two(joined(up(d4, "u3a"), d3, 4), "u3b_c", "u3c_d")
    u2 = two(joined(up(u3, "u2a"), d2, 16), "u2b_c", "u2c_d")
    u1 = two(joined(up(u2, "u1a"), d1, 40), "u1b_c", "u1c_d")
    u0 = two(joined(up(u1, "u0a"), d0, 88), "u0b_c", "u0c_d")
    return conv(u0, "u0d_score")


def reflected(image, before, after):
    """NumPy's reflection, which takes any number of pixels, of the last two axes; `after` per axis."""
    pads = [(0, 0), (0, 0), *((before, more) for more in after)]
    return torch.from_numpy(np.pad(image.numpy(), pads, mode="reflect"))


def small(release=False, width=16, in_channels=2, classes=3):
    network = UNetPaper(in_channels, classes, width=1 / width, release=release).eval()
    network.load_state_dict(by_formula(release, width, in_channels, classes))
    return network


@both
@pytest.mark.parametrize("size", [(1, 1), (2, 37), (68, 20), (95, 64)])
def test_logits_equal_those_of_a_plain_build_of_the_specification(release, size):
    image = noise(2, 2, *size)
    fill = [(4 - side) % 16 for side in size]
    tile = reflected(image, 92, [92 + more for more in fill])
    assert all(side % 16 == 60 % 16 for side in tile.shape[2:])
    with torch.inference_mode():
        expected = plain(tile, by_formula(release, 16, 2, 3), release)[:, :, : size[0], : size[1]]
        found = small(release)(image)
    assert 0.05 < expected.square().mean().sqrt() < 50
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# --- context


@pytest.mark.parametrize("size", [(1, 1), (5, 18), (68, 52)])
def test_what_lies_past_the_context_of_an_odd_window_is_mirrored_further(size):
    image, network = noise(1, 2, *(side + 184 for side in size)), small()
    with torch.inference_mode():
        logits = network(image, context=92)
        assert logits.shape == (1, 3, *size)
        expected = network(reflected(image, 0, [(4 - side) % 16 for side in size]), context=92)
    torch.testing.assert_close(logits, expected[:, :, : size[0], : size[1]], rtol=1e-4, atol=1e-5)


def test_tiles_with_real_context_are_one_pass_over_the_whole():
    network, image = small().double(), noise(1, 2, 148 + 184, 164 + 184).double()

    def tile(row, column, height, width):
        return network(image[:, :, row : row + height + 184, column : column + width + 184], context=92)

    with torch.inference_mode():
        whole = tile(0, 0, 148, 164)
        for row, column in ((0, 96), (16, 64), (80, 0), (80, 96)):
            part = whole[:, :, row : row + 68, column : column + 68]
            torch.testing.assert_close(tile(row, column, 68, 68), part, rtol=1e-10, atol=1e-10)
        # What is filled up changes the last (side - 4) mod 16 rows and columns only.
        found, part = tile(16, 32, 60, 71), whole[:, :, 16:76, 32:103]
        torch.testing.assert_close(found[:, :, :52, :68], part[:, :, :52, :68], rtol=1e-10, atol=1e-10)
        assert (found - part)[:, :, 52:, :68].abs().max() > 1e-5
        assert (found - part)[:, :, :52, 68:].abs().max() > 1e-5
        # Where the poolings begin elsewhere, they see other pixels together.
        assert (tile(0, 68, 68, 68) - whole[:, :, :68, 68:136]).abs().max() > 1e-3


def test_a_score_depends_on_the_margin_and_on_no_more():
    network, image = small(in_channels=1), noise(1, 1, 4 + 184, 4 + 184).requires_grad_()
    rows = []
    for place in (0, 3):
        (gradient,) = torch.autograd.grad(network(image, context=92)[..., place, place].sum(), image)
        seen = gradient[0, 0].abs().amax(dim=1).nonzero()
        rows.append((int(seen.min()), int(seen.max())))
    assert (rows[0][0], rows[1][1]) == (0, 187)


@pytest.mark.parametrize(("context", "side", "words"), [(1, 300, "a context of 0 or 92"), (92, 184, "sides of 185 and more")])
def test_another_context_or_nothing_but_context_is_refused(context, side, words):
    with pytest.raises(ValueError, match=words):
        small()(noise(1, 2, side, 300), context)


# --- dropout and first weights


# Dropping is a mask from a coin per value, divided by the share that is kept, times the values.
LEARNING = """
19 relu <- 18
20 bernoulli_ <- 19
21 div_ <- 20
22 mul <- 19, 21
23 maxpool k2 s2 p0 <- 22
24 conv 1024x512x3x3 s1 p0 <- 23
25 relu <- 24
26 conv 1024x1024x3x3 s1 p0 <- 25
27 relu <- 26
28 bernoulli_ <- 27
29 div_ <- 28
30 mul <- 27, 29
31 deconv 1024x512x2x2 s2 p0 <- 30
"""


@both
def test_dropout_is_at_the_end_of_the_contracting_path_and_in_its_skip(release):
    network = described(OPTIONS[release], 1, 2)
    found = passed(network.train(), 572, 92)
    assert found[18:31] == lines(LEARNING, first=19)
    assert "crop 2 4:60 <- 22" in found
    assert operators(found)["bernoulli_"] == 2
    assert network.dropout.p == 0.5


def test_single_values_are_dropped_half_of_them():
    torch.manual_seed(0)
    network, seen = UNetPaper(1, 2, width=1 / 8).train(), []
    network.dropout.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    network(noise(1, 1, 68, 68))
    assert [tuple(before.shape) for before, _ in seen] == [(1, 64, 24, 24), (1, 128, 8, 8)]
    for before, after in seen:
        ratio = (after / before)[before > 0]
        assert set(ratio.tolist()) == {0.0, 2.0}
        assert (ratio == 0).double().mean().item() == pytest.approx(0.5, abs=0.05)
        channels = [(after[0, c] == 0)[before[0, c] > 0] for c in range(before.shape[1])]
        mixed = [dropped.any() and not dropped.all() for dropped in channels if len(dropped) > 20]
        assert len(mixed) > 20
        assert all(mixed)


def test_the_first_weights_have_the_papers_standard_deviation():
    torch.manual_seed(0)
    network = UNetPaper(3, 5, width=1 / 2)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            taps = 9 if layer.kernel_size == (3, 3) else 1
            wanted = math.sqrt(2 / (taps * layer.in_channels))
            assert layer.weight.std().item() == pytest.approx(wanted, rel=4 / math.sqrt(2 * layer.weight.numel())), name
            assert not layer.bias.any()


@pytest.mark.parametrize("wrong", [{"width": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="UNetPaper takes a width above 0"):
        UNetPaper(1, 2, **wrong)
