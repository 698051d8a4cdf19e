"""An exponential average of a network's weights over the steps of training."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Moves the weights of `average` towards the network's by one step; buffers (running statistics) are copied.

    PyTorch's `AveragedModel` would begin with the weights after the first step; this begins with those before it.

    Args:
        average: a copy of the network from before its first step.
        network: what it follows.
        decay: the share of itself that the average keeps, 0 up to 1.
    """
    move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch has no types for it
    move(list(average.parameters()), list(network.parameters()), None)
    for own, other in zip(average.buffers(), network.buffers(), strict=True):
        own.copy_(other)
