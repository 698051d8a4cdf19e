"""The dense CRF of evaluate and predict: its settings, and their search on validation windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from voxtile.errors import ConfigError, RunError, did_you_mean, listed

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.cases.case import Case
    from voxtile.commands.trained import Trained
    from voxtile.data.prepared import Prepared
    from voxtile.inference.crf import DenseCRF
    from voxtile.training.run_folder import RunFolder

MOST_WINDOWS = 100  # searched on; DeepLab's authors take 100 validation images
FILE = "crf.json"


def crf_of(value: Any, home: RunFolder) -> DenseCRF | None:
    """The CRF that a command's `crf` asks for: null for none, "best" for what the search has found, or settings.

    Raises:
        ConfigError: The value or a setting is none.
        RunError: There has been no search.
    """
    if value is None:
        return None
    from voxtile.inference.crf import DenseCRF

    if value == "best":
        if not (home.path / FILE).exists():
            raise RunError(
                f"{home.path} holds no {FILE}: nobody has searched for the CRF's settings. Type 'voxtile evaluate run={home.path} "
                "split=val crf=search'."
            )
        value = home.read(FILE, "settings")["settings"]
    names = [field.name for field in fields(DenseCRF)]
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"'crf={value}' is none of null, best, search (evaluate only) and settings. Type, for example, "
            "'crf={bilateral_weight: 4, bilateral_position: 65, bilateral_value: 3}'."
        )
    if unknown := [name for name in value if name not in names]:
        raise ConfigError(f"'crf' takes no '{unknown[0]}'.{did_you_mean(unknown[0], names)} It takes {listed(names)}.")
    return DenseCRF(**value)


def search_crf(trained: Trained, config: Mapping[str, Any], prepared: Prepared, out: Console) -> DenseCRF:
    """Searches the CRF's settings on windows of the validation cases and keeps them in the run folder.

    Raises:
        ConfigError: The split to be evaluated is not the validation split.
    """
    from voxtile.inference.crf import GRID, search

    if config["split"] != "val":
        raise ConfigError("'crf=search' chooses settings by scores: only 'split=val' may be used for that.")
    predictor = trained.predictor(dict(config) | {"crf": None})
    cases = prepared.split.val

    def windows() -> Iterator[Any]:
        for case in chosen(cases):
            yield from predictor.judged_windows(case, prepared.intensity_of(case), -(-MOST_WINDOWS // len(chosen(cases))))

    best, tried = search(windows, grid=GRID)
    home = trained.home
    table = [{"settings": asdict(t.settings) if t.settings else None, "mean_iu": t.mean_iu, "stage": t.stage} for t in tried]
    home.write(FILE, {"settings": asdict(best), "tried": table})
    reached = {trial.settings: trial.mean_iu for trial in tried}
    out.print(
        f"dense CRF: mean IU {reached[None]:.4f} without, {reached[best]:.4f} with the best of {len(tried) - 1} settings on up to "
        f"{MOST_WINDOWS} validation windows; kept in {home.path / FILE} for 'crf=best'",
        soft_wrap=True,
    )
    return best


def chosen(cases: Sequence[Case]) -> Sequence[Case]:
    """At most `MOST_WINDOWS` cases, spread over all."""
    step = -(-len(cases) // MOST_WINDOWS)
    return cases[::step]
