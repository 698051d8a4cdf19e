"""What a data set's training cases suggest: spacing, slices or boxes, window, batch, depth and width of a U-Net.

The rules are those of nnU-Net (Isensee et al., Nature Methods 18, 2021, supplementary note 2) where they apply to this U-Net, which
halves every axis of its windows alike; each value comes with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.case import Case
from voxtile.cases.windowing import AXES, ORDERS
from voxtile.data.survey import Survey
from voxtile.errors import ConfigError, size

COARSE = 3.0  # times the finest spacing, from which on an axis is coarse
FINER = 10  # percentile of the spacings along a coarse axis, so that few cases lose slices
SAME = 0.01  # share by which spacings may differ and still be the same
BOTTOM = 4  # pixels of the smallest side of the lowest level
DEEPEST = {2: 7, 3: 5}  # halvings
WIDTHS = (0.5, 0.375, 0.25, 0.125, 0.0625)  # factors on 64 channels, the first of which is nnU-Net's
BATCHES = (2, 32)  # least and most
SHARE = 0.05  # of the training pixels that a batch may hold
LARGEST = 512  # pixels of a side of a slice's window
AIR = -500  # Hounsfield units below which a CT holds the air around the patient
MASKED = 0.25  # share of voxels that are 0 in every channel, from which on statistics leave them out


@dataclass(frozen=True)
class Facts:
    """What training cases look like.

    Attributes:
        shapes: voxels along (z, y, x) of each case on its file's grid, int [n, 3].
        spacings: mm along (z, y, x), [n, 3].
        channels: of an image.
        volumes: millilitres of each class (column) in each case, NaN where the label was not read [n, K].
        low: 0.5th percentile of each case's values over all channels [n].
        zero: share of voxels that are 0 in every channel [n].
        whole: whether values are whole numbers.
    """

    shapes: NDArray[np.int64]
    spacings: NDArray[np.float64]
    channels: int
    volumes: NDArray[np.float64]
    low: NDArray[np.float64]
    zero: NDArray[np.float64]
    whole: bool


@dataclass
class Plan:
    """Settings with reasons, in the order in which they were decided.

    Attributes:
        values: by path in the configuration.
        reasons: likewise.
    """

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def set(self, path: str, value: Any, reason: str) -> None:
        """Adds a setting, or changes it."""
        self.values[path], self.reasons[path] = value, reason


def facts_of(cases: Sequence[Case], surveys: Sequence[Survey]) -> Facts:
    """Looks at training cases, on the grids of their files.

    Raises:
        ConfigError: They are no volumes.
    """
    grids = [case.native.grid for case in cases]
    if any(grid.unit != "mm" for grid in grids):
        raise ConfigError(
            "'voxtile plan' works out spacing and windows of volumes in millimetres, and these cases have none. For scenes and "
            "pictures choose 'data.window' yourself; 'voxtile check' says how long steps take."
        )
    spacings = np.array([grid.spacing for grid in grids])
    volumes = np.array([found.counts for found in surveys]) * np.array([[grid.cell()] for grid in grids]) / 1000
    return Facts(
        shapes=np.array([grid.shape for grid in grids]),
        spacings=spacings,
        channels=len(cases[0].channels),
        volumes=volumes,
        low=np.array([np.percentile(found.sample, 0.5) for found in surveys]),
        zero=np.array([(found.sample == 0).all(axis=0).mean() for found in surveys]),
        whole=all(bool((found.sample == np.round(found.sample)).all()) for found in surveys),
    )


def plan(facts: Facts, dims: int, memory: float, needs: Callable[[dict[str, Any]], int]) -> Plan:
    """Proposes settings.

    Args:
        facts: of the training cases.
        dims: 2 for slices, 3 for boxes.
        memory: bytes that a training step may take.
        needs: bytes that a training step takes with settings as in `Plan.values`.

    Raises:
        ConfigError: Nothing fits into the memory.
    """
    made = Plan()
    spacing = _spacing(facts, made)
    shapes = facts.shapes * facts.spacings / spacing  # on the planned grid
    shape = np.median(shapes, axis=0).round().astype(int)
    if dims == 2:
        axis = _axis(spacing, made)
        plane = [int(shape[each]) for each in ORDERS[axis][1:]]
        window = [min(side, LARGEST) for side in plane]
        said = f"median slice of the training cases on this grid, {plane[0]}x{plane[1]}"
    else:
        window, said = (
            [int(side) for side in shape],
            "median volume of the training cases on this grid, " + "x".join(map(str, shape)),
        )
    depth = min(DEEPEST[dims], max(1, int(math.log2(max(min(window), 2) / BOTTOM))))
    made.set("model.dims", dims, "slices" if dims == 2 else "boxes")
    made.set("model.depth", depth, f"halvings until the smallest side would be less than {BOTTOM} pixels")
    window = [_multiple(side, 2**depth) for side in window]
    made.set("data.window", window, f"{said}, up to a multiple of {2**depth}")
    made.set("training.batch_size", BATCHES[0], "the least")
    _fit(made, float(shapes.prod(axis=1).sum()), spacing, memory, needs)
    _normalisation(facts, made)
    return made


def _spacing(facts: Facts, made: Plan) -> NDArray[np.float64]:
    """Decides `data.spacing` and returns it."""
    middle = np.median(facts.spacings, axis=0)
    if (np.abs(facts.spacings / middle - 1) < SAME).all():
        made.set("data.spacing", _typed(middle), f"all training cases have {_mm(middle)}; others are resampled")
        return middle
    reason = f"median of the training cases, {_mm(facts.spacings.min(axis=0))} to {_mm(facts.spacings.max(axis=0))}"
    coarse = int(middle.argmax())
    if middle[coarse] > COARSE * middle.min():
        middle[coarse] = np.percentile(facts.spacings[:, coarse], FINER)
        reason += f"; along {AXES[coarse]}, which is coarse, the {FINER}th percentile"
    made.set("data.spacing", _typed(middle), reason)
    return middle


def _typed(spacing: NDArray[np.float64]) -> list[float]:
    """To six digits: no volume is so large that it would have a voxel more or less."""
    return [float(f"{side:.6g}") for side in spacing]


def _axis(spacing: NDArray[np.float64], made: Plan) -> str:
    """Decides across which axis slices lie: the coarsest."""
    coarse = int(spacing.argmax())
    if spacing[coarse] <= spacing.min() * (1 + SAME):
        made.set("data.axis", "z", "spacings are alike, so axial slices")
        return "z"
    made.set("data.axis", AXES[coarse], f"across it slices are farthest apart: {spacing[coarse]:.3g} mm")
    return AXES[coarse]


def _fit(made: Plan, pixels: float, spacing: NDArray[np.float64], memory: float, needs: Callable[[dict[str, Any]], int]) -> None:
    """Decides width, window and batch so that a step fits into the memory; `pixels` are those of all cases on the planned grid."""
    made.set("model.width", WIDTHS[0], f"{round(64 * WIDTHS[0])} channels at the first level")
    unit = 2 ** made.values["model.depth"]
    while needs(made.values) > memory and len(made.values["data.window"]) == 3:
        window = list(made.values["data.window"])
        # The side that is longest in millimetres loses most context of little use.
        axis = int(np.argmax([side * step if side > 2 * unit else 0 for side, step in zip(window, spacing, strict=True)]))
        if window[axis] <= 2 * unit:
            break
        window[axis] -= unit
        made.set("data.window", window, f"as much of the median volume as fits into {size(round(memory))} with batches of two")
    for width in WIDTHS[1:]:
        if needs(made.values) <= memory:
            break
        made.set(
            "model.width", width, f"{round(64 * width)} channels at the first level; more do not fit into {size(round(memory))}"
        )
    if needs(made.values) > memory:
        raise ConfigError(
            f"A training step takes {size(needs(made.values))} with the smallest network, and 'plan.memory' allows "
            f"{size(round(memory))}. Give it more, or plan for slices ('plan.dims=2')."
        )
    share = int(pixels * SHARE / math.prod(made.values["data.window"]))
    batch, most = BATCHES[0], max(BATCHES[0], min(BATCHES[1], share))
    while batch < most and needs({**made.values, "training.batch_size": batch + 1}) <= memory:
        batch += 1
    why = (
        "what fits into the memory"
        if batch < most
        else f"{BATCHES[1]} at most, and no more than {SHARE:.0%} of the training pixels"
    )
    made.set("training.batch_size", batch, why)


def _normalisation(facts: Facts, made: Plan) -> None:
    if facts.whole and np.median(facts.low) < AIR:
        made.set(
            "normalise", "ct", f"values begin at {np.median(facts.low):.0f}, as Hounsfield units do: one scale for all, "
            "clipped to the 0.5th and 99.5th percentile of the foreground",
        )  # fmt: skip
        return
    made.set("normalise", "case", "values have no unit that all cases share: each case is scaled by itself")
    masked = float(np.median(facts.zero))
    said = f"{masked:.0%} of the voxels are 0 in every channel"
    made.set(
        "normalise.keep_zero", masked >= MASKED, "what a mask took away stays 0" if masked >= MASKED else "no mask was applied"
    )
    made.set("normalise.nonzero", masked >= MASKED, said + (": a mask was applied" if masked >= MASKED else ""))


def _multiple(value: int, of: int) -> int:
    return max(of, -(-value // of) * of)


def _mm(spacing: NDArray[np.float64]) -> str:
    return "x".join(f"{side:.3g}" for side in spacing) + " mm (z, y, x)"
