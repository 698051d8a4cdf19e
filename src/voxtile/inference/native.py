"""From the working grid back to that of the file: probabilities, slice by slice, before anybody decides for a class."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from voxtile.cases.case import Case
from voxtile.cases.window import Window
from voxtile.cases.working import OnWorkingGrid, linear_taps, turned_back
from voxtile.data.batches import ReadAhead
from voxtile.data.normalise import Intensity
from voxtile.inference.predictor import Band, Predictor

Made = TypeVar("Made")


def of_each(bands: Iterable[Band], work: Callable[[Band], Made], device: torch.device) -> Iterable[Made]:
    """What `work` makes of each band, in order.

    Args:
        bands: the bands.
        work: what is done with each.
        device: where they lie, see `Predictor.sums`. A GPU is given the next windows meanwhile, so that it need not wait for what
            is done with the band before. On a CPU the networks want all processors, and a band more takes as much memory again.
    """
    return ReadAhead(lambda: bands, work, 0 if device.type == "cpu" else 1, ahead=1)


def slices_held(predictor: Predictor, case: Case, by_slices: bool = False) -> tuple[int, int]:
    """How many maps of slices `native_bands` holds at most: on the working grid, and on that of the file.

    Those of the working grid are what the next slice of the file is made of, their mean, and what is added to it; with the variance
    behind them, a row's maps are copied. Where the grids differ, that mean becomes a slice of the file in two steps.
    """
    if not (by_slices or isinstance(case.image, OnWorkingGrid)):
        return 0, 0
    thick = max(row.band.depth for strip in predictor.plan(case) for row in strip)
    taps = max(len(weights) for _, weights in linear_taps(case.native.shape[_order(case)[0]], case.shape[0]))
    return thick * predictor.procedure.varies + taps + 2, 2 if isinstance(case.image, OnWorkingGrid) else 0


def native_windows(predictor: Predictor, case: Case, by_slices: bool = False) -> list[Window]:
    """The windows of the bands that `native_bands` yields, in order."""
    if not (by_slices or isinstance(case.image, OnWorkingGrid)):
        return [row.band for strip in predictor.plan(case) for row in strip]
    order = _order(case)
    shape = [case.native.shape[axis] for axis in order]
    return [turned_back(Window(z, 0, 0, 1, shape[1], shape[2]), order) for z in range(shape[0])]


def native_bands(
    predictor: Predictor,
    case: Case,
    intensity: Intensity | Sequence[Intensity],
    done: Collection[Window] = (),
    by_slices: bool = False,
) -> Generator[Band, None, None]:
    """Predicts `case` and yields finished bands on its native grid; see `Predictor.bands`.

    Where the working grid is another one, bands are slices across the axis along which networks saw slices. Their probabilities
    are interpolated linearly from the slices of the working grid, few of which are held at a time.

    Args:
        predictor: judges windows of the working grid.
        case: the case.
        intensity: see `Predictor.bands`.
        done: windows of bands that are not wanted; what only they need is not computed.
        by_slices: whether bands are slices also where the working grid is that of the file.
    """
    if not (by_slices or isinstance(case.image, OnWorkingGrid)):
        yield from predictor.bands(case, intensity, done)
        return
    order, native = _order(case), case.native
    windows = native_windows(predictor, case, by_slices)
    turned = tuple(native.shape[axis] for axis in order)
    taps = linear_taps(turned[0], case.shape[0])
    waiting = [number for number, window in enumerate(windows) if window not in done]
    needed = {z for number in waiting for z in range(taps[number][0], taps[number][0] + len(taps[number][1]))}
    rows = [row.band for strip in predictor.plan(case) for row in strip]
    skipped = {band for band in rows if not needed.intersection(range(band.z, band.stop[0]))}
    slices: OrderedDict[int, Tensor] = OrderedDict()
    for z, probabilities in _slices(predictor.bands(case, intensity, skipped), case.shape[1:]):
        slices[z] = probabilities
        while waiting and taps[waiting[0]][0] + len(taps[waiting[0]][1]) - 1 <= z:
            number = waiting.pop(0)
            first, weights = taps[number]
            parts = [(weight, slices[first + place]) for place, weight in enumerate(weights.tolist()) if weight]
            # Nothing here names the band: whoever takes it decides how long it lives, and a slice may be large.
            yield _band(native, windows[number], order, _resized(_mean(parts), turned[1:]), predictor)
            del parts
            while waiting and slices and next(iter(slices)) < taps[waiting[0]][0]:
                slices.popitem(last=False)


def _order(case: Case) -> Sequence[int]:
    """Where each axis (z, y, x) of the working grid comes from."""
    return case.image.order if isinstance(case.image, OnWorkingGrid) else (0, 1, 2)


def _slices(bands: Iterator[Band], plane: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Whole slices [K, H, W] of the working grid as they become complete, with 0 for NaN; the variance is one map more."""
    held: dict[int, Tensor] = {}
    filled: dict[int, int] = {}
    for band in bands:
        maps = (band.probabilities if band.variance is None else torch.cat([band.probabilities, band.variance[None]])).cpu()
        for offset in range(band.window.depth):
            z = band.window.z + offset
            if z not in held:
                held[z], filled[z] = torch.empty(len(maps), *plane), 0
            held[z][:, *band.window.slices[1:]] = torch.nan_to_num(maps[:, offset])
            filled[z] += band.window.height * band.window.width
            if filled[z] == plane[0] * plane[1]:
                yield z, held.pop(z)


def _mean(parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The weighted mean of one or more slices, a tensor of its own."""
    (first, maps), *others = parts
    mean = first * maps
    for weight, maps in others:
        mean += weight * maps
    return mean


def _resized(maps: Tensor, plane: Sequence[int]) -> Tensor:
    if tuple(maps.shape[1:]) == tuple(plane):
        return maps
    return functional.interpolate(maps[None], tuple(plane), mode="bilinear", align_corners=False, antialias=True)[0]


def _band(native: Case, window: Window, order: Sequence[int], maps: Tensor, predictor: Predictor) -> Band:
    """A band of the native grid, from maps [K, H, W] of a slice, in whose memory it lies where it can."""
    back = [list(order).index(axis) for axis in range(3)]
    maps = maps[:, None].permute(0, *(axis + 1 for axis in back)).contiguous()
    varies = predictor.procedure.varies
    # Where pixels without data were seen, probabilities sum to less than one, and the variance is too small by the same share.
    total = (maps[:-1] if varies else maps).sum(dim=0)
    held: NDArray[np.bool_] = native.read(window)[1] & (total > 0).numpy()
    maps.div_(total).masked_fill_(torch.from_numpy(~held), torch.nan)
    probabilities, variance = (maps[:-1], maps[-1]) if varies else (maps, None)
    return Band(window, probabilities, held, variance, predictor.regions)
