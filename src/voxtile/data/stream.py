"""The sample stream: sample i of a run is a pure function of (seed, i)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import IGNORE, Case
from voxtile.cases.window import Size3, Window
from voxtile.data.augment import Augment
from voxtile.data.normalise import Intensity
from voxtile.data.rng import generator
from voxtile.data.survey import Survey
from voxtile.errors import DataError, counted, listed, typed

STREAM_VERSION = 1  # part of a run's identity: raise it when the same (seed, i) gives another sample


@dataclass(frozen=True)
class Spec:
    """Which window sample `index` is."""

    index: int
    case: int
    window: Window


class SampleStream:
    """Windows of training cases without end.

    The stream deals a deck in which each case appears once per window's worth of judged pixels, shuffled anew for each pass.
    Within the case a judged pixel is drawn evenly and the window is laid at random around it, so that windows without
    data do not come. With probability `balance` the case and pixel are drawn from a class instead, each class of
    `balanced` being equally likely, so that rare structures come often enough.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        surveys: Sequence[Survey],
        intensities: Sequence[Intensity],
        size: Size3,
        seed: int,
        augment: Augment,
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
            balance: probability of a class-balanced draw.
            balanced: classes it chooses from.
            margin: pixels along (z, y, x) that image, valid and label have around the window on each side: real ones, mirrored
                past the case's border, where no label is.

        Raises:
            DataError: A case has no pixel that could be judged.
        """
        empty = [case.id for case, found in zip(cases, surveys, strict=True) if found.judged == 0]
        if empty:
            raise DataError(
                f"{counted(len(empty), 'training case')} hold no pixel that could be judged (all nodata, or all labels ignored): "
                f"{listed(empty)}. Leave them out with 'data.exclude={typed(empty)}'."
            )
        self.cases, self.surveys, self.intensities = cases, surveys, intensities
        self.size, self.seed, self.augment, self.balance = size, seed, augment, balance
        self.margin = margin
        self._spacings = [case.grid.spacing for case in cases]
        area = math.prod(size)
        self.deck = np.repeat(np.arange(len(cases)), [max(1, math.ceil(found.judged / area)) for found in surveys])
        # Which cases hold each class; a class that no case holds cannot be drawn.
        holders = [(c, [i for i, found in enumerate(surveys) if len(found.locations[c])]) for c in balanced]
        self.holders = [(c, where) for c, where in holders if where]
        self._shuffled: tuple[int, NDArray[np.intp]] = (-1, self.deck)  # the latest pass's order, made once per pass

    def __len__(self) -> int:
        """Samples in one pass over the deck."""
        return len(self.deck)

    def _order(self, turn: int) -> NDArray[np.intp]:
        """The order of the deck in pass `turn`."""
        known, order = self._shuffled
        if known != turn:
            order = generator(self.seed, turn, "deck").permutation(len(self.deck))
            self._shuffled = turn, order  # one assignment: other threads see the old pair or the new one
        return order

    def spec(self, index: int) -> Spec:
        """Case and window of sample `index`."""
        turn, position = divmod(index, len(self.deck))
        case = int(self.deck[self._order(turn)[position]])
        draw = generator(self.seed, index, "window")
        if self.holders and draw.random() < self.balance:
            wanted, where = self.holders[int(draw.integers(len(self.holders)))]
            case = where[int(draw.integers(len(where)))]
        else:
            counts = self.surveys[case].counts
            wanted = int(draw.choice(len(counts), p=counts / counts.sum()))
        places = self.surveys[case].locations[wanted]
        pixel = places[int(draw.integers(len(places)))]
        start = []
        for at, side, length in zip(pixel, self.size, self.cases[case].shape, strict=True):
            low = int(at) - int(draw.integers(side))
            # Windows stay inside the case; one that is larger has the case in its middle.
            start.append(min(max(low, 0), length - side) if length >= side else (length - side) // 2)
        return Spec(index, case, Window.of(start, self.size))

    def sample(self, index: int) -> dict[str, Any]:
        """Reads sample `index`.

        Returns:
            image [C, d, h, w] in the case's data type, valid [d, h, w], label uint8 [d, h, w] (255 where not valid), low, high,
            mean and std [C] for normalisation, the augmentation's parameters under "augment", index and case.
        """
        spec = self.spec(index)
        case, window = self.cases[spec.case], spec.window.grown(self.margin)
        image, valid = case.read(window, pad="reflect" if any(self.margin) else "constant")
        label = case.read_label(window)
        if not valid.all():
            label[~valid] = IGNORE
        return {
            "image": image,
            "valid": valid,
            "label": label,
            "index": index,
            "case": spec.case,
            **self.intensities[spec.case].arrays(),
            "augment": self.augment.draw(self.seed, index, window.size, self._spacings[spec.case]),
        }
