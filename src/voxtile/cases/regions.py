"""Regions: named unions of classes that may overlap, as in BraTS. Stored values stay exclusive classes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from voxtile.errors import ConfigError, did_you_mean, listed

MOST = 32  # regions; of each pixel one bit says whether it is in one


def regions_of(
    given: Mapping[str, Sequence[str]] | None, classes: Sequence[str], background: str | None
) -> dict[str, tuple[int, ...]]:
    """The indices of the classes in each region, rising, by the region's name.

    Args:
        given: names of classes by name of region, as in `data.regions`; None for none.
        classes: the K class names.
        background: the class that no region may hold, or None.

    Raises:
        ConfigError: A region holds no class, one that does not exist or the background, or bears another class's name.
    """
    out: dict[str, tuple[int, ...]] = {}
    example = f"for example 'data.regions={{whole: [{', '.join(name for name in classes if name != background)}]}}'"
    for key, names in (given or {}).items():
        region = str(key)
        if not isinstance(names, Sequence) or isinstance(names, str) or not names:
            raise ConfigError(f"'data.regions.{region}={names}' must be a list of classes, {example}.")
        members = [str(name) for name in names]
        if unknown := [name for name in members if name not in classes]:
            raise ConfigError(
                f"'data.regions.{region}' holds {listed(unknown)}, which is no class.{did_you_mean(unknown[0], classes)} The "
                f"classes are {listed(classes, 30)}."
            )
        if background in members:
            raise ConfigError(
                f"'data.regions.{region}' holds '{background}', the class of 'data.background', which no mean and no region is "
                "about. Take it out."
            )
        if region in ("ignore", background) or (region in classes and members != [region]):
            raise ConfigError(
                f"'data.regions' names a region '{region}', and 'data.labels' a class; their scores would have one name. Name the "
                "region otherwise. (Only a region of one class may be called like that class.)"
            )
        check_names([region], "data.regions")
        out[region] = tuple(sorted({classes.index(name) for name in members}))
    if len(out) > MOST:
        raise ConfigError(f"'data.regions' names {len(out)} regions; {MOST} are the most.")
    return out


def structures_of(
    classes: Sequence[str], background: int | None, regions: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """What means are over and measures look at, with the indices of its classes: the regions, or each foreground class.

    Args:
        classes: the K class names.
        background: index of the class that is no foreground, or None.
        regions: class indices by name of region; empty for none.
    """
    if regions:
        return {name: tuple(members) for name, members in regions.items()}
    return {name: (index,) for index, name in enumerate(classes) if index != background}


def check_names(names: Sequence[str], setting: str) -> None:
    """Refuses names that cannot stand in a score's.

    Args:
        names: of classes or regions.
        setting: where they stand.

    Raises:
        ConfigError: One is empty, or has a sign that is no letter, no digit and none of _ . ( ) + -.
    """
    for name in names:
        if not name:
            raise ConfigError(f"'{setting}' holds an empty name. Expected letters, digits and _ . ( ) + -.")
        if found := re.search(r"[^\w .()+-]", name):
            sign = found[0]
            called = unicodedata.name(sign, f"U+{ord(sign):04X}").lower()
            raise ConfigError(
                f"'{setting}' holds names with other signs than letters, digits and _ . ( ) + -: '{sign}' ({called}) in "
                f"{listed([each for each in names if sign in each])}."
            )
