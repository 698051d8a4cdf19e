import math

import pytest
import torch
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
from voxtile.models import reseg
from voxtile.models.reseg import GRU, ReSeg, Sweep

WIRINGS = ["paper", "release"]


def lively(network):
    """The network with recurrent weights five times as large: of a narrow one, as it starts, images have next to equal logits."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith(("weight_in", "weight_hid")):
                value.mul_(5)
    return network


def exchange(network, axis):
    """Exchanges the directions of every sweep along an axis (-1: rows), and the halves of what reads their states."""

    def halves(value, dim):
        value.copy_(torch.cat(value.chunk(2, dim)[::-1], dim))

    layers = [network.renet0, network.renet1]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            sweep = layer.horizontal if axis == -1 else layer.vertical
            for one, other in zip(sweep.fwd.parameters(), sweep.bwd.parameters(), strict=True):
                kept = one.clone()
                one.copy_(other)
                other.copy_(kept)
            reading = [layer.vertical] if axis == -1 else [after.horizontal for after in layers[number + 1 :]]
            for reader in reading:
                halves(reader.fwd.weight_in, 1)
                if not reader.stacked:
                    halves(reader.bwd.weight_in, 1)
        if axis == -2:
            halves(network.deconv0.weight, 0)


class TestReSeg(NetworkTester):
    dims = (2,)

    def make(self, in_channels, num_classes, dims=2):
        return lively(ReSeg(in_channels, num_classes, width=1 / 16))

    def test_mirrored_kernels_make_a_mirrored_network(self):
        """And exchanged directions, since a mirrored image is read the other way round."""
        network, image = self.built().eval(), noise(1, 3, 64, 64)
        with torch.inference_mode():
            expected = varied(network(image)).flip(-1)
            mirror(network)
            assert not torch.allclose(network(image.flip(-1)), expected, atol=1e-3)
            exchange(network, -1)
            torch.testing.assert_close(network(image.flip(-1)), expected, rtol=1e-4, atol=1e-5)


class TestReSegAsReleased(NetworkTester):
    dims = (2,)
    aligned = None  # the forward direction reads the image, the backward one only the forward one's states

    def make(self, in_channels, num_classes, dims=2):
        return lively(ReSeg(in_channels, num_classes, width=1 / 16, wiring="release"))


class TestReSegOnPatches(VariantTester):
    dims = (2,)

    def make(self, in_channels, num_classes, dims=2):
        return lively(ReSeg(in_channels, num_classes, width=1 / 16, patches=(3, 2), vertical_first=True))


# --- the specification, built from bare functions


def gates(weight):
    """The reset gate's, the update gate's and the candidate's rows."""
    hidden = len(weight) // 3
    return weight[:hidden], weight[hidden : 2 * hidden], weight[2 * hidden :]


def plain_gru(steps, state, name):
    """Lasagne's GRU along a list of steps [N, C]."""
    (in_r, in_u, in_c), (hid_r, hid_u, hid_c) = gates(state[f"{name}.weight_in"]), gates(state[f"{name}.weight_hid"])
    bias_r, bias_u, bias_c = gates(state[f"{name}.bias"])
    hidden = steps[0].new_zeros(len(steps[0]), len(bias_r))
    states = []
    for x in steps:
        r = torch.sigmoid(x @ in_r.T + bias_r + hidden @ hid_r.T)
        u = torch.sigmoid(x @ in_u.T + bias_u + hidden @ hid_u.T)
        c = torch.tanh(x @ in_c.T + bias_c + r * (hidden @ hid_c.T))
        hidden = (1 - u) * hidden + u * c
        states.append(hidden)
    return states


def plain_sweep(steps, state, name, wiring):
    """Forward states beside backward states, step by step."""
    ahead = plain_gru(steps, state, f"{name}.fwd")
    read = ahead if wiring == "release" else steps
    back = plain_gru(read[::-1], state, f"{name}.bwd")[::-1]
    return [torch.cat(pair, dim=1) for pair in zip(ahead, back, strict=True)]


