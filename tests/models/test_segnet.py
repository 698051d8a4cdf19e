import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from tests.testers.networks import (
    NetworkTester,
    VariantTester,
    by_formula,
    counted,
    described,
    mirror,
    noise,
    varied,
    without_numbers,
)
from tests.testers.sequence import executed
from voxtile.errors import ConfigError
from voxtile.models.layers import unpool
from voxtile.models.segnet import SegNet, SegNetBasic

# The authors' definitions. C and K are the channels of the image and the classes; a dropout is in the Bayesian network only.
SEGNET = """
conv1_1 64xCx3x3 bn relu
conv1_2 64x64x3x3 bn relu
pool
conv2_1 128x64x3x3 bn relu
conv2_2 128x128x3x3 bn relu
pool
conv3_1 256x128x3x3 bn relu
conv3_2 256x256x3x3 bn relu
conv3_3 256x256x3x3 bn relu
pool
dropout
conv4_1 512x256x3x3 bn relu
conv4_2 512x512x3x3 bn relu
conv4_3 512x512x3x3 bn relu
pool
dropout
conv5_1 512x512x3x3 bn relu
conv5_2 512x512x3x3 bn relu
conv5_3 512x512x3x3 bn relu
pool
dropout
unpool
conv5_3_D 512x512x3x3 bn relu
conv5_2_D 512x512x3x3 bn relu
conv5_1_D 512x512x3x3 bn relu
dropout
unpool
conv4_3_D 512x512x3x3 bn relu
conv4_2_D 512x512x3x3 bn relu
conv4_1_D 256x512x3x3 bn relu
dropout
unpool
conv3_3_D 256x256x3x3 bn relu
conv3_2_D 256x256x3x3 bn relu
conv3_1_D 128x256x3x3 bn relu
dropout
unpool
conv2_2_D 128x128x3x3 bn relu
conv2_1_D 64x128x3x3 bn relu
unpool
conv1_2_D 64x64x3x3 bn relu
conv1_1_D Kx64x3x3
"""
BASIC = """
lrn
conv1 64xCx7x7 bn relu
pool
conv2 64x64x7x7 bn relu
pool
conv3 64x64x7x7 bn relu
pool
dropout
conv4 64x64x7x7 bn relu
pool
dropout
unpool
conv_decode4 64x64x7x7 bn
dropout
unpool
conv_decode3 64x64x7x7 bn
dropout
unpool
conv_decode2 64x64x7x7 bn
unpool
conv_decode1 64x64x7x7 bn
conv_classifier Kx64x1x1
"""
BOTH = [(SegNet, SEGNET), (SegNetBasic, BASIC)]


class SegNetTester(NetworkTester):
    dims = (2,)

    def test_mirrored_kernels_make_a_mirrored_network(self):
        # Of several maxima, as in a window of zeros, the first in reading order counts, which is another one from the right. So
        # here activations are unlike each other: far above zero, with statistics of the image, and not rounded to float32.
        network, image = self.built().double(), noise(1, 3, *self.aligned).double()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.constant_(layer.bias, 12.0)
                layer.momentum = 1.0
            elif isinstance(layer, nn.Dropout):
                layer.p = 0.0
        network.train()(image)
        network.eval()
        with torch.inference_mode():
            expected = varied(network(image)).flip(-1)
            mirror(network)
            torch.testing.assert_close(network(image.flip(-1)), expected, rtol=1e-8, atol=1e-8)


class TestSegNet(SegNetTester):
    def make(self, in_channels, num_classes, dims=2):
        return SegNet(in_channels, num_classes, width=1 / 16)


class TestSegNetBasic(SegNetTester):
    def make(self, in_channels, num_classes, dims=2):
        return SegNetBasic(in_channels, num_classes, width=1 / 8)


class TestSegNetBasicWithoutBias(VariantTester):
    dims = (2,)

    def make(self, in_channels, num_classes, dims=2):
        return SegNetBasic(in_channels, num_classes, width=1 / 8, bias=False)


