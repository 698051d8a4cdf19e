"""Lightning's trainer without its own logging, saving, progress and handling of signals, and what times its steps."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning


@contextmanager
def bare_trainer(callbacks: Sequence[lightning.Callback], **options: Any) -> Iterator[lightning.Trainer]:
    """A Lightning trainer that only loops, places and casts; logging, saving, progress and handling of signals are ours.

    Args:
        callbacks: its callbacks.
        options: further options of `lightning.Trainer`.
    """
    for name in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Remarks on choices that are meant.
        for text in (
            ".*does not have many workers.*",  # ours are threads
            ".*`max_epochs` was not set.*",
            ".*is smaller than the logging interval.*",
            ".*Trying to infer the `batch_size`.*",
            ".*Starting from v1.9.0, `tensorboardX`.*",
            ".*returned a view tensor.*",  # logits that are cropped, of weights that are cut; nothing writes into them
            ".*LeafSpec.* is deprecated.*",  # torch 2.14 of lightning 2.6
        ):
            warnings.filterwarnings("ignore", text)
        trainer = lightning.Trainer(
            callbacks=list(callbacks), num_sanity_val_steps=0, use_distributed_sampler=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, **options,
        )  # fmt: skip
        # Whoever trains has handlers of its own. Lightning's would take their place, and at SIGTERM wait for the other processes,
        # which are not told.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]  # no option does it
        yield trainer


class StepTimes(lightning.Callback):
    """Measures the latest training step and validation batch: the first ones pay for warming up.

    Attributes:
        step: seconds of a training step.
        validation_batch: seconds of a validation batch.
    """

    def __init__(self) -> None:
        self.step = self.validation_batch = self._began = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stops it; a step reads the loss and the gradient's norm, so a GPU has done all but the optimizer's update by now."""
        self.step = time.perf_counter() - self._began

    def on_validation_batch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stops it; a batch ends with counting, for which a GPU must have done its work."""
        self.validation_batch = time.perf_counter() - self._began
