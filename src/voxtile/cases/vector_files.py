"""Reading vector files: GeoJSON, GeoPackage, Shapefile and GeoParquet, as shapes with their label values or as areas."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet
import pyogrio
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError

from voxtile.cases.cache import Stamp, stamp_of
from voxtile.cases.shared import Shared
from voxtile.cases.vector_settings import REST, Stored, VectorSettings, as_text
from voxtile.errors import ConfigError, DataError, counted, did_you_mean, listed, reason

# How a file of each kind begins, and the one of GDAL's drivers that may read it: by its content alone a text file could tell GDAL
# to open other files or addresses.
_KINDS = {
    ".geojson": (b"{", "GeoJSON"),
    ".json": (b"{", "GeoJSON"),
    ".gpkg": (b"SQLite format 3\0", "GPKG"),
    ".shp": (b"\x00\x00\x27\x0a", "ESRI Shapefile"),
    ".parquet": (b"PAR1", "Parquet"),
}
_SIDE_FILES = (".shx", ".dbf", ".prj", ".cpg")  # of a Shapefile
Stamps = tuple[tuple[Path, Stamp], ...]
_TYPABLE = re.compile(r"[\w/+.%@?|*-]+(?: +[\w/+.%@?|*-]+)*", re.ASCII)  # keys that Hydra's grammar has: quoted ones it has not
_NAMED = 3  # shapes that a note or an error names
_MOST_POINTS = 20_000_000  # vertices of the files kept in memory; a million small polygons have 7 million and take 0.7 GB


@dataclass(frozen=True)
class Shapes:
    """The shapes of a file, cut into simple parts: points, lines and polygons.

    Attributes:
        parts: the parts as shapely geometries [m], x before y.
        features: for each part, the number in the file of the shape that it is a part of, from 0 [m].
        codes: for each part, the place of its value in `stored` [m].
        stored: stored label values in the order in which they are burnt; the first is that of what no shape covers.
        crs: the coordinate reference system of the parts.
        bounds: (left, bottom, right, top) of all of them; NaN where there are none.
        tree: their spatial index.
        notes: what was odd, one sentence each.
    """

    parts: NDArray[np.object_]
    features: NDArray[np.int64]
    codes: NDArray[np.uint16]
    stored: tuple[Stored, ...]
    crs: CRS
    bounds: tuple[float, float, float, float]
    tree: shapely.STRtree
    notes: tuple[str, ...]

    @property
    def points(self) -> int:
        """How many vertices the parts have."""
        return int(shapely.get_num_coordinates(self.parts).sum())


@dataclass(frozen=True)
class Areas:
    """The polygons of a file, made valid.

    Attributes:
        shapes: multipolygons [n].
        names: what the file calls each of them, or its number in it from 1, n of them.
        crs: their coordinate reference system.
        notes: what was odd, one sentence each.
    """

    shapes: NDArray[np.object_]
    names: tuple[str, ...]
    crs: CRS
    notes: tuple[str, ...]

    @cached_property
    def outlines(self) -> Shapes:
        """The same as the shapes of a label, each of them of the value 1."""
        parts, features = simple_parts(self.shapes, np.arange(len(self.shapes)))
        codes = np.ones(len(parts), dtype=np.uint16)
        left, bottom, right, top = shapely.total_bounds(parts).tolist()
        return Shapes(parts, features, codes, (0, 1), self.crs, (left, bottom, right, top), shapely.STRtree(parts), self.notes)


_FILES: Shared[Shapes] = Shared(_MOST_POINTS, lambda shapes: shapes.points)


def files_of(path: Path) -> tuple[Path, ...]:
    """The file, and those beside it that belong to it."""
    beside = [path.with_suffix(suffix) for suffix in _SIDE_FILES] if path.suffix.lower() == ".shp" else []
    return (path, *(each for each in beside if each.is_file()))


def stamps_of(path: Path) -> Stamps:
    """Which files belong to it, and when and how large they were written.

    Raises:
        DataError: The file is not there.
    """
    try:
        return tuple((each, stamp_of(each)) for each in files_of(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}. Expected a vector file there.") from error


def read_shapes(path: Path, settings: VectorSettings, stamps: Stamps) -> Shapes:
    """The shapes of a file, read once per process.

    Args:
        path: the file.
        settings: what its shapes mean.
        stamps: see `stamps_of`; what was read before is used again for the same ones.

    Raises:
        DataError: The file cannot be read, or does not hold what the settings say.
        ConfigError: The settings name a coordinate reference system that does not exist.
    """
    return _FILES.get((stamps, settings), partial(_read, path, settings))


def _read(path: Path, settings: VectorSettings) -> Shapes:
    frame = _frame(path, settings.layer, settings.attribute, "data.vectors.attribute", "data.vectors.layer")
    crs = _crs(path, settings, frame.crs)
    shapes = _flat(frame)
    notes = []
    missing = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    if missing.all() and not settings.empty:
        found = "holds no shape" if not len(shapes) else f"holds {counted(len(shapes), 'feature')} without a geometry"
        raise DataError(
            f"{path} {found}. Expected shapes; where a file without any stands for a scene without any, type "
            "'data.vectors.empty=true'."
        )
    if missing.any():
        notes.append(f"{path}: {missing.sum()} of {counted(len(shapes), 'feature')} without a geometry left out")
    shapes, odd = _repaired(path, shapes, settings.repair, thin=settings.buffer > 0)
    notes += odd
    column = None if settings.attribute is None else frame[settings.attribute][~missing] if len(frame) else pd.Series(dtype=object)
    numbers, stored = _values(path, settings, column)
    codes = np.zeros(len(shapes), dtype=np.uint16)
    codes[~missing] = numbers
    parts, features = simple_parts(shapes, np.arange(len(shapes)))
    thin = shapely.get_dimensions(parts) < 2
    if thin.any() and not settings.buffer:
        raise DataError(
            f"{path} holds points or lines, which cover no pixel ({thin.sum()}; the first is shape {features[thin][0] + 1}). Give "
            "them a width: type 'data.vectors.buffer=<metres>', which grows every shape of the file."
        )
    bounds = left, bottom, right, top = shapely.total_bounds(parts).tolist() if len(parts) else [math.nan] * 4
    _check_degrees(path, crs, bounds, "Type the system that they are in: 'data.vectors.crs=EPSG:…'.")
    return Shapes(parts, features, codes[features], stored, crs, (left, bottom, right, top), shapely.STRtree(parts), tuple(notes))


def read_areas(
    path: Path, attribute: str | None = None, said: str = "", layer: str | None = None, layer_said: str = ""
) -> Areas:  # fmt: skip
    """The areas that a file holds: its polygons, without points and lines; those that cross themselves are made valid.

    Args:
        path: the file.
        attribute: whose values name the areas; those without a value, all where None, are called by their number.
        said: the setting that names the attribute, for messages.
        layer: the layer of a file that has several.
        layer_said: the setting that names it; "" where there is none.

    Raises:
        DataError: The file cannot be read, says not in which system it is, or holds no polygon.
    """
    frame = _frame(path, layer, attribute, said, layer_said)
    if frame.crs is None:
        raise DataError(
            f"{path} names no coordinate reference system, so it is unknown where its polygons lie. Write it with one, for example "
            "by 'ogr2ogr -a_srs EPSG:4326 areas.gpkg …'."
        )
    shapes, notes = _repaired(path, _flat(frame), True, thin=False)
    parts, features = simple_parts(shapes, np.arange(len(shapes)))
    areas = shapely.get_dimensions(parts) == 2
    parts, features = parts[areas], features[areas]
    if not len(parts):
        raise DataError(f"{path} holds no polygons. Expected areas; points and lines cover none.")
    crs = CRS.from_user_input(frame.crs)
    _check_degrees(
        path,
        crs,
        shapely.total_bounds(parts).tolist(),
        "Write it with the system that they are in, by 'ogr2ogr -a_srs EPSG:… areas.gpkg …'.",
    )
    found = np.unique(features)
    if len(rest := np.setdiff1d(np.flatnonzero(~shapely.is_empty(shapes) & ~shapely.is_missing(shapes)), found)):
        notes.append(f"{path}: {counted(len(rest), 'shape')} without an area (points or lines) left out")
    whole = shapely.multipolygons(parts, indices=np.searchsorted(found, features))
    names = [str(number + 1) for number in found]
    if attribute is not None:
        column = frame[attribute].iloc[found]
        known = zip(names, map(as_text, column), column.isna(), strict=True)
        names = [number if missing or not name.strip() else name for number, name, missing in known]
    return Areas(whole, tuple(names), crs, tuple(notes))


def _flat(frame: geopandas.GeoDataFrame) -> NDArray[np.object_]:
    """The shapes without heights."""
    shapes = np.asarray(frame.geometry.to_numpy(), dtype=object)
    return shapely.force_2d(shapes) if shapely.has_z(shapes).any() else shapes


def _check_degrees(path: Path, crs: CRS, bounds: Sequence[float], remedy: str) -> None:
    left, bottom, right, top = bounds
    if crs.is_geographic and (left < -540 or right > 540 or bottom < -90.01 or top > 90.01):
        raise DataError(
            f"{path} is said to be in degrees ({crs.name}), but its shapes reach from {left:.6g} to {right:.6g} and from "
            f"{bottom:.6g} to {top:.6g}. {remedy}"
        )


def simple_parts(shapes: NDArray[np.object_], owners: NDArray[np.int64]) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Collections taken apart, however deep, and empty parts left out; `owners` follow."""
    while (shapely.get_type_id(shapes) >= 4).any():  # multi-part types and collections
        shapes, index = shapely.get_parts(shapes, return_index=True)
        owners = owners[index]
    kept = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    return shapes[kept], owners[kept]


