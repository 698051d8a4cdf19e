"""What commands print on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from voxtile.errors import counted


def console() -> Console:
    """The console; where there is no terminal, plain lines as long as they come."""
    # Without markup: a path or an override in square brackets is text.
    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(highlight=False, markup=False, width=160)


@contextmanager
def progress(out: Console) -> Iterator[Callable[..., Callable[[], object]]]:
    """Gives a function (total, title, noun="case") -> tick that shows a bar on a terminal and one line elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=out, disable=not out.is_terminal, transient=True)

    def start(total: int, title: str, noun: str = "case") -> Callable[[], object]:
        if not out.is_terminal:
            out.print(f"{title}: {counted(total, noun)}")
        task = bars.add_task(title, total=total)
        return lambda: bars.advance(task)

    with bars:
        yield start
