import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from tests.testers.networks import NetworkTester, by_formula, configured, counted, described, noise
from tests.testers.sequence import executed, numbered
from voxtile.errors import ConfigError
from voxtile.models.fcn import FCN, FCNAlexNet, FCNGoogLeNet
from voxtile.models.layers import BilinearUpsample

OPTIONS = ["fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce", "fcn_alexnet", "fcn_googlenet"]
SMALL = {"fcn_googlenet": 1 / 8}  # at 1/16 some branches have a single channel


def small(option, in_channels=3, classes=4, **changes):
    return configured(option, in_channels, classes, width=SMALL.get(option, 1 / 16), **changes)


class TestFCN32s(NetworkTester):
    dims, aligned = (2,), (26, 58)

    def make(self, in_channels, num_classes, dims=2):
        return FCN(in_channels, num_classes, stride=32, width=1 / 16)


class TestFCN16s(NetworkTester):
    dims, aligned = (2,), (26, 58)

    def make(self, in_channels, num_classes, dims=2):
        return FCN(in_channels, num_classes, stride=16, learn_upsampling=True, width=1 / 16)


class TestFCN8s(NetworkTester):
    dims, aligned = (2,), (26, 58)

    def make(self, in_channels, num_classes, dims=2):
        return FCN(in_channels, num_classes, stride=8, width=1 / 16)


class TestFCN8sAtOnce(NetworkTester):
    dims, aligned = (2,), (26, 58)

    def make(self, in_channels, num_classes, dims=2):
        return FCN(in_channels, num_classes, stride=8, scale4=0.01, scale3=0.0001, width=1 / 16)


class TestFCNAlexNet(NetworkTester):
    dims, aligned = (2,), (27, 59)

    def make(self, in_channels, num_classes, dims=2):
        return FCNAlexNet(in_channels, num_classes, width=1 / 16)


class TestFCNGoogLeNet(NetworkTester):
    dims, aligned = (2,), (31, 63)

    def make(self, in_channels, num_classes, dims=2):
        return FCNGoogLeNet(in_channels, num_classes, width=1 / 8)


# --- the executed sequence

VGG16 = """
    1_1: conv 64x3x3x3 s1 p100, relu <- image
    pool1: conv 64x64x3x3 s1 p1, relu, maxpool k2 s2 p0 ceil <- 1_1
    2_1: conv 128x64x3x3 s1 p1, relu <- pool1
    pool2: conv 128x128x3x3 s1 p1, relu, maxpool k2 s2 p0 ceil <- 2_1
    3_1: conv 256x128x3x3 s1 p1, relu <- pool2
    3_2: conv 256x256x3x3 s1 p1, relu <- 3_1
    pool3: conv 256x256x3x3 s1 p1, relu, maxpool k2 s2 p0 ceil <- 3_2
    4_1: conv 512x256x3x3 s1 p1, relu <- pool3
    4_2: conv 512x512x3x3 s1 p1, relu <- 4_1
    pool4: conv 512x512x3x3 s1 p1, relu, maxpool k2 s2 p0 ceil <- 4_2
    5_1: conv 512x512x3x3 s1 p1, relu <- pool4
    5_2: conv 512x512x3x3 s1 p1, relu <- 5_1
    pool5: conv 512x512x3x3 s1 p1, relu, maxpool k2 s2 p0 ceil <- 5_2
    fc6: conv 4096x512x7x7 s1 p0, relu, dropout <- pool5
    fc7: conv 4096x4096x1x1 s1 p0, relu, dropout <- fc6
    fr: conv 21x4096x1x1 s1 p0 <- fc7
"""
FUSE4 = """
    upscore2: deconv 21x1x4x4 s2 p0 g21 nobias <- fr
    pool4c: {scale}conv 21x512x1x1 s1 p0, crop 2 5:39, crop 3 5:39 <- pool4
    fuse4: add <- upscore2, pool4c
"""
FUSE3 = """
    upscore_pool4: deconv 21x1x4x4 s2 p0 g21 nobias <- fuse4
    pool3c: {scale}conv 21x256x1x1 s1 p0, crop 2 9:79, crop 3 9:79 <- pool3
    fuse3: add <- upscore_pool4, pool3c
    score: deconv 21x1x16x16 s8 p0 g21 nobias, crop 2 31:531, crop 3 31:531 <- fuse3
"""
ALEXNET = """
    norm1: conv 96x3x11x11 s4 p100, relu, maxpool k3 s2 p0 ceil, lrn <- image
    norm2: conv 256x48x5x5 s1 p2 g2, relu, maxpool k3 s2 p0 ceil, lrn <- norm1
    conv3: conv 384x256x3x3 s1 p1, relu <- norm2
    conv4: conv 384x192x3x3 s1 p1 g2, relu <- conv3
    pool5: conv 256x192x3x3 s1 p1 g2, relu, maxpool k3 s2 p0 ceil <- conv4
    fc6: conv 4096x256x6x6 s1 p0, relu, dropout <- pool5
    fc7: conv 4096x4096x1x1 s1 p0, relu, dropout <- fc6
    score: conv 21x4096x1x1 s1 p0, deconv 21x1x63x63 s32 p0 g21 nobias, crop 2 18:518, crop 3 18:518 <- fc7
"""


