"""Names in the order in which people count, and those of cases that blocks were cut from."""

from __future__ import annotations

import re


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """A sorting key by which numbers inside names count as numbers: "a_2" comes before "a_10"."""
    words = re.split("([0-9]+)", name)
    return tuple(int(word) if odd % 2 else word.lower() for odd, word in enumerate(words)), name


def whole_id(id: str, region: object) -> str:
    """The id of the case that a case with a region was cut from, which ends where `#` and a block's place begin; its own else."""
    return id.rpartition("#")[0] if region else id
