import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tests.testers.networks import counted, noise, without_numbers
from tests.testers.resnet import specification
from tests.testers.sequence import executed
from voxtile.errors import ConfigError
from voxtile.models.layers import he_normal
from voxtile.models.trunks.resnet import FrozenNorm, ResNet
from voxtile.models.weights import transplant


def described(depth=101, **settings):
    with without_numbers():
        return ResNet(3, depth, **settings)


def with_statistics(network, seed=0):
    """The network with running statistics, scales and shifts that differ from channel to channel."""
    for number, layer in enumerate(network.modules()):
        if isinstance(layer, nn.BatchNorm2d | FrozenNorm):
            with torch.no_grad():
                for offset, value in enumerate((layer.weight, layer.bias, layer.running_mean, layer.running_var)):
                    value.copy_(0.1 * noise(*value.shape, seed=seed + 4 * number + offset) + (offset in (0, 3)))
                layer.running_var.clamp_(min=0.3)
    return network


# --- the specification


def test_there_are_as_many_parameters_as_in_the_released_networks():
    # The authors' ResNet-50 has 64 more: a bias in conv1, which goes into the mean that is subtracted after it.
    assert {depth: counted(described(depth))[1] for depth in (50, 101, 152)} == {
        50: 23_508_096 - 64,
        101: 42_500_160,
        152: 58_143_808,
    }


SHAPES = {
    "conv1": (64, 3, 7, 7), "bn_conv1": (64,),
    "res2_0.branch2a": (64, 64, 1, 1), "res2_0.branch2b": (64, 64, 3, 3), "res2_0.branch2c": (256, 64, 1, 1),
    "res2_0.bn2a": (64,), "res2_0.bn2c": (256,), "res2_0.branch1": (256, 64, 1, 1), "res2_0.bn1": (256,),
    "res2_1.branch2a": (64, 256, 1, 1), "res3_0.branch2a": (128, 256, 1, 1), "res3_0.branch2b": (128, 128, 3, 3),
    "res3_0.branch2c": (512, 128, 1, 1), "res3_0.branch1": (512, 256, 1, 1), "res4_0.branch2a": (256, 512, 1, 1),
    "res4_0.branch2b": (256, 256, 3, 3), "res4_0.branch2c": (1024, 256, 1, 1), "res4_0.branch1": (1024, 512, 1, 1),
    "res4_22.branch2c": (1024, 256, 1, 1), "res5_0.branch2a": (512, 1024, 1, 1), "res5_0.branch2b": (512, 512, 3, 3),
    "res5_0.branch2c": (2048, 512, 1, 1), "res5_0.branch1": (2048, 1024, 1, 1), "res5_0.bn1": (2048,), "res5_2.bn2c": (2048,),
}  # fmt: skip


