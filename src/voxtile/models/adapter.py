"""Networks of other zoos, made to fit: any image size, one tensor out, channels and classes under the names they take."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from voxtile.errors import ConfigError, reason
from voxtile.models.network import Network, Output, ScoreMap, second_names
from voxtile.models.sizes import crop_to, pad_to

CLASSES = ("num_classes", "out_channels", "classes")  # what libraries call the number of score maps: torchvision, MONAI, smp
CHANNELS = ("in_channels", "num_channels", "in_chans")  # and that of the image's channels: most, MONAI's QuickNAT, timm
HALVINGS = 32  # five, which is as many as the usual networks have
LAST = ("BasicUNetPlusPlus",)  # networks that give several maps of one size, of which the last is the result


class Adapted(Network):
    """A network of another library, in what every network keeps.

    The image is padded at its ends to a multiple of the network's stride by repeating its last pixels, and the logits are cropped
    back. The coarsest map has at least two pixels, without which there are no statistics to normalise by.

    Several score maps (deep supervision, auxiliary heads) become an `Output` in training, with the weights 1, 1/2, 1/4, … from the
    final map on, divided by their sum; in evaluation the final map alone is returned.

    Attributes:
        network: the library's own.
        stride: by how much its coarsest map is smaller than the image, along the axis where most.
        margin: 0.
        min_train_size: 1, since the network sees no less than its stride anyway.
        min_train_batch: least images in a batch in training, 2 where one value per channel is normalised after global pooling.
        dims: 2 for images [B, C, H, W], 3 for [B, C, D, H, W].
    """

    def __init__(
        self,
        network: Callable[..., nn.Module],
        in_channels: int,
        num_classes: int,
        stride: int | None = None,
        min_train_batch: int = 1,
        dims: int | None = None,
        final: str | None = None,
    ) -> None:
        """Builds the network.

        Args:
            network: builds the library's network of keyword arguments; all but the numbers of channels and classes are bound, as
                by a `_target_` with `_partial_: true`.
            in_channels: channels of the image. A builder that takes none (torchvision's) gets its first convolution replaced:
                drawn anew as torchvision does, or, where its weights are trained, the mean over the trained channels, times trained
                channels / channels, for each.
            num_classes: score maps.
            stride: see the class; where None, it follows from the network's strides, and is 32 where it has none.
            min_train_batch: see the class.
            dims: see the class; where None, the network's `spatial_dims`, else its attribute `dims`, else 2.
            final: which of several score maps in a list is the result, "first" or "last"; where None, the last one if it is larger
                than the first, or if the network is MONAI's UNet++, else the first.

        Raises:
            ValueError: `network` builds no network, has nowhere to put the number of classes, or another one already.
            ConfigError: A package that the library needs for it is not installed.
        """
        super().__init__()
        if not isinstance(network, functools.partial):
            raise ValueError(f"'network' must hold a '_target_' and '_partial_: true', not {network!r}")
        network = functools.partial(network.func, *network.args, **_plain(network.keywords))
        given = network.keywords
        self.network = _built(network, in_channels, num_classes)
        spatial = given.get("spatial_dims", _default(network, "spatial_dims", None))
        own = getattr(self.network, "dims", None)  # which may mean anything in other people's networks
        self.dims = next(int(each) for each in (dims, spatial, own if own in (2, 3) else None, 2) if each is not None)
        if self.dims not in (2, 3) or final not in (None, "first", "last"):
            raise ValueError(f"'dims' is 2 or 3, and 'final' first or last, not {self.dims} and {final}")
        last = any(kind.__name__ in LAST for kind in type(self.network).__mro__)
        self.final = "last" if final is None and last else final
        self.strides = _strides(self.network, given, self.dims) if stride is None else (stride,) * self.dims
        if min(self.strides) < 1 or min_train_batch < 1:
            raise ValueError(f"'stride' and 'min_train_batch' are 1 or more, not {stride} and {min_train_batch}")
        self.stride, self.min_train_batch = max(self.strides), min_train_batch
        # Some libraries register a layer under two names, which safetensors does not take: one is kept, and read for both.
        self.register_state_dict_post_hook(_drop_second_names)  # type: ignore[no-untyped-call]  # torch's own has no types
        self.register_load_state_dict_pre_hook(_add_second_names)  # type: ignore[no-untyped-call]  # likewise

    def forward(self, image: Tensor) -> Tensor | Output:
        """Maps an image [B, C, H, W] ([B, C, D, H, W] if `dims` is 3) to logits [B, num_classes, …] of the same size.

        Returns:
            In training of a network with several score maps, an `Output`.

        Raises:
            ConfigError: The batch is smaller than the network can train on, or what it gives are no score maps that can be judged.
        """
        if self.training and len(image) < self.min_train_batch:
            raise self._too_few(len(image), self.min_train_batch)
        padded = self._padded(image)
        try:
            maps = self._maps(self.network(padded))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # what PyTorch says of a batch without statistics
                raise
            raise self._too_few(len(image), len(image) + 1) from error
        if len(maps) == 1 or not self.training:
            return crop_to(maps[0], image.shape[2:])
        total = 2 - 2 ** (1 - len(maps))
        return Output([self._score_map(logits, image, padded, 2**-i / total) for i, logits in enumerate(maps)])

    def _too_few(self, images: int, least: int) -> ConfigError:
        return ConfigError(
            f"{type(self.network).__name__} normalises one value per channel after pooling the whole image, and cannot learn "
            f"from a batch of {images}. Type 'training.batch_size={least}' or more, with at least as many in each part of "
            "'training.accumulate'."
        )

    def _padded(self, image: Tensor) -> Tensor:
        sides = [-(-side // stride) * stride for side, stride in zip(image.shape[2:], self.strides, strict=True)]
        if sides == list(self.strides):
            sides[-1] *= 2
        return pad_to(image, sides)

    def _maps(self, output: Any) -> list[Tensor]:
        """Score maps [B, K, …], the final one first."""
        if isinstance(output, Mapping):  # torchvision: "out" and, in training, "aux"
            maps = [output["out"], *(output[key] for key in output if key != "out")] if "out" in output else []
        elif isinstance(output, Tensor):  # DynUNet stacks its maps along a second axis
            maps = [output] if output.ndim == self.dims + 2 else list(output.unbind(1))
        else:  # a variational encoder that learns nothing gives None beside the scores
            maps = [each for each in output if each is not None] if isinstance(output, Sequence) else []
        if not maps or not all(isinstance(logits, Tensor) and logits.ndim == self.dims + 2 for logits in maps):
            raise ConfigError(
                f"{type(self.network).__name__} gives no score maps but {_described(output)}. Take out what makes it return more "
                "(such as smp's 'aux_params'), or choose a network for segmentation."
            )
        if isinstance(output, Sequence) and (self.final or ("last" if _pixels(maps[-1]) > _pixels(maps[0]) else "first")) == "last":
            maps.reverse()
        return maps

    def _score_map(self, logits: Tensor, image: Tensor, padded: Tensor, weight: float) -> ScoreMap:
        """A map of the image's size, or a coarser one, each of whose places is judged by the pixel at its middle."""
        if logits.shape[2:] == padded.shape[2:]:
            return ScoreMap(crop_to(logits, image.shape[2:]), weight=weight)
        if self.dims == 3:
            raise ConfigError(
                f"{type(self.network).__name__} gives a map of size {tuple(logits.shape[2:])} for a volume of size "
                f"{tuple(padded.shape[2:])} in training, and coarser maps are judged in images only. Turn its deep supervision off "
                "(MONAI's 'deep_supervision=false', or 'dsdepth=1'), or have the class bring its maps to the volume's size."
            )
        axes = zip(logits.shape[2:], padded.shape[2:], image.shape[2:], strict=True)
        rows, columns = (_middles(count, after / count, before, logits.device) for count, after, before in axes)
        return ScoreMap(logits, rows, columns, weight)


def _middles(count: int, step: float, size: int, device: torch.device) -> Tensor:
    """The pixels at the middle of `count` places, `step` pixels wide each; -1 where they are padding, past `size`."""
    places = ((torch.arange(count, device=device, dtype=torch.float64) + 0.5) * step).floor().long()
    return torch.where(places < size, places, -1)


def _plain(value: Any) -> Any:
    """Lists and dicts for what only behaves like them: libraries ask for the type."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | tuple):
        return [_plain(item) for item in value]
    return value


def _default(network: functools.partial[nn.Module], name: str, otherwise: Any) -> Any:
    found = inspect.signature(network.func).parameters.get(name)
    return otherwise if found is None or found.default is found.empty else found.default


def lacking(error: ImportError) -> str:
    """What to say, after a network's name, of a package that it did not find; MONAI adds a traceback in further lines."""
    first = str(error).partition("\n")[0]
    return (
        f"needs a package that is not installed: {reason(ImportError(first))}. Type pip install 'voxtile[zoo]', which brings what "
        "the networks of other libraries need."
    )


def _built(network: functools.partial[nn.Module], in_channels: int, num_classes: int) -> nn.Module:
    taken, given = inspect.signature(network.func).parameters, network.keywords
    label = getattr(network.func, "__name__", repr(network.func))
    classes = next((name for name in CLASSES if name in taken), None)
    if classes is None:
        raise ValueError(f"{label} takes the number of classes under none of the names {', '.join(CLASSES)}")
    channels = next((name for name in CHANNELS if name in taken), None)
    wanted = {classes: num_classes} | ({channels: in_channels} if channels else {})
    for name, value in wanted.items():
        if given.get(name, value) != value:
            raise ValueError(f"'{name}={given[name]}' is said by the data, which has {value}: leave it out")
    try:
        built = network(**wanted)
    except ImportError as error:
        raise ConfigError(f"{label} {lacking(error)}") from error
    except (RuntimeError, NotImplementedError):
        if torch.get_default_device().type != "meta":
            raise
        with torch.device("cpu"):  # some constructors compute with numbers that are on no device
            built = network(**wanted)
        built = built.to("meta")
    if not isinstance(built, nn.Module):
        raise ValueError(f"{label} builds no network but {_described(built)}")
    if channels is None:
        trained = any(given.get(name, _default(network, name, None)) for name in ("weights", "weights_backbone"))
        _take_channels(built, in_channels, trained)
    return built


def _take_channels(network: nn.Module, channels: int, trained: bool) -> None:
    """Replaces the first convolution by one of the same shape that takes `channels`."""
    name, old = next((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    if old.in_channels == channels:
        return
    new = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, old.groups, old.bias is not None,  # type: ignore[arg-type]  # typed wider than they are
        old.padding_mode,
    )  # fmt: skip
    with torch.no_grad():
        if trained:
            new.weight.copy_(old.weight.mean(dim=1, keepdim=True) * (old.in_channels / channels))
        else:
            nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)


def _strides(network: nn.Module, given: Mapping[str, Any], dims: int) -> tuple[int, ...]:
    """By how much the coarsest map is smaller than the image, axis by axis."""
    if strides := given.get("strides"):  # MONAI's, one per level: a number, or one number per axis
        levels = [(level,) * dims if isinstance(level, int) else level for level in strides]
        return tuple(math.prod(axis) for axis in zip(*levels, strict=True))
    return (int(getattr(getattr(network, "encoder", None), "output_stride", HALVINGS)),) * dims  # smp's encoders say


def _pixels(logits: Tensor) -> int:
    return math.prod(logits.shape[2:])


def _described(output: Any) -> str:
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _drop_second_names(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in second_names(module):
        state.pop(prefix + name, None)


def _add_second_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, first in second_names(module).items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])