def plain_patches(x, side):
    """Patches of [B, H, W, C], one by one."""
    batch, height, width, inputs = x.shape
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    cut = x.new_zeros(batch, rows, columns, side, side, inputs)
    for row in range(height):
        for column in range(width):
            cut[:, row // side, column // side, row % side, column % side] = x[:, row, column]
    return cut.reshape(batch, rows, columns, -1)


def plain_renet(x, state, name, wiring, vertical_first):
    """A row or a column of the map is a batch of its own."""
    for direction in ("vertical", "horizontal") if vertical_first else ("horizontal", "vertical"):
        lines = []
        for line in x.unbind(1 if direction == "horizontal" else 2):
            lines.append(torch.stack(plain_sweep(list(line.unbind(1)), state, f"{name}.{direction}", wiring), dim=1))
        x = torch.stack(lines, dim=1 if direction == "horizontal" else 2)
    return x


def plain_reseg(state, image, wiring="paper", patches=(1, 1), vertical_first=False, kernels=(2, 2)):
    height, width = image.shape[2:]
    x = functional.pad(image, (0, -width % 4, 0, -height % 4), mode="replicate")
    for block, count in ((1, 2), (2, 2), (3, 3)):
        for number in range(1, count + 1):
            name = f"trunk.conv{block}_{number}"
            x = functional.relu(functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))
        if block < 3:
            x = functional.max_pool2d(x, 2)
    x = x.permute(0, 2, 3, 1)
    for number, side in enumerate(patches):
        x = plain_renet(plain_patches(x, side), state, f"renet{number}", wiring, vertical_first)
    x = x.permute(0, 3, 1, 2)
    for number, kernel in enumerate(kernels):
        x = functional.relu(
            functional.conv_transpose2d(x, state[f"deconv{number}.weight"], state[f"deconv{number}.bias"], stride=kernel)
        )
    return functional.conv2d(x[:, :, :height, :width], state["score.weight"], state["score.bias"])


@pytest.mark.parametrize("size", [(1, 1), (16, 8), (21, 30)])
@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ({"wiring": "paper"}, (2, 2)),
        ({"wiring": "release"}, (2, 2)),
        ({"wiring": "paper", "vertical_first": True}, (2, 2)),
        ({"wiring": "release", "patches": (3, 2)}, (2, 2, 2, 3)),
        ({"wiring": "paper", "patches": (2,), "vertical_first": True}, (2, 2, 2)),
    ],
)
def test_logits_are_those_of_the_plain_specification(options, kernels, size):
    network, image = by_formula(ReSeg(3, 5, width=1 / 16, **options).double()).eval(), noise(2, 3, *size).double()
    with torch.inference_mode():
        logits, expected = network(image), plain_reseg(network.state_dict(), image, **options, kernels=kernels)
    torch.testing.assert_close(logits, varied(expected), rtol=1e-10, atol=1e-10)


