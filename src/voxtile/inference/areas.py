"""Areas of a finished map's classes: of the whole scene, of places of interest, and adjusted for the map's errors."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio.features
from affine import Affine
from numpy.typing import NDArray

from voxtile.cases.area import exchanged_shapes
from voxtile.cases.grid import Grid
from voxtile.cases.longitudes import TURNS
from voxtile.cases.maps import atomic_write
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
        shape: in pixels (x, y) from the scene's corner.
        outside: the share of the polygon that lies outside the scene.
    """

    name: str
    shape: Any
    outside: float

    @property
    def box(self) -> Window:
        """The pixels that the polygon touches, those beside the scene included."""
        left, top, right, bottom = self.shape.bounds
        start = 0, math.floor(top), math.floor(left)
        return Window.of(start, (1, math.ceil(bottom) - start[1], math.ceil(right) - start[2]))


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

    def __init__(self, path: Path, attribute: str | None = None) -> None:
        """Reads the file.

        Args:
            path: a vector file with polygons, in any CRS.
            attribute: whose values name the polygons; numbers from 1 where None.

        Raises:
            DataError: It cannot be read, has no CRS, no polygon, or not this attribute.
        """
        from voxtile.cases.vector_files import read_areas

        if not path.is_file():
            raise DataError(
                f"The file of areas {path.absolute()} does not exist. Name a vector file with 'areas=…', by its whole path or from "
                "the folder in which the command is given, or type 'areas=true'."
            )
        self.path, self._areas = path, read_areas(path, attribute, "area_name")
        self.notes = self._areas.notes
        self._in_system: dict[str, tuple[Any, NDArray[np.int64], Any]] = {}

    def on(self, grid: Grid) -> list[Place]:
        """The places that overlap a scene.

        Args:
            grid: the scene's, with a CRS.

        Raises:
            OffPlacesError: There is none.
        """
        import shapely
        from pyproj import CRS

        assert grid.crs is not None
        parts, owners, tree = self._brought_to(grid.crs)
        # A scene in degrees may lie a turn of the Earth further east or west than its places, or over the antimeridian.
        turns = np.array([(turn, 0) for turn in (TURNS if CRS.from_wkt(grid.crs).is_geographic else (0.0,))])
        left, bottom, right, top = grid.footprint
        near = np.concatenate([tree.query(shapely.box(left - x, bottom, right - x, top)) for x, _ in turns])
        _, height, width = grid.shape
        scene, found = shapely.box(0, 0, width, height), []
        for number in np.unique(owners[near]):
            own = parts[owners == number]
            copies = [
                shapely.transform(own, lambda xy, turn=turn: np.stack(~grid.transform @ (xy + turn).T, axis=1)) for turn in turns
            ]
            shape = shapely.multipolygons(np.concatenate(copies))
            inside, area = shape.intersection(scene).area, shape.area / len(turns)
            name = self._areas.names[number]
            found += [Place(name, shape, max(0.0, round(1 - inside / area, 6)))] if inside > 0 else []
        if not found:
            west, south, east, north = shapely.total_bounds(self._areas.shapes)
            raise OffPlacesError(
                f"No polygon of {self.path} ({west:.6g} … {east:.6g}, {south:.6g} … {north:.6g} in {self._areas.crs.name}) overlaps"
                f" the scene ({left:.6g} … {right:.6g}, {bottom:.6g} … {top:.6g} in its own CRS). Check that they belong together."
                f"{exchanged_shapes(self._areas.shapes, self._areas.crs, grid)}"
            )
        return found

    def _brought_to(self, crs: str) -> tuple[Any, NDArray[np.int64], Any]:
        """The polygons' parts in a scene's system, whose each of them is, and their spatial index; kept for the next scene."""
        if crs not in self._in_system:
            import shapely
            from pyproj import CRS
            from pyproj.exceptions import ProjError

            from voxtile.cases.seam import Seam, brought, way
            from voxtile.cases.vector_files import simple_parts
            from voxtile.cases.vector_grid import unplaced

            parts, owners = simple_parts(self._areas.shapes, np.arange(len(self._areas.shapes)))
            source, target = self._areas.crs, CRS.from_wkt(crs)
            there, index = parts, np.arange(len(parts))
            try:
                if not source.equals(target, ignore_axis_order=True):
                    there, index = brought(parts, source, way(source, target), Seam.of(target))
            except ProjError as error:
                raise DataError(
                    f"{self.path} {unplaced(self._areas.crs, crs)} Write it with the system that its coordinates are in, by "
                    "'ogr2ogr -a_srs EPSG:… areas.gpkg …'."
                ) from error
            there, owners = self._finite(there, owners[index], crs)
            # Only areas count: a line, that of a spike say, would be burnt as pixels.
            parts, index = simple_parts(shapely.make_valid(there, method="structure", keep_collapsed=False), np.arange(len(there)))
            areas, owners = shapely.get_dimensions(parts) == 2, owners[index]
            self._in_system[crs] = (parts[areas], owners[areas], shapely.STRtree(parts[areas]))
        return self._in_system[crs]

    def _finite(self, parts: Any, owners: NDArray[np.int64], crs: str) -> tuple[Any, NDArray[np.int64]]:
        """Without the parts on the other side of the Earth, where a scene's system has no coordinates."""
        import shapely
        from pyproj import CRS

        points, index = shapely.get_coordinates(parts, return_index=True)
        finite = np.isfinite(points).all(axis=1)
        here, lost = (np.bincount(index[chosen], minlength=len(parts)) > 0 for chosen in (finite, ~finite))
        if (here & lost).any():
            name = self._areas.names[owners[here & lost][0]]
            raise DataError(
                f"{self.path}: polygon '{name}' reaches to where the scene's coordinate reference system ({CRS.from_wkt(crs).name})"
                " has no coordinates. Cut it to the area of the scenes, for example with 'ogr2ogr -clipsrc'."
            )
        return parts[here], owners[here]


