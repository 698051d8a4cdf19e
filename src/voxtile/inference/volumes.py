"""Millilitres of what a finished map of a volume holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from voxtile.cases.csv_table import atomic_csv
from voxtile.cases.window import IGNORE
from voxtile.inference.finished import FinishedMap

COLUMNS = ("case", "structure", "voxels", "millilitres")


def write_volumes(found: FinishedMap, path: Path, case: str, structures: Mapping[str, Sequence[int]]) -> None:
    """Writes a table of the volumes of structures, a row for each.

    Args:
        found: the map, of a volume.
        path: of the table.
        case: the case's id, which each row begins with, so that the tables of many cases can be put together.
        structures: class indices by name of class or region.

    Raises:
        OSError: It cannot be written.
    """
    counts = np.zeros(IGNORE + 1, dtype=np.int64)
    for window in found.slabs():
        counts += np.bincount(found.read(window).ravel(), minlength=IGNORE + 1)
    voxels = {name: int(counts[list(indices)].sum()) for name, indices in structures.items()}
    each = found.grid.cell() / 1000  # mm³
    rows = [(case, name, count, f"{count * each:.6g}") for name, count in voxels.items()]
    atomic_csv(path, COLUMNS, [dict(zip(COLUMNS, row, strict=True)) for row in rows])
