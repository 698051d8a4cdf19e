"""Values that users give as settings: whether one is a number, and its name known; and numbers as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeGuard

from voxtile.errors import ConfigError, did_you_mean, listed


def is_whole(value: object, least: int | None = None) -> TypeGuard[int]:
    """Whether a value is a whole number, from `least` up; true and false are none, though Python counts with them."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> TypeGuard[float]:
    """Whether a value is a finite number from `low` to `high`; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high


def finite(value: Any) -> Any:
    """A copy, of lists and mappings too, in which None stands for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_switch(path: str, value: object) -> None:
    """Refuses a value that is neither true nor false, which the user gives as `path`.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"'{path}={value}' must be true or false.")


def check_whole_number(path: str, value: object, least: int = 1) -> None:
    """Refuses a value that is no whole number from `least` up, which the user gives as `path`.

    Raises:
        ConfigError: It is something else.
    """
    if not is_whole(value, least):
        raise ConfigError(f"'{path}={value}' must be a whole number from {least} up.")


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
