"""What a piece of work costs beside time: processor seconds, and joules where the system counts them."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")  # of Linux: one folder for each processor package


@dataclass
class Meter:
    """Counts from when it is made.

    Attributes:
        packages: where processor packages count their energy.
    """

    packages: Path = POWERCAP
    _seconds: float = field(init=False)
    _energy: dict[Path, int] = field(init=False)

    def __post_init__(self) -> None:
        self._seconds, self._energy = _processor_seconds(), self._counters()

    def read(self) -> dict[str, float]:
        """`cpu_seconds` of this process and of those that it has waited for; `cpu_joules` of the whole machine's processors.

        The second is left out where the system does not count, or tells nobody but root.
        """
        found = {"cpu_seconds": round(_processor_seconds() - self._seconds, 1)}
        now = self._counters()
        if self._energy and self._energy.keys() == now.keys():
            used = [(now[place] - before) % _range(place) for place, before in self._energy.items()]
            found["cpu_joules"] = round(sum(used) / 1e6, 1)
        return found

    def _counters(self) -> dict[Path, int]:
        """Microjoules by package; a package's parts (core, uncore) are in its own."""
        found = {}
        for place in sorted(self.packages.glob("intel-rapl:*")):  # the name of AMD's, too
            with contextlib.suppress(OSError, ValueError):
                if place.name.count(":") == 1:
                    found[place] = int((place / "energy_uj").read_text(encoding="ascii"))
        return found


def _range(place: Path) -> int:
    """At how many microjoules a package's counter begins anew."""
    return int((place / "max_energy_range_uj").read_text(encoding="ascii")) + 1


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
