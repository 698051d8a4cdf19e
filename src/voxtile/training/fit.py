"""Training a run in its folder: from wherever it stands to the end, or to the next interruption."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from voxtile.cases.atomic import atomic_write
from voxtile.cases.tiling import Tile, tiles
from voxtile.data.batches import collate
from voxtile.data.datamodule import VoxtileData
from voxtile.errors import RunError, VoxtileError, reason
from voxtile.inference.decoding import classes_of_logits
from voxtile.models.network import logits_of
from voxtile.training import pictures
from voxtile.training.metrics_file import MetricsFile
from voxtile.training.module import SegmentationModule
from voxtile.training.run_folder import RunFolder
from voxtile.training.weights import digests, load_resume, save_weights

MOST_PICTURES = 4


class InterruptedRunError(VoxtileError):
    """The user, or the system, asked the run to stop; its state is saved."""

    exit_code = 130
    label = "Interrupted"


class StopRequest:
    """Remembers that Ctrl-C or SIGTERM came, so that the step under way can end and be saved; a second Ctrl-C ends at once.

    Of several processes only the first `listens`: it saves and leaves, and the others are ended then.
    """

    def __init__(self, listens: bool = True) -> None:
        self.listens = listens
        self.signal: int | None = None

    def __call__(self, number: int, frame: object) -> None:
        """The signal handler."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number  # SIGTERM may come twice, once from whoever ends a group of processes

    def install(self) -> None:
        """Takes over SIGINT and SIGTERM; again after Lightning has put its own handler there."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self if self.listens else signal.SIG_IGN)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handlers as they were, afterwards."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Keeper(lightning.Callback):
    """Saves what a run needs to go on: every so many steps, before each validation, after it, and when asked to stop.

    Of several devices the first saves: all hold the same.
    """

    def __init__(self, folder: RunFolder, metrics: MetricsFile | None, stop: StopRequest, command: str) -> None:
        self.folder, self.metrics, self.stop, self.command = folder, metrics, stop, command

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Puts our signal handlers before Lightning's."""
        self.stop.install()

    on_validation_start = on_train_start

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves where the schedule or a signal says so."""
        assert isinstance(pl_module, SegmentationModule)
        settings = pl_module.settings
        # Weights that are cut must be saved by all together, at the step at which the first has heard.
        asked = self.stop.signal if pl_module.whole is None else trainer.strategy.broadcast(self.stop.signal)
        ending = pl_module.out_of_time
        pl_module.pending = ending or pl_module.step == settings.next_validation(pl_module.step - 1)
        if ending:  # in the middle of a stretch; Lightning validates before it stops
            trainer.should_stop = True
        if pl_module.pending or pl_module.step % settings.save_every == 0 or asked is not None:
            self.save(pl_module)
        self._leave_if_asked(pl_module, asked)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Leaves a validation that is under way; it is taken up again from its start."""
        assert isinstance(pl_module, SegmentationModule)
        self._leave_if_asked(pl_module, self.stop.signal)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keeps the best weights, then the state, in this order: a kill between the two repeats the validation."""
        assert isinstance(pl_module, SegmentationModule)
        self.folder.check_held()
        if self.metrics is not None and pl_module.best["step"] == pl_module.step:
            self.folder.write("validation.json", {"step": pl_module.step, "cases": pl_module.counts}, indent=None)
            save_weights(pl_module.judged, self.folder.weights / "best.safetensors", pl_module.step)
        self.save(pl_module)
        if self.metrics is not None:
            self.folder.set_status("running", step=pl_module.step, steps=pl_module.settings.steps, best=pl_module.best)
        if pl_module.done:
            trainer.should_stop = True

    def save(self, module: SegmentationModule) -> None:
        """Writes the resume state, whole or not at all."""
        if self.metrics is None and module.whole is None:
            return
        state = module.state()
        if self.metrics is None:
            return
        self.folder.check_held()
        state |= {"metrics": self.metrics.sync()}
        try:
            atomic_write(self.folder.resume, lambda making: torch.save(state, making))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
            raise RunError(
                f"The state of the run could not be saved to {self.folder.resume}: {reason(error)}. What was saved before is still "
                "there. Free some disk space and give the same command again, with 'retry=true'."
            ) from error

    def _leave_if_asked(self, module: SegmentationModule, asked: int | None) -> None:
        if asked is not None and self.metrics is not None:  # others wait, and are ended once the first has left
            raise InterruptedRunError(
                f"Stopped by {signal.Signals(asked).name} at step {module.step} of {module.settings.steps}; the state "
                f"is saved in {self.folder.path}. The same command continues it: {self.command}"
            )


class Reporter(lightning.Callback):
    """A progress bar on a terminal, a line per validation everywhere, and sample pictures."""

    def __init__(self, console: Console, data: VoxtileData, folder: RunFolder) -> None:
        self.console, self.data, self.folder = console, data, folder
        self.shown = chosen_windows(data)
        self.began = time.monotonic()
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Shows the bar."""
        assert isinstance(pl_module, SegmentationModule)
        self.task = self.bar.add_task("training", total=pl_module.settings.steps, completed=pl_module.step, loss="")
        if pl_module.settings.compile:
            self.console.print("compiling the network: the first step takes longer, often a minute", highlight=False)
        self.bar.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar."""
        assert isinstance(pl_module, SegmentationModule)
        self.bar.update(self.task, completed=pl_module.step, loss=f"{pl_module.last_loss:.3f}")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Says how well it went, and draws it."""
        assert isinstance(pl_module, SegmentationModule)
        scores, best = pl_module.scores, pl_module.best["step"] == pl_module.step
        self.console.print(
            f"step {pl_module.step:>6}/{pl_module.settings.steps}  train loss {pl_module.last_loss:.4f}  val loss "
            f"{scores['loss']:.4f}  dice {scores['dice']:.4f}  iou {scores['iou']:.4f}  {time.monotonic() - self.began:.0f} "
            f"s{'  best' if best else ''}",
            highlight=False,
        )
        if best and trainer.is_global_zero:
            path = draw(pl_module, self.data, self.shown, self.folder.path / "pictures" / "validation.png")
            for logger in trainer.loggers:
                log_picture(logger, path, pl_module.step)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Takes the bar away."""
        self.bar.stop()


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
        """Stops it; a step ends with reading the loss, so a GPU has done its work by now."""
        self.step = time.perf_counter() - self._began

    def on_validation_batch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stops it; a batch ends with counting, for which a GPU must have done its work."""
        self.validation_batch = time.perf_counter() - self._began


