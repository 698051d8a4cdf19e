"""How far the surfaces of a label and a prediction lie apart, per case and class. Defined in `docs/scores.md`.

The surface of a class are its pixels that have a neighbour outside it, as in MONAI (`get_mask_edges`), and distances are between
pixels' centres. HD95 is the larger of both directions' percentiles (MONAI's `compute_hausdorff_distance`); the normalised surface
distance is that of Nikolov et al. 2018, "Deep learning to achieve clinically applicable segmentation of head and neck anatomy for
radiotherapy", with the surface's pixels counted alike (MONAI's `compute_surface_dice`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from voxtile.cases.window import IGNORE, Size3, Window
from voxtile.scores.confusion import mean_of

PERCENTILE = 95
SURFACES = ("hd95", "assd", "nsd")
# Headers hold spacings in single precision: 0.8 is 0.80000001 there, and a pixel that is 0.8 mm off must lie within 0.8 mm.
_SLACK = 1 + 1e-5


class Surfaces(NamedTuple):
    """Scores of one class in one case, NaN where no surface is judged: `hd95` and `assd` in the unit of the steps."""

    hd95: float
    assd: float
    nsd: float


def surface_scores(
    label: NDArray[np.uint8], prediction: NDArray[np.uint8], index: int, steps: Sequence[float] | NDArray[np.float64],
    tolerance: float,
) -> Surfaces:  # fmt: skip
    """Compares the surfaces of one class.

    Args:
        label: class indices [D, H, W] of a whole case, `IGNORE` where nothing is judged; with D = 1 surfaces are lines in a plane.
        prediction: class indices [D, H, W].
        index: the class.
        steps: from a pixel to the next along (z, y, x), rows [3, 3], see `Grid.steps`; or their lengths alone, of axes at right
            angles.
        tolerance: the largest distance, in the steps' unit, at which a surface's pixel counts as met.
    """
    edges = np.diag(steps) if np.ndim(steps) == 1 else np.asarray(steps)
    if label.shape[0] == 1:
        label, prediction, edges = label[0], prediction[0], edges[1:]
    # The longest way through the case: its diagonals are equally long unless axes are sheared.
    signs = np.array(list(product((1, -1), repeat=label.ndim)))
    diagonal = float(np.linalg.norm(signs * label.shape @ edges, axis=1).max())
    either = (label == index) | ((prediction == index) & (label != IGNORE))
    if not either.any():
        return Surfaces(np.nan, np.nan, np.nan)
    box = _around(either)
    ignored, mine = label[box] == IGNORE, label[box] == index
    theirs = (prediction[box] == index) & ~ignored
    if not (mine.any() and theirs.any()):  # missed, or a false alarm
        return Surfaces(diagonal, diagonal, 0.0)
    mine, theirs = _surface(mine, ignored), _surface(theirs, ignored)
    both = [_distances(mine, theirs, edges), _distances(theirs, mine, edges)]
    together = np.concatenate(both)
    if not together.size:
        return Surfaces(np.nan, np.nan, np.nan)
    near = float((together <= tolerance * _SLACK).mean())
    hd95 = max(float(np.percentile(np.minimum(each, diagonal), PERCENTILE)) for each in both if each.size)
    return Surfaces(hd95, float(np.minimum(together, diagonal).mean()), near)


def _around(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box around a mask that is not empty, a pixel wider on each side where there is one."""
    axes = range(mask.ndim)
    found = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(max(int(each[0]) - 1, 0), int(each[-1]) + 2) for each in found)


def _surface(mask: NDArray[np.bool_], ignored: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of `mask` that share a side with one outside it; ignored ones are not outside, what is past the border is."""
    inside = mask | ignored
    core = inside.copy()
    for axis in range(mask.ndim):
        here, there = np.moveaxis(core, axis, 0), np.moveaxis(inside, axis, 0)
        here[1:] &= there[:-1]
        here[:-1] &= there[1:]
        here[0] = here[-1] = False
    return mask & ~core


def _distances(of: NDArray[np.bool_], to: NDArray[np.bool_], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each pixel of the surface `of` to the nearest one of the surface `to`, infinite where that has none."""
    out = np.zeros(np.count_nonzero(of))
    apart = of & ~to  # most of two good surfaces is common
    out[apart[of]] = KDTree(np.argwhere(to) @ edges).query(np.argwhere(apart) @ edges)[0]
    return out


class SurfaceMeter:
    """Measures the surfaces of one case that comes in bands. Label and prediction are put together: two bytes a pixel."""

    def __init__(
        self,
        shape: Size3,
        classes: Mapping[int, str],
        steps: Sequence[float] | NDArray[np.float64],
        tolerances: Mapping[str, float],
    ) -> None:
        """Starts before the first band.

        Args:
            shape: (D, H, W) of the case.
            classes: names of the classes that are measured, by index.
            steps: see `surface_scores`.
            tolerances: of `nsd`, by class name, in the steps' unit.
        """
        self.classes, self.steps, self.tolerances = classes, steps, tolerances
        self._label, self._prediction = np.full(shape, IGNORE, dtype=np.uint8), np.full(shape, IGNORE, dtype=np.uint8)

    def add(self, window: Window, prediction: NDArray[np.uint8], label: NDArray[np.uint8]) -> None:
        """Takes the class indices [d, h, w] of a band."""
        self._label[window.slices], self._prediction[window.slices] = label, prediction

    def columns(self) -> dict[str, float]:
        """The columns of `cases.csv`, after the last band."""
        out: dict[str, float] = {}
        for index, name in self.classes.items():
            scores = surface_scores(self._label, self._prediction, index, self.steps, self.tolerances[name])
            out |= {f"{kind}/{name}": value for kind, value in scores._asdict().items()}
        return out


def summarise_surfaces(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Scores of a split from its cases' columns.

    Returns:
        Per class the means and medians over the cases where a score is defined and the number of those where it is not, and each
        score's mean over the classes where it is defined.
    """
    out: dict[str, float] = {}
    for name in names:
        for kind in SURFACES:
            values = np.array([row[f"{kind}/{name}"] for row in rows])
            defined = values[~np.isnan(values)]
            out[f"{kind}/{name}"] = mean_of(values)
            out[f"{kind}_median/{name}"] = float(np.median(defined)) if defined.size else float("nan")
        out[f"surface_undefined/{name}"] = float(sum(np.isnan(row[f"hd95/{name}"]) for row in rows))
    return {kind: mean_of(np.array([out[f"{kind}/{name}"] for name in names])) for kind in SURFACES} | out
