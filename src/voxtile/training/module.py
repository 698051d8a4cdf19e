"""The LightningModule: one step of training, one pass of validation, and the state that makes both repeatable."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from voxtile.data.augment import Augment
from voxtile.data.batches import Batch, flattened
from voxtile.data.datamodule import VoxtileData
from voxtile.data.normalise import NUMBERS, normalise
from voxtile.data.rng import digest, seed_torch
from voxtile.errors import RunError, listed
from voxtile.inference.decoding import classes_of_logits
from voxtile.models.network import ScoreMap, dims_of, logits_of, margin_of, score_maps
from voxtile.scores.confusion import CaseConfusion, check_monitor, summarise
from voxtile.training import sharding
from voxtile.training.average import follow
from voxtile.training.compiling import compiled
from voxtile.training.losses import Loss, surrogate
from voxtile.training.norms import measurable, measure, unmoved
from voxtile.training.schedules import Schedule
from voxtile.training.settings import Settings

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]


def scaler_state(trainer: lightning.Trainer) -> dict[str, Any] | None:
    """The loss scale of half precision, None in other precisions."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else dict(scaler.state_dict())


class NotFiniteError(RunError):
    """The loss or its gradient is no number any more."""


class SegmentationModule(lightning.LightningModule):
    """Trains a network that maps images to logits, and scores it per case.

    All that happens in step i follows from the weights before it and (seed, i): the samples, their augmentation, dropout.
    Counters are the module's own (`step`), not Lightning's, so that a run continued from `state` takes the same steps.

    Attributes:
        record: takes the run's numbers, (step, {name: value}); `fit` puts one here that keeps them.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        augment: Augment,
        make_optimizer: MakeOptimizer,
        schedule: Schedule,
        settings: Settings,
        seed: int,
        classes: Sequence[str],
        background: int | None,
        training: Sequence[str],
        validation: Sequence[str],
        parameters: Callable[[nn.Module], Iterable[Any]],
        regions: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Takes the parts.

        Args:
            network: image [B, C, (D,) H, W] to logits [B, K, (D,) H, W].
            loss: of additive statistics.
            augment: what is done to a batch.
            make_optimizer: builds the optimizer of parameter groups.
            schedule: learning-rate factor by step.
            settings: how long and how.
            seed: of the run.
            classes: names of the K classes.
            background: class left out of means over foreground, or None.
            training: ids of the training cases, in the order of the sample stream.
            validation: ids of the validation cases.
            parameters: cuts the network's parameters into groups for the optimizer.
            regions: class indices of each region, by its name.
        """
        super().__init__()
        self.automatic_optimization = False
        self.network, self.loss, self.augment, self.schedule = network, loss, augment, schedule
        self.make_optimizer, self.settings, self.seed = make_optimizer, settings, seed
        self.classes, self.background, self.groups_of = tuple(classes), background, parameters
        self.regions = dict(regions or {})
        self.training_cases, self.validation_cases = tuple(training), tuple(validation)
        self.planar = dims_of(network) == 2
        *_, self.margin = margin_of(network)
        # PyTorch has no such order for the weights of 3D convolutions, which a network of slices may hold.
        self.channels_last = settings.channels_last and self.planar and all(p.ndim < 5 for p in network.parameters())
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        # Validation judges by the network as it is, like `evaluate`: kernels that are compiled round otherwise.
        self.trained = compiled(network) if settings.compile else partial(logits_of, network)
        self.average = copy.deepcopy(network).requires_grad_(False) if settings.ema is not None else None
        check_monitor(settings.monitor, self.classes, self.regions)
        self.record: Callable[[int, Mapping[str, float]], None] = lambda step, values: None
        self.gathered: nn.Module | None = None  # of weights that are cut over devices, a copy as of the latest validation
        self.confusion = CaseConfusion(len(validation), len(classes))
        self.val_statistics = torch.zeros(loss.size, dtype=torch.float64)
        # How far the run has come: what `state` returns.
        self.step = 0
        self.pending = False  # whether the validation after `step` is still to come
        self.best: dict[str, Any] = {}  # {"score", "step", "scores"} of the best validation
        self.stale = 0  # validations since
        self.seconds = 0.0  # of training so far, validations not counted
        self.last_loss = math.nan
        self._recent_losses: list[float] = []  # since the last logged row
        # As they were saved, until the optimizer and the loss scale exist.
        self._optimizer_state: dict[str, Any] | None = None
        self._scaler_state: dict[str, Any] | None = None
        # Of the step under way, and of the latest validation.
        self._clock = 0.0  # when the step began
        self._batch: Batch = {}
        self._loss = torch.zeros(())
        self.scores: dict[str, float] = {}
        self.counts = np.zeros((len(validation), len(classes), len(classes)), dtype=np.int64)  # confusion matrix of each case

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and kept: the average of the weights where there is one."""
        if self.gathered is not None:
            return self.gathered
        return self.network if self.average is None else self.average

    def shard(self) -> None:
        """Cuts weights, gradients and the optimizer's state over the devices, before the optimizer is made.

        Whole weights are gathered for validations only, for which devices have unequally many windows, and when the state is saved.
        """
        self.gathered = copy.deepcopy(self.evaluated).requires_grad_(False)
        for network in filter(None, (self.network, self.average)):
            sharding.shard(network)

    @property
    def remarks(self) -> list[str]:
        """Settings that do nothing with this network; an experiment may hold them for another."""
        if self.settings.norm_statistics is None or measurable(self.network):
            return []
        return [
            f"'training.norm_statistics={self.settings.norm_statistics}' is of no effect: this network has no batch normalisation "
            "whose statistics could be measured"
        ]

    @property
    def done(self) -> bool:
        """Whether nothing is left to train or validate."""
        return not self.pending and (self.step >= self.settings.steps or self.out_of_time or self._out_of_patience)

    @property
    def out_of_time(self) -> bool:
        """Whether the minutes of training that the run was given are over."""
        return self.settings.minutes is not None and self.seconds >= 60 * self.settings.minutes

    @property
    def _out_of_patience(self) -> bool:
        return self.settings.patience is not None and self.stale >= self.settings.patience

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on, in plain types and tensors; devices that share weights must ask for it together."""
        optimizer = self._optimizer_state
        if self._trainer is not None and self.trainer.optimizers:
            optimizer = self.trainer.optimizers[0].state_dict()
            self._scaler_state = scaler_state(self.trainer)
        state = {
            "step": self.step,
            "pending": self.pending,
            "best": self.best,
            "stale": self.stale,
            "seconds": self.seconds,
            "losses": list(self._recent_losses),
            "last_loss": self.last_loss,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": optimizer,
            "scaler": self._scaler_state,
        }
        if self.gathered is None:
            return state
        together: dict[str, Any] = sharding.whole(state)
        return together

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned; the optimizer's part when the optimizer is made."""
        self.step, self.pending, self.best, self.stale = state["step"], state["pending"], state["best"], state["stale"]
        self._recent_losses, self.last_loss, self.seconds = list(state["losses"]), state["last_loss"], state["seconds"]
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self._optimizer_state, self._scaler_state = state["optimizer"], state["scaler"]

    def configure_optimizers(self) -> Optimizer:
        """Builds the optimizer and takes up its saved state."""
        optimizer = self.make_optimizer(self.groups_of(self.network))
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        if self._optimizer_state is not None:
            state = self._optimizer_state
            if self.gathered is not None:
                state = sharding.cut(state, optimizer)
            optimizer.load_state_dict(state)
        return optimizer

    def on_fit_start(self) -> None:
        """Takes up the saved loss scale of half precision."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and self._scaler_state:
            scaler.load_state_dict(self._scaler_state)

    def on_train_epoch_start(self) -> None:
        """Starts the clock of a stretch of training."""
        self._clock = monotonic()

    def inputs(self, batch: Batch, augment: bool, context: bool = False) -> tuple[Tensor, Tensor]:
        """Normalised (and augmented) images float32 [B, C, (D,) H, W] and labels uint8 [B, (D,) H, W] of a batch.

        Images are larger than labels by the network's margin on each side in the plane (and along the depth of volumes), unless
        labels that were read with it, as those of training are, keep it as `context`.
        """
        image = normalise(batch["image"], batch["valid"], **{name: batch[name] for name in NUMBERS})
        ready = {"image": image, "valid": batch["valid"], "label": batch["label"]}
        if self.planar:
            ready = flattened(ready)
        image, label = ready["image"], ready["label"]
        if augment:
            image, _, label = self.augment.apply(image, ready["valid"], label, batch["augment"])
            if self.margin and not context:  # read with it, so that what is turned or bent into the window has a label
                label = self.inner(label)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return image, label

    def inner(self, array: Tensor) -> Tensor:
        """What lies inside the network's margin of [B, …, (D,) H, W]."""
        edges = (slice(self.margin, -self.margin or None),) * (2 if self.planar else 3)
        return array[(..., *edges)]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Takes one optimizer step on this device's share of a batch."""
        self._batch = batch
        self._seed_dropout()
        image, label = self.inputs(batch, augment=True, context=True)
        # Each device makes as many parts, however many samples are its share: all wait for one another in every part.
        count = self.settings.accumulate
        parts = list(zip(image.tensor_split(count), label.tensor_split(count), strict=True))
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        factor = self._set_rates(optimizer.optimizer)
        optimizer.zero_grad()
        self._loss = self._gradients(parts)
        optimizer.step()
        if self.average is not None and self.settings.ema is not None:
            follow(self.average, self.network, self.settings.ema)
        self.step += 1
        self._count_time()
        self._log_loss(factor)

    def _seed_dropout(self) -> None:
        """From here on dropout and its like draw numbers that belong to this step and rank alone."""
        of = (self.seed, self.step, self.global_rank, "dropout")
        seed_torch(self.device, *of)
        # Nothing of ours draws from these, but networks and losses of users may.
        np.random.seed(digest(*of) >> 96)  # noqa: NPY002  # it is this one that is drawn from, and it takes 32 bits
        random.seed(digest(*of))

    def _set_rates(self, optimizer: Optimizer) -> float:
        """Sets each group's rate for this step, and returns the schedule's factor."""
        factor = self.schedule.factor(self.step, self.settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return factor

    def _gradients(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Adds up this device's share of the gradient of the whole batch's loss, part by part, and returns that loss.

        Each part's share follows from its own statistics and from those of the whole batch, see `surrogate`. Those are known
        before the first backward: from a first look at all scores, from the labels alone, or as the only part's own.
        """
        loss, of_batch = self.loss, self._first_look(parts)
        summed = torch.zeros((), device=self.device)
        for image, label in parts:
            maps = score_maps(self.trained(image))  # of every part with the same grids and weights
            of_part = self._statistics(maps, label)
            if of_batch is None:  # only now are the grids known
                of_batch = self._summed(of_part.detach() if len(parts) == 1 else self._label_statistics(maps, parts))
            shares = [each.weight * surrogate(loss, own, total) for each, own, total in zip(maps, of_part, of_batch, strict=True)]
            self.manual_backward(torch.stack(shares).sum() * self.trainer.world_size)  # devices take the mean of their gradients
            summed = summed + of_part.detach()
        value = torch.zeros((), device=self.device)
        for each, total in zip(maps, self._summed(summed), strict=True):
            value = value + each.weight * loss.value(total)
        return value

    def _first_look(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor | None:
        """The statistics [M, S] of the whole batch's M score maps, where gradients need all scores before any part's backward."""
        if not self.loss.needs_logits_first or len(parts) == 1:
            return None
        total = torch.zeros((), device=self.device)
        # Running statistics, and dropout's numbers, must be after it what they were before.
        with torch.no_grad(), unmoved(self.network):
            for image, label in parts:
                total = total + self._statistics(score_maps(self.trained(image)), label)
        self._seed_dropout()
        return self._summed(total)

    def _statistics(self, maps: Sequence[ScoreMap], label: Tensor) -> Tensor:
        """The statistics [M, S] of a part's maps."""
        return torch.stack([self.loss.statistics(each.logits, *self._judging(each, label)) for each in maps])

    def _label_statistics(self, maps: Sequence[ScoreMap], parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The statistics [M, S] of the whole batch as far as its labels give them, on the grids of the first part's maps."""
        each = [torch.stack([self.loss.label_statistics(*self._judging(grid, label)) for grid in maps]) for _, label in parts]
        return torch.stack(each).sum(dim=0)

    def _judging(self, grid: ScoreMap, label: Tensor) -> tuple[Tensor, int]:
        """The label that judges a map, and by how much it is larger on each side: it keeps its context where the grids are one."""
        return (label, self.margin) if grid.rows is None else (grid.label(self.inner(label)), 0)

    def _summed(self, statistics: Tensor) -> Tensor:
        """The sum of every rank's statistics."""
        if self.trainer.world_size == 1:
            return statistics
        own = statistics.detach().to(self.device)
        # Added in the ranks' order: backends reduce in orders of their own, and sums of floats depend on them.
        gathered = [torch.empty_like(own) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(gathered, own)
        return torch.stack(gathered).sum(dim=0)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips the gradient, which half precision has scaled back by now, and refuses it, and a loss, that are not finite."""
        if self.settings.clip is not None:
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        norm = sharding.summed(norm).to(self._loss)
        # Read together, once: each reading waits for all that a GPU has still to do.
        loss, length = torch.stack([self._loss, norm]).tolist()
        self._refuse_infinite("loss", loss)
        # Half precision's scaler expects infinite gradients now and then, and leaves the step out itself.
        if scaler_state(self.trainer) is None:
            self._refuse_infinite("gradient", length)
        self.last_loss = loss

    def _refuse_infinite(self, what: str, value: float) -> None:
        """Refuses a loss or gradient of the step under way that is no number."""
        if not math.isfinite(value):
            raise NotFiniteError(
                f"The {what} became {value} at step {self.step} of {self.settings.steps}, on samples of the cases "
                f"{listed(self._case_ids())}. The weights before this step are kept. Lower the learning rate "
                "('optimizer.lr=…'), clip the gradient ('training.clip=1'), or look at these cases with 'voxtile check'."
            )

    def _case_ids(self) -> list[str]:
        """The cases that the batch was drawn from, on all devices: they see the same loss and gradient."""
        own = sorted({self.training_cases[index] for index in self._batch["case"].tolist()})
        if self.trainer.world_size == 1:
            return own
        each: list[list[str]] = [[] for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather_object(each, own)
        return sorted({name for names in each for name in names})

    def _count_time(self) -> None:
        """Counts from one step's end to the next: waiting for a batch and saving are training too."""
        now = monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        if self.settings.minutes is not None:  # all devices end by the clock of the first
            self.seconds = self.trainer.strategy.broadcast(self.seconds)

    def _log_loss(self, factor: float) -> None:
        """Keeps a step's loss; every `log_every` steps, records the mean since the last row, and the rate."""
        self._recent_losses.append(self.last_loss)
        if self.step % self.settings.log_every == 0:
            mean = sum(self._recent_losses) / len(self._recent_losses)
            rate = self.trainer.optimizers[0].defaults["lr"] * factor  # groups may have other ones
            self.record(self.step, {"train/loss": mean, "train/lr": rate})
            self._recent_losses.clear()

    def on_validation_epoch_start(self) -> None:
        """Starts counting anew, and measures batch normalisation's statistics where that is asked for."""
        self.confusion.reset()
        self.val_statistics.zero_()
        self._share_buffers()
        if self.gathered is not None:
            sharding.gather(self.network if self.average is None else self.average, self.gathered)
        if self.settings.norm_statistics is not None:
            self._measure_norms(self.settings.norm_statistics)

    def _share_buffers(self) -> None:
        """Gives every device the running statistics of the first, whose weights are kept: each has seen its own samples only."""
        if self.trainer.world_size > 1:
            for network in filter(None, (self.network, self.average)):
                for buffer in network.buffers():
                    torch.distributed.broadcast(buffer, 0)

    def _measure_norms(self, count: int) -> None:
        """Measures batch normalisation's statistics on the stream's first batches, not augmented.

        Training itself does not use them, so measuring them changes no later step.
        """
        data: VoxtileData = self.trainer.datamodule  # type: ignore[attr-defined]  # what `fit` gave the trainer
        moved = (data.transfer_batch_to_device(batch, self.device, 0) for batch in data.first_batches(count))
        images = (self.inputs(batch, augment=False)[0] for batch in moved)

        def run(image: Tensor) -> None:
            with self.trainer.precision_plugin.forward_context():  # Lightning enters it for its steps only
                logits_of(self.evaluated, image)

        measure(self.evaluated, images, run)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts one batch of windows; pixels that belong to another window's core carry the ignore index."""
        image, label = self.inputs(batch, augment=False)
        logits = logits_of(self.evaluated, image)
        self.val_statistics += self.loss.statistics(logits, label).double().cpu()
        self.confusion.update(batch["case"], classes_of_logits(logits, list(self.regions.values())), label)

    def on_validation_epoch_end(self) -> None:
        """Turns the counts into scores and remembers whether they are the best."""
        self.counts = self.confusion.compute().cpu().numpy()
        self.scores = summarise(self.counts, self.classes, self.background, self.regions)
        self.scores["loss"] = float(self.loss.value(self._summed(self.val_statistics)))
        score = self.scores[self.settings.monitor]
        self.record(self.step, {f"val/{name}": value for name, value in self.scores.items()})
        if not self.best or score > self.best["score"] or (math.isnan(self.best["score"]) and not math.isnan(score)):
            self.best, self.stale = {"score": score, "step": self.step, "scores": self.scores}, 0
        else:
            self.stale += 1
        self.pending = False
