"""Weights trained elsewhere, put into a network's trunk."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from voxtile.errors import ConfigError, listed, reason

# The weights of torchvision whose network is the paper's, trunk by trunk. Its AlexNet has one tower and no normalisation, its
# GoogLeNet batch normalisation and other kernels: neither is the paper's, so they are not here.
IMAGENET: Mapping[str, str] = {
    "vgg16": "VGG16_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
    "resnet101": "ResNet101_Weights.IMAGENET1K_V1",
    "resnet152": "ResNet152_Weights.IMAGENET1K_V1",
}
FIRST = ("conv1_1", "conv1")  # the authors' names of layers that see the image, as far as a slash
_VGG16 = dict(
    zip(
        [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), start=1) for i in range(1, n + 1)],
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        strict=True,
    )
)
_BLOCK = re.compile(r"(res|bn|scale)([2-5])([a-z])(\d*)_branch(1|2[abc])")  # the authors' layers of a ResNet's block


def transplant(layers: Mapping[str, nn.Module], weights: str | None, trunk: str) -> None:
    """Copies trained weights into layers.

    A fully connected layer's weights are folded into the convolution that stands for it. Where the image has not 3 channels,
    each channel of the first layer gets the mean of the trained three, times 3 / channels: for an image whose channels are alike
    the responses stay what they were.

    A file with the authors' names holds a Caffe network, which sees blue, green and red, from 0 to 255 minus a mean: the three
    channels of its first layer are reversed, so that it sees them in an image of red, green and blue, and it wants
    `normalise=caffe`. Torchvision's weights see red, green and blue, and want `normalise=imagenet`. Weights of a run of one's own
    are for `init_from`.

    Args:
        layers: by the names that the papers' authors gave them: conv1_1, fc6, res2_0.branch2a.
        weights: "imagenet" for torchvision's weights (fetched once, checked by their hash), or a file (.safetensors, or
            PyTorch's own, of which only tensors are read) with the authors' names or torchvision's; None leaves the layers
            as they are.
        trunk: which network the layers are of, a key of `IMAGENET` where there are such weights.

    Raises:
        ConfigError: The weights cannot be had or read, or do not fit a layer.
    """
    if weights is None or any(value.is_meta for layer in layers.values() for value in layer.parameters()):
        return
    if weights == "imagenet":
        _fitted(layers, _shapes(trunk), weights, trunk)  # what cannot fit is not fetched
        source = _imagenet(trunk)
    else:
        source = _of_caffe(_read(Path(weights).expanduser()))
    for name, found in _fitted(layers, source, weights, trunk).items():
        layers[name].load_state_dict(found, strict=False)


def _fitted(
    layers: Mapping[str, nn.Module], source: Mapping[str, Tensor], weights: str, trunk: str
) -> Mapping[str, Mapping[str, Tensor]]:
    """The tensors of each layer, in its shapes."""
    # Told by the names that differ: ResNet's first layer is called conv1 by both.
    torchvisions = any(f"{their_name(trunk, name)}.weight" in source for name in layers if their_name(trunk, name) != name)
    fitted: dict[str, dict[str, Tensor]] = {}
    for name, layer in layers.items():
        found = fitted.setdefault(name, {})
        for key, value in layer.state_dict().items():
            candidates = [f"{name}.{key}", f"{their_name(trunk, name)}.{key}"]
            given = next((source[c] for c in candidates if c in source), None)
            if given is None:
                if key == "num_batches_tracked":
                    continue
                raise ConfigError(
                    f"The weights '{weights}' hold no '{candidates[0]}' (nor '{candidates[1]}'); they hold {listed(source, 6)}. "
                    f"Expected the weights of {trunk} under its authors' names or torchvision's."
                )
            shape = tuple(given.shape)
            if name.partition("/")[0] in FIRST and key == "weight" and given.ndim == 4:
                if given.shape[1] != value.shape[1]:
                    given = given.mean(dim=1, keepdim=True).expand(-1, value.shape[1], -1, -1) * (given.shape[1] / value.shape[1])
                elif given.shape[1] == 3 and not torchvisions:
                    given = given.flip(1)
            if not _fits(given.shape, value.shape):
                raise ConfigError(
                    f"'{name}.{key}' of the weights '{weights}' has the shape {shape}; the network's has {tuple(value.shape)}. "
                    "Trained weights need the paper's number of channels (type 'model.width=1'), and their axes PyTorch's order: "
                    "filters, channels, height, width."
                )
            found[key] = given.reshape(value.shape).to(value.dtype)
    return fitted


def _fits(given: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a shape is the wanted one, or a fully connected layer's [out, in · h · w]; in Caffe's old files after ones."""

    def stripped(shape: Sequence[int]) -> Sequence[int]:
        return stripped(shape[1:]) if shape and shape[0] == 1 else tuple(shape)

    return stripped(given) in (stripped(wanted), stripped((*wanted[:1], math.prod(wanted[1:]))))