def _frame(path: Path, layer: str | None, attribute: str | None, said: str, layer_said: str) -> geopandas.GeoDataFrame:
    """The file's shapes as they are, with one attribute, which the setting `said` names, of the layer that `layer_said` names.

    Raises:
        DataError: The file cannot be read, or has not this layer or attribute.
    """
    if path.suffix.lower() not in _KINDS:
        raise DataError(f"{path} ends like no vector file that is read here. Expected one of {listed(_KINDS)}.")
    start, driver = _KINDS[path.suffix.lower()]
    if ";" in path.name and driver != "Parquet":  # pyogrio takes what follows it for parameters of an address
        raise DataError(f"{path} has a semicolon in its name, with which vector files cannot be read. Give it another name.")
    try:
        with path.open("rb") as file:
            head = file.read(1024)
        if not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(start):
            raise ValueError("it does not begin as such a file does")
        if driver == "ESRI Shapefile" and (wanted := 2 * int(struct.unpack(">i", head[24:28])[0])) > path.stat().st_size:
            raise ValueError(f"it should have {wanted} bytes and has {path.stat().st_size}; it was cut off")
        if driver == "Parquet":
            _layer(path, layer, [], layer_said)
            return _parquet(path, attribute, said)
        layer = _layer(path, layer, [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None], layer_said)
        info = pyogrio.read_info(path, layer=layer)
        if info["driver"] != driver:
            raise ValueError(f"it is {info['driver']}")
        if info["features"] == 0:  # a layer without features may have lost its attributes: GeoJSON writes them with each
            attribute = None
        _check_attribute(path, attribute, said, info["fields"])
        columns = [] if attribute is None else [attribute]
        frame = pyogrio.read_dataframe(path, layer=layer, columns=columns, use_arrow=True)
        if 0 <= info["features"] != len(frame):
            raise ValueError(f"it should hold {info['features']} features, and {len(frame)} could be read")
        if attribute is not None:
            frame[attribute].to_numpy()  # texts in another encoding are only found here
        return frame
    except pyarrow.lib.ArrowException as error:
        if driver != "ESRI Shapefile" or attribute is None or isinstance(error, ValueError):
            raise DataError(f"{path} cannot be read as {driver}: {reason(error)}. Expected an intact vector file.") from error
        code = path.with_suffix(".cpg")
        raise DataError(
            f"The texts of the attribute '{attribute}' of {path} cannot be read: they are not in UTF-8, and {code.name} beside it "
            f"{'says something else' if code.is_file() else 'is not there to say in what'}. Name their encoding in that file, by "
            f"'echo CP1252 > {code}' for those of Windows in western Europe."
        ) from error
    except (
        OSError,
        ValueError,
        RuntimeError,
        LookupError,
        TypeError,
        AttributeError,
        struct.error,
        shapely.errors.ShapelyError,
    ) as error:
        raise DataError(f"{path} cannot be read as {driver}: {reason(error)}. Expected an intact vector file.") from error