def area_of(found: FinishedMap, place: Place | None = None) -> Area:
    """Counts and sizes of each class in the whole map, or in the pixels whose centres lie in a place."""
    count = len(found.classes) + 1
    pixels, size = np.zeros(count, dtype=np.int64), np.zeros(count)
    for window in found.slabs(None if place is None else place.box.clipped(found.grid.shape)):
        indices = found.read(window)
        ground = np.broadcast_to(found.sizes(window), indices.shape)
        if place is not None:
            inside = rasterio.features.geometry_mask(
                [place.shape], indices.shape[1:], Affine.translation(window.x, window.y), invert=True
            )[None]
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


def write_areas(found: FinishedMap, path: Path, places: Sequence[Place] = (), confusion: Mapping[str, Any] | None = None) -> None:
    """Writes one row for the whole map and one per place as CSV.

    Columns: `area` (name), `hectares` (of its pixels on the map), `unjudged` (their share that holds no class), `outside` (the
    share of the place that is not on the scene), and per class `pixels/<class>`, `hectares/<class>`. With a confusion matrix, for
    the whole map also `adjusted_hectares/<class>`, `plus_minus_95/<class>` and, in `adjusted_by`, what they rest on.

    Args:
        found: the map of a scene with a CRS.
        path: the file.
        places: polygons of interest.
        confusion: `matrix` (rows by label, columns by prediction) and `source`, where it comes from; None where none is known.
    """
    rows = []
    for place in (None, *places):
        area = area_of(found, place)
        total = area.size.sum()
        row: dict[str, object] = {"area": WHOLE if place is None else place.name, "hectares": f"{total:.9g}"}
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

    def write(making: Path) -> None:
        with making.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    atomic_write(path, write)


def _known(value: float) -> str:
    return f"{value:.9g}" if np.isfinite(value) else ""
