"""The volume of a structure in the label and in the prediction, per case and class. Defined in `docs/scores.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.training.scores import mean_of


def volume_columns(matrix: NDArray[np.int64], classes: Mapping[int, str], millilitres: float) -> dict[str, float]:
    """The columns of `cases.csv` of one case; errors are NaN where the class is in neither, relative ones where not in the label.

    Args:
        matrix: confusion matrix [K, K] of the case.
        classes: names of the classes that are measured, by index.
        millilitres: volume of a voxel.
    """
    out: dict[str, float] = {}
    for index, name in classes.items():
        label, predicted = float(matrix[index].sum() * millilitres), float(matrix[:, index].sum() * millilitres)
        out[f"label_ml/{name}"], out[f"predicted_ml/{name}"] = label, predicted
        out[f"volume_error_ml/{name}"] = predicted - label if label or predicted else float("nan")
        out[f"relative_volume_error/{name}"] = (predicted - label) / label if label else float("nan")
    return out


def summarise_volumes(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Means over the cases where an error is defined, per class, from the cases' columns."""
    out: dict[str, float] = {}
    for name in names:
        for kind in ("volume_error_ml", "relative_volume_error"):
            errors = np.array([row[f"{kind}/{name}"] for row in rows])
            out[f"{kind}/{name}"] = mean_of(errors)
            out[f"absolute_{kind}/{name}"] = mean_of(np.abs(errors))
    return out
