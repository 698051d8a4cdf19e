"""Labels that are vector files, burnt into the grid of their scene window by window."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj.exceptions import ProjError

from voxtile.cases.area import exchanged_shapes
from voxtile.cases.burn import Placed, near_change
from voxtile.cases.case import Source
from voxtile.cases.grid import Grid
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.shared import Shared
from voxtile.cases.vector_files import Shapes, files_of, read_shapes, stamps_of
from voxtile.cases.vector_grid import SceneGrid, unplaced
from voxtile.cases.vector_settings import Stored, VectorSettings
from voxtile.cases.window import Window
from voxtile.errors import DataError, listed

VERSION = 2  # of how shapes are burnt: part of the key under which what was read is kept
_MOST_POINTS = 50_000_000  # vertices kept in memory in pixels of scenes, 8 bytes each and some 200 for each polygon
# With the stored values, so that the file itself is needed no more.
_PLACED: Shared[tuple[Placed, tuple[Stored, ...]]] = Shared(_MOST_POINTS, lambda kept: len(kept[0].points))


class VectorLabel(Source):
    """Shapes of a vector file on the grid of a scene; `VectorSettings` says what they mean.

    The file is read once per process and shared by all its scenes. Its shapes near a scene are brought to the scene's pixels
    once, at the first read, with vertices at the nearest 1/256 pixel; a window is the same pixels as the whole. An instance
    holds paths and settings only.
    """

    def __init__(self, path: Path, onto: Source, settings: VectorSettings, named: Collection[int]) -> None:
        """Reads the file and looks whether it and the scene belong together.

        Args:
            path: the vector file.
            onto: the scene.
            settings: what its shapes mean.
            named: stored values that the configuration gives a class.

        Raises:
            DataError: The scene has no coordinate reference system, the file cannot be read, the two do not overlap, or the
                file's own values are not known.
            ConfigError: The settings use values that the configuration does not know.
        """
        settings.check_labels(named)
        if onto.stored.crs is None:
            raise DataError(
                f"{onto.path} has no coordinate reference system, so the shapes of {path} cannot be placed on it. Give it one, for "
                "example with 'gdal_edit.py -a_srs EPSG:…'."
            )
        self.paths, self.channels, self.dtype = files_of(path), ("label",), np.result_type(*map(np.min_scalar_type, named))
        self.stored, self.canonical, self.working = onto.stored, onto.canonical, onto.working
        self.key = repr((VERSION, settings))
        self._onto, self._settings, self._stamps = onto, settings, stamps_of(path)
        shapes = self._shapes()
        if settings.attribute is None and 1 not in named:
            raise DataError(
                f"Without an attribute every shape of {path} is 1, which 'data.labels' does not know: it maps "
                f"{listed(sorted(named))}. Name the attribute whose value says the class: 'data.vectors.attribute=…'."
            )
        if unknown := [value for value in shapes.stored[1:] if value is not None and value not in named]:
            raise DataError(
                f"{path}: the attribute '{settings.attribute}' holds {listed(unknown)}, which 'data.labels' does not know: it maps "
                f"{listed(sorted(named))}. Add them there, where they are not to be judged as '{unknown[0]}: ignore', or give the "
                "attribute's values other ones with 'data.vectors.values'."
            )
        self._check_overlap(shapes)

    def _shapes(self) -> Shapes:
        return read_shapes(self.path, self._settings, self._stamps)

    def _on(self, grid: Grid, shapes: Shapes) -> SceneGrid:
        try:
            return SceneGrid(grid, shapes.crs, self._settings.buffer, self._settings.border)
        except ProjError as error:
            assert grid.crs is not None
            raise DataError(
                f"{self.path}, the label of {self._onto.path}, {unplaced(shapes.crs, grid.crs)} Type the one that the "
                "coordinates of the shapes are in, 'data.vectors.crs=EPSG:…', or give the scene its own, by 'gdal_edit.py -a_srs "
                "EPSG:…'."
            ) from error

    def _placed(self) -> tuple[Placed, tuple[Stored, ...]]:
        """The polygons, and the stored values that their codes stand for."""

        def place() -> tuple[Placed, tuple[Stored, ...]]:
            shapes = self._shapes()
            return self._on(self.working, shapes).place(shapes, str(self.path)), shapes.stored

        return _PLACED.get((self._stamps, self._settings, self.working), place)

    def _check_overlap(self, shapes: Shapes) -> None:
        boxes = self._on(self.canonical, shapes).boxes  # of the whole scene: in an area of interest there may be no shape
        if boxes is None or not len(shapes.parts):
            return
        left, bottom, right, top = shapes.bounds
        if not any(left <= box[2] and right >= box[0] and bottom <= box[3] and top >= box[1] for box in boxes):
            a, b, c, d = boxes[len(boxes) // 2]
            hint = exchanged_shapes(shapes.parts, shapes.crs, self.canonical) or (
                " Check that they belong together, or name the system that the file's coordinates are really in with "
                "'data.vectors.crs=EPSG:…'."
            )
            raise DataError(
                f"The shapes of {self.path} cover {left:.6g} … {right:.6g}, {bottom:.6g} … {top:.6g} and the scene "
                f"{self._onto.path} {a:.6g} … {c:.6g}, {b:.6g} … {d:.6g} in the file's system ({shapes.crs.name}): they do not "
                f"overlap.{hint}"
            )

    def read(self, window: Window, channels: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Source.read`; pixels that hold no data are those that are not to be judged."""
        settings, reach = self._settings, int(self._settings.border)
        placed, stored = self._placed()
        codes = placed.burnt(window.grown((0, reach, reach)), settings.all_touched)
        inner = (slice(reach, reach + window.height), slice(reach, reach + window.width))
        valid = np.ones(window.size, dtype=np.bool_)
        if reach:
            valid[0] = ~near_change(codes, settings.border)[inner]
        if None in stored:
            valid[0] &= np.array([value is not None for value in stored]).take(codes[inner])
        values = np.array([value or 0 for value in stored], dtype=self.dtype)
        return values.take(codes[inner])[None, None], valid

    def anchors(self, box: Window) -> NDArray[np.int32]:
        """(z, y, x) of one pixel inside each shape that reaches into a box and is to be judged, in the file's order [n, 3]."""
        placed, stored = self._placed()
        return placed.anchors(box, np.array([value is not None for value in stored]))

    def notes(self) -> list[str]:
        """See `Source.notes`."""
        shapes, notes = self._shapes(), []
        if not len(self._placed()[0].near(Window.whole(self.working.shape))):
            outside = "nothing of it is judged" if self._settings.outside is None else f"all of it is {self._settings.outside}"
            notes.append(f"no shape of {self.path} lies on {self._onto.path}: {outside}")
        return [*shapes.notes, *notes]

    def open_map(self, path: Path, spec: MapSpec) -> MapWriter:
        """See `Source.open_map`."""
        return self._onto.open_map(path, spec)

    def map_name(self, stem: str, spec: MapSpec) -> str:
        """See `Source.map_name`."""
        return self._onto.map_name(stem, spec)
