"""What is said of an image whose map may mean nothing, and would look like any other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from voxtile.cases.formats import tags_of
from voxtile.cases.maps import MADE_FROM
from voxtile.data.normalise import FixedNormalisation
from voxtile.data.pixel_sizes import unlike

if TYPE_CHECKING:
    from voxtile.cases.case import Case
    from voxtile.commands.ensemble import Ensemble
    from voxtile.data.survey import Survey

STRANGE = 0.99  # share of a channel beyond what training images hold; of a volume, most may be air, which was not measured


def doubts_of(runs: Ensemble, case: Case, measured: Survey, told: set[str]) -> Iterator[str]:
    """Sentences about an image that can hardly be one like those of the training.

    Args:
        runs: that are to predict it.
        case: the image.
        measured: its survey.
        told: what was said before of how files are read, which is said of one file only.
    """
    first = runs.first
    for doubt in case.image.doubts():
        said = re.sub("[0-9]+", "", doubt.replace(str(case.image.path), ""))
        if said not in told:
            told.add(said)
            yield doubt
    if sentence := unlike(first.manifest["data"].get("pixel_sizes"), case, first.built.windowing):
        yield f"{case.image.path}: {sentence}"
    if said := _strange(runs, case, measured):
        yield f"{case.image.path}: {said}, so this map may mean nothing. See whether the image has their kind, unit and scale."
    if not measured.valid:
        yield f"{case.id}: no pixel that was sampled holds data: they are nodata, masked or NaN, and so is the map where all are"


def _strange(runs: Ensemble, case: Case, measured: Survey) -> str:
    """Why an image cannot be one like those of the training; empty where nothing speaks against it."""
    first = runs.first
    if case.image.files and MADE_FROM in tags_of(case.image.path, first.built.dataset.format):
        return "it is a map that voxtile has made"
    if (known := first.intensity) is None or isinstance(first.built.normalisation, FixedNormalisation):
        return ""
    for name, values, low, high in zip(case.channels, measured.sample, *known.bounds, strict=True):
        outside = float(((values < low) | (values > high)).mean()) if values.size else 0.0
        if outside > STRANGE:
            own, theirs = (f"{a:.4g} to {b:.4g}" for a, b in ((values.min(), values.max()), (low, high)))
            return (
                f"{outside:.0%} of channel '{name}', which holds {own}, lie outside the {theirs} of the training images "
                f"of {first.home.path}"
            )
    return ""
