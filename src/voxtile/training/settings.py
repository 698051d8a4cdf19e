"""How long and how to train, as plain values: what checks a configuration needs no more."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """How long and how to train; every field but `log_every` and `save_every` is part of the run's identity.

    Attributes:
        steps: optimizer steps.
        minutes: of training (validations are not counted) after which it ends as if that had been the last step; None for no limit.
        batch_size: samples per step over all devices.
        accumulate: parts that a device's share of a batch is cut into, to fit its memory; the gradient is the same.
        val_every: steps between validations.
        log_every: steps between rows of the training loss.
        save_every: steps between saves of the resume state, besides one at each validation.
        clip: largest norm of the gradient, None for no limit.
        ema: decay of the exponential moving average of the weights, which is then what is validated; None for none.
        patience: validations without a better score after which training stops; None for never.
        monitor: name of the score that chooses the best weights; larger is better.
        channels_last: memory order of the network's inputs and weights (2D).
        compile: whether training passes go through `torch.compile`.
        groups: learning rates of named parameters, see `parameter_groups`.
        norm_statistics: batches of the sample stream's beginning, without augmentation, over which batch normalisation's
            statistics are measured anew before each validation, as SegNet's authors do; None keeps the running averages.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    val_every: int = 100
    log_every: int = 10
    save_every: int = 100
    clip: float | None = None
    ema: float | None = None
    patience: int | None = None
    monitor: str = "dice"
    channels_last: bool = True
    compile: bool = False
    groups: list[Any] = field(default_factory=list)
    norm_statistics: int | None = None
    minutes: float | None = None

    def next_validation(self, step: int) -> int:
        """The first step after `step` that is followed by a validation."""
        return min(step - step % self.val_every + self.val_every, self.steps)
