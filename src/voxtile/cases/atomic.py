"""Files that appear whole under their names, whatever is killed and whenever; and files that one process at a time may make."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from voxtile.errors import DataError

HIDDEN_NAME = r"\.([0-9]+)-[0-9]+\."  # how the name of a file that is being made begins, with its process; see `hidden_name`
_STABLE: ContextVar[Path | None] = ContextVar("stable", default=None)  # see `stable_names`


class BusyError(DataError):
    """Another process is writing the map."""


def claimed(side: Path, path: Path) -> io.FileIO:
    """A side file of `path`, made where it is not there, open and locked; the system forgets the lock of a process that died.

    Raises:
        BusyError: Another process holds it.
    """
    while True:
        file = io.FileIO(os.open(side, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), side.stat()):
                return file
        except FileNotFoundError:  # the other process has just finished and taken its side file away
            pass
        except BlockingIOError as error:
            file.close()
            raise BusyError(
                f"{path} is being written by another process. Wait for it; or let several processes share a folder's work "
                "with 'share=true'."
            ) from error
        file.close()


def side_file(path: Path) -> Path:
    """Where the pixels of a map lie until it is finished."""
    return path.with_name(path.name + ".part")


@contextmanager
def stable_names(folder: Path) -> Iterator[None]:
    """Makes hidden names of files in a folder the same in every process and thread.

    For the holder of the target's lock only: it then finds, and replaces, what a killed process left. What is written into other
    folders meanwhile, such as the cache, is not under that lock, and two processes must not write it under one name.
    """
    token = _STABLE.set(folder)
    try:
        yield
    finally:
        _STABLE.reset(token)


def discard_half(path: Path) -> None:
    """Deletes what a process that was killed within `stable_names` left of a file, with SQLite's companions of it.

    Where a map of this name is unfinished, the hidden file is the map's, and may be in use.
    """
    if side_file(path).exists():
        return
    with stable_names(path.parent):
        making = hidden_name(path)
    beside = (making.with_name(f"{making.name}-{kind}") for kind in ("journal", "wal", "shm"))
    for each in (making, *beside, rows_of(making)):
        remove(each)


def rows_of(making: Path) -> Path:
    """Where the rows of a scene's object numbers lie until `making` is made of them."""
    return making.with_name(f"{making.stem}.rows.tif")


def hidden_name(path: Path) -> Path:
    """A hidden name beside `path` for what is being made; the suffix stays last, since libraries choose the format by it."""
    if _STABLE.get() == path.parent:
        return path.with_name(f".making.{path.name}")
    return path.with_name(f".{os.getpid()}-{threading.get_ident()}.{path.name}")


def replaced_name(path: Path) -> Path:
    """A hidden name beside `path` for the older folder whose place a new one is taking."""
    if _STABLE.get() == path.parent:
        return path.with_name(f".replaced.{path.name}")
    return path.with_name(f".{os.getpid()}-{threading.get_ident()}.replaced.{path.name}")


def publish(making: Path, path: Path, sync: bool = True) -> None:
    """Moves a finished file or folder, synced if asked for, under its name, where it takes the place of an older one."""
    if sync:
        for file in making.iterdir() if making.is_dir() else (making,):
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
    if making.is_dir() and path.is_dir():  # a folder can only take the place of an empty one
        old = replaced_name(path)
        path.replace(old)
        making.replace(path)
        remove(old)
    else:
        making.replace(path)


def remove(path: Path) -> None:
    """Deletes a file, where there is one, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an error of the operating system the file that it is about: a disk that is full does not say what it was for."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def atomic_write(path: Path, write: Callable[[Path], object], sync: bool = True) -> None:
    """Lets `write` make a file beside `path`, syncs it and moves it under its name; on failure nothing is left.

    Without `sync`, which is for files that can be made again and are seen to be damaged, a machine that stops may leave a half one.
    """
    making = hidden_name(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(making)
            publish(making, path, sync)
        finally:
            remove(making)


def atomic_text(path: Path, text: str) -> None:
    """Writes `text` to `path` so that a kill leaves either the old file or the new one."""
    atomic_write(path, lambda making: making.write_text(text, encoding="utf-8"))
