"""A case: one volume, scene or picture that is labelled and judged as a whole, read and written by window."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.copying import Copies
from voxtile.cases.grid import CanonicalGrid, StoredGrid, WorkingGrid, nested
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.window import IGNORE, Size3, Window
from voxtile.errors import DataError, listed

MOST_UNKNOWN = 32  # values that somebody may have forgotten to name
MOST_COMPARED = 32  # label values that are looked for one after the other
Pad = Literal["constant", "reflect", "repeat"]


class Source(ABC):
    """One file, or several that are read as one, yielding arrays by window on its working grid.

    A new file format is one subclass. Instances hold paths and header facts only, so they pickle cheaply; open handles
    belong to the process and thread that reads.

    Attributes:
        paths: the files.
        channels: names of the channels.
        dtype: data type of the pixels.
        stored: the grid as it lies in the file.
        canonical: the stored grid with axes permuted and flipped only.
        key: text of the settings that change what is read from the same files.
    """

    paths: tuple[Path, ...]
    channels: tuple[str, ...]
    dtype: np.dtype[Any]
    stored: StoredGrid
    canonical: CanonicalGrid
    key: str = ""

    @cached_property
    def working(self) -> WorkingGrid:
        """The grid that windows lie on: the canonical one, unless a source resamples or cuts it."""
        return self.canonical.as_kind(WorkingGrid)

    @property
    def native(self) -> Source:
        """The source on the grid of its file, on which maps are written; itself unless it is resampled or turned."""
        return self

    @property
    def path(self) -> Path:
        """The file (the first of several), for messages."""
        return self.paths[0]

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read: `paths`, and those that they are made of."""
        return self.paths

    @property
    def framing(self) -> tuple[Path, ...]:
        """Those of `paths` whose own grid is `stored`: in their pixels, places in two cases can be compared."""
        return self.paths

    @property
    def beside(self) -> tuple[Path, ...]:
        """Files that say more of the pixels of `files` and lie beside these, such as masks and world files."""
        return ()

    @abstractmethod
    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Reads `window`, which lies inside the grid.

        Returns:
            The pixels [C, d, h, w] of the channel indices asked for, in `dtype`, and where they hold data [d, h, w], which may be
            an array that cannot be written to.

        Raises:
            DataError: The file cannot be read; the message names it and the window.
        """

    def begin(
        self, out: NDArray[Any], window: Window, channels: Sequence[int], copies: Copies | None
    ) -> Callable[[], NDArray[np.bool_]]:
        """Begins to read pixels into `out` [C, d, h, w], whose type holds this source's; see `read`.

        Args:
            out: where pixels go.
            window: inside the grid.
            channels: indices.
            copies: may take down what is to be copied, instead of its being copied now.

        Returns:
            What is to be called once the copies are made; it returns where the pixels hold data.
        """
        out[...], valid = self.read(window, channels)
        return lambda: valid

    def whole(self, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """All pixels of channels, as `read` returns them, for one pass over them: what is decoded for it is not kept."""
        return self.read(Window.whole(self.working.shape), channels)

    @property
    def is_one_piece(self) -> bool:
        """Whether no pixel can be read without decoding all of them, so that nothing is left of a file with damage."""
        return False

    @property
    def decoded_bytes(self) -> int:
        """Bytes on the disk that the decoded form takes in the cache."""
        return 0

    @abstractmethod
    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """A writer of a map on this source's working grid that ends as a file in this format.

        The file lies on the stored grid, or on the working grid where that is another one.
        """

    @abstractmethod
    def map_name(self, stem: str, spec: MapSpec) -> str:
        """The file or folder name, with this format's suffix, of a map called `stem`."""

    def value_text(self, value: int) -> str:
        """How the value of a label is written in the configuration."""
        return str(value)

    def notes(self) -> list[str]:
        """What is odd about the file without being wrong, one sentence each; `voxtile check` prints them."""
        return []

    def doubts(self) -> list[str]:
        """What may be read otherwise than is meant, which is said of the first case before its data set is read."""
        return []


