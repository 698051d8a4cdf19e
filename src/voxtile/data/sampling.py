"""Where training windows lie: strategies that draw a case and a place in it, and the settings that choose among them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Case
from voxtile.cases.window import Size3
from voxtile.data.survey import Survey
from voxtile.data.weight_map import WeightMap
from voxtile.errors import ConfigError, DataError, did_you_mean, listed
from voxtile.values import is_number, refuse_unknown

STRATEGIES = ("pixels", "uniform", "class", "polygon", "weights")


@dataclass(frozen=True)
class Sampling:
    """How training windows are drawn: `data.sampling` of the configuration, checked.

    Attributes:
        by: the strategy: "pixels" (around judged pixels, each equally likely), "uniform" (each position of a window), "class" (each
            class), "polygon" (each labelled shape) or "weights" (pixels by a weight raster).
        class_weights: for "class", how often each class comes relative to the others; 1 for those that are not named.
        weights: for "weights", the pattern of the rasters' names, for example "weights/{id}.tif".
        jitter: how far the window may be shifted around the drawn pixel, as a share of its size: 0 has the pixel in its middle, 1
            anywhere in it.
        scales: (smallest, largest) ground resolution of a sample in multiples of the case's own, log-uniform; None for that.
        max_nodata: largest share of a window's pixels without data; a window with more is drawn again. None for any share.

    Raises:
        ConfigError: A value makes no sense, or belongs to another strategy.
    """

    by: str = "pixels"
    class_weights: Mapping[str, float] | None = None
    weights: str | None = None
    jitter: float = 1.0
    scales: tuple[float, float] | None = None
    max_nodata: float | None = None

    def __post_init__(self) -> None:
        if self.by not in STRATEGIES:
            raise ConfigError(
                f"'data.sampling.by={self.by}' is no way of drawing windows.{did_you_mean(str(self.by), STRATEGIES)} Choose from "
                f"{listed(STRATEGIES)}."
            )
        for name, strategy in (("class_weights", "class"), ("weights", "weights")):
            if getattr(self, name) is not None and self.by != strategy:
                raise ConfigError(
                    f"'data.sampling.{name}' is set and 'data.sampling.by={self.by}' does not use it. Type "
                    f"'data.sampling.by={strategy}', or 'data.sampling.{name}=null'."
                )
        if self.by == "weights" and (not isinstance(self.weights, str) or "{id}" not in self.weights):
            raise ConfigError(
                f"'data.sampling.by=weights' draws windows by rasters of weights, and 'data.sampling.weights={self.weights}' names "
                "none for each case. Expected a pattern with {id} in it, below the data set's folder: type "
                "'data.sampling.weights=\"weights/{id}.tif\"'."
            )
        for name in ("jitter", "max_nodata"):
            value = getattr(self, name)
            if not (value is None and name == "max_nodata") and not is_number(value, 0, 1):
                raise ConfigError(f"'data.sampling.{name}={value}' is a share: expected a number from 0 to 1, for example 0.5.")
        self._parse_scales()
        self._parse_class_weights()

    def _parse_scales(self) -> None:
        if self.scales is None:
            return
        pair = self.scales if isinstance(self.scales, Sequence) else ()
        if len(pair) != 2 or not all(map(is_number, pair)) or not 0 < pair[0] <= pair[1]:
            raise ConfigError(
                f"'data.sampling.scales={self.scales}' must be two rising numbers above 0, the smallest and the largest ground "
                "resolution in multiples of the case's own: type 'data.sampling.scales=[0.5,2.0]'."
            )
        object.__setattr__(self, "scales", (float(pair[0]), float(pair[1])))

    def _parse_class_weights(self) -> None:
        given = self.class_weights
        if given is None:
            return
        values = list(given.values()) if isinstance(given, Mapping) else []
        if not isinstance(given, Mapping) or not all(is_number(value, 0) for value in values):
            raise ConfigError(
                f"'data.sampling.class_weights={given}' must hold a number, 0 or more, for each class that it names: type "
                "'data.sampling.class_weights={water: 2}', say."
            )
        object.__setattr__(self, "class_weights", {str(name): float(value) for name, value in given.items()})

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> Sampling:
        """Takes the mapping `data.sampling`; None for the default.

        Raises:
            ConfigError: A key is unknown, or a value is wrong.
        """
        refuse_unknown("data.sampling", values or {}, [field.name for field in fields(cls)])
        return cls(**(values or {}))

    def weights_of(self, classes: Sequence[str]) -> list[float]:
        """How often each of `classes` comes, relative to the others.

        Raises:
            ConfigError: `class_weights` names another class, or leaves none with a weight above 0.
        """
        given = self.class_weights or {}
        if strange := [name for name in given if name not in classes]:
            raise ConfigError(
                f"'data.sampling.class_weights' names '{strange[0]}', which is no class.{did_you_mean(strange[0], classes)} The "
                f"classes are {listed(classes, 30)}."
            )
        found = [given.get(name, 1.0) for name in classes]
        if not any(found):
            raise ConfigError("'data.sampling.class_weights' is 0 for every class. Give a class that is to be drawn more than 0.")
        return found


DEFAULT = Sampling()  # as it is where nothing is set


class Strategy(ABC):
    """Draws where a window lies.

    Attributes:
        amounts: pixels of each case by which the deck is dealt: one card per window's worth of them.
    """

    amounts: Sequence[int]

    @abstractmethod
    def place(self, rng: np.random.Generator, case: int, size: Size3) -> tuple[int, Size3]:
        """The case, and the (z, y, x) in it at which a window of `size` starts.

        Args:
            rng: the sample's own generator.
            case: the case that the deck deals; strategies that choose among all cases do not heed it.
            size: (depth, height, width) in pixels of the case.
        """


class Positions(Strategy):
    """Each position of a window in the case is equally likely, whatever is there."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._shapes = [case.shape for case in cases]
        self.amounts = [math.prod(shape) for shape in self._shapes]

    def place(self, rng: np.random.Generator, case: int, size: Size3) -> tuple[int, Size3]:
        """See `Strategy.place`."""
        z, y, x = (
            int(rng.integers(length - side + 1)) if length >= side else (length - side) // 2
            for length, side in zip(self._shapes[case], size, strict=True)
        )
        return case, (z, y, x)


