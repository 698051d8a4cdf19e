"""Predicting a whole case through windows, in memory that does not grow with the case."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from voxtile.cases.case import Case
from voxtile.cases.tiling import Tile
from voxtile.cases.window import IGNORE, Size3, Window
from voxtile.data.batches import ReadAhead
from voxtile.data.normalise import Intensity, exact
from voxtile.inference.buffers import Buffers
from voxtile.inference.decoding import best_class, best_class_on_device, class_in_regions, class_in_regions_on_device
from voxtile.inference.judge import Judge
from voxtile.inference.procedure import Procedure, crf_image
from voxtile.inference.refining import reach, refined
from voxtile.inference.rows import WIDEST, Row, needed, strips

if TYPE_CHECKING:  # numba takes half a second to import
    from voxtile.inference.crf_search import Judged


WIDE_BELOW = 256  # pixels of a window's height up to which a GPU's memory takes wider strips, with many classes, too
BATCHES_AHEAD = 2  # batches for each thread that are judged before they are joined
VERSION = 3  # of how a case is judged: raise it when the same networks and settings say something else


@dataclass(frozen=True)
class Band:
    """A finished part of a case: no later window reaches into it.

    Attributes:
        window: where it lies; bands of a case partition it.
        probabilities: float32 [K, d, h, w] where the predictor has its `sums`, NaN where the image holds no data.
        valid: which pixels hold data [d, h, w].
        variance: of the probabilities over Monte-Carlo samples, or networks, averaged over classes [d, h, w]; None for neither.
        regions: class indices of each region that `classes` decides for; none for the most probable class.
    """

    window: Window
    probabilities: Tensor
    valid: NDArray[np.bool_]
    variance: Tensor | None = None
    regions: Sequence[Sequence[int]] = ()

    def classes(self) -> NDArray[np.uint8]:
        """The class of each pixel [d, h, w], see `decoding`; 255 where the image holds no data."""
        if self.probabilities.device.type != "cpu":  # a byte for each pixel leaves the device
            found = self.probabilities
            on_it = class_in_regions_on_device(found, self.regions) if self.regions else best_class_on_device(found)
            best = on_it.cpu().numpy()
        else:
            probabilities = self.probabilities.numpy()
            best = class_in_regions(probabilities, self.regions) if self.regions else best_class(probabilities)
        if not self.valid.all():
            best[~self.valid] = IGNORE
        return best


@dataclass(frozen=True)
class _Slab:
    """What a row of windows sees.

    Attributes:
        window: where it lies.
        held: which pixels hold data [d, h, w].
        pixels: [C, d, h, w]; where rows are kept on a GPU they are floats, for which it has every operation.
        seen: as `held`, where the pixels are.
        whole: whether all pixels hold data.
    """

    window: Window
    held: NDArray[np.bool_]
    pixels: NDArray[Any] | Tensor
    seen: NDArray[np.bool_] | Tensor
    whole: bool

    def areas(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """Pixels [B, C, d, h, w] and validity [B, d, h, w] of windows of one size, of tensors those that differ in x only."""
        inner = [window.within(self.window) for window in windows]
        if isinstance(self.pixels, Tensor) and isinstance(self.seen, Tensor):
            columns = _columns(windows, self.window, self.pixels.device)
            cut = (array[..., *inner[0][:2], :].index_select(-1, columns) for array in (self.pixels, self.seen))
            pixels, seen = (each.reshape(*each.shape[:-1], len(windows), -1).movedim(-2, 0).contiguous() for each in cut)
            return pixels, seen
        pixels_of, seen_of = ([array[..., *area] for area in inner] for array in (self.pixels, self.seen))
        return _stacked(pixels_of), _stacked(seen_of)


@dataclass(frozen=True)
class _Judged:
    """What the networks say of some of a row's windows.

    Attributes:
        count: how many they are.
        tiles: those of them that hold data.
        weighted: of each of these, probabilities times its share in each pixel [n, K, d, h, w].
        slab: what the row's windows see.
    """

    count: int
    tiles: Sequence[Tile]
    weighted: Tensor
    slab: _Slab


# Of a row: where what later rows add to lies, and its sums so far [K, d, h, w].
_Rest = tuple[Window, Tensor]


class Predictor:
    """Runs a network over cases by sliding windows.

    Windows overlap, and their softmax probabilities are joined by weights that sum to one in every pixel. What a window sees
    beyond its own pixels (`margin` of the network) is read from the case and mirrored only at the case's border. A case that is
    smaller than the windows of the training is seen as there: in the middle of one, the rest of which holds no data, or the case's
    mirror image for a network with a margin.

    Attributes:
        widest: pixels of the widest strip of a scene, see `strips`; None, which a CRF needs, for bands as wide as the case.
    """

    def __init__(
        self,
        networks: nn.Module | Sequence[nn.Module],
        size: Size3,
        overlap: float = 0.25,
        batch_size: int | None = None,
        device: str | torch.device = "cpu",
        precision: torch.dtype = torch.float32,
        workers: int = 2,
        procedure: Procedure | None = None,
        regions: Sequence[Sequence[int]] = (),
        trained_on: Size3 = (1, 1, 1),
    ) -> None:
        """Takes the networks into evaluation mode on `device`.

        Args:
            networks: one, or several whose probabilities are averaged; see `Judge`.
            size: (depth, height, width) of the windows.
            overlap: share of a window's side that the next one repeats.
            batch_size: most windows per forward pass; None for as many as have, with what is seen around them, about 2^16 pixels
                on the CPU, where more only takes more memory, and 2^21 on a GPU.
            device: where the networks run.
            precision: float32, or a lower one for autocast.
            workers: 0 for reading without a thread of its own.
            procedure: how a window's probabilities are found; None for one forward pass.
            regions: class indices of each region of the data set, by which classes are decided.
            trained_on: (depth, height, width) of the training's windows; of several networks' that differ, the largest sides.
        """
        self.procedure, self.regions, self.trained_on = procedure or Procedure(), regions, trained_on
        self.judge = Judge([networks] if isinstance(networks, nn.Module) else networks, device, precision, self.procedure)
        self.size, self.overlap, self.batch_size, self.workers = size, overlap, batch_size, workers
        self.widest = None if self.procedure.crf else WIDEST
        if self.widest and self.judge.device.type != "cpu" and size[1] <= WIDE_BELOW:
            self.widest = 2 * WIDEST  # a GPU is done with a narrower row before it has been asked for the next one

    @property
    def sums(self) -> torch.device:
        """Where rows are kept, windows are joined, and bands lie.

        Strips of scenes are bounded. Slabs of volumes are not: with many classes they are larger than a card's memory. A CRF works
        on the CPU.
        """
        return self.judge.device if self.judge.planar and self.widest else torch.device("cpu")

    @property
    def decoding_threads(self) -> int:
        """How many threads may decode blocks of a scene for one read: on a CPU the networks need the processors."""
        return 1 if self.judge.device.type == "cpu" else min(16, os.cpu_count() or 1)

    @property
    def in_bulk(self) -> bool:
        """Whether windows are cut out and joined by few operations on many: asking a GPU takes longer than what it does then."""
        return self.sums.type != "cpu"

    def bands(self, case: Case, intensity: Intensity | Sequence[Intensity], done: Collection[Window] = ()) -> Iterator[Band]:
        """Predicts `case`, normalised by `intensity`, and yields its bands in the order of `strips`.

        Args:
            case: the case.
            intensity: how it is normalised, one for each network where there are several.
            done: windows of bands that an earlier call has yielded; they are not yielded again, and what only they need is
                not computed.
        """
        intensities = [intensity] if isinstance(intensity, Intensity) else list(intensity)
        crf = self.procedure.crf
        if crf is None:
            bands = self._blended(case, intensities, done, 0)
        else:
            far = reach(crf, case.shape) if self.judge.planar else 0  # other bands are slabs of whole slices
            bands = self._blended(case, intensities, done, far)
            bands = refined(bands, crf, case, intensities[0], done, max(1, self.workers))
        for band in bands:
            if band.window not in done:
                yield band
            del band  # whoever took it decides how long it lives

    def plan(self, case: Case) -> tuple[tuple[Row, ...], ...]:
        """The rows of windows of `case`, by strips; each row ends in one band."""
        return strips(case.shape, self.size, self.overlap, self.judge.planar, self.widest)

    def whole(self, case: Case, intensity: Intensity) -> Judged:
        """Probabilities, image, label and validity of a labelled case that fits into memory, as `crf.search` takes them."""
        bands = list(self.bands(case, intensity))
        everything = Window.whole(case.shape)
        probabilities, valid = torch.empty(len(bands[0].probabilities), *case.shape), np.empty(case.shape, dtype=np.bool_)
        for band in bands:
            probabilities[(slice(None), *band.window.slices)] = band.probabilities.cpu()
            valid[band.window.slices] = band.valid
        image, _ = case.read(everything)
        scaled = crf_image(torch.from_numpy(image), intensity).numpy()
        return probabilities.numpy(), scaled, case.read_label(everything), valid

    def _blended(self, case: Case, intensities: Sequence[Intensity], done: Collection[Window], margin: int) -> Iterator[Band]:
        """Bands, in order; those farther than `margin` pixels from one that is missing are left out, or lack windows."""
        wanted = [needed(strip, done, margin) for strip in self.plan(case)]
        judged = self._judged(case, intensities, [row for strip in wanted for row in strip])
        buffers = Buffers()
        for strip in wanted:
            rest: _Rest | None = None
            for row in strip:
                total, slab = self._joined(row, judged, rest, buffers)
                rest = _rest(row, total)
                band = self._finished(row.band, total, slab)
                del total, slab  # whoever takes the band decides how long it lives
                yield band
                del band

    def _joined(self, row: Row, judged: Iterator[_Judged], rest: _Rest | None, buffers: Buffers) -> tuple[Tensor, _Slab]:
        """Sums what a row's windows say of its box: probabilities [K, d, h, w], complete in its band; and what they see."""
        total, left = torch.empty(0), len(row.tiles)
        while left:
            part = next(judged)
            left -= part.count
            if not len(total):
                total = self._begun(row, part.weighted.shape[1], rest, buffers)
            if self.in_bulk:
                _add_in_bulk(total, row.box, part)
                continue
            for tile, weighted in zip(part.tiles, part.weighted, strict=True):
                inner = tile.window.clipped_to(row.box)
                place, own = total[(slice(None), *inner.within(row.box))], weighted[(slice(None), *inner.within(tile.window))]
                place.copy_(own) if tile.alone else place.add_(own)
        return total, part.slab

    def _begun(self, row: Row, maps: int, rest: _Rest | None, buffers: Buffers) -> Tensor:
        """A row's sums [K, d, h, w] as the row before has left them; where one window alone lies, or none with data, anything."""
        shape = (maps, *row.box.size)
        total = torch.empty(shape, device=self.sums) if self.in_bulk else torch.from_numpy(buffers.empty(shape, np.float32))
        if not all(tile.alone for tile in row.tiles):
            total.zero_()
        if rest is not None:
            inner = rest[0].clipped_to(row.box)
            total[(slice(None), *inner.within(row.box))] = rest[1][(slice(None), *inner.within(rest[0]))]
        return total

    def _finished(self, window: Window, total: Tensor, slab: _Slab) -> Band:
        probabilities, inner = total[(slice(None), *Window.whole(window.size).slices)], window.within(slab.window)
        held = slab.held[inner]
        if not held.all():
            lacking = ~slab.seen[inner]
            probabilities.masked_fill_(lacking if isinstance(lacking, Tensor) else torch.from_numpy(lacking), torch.nan)
        if self.procedure.varies:
            return Band(window, probabilities[:-1], held, probabilities[-1], self.regions)
        return Band(window, probabilities, held, regions=self.regions)

    def _judged(self, case: Case, intensities: Sequence[Intensity], rows: Sequence[Row]) -> Iterator[_Judged]:
        """What the networks say of the windows, in order.

        One thread reads rows ahead, so that each pixel is decoded once however windows overlap.
        """
        buffers = Buffers()
        slabs = ReadAhead(lambda: rows, lambda row: self._read(case, row, buffers), min(self.workers, 1), ahead=1)
        batches = ((slab, part) for row, slab in zip(rows, slabs, strict=True) for part in self._parts(case, row))
        with self.judge.threads() as threads:
            if self.judge.classes is None and (first := next(batches, None)):  # it tells how many classes there are
                yield self._judged_part(case, intensities, *first)
            yield from ReadAhead(
                lambda: batches, lambda batch: self._judged_part(case, intensities, *batch), threads, BATCHES_AHEAD
            )

    def at_once(self, case: Case, row: Row) -> int:
        """Most windows of a row in one forward pass."""
        if self.batch_size:
            return self.batch_size
        window = self.shown(case, row.tiles[:1])[0]
        pixels = window.grown(self.judge.margin(window.size)).pixels
        return int(max(1, 2 ** (16 if self.judge.device.type == "cpu" else 21) // pixels))

    def _parts(self, case: Case, row: Row) -> Iterator[Sequence[Tile]]:
        """A row's windows in batches of nearly one size, which do not depend on what else is to be done."""
        tiles = row.tiles
        count = -(-len(tiles) // self.at_once(case, row))
        for number in range(count):
            yield tiles[number * len(tiles) // count : (number + 1) * len(tiles) // count]

    def shown(self, case: Case, part: Sequence[Tile]) -> list[Window]:
        """What the networks judge for some of a row's windows: those that span a small case are filled up."""
        return [tile.window.filled(case.shape, self.trained_on) for tile in part]

    def seen(self, case: Case, row: Row) -> Window:
        """All that is read for a row: what the networks judge, and what they see around it."""
        boxes = [window.grown(self.judge.margin(window.size)) for window in self.shown(case, row.tiles)]
        low, high = np.min([box.start for box in boxes], axis=0), np.max([box.stop for box in boxes], axis=0)
        return Window.of(low, high - low)

    def _read(self, case: Case, row: Row, buffers: Buffers) -> _Slab:
        """Pixels and validity of all that a row's windows see."""
        window, device = self.seen(case, row), self.sums
        shape = (case.inputs, *window.size)
        if not self.in_bulk:
            own = buffers.empty(shape, case.dtype)
            held = self._held(case, row, case.read_into(own, window, "reflect"))
            return _Slab(window, held, own, held, bool(held.all()))
        # From memory that is pinned, nobody waits for the copy; PyTorch keeps the memory until it is done.
        pinned, stored = device.type == "cuda", torch.from_numpy(np.empty(0, case.dtype)).dtype
        waiting = torch.empty(shape, dtype=stored, pin_memory=pinned)
        held = self._held(case, row, case.read_into(waiting.numpy(), window, "reflect"))
        seen = torch.empty(window.size, dtype=torch.bool, pin_memory=pinned)
        seen.numpy()[...] = held
        pixels = waiting.to(device, non_blocking=True).to(exact(stored))
        return _Slab(window, held, pixels, seen.to(device, non_blocking=True), bool(held.all()))

    def _held(self, case: Case, row: Row, held: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which pixels of a slab, of which those past the border are mirrored, hold data for the networks.

        In training a network without a margin sees nothing around a small case, one with a margin its mirror image;
        where both judge together, what has a margin decides.
        """
        window = self.seen(case, row)
        if not any(self.judge.own_margin):
            for axis, (length, side) in enumerate(zip(case.shape, self.shown(case, row.tiles[:1])[0].size, strict=True)):
                if length < side:
                    beyond = np.ones(window.size[axis], dtype=np.bool_)
                    beyond[-window.start[axis] :][:length] = False
                    held[(slice(None),) * axis + (beyond,)] = False
        return held

    def _judged_part(self, case: Case, intensities: Sequence[Intensity], slab: _Slab, part: Sequence[Tile]) -> _Judged:
        """What the networks say of some of a row's windows, where it is joined."""
        # A window without data is not sent to the network, but for the first one of all.
        sent = [tile for tile in part if slab.whole or slab.held[tile.window.within(slab.window)].any()]
        if not sent and self.judge.classes is not None:
            return _Judged(len(part), (), torch.empty(0, self.judge.classes, device=self.sums), slab)
        sent = sent or list(part[:1])
        windows = self.shown(case, sent)
        size, margin = windows[0].size, self.judge.margin(windows[0].size)
        image, seen = slab.areas([window.grown(margin) for window in windows])
        starts = torch.tensor([tile.window.start for tile in sent])
        probabilities = self.judge(image, seen, intensities, starts, size)
        inner = sent[0].window.within(windows[0])
        weighted = _weighted(probabilities[:, :, *inner], sent).to(self.sums)
        return _Judged(len(part), sent, weighted, slab)


def _stacked(parts: Sequence[Any]) -> Tensor:
    """Arrays or tensors as one tensor with an axis more; one array by itself is not copied, unless it must not be written to."""
    if isinstance(parts[0], Tensor):
        return torch.stack(list(parts))
    return torch.from_numpy(parts[0][None] if len(parts) == 1 and parts[0].flags.writeable else np.stack(parts))


def _columns(windows: Sequence[Window], outer: Window, device: torch.device) -> Tensor:
    """Numbers of the columns of windows of one width, one window's after the other's, in an array that holds `outer`."""
    starts = torch.tensor([window.x - outer.x for window in windows]).to(device, non_blocking=True)
    return (starts[:, None] + torch.arange(windows[0].width, device=device)).flatten()


def _add_in_bulk(total: Tensor, box: Window, part: _Judged) -> None:
    """Adds slices' windows to the sums [K, d, h, w] of a row's box, those that do not touch at once."""
    windows, every = [tile.window for tile in part.tiles], 1
    while any(window.stop[2] > later.x for window, later in zip(windows, windows[every:], strict=False)):
        every += 1
    for first in range(min(every, len(windows))):
        own = windows[first::every]
        columns = _columns(own, box, total.device)
        maps = part.weighted[first::every].movedim(0, -2).flatten(-2)
        # They are in order: what reaches out of a strip is the beginning of the first one, or the end of the last.
        begin, end = max(0, box.x - own[0].x), len(columns) - max(0, own[-1].stop[2] - box.stop[2])
        at, maps = columns[begin:end], maps[..., begin:end]
        if all(tile.alone for tile in part.tiles):
            total.index_copy_(-1, at, maps)
        else:
            total.index_add_(-1, at, maps)


def _weighted(probabilities: Tensor, tiles: Sequence[Tile]) -> Tensor:
    """Windows' probabilities [B, K, d, h, w] times their shares in each pixel, in place."""
    if all(tile.alone for tile in tiles):
        return probabilities
    axes = (np.stack(axis) for axis in zip(*(tile.weights for tile in tiles), strict=True))
    z, y, x = (torch.from_numpy(axis).to(probabilities.device, non_blocking=True) for axis in axes)
    return probabilities.mul_(z[:, None, :, None, None] * (y[:, None, None, :, None] * x[:, None, None, None]))


def _rest(row: Row, total: Tensor) -> _Rest:
    """The part of a row's box behind its band, copied so that the band does not keep it alive."""
    start, size = list(row.box.start), list(row.box.size)
    start[row.axis] += row.thick
    size[row.axis] -= row.thick
    window = Window.of(start, size)
    inner = window.within(row.box)
    return window, total[(slice(None), *inner)].clone()
