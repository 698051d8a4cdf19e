import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from tests.testers.networks import noise
from voxtile.errors import ConfigError
from voxtile.models.layers import channels, he_normal
from voxtile.models.trunks.alexnet import AlexNet, LocalResponseNorm
from voxtile.models.trunks.googlenet import GoogLeNet
from voxtile.models.trunks.resnet import ResNet
from voxtile.models.trunks.vgg16 import VGG16
from voxtile.models.weights import their_name, transplant


def count(network):
    return sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize(
    ("build", "convolutions"),
    [
        (VGG16, 14_714_688),
        (lambda channels: VGG16(channels, pools=[None] * 3), 1_735_488),
        (GoogLeNet, 5_973_552),
        # Without the classifier 56,868,224, of which fc6 and fc7 are no part of the trunk.
        (AlexNet, 56_868_224 - 256 * 36 * 4096 - 4096 - 4096 * 4096 - 4096),
    ],
    ids=["vgg16", "vgg16 through conv3_3", "googlenet", "alexnet"],
)
def test_a_trunk_has_as_many_parameters_as_its_release(build, convolutions):
    with torch.device("meta"):
        assert count(build(3)) == convolutions
        first = next(build(3).parameters())
        assert count(build(5)) == convolutions + 2 * first[:, 0].numel()


def test_vgg16_gives_the_features_of_torchvisions():
    torch.manual_seed(0)
    theirs = make_layers(cfgs["D"]).eval()
    he_normal(theirs)
    for layer in theirs:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.bias, std=0.1)
    ours = VGG16(3, pools=[nn.MaxPool2d(2) for _ in range(5)]).eval()
    convolutions = [layer for name, layer in ours.named_children() if name.startswith("conv")]
    for own, other in zip(convolutions, [layer for layer in theirs if isinstance(layer, nn.Conv2d)], strict=True):
        own.load_state_dict(other.state_dict())
    image = noise(1, 3, 33, 47)
    with torch.inference_mode():
        found = ours(image)
        x, pooled = image, []
        for layer in theirs:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pooled.append(x)
    assert len(found) == len(pooled) == 5
    for own, other in zip(found, pooled, strict=True):
        assert other.std() > 0.1
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def test_the_local_response_is_that_of_a_plain_loop_and_of_pytorch():
    x = 30 * noise(2, 7, 3, 4).double()
    expected = torch.empty_like(x)
    for channel in range(7):
        total = sum(x[:, other] ** 2 for other in range(max(channel - 2, 0), min(channel + 3, 7)))
        expected[:, channel] = x[:, channel] / (1 + 1e-4 * total / 5) ** 0.75
    assert not torch.allclose(expected, x, rtol=1e-2)
    torch.testing.assert_close(LocalResponseNorm()(x), expected)
    torch.testing.assert_close(LocalResponseNorm()(x), nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)(x))


