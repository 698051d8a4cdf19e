"""A dense CRF on what windows were blended to: on whole slices, and on large ones in blocks with real context around them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from voxtile.cases.case import Case
from voxtile.cases.window import Size3, Window
from voxtile.data.normalise import Intensity
from voxtile.inference.procedure import crf_image

if TYPE_CHECKING:
    from voxtile.inference.crf import DenseCRF
    from voxtile.inference.predictor import Band

WHOLE = 2**20  # pixels of the largest slice that is refined in one piece
BLOCK_SIDE = 1024  # side of a block of a larger one, without what is seen around it


def reach(crf: DenseCRF, shape: Size3) -> int:
    """How far around itself a block sees, in pixels: all of a slice of up to `WHOLE` pixels, else as far as its pixels are pulled.

    Args:
        crf: beyond twice the deviation of its widest kernel in use, next to nothing reaches a pixel.
        shape: of the case, (D, H, W).
    """
    _, height, width = shape
    if height * width <= WHOLE:
        return max(height, width)
    kernels = ((crf.bilateral_weight, crf.bilateral_position), (crf.smooth_weight, crf.smooth_position))
    return math.ceil(2 * max((position for weight, position in kernels if weight), default=0))


def refined(
    bands: Iterable[Band], crf: DenseCRF, case: Case, intensity: Intensity, done: Collection[Window], threads: int
) -> Iterator[Band]:
    """The bands with the CRF's probabilities in the place of the network's, in their order.

    What a pixel gets depends on the case and the bands' windows alone, so a map that is continued has the same bits. Bands are held
    back until all that they see has come: rows of a slice up to `reach`, or nothing more where each is a slab of whole slices.

    Args:
        bands: of `case`, in reading order. Those that no missing one sees may be incomplete, or left out.
        crf: the CRF.
        case: where the image is read.
        intensity: how the case is normalised, which gives the range that the CRF sees.
        done: windows of bands that are not to be refined; others may see them.
        threads: how many slices or blocks are worked on at once; the result does not depend on it.
    """
    far = reach(crf, case.shape)
    refiner = _Refiner(crf, case, intensity, far, threads)
    held: list[Band] = []  # of one slice or slab, without a gap, as far back as the next band sees
    waiting: list[Band] = []
    for band in bands:
        # Another slice begins, or what lies between was not wanted.
        if held and (band.window.z, band.window.y) != (held[-1].window.z, held[-1].window.stop[1]):
            yield from refiner.finish(waiting, held)
            held, waiting = [], []
        held.append(band)
        if band.window not in done:
            waiting.append(band)
        while waiting and held[-1].window.stop[1] >= waiting[0].window.stop[1] + far:
            yield from refiner.refine([waiting.pop(0)], held)
            first = (waiting[0] if waiting else held[-1]).window.y - far
            held = [each for each in held if each.window.stop[1] > first]
    yield from refiner.finish(waiting, held)


class _Refiner:
    def __init__(self, crf: DenseCRF, case: Case, intensity: Intensity, far: int, threads: int) -> None:
        self.crf, self.case, self.intensity, self.far, self.threads = crf, case, intensity, far, threads
        self.whole = far >= max(case.shape[1:])
        self.side = far if self.whole else BLOCK_SIDE

    def finish(self, waiting: Sequence[Band], held: Sequence[Band]) -> Iterator[Band]:
        """The last bands of a slice. Where each sees all of it, it is refined once; else each is refined as it always is."""
        if self.whole and waiting:
            done = {band.window for band in held} - {band.window for band in waiting}
            yield from (band for band in self.refine(held, held) if band.window not in done)
        elif not self.whole:
            for band in waiting:
                yield from self.refine([band], held)

    def refine(self, wanted: Sequence[Band], held: Sequence[Band]) -> Iterator[Band]:
        """Refines bands that follow one another, in blocks that see `far` pixels of what is held around them."""
        area, around = _joined(wanted), _joined(held)
        seen = torch.cat([band.probabilities for band in held], dim=2).cpu().numpy()
        valid = np.concatenate([band.valid for band in held], axis=1)
        rows, columns = range(area.y, area.stop[1], self.side), range(area.x, area.stop[2], self.side)
        blocks = [
            Window.of((area.z, y, x), (area.depth, self.side, self.side)).clipped(area.stop) for y, x in product(rows, columns)
        ]
        found = torch.cat([band.probabilities for band in wanted], dim=2).cpu()

        def refine_block(block: Window) -> None:
            box = block.grown((0, self.far, self.far)).clipped(self.case.shape)
            image, _ = self.case.read(box)
            at, scaled = box.within(around), crf_image(torch.from_numpy(image), self.intensity).numpy()
            better = self.crf.refine(seen[:, *at], scaled, valid[at], self.threads if len(blocks) == 1 else 1)
            found[(slice(None), *block.within(area))] = torch.from_numpy(better[:, *block.within(box)])

        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(refine_block, blocks))
        for band in wanted:
            yield replace(band, probabilities=found[(slice(None), *band.window.within(area))])


def _joined(bands: Sequence[Band]) -> Window:
    """The window of bands that follow one another in a slice or slab."""
    first, last = bands[0].window, bands[-1].window
    return Window.of(first.start, (first.depth, last.stop[1] - first.y, first.width))
