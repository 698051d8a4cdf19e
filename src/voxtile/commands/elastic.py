"""A run whose processes torchrun has started, on one machine or on several that see the same files.

The first process composes, prepares and leads as it would alone; the others know nothing but the run that it hands them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

from voxtile.commands.children import GRACE, POLL, emptied
from voxtile.commands.devices import torchrun_world
from voxtile.errors import ConfigError, RunError, VoxtileError, reason

if TYPE_CHECKING:
    from voxtile.training.run_folder import RunFolder

PATIENCE = timedelta(days=7)  # how long the others wait until the first has read all data


def follows() -> bool:
    """Whether this process is one of several, and not the first."""
    return torchrun_world() > 1 and int(os.environ["RANK"]) > 0


@contextmanager
def leading(argv: Sequence[str]) -> Iterator[None]:
    """While this is open, the others wait for a run; where there was none, they end.

    Raises:
        ConfigError: A multirun is asked for.
    """
    if torchrun_world() == 1:
        yield
        return
    store = _store()
    try:
        if {"-m", "--multirun"} & set(argv):
            raise ConfigError("A sweep starts processes of its own. Give torchrun one run, without '-m', or '-m' without torchrun.")
        yield
    finally:
        store.set(f"order {store.add('orders', 1)}", "null")


def follow() -> int:
    """Takes part in the runs that are handed out (one may start from another), until there is no other."""
    from voxtile.commands.worker import take_part

    store = _store()
    for number in count(1):
        store.wait([f"order {number}"], PATIENCE)
        order = json.loads(store.get(f"order {number}"))
        if order is None:
            break
        if code := take_part(order, int(os.environ["RANK"])):
            return code
    return 0


def train_together(home: RunFolder, order: Mapping[str, Any]) -> dict[str, Any]:
    """Hands a run to the others and trains it with them.

    Args:
        home: its folder, which this process holds.
        order: what the others are told.

    Returns:
        What was measured.

    Raises:
        VoxtileError: What one of them raised.
    """
    from voxtile.commands.worker import work

    reports, world = emptied(home.path / "ranks"), torchrun_world()
    store = _store()
    store.set(f"order {store.add('orders', 1)}", json.dumps(order))
    try:
        measured = work(order, leads=True, held=home)
    except VoxtileError:
        raise
    except Exception as error:  # the others' end is seen as a lost connection, and one that failed says why
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            for file in sorted(reports.glob("*.json")):
                said = json.loads(file.read_text(encoding="utf-8"))
                if "message" in said:
                    raise RunError(f"Process {file.stem} of {world} (numbered from 0) failed: {said['message']}") from error
            time.sleep(POLL)
        raise RunError(
            f"The first of {world} processes lost the others, or failed itself: {type(error).__name__}: {reason(error)}. What "
            "torchrun prints says whether one of them was killed."
        ) from error
    shutil.rmtree(reports, ignore_errors=True)  # where others may still be writing
    return measured


def _store() -> Any:
    """What the processes share, under this program's own name."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return PrefixStore("voxtile", store)
