"""Errors of volume."""

import numpy as np
import pytest

from voxtile.scores.volumes import summarise_volumes, volume_columns


def test_errors_are_in_millilitres_and_what_is_nowhere_is_undefined() -> None:
    # Two classes; of the second 300, 100, 0 and 0 voxels in the label, 200, 0, 50 and 0 predicted, of 2 mm³ each.
    matrices = np.array([[[0, 0], [100, 200]], [[0, 0], [100, 0]], [[0, 50], [0, 0]], [[9, 0], [0, 0]]])
    rows = [volume_columns(matrix, {"organ": [1]}, 0.002) for matrix in matrices]
    assert [row["label_ml/organ"] for row in rows] == pytest.approx([0.6, 0.2, 0, 0])
    assert [row["predicted_ml/organ"] for row in rows] == pytest.approx([0.4, 0, 0.1, 0])
    assert [row["volume_error_ml/organ"] for row in rows] == pytest.approx([-0.2, -0.2, 0.1, np.nan], nan_ok=True)
    assert [row["relative_volume_error/organ"] for row in rows] == pytest.approx([-1 / 3, -1, np.nan, np.nan], nan_ok=True)
    scores = summarise_volumes(rows, ["organ"])
    assert scores["volume_error_ml/organ"] == pytest.approx(-0.1)
    assert scores["absolute_volume_error_ml/organ"] == pytest.approx(0.5 / 3)
    assert scores["relative_volume_error/organ"] == pytest.approx(-2 / 3)
    assert scores["absolute_relative_volume_error/organ"] == pytest.approx(2 / 3)
