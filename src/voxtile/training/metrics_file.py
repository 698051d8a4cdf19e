"""The run's numbers over time, in a file that can be cut back to a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from voxtile.cases.atomic import naming
from voxtile.errors import RunError, reason

HEADER = "step,name,value\n"


def read(path: Path) -> list[tuple[int, str, str]]:
    """The rows (step, name, value as it is written) of a metrics file; a last one that is only half written is left out.

    Raises:
        RunError: It cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[1:-1]
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read: {reason(error)}. The run folder is damaged: copy the file anew from where the run was "
            "trained, or train the run again."
        ) from error
    rows = (line.split(",") for line in lines)  # no name has a comma
    return [(int(row[0]), row[1], row[2]) for row in rows if len(row) == 3 and row[0].isdigit()]


class MetricsFile:
    """An append-only CSV with one row per number: step, name, value.

    Values are written so that reading them gives the same bits. There is no time in it: a resumed run ends with the same file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, size: int = 0) -> None:
        """Starts the file anew, or cuts it back to a checkpoint.

        Args:
            size: its length in bytes at the checkpoint that the run continues from; 0 starts it anew.

        Raises:
            RunError: The file is missing or shorter than that.
        """
        if size == 0:
            with naming(self._path):
                self._path.write_text(HEADER, encoding="utf-8")
            return
        there = self._path.stat().st_size if self._path.is_file() else 0
        if there < size:
            raise RunError(
                f"{self._path} has {there} bytes, and the run had written {size} when it was saved. The run folder is damaged: put "
                "the file back, or delete resume.pt and type 'retry=true': the same command then trains the run from its start."
            )
        os.truncate(self._path, size)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row per value; no handle stays open, so that a run that stops anywhere leaves what it said."""
        with naming(self._path), self._path.open("a", encoding="utf-8") as rows:
            rows.writelines(f"{step},{name},{float(value)!r}\n" for name, value in values.items())

    def sync(self) -> int:
        """Brings everything to the disk and returns the file's length in bytes."""
        with naming(self._path), self._path.open("rb+") as rows:
            os.fsync(rows.fileno())
            return rows.seek(0, os.SEEK_END)
