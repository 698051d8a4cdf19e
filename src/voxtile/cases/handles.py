"""Few open files, per process and thread."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol


class Closable(Protocol):
    """Anything with a `close` method."""

    def close(self) -> object:
        """Gives back what the handle holds."""


class HandleCache:
    """Keeps the `most` latest handles of the calling thread open and closes the one used longest ago.

    Dataset handles of GDAL may not be shared by threads, and a forked process must not use its parent's: entries are
    kept in thread-local storage together with the process id that opened them.
    """

    def __init__(self, most: int = 32) -> None:
        self.most = most
        self._local = threading.local()

    def get(self, key: object, open_handle: Callable[[], Any]) -> Any:
        """Returns the handle under `key`, opening it where this thread has none."""
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.pid = os.getpid()
            self._local.open = OrderedDict()
        handles: OrderedDict[object, Closable] = self._local.open
        if key in handles:
            handles.move_to_end(key)
        else:
            handles[key] = open_handle()
            if len(handles) > self.most:
                handles.popitem(last=False)[1].close()
        return handles[key]
