"""Being asked to stop: the step under way ends, the state is saved, and the run says how it goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from voxtile.errors import VoxtileError


class InterruptedRunError(VoxtileError):
    """The user, or the system, asked the run to stop; its state is saved."""

    exit_code = 130
    label = "Interrupted"


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask this process to stop; none in a thread beside the main one, which Python lets listen to none.

    By SIGUSR1 Slurm tells a job that its time is about to end (`sbatch --signal=USR1@90`), unless whoever started this process
    acts on it, and has it ignored here.
    """
    if threading.current_thread() is not threading.main_thread():
        return ()
    warned = () if signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN else (signal.SIGUSR1,)
    return signal.SIGINT, signal.SIGTERM, *warned


@contextmanager
def handled_by(handler: Callable[[int, Any], object] | signal.Handlers) -> Iterator[None]:
    """While this is open, the signals that ask to stop have this handler; afterwards handlers are as they were.

    Those that a host program has set outside Python (None) could not be put back, and stay.
    """
    before = {number: signal.signal(number, handler) for number in stop_signals() if signal.getsignal(number) is not None}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


UNSAVED = "Stopped before it could save. The same command goes on from what was saved last, or begins again."


class StopRequest:
    """Remembers that a signal asked to stop, so that the step under way can end and be saved; a second Ctrl-C ends at once.

    Of several processes only the first `listens`: it saves and leaves, and the others are ended then.
    """

    def __init__(self, listens: bool = True) -> None:
        self.listens = listens
        self.signal: int | None = None

    def __call__(self, number: int, frame: object) -> None:
        """The signal handler."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number  # SIGTERM may come twice, once from whoever ends a group of processes

    def installed(self) -> AbstractContextManager[None]:
        """Takes over the signals, see `handled_by`."""
        return handled_by(self if self.listens else signal.SIG_IGN)
