"""voxtile status: how far runs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voxtile.commands import compose
from voxtile.errors import RunError, listed


def main(argv: Sequence[str]) -> int:
    """Composes and looks; see `voxtile status --help`."""
    return compose.run("status", argv, status)


def status(config: Mapping[str, Any]) -> int:
    """Prints the state of the runs that the configuration names."""
    from voxtile.commands.console import console
    from voxtile.commands.folders import named_folders
    from voxtile.commands.tables import print_runs
    from voxtile.training.run_folder import RunFolder, holds_run, is_bundle

    out = console()
    folders = named_folders(config["runs"], out)
    # One that is damaged is shown as such, beside the others; what is no run at all is refused.
    runs = [RunFolder(each) if holds_run(each) else RunFolder.existing(each, "runs") for each in folders]
    bundles = [run.path for run in runs if is_bundle(run.path)]  # which have no state of their own
    if bundles and len(bundles) == len(runs):
        RunFolder.existing(bundles[0], "runs")  # says what a bundle is
    if bundles:
        out.print(f"passed over, since they are bundles: {listed(bundles)}", soft_wrap=True)
    runs = [run for run in runs if run.path not in bundles]
    return RunError.exit_code if print_runs(out, runs) else 0