class TestBayesianSegNet(SegNetTester):
    def make(self, in_channels, num_classes, dims=2):
        return SegNet(in_channels, num_classes, width=1 / 16, dropout=0.5)


class TestBayesianSegNetBasic(VariantTester):
    dims = (2,)

    def make(self, in_channels, num_classes, dims=2):
        return SegNetBasic(in_channels, num_classes, width=1 / 8, dropout=0.5)


# --- what is executed


def specified(text, in_channels, num_classes, bias=True, bayesian=False):
    """The specification as `executed` writes it."""
    lines, last, pools = [], "image", []

    def add(line, *inputs):
        nonlocal last
        lines.append(f"{line} <- {', '.join(map(str, inputs))}")
        last = len(lines)

    for entry in text.split("\n")[1:-1]:
        name, *rest = entry.split()
        if name == "lrn":
            add("pow", last)
            add("avgpool k5x1 s1 p2x0", last)
            add("mul 0.0001", last)
            add("add 1", last)
            add("pow", last)
            add("div", "image", last)
        elif name == "pool":
            add("maxpool k2 s2 p0 ceil", last)
            pools.append(last)
        elif name == "unpool":
            values = last
            add("new_zeros", values)
            add("scatter", last, pools.pop(), values)
        elif name == "dropout":
            if bayesian:
                values = last
                add("bernoulli_", values)
                add("div_", last)
                add("mul", values, last)
        else:
            shape, *following = rest
            shape = shape.replace("C", str(in_channels)).replace("K", str(num_classes))
            end = "" if bias or name == "conv_classifier" else " nobias"
            add(f"conv {shape} s1 p{int(shape[-1]) // 2}{end}", last)
            for layer in following:
                add(f"bn {shape.split('x')[0]}" if layer == "bn" else layer, last)
    assert pools == []
    return lines


@pytest.mark.parametrize(
    ("option", "text", "changes"),
    [
        ("segnet", SEGNET, {}),
        ("bayesian_segnet", SEGNET, {}),
        ("segnet_basic", BASIC, {}),
        ("segnet_basic", BASIC, {"dropout": 0.5}),
        ("segnet_basic", BASIC, {"bias": False}),
    ],
)
def test_what_is_executed_is_the_specification(option, text, changes):
    network, image = described(option, 5, 11, **changes), torch.empty(2, 5, 360, 480, device="meta")
    bias, bayesian = changes.get("bias", True), option == "bayesian_segnet" or "dropout" in changes
    assert executed(network.train(), image) == specified(text, 5, 11, bias, bayesian)
    assert executed(network.eval(), image) == specified(text, 5, 11, bias)
    drops = [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)]
    assert drops == [0.5] * text.count("dropout") * bayesian
    assert network.stochastic == bayesian


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (SegNet, ["conv1_2 360x480", "conv2_2 180x240", "conv3_3 90x120", "conv4_3 45x60", "conv5_3 23x30", "encdrop5 12x15",
                  "conv5_1_D 23x30", "conv4_1_D 45x60", "conv3_1_D 90x120", "conv2_1_D 180x240", "conv1_1_D 360x480"]),
        (SegNetBasic, ["conv1 360x480", "conv2 180x240", "conv3 90x120", "conv4 45x60", "encdrop4 23x30",
                       "conv_decode4 45x60", "conv_decode3 90x120", "conv_decode2 180x240", "conv_decode1 360x480"]),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_release(kind, sizes):
    with without_numbers():
        network, seen = kind(3, 11, dropout=0.5), []
    for name in (line.split()[0] for line in sizes):
        layer = network.get_submodule(name)
        layer.register_forward_hook(lambda _, __, x, name=name: seen.append(f"{name} {x.shape[2]}x{x.shape[3]}"))
    assert network(torch.empty(1, 3, 360, 480, device="meta")).shape == (1, 11, 360, 480)
    assert seen == sizes


# --- parameters


FULL = {2: 29_444_162, 3: 29_444_739, 11: 29_449_355, 12: 29_449_932, 21: 29_455_125}


