"""Blocks of files at addresses, kept on the local disk, so that an epoch does not fetch again what the last one has fetched.

One sparse file per remote file lies in `remote/` of the cache folder: first a table with one checksum per block, 0 where the block
has not come, then the blocks at their places. A block is written before its checksum, and checked against it whenever it is read,
so neither a kill nor a power cut can make a half block pass for a whole one, and threads and processes share the file without
locks: two that write the same block write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import zlib
from collections import OrderedDict

import numpy as np

from voxtile.cases.cache import cache_folder, trim
from voxtile.errors import reason

BLOCK = 16_384  # bytes; about what two ends of a tile cost more than the tile
_MOST_IN_MEMORY = 256  # blocks of a file that cannot be kept on the disk
_NAMES = re.compile(r"[0-9a-f]{32}\.blocks")
_LOOK_EVERY = 64_000_000  # bytes written by this process between two looks at how much the cache holds
_unseen = _LOOK_EVERY  # bytes written since the last look: the first block looks, for many short processes write little each
_told: set[str] = set()
_log = logging.getLogger(__name__)


class RangeCache:
    """The blocks of one remote file that are here. Not for several threads; each opens its own on the same file."""

    def __init__(self, name: str, tag: str, size: int, most: int) -> None:
        """Opens or makes the local file; where that fails, blocks are kept in memory only, and it is said once.

        Args:
            name: the remote file's name, credentials masked.
            tag: what changes with its content; where it is "", a change would not be seen and nothing is kept on the disk.
            size: its size in bytes.
            most: bytes that all these files together may take.
        """
        self._memory: OrderedDict[int, bytes] = OrderedDict()
        self._table = -(-4 * -(-size // BLOCK) // BLOCK) * BLOCK  # bytes before the first block
        self._file, self._most = -1, most
        self._kept = bool(tag)  # whether blocks that come are written
        if not tag:
            return
        key = hashlib.sha256(f"{name}\n{size}\n{tag}\n{BLOCK}".encode()).hexdigest()[:32]
        self._path = cache_folder() / "remote" / f"{key}.blocks"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._file, self._table + size)
            os.utime(self._path)  # says when it was used last
        except OSError as error:
            self._do_without(error)
            with contextlib.suppress(OSError):  # a cache that is only readable serves, too
                self._file = self._file if self._file >= 0 else os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def get(self, first: int, stop: int) -> list[bytes | None]:
        """Blocks `first` up to `stop`; None for those that are not here."""
        found = [self._memory.get(number) for number in range(first, stop)]
        if self._file < 0 or None not in found:
            return found
        with contextlib.suppress(OSError):  # a disk that cannot be read has no blocks
            sums = np.frombuffer(os.pread(self._file, 4 * (stop - first), 4 * first), dtype="<u4")
            data = os.pread(self._file, (stop - first) * BLOCK, self._table + first * BLOCK) if sums.any() else b""
            for place, known in enumerate(sums):
                block = data[place * BLOCK : (place + 1) * BLOCK]
                if known and _checksum(block) == known:
                    found[place] = block
        return found

    def put(self, first: int, data: bytes) -> None:
        """Keeps what has come: whole blocks from block `first`, of which only the file's last may be shorter."""
        if self._kept:
            try:
                blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
                sums = np.array([_checksum(block) for block in blocks], dtype="<u4").tobytes()
                for content, place in ((data, self._table + first * BLOCK), (sums, 4 * first)):
                    if os.pwrite(self._file, content, place) != len(content):
                        raise OSError("No space left on device")
                self._bound(len(data))
                return
            except OSError as error:
                self._do_without(error)
        for at in range(0, len(data), BLOCK):
            self._memory[first + at // BLOCK] = data[at : at + BLOCK]
        while len(self._memory) > _MOST_IN_MEMORY:
            self._memory.popitem(last=False)

    def close(self) -> None:
        """Closes the local file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _bound(self, written: int) -> None:
        """Deletes the files used longest ago where the cache holds too much; where this one alone does, it grows no more."""
        global _unseen
        _unseen += written
        if _unseen >= min(_LOOK_EVERY, self._most // 8):
            _unseen = 0
            self._kept = trim(self._path.parent, _NAMES, self._path, self._most)

    def _do_without(self, error: OSError) -> None:
        self._kept = False
        folder = str(self._path.parent)
        if folder not in _told:
            _told.add(folder)
            _log.warning(
                "What is fetched cannot be kept in the cache folder %s: %s. It is fetched again whenever it is needed; set "
                "VOXTILE_CACHE to a folder with room that may be written to.",
                folder,
                reason(error),
            )


def _checksum(block: bytes) -> int:
    """CRC-32, never 0, which stands for a block that is not there."""
    return zlib.crc32(block) or 1
