"""Data sets that voxtile makes itself, as real files: a folder appears under its name only when it is complete."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from voxtile.errors import AbsentError, reason

MARKER = "made.json"


def make_once(folder: Path, recipe: Mapping[str, object], fill: Callable[[Path], None]) -> Path:
    """Lets `fill` make the files in a folder beside `folder` and moves it under its name when all are there.

    A folder made before from the same recipe is used as it is, so a second call costs one small read. Of two processes
    that make the same folder at once, the first to finish leaves its own and the other takes that.

    Args:
        folder: where the data set shall be.
        recipe: everything the files depend on, the version of the code that makes them included; plain JSON values.
        fill: makes the files in the folder it is given.

    Returns:
        `folder`.

    Raises:
        DataError: `folder` holds something else, or the files cannot be written.
    """
    if _is_made(folder, recipe):
        return folder
    making = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        making.mkdir(parents=True)
        fill(making)
        (making / MARKER).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
        making.replace(folder)
    except OSError as error:
        if not _is_made(folder, recipe):  # no other process was first
            raise AbsentError(
                f"The made-up data set could not be written to {folder}: {reason(error)}. Nothing was left under that name. "
                "Expected a folder that can be written to and some 10 MB of free disk.",
                "Make room, or name another folder with 'data.layout.root=…'.",
            ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def _is_made(folder: Path, recipe: Mapping[str, object]) -> bool:
    """Whether `folder` was made from `recipe`; False where it is missing or empty."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    marker = folder / MARKER
    found = marker.read_text(encoding="utf-8") if marker.is_file() else "other files"
    if found == json.dumps(recipe, indent=1) + "\n":
        return True
    raise AbsentError(
        f"{folder} holds {' '.join(found.split())}, and the data set wanted there is {json.dumps(recipe)}.",
        "Expected this very data set, an empty folder or none. Name another folder with 'data.layout.root=…', or remove this one "
        f"where it is not needed: rm -r '{folder}'",
    )


def visits(stem: str, count: int) -> list[tuple[str, int, int]]:
    """The names of `count` cases, where every third place or patient comes twice: `stem03_a` and `stem03_b`.

    Returns:
        (case id, number of the place or patient from 1, number of the visit from 0), `count` times.
    """
    cases: list[tuple[str, int, int]] = []
    number = 0
    while len(cases) < count:
        number += 1
        cases += [(f"{stem}{number:02d}_{'ab'[visit]}", number, visit) for visit in range(2 if number % 3 == 0 else 1)]
    return cases[:count]
