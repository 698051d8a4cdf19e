"""The sample stream: sample i of a run is a pure function of (seed, i)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxtile.cases.case import Case, Pad, is_everywhere
from voxtile.cases.copying import Copies
from voxtile.cases.window import IGNORE, Size3, Window
from voxtile.data.augment import Augment
from voxtile.data.batches import Batch, collate
from voxtile.data.normalise import Intensity
from voxtile.data.operation import log_uniform
from voxtile.data.rng import generator
from voxtile.data.sampling import DEFAULT, ClassPixels, Sampling, Strategy
from voxtile.data.survey import Survey

# Part of a run's identity: raise it when the same (seed, i) gives another sample, or validation shows a case otherwise.
STREAM_VERSION = 2
SAMPLES_AHEAD = 256  # samples that are drawn at once
TRIES = 10  # draws of a window with too little data, after which the best of them is taken


@dataclass(frozen=True)
class Spec:
    """Which window sample `index` is.

    Attributes:
        index: the sample's number.
        case: the case's number.
        window: what is read, without margin, in pixels of the case.
        scale: ground resolution of the sample in multiples of the case's own: `window` is resampled to the stream's size.
    """

    index: int
    case: int
    window: Window
    scale: float = 1.0


@dataclass(frozen=True)
class _Read:
    """What was read for a sample: `window` is the spec's with its margin, image [C, d, h, w] and valid [d, h, w] lie on it."""

    spec: Spec
    window: Window
    image: NDArray[Any]
    valid: NDArray[np.bool_]

    @property
    def missing(self) -> float:
        """Share of the window, without its margin, that holds no data."""
        return 1 - np.count_nonzero(self.valid[self.spec.window.within(self.window)]) / self.spec.window.pixels


def stream_version(cases: Sequence[Case], size: Size3, augment: Augment) -> int:
    """The version of a run's sample stream; one more where operations once drew as if quarter turns left pixels as they were."""
    return STREAM_VERSION + any(augment.minds_turns(size, spacing) for spacing in {case.grid.spacing for case in cases})


_Sample = tuple[Spec, NDArray[np.bool_], dict[str, NDArray[Any]]]  # spec, valid [d, h, w], the augmentation's parameters