def _parquet(path: Path, attribute: str | None, said: str) -> geopandas.GeoDataFrame:
    schema = pyarrow.parquet.read_schema(path)
    geometry = json.loads((schema.metadata or {}).get(b"geo", b"{}")).get("primary_column")
    if not pyarrow.parquet.read_metadata(path).num_rows:
        attribute = None
    _check_attribute(path, attribute, said, [name for name in schema.names if name != geometry])
    wanted = [name for name in (attribute, geometry) if name is not None]
    return geopandas.read_parquet(path, columns=wanted if geometry is not None else None)


def _layer(path: Path, layer: str | None, names: Sequence[str], said: str) -> str | None:
    if layer is None and len(names) > 1:
        which = (
            f"Type which one is meant: '{said}={names[0]}'."
            if said
            else f"Write the one that is meant into a file of its own, with 'ogr2ogr areas.gpkg {path.name} {names[0]}'."
        )
        raise DataError(f"{path} has several layers: {listed(names, 20)}. {which}")
    if layer is not None and layer not in names:
        has = f"it has {listed(names, 20)}" if names else "it has none"
        raise DataError(f"{path} has no layer '{layer}' ('{said}'); {has}.{did_you_mean(layer, names)}")
    return layer


def _check_attribute(path: Path, attribute: str | None, said: str, names: Sequence[str]) -> None:
    if attribute is not None and attribute not in names:
        raise DataError(
            f"{path} has no attribute '{attribute}' ('{said}'); it has {listed(names, 20) or 'none'}."
            f"{did_you_mean(attribute, names)}"
        )


