"""Padding to sizes a network can halve, and cropping back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeats the last pixels of [B, C, *size] so that each side is a multiple of `multiple`.

    Padding lies at the end of each axis, so that pixel (0, 0) keeps its place in the network's strides.
    """
    return pad_to(image, [side + -side % multiple for side in image.shape[2:]])


def pad_to(image: Tensor, size: Sequence[int]) -> Tensor:
    """Repeats the last pixels of each axis of [B, C, *size], up to `size`."""
    missing = [after - before for after, before in zip(size, image.shape[2:], strict=True)]
    if not any(missing):
        return image
    pads = [value for side in reversed(missing) for value in (0, side)]
    return functional.pad(image, pads, mode="replicate")


def crop_to(image: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` pixels of each axis of [B, C, *size]."""
    for axis, side in enumerate(size, start=2):
        image = image.narrow(axis, 0, side)
    return image


def centre(image: Tensor, size: Sequence[int]) -> Tensor:
    """The middle `size` pixels of each axis of [B, C, *size]."""
    for axis, side in enumerate(size, start=2):
        image = image.narrow(axis, (image.shape[axis] - side) // 2, side)
    return image
