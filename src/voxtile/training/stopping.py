"""Being asked to stop: the step under way ends, the state is saved, and the run says how it goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from voxtile.errors import VoxtileError


class InterruptedRunError(VoxtileError):
    """The user, or the system, asked the run to stop; its state is saved."""

    exit_code = 130
    label = "Interrupted"


class StopRequest:
    """Remembers that Ctrl-C or SIGTERM came, so that the step under way can end and be saved; a second Ctrl-C ends at once.

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

    def install(self) -> None:
        """Takes over SIGINT and SIGTERM; again after Lightning has put its own handler there."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self if self.listens else signal.SIG_IGN)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handlers as they were, afterwards."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
