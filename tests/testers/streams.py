"""Cases for sample streams, and single samples of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.testers.memory import MemorySource
from voxtile.cases.case import Case, Labels
from voxtile.data.normalise import Intensity
from voxtile.data.stream import SampleStream

PLAIN = Intensity((-np.inf,), (np.inf,), (0.0,), (1.0,))
CLASSES = 3


def case_of(name, shape, seed=0, *, valid=None, label=None):
    """A case whose pixels number its places, so that a sample shows where it was cut."""
    array = 1 + np.arange(np.prod(shape), dtype=np.int32).reshape(1, *shape)
    if label is None:
        label = np.random.default_rng(seed).choice([0, 1, 2, 255], shape, p=[0.6, 0.2, 0.1, 0.1])
    labels = Labels(MemorySource(label[None], path=f"{name}_l.npy"), {0: 0, 1: 1, 2: 2, 255: 255})
    return Case(name, name, MemorySource(array, valid=valid, path=f"{name}.npy"), labels)


def sample_of(stream: SampleStream, index: int) -> dict[str, Any]:
    """Sample `index` as arrays: a batch of one without its first axis."""
    return _first(stream.batch([index]))


def _first(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _first(part) for key, part in value.items()}
    return value[0].numpy() if isinstance(value, torch.Tensor) else value


def plain(value):
    """Arrays as bytes, for comparing samples."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
