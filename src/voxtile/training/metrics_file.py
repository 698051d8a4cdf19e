"""The run's numbers over time, in a file that can be cut back to a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

HEADER = "step,name,value\n"


class MetricsFile:
    """An append-only CSV with one row per number: step, name, value.

    Values are written so that reading them gives the same bits. There is no time in it: a resumed run ends with the same file.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        """Opens the file and cuts it back.

        Args:
            path: the file.
            size: its length in bytes at the checkpoint that the run continues from; 0 starts it anew.
        """
        self._path = path
        if size == 0:
            path.write_text(HEADER, encoding="utf-8")
        else:
            os.truncate(path, size)
        self._handle = path.open("a", encoding="utf-8")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row per value."""
        self._handle.writelines(f"{step},{name},{float(value)!r}\n" for name, value in values.items())

    def sync(self) -> int:
        """Brings everything to the disk and returns the file's length in bytes."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        return self._path.stat().st_size

    def close(self) -> None:
        """Closes the file."""
        self._handle.close()