@pytest.mark.parametrize(
    ("option", "changes", "kernel", "counts"),
    [
        ("segnet", {}, 9, FULL),
        ("bayesian_segnet", {}, 9, FULL),
        ("segnet_basic", {}, 49, {2: 1_416_002, 3: 1_416_067, 11: 1_416_587, 12: 1_416_652, 21: 1_417_237}),
        ("segnet_basic", {"dropout": 0.5}, 49, {21: 1_417_237}),
        ("segnet_basic", {"bias": False}, 49, {2: 1_415_490, 3: 1_415_555, 11: 1_416_075, 12: 1_416_140, 21: 1_416_725}),
    ],
)
def test_there_are_as_many_parameters_as_in_the_release_and_all_learn(option, changes, kernel, counts):
    for classes, count in counts.items():
        assert counted(described(option, 3, classes, **changes)) == (count, count)
    assert counted(described(option, 13, 21, **changes))[1] == counts[21] + 10 * kernel * 64


@pytest.mark.parametrize(("in_channels", "classes"), [(3, 11), (1, 2), (13, 21)])
@pytest.mark.parametrize(("kind", "text"), BOTH)
def test_every_layer_has_the_shapes_of_the_specification(kind, text, in_channels, classes):
    expected = {}
    for entry in text.split("\n")[1:-1]:
        name, *rest = entry.split()
        if rest:
            shape = tuple(int(side) for side in rest[0].replace("C", str(in_channels)).replace("K", str(classes)).split("x"))
            expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
            if "bn" in rest:
                expected |= {f"{name}_bn.weight": shape[:1], f"{name}_bn.bias": shape[:1]}
    with without_numbers():
        network = kind(in_channels, classes, dropout=0.5)
    assert {name: tuple(value.shape) for name, value in network.named_parameters()} == expected


def test_weights_start_as_in_the_release():
    torch.manual_seed(0)
    for network in (SegNet(3, 11, width=1 / 4), SegNetBasic(3, 11)):
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d):
                wanted = math.sqrt(2 / layer.weight[0].numel())
                assert layer.weight.std().item() == pytest.approx(wanted, rel=4 / math.sqrt(2 * layer.weight.numel())), name
                assert not layer.bias.any(), name
            elif isinstance(layer, nn.BatchNorm2d):
                assert (layer.eps, layer.momentum) == (1e-9, 0.1)
                assert torch.equal(layer.weight, torch.ones_like(layer.weight)), name
                assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.001)), name


# --- logits


def test_segnet_basic_takes_bfloat16_on_the_cpu():
    network, image = SegNetBasic(3, 2, width=1 / 8).eval(), noise(1, 3, 32, 32)
    with torch.inference_mode():
        expected = network(image)
        found = network.bfloat16()(image.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.mean((2, 3)).float(), expected.mean((2, 3)), rtol=0.1, atol=0.1 * expected.std().item())


def plain(text, state, image, training):
    """The specification, interpreted line by line."""
    x, pools = image, []
    for entry in text.split("\n")[1:-1]:
        name, *rest = entry.split()
        if name == "lrn":
            squares = x.square()
            near = [squares[:, max(0, c - 2) : c + 3].sum(dim=1, keepdim=True) for c in range(x.shape[1])]
            x = x / (1 + 1e-4 / 5 * torch.cat(near, dim=1)) ** 0.75
        elif name == "pool":
            size = x.shape[2:]
            x, indices = functional.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True, return_indices=True)
            pools.append((indices, size))
        elif name == "unpool":
            indices, size = pools.pop()
            x = functional.max_unpool2d(x, indices, kernel_size=2, stride=2, output_size=size)
        elif rest:
            padding = int(rest[0][-1]) // 2
            x = functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)
            if "bn" in rest:
                mean, var = state[f"{name}_bn.running_mean"], state[f"{name}_bn.running_var"]
                if training:
                    mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
                x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-9).sqrt()
                x = x * state[f"{name}_bn.weight"][:, None, None] + state[f"{name}_bn.bias"][:, None, None]
            if "relu" in rest:
                x = x.clamp(min=0)
    return x


SIZES = [((1, 1), False), ((2, 7), False), ((35, 50), False), ((35, 50), True), ((45, 61), True)]


