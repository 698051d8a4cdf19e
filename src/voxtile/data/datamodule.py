"""Prepared data as Lightning wants it: batches of the sample stream, and the fixed batches of validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch

from voxtile.cases.tiling import Tile, tiles
from voxtile.cases.window import IGNORE, Size3
from voxtile.data.augment import Augment
from voxtile.data.batches import Batch, ReadAhead, collate
from voxtile.data.prepared import Prepared
from voxtile.data.sampling import DEFAULT, Sampling, strategy_of
from voxtile.data.stream import SampleStream

READ = ("augment", "case")  # of a batch, by the CPU, wherever the pixels are
SMALLEST_BATCH = 8  # slices per validation batch: without gradients there is room for more than a small training batch


@dataclass(frozen=True)
class Steps:
    """Which optimizer steps come next, and how big they are.

    Attributes:
        batch_size: samples per step over all devices.
        coming: called before each stretch of training; the steps up to the next validation.
    """

    batch_size: int
    coming: Callable[[], range]


class VoxtileData(lightning.LightningDataModule):
    """Training batches follow the sample stream; validation goes once through every pixel of the validation cases."""

    def __init__(
        self,
        prepared: Prepared,
        size: Size3,
        augment: Augment,
        seed: int,
        steps: Steps,
        balance: float = 0.0,
        workers: int = 2,
        margin: Size3 = (0, 0, 0),
        sampling: Sampling = DEFAULT,
    ) -> None:
        """Makes the stream.

        Args:
            prepared: cases, split, surveys.
            size: (depth, height, width) of training and validation windows.
            augment: draws augmentation parameters.
            seed: of the run.
            steps: which steps come next.
            balance: probability of a class-balanced window.
            workers: reading threads.
            margin: pixels that images have around the window along (z, y, x), see `SampleStream`.
            sampling: how training windows are drawn.
        """
        super().__init__()
        self.prepared, self.size, self.steps, self.workers, self.margin = prepared, size, steps, workers, margin
        self._intensities = prepared.intensities_of(prepared.split.val)
        cases = prepared.split.train
        surveys = [prepared.surveys[case.id] for case in cases]
        maps = [prepared.weight_maps[case.id] for case in cases if prepared.weight_maps]
        balanced = [c for c in range(len(prepared.dataset.classes)) if c != prepared.dataset.background]
        strategy = strategy_of(sampling, cases, surveys, prepared.dataset.classes, balanced, maps)
        self.stream = SampleStream(
            cases, surveys, prepared.intensities_of(cases), size, seed, augment=augment, strategy=strategy, sampling=sampling,
            balance=balance, balanced=balanced, margin=margin,
        )  # fmt: skip

    def train_dataloader(self) -> ReadAhead[Batch]:
        """This device's share of each coming step: samples rank, rank + world, … of the step's batch."""

        def make(step: int) -> Batch:
            rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
            first = step * self.steps.batch_size
            return self._ready(self.stream.batch(range(first + rank, first + self.steps.batch_size, world)))

        return ReadAhead(self.steps.coming, make, self.workers)

    def val_dataloader(self, chosen: Sequence[int] | None = None) -> ReadAhead[Batch]:
        """Fixed batches of windows, none with windows of two cases, dealt out to devices in turn.

        Args:
            chosen: numbers of the cases; all where None.
        """
        batches: list[tuple[int, Sequence[Tile]]] = []
        size = max(self.steps.batch_size, SMALLEST_BATCH if self.size[0] == 1 else 1)
        for number, case in enumerate(self.prepared.split.val):
            found = tiles(case.shape, self.size) if chosen is None or number in chosen else []
            batches += [(number, found[i : i + size]) for i in range(0, len(found), size)]

        def mine() -> Sequence[Any]:
            return batches[self.trainer.global_rank :: self.trainer.world_size] if self.trainer else batches

        return ReadAhead(mine, self._read, self.workers)

    def val_sample(self, count: int) -> ReadAhead[Batch]:
        """At most `count` of the validation's windows, evenly spread over all of them, each as a batch of its own."""
        every = [(number, tile) for number, case in enumerate(self.prepared.split.val) for tile in tiles(case.shape, self.size)]
        chosen = sorted({round(place) for place in np.linspace(0, len(every) - 1, count)})
        return ReadAhead(lambda: [(every[i][0], [every[i][1]]) for i in chosen], self._read, self.workers)

    def first_batches(self, count: int) -> ReadAhead[Batch]:
        """The stream's first batches, whole, the same ones each time."""
        size = self.steps.batch_size

        def make(number: int) -> Batch:
            return self._ready(self.stream.batch(range(number * size, (number + 1) * size)))

        return ReadAhead(lambda: range(count), make, self.workers)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves pixels to the device; what is read on the CPU stays there."""
        return {key: value if key in READ else value.to(device, non_blocking=True) for key, value in batch.items()}

    def _read(self, item: tuple[int, Sequence[Tile]]) -> Batch:
        number, part = item
        return self._ready(collate([self.window_of(number, tile) | self._intensities[number].arrays() for tile in part]))

    def _ready(self, batch: Batch) -> Batch:
        """The batch; what a GPU takes, in memory from which it is copied without anybody waiting."""
        if self.trainer is None or self.trainer.strategy.root_device.type != "cuda":
            return batch
        return {key: value if key in READ else value.pin_memory() for key, value in batch.items()}

    def window_of(self, number: int, tile: Tile) -> dict[str, Any]:
        """One window of a validation case as training would show it, filled up where the case is smaller, and its label.

        The image has the margin around it. The label is the ignore index outside the tile's core and without data.
        """
        case = self.prepared.split.val[number]
        window = tile.window.filled(case.shape, self.size)
        around = window.grown(self.margin)
        image = np.empty((case.inputs, *around.size), dtype=case.dtype)
        valid = case.read_into(image, around, pad="reflect" if any(self.margin) else "constant")
        label = np.full(window.size, IGNORE, dtype=np.uint8)
        label[tile.core.within(window)] = case.read_label(tile.core)
        label[~valid[window.within(around)]] = IGNORE
        return {"image": image, "valid": valid, "label": label, "case": number}
