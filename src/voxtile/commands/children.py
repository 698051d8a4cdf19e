"""Processes that a command starts: told once what to do, stopped as it is, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from voxtile.errors import VoxtileError, reason

Child = subprocess.Popen[str]

ORPHANED = 1  # exit code of a process whose starter is gone
POLL = 0.1  # seconds between looks at processes
GRACE = 5.0  # seconds that others have to say what is wrong, too, after one has failed
SAVING = 60.0  # seconds that processes have to save their state where they are to end for another reason than their own
UNHEARD = 3  # times Ctrl-C after which processes that do not react are ended as they are


@contextmanager
def child(
    module: str, order: Mapping[str, Any], environment: Mapping[str, str], log: Path | None = None, folder: str | None = None
) -> Iterator[Child]:  # fmt: skip
    """A process that is ended with this block, and with this process however that ends.

    Args:
        module: of Python, that is run.
        order: what `order_of` gives it.
        environment: its environment.
        log: where it prints; where this process does if None.
        folder: in which it works; where this process does if None.
    """
    with (log or Path(os.devnull)).open("w", encoding="utf-8") as said:
        out = None if log is None else said
        process = subprocess.Popen(
            [sys.executable, "-m", module], env=environment, stdin=subprocess.PIPE, stdout=out, stderr=out, text=True,
            cwd=folder, start_new_session=True,  # Ctrl-C comes to this process, which hands it on
        )  # fmt: skip
    assert process.stdin is not None
    try:
        with suppress(BrokenPipeError):  # it has ended already, which whoever waits for it will see
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()  # it stays open: its end tells the process that this one has ended
        yield process
    finally:
        process.kill()
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()


def how_it_ended(code: int) -> str:
    """How a process ended by its exit code, to stand behind its name."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # of real-time signals, only the first and the last have names
        name = f"signal {-code}"
    return f"was ended by {name}" + (", as the system does where memory runs out" if name == "SIGKILL" else "")


def told(error: BaseException) -> dict[str, Any]:
    """What a process leaves for its starter of the error that has ended it; `retold` makes an error of what is `known`."""
    if isinstance(error, VoxtileError):
        return {"known": True, "message": str(error), "label": error.label, "exit_code": error.exit_code}
    return {"known": False, "message": f"{type(error).__name__}: {reason(error)}", "exit_code": 1}


def retold(said: Mapping[str, Any]) -> VoxtileError:
    """An error of ours that another process has told of."""
    from voxtile.training.stopping import InterruptedRunError

    interrupted = said["exit_code"] == InterruptedRunError.exit_code
    error = InterruptedRunError(said["message"]) if interrupted else VoxtileError(said["message"])
    error.exit_code, error.label = said["exit_code"], said["label"]
    return error


def emptied(folder: Path) -> Path:
    """A folder, made where it is not there, without what processes have left in it before."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    return folder


def order_of() -> dict[str, Any]:
    """In a child: what it was told. From here on it ends when the process that started it does.

    Ctrl-C ends it at once until its training listens: libraries swallow Python's exception while they are imported, and fail then.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # by which Slurm warns all processes of a job: its first one acts on it
        signal.signal(number, signal.SIG_IGN)
    order: dict[str, Any] = json.loads(sys.stdin.readline())

    def wait() -> None:
        sys.stdin.read()
        os._exit(ORPHANED)

    threading.Thread(target=wait, name="orphan", daemon=True).start()
    return order


def forwarding(forward: Callable[[int], object]) -> AbstractContextManager[None]:
    """While this is open, signals that ask to stop are handed to `forward` instead of ending this process.

    Slurm's warning is handed on as SIGTERM, since children ignore it.
    """
    from voxtile.training.stopping import handled_by

    def handler(number: int, frame: object) -> None:
        forward(signal.SIGTERM if number == signal.SIGUSR1 else number)

    return handled_by(handler)
