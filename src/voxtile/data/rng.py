"""Random numbers that are a pure function of what they are for."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray


def digest(*parts: object) -> int:
    """A 128-bit number that depends on every part and on nothing else (not on Python's hash seed)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def torch_seed(*parts: object) -> int:
    """A seed for torch's generators, which take 63 bits, that depends on every part and on nothing else."""
    return digest(*parts) >> 65


def seed_torch(device: torch.device, *parts: object) -> None:
    """From here on, torch draws numbers on the CPU and on `device` that depend on every part and on nothing else.

    As `torch.manual_seed`, which spends a millisecond on kinds of devices that are not in use.
    """
    torch.default_generator.manual_seed(torch_seed(*parts))
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(torch_seed(*parts))


class _Key(ISeedSequence):
    """Hands Philox its key. Given as `key=`, NumPy first asks the system for entropy, which takes longer than all the rest."""

    def __init__(self, key: int) -> None:
        self._words = np.frombuffer(key.to_bytes(16, "little"), dtype="<u8")

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[np.uint64]:
        return self._words


def generator(seed: int, index: int, operation: str) -> np.random.Generator:
    """The generator of sample `index` of a run with `seed`, for one named operation: Philox with their digest as its key.

    Operations have generators of their own, so that adding one leaves the draws of the others as they were.
    """
    key: Any = _Key(digest(seed, index, operation))  # NumPy's types know SeedSequence only, its documentation any ISeedSequence
    return np.random.Generator(np.random.Philox(key))


def one_of_each(every: int, count: int, number: int) -> NDArray[np.int64]:
    """Of each `every` of `count` places one, at random: at fixed steps all may lie in one column, where rows are as long as a step.

    Args:
        every: how many follow one another from which one is drawn; all are taken where it is 1.
        count: how many there are.
        number: of what they are places of, for draws of its own.
    """
    first = np.arange(0, count, every)
    if every == 1:
        return first
    within: NDArray[np.int64] = generator(0, number, "sample").integers(np.minimum(every, count - first))
    return first + within
