"""What a command finds around it: output that cannot be written, being asked to stop, empty variables, too little memory."""

import copy
import errno
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from omegaconf.errors import ConfigTypeError

from tests.commands.conftest import Command, Run, homes, read
from voxtile.commands.allowed import target
from voxtile.commands.children import how_it_ended
from voxtile.commands.guard import guarded
from voxtile.commands.own import blaming
from voxtile.commands.surroundings import PLACES, Printed, interruptible
from voxtile.training.stopping import StopRequest

# As libraries do: what comes while they are imported is swallowed, and they are half imported then.
SWALLOWS = """
import os, signal, time
swallowed = False
try:
    os.kill(os.getpid(), signal.NUMBER)
    time.sleep(0.2)
except KeyboardInterrupt:
    swallowed = True
"""


USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@pytest.fixture(params=USUAL)
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    before = {each: signal.signal(each, handler) for each, handler in USUAL.items()}  # whatever the tests' own runner has there
    yield request.param
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def swallows(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Imports a library during which the command is asked to stop, and gives whether it has swallowed that."""
    (tmp_path / "swallows_ctrl_c.py").write_text(SWALLOWS.replace("NUMBER", number.name))
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: import_module("swallows_ctrl_c").swallowed
    sys.modules.pop("swallows_ctrl_c", None)


def test_wrapped_output_can_be_copied() -> None:
    assert copy.copy(Printed(sys.__stdout__, makes=True)).encoding == sys.__stdout__.encoding


def waited(over: Callable[[], bool] = lambda: False) -> None:
    """Waits until something is over, which takes part of a second."""
    deadline = time.monotonic() + 20
    while not over() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_being_asked_to_stop_waits_until_a_library_is_imported(
    swallows: Callable[[], bool], voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def command(words: list[str]) -> int:
        found.append(swallows())
        waited()
        return 0

    monkeypatch.setattr("voxtile.commands.status.main", command)
    said = voxtile("status")
    assert (said.code, found) == (130, [False])
    assert said.err.startswith("Stopped. Give the same command again")
    assert {each: signal.getsignal(each) for each in USUAL} == USUAL


def test_being_asked_to_stop_during_an_import_reaches_a_training_that_begins_then(
    number: signal.Signals, swallows: Callable[[], bool]
) -> None:
    stop = StopRequest()
    with interruptible(), stop.installed():
        assert not swallows()
        waited(lambda: stop.signal is not None)
    assert stop.signal == number
    stop = StopRequest()
    with interruptible():
        sys.modules.pop("swallows_ctrl_c")
        swallows()
        with stop.installed():
            waited(lambda: stop.signal is not None)
    assert stop.signal == number


def test_a_command_in_the_background_goes_on_ignoring_what_it_ignores(number: signal.Signals, swallows: Callable[[], bool]) -> None:
    signal.signal(number, signal.SIG_IGN)
    with interruptible():
        assert not swallows()
        assert signal.getsignal(number) is signal.SIG_IGN


def test_being_asked_to_stop_while_an_object_goes_ends_the_command(number: signal.Signals) -> None:
    class Going:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)  # Python swallows what is raised here

    usual = sys.unraisablehook
    with interruptible():
        del (going := [Going()])[0]
        with pytest.raises(KeyboardInterrupt):
            waited()
        assert not going
    assert sys.unraisablehook is usual


def test_a_further_sigterm_does_not_disturb_the_clearing_up(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> bool:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            return True
        return False

    with interruptible():
        assert [asked(), asked()] == [True, number == signal.SIGINT]
        monkeypatch.setattr("voxtile.commands.surroundings.SAME", 0.0)  # as later, where the first was swallowed
        assert asked()


@contextmanager
def printing_into(kind: str) -> Iterator[None]:
    """While this is open, standard output is full, one whose reader has gone, or closed."""
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full, os.fdopen(writer, "w") as gone, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", {"full": full, "gone": gone, "closed": None}[kind])
        yield


@pytest.mark.parametrize(("kind", "why"), [("full", "No space left on device"), ("gone", "Broken pipe"), ("closed", "")])
def test_a_training_goes_on_where_nothing_can_be_printed(
    scene_run: Run, tmp_path: Path, voxtile: Command, kind: str, why: str
) -> None:
    with printing_into(kind):
        said = voxtile("train", *scene_run.words, f"paths.runs={tmp_path / 'runs'}")
    (home,) = homes(tmp_path / "runs")
    assert read(home, "status.json") == scene_run.read("status.json")
    assert said.code == (1 if why else 0)
    assert said.err == (f"What this command prints can no longer be written ({why}). It goes on without.\n" if why else "")


@pytest.mark.parametrize(("kind", "code", "told"), [("full", 1, True), ("gone", 1, False), ("closed", 0, False)])
@pytest.mark.parametrize("words", ["status", "train --help"])
def test_a_command_that_only_prints_ends_quietly_when_its_reader_goes(
    scene_run: Run, voxtile: Command, kind: str, code: int, told: bool, words: str
) -> None:
    with printing_into(kind):
        said = voxtile(*words.split(), *([f"runs={scene_run.home}"] if words == "status" else []))
    assert (said.code, "can no longer be written" in said.err) == (code, told)
    assert told or said.err == ""


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "import os, sys; from voxtile.commands.surroundings import set_right; os.close(0); os.close(1); set_right();"
        f"number = os.open({str(tmp_path / 'a')!r}, os.O_CREAT | os.O_WRONLY);"
        "print(number, [os.get_inheritable(each) for each in (0, 1)], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=True, timeout=60)
    assert int(done.stderr.partition(" ")[0]) > 2
    assert "[True, True]" in done.stderr


def test_a_variable_that_is_empty_counts_as_not_set(voxtile: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACES:
        monkeypatch.setenv(name, "")
    assert voxtile("train", "--cfg", "job").code == 0
    assert not os.environ.keys() & set(PLACES)


def test_a_library_that_memory_has_no_room_for(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(name: str) -> None:
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    monkeypatch.setattr("voxtile.commands.allowed.importlib.import_module", loading)
    assert guarded(lambda: target("voxtile.models.unet.UNet", "model")) == 4
    assert "libtorch_cpu.so: failed to map segment from shared object. Raise the limit of the" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: np.empty(10**17, np.uint8), "Unable to allocate 88.8 PiB for an array"),
        (lambda: torch.empty(10**17, dtype=torch.uint8), "DefaultCPUAllocator: can't allocate memory"),
        (lambda: bytearray(10**17), "There is not enough memory: MemoryError."),
        (lambda: mmap.mmap(-1, 2**62), "There is not enough memory: [Errno 12] Cannot allocate memory."),
    ],
)
def test_an_array_that_memory_has_no_room_for(make: Callable[[], object], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    def task() -> int:
        with blaming([__name__]):  # code of the user's own is not blamed either
            make()
        return 0

    assert guarded(task) == 4
    err = capfd.readouterr().err
    assert said in err
    assert "fewer 'workers=…'" in err


@pytest.mark.parametrize("of", ["thread", "process"])
def test_a_thread_or_process_that_the_system_refuses(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    def refused(*_: object) -> None:
        if of == "process":
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading._start_new_thread", refused)
    assert guarded(lambda: Thread(target=int).start()) == 4
    err = capfd.readouterr().err
    assert "the system refused one" in err
    assert "'ulimit -u'" in err


def test_other_errors_are_not_said_to_be_of_memory() -> None:
    with pytest.raises(RuntimeError, match="invalid for input"):
        guarded(lambda: int(torch.zeros(2).view(3)[0]))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1, "ended with exit code 1"),
        (-9, "was ended by SIGKILL, as"),
        (-15, "was ended by SIGTERM"),
        (-35, "was ended by signal 35"),
    ],
)
def test_how_a_process_ended(code: int, said: str) -> None:
    assert said in how_it_ended(code)


@pytest.mark.parametrize("where", ["compose", "task"])
def test_being_stopped_is_told_though_a_library_fails_while_it_clears_up(
    where: str, volume_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_made(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise ConfigTypeError("half made" if where == "compose" else "of a task")

    name = "voxtile.commands.compose.composed" if where == "compose" else "voxtile.commands.trained.Trained.of"
    monkeypatch.setattr(name, half_made)
    said = voxtile("predict", f"run={volume_run.home}", f"input={tmp_path}", f"output={tmp_path}")
    assert (said.code, "Stopped. Give the same command again" in said.err) == (130, True), said.text