class AroundPixel(Strategy):
    """Draws a pixel and lays the window around it."""

    def __init__(self, cases: Sequence[Case], surveys: Sequence[Survey], jitter: float) -> None:
        """Remembers how large the cases are.

        Args:
            cases: training cases.
            surveys: what is known of each.
            jitter: see `Sampling`.
        """
        self._shapes = [case.shape for case in cases]
        self.amounts = [found.judged for found in surveys]
        self.jitter = jitter

    @abstractmethod
    def pixel(self, rng: np.random.Generator, case: int) -> tuple[int, Sequence[int]]:
        """The case and the (z, y, x) of a pixel in it; the arguments are those of `place`."""

    def place(self, rng: np.random.Generator, case: int, size: Size3) -> tuple[int, Size3]:
        """See `Strategy.place`. Windows stay inside the case; one that is larger has the case in its middle."""
        case, pixel = self.pixel(rng, case)
        start = []
        for at, side, length in zip(pixel, size, self._shapes[case], strict=True):
            free = max(1, round(self.jitter * side))  # places of the pixel in the window, in its middle
            low = at - (side - free) // 2 - (int(rng.integers(free)) if free > 1 else 0)
            start.append(min(max(low, 0), length - side) if length >= side else (length - side) // 2)
        return case, (start[0], start[1], start[2])


class JudgedPixels(AroundPixel):
    """Each judged pixel of the case is equally likely, so that windows without data do not come.

    Of very large cases a pixel counts as judged that is labelled where the image was not looked at, see `Survey.counts`.
    """

    def __init__(self, cases: Sequence[Case], surveys: Sequence[Survey], jitter: float = 1.0) -> None:
        super().__init__(cases, surveys, jitter)
        self._locations = [found.locations for found in surveys]
        # A class by its share of the pixels, then one of its places.
        sums = [np.cumsum(found.counts / found.judged) for found in surveys]
        self._chances: list[list[float]] = [(each / each[-1]).tolist() for each in sums]

    def pixel(self, rng: np.random.Generator, case: int) -> tuple[int, Sequence[int]]:
        """See `AroundPixel.pixel`."""
        places = self._locations[case][bisect_right(self._chances[case], rng.random())]
        return case, places[int(rng.integers(len(places)))].tolist()


class ClassPixels(AroundPixel):
    """A class, then a case that holds it, then a pixel of it there: each equally likely, classes by weight."""

    def __init__(
        self,
        cases: Sequence[Case],
        surveys: Sequence[Survey],
        classes: Sequence[int],
        jitter: float = 1.0,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Finds the cases that hold each class; a class that none of them holds is not drawn.

        Args:
            cases: training cases.
            surveys: what is known of each.
            classes: class indices to draw from.
            jitter: see `Sampling`.
            weights: of each of `classes`; alike where None.

        Raises:
            DataError: No case holds a class with a weight above 0.
        """
        super().__init__(cases, surveys, jitter)
        self._locations = [found.locations for found in surveys]
        holders = [[i for i, found in enumerate(surveys) if found.counts[c]] for c in classes]  # each has a place, see `Survey`
        weighed = zip(classes, holders, weights or [1.0] * len(classes), strict=True)
        kept = [(c, where, weight) for c, where, weight in weighed if where and weight > 0]
        self.holders = [(c, where) for c, where, _ in kept]
        self._chances = None if weights is None else list(accumulate(weight for _, _, weight in kept))
        if weights is not None and not kept:
            raise DataError(
                "No training case holds a pixel of a class whose 'data.sampling.class_weights' is above 0. Give a class that "
                "occurs in training a weight, or split otherwise, for example with 'split.seed=1'."
            )

    def pixel(self, rng: np.random.Generator, case: int) -> tuple[int, Sequence[int]]:
        """See `AroundPixel.pixel`."""
        if self._chances is None:
            number = int(rng.integers(len(self.holders)))
        else:
            number = bisect_right(self._chances, rng.random() * self._chances[-1])
        wanted, where = self.holders[min(number, len(self.holders) - 1)]
        case = where[int(rng.integers(len(where)))]
        places = self._locations[case][wanted]
        return case, places[int(rng.integers(len(places)))].tolist()


class Shapes(AroundPixel):
    """Each labelled shape is equally likely, small ones as often as big ones."""

    def __init__(
        self, cases: Sequence[Case], surveys: Sequence[Survey], anchors: Sequence[NDArray[np.int32]], jitter: float = 1.0
    ) -> None:
        """Counts the shapes.

        Args:
            cases: training cases.
            surveys: what is known of each.
            anchors: of each case, (z, y, x) of a pixel in each of its shapes, int32 [n, 3].
            jitter: see `Sampling`.

        Raises:
            DataError: There are no shapes.
        """
        super().__init__(cases, surveys, jitter)
        self._anchors = anchors
        self._ends = list(accumulate(len(each) for each in anchors))  # number of shapes up to and with each case
        if not self._ends[-1]:
            raise DataError(
                "No training case holds a labelled shape for 'data.sampling.by=polygon' to draw. Look at the labels with 'voxtile "
                "check', or type 'data.sampling.by=pixels'."
            )

    def pixel(self, rng: np.random.Generator, case: int) -> tuple[int, Sequence[int]]:
        """See `AroundPixel.pixel`."""
        number = int(rng.integers(self._ends[-1]))
        case = bisect_right(self._ends, number)
        return case, self._anchors[case][number - self._ends[case]].tolist()


class WeightedPixels(AroundPixel):
    """Pixels of all cases by their weights."""

    def __init__(self, cases: Sequence[Case], surveys: Sequence[Survey], maps: Sequence[WeightMap], jitter: float = 1.0) -> None:
        """Adds the cases' weights up.

        Args:
            cases: training cases.
            surveys: what is known of each.
            maps: the weights of each case.
            jitter: see `Sampling`.

        Raises:
            DataError: All weights are 0.
        """
        super().__init__(cases, surveys, jitter)
        self._maps = maps
        self._ends = list(accumulate(each.total for each in maps))
        if not self._ends[-1]:
            raise DataError(
                f"The weights of all training cases are 0 ({listed(each.source.path for each in maps)}), so there is no pixel to "
                "draw. Expected numbers above 0 where windows are to lie; a pixel without data in the raster counts as 0."
            )

    def pixel(self, rng: np.random.Generator, case: int) -> tuple[int, Sequence[int]]:
        """See `AroundPixel.pixel`."""
        case = bisect_right(self._ends, rng.random() * self._ends[-1])
        if case == len(self._ends):  # rounding
            case = max(number for number, each in enumerate(self._maps) if each.total)
        return case, self._maps[case].draw(rng)


def strategy_of(
    sampling: Sampling,
    cases: Sequence[Case],
    surveys: Sequence[Survey],
    classes: Sequence[str],
    foreground: Collection[int],
    maps: Sequence[WeightMap] = (),
) -> Strategy:
    """The strategy that `sampling` names, for the training cases.

    Args:
        sampling: the settings.
        cases: training cases.
        surveys: what is known of each.
        classes: names of all classes.
        foreground: indices of those whose shapes count.
        maps: the weights of each case, for "weights".

    Raises:
        ConfigError: The settings do not fit the classes, or a case is too large for its shapes to be found.
        DataError: There is nothing to draw.
    """
    if sampling.by == "uniform":
        return Positions(cases)
    if sampling.by == "class":
        return ClassPixels(cases, surveys, range(len(classes)), sampling.jitter, sampling.weights_of(classes))
    if sampling.by == "polygon":
        from voxtile.data.shapes import anchors_of

        return Shapes(cases, surveys, [anchors_of(case, foreground) for case in cases], sampling.jitter)
    if sampling.by == "weights":
        return WeightedPixels(cases, surveys, maps, sampling.jitter)
    return JudgedPixels(cases, surveys, sampling.jitter)
