"""Which processes are alive, of this machine and by what others know them, and locks that die with theirs."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds a file lock, which the system lets go when the process dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Marks a folder as used until this process leaves it, or dies; see `is_in_use`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some disks of several machines lock no folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_in_use(folder: Path) -> bool:
    """Whether a process, of this container or another one on the same disk, uses a folder; also where that cannot be told."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def this_process() -> dict[str, Any]:
    """By what others know this process: machine, number, start, and where such numbers count, since containers have their own."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": start_time(pid), "numbers": _numbers()}


def is_here(process: Mapping[str, Any]) -> bool:
    """Whether a process, as `this_process` has it, is of this machine and container, so that its number says whether it lives."""
    numbers = _numbers()
    return bool(process["host"] == socket.gethostname() and process.get("numbers", numbers) == numbers)


def _numbers() -> str:
    """Linux's name of the space in which numbers of processes count (pid_namespaces(7)); "" if unknown."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def start_time(pid: int) -> str:
    """When a process started, in the system's ticks, so that a later process with the same number is told apart; "" if unknown."""
    return _stat(pid)[19]


def is_alive(pid: int, started: str | None = None) -> bool:
    """Whether a process of this machine has this number, and started then where that is given.

    One that has ended, and whose end nobody has asked for yet (a zombie), is not alive, though its number is still taken.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no number so large is one
        return False
    except PermissionError:
        return True
    stat = _stat(pid)
    return stat[0] not in ("Z", "X") and started in (None, stat[19])


def _stat(pid: int) -> list[str]:
    """What Linux says of a process, from its state on (proc_pid_stat(5), field 3 and those behind it); empty texts if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return [""] * 20
