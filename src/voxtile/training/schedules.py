"""Learning rates: over time (schedules) and over the network (parameter groups)."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from voxtile.errors import ConfigError, did_you_mean, listed, reason
from voxtile.values import is_number, is_whole, refuse_unknown


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """What the learning rate is multiplied by, as a pure function of the optimizer step.

    Attributes:
        warmup: optimizer steps of linear warm-up; step s of it has the factor (s + 1) / (warmup + 1), and the schedule proper
            begins after it, over what remains of the training.
    """

    warmup: int = 0

    def __post_init__(self) -> None:
        if not is_whole(self.warmup, 0):
            raise ConfigError(f"`scheduler.warmup` is {self.warmup}, but it is a number of optimizer steps: give 0 or more.")

    def factor(self, step: int, total: int) -> float:
        """The factor of optimizer step `step` (from 0) of `total`; from `total` on it stays what it is there."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        remaining = max(total - self.warmup, 0)
        return self.after_warmup(min(step - self.warmup, remaining), remaining)

    @abstractmethod
    def after_warmup(self, step: int, total: int) -> float:
        """The factor where step 0 is the first after the warm-up, 0 <= step <= total."""


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The learning rate as it is."""

    def after_warmup(self, step: int, total: int) -> float:
        """Always 1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Poly(Schedule):
    """(1 - step / total) ^ power, falling to 0 (DeepLab v2, Chen et al. 2017, section 4.1)."""

    power: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("power", self.power)

    def after_warmup(self, step: int, total: int) -> float:
        """The polynomial."""
        return float((1 - _progress(step, total)) ** self.power)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from 1 to `floor` (Loshchilov and Hutter 2017, equation 5, without restarts)."""

    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("floor", self.floor, 1)

    def after_warmup(self, step: int, total: int) -> float:
        """The half cosine."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * _progress(step, total))) / 2


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """Times `gamma` after each `every` optimizer steps (DeepLab v1, Chen et al. 2015: 0.1 after each 2000)."""

    every: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_whole(self.every, 1):
            raise ConfigError(f"`scheduler.every` is {self.every}, but it is a number of optimizer steps: give 1 or more.")
        _check_number("gamma", self.gamma, 1)

    def after_warmup(self, step: int, total: int) -> float:
        """The stairs."""
        return float(self.gamma ** (step // self.every))


def _check_number(name: str, value: float, high: float = math.inf) -> None:
    if not is_number(value, 0, high):
        raise ConfigError(f"`scheduler.{name}` is {value}; give a number {'from 0 to 1' if high == 1 else 'that is at least 0'}.")


def _progress(step: int, total: int) -> float:
    return step / total if total else 1.0


@dataclass(frozen=True)
class Group:
    """Parameters that learn in their own way.

    Attributes:
        pattern: regular expression, searched for anywhere in a parameter's name.
        lr_scale: what the learning rate is multiplied by.
        weight_decay: the group's weight decay; the optimizer's where None.
    """

    pattern: str
    lr_scale: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        for name in ("lr_scale", "weight_decay"):
            value = getattr(self, name)
            if not is_number(value, 0) and not (value is None and name == "weight_decay"):
                raise ConfigError(f"The group '{self.pattern}' of `training.groups` has {name}={value}: give a number from 0 up.")


def parameter_groups(model: nn.Module, groups: Iterable[Mapping[str, Any]], lr: float) -> list[dict[str, Any]]:
    """Deals the parameters that learn out to groups for a torch optimizer.

    Args:
        model: the network.
        groups: mappings with the fields of `Group`; a parameter goes to the first whose pattern it matches.
        lr: the learning rate.

    Returns:
        Optimizer groups with `params`, `name` (the pattern; "rest" for the last one, which holds what no pattern matches),
        `lr` and, where it is given, `weight_decay`. None is empty.

    Raises:
        ConfigError: A group has an unknown field or no pattern, its pattern is no regular expression, or no parameter is left
            for it.
    """
    waiting = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    known = tuple(waiting)
    out: list[dict[str, Any]] = []
    for group in map(_parsed, groups):
        taken = [name for name in waiting if re.search(group.pattern, name)]
        if not taken:
            raise ConfigError(_nothing_left(group.pattern, known))
        options = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
        parameters = [waiting.pop(name) for name in taken]
        out.append({"params": parameters, "name": group.pattern, "lr": lr * group.lr_scale, **options})
    if waiting:
        out.append({"params": list(waiting.values()), "name": "rest", "lr": lr})
    return out


def _parsed(fields: Mapping[str, Any]) -> Group:
    refuse_unknown("training.groups", fields, tuple(Group.__dataclass_fields__))
    if "pattern" not in fields:
        raise ConfigError(f"A group of `training.groups`, {dict(fields)}, has no 'pattern': give one, for example 'bias$'.")
    group = Group(**fields)
    try:
        re.compile(group.pattern)
    except re.error as error:
        raise ConfigError(
            f"The pattern '{group.pattern}' of `training.groups` is no regular expression: {reason(error)}. Give part of a "
            "parameter's name, for example 'head' or 'bias$'."
        ) from error
    return group


def _nothing_left(pattern: str, known: Sequence[str]) -> str:
    if any(re.search(pattern, name) for name in known):
        return (
            f"Every parameter that the pattern '{pattern}' of `training.groups` matches belongs to an earlier group already: the "
            "first match wins. Move the group up or remove it."
        )
    parts = sorted({part for name in known for part in name.split(".")} | set(known))
    return (
        f"The pattern '{pattern}' of `training.groups` matches none of the network's {len(known)} "
        f"parameters.{did_you_mean(pattern, parts)} There are {listed(known)}."
    )
