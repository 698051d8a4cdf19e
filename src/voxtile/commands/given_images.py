"""What a program gives as an image, as a case that a run reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxtile.cases.address import is_address, path_of
from voxtile.cases.arrays import ArraySource
from voxtile.cases.case import Case
from voxtile.commands.inputs import find_inputs
from voxtile.errors import ConfigError, DataError, listed, reason
from voxtile.values import is_number

if TYPE_CHECKING:
    from voxtile.cases.layouts import CaseFiles
    from voxtile.commands.ensemble import Ensemble

Image = str | os.PathLike[str] | Case | ArrayLike


def case_of(runs: Ensemble, image: Image, spacing: Sequence[float] | None) -> tuple[Case, CaseFiles | None]:
    """An image as the runs read it, and its files where they are named by a path.

    Args:
        runs: that are to see it.
        image: a file, address or folder of one case; a case, which may be another run's; or an array, see `Run.predict`.
        spacing: of an array, in mm along (z, y, x).

    Raises:
        ConfigError: An array needs a spacing, or the one given is none.
        DataError: It cannot be read, or is not of the kind that the runs were trained on.
    """
    dataset = runs.first.built.dataset
    if not isinstance(image, str | os.PathLike | Case):
        return _of_array(runs, image, spacing), None
    if spacing is not None:
        raise ConfigError("'spacing' is that of an array; a file says its own.")
    if isinstance(image, Case):
        own = replace(image.native, labels=None, neighbours=dataset.windowing.neighbours)
        return runs.first.ordered(dataset.placed(own)), None
    text = os.fspath(image)
    path = path_of(text)
    if not text or not (is_address(text) or path.exists()):
        raise DataError(f"The image '{text}' does not exist. Name a file, or the folder of one case.")
    found, _ = find_inputs(path, dataset, len(runs.first.manifest["data"]["channels"]))
    if len(found) > 1:
        raise DataError(f"{text} holds {len(found)} cases: {listed(files.id for files in found)}. Name one of them.")
    return runs.open_case(found[0]), found[0]


def _of_array(runs: Ensemble, image: ArrayLike, spacing: Sequence[float] | None) -> Case:
    dataset, channels = runs.first.built.dataset, runs.first.manifest["data"]["channels"]
    try:
        pixels: NDArray[Any] = np.asanyarray(image)
    except (TypeError, ValueError, RuntimeError) as error:  # such as a tensor on a GPU
        kind = type(image).__name__
        raise DataError(f"A {kind} was given as an image: {reason(error)}. Expected a path, a case, or an array.") from error
    stacks = dataset.format != "geotiff"
    if spacing is not None and dataset.format in ("geotiff", "picture"):
        raise ConfigError("'spacing' is that of a volume, and this run is trained on scenes or pictures. Leave it out.")
    numbers = pixels.dtype.kind in "uif" and pixels.dtype.itemsize <= 8
    if not numbers or not pixels.size or pixels.ndim not in ((3, 4) if stacks else (3,)) or len(pixels) != len(channels):
        raise DataError(
            f"The array has the shape {pixels.shape} and the type {pixels.dtype}. Expected whole or real numbers [C, H, W]"
            f"{' of a slice, or [C, D, H, W] of a volume' if stacks else ' of one scene'}, with {len(channels)} in the place of C: "
            f"{', '.join(channels)}. 'np.moveaxis(array, -1, 0)' brings channels that stand last to the front, and 'array[None]' "
            "is an array of one channel."
        )
    apart = _spacing(spacing)
    if apart is None and dataset.spacing is not None:
        raise ConfigError(
            f"{runs.first.home.path} was trained on volumes at {dataset.spacing} mm along (z, y, x). Say how far apart the pixels "
            "of the array are, as 'spacing=(z, y, x)'."
        )
    deep = pixels[:, None] if pixels.ndim == 3 else pixels
    masked = np.ma.getmaskarray(deep).any(axis=0) if np.ma.is_masked(deep) else None  # by rasterio, for example
    source = ArraySource(np.ma.getdata(deep), channels, None if masked is None else np.logical_not(masked), apart)
    return dataset.placed(Case("array", "array", source, neighbours=dataset.windowing.neighbours))


def _spacing(given: Sequence[float] | None) -> tuple[float, float, float] | None:
    """A spacing as Python's numbers.

    Raises:
        ConfigError: It is none.
    """
    if given is None:
        return None
    found = plain(given)
    if not isinstance(found, list) or len(found) != 3 or not all(is_number(each, 0) and each for each in found):
        raise ConfigError(f"'spacing={given}' must be three numbers of mm above 0, along (z, y, x).")
    z, y, x = map(float, found)
    return z, y, x


def plain(value: Any) -> Any:
    """A setting as a configuration holds it: NumPy's numbers as Python's; tuples, sets and arrays as lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple | set) else value
