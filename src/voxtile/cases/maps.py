"""Writing a result window by window so that a kill at any moment loses the last moment's windows at most, and no file is half."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.atomic import BusyError, claimed, hidden_name, publish, remove, replaced_name, side_file, stable_names
from voxtile.cases.window import IGNORE, Size3, Window
from voxtile.errors import DataError, reason

VALUES = "values"  # the tag of a map that does not hold class indices: "stored" for the values that labels are stored with
MADE_FROM = "made_from"  # the tag of a map, and a key in notes of results: a digest of all that the map was made from


@dataclass(frozen=True)
class MapSpec:
    """What a map holds.

    Attributes:
        classes: class names in the order of their indices.
        heatmap: False for a semantic map (uint8, one number of `numbers` per pixel, 255 where nothing was judged); True for one
            probability per class and pixel (NaN where nothing was judged).
        stored: how the probabilities of a heatmap are stored: "float32"; "float16", rounded to half precision, which as float32
            takes less room where it is compressed; or, in steps of 1/254, "uint8".
        background: index of the class that is what is left where nothing is, None where every class is something.
        values: the number that stands for each class in a semantic map, from 0 to 254; the classes' indices where empty.
        colors: one (red, green, blue) per class, used where the format has a colour table.
        tags: provenance written into the file where the format has room for it.
        key: what the map was made from; unfinished work with another key is thrown away, not continued.
    """

    classes: tuple[str, ...]
    heatmap: bool = False
    stored: str = "float32"
    colors: tuple[tuple[int, int, int], ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    key: str = ""
    background: int | None = None
    values: tuple[int, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """What stands for each class in a semantic map; of a heatmap, the number of its channel."""
        return self.values if self.values and not self.heatmap else tuple(range(len(self.classes)))

    @property
    def about(self) -> dict[str, Any]:
        """What a file says of itself where that is JSON: names of the classes, tags, and which numbers stand for the classes."""
        stored = {"values": self.numbers} if self.values and not self.heatmap else {}
        return {"classes": self.classes, **stored, "tags": dict(self.tags)}

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the pixels in the side file."""
        return np.dtype(np.float32 if self.heatmap and self.stored != "uint8" else np.uint8)

    @property
    def nodata(self) -> float:
        """What stands where nothing was judged."""
        return math.nan if self.dtype.kind == "f" else IGNORE

    def encoded(self, values: NDArray[Any]) -> NDArray[Any]:
        """Classes or probabilities as they stand in the side file."""
        if self.heatmap and self.stored == "uint8":
            values = np.where(np.isnan(values), self.nodata, np.rint(values * STEPS))
        elif self.heatmap and self.stored == "float16":
            values = values.astype(np.float16)
        elif not self.heatmap:
            values = as_numbers(values, self.values)
        return np.ascontiguousarray(values, dtype=self.dtype)


def as_numbers(indices: NDArray[Any], values: Sequence[int]) -> NDArray[Any]:
    """What stands in a map for class indices: `values[index]`, and 255 for 255; the indices themselves where `values` is empty."""
    if not values:
        return indices
    table = np.full(IGNORE + 1, IGNORE, dtype=np.uint8)
    table[: len(values)] = values
    numbers: NDArray[Any] = table[indices]
    return numbers


def as_indices(numbers: NDArray[Any], values: Sequence[int]) -> NDArray[Any]:
    """The class indices that stand in a map: what `as_numbers` was given; 255 for numbers of no class."""
    if not values:
        return numbers
    table = np.full(IGNORE + 1, IGNORE, dtype=np.uint8)
    table[list(values)] = np.arange(len(values))
    indices: NDArray[Any] = table[numbers]
    return indices


# Turns the finished side array [channels, D, H, W], a read-only memory map, into the file or the folder of files at the path.
Finish = Callable[[NDArray[Any], Path], None]
_CHUNK = 2**20  # bytes that are filled at once
SYNC = 0.25  # seconds for which windows may wait for the disk
STEPS = 254  # of a probability that is stored in 8 bits; 255 stands where nothing was judged


