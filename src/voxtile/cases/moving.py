"""Copying windows out of cells in machine code; what calls it vouches for the addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from voxtile.cases.compiled import compiled

AHEAD = 8  # rows
LINE = 64  # bytes that the processor fetches at once


def _memcpy(context: Any, target: Any, source: Any, count: Any) -> tuple[Any, Callable[..., Any]]:
    """The type of a copy of `count` bytes from one address to another, and what writes its machine code."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, start, size = arguments
        pointer, library = ir.IntType(8).as_pointer(), cast(Any, cgutils)
        library.raw_memcpy(builder, builder.inttoptr(to, pointer), builder.inttoptr(start, pointer), size, 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _prefetch(context: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
    """The type of a hint that what lies at an address is about to be read, and what writes its machine code."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number, library = ir.IntType(8).as_pointer(), ir.IntType(32), cast(Any, cgutils)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        hint = library.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(hint, [builder.inttoptr(arguments[0], pointer), number(0), number(3), number(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return types.void(types.int64), generate


_copy: Any = intrinsic(_memcpy)
_hint: Any = intrinsic(_prefetch)


@compiled
def move(windows: NDArray[Any], cells: NDArray[Any]) -> None:
    """Puts windows together out of cells.

    Args:
        windows: int64 [n, 12]: address; bytes from plane to plane, from row to row and of a pixel; planes, rows and columns; first
            row and column; rows and columns of a cell; number of the first of the cells that it touches, which follow row by row.
        cells: int64 [m, 3], see `Pixels.place`.
    """
    for number in range(len(windows)):
        address, plane, line, item, planes, height, width, top, left, rows, columns, cell = windows[number]
        for row in range(top // rows, (top + height - 1) // rows + 1):
            first, last = max(row * rows, top), min(row * rows + rows, top + height)
            for column in range(left // columns, (left + width - 1) // columns + 1):
                start, stop = max(column * columns, left), min(column * columns + columns, left + width)
                source, its_plane, its_line = cells[cell]
                cell += 1
                target = address + (start - left) * item
                source += (start - column * columns) * item
                for p in range(planes):
                    for y in range(first, last):
                        to, at = target + p * plane + (y - top) * line, source + p * its_plane + (y - row * rows) * its_line
                        # Rows lie too far apart for the processor to guess the next ones.
                        if y + AHEAD < last:
                            for place in range(at + AHEAD * its_line, at + AHEAD * its_line + (stop - start) * item, LINE):
                                _hint(place)
                        _copy(to, at, (stop - start) * item)
