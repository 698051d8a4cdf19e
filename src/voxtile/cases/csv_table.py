"""Tables that users keep, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from voxtile.cases.atomic import atomic_write


def atomic_csv(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Writes a table so that a kill leaves either the old file or the new one.

    Args:
        path: the file.
        names: of the columns, in order.
        rows: values by column; what a row lacks is left empty.
    """

    def write(making: Path) -> None:
        with making.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    atomic_write(path, write)
