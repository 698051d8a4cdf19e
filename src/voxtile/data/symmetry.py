"""Which exact mirrorings and turns leave a data set's windows plausible, and which classes change places with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxtile.cases.window import IGNORE, Size3
from voxtile.cases.windowing import AXES, Windowing
from voxtile.errors import ConfigError, did_you_mean, listed
from voxtile.values import is_whole, refuse_unknown

# Quarter turns in (y, x) are flips of these axes, followed by a transposition for odd ones.
_FLIPS_OF_TURNS: tuple[set[int], ...] = (set(), {2}, {1, 2}, {1})


@dataclass(frozen=True)
class Symmetry:
    """Which exact mirrorings and turns of a window are as plausible as the window itself: a fact of the data set.

    Attributes:
        flips: the axes, among "z", "y" and "x", that may be mirrored.
        rot90: whether quarter turns in the (y, x) plane are allowed; windows must then be square.
        swap: axis -> pairs of class indices that change places when the window is mirrored along it (left and right structures).
    """

    flips: tuple[str, ...] = ()
    rot90: bool = False
    swap: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        swap = {axis: tuple(map(tuple, pairs)) for axis, pairs in _pairs(self.swap).items()}
        if not all(is_whole(number, 0) for pairs in swap.values() for pair in pairs for number in pair):
            raise _no_pairs(self.swap)
        object.__setattr__(self, "flips", tuple(self.flips or ()))
        object.__setattr__(self, "swap", swap)
        for axis in (*self.flips, *swap):
            if axis not in AXES:
                raise ConfigError(f"data.symmetry names the axis '{axis}'; expected 'z', 'y' or 'x', for example flips=[y,x].")

    @classmethod
    def of(cls, values: Symmetry | Mapping[str, Any] | None) -> Symmetry:
        """Makes a symmetry from a mapping of its attributes; None allows nothing.

        Raises:
            ConfigError: A key or an axis is unknown, or `swap` holds no pairs of class indices.
        """
        if isinstance(values, Symmetry):
            return values
        refuse_unknown("data.symmetry", values or {}, ("flips", "rot90", "swap"))
        return cls(**(values or {}))

    @classmethod
    def named(cls, values: Mapping[str, Any] | None, classes: Sequence[str]) -> Symmetry:
        """Makes a symmetry from the mapping in a data set's configuration, whose `swap` holds names of classes or their indices.

        Args:
            values: as in the configuration.
            classes: names of the classes by index.

        Raises:
            ConfigError: See `of`; or a pair names no class, or a class is in several pairs of an axis.
        """
        pairs = _pairs((values or {}).get("swap"))
        swap = {axis: tuple((_index(a, axis, classes), _index(b, axis, classes)) for a, b in each) for axis, each in pairs.items()}
        for axis, each in swap.items():
            numbers = [number for pair in each for number in pair]
            if twice := [classes[number] for number in dict.fromkeys(numbers) if numbers.count(number) > 1]:
                raise ConfigError(
                    f"'data.symmetry.swap.{axis}={_written(pairs[axis])}' names the class {twice[0]} more than once, and it can "
                    f"change places with one other only where images are mirrored along {axis}. Name each class once: "
                    f"'data.symmetry.swap.{axis}=[[left,right]]' where these are a left and a right structure."
                )
        return cls.of({**(values or {}), "swap": swap})

    def check(self, windowing: Windowing) -> None:
        """Looks whether it gives each mirrored and turned window one label.

        Args:
            windowing: how windows lie in the volumes whose axes are named; quarter turns are those of windows.

        Raises:
            ConfigError: Classes would change places along an axis that is not mirrored, or one image has two labels.
        """
        for axis in self.swap:
            if axis not in self.flips and self.swap[axis]:
                raise ConfigError(
                    f"'data.symmetry.swap' holds classes that change places along {axis}, and 'data.symmetry.flips="
                    f"[{','.join(self.flips)}]' does not mirror along it. Type 'data.symmetry.flips="
                    f"[{','.join((*self.flips, axis))}]', or take them out with '~data.symmetry.swap.{axis}'."
                )
        # Both mirrorings and half a turn are the image as it was, and so must be its label.
        turned = self.turned(windowing)
        if self.rot90 and {"y", "x"} <= set(turned.flips) and turned.exchanged(("y", "x"), IGNORE) != list(range(IGNORE)):
            raise ConfigError(
                "'data.symmetry' mirrors along both axes of a plane and turns in it, while the classes of 'data.symmetry.swap' are "
                "not the same for both: an image mirrored along both and turned by 180° is the image itself, and would have "
                "another label. Type 'data.symmetry.rot90=false', or mirror along one of the axes only."
            )

    def turned(self, windowing: Windowing) -> Symmetry:
        """The same with the axes of the volume called as they are in windows."""
        swap = {windowing.axis_of(axis): pairs for axis, pairs in self.swap.items()}
        return Symmetry(tuple(windowing.axis_of(axis) for axis in self.flips), self.rot90, swap)

    def exchanged(self, axes: Sequence[str], count: int) -> list[int]:
        """For each of `count` classes, the one that its pixels are of in a copy mirrored along all of `axes`.

        Of probabilities [B, K, ...] of such a copy, `probabilities[:, exchanged]` has the classes where the image itself has them.
        """
        table = list(range(count))
        for a, b in (pair for axis in AXES if axis in axes for pair in self.swap.get(axis, ())):
            table[a], table[b] = table[b], table[a]
        return table

    def draw(self, rng: np.random.Generator, size: Size3) -> dict[str, NDArray[Any]]:
        """Draws `flips` bool [3] along (z, y, x) and the number of quarter `turns` [].

        Raises:
            ConfigError: Quarter turns are allowed and the window is not square.
        """
        flips, turns = rng.random(3) < 0.5, rng.integers(4)
        if self.rot90 and size[1] != size[2]:
            raise ConfigError(
                f"data.symmetry allows quarter turns, but the window is {size[1]} x {size[2]} pixels (height x width) and would "
                "change its shape. Make windows square, or forbid the turns with 'data.symmetry.rot90=false'."
            )
        allowed = [axis in self.flips and pixels > 1 for axis, pixels in zip(AXES, size, strict=True)]
        return {"flips": flips & np.array(allowed), "turns": np.array(turns if self.rot90 else 0, dtype=np.int64)}

    def reorient(self, array: Tensor, flips: Sequence[bool], turns: int) -> Tensor:
        """Mirrors one sample's array [..., (D,) H, W] along `flips` and then turns it as `torch.rot90` does."""
        axes = {axis for axis, flip in enumerate(flips) if flip} ^ _FLIPS_OF_TURNS[turns]
        flipped = array.flip([axis - 3 for axis in sorted(axes)]) if axes else array
        return flipped.transpose(-2, -1) if turns % 2 else flipped

    def relabel(self, label: Tensor, flips: Sequence[bool]) -> Tensor:
        """Exchanges the classes of one sample's label (uint8, any shape) that change places under `flips`."""
        mirrored = [axis for axis, flip in zip(AXES, flips, strict=True) if flip]
        if not any(self.swap.get(axis) for axis in mirrored):
            return label
        table = self.exchanged(mirrored, 256)
        return torch.tensor(table, dtype=torch.uint8).to(label.device, non_blocking=True)[label.int()]


