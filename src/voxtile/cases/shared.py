"""What is made once per process and shared by its threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Shared(Generic[Value]):
    """Keeps what was made under a key; above `most` units in all, what was used longest ago goes.

    Two threads that ask for one key at the same time make it once; those that ask for others do not wait for it.
    """

    def __init__(self, most: int, size: Callable[[Value], int]) -> None:
        """Remembers the limit.

        Args:
            most: units kept in all; the latest value stays whatever its size.
            size: the units of a value.
        """
        self.most, self._size = most, size
        self._lock = threading.Lock()
        self._making: dict[Hashable, threading.Lock] = {}
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()
        self._total = 0  # units of what is kept

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Returns the value under `key`, calling `make` where there is none; an error of `make` is passed on."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:  # another thread made it meanwhile
                    return self._kept[key]
            value = make()
            with self._lock:
                if key in self._kept:  # given up meanwhile, and made by another thread, too
                    self._total -= self._size(self._kept[key])
                self._kept[key] = value
                self._total += self._size(value)
                self._making.pop(key, None)
                while len(self._kept) > 1 and self._total > self.most:
                    self._total -= self._size(self._kept.popitem(last=False)[1])
        return value

    def forget(self, value: Value) -> None:
        """Keeps this very value no longer."""
        with self._lock:
            for key in [key for key, kept in self._kept.items() if kept is value]:
                self._total -= self._size(self._kept.pop(key))
