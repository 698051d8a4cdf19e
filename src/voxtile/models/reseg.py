"""ReSeg (Visin et al., CVPR workshops 2016, arXiv 1511.07053): sweeps of gated recurrent units over VGG16's first three blocks.

Source: the authors' release fvisin/reseg, its CamVid network; its recurrent units are Lasagne's `GRULayer`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from voxtile.models.layers import channels, he_normal
from voxtile.models.network import Network
from voxtile.models.sizes import crop_to, pad_to_multiple
from voxtile.models.trunks.vgg16 import BLOCKS, VGG16
from voxtile.models.weights import transplant

Wiring = Literal["paper", "release"]
HIDDEN, UPSAMPLED = 100, 50  # the paper's units per direction, and channels of the up-sampling
POOLED = 4  # by how much the trunk's result is smaller than the image


class GRU(nn.Module):
    """The weights of one direction's gated recurrent units, with one bias per gate as in Lasagne.

    For an input x and a state h: reset gate r and update gate u are σ(W x + b + V h), the candidate is
    c = tanh(W x + b + r · (V h)), the next state (1 - u) · h + u · c. The first state is 0.

    Attributes:
        weight_in: W of the reset gate, the update gate and the candidate, one below the other, [3 · hidden, inputs].
        weight_hid: V likewise, [3 · hidden, hidden].
        bias: b likewise, [3 · hidden].
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight_in = nn.Parameter(torch.empty(3 * hidden, inputs))
        self.weight_hid = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.bias = nn.Parameter(torch.zeros(3 * hidden))
        for weight in (self.weight_in, self.weight_hid):
            nn.init.normal_(weight, std=0.1)


def run(x: Tensor, directions: Sequence[GRU]) -> Tensor:
    """Runs one GRU from the first step to the last, and a second one, if given, from the last to the first.

    PyTorch's kernel has a second bias, which is 0 here, and its gate z is 1 - u: σ(-a) = 1 - σ(a), so the update gate's weights
    go in negated, and the function is the same.

    Args:
        x: sequences [T, N, C], time first.
        directions: one or two GRUs of C inputs.

    Returns:
        The states [T, N, hidden · directions], at the places of their inputs.
    """
    matrices: list[Tensor] = []
    biases: list[Tensor] = []
    for gru in directions:
        matrices += [_negated(gru.weight_in), _negated(gru.weight_hid)]
        biases += [_negated(gru.bias), torch.zeros_like(gru.bias)]
    # All in one piece of memory, matrices before biases: what cuDNN wants, or it copies them and warns.
    values = [*matrices, *biases]
    pieces = torch.split(torch.cat([value.flatten() for value in values]), [value.numel() for value in values])
    views = [piece.view(value.shape) for piece, value in zip(pieces, values, strict=True)]
    half = len(matrices)
    weights = [view for i in range(0, half, 2) for view in (*views[i : i + 2], *views[half + i : half + i + 2])]
    first = torch.zeros(len(directions), x.shape[1], directions[0].hidden, dtype=x.dtype, device=x.device)
    # cuDNN refuses a backward pass where `train` is false; without dropout it has no other meaning.
    train = torch.is_grad_enabled()
    states: Tensor = torch.gru(x, first, weights, True, 1, 0.0, train, len(directions) == 2, False)[0]
    return states


def _negated(value: Tensor) -> Tensor:
    """Changes the sign of the update gate's third."""
    reset, update, candidate = value.chunk(3)
    return torch.cat([reset, -update, candidate])


class Sweep(nn.Module):
    """Two GRUs that run along sequences in both directions, the states of both side by side.

    With the paper's wiring both read the input; with the release's, the backward GRU reads what the forward one made of it.
    """

    def __init__(self, inputs: int, hidden: int, wiring: Wiring) -> None:
        super().__init__()
        self.fwd = GRU(inputs, hidden)
        self.bwd = GRU(hidden if wiring == "release" else inputs, hidden)
        self.stacked = wiring == "release"

    def forward(self, x: Tensor) -> Tensor:
        """Maps sequences [T, N, C], time first, to [T, N, 2 · hidden], forward states before backward ones.

        Under autocast the sweeps stay in the precision of their weights: states gather over hundreds of steps, and cuDNN's
        autocast would take float16 where bfloat16 was asked for.
        """
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._sweep(x.to(self.fwd.weight_in.dtype))
        return self._sweep(x)

    def _sweep(self, x: Tensor) -> Tensor:
        if not self.stacked:
            return run(x, [self.fwd, self.bwd])
        ahead = run(x, [self.fwd])
        return torch.cat([ahead, run(ahead.flip(0), [self.bwd]).flip(0)], dim=2)