class Wrapped(Source):
    """A source made of another one, whose files, channels, grids, maps and notes it has where a subclass does not say otherwise.

    How the other one is decoded (`is_one_piece`, `decoded_bytes`) and its grid for maps (`native`) are for a subclass to hand on.

    Attributes:
        source: the other one.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.paths, self.channels, self.dtype = source.paths, source.channels, source.dtype
        self.stored, self.canonical, self.key = source.stored, source.canonical, source.key

    @cached_property
    def working(self) -> WorkingGrid:
        """See `Source.working`."""
        return self.source.working

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Source.files`."""
        return self.source.files

    @property
    def framing(self) -> tuple[Path, ...]:
        """See `Source.framing`."""
        return self.source.framing

    @property
    def beside(self) -> tuple[Path, ...]:
        """See `Source.beside`."""
        return self.source.beside

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`."""
        return self.source.open_map(path, spec)

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return self.source.map_name(stem, spec)

    def value_text(self, value: int) -> str:
        """See `Source.value_text`."""
        return self.source.value_text(value)

    def notes(self) -> list[str]:
        """See `Source.notes`."""
        return self.source.notes()

    def doubts(self) -> list[str]:
        """See `Source.doubts`."""
        return self.source.doubts()


class UnknownValuesError(DataError):
    """A label holds values that have no meaning.

    Attributes:
        found: which, and where, in a sentence.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found} {remedy}")
        self.found = found


@dataclass(frozen=True)
class Labels:
    """A label's source and what its stored values mean.

    Attributes:
        source: a one-channel source on the image's working grid.
        values: stored value -> class index; `IGNORE` for values that are not to be judged.
    """

    source: Source
    values: Mapping[int, int]

    @cached_property
    def _pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple(self.values.items())

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class indices [d, h, w]; `IGNORE` where the label file has no data.

        Raises:
            DataError: The file holds a value that the configuration does not know.
        """
        out = np.empty(window.size, dtype=np.uint8)
        self.begin(out, window, None)()
        return out

    def begin(self, out: NDArray[np.uint8], window: Window, copies: Copies | None) -> Callable[[], None]:
        """Begins to read class indices into `out` [d, h, w]; see `read` and `Source.begin`."""
        if self.source.dtype == np.uint8:
            done = self.source.begin(out[None], window, (0,), copies)
            return lambda: self._classify(out, done(), out, window)
        stored, valid = self.source.read(window, (0,))
        return lambda: self._classify(stored[0], valid, out, window)

    def _classify(self, numbers: NDArray[Any], valid: NDArray[np.bool_], out: NDArray[np.uint8], window: Window) -> None:
        """Turns stored values into class indices."""
        classes, unknown = _classes(numbers, self._pairs)
        if classes is not out:
            if unknown is not None:
                numbers = numbers.copy()  # they may lie where the classes go, and a message may name them
            out[...] = classes
        if not is_everywhere(valid):
            out[~valid] = IGNORE
            unknown = unknown if unknown is None else unknown & valid
        if unknown is not None and unknown.any():
            found = np.unique(numbers[unknown])
            place = np.unravel_index(int(unknown.argmax()), unknown.shape)
            first = tuple(int(a + b) for a, b in zip(window.start, place, strict=True))
            text = self.source.value_text
            values = [text(int(value)) if float(value).is_integer() else value.item() for value in found]
            holds = f"holds {listed(values)} as label value{'s' * (len(found) > 1)}, first at z y x = {first}"
            known = f"which the configuration does not know: it maps {listed(map(text, sorted(self.values)))}"
            told = f"{self.source.path} {holds}, {known}."
            if str(self.source.path).lower().endswith((".jpg", ".jpeg")):
                raise UnknownValuesError(
                    told,
                    "JPEG is the cause: it changes values, most of all at edges between classes. Save the labels as PNG where they "
                    "come from; those that are lost cannot be made good.",
                )
            if (found != np.floor(found)).any():
                raise UnknownValuesError(
                    told,
                    "Values between classes come from a label that was interpolated. Resample it again by nearest neighbour, or "
                    "round it to classes.",
                )
            raise UnknownValuesError(told, _remedy([int(value) for value in found if np.isfinite(value)], self.values, text))


def _remedy(found: Sequence[int], known: Mapping[int, int], text: Callable[[int], str]) -> str:
    """What to do about whole numbers in a label that the configuration does not know."""
    if not found:
        return "No class can have such a value: make the label anew, of whole numbers."
    if len(found) > MOST_UNKNOWN:
        return (
            "So many are those of an image, or of a label whose edges were smoothed or interpolated: see that the file is the "
            "label ('data.layout.labels'), and make it with hard edges."
        )
    if text(0).startswith("#"):
        if {(value & 255) << 16 | value & 0xFF00 | value >> 16 for value in found} <= set(known):
            return (
                "They are colours that it knows with red and blue exchanged, as OpenCV writes what it is given as red, green, "
                "blue. Write the labels anew, for example with cv2.cvtColor(label, cv2.COLOR_RGB2BGR)."
            )
        if all(0 < value & 255 < MOST_UNKNOWN and value == (value & 255) * 0x010101 for value in found):
            return (
                "These are greys that are hardly black. Where the file holds numbers of classes, name those instead of colours: "
                f"'{{{found[0] & 255}: <class>}}'."
            )
    first = _quoted(text(found[0]))
    return (
        f"Add them under 'labels:' in the data set's file: '{first}: <class>' with the name of a class, or '{first}: ignore' where "
        "they are not to be judged."
    )


def _quoted(value: object) -> str:
    """A stored value as a key in a file, where a colour would begin a comment."""
    return f'"{value}"' if str(value).startswith("#") else str(value)


def _classes(numbers: NDArray[Any], values: tuple[tuple[int, int], ...]) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Class indices of stored values, and where the configuration knows none; None where it knows all."""
    unsigned = numbers.dtype.kind == "u"
    if unsigned and int(numbers.max()) < _counted(values):  # most labels are stored as they are counted
        return numbers.astype(np.uint8, copy=False), None
    if unsigned and numbers.dtype.itemsize == 1 and len(values) > MOST_COMPARED:
        table, known = _tables(values)
        return table.take(numbers), ~known.take(numbers)
    # Comparing and adding whole arrays of bytes takes a tenth of the time of looking each of them up.
    out, left = np.full(numbers.shape, IGNORE, dtype=np.uint8), numbers.size
    for value, index in values:
        here = numbers == value
        if found := int(np.count_nonzero(here)):
            out -= here.view(np.uint8) * np.uint8(IGNORE - index)
            left -= found
            if not left:
                return out, None
    return out, ~np.isin(numbers, [value for value, _ in values])


@lru_cache(maxsize=16)
def everywhere(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """True for each pixel: most windows are so, and need no array of their own. It cannot be written to."""
    valid = np.ones(shape, dtype=np.bool_)
    valid.flags.writeable = False
    return valid


def is_everywhere(valid: NDArray[np.bool_]) -> bool:
    """Whether all pixels hold data; `everywhere` is known at sight."""
    return valid is everywhere(valid.shape) or bool(valid.all())


@lru_cache(maxsize=64)
def _counted(values: tuple[tuple[int, int], ...]) -> int:
    """How many values from 0 on are their own class."""
    own = dict(values)
    return next(value for value in range(len(own) + 1) if own.get(value) != value)


@lru_cache(maxsize=64)
def _tables(values: tuple[tuple[int, int], ...]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The class of each byte, and whether it has one."""
    table, known = np.full(256, IGNORE, dtype=np.uint8), np.zeros(256, dtype=np.bool_)
    for value, index in values:
        if 0 <= value < 256:
            table[value], known[value] = index, True
    return table, known


@dataclass(frozen=True)
class Case:
    """One volume, scene or picture, with its label if it has one.

    Attributes:
        id: name, unique in the data set.
        group: what must never be on both sides of a split: the patient, the place.
        image: where the pixels come from.
        labels: where the label comes from, or None.
        select: indices of the image's channels that are used, in order.
        region: the part of the source that this case is; the whole of it unless made by `view`.
        split: "train", "val" or "test" where the data set gives one, else "".
        within: of a block that is a group of its own, the group of the whole case; else "".
        neighbours: slices on each side that a network sees beside its own, see `begin`.
    """

    id: str
    group: str
    image: Source
    labels: Labels | None = None
    select: tuple[int, ...] = ()
    region: Window | None = None
    split: str = ""
    within: str = ""
    neighbours: int = 0

    @property
    def inputs(self) -> int:
        """Channels that a network sees."""
        return len(self._selected) * (1 + 2 * self.neighbours)

    @property
    def input_names(self) -> list[str]:
        """What each of them is, in order: a channel, of so many slices further on where there are neighbours, see `begin`."""
        slices = [f"[{offset:+d}]" for offset in range(-self.neighbours, self.neighbours + 1)] if self.neighbours else [""]
        return [channel + offset for channel in self.channels for offset in slices]

    @property
    def native(self) -> Case:
        """The case on the grid of its file, on which maps are written and volumes are judged.

        Raises:
            DataError: The case is a part of another, whose place is known on one grid only.
        """
        if self.image.native is self.image:
            return replace(self, neighbours=0)
        self.check_whole()
        labels = self.labels and Labels(self.labels.source.native, self.labels.values)
        return replace(self, image=self.image.native, labels=labels, neighbours=0)

    def check_whole(self) -> None:
        """Refuses a part of a case, whose place is known on one grid only.

        Raises:
            DataError: The case is a part of another.
        """
        if self.region is not None:
            raise DataError(
                f"Case '{self.id}' is a part of {self.image.path}, which is resampled or cut across another axis; its place in the "
                "file is not known. Split by whole cases (for example 'split=groups'), or leave 'data.spacing' and "
                "'data.axis' out."
            )

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where image and label come from."""
        return (self.image, self.labels.source) if self.labels else (self.image,)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that `read` returns."""
        return tuple(self.image.channels[index] for index in self._selected)

    @cached_property  # like the next ones: every read, or look at where cases lie, asks for them
    def _selected(self) -> tuple[int, ...]:
        return self.select or tuple(range(len(self.image.channels)))

    @cached_property
    def box(self) -> Window:
        """The region in pixels of the source's working grid."""
        return self.region or Window.whole(self.image.working.shape)

    @cached_property
    def shape(self) -> Size3:
        """(D, H, W) in pixels."""
        return self.box.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the pixels that `read` returns."""
        return self.image.dtype

    @cached_property
    def grid(self) -> WorkingGrid:
        """The source's working grid, cut to the region."""
        whole = self.image.working
        if self.region is None:
            return whole
        matrix = whole.matrix
        matrix[:, 3] = matrix @ np.array([*self.box.start[::-1], 1.0])
        return replace(whole, shape=self.shape, affine=nested(matrix))

    def view(self, region: Window, suffix: str = "") -> Case:
        """The part `region` of this case as a case of its own; nothing outside it can be read through it."""
        self._check_inside(region)
        return replace(self, id=self.id + suffix, region=region.shifted(self.box.start))

    def with_channels(self, names: Sequence[str]) -> Case:
        """This case with only some of its channels, or with all of them in another order."""
        return replace(self, select=tuple(self._selected[self.channels.index(name)] for name in names))

    def read(
        self, window: Window, channels: Sequence[str] | None = None, pad: Pad | None = None
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Reads the pixels of `window`.

        Args:
            window: the box, in pixels of this case.
            channels: names of the channels wanted, in order; all of the case's where None.
            pad: what lies past the border: "constant" (zeros, not valid), "reflect" (mirrored without repeating the edge,
                as often as needed) or "repeat" (the edge pixel); None refuses windows that reach out.

        Returns:
            Pixels [C, d, h, w] in the case's data type, and where they hold data [d, h, w].

        Raises:
            DataError: `window` reaches out and `pad` is None, a channel is unknown, or the file cannot be read.
        """
        picked = self._selected if channels is None else tuple(self._channel(name) for name in channels)
        if window.inside(self.shape):
            return self.image.read(window.shifted(self.region.start) if self.region else window, picked)
        if pad is None:
            self._check_inside(window)
        if pad == "constant":
            inner = window.clipped(self.shape)
            out = np.zeros((len(picked), *window.size), dtype=self.dtype)
            valid = np.zeros(window.size, dtype=np.bool_)
            if inner.pixels:
                at = inner.within(window)
                out[:, *at], valid[at] = self.image.read(inner.shifted(self.box.start), picked)
            return out, valid
        # One index list per axis says which inner pixel each outer one repeats; the box that holds them all is read once.
        lists = [_outer(pad, a, b, n) for a, b, n in zip(window.start, window.stop, self.shape, strict=True)]
        low = [int(index.min()) for index in lists]
        box = Window.of(low, [int(index.max()) - a + 1 for index, a in zip(lists, low, strict=True)])
        array, valid = self.image.read(box.shifted(self.box.start), picked)
        rows: tuple[Any, ...] = np.ix_(*(index - a for index, a in zip(lists, low, strict=True)))
        return array[:, *rows], valid[rows]

    def whole(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """All pixels of a whole case, see `Source.whole`."""
        return self.image.whole(self._selected)

    def read_into(self, out: NDArray[Any], window: Window, pad: Pad | None = None) -> NDArray[np.bool_]:
        """Reads what a network sees into `out` [inputs, d, h, w] and returns where pixels hold data; see `begin`."""
        return self.begin(out, window, pad)()

    def begin(
        self, out: NDArray[Any], window: Window, pad: Pad | None = None, copies: Copies | None = None
    ) -> Callable[[], NDArray[np.bool_]]:
        """Begins to read what a network sees of `window` into `out` [inputs, d, h, w]; see `read` and `Source.begin`.

        With neighbours, each channel comes as that of the slices from the lowest to the highest of them, in this order; past the
        first and the last slice of the case those repeat. Where a neighbour holds no data, the slice itself stands in.
        """
        if self.neighbours:
            return self._begin_stacked(out, window, pad)
        if window.inside(self.shape):
            return self.image.begin(out, window.shifted(self.region.start) if self.region else window, self._selected, copies)
        out[...], valid = self.read(window, pad=pad)
        return lambda: valid

    def _begin_stacked(self, out: NDArray[Any], window: Window, pad: Pad | None) -> Callable[[], NDArray[np.bool_]]:
        depth = self.shape[0]
        if window.depth > 1:  # each slice has neighbours of its own
            slices = [(out[:, z : z + 1], window._replace(z=window.z + z, depth=1)) for z in range(window.depth)]
            held = np.concatenate([self._begin_stacked(*each, pad)() for each in slices])
            return lambda: held
        stacked = out.reshape(len(self._selected), -1, *window.size)
        own, valid = self.read(window, pad=pad)
        middle = int(_outer(pad, window.z, window.z + 1, depth)[0])  # the slice that stands there, past the border too
        for row, offset in enumerate(range(-self.neighbours, self.neighbours + 1)):
            if offset == 0:
                stacked[:, row] = own
                continue
            z = min(max(middle + offset, 0), depth - 1)
            pixels, held = self.read(window._replace(z=z), pad=pad)
            stacked[:, row] = pixels if is_everywhere(held) else np.where(held, pixels, own)
        return lambda: valid

    def read_label(self, window: Window) -> NDArray[np.uint8]:
        """Reads the label of `window`, which may reach past the border.

        Returns:
            Class indices [d, h, w]; `IGNORE` (255) where nothing is to be judged and outside the case.

        Raises:
            DataError: The case has no label, or its file holds an unknown value.
        """
        out = np.empty(window.size, dtype=np.uint8)
        self.begin_label(out, window)()
        return out

    def begin_label(self, out: NDArray[np.uint8], window: Window, copies: Copies | None = None) -> Callable[[], None]:
        """Begins to read the label of `window` into `out` [d, h, w], a part of a batch; see `read_label` and `Source.begin`."""
        if self.labels is None:
            raise DataError(f"Case '{self.id}' ({self.image.path}) has no label.")
        if window.inside(self.shape):
            return self.labels.begin(out, window.shifted(self.region.start) if self.region else window, copies)
        inner = window.clipped(self.shape)
        out[...] = IGNORE
        if inner.pixels:
            out[inner.within(window)] = self.labels.read(inner.shifted(self.box.start))
        return lambda: None

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """A writer for a map of this case's source, in the source's own format, grid and geometry, see `MapWriter`.

        Windows are given in pixels of the source's working grid; what is not written is 255 (heatmaps: NaN).

        Raises:
            DataError: `path` is one of the case's own files, or a folder that holds them, or cannot be written to.
        """
        inputs = self.image.files + (self.labels.source.files if self.labels else ())
        if any(path.resolve() in (each.resolve(), *each.resolve().parents) for each in inputs):
            raise DataError(f"The map {path} would take the place of an input of case '{self.id}'. Name another output.")
        return self.image.open_map(path, spec)

    def _channel(self, name: str) -> int:
        if name not in self.image.channels:
            raise DataError(f"{self.image.path} has no channel '{name}'; it has {listed(self.image.channels, 20)}.")
        return self.image.channels.index(name)

    def _check_inside(self, window: Window) -> None:
        if not window.inside(self.shape):
            raise DataError(
                f"Window {tuple(window)} (z, y, x, depth, height, width) reaches outside case '{self.id}' ({self.image.path}) of "
                f"shape {self.shape} (D, H, W). Name a padding to read past the border."
            )


def distinct_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """What tells files that are stacked apart, the same for every case: "t1" and "flair" for p7_t1.nii.gz and p7_flair.nii.gz."""
    words = [path.name.split(".")[0].split("_") for path in paths]
    shared = set[str](words[0]).intersection(*words[1:])
    names = ["_".join(word for word in each if word not in shared) for each in words]
    unique = len(set(names)) == len(names) and all(names)
    return tuple(names if unique else [f"file{number + 1}" for number in range(len(paths))])


def _outer(pad: Pad | None, start: int, stop: int, size: int) -> NDArray[np.intp]:
    """For each index in [start, stop) the index in [0, size) whose pixel stands there."""
    index = np.arange(start, stop)
    if pad == "repeat" or size == 1:
        return np.clip(index, 0, size - 1)
    period = 2 * (size - 1)  # a mirror that does not repeat the edge: 0 1 2 3 2 1 | 0 1 2 …
    folded = np.mod(index, period)
    return np.where(folded >= size, period - folded, folded)
