"""One of the processes that train a run together: `python -m voxtile.commands.worker`, as `voxtile.commands.ranks` starts it.

It is told the resolved configuration ("config"), the run folder ("home"), the folder of the run that this one starts from or null
("parent"), and the user's command ("command"). Its number and the others' are in the environment, as torchrun puts them there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.cases.atomic import atomic_text
from voxtile.commands.children import order_of, told
from voxtile.commands.own import blaming
from voxtile.commands.surroundings import printing
from voxtile.errors import VoxtileError
from voxtile.training.stopping import UNSAVED, InterruptedRunError

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.data.datamodule import VoxtileData
    from voxtile.training.module import SegmentationModule
    from voxtile.training.run_folder import RunFolder


def main() -> int:
    """Takes part in the training that the starter names."""
    with printing(makes=True) as printed:
        code = take_part(order_of(), int(os.environ["RANK"]))
        printed.flush()
    sys.stderr.flush()
    os._exit(code)  # others may be gone, and the libraries that talk to them would wait for them at exit


def take_part(order: Mapping[str, Any], rank: int) -> int:
    """Takes part in a training, leaves in the run folder what came of it, and returns an exit code."""
    report = Path(order["home"]) / "ranks" / f"{rank}.json"
    if rank:  # the first decides when to stop, and the starter ends the others then
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    try:
        with blaming(order["config"].get("trust")):
            found: dict[str, Any] = {"measured": work(order, leads=rank == 0)}
    except VoxtileError as error:
        found = told(error)
    except KeyboardInterrupt:
        found = told(InterruptedRunError(UNSAVED))
    except BaseException as error:
        traceback.print_exc()
        found = told(error)
    with suppress(OSError):  # the run may have ended, and its first process have taken the folder away
        atomic_text(report, json.dumps(found | {"time": time.time()}))
    return int(found.get("exit_code", 0))


def work(order: Mapping[str, Any], leads: bool, held: RunFolder | None = None) -> dict[str, Any]:
    """Trains, and returns what was measured.

    Args:
        order: what is to be trained.
        leads: whether this process is the first, which writes into the run folder.
        held: the folder, where this process holds its lease.
    """
    from voxtile.commands.assemble import assembled, prepare_data, world_of
    from voxtile.commands.build import parts
    from voxtile.commands.console import console
    from voxtile.commands.heap import keep_heap
    from voxtile.commands.parents import Parent
    from voxtile.training.fit import take_up
    from voxtile.training.run_folder import RunFolder

    keep_heap()
    config, home, out = order["config"], held or RunFolder.existing(order["home"]), console()
    out.quiet = True
    built = parts(config)
    module, data = assembled(built, prepare_data(built, out))
    if order["parent"] is not None:
        Parent.of(RunFolder.existing(order["parent"])).hand_down(module, config["model"], out)
    written = take_up(module, home)
    out.quiet = not leads
    measured: dict[str, float] = {}
    fit_here(config, module, data, home, out, order["command"], measured, written, world_of(config["trainer"]), leads)
    return measured


def fit_here(
    config: Mapping[str, Any], module: SegmentationModule, data: VoxtileData, home: RunFolder, out: Console, command: str,
    measured: dict[str, float], written: int, world: int = 1, leads: bool = True,
) -> None:  # fmt: skip
    """Trains in this process.

    Args:
        config: resolved.
        module: what is trained, where the run stands.
        data: its data.
        home: the run's folder.
        out: where progress is shown.
        command: what the user types to continue.
        measured: where it is put what training takes, also where it fails: seconds, those of all segments of the run, and memory.
        written: see `fit`.
        world: how many processes train.
        leads: whether this one is the first, which writes into the run folder.
    """
    from lightning.pytorch.profilers import SimpleProfiler

    from voxtile.commands.assemble import trainer_options
    from voxtile.commands.loggers import finish, make_loggers
    from voxtile.studies.meter import peak_memory
    from voxtile.training.fit import fit

    options = trainer_options(config["trainer"], world)
    if options.get("profiler") == "simple":
        options["profiler"] = SimpleProfiler(dirpath=home.path, filename="profile")
    loggers, well = make_loggers(config, home, module.step + (not module.pending)) if leads else [], False
    try:
        fit(module, data, home, options, loggers, out, command, written, leads)
        well = True
    finally:
        measured |= {"training_seconds": module.seconds, "peak_memory_gib": peak_memory()}
        finish(loggers, well)


if __name__ == "__main__":
    sys.exit(main())
