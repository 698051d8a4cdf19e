"""Runs trainings that are killed with SIGKILL at chosen moments.

Started as a program of its own: it imports everything once and forks a child per start, so that many starts cost little. Each child
kills itself at its moment; nothing is caught, flushed or cleaned up.
"""

import gc
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import voxtile.training.fit as fit
import voxtile.training.metrics_file as metrics_file
from voxtile.commands.main import main
from voxtile.training.module import SegmentationModule


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(count: int, owner: Any, name: str, before: bool = False) -> None:
    """Dies at the `count`-th call of a function, after it has done its work or before."""
    inner: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if before and calls == count:
            die()
        result = inner(*args, **kwargs)
        if calls == count:
            die()
        return result

    setattr(owner, name, wrapped)


def half_written(count: int, _: Any = None) -> None:
    """Dies when half of the `count`-th resume state has reached the file."""
    inner, calls = torch.save, 0

    def save(state: Any, path: Any) -> None:
        nonlocal calls
        calls += 1
        if calls < count:
            return inner(state, path)
        buffer = io.BytesIO()
        inner(state, buffer)
        with Path(path).open("wb") as handle:
            handle.write(buffer.getvalue()[: buffer.tell() // 2])
            handle.flush()
            os.fsync(handle.fileno())
        die()

    torch.save = save


MOMENTS: dict[str, Callable[[int], None]] = {
    "before a step": lambda n: after(n, SegmentationModule, "training_step", before=True),
    "in a step, after its backward": lambda n: after(n, SegmentationModule, "on_before_optimizer_step"),
    "after a step": lambda n: after(n, SegmentationModule, "training_step"),
    "in validation": lambda n: after(n, SegmentationModule, "validation_step"),
    "before the scores": lambda n: after(n, SegmentationModule, "on_validation_epoch_end", before=True),
    "after the scores, before their checkpoint": lambda n: after(n, SegmentationModule, "on_validation_epoch_end"),
    "between the best weights and their checkpoint": lambda n: after(n, fit, "save_weights"),
    "after the metrics reached the disk": lambda n: after(n, metrics_file.MetricsFile, "sync"),
    "while a checkpoint is written": half_written,
    "after a checkpoint": lambda n: after(n, fit.Keeper, "save"),
}


def start(words: list[str], moment: tuple[str, int] | None) -> int:
    """Forks a child that trains and, where there is a moment, dies at it; returns the wait status."""
    child = os.fork()
    if child == 0:
        if moment is not None:
            MOMENTS[moment[0]](moment[1])
        sys.argv = ["train.py", *words]
        code = 1
        try:
            code = main(["train"])
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    gc.freeze()  # or each child would look for garbage among all that was imported
    ends = [os.waitstatus_to_exitcode(start(words, moment)) for words, moment in json.load(sys.stdin)]
    print(json.dumps(ends), file=sys.stderr)
