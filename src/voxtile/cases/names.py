"""Names of files in the order in which people count."""

from __future__ import annotations

import re


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """A sorting key by which numbers inside names count as numbers: "a_2" comes before "a_10"."""
    words = re.split("([0-9]+)", name)
    return tuple(int(word) if odd % 2 else word.lower() for odd, word in enumerate(words)), name
