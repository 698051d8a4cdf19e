"""Trains the same run in one, two and three processes, and leaves beside one another what each process counted.

Started as a program of its own: it imports everything once and forks the processes of each training, so that many cost little.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import voxtile.training.fit  # noqa: F401  # so that no child has to import it
from voxtile.commands import compose
from voxtile.commands.assemble import assembled, prepare_data, trainer_options
from voxtile.commands.build import parts
from voxtile.data.batches import ReadAhead
from voxtile.data.datamodule import VoxtileData
from voxtile.training.fit import fit
from voxtile.training.module import SegmentationModule
from voxtile.training.run_folder import RunFolder


def padded() -> None:
    """Deals validation out as Lightning's default does: until each process has equally many."""
    inner = VoxtileData.val_dataloader

    def val_dataloader(self: VoxtileData) -> Any:
        made = inner(self)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        one = VoxtileData.__new__(VoxtileData)  # the whole list, as one process has it
        one.__dict__ |= self.__dict__ | {"trainer": None}
        batches = list(inner(one).items())
        batches += batches[: -len(batches) % world]
        return ReadAhead(lambda: batches[rank::world], made.make, 0)

    VoxtileData.val_dataloader = val_dataloader


def plain_mean() -> None:
    """Divides each process' loss by its own pixels, as the mean over processes of plain means does."""
    SegmentationModule._summed = lambda self, statistics: statistics * self.trainer.world_size


BROKEN = {"": lambda: None, "padded": padded, "plain mean": plain_mean}


def train(words: list[str], home: Path, rank: int, world: int) -> None:
    """Takes part in a training as one of its processes."""

    def task(config: dict[str, Any]) -> int:
        built, out = parts(config), Console(quiet=True)
        module, data = assembled(built, prepare_data(built, out))
        seen, counted = [], []
        step, validate = module.training_step, module.on_validation_epoch_end

        def training_step(batch: Any, batch_idx: int) -> None:
            seen.append(batch["index"].tolist())
            step(batch, batch_idx)

        def on_validation_epoch_end() -> None:
            validate()
            counted.append(module.confusion.compute().cpu().numpy())

        module.training_step, module.on_validation_epoch_end = training_step, on_validation_epoch_end
        fit(module, data, RunFolder(home), trainer_options(config["trainer"], world), [], out, "", leads=rank == 0)
        np.save(home / f"matrices-{rank}.npy", np.stack(counted))
        running = [buffer.tolist() for name, buffer in module.network.named_buffers() if "running" in name]
        (home / f"said-{rank}.json").write_text(json.dumps({"seen": seen, "best": module.best, "running": running}))
        return 0

    code = compose.run("train", [*words, f"trainer.devices={world}"], task)
    if code:
        raise SystemExit(code)


def start(words: list[str], home: Path, world: int, broken: str, port: int) -> None:
    """Forks the processes and waits for them."""
    home.mkdir(parents=True)
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "NODE_RANK": 0, "MASTER_PORT": port}
            os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()}
            code = 1
            try:
                BROKEN[broken]()
                train(words, home, rank, world)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"exit codes {codes}")


if __name__ == "__main__":
    gc.freeze()
    for words, home, world, broken, port in json.load(sys.stdin):
        start(words, Path(home), world, broken, port)
