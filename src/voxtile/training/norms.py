"""The normalisations of a network, whose running statistics must not move, or must be measured anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a network, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def measurable(network: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations that keep running statistics, but for frozen ones, which stay in evaluation."""
    found = []
    for norm in batch_norms(network):
        training = norm.training
        if norm.track_running_stats and norm.train().training:
            found.append(norm)
        norm.train(training)
    return found


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


@torch.no_grad()
def measure(network: nn.Module, images: Iterable[Tensor], run: Callable[[Tensor], object]) -> None:
    """Sets the running statistics of batch normalisation to their plain means over images.

    Args:
        network: in evaluation, where it is left; normalisations that stay in it, being frozen, are left alone.
        images: batches that the network takes; none is read where there is nothing to measure.
        run: has the network look at one.
    """
    if not (norms := measurable(network)):
        return
    for norm in norms:
        norm.train()
    with _averaging(norms):
        for image in images:
            run(image)
    for norm in norms:
        norm.eval()


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Has running statistics start anew and become the plain mean over all batches that come meanwhile."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            norm.momentum = own