class ReNet(nn.Module):
    """A ReNet layer: a sweep along every row of patches, then one along every column of its result.

    Attributes:
        patch: side of the square patches that the first sweep reads.
        vertical_first: columns before rows.
    """

    def __init__(self, inputs: int, hidden: int, wiring: Wiring, patch: int = 1, vertical_first: bool = False) -> None:
        super().__init__()
        self.patch, self.vertical_first = patch, vertical_first
        read, swept = inputs * patch * patch, 2 * hidden
        self.horizontal = Sweep(swept if vertical_first else read, hidden, wiring)
        self.vertical = Sweep(read if vertical_first else swept, hidden, wiring)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, H, W, C] to [B, ⌈H / patch⌉, ⌈W / patch⌉, 2 · hidden]."""
        x = cut(x, self.patch)
        return self._rows(self._columns(x)) if self.vertical_first else self._columns(self._rows(x))

    def _rows(self, x: Tensor) -> Tensor:
        """Takes [B, H, W, C] as B·H sequences of length W."""
        batch, height, width, _ = x.shape
        states: Tensor = self.horizontal(x.permute(2, 0, 1, 3).reshape(width, batch * height, -1))
        return states.view(width, batch, height, -1).permute(1, 2, 0, 3)

    def _columns(self, x: Tensor) -> Tensor:
        """Takes [B, H, W, C] as B·W sequences of length H."""
        batch, height, width, _ = x.shape
        states: Tensor = self.vertical(x.permute(1, 0, 2, 3).reshape(height, batch * width, -1))
        return states.view(height, batch, width, -1).permute(1, 0, 2, 3)


def cut(x: Tensor, side: int) -> Tensor:
    """Cuts [B, H, W, C] into patches, each flattened: [B, ⌈H / side⌉, ⌈W / side⌉, side · side · C], in the order row, column, C.

    Zeros fill up the last patches, below and on the right.
    """
    if side == 1:
        return x
    x = functional.pad(x, (0, 0, 0, -x.shape[2] % side, 0, -x.shape[1] % side))
    batch, height, width, _ = x.shape
    return x.reshape(batch, height // side, side, width // side, side, -1).transpose(2, 3).flatten(3)


class ReSeg(Network):
    """VGG16's first three blocks, ReNet layers, transposed convolutions back to the image's size, and scores.

    The image's last rows and columns are repeated up to a multiple of 4, and the result is cropped at the bottom and on the right:
    else the trunk's pooling would drop them, and an image of less than 4 pixels would leave nothing to sweep over.

    Attributes:
        stride: by how much the coarsest sweep's map is smaller than the image: 4 times the patches' sides.
        margin: real context wanted around an image, in pixels: 0.
        min_train_size: smallest image side in training: sweeps of two steps, since one step leaves the recurrent weights unused.
        dims: 2.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: float = 1.0,
        wiring: Wiring = "paper",
        patches: Sequence[int] = (1, 1),
        vertical_first: bool = False,
        freeze_trunk: bool = False,
        weights: str | None = None,
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the image.
            num_classes: score maps.
            width: factor on the paper's numbers of channels and of recurrent units.
            wiring: "paper": both directions of a sweep read the same; "release": the backward one reads the forward one's states.
            patches: side of the patches that each ReNet layer reads, one entry per layer. The up-sampling has one transposed
                convolution, with ReLU, per prime factor of `stride`: two 2x2 ones for patches of 1 as in the release.
            vertical_first: sweep columns before rows, as in the paper; the release sweeps rows first.
            freeze_trunk: keep the trunk as it is, as the release does with ImageNet's weights. A trunk without trained weights
                has to learn.
            weights: of the trunk: "imagenet", a file, or None (see `voxtile.models.weights.transplant`).

        Raises:
            ValueError: `wiring` or `patches` is out of range.
            ConfigError: The weights cannot be had, or do not fit.
        """
        super().__init__()
        if wiring not in ("paper", "release") or not patches or any(side < 1 for side in patches):
            raise ValueError(
                f"ReSeg takes wiring paper|release and patches, one side of 1 or more per ReNet layer, not {wiring} and "
                f"{list(patches)}"
            )
        self.stride = POOLED * math.prod(patches)
        self.min_train_size = self.stride + 1
        hidden, upsampled = channels(HIDDEN, width), channels(UPSAMPLED, width)
        self.trunk = VGG16(in_channels, width, pools=(nn.MaxPool2d(2), nn.MaxPool2d(2), None))
        inputs = [self.trunk.widths[-1], *[2 * hidden] * (len(patches) - 1)]
        self._renets = [f"renet{number}" for number in range(len(patches))]
        for name, size, side in zip(self._renets, inputs, patches, strict=True):
            self.add_module(name, ReNet(size, hidden, wiring, side, vertical_first))
        factors = _prime_factors(self.stride)
        self._deconvs = [f"deconv{number}" for number in range(len(factors))]
        for name, size, factor in zip(self._deconvs, [2 * hidden, *[upsampled] * (len(factors) - 1)], factors, strict=True):
            self.add_module(name, nn.ConvTranspose2d(size, upsampled, factor, stride=factor))
        self.score = nn.Conv2d(upsampled, num_classes, 1)
        self._initialise()
        names = [f"conv{block}_{i + 1}" for block in (1, 2, 3) for i in range(len(BLOCKS[block - 1]))]
        transplant({name: self.trunk.get_submodule(name) for name in names}, weights, "vgg16")
        self.trunk.requires_grad_(not freeze_trunk)

    def _initialise(self) -> None:
        """He et al. for the trunk; Glorot and Bengio's uniform weights and zero biases after the sweeps, as in the release."""
        he_normal(self.trunk)
        for layer in (*map(self.get_submodule, self._deconvs), self.score):
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            assert layer.bias is not None
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Maps an image [B, C, H, W] to logits [B, num_classes, H, W]."""
        x = self.trunk(pad_to_multiple(image, POOLED))[-1].permute(0, 2, 3, 1)
        for name in self._renets:
            x = self.get_submodule(name)(x)
        x = x.permute(0, 3, 1, 2)
        for name in self._deconvs:
            x = self.get_submodule(name)(x).relu()
        logits: Tensor = self.score(crop_to(x, image.shape[2:]))
        return logits


def _prime_factors(value: int) -> list[int]:
    """The prime factors in rising order: 12 to [2, 2, 3]."""
    factors: list[int] = []
    candidate = 2
    while value > 1:
        if value % candidate:
            candidate += 1
        else:
            factors.append(candidate)
            value //= candidate
    return factors
