"""For tests of what `voxtile predict` does without its networks."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def nothing_is_predicted() -> Iterator[None]:
    """Within it predicting fails, so that a command that succeeds has judged no window."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxtile.inference.predictor.Predictor._judged_part", None)
        yield


# Imports once and forks a child for each command, which says what it says into a file; children of one round run at once.
PROGRAM = """
import json, os, signal, sys
import torch
import voxtile.cases.cog as cog
import voxtile.cases.maps as maps
import voxtile.commands.trained
import voxtile.inference.areas as areas
from voxtile.commands.main import main

def die_after(count, owner, name):
    inner, calls = getattr(owner, name), 0

    def counted(*args):
        nonlocal calls
        calls += 1
        if calls > count:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args)

    setattr(owner, name, counted)

def start(words, moment, said):
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    if moment:
        places = {"writing": (maps.MapWriter, "write"), "making": (cog, "_check_written"), "areas": (areas, "write_areas")}
        die_after(moment[1], *places[moment[0]])
    sys.argv = ["voxtile", *words]
    code = 1
    try:
        code = main()
    finally:
        sys.stdout.flush()
        os._exit(code)

for commands in json.load(sys.stdin):
    children = [start(*command) for command in commands]
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def forked(rounds: list[list[tuple[list[str], tuple[str, int] | None, Path]]]) -> list[str]:
    """Runs commands, each killed at its moment where it has one, and returns the lists of their exit statuses as text."""
    plan = json.dumps(rounds, default=str)
    run = subprocess.run([sys.executable, "-c", PROGRAM], input=plan, stdout=subprocess.PIPE, text=True, check=True)
    return run.stdout.splitlines()
