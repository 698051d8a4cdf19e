"""Made-up satellite scenes with their labels, as GeoTIFFs: what `data=satellite` trains on before there is data of one's own.

Arrays are [y, x] on the pixel grid, or [y, x, band] with the bands blue, green, red and near infrared. Lengths are in pixels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from scipy import ndimage

from voxtile.cases.made import make_once, visits
from voxtile.cases.window import IGNORE

VERSION = 1  # to be raised when the files of a seed change
BANDS = ("blue", "green", "red", "nir")
CLASSES = ("field", "water", "road", "building", "woods")
FIELD, WATER, ROAD, BUILDING, WOODS = range(5)
COLORS = ((222, 200, 110), (52, 120, 200), (110, 110, 110), (200, 60, 50), (46, 92, 48))
PIXEL = 3.0  # metres; at 10 m a road or a house would be a single pixel

Size = tuple[int, int]
Array = NDArray[Any]

# Reflectance by class, kind and band. Dry crops, bare soil, paving and roofs overlap, and so do water, wet soil, slate and
# shadow: a pixel alone does not tell its class.
SPECTRA = tuple(np.array(kinds, dtype=np.float32) for kinds in (
    ((0.035, 0.070, 0.045, 0.42), (0.050, 0.085, 0.070, 0.28), (0.080, 0.120, 0.160, 0.30),  # green, young, ripe
     (0.100, 0.135, 0.180, 0.25), (0.085, 0.110, 0.145, 0.19), (0.050, 0.060, 0.070, 0.095)),  # stubble, bare soil, wet soil
    ((0.040, 0.042, 0.026, 0.018), (0.062, 0.080, 0.078, 0.068)),  # clear, turbid
    ((0.090, 0.100, 0.110, 0.130), (0.130, 0.140, 0.155, 0.180), (0.105, 0.130, 0.165, 0.220)),  # asphalt, concrete, gravel
    ((0.070, 0.085, 0.165, 0.215), (0.120, 0.130, 0.140, 0.160), (0.060, 0.065, 0.072, 0.090), (0.24, 0.25, 0.26, 0.28)),
    # above: tiles, concrete, slate, sheet metal; below: crowns of trees, grass
    ((0.026, 0.045, 0.030, 0.29), (0.045, 0.080, 0.055, 0.36)),
))  # fmt: skip
HAZE = np.array([0.060, 0.045, 0.035, 0.015], dtype=np.float32)


def make_scenes(folder: Path, count: int = 16, size: Size = (256, 256), seed: int = 0) -> Path:
    """Makes `images/place01_a.tif`, `labels/place01_a.tif` … in `folder`, unless they are there already.

    No satellite ever saw them. They imitate a four-band sensor at 3 m (uint16, reflectance times 10000): parcels of crops
    with rows, woods and gardens, winding rivers, lakes, roads with bridges, villages; shadows of trees, houses and clouds,
    haze, noise, and a light of each scene's own. Some scenes have a wedge without data (0 in every band), some labels a
    strip that nobody labelled (255). Every third place is seen at two dates, `_a` and `_b`, with other crops and other light:
    the place, not the file, must stay on one side of a split. Places lie 5 km apart in UTM zone 33N.

    Args:
        folder: where the data set shall be.
        count: number of scenes.
        size: (height, width) of a scene in pixels.
        seed: the same seed makes the same files.

    Returns:
        `folder`.

    Raises:
        DataError: `folder` holds something else, or cannot be written to.
    """

    def fill(making: Path) -> None:
        (making / "images").mkdir()
        (making / "labels").mkdir()
        for name, place, visit in visits("place", count):
            land = _land(np.random.default_rng([seed, place]), size)
            rng = np.random.default_rng([seed, place, visit + 1])
            image = np.clip(_seen(rng, land) * 10_000, 1, 65_535).astype(np.uint16)
            label = land.label.copy()
            if place % 3 == 1:
                label[np.abs(_line(rng, size, bend=4).distance) < 5] = IGNORE
            if place % 4 == 2:
                outside = _line(rng, size, bend=0).distance > 0.4 * min(size)
                image[outside], label[outside] = 0, IGNORE
            corner = (399_960 + 5_000 * (place % 4), 5_300_040 - 5_000 * (place // 4))
            _write(making / "images" / f"{name}.tif", image, BANDS, corner, nodata=0)
            _write(making / "labels" / f"{name}.tif", label[..., None], ("class",), corner, nodata=IGNORE)

    return make_once(folder, {"made": "scenes", "version": VERSION, "count": count, "size": [*size], "seed": seed}, fill)


def _write(path: Path, array: Array, bands: tuple[str, ...], corner: tuple[float, float], nodata: int) -> None:
    """Writes `array` [y, x, band], whose upper left corner lies at (easting, northing), as a tiled GeoTIFF."""
    height, width, count = array.shape
    with MemoryFile() as memory:  # GDAL may close a file on a full disk without a word; `write_bytes` does not
        with memory.open(
            driver="GTiff", width=width, height=height, count=count, dtype=array.dtype, nodata=nodata, crs="EPSG:32633",
            transform=Affine(PIXEL, 0, corner[0], 0, -PIXEL, corner[1]), tiled=True, blockxsize=128, blockysize=128,
            compress="deflate",
        ) as out:  # fmt: skip
            out.write(array.transpose(2, 0, 1))
            out.descriptions = bands
            if nodata == IGNORE:
                out.write_colormap(1, {index: (*color, 255) for index, color in enumerate(COLORS)})
                out.update_tags(classes=", ".join(f"{index}={name}" for index, name in enumerate(CLASSES)))
        path.write_bytes(memory.read())


class _Line(NamedTuple):
    """A winding line across the scene, by its surroundings: signed distance, position along it, direction (radians)."""

    distance: Array
    along: Array
    heading: Array


class _Land(NamedTuple):
    """What stays at a place from one date to the next.

    `parcel` numbers the parcels, also under woods and houses; `across` is the position across a parcel's rows; `kind` says
    what a pixel that is no field looks like, as a row of `SPECTRA[label]`; `relief` is the slope towards the sun.
    """

    label: NDArray[np.uint8]
    parcel: Array
    across: Array
    kind: Array
    relief: Array


def _smooth(rng: np.random.Generator, size: Size, scale: float) -> Array:
    """Noise [y, x] of zero mean and unit deviation that varies over about `scale` pixels."""
    field: Array = rng.standard_normal([int(n / scale) + 6 for n in size])
    for n in size:
        knots = np.arange(len(field)) - rng.uniform(2, 3)
        weights = np.exp(-1.2 * (np.arange(n)[:, None] / scale - knots) ** 2)
        field = np.einsum("a...,na->...n", field, weights)  # not BLAS: its bits and its speed depend on its threads
    return np.asarray((field - field.mean()) / field.std(), dtype=np.float32)


def _line(rng: np.random.Generator, size: Size, bend: float) -> _Line:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (axis - n * rng.uniform(0.25, 0.75) for axis, n in zip(np.indices(size, dtype=np.float32), size, strict=True))
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    path, slope = np.zeros_like(along), np.zeros_like(along)
    for length in (60.0, 25.0):
        phase, height = rng.uniform(0, 2 * np.pi), bend * length / 85
        path += height * (np.sin(along / length + phase) - math.sin(phase))
        slope += height / length * np.cos(along / length + phase)
    return _Line((across - path) / np.sqrt(1 + slope**2), along, angle + np.arctan(slope))


def _land(rng: np.random.Generator, size: Size) -> _Land:
    parcel, across = _parcels(rng, size)
    label = np.full(size, FIELD, dtype=np.uint8)
    label[_smooth(rng, size, 30) > 0.9] = WOODS
    if rng.random() < 0.7:
        label[np.abs(_line(rng, size, bend=36).distance) < rng.uniform(5, 9) + _smooth(rng, size, 12)] = WATER
    label[_smooth(rng, size, 24) > 1.9] = WATER
    kind = (_smooth(rng, size, 60) > 0).astype(np.intp) * (label == WATER)
    roads = [_line(rng, size, bend=16) for _ in range(rng.integers(2, 4))]
    for road in roads:
        paved = np.abs(road.distance) < rng.uniform(1.3, 2.2)
        label[paved], kind[paved] = ROAD, rng.integers(len(SPECTRA[ROAD]))
    roofs = _houses(rng, roads, blocked=(label == WATER) | (label == ROAD))
    built = roofs >= 0
    density = ndimage.gaussian_filter(built.astype(np.float32), 7) * (1 + 0.3 * _smooth(rng, size, 8))
    gardens = (density > 0.06) & (label == FIELD)
    label[gardens], kind[gardens] = WOODS, (_smooth(rng, size, 3) > -0.3)[gardens]
    label[built], kind[built] = BUILDING, roofs[built]
    return _Land(label, parcel, across, kind, _smooth(rng, size, 45))


def _parcels(rng: np.random.Generator, size: Size) -> tuple[Array, Array]:
    """Strips of fields in four districts that lie askew to each other: parcel numbers, and the position across the rows."""
    y, x = np.indices(size)
    nearest = np.argmin([np.hypot(y - a, x - b) for a, b in rng.uniform(0, 1, (4, 2)) * size], axis=0)
    number, across = np.zeros(size, dtype=np.intp), np.zeros(size, dtype=np.float32)
    for district in range(4):
        here = nearest == district
        line = _line(rng, size, bend=3)
        strip = np.floor(line.distance / rng.uniform(20, 45)).astype(np.intp)
        cell = np.floor(line.along / rng.uniform(40, 90) + rng.uniform(0, 1, 256)[strip % 256]).astype(np.intp)
        number[here] = ((district * 1_000 + strip) * 1_000 + cell)[here]
        across[here] = line.distance[here]
    return np.unique(number, return_inverse=True)[1].reshape(size), across


def _houses(rng: np.random.Generator, roads: list[_Line], blocked: NDArray[np.bool_]) -> Array:
    """Roofs [y, x] along the roads of a few villages: rows of `SPECTRA[BUILDING]`, -1 where no house stands."""
    roofs, taken = np.full(blocked.shape, -1, dtype=np.intp), blocked.copy()
    index = np.indices(blocked.shape, dtype=np.float32)
    for road in roads:
        near = np.abs(road.distance)
        sites = np.argwhere((near > 7) & (near < 26) & (_smooth(rng, near.shape, 30) > 0.3))
        for row, column in rng.permutation(sites)[:80]:
            length, width = rng.uniform(3.8, 7.5), rng.uniform(2.7, 4.5)  # half of them
            box = (slice(max(row - 9, 0), row + 10), slice(max(column - 9, 0), column + 10))
            turn, dy, dx = road.heading[row, column], index[0][box] - row, index[1][box] - column
            long, wide = np.abs(dx * np.cos(turn) + dy * np.sin(turn)), np.abs(dy * np.cos(turn) - dx * np.sin(turn))
            if not taken[box][(long < length + 2) & (wide < width + 2)].any():
                house = (long < length) & (wide < width)
                roofs[box][house] = rng.choice(4, p=(0.5, 0.2, 0.2, 0.1))
                taken[box] |= house
    return roofs


def _seen(rng: np.random.Generator, land: _Land) -> Array:
    """Reflectance [y, x, band] of the land on one date, as the sensor sees it."""
    size, parcels = land.label.shape, int(land.parcel.max()) + 1
    ground = np.zeros((*size, len(BANDS)), dtype=np.float32)
    for index, spectra in enumerate(SPECTRA):
        here = land.label == index
        ground[here] = spectra[land.kind[here]]
    fields, woods = land.label == FIELD, land.label == WOODS
    crops = SPECTRA[FIELD][rng.integers(len(SPECTRA[FIELD]), size=parcels)] * rng.normal(1, 0.12, (parcels, 1))
    ground[fields] = crops[land.parcel[fields]]

    # Texture: rows of crops, crowns of trees; water, roads and roofs are the smooth ones.
    rate, depth = (rng.uniform(*span, parcels).astype(np.float32)[land.parcel] for span in ((0.9, 2.1), (0.0, 0.12)))
    crowns = ndimage.gaussian_filter(rng.standard_normal(size, dtype=np.float32), 1.0) * 0.9
    texture = np.select([fields, woods], [depth * np.sin(land.across * rate), crowns], 0.03 * crowns)
    ground *= np.clip(1 + texture + 0.06 * _smooth(rng, size, 8), 0.3, 2)[..., None]

    # Light: slopes, shadows of what stands up (towards the north, two pixels long), shadows of clouds, haze.
    tall = (land.label == BUILDING) | (woods & (land.kind == 0))
    shadow = ndimage.shift(tall.view(np.uint8), (-2, rng.integers(-2, 3)), order=0) > tall
    clouds = 1 - rng.uniform(0, 0.5) / (1 + np.exp(-6 * (_smooth(rng, size, 50) - 1)))
    light = np.where(shadow, 0.5, 1) * clouds * (1 + 0.07 * land.relief) * rng.uniform(0.7, 1.15)
    haze = rng.uniform(0, 1.2) * np.clip(_smooth(rng, size, 80) * 0.3 + 0.4, 0, None)
    gains = rng.normal(1, 0.05, len(BANDS)).astype(np.float32)
    radiance = ground * light[..., None].astype(np.float32) * gains + haze[..., None] * HAZE
    blurred = ndimage.gaussian_filter(radiance, (0.5, 0.5, 0))
    return np.asarray(blurred + 0.004 * (1 + 5 * blurred) * rng.standard_normal(blurred.shape, dtype=np.float32))
