"""Training a run in its folder: from wherever it stands to the end, or to the next interruption."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from voxtile.cases.atomic import atomic_write
from voxtile.data.datamodule import VoxtileData
from voxtile.errors import RunError, reason
from voxtile.training.metrics_file import MetricsFile, read
from voxtile.training.module import SegmentationModule
from voxtile.training.run_folder import RunFolder
from voxtile.training.stopping import InterruptedRunError, StopRequest
from voxtile.training.trainer import bare_trainer
from voxtile.training.validation_picture import chosen_windows, draw_validation, log_picture
from voxtile.training.weights import digests, load_resume, save_weights

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Keeper(lightning.Callback):
    """Saves what a run needs to go on: every so many steps, before each validation, after it, and when asked to stop.

    Of several devices the first saves: all hold the same.
    """

    def __init__(self, folder: RunFolder, metrics: MetricsFile, stop: StopRequest, command: str, leads: bool) -> None:
        """Takes what it works with.

        Args:
            folder: where the run lives.
            metrics: the run's numbers, brought to the disk with each state.
            stop: whether the run is asked to stop.
            command: what the user types to continue.
            leads: whether this process is the one that saves.
        """
        self.folder, self.metrics, self.stop, self.command, self.leads = folder, metrics, stop, command, leads

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves where the schedule or a signal says so."""
        assert isinstance(pl_module, SegmentationModule)
        step, settings = pl_module.step, pl_module.settings
        # Weights that are cut must be saved by all together, at the step at which the first has heard.
        asked = self.stop.signal if pl_module.gathered is None else trainer.strategy.broadcast(self.stop.signal)
        pl_module.pending = pl_module.out_of_time or step == settings.next_validation(step - 1)
        if pl_module.out_of_time:  # in the middle of a stretch; Lightning validates before it stops
            trainer.should_stop = True
        if pl_module.pending or step % settings.save_every == 0 or asked is not None:
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
        if self.leads and pl_module.best["step"] == pl_module.step:
            counts = dict(zip(pl_module.validation_cases, pl_module.counts.tolist(), strict=True))
            self.folder.write("validation.json", {"step": pl_module.step, "cases": counts}, indent=None)
            save_weights(pl_module.evaluated, self.folder.weights / "best.safetensors", pl_module.step)
        self.save(pl_module)
        if self.leads:
            self.folder.set_status("running", step=pl_module.step, steps=pl_module.settings.steps, best=pl_module.best)
        if pl_module.done:
            trainer.should_stop = True

    def save(self, module: SegmentationModule) -> None:
        """Writes the resume state, whole or not at all."""
        if self.leads:
            self._write(module.state())
        elif module.gathered is not None:  # what is cut over devices must be put together by all of them
            module.state()

    def _write(self, state: dict[str, Any]) -> None:
        self.folder.check_held()
        state |= {"metrics": self.metrics.sync()}
        try:
            atomic_write(self.folder.resume, lambda making: torch.save(state, making))
        except (OSError, RuntimeError) as error:  # of a full disk torch says where in a file it stands
            why = reason(error) if isinstance(error, OSError) else "PyTorch could not write all of it; the disk is probably full"
            raise _unsaved(self.folder, f"The state of the run could not be saved to {self.folder.resume}: {why}") from error

    def _leave_if_asked(self, module: SegmentationModule, asked: int | None) -> None:
        if asked is not None and self.leads:  # others wait, and are ended once the first has left
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
            path = draw_validation(pl_module, self.data, self.shown, self.folder.path / "pictures" / "validation.png")
            for logger in trainer.loggers:
                log_picture(logger, path, pl_module.step)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Takes the bar away."""
        self.bar.stop()


def fit(
    module: SegmentationModule,
    data: VoxtileData,
    folder: RunFolder,
    options: Mapping[str, Any],
    loggers: Sequence[Logger],
    console: Console,
    command: str,
    written: int = 0,
    leads: bool = True,
) -> None:
    """Trains until nothing is left to do.

    Args:
        module: the module, where the run stands: see `take_up`.
        data: its data.
        folder: where the run lives.
        options: of `lightning.Trainer` (accelerator, devices, precision, …).
        loggers: Lightning loggers besides the metrics file.
        console: where progress is shown.
        command: what the user types to continue.
        written: bytes of the metrics file that belong to where the run stands.
        leads: whether this process is the only, or the first, of those that train the run together: it writes into the folder.

    Raises:
        InterruptedRunError: A signal came; the state is saved.
        RunError: The loss became NaN, or a file could not be written.
    """
    if module.step:
        console.print(f"continuing at step {module.step} of {module.settings.steps}", highlight=False)
    metrics, stop = MetricsFile(folder.metrics), StopRequest(leads)
    callbacks: list[lightning.Callback] = [Keeper(folder, metrics, stop, command, leads)]
    if leads:
        with _written_in(folder):
            metrics.start(written)
        module.record = partial(_record, folder, metrics, loggers)
        if module.pending:  # of this step the validation is still to come: its other numbers are told anew, too
            _tell(loggers, {name: float(value) for step, name, value in read(folder.metrics) if step == module.step}, module.step)
        # It draws the best before that is saved, so that a kill in between repeats the validation and the picture.
        callbacks.insert(0, Reporter(console, data, folder))
    making = bare_trainer(callbacks, max_epochs=-1, logger=list(loggers) or False, default_root_dir=folder.path, **options)
    with stop.installed(), _written_in(folder), making as trainer:
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
    if leads:
        with _written_in(folder):
            _finish(module, folder, metrics)


def take_up(module: SegmentationModule, folder: RunFolder) -> int:
    """Puts the module where the run stands, and returns how many bytes its metrics file had there: 0 at the start.

    Raises:
        DamagedStateError: The resume state cannot be read.
        RunError: It is not the module's.
    """
    state = load_resume(folder.resume)
    if state is None:
        return 0
    try:
        module.load_state(state)
        return int(state["metrics"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise RunError(
            f"{folder.resume} is no state of this run: {reason(error)}. Delete it and type 'retry=true': the same command then "
            "trains the run from its start."
        ) from error


@contextmanager
def _written_in(folder: RunFolder) -> Iterator[None]:
    """While this is open, a file of the run's folder for which there is no room is told together with how the run goes on.

    Raises:
        RunError: There is no room for one.
    """
    try:
        yield
    except OSError as error:
        name = error.filename
        if error.errno not in FULL or not isinstance(name, str) or folder.path.absolute() not in Path(name).absolute().parents:
            raise
        raise _unsaved(folder, f"{error.filename} could not be written: {error.strerror}") from error


def _unsaved(folder: RunFolder, what: str) -> RunError:
    kept = "What was saved before is still there" if folder.resume.exists() else "Nothing was saved before"
    return RunError(f"{what}. {kept}. Free some disk space and give the same command again, with 'retry=true'.")


def _record(
    folder: RunFolder, metrics: MetricsFile, loggers: Sequence[Logger], step: int, values: Mapping[str, float]
) -> None:  # fmt: skip
    """Keeps a run's numbers in its metrics file, and hands them to loggers."""
    folder.check_held()
    metrics.add(step, values)
    _tell(loggers, values, step)


def _tell(loggers: Sequence[Logger], values: Mapping[str, float], step: int) -> None:
    for logger in loggers:
        logger.log_metrics(dict(values), step)


def _finish(module: SegmentationModule, folder: RunFolder, metrics: MetricsFile) -> None:
    """Keeps the last weights, then says that the run is finished; only then the state can go."""
    save_weights(module.evaluated, folder.weights / "last.safetensors", module.step)
    metrics.sync()
    digested = {"weights": digests(folder.weights), "data": folder.data_digest()}
    folder.set_status("finished", step=module.step, steps=module.settings.steps, best=module.best, **digested)
    folder.resume.unlink(missing_ok=True)
