"""Scenes on disk that are surveyed."""

from __future__ import annotations

from voxtile.cases.case import Case, Labels
from voxtile.cases.geotiff import GeoTiffSource, label_source

CLASSES, VALUES = 3, {0: 0, 1: 1, 2: 2, 9: 255}


def open_case(folder, name="a", nodata=None):
    image = GeoTiffSource([folder / f"{name}.tif"], nodata)
    return Case(name, name, image, Labels(label_source(folder / f"{name}_label.tif", image), VALUES))
