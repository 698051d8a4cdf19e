"""Memory for large arrays that come and go."""

from __future__ import annotations

import math
import mmap
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Buffers:
    """Arrays whose memory is used again once nobody holds them, or a view or tensor of them.

    Taken from the heap, arrays of many megabytes leave holes between the small ones, which grow to several times what is in use.
    One thread takes arrays; they may be given up in any.
    """

    def __init__(self) -> None:
        self._held: list[tuple[mmap.mmap, weakref.ref[NDArray[Any]]]] = []

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array with anything in it."""
        kind, count = np.dtype(dtype), math.prod(shape)
        size = max(1, count * kind.itemsize)
        free = [number for number, (memory, user) in enumerate(self._held) if user() is None and len(memory) >= size]
        memory = self._held.pop(free[0])[0] if free else mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Views of an array that owns no memory refer to it and not to what it was made from: it lives as long as any of them.
        array: NDArray[Any] = np.frombuffer(memory, dtype=kind, count=count)
        self._held.append((memory, weakref.ref(array)))
        return array.reshape(shape)
