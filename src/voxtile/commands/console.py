"""What commands print on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from voxtile.errors import counted


def console() -> Console:
    """The console; where there is no terminal, plain lines as long as they come."""
    print_any_name(sys.stdout)
    # Without markup and emoji: a path or an override in square brackets, or with `:x:` in it, is text.
    out = Console(highlight=False, markup=False, emoji=False)
    return out if out.is_terminal else Console(highlight=False, markup=False, emoji=False, width=160)


def print_any_name(stream: TextIO) -> None:
    """Has a stream write bytes of a file's name that are no text in its encoding as digits, where it would raise an error."""
    if reconfigure := getattr(stream, "reconfigure", None):
        reconfigure(errors="backslashreplace")


def table_of(*headers: str, title: str) -> Table:
    """A table of which nothing is cut: what is wider than the screen leaves room for goes on in the next line."""
    return Table(*(Column(header, overflow="fold") for header in headers), title=title, title_justify="left")


@contextmanager
def progress(out: Console) -> Iterator[Callable[..., Callable[[], object]]]:
    """Gives a function (total, title, noun="case") -> tick that shows a bar on a terminal until it is full.

    Elsewhere it prints one line, or none where `noun` is empty.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=out, disable=not out.is_terminal, transient=True)

    def start(total: int, title: str, noun: str = "case") -> Callable[[], object]:
        if noun and not out.is_terminal:
            out.print(f"{title}: {counted(total, noun)}")
        task = bars.add_task(title, total=total)
        left = iter(range(total - 1, -1, -1))

        def tick() -> None:
            bars.advance(task)
            if next(left, 0) == 0:
                bars.update(task, visible=False)

        return tick

    with bars:
        yield start
