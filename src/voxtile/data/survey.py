"""One pass over a case: what every later step needs to know of it, kept in the cache.

Labels are read whole (their content is part of a run's identity), images in evenly spread blocks. Of a survey that is in the cache
a few numbers are in memory; sampled pixels and places, of which thousands of cases have gigabytes, are read when they are needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from voxtile.cases.atomic import atomic_write
from voxtile.cases.cache import Stamp, stamp_of
from voxtile.cases.case import Case
from voxtile.cases.shared import Shared
from voxtile.cases.window import IGNORE, Size3, Window
from voxtile.data.batches import ReadAhead
from voxtile.data.rng import digest, generator, one_of_each
from voxtile.errors import DataError

VERSION = 7  # part of the cache's key: raise it when what a survey holds or how it is made changes
BLOCK_SIDE = 1024  # side of a block in pixels
MOST_IMAGE_BLOCKS = 256
MOST_LOCATIONS = 4096  # per class; more of large cases, see `most_locations`
PIXELS_PER_LOCATION = 64 * 64
CHECK = 4  # bytes of the checksum before a kept survey
MOST_SAMPLED = 200_000  # in the intensity sample
Made = TypeVar("Made")
# Places of a class in a case, which drawing windows asks for again and again, at most 256 MB; keeping one takes some bytes itself.
_PLACES: Shared[NDArray[np.int32]] = Shared(256_000_000, lambda places: places.nbytes + 400)


@dataclass(frozen=True)
class Measured:
    """What of a survey grows with the case, in memory.

    Attributes:
        locations: see `Survey`.
        sample: see `Survey`.
    """

    locations: Sequence[NDArray[np.int32]]
    sample: NDArray[Any]


@dataclass(frozen=True)
class Survey:
    """What one pass over a case found.

    Attributes:
        image_digest: of the image's shape, number of channels, data type, and the sampled blocks' pixels and validity, on the
            grid of its file: by it an image is known again on whatever grid networks see it.
        label_digest: of the label's class indices, "" where the label was not read.
        counts: pixels per class [K] of the whole label, without those whose image is known to hold no data. In cases of more than
            256 blocks the image is read in 256 of them; in the others every labelled pixel counts, and none is extrapolated.
        judged: pixels that are to be judged, the sum of `counts`.
        pixels: pixels in the case.
        valid: share of the sampled pixels that hold data.
        sampled: how many pixels `sample` holds.
        measured: `locations` and `sample`, in memory or in the cache.
    """

    image_digest: str
    label_digest: str
    counts: NDArray[np.int64]
    pixels: int
    valid: float
    sampled: int
    measured: Measured | Kept

    @property
    def locations(self) -> Sequence[NDArray[np.int32]]:
        """Per class, (z, y, x) of evenly drawn pixels of those that `counts` counts, int32 [m, 3]; all or `most_locations`.

        A class of which pixels are counted has a place. See `Kept` for errors.
        """
        return self.measured.locations

    @property
    def sample(self) -> NDArray[Any]:
        """About 200000 pixels that hold data, evenly spread, in the case's data type [C, n]. Errors: `Kept`."""
        return self.measured.sample

    @property
    def judged(self) -> int:
        """Pixels that are to be judged."""
        return int(self.counts.sum())

    @property
    def is_thinned(self) -> bool:
        """Whether only a part of the pixels is in the sample."""
        return self.pixels > MOST_SAMPLED


