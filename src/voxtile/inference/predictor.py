"""Predicting a whole case through windows, in memory that does not grow with the case."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from voxtile.cases.case import Case
from voxtile.cases.tiling import Tile, tiles
from voxtile.cases.window import Size3, Window
from voxtile.data.batches import Batch, ReadAhead, collate, flattened
from voxtile.data.normalise import Intensity, normalise
from voxtile.inference.procedure import Procedure, crf_image, monte_carlo, rotated_mean
from voxtile.inference.refining import reach, refined
from voxtile.models.network import logits_of, margin_of

if TYPE_CHECKING:  # numba takes half a second to import
    from voxtile.inference.crf import Judged


@dataclass(frozen=True)
class Band:
    """A finished part of a case: no later window reaches into it.

    Attributes:
        window: where it lies; bands of a case partition it.
        probabilities: float32 [K, d, h, w], NaN where the image holds no data.
        valid: which pixels hold data [d, h, w].
        variance: of the probabilities over Monte-Carlo samples, averaged over classes [d, h, w]; None without sampling.
    """

    window: Window
    probabilities: Tensor
    valid: NDArray[np.bool_]
    variance: Tensor | None = None

    def classes(self) -> NDArray[np.uint8]:
        """The most probable class of each pixel [d, h, w], 255 where the image holds no data."""
        # max is several times faster than argmax over a strided axis on the CPU, and gives the same first maximum.
        best = self.probabilities.max(dim=0).indices.to(torch.uint8).numpy()
        best[~self.valid] = 255
        return best


class Predictor:
    """Runs a network over cases by sliding windows.

    Windows overlap, and their softmax probabilities are joined by weights that sum to one in every pixel. What a window sees
    beyond its own pixels (`margin` of the network) is read from the case and mirrored only at the case's border.
    """

    def __init__(
        self,
        network: nn.Module,
        size: Size3,
        overlap: float = 0.25,
        batch_size: int = 8,
        device: str | torch.device = "cpu",
        precision: torch.dtype = torch.float32,
        workers: int = 2,
        procedure: Procedure | None = None,
    ) -> None:
        """Takes the network into evaluation mode on `device`.

        Args:
            network: maps [B, C, H, W] ([B, C, D, H, W] if its `dims` is 3) to logits of the same size.
            size: (depth, height, width) of the windows.
            overlap: share of a window's side that the next one repeats.
            batch_size: windows per forward pass.
            device: where the network runs.
            precision: float32, or a lower one for autocast.
            workers: reading threads.
            procedure: how a window's probabilities are found; None for one forward pass.
        """
        self.network = network.to(device).eval()
        self.size, self.overlap, self.batch_size = size, overlap, batch_size
        self.device, self.precision, self.workers = torch.device(device), precision, workers
        self.planar = getattr(network, "dims", 2) == 2
        self.procedure = procedure or Procedure()
        self._classes: int | None = None

    def bands(self, case: Case, intensity: Intensity, done: Collection[Window] = ()) -> Iterator[Band]:
        """Predicts `case`, normalised by `intensity`, and yields its bands in reading order.

        Args:
            case: the case.
            intensity: how it is normalised.
            done: windows of bands that an earlier call has yielded; they are not yielded again, and what only they need is
                not computed.
        """
        crf = self.procedure.crf
        if crf is None:
            bands = self._blended(case, intensity, done, 0)
        else:
            far = reach(crf, case.shape) if self.planar else 0  # other bands are slabs of whole slices
            bands = refined(self._blended(case, intensity, done, far), crf, case, intensity, done, max(1, self.workers))
        yield from (band for band in bands if band.window not in done)

    def whole(self, case: Case, intensity: Intensity) -> Judged:
        """Probabilities, image, label and validity of a labelled case that fits into memory, as `crf.search` takes them."""
        bands = list(self.bands(case, intensity))
        everything = Window.whole(case.shape)
        probabilities, valid = torch.empty(len(bands[0].probabilities), *case.shape), np.empty(case.shape, dtype=np.bool_)
        for band in bands:
            probabilities[(slice(None), *band.window.slices)] = band.probabilities
            valid[band.window.slices] = band.valid
        image, _ = case.read(everything)
        numbers = (torch.from_numpy(values) for values in intensity.arrays().values())
        return probabilities.numpy(), crf_image(torch.from_numpy(image), *numbers).numpy(), case.read_label(everything), valid

    def _blended(self, case: Case, intensity: Intensity, done: Collection[Window], margin: int) -> Iterator[Band]:
        """All bands; those that are done and farther than `margin` rows from a missing one may lack windows, or classes."""
        found = tiles(case.shape, self.size, self.overlap)
        joiner = _Joiner(case.shape, self.planar)
        wanted = joiner.rows_needed(found, done, margin)
        judged = self._judged(case, intensity, [tile for tile in found if joiner.row(tile.window) in wanted])
        for tile in found:
            ready = joiner.add(tile, *next(judged)) if joiner.row(tile.window) in wanted else joiner.pass_by(tile)
            yield from map(self._finished, ready)
        yield from map(self._finished, joiner.rest())

    def _finished(self, band: Band) -> Band:
        if not self.procedure.samples or not len(band.probabilities):
            return band
        return replace(band, probabilities=band.probabilities[:-1], variance=band.probabilities[-1])

    def _judged(self, case: Case, intensity: Intensity, found: Sequence[Tile]) -> Iterator[tuple[Tensor, NDArray[np.bool_]]]:
        """Probabilities [K, d, h, w] and validity [d, h, w] of windows, in order, computed in batches that are read ahead."""
        batches = [found[i : i + self.batch_size] for i in range(0, len(found), self.batch_size)]
        for batch in ReadAhead(lambda: batches, lambda part: self._read(case, intensity, part), self.workers):
            yield from zip(self._judge(batch), (valid.numpy() for valid in batch["valid"]), strict=True)

    def _read(self, case: Case, intensity: Intensity, part: Sequence[Tile]) -> Batch:
        samples = []
        for tile in part:
            margins = zip(margin_of(self.network), self.procedure.margin(tile.window.size), strict=True)
            around = tile.window.grown([a + b for a, b in margins])
            image, valid = case.read(around, pad="reflect")
            samples.append({"image": image, "seen": valid, "valid": valid[tile.window.within(around)]})
            samples[-1]["start"] = np.array(tile.window.start)
        return collate([sample | intensity.arrays() for sample in samples])

    def _judge(self, batch: Batch) -> Tensor:
        """Probabilities [B, K, d, h, w] of a batch's windows, on the CPU; 0 for windows without data, which are not sent."""
        held = batch["valid"].flatten(1).any(dim=1)
        if self._classes is None:
            held[0] = True  # the first window of all tells how many classes there are
        size = batch["valid"].shape[1:]
        if not held.any():
            return torch.zeros(len(held), self._classes or 0, *size)
        moved = {key: value.to(self.device, non_blocking=True) for key, value in batch.items() if isinstance(value, Tensor)}
        image = normalise(moved["image"], moved["seen"], moved["low"], moved["high"], moved["mean"], moved["std"])
        image = image[held.to(image.device)]
        if self.planar:
            image = flattened({"image": image})["image"]
        starts = batch["start"][held]
        probabilities = self._probabilities(image, starts, size[1:]).cpu()
        if self.planar:
            probabilities = probabilities[:, :, None]
        self._classes = probabilities.shape[1]
        if held.all():
            return probabilities
        everywhere = torch.zeros(len(held), self._classes, *size)
        everywhere[held] = probabilities
        return everywhere

    def _probabilities(self, image: Tensor, starts: Tensor, size: Sequence[int]) -> Tensor:
        """Probabilities [B, K, …] of images with margin around `size` (h, w), by the procedure; one map more where it samples."""
        procedure = self.procedure

        def softmax(each: Tensor) -> Tensor:
            with torch.inference_mode(), self._autocast():
                logits: Tensor = logits_of(self.network, each)
            return torch.softmax(logits.float(), dim=1)

        def averaged(each: Tensor) -> Tensor:
            return rotated_mean(softmax, each, size, procedure.rotations)

        once = averaged if procedure.rotations > 1 else softmax
        if procedure.samples:
            return monte_carlo(once, self.network, image, starts, procedure.samples)
        return once(image)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)