class MapWriter:
    """Collects windows in a side file beside `path` and makes the finished file from it in `close`.

    The side file `<path>.part` is a raw array; `<path>.journal` names, one JSON line each, the windows whose pixels
    have reached the disk. A writer opened on the same path with the same key continues there. Pixels are written by position
    and not through a memory map, whose pages would count as memory of the process until the map is as large as the case.
    Waiting for the disk takes milliseconds, so windows that follow one another within `SYNC` seconds wait together.

    Attributes:
        path: the finished file or folder.
        finished: the windows that are on the disk, those of an earlier writer included.
    """

    def __init__(self, path: Path, shape: Size3, spec: MapSpec, finish: Finish) -> None:
        self.path = path
        self.spec = spec
        self._finish, self._made = finish, False
        self._waiting: list[Window] = []  # whose pixels are written, and may not have reached the disk
        self._synced = -math.inf  # when they last had
        self._part = side_file(path)
        self._journal = _journal_of(path)
        with stable_names(path.parent):
            self._making, self._old = hidden_name(path), replaced_name(path)
        self._changed = path.with_name(f".changed.{path.name}")
        self._array_shape = (len(spec.classes) if spec.heatmap else 1, *shape)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._changed.exists()  # the longest name: the system says here whether it takes them
            self._file = claimed(self._part, path)
            with ExitStack() as undo:
                undo.callback(self._file.close)
                self.finished: list[Window] = self._reopen()
                if not self.finished:
                    self._start()
                self._log = self._journal.open("ab", buffering=0)
                undo.pop_all()
        except OSError as error:
            if file := next((each for each in path.parents if each.exists() and not each.is_dir()), None):
                raise DataError(
                    f"Could not begin to write {path}: {file} is a file, and a folder is needed there. Name another output."
                ) from error
            if error.errno == errno.ENAMETOOLONG:
                raise DataError(
                    f"Could not begin to write {path}: the names of the files beside it are longer than the file system takes. "
                    "Give the input, or the output, a shorter name."
                ) from error
            raise DataError(
                f"Could not begin to write {path}: {reason(error)}. Expected a writable folder with room for "
                f"{self._bytes / 1e6:.1f} MB beside the map; free some disk space or name another output."
            ) from error

    @property
    def _bytes(self) -> int:
        return int(np.prod(self._array_shape)) * self.spec.dtype.itemsize

    def _head(self) -> dict[str, Any]:
        return {"key": self.spec.key, "shape": list(self._array_shape), "dtype": self.spec.dtype.str}

    def _reopen(self) -> list[Window]:
        """Returns the windows an earlier writer finished; none where there is nothing to continue."""
        if not self._journal.exists() or not self._part.exists() or self._part.stat().st_size != self._bytes:
            return []
        lines = self._journal.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # a line without its end was cut off
            os.truncate(self._journal, sum(len(line) for line in lines[:-1]))
            lines.pop()
        try:
            head, *windows = [json.loads(line) for line in lines]
            return [Window(*window) for window in windows] if head == self._head() else []
        except (ValueError, TypeError):  # empty or damaged
            return []

    def _start(self) -> None:
        self._journal.unlink(missing_ok=True)  # an old journal must never speak of the new side file
        empty = np.full(_CHUNK // self.spec.dtype.itemsize, self.spec.nodata, dtype=self.spec.dtype).tobytes()
        try:
            os.ftruncate(self._file.fileno(), self._bytes)
            for start in range(0, self._bytes, len(empty)):  # written, not left sparse: a full disk must show now
                write_at(self._file.fileno(), empty[: self._bytes - start], start)
            self._journal.write_text(json.dumps(self._head()) + "\n", encoding="utf-8")
        except OSError:
            self._part.unlink(missing_ok=True)
            self._journal.unlink(missing_ok=True)
            raise

    def write(self, window: Window, array: NDArray[Any]) -> None:
        """Stores `array` ([d, h, w], or [classes, d, h, w] for a heatmap) at `window`; windows must not overlap.

        Raises:
            ValueError: `array` is not of the window's size, or `window` is not inside the map.
            DataError: The disk is full.
        """
        values = array if array.ndim == 4 else array[None]
        expected = (self._array_shape[0], *window.size)
        if values.shape != expected:
            raise ValueError(f"{self.path}: {window} takes an array of shape {expected}, not {values.shape}")
        if not window.inside(self._array_shape[1:]):
            raise ValueError(f"{self.path}: {window} reaches outside the map of shape {self._array_shape[1:]}")
        try:
            self._store(window, self.spec.encoded(values))
            self._waiting.append(window)
            if time.monotonic() - self._synced >= SYNC:
                self._sync()
        except OSError as error:
            raise self._failed(error) from error

    def _sync(self) -> None:
        """Has the pixels reach the disk, and then the journal's lines that say so."""
        # Once: of pixels that could not be written the system speaks a single time, and forgets them.
        windows, self._waiting = self._waiting, []
        if windows:
            os.fdatasync(self._file.fileno())
            lines = "".join(f"{json.dumps(list(window))}\n" for window in windows).encode()
            while lines:  # one call may write less, and then the disk is about to be full
                lines = lines[self._log.write(lines) :]
            os.fsync(self._log.fileno())
            self.finished += windows
            self._synced = time.monotonic()

    def _store(self, window: Window, values: NDArray[Any]) -> None:
        """Writes `values` [channels, d, h, w] row by row, or more at once where rows follow one another in the side file."""
        _, depth, height, width = self._array_shape
        whole_rows = window.width == width
        rows = values.reshape(len(values), window.depth, 1 if whole_rows else window.height, -1)
        for channel, slices in enumerate(rows):
            for z, lines in enumerate(slices, window.z):
                for y, line in enumerate(lines, window.y):
                    first = ((channel * depth + z) * height + y) * width + window.x
                    write_at(self._file.fileno(), line.tobytes(), first * line.itemsize)

    def make(self, change: Callable[[NDArray[Any]], NDArray[Any]] | None = None) -> None:
        """Makes the finished file or folder under a hidden name, so that several maps can come under theirs at once.

        Args:
            change: makes of the side array [channels, D, H, W], which stays as it is, what the file is to hold.

        Raises:
            DataError: It could not be written; the side files stay.
        """
        remove(self._making)
        remove(self._old)
        try:
            self._sync()
            side = self._mapped(self._part)
            if change is not None:
                change(side).tofile(self._changed)
                side = self._mapped(self._changed)
            self._finish(side, self._making)
        except BaseException as error:
            remove(self._making)
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        finally:
            remove(self._changed)
        self._made = True

    def _mapped(self, file: Path) -> NDArray[Any]:
        return np.memmap(file, dtype=self.spec.dtype, mode="r", shape=self._array_shape)

    def close(self) -> Path:
        """Makes the finished file or folder unless it is made, moves it under its name and removes the side files.

        Returns:
            The path.

        Raises:
            DataError: It could not be written; nothing is left under its name and the side files stay.
        """
        if not self._made:
            self.make()
        try:
            with stable_names(self.path.parent):
                publish(self._making, self.path)
        except OSError as error:
            raise self._failed(error) from error
        self.discard()
        return self.path

    def discard(self) -> None:
        """Ends without a map; nothing is left of it."""
        remove(self._making)
        self._journal.unlink()
        self._part.unlink()  # last, and with it the lock: from now on what lies there may be another process's
        self._release()

    def _failed(self, error: OSError) -> DataError:
        return DataError(
            f"Could not write {self.path}: {reason(error)}. Nothing was left under that name; the finished windows are in "
            f"{self._part.name}. Free some disk space or name another output, and give the same command again."
        )

    def __enter__(self) -> MapWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._file.closed:
            remove(self._making)
            with suppress(OSError):  # what is not in the journal is made again
                self._sync()
        self._release()

    def _release(self) -> None:
        self._log.close()
        self._file.close()


def _journal_of(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def discard_probabilities(path: Path) -> None:
    """Takes away what a process that was killed has left of a heatmap or another map of floats or several channels at `path`.

    A semantic map may have the same name, of a case that is called so: its files stay, and so do those that are being written.
    """
    side, journal = side_file(path), _journal_of(path)
    try:
        if not side.exists():
            return
        with claimed(side, path), journal.open(encoding="utf-8") as lines:
            head = json.loads(lines.readline())
            if head["shape"][0] > 1 or np.dtype(head["dtype"]).kind == "f":
                with stable_names(path.parent):
                    making = hidden_name(path)
                # What GDAL reads a scene's map from lies beside it.
                for each in (making, *(making.with_name(f"{making.stem}.{kind}") for kind in ("work", "vrt"))):
                    remove(each)
                journal.unlink()
                side.unlink()
    except (BusyError, OSError, ValueError, KeyError, TypeError):  # in use, or nobody knows what it is
        return


def discard_finished(path: Path, key: str) -> None:
    """Takes away what a process left that was killed when the map at `path`, of this key, already had its name.

    Unfinished work of another key stays, and so does what is being written.
    """
    side, journal = side_file(path), _journal_of(path)
    with suppress(BusyError, OSError):
        if not side.exists():
            return
        with claimed(side, path):
            if not journal.exists() or _key_of(journal) == key:  # the journal goes first
                with stable_names(path.parent):
                    remove(replaced_name(path))
                journal.unlink(missing_ok=True)
                side.unlink()


def _key_of(journal: Path) -> str | None:
    """The key in a journal; None where it is damaged."""
    try:
        with journal.open(encoding="utf-8") as lines:
            return str(json.loads(lines.readline())["key"])
    except (ValueError, KeyError, TypeError):
        return None


def write_at(file: int, data: bytes, at: int) -> None:
    """Writes all of `data` at the position `at`: one call of the system may write less, and then the disk is about to be full."""
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written
