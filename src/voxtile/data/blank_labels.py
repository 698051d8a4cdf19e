"""Labels whose files hold no data where the image does, which no setting makes a class of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from voxtile.cases.case import Case
from voxtile.cases.vector_settings import VECTOR_SUFFIXES
from voxtile.data.survey import Survey, blocks
from voxtile.errors import counted, listed

LEAST = 0.1  # share of the image's pixels that is told: scenes have borders
MOST_CASES, MOST_BLOCKS = 16, 16  # that are read once more
# By data.format, what such pixels are, and a tool that fills them.
KINDS = {
    "geotiff": ("nodata, masked, transparent or NaN, or outside the label's file", "gdal_calc.py"),
    "picture": ("transparent", "Pillow's Image.alpha_composite"),
    "volume": ("NaN", "numpy.nan_to_num"),
}


def blank_labels(cases: Sequence[Case], surveys: Mapping[str, Survey], format: str) -> list[str]:
    """What is to be said of labels that hold no data in a good part of their images; the worst cases are looked at.

    Args:
        cases: the cases, with labels that may be read.
        surveys: of each case by id.
        format: `data.format`.

    Raises:
        DataError: A file cannot be read.
    """
    if format not in KINDS:
        return []
    unjudged = {case.id: 1 - found.judged / max(found.pixels * found.valid, 1) for case in cases if (found := surveys[case.id])}
    few = [case for case in cases if case.labels and unjudged[case.id] >= LEAST]
    few = [case for case in few if case.labels and case.labels.source.path.suffix.lower() not in VECTOR_SUFFIXES]
    worst = sorted(few, key=lambda case: -unjudged[case.id])[:MOST_CASES]
    shares = {case.id: share for case in worst if (share := _blank(case)) >= LEAST}
    if not shares:
        return []
    what, tool = KINDS[format]
    least = "at least " if len(few) > MOST_CASES else ""
    told = listed((f"{name} ({share:.0%})" for name, share in shares.items()), 4)
    return [
        f"the labels of {least}{counted(len(shares), 'case')} hold no data in {LEAST:.0%} or more of the image's pixels, where "
        f"they are {what}: {told}. Such pixels are not judged; where they mean a class, such as the background, fill them with its "
        f"value when the labels are made, for example with {tool}"
    ]


def _blank(case: Case) -> float:
    """The share of a case's pixels with data in which its label's file holds none, by evenly spread blocks."""
    parts = list(blocks(case.shape))
    held = blank = 0
    for number in np.unique(np.linspace(0, len(parts) - 1, min(len(parts), MOST_BLOCKS)).astype(int)):
        _, valid = case.read(parts[number])
        _, labelled = case.labels.source.read(parts[number].shifted(case.box.start), (0,)) if case.labels else (None, valid)
        held, blank = held + int(valid.sum()), blank + int((valid & ~labelled).sum())
    return blank / max(held, 1)
