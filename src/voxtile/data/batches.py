"""Samples to batches, read ahead by threads.

Reading runs beside the training step, and a batch made in a thread need not be shipped between processes. What it costs
against worker processes is measured by bench/reading.py; docs/decisions.md has the figures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

import numpy as np
import torch

Batch = dict[str, Any]
Made = TypeVar("Made")


def collate(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """Stacks samples with the same keys and shapes; images of different data types are promoted to one that holds them all."""
    out: Batch = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if isinstance(first, Mapping):
            out[key] = collate(values)
        elif isinstance(first, np.ndarray):
            stacked = np.array(values)  # in a tenth of the time of np.stack, where arrays are small
            native = stacked.dtype.newbyteorder("=")  # torch knows the machine's byte order only
            out[key] = torch.from_numpy(stacked.astype(native, copy=False))
        else:
            out[key] = torch.tensor(values)
    return out


def flattened(batch: Batch) -> Batch:
    """Takes the depth axis of length 1 away: image [B, C, h, w], valid and label [B, h, w]."""
    axes = {"image": 2, "valid": 1, "label": 1}
    return {key: value.squeeze(axes[key]) if key in axes else value for key, value in batch.items()}


class ReadAhead(Generic[Made]):
    """Iterates over `make(item)` for each item, in order, made ahead of use by threads, or by the caller where `workers` is 0.

    Each batch is made by one thread from first to last pixel, so what it holds does not depend on the number of threads.
    """

    def __init__(self, items: Callable[[], Iterable[Any]], make: Callable[[Any], Made], workers: int, ahead: int = 2) -> None:
        """Remembers what to make.

        Args:
            items: called at the start of each iteration; its result is gone through in order.
            make: reads one item; called from several threads.
            workers: number of threads.
            ahead: batches made ahead per thread.
        """
        self.items, self.make, self.workers, self.ahead = items, make, workers, ahead
        # Threads outlive an iteration, and with them the files that they hold open and GDAL's decoded blocks.
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="read") if workers else None

    def __iter__(self) -> Iterator[Made]:
        items = self.items()
        if self._pool is None:
            for item in items:
                yield self.make(item)
                del item  # its memory is wanted for the next one
            return
        waiting: deque[Future[Made]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(self.make, item))
                del item
                if len(waiting) > self.ahead * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)  # what is being read is read to its end: nobody takes files away from under it