def _crs(path: Path, settings: VectorSettings, own: Any) -> CRS:
    if settings.crs is not None:
        try:
            return CRS.from_user_input(settings.crs)
        except CRSError as error:
            raise ConfigError(
                f"'data.vectors.crs={settings.crs}' is no coordinate reference system. Expected one like 'EPSG:4326'."
            ) from error
    if own is None:
        raise DataError(
            f"{path} names no coordinate reference system. Type the one that its coordinates are in, 'data.vectors.crs=EPSG:…'; "
            "'data.vectors.crs=EPSG:4326' for longitude and latitude."
        )
    return CRS.from_user_input(own)


def _repaired(path: Path, shapes: NDArray[np.object_], repair: bool, thin: bool) -> tuple[NDArray[np.object_], list[str]]:
    """The shapes with invalid polygons made valid, and a sentence on them.

    Args:
        path: the file, for messages.
        shapes: its shapes.
        repair: whether invalid polygons are made valid instead of refused.
        thin: whether the lines and points in a collection with such a polygon count.
    """
    bad = np.flatnonzero(~shapely.is_valid(shapes) & ~shapely.is_missing(shapes))
    wrong = [index for index in bad if not np.isfinite(shapely.get_coordinates(shapes[index])).all()]
    if wrong:
        raise DataError(f"{path}: shape {wrong[0] + 1} has coordinates that are no numbers. Correct or delete it.")
    bad = bad[shapely.get_dimensions(shapes[bad]) == 2]
    if not len(bad):
        return shapes, []
    examples = "; ".join(f"shape {index + 1}: {shapely.is_valid_reason(shapes[index])}" for index in bad[:_NAMED])
    what = f"{path} holds {counted(len(bad), 'invalid polygon')} ({examples})"
    if not repair:
        raise DataError(
            f"{what}. Correct what crosses itself, or type 'data.vectors.repair=true' to have such polygons made valid."
        )
    shapes = shapes.copy()
    # Parts that overlap are one area, as where GDAL burns them; by "linework" what they share would be a hole.
    for index, mended in zip(bad, shapely.make_valid(shapes[bad], method="structure", keep_collapsed=False), strict=True):
        pieces = _pieces(mended)
        shapes[index], before = shapely.multipolygons(pieces[shapely.get_dimensions(pieces) == 2]), _pieces(shapes[index])
        if thin and len(rest := before[shapely.get_dimensions(before) < 2]):
            shapes[index] = shapely.geometrycollections([shapes[index], *rest])
    return shapes, [f"{what}, used as made valid"]


