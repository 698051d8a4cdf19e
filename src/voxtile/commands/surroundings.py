"""What a command finds around it: output that is closed or full, being asked to stop at any moment, variables that are empty."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO, cast

PLACES = ("VOXTILE_DATA", "VOXTILE_RUNS", "VOXTILE_CACHE")
SAME = 5.0  # seconds for which further SIGTERMs are the same request: whoever ends a group of processes sends several
AGAIN = 0.05  # seconds until a signal that came while something was imported, or came to nothing, is tried again


def set_right() -> None:
    """Takes variables that are set but empty as not set, and gives standard streams that are closed their numbers back.

    Else the next file that is opened has the number of a closed stream, and what a library prints goes into it.
    """
    for name in PLACES:
        if os.environ.get(name) == "":
            del os.environ[name]
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # which takes the lowest free number, this one


@contextmanager
def interruptible() -> Iterator[None]:
    """While this is open, Ctrl-C waits until what is being imported is there, and SIGTERM ends a command as Ctrl-C does.

    Libraries swallow Python's exception while they are imported, and fail then for other reasons, or end the process; Python does
    in what it calls when an object goes. The signal comes again then, so that it reaches whoever listens by then, as a training
    that has just begun.
    """
    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    on_main = threading.current_thread() is threading.main_thread()  # no other thread can listen
    ours = [number for number, handler in usual.items() if on_main and signal.getsignal(number) is handler]
    heard, latest = -math.inf, signal.SIGINT
    later: threading.Timer | None = None
    around = _imports(sys._getframe())  # of whoever calls a command while it is imported
    report = sys.unraisablehook

    def again(number: int) -> None:
        nonlocal later
        later = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
        later.daemon = True
        later.start()

    def interrupted(number: int, frame: FrameType | None) -> None:
        nonlocal heard, latest
        if later is not None:  # this one is heard instead
            later.cancel()
        if _imports(frame) == around:
            if number == signal.SIGTERM:
                if time.monotonic() - heard < SAME:  # what has been begun is cleared up now
                    return
                heard = time.monotonic()
            latest = signal.Signals(number)
            raise KeyboardInterrupt
        again(number)

    def swallowed(lost: Any) -> None:
        nonlocal heard
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            report(lost)
            return
        heard = -math.inf
        again(latest)

    for number in ours:
        signal.signal(number, interrupted)
    if ours:
        sys.unraisablehook = swallowed
    try:
        yield
    finally:
        if ours:
            sys.unraisablehook = report
        for number in ours:
            signal.signal(number, usual[number])


def _imports(frame: FrameType | None) -> int:
    """How many calls of Python's import system a frame lies within."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return count


class Printed:
    """Standard output that a command can do without: where it cannot be written, that is said once, and it goes nowhere then.

    Attributes:
        lost: whether something could not be written.
    """

    def __init__(self, stream: TextIO | None, makes: bool) -> None:
        """Wraps a stream.

        Args:
            stream: standard output; None where it is closed.
            makes: whether the command makes something, and goes on when nobody reads what it prints; `head` ends others.
        """
        self._stream, self._makes, self.lost = stream, makes, False

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's."""
        if name == "_stream":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text where that is possible."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream where that is possible."""
        self._try(lambda stream: stream.flush())

    def _try(self, action: Callable[[TextIO], object]) -> None:
        if self._stream is None:
            return
        try:
            action(self._stream)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and not self._makes:
                raise
            self.lost = True
            to_nowhere(self._stream)
            with suppress(OSError, AttributeError):  # the same may have become of it, or it is closed
                sys.stderr.write(f"What this command prints can no longer be written ({error.strerror}). It goes on without.\n")


def to_nowhere(stream: TextIO) -> None:
    """Has whatever is written into a stream from now on, by libraries and other processes too, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def printing(makes: bool) -> Iterator[Printed]:
    """While this is open, standard output is one that need not be there, see `Printed`."""
    before = sys.stdout
    printed = Printed(before, makes)
    if before is not None:  # else Python and rich print nothing
        sys.stdout = cast(TextIO, printed)
    try:
        yield printed
    finally:
        sys.stdout = before
