"""A case: one volume, scene or picture that is labelled and judged as a whole, read and written by window."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.grid import CanonicalGrid, StoredGrid, WorkingGrid
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.window import Size3, Window
from voxtile.errors import DataError, listed

IGNORE = 255  # ignore index: unlabelled, invalid or padded pixels
_UNKNOWN = -1  # in look-ups: a stored value that the configuration does not know
Pad = Literal["constant", "reflect", "repeat"]


class Source(ABC):
    """One file, or several that lie on one grid, yielding arrays by window on its canonical grid.

    A new file format is one subclass. Instances hold paths and header facts only, so they pickle cheaply; open handles
    belong to the process and thread that reads.
    """

    paths: tuple[Path, ...]
    channels: tuple[str, ...]
    dtype: np.dtype[Any]
    stored: StoredGrid
    canonical: CanonicalGrid

    @property
    def path(self) -> Path:
        """The file (the first of several), for messages."""
        return self.paths[0]

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read: `paths`, and those that they are made of."""
        return self.paths

    @abstractmethod
    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Reads `window`, which lies inside the grid.

        Returns:
            The pixels [C, d, h, w] of the channel indices asked for, in `dtype`, and where they hold data [d, h, w].

        Raises:
            DataError: The file cannot be read; the message names it and the window.
        """

    @abstractmethod
    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """A writer of a map on this source's canonical grid that ends as a file in this format and its stored grid."""

    @abstractmethod
    def map_name(self, stem: str, spec: MapSpec) -> str:
        """The file or folder name, with this format's suffix, of a map called `stem`."""

    def notes(self) -> list[str]:
        """What is odd about the file without being wrong, one sentence each; `voxtile check` prints them."""
        return []


@dataclass(frozen=True)
class Labels:
    """A label's source and what its stored values mean.

    Attributes:
        source: a one-channel source on the image's canonical grid.
        values: stored value -> class index; `IGNORE` for values that are not to be judged.
    """

    source: Source
    values: Mapping[int, int]

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class indices [d, h, w]; `IGNORE` where the label file has no data.

        Raises:
            DataError: The file holds a value that the configuration does not know.
        """
        stored, valid = self.source.read(window, (0,))
        numbers = stored[0]
        out = self._indices(numbers)
        if not valid.all():
            out[~valid] = IGNORE
        if (out == _UNKNOWN).any():
            unknown = np.unique(numbers[out == _UNKNOWN])
            raise DataError(
                f"{self.source.path} holds the label values {listed(v.item() for v in unknown)} (window {tuple(window)}), which "
                f"the configuration does not know: it maps {listed(sorted(self.values))}. Add them under 'labels:' in the data "
                f"set's file, where they are not to be judged as '{unknown[0].item():g}: ignore'."
            )
        return out.astype(np.uint8)

    def _indices(self, numbers: NDArray[Any]) -> NDArray[np.int16]:
        """Class indices of stored values; `_UNKNOWN` where the configuration has none."""
        kind, size = numbers.dtype.kind, numbers.dtype.itemsize
        if kind in "ui" and size <= 2:  # one look-up, however many classes there are
            low, high = np.iinfo(numbers.dtype).min, np.iinfo(numbers.dtype).max
            table = np.full(high - low + 1, _UNKNOWN, dtype=np.int16)
            for value, index in self.values.items():
                if low <= value <= high:
                    table[value] = index  # negative ones from the end, where their bits read as unsigned point to
            return table.take(numbers.view(f"u{size}"))
        out = np.full(numbers.shape, _UNKNOWN, dtype=np.int16)
        for value, index in self.values.items():
            out[numbers == value] = index
        return out


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
    """

    id: str
    group: str
    image: Source
    labels: Labels | None = None
    select: tuple[int, ...] = ()
    region: Window | None = None
    split: str = ""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that `read` returns."""
        return tuple(self.image.channels[index] for index in self._selected)

    @property
    def _selected(self) -> tuple[int, ...]:
        return self.select or tuple(range(len(self.image.channels)))

    @property
    def box(self) -> Window:
        """The region in pixels of the source's canonical grid."""
        return self.region or Window.whole(self.image.canonical.shape)

    @property
    def shape(self) -> Size3:
        """(D, H, W) in pixels."""
        return self.box.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the pixels that `read` returns."""
        return self.image.dtype

    @property
    def grid(self) -> WorkingGrid:
        """The working grid: the canonical one, cut to the region."""
        canonical = self.image.canonical
        matrix = canonical.matrix
        matrix[:, 3] = matrix @ np.array([*self.box.start[::-1], 1.0])
        affine = tuple(tuple(float(v) for v in row) for row in matrix)
        return WorkingGrid(self.shape, affine, canonical.unit, canonical.crs, canonical.metres)

    def view(self, region: Window, suffix: str = "") -> Case:
        """The part `region` of this case as a case of its own; nothing outside it can be read through it."""
        self._check_inside(region)
        return replace(self, id=self.id + suffix, region=region.shifted(self.box.start))

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
            return self.image.read(window.shifted(self.box.start), picked)
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

    def read_label(self, window: Window) -> NDArray[np.uint8]:
        """Reads the label of `window`, which may reach past the border.

        Returns:
            Class indices [d, h, w]; `IGNORE` (255) where nothing is to be judged and outside the case.

        Raises:
            DataError: The case has no label, or its file holds an unknown value.
        """
        if self.labels is None:
            raise DataError(f"Case '{self.id}' ({self.image.path}) has no label.")
        inner = window.clipped(self.shape)
        out = np.full(window.size, IGNORE, dtype=np.uint8)
        if inner.pixels:
            out[inner.within(window)] = self.labels.read(inner.shifted(self.box.start))
        return out

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """A writer for a map of this case's source, in the source's own format, grid and geometry, see `MapWriter`.

        Windows are given in pixels of the source's canonical grid; what is not written is 255 (heatmaps: NaN).

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
