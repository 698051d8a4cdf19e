"""Windows brought to another ground resolution: linear where magnified, averages over areas where reduced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from voxtile.cases.window import IGNORE, Size3

Sample = tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.uint8]]


def rescale(
    image: NDArray[Any],
    valid: NDArray[np.bool_],
    label: NDArray[np.uint8],
    size: Size3,
    start: Sequence[float],
    step: Sequence[float],
) -> Sample:
    """Resamples a window.

    A magnified image is linear between pixel centres, and its label the nearest pixel's. A reduced image holds averages over the
    area of each new pixel, and its label the class with most of that area (the lowest of several). A new pixel holds data where
    all pixels that it is made of do.

    Args:
        image: pixels [C, d, h, w].
        valid: where they hold data [d, h, w].
        label: class indices [d, h, w].
        size: (D, H, W) of the result.
        start: along (z, y, x), where the result begins, in pixels of the window from its outer edge.
        step: along (z, y, x), how many of these pixels a new one is wide; all at most 1, or all at least 1.

    Returns:
        Image in the same data type (whole numbers are rounded), valid and label, of the new size; the label is 255 where not valid.
    """
    axes = [axis for axis in range(3) if not (step[axis] == 1 and start[axis] == 0 and size[axis] == valid.shape[axis])]
    precise = np.result_type(image.dtype, np.float32)  # 8 and 16 bit in float32, which holds them exactly
    shares = {axis: _shares(size[axis], valid.shape[axis], start[axis], step[axis]).astype(precise) for axis in axes}
    out = _along(shares, image.astype(precise))
    out = (np.rint(out) if image.dtype.kind in "iu" else out).astype(image.dtype)
    held = np.ones(size, dtype=np.bool_) if valid.all() else _along(shares, (~valid).astype(np.float32)) == 0
    if max(step) > 1:
        classes = _most(shares, label, size)
    else:
        places = [_nearest(*row) for row in zip(size, valid.shape, start, step, strict=True)]
        classes = label[np.ix_(*places)]
    classes[~held] = IGNORE
    return out, held, classes


def _shares(size: int, length: int, start: float, step: float) -> sparse.csr_array:
    """What each of `length` old pixels contributes to each of `size` new ones, float64 [size, length]; rows add up to 1."""
    low = start + step * np.arange(size)
    if step > 1:
        first = np.floor(low)[:, None] + np.arange(int(np.ceil(step)) + 1)
        share = np.minimum(first + 1, low[:, None] + step) - np.maximum(first, low[:, None])  # the overlap of old and new pixel
    else:
        centre = np.clip(low + step / 2 - 0.5, 0, length - 1)
        first = np.floor(centre)[:, None] + np.arange(2)
        share = 1 - np.abs(centre[:, None] - first)
    share[share < 1e-6] = 0  # rounding
    columns = np.clip(first, 0, length - 1).astype(np.int32)
    rows = np.repeat(np.arange(size), columns.shape[1])
    values = share / share.sum(axis=1, keepdims=True)
    matrix = sparse.csr_array((values.ravel(), (rows, columns.ravel())), shape=(size, length))
    matrix.eliminate_zeros()  # a pixel without a share does not spread its NaN
    return matrix


def _along(shares: dict[int, sparse.csr_array], array: NDArray[Any]) -> NDArray[Any]:
    """Applies the shares along the last three axes of [..., d, h, w]."""
    for axis, matrix in shares.items():
        moved = np.moveaxis(array, axis - 3, 0)
        found = matrix @ moved.reshape(len(moved), -1)
        array = np.moveaxis(found.reshape(-1, *moved.shape[1:]), 0, axis - 3)
    return array


def _most(shares: dict[int, sparse.csr_array], label: NDArray[np.uint8], size: Size3) -> NDArray[np.uint8]:
    """The class with the largest share of each new pixel."""
    out, most = np.full(size, IGNORE, dtype=np.uint8), np.zeros(size, dtype=np.float32)
    for index in np.flatnonzero(np.bincount(label.ravel(), minlength=IGNORE + 1)):
        share = _along(shares, (label == index).astype(np.float32))
        larger = share > most + 1e-6  # rounding
        out[larger], most[larger] = index, share[larger]
    return out


def _nearest(size: int, length: int, start: float, step: float) -> NDArray[np.intp]:
    """The old pixel in which each new one's centre lies."""
    centres = start + step * (np.arange(size) + 0.5)
    return np.clip(centres.astype(np.intp), 0, length - 1)