# --- the recurrent units


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_sweep_and_its_gradients_are_those_of_a_plain_loop(wiring):
    torch.manual_seed(0)
    sweep, x = Sweep(5, 7, wiring).double(), noise(9, 4, 5).double().requires_grad_()
    for number, value in enumerate(sweep.parameters()):
        nn.init.normal_(value, std=0.5 + 0.1 * number)  # biases too
    state = {f"sweep.{name}": value for name, value in sweep.named_parameters()}
    results = sweep(x), torch.stack(plain_sweep(list(x.unbind(0)), state, "sweep", wiring))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    wanted = [x, *sweep.parameters()]
    weight = noise(9, 4, 14, seed=1).double()
    found = [torch.autograd.grad((result * weight).sum(), wanted) for result in results]
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inputs", [1, 256])
def test_a_direction_has_the_weights_of_three_gates_with_one_bias_each(inputs):
    gru = GRU(inputs, 100)
    assert {name: tuple(value.shape) for name, value in gru.named_parameters()} == {
        "weight_in": (300, inputs),
        "weight_hid": (300, 100),
        "bias": (300,),
    }
    assert not gru.bias.any()
    for weight in (gru.weight_in, gru.weight_hid):
        assert weight.std().item() == pytest.approx(0.1, rel=4 / math.sqrt(2 * weight.numel()))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_sweep_gives_the_same_bits_again(wiring):
    torch.manual_seed(0)
    sweep, found = Sweep(12, 10, wiring), []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            x = noise(20, 8, 12).requires_grad_()
            states = sweep(x)
            found.append([states, *torch.autograd.grad(states.square().sum(), [x, *sweep.parameters()])])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_under_autocast_sweeps_keep_the_precision_of_their_weights(wiring):
    torch.manual_seed(0)
    sweep, x = Sweep(12, 10, wiring), noise(20, 8, 12).bfloat16()
    expected = sweep(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        states = sweep(x)
    assert torch.equal(states, expected)
    network = ReSeg(3, 4, width=1 / 16, wiring=wiring)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(noise(2, 3, 17, 18))
    logits.float().square().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert all(value.grad.isfinite().all() and value.grad.any() for value in network.parameters())


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_network_in_half_precision_computes_in_it(wiring):
    network = ReSeg(3, 4, width=1 / 16, wiring=wiring).bfloat16()
    assert network(noise(1, 3, 9, 10).bfloat16()).dtype == torch.bfloat16


# --- wiring


@torch.library.custom_op("recurrence::sweep", mutates_args=())
def sweep_op(x: torch.Tensor, outputs: int) -> torch.Tensor:
    return x.new_zeros(*x.shape[:2], outputs)


sweep_op.register_fake(lambda x, outputs: x.new_empty(*x.shape[:2], outputs))

TRUNK = """
replication_pad2d <- image
conv 64x3x3x3 s1 p1 <- 1
relu <- 2
conv 64x64x3x3 s1 p1 <- 3
relu <- 4
maxpool k2 s2 p0 <- 5
conv 128x64x3x3 s1 p1 <- 6
relu <- 7
conv 128x128x3x3 s1 p1 <- 8
relu <- 9
maxpool k2 s2 p0 <- 10
conv 256x128x3x3 s1 p1 <- 11
relu <- 12
conv 256x256x3x3 s1 p1 <- 13
relu <- 14
conv 256x256x3x3 s1 p1 <- 15
relu <- 16
"""
# A map of 3 rows and 5 columns, batch of 2: rows are 6 sequences of length 5, columns 10 of length 3.
PAPER = """
sweep 256->100+100, 6 of length 5 <- 17
sweep 200->100+100, 10 of length 3 <- 18
sweep 200->100+100, 6 of length 5 <- 19
sweep 200->100+100, 10 of length 3 <- 20
deconv 200x50x2x2 s2 p0 <- 21
relu <- 22
deconv 50x50x2x2 s2 p0 <- 23
relu <- 24
crop 2 0:9 <- 25
crop 3 0:17 <- 26
conv 12x50x1x1 s1 p0 <- 27
"""
COLUMNS_FIRST = """
sweep 256->100+100, 10 of length 3 <- 17
sweep 200->100+100, 6 of length 5 <- 18
sweep 200->100+100, 10 of length 3 <- 19
sweep 200->100+100, 6 of length 5 <- 20
"""
RELEASE = """
sweep 256->100, 6 of length 5 <- 17
flip <- 18
sweep 100->100, 6 of length 5 <- 19
flip <- 20
concat <- 18, 21
sweep 200->100, 10 of length 3 <- 22
flip <- 23
sweep 100->100, 10 of length 3 <- 24
flip <- 25
concat <- 23, 26
sweep 200->100, 6 of length 5 <- 27
flip <- 28
sweep 100->100, 6 of length 5 <- 29
flip <- 30
concat <- 28, 31
sweep 200->100, 10 of length 3 <- 32
flip <- 33
sweep 100->100, 10 of length 3 <- 34
flip <- 35
concat <- 33, 36
deconv 200x50x2x2 s2 p0 <- 37
relu <- 38
deconv 50x50x2x2 s2 p0 <- 39
relu <- 40
crop 2 0:9 <- 41
crop 3 0:17 <- 42
conv 12x50x1x1 s1 p0 <- 43
"""


@pytest.mark.parametrize(
    ("option", "changes", "lines"),
    [
        ("reseg", {}, TRUNK + PAPER),
        ("reseg_release", {}, TRUNK + RELEASE),
        ("reseg", {"vertical_first": True}, TRUNK + COLUMNS_FIRST + "\n".join(PAPER.split("\n")[5:])),
    ],
)
def test_the_executed_sequence_is_the_specifications(option, changes, lines, monkeypatch):
    """With each call of the library's GRU as one line: its inputs and units, how many sequences, how long."""
    calls = []

    def gru(x, first, weights, *settings):
        assert settings == (True, 1, 0.0, False, len(first) == 2, False)
        assert [tuple(value.shape) for value in weights] == [(300, x.shape[2]), (300, 100), (300,), (300,)] * len(first)
        calls.append(f"sweep {x.shape[2]}->{'+'.join(['100'] * len(first))}, {x.shape[1]} of length {x.shape[0]}")
        return sweep_op(x, 100 * len(first)), None

    monkeypatch.setattr(reseg.torch, "gru", gru)
    network, image = described(option, 3, 12, **changes).eval(), torch.empty(2, 3, 9, 17, device="meta")
    shown = [line.replace("sweep", calls.pop(0)) if line.startswith("sweep") else line for line in executed(network, image)]
    assert shown == [line for line in lines.split("\n") if line]


def test_exchanged_directions_turn_the_papers_network_upside_down():
    torch.manual_seed(0)
    network, image = ReSeg(3, 4, width=1 / 16).eval(), noise(1, 3, 16, 24)
    with torch.inference_mode():
        expected = network(image).flip(-2)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.weight.copy_(layer.weight.flip(-2))
        exchange(network, -2)
        torch.testing.assert_close(network(image.flip(-2)), expected, rtol=1e-4, atol=1e-5)


def test_the_backward_direction_of_the_release_sees_the_image_through_the_forward_one():
    for wiring, blind in (("paper", False), ("release", True)):
        torch.manual_seed(0)
        sweep, x = Sweep(5, 6, wiring), noise(7, 2, 5)
        with torch.inference_mode():
            nn.init.zeros_(sweep.fwd.weight_in)
            assert torch.equal(sweep(x), sweep(noise(7, 2, 5, seed=1))) == blind


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_pixel_is_judged_from_the_whole_image(wiring):
    torch.manual_seed(0)
    network, image = ReSeg(1, 2, width=1 / 16, wiring=wiring).double().eval(), noise(1, 1, 24, 24).double().requires_grad_()
    for layer in (network.deconv0, network.deconv1):
        nn.init.constant_(layer.bias, 3.0)  # every ReLU lets gradients through
    for row, column in ((0, 0), (23, 0), (12, 23)):
        (seen,) = torch.autograd.grad(network(image)[0, :, row, column].sum(), image)
        assert all(corner.any() for corner in (seen[..., :4, :4], seen[..., :4, -4:], seen[..., -4:, :4], seen[..., -4:, -4:]))


# --- numbers of parameters

TRUNK_SHAPES = {
    "conv1_1": (64, 3, 3, 3),
    "conv1_2": (64, 64, 3, 3),
    "conv2_1": (128, 64, 3, 3),
    "conv2_2": (128, 128, 3, 3),
    "conv3_1": (256, 128, 3, 3),
    "conv3_2": (256, 256, 3, 3),
    "conv3_3": (256, 256, 3, 3),
}
HEAD_SHAPES = {"deconv0": (200, 50, 2, 2), "deconv1": (50, 50, 2, 2)}
SWEEPS = {  # inputs of the forward and of the backward direction
    "paper": {
        "renet0.horizontal": (256, 256),
        "renet0.vertical": (200, 200),
        "renet1.horizontal": (200, 200),
        "renet1.vertical": (200, 200),
    },
    "release": {
        "renet0.horizontal": (256, 100),
        "renet0.vertical": (200, 100),
        "renet1.horizontal": (200, 100),
        "renet1.vertical": (200, 100),
    },
}
PER_GRU = {256: 107_100, 200: 90_300, 100: 60_300}


# Trained with the trunk as it is, and all, by the number of classes.
COUNTS = {
    "reseg": {
        2: (806_202, 2_541_690),
        3: (806_253, 2_541_741),
        11: (806_661, 2_542_149),
        12: (806_712, 2_542_200),
        21: (807_171, 2_542_659),
    },
    "reseg_release": {
        2: (669_402, 2_404_890),
        3: (669_453, 2_404_941),
        11: (669_861, 2_405_349),
        12: (669_912, 2_405_400),
        21: (670_371, 2_405_859),
    },
}


@pytest.mark.parametrize("option", COUNTS)
def test_parameters_are_as_many_as_the_specification_counts(option):
    for classes, (trained, total) in COUNTS[option].items():
        network = described(option, 3, classes)
        assert counted(network) == (total, total)  # from scratch all of it has to learn
        assert (network.stride, network.margin, network.min_train_size) == (4, 0, 5)
        assert counted(described(option, 3, classes, freeze_trunk=True)) == (trained, total)
    for channels in (1, 13):
        assert counted(described(option, channels, 21))[1] == total + 64 * 9 * (channels - 3)


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize(("in_channels", "classes"), [(3, 12), (5, 2)])
def test_every_layer_has_the_specifications_shape(wiring, in_channels, classes):
    with without_numbers():
        network = ReSeg(in_channels, classes, wiring=wiring)
    wanted = {}
    for name, shape in TRUNK_SHAPES.items():
        shape = (64, in_channels, 3, 3) if name == "conv1_1" else shape
        wanted |= {f"trunk.{name}.weight": shape, f"trunk.{name}.bias": shape[:1]}
    for name, inputs in SWEEPS[wiring].items():
        for direction, size in zip(("fwd", "bwd"), inputs, strict=True):
            gru = f"{name}.{direction}"
            wanted |= {f"{gru}.weight_in": (300, size), f"{gru}.weight_hid": (300, 100), f"{gru}.bias": (300,)}
            assert sum(value.numel() for value in network.get_submodule(gru).parameters()) == PER_GRU[size]
    for name, shape in HEAD_SHAPES.items():
        wanted |= {f"{name}.weight": shape, f"{name}.bias": shape[1:2]}
    wanted |= {"score.weight": (classes, 50, 1, 1), "score.bias": (classes,)}
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == wanted


# --- settings


def test_the_first_weights_are_those_of_he_and_of_glorot():
    torch.manual_seed(0)
    network = ReSeg(3, 5, width=1 / 4)
    for layer in (network.deconv0, network.deconv1, network.score):
        bound = math.sqrt(6 / (layer.weight[0].numel() + layer.weight[:, 0].numel()))
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    weight = network.trunk.conv3_2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / weight[0].numel()), rel=0.02)


def test_a_frozen_trunk_gets_no_gradient_and_all_else_does():
    torch.manual_seed(0)
    network = ReSeg(3, 5, width=1 / 16, freeze_trunk=True)
    network(noise(1, 3, 16, 16)).square().sum().backward()
    for name, value in network.named_parameters():
        assert (value.grad is None) == name.startswith("trunk."), name


def test_trained_weights_of_the_trunk_are_found_by_the_authors_names(tmp_path):
    source = ReSeg(3, 5, width=1 / 16).trunk
    save_file(source.state_dict(), tmp_path / "vgg16.safetensors")
    network = ReSeg(3, 5, width=1 / 16, weights=str(tmp_path / "vgg16.safetensors"))
    given = source.state_dict()
    given["conv1_1.weight"] = given["conv1_1.weight"].flip(1)  # Caffe's sees blue, green and red
    assert all(torch.equal(value, given[name]) for name, value in network.trunk.state_dict().items())


@pytest.mark.parametrize("wrong", [{"wiring": "both"}, {"patches": ()}, {"patches": (1, 0)}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"ReSeg takes wiring paper\|release and patches"):
        ReSeg(3, 5, **wrong)