# Channels of the input, of the 1x1, of the 3x3 and what is before it, of the 5x5 and what is before it, and after the pooling.
INCEPTION = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


def inception(name, before):
    inputs, one, reduce3, three, reduce5, five, proj = INCEPTION[name]
    return f"""
    {name}/1: conv {one}x{inputs}x1x1 s1 p0, relu <- {before}
    {name}/3: conv {reduce3}x{inputs}x1x1 s1 p0, relu, conv {three}x{reduce3}x3x3 s1 p1, relu <- {before}
    {name}/5: conv {reduce5}x{inputs}x1x1 s1 p0, relu, conv {five}x{reduce5}x5x5 s1 p2, relu <- {before}
    {name}/p: maxpool k3 s1 p1, conv {proj}x{inputs}x1x1 s1 p0, relu <- {before}
    {name}: concat <- {name}/1, {name}/3, {name}/5, {name}/p"""


GOOGLENET = f"""
    norm1: conv 64x3x7x7 s2 p34, relu, maxpool k3 s2 p0 ceil, lrn <- image
    pool2: conv 64x64x1x1 s1 p0, relu, conv 192x64x3x3 s1 p1, relu, lrn, maxpool k3 s2 p0 ceil <- norm1
    {inception("3a", "pool2")}
    {inception("3b", "3a")}
    pool3: maxpool k3 s2 p0 ceil <- 3b
    {inception("4a", "pool3")}
    {inception("4b", "4a")}
    {inception("4c", "4b")}
    {inception("4d", "4c")}
    {inception("4e", "4d")}
    pool4: maxpool k3 s2 p0 ceil <- 4e
    {inception("5a", "pool4")}
    {inception("5b", "5a")}
    score: dropout, conv 21x1024x1x1 s1 p0, deconv 21x1x63x63 s32 p0 g21 nobias, crop 2 32:532, crop 3 32:532 <- 5b
"""
SPECIFIED = {
    "fcn32s": VGG16 + "score: deconv 21x1x64x64 s32 p0 g21 nobias, crop 2 19:519, crop 3 19:519 <- fr",
    "fcn16s": VGG16 + FUSE4.format(scale="") + "score: deconv 21x1x32x32 s16 p0 g21 nobias, crop 2 27:527, crop 3 27:527 <- fuse4",
    "fcn8s": VGG16 + FUSE4.format(scale="") + FUSE3.format(scale=""),
    "fcn8s_atonce": VGG16 + FUSE4.format(scale="mul 0.01, ") + FUSE3.format(scale="mul 0.0001, "),
    "fcn_alexnet": ALEXNET,
    "fcn_googlenet": GOOGLENET,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_executed_is_what_the_authors_specify(option):
    network = described(option).train()
    assert executed(network, torch.empty(1, 3, 500, 500, device="meta")) == numbered(SPECIFIED[option])


@pytest.mark.parametrize("option", OPTIONS)
def test_single_values_are_dropped_as_often_as_in_the_classifier_and_in_training_only(option):
    network = described(option)
    assert {type(layer) for layer in network.modules() if "Dropout" in type(layer).__name__} == {nn.Dropout}
    assert network.drop.p == (0.4 if option == "fcn_googlenet" else 0.5)
    assert not any("bernoulli" in line for line in executed(network.eval(), torch.empty(1, 3, 64, 64, device="meta")))


# --- numbers of parameters

# Of the authors' networks, for 3 channels and 21 classes.
LEARNABLE = {
    "fcn32s": 134_346_581, "fcn16s": 134_357_354, "fcn8s": 134_362_751, "fcn8s_atonce": 134_362_751, "fcn_alexnet": 56_954_261,
    "fcn_googlenet": 5_995_077,
}  # fmt: skip
TOTAL = {
    "fcn32s": 136_152_917, "fcn16s": 134_815_994, "fcn8s": 134_489_759, "fcn8s_atonce": 134_489_759, "fcn_alexnet": 58_704_590,
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_there_are_as_many_parameters_as_in_the_authors_network(option):
    learnable, total = counted(described(option))
    assert learnable == LEARNABLE[option]
    if option in TOTAL:  # the authors' kernels lead from each class to each class
        assert learnable + (total - learnable) * 21 == TOTAL[option]


@pytest.mark.parametrize(("option", "dense"), [("fcn16s", 134_364_410), ("fcn8s", 134_376_863)])
def test_up_samplings_by_two_learn_where_asked_for_and_the_last_never_does(option, dense):
    fixed, learning = (described(option, learn_upsampling=learn) for learn in (False, True))
    assert counted(learning)[0] == dense
    names = {name for name, value in learning.named_parameters() if value.requires_grad and "upscore" in name}
    assert names == {f"{name}.weight" for name in ("upscore2", "upscore_pool4")[: 1 if option == "fcn16s" else 2]}
    assert not any(value.requires_grad for name, value in fixed.named_parameters() if "upscore" in name)


VGG16_SHAPES = {
    "trunk.conv1_1": (64, 3, 3, 3), "trunk.conv1_2": (64, 64, 3, 3),
    "trunk.conv2_1": (128, 64, 3, 3), "trunk.conv2_2": (128, 128, 3, 3),
    "trunk.conv3_1": (256, 128, 3, 3), "trunk.conv3_2": (256, 256, 3, 3), "trunk.conv3_3": (256, 256, 3, 3),
    "trunk.conv4_1": (512, 256, 3, 3), "trunk.conv4_2": (512, 512, 3, 3), "trunk.conv4_3": (512, 512, 3, 3),
    "trunk.conv5_1": (512, 512, 3, 3), "trunk.conv5_2": (512, 512, 3, 3), "trunk.conv5_3": (512, 512, 3, 3),
    "fc6": (4096, 512, 7, 7), "fc7": (4096, 4096, 1, 1), "score_fr": (21, 4096, 1, 1),
}  # fmt: skip
POOL4, POOL3 = ("upscore2", "score_pool4"), ("upscore_pool4", "score_pool3", "upscore8")
PARTS = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
NAMES = {
    "fcn32s": {*VGG16_SHAPES, "upscore"},
    "fcn16s": {*VGG16_SHAPES, *POOL4, "upscore16"},
    "fcn8s": {*VGG16_SHAPES, *POOL4, *POOL3},
    "fcn8s_atonce": {*VGG16_SHAPES, *POOL4, *POOL3},
    "fcn_alexnet": {*(f"trunk.conv{number}" for number in range(1, 6)), "fc6", "fc7", "score_fr", "upscore"},
    "fcn_googlenet": {
        "trunk.conv1", "trunk.conv2_reduce", "trunk.conv2", "score_fr", "upscore",
        *(f"trunk.inception_{name}.{part}" for name in INCEPTION for part in PARTS),
    },
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_every_layer_has_the_authors_name(option):
    weights, biases = NAMES[option], {name for name in NAMES[option] if "upscore" not in name}
    assert set(described(option).state_dict()) == {f"{name}.weight" for name in weights} | {f"{name}.bias" for name in biases}


# --- sizes and places, computed from the executed lines


def places(lines):
    """Of each line's result: stride and centre of its first cell, in pixels of the image, and receptive field.

    By Caffe's rule of coordinates. Maps that are added or concatenated have to lie on each other.
    """
    found = {"image": (1.0, 0.0, 1)}
    for number, line in enumerate(lines, start=1):
        text, _, given = line.partition(" <- ")
        before = [found[int(source) if source.isdigit() else source] for source in given.split(", ")]
        assert len({place[:2] for place in before}) == 1, line
        stride, centre, field = before[0][0], before[0][1], max(place[2] for place in before)
        operator, *words = text.split()
        if operator in ("conv", "maxpool", "deconv"):
            kernel = int(words[0].split("x")[-1].removeprefix("k"))
            step, pad = (int(next(word[1:] for word in words[1:] if word[0] == letter)) for letter in "sp")
            if operator == "deconv":
                stride /= step
                centre -= stride * ((kernel - 1) / 2 - pad)
            else:
                centre += stride * ((kernel - 1) / 2 - pad)
                field += stride * (kernel - 1)
                stride *= step
        elif operator == "crop" and words[0] == "2":
            centre += stride * int(words[1].split(":")[0])
        found[number] = (stride, centre, field)
    return found


@pytest.mark.parametrize(
    ("option", "field"),
    # The paper's 907 for GoogLeNet counts its 7x7 average pooling, which the paper drops: 6 cells of 32 pixels.
    [("fcn32s", 404), ("fcn16s", 404), ("fcn8s", 404), ("fcn_alexnet", 355), ("fcn_googlenet", 907 - 6 * 32)],
)
def test_stride_and_receptive_field_are_the_papers_and_the_crops_put_scores_where_they_belong(option, field):
    network = described(option).eval()
    lines = executed(network, torch.empty(1, 3, 500, 500, device="meta"))
    found = places(lines)
    scored = next(number for number, line in enumerate(lines, start=1) if line.startswith("conv 21x"))
    assert (found[scored][0], found[scored][2]) == (32, field)
    assert found[scored][0] == network.stride
    assert found[len(lines)][:2] == (1, 0)  # each logit lies on its pixel


def test_the_sizes_between_are_the_papers():
    sizes = {}
    for option in ("fcn32s", "fcn16s", "fcn8s"):
        network = described(option).eval()
        for name, layer in network.named_modules():
            layer.register_forward_hook(lambda _, __, output, name=name: sizes.update({name: tuple(output[0].shape[-2:])}))
        network(torch.empty(1, 3, 500, 500, device="meta"))
    expected = {
        "trunk.conv1_1": 698, "trunk.pools.0": 349, "trunk.pools.1": 175, "trunk.pools.2": 88, "trunk.pools.3": 44,
        "trunk.pools.4": 22, "fc6": 16, "upscore2": 34, "upscore_pool4": 70, "upscore8": 568, "upscore": 544, "upscore16": 560,
    }  # fmt: skip
    assert {name: sizes[name] for name in expected} == {name: (side, side) for name, side in expected.items()}


def test_every_pixel_lies_between_two_scores_of_googlenet():
    network = described("fcn_googlenet", width=1 / 16).eval()
    centre = places(executed(network, torch.empty(1, 3, 64, 64, device="meta")))
    counts = []
    network.score_fr.register_forward_hook(lambda _, __, scores: counts.append(scores.shape[3]))
    for side in (1, 2, 32, 33, 34, 65):
        network(torch.empty(1, 3, 1, side, device="meta"))
        assert counts[-1] == (side + 63) // 32  # so that the last lies on the last pixel or past it
    assert (32.0, -1.0, 715) in centre.values()


# --- up-sampling


def tent(size, centre, stride):
    """Linear interpolation, along an axis, of a one at `centre` among zeros `stride` apart."""
    return (1 - (torch.arange(size) - centre).abs() / stride).clamp_min(0)


def with_scores(option, scored):
    """A network whose score layers give these numbers, whatever they see; the others give zeros."""
    network = small(option).eval()
    for name, scores in scored.items():
        network.get_submodule(name).register_forward_hook(lambda _, __, output, scores=scores: scores(output))
    return network


def one_hot(row, column):
    def scores(output):
        result = torch.zeros_like(output)
        result[0, 2, row, column] = 1
        return result

    return scores


@pytest.mark.parametrize(
    ("option", "layer", "stride", "first"),
    # Centre of the first cell: half a cell less half a pixel, plus the kernel of the fully connected layer, less the padding.
    [
        ("fcn32s", "score_fr", 32, 15.5 + 3 * 32 - 99),
        ("fcn16s", "score_pool4", 16, 7.5 - 99),
        ("fcn8s", "score_pool3", 8, 3.5 - 99),
        ("fcn_alexnet", "score_fr", 32, 13),
        ("fcn_googlenet", "score_fr", 32, -1),
    ],
)
def test_a_single_score_is_interpolated_linearly_around_its_place(option, layer, stride, first):
    beyond = math.ceil((32 - first) / stride) if first < -1 else 0  # the first cell in the image
    for row, column in ((beyond, beyond + 1), (beyond + 1, beyond)):
        with torch.inference_mode():
            logits = with_scores(option, {layer: one_hot(row, column)})(noise(1, 3, 75, 90))
        expected = torch.outer(tent(75, first + row * stride, stride), tent(90, first + column * stride, stride))
        assert expected.any()
        torch.testing.assert_close(logits[0, 2], expected)
        assert not logits[0, [0, 1, 3]].any()


@pytest.mark.parametrize(
    ("option", "first"),
    [("fcn32s", 12.5), ("fcn16s", 12.5), ("fcn8s", 12.5), ("fcn8s_atonce", 12.5), ("fcn_alexnet", 13), ("fcn_googlenet", -1)],
)
def test_scores_that_rise_with_their_place_give_logits_that_rise_with_theirs(option, first):
    def rising(output):
        return (first + 32.0 * torch.arange(output.shape[3])).expand_as(output)

    with torch.inference_mode():
        logits = with_scores(option, {"score_fr": rising})(noise(1, 3, 150, 200))
    inside = torch.arange(50, 120)  # away from where the scores end
    expected = inside.float().expand(4, len(inside), -1)
    torch.testing.assert_close(logits[0][:, inside][:, :, inside], expected)


def test_up_sampling_that_learns_starts_as_the_fixed_one_and_leads_from_each_class_to_each():
    layer, scores = BilinearUpsample(3, 4, 2, learn=True), noise(2, 3, 5, 6)
    torch.testing.assert_close(layer(scores), BilinearUpsample(3, 4, 2)(scores))
    layer(scores)[:, 0].sum().backward()
    assert layer.weight.grad[:, 0].abs().min() > 0


def test_weights_of_up_samplings_that_learned_one_kernel_for_each_class_give_what_they_gave():
    kernels, scores = noise(3, 1, 4, 4), noise(2, 3, 5, 6)
    layer, older = BilinearUpsample(3, 4, 2, learn=True), BilinearUpsample(3, 4, 2)
    for each in (layer, older):
        each.load_state_dict({"weight": kernels})
    torch.testing.assert_close(layer(scores), older(scores))
    assert layer.weight.shape == (3, 3, 4, 4)
    own = noise(3, 3, 4, 4)
    layer.load_state_dict({"weight": own})
    assert torch.equal(layer.weight, own)


def test_up_sampling_by_32_is_pytorchs_interpolation_three_pixels_on():
    scores = noise(1, 4, 9, 9)
    with torch.inference_mode():
        logits = with_scores("fcn32s", {"score_fr": lambda output: scores[..., : output.shape[2], : output.shape[3]]})(
            noise(1, 3, 154, 154)
        )
    # (154 + 6) / 32 = 5 scores; the first lies on 12.5 here and on 15.5 there.
    theirs = functional.interpolate(scores[..., :5, :5], scale_factor=32, mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits[..., 13:141, 13:141], theirs[..., 16:144, 16:144])


# --- against an independent build of the specification


def plain_kernel(size, classes):
    """Bilinear interpolation from each class to itself, as the authors' net surgery writes it."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 == 1 else factor - 0.5
    y, x = np.ogrid[:size, :size]
    kernel = torch.zeros(classes, classes, size, size, dtype=torch.float64)
    kernel[range(classes), range(classes)] = torch.from_numpy((1 - abs(y - centre) / factor) * (1 - abs(x - centre) / factor))
    return kernel


def plain_conv(weights, name, x, **settings):
    return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **settings)


def plain_up(x, size, stride):
    return functional.conv_transpose2d(x, plain_kernel(size, x.shape[1]), stride=stride)


def plain_crop(x, offset, like):
    return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]


def plain_pool(x, kernel):
    return functional.max_pool2d(x, kernel, 2, ceil_mode=True)


def plain_head(weights, x):
    x = functional.relu(plain_conv(weights, "fc6", x))
    return plain_conv(weights, "score_fr", functional.relu(plain_conv(weights, "fc7", x)))


def plain_fcn(weights, image, finest, scales):
    x = functional.pad(image, (99, 99, 99, 99))
    pools = {}
    for block, depth in enumerate((2, 2, 3, 3, 3), start=1):
        for number in range(1, depth + 1):
            x = functional.relu(plain_conv(weights, f"trunk.conv{block}_{number}", x, padding=1))
        pools[block] = x = plain_pool(x, 2)
    scores = plain_head(weights, x)
    if finest == 32:
        return plain_crop(plain_up(scores, 64, 32), 19, image)
    scores = plain_up(scores, 4, 2)
    scores = scores + plain_crop(plain_conv(weights, "score_pool4", pools[4] * scales[0]), 5, scores)
    if finest == 16:
        return plain_crop(plain_up(scores, 32, 16), 27, image)
    scores = plain_up(scores, 4, 2)
    scores = scores + plain_crop(plain_conv(weights, "score_pool3", pools[3] * scales[1]), 9, scores)
    return plain_crop(plain_up(scores, 16, 8), 31, image)


def plain_norm(x):
    return functional.local_response_norm(x, 5, 1e-4, 0.75, 1.0)


def plain_alexnet(weights, image):
    def conv(number, x, **settings):
        return functional.relu(plain_conv(weights, f"trunk.conv{number}", x, **settings))

    x = plain_norm(plain_pool(conv(1, image, stride=4, padding=100), 3))
    x = plain_norm(plain_pool(conv(2, x, padding=2, groups=2), 3))
    x = conv(5, conv(4, conv(3, x, padding=1), padding=1, groups=2), padding=1, groups=2)
    return plain_crop(plain_up(plain_head(weights, plain_pool(x, 3)), 63, 32), 18, image)


def plain_googlenet(weights, image):
    def conv(name, x, **settings):
        return functional.relu(plain_conv(weights, f"trunk.{name}", x, **settings))

    x = plain_norm(plain_pool(conv("conv1", image, stride=2, padding=34), 3))
    x = plain_pool(plain_norm(conv("conv2", conv("conv2_reduce", x), padding=1)), 3)
    for name in ("3a", "3b", "pool", "4a", "4b", "4c", "4d", "4e", "pool", "5a", "5b"):
        if name == "pool":
            x = plain_pool(x, 3)
            continue
        module = f"inception_{name}"
        three = conv(f"{module}.3x3", conv(f"{module}.3x3_reduce", x), padding=1)
        five = conv(f"{module}.5x5", conv(f"{module}.5x5_reduce", x), padding=2)
        proj = conv(f"{module}.pool_proj", functional.max_pool2d(x, 3, 1, 1))
        x = torch.cat([conv(f"{module}.1x1", x), three, five, proj], 1)
    return plain_crop(plain_up(plain_conv(weights, "score_fr", x), 63, 32), 32, image)


PLAIN = {
    "fcn32s": lambda weights, image: plain_fcn(weights, image, 32, (1, 1)),
    "fcn16s": lambda weights, image: plain_fcn(weights, image, 16, (1, 1)),
    "fcn8s": lambda weights, image: plain_fcn(weights, image, 8, (1, 1)),
    "fcn8s_atonce": lambda weights, image: plain_fcn(weights, image, 8, (0.01, 0.0001)),
    "fcn_alexnet": plain_alexnet,
    "fcn_googlenet": plain_googlenet,
}


@pytest.mark.parametrize(("option", "size"), [("fcn8s", (1, 1)), *((option, (37, 50)) for option in OPTIONS)])
def test_logits_equal_those_of_a_plain_build(option, size):
    network = by_formula(small(option, 5).double()).eval()
    image = 2 * noise(1, 5, *size).double()
    with torch.inference_mode():
        logits, expected = network(image), PLAIN[option](network.state_dict(), image)
    assert logits.shape == (1, 4, *size)
    assert expected.std(dim=1).mean() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


# --- first weights


@pytest.mark.parametrize("option", OPTIONS)
def test_scores_start_as_zeros_and_the_rest_as_he_et_al_have_it(option):
    torch.manual_seed(0)
    network = configured(option, width=1 / 8)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert not layer.bias.any()
            wanted = 0 if name.startswith("score") else math.sqrt(2 / layer.weight[0].numel())
            spread = layer.weight.square().mean().sqrt().item()
            assert spread == pytest.approx(wanted, rel=4 / math.sqrt(2 * layer.weight.numel())), name
    with torch.inference_mode():
        assert not network.eval()(noise(1, 3, 20, 30)).any()


@pytest.mark.parametrize("stride", [0, 4, 64])
def test_other_strides_are_refused(stride):
    with pytest.raises(ValueError, match=f"stride 32, 16 or 8, not {stride}"):
        FCN(3, 2, stride=stride)


def test_finer_nets_share_the_names_and_shapes_of_coarser_ones_and_add_layers_of_their_own():
    coarse, middle, fine = (described(f"fcn{stride}s").state_dict() for stride in (32, 16, 8))
    for before, after, last in ((coarse, middle, "upscore."), (middle, fine, "upscore16.")):
        assert [name for name in before if name not in after] == [f"{last}weight"]
        assert all(after[name].shape == value.shape for name, value in before.items() if name in after)


# --- weights trained elsewhere

TORCHVISION = {
    "conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12, "conv3_3": 14,
    "conv4_1": 17, "conv4_2": 19, "conv4_3": 21, "conv5_1": 24, "conv5_2": 26, "conv5_3": 28,
}  # fmt: skip


def trained(path, width=1 / 16):
    """A file such as torchvision's VGG16, of narrower layers; returns what it holds."""
    state = {}
    for number, (name, shape) in enumerate(VGG16_SHAPES.items()):
        own = name.removeprefix("trunk.")
        if own == "score_fr":
            continue
        outputs, inputs, *kernel = (int(shape[0] * width), shape[1] if own == "conv1_1" else int(shape[1] * width), *shape[2:])
        theirs = {"fc6": "classifier.0", "fc7": "classifier.3"}.get(own) or f"features.{TORCHVISION[own]}"
        weight = noise(outputs, inputs, *kernel, seed=number)
        state[f"{theirs}.weight"] = weight.flatten(1) if own.startswith("fc") else weight
        state[f"{theirs}.bias"] = noise(outputs, seed=number + 100)
    state["classifier.6.weight"] = noise(10, int(4096 * width))
    save_file(state, path)
    return state


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("option", ["fcn32s", "fcn8s"])
def test_vgg16_of_torchvision_is_loaded_into_every_layer_up_to_fc7(option, channels, tmp_path):
    state = trained(tmp_path / "vgg16.safetensors")
    network = small(option, channels, weights=str(tmp_path / "vgg16.safetensors"))
    for name, number in TORCHVISION.items():
        layer = network.trunk.get_submodule(name)
        assert torch.equal(layer.bias, state[f"features.{number}.bias"])
        if name != "conv1_1" or channels == 3:
            assert torch.equal(layer.weight, state[f"features.{number}.weight"])
    mean = state["features.0.weight"].mean(dim=1)
    for channel in range(channels):
        if channels != 3:
            torch.testing.assert_close(network.trunk.conv1_1.weight[:, channel], mean * 3 / channels)
    # Row of a fully connected layer: channel, then height, then width of what it sees.
    assert torch.equal(network.fc6.weight[7, 5, 2, 3], state["classifier.0.weight"][7, 5 * 49 + 2 * 7 + 3])
    assert torch.equal(network.fc6.bias, state["classifier.0.bias"])
    assert torch.equal(network.fc7.weight[:, :, 0, 0], state["classifier.3.weight"])
    assert not network.score_fr.weight.any()
    assert not network.score_fr.bias.any()


def test_weights_that_do_not_fit_say_so(tmp_path):
    path = tmp_path / "vgg16.safetensors"
    state = trained(path)
    with pytest.raises(ConfigError, match=r"'conv1_1.weight' of the weights .* \(4, 3, 3, 3\).*\(8, 3, 3, 3\).*model.width=1"):
        configured("fcn32s", width=1 / 8, weights=str(path))
    save_file({name: value for name, value in state.items() if name != "features.12.bias"}, path)
    with pytest.raises(ConfigError, match=r"hold no 'conv3_2.bias' \(nor 'features.12.bias'\)"):
        small("fcn32s", weights=str(path))


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("fcn_alexnet", {"conv2": "trunk.conv2", "fc7": "fc7"}),
        ("fcn_googlenet", {"conv2/3x3": "trunk.conv2", "inception_4e/5x5_reduce": "trunk.inception_4e.5x5_reduce"}),
    ],
)
def test_the_authors_weights_are_loaded_by_their_own_names(option, names, tmp_path):
    theirs = by_formula(small(option))
    layers = theirs.trunk.layers() if option == "fcn_googlenet" else dict(theirs.trunk.named_children())
    layers |= {name: getattr(theirs, name) for name in ("fc6", "fc7") if hasattr(theirs, name)}
    state = {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}
    assert sum(value.numel() for value in state.values()) == counted(theirs)[0] - theirs.score_fr.weight.numel() - 4
    save_file(state, tmp_path / "theirs.safetensors")
    network = small(option, weights=str(tmp_path / "theirs.safetensors"))
    for name, own in names.items():
        assert torch.equal(network.get_submodule(own).weight, state[f"{name}.weight"])
    assert not network.score_fr.weight.any()
    given = theirs.state_dict()
    given["trunk.conv1.weight"] = given["trunk.conv1.weight"].flip(1)  # Caffe's sees blue, green and red
    for name, value in network.state_dict().items():
        assert name.startswith("score_fr") or torch.equal(value, given[name]), name
    with pytest.raises(ConfigError, match="no ImageNet weights"):
        small(option, weights="imagenet")
