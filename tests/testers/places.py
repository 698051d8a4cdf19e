"""Scenes in memory at places on the Earth, and how far apart they are."""

from __future__ import annotations

import numpy as np
from pyproj import Geod, Transformer
from rasterio.crs import CRS

from tests.testers.memory import memory_case, north_up

UTM33, UTM34, DEGREES = (CRS.from_epsg(code).to_wkt() for code in (32633, 32634, 4326))


def scene(name, left=0.0, top=0.0, *, size=10, pixel=10.0, crs=UTM33, **more):
    """A square scene at (left, top) pixels from a place on the system's central meridian (or from 15° E, 50° N)."""
    x0, y0 = (15.0, 50.0) if crs == DEGREES else (500_000.0, 5_500_000.0)
    affine = north_up(x0 + left * pixel, y0 - top * pixel, pixel)
    return memory_case(name, (1, size, size), affine=affine, crs=crs, unit="m", **more)


GEOD = Geod(ellps="WGS84")


def wkt(code):
    return CRS.from_epsg(code).to_wkt()


def at(name, longitude, latitude, code, size=50, pixel=10.0):
    """A square scene around a place, its pixels `pixel` map units wide (in degrees 1e-5 of that)."""
    x, y = Transformer.from_crs(4326, code, always_xy=True).transform(longitude, latitude)
    pixel = pixel * 1e-5 if code == 4326 else pixel
    return memory_case(
        name, (1, size, size), affine=north_up(x - size / 2 * pixel, y + size / 2 * pixel, pixel), crs=wkt(code), unit="m"
    )  # fmt: skip


def border(case, steps=40):
    """Points around a footprint in degrees [n, 2], made edge by edge."""
    left, bottom, right, top = case.grid.footprint
    x, y = np.linspace(left, right, steps), np.linspace(bottom, top, steps)
    rows = [(x, np.full(steps, bottom)), (x, np.full(steps, top)), (np.full(steps, left), y), (np.full(steps, right), y)]
    transformer = Transformer.from_crs(case.grid.crs, 4326, always_xy=True)
    return np.stack(transformer.transform(*np.concatenate(rows, axis=1)), axis=1)


def brute(first, second):
    """Least geodesic distance between points around two footprints: more than the true one by less than their spacing."""
    a, b = border(first), border(second)
    i, j = (part.ravel() for part in np.mgrid[: len(a), : len(b)])
    return GEOD.inv(*a[i].T, *b[j].T)[2].min()
