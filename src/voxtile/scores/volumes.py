"""The volume of a structure in the label and in the prediction, per case and class. Defined in `docs/scores.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.scores.confusion import mean_of


def volume_columns(matrix: NDArray[np.int64], structures: Mapping[str, Sequence[int]], millilitres: float) -> dict[str, float]:
    """The columns of `cases.csv` of one case; errors are NaN where a structure is in neither, relative ones where not in the label.

    Args:
        matrix: confusion matrix [K, K] of the case.
        structures: indices of the classes that a structure is made of, by its name.
        millilitres: volume of a voxel.
    """
    out: dict[str, float] = {}
    for name, members in structures.items():
        label, predicted = (float(matrix.sum(axis=axis)[list(members)].sum() * millilitres) for axis in (1, 0))
        out[f"label_ml/{name}"], out[f"predicted_ml/{name}"] = label, predicted
        out[f"volume_error_ml/{name}"] = predicted - label if label or predicted else float("nan")
        out[f"relative_volume_error/{name}"] = (predicted - label) / label if label else float("nan")
    return out


def summarise_volumes(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Means over the cases where an error is defined, per structure, from the cases' columns."""
    out: dict[str, float] = {}
    for name in names:
        for kind in ("volume_error_ml", "relative_volume_error"):
            errors = np.array([row[f"{kind}/{name}"] for row in rows])
            out[f"{kind}/{name}"] = mean_of(errors)
            out[f"absolute_{kind}/{name}"] = mean_of(np.abs(errors))
    return out
