"""Decoded arrays on disk: a compressed file is decoded once, later windows of it are slices of a memory map.

One `.npy` file per decoded file lies in the cache folder, named by the content it was decoded from. Processes share the
folder without locks: files appear whole under their names, and one that is deleted stays readable to those who mapped it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.atomic import HIDDEN_NAME, atomic_text, atomic_write
from voxtile.cases.shared import Shared
from voxtile.errors import ConfigError, DataError, reason, size

CODE_VERSION = 1  # raise it whenever a decoder's output changes
_MOST_BYTES = 20_000_000_000
_MUCH = 1_000_000_000  # bytes from which on it is said how many they are
_ARRAYS = re.compile(r"[0-9a-f]{64}\..+\.v[0-9]+\.npy")  # what `cached_array` calls its files, of all versions
_ABANDONED = 86_400.0  # seconds in which nothing was written to a half file, after which nobody will
_SMALLEST = 4096  # bytes on the disk that a small array takes
_LOOK_EVERY = 1_000_000_000  # bytes written by this process between two looks at how much the cache holds
_unseen: dict[Path, float] = {}  # bytes written to a folder since the last look
_FRESH = 1.0  # seconds after which it is asked again whether one of several files has changed
_HASHES: Shared[str] = Shared(100_000, lambda sha256: 1)  # of files by path and stamp; what goes is noted in the cache folder
_MAPPED: Shared[NDArray[Any]] = Shared(64, lambda array: 1)  # few, since a memory map keeps its file descriptor
Stamp = tuple[int, int, int]  # see `stamp_of`
Known = dict[tuple[Path, ...], tuple[float, str]]  # files -> when they were looked at, and the hash of what they held


def cache_folder() -> Path:
    """The cache folder: `VOXTILE_CACHE` of the environment, else ~/.cache/voxtile."""
    given = os.environ.get("VOXTILE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "voxtile"


def stamp_of(path: Path | int) -> Stamp:
    """A file's size in bytes and when its content and its inode changed: they change when the file does.

    The second time notices a file put in place with an old modification time, as `cp -p` does. An open one goes by its descriptor.
    """
    status = os.fstat(path) if isinstance(path, int) else path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def content_hash(path: Path, folder: Path | None = None) -> str:
    """SHA-256 of a file's bytes in hexadecimal, remembered until its size or a time stamp changes.

    Args:
        path: the file.
        folder: the cache folder, where hashes outlive the process; `cache_folder()` where None.

    Raises:
        DataError: The file cannot be read.
    """
    path = path.absolute()
    try:
        stamp = stamp_of(path)
        return _HASHES.get((path, stamp), lambda: _remembered(path, list(stamp), (folder or cache_folder()) / "hashes"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error


def _content(files: tuple[Path, ...], folder: Path, known: Known | None) -> str:
    """One hash of all files; see `cached_array`."""
    if len(files) == 1:
        return content_hash(files[0], folder)
    now = time.monotonic()
    looked, content = (known or {}).get(files, (-math.inf, ""))
    if now - looked > _FRESH:
        content = hashlib.sha256("".join(content_hash(path, folder) for path in files).encode()).hexdigest()
        if known is not None:
            known[files] = now, content
    return content


def _remembered(path: Path, stamp: list[int], folder: Path) -> str:
    """The hash noted in `folder` for a file of this stamp, else the one computed now, which is then noted."""
    note = folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["path"] == str(path) and known["stamp"] == stamp:
            return str(known["sha256"])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # the note only saves time
        atomic_text(note, json.dumps({"path": str(path), "stamp": stamp, "sha256": sha256}))
    return sha256


def cached_array(
    paths: Path | Sequence[Path],
    decode: Callable[[], NDArray[Any]],
    variant: str = "plain",
    *,
    known: Known | None = None,
) -> NDArray[Any]:
    """The array that `decode` makes of a file, or of several, as a read-only memory map.

    Threads that ask for one array at the same time decode it once.

    Of the arrays in the cache folder, those used longest ago are deleted above `most_bytes()`, which is looked at when this process
    writes its first array and after each further 1 GB, or an eighth of the bound where that is less. The one asked for is kept.

    Args:
        paths: the file, or the files in their order; their content is the key, not their names.
        decode: reads and decodes it; called only where the cache does not hold the result.
        variant: what else decides the result, such as the orientation it is brought to; part of a file name.
        known: the caller's memory of what several files hold, which then are looked at once a second only: asking for the stamps
            of a series' hundreds takes longer than reading a slice.

    Raises:
        DataError: The cache folder cannot be written to, or is on a full disk.
    """
    folder = cache_folder()
    files = (paths,) if isinstance(paths, Path) else tuple(paths)
    name = f"{variant}.v{CODE_VERSION}.npy"
    file = folder / f"{_content(files, folder, known)}.{name}"
    array = _mapped(file)
    if array is None and known:
        known.clear()  # what is decoded now goes under what the files hold now
        file = folder / f"{_content(files, folder, known)}.{name}"
        array = _mapped(file)
    return _decoded(file, decode, files[0]) if array is None else array


def forget(array: NDArray[Any]) -> Path | None:
    """Deletes a wrong array of `cached_array`'s, which is decoded again then; its file where this may not delete it."""
    _MAPPED.forget(array)
    if not isinstance(array, np.memmap) or array.filename is None:
        return None
    try:
        Path(array.filename).unlink(missing_ok=True)
    except OSError:
        return Path(array.filename)
    return None