class _Joiner:
    """Sums weighted windows into a buffer as thick as one window and hands out what no later window can reach.

    The buffer moves along y within a slice where windows are planar, else along z.
    """

    def __init__(self, shape: Size3, planar: bool) -> None:
        self.shape, self.planar = shape, planar
        self.axis = 1 if planar else 0
        self.box: Window | None = None
        self.total = torch.empty(0)
        self.valid = np.empty(0, dtype=np.bool_)

    def add(self, tile: Tile, probabilities: Tensor, valid: NDArray[np.bool_]) -> Iterator[Band]:
        """Adds the probabilities [K, d, h, w] of one window."""
        yield from self.pass_by(tile)
        assert self.box is not None
        if not len(self.total):
            self.total = torch.zeros((len(probabilities), *self.box.size))
        at = tile.window.within(self.box)
        self.valid[at] |= valid
        z, y, x = (torch.from_numpy(axis) for axis in tile.weights)
        weights = (y[:, None] * x)[None] if self.planar else z[:, None, None] * y[:, None] * x
        self.total[(slice(None), *at)] += probabilities * weights

    def pass_by(self, tile: Tile) -> Iterator[Band]:
        """Moves the buffer to the row of a window without adding anything."""
        if self.box is None or self.row(tile.window) != self.row(self.box):
            yield from self._move(tile.window)

    def rows_needed(self, found: Sequence[Tile], done: Collection[Window], margin: int) -> set[tuple[int, ...]]:
        """The rows of windows that reach into a band which is not done, or closer to it than `margin`."""
        boxes = {self.row(tile.window): self._box(tile.window) for tile in found}
        if not done:
            return set(boxes)
        starts = list(boxes)
        planes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for row in starts:
            planes.setdefault(row[:-1], []).append(row)
        needed = set()
        for number, (row, box) in enumerate(boxes.items()):
            after = starts[number + 1] if number + 1 < len(starts) else None
            same_plane = after is not None and after[:-1] == row[:-1]
            rows = after[-1] - row[-1] if after is not None and same_plane else box.size[self.axis]
            size = [rows if a == self.axis else side for a, side in enumerate(box.size)]
            if Window.of(box.start, size) not in done:
                first, last = row[-1] - margin, row[-1] + rows + margin
                side = box.size[self.axis]
                needed |= {r for r in planes[row[:-1]] if r[-1] < last and r[-1] + side > first}
        return needed

    def rest(self) -> Iterator[Band]:
        """What is left in the buffer after the last window."""
        if self.box is not None:
            yield from self._hand_out(self.box.size[self.axis])
            self.box = None

    def row(self, window: Window) -> tuple[int, ...]:
        """What windows that need the same place of the buffer have in common."""
        return window.start[: self.axis + 1]

    def _box(self, window: Window) -> Window:
        """The buffer's place for a window: as thick as the window, as wide as the case."""
        size = [window.size[a] if a <= self.axis else self.shape[a] for a in range(3)]
        return Window.of([window.start[a] if a <= self.axis else 0 for a in range(3)], size)

    def _move(self, window: Window) -> Iterator[Band]:
        """Hands out what lies before `window` and moves the buffer to its row."""
        axis = self.axis
        box = self._box(window)
        kept = 0
        if self.box is not None:
            same_plane = self.box.start[:axis] == box.start[:axis]
            done = box.start[axis] - self.box.start[axis] if same_plane else self.box.size[axis]
            yield from self._hand_out(min(done, self.box.size[axis]))
            kept = max(0, self.box.size[axis] - done) if same_plane else 0
        total, valid = self.total, self.valid
        self.valid = np.zeros(box.size, dtype=np.bool_)
        self.total = torch.zeros((len(total), *box.size))
        if kept:
            old = (slice(None),) * axis + (slice(-kept, None),)
            new = (slice(None),) * axis + (slice(0, kept),)
            self.valid[new] = valid[old]
            self.total[(slice(None), *new)] = total[(slice(None), *old)]
        self.box = box

    def _hand_out(self, rows: int) -> Iterator[Band]:
        assert self.box is not None
        if rows <= 0:
            return
        part = (slice(None),) * self.axis + (slice(0, rows),)
        size = [rows if a == self.axis else length for a, length in enumerate(self.box.size)]
        probabilities, valid = self.total[(slice(None), *part)].clone(), self.valid[part].copy()
        probabilities[:, torch.from_numpy(~valid)] = torch.nan
        yield Band(Window.of(self.box.start, size), probabilities, valid)
