"""What memory and disk predicting a large case takes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from voxtile.cases.atomic import side_file
from voxtile.cases.case import Case
from voxtile.cases.maps import MapSpec
from voxtile.cases.raster import BLOCK_CACHE
from voxtile.cases.window import Size3
from voxtile.data.normalise import Intensity
from voxtile.errors import DataError, size
from voxtile.inference.native import native_windows, slices_held
from voxtile.inference.predictor import BATCHES_AHEAD, Band, Predictor
from voxtile.inference.refining import reach, refined
from voxtile.inference.resident import most_resident
from voxtile.inference.together import Sight, windows_of

ENDING = 140 * 10**6  # bytes of its libraries' files that a process maps when it ends, PyTorch's for the CPU most of all
PYRAMID = 4 / 3  # pixels of an image with all its overviews, over those of the image


def memory_of(sights: Sequence[Sight], classes: int) -> int:
    """Bytes of memory that predicting a case takes at most: what the process has now, what the networks take, and the buffers.

    The networks are tried on windows of zeros, as many at once as there will be, and a CRF on the middle of the case: what it takes
    depends on how its pixels differ. Buffers are as wide as the widest strip. Kinds of networks judge, and are tried, side by side;
    what they say meets in whole slices of the file, of which there is one of each kind, the mean, and one on its way into it.

    Args:
        sights: the case as each kind of networks sees it.
        classes: K.
    """
    with ExitStack() as stack, ThreadPoolExecutor(len(sights)) as pool:
        for sight in sights[1:]:  # the first one's threads are this one's
            stack.enter_context(sight.predictor.judge.threads())
        others = [pool.submit(_taken, sight, classes) for sight in sights[1:]]
        taken = _taken(sights[0], classes) + sum(other.result() for other in others)
    by_slices = len(sights) > 1
    taken += sum(_slices_taken(sight, classes, by_slices) for sight in sights)
    if by_slices:
        taken += (len(sights) + 2) * windows_of(sights)[0].pixels * _bytes(sights[0].predictor, classes)
    return most_resident() + taken + BLOCK_CACHE * 2**20 + ENDING


def _bytes(predictor: Predictor, classes: int) -> int:
    """Bytes of a pixel's probabilities and, where it is wanted, their variance."""
    return 4 * (classes + predictor.procedure.varies)


def _slices_taken(sight: Sight, classes: int, by_slices: bool) -> int:
    """Bytes of the slices of one kind on their way to the grid of the file; none where bands are made on that grid."""
    predictor, case = sight.predictor, sight.case
    working, native = slices_held(predictor, case, by_slices)
    plane = native and native_windows(predictor, case, by_slices)[0].pixels
    return (working * math.prod(case.shape[1:]) + native * plane) * _bytes(predictor, classes)


def _taken(sight: Sight, classes: int) -> int:
    """Bytes of the buffers of one kind, whose networks it tries."""
    predictor, case = sight.predictor, sight.case
    rows = [row for strip in predictor.plan(case) for row in strip]
    widest = max(rows, key=lambda row: row.box.pixels)
    slabs = 4 * predictor.seen(case, widest).pixels * (case.inputs * case.dtype.itemsize + 1)  # in use, waiting, and being read
    sums = (2 + _held(predictor, case)) * widest.box.pixels * (classes * 4 + 1)  # of the row that is finished and the one after it
    count = min(predictor.at_once(case, widest), max(len(row.tiles) for row in rows))
    shown = predictor.shown(case, widest.tiles)[0]
    threads = _try(predictor, case.inputs, shown.size, count)
    judged = (BATCHES_AHEAD * threads + 1) * count * shown.pixels * (classes * 4 + 1)  # waiting to be joined
    _try_crf(predictor, case, classes, sight.intensities[0])
    return slabs + sums + judged


def _held(predictor: Predictor, case: Case) -> int:
    """How many bands are held back until a CRF has come to all that it sees around the first of them."""
    if predictor.procedure.crf is None:
        return 0
    rows = predictor.plan(case)[0]
    far = reach(predictor.procedure.crf, case.shape) if predictor.judge.planar else 0
    return min(len(rows), 2 * math.ceil(far / max(row.thick for row in rows)) + 2)


def _try_crf(predictor: Predictor, case: Case, classes: int, intensity: Intensity) -> None:
    """Lets the CRF refine what it refines at once, of probabilities that take no memory before it joins them."""
    crf = predictor.procedure.crf
    if crf is None:
        return
    strips = predictor.plan(case)
    strip = strips[len(strips) // 2]
    middle = strip[len(strip) // 2].band
    seen = middle.grown((0, reach(crf, case.shape), 0)) if predictor.judge.planar else middle
    near = [row.band for row in strip if row.band.y < seen.stop[1] and row.band.stop[1] > seen.y and row.band.z == middle.z]
    even = torch.full((classes, 1, 1, 1), 1 / classes)
    bands = [Band(window, even.expand(classes, *window.size), np.array(case.read(window)[1])) for window in near]
    next(refined(bands, crf, case, intensity, set(near) - {middle}, max(1, predictor.workers)), None)


def _try(predictor: Predictor, channels: int, size: Size3, count: int) -> int:
    """Lets the networks judge `count` windows of zeros at once, as they will judge the case's; returns by how many threads."""
    margin = predictor.judge.margin(size)
    seen = torch.ones(count, *(side + 2 * more for side, more in zip(size, margin, strict=True)), dtype=torch.bool)
    image = torch.zeros(count, channels, *seen.shape[1:])
    plain = Intensity((-math.inf,) * channels, (math.inf,) * channels, (0.0,) * channels, (1.0,) * channels)
    with predictor.judge.threads() as threads, ThreadPoolExecutor(threads) as pool:

        def judge(_: int) -> None:
            predictor.judge(image, seen, [plain] * len(predictor.judge.networks), torch.zeros(count, 3), size)

        list(pool.map(judge, range(2 * threads)))
    return threads


def check_room(paths: Sequence[Path], shape: Size3, specs: Sequence[MapSpec]) -> tuple[int, int]:
    """Bytes of disk that maps take at most while they are made, and how many are free.

    Side files have every pixel once, uncompressed; beside them all maps are made, one after the other, from overviews of its own.
    What an interrupted command has left of the side files is room that is there.

    Args:
        paths: of the maps.
        shape: of the maps, (D, H, W).
        specs: what they hold.

    Raises:
        DataError: There is less room.
    """
    sides = [math.prod(shape) * spec.dtype.itemsize * (len(spec.classes) if spec.heatmap else 1) for spec in specs]
    wanted = round(sum(sides) * (1 + PYRAMID) + max(sides) * (PYRAMID - 1))
    there = paths[0].parent
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free + sum(side.stat().st_size for side in map(side_file, paths) if side.exists())
    if free < wanted:
        raise DataError(
            f"Making {paths[0]} takes up to {size(wanted)} of disk, and {there} has {size(free)} left. Free some "
            "disk space, or name another output."
        )
    return wanted, free