def most_locations(pixels: int) -> int:
    """How many places of a class are kept of a case.

    One for each square of 64 x 64 pixels of a large case, so that windows laid around them reach nearly every pixel: of a
    gigapixel of one class, windows of 64 pixels around 4096 places would never show 94 %.
    """
    return max(MOST_LOCATIONS, pixels // PIXELS_PER_LOCATION)


def block_size(shape: Size3) -> Size3:
    """(D, H, W) of the blocks of a case of `shape`, those at its far sides excepted: at most about `BLOCK_SIDE`² pixels."""
    depth, height, width = shape
    h, w = min(height, BLOCK_SIDE), min(width, BLOCK_SIDE)
    return max(1, min(depth, BLOCK_SIDE * BLOCK_SIDE // (h * w))), h, w


def blocks(shape: Size3) -> Iterator[Window]:
    """Cuts a case of `shape` (D, H, W) into windows of `block_size`, in reading order."""
    depth, height, width = shape
    d, h, w = block_size(shape)
    for z in range(0, depth, d):
        for y in range(0, height, h):
            for x in range(0, width, w):
                yield Window(z, y, x, min(d, depth - z), min(h, height - y), min(w, width - x))


def survey(case: Case, num_classes: int, label: bool = True) -> Survey:
    """Reads a case once.

    Args:
        case: the case.
        num_classes: K.
        label: whether the label is read; False keeps the labels of a locked split closed.

    Raises:
        DataError: A file cannot be read or a label value is unknown.
    """
    parts = list(blocks(case.shape))
    chosen = _chosen(parts)
    every = math.ceil(sum(part.pixels for part in chosen) / MOST_SAMPLED)
    moved = case.image.native is not case.image
    image_hash = _native_hash(case.native) if moved else _begun_hash(case)
    label_hash = hashlib.sha256()
    counts = np.zeros(num_classes, dtype=np.int64)
    found = _Locations(num_classes, most_locations(Window.whole(case.shape).pixels))
    sample: list[NDArray[Any]] = []
    seen = held = 0
    # Read ahead, since hashing takes as long as decoding; a thread for one block takes several times as long as both.
    read = ReadAhead(lambda: parts, lambda part: case.read(part) if part in chosen else None, min(1, len(parts) - 1), ahead=1)
    for number, (part, pixels) in enumerate(zip(parts, read, strict=True)):
        valid = np.ones(part.size, dtype=np.bool_)
        if pixels is not None:
            array, valid = pixels
            if not moved:
                _add(image_hash, array, valid)
            places = np.flatnonzero(valid)
            sample.append(array.reshape(len(array), -1)[:, places[one_of_each(every, len(places), number)]])
            seen, held = seen + part.pixels, held + int(valid.sum())
        if label:
            classes = case.read_label(part)
            label_hash.update(classes.tobytes())
            classes[~valid] = IGNORE
            here = np.bincount(classes.ravel(), minlength=256)[:num_classes]
            counts += here
            found.add(classes, part, number, np.flatnonzero(here).tolist())
    measured = Measured(found.result(), np.concatenate(sample, axis=1))
    return Survey(
        image_hash.hexdigest(), label_hash.hexdigest() if label else "", counts, Window.whole(case.shape).pixels,
        held / max(seen, 1), measured.sample.shape[1], measured,
    )  # fmt: skip


def _chosen(parts: Sequence[Window]) -> set[Window]:
    """The blocks in which an image is read."""
    return {parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, min(len(parts), MOST_IMAGE_BLOCKS)).astype(int))}


def _begun_hash(case: Case) -> hashlib._Hash:
    return hashlib.sha256(repr((case.shape, len(case.channels), case.dtype.str)).encode())


def _add(image_hash: hashlib._Hash, array: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Adds a block's pixels [C, d, h, w] and validity."""
    image_hash.update(np.ascontiguousarray(array).data)
    image_hash.update(np.packbits(valid).data)


def _native_hash(case: Case) -> hashlib._Hash:
    """What `survey` hashes of a case on the grid of its file, which the cache need not hold beside another one."""
    array, valid = case.whole()
    image_hash, parts = _begun_hash(case), list(blocks(case.shape))
    chosen = _chosen(parts)
    for part in parts:
        if part in chosen:
            _add(image_hash, array[:, *part.slices], valid[part.slices])
    return image_hash


def foreground_sample(case: Case, found: Survey, background: int) -> tuple[NDArray[Any], int]:
    """Pixels at the places that the survey kept of classes other than the background, each class by its share of them.

    Returns:
        Pixels [C, n], slice by slice, and how many places were left out since they hold no data: of large cases the survey keeps
        places in blocks whose image it has not read.
    """
    kept = [
        (places, int(count)) for k, (places, count) in enumerate(zip(found.locations, found.counts, strict=True)) if k != background
    ]
    share = min((len(places) / count for places, count in kept if count), default=0.0)  # so that no class is over-represented
    chosen = [places[: max(1, round(share * count))] for places, count in kept if count]
    where = np.concatenate([np.empty((0, 3), dtype=np.int32), *chosen])
    where = where[np.argsort(where[:, 0], kind="stable")]
    pixels, valid = np.empty((len(case.channels), len(where)), dtype=case.dtype), np.zeros(len(where), dtype=np.bool_)
    number = np.ravel_multi_index(tuple((where // block_size(case.shape)).T), case.shape)
    order = np.argsort(number, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else ():
        low, high = where[members].min(axis=0), where[members].max(axis=0)
        array, holds = case.read(Window.of(low.tolist(), (high - low + 1).tolist()))
        at = tuple((where[members] - low).T)
        pixels[:, members], valid[members] = array[:, *at], holds[at]
    return pixels[:, valid], int((~valid).sum())


class _Locations:
    """An even draw without replacement of pixels of each class: each pixel gets a random key, the smallest keys stay."""

    def __init__(self, num_classes: int, most: int) -> None:
        self.most = most
        self.parts: list[list[tuple[NDArray[np.float64], NDArray[np.int32]]]] = [[] for _ in range(num_classes)]
        self.bounds = [math.inf] * num_classes  # keys above are not among the smallest any more

    def add(self, classes: NDArray[np.uint8], part: Window, number: int, present: Sequence[int]) -> None:
        for index in present:
            kept = self.parts[index]
            hits = np.flatnonzero(classes == index)
            new = generator(index, number, "location").random(len(hits))
            small = np.flatnonzero(new < self.bounds[index])
            if len(small) > self.most:
                small = small[np.argpartition(new[small], self.most)[: self.most]]
            hits, new = hits[small], new[small]
            where = np.stack(np.unravel_index(hits, classes.shape), axis=1) + np.array(part.start)
            kept.append((new, where.astype(np.int32)))
            if sum(len(keys) for keys, _ in kept) > 1.25 * self.most:  # rarely, since sorting is what takes long
                self._sort(index)

    def _sort(self, index: int) -> NDArray[np.int32]:
        parts = [(np.empty(0), np.empty((0, 3), dtype=np.int32)), *self.parts[index]]
        keys, places = np.concatenate([keys for keys, _ in parts]), np.concatenate([places for _, places in parts])
        order = np.argsort(keys, kind="stable")[: self.most]
        self.parts[index] = [(keys[order], places[order])]
        if len(order) == self.most:
            self.bounds[index] = float(keys[order[-1]])
        return places[order]

    def result(self) -> tuple[NDArray[np.int32], ...]:
        return tuple(self._sort(index) for index in range(len(self.parts)))


def survey_key(case: Case, num_classes: int, label: bool) -> str:
    """Changes whenever the survey could: the files by size and time of change, the channels, the label's meaning."""
    sources = case.sources if label else (case.image,)
    files = [path for source in sources for path in (*source.files, *source.beside)]
    stamps = [(str(path.resolve()), *stamp_of(path)) for path in files]
    meaning = sorted(case.labels.values.items()) if case.labels and label else ()
    settings = (case.image.key, case.labels.source.key if case.labels and label else "")
    text = digest(VERSION, stamps, case.channels, tuple(case.box), meaning, num_classes, settings)
    return f"{text:032x}"


class Kept:
    """Sampled pixels and places of a survey, in its file of the cache, from which they are read whenever they are asked for.

    Where the file is not what it was any more, since the cache was emptied or another process wrote it anew, it is looked at as a
    whole, and where it is gone or damaged the case is surveyed again.

    Raises:
        DataError: Neither is what was surveyed: the case's files have changed meanwhile, or cannot be read.
    """

    def __init__(self, found: Survey, path: Path, stamp: Stamp, again: Callable[[], Survey]) -> None:
        """Remembers where they are.

        Args:
            found: the survey.
            path: its file.
            stamp: of the file as it was read or written whole.
            again: surveys the case once more.
        """
        self._digests, self._classes, self._dtype = (found.image_digest, found.label_digest), len(found.counts), found.sample.dtype
        self._path, self._stamp, self._again = path, stamp, again
        self._held: Measured | None = None  # where the cache cannot be written any more

    @property
    def sample(self) -> NDArray[Any]:
        """See `Survey`."""
        found = self._array("sample", self._dtype.newbyteorder("="))
        return found if isinstance(found, np.ndarray) else found.sample

    @property
    def locations(self) -> Sequence[NDArray[np.int32]]:
        """See `Survey`; those of a class are read when it is asked for."""
        return _Places(self.places, self._classes)

    def places(self, number: int) -> NDArray[np.int32]:
        """Places of a class, of which those asked for lately stay in memory."""

        def read() -> NDArray[np.int32]:
            found = self._array(f"locations_{number}", np.dtype(np.int32))
            return found if isinstance(found, np.ndarray) else found.locations[number]

        return _PLACES.get((self._path, *self._digests, number), read)

    def _array(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any] | Measured:
        """The array called `name` of the file; where the file has changed, all that was measured."""
        if self._held is None:
            with contextlib.suppress(OSError, ValueError, KeyError), self._path.open("rb", buffering=0) as file:
                if stamp_of(file.fileno()) == self._stamp:
                    return _array_in(file, name, dtype)
        return self._held or self._found_again()

    def _found_again(self) -> Measured:
        stamp: Stamp | None = None
        try:
            found, stamp = _read(self._path)
        except _UNREADABLE:
            found = self._again()
        if self._digests != (found.image_digest, found.label_digest):
            raise DataError(
                f"What was measured of a case is gone from the cache ({self._path}), and the case is not what it was: its files "
                "have changed since this command began. Put them back as they were, or start the command again."
            )
        measured = Measured(found.locations, found.sample)
        if stamp is None:
            try:
                stamp = _write(found, self._path)
            except OSError:
                self._held = measured
        self._stamp = stamp or self._stamp
        return measured


class _Places(Sequence[NDArray[np.int32]]):
    """Places by class, each read when it is asked for."""

    def __init__(self, read: Callable[[int], NDArray[np.int32]], classes: int) -> None:
        self._read, self._classes = read, classes

    def __len__(self) -> int:
        return self._classes

    @overload
    def __getitem__(self, number: int) -> NDArray[np.int32]: ...

    @overload
    def __getitem__(self, number: slice) -> list[NDArray[np.int32]]: ...

    def __getitem__(self, number: int | slice) -> NDArray[np.int32] | list[NDArray[np.int32]]:
        chosen = range(self._classes)[number]
        return self._read(chosen) if isinstance(chosen, int) else [self._read(each) for each in chosen]


def _written(found: Survey) -> bytes:
    # Not as NumPy's archive, of which reading thousands again takes ten times as long.
    arrays: dict[str, NDArray[Any]] = {f"locations_{i}": places for i, places in enumerate(found.locations)}
    arrays |= {"counts": found.counts, "sample": found.sample.astype(found.sample.dtype.newbyteorder("="), order="C")}
    facts = (found.image_digest, found.label_digest, str(found.pixels), repr(found.valid))
    arrays["facts"] = np.frombuffer(" ".join(facts).encode(), dtype=np.uint8)
    content = save(arrays)
    return zlib.crc32(content).to_bytes(CHECK, "little") + content


def _write(found: Survey, path: Path) -> Stamp:
    """Keeps a survey, and returns the file's stamp; a file that says the same already stays as it is.

    Raises:
        OSError: It cannot be written.
    """
    content, there = _written(found), b""
    with contextlib.suppress(OSError):
        there = path.read_bytes()
    if there != content:
        atomic_write(path, lambda making: making.write_bytes(content), sync=False)
    return stamp_of(path)


def _read(path: Path) -> tuple[Survey, Stamp]:
    """A survey, in memory, and the file's stamp.

    Raises:
        OSError: The file is not there, or cannot be read.
        ValueError: It is damaged.
        KeyError: Likewise.
        SafetensorError: Likewise.
    """
    with path.open("rb") as file:
        written, stamp = file.read(), stamp_of(file.fileno())
    if int.from_bytes(written[:CHECK], "little") != zlib.crc32(written[CHECK:]):
        raise ValueError(f"{path} is damaged")
    stored = load(written[CHECK:])
    image, label, pixels, valid = stored["facts"].tobytes().decode().split(" ")
    measured = Measured(tuple(stored[f"locations_{i}"] for i in range(len(stored["counts"]))), stored["sample"])
    counts, sampled = stored["counts"].copy(), measured.sample.shape[1]
    return Survey(image, label, counts, int(pixels), float(valid), sampled, measured), stamp


_UNREADABLE = (OSError, ValueError, KeyError, SafetensorError)  # what `_read` raises


def _array_in(file: FileIO, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """One array of a kept survey, without the rest.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged.
        KeyError: Likewise.
    """
    start = file.read(CHECK + 8)
    length = int.from_bytes(start[CHECK:], "little")  # of the header, as safetensors has it
    place = json.loads(file.read(length))[name]
    begin, end = place["data_offsets"]
    found = np.empty(place["shape"], dtype)
    file.seek(len(start) + length + begin)
    if found.nbytes != end - begin or (found.size and file.readinto(found.data.cast("B")) != found.nbytes):
        raise ValueError(f"{file.name} is damaged")
    return found


def by_threads(one: Callable[[Case], Made], cases: Sequence[Case]) -> list[Made]:
    """What `one` makes of each case, by threads."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(one, cases))


def survey_all(
    cases: Sequence[Case],
    num_classes: int,
    folder: Path,
    label: bool = True,
    tick: Callable[[], object] = lambda: None,
    anew: set[Path] | None = None,
) -> dict[str, Survey]:
    """Surveys cases by threads, taking from and adding to the cache in `folder`.

    What of a survey grows with its case stays there; where the cache cannot be written, it stays in memory.

    Args:
        cases: the cases.
        num_classes: K.
        folder: where surveys are kept.
        label: whether labels are read.
        tick: called after each case, for a progress bar.
        anew: nothing is taken from the cache but these of its files, to which those that are made are added. None takes all.

    Returns:
        Surveys by case id.
    """

    def one(case: Case) -> Survey:
        path = folder / "surveys" / f"{survey_key(case, num_classes, label)}.survey"
        again = partial(survey, case, num_classes, label)
        stamp: Stamp | None = None
        if anew is None or path in anew:
            with contextlib.suppress(*_UNREADABLE):  # not there, or damaged
                found, stamp = _read(path)
        if stamp is None:
            found = again()
            with contextlib.suppress(OSError):  # a survey is only kept to save time, and memory
                stamp = _write(found, path)
            if anew is not None and stamp is not None:  # else an older one may lie there
                anew.add(path)
        tick()
        return found if stamp is None else replace(found, measured=Kept(found, path, stamp, again))

    return dict(zip([case.id for case in cases], by_threads(one, cases), strict=True))


def check_labels(cases: Sequence[Case], tick: Callable[[], object] = lambda: None) -> None:
    """Reads the labels of cases, whole and on the grids of their files, and keeps nothing of them.

    Args:
        cases: the cases.
        tick: called after each case, for a progress bar.

    Raises:
        DataError: One cannot be read, or holds an unknown value.
    """

    def one(case: Case) -> None:
        for part in blocks(case.shape):
            case.read_label(part)
        tick()

    by_threads(one, [case.native for case in cases])


def fingerprint(cases: Sequence[Case], surveys: Mapping[str, Survey]) -> str:
    """The data's fingerprint: changes with ids, spacing, the labels' content and the images' sampled content, and nothing else."""
    rows = sorted(_row(case, surveys[case.id]) for case in cases)
    return f"{digest(rows):032x}"


def _row(case: Case, found: Survey) -> tuple[object, ...]:
    row: tuple[object, ...] = (case.id, case.grid.spacing, case.grid.unit, found.image_digest, found.label_digest)
    most = most_locations(found.pixels)
    return row if most == MOST_LOCATIONS else (*row, most)  # of larger cases fewer places were kept once