@pytest.mark.parametrize(
    ("kind", "text", "size", "training"),
    [*((*both, *size) for both in BOTH for size in SIZES), (SegNet, SEGNET, (225, 427), False)],
)
def test_logits_are_those_of_a_plain_build(kind, text, size, training):
    network = by_formula(kind(5, 7, width=1 / 16 if kind is SegNet else 1 / 32).double()).train(training)
    # Of a photograph's scale, so that the local response normalisation does something.
    image = 100 * noise(2 if max(size) < 100 else 1, 5, *size).double()
    with torch.inference_mode():
        expected = plain(text, network.state_dict(), image, training)
        found = network(image)
    torch.testing.assert_close(found, varied(expected), rtol=1e-8, atol=1e-8)


def test_training_moves_the_running_statistics_by_a_tenth():
    network = SegNet(3, 4, width=1 / 16)
    image = noise(2, 3, 20, 24)
    network.train()(image)
    responses = network.conv1_1(image)
    torch.testing.assert_close(network.conv1_1_bn.running_mean, 0.1 * responses.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(network.conv1_1_bn.running_var, 0.9 + 0.1 * responses.var(dim=(0, 2, 3)))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("kind", [SegNet, SegNetBasic])
def test_an_empty_image_gives_finite_gradients_though_epsilon_is_small(kind, value):
    torch.manual_seed(0)
    network = kind(3, 4, width=1 / 8).train()
    logits = network(torch.full((1, 3, 40, 40), value))
    logits.square().mean().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


# --- pooling and un-pooling


@settings(max_examples=15, deadline=None)
@given(size=st.tuples(st.integers(1, 70), st.integers(1, 70)))
@example(size=(480, 360))
@example(size=(35, 50))
@example(size=(225, 427))
def test_unpooling_puts_each_value_back_where_it_came_from(size):
    values = noise(2, 3, *size)
    maxima, indices = functional.max_pool2d(values, 2, 2, ceil_mode=True, return_indices=True)
    back = unpool(maxima, indices, size)
    height, width = size
    largest = maxima.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[:, :, :height, :width]
    assert torch.equal(back, torch.where(values == largest, values, 0.0))
    assert torch.equal(back, functional.max_unpool2d(maxima, indices, 2, 2, output_size=size))


@pytest.mark.parametrize("size", [(35, 50), (7, 9)])
def test_the_gradient_of_unpooling_is_what_lies_at_the_place(size):
    values = noise(2, 3, *size)
    maxima, indices = functional.max_pool2d(values, 2, 2, ceil_mode=True, return_indices=True)
    weight, gradients = noise(2, 3, *size, seed=1), []
    for back in (lambda x: unpool(x, indices, size), lambda x: functional.max_unpool2d(x, indices, 2, 2, output_size=size)):
        leaf = maxima.clone().requires_grad_()
        (back(leaf) * weight).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_of_equal_values_the_first_is_the_maximum_and_what_is_left_at_an_odd_border_is_pooled_too():
    maxima, indices = functional.max_pool2d(torch.ones(1, 1, 3, 5), 2, 2, ceil_mode=True, return_indices=True)
    assert unpool(maxima, indices, (3, 5)).tolist() == [[[[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]]]]


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("kind", [SegNet, SegNetBasic])
def test_only_deterministic_operations_are_used(kind):
    with pytest.raises(RuntimeError, match="deterministic"):  # what would be the short way
        functional.max_unpool2d(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64), 2)
    network, gradients = kind(3, 4, width=1 / 16, dropout=0.5).train(), []
    for _ in range(2):
        torch.manual_seed(0)
        network.zero_grad()
        network(noise(2, 3, 35, 50)).square().mean().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in network.parameters()]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize("axis", [2, 3])