def _decoded(file: Path, decode: Callable[[], NDArray[Any]], source: Path) -> NDArray[Any]:
    """Decodes what is to lie in `file`, made of `source`, and maps it; see `cached_array`."""
    made: NDArray[Any] | None = None

    def make() -> NDArray[Any]:
        nonlocal made
        with contextlib.suppress(OSError, ValueError):  # another thread may have written it meanwhile
            return _map(file)
        made = np.ascontiguousarray(decode())
        try:
            atomic_write(file, lambda making: np.save(making, made, allow_pickle=False))
        except OSError as error:
            raise DataError(
                f"The decoded form of {source} ({made.nbytes / 1e6:.1f} MB) could not be written to the cache folder "
                f"{file.parent}: {reason(error)}. Expected a writable folder with room; set the environment variable VOXTILE_CACHE "
                "to another one."
            ) from error
        _bound(file, made.nbytes)
        return _map(file)

    try:
        return _MAPPED.get(file, make)
    except (OSError, ValueError):
        if made is None:
            raise
        return made  # another process has trimmed the file away at once: what was decoded here serves as well


def _bound(file: Path, written: int) -> None:
    """Trims the folder of `file`, but not after each file: to look at all of them takes the longer the more there are.

    The first one looks, for many short processes write little each, and the folder may be full of others'.
    """
    folder, most = file.parent, most_bytes()
    _unseen[folder] = _unseen.get(folder, math.inf) + max(written, _SMALLEST)
    if _unseen[folder] >= min(_LOOK_EVERY, most // 8):
        _unseen[folder] = 0
        trim(folder, _ARRAYS, file, most)


def _mapped(file: Path) -> NDArray[Any] | None:
    """The array in `file` as a memory map, few of which are kept open; None where there is no such intact file."""
    try:
        return _MAPPED.get(file, lambda: _map(file))
    except (OSError, ValueError):  # absent, or damaged by whatever happened to the disk
        return None


def _map(file: Path) -> NDArray[Any]:
    try:
        # Not `np.load`, which takes what does not begin as an array does for other kinds of file, and fails in other ways then.
        array: NDArray[Any] = np.lib.format.open_memmap(file, mode="r")
    except IsADirectoryError as error:
        raise DataError(
            f"{file} is a folder, and in its place the cache keeps a decoded array. Delete it, or move it away, and give the same "
            "command again."
        ) from error
    with contextlib.suppress(OSError):  # a cache that is only readable serves, too
        os.utime(file)  # the modification time says when it was used last; access times are often switched off
    return array


def trim(folder: Path, names: re.Pattern[str], keep: Path, most: int) -> bool:
    """Deletes the files used longest ago until all together take at most `most` bytes.

    Args:
        folder: where they lie, and maybe files of the user's.
        names: what their names match as a whole; other files are neither deleted nor counted.
        keep: the one that is in use, and stays.
        most: bytes on the disk; what a sparse file does not hold does not count.

    Returns:
        Whether what is left takes no more than that.
    """
    used = [(status.st_mtime_ns, min(status.st_size, 512 * status.st_blocks), file) for file, status in _written(folder, names)]
    left = most - sum(taken for _, taken, file in used if file == keep)
    fits = left >= 0
    for _, taken, file in sorted(used, reverse=True):
        if file != keep:
            left -= taken
            if left < 0:
                file.unlink(missing_ok=True)
    return fits


def _written(folder: Path, names: re.Pattern[str]) -> Iterator[tuple[Path, os.stat_result]]:
    """Files in `folder`, which need not exist, whose whole names match, and half ones of such that a killed process has left."""
    for file in folder.glob("*"):
        half = re.match(HIDDEN_NAME, file.name)
        if names.fullmatch(file.name, half.end() if half else 0):
            with contextlib.suppress(FileNotFoundError):  # another process deletes it, or gives it its name, at the same time
                status = file.stat()
                if not half or time.time() - status.st_mtime > _ABANDONED:
                    yield file, status


def check_cache_room(wanted: int) -> str | None:
    """Whether decoded data fit into the cache, asked before they are decoded.

    Args:
        wanted: their bytes.

    Returns:
        A sentence about how much they take, where it is much.

    Raises:
        DataError: They take more than the cache may hold, or than the disk has room for.
    """
    folder = cache_folder()
    if wanted > most_bytes():
        raise DataError(
            f"Decoded, the data take {size(wanted)}, and the cache {folder} may hold {size(most_bytes())}: files would be decoded "
            f"again and again. Type 'export VOXTILE_CACHE_BYTES={wanted * 1.2:.2g}' first (VOXTILE_CACHE names another folder), "
            "use fewer cases ('data.limit'), or a coarser grid ('data.spacing')."
        )
    if wanted < _MUCH:
        return None
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free + sum(status.st_size for _, status in _written(folder, _ARRAYS))
    if free < wanted:
        raise DataError(
            f"Decoded, the data take {size(wanted)} of disk, and {folder} has {size(free)}, with what it could give up. Free some "
            "disk space, or name a cache folder with more by the environment variable VOXTILE_CACHE."
        )
    return f"decoded, the data take {size(wanted)} of disk in {folder}, once ({size(free)} are there)"


def most_bytes() -> int:
    """How much each part of the cache may hold: `VOXTILE_CACHE_BYTES` of the environment, else 20 GB.

    Raises:
        ConfigError: The variable holds no number.
    """
    given = os.environ.get("VOXTILE_CACHE_BYTES", "")
    try:
        return int(float(given)) if given else _MOST_BYTES
    except ValueError as error:
        raise ConfigError(f"VOXTILE_CACHE_BYTES is '{given}'; expected a number of bytes, such as 20e9.") from error