def test_alexnet_has_two_towers_that_meet_in_the_third_convolution():
    torch.manual_seed(0)
    network = AlexNet(3, 1 / 8)
    he_normal(network)
    for name, together in {"conv2": False, "conv3": True, "conv4": False, "conv5": False}.items():
        layer = getattr(network, name)
        x = noise(1, layer.in_channels, 6, 6).requires_grad_()
        layer(x)[:, layer.out_channels // 2 :].sum().backward()
        assert x.grad[:, layer.in_channels // 2 :].all(), name
        assert x.grad[:, : layer.in_channels // 2].any() == together, name


@pytest.mark.parametrize("width", [1 / 64, 1 / 7, 0.3])
def test_alexnets_towers_stay_alike_at_any_width(width):
    network = AlexNet(3, width)
    assert all(layer.out_channels % 2 == 0 for layer in network.children() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize(("trunk", "channels", "side"), [(AlexNet, 256, 6), (GoogLeNet, 1024, 7)])
def test_the_size_of_imagenets_pictures_gives_the_maps_of_the_papers(trunk, channels, side):
    with torch.device("meta"):
        picture = torch.empty(1, 3, 227 if trunk is AlexNet else 224, 227 if trunk is AlexNet else 224)
        assert trunk(3)(picture).shape == (1, channels, side, side)


def test_an_inception_module_keeps_its_branches_in_the_papers_order():
    torch.manual_seed(0)
    module = GoogLeNet(3, 1 / 8).inception_3a
    ends = ["1x1", "3x3", "5x5", "pool_proj"]
    x = noise(1, module["1x1"].in_channels, 6, 6)
    sizes = [module[end].out_channels for end in ends]
    assert sizes == [8, 16, 4, 4]
    with torch.inference_mode():
        for number, end in enumerate(ends):
            nn.init.constant_(module[end].bias, 10.0 * (number + 1))
            nn.init.zeros_(module[end].weight)
        parts = module(x).split(sizes, dim=1)
    assert [part.unique().tolist() for part in parts] == [[10], [20], [30], [40]]


# --- weights trained elsewhere


def layers_of(trunk, channels=3):
    """A small trunk's layers by their authors' names."""
    if trunk == "resnet50":
        return ResNet(channels, 50, width=1 / 16).layers()
    if trunk == "googlenet":
        return GoogLeNet(channels, 1 / 8).layers()
    network = VGG16(channels, 1 / 16) if trunk == "vgg16" else AlexNet(channels, 1 / 16)
    return {name: layer for name, layer in network.named_children() if name.startswith("conv")}


def file_of(path, layers, rename=lambda name: name):
    """A file of the layers' weights; returns what it holds."""
    state = {f"{rename(name)}.{key}": value.clone() for name, layer in layers.items() for key, value in layer.state_dict().items()}
    save_file(state, path)
    return state


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(
    ("trunk", "first", "names"),
    [
        ("vgg16", "conv1_1", "authors'"),
        ("vgg16", "conv1_1", "torchvision's"),
        ("resnet50", "conv1", "authors'"),
        ("resnet50", "conv1", "torchvision's"),
        ("alexnet", "conv1", "authors'"),
        ("googlenet", "conv1/7x7_s2", "authors'"),
    ],
)
def test_a_network_of_caffes_sees_blue_green_and_red_and_torchvisions_red_green_and_blue(trunk, first, names, channels, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "trained.safetensors"
    rename = (lambda name: name) if names == "authors'" else lambda name: their_name(trunk, name)
    state = file_of(path, layers_of(trunk), rename)
    layers = layers_of(trunk, channels)
    transplant(layers, str(path), trunk)
    weight = state.pop(f"{rename(first)}.weight")
    image = noise(2, 3, 32, 32)  # red, green and blue
    with torch.inference_mode():
        if channels == 3:
            seen = image.flip(1) if names == "authors'" else image
            found, expected = (nn.functional.conv2d(x, w) for x, w in ((image, layers[first].weight), (seen, weight)))
        else:  # grey images give what they gave
            found = nn.functional.conv2d(image[:, :1].expand(-1, channels, -1, -1), layers[first].weight)
            expected = nn.functional.conv2d(image[:, :1].expand(-1, 3, -1, -1), weight)
    torch.testing.assert_close(found, expected)
    for name, layer in layers.items():
        for key, value in layer.state_dict().items():
            if (name, key) != (first, "weight"):
                assert torch.equal(value, state[f"{rename(name)}.{key}"]), (name, key)


def test_only_the_layer_that_sees_the_image_is_reversed(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "fc.safetensors"
    layers = {"fc6": nn.Conv2d(3, 4, 3), "fc7": nn.Conv2d(4, 4, 1)}  # DeepLab's are loaded by themselves
    state = file_of(path, layers)
    for layer in layers.values():
        nn.init.zeros_(layer.weight)
    transplant(layers, str(path), "DeepLab")
    assert all(torch.equal(layer.weight, state[f"{name}.weight"]) for name, layer in layers.items())


@pytest.mark.parametrize(
    ("given", "wanted", "fits"),
    [
        ((4, 18), (4, 2, 3, 3), True),  # a fully connected layer's
        ((1, 1, 4, 18), (4, 2, 3, 3), True),
        ((1, 1, 1, 4), (4,), True),
        ((4, 2), (4, 2, 1, 1), True),
        ((1,), (), True),
        ((3, 3, 2, 4), (4, 2, 3, 3), False),
        ((4, 3, 3, 2), (4, 2, 3, 3), False),
        ((2, 4), (4, 2, 1, 1), False),
        ((18, 4), (4, 2, 3, 3), False),
        ((72,), (4, 2, 3, 3), False),
    ],
)
def test_weights_are_taken_in_the_order_that_convolutions_have_and_in_no_other(given, wanted, fits, tmp_path):
    layer = nn.Module()
    layer.register_buffer("weight", torch.zeros(wanted))
    weights = noise(*given)
    save_file({"fc6.weight": weights}, tmp_path / "file.safetensors")
    if fits:
        transplant({"fc6": layer}, str(tmp_path / "file.safetensors"), "DeepLab")
        assert torch.equal(layer.weight, weights.view(wanted))
    else:
        shapes = ".*".join(re.escape(str(shape)) for shape in (given, wanted))
        with pytest.raises(ConfigError, match=f"'fc6.weight' .*{shapes}.*filters, channels, height, width"):
            transplant({"fc6": layer}, str(tmp_path / "file.safetensors"), "DeepLab")


@pytest.mark.parametrize("width", [0, -1, float("nan"), float("inf"), "wide"])
def test_a_width_that_is_no_factor_is_refused(width):
    with pytest.raises(ValueError, match="a number above 0"):
        channels(64, width)


@pytest.mark.parametrize(
    ("trunk", "build"), [("vgg16", lambda: VGG16(3, 1 / 16)), ("resnet50", lambda: ResNet(3, depth=50, width=1 / 16))]
)
def test_weights_that_cannot_fit_are_not_fetched(trunk, build, monkeypatch):
    for download in ("torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file", "urllib.request.urlopen"):
        monkeypatch.setattr(download, lambda *args, **named: pytest.fail("downloads"))
    layers = {name: layer for name, layer in build().named_modules() if isinstance(layer, nn.Conv2d)}
    with pytest.raises(ConfigError, match=r"model\.width=1"):
        transplant(layers, "imagenet", trunk)


def test_where_nothing_can_be_fetched_the_way_out_is_said(monkeypatch):
    def unreachable(*args, **named):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    layers = {name: layer for name, layer in VGG16(3).named_children() if isinstance(layer, nn.Conv2d)}
    with pytest.raises(ConfigError, match=r"no route to host.*https://.*vgg16.*'model\.weights=<file>'.*leave a recipe"):
        transplant(layers, "imagenet", "vgg16")
