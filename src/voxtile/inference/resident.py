"""How much memory this process has held; a file of its own, so that asking loads no libraries that would be counted."""

from __future__ import annotations

from pathlib import Path


def most_resident() -> int:
    """Bytes of memory that this process has had at most; 0 where the system does not tell."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0)