def test_a_pixel_of_pool4_of_the_basic_network_sees_106_pixels(axis):
    """Found by what spoils it: in image i, pixel i of the line is not a number."""
    network, seen = SegNetBasic(1, 2, width=1 / 64, dropout=0.5).eval(), []
    network.encdrop4.register_forward_hook(lambda _, __, x: seen.append(x.flatten(1)))
    lines = torch.ones(256, 256).fill_diagonal_(math.nan)
    with torch.inference_mode():
        network(lines.view(256, 1, 1, 256).transpose(axis, 3))
    spoilt = seen[0].isnan()  # [image, pixel of pool4]
    first, last = (spoilt[:, 8].nonzero()[end].item() for end in (0, -1))
    assert spoilt[first : last + 1, 8].all()
    assert last - first + 1 == 106
    assert spoilt[:, 7].nonzero()[0].item() == first - SegNetBasic.stride


# --- dropout


@pytest.mark.parametrize(("kind", "count"), [(SegNet, 6), (SegNetBasic, 4)])
def test_the_bayesian_network_is_the_plain_one_in_evaluation_until_its_dropout_is_switched_on(kind, count):
    plain, bayesian = kind(3, 4, width=1 / 8).eval(), kind(3, 4, width=1 / 8, dropout=0.5).eval()
    bayesian.load_state_dict(plain.state_dict())
    assert (plain.stochastic, bayesian.stochastic) == (False, True)
    drops = [layer for layer in bayesian.modules() if isinstance(layer, nn.Dropout)]
    assert [drop.p for drop in drops] == [0.5] * count
    assert not any(isinstance(layer, nn.Dropout) for layer in plain.modules())
    image = noise(1, 3, 33, 40)
    with torch.inference_mode():
        assert torch.equal(bayesian(image), plain(image))
        for drop in drops:
            drop.train()
        assert not torch.equal(bayesian(image), bayesian(image))


# --- weights, settings, configurations


def test_weights_of_vgg16_go_into_the_encoders_convolutions_and_nowhere_else(tmp_path):
    given = {}
    for number, layer in enumerate(layer for layer in SegNet(3, 4, width=1 / 16).children() if isinstance(layer, nn.Conv2d)):
        if number < 13:
            block = [2, 4, 7, 10, 13]
            level = next(i for i, end in enumerate(block) if number < end)
            name = f"conv{level + 1}_{number - ([0, *block][level]) + 1}"
            given |= {
                f"{name}.weight": noise(*layer.weight.shape, seed=number),
                f"{name}.bias": noise(len(layer.bias), seed=number),
            }
    save_file(given, tmp_path / "vgg16.safetensors")
    networks = []
    for weights in (None, str(tmp_path / "vgg16.safetensors")):
        torch.manual_seed(0)
        networks.append(SegNet(3, 4, width=1 / 16, weights=weights).state_dict())
    scratch, trained = networks
    assert len(given) == 26
    given["conv1_1.weight"] = given["conv1_1.weight"].flip(1)  # Caffe's sees blue, green and red
    for name, value in trained.items():
        assert torch.equal(value, given.get(name, scratch[name])), name


def test_weights_of_a_basic_network_go_everywhere_but_into_the_classifier(tmp_path):
    first = by_formula(SegNetBasic(3, 4, width=1 / 16))
    save_file(first.state_dict(), tmp_path / "basic.safetensors")
    second = SegNetBasic(3, 9, width=1 / 16, weights=str(tmp_path / "basic.safetensors"))
    given = first.state_dict()
    given["conv1.weight"] = given["conv1.weight"].flip(1)  # Caffe's sees blue, green and red
    for name, value in second.state_dict().items():
        if name.startswith("conv_classifier"):
            assert len(value) == 9
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(value, given[name]), name
    with pytest.raises(ConfigError, match="no ImageNet weights for segnet_basic"):
        SegNetBasic(3, 4, width=1 / 16, weights="imagenet")


@pytest.mark.parametrize("kind", [SegNet, SegNetBasic])
@pytest.mark.parametrize("wrong", [{"width": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"in_channels": 0}, {"num_classes": 0}])
def test_settings_out_of_range_are_refused(kind, wrong):
    with pytest.raises(ValueError, match=f"{kind.__name__} takes in_channels and num_classes from 1, width above 0 and dropout"):
        kind(**{"in_channels": 3, "num_classes": 4} | wrong)
