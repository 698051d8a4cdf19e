"""Devices and precisions, as `trainer`, `device`, `devices`, `precision` and `gpus` of the settings name them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from voxtile.errors import ConfigError, did_you_mean, listed, reason

if TYPE_CHECKING:
    import torch

PRECISIONS = {"32-true": "float32", "bf16-mixed": "bfloat16", "16-mixed": "float16"}  # as Lightning calls them, and PyTorch's types


def check_precision(key: str, value: object) -> None:
    """Refuses a precision that is none, which the user gives as `key`.

    Raises:
        ConfigError: It is none.
    """
    if str(value) not in PRECISIONS:
        raise ConfigError(f"'{key}={value}' is unknown.{did_you_mean(str(value), PRECISIONS)} Choose from {listed(PRECISIONS)}.")


def torch_type(precision: str) -> torch.dtype:
    """The type in which a network computes at a precision."""
    import torch

    found: torch.dtype = getattr(torch, PRECISIONS[precision])
    return found


def gpu_or_cpu() -> str:
    """What "auto" stands for: "cuda" where there is a GPU, "cpu" elsewhere."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torchrun_world() -> int:
    """How many processes torchrun has started; 1 where it has not."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def check_count(asked: str, count: int, there: int, remedy: str = "", each: str = "") -> None:
    """Refuses to use more GPUs than there are.

    Args:
        asked: what the user typed.
        count: how many that needs at once.
        there: how many there are.
        remedy: a sentence that starts with a space.
        each: what has them, to stand behind "GPUs".

    Raises:
        ConfigError: There are fewer.
    """
    if count > there:
        raise ConfigError(f"'{asked}' asks for more GPUs{each} than the {there} that PyTorch finds here.{remedy}")


def device_called(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one.

    Raises:
        ConfigError: There is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device(gpu_or_cpu())
    try:
        found = torch.device(name)
    except RuntimeError as error:  # whose text lists all of PyTorch's kinds
        raise ConfigError(
            f"'device={name}' is no device. Type 'device=cuda' for a GPU, 'device=cuda:1' for the second one, 'device=cpu' or "
            "'device=auto'."
        ) from error
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"'device={name}' cannot be used here: {reason(error)}. Type 'device=cpu' or 'device=auto'.") from error
    return found
