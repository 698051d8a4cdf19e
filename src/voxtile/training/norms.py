"""The batch normalisations of a network, whose running statistics must not move, or must be measured anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a network, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def momentum(norms: Sequence[_BatchNorm], value: float | None) -> Iterator[None]:
    """Lets running statistics follow the batches otherwise for a while.

    Args:
        norms: whose statistics.
        value: weight of the latest batch: 0 keeps the statistics as they are, None makes them the plain mean over all batches.
    """
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = value
    try:
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            norm.momentum = own
