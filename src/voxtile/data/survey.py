"""One pass over a case: what every later step needs to know of it, kept in the cache.

Labels are read whole (their content is part of a run's identity), images in evenly spread blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from voxtile.cases.atomic import atomic_write
from voxtile.cases.cache import stamp_of
from voxtile.cases.case import Case
from voxtile.cases.window import IGNORE, Size3, Window
from voxtile.data.batches import ReadAhead
from voxtile.data.rng import digest, generator, one_of_each

VERSION = 7  # part of the cache's key: raise it when what a survey holds or how it is made changes
BLOCK_SIDE = 1024  # side of a block in pixels
MOST_IMAGE_BLOCKS = 256
MOST_LOCATIONS = 4096  # per class; more of large cases, see `most_locations`
PIXELS_PER_LOCATION = 64 * 64
CHECK = 4  # bytes of the checksum before a kept survey
MOST_SAMPLED = 200_000  # in the intensity sample
Made = TypeVar("Made")


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
        locations: per class, (z, y, x) of evenly drawn pixels of those that `counts` counts, int32 [m, 3]; all or `most_locations`.
        sample: about 200000 pixels that hold data, evenly spread, in the case's data type [C, n].
    """

    image_digest: str
    label_digest: str
    counts: NDArray[np.int64]
    pixels: int
    valid: float
    locations: tuple[NDArray[np.int32], ...]
    sample: NDArray[Any]

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
            counts += np.bincount(classes.ravel(), minlength=256)[:num_classes]
            found.add(classes, part, number)
    return Survey(
        image_hash.hexdigest(), label_hash.hexdigest() if label else "", counts, Window.whole(case.shape).pixels,
        held / max(seen, 1), found.result(), np.concatenate(sample, axis=1),
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

    def add(self, classes: NDArray[np.uint8], part: Window, number: int) -> None:
        for index, kept in enumerate(self.parts):
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


def _save(found: Survey, path: Path) -> None:
    # Not as NumPy's archive, of which reading thousands again takes ten times as long.
    arrays: dict[str, NDArray[Any]] = {f"locations_{i}": places for i, places in enumerate(found.locations)}
    arrays |= {"counts": found.counts, "sample": found.sample.astype(found.sample.dtype.newbyteorder("="), order="C")}
    facts = (found.image_digest, found.label_digest, str(found.pixels), repr(found.valid))
    arrays["facts"] = np.frombuffer(" ".join(facts).encode(), dtype=np.uint8)
    content = save(arrays)
    checked = zlib.crc32(content).to_bytes(CHECK, "little") + content
    atomic_write(path, lambda making: making.write_bytes(checked), sync=False)


def _load(path: Path) -> Survey:
    written = path.read_bytes()
    if int.from_bytes(written[:CHECK], "little") != zlib.crc32(written[CHECK:]):
        raise ValueError(f"{path} is damaged")
    stored = load(written[CHECK:])
    image, label, pixels, valid = stored["facts"].tobytes().decode().split(" ")
    places = tuple(stored[f"locations_{i}"] for i in range(len(stored["counts"])))
    return Survey(image, label, stored["counts"], int(pixels), float(valid), places, stored["sample"])


def _over(one: Callable[[Case], Made], cases: Sequence[Case]) -> list[Made]:
    """What `one` makes of each case, by threads."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(one, cases))


def survey_all(
    cases: Sequence[Case],
    num_classes: int,
    folder: Path,
    label: bool = True,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Survey]:
    """Surveys cases by threads, taking from and adding to the cache in `folder`; a cache that cannot be written is done without.

    Args:
        cases: the cases.
        num_classes: K.
        folder: where surveys are kept.
        label: whether labels are read.
        tick: called after each case, for a progress bar.

    Returns:
        Surveys by case id.
    """

    def one(case: Case) -> Survey:
        path = folder / "surveys" / f"{survey_key(case, num_classes, label)}.survey"
        try:
            found = _load(path)
        except (OSError, ValueError, KeyError, SafetensorError):  # not there, or damaged
            found = survey(case, num_classes, label)
            with contextlib.suppress(OSError):  # a survey is only kept to save time
                _save(found, path)
        tick()
        return found

    return dict(zip([case.id for case in cases], _over(one, cases), strict=True))


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

    _over(one, [case.native for case in cases])


def fingerprint(cases: Sequence[Case], surveys: Mapping[str, Survey]) -> str:
    """The data's fingerprint: changes with ids, spacing, the labels' content and the images' sampled content, and nothing else."""
    rows = sorted(_row(case, surveys[case.id]) for case in cases)
    return f"{digest(rows):032x}"


def _row(case: Case, found: Survey) -> tuple[object, ...]:
    row: tuple[object, ...] = (case.id, case.grid.spacing, case.grid.unit, found.image_digest, found.label_digest)
    most = most_locations(found.pixels)
    return row if most == MOST_LOCATIONS else (*row, most)  # of larger cases fewer places were kept once
