"""Whether values of the configuration have the types that the classes they are for ask for."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from voxtile.errors import ConfigError, did_you_mean, listed, typed
from voxtile.values import is_number, is_whole

_PLAIN: Mapping[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"
}  # fmt: skip
_UNIONS, _LISTS, _MAPPINGS = (Union, UnionType), (Sequence, list, tuple), (Mapping, dict)


def check_arguments(maker: Any, arguments: Mapping[str, Any], where: str) -> None:
    """Refuses arguments whose types are not those of a signature, so that it is said before anything is read or built.

    Args:
        maker: the class or function; its annotations must tell the truth, which those of other people's networks often do not.
        arguments: by name, as the configuration holds them.
        where: their path in the configuration.

    Raises:
        ConfigError: An argument has another type.
    """
    hints: Mapping[str, Any] = {}
    with contextlib.suppress(TypeError, NameError):  # none are given, or they name what is imported for type checkers only
        hints = get_type_hints(maker.__init__ if inspect.isclass(maker) else maker)
    for key, value in arguments.items():
        if key in hints and not (isinstance(value, Mapping) and "_target_" in value):  # that is built first
            _check_type(f"{where}.{key}", value, hints[key])


def _check_type(path: str, value: Any, hint: Any) -> None:
    """Refuses a value of another type than `hint`.

    Raises:
        ConfigError: The value has another type.
    """
    if not _fits(value, hint):
        choices = [str(choice) for part in _members(hint) if get_origin(part) is Literal for choice in get_args(part)]
        said = f"'{path}={_typed(value)}' must be {_said(hint)}.{did_you_mean(str(value), choices)}"
        if isinstance(value, list) and _fits(names := [str(item) for item in value], hint):
            said += f" Type '{path}={typed(names)}'."
            if any(is_whole(item, 10_000) for item in value):  # 2019_1 is 20191 in YAML
                said += " A name with underscores, which YAML leaves out of numbers, needs double quotes where it is written: "
                said += '["2019_1"].'
        raise ConfigError(said)


def _typed(value: Any) -> str:
    """A value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _members(hint: Any) -> list[Any]:
    """What a union consists of, without what no configuration can hold where there is something that it can."""
    members = list(get_args(hint)) if get_origin(hint) in _UNIONS else [hint]
    known = [each for each in members if each in _PLAIN or get_origin(each) in (Literal, *_LISTS, *_MAPPINGS)]
    return known if any(each is not NoneType for each in known) else members


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, or of one that is not known here; whole numbers are numbers."""
    members = _members(hint)
    if len(members) > 1:
        return any(_fits(value, member) for member in members)
    (hint,) = members
    kind, parts = get_origin(hint), get_args(hint)
    if hint is float:
        return is_number(value)
    if hint in _PLAIN:
        return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if kind is Literal:
        return value in parts
    if kind in _LISTS:
        return isinstance(value, list) and all(any(_fits(item, part) for part in parts if part is not Ellipsis) for item in value)
    return kind not in _MAPPINGS or isinstance(value, Mapping)


def _said(hint: Any) -> str:
    """A type in words."""
    found = []
    for each in _members(hint):
        kind, parts = get_origin(each), get_args(each)
        if kind is Literal:
            found.append(f"one of {listed(parts)}")
        elif kind in _LISTS:
            found.append("a list" if parts[0] is Any else f"a list, each entry {_said(parts[0])}")
        else:
            found.append("settings by name, {name: …}" if kind in _MAPPINGS else _PLAIN.get(each, "something else"))
    return ", or ".join(found)