def chosen_windows(data: VoxtileData) -> list[tuple[int, Tile]]:
    """Up to four validation windows, each around a pixel of the case's rarest class, of cases spread over the split."""
    split = data.prepared.split.val
    picked = sorted({round(i * (len(split) - 1) / max(1, MOST_PICTURES - 1)) for i in range(min(MOST_PICTURES, len(split)))})
    chosen = []
    for number in picked:
        found = data.prepared.surveys[split[number].id]
        rarest = min((c for c, n in enumerate(found.counts) if n), key=lambda c: int(found.counts[c]))
        pixel = found.locations[rarest][len(found.locations[rarest]) // 2]
        cover = tiles(split[number].shape, data.size)
        tile = next(t for t in cover if all(a <= p < b for a, p, b in zip(t.core.start, pixel, t.core.stop, strict=True)))
        chosen.append((number, Tile(tile.window, tile.window, tile.weights)))
    return chosen


def draw(module: SegmentationModule, data: VoxtileData, shown: Sequence[tuple[int, Tile]], path: Path) -> Path:
    """Draws input, label, prediction and error of the chosen windows (the middle slice of boxes) into a PNG."""
    rows = []
    for number, tile in shown:
        case = data.prepared.split.val[number]
        sample = data.window_of(number, tile)
        window = tile.window.filled(case.shape, data.size)
        seen, inner = tile.window.within(window.grown(data.margin)), tile.window.within(window)
        batch = collate([sample | data.prepared.intensity_of(case).arrays()])
        with torch.inference_mode():
            image, _ = module.inputs({k: v.to(module.device) for k, v in batch.items()}, augment=False)
            logits = logits_of(module.judged.eval(), image)
            classes = classes_of_logits(logits, list(module.regions.values()))[0].to(torch.uint8).cpu().numpy()
        middle = tile.window.depth // 2
        plane = classes[inner[1:]] if module.planar else classes[inner][middle]
        own = sample["image"][case.neighbours :: 1 + 2 * case.neighbours]  # without neighbouring slices
        shown_image, held = own[:, *seen][:, middle], sample["valid"][seen][middle]
        colors = data.prepared.dataset.colors
        picture = pictures.row(shown_image, held, sample["label"][inner][middle], plane, colors, case.grid, case.channels)
        rows.append((f"{case.id}, z y x = {tile.window.start}: input | label | prediction | error", picture))
    return pictures.save(pictures.sheet(rows, data.prepared.dataset.classes, data.prepared.dataset.colors), path)


def log_picture(logger: Logger, path: Path, step: int) -> None:
    """Hands a picture to a logger that takes pictures."""
    if hasattr(logger, "log_image"):
        logger.log_image(key="validation", images=[str(path)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        with Image.open(path) as picture:
            logger.experiment.add_image("validation", np.asarray(picture), step, dataformats="HWC")


def fit(
    module: SegmentationModule,
    data: VoxtileData,
    folder: RunFolder,
    options: Mapping[str, Any],
    loggers: Sequence[Logger],
    console: Console,
    command: str,
    leads: bool = True,
) -> dict[str, Any]:
    """Trains until nothing is left to do.

    Args:
        module: the module, at its start.
        data: its data.
        folder: where the run lives; where it holds a resume state, training goes on there.
        options: of `lightning.Trainer` (accelerator, devices, precision, …).
        loggers: Lightning loggers besides the metrics file.
        console: where progress is shown.
        command: what the user types to continue.
        leads: whether this process is the only, or the first, of those that train the run together: it writes into the folder.

    Returns:
        The best validation: {"score", "step", "scores"}.

    Raises:
        InterruptedRunError: A signal came; the state is saved.
        RunError: The loss became NaN, or a file could not be written.
    """
    state = load_resume(folder.resume)
    if state is not None:
        try:
            module.load_state(state)
            size = int(state["metrics"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise RunError(
                f"{folder.resume} is no state of this run: {reason(error)}. Delete it to train the run from its start."
            ) from error
        console.print(f"continuing at step {module.step} of {module.settings.steps}", highlight=False)
    metrics = MetricsFile(folder.metrics, 0 if state is None else size) if leads else None

    def record(step: int, values: Mapping[str, float]) -> None:
        if metrics is None:
            return
        folder.check_held()
        metrics.add(step, values)
        for logger in loggers:
            logger.log_metrics(dict(values), step)

    module.record = record
    stop = StopRequest(leads)
    keeper = Keeper(folder, metrics, stop, command)
    making = bare_trainer(
        [keeper, Reporter(console, data, folder)] if leads else [keeper],
        max_epochs=-1,
        logger=list(loggers) or False,
        default_root_dir=folder.path,
        **options,
    )
    with stop.installed(), making as trainer:
        try:
            if module.pending:
                trainer.validate(module, datamodule=data, verbose=False)
            if not module.done:
                trainer.fit(module, datamodule=data)
        except SystemExit as end:  # what Lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from end
    if not module.done:
        raise RunError(
            f"Training ended at step {module.step} of {module.settings.steps} although nobody asked it to. The state is saved in "
            f"{folder.path}; the same command continues it."
        )
    folder.check_held()
    if metrics is None:
        return module.best
    save_weights(module.judged, folder.weights / "last.safetensors", module.step)
    metrics.sync()
    weights = digests(folder.weights)
    folder.set_status("finished", step=module.step, steps=module.settings.steps, best=module.best, weights=weights)
    folder.resume.unlink(missing_ok=True)
    return module.best


@contextmanager
def bare_trainer(callbacks: Sequence[lightning.Callback], **options: Any) -> Iterator[lightning.Trainer]:
    """A Lightning trainer that only loops, places and casts; logging, saving and progress are ours.

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
        yield lightning.Trainer(
            callbacks=list(callbacks), num_sanity_val_steps=0, use_distributed_sampler=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, **options,
        )  # fmt: skip
