"""Weights, gradients and the optimizer's state cut over devices (PyTorch's FSDP2), and put together again.

Rajbhandari et al. 2020, *ZeRO: memory optimizations toward training trillion parameter models*, stage 2: the weights are whole
from the first use in a step until its gradients are there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def shard(network: nn.Module) -> None:
    """Cuts a network's weights over the devices of the process group; its buffers stay whole on each."""
    network.to(memory_format=torch.contiguous_format)  # of other orders FSDP takes none
    kind = next(network.parameters()).device.type
    mesh = init_device_mesh(kind, (torch.distributed.get_world_size(),))
    # One unit: networks may use the weights of a layer without calling it.
    fully_shard(network, mesh=mesh, reshard_after_forward=False)


def whole(value: Any) -> Any:
    """A state in which tensors that are cut are put together, on the CPU; all devices must ask for it together."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


def summed(norm: Tensor) -> Tensor:
    """A norm, of gradients that are cut the sum that is still to be made; all devices must ask for it together."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def cut(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer, cut as the weights are that it is to move."""
    found = {}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, own in state["state"].items():
        weight: Any = weights[number]
        found[number] = {
            name: distribute_tensor(item.to(weight.device), weight.device_mesh, weight.placements)
            if isinstance(item, Tensor) and item.shape == weight.shape and item.ndim
            else item
            for name, item in own.items()
        }
    return {**state, "state": found}


@torch.no_grad()
def gather(network: nn.Module, into: nn.Module) -> None:
    """Copies the weights and buffers of a cut network into a whole one; all devices must do it together."""
    for mine, theirs in zip(into.parameters(), network.parameters(), strict=True):
        mine.copy_(theirs.full_tensor() if isinstance(theirs, DTensor) else theirs)
    for own, other in zip(into.buffers(), network.buffers(), strict=True):
        own.copy_(other)
