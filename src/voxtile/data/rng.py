"""Random numbers that are a pure function of what they are for."""

from __future__ import annotations

import hashlib

import numpy as np


def digest(*parts: object) -> int:
    """A 128-bit number that depends on every part and on nothing else (not on Python's hash seed)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def generator(seed: int, index: int, operation: str) -> np.random.Generator:
    """The generator of sample `index` of a run with `seed`, for one named operation.

    Operations have generators of their own, so that adding one leaves the draws of the others as they were.
    """
    return np.random.Generator(np.random.Philox(key=digest(seed, index, operation)))
