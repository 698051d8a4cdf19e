"""The normalisations of a network, whose running statistics must not move, or must be measured anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a network, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def unmoved(network: nn.Module) -> Iterator[None]:
    """Has all running statistics of a network afterwards as they were before."""
    buffers = [buffer for module in network.modules() if isinstance(module, _NormBase) for buffer in module.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, own in zip(buffers, before, strict=True):
                buffer.copy_(own)


@contextmanager
def averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Has running statistics become the plain mean over all batches that come meanwhile."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    try:
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            norm.momentum = own
