"""Band arithmetic: channels that are computed from others, decibels, and what cloud and quality bands say of a pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.formula import NEGATIVE, Expression, Grammar, Operand

Layer = NDArray[Any]  # one band's pixels [h, w]


def normalised_difference(a: Layer, b: Layer) -> Layer:
    """(a - b) / (a + b)."""
    return np.asarray((a - b) / (a + b))


_SIGNS: Mapping[str, Callable[..., Layer]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "**": np.power, NEGATIVE: np.negative,
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal,
}  # fmt: skip
_FUNCTIONS: Mapping[str, tuple[tuple[int, int], Callable[..., Layer]]] = {
    "abs": ((1, 1), np.abs),
    "sqrt": ((1, 1), np.sqrt),
    "log10": ((1, 1), np.log10),
    "exp": ((1, 1), np.exp),
    "min": ((2, 9), lambda *layers: reduce(np.minimum, layers)),
    "max": ((2, 9), lambda *layers: reduce(np.maximum, layers)),
    "where": ((3, 3), lambda condition, yes, no: np.asarray(np.where(condition != 0, yes, no))),
    "ndvi": ((2, 2), normalised_difference),  # nir, red: Rouse et al. 1974
    "ndwi": ((2, 2), normalised_difference),  # green, nir: McFeeters 1996
    "mndwi": ((2, 2), normalised_difference),  # green, short-wave infrared: Xu 2006
    "nbr": ((2, 2), normalised_difference),  # nir, short-wave infrared of 2.2 µm: Key and Benson 2006
}
_GRAMMAR = Grammar(
    frozenset(_SIGNS),
    {name: count for name, (count, _) in _FUNCTIONS.items()},
    (int, float, str),
    "names of bands (in quotes where they are no plain words, as '2019_B04'), numbers, + - * / **, comparisons, brackets, "
    "ndvi(nir, red), ndwi(green, nir), mndwi(green, swir), nbr(nir, swir2), abs, sqrt, log10, exp, min, max and "
    "where(condition, yes, no); for example '(B08 - B04) / (B08 + B04)'",
)


@dataclass(frozen=True)
class Derived:
    """A channel that is a formula of others.

    Attributes:
        name: the channel's.
        text: the formula.
    """

    name: str
    text: str

    def __post_init__(self) -> None:
        """Raises ConfigError where the text is no formula of bands."""
        if not self.bands:
            raise _parsed(self.name, self.text).error("uses no band")

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that the formula uses."""
        parsed = _parsed(self.name, self.text)
        return parsed.names + parsed.texts

    def __call__(self, layers: Mapping[str, Layer]) -> NDArray[np.float32]:
        """The formula's value of each pixel [h, w]; not finite where it has none, as after a division by zero."""

        def band(name: str) -> Layer:
            return layers[name].astype(np.float32, copy=False)

        def literal(given: str | float) -> Layer:
            return band(given) if isinstance(given, str) else np.float32(given)  # type: ignore[return-value]  # NumPy takes either

        with np.errstate(all="ignore"):
            return np.asarray(_parsed(self.name, self.text).value(literal, band, _apply), dtype=np.float32)


@cache
def _parsed(name: str, text: str) -> Expression[Layer]:
    return Expression(text, f"data.scene.derived.{name}", _GRAMMAR)


def _apply(operation: str, operands: Sequence[Operand[Layer]]) -> Layer:
    function = _SIGNS[operation] if operation in _SIGNS else _FUNCTIONS[operation][1]
    found = function(*(operand.value for operand in operands))
    return found.astype(np.float32) if found.dtype == np.bool_ else found  # NumPy has no minus for truth values


def decibel(power: Layer) -> Layer:
    """10 log10 of linear power; not finite where there is none, as at 0 and below."""
    power = power.astype(np.result_type(power, np.float32), copy=False)  # of 8 bits NumPy's logarithm has 16
    with np.errstate(all="ignore"):
        return np.where(power > 0, 10 * np.log10(power), np.nan)


@dataclass(frozen=True)
class Mask:
    """What makes pixels invalid: values of a band, or any of some bits of it.

    Attributes:
        band: its name.
        values: each marks a pixel.
        bits: numbers from 0, the lowest; each that is set marks a pixel.
    """

    band: str
    values: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()

    def marks(self, stored: Layer) -> NDArray[np.bool_]:
        """Which pixels [h, w] are marked."""
        if self.bits:
            plain = stored.view(f"u{stored.dtype.itemsize}")  # of a signed type the highest bit is the sign
            return np.asarray((plain & plain.dtype.type(sum(1 << bit for bit in self.bits))) != 0)
        return np.isin(stored, self.values)


# Sentinel-2's scene classification (Sen2Cor, level 2A): 0 no data, 1 defective, 3 cloud shadow, 8 and 9 cloud of medium and high
# probability, 10 thin cirrus. Landsat Collection 2's QA_PIXEL: bits 0 fill, 1 dilated cloud, 2 cirrus, 3 cloud, 4 cloud shadow.
PRESETS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "scl_clouds": {"values": (0, 1, 3, 8, 9, 10)},
    "qa_pixel_clouds": {"bits": (0, 1, 2, 3, 4)},
}