class SampleStream:
    """Windows of training cases without end.

    The stream deals a deck in which each case appears once per window's worth of judged pixels (with `Positions`, of all
    pixels), shuffled anew for each pass. The strategy draws the window's place in the case. With probability `balance` case and
    pixel are drawn from a class instead, each class of `balanced` being equally likely, so that rare structures come often enough.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        surveys: Sequence[Survey],
        intensities: Sequence[Intensity],
        size: Size3,
        seed: int,
        *,
        augment: Augment,
        strategy: Strategy,
        sampling: Sampling = DEFAULT,
        balance: float = 0.0,
        balanced: Sequence[int] = (),
        margin: Size3 = (0, 0, 0),
    ) -> None:
        """Deals the deck.

        Args:
            cases: training cases.
            surveys: what is known of each.
            intensities: how each is normalised.
            size: (depth, height, width) of the windows.
            seed: the run's seed.
            augment: draws each sample's augmentation parameters.
            strategy: draws where windows lie, see `strategy_of`.
            sampling: jitter, scales and the share of nodata.
            balance: probability of a class-balanced draw.
            balanced: classes it chooses from.
            margin: pixels along (z, y, x) that image, valid and label have around the window on each side: real ones, mirrored
                past the case's border, where no label is.
        """
        self.cases = cases
        self.size, self.seed, self.augment, self.balance = size, seed, augment, balance
        self.margin, self.sampling = margin, sampling
        self._outer = Window.of((0, 0, 0), size).grown(margin).size
        self.strategy = strategy
        self.classes = ClassPixels(cases, surveys, balanced, sampling.jitter)
        # Cases of several types are stacked as one that holds them all; torch knows the machine's byte order only.
        self._dtype = np.result_type(*{case.dtype for case in cases}).newbyteorder("=")
        rows = [intensity.arrays() for intensity in intensities]
        self._numbers = {name: np.stack([row[name] for row in rows]) for name in rows[0]}  # [cases, C]
        # Of how many slices that are channels of a sample what is 0 stays 0, see `Augment`.
        self._kept = np.array([(1 + 2 * case.neighbours) * row["masked"] for case, row in zip(cases, rows, strict=True)])
        self._spacings = [case.grid.spacing for case in cases]
        area = math.prod(size)
        self.deck = np.repeat(np.arange(len(cases)), [max(1, math.ceil(pixels / area)) for pixels in self.strategy.amounts])
        self._shuffled: tuple[int, list[int]] = (-1, [])  # the latest pass's order, made once per pass
        self._ahead: dict[int, Spec] = {}
        self._drawing = threading.Lock()

    def __len__(self) -> int:
        """Samples in one pass over the deck."""
        return len(self.deck)

    def _order(self, turn: int) -> list[int]:
        """The cases in the order of pass `turn`."""
        known, order = self._shuffled
        if known != turn:
            order = self.deck[generator(self.seed, turn, "deck").permutation(len(self.deck))].tolist()
            self._shuffled = turn, order  # one assignment: other threads see the old pair or the new one
        return order

    def spec(self, index: int) -> Spec:
        """Case and window of sample `index`. Where `max_nodata` is set, the window must be read to know whether it is the one."""
        spec = self._draw(index)
        return spec if self.sampling.max_nodata is None else self._read(spec).spec

    def batch(self, indices: Sequence[int]) -> Batch:
        """Reads samples `indices`, each straight into its place.

        Returns:
            image [B, C, d, h, w] in the cases' data type, valid bool and label uint8 [B, d, h, w] (255 where not valid), low, high,
            mean and std [B, C] for normalisation, the augmentation's parameters under "augment", index and case [B].
        """
        channels = self.cases[0].inputs
        image = np.empty((len(indices), channels, *self._outer), dtype=self._dtype)
        valid = np.empty((len(indices), *self._outer), dtype=np.bool_)
        label = np.empty((len(indices), *self._outer), dtype=np.uint8)
        copies = Copies()
        begun = [self._begin(drawn, image[row], label[row], copies) for row, drawn in enumerate(self._drawn(indices))]
        copies.make()
        used, augmentations = [], []
        for row, finish in enumerate(begun):
            spec, holds, augmentation = finish()
            used.append(spec)
            augmentations.append(augmentation)
            valid[row] = is_everywhere(holds) or holds
        numbers = [spec.case for spec in used]
        return {
            "image": torch.from_numpy(image),
            "valid": torch.from_numpy(valid),
            "label": torch.from_numpy(label),
            "index": torch.tensor([spec.index for spec in used]),
            "case": torch.tensor(numbers),
            **{name: torch.from_numpy(rows[numbers]) for name, rows in self._numbers.items()},
            "augment": collate(augmentations) | {"keep_zero": torch.from_numpy(self._kept[numbers])},
        }

    def _drawn(self, indices: Sequence[int]) -> list[Spec]:
        """First draws of samples, and of those that will follow in the same steps, which are kept until they are asked for.

        Many at once take half the time: pixels on their way through the processor's cache drive what drawing needs out.
        """
        if not isinstance(indices, range) or len(indices) < 2:
            return [self._draw(index) for index in indices]
        with self._drawing:
            if any(index not in self._ahead for index in indices):
                more = range(indices.start, indices.start + indices.step * max(SAMPLES_AHEAD, len(indices)), indices.step)
                self._ahead = {index: self._draw(index) for index in more}
            return [self._ahead[index] for index in indices]

    def _begin(self, drawn: Spec, image: NDArray[Any], label: NDArray[np.uint8], copies: Copies) -> Callable[[], _Sample]:
        """Begins to read a sample into `image` and `label` by its first draw; what is returned ends it once copies are made."""
        if self.sampling.scales is not None or self.sampling.max_nodata is not None:

            def read() -> _Sample:
                spec, valid = self._fill(drawn, image, label)
                return spec, valid, self._augmentation(spec)

            return read
        window, pad = self._seen(drawn)
        case, augmentation = self.cases[drawn.case], self._augmentation(drawn)
        seen, labelled = case.begin(image, window, pad, copies), case.begin_label(label, window, copies)

        def finish() -> _Sample:
            valid = seen()
            labelled()
            if not is_everywhere(valid):
                label[~valid] = IGNORE
            return drawn, valid, augmentation

        return finish

    def _draw(self, index: int, attempt: int = 0) -> Spec:
        """Where the sample lies by its first, or a further, draw; its scale is the same for all of them."""
        turn, position = divmod(index, len(self.deck))
        case = self._order(turn)[position]
        scale, size = 1.0, self.size
        if self.sampling.scales is not None:
            scale = float(log_uniform(generator(self.seed, index, "scale"), self.sampling.scales))
            depth, height, width = (max(1, round(side * scale)) if side > 1 else 1 for side in size)
            size = depth, height, width
        draw = generator(self.seed, index, f"window {attempt}" if attempt else "window")
        balanced = self.classes.holders and draw.random() < self.balance
        case, start = (self.classes if balanced else self.strategy).place(draw, case, size)
        return Spec(index, case, Window(*start, *size), scale)

    def _read(self, spec: Spec) -> _Read:
        """Image and validity at a first draw or, where it holds too little data, at a further one; where all do, at the best."""
        most = self.sampling.max_nodata
        found = self._read_at(spec)
        for attempt in range(1, TRIES if most is not None else 1):
            if found.missing <= (most or 0.0):
                break
            found = min(found, self._read_at(self._draw(spec.index, attempt)), key=lambda each: each.missing)
        return found

    def _read_at(self, spec: Spec) -> _Read:
        window, pad = self._seen(spec)
        case = self.cases[spec.case]
        image = np.empty((case.inputs, *window.size), case.dtype)
        return _Read(spec, window, image, case.read_into(image, window, pad))

    def _seen(self, spec: Spec) -> tuple[Window, Pad]:
        """The window with its margin, and what lies past the case's border."""
        if not any(self.margin):
            return spec.window, "constant"
        edges = zip(self.margin, self._steps(spec), strict=True)
        return spec.window.grown([math.ceil(pixels * step) for pixels, step in edges]), "reflect"

    def _fill(self, drawn: Spec, image: NDArray[Any], label: NDArray[np.uint8]) -> tuple[Spec, NDArray[np.bool_]]:
        """Fills `image` and `label` by a first draw; returns the spec that holds, and what is valid."""
        found = self._read(drawn)
        spec, valid = found.spec, found.valid
        stored = self.cases[spec.case].read_label(found.window)
        if not is_everywhere(valid):
            stored[~valid] = IGNORE
        if self.sampling.scales is None:
            image[...], label[...] = found.image, stored
            return spec, valid
        from voxtile.data.rescale import rescale

        steps = self._steps(spec)
        # The margin begins within the outermost pixel that was read for it.
        edges = [a - b for a, b in zip(spec.window.start, found.window.start, strict=True)]
        start = [edge - pixels * step for edge, pixels, step in zip(edges, self.margin, steps, strict=True)]
        image[...], valid, label[...] = rescale(found.image, valid, stored, self._outer, start, steps)
        return spec, valid

    def _steps(self, spec: Spec) -> list[float]:
        """Pixels of the case in one pixel of the sample, along (z, y, x); by whole pixels of the window, so not quite the scale."""
        return [read / side for read, side in zip(spec.window.size, self.size, strict=True)]

    def _augmentation(self, spec: Spec) -> dict[str, NDArray[Any]]:
        """Its parameters; lengths are those of the sample's own resolution."""
        z, y, x = self._spacings[spec.case]
        spacing = z * spec.scale, y * spec.scale, x * spec.scale
        return self.augment.draw(self.seed, spec.index, self._outer, spacing)