def _pieces(shape: object) -> NDArray[np.object_]:
    """The simple parts of one shape."""
    return simple_parts(np.array([shape], dtype=object), np.zeros(1, dtype=np.int64))[0]


def _values(path: Path, settings: VectorSettings, column: Any) -> tuple[NDArray[np.uint16], tuple[Stored, ...]]:
    """The code of each shape, and the stored values that codes stand for."""
    if column is None:
        return np.ones(1, dtype=np.uint16), (settings.outside, 1)
    try:
        places, found = pd.factorize(column)
    except TypeError as error:  # lists and the like cannot be compared
        several = next(value.tolist() if isinstance(value, np.ndarray) else value for value in column if not np.isscalar(value))
        raise DataError(
            f"{path}: the attribute '{settings.attribute}' holds lists or tables, such as {several}, and no single value that "
            "says the class of a shape. Name another one with 'data.vectors.attribute=…', or write the value that counts into one."
        ) from error
    texts = [as_text(value) for value in found.tolist()]
    table = dict(settings.values) if settings.values else {text: int(text) for text in texts if _is_number(text)}
    unknown = [text for text in texts if text not in table and REST not in table]
    if unknown and not settings.values:
        entry, where = _entry(unknown)
        how = f"'values: {{{entry}: 1, …}}' under 'vectors'" if where else f"'data.vectors.values={{{entry}: 1, …}}'"
        raise DataError(
            f"{path}: the attribute '{settings.attribute}' holds {listed(map(repr, unknown))}, which are no whole numbers. Say "
            f"which stored label values they mean{where}: {how}."
        )
    if unknown:
        entry, where = _entry(unknown)
        raise DataError(
            f"{path}: the attribute '{settings.attribute}' holds {listed(map(repr, unknown))}, which 'data.vectors.values' does "
            f"not know: it knows {listed(map(repr, table))}. Add them there{where}, where they are not to be judged as "
            f"'{entry}: ignore'; '{REST}' stands for every other value."
        )
    if (places < 0).any() and REST not in table:
        raise DataError(
            f"{path} holds {counted(int((places < 0).sum()), 'shape')} without a value of '{settings.attribute}'. Give each "
            f"one, or say with '{REST}' in 'data.vectors.values' what every other value, and none, means: '{REST}: ignore'."
        )
    meant = [table.get(text, table.get(REST)) for text in texts] + [table.get(REST)]  # the last is that of a missing value, -1
    used = sorted({meant[place] for place in np.unique(places)}, key=settings.rank)
    codes = np.array([used.index(value) + 1 if value in used else 0 for value in meant], dtype=np.uint16)
    return codes[places], (settings.outside, *used)


def _entry(unknown: Sequence[str]) -> tuple[str, str]:
    """One of the values as a key, and where keys like it are to be written; "" where they can be typed."""
    for text in unknown:
        if not _typable(text):
            return json.dumps(text, ensure_ascii=False), " in the data set's configuration file, since not all of them can be typed"
    return unknown[0], ""


def _typable(text: str) -> bool:
    """Whether Hydra takes the text as a key on the command line, and for the same text."""
    if text.lower() in ("null", "true", "false"):
        return text in ("true", "false")
    try:
        return as_text(float(text)) == text
    except ValueError:
        return _TYPABLE.fullmatch(text) is not None


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
