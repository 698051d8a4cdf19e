"""How the run of a configuration stands: where it lies, whether it is finished, and whether it may go on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.errors import RunError, listed, sentence

if TYPE_CHECKING:
    from voxtile.commands.build import Parts
    from voxtile.commands.parents import Parent
    from voxtile.data.prepared import Prepared
    from voxtile.studies.manifest import Devices
    from voxtile.training.run_folder import RunFolder


def finished_run(config: Mapping[str, Any]) -> tuple[RunFolder, str] | None:
    """The finished run of a configuration, and what has changed since; None where something is left to do.

    Whether that is so of a run that starts from another one, only the other one could tell: None, too.

    Raises:
        VoxtileError: The configuration or the data are wrong.
    """
    from rich.console import Console

    from voxtile.commands.assemble import devices_of, prepare_data
    from voxtile.commands.build import parts

    if config["init_from"] is not None:
        return None
    built = parts(config)
    home, devices = run_home(built, prepare_data(built, Console(quiet=True)), None), devices_of(config["trainer"])
    if home.status["state"] != "finished" or not refuse_or_finished(home, config, devices):
        return None
    return home, changed_since(home, devices)


def run_home(built: Parts, prepared: Prepared, parent: Parent | None) -> RunFolder:
    """The folder of a configuration's run."""
    from voxtile.data.stream import stream_version
    from voxtile.training.recipe import Recipe
    from voxtile.training.run_folder import RunFolder

    config, version = built.config, stream_version(prepared.split.train, built.windowing.box, built.augment)
    recipe = Recipe.of(config, prepared.fingerprint, prepared.split.digest, version, parent.digest if parent else "")
    chosen = config["chosen"].get("model") or str(config["model"]["_target_"]).rpartition(".")[2].lower()
    name = f"{config['data']['name']}-{chosen.replace('/', '_')}-s{config['seed']}"
    return RunFolder.of(Path(config["paths"]["runs"]).expanduser(), name, recipe)


def interrupted_on_other_data(home: RunFolder) -> str | None:
    """What to say where a run begins although one of the same settings was interrupted; None where there is none.

    Args:
        home: the folder of the run that begins, which is not there yet.
    """
    from voxtile.training.recipe import Recipe
    from voxtile.training.run_folder import RunFolder

    mine = home.recipe
    assert mine is not None  # else it would be there
    for path in sorted(home.path.parent.glob(f"{escape(home.path.name[:-8])}*")):
        with suppress(RunError, KeyError, TypeError):  # what is damaged is none
            other = RunFolder(path)
            theirs, status = Recipe.written(other.read("recipe.json")), other.status
            if (theirs.settings, theirs.parent) == (mine.settings, mine.parent) and status["state"] == "interrupted":
                what = "data" if theirs.data != mine.data else "split" if theirs.split != mine.split else "sample stream"
                return (
                    f"{path} has the same settings and stopped at step {status.get('step', '?')}, and its {what} was another: "
                    "files have changed since, or how this version reads them. A new run begins, and that one stays as it is."
                )
    return None


def refuse_or_finished(home: RunFolder, config: Mapping[str, Any], devices: Devices, held: bool = False) -> bool:
    """Refuses a run that is not to be trained as it stands, and returns whether nothing is left to train.

    Looked up before the run's lease is taken, and again when it is `held`.

    Raises:
        RunError: The run failed before, or is interrupted and was made by other code, and the user has not said to go on; or it is
            finished and its folder is damaged.
    """
    status = home.status
    if status["state"] == "finished":
        _check_whole(home)
        return True
    if status["state"] == "failed" and not config["retry"]:
        where = "its last saved state" if home.resume.exists() else "its start, since no state of it is saved,"
        raise RunError(
            f"This run failed before, at step {status.get('step', '?')}, and said: {sentence(status.get('reason', 'nothing'))} Its "
            f"folder is {home.path}. Change the configuration, or train it again from {where} with 'retry=true'."
        )
    # Who holds the lease finds "running" where a process was killed; without it, someone is at work.
    if (held or status["state"] != "running") and home.resume.exists() and not config["inexact"]:
        _refuse_if_changed(home, devices)
    return False


def _check_whole(home: RunFolder) -> None:
    """Looks whether the folder of a finished run holds what evaluating and predicting need, as the training left it.

    Raises:
        RunError: A file is gone, or weights are not those with which the run was finished.
    """
    from voxtile.training.weights import is_whole_file

    recorded = home.status.get("weights") or {}
    weights = {name: home.weights / f"{name}.safetensors" for name in ("best", "last")}
    files = [home.path / name for name in ("recipe.json", "manifest.json", "config.yaml")] + list(weights.values())
    wrong = [f"{file.relative_to(home.path)} is gone" for file in files if not file.is_file()]
    wrong += [
        f"{file.relative_to(home.path)} is cut off or has changed"
        for name, file in weights.items()
        if file.is_file() and not is_whole_file(file, recorded.get(name))
    ]
    if wrong:
        raise RunError(
            f"The run {home.path} is finished, and its folder is damaged: {listed(wrong)}. Put back what the training left, or "
            "move the folder away; the same command then trains the run again."
        )


def _refuse_if_changed(home: RunFolder, devices: Devices) -> None:
    """Continuing with other code or versions would not give the same bits: only when told to.

    Raises:
        RunError: The interrupted run was made by other code.
    """
    if changed := changed_since(home, devices):
        ended = "failed" if home.status["state"] == "failed" else "was interrupted"
        raise RunError(
            f"The run {home.path} {ended}, and since then:{changed} Continued, it would not end in the bits of an "
            "undisturbed run. Go back to what it began with, continue all the same with 'inexact=true' (the manifest then says "
            "so), or move the folder away: the same command then trains it from its start."
        )


def changed_since(home: RunFolder, devices: Devices) -> str:
    """What has changed between a run and now, as a sentence that starts with a space; empty where nothing has."""
    from voxtile.studies.manifest import changes

    if not (home.path / "manifest.json").exists():
        return ""
    found = changes(home.read("manifest.json", "code", "versions", "hardware"), devices)
    return f" {'; '.join(found)}." if found else ""
