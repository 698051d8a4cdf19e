"""The run folder: where a run keeps all it knows, who may write to it, and how far it has come."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from voxtile.cases.atomic import HIDDEN_NAME, atomic_text
from voxtile.errors import RunError, listed, reason
from voxtile.training.processes import exclusive, is_alive, is_here, this_process
from voxtile.training.recipe import VERSION, Recipe
from voxtile.values import finite

HEARTBEAT = 10.0  # seconds between two signs of life
POLL = 1.0  # seconds between looks at a run that another process trains
EXPORT = "export.json"  # of what voxtile export has made; a run folder with one is a bundle
SILENCE = 120.0  # seconds without one after which a run on another machine counts as dead


def holds_run(folder: Path) -> bool:
    """Whether a folder is one of a run, or may be: reading says of one that this user may not enter what is wrong."""
    return _is_file(folder / "recipe.json", locked=True)


def is_bundle(folder: Path) -> bool:
    """Whether a run folder is an exported bundle."""
    return _is_file(folder / EXPORT, locked=False)


def _is_file(path: Path, locked: bool) -> bool:
    try:
        return path.is_file()
    except PermissionError:
        return locked


def is_left(half: Path) -> bool:
    """Whether a file is a half one of a process of this machine that was killed.

    One with this process's number counts as an earlier process's, as in a container begun anew.
    """
    known = re.match(HIDDEN_NAME, half.name)
    return known is not None and half.is_file() and (int(known[1]) == os.getpid() or not is_alive(int(known[1])))


def clear_halves(folder: Path) -> None:
    """Takes away what killed processes were writing right in a folder that needs no lease.

    Processes of other machines may be writing there: what was changed in the last `SILENCE` seconds stays.
    """
    for half in folder.glob(".*-*.*"):
        with suppress(OSError):  # another process has just given it its name, or deleted it
            if is_left(half) and time.time() - half.stat().st_mtime > SILENCE:
                half.unlink()


class OtherVersionError(RunError):
    """A run folder was written by another version of the run format."""


class RunFolder:
    """One run's folder.

    Files: `recipe.json` (identity), `config.yaml` (resolved), `manifest.json`, `status.json` (state, step, scores), `metrics.csv`,
    `validation.json` (counts by case), `resume.pt` (until finished), `weights/{best,last}.safetensors`, `pictures/`,
    `lease.json` and `.lock` (who trains it now), `ranks/` (what its processes on several devices print and report). Of a finished
    run: `evaluations/`, `crf.json` and `postprocess.json` (what searches have found), `exports/`.

    Attributes:
        path: the folder.
        recipe: the run's, where the folder may not be there yet.
    """

    def __init__(self, path: Path, recipe: Recipe | None = None) -> None:
        # Of "." neither the name nor the folder around it can be told.
        self.path = path if path.name not in ("", "..") else path.resolve()
        self.lost = threading.Event()  # set where another machine, which believed this process dead, has taken the run over
        self.recipe = recipe
        self.weights = self.path / "weights"
        self.metrics = self.path / "metrics.csv"
        self.resume = self.path / "resume.pt"

    @classmethod
    def of(cls, root: Path, name: str, recipe: Recipe) -> RunFolder:
        """The folder of a recipe's run below `root`; where it does not exist, the first `lease` makes it, with its recipe.

        A run of the same recipe by another name, as of `model=fcn16s model.stride=8` and `model=fcn8s`, is that run.

        Raises:
            RunError: There is another run under the name, or one of another version.
        """
        folder = cls(root / f"{name}-{recipe.identity[:8]}", recipe)
        if not (folder.path / "recipe.json").exists():
            # <data set>-<network>-s<seed>, of which the network may be called otherwise; a folder that was moved away is another's.
            pattern = f"{name.partition('-')[0]}-*-{name.rpartition('-')[2]}-{recipe.identity[:8]}"
            for other in map(cls, sorted(root.glob(pattern))):
                with suppress(RunError):  # what is damaged is none
                    if other.read("recipe.json", "identity")["identity"] == recipe.identity and not (other.path / EXPORT).exists():
                        folder = cls(other.path, recipe)
        if (folder.path / "recipe.json").exists():
            folder.check()
            known = folder.read("recipe.json", "identity")["identity"]
            if known != recipe.identity:
                raise RunError(
                    f"{folder.path} holds another run (identity {known}) than this one ({recipe.identity}). Move that folder away, "
                    "or train into another one with 'paths.runs=…'."
                )
        return folder

    @classmethod
    def existing(cls, path: str | Path, key: str = "run", bundles: bool = False) -> RunFolder:
        """The folder of a run that exists, which the user names with `key`.

        Args:
            path: the folder.
            key: the setting, for messages.
            bundles: whether an exported bundle will do, which knows nothing of the data that a run was trained on.

        Raises:
            RunError: There is none, or it was written by another version.
        """
        folder = cls(Path(path).expanduser())
        if not holds_run(folder.path):
            places = dict.fromkeys((folder.path, folder.path.parent, Path(os.environ.get("VOXTILE_RUNS", "runs"))))
            found = {each.resolve(): each.parent for place in places for each in sorted(place.glob("*/recipe.json"))}
            names = {each.name: each for each in found.values()}
            close = difflib.get_close_matches(folder.path.name, names, n=1)
            runs = f" Runs are: {listed(map(str, found.values()))}." if found else ""
            here = f" Did you mean '{key}={names[close[0]]}'?" if close else runs
            why = "has no recipe.json" if folder.path.exists() else "does not exist"
            if (folder.path / "status.json").is_file():
                raise RunError(
                    f"{folder.path} is the folder of a run whose recipe.json is gone. Copy it back from where the run was trained, "
                    "or move the folder away and train the run again."
                )
            raise RunError(f"{folder.path} is no run folder: it {why}. Name the folder of a run with '{key}=<folder>'.{here}")
        if not bundles and is_bundle(folder.path):
            raise RunError(
                f"{folder.path} is a bundle, which is for 'voxtile predict'; all else that there is to know of a run lies in the "
                f"folder that it was exported from. Name that one with '{key}=<folder>'."
            )
        folder.check()
        return folder

    def check(self) -> None:
        """Refuses a folder written by another version.

        Raises:
            OtherVersionError: The version differs.
            RunError: The recipe cannot be read.
        """
        recipe = self.read("recipe.json", "version")
        if recipe.get("version") != VERSION:
            raise OtherVersionError(
                f"{self.path} was written by version {recipe.get('version')} of the run format; this program reads version "
                f"{VERSION}. Use the release that wrote it (manifest.json names it), or train the run again."
            )
        self.read("recipe.json", "identity", "data", "split")

    def read(self, name: str, *keys: str) -> dict[str, Any]:
        """Reads a JSON object of the folder, which must have these keys.

        Raises:
            RunError: It is missing, cut off, or something else.
        """
        try:
            content: Any = json.loads((self.path / name).read_text(encoding="utf-8"))
        except PermissionError as error:
            raise RunError(f"{self.path / name} cannot be read: {reason(error)}. Give yourself the right to read it.") from error
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.path / name} cannot be read: {reason(error)}. The run folder is damaged; "
                "move it away and train the run again."
            ) from error
        missing = [key for key in keys if key not in content] if isinstance(content, dict) else ["{…}"]
        if missing:
            raise RunError(
                f"{self.path / name} lacks {listed(missing)}. The run folder is damaged; move it away and train the run again."
            )
        found: dict[str, Any] = content
        return found

    def write(self, name: str, content: Mapping[str, Any], indent: int | None = 1) -> None:
        """Writes a JSON file of the folder, whole or not at all; a number that is none becomes null.

        Raises:
            RunError: Another machine has taken the run over.
        """
        self.check_held()
        atomic_text(self.path / name, json.dumps(finite(content), indent=indent, default=str, allow_nan=False) + "\n")

    @property
    def status(self) -> dict[str, Any]:
        """State ("queued", "running", "interrupted", "failed", "finished") and what goes with it."""
        if not (self.path / "status.json").exists():
            return {"state": "queued"}
        status = self.read("status.json", "state")
        if status["state"] == "running" and self._holder() is None:
            return status | {"state": "interrupted"}
        return status

    def refuse_unfinished(self, why: str, otherwise: str = "") -> None:
        """Refuses a run that is not finished, and says how it is.

        Args:
            why: what is the matter with it, as a clause.
            otherwise: what else can be done, to stand after "Train it to its end first".

        Raises:
            RunError: It is not finished.
        """
        status = self.status
        if status["state"] == "finished":
            return
        command = ""
        with suppress(RunError):  # one that has not begun has none
            command = f" ({self.read('manifest.json', 'command')['command']})"
        how = {
            "running": "wait for the process that trains it",
            "failed": f"the command that began it{command} does that, with 'retry=true'",
        }.get(status["state"], f"the command that began it{command} continues it")
        raise RunError(
            f"{self.path} is {status['state']}, at step {status.get('step', 0)}: {why}. Train it to its end first{otherwise}: "
            f"{how}."
        )

    def data_digest(self) -> str | None:
        """SHA-256 of what manifest.json says of the data, however it is written; None where there is no manifest."""
        if not (self.path / "manifest.json").exists():
            return None
        return hashlib.sha256(json.dumps(self.read("manifest.json", "data")["data"], sort_keys=True).encode()).hexdigest()

    def set_status(self, state: str, **facts: Any) -> None:
        """Records the state with the facts that belong to it."""
        self.write("status.json", {"state": state, **facts})

    def _holder(self) -> dict[str, Any] | None:
        """Who holds the run's lease alive, or None."""
        lease = self.path / "lease.json"
        try:
            held: Any = json.loads(lease.read_text(encoding="utf-8"))
            age = time.time() - lease.stat().st_mtime
            here, pid, started = is_here(held), int(held["pid"]), held["started"]
        except (OSError, ValueError, KeyError, TypeError):  # none, or none of ours
            return None
        lives = is_alive(pid, started) if here else age < SILENCE
        return held if lives else None

    def _make(self) -> None:
        if self.recipe is not None and not (self.path / "recipe.json").exists():
            self.write("recipe.json", self.recipe.as_dict() | {"identity": self.recipe.identity})

    @contextmanager
    def lease(self, wait: Callable[[str], object] | None = None) -> Iterator[None]:
        """Holds the run for this process, with a heartbeat; a second process is refused.

        Args:
            wait: where given, the second process waits instead, after telling this who holds the run.

        Raises:
            RunError: Another living process holds it.
        """
        self._make()
        lease = self.path / "lease.json"
        mine = this_process()
        told = False
        while (holder := self._take(lease, mine)) is not None:
            who = f"is being trained by process {holder['pid']} on {holder['host']}"
            if wait is None:
                raise RunError(
                    f"The run {self.path} {who}. Wait for it or stop it (Ctrl-C saves its state); the same command then continues "
                    "or reports."
                )
            if not told:
                wait(f"waiting: the run {self.path} {who}")
                told = True
            time.sleep(POLL)
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT):
                with contextlib.suppress(OSError):  # a file system that hangs for a while must not end the heartbeat
                    if not self._is(lease, mine):
                        self.lost.set()
                        return
                    os.utime(lease)

        heart = threading.Thread(target=beat, name="heartbeat", daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
            with contextlib.suppress(OSError):
                if self._is(lease, mine):  # else taken over, and no longer ours to remove
                    lease.unlink()

    def _take(self, lease: Path, mine: Mapping[str, Any]) -> dict[str, Any] | None:
        """Writes the lease where nobody alive holds it; otherwise returns who does."""
        with exclusive(self.path / ".lock"):
            holder = self._holder()
            if holder is None:
                atomic_text(lease, json.dumps(mine))
                self._clear()
            return holder

    def _clear(self) -> None:
        """Takes away what killed processes were writing, but not evaluations, which need no lease and may come from elsewhere."""
        for half in self.path.rglob(".*-*.*"):
            if not half.is_relative_to(self.path / "evaluations") and is_left(half):
                half.unlink(missing_ok=True)

    @staticmethod
    def _is(lease: Path, mine: Mapping[str, Any]) -> bool:
        try:
            found: bool = json.loads(lease.read_text(encoding="utf-8")) == mine
        except ValueError:
            return False
        return found

    def check_held(self) -> None:
        """Refuses to write into a run that another machine has taken over.

        Raises:
            RunError: Another machine has taken it over.
        """
        if self.lost.is_set():
            raise RunError(
                f"The run {self.path} was taken over by another machine or container, which had seen no sign of life from this "
                f"one for {SILENCE:.0f} s. Nothing more is written here; lease.json in the folder names that machine."
            )
