"""Made-up satellite scenes with their labels, as GeoTIFFs: what `data=satellite` trains on before there is data of one's own.

Arrays are [y, x] on the pixel grid, or [y, x, band] with the bands blue, green, red and near infrared. Lengths are in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage

from voxtile.cases.case import IGNORE
from voxtile.cases.made import make_once, visits

VERSION = 1  # to be raised when the files of a seed change
BANDS = ("blue", "green", "red", "nir")
CLASSES = ("other", "field", "water", "road", "building")
OTHER, FIELD, WATER, ROAD, BUILDING = range(5)
COLORS = ((46, 92, 48), (222, 200, 110), (52, 120, 200), (110, 110, 110), (200, 60, 50))
PIXEL = 3.0  # metres; at 10 m a road or a house would be a single pixel

Size = tuple[int, int]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

# Reflectance per kind and band. Dry crops, bare soil, asphalt and roofs overlap, and so do water, wet soil, slate and shadow:
# a pixel alone does not tell its class.
WOODS = ((0.026, 0.045, 0.030, 0.29), (0.045, 0.080, 0.055, 0.36))  # canopy, grass
CROPS = (
    (0.035, 0.070, 0.045, 0.42), (0.050, 0.085, 0.070, 0.28), (0.080, 0.120, 0.160, 0.30),  # green, young, ripe
    (0.100, 0.135, 0.180, 0.25), (0.085, 0.110, 0.145, 0.19), (0.050, 0.060, 0.070, 0.095),  # stubble, bare soil, wet soil
)  # fmt: skip
WATERS = ((0.040, 0.042, 0.026, 0.018), (0.062, 0.080, 0.078, 0.068))  # clear, turbid
PAVINGS = ((0.090, 0.100, 0.110, 0.130), (0.130, 0.140, 0.155, 0.180), (0.105, 0.130, 0.165, 0.220))  # asphalt, concrete, gravel
ROOFS = (
    (0.070, 0.085, 0.165, 0.215), (0.120, 0.130, 0.140, 0.160), (0.060, 0.065, 0.072, 0.090), (0.24, 0.25, 0.26, 0.28),
)  # fmt: skip  # tiles, concrete, slate, sheet metal
SPECTRA = tuple(np.array(kinds, dtype=np.float32) for kinds in (WOODS, CROPS, WATERS, PAVINGS, ROOFS))  # by class
HAZE = np.array([0.060, 0.045, 0.035, 0.015], dtype=np.float32)


def make_scenes(folder: Path, count: int = 16, size: Size = (256, 256), seed: int = 0) -> Path:
    """Makes `images/place01_a.tif`, `labels/place01_a.tif` … in `folder`, unless they are there already.

    No satellite ever saw them. They imitate a four-band sensor at 3 m (uint16, reflectance times 10000): parcels of crops
    with rows, woods, gardens, winding rivers, lakes, roads with bridges, villages; shadows of trees, houses and clouds, haze,
    noise, and a light of each scene's own. Some scenes have a wedge without data (0 in every band), some labels a strip
    that nobody labelled (255). Every third place is seen at two dates, `_a` and `_b`, with other crops and other light: the
    place, not the file, must stay on one side of a split. Places lie 5 km apart in UTM zone 33N.

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
        for name, place, visit in visits("place", count):
            land = _Land.made(np.random.default_rng([seed, place]), size)
            rng = np.random.default_rng([seed, place, visit + 1])
            image = np.clip(_seen(rng, land) * 10_000, 1, 65_535).astype(np.uint16)
            label = land.label.copy()
            if place % 3 == 1:
                label[np.abs(_Line.drawn(rng, size, bend=4).distance) < 5] = IGNORE
            if place % 4 == 2:
                outside = _Line.drawn(rng, size, bend=0).distance > 0.4 * min(size)
                image[outside], label[outside] = 0, IGNORE
            corner = (399_960 + 5_000 * (place % 4), 5_300_040 - 5_000 * (place // 4))
            _write(making / "images" / f"{name}.tif", image, BANDS, corner, nodata=0)
            _write(making / "labels" / f"{name}.tif", label[..., None], ("class",), corner, nodata=IGNORE)

    return make_once(folder, {"made": "scenes", "version": VERSION, "count": count, "size": [*size], "seed": seed}, fill)


def _write(path: Path, array: NDArray[Any], bands: tuple[str, ...], corner: tuple[float, float], nodata: int) -> None:
    """Writes `array` [y, x, band], whose upper left corner lies at (easting, northing), as a tiled GeoTIFF."""
    path.parent.mkdir(exist_ok=True)
    height, width, count = array.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=count, dtype=array.dtype, nodata=nodata, crs="EPSG:32633",
        transform=Affine(PIXEL, 0, corner[0], 0, -PIXEL, corner[1]), tiled=True, blockxsize=128, blockysize=128, compress="deflate",
    ) as out:  # fmt: skip
        out.write(array.transpose(2, 0, 1))
        out.descriptions = bands
        if nodata == IGNORE:
            out.write_colormap(1, {index: (*color, 255) for index, color in enumerate(COLORS)})
            out.update_tags(classes=", ".join(f"{index}={name}" for index, name in enumerate(CLASSES)))


def _smooth(rng: np.random.Generator, size: Size, scale: float) -> Floats:
    """Noise [y, x] of zero mean and unit deviation that varies over about `scale` pixels."""
    field: NDArray[Any] = rng.standard_normal([int(n / scale) + 6 for n in size])
    for n in size:
        knots = np.arange(len(field)) - rng.uniform(2, 3)
        weights = np.exp(-1.2 * (np.arange(n)[:, None] / scale - knots) ** 2)
        field = np.tensordot(field, weights, axes=(0, 1))  # takes the coarse axis in front and appends the fine one
    return ((field - field.mean()) / field.std()).astype(np.float32)


@dataclass(frozen=True)
class _Line:
    """A winding line across the scene, by its surroundings [y, x].

    Attributes:
        distance: signed distance from the line.
        along: position along the line.
        heading: direction of the line there, radians from x towards y.
    """

    distance: Floats
    along: Floats
    heading: Floats

    @classmethod
    def drawn(cls, rng: np.random.Generator, size: Size, bend: float) -> _Line:
        angle = rng.uniform(0, 2 * np.pi)
        y, x = (axis - n * rng.uniform(0.25, 0.75) for axis, n in zip(np.indices(size, dtype=np.float32), size, strict=True))
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        path, slope = np.zeros_like(along), np.zeros_like(along)
        for length in (60.0, 25.0):
            phase, height = rng.uniform(0, 2 * np.pi), bend * length / 85
            path += height * (np.sin(along / length + phase) - math.sin(phase))
            slope += height / length * np.cos(along / length + phase)
        return cls((across - path) / np.sqrt(1 + slope**2), along, angle + np.arctan(slope))


@dataclass(frozen=True)
class _Land:
    """What stays at a place from one date to the next, arrays [y, x].

    Attributes:
        label: class indices.
        parcel: number of the parcel a pixel lies in, also under woods and houses.
        across: position across the parcel's rows.
        kind: for everything but fields: row of `SPECTRA[class]`.
        relief: slope towards the sun, zero mean and unit deviation.
    """

    label: NDArray[np.uint8]
    parcel: NDArray[np.intp]
    across: Floats
    kind: NDArray[np.intp]
    relief: Floats

    @classmethod
    def made(cls, rng: np.random.Generator, size: Size) -> _Land:
        parcel, across = _parcels(rng, size)
        label = np.full(size, FIELD, dtype=np.uint8)
        label[_smooth(rng, size, 30) > 0.9] = OTHER
        if rng.random() < 0.7:
            label[np.abs(_Line.drawn(rng, size, bend=36).distance) < rng.uniform(5, 9) + _smooth(rng, size, 12)] = WATER
        label[_smooth(rng, size, 24) > 1.9] = WATER
        kind = (_smooth(rng, size, 60) > 0).astype(np.intp) * (label == WATER)
        roads = [_Line.drawn(rng, size, bend=16) for _ in range(rng.integers(2, 4))]
        for road in roads:
            paved = np.abs(road.distance) < rng.uniform(1.3, 2.2)
            label[paved], kind[paved] = ROAD, rng.integers(len(PAVINGS))
        roofs = _houses(rng, roads, blocked=(label == WATER) | (label == ROAD))
        built = roofs >= 0
        density = ndimage.gaussian_filter(built.astype(np.float32), 7) * (1 + 0.3 * _smooth(rng, size, 8))
        gardens = (density > 0.06) & (label == FIELD)
        label[gardens], kind[gardens] = OTHER, (_smooth(rng, size, 3) > -0.3)[gardens]
        label[built], kind[built] = BUILDING, roofs[built]
        return cls(label, parcel, across, kind, _smooth(rng, size, 45))


def _parcels(rng: np.random.Generator, size: Size) -> tuple[NDArray[np.intp], Floats]:
    """Strips of fields in a few districts that lie askew to each other: parcel numbers, and the position across the rows."""
    districts = [_Line.drawn(rng, size, bend=3) for _ in range(4)]
    middles = rng.uniform(0, 1, (4, 2)) * size
    y, x = np.indices(size)
    nearest = np.argmin([np.hypot(y - a, x - b) for a, b in middles], axis=0)
    number, across = np.zeros(size, dtype=np.intp), np.zeros(size, dtype=np.float32)
    for index, line in enumerate(districts):
        strip = np.floor(line.distance / rng.uniform(20, 45)).astype(np.intp)
        cell = np.floor(line.along / rng.uniform(40, 90) + rng.uniform(0, 1, 200)[strip + 100]).astype(np.intp)
        here = nearest == index
        number[here] = (index * 1_000_000 + (strip + 100) * 1_000 + cell + 100)[here]
        across[here] = line.distance[here]
    return np.unique(number, return_inverse=True)[1].reshape(size), across


def _houses(rng: np.random.Generator, roads: list[_Line], blocked: Bools) -> NDArray[np.intp]:
    """Roofs [y, x] along the roads of a few villages: rows of `ROOFS`, -1 where no house stands."""
    roofs = np.full(blocked.shape, -1, dtype=np.intp)
    taken = blocked.copy()
    y, x = np.indices(blocked.shape, dtype=np.float32)
    for road in roads:
        near = np.abs(road.distance)
        village = _smooth(rng, blocked.shape, 30) > 0.3
        sites = np.argwhere((near > 7) & (near < 26) & village)
        for row, column in rng.permutation(sites)[:80]:
            half = rng.uniform((2.7, 3.8), (4.5, 7.5))
            box = (slice(max(row - 9, 0), row + 10), slice(max(column - 9, 0), column + 10))
            turn = road.heading[row, column]
            dy, dx = y[box] - row, x[box] - column
            long, wide = np.abs(dx * np.cos(turn) + dy * np.sin(turn)), np.abs(dy * np.cos(turn) - dx * np.sin(turn))
            if not taken[box][(long < half[1] + 2) & (wide < half[0] + 2)].any():
                house = (long < half[1]) & (wide < half[0])
                roofs[box][house] = rng.choice(len(ROOFS), p=(0.5, 0.2, 0.2, 0.1))
                taken[box] |= house
    return roofs


def _seen(rng: np.random.Generator, land: _Land) -> Floats:
    """Reflectance [y, x, band] of the land on one date, as the sensor sees it."""
    size = land.label.shape
    parcels = int(land.parcel.max()) + 1
    ground = np.zeros((*size, len(BANDS)), dtype=np.float32)
    for index, spectra in enumerate(SPECTRA):
        here = land.label == index
        ground[here] = spectra[land.kind[here] % len(spectra)]
    fields = land.label == FIELD
    crops = SPECTRA[FIELD][rng.integers(len(CROPS), size=parcels)] * rng.normal(1, 0.12, (parcels, 1))
    ground[fields] = crops[land.parcel[fields]]

    # Texture: rows of crops, tree crowns, ripples; roads and roofs are the smooth ones.
    rate, depth = (rng.uniform(*span, parcels).astype(np.float32)[land.parcel] for span in ((0.9, 2.1), (0, 0.12)))
    rows = depth * np.sin(land.across * rate)
    crowns = ndimage.gaussian_filter(rng.standard_normal(size, dtype=np.float32), 1.0) * 0.9
    texture = np.select([fields, land.label == OTHER], [rows, crowns], 0.03 * crowns)
    ground *= np.clip(1 + texture + 0.06 * _smooth(rng, size, 8), 0.3, 2)[..., None]

    # Light: slopes, shadows of what stands up (towards the north, two pixels long), shadows of clouds, haze.
    tall = (land.label == BUILDING) | ((land.label == OTHER) & (land.kind == 0))
    shadow = ndimage.shift(tall.view(np.uint8), (-2, rng.integers(-2, 3)), order=0) > tall
    clouds = 1 - rng.uniform(0, 0.5) / (1 + np.exp(-6 * (_smooth(rng, size, 50) - 1)))
    haze = rng.uniform(0, 1.2) * np.clip(_smooth(rng, size, 80) * 0.3 + 0.4, 0, None)
    light = np.where(shadow, 0.5, 1) * clouds * (1 + 0.07 * land.relief) * rng.uniform(0.7, 1.15)
    gains = rng.normal(1, 0.05, len(BANDS)).astype(np.float32)
    radiance = ground * light[..., None].astype(np.float32) * gains + haze[..., None] * HAZE
    blurred = ndimage.gaussian_filter(radiance, (0.5, 0.5, 0))
    noise = rng.standard_normal(blurred.shape, dtype=np.float32)
    return blurred + 0.004 * (1 + 5 * blurred) * noise
