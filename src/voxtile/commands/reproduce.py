"""voxtile reproduce: a run trained again from what its folder says, and compared with it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from voxtile.commands import compose
from voxtile.commands.guard import StoppedError
from voxtile.commands.words import word
from voxtile.errors import ConfigError, RunError, counted, listed, reason
from voxtile.values import check_switch

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.training.run_folder import RunFolder

CHECKOUT = "voxtile-code-"  # how names of folders of checkouts begin
BEGUN = 60.0  # seconds after which a folder that nobody uses is not one that is just being made


def main(argv: Sequence[str]) -> int:
    """Composes and reproduces; see `voxtile reproduce --help`."""
    return compose.run("reproduce", argv, reproduce)


def reproduce(config: Mapping[str, Any]) -> int:
    """Trains the run that the configuration names once more and compares."""
    from voxtile.training.run_folder import RunFolder

    first = RunFolder.existing(config["run"])  # before what takes seconds to import
    from voxtile.commands.console import console
    from voxtile.commands.trained import Trained, prepared_for
    from voxtile.commands.verify import other_identity, other_name
    from voxtile.studies.reproduction import check_evidence, compare
    from voxtile.training.recipe import Recipe

    out = console()
    if config["code"] not in ("same", "here"):
        raise ConfigError(f"'code={config['code']}' is unknown; choose from same, here.")
    first.refuse_unfinished("there is nothing to compare with yet")
    check_evidence(first)
    if config["code"] == "here" and Recipe.written(first.read("recipe.json", "settings", "data", "split", "stream")).is_outdated:
        raise RunError(
            f"{first.path} cannot be trained again with the present code: its network or its augmentation has another version "
            "now, which comes to other numbers. Leave 'code=here' out, so that it is trained with the code that made it, or train "
            "a new run."
        )
    manifest = first.read("manifest.json", "code", "hardware", "data")
    if manifest.get("segments"):
        out.print(
            f"The run was continued {counted(len(manifest['segments']), 'time')}; it is trained again with the code and devices "
            "that it began with, and may differ where they were others.",
            style="yellow", soft_wrap=True,
        )  # fmt: skip
    check_switch("patch", config["patch"])
    if other := other_identity(first):
        raise RunError(
            f"{first.path} would be trained again as another run than it is: {listed(other)}. Put its files back as the training "
            "left them."
        )
    if remark := other_name(first):
        out.print(f"name: {remark}", soft_wrap=True)
    prepared_for(Trained.of(config, config["run"], "best", changed=True), "val", out)
    target = Path(config["output"] or first.path.parent / "reproductions").expanduser() / _made_with(manifest, config)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"The reproduction cannot be written to {target}: {error.strerror}. Name a folder of your own with 'output=…'."
        ) from error
    second = RunFolder.existing(_trained_again(first, manifest, target, config, out))
    found = compare(first, second)
    for line in found.lines:
        out.print(line, soft_wrap=True)
    return 0 if found.identical else RunError.exit_code


def _made_with(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The name of the folder of what is made with this code and these versions, on this hardware."""
    from voxtile.studies.manifest import Devices, code, hardware, trusted, versions

    sources = code()["sources"] if config["code"] == "here" else manifest["code"].get("sources")
    made = manifest["hardware"]
    devices = Devices(made["device"], made.get("devices", 1), made["threads"], made.get("strategy", ""))
    modules = [trusted(config["trust"])] if config["trust"] else []
    facts = json.dumps([sources, versions(), hardware(devices), *modules], sort_keys=True)
    return f"by-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def _trained_again(
    first: RunFolder, manifest: Mapping[str, Any], target: Path, config: Mapping[str, Any], out: Console
) -> str:  # fmt: skip
    """The folder of the reproduction.

    Raises:
        RunError: Its training failed.
    """
    from voxtile.commands.sweep import Job, Outcome, Slots, run_jobs

    kept: Any = OmegaConf.to_container(OmegaConf.load(first.path / "config.yaml"))
    kept["paths"] |= {"runs": str(target.absolute()), "cache": config["paths"]["cache"]}
    if config["root"] is not None:
        kept["data"]["layout"]["root"] = str(Path(config["root"]).expanduser().absolute())
    kept |= {"trust": list(config["trust"]), "retry": config["retry"], "inexact": False, "logger": {}}
    if manifest.get("parent"):
        kept["init_from"] = str(_parent_of(first, Path(manifest["parent"]["run"])))
    kept["trainer"] |= {"devices": manifest["hardware"].get("devices", 1)}
    threads = {"OMP_NUM_THREADS": str(manifest["hardware"]["threads"])}
    with _code_of(manifest, config, out) as source:
        path = {"PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))} if source else {}
        order = {"config": kept, "command": ["voxtile", "reproduce", word("run", first.path)]}
        job = Job(first.path.name, Outcome([]), OmegaConf.create(), order=order, environment=path | threads)
        waiting = [job]
        with tempfile.TemporaryDirectory(prefix="voxtile-") as place:
            stopped = run_jobs(lambda: waiting.pop() if waiting else None, Slots(1), Path(place), lambda job: None)
    if stopped:
        raise StoppedError
    if job.outcome.code:
        raise RunError(f"The run could not be trained again: {job.outcome.reason}")
    return job.outcome.home


def _parent_of(first: RunFolder, recorded: Path) -> Path:
    """The run that a run started from: where it was then, or beside this one where both have been moved.

    Raises:
        RunError: It is in neither place.
    """
    for place in (recorded, first.path.parent / recorded.name):
        if place.is_dir():
            return place
    raise RunError(
        f"{first.path} started from the weights of {recorded}, which is gone. Put that run's folder beside this one, and give the "
        "same command again."
    )


@contextmanager
def _code_of(manifest: Mapping[str, Any], config: Mapping[str, Any], out: Console) -> Iterator[str | None]:
    """The folder of the source code that made a run, for PYTHONPATH; None for the present one.

    Raises:
        RunError: The code that made the run cannot be had, or runs only with 'patch=true'.
    """
    import voxtile
    from voxtile.studies.manifest import code, sources
    from voxtile.training.processes import in_use

    made, here = manifest["code"], code()
    if config["code"] == "here" or made.get("sources") == here["sources"]:
        yield None
        return
    root = Path(voxtile.__file__).parents[2]
    advice = "Type 'code=here' to train it with the present code, which may give other numbers."
    if "commit" not in made or not (root / ".git").exists():
        why = "the manifest names no commit" if "commit" not in made else f"voxtile does not run from a checkout ({root})"
        raise RunError(f"The code has changed since the run was made, and {why}. {advice}")
    if not re.fullmatch("[0-9a-f]{40}", str(made["commit"])):
        raise RunError(f"The manifest names '{made['commit']}' as the commit, which is none. {advice}")
    if not _is_ours(root, made["commit"]) and not config["patch"]:
        raise RunError(
            f"Commit {made['commit'][:12]}, which made the run, is not in the history of this checkout. Look at it, since it "
            f"runs as code, then type 'patch=true'. {advice}"
        )
    if made["diff"] and not config["patch"]:
        lines = counted(made["diff"].count("\n"), "line")
        raise RunError(
            f"The run was made by commit {made['commit'][:12]} with uncommitted changes ({lines} of a diff, see manifest.json)."
            f" Read them, since they run as code, then type 'patch=true'. {advice}"
        )
    with tempfile.TemporaryDirectory(prefix=CHECKOUT) as place, in_use(Path(place)):
        tree = Path(place) / "tree"
        try:
            try:
                _clear_up(root)
                _git(root, "worktree", "add", "--detach", str(tree), made["commit"])
                if made["diff"]:
                    _git(tree, "apply", "--whitespace=nowarn", "-", given=made["diff"])
            except (OSError, subprocess.CalledProcessError) as error:
                said = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace")
                raise RunError(
                    f"Commit {made['commit'][:12]} could not be brought back: {reason(Exception(said))}. {advice}"
                ) from error
            out.print(f"with the code of commit {made['commit'][:12]}", soft_wrap=True)
            if sources(tree / "src" / "voxtile") != made.get("sources"):
                out.print("it is not quite what made the run: files that git did not track were part of it", style="yellow")
            yield str(tree / "src")
        finally:
            with suppress(OSError, subprocess.CalledProcessError):
                _git(root, "worktree", "remove", "--force", str(tree))


def _clear_up(root: Path) -> None:
    """Takes away what commands that were killed have left: their checkouts, and what git remembers of them."""
    from voxtile.training.processes import is_in_use

    for left in Path(tempfile.gettempdir()).glob(f"{CHECKOUT}*"):
        with suppress(OSError):  # another command takes it away at this moment
            if left.stat().st_uid == os.getuid() and time.time() - left.stat().st_mtime > BEGUN and not is_in_use(left):
                shutil.rmtree(left, ignore_errors=True)
    _git(root, "worktree", "prune")


def _is_ours(root: Path, commit: str) -> bool:
    """Whether a commit is part of the history of what is checked out."""
    words = ["git", "-C", str(root), "merge-base", "--is-ancestor", commit, "HEAD"]
    return subprocess.run(words, capture_output=True).returncode == 0


def _git(root: Path, *words: str, given: str | None = None) -> None:
    text = None if given is None else given.encode(errors="surrogateescape")
    subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, input=text)