def _pairs(swap: Any) -> dict[str, list[Any]]:
    """`swap` by axis.

    Raises:
        ConfigError: It holds something else than pairs.
    """
    if not isinstance(swap or {}, Mapping):
        raise _no_pairs(swap)
    pairs: dict[str, list[Any]] = {axis: each or [] for axis, each in (swap or {}).items()}
    if not all(
        isinstance(each, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in each) for each in pairs.values()
    ):
        raise _no_pairs(swap)
    return pairs


def _no_pairs(swap: Any) -> ConfigError:
    return ConfigError(
        f"data.symmetry has swap={swap}; expected pairs of classes for each axis, for example swap={{x: [[left, right]]}} or "
        "swap={x: [[1, 2]]} where classes 1 and 2 are a left and a right structure."
    )


def _index(known: Any, axis: str, classes: Sequence[str]) -> int:
    """The index of a class by its name or index."""
    if known in classes:
        return list(classes).index(known)
    if is_whole(known, 0) and known < len(classes):
        return int(known)
    numbered = [f"{name} ({number})" for number, name in enumerate(classes)]
    raise ConfigError(
        f"'data.symmetry.swap.{axis}' holds the class {known}, and there is none of this name or index (values that labels are "
        f"stored with do not count here).{did_you_mean(str(known), classes)} The classes are {listed(numbered)}. Name two "
        f"that change places in images mirrored along {axis}: 'data.symmetry.swap.{axis}=[[left,right]]'."
    )


def _written(pairs: Sequence[Sequence[Any]]) -> str:
    """Pairs as they are typed."""
    return "[" + ",".join(f"[{','.join(map(str, pair))}]" for pair in pairs) + "]"