def _of_caffe(source: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a file under the names that they have here: weights and biases of Caffe's layers may be numbered, 0 and 1.

    Caffe's ResNets number blocks by letters (res2a, res4b22), and normalise in two layers: bn… has a mean and a variance, both to
    be divided by its third number, scale… the rest. A bias of conv1 (in ResNet-50) goes into the mean that is subtracted after it.
    """
    found: dict[str, Tensor] = {}
    for name, value in source.items():
        layer, _, blob = name.rpartition(".")
        kind = layer.partition("_")[0]
        if block := _BLOCK.fullmatch(layer):
            kind, stage, letter, number, branch = block.groups()
            layer = f"res{stage}_{number or ord(letter) - ord('a')}.{'branch' if kind == 'res' else 'bn'}{branch}"
        elif layer == "scale_conv1":
            layer = "bn_conv1"
        if blob in ("0", "1"):
            if kind == "bn":
                factor = float(source.get(f"{name[:-1]}2", 1.0))
                value = value / factor if factor else torch.zeros_like(value)  # what Caffe makes of it, too
            blob = (("running_mean", "running_var") if kind == "bn" else ("weight", "bias"))[int(blob)]
        found[f"{layer}.{blob}" if layer else blob] = value
    if "conv1.bias" in found and "bn_conv1.running_mean" in found:
        found["bn_conv1.running_mean"] = found["bn_conv1.running_mean"] - found.pop("conv1.bias")
    return found


def their_name(trunk: str, name: str) -> str:
    """The name that torchvision gives a layer."""
    if trunk == "vgg16":
        return {"fc6": "classifier.0", "fc7": "classifier.3"}.get(name) or (f"features.{_VGG16[name]}" if name in _VGG16 else name)
    if name in ("conv1", "bn_conv1"):
        return {"conv1": "conv1", "bn_conv1": "bn1"}[name]
    stage, _, rest = name.partition(".")
    if not stage.startswith("res"):
        return name
    level, _, block = stage[3:].partition("_")
    inner = {"branch1": "downsample.0", "bn1": "downsample.1"}
    for number, letter in enumerate("abc", start=1):
        inner |= {f"branch2{letter}": f"conv{number}", f"bn2{letter}": f"bn{number}"}
    return f"layer{int(level) - 1}.{block}.{inner[rest]}"


def _shapes(trunk: str) -> Mapping[str, Tensor]:
    """Torchvision's network without its numbers."""
    if trunk not in IMAGENET:
        raise ConfigError(
            f"There are no ImageNet weights for {trunk} that fit the paper's network. Type 'model.weights=null' to start from "
            "scratch, or give a file of the authors' weights: 'model.weights=<file>'."
        )
    import torchvision

    with torch.device("meta"):
        described: Mapping[str, Tensor] = torchvision.models.get_model(trunk).state_dict()
    return described


def _imagenet(trunk: str) -> Mapping[str, Tensor]:
    import torchvision

    known = torchvision.models.get_weight(IMAGENET[trunk])
    try:
        state: Mapping[str, Tensor] = known.get_state_dict(check_hash=True, weights_only=True)
        return state
    except (OSError, RuntimeError) as error:  # no network (urllib's errors are OSErrors), or a hash that is not right
        raise ConfigError(
            f"The ImageNet weights of {trunk} could not be fetched: {reason(error)}. Fetch {known.url} on a machine with a "
            "network and type 'model.weights=<file>'. To start from scratch, leave a recipe (experiment=…) out, whose rates and "
            "frozen layers are made for these weights: 'model=<option>' alone, whose file in conf/model says what that wants."
        ) from error


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or a planted file
        raise ConfigError(
            f"'model.weights={path}' cannot be read: {reason(error).partition('.')[0]}. Expected a file of tensors (.safetensors, "
            "or a state dictionary saved by PyTorch), or 'imagenet'."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"'model.weights={path}' holds no plain mapping of names to tensors. Save the network's state_dict().")
    return state
