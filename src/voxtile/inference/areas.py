"""Areas of a finished map's classes: of the whole scene, of places of interest, and adjusted for the map's errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.area import exchanged_shapes
from voxtile.cases.csv_table import atomic_csv
from voxtile.cases.grid import Grid
from voxtile.cases.window import Window
from voxtile.errors import DataError
from voxtile.inference.finished import FinishedMap

WHOLE = "(all)"  # the name of the row for the whole map
CONFIDENCE = 1.96  # standard errors on each side of a 95 % interval


@dataclass(frozen=True)
class Place:
    """A polygon of interest on a scene.

    Attributes:
        name: what tells it from the others.
        outside: the share of the polygon's ground that lies outside the scene; 1 for a polygon beside it.
        inside: which pixels [h, w] of a window of the scene have their centres in it.
        box: a part of the scene that holds all of these pixels; None where there are none.
    """

    name: str
    outside: float
    inside: Callable[[Window], NDArray[np.bool_]]
    box: Window | None


class Area(NamedTuple):
    """What a part of a map holds: pixels and size [K + 1], in the unit of `FinishedMap.measure`; unjudged ones come last."""

    pixels: NDArray[np.int64]
    size: NDArray[np.float64]


class Adjusted(NamedTuple):
    """Areas per class adjusted for the errors of a map, and half their 95 % confidence intervals [K]; NaN where undefined."""

    size: NDArray[np.float64]
    margin: NDArray[np.float64]


class OffPlacesError(DataError):
    """A scene that no place of interest overlaps."""


class Places:
    """The places of interest of a file, read once and laid on any number of scenes.

    Attributes:
        path: the file.
        notes: what was odd in it, one sentence each.
    """

    def __init__(self, path: Path, attribute: str | None = None, layer: str | None = None) -> None:
        """Reads the file.

        Args:
            path: a vector file with polygons, in any CRS.
            attribute: whose values name the polygons; those without a value, all where None, are called by their number from 1.
            layer: the layer of a file that has several.

        Raises:
            DataError: It cannot be read, has no CRS, no polygon, or not this attribute or layer.
        """
        from voxtile.cases.vector_files import read_areas

        if not path.is_file():
            raise DataError(
                f"The file of areas {path.absolute()} does not exist. Name a vector file with 'areas=…', by its whole path or from "
                "the folder in which the command is given, or type 'areas=true'."
            )
        self.path, self._areas = path, read_areas(path, attribute, "area_name", layer, "areas_layer")
        self.notes = self._areas.notes

    @cached_property
    def _folded(self) -> NDArray[np.object_]:
        from voxtile.inference.inside import folded

        return folded(self._areas.shapes, self._areas.crs)

    def on(self, grid: Grid) -> list[Place]:
        """All places on a scene, also those beside it.

        Args:
            grid: the scene's, with a CRS.

        Raises:
            DataError: There is no way between their system and the scene's.
            OffPlacesError: It overlaps none.
        """
        import shapely
        from pyproj.exceptions import ProjError

        from voxtile.cases.vector_grid import unplaced
        from voxtile.inference.inside import SceneCells

        try:
            cells = SceneCells(grid, self._areas.crs)
        except ProjError as error:
            raise DataError(
                f"{self.path} {unplaced(self._areas.crs, str(grid.crs))} Write it with the system that its coordinates are in, by "
                "'ogr2ogr -a_srs EPSG:… areas.gpkg …'."
            ) from error
        found = []
        for name, whole, shape in zip(self._areas.names, self._areas.shapes, self._folded, strict=True):
            near = cells.near(shape)
            share = cells.share(shape, whole, near)
            found.append(
                Place(name, round(1 - share, 6), partial(cells.inside, shape, near), cells.box(shape, near) if share else None)
            )
        if all(place.box is None for place in found):
            west, south, east, north = shapely.total_bounds(self._areas.shapes)
            left, bottom, right, top = grid.footprint
            raise OffPlacesError(
                f"No polygon of {self.path} ({west:.6g} … {east:.6g}, {south:.6g} … {north:.6g} in {self._areas.crs.name}) overlaps"
                f" the scene ({left:.6g} … {right:.6g}, {bottom:.6g} … {top:.6g} in its own CRS). Check that they belong together."
                f"{exchanged_shapes(self._areas.shapes, self._areas.crs, grid)}"
            )
        return found


def area_of(found: FinishedMap, place: Place | None = None) -> Area:
    """Counts and sizes of each class in the whole map, or in the pixels whose centres lie in a place."""
    count = len(found.classes) + 1
    pixels, size = np.zeros(count, dtype=np.int64), np.zeros(count)
    box = Window.whole(found.grid.shape) if place is None else place.box
    for window in found.slabs(box) if box is not None else ():
        indices = found.read(window)
        ground = np.broadcast_to(found.sizes(window), indices.shape)
        if place is not None:
            inside = place.inside(window)[None]
            indices, ground = indices[inside], ground[inside]
        flat = np.minimum(indices.ravel(), count - 1)
        pixels += np.bincount(flat, minlength=count)
        size += np.bincount(flat, ground.ravel(), count)
    return Area(pixels, size)


def adjusted(size: NDArray[np.float64], confusion: NDArray[np.int64]) -> Adjusted:
    """Areas adjusted for the errors of a map: Olofsson et al. 2014, "Good practices for estimating area and assessing accuracy of
    land change", Remote Sensing of Environment 148, equations 9 to 11.

    They hold where the pixels of the confusion matrix are a random sample of the map, drawn within each mapped class.

    Args:
        size: mapped area of each class [K].
        confusion: [K, K], rows by reference (label) class, columns by mapped (predicted) class.
    """  # noqa: D205  # the title of the paper
    sample = confusion.T.astype(np.float64)  # the paper's: rows by mapped class
    drawn = sample.sum(axis=1)
    weight = size / size.sum() if size.sum() > 0 else np.zeros(len(size))
    mapped = weight > 0  # a class that is not on the map weighs nothing, whether it was sampled or not
    with np.errstate(divide="ignore", invalid="ignore"):
        share = sample[mapped] / drawn[mapped, None]
        variance = (weight[mapped, None] ** 2 * share * (1 - share) / (drawn[mapped, None] - 1)).sum(axis=0)
        proportion = (weight[mapped, None] * share).sum(axis=0)
    return Adjusted(size.sum() * proportion, CONFIDENCE * size.sum() * np.sqrt(variance))


def write_areas(
    found: FinishedMap, path: Path, case: str, places: Sequence[Place] = (), confusion: Mapping[str, Any] | None = None
) -> None:  # fmt: skip
    """Writes one row for the whole map and one per place as CSV.

    Columns: `case`, `area` (name), `hectares` (of its pixels on the map), `unjudged` (their share that holds no class),
    `outside` (the share of the place's ground that is not on the scene), and per class `pixels/<class>`, `hectares/<class>`.
    With a confusion matrix, for the whole map also `adjusted_hectares/<class>`, `plus_minus_95/<class>` and, in `adjusted_by`,
    what they rest on.

    Args:
        found: the map of a scene with a CRS.
        path: the file.
        case: the case's id, which each row begins with, so that the tables of many cases can be put together.
        places: polygons of interest.
        confusion: `matrix` (rows by label, columns by prediction) and `source`, where it comes from; None where none is known.
    """
    rows = []
    for place in (None, *places):
        area = area_of(found, place)
        total = area.size.sum()
        row: dict[str, object] = {"case": case, "area": WHOLE if place is None else place.name, "hectares": f"{total:.9g}"}
        row["unjudged"] = f"{area.size[-1] / total:.6g}" if total > 0 else ""
        row["outside"] = f"{0 if place is None else place.outside:g}"
        for index, name in enumerate(found.classes):
            row |= {f"pixels/{name}": int(area.pixels[index]), f"hectares/{name}": f"{area.size[index]:.9g}"}
        if confusion is not None and place is None:
            estimate = adjusted(area.size[:-1], np.asarray(confusion["matrix"]))
            for name, size, margin in zip(found.classes, *estimate, strict=True):
                row |= {f"adjusted_hectares/{name}": _known(size), f"plus_minus_95/{name}": _known(margin)}
            row["adjusted_by"] = f"{confusion['source']}, as if its pixels were a stratified random sample of this map"
        rows.append(row)

    atomic_csv(path, list(rows[0]), rows)


def _known(value: float) -> str:
    return f"{value:.9g}" if np.isfinite(value) else ""
