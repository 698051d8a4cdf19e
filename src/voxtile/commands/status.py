"""voxtile status: how far runs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voxtile.commands import compose


def main(argv: Sequence[str]) -> int:
    """Composes and looks; see `voxtile status --help`."""
    return compose.run("status", argv, status)


def status(config: Mapping[str, Any]) -> int:
    """Prints the state of the runs that the configuration names."""
    from voxtile.commands.console import console
    from voxtile.commands.folders import named_folders
    from voxtile.commands.tables import print_runs
    from voxtile.errors import RunError
    from voxtile.training.run_folder import EXPORT, RunFolder

    out = console()
    folders = named_folders(config["runs"], out)
    # One that is damaged is shown as such, beside the others; what is no run at all is refused.
    runs = [RunFolder(each) if (each / "recipe.json").is_file() else RunFolder.existing(each, "runs") for each in folders]
    runs = [run for run in runs if not (run.path / EXPORT).exists()]  # what was exported has no state of its own
    return RunError.exit_code if print_runs(out, runs) else 0
