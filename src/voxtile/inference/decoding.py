"""From probabilities to a class for each pixel: the most probable one, or with regions one that lies in the right ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS = 16  # that are compared at once: more would not stay in the processor's cache


def best_class(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The index of the first maximum of [K, d, h, w] over K, anything where all are NaN.

    Comparing planes, a few rows at a time, takes a fifth of the time of torch's max with indices, and a fortieth of its argmax.
    """
    _, depth, height, width = probabilities.shape
    best = np.zeros((depth, height, width), dtype=np.uint8)
    for y in range(0, height, ROWS):
        highest, rows = probabilities[0, :, y : y + ROWS], best[:, y : y + ROWS]
        for index, plane in enumerate(probabilities[1:, :, y : y + ROWS], 1):
            np.maximum(rows, (plane > highest).view(np.uint8) * np.uint8(index), out=rows)  # indices rise: a later winner stays
            highest = np.maximum(highest, plane)
    return best


def best_class_on_device(probabilities: Tensor) -> Tensor:
    """As `best_class`, of a tensor where it is: uint8 [d, h, w]. Of equal ones, CUDA's max may give any index."""
    highest, best = probabilities[0], torch.zeros_like(probabilities[0], dtype=torch.uint8)
    for index, plane in enumerate(probabilities[1:], 1):
        best.masked_fill_(plane > highest, index)
        highest = torch.maximum(highest, plane)
    return best


def class_in_regions(probabilities: NDArray[np.float32], regions: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """The class of each pixel whose regions are those that are more probable than not.

    A region's probability is the sum of its classes'. Of the classes that lie in exactly the regions above a half it is the most
    probable one; where no class does, the most probable of all. Sums run over rising class indices, so that rounding leaves a
    region at least as probable as one within it: of nested regions the map has exactly those above a half.

    Args:
        probabilities: [K, d, h, w]; where they are NaN the class is anything.
        regions: indices of the classes of each region, rising; at most 32 regions.

    Returns:
        Class indices [d, h, w].
    """
    bits = np.uint8 if len(regions) <= 8 else np.uint32
    membership = [bits(sum(1 << bit for bit, of in enumerate(regions) if index in of)) for index in range(len(probabilities))]
    _, depth, height, width = probabilities.shape
    best = np.zeros((depth, height, width), dtype=np.uint8)
    for y in range(0, height, ROWS):
        planes, rows = probabilities[:, :, y : y + ROWS], best[:, y : y + ROWS]
        inside = np.zeros(rows.shape, dtype=bits)
        for bit, members in enumerate(regions):
            inside |= (functools.reduce(np.add, [planes[index] for index in members]) > 0.5).astype(bits) << bits(bit)
        highest = np.full(rows.shape, -1, dtype=np.float32)
        for index, plane in enumerate(planes):
            fitting = np.where(inside == membership[index], plane, np.float32(-1))
            np.maximum(rows, (fitting > highest).view(np.uint8) * np.uint8(index), out=rows)
            highest = np.maximum(highest, fitting)
        if (nowhere := highest < 0).any():
            rows[nowhere] = best_class(planes)[nowhere]
    return best


def class_in_regions_on_device(probabilities: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    """As `class_in_regions`, of a tensor where it is: uint8 [d, h, w]."""
    membership = [sum(1 << bit for bit, of in enumerate(regions) if index in of) for index in range(len(probabilities))]
    inside = torch.zeros_like(probabilities[0], dtype=torch.int64)
    for bit, members in enumerate(regions):
        inside |= (functools.reduce(torch.add, [probabilities[index] for index in members]) > 0.5).long() << bit
    highest, best = torch.full_like(probabilities[0], -1), torch.zeros_like(probabilities[0], dtype=torch.uint8)
    for index, plane in enumerate(probabilities):
        fitting = torch.where(inside == membership[index], plane, -1)
        best.masked_fill_(fitting > highest, index)
        highest = torch.maximum(highest, fitting)
    return torch.where(highest < 0, best_class_on_device(probabilities), best)


def classes_of_logits(logits: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    """The class of each pixel, uint8 [B, *spatial], from logits [B, K, *spatial], on their device."""
    if not regions:
        return logits.max(dim=1).indices.to(torch.uint8)  # several times faster than argmax over a strided axis on the CPU
    flat = logits.detach().float().softmax(dim=1).transpose(0, 1).flatten(1, -3)  # [K, B·(D), H, W]
    on_cpu = logits.device.type == "cpu"
    found = torch.from_numpy(class_in_regions(flat.numpy(), regions)) if on_cpu else class_in_regions_on_device(flat, regions)
    return found.view(len(logits), *logits.shape[2:])
