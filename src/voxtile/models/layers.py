"""Layers that the papers use and PyTorch has not, or not in a deterministic form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from voxtile.values import is_number

Convolution = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d


def channels(paper: int, width: float) -> int:
    """How many channels stand for the paper's number at `width` (1 = the paper's), at least one.

    Raises:
        ValueError: `width` is no number above 0.
    """
    if not is_number(width) or width <= 0:
        raise ValueError(f"width is a factor on the paper's numbers of channels: a number above 0, not {width}")
    return max(1, round(paper * width))


def he_normal(network: nn.Module) -> None:
    """Gives convolutions normal weights of deviation sqrt(2 / N), N incoming nodes of one neuron, and zero biases.

    He et al. 2015, *Delving deep into rectifiers*, equation 10; U-Net's paper, section 3.
    """
    for layer in network.modules():
        if isinstance(layer, Convolution):
            # One pixel of each channel reaches a pixel that an up-convolution by 2 makes: its 2x2 kernels do not overlap.
            incoming = layer.in_channels if layer.transposed else layer.weight[0].numel()
            normal(layer, math.sqrt(2 / incoming))


def normal(layer: Convolution, std: float) -> None:
    """Gives a convolution normal weights of deviation `std` and zero biases."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def bilinear_kernel(size: int) -> Tensor:
    """The 2D kernel [size, size] with which a transposed convolution interpolates linearly (Long et al. 2015, section 3.3)."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - (torch.arange(size, dtype=torch.float64) - centre).abs() / factor
    return torch.outer(line, line).float()


class BilinearUpsample(nn.Module):
    """A transposed convolution that starts as bilinear interpolation of each class and stays so unless it learns.

    A layer that learns has a kernel from each class to each class, zero off the diagonal at first. A fixed one has the diagonal
    only, which gives the same. Weights of a layer that learned by the diagonal only, as all once did, are read as such.
    """

    def __init__(self, num_classes: int, kernel: int, stride: int, learn: bool = False) -> None:
        super().__init__()
        self.stride, self.groups = stride, 1 if learn else num_classes
        diagonal = torch.eye(num_classes)[:, :, None, None] if learn else torch.ones(num_classes, 1, 1, 1)
        self.weight = nn.Parameter(diagonal * bilinear_kernel(kernel), requires_grad=learn)
        if learn:
            self.register_load_state_dict_pre_hook(_spread)  # type: ignore[no-untyped-call]  # torch has no types for it

    def forward(self, scores: Tensor) -> Tensor:
        """[B, K, h, w] to [B, K, (h - 1) · stride + kernel, (w - 1) · stride + kernel]."""
        return functional.conv_transpose2d(scores, self.weight, stride=self.stride, groups=self.groups)


def _spread(layer: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Puts kernels [K, 1, k, k] in a state that is about to be loaded on the diagonal of [K, K, k, k]."""
    given = state.get(f"{prefix}weight")
    if isinstance(given, Tensor) and given.shape[1:2] == (1,):
        state[f"{prefix}weight"] = torch.eye(len(given), dtype=given.dtype, device=given.device)[:, :, None, None] * given


def resize_bilinear(image: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolates [B, C, h, w] linearly to `size` (H, W), corners onto corners, as Caffe's Interp layer does.

    PyTorch's own, but where a gradient is wanted, which has no deterministic form on CUDA: there two products with the matrices of
    the axes give the same. They are no way to evaluate, since a pixel that is not a number would spoil all others.

    Under autocast it is computed in float32, and so is the result: a place between two scores has more digits than they have.
    """
    kind = image.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return resize_bilinear(image.to(torch.promote_types(image.dtype, torch.float32)), size)
    if not (torch.is_grad_enabled() and image.requires_grad):
        return functional.interpolate(image, tuple(size), mode="bilinear", align_corners=True)
    rows, columns = (_interpolation(a, b, image) for a, b in zip(image.shape[2:], size, strict=True))
    return rows @ image @ columns.T


def _interpolation(before: int, after: int, like: Tensor) -> Tensor:
    """The matrix [after, before] that interpolates an axis linearly."""
    step = (before - 1) / (after - 1) if after > 1 else 0.0
    places = torch.arange(after, device=like.device, dtype=torch.float64) * step
    grid = torch.arange(before, device=like.device, dtype=torch.float64)
    return (1 - (places[:, None] - grid).abs()).clamp_min(0).to(like.dtype)


def unpool(values: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    """Puts pooled values [B, C, h, w] back where they came from, in zeros [B, C, H, W] of `size`.

    The same as `max_unpool2d` for windows that do not overlap, which has no deterministic form.

    Args:
        values: what is put back.
        indices: places in the flattened (H, W), as `max_pool2d(…, return_indices=True)` gives them.
        size: (H, W) before pooling.
    """
    flat = values.new_zeros(*values.shape[:2], math.prod(size))
    return flat.scatter(2, indices.flatten(2), values.flatten(2)).view(*values.shape[:2], *size)
