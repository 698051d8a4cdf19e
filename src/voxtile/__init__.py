"""voxtile: semantic segmentation of medical volumes and satellite scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile import errors as errors

if TYPE_CHECKING:
    from voxtile.commands.opened import Prediction as Prediction
    from voxtile.commands.opened import Run as Run

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The classes of what `open_run` returns, for annotations: torch is imported only where they are asked for."""
    if name in ("Prediction", "Run"):
        from voxtile.commands import opened

        return getattr(opened, name)
    raise AttributeError(f"module 'voxtile' has no attribute '{name}'")


def open_run(path: str | Path, weights: str = "best", *, root: str | Path | None = None, trust: Sequence[str] = ()) -> Run:
    """Opens a trained run, or an exported bundle, in a program of your own; nothing in its folder is executed.

    Args:
        path: the folder.
        weights: "best" or "last".
        root: the folder in which the run's data lie now; where they lay if None.
        trust: modules outside voxtile's allow-list whose classes may be built, such as that of a network of your own.

    Raises:
        RunError: The folder is no run, is damaged, or holds no such weights.
        ConfigError: Its configuration names a class that is not allowed.
        DataError: The data set's folder does not exist.
    """
    from voxtile.commands.opened import Run  # torch is imported by those who open a run, not by `voxtile status`

    return Run(path, weights, root, trust)