def test_layers_have_the_authors_names_and_shapes():
    layers = described().layers()
    assert next(iter(layers)) == "conv1"
    assert {name: tuple(layers[name].weight.shape) for name in SHAPES} == SHAPES
    assert [name for name in layers if "branch1" in name] == [f"res{stage}_0.branch1" for stage in (2, 3, 4, 5)]
    assert all(layer.bias is None for layer in layers.values() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize(
    ("depth", "blocks", "output_stride", "strides", "dilations", "stride_on", "frozen"),
    [
        (101, (3, 4, 23, 3), 8, (1, 2, 1, 1), (1, 1, 2, 4), "1x1", True),
        (50, (3, 4, 6, 3), 16, (1, 2, 2, 1), (1, 1, 1, 2), "1x1", False),
        (50, (3, 4, 6, 3), 8, (1, 2, 1, 1), (1, 1, 2, 4), "3x3", False),
        (50, (3, 4, 6, 3), 32, (1, 2, 2, 2), (1, 1, 1, 1), "3x3", True),
        (152, (3, 8, 36, 3), 32, (1, 2, 2, 2), (1, 1, 1, 1), "1x1", False),
    ],
)
def test_what_is_executed_is_the_specification(depth, blocks, output_stride, strides, dilations, stride_on, frozen):
    network = described(depth, output_stride=output_stride, stride_on=stride_on, frozen_norm=frozen).eval()
    lines = executed(network, torch.zeros(1, 3, 65, 65, device="meta"))
    assert lines == specification(blocks, strides, dilations, stride_on == "3x3")


@pytest.mark.parametrize(("output_stride", "sizes"), [(8, [81, 41, 41, 41]), (16, [81, 41, 21, 21]), (32, [81, 41, 21, 11])])
def test_results_have_the_sizes_of_the_output_stride(output_stride, sizes):
    found = described(50, output_stride=output_stride)(torch.zeros(1, 3, 321, 321, device="meta"))
    assert [x.shape[-1] for x in found] == sizes
    assert [x.shape[1] for x in found] == [256, 512, 1024, 2048]


# --- against torchvision


def test_with_strides_on_the_3x3_and_their_weights_it_is_torchvisions_network(tmp_path):
    theirs = with_statistics(torchvision.models.resnet50(weights=None)).eval()
    save_file(theirs.state_dict(), tmp_path / "resnet50.safetensors")
    ours = ResNet(3, 50, output_stride=32, stride_on="3x3").eval()
    transplant(ours.layers(), str(tmp_path / "resnet50.safetensors"), "resnet50")
    image = noise(1, 3, 65, 97)
    with torch.inference_mode():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        expected = []
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            x = stage(x)
            expected.append(x)
        for found, wanted in zip(ours(image), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def in_caffe(network, depth, factor):
    """A ResNet's tensors as Caffe has them, numbered in each layer, and its oldest files shape them."""
    state = {}
    for name, layer in network.layers().items():
        block, _, part = name.rpartition(".")
        if block:
            stage, number = block[3:].split("_")
            # Of many blocks, those after the first are b1, b2, …
            letters = f"b{number}" if depth > 50 and stage in "34" and number != "0" else "abcdef"[int(number)]
            name = f"{stage}{letters}_branch{part[2:] if part.startswith('bn') else part[6:]}"
        if isinstance(layer, nn.Conv2d):
            state[f"res{name}.0" if block else "conv1.0"] = layer.weight
        else:
            name = name if block else "_conv1"
            state[f"bn{name}.0"] = layer.running_mean * factor
            state[f"bn{name}.1"] = layer.running_var * factor
            state[f"bn{name}.2"] = torch.tensor([factor])
            state[f"scale{name}.0"] = layer.weight.view(1, 1, 1, -1)
            state[f"scale{name}.1"] = layer.bias.view(1, 1, 1, -1)
    return {name: value.detach().clone() for name, value in state.items()}


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("biased", [False, True])
def test_the_authors_networks_in_caffe_give_what_they_gave(depth, biased, tmp_path):
    torch.manual_seed(0)
    theirs = with_statistics(ResNet(3, depth, width=1 / 16)).eval()
    state, bias = in_caffe(theirs, depth, 999.5), noise(4)
    assert {"scale_conv1.1", "res2a_branch1.0", "bn5c_branch2b.2"} < set(state)
    assert ("res4b22_branch2c.0" if depth == 101 else "res4f_branch2c.0") in state
    if biased:
        state["conv1.1"] = bias
        theirs.conv1.bias = nn.Parameter(bias)
    save_file(state, tmp_path / "caffe.safetensors")
    ours = ResNet(3, depth, width=1 / 16, frozen_norm=True).eval()
    transplant(ours.layers(), str(tmp_path / "caffe.safetensors"), f"resnet{depth}")
    image = noise(1, 3, 65, 65)
    with torch.inference_mode():
        # Caffe's sees blue, green and red.
        for found, wanted in zip(ours(image), theirs(image.flip(1)), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def test_weights_of_another_depth_are_refused(tmp_path):
    save_file(ResNet(3, 50, width=1 / 16).state_dict(), tmp_path / "resnet50.safetensors")
    with pytest.raises(ConfigError, match="hold no 'res3_4"):
        transplant(ResNet(3, 152, width=1 / 16).layers(), str(tmp_path / "resnet50.safetensors"), "resnet152")


# --- normalisation


def test_frozen_normalisation_is_pytorchs_in_evaluation_and_stays_so_in_training():
    frozen, reference = FrozenNorm(6), nn.BatchNorm2d(6).eval()
    with_statistics(nn.ModuleList([frozen]))
    reference.load_state_dict(frozen.state_dict())
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    image = noise(2, 6, 5, 4)
    for mode in (False, True):
        torch.testing.assert_close(frozen.train(mode)(image), reference(image))
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())
    assert not any(value.requires_grad for value in frozen.parameters())


def test_weights_go_from_frozen_to_learning_normalisation_and_back():
    learning = with_statistics(ResNet(3, 50, width=1 / 32))
    frozen = ResNet(3, 50, width=1 / 32, frozen_norm=True)
    frozen.load_state_dict(learning.state_dict())
    learning.load_state_dict(frozen.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(frozen(noise(1, 3, 33, 33))[-1], learning.eval()(noise(1, 3, 33, 33))[-1])


def test_from_scratch_activations_keep_their_size_where_normalisation_learns():
    torch.manual_seed(0)
    sizes = {}
    for frozen in (False, True):
        network = ResNet(3, 101, width=1 / 8, frozen_norm=frozen)
        he_normal(network)
        with torch.no_grad():
            sizes[frozen] = [x.square().mean().sqrt().item() for x in network.train()(noise(2, 3, 65, 65))]
    assert 0.3 < min(sizes[False]) < max(sizes[False]) < 10
    assert sizes[True][-1] > 1000  # which is why freezing is not what a network from scratch does


@pytest.mark.parametrize("wrong", [{"depth": 34}, {"output_stride": 4}, {"stride_on": "2x2"}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="ResNet takes depth 50, 101 or 152"):
        ResNet(3, **wrong)
