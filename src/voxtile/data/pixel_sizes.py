"""How large pixels were in training, and whether those of another image are: networks know sizes in pixels only."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from voxtile.cases.case import Case
from voxtile.cases.windowing import Windowing
from voxtile.data.symmetry import Symmetry
from voxtile.errors import counted, listed

SQUEEZED = 1.1  # from which factor a quarter turn shows things in another shape
FACTOR = 1.5  # from which sizes are unlike: the default augmentation shows things up to 1.25 times as large, or as small


def pixel_sizes(cases: Sequence[Case], scales: Sequence[float] | None = None) -> dict[str, Any] | None:
    """Smallest and largest distance between pixels along (z, y, x) on the working grids of the training cases, and its unit.

    None where cases have none in common.

    Args:
        cases: the training cases.
        scales: `data.sampling.scales`, the multiples of these at which samples were drawn.
    """
    units = {case.grid.unit for case in cases}
    if units not in ({"mm"}, {"m"}):
        return None
    low, high = scales or (1.0, 1.0)
    smallest, largest = ([pick(sides) for sides in zip(*(case.grid.spacing for case in cases), strict=True)] for pick in (min, max))
    return {"unit": units.pop(), "smallest": [low * side for side in smallest], "largest": [high * side for side in largest]}


def unlike(known: Mapping[str, Any] | None, case: Case, windowing: Windowing) -> str:
    """What is to be said of a case whose pixels are of other sizes than in training; "" of others.

    Args:
        known: what `pixel_sizes` returned; None where nothing is known.
        case: the case, on its working grid.
        windowing: what networks see of it: of single slices, not how far they lie apart.
    """
    if known is None or not _is_unlike(known, case, windowing):
        return ""
    own, smallest, largest = (_seen(sides, windowing) for sides in (case.grid.spacing, known["smallest"], known["largest"]))
    theirs = _sides(smallest) if _sides(smallest) == _sides(largest) else f"{_sides(smallest)} to {_sides(largest)}"
    if known["unit"] == "mm":
        what, remedy = "voxels", "'data.spacing=median', which brings all volumes to one spacing"
        axes = _axes(windowing)
    else:
        what, axes = "pixels", ""
        remedy = f"'data.scene.resolution={smallest[-1]:.4g}', which brings all scenes to one resolution"
    return (
        f"its {what} measure {_sides(own)} {known['unit']}{axes}, and in training they measured {theirs}. A network knows sizes in "
        f"{what} only, so this map may be poor: resample the image, or train with {remedy}."
    )


def mixed(train: Sequence[Case], others: Sequence[Case], windowing: Windowing, scales: Sequence[float] | None = None) -> list[str]:
    """What is to be said of cases whose pixels are of other sizes than those of most training cases.

    Args:
        train: the training cases, on their working grids.
        others: the validation cases.
        windowing: see `unlike`.
        scales: see `pixel_sizes`.
    """
    if (unit := (pixel_sizes(train) or {}).get("unit")) is None:
        return []
    low, high = scales or (1.0, 1.0)
    usual = [statistics.median(sides) for sides in zip(*(case.grid.spacing for case in train), strict=True)]
    known = {"unit": unit, "smallest": [low * side for side in usual], "largest": [high * side for side in usual]}
    strange = [case for case in (*train, *others) if _is_unlike(known, case, windowing)]
    if not strange:
        return []
    if unit == "mm":
        what, axes, remedy = "voxels", _axes(windowing), "all volumes to one spacing with 'data.spacing=median'"
    else:  # along y, where a degree is as long everywhere
        what, axes, remedy = "pixels", "", f"all scenes to one resolution with 'data.scene.resolution={usual[1]:.4g}'"
    told = (f"{case.id} ({_sides(_seen(case.grid.spacing, windowing))} {unit})" for case in strange)
    return [
        f"{what} of {counted(len(strange), 'training or validation case')} are of another size than those of the median training "
        f"case, {_sides(_seen(usual, windowing))} {unit}{axes}: {listed(told, 4)}. A network knows sizes in {what} only; bring "
        f"{remedy}"
    ]


def squeezed(cases: Sequence[Case], symmetry: Symmetry) -> list[str]:
    """What is to be said of training cases in which quarter turns show things in another shape, since pixels are not square."""
    factors = {case.id: max(case.grid.spacing[1:]) / min(case.grid.spacing[1:]) for case in cases}
    worst = max(cases, key=lambda case: factors[case.id])
    if not symmetry.rot90 or factors[worst.id] < SQUEEZED:
        return []
    many, unit, sides = sum(factor >= SQUEEZED for factor in factors.values()), worst.grid.unit, worst.grid.spacing[1:]
    remedy = f"'data.scene.resolution={max(sides):.4g}'" if unit == "m" else "sides of one length in 'data.spacing'"
    return [
        f"pixels of {counted(many, 'training case')} are not square, such as those of {worst.id}, {_sides(sides)} {unit} (y, x): "
        f"quarter turns ('data.symmetry.rot90=true') show things there squeezed {factors[worst.id]:.2g} times, as no map will have "
        f"them; make pixels square, with {remedy}, or type 'data.symmetry.rot90=false'"
    ]


def _is_unlike(known: Mapping[str, Any], case: Case, windowing: Windowing) -> bool:
    """Whether a case's pixels are of other sizes than `known`, see `pixel_sizes`; False where its unit is another one."""
    own, smallest, largest = (_seen(sides, windowing) for sides in (case.grid.spacing, known["smallest"], known["largest"]))
    alike = all(low / FACTOR < side < high * FACTOR for side, low, high in zip(own, smallest, largest, strict=True))
    return case.grid.unit == known["unit"] and not alike


def _seen(sides: Sequence[float], windowing: Windowing) -> list[float]:
    """Those of the distances between pixels along (z, y, x) that networks see."""
    return list(sides)[0 if len(windowing.size) == 3 or windowing.neighbours else 1 :]


def _axes(windowing: Windowing) -> str:
    """What `_seen` distances of a volume are."""
    if len(windowing.size) == 3:
        return " (z, y, x)"
    return " (from slice to slice, then within one)" if windowing.neighbours else " in a slice"


def _sides(sides: Sequence[float]) -> str:
    return "x".join(f"{side:.3g}" for side in sides)
