"""voxtile export: a run's network for use elsewhere, compared with the network itself."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose
from voxtile.commands.allowed import below
from voxtile.errors import ConfigError, DataError, RunError, did_you_mean, listed, reason
from voxtile.values import check_whole_number

if TYPE_CHECKING:
    from torch import Tensor

    from voxtile.commands.trained import Trained
    from voxtile.data.prepared import Prepared

FORMATS = ("bundle", "onnx", "torch_export")
# The names of what an export may hold.
MADE = {
    "export.json", "network.onnx", "network.onnx.data", "network.pt2", "weights", "config.yaml", "recipe.json", "manifest.json",
    "status.json", "crf.json", "postprocess.json", "evaluations",
}  # fmt: skip
BATCH = 4  # windows that are compared at once, after one alone: an export takes any number
LONG = 3600.0  # seconds: of an export that is still being made, something changes more often
LARGEST_ERROR = 1e-3  # of a logit, relative to the largest one; rounding alone comes to about 1e-6


def main(argv: Sequence[str]) -> int:
    """Composes and exports; see `voxtile export --help`."""
    return compose.run("export", argv, export)


def export(config: Mapping[str, Any]) -> int:
    """Exports the run that the configuration names."""
    from voxtile.training.run_folder import EXPORT, RunFolder

    _check(config)
    RunFolder.existing(config["run"])  # before what takes seconds to import
    from voxtile.commands.bundle import describe
    from voxtile.commands.console import console
    from voxtile.commands.trained import Trained, prepared_for
    from voxtile.commands.words import word
    from voxtile.inference.exporting import check_packages

    out = console()
    if config["format"] == "onnx":
        check_packages()
    trained = Trained.of(config, config["run"], config["weights"])
    home = trained.home
    home.refuse_unfinished("its weights are not those that it will end with")
    trained.warn(out)
    target = Path(str(config["output"])).expanduser() if config["output"] else home.path / "exports" / config["format"]
    images = window_images(trained, prepared_for(trained, "val", out), config["windows"])
    trained.network.eval()
    with made_whole(target.resolve()) as folder:
        description = describe(trained, config["format"], config["weights"])
        check = compared(trained, _written(trained, config, folder, description), images)
        # Not by a function that makes a folder that has gone: half an export would take the place of a whole one.
        (folder / EXPORT).write_text(json.dumps({**description, "check": check}, indent=1) + "\n", encoding="utf-8")
    out.print(
        f"{check['windows']} validation windows: largest error of a logit {check['largest_error']:.2g} (the largest logit is "
        f"{check['largest_logit']:.3g}); another class in {check['other_class']} of {check['pixels']} pixels", soft_wrap=True,
    )  # fmt: skip
    out.print(f"{target}", soft_wrap=True)
    if config["format"] == "bundle":
        which = "" if config["weights"] == "best" else f" weights={config['weights']}"
        network = str(trained.built.config["model"].get("_target_")).rpartition(".")[0]
        trust = f" 'trust=[{network}]'" if below(network, trained.built.trust) else ""
        out.print(f"next   voxtile predict {word('run', target)} input=… output=predictions{which}{trust}", soft_wrap=True)
    return 0


def window_images(trained: Trained, prepared: Prepared, count: int) -> list[Tensor]:
    """Normalised windows of the validation cases, in batches [B, C, (D,) H, W]: one alone, then several at once."""
    import torch

    from voxtile.commands.assemble import assembled

    module, data = assembled(trained.bare, prepared)
    images = [module.inputs(batch, augment=False)[0].contiguous() for batch in data.val_sample(count)]
    return [images[0], *(torch.cat(images[i : i + BATCH]) for i in range(1, len(images), BATCH))]


def compared(trained: Trained, forward: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> dict[str, Any]:
    """How far what was exported is from the network, as plain types.

    Raises:
        RunError: They are further apart than rounding takes them.
    """
    import torch

    from voxtile.inference.decoding import classes_of_logits
    from voxtile.models.network import logits_of

    regions = list(trained.built.dataset.regions.values())
    error = largest = 0.0
    other = pixels = 0
    with torch.no_grad():
        for image in images:
            wanted, found = logits_of(trained.network, image), forward(image)
            error = max(error, float((found - wanted).abs().max()))
            largest = max(largest, float(wanted.abs().max()))
            classes = classes_of_logits(wanted, regions)
            other += int((classes_of_logits(found, regions) != classes).sum())
            pixels += classes.numel()
    if not error <= LARGEST_ERROR * max(largest, 1e-6):
        raise RunError(
            f"What was exported is not the network: a logit differs by {error:.3g}, and the largest is {largest:.3g}. Nothing was "
            "kept. Type 'format=bundle', which takes every network."
        )
    windows = sum(len(image) for image in images)
    return {"windows": windows, "largest_error": error, "largest_logit": largest, "other_class": other, "pixels": pixels}


def _check(config: Mapping[str, Any]) -> None:
    if config["format"] is None:
        raise ConfigError(f"Say in which format: type 'format=…' with one of {listed(FORMATS)}.")
    if (kind := str(config["format"])) not in FORMATS:
        raise ConfigError(f"'format={kind}' is none of {listed(FORMATS)}.{did_you_mean(kind, FORMATS)}")
    check_whole_number("windows", config["windows"])


def _written(
    trained: Trained, config: Mapping[str, Any], folder: Path, description: Mapping[str, Any]
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """Writes the export into a folder, and opens it again."""
    from voxtile.commands.bundle import write_bundle
    from voxtile.commands.trained import Trained as Opened  # `Trained` stands for its type here
    from voxtile.inference.exporting import exported, open_onnx, open_torch, save_onnx, save_torch
    from voxtile.models.network import logits_of

    if config["format"] == "bundle":
        write_bundle(trained, config["weights"], folder)
        network = Opened.of(config, str(folder), config["weights"], bundles=True).network.eval()
        return partial(logits_of, network)
    program, text = exported(trained.network, description["input"]["shape"][1:]), json.dumps(description)
    if config["format"] == "onnx":
        save_onnx(program, folder / "network.onnx", text)
        return open_onnx(folder / "network.onnx")
    save_torch(program, folder / "network.pt2", text)
    return open_torch(folder / "network.pt2")


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `target`, an earlier export; nothing is left of it where filling fails.

    What commands that were killed have left of an export of this name is taken away.

    Raises:
        DataError: The place is taken by something else, or cannot be written.
    """
    if not target.exists():  # a command that was killed may have left it under another name
        for left in target.parent.glob(".*-before"):
            if re.fullmatch(rf"\.(?:[0-9a-f]{{8}}-)?[0-9]+-{re.escape(target.name)}-before", left.name) and is_export(left):
                left.rename(target)
                break
    if target.exists() and not is_export(target):
        raise DataError(
            f"{target} exists and is no export of this program, or holds more than that. Name another folder with 'output=…'."
        )
    for left in left_of(target):
        shutil.rmtree(left, ignore_errors=True)
    # Several machines may write here, and their processes have the same numbers.
    mine = f".{secrets.token_hex(4)}-{os.getpid()}-{target.name}"
    making, before = target.with_name(mine), target.with_name(f"{mine}-before")
    try:
        making.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {reason(error)}. Name another folder with 'output=…'.") from error
    try:
        yield making
        try:
            if target.exists():
                target.rename(before)
            making.rename(target)
        except OSError as error:
            if before.exists() and not target.exists():
                before.rename(target)
            raise DataError(f"{target} cannot be written: {reason(error)}. Name another folder with 'output=…'.") from error
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def left_of(target: Path) -> Iterator[Path]:
    """Folders beside `target` that commands which do not live any more were filling, or had put aside to put theirs in its place.

    One with this process's number is an earlier process's, as in a container begun anew. Processes of other machines, whose numbers
    say nothing here, may be writing there: only what has been silent for long is left.
    """
    from voxtile.cases.atomic import HIDDEN_NAME
    from voxtile.training.processes import is_alive

    for left in target.parent.glob(f".*-{escape(target.name)}*"):
        known = re.fullmatch(rf"\.(?:[0-9a-f]{{8}}-)?([0-9]+)-{re.escape(target.name)}(-before)?", left.name)
        if known and left.is_dir() and (int(known[1]) == os.getpid() or not is_alive(int(known[1]))):
            held = {re.sub(f"^{HIDDEN_NAME}", "", path.name) for path in left.iterdir()}
            # The whole one that was put aside is needed where the place is empty.
            if held <= MADE and (known[2] is None or target.exists()) and _is_silent(left):
                yield left


def _is_silent(folder: Path) -> bool:
    """Whether nothing in a folder, nor its name, has changed for `LONG`."""
    with suppress(OSError):  # its process has just renamed it
        latest = max(path.stat().st_ctime for path in (folder, *folder.rglob("*")))
        return bool(time.time() - latest > LONG)
    return False


def is_export(folder: Path) -> bool:
    """Whether a folder holds what this command makes, and nothing else."""
    from voxtile.training.run_folder import EXPORT

    try:
        known = {"version", "format", "voxtile", "run"} <= set(json.loads((folder / EXPORT).read_text(encoding="utf-8")))
        return known and {path.name for path in folder.iterdir()} <= MADE
    except (OSError, ValueError):
        return False
