"""What a piece of work costs beside time: processor seconds, memory, and joules where the system counts them."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")  # of Linux: a folder for each processor package, and for parts of them
OFTEN = 30.0  # seconds between looks at counters that begin anew after some minutes


class Meter:
    """Counts from when it is made until it is read."""

    def __init__(self, packages: Path = POWERCAP) -> None:
        """Begins to count.

        Args:
            packages: where processor packages count their energy.
        """
        self._seconds, self._joules = _processor_seconds(), 0.0
        self._ranges: dict[Path, int] = {}
        for place in sorted(packages.glob("intel-rapl:*")):  # the name of AMD's, too
            with contextlib.suppress(OSError, ValueError):
                if (place / "name").read_text(encoding="ascii").startswith("package"):
                    self._ranges[place] = int((place / "max_energy_range_uj").read_text(encoding="ascii")) + 1
        self._before = self._counters()
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="meter", daemon=True)
        if self._before:
            self._watching.start()

    def read(self) -> dict[str, float]:
        """Ends counting: `cpu_seconds` of this process and those that it has waited for, `cpu_joules` of all processors here.

        The second is left out where the system does not count, or tells nobody but root.
        """
        self._ended.set()
        found = {"cpu_seconds": round(_processor_seconds() - self._seconds, 1)}
        if self._before:
            self._watching.join()  # else both might add what was used since the same look
            self._add()
            found["cpu_joules"] = round(self._joules, 1)
        return found

    def _watch(self) -> None:
        while not self._ended.wait(OFTEN):
            self._add()

    def _add(self) -> None:
        now = self._counters()
        used = [(now[place] - before) % self._ranges[place] for place, before in self._before.items() if place in now]
        self._joules, self._before = self._joules + sum(used) / 1e6, self._before | now

    def _counters(self) -> dict[Path, int]:
        """Microjoules by package."""
        found = {}
        for place in self._ranges:
            with contextlib.suppress(OSError, ValueError):
                found[place] = int((place / "energy_uj").read_text(encoding="ascii"))
        return found


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def forget_peak_memory() -> None:
    """Has `peak_memory` start again from what is held now, where the system can: several runs may share a process."""
    import ctypes
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError, AttributeError):  # of the C library that Linux mostly has
        ctypes.CDLL(None).malloc_trim(0)  # else what an earlier run gave back would still be held
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # see proc(5)


def peak_memory() -> float:
    """The most memory that this process has held, in GiB; of the GPU where one was used."""
    import resource

    import torch

    from voxtile.inference.resident import most_resident

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    # Where the system does not tell, what getrusage says, which is never forgotten.
    return (most_resident() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30
