"""voxtile train: one run, from its configuration to its scores; the same command again continues or reports it."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.commands.build import Parts
    from voxtile.data.prepared import Prepared
    from voxtile.training.run_folder import RunFolder


def main(argv: Sequence[str]) -> int:
    """Composes and trains; see `python train.py --help`."""
    return compose.run("train", argv, train)


def train(config: Mapping[str, Any]) -> int:
    """Trains the run that a resolved configuration describes."""
    from voxtile.commands.build import folder, parts
    from voxtile.commands.console import console
    from voxtile.errors import RunError
    from voxtile.training.recipe import Recipe
    from voxtile.training.run_folder import RunFolder

    out = console()
    built = parts(config)
    check_trainer(config["trainer"])
    prepared = prepare_data(built, out)
    from voxtile.data.stream import STREAM_VERSION

    recipe = Recipe.of(config, prepared.fingerprint, prepared.split.digest, STREAM_VERSION)
    name = f"{config['data']['name']}-{str(config['model']['_target_']).rpartition('.')[2].lower()}-s{config['seed']}"
    home = RunFolder.of(folder(config["paths"]["runs"]), name, recipe)
    status = home.status
    if status["state"] == "finished":
        out.print(f"This run is finished; nothing was trained.{changed_since(home)}", highlight=False)
        report(home, prepared, out)
        return 0
    if status["state"] == "failed" and not config["retry"]:
        raise RunError(
            f"This run failed before, at step {status.get('step', '?')}: {status.get('reason', 'no reason is known')} Its folder "
            f"is {home.path}. Change the configuration, or train it again from its last saved state with 'retry=true'."
        )
    going_on = status["state"] == "interrupted" or (status["state"] == "failed" and home.resume.exists())
    if going_on and not config["inexact"]:
        refuse_if_changed(home)
    # What does not fit together shows here, before there is a run folder.
    module = make_module(built, prepared, lambda step, values: None)
    check_fit(module.network, config["data"]["window"], prepared.channels, len(prepared.dataset.classes))
    module.configure_optimizers()
    data = make_data(built, prepared, lambda: range(module.step, built.settings.next_validation(module.step)))
    with home.lease():
        if home.status["state"] != "finished":  # by another process, since the first look
            began = time.time()
            _train(config, prepared, module, data, home, out)
            home.write("manifest.json", home.read("manifest.json") | {"seconds": round(time.time() - began, 1)})
    report(home, prepared, out)
    return 0


def prepare_data(built: Parts, out: Console) -> Prepared:
    """Opens, splits and surveys the data, with a progress bar."""
    from voxtile.commands.build import folder
    from voxtile.commands.console import progress
    from voxtile.data.prepared import prepare

    with progress(out) as tick:
        return prepare(
            built.dataset, built.scheme, built.normalisation, folder(built.config["paths"]["cache"]), built.config["data"]["waive"],
            built.config["data"]["limit"], tick,
        )  # fmt: skip


def command_line() -> str:
    """What the user types to train with the configuration that was composed."""
    program = ["python", sys.argv[0]] if Path(sys.argv[0]).name == "train.py" else ["voxtile", "train"]
    return shlex.join([*program, *(word for word in sys.argv[1:] if word != "--")])


def make_module(built: Parts, prepared: Prepared, record: Callable[[int, Mapping[str, float]], None]) -> Any:
    """Builds network, loss and LightningModule for prepared data."""
    import lightning

    from voxtile.commands.build import build
    from voxtile.training.module import SegmentationModule
    from voxtile.training.schedules import parameter_groups

    config, dataset = built.config, prepared.dataset
    lightning.seed_everything(config["seed"], verbose=False)
    facts = {"num_classes": len(dataset.classes)}
    network = build(config["model"], "model", built.trust, in_channels=prepared.channels, **facts)
    loss = build(
        config["loss"], "loss", built.trust, class_counts=prepared.class_counts, present_counts=prepared.present_counts,
        background=dataset.background, **facts,
    )  # fmt: skip
    rate = float(config["optimizer"]["lr"])
    return SegmentationModule(
        network, loss, built.augment, built.make_optimizer, built.schedule, built.settings, config["seed"], dataset.classes,
        dataset.background, [case.id for case in prepared.split.train], [case.id for case in prepared.split.val], record,
        lambda model: parameter_groups(model, built.settings.groups, rate),
    )  # fmt: skip


def make_data(built: Parts, prepared: Prepared, coming: Callable[[], range]) -> Any:
    """Builds the data module."""
    from voxtile.data.datamodule import Steps, VoxtileData
    from voxtile.data.prepared import window_size

    data = built.config["data"]
    size = window_size(data["window"], [*prepared.split.train, *prepared.split.val])
    steps = Steps(built.settings.batch_size, coming)
    return VoxtileData(prepared, size, built.augment, built.config["seed"], steps, data["balance"], built.config["workers"])


def _train(config: Mapping[str, Any], prepared: Prepared, module: Any, data: Any, home: RunFolder, out: Console) -> None:
    from lightning.pytorch.profilers import SimpleProfiler
    from omegaconf import OmegaConf

    from voxtile.cases.maps import atomic_text
    from voxtile.commands.loggers import make_loggers
    from voxtile.studies.manifest import continued, manifest
    from voxtile.training.fit import InterruptedRunError, fit

    steps = module.settings.steps
    facts = manifest(command_line(), prepared)
    if (home.path / "manifest.json").exists():
        facts = continued(home.read("manifest.json"), facts)
    # Named from the top, so that evaluating from another folder finds the data.
    layout = {**config["data"]["layout"], "root": str(prepared.dataset.layout.root.resolve())}
    kept = {**config, "data": {**config["data"], "layout": layout}}
    atomic_text(home.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(kept)))
    home.write("manifest.json", facts)
    home.set_status("running", step=0, steps=steps)
    for sentence in prepared.waived:
        out.print(f"waived: {sentence}", style="yellow")
    split = prepared.split
    out.print(
        f"run {home.path}\n{len(split.train)} training, {len(split.val)} validation, {len(split.test)} locked test cases; "
        f"{prepared.channels} channels; {len(prepared.dataset.classes)} classes; "
        f"{sum(p.numel() for p in module.network.parameters()):,} parameters",
        highlight=False,
    )
    trainer = dict(config["trainer"])
    if trainer.get("profiler") == "simple":
        trainer["profiler"] = SimpleProfiler(dirpath=home.path, filename="profile")
    try:
        fit(module, data, home, trainer, make_loggers(config, home), out, command_line())
        for path in home.path.glob("*-profile.txt"):
            out.print(path.read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    except InterruptedRunError:
        home.set_status("interrupted", step=module.step, steps=steps, best=module.best)
        raise
    except Exception as error:
        home.set_status("failed", step=module.step, steps=steps, best=module.best, reason=str(error) or type(error).__name__)
        raise


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
TRAINER = ("accelerator", "devices", "precision", "deterministic", "profiler")


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuses options that `lightning.Trainer` would, and those of its own that would end or change a run behind its recipe's back.

    Raises:
        ConfigError: An option or precision is unknown, or there is no such device here.
    """
    import torch

    from voxtile.errors import ConfigError, did_you_mean, listed

    if unknown := [name for name in options if name not in TRAINER]:
        raise ConfigError(
            f"'trainer' takes no '{unknown[0]}'.{did_you_mean(unknown[0], TRAINER)} It takes {listed(TRAINER)}; how long to train "
            "is said by 'training'."
        )
    if options["devices"] != 1:
        raise ConfigError(f"'trainer.devices={options['devices']}': a run trains on one device. Type 'trainer.devices=1'.")
    precision = str(options["precision"])
    if precision not in PRECISIONS:
        raise ConfigError(
            f"'trainer.precision={precision}' is unknown.{did_you_mean(precision, PRECISIONS)} Choose from {listed(PRECISIONS)}."
        )
    if options["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"'trainer.accelerator={options['accelerator']}' asks for a GPU, and PyTorch finds none here. Type 'trainer=cpu', or "
            "look with 'nvidia-smi' why there is none."
        )


