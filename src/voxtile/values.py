"""What users give as settings: whether a value is a number, and whether its name is known."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import TypeGuard

from voxtile.errors import ConfigError, did_you_mean, listed


def is_whole(value: object, least: int | None = None) -> TypeGuard[int]:
    """Whether a value is a whole number, from `least` up; true and false are none, though Python counts with them."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> TypeGuard[float]:
    """Whether a value is a finite number from `low` to `high`; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high


def refuse_unknown(where: str, given: Iterable[object], known: Collection[str]) -> None:
    """Refuses the first key of `given` that is not in `known`.

    Args:
        where: the settings' path, as in "data.sampling".
        given: the keys that somebody typed.
        known: the keys there are.

    Raises:
        ConfigError: There is such a key.
    """
    for name in given:
        if name not in known:
            raise ConfigError(f"'{where}' takes no '{name}'.{did_you_mean(str(name), known)} It takes {listed(known, 20)}.")
