"""Opening GeoTIFFs where they are: GDAL asks for bytes, which come from the cache or by range requests."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from itertools import groupby
from types import TracebackType

import rasterio
from rasterio.abc import FileContainer

from voxtile.cases.address import RemoteFile
from voxtile.cases.cache import most_bytes
from voxtile.cases.fetch import Facts, facts, fetch
from voxtile.cases.range_cache import BLOCK, RangeCache
from voxtile.errors import DataError

# Bytes that a request fetches at least where it goes on from the last one: strips of a file that is not tiled are small and follow
# one another, and a request costs as much time as these take.
AHEAD = 131_072
_failed = threading.local()  # .error: why the calling thread's last request failed, None after one that did not
_opened: weakref.WeakSet[rasterio.DatasetReader] = weakref.WeakSet()


def open_remote(file: RemoteFile) -> rasterio.DatasetReader:
    """Opens a GeoTIFF at an address; only the parts that are read are fetched.

    Raises:
        DataError: It cannot be fetched.
        ConfigError: VOXTILE_CACHE_BYTES is no number.
        RasterioError: What was fetched is no GeoTIFF.
    """
    _failed.error = None
    dataset = rasterio.open(file.shown, driver="GTiff", opener=_OneFile(file, facts(file), most_bytes()))
    _opened.add(dataset)
    return dataset


def raise_failed_request() -> None:
    """To be called where GDAL says that it cannot read: it does not pass on why a request failed.

    Raises:
        DataError: The calling thread's last request failed.
    """
    error: DataError | None = getattr(_failed, "error", None)
    _failed.error = None
    if error is not None:
        raise error


@atexit.register
def _close() -> None:
    """Closes what is open before Python takes away what rasterio needs for closing it."""
    with rasterio.Env():  # without it GDAL prints what a dataset of another thread says
        for dataset in list(_opened):
            with contextlib.suppress(LookupError, SystemError):  # that thread's own business
                dataset.close()


class _OneFile(FileContainer):  # type: ignore[misc]  # rasterio has no types
    """A file system that holds one file. GDAL looks for side files in it and finds none without a request."""

    def __init__(self, file: RemoteFile, known: Facts, most: int) -> None:
        self._file, self._known, self._most = file, known, most

    def open(self, path: str, mode: str = "rb", **options: object) -> _Reader:
        if not self.isfile(path):
            raise FileNotFoundError(path)
        return _Reader(self._file, self._known, self._most)

    def isfile(self, path: str) -> bool:
        return path == self._file.shown

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return []

    def mtime(self, path: str) -> int:
        return self._known.modified // 10**9

    def size(self, path: str) -> int:
        if not self.isfile(path):
            raise FileNotFoundError(path)
        return self._known.size

    def rm(self, path: str) -> None:
        raise PermissionError(path)


class _Reader:
    """The remote file as a Python file."""

    def __init__(self, file: RemoteFile, known: Facts, most: int) -> None:
        self._file, self._known = file, known
        self._at = 0
        self._fetched = -1  # where the last request ended
        self._cache = RangeCache(file.shown, known.tag, known.size, most)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cache.close()

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._known.size}[whence]
        return self._at

    def read(self, count: int = -1) -> bytes:
        """Bytes from where the file stands; none where they cannot be had, so that GDAL fails (it takes no exception)."""
        stop = self._known.size if count < 0 else min(self._at + count, self._known.size)
        if stop <= self._at:
            return b""
        try:
            data = self._bytes(self._at, stop)
        except DataError as error:
            _failed.error = error
            return b""
        self._at = stop
        return data

    def _bytes(self, start: int, stop: int) -> bytes:
        head = self._known.head
        if stop <= len(head):
            return head[start:stop]
        first, last = start // BLOCK, -(-stop // BLOCK)
        blocks = self._cache.get(first, last)
        missing = [number for number, block in enumerate(blocks, first) if block is None]
        # Neighbours are fetched together: their numbers grow with their places in the list.
        for _, run in groupby(enumerate(missing), key=lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in run]
            begin, end = numbers[0] * BLOCK, (numbers[-1] + 1) * BLOCK
            end = min(max(end, begin + AHEAD) if begin == self._fetched else end, self._known.size)
            data = fetch(self._file, begin, end, self._known)
            self._cache.put(numbers[0], data)
            self._fetched = end
            for number in numbers:
                blocks[number - first] = data[number * BLOCK - begin : (number + 1) * BLOCK - begin]
        _failed.error = None
        return b"".join(block for block in blocks if block)[start - first * BLOCK : stop - first * BLOCK]
