"""Weights and the resume state on disk; apart from training, so that prediction need not import what only training needs."""

from __future__ import annotations

import errno
import hashlib
import stat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from voxtile.cases.atomic import atomic_write
from voxtile.errors import RunError, listed, reason
from voxtile.models.network import second_names

SMALL = 2**26  # bytes of a file that is read whole only to see whether it has changed


class DamagedStateError(RunError):
    """The state that a run would go on from is damaged."""


def save_weights(network: nn.Module, path: Path, step: int) -> None:
    """Writes a network's state as safetensors, whole or not at all; a tensor that layers share under the first of its names."""
    state: dict[str, Tensor] = {}
    held: set[int] = set()
    shared, own = second_names(network), network.state_dict()
    for name, tensor in own.items():
        if shared.get(name) in own:
            continue
        # safetensors refuses tensors whose memory is not in row-major order, such as channels_last, and such as overlap.
        value = tensor.detach().cpu().contiguous()
        state[name] = value.clone() if value.untyped_storage().data_ptr() in held else value
        held.add(value.untyped_storage().data_ptr())

    def write(making: Path) -> None:
        # safetensors makes files that only their owner may read, whatever the umask: others could use nothing of the run.
        making.touch()
        rights = stat.S_IMODE(making.stat().st_mode)
        # One entry only: safetensors writes several in an order that changes from call to call.
        save_file(state, making, metadata={"step": str(step)})
        if stat.S_IMODE(making.stat().st_mode) != rights:
            making.chmod(rights)

    try:
        atomic_write(path, write)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"The weights could not be saved to {path}: {reason(error)}. Free some disk space and give the same command again, "
            "with 'retry=true'."
        ) from error


def load_weights(network: nn.Module, path: Path) -> None:
    """Reads a network's state.

    Raises:
        RunError: The file is missing, damaged, or belongs to another network.
    """
    try:
        state, own = load_file(path), network.state_dict()
        for name, first in second_names(network).items():
            if name in own and first in state:
                state.setdefault(name, state[first])
        network.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise RunError(
            f"{path} does not hold the weights of this network: {reason(error)}. Move the run folder away and train the run again."
        ) from error


def saved_at(path: Path) -> int | None:
    """The step at which `save_weights` wrote a file; None of one that does not say."""
    with safe_open(path, "pt") as file:
        step = (file.metadata() or {}).get("step", "")
    return int(step) if step.isdecimal() else None


def file_digest(path: Path) -> str:
    """SHA-256 of a file of weights.

    Raises:
        RunError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {reason(error)}. Give yourself the right to read it.") from error


def is_whole_file(path: Path, digest: str | None) -> bool:
    """Whether a file of weights is what was recorded: by its digest; a large one by its length, which its header tells.

    Args:
        path: the file.
        digest: its SHA-256; None where none was recorded.
    """
    if digest is not None and path.stat().st_size <= SMALL:
        return file_digest(path) == digest
    try:
        with safe_open(path, "pt"):  # which compares the header with the file's length
            return True
    except (OSError, SafetensorError):
        return False


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights in a folder."""
    return {path.stem: file_digest(path) for path in sorted(folder.glob("*.safetensors"))}


def load_resume(path: Path) -> dict[str, Any] | None:
    """Reads the resume state, None where there is none; nothing in it is executed.

    Raises:
        RunError: It is damaged, or something else.
    """
    if not path.exists():
        return None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or (missing := [key for key in ("step", "best", "network", "metrics") if key not in state]):
            raise ValueError(f"it lacks {listed(missing)}" if isinstance(state, dict) else f"it holds a {type(state).__name__}")
        return state
    except PermissionError as error:
        raise RunError(f"{path} cannot be read: {reason(error)}. Give yourself the right to read it.") from error
    except Exception as error:  # torch raises many types for a damaged or a planted file
        why = "" if isinstance(error, OSError) and error.errno == errno.EINVAL else f" ({reason(error)})"  # of one that is cut off
        raise DamagedStateError(
            f"{path} cannot be read: it is damaged, or not a file of this program{why}. Type 'retry=true': the same command then "
            "trains the run from its start."
        ) from error
