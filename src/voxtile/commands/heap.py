"""How a command's process holds memory that was freed."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's malloc.h, and their values.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE = 2**30


def keep_heap() -> None:
    """Has glibc keep what is freed, in one heap, for what is allocated next; elsewhere nothing is done.

    By default each large tensor is mapped anew and given back to the system, which clears its pages again at every layer, and each
    thread has a heap of its own, whose free parts the others cannot use.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for parameter, value in ((_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, 2 * _LARGE - 1), (_ARENA_MAX, 1)):
        libc.mallopt(parameter, value)
