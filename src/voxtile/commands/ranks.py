"""One run on several devices: a process for each of them, started on the run folder and watched until the last has ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands.children import GRACE, POLL, UNHEARD, Child, child, emptied, forwarding, how_it_ended, retold
from voxtile.errors import RunError, VoxtileError

if TYPE_CHECKING:
    from voxtile.studies.manifest import Devices
    from voxtile.training.run_folder import RunFolder


def train_in_processes(home: RunFolder, order: Mapping[str, Any], devices: Devices) -> dict[str, Any]:
    """Trains a run in a process for each device, in a folder that this process holds.

    Args:
        home: the folder.
        order: what the processes are told, see `voxtile.commands.worker`.
        devices: how many there are, and threads of each.

    Returns:
        What the first of them measured.

    Raises:
        VoxtileError: What one of them raised, or a RunError where one was killed; the others are ended then.
    """
    logs = emptied(home.path / "ranks")
    environment = _environment(devices)
    with ExitStack() as stack:
        ranks: list[Child] = []
        for rank in range(devices.count):
            place = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            log = logs / f"{rank}.log" if rank else None  # the first prints where this process does
            ranks.append(stack.enter_context(child("voxtile.commands.worker", order, place, log)))
        heard: list[int] = []
        with forwarding(lambda number: _forward(number, ranks, heard)):
            first = _watched(ranks, home)
        failed = [rank for rank, process in enumerate(ranks) if process.poll() not in (0, None)]
        for process in ranks:
            process.kill()
    if first is not None:
        raise _reason(first, failed, ranks, logs, heard)
    measured: dict[str, Any] = {}
    with suppress(OSError):  # a full disk may have had no room for it, and the run is finished all the same
        measured = json.loads((logs / "0.json").read_text(encoding="utf-8"))["measured"]
    shutil.rmtree(logs, ignore_errors=True)
    return measured


def _environment(devices: Devices) -> dict[str, str]:
    """What all processes find in their environment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))  # a port that nobody uses now
        port = found.getsockname()[1]
    place = {"WORLD_SIZE": devices.count, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place |= {"OMP_NUM_THREADS": devices.threads}
    # PyTorch remarks that a network without unused parameters could do without looking for them; others have some.
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    return quiet | os.environ | {name: str(value) for name, value in place.items()}


def _forward(number: int, ranks: Sequence[Child], heard: list[int]) -> None:
    """Hands a signal to the first process, which saves the run and ends; the third Ctrl-C ends all at once."""
    heard.append(number)
    insisting = heard.count(signal.SIGINT) >= UNHEARD  # SIGTERM may come to each process, and from each one above it
    for process in ranks if insisting else ranks[:1]:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL if insisting else number)


def _watched(ranks: Sequence[Child], home: RunFolder) -> int | None:
    """Waits until all have ended well, or one has not: its number then, once others that fail with it had time to say why."""
    while True:
        home.check_held()
        codes = [process.poll() for process in ranks]
        if all(code == 0 for code in codes):
            return None
        if any(codes):
            first = next(rank for rank, code in enumerate(codes) if code)
            until = time.monotonic() + GRACE
            while time.monotonic() < until and any(process.poll() is None for process in ranks):
                time.sleep(POLL)
            return first
        time.sleep(POLL)


def _reason(
    first: int, failed: Sequence[int], ranks: Sequence[Child], logs: Path, heard: Sequence[int]
) -> VoxtileError:  # fmt: skip
    """Why a run failed, by the process that failed by itself: others then lose their connection to it."""
    from voxtile.training.stopping import UNSAVED, InterruptedRunError

    said = {rank: json.loads(file.read_text(encoding="utf-8")) for rank in failed if (file := logs / f"{rank}.json").exists()}
    killed = [rank for rank in failed if ranks[rank].returncode < 0]
    known = sorted((rank for rank, found in said.items() if found["known"]), key=lambda rank: said[rank]["time"])
    others = sorted(said, key=lambda rank: said[rank]["time"])
    culprit = [*known, *killed, *others, first][0]  # a library may end a process whose peers are gone
    who, ended = f"Process {culprit} of {len(ranks)} (numbered from 0)", how_it_ended(ranks[culprit].returncode or 0)
    if culprit in killed and heard:
        return InterruptedRunError(UNSAVED)
    if culprit in killed:
        return RunError(
            f"{who} {ended}; the others were ended with it. The same command goes on from the last saved state with 'retry=true'. "
            f"What they printed is in {logs}."
        )
    found = said.get(culprit, {"known": False, "message": f"it {ended} and said nothing"})
    return retold(found) if found["known"] else RunError(f"{who} failed: {found['message']}. See {logs}.")