def check_fit(network: Any, window: Sequence[int], channels: int, classes: int) -> None:
    """Refuses a network and a window that do not fit each other or the data.

    Raises:
        ConfigError: The window has another number of sides than the network or is too small for it, or the network's logits have
            not the image's size and one channel per class.
    """
    import torch

    from voxtile.errors import ConfigError

    dims = getattr(network, "dims", 2)
    if len(window) != dims:
        raise ConfigError(
            f"The network takes {dims}-dimensional windows ('model.dims={dims}'), and 'data.window={list(window)}' has "
            f"{len(window)} sides. Type 'model.dims={len(window)}', or give the window {dims} sides."
        )
    least = int(getattr(network, "min_train_size", 1))
    if min(window) < least:
        raise ConfigError(
            f"'data.window={list(window)}' is smaller than {least} pixels, the least this network can train on. Type a larger "
            "window, or a shallower network (for example 'model.depth=3')."
        )
    expected = (1, classes, *window)
    try:
        with torch.inference_mode():
            found = tuple(network.eval()(torch.zeros(1, channels, *window)).shape)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The network cannot take an image of shape {(1, channels, *window)} [B, C, size]: {str(error).splitlines()[0]}. "
            "Choose another 'data.window' or other settings of 'model'."
        ) from error
    finally:
        network.train()
    if found != expected:
        raise ConfigError(
            f"The network gives logits of shape {found} for an image of {(1, channels, *window)}; expected {expected}, one channel "
            "per class and the image's size. Give it the number of classes under the name it takes, for example "
            "'model.out_channels=…'."
        )


def refuse_if_changed(home: RunFolder) -> None:
    """Continuing with other code or versions would not give the same bits: only when told to.

    Raises:
        RunError: The interrupted run was made by other code.
    """
    from voxtile.errors import RunError

    if changed := changed_since(home):
        raise RunError(
            f"The run {home.path} was interrupted, and since then:{changed} Continued, it would not end in the bits of an "
            "undisturbed run. Go back to what it began with, or continue all the same with 'inexact=true' (the manifest then says "
            "so)."
        )


def changed_since(home: RunFolder) -> str:
    """What has changed between a run and now, as a sentence that starts with a space; empty where nothing has."""
    from voxtile.studies.manifest import changes

    if not (home.path / "manifest.json").exists():
        return ""
    found = changes(home.read("manifest.json"))
    return f" {'; '.join(found)}." if found else ""


def report(home: RunFolder, prepared: Prepared, out: Console) -> None:
    """Prints Dice and IoU per class of the best validation, and what to do next."""
    from voxtile.commands.tables import print_scores

    best = home.status["best"]
    print_scores(out, f"validation at step {best['step']}", best["scores"], prepared.dataset.classes)
    for sentence in prepared.waived:
        out.print(f"waived: {sentence}", style="yellow")
    path = home.path
    example = prepared.split.val[0].image.path
    out.print(
        f"run folder   {path}\npictures     {path / 'pictures' / 'validation.png'}   (input, label, prediction, error)\nnext       "
        f"  voxtile evaluate run={path} split=val\n             voxtile predict run={path} input={example} output=predictions",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
