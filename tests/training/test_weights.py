"""Weights on disk: one entry for each tensor, whatever layers share, and files of ordinary networks as they always were."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.testers.own import Tied
from voxtile.training.weights import load_weights, save_weights


class Unsaved(nn.Module):
    """A network whose buffer is registered first under a name that is not saved, or last."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        table = torch.rand(3)
        self.register_buffer("a", table, persistent=not first)
        self.register_buffer("b", table, persistent=first)


def test_what_layers_share_is_saved_once_and_is_shared_when_it_is_read(tmp_path: Path) -> None:
    network, other = Tied(), Tied()
    save_weights(network, tmp_path / "a.safetensors", 3)
    held = load_file(tmp_path / "a.safetensors")
    assert set(network.state_dict()) - set(held) == {"third.weight"}
    other.load_state_dict({name: torch.zeros_like(value) for name, value in network.state_dict().items()})
    load_weights(other, tmp_path / "a.safetensors")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in other.state_dict().items())
    assert other.third.weight is other.second.weight


@pytest.mark.parametrize("first", [True, False])
def test_a_name_that_is_not_saved_takes_none_away(tmp_path: Path, first: bool) -> None:
    network, other = Unsaved(first), Unsaved(first)
    save_weights(network, tmp_path / "a.safetensors", 3)
    load_weights(other, tmp_path / "a.safetensors")
    assert torch.equal(other.a, network.a)


def test_files_of_ordinary_networks_are_what_safetensors_makes_of_their_state(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).to(memory_format=torch.channels_last)
    save_weights(network, tmp_path / "a.safetensors", 3)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, tmp_path / "b.safetensors", metadata={"step": "3"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_rights_of_all_other_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_weights(nn.Linear(2, 2), tmp_path / "a.safetensors", 3)
        (tmp_path / "b").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode
