"""Functions compiled to machine code by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiles a function of arrays at its first call, without the interpreter and its lock.

    The machine code is kept on disk (beside the source, or in the user's cache folder where that is read-only), since compiling
    takes seconds and many a process calls it once only. A cache knows its own file's changes only: a compiled function calls none
    of another file.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy", "boundscheck": False}
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write to: compiled anew in each process
        made = numba.njit(**options)(function)
    return cast(Function, made)
