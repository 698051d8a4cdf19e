"""How many lesions were found and how many made up, per case and class. Defined in `docs/scores.md`.

A lesion is a connected component of one class. It is found where the prediction overlaps it, and a predicted one is false where it
overlaps none, as in the ISLES 2022 challenge (Hernandez Petzsche et al. 2022, "ISLES 2022: A multi-center magnetic resonance
imaging stroke lesion segmentation dataset", and its evaluation code `compute_lesion_f1_score`). No IoU is asked for: of lesions of
a few voxels it would be chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from voxtile.cases.window import Size3
from voxtile.scores.confusion import mean_of
from voxtile.scores.objects import ObjectFinder, Objects

COUNTS = ("label_lesions", "found_lesions", "predicted_lesions", "false_lesions")
SHARES = ("lesion_sensitivity", "lesion_f1")


class LesionCounter(ObjectFinder):
    """Counts the lesions of one case that comes in bands."""

    def __init__(self, shape: Size3, classes: Mapping[int, str], corners: bool, least: float, overlap: float) -> None:
        """Starts before the first band.

        Args:
            shape: (D, H, W) of the case.
            classes: names of the classes whose objects are lesions, by index.
            corners: whether pixels that meet at a corner or edge only are of one lesion.
            least: pixels; smaller lesions are neither looked for nor false, and what is predicted smaller finds none.
            overlap: the share of a lesion that must be predicted for it to be found; with 0 a pixel is enough.
        """
        super().__init__(shape, classes, corners)
        self.least, self.overlap = least, overlap

    def columns(self) -> dict[str, float]:
        """Scores and counts of the case; shares are NaN where undefined."""
        return _columns(self.found(), self.classes, self.least, self.overlap)


def _columns(found: Objects, classes: Mapping[int, str], least: float, overlap: float) -> dict[str, float]:
    a, b = found.common.coords
    size = found.judged + found.ignored
    large = size >= least
    kept = large[b]
    covered = np.bincount(a[kept], found.common.data[kept], len(found.size))
    hit = (covered > 0) & (covered / np.maximum(found.size, 1) >= overlap)  # 0.55 * 100 is more than 55
    wanted = found.size >= least
    touching = np.bincount(b, minlength=len(size)) > 0
    counted = large & (touching | (found.ignored <= found.judged))  # what lies mostly where nothing is judged is not false
    out: dict[str, float] = {}
    for index, name in classes.items():
        mine, theirs = wanted & (found.label_class == index), counted & (found.predicted_class == index)
        mine[0] = theirs[0] = False  # no object
        lesions, hits, predicted, false = (int(each.sum()) for each in (mine, mine & hit, theirs, theirs & ~touching))
        out[f"lesion_sensitivity/{name}"] = hits / lesions if lesions else float("nan")
        out[f"lesion_f1/{name}"] = 2 * hits / (hits + lesions + false) if lesions + false else float("nan")
        out |= {f"{kind}/{name}": count for kind, count in zip(COUNTS, (lesions, hits, predicted, false), strict=True)}
    return out


def summarise_lesions(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Scores of a split from its cases' columns.

    Returns:
        Per class the means over the cases where a share is defined and the number of those where it is not, counts added up, the
        false lesions of a case on average, and each share's mean over the classes where it is defined.
    """
    out: dict[str, float] = {}
    for name in names:
        for kind in SHARES:
            values = np.array([row[f"{kind}/{name}"] for row in rows])
            out[f"{kind}/{name}"] = mean_of(values)
            out[f"{kind}_undefined/{name}"] = float(np.isnan(values).sum())
        out |= {f"{kind}/{name}": sum(row[f"{kind}/{name}"] for row in rows) for kind in COUNTS}
        out[f"false_lesions_per_case/{name}"] = out[f"false_lesions/{name}"] / len(rows)
    return {kind: mean_of(np.array([out[f"{kind}/{name}"] for name in names])) for kind in SHARES} | out
