"""The pixel weights with which U-Net learns the thin background between objects (Ronneberger et al. 2015, equation 2)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from voxtile.cases.window import IGNORE


def border_weights(
    label: Tensor | NDArray[np.integer[Any]], background: int | None, w0: float = 10.0, sigma: float = 5.0
) -> Tensor:
    """The weight w0 · exp(-(d1 + d2)² / (2 · sigma²)) that each background pixel gets on top of its class's weight.

    d1 and d2 are the distances, in pixels between centres, to the nearest pixel of the nearest and of the second nearest object.
    Both are exact, however far away; the result is rounded to float32.

    An object is a connected part of one class. Pixels that touch at a corner only are not connected: a border of one pixel that
    runs diagonally separates two objects, and is what these weights are for. Objects of one class that touch at a side are one
    object: a label of classes does not tell them apart.

    Args:
        label: class indices [B, H, W] (any number of spatial axes); pixels with `IGNORE` are neither object nor background.
        background: index of the class that separates objects; None where there is none, which gives zeros.
        w0: the weight where two objects all but touch.
        sigma: how fast it falls, in pixels.

    Returns:
        Weights, float32 [B, H, W] on the label's device; 0 on objects and ignored pixels, and in samples of less than two objects.

    Raises:
        ValueError: `label` has no spatial axes, `w0` is negative or `sigma` is not positive.
    """
    if label.ndim < 2 or w0 < 0 or sigma <= 0:
        raise ValueError(
            "border_weights takes a label [B, *space], a w0 of at least 0 and a sigma above 0, "
            f"not {tuple(label.shape)}, {w0} and {sigma}"
        )
    device = label.device if isinstance(label, Tensor) else torch.device("cpu")
    array = label.cpu().numpy() if isinstance(label, Tensor) else np.asarray(label)
    weights = np.zeros(array.shape, dtype=np.float32)
    if background is not None:

        def fill(sample: NDArray[np.integer[Any]], found: NDArray[np.float32]) -> None:
            objects = _objects(sample, background)
            if objects.max(initial=0) > 1:
                first, second = _two_nearest(objects)
                found[...] = np.where(sample == background, w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2)), 0)

        with ThreadPoolExecutor(max(1, min(len(array), torch.get_num_threads()))) as pool:  # SciPy works without Python's lock
            list(pool.map(fill, array, weights))
    return torch.from_numpy(weights).to(device)


def _objects(sample: NDArray[np.integer[Any]], background: int) -> NDArray[np.int32]:
    """The number of the object that each pixel [*space] belongs to, from 1 up; 0 for none."""
    objects = np.zeros(sample.shape, dtype=np.int32)
    for value in np.unique(sample):
        if value not in (background, IGNORE):
            parts, _ = ndimage.label(sample == value)
            objects += np.where(parts > 0, parts + objects.max(), 0)
    return objects


def _two_nearest(objects: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances [*space] to the nearest and to the second nearest of the objects, two or more.

    Two objects differ in at least one binary digit of their numbers. So the second nearest is the nearest of all those that differ
    from the nearest in the first digit, or in the second, …: two distance transforms per digit, instead of one per object.
    """
    nearest = _nearest(objects > 0)
    numbers = objects - 1  # so that each digit is 0 for some object and 1 for another
    own = numbers[tuple(nearest)]
    second = np.full(objects.shape, np.iinfo(np.int32).max, dtype=np.int32)
    for digit in range(int(numbers.max()).bit_length()):
        zeros, ones = (_nearest((objects > 0) & (numbers >> digit & 1 == value)) for value in (0, 1))
        second = np.minimum(second, _squared(np.where(own >> digit & 1 == 0, ones, zeros)))
    return np.sqrt(_squared(nearest)), np.sqrt(second)


def _nearest(pixels: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Where the nearest of `pixels` lies, [axes, *space]."""
    places: NDArray[np.int32] = ndimage.distance_transform_edt(~pixels, return_distances=False, return_indices=True)
    return places


def _squared(places: NDArray[np.int32]) -> NDArray[np.int32]:
    """Squared distances [*space] from each pixel to the place [axes, *space] that is given for it."""
    total = np.zeros(places.shape[1:], dtype=np.int32)
    for own, given in zip(np.ix_(*map(range, total.shape)), places, strict=True):
        total += (given - own.astype(np.int32)) ** 2
    return total
