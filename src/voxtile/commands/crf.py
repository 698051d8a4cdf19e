"""The dense CRF of evaluate and predict: its settings, and their search on validation cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands.words import word
from voxtile.errors import ConfigError, RunError, counted, listed
from voxtile.training.run_folder import is_bundle
from voxtile.values import refuse_unknown

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.cases.case import Case
    from voxtile.commands.trained import Trained
    from voxtile.data.prepared import Prepared
    from voxtile.inference.crf import DenseCRF
    from voxtile.inference.crf_search import Judged
    from voxtile.inference.predictor import Predictor
    from voxtile.training.run_folder import RunFolder

MOST_PIECES = 100  # searched on; DeepLab's authors take 100 validation images
PIECE_SIDE = 512  # pixels of a piece's longest side, about that of the authors' images
STAGES = 2
LEAST_VALUE = 0.1  # of `bilateral_value`: images have values from 0 to 255
FILE = "crf.json"


def asks_for_search(value: Any) -> bool:
    """Whether a command's `crf` or `postprocess` asks for a search: "search", or {search: …}."""
    return value == "search" or (isinstance(value, Mapping) and "search" in value)


def refuse_bundle(folder: Path, search: str) -> None:
    """Refuses a bundle that lacks what a search finds: it cannot be searched.

    Args:
        folder: of a run, or of several.
        search: what evaluate is told to search.

    Raises:
        RunError: It is a bundle.
    """
    if is_bundle(folder):
        raise RunError(
            f"{folder} is a bundle of a run for which nobody had searched when it was exported. Type 'voxtile evaluate run=… "
            f"split=val {search}' with that run, and export it again; or type settings."
        )


def crf_of(value: Any, home: RunFolder, channels: Sequence[str]) -> DenseCRF | None:
    """The CRF that a command's `crf` asks for: null for none, "best" for what the search has found, or settings.

    Args:
        value: of `crf`.
        home: the run.
        channels: names of the run's channels, by which `channels` may name those of the bilateral term.

    Raises:
        ConfigError: The value or a setting is none.
        RunError: There has been no search.
    """
    if value is None:
        return None
    if value == "best":
        if not (home.path / FILE).exists():
            refuse_bundle(home.path, "crf=search")
            raise RunError(
                f"{home.path} holds no {FILE}: nobody has searched for the CRF's settings. Type: voxtile evaluate "
                f"{word('run', home.path)} split=val crf=search"
            )
        value = home.read(FILE, "settings")["settings"]
        if value is None:
            raise RunError(
                f"The search in {home.path} found no settings better than no CRF. Leave 'crf=best' out, or search others: "
                "'crf={search: {bilateral_value: [3, 10, 30]}}'."
            )
    if not isinstance(value, Mapping) or "search" in value:
        raise ConfigError(
            f"'crf={value}' is none of null, best, search (evaluate only) and settings. Type, for example, "
            "'crf={bilateral_weight: 4, bilateral_position: 65, bilateral_value: 3}'."
        )
    return _settings(value, channels)


def _settings(given: Mapping[str, Any], channels: Sequence[str]) -> DenseCRF:
    from voxtile.inference.crf import DenseCRF

    refuse_unknown("crf", given, [field.name for field in fields(DenseCRF)])
    made = dict(given)
    if isinstance(made.get("channels"), Sequence) and not isinstance(made["channels"], str):
        known: dict[object, int] = {name: number for number, name in enumerate(channels)}
        known |= {number: number for number in range(len(channels))}
        if missing := [each for each in made["channels"] if each not in known]:
            raise ConfigError(
                f"'crf.channels' names {listed(missing)}, and the run has {counted(len(channels), 'channel')}: {listed(channels)}. "
                "Give some of these, by name or by number from 0."
            )
        made["channels"] = [known[each] for each in made["channels"]]
    found = DenseCRF(**made)
    if found.bilateral_value < LEAST_VALUE:
        raise ConfigError(
            f"'crf.bilateral_value={found.bilateral_value}' tells apart what no image holds: values reach from 0 to 255. Type "
            f"{LEAST_VALUE} or more."
        )
    return found


def search_of(value: Any, channels: Sequence[str]) -> tuple[DenseCRF, Mapping[str, Sequence[float]]]:
    """What is not searched, and the values to try, of a `crf` that asks for a search.

    Raises:
        ConfigError: A setting is none, or what stands under `search` no values by setting.
    """
    from voxtile.inference.crf_search import GRID

    given = dict(value) if isinstance(value, Mapping) else {"search": True}
    grid = given.pop("search")
    start = _settings(given, channels)
    if grid is True:
        return start, {name: values for name, values in GRID.items() if name not in given}
    if not isinstance(grid, Mapping) or not grid or not all(isinstance(values, list) for values in grid.values()):
        raise ConfigError(
            f"'crf.search={grid}' is neither true nor lists of values to try. Type, for example, "
            "'crf={search: {bilateral_weight: [3, 4, 5, 6], bilateral_value: [3, 4, 5, 6]}}'."
        )
    return start, grid


def search_crf(trained: Trained, config: Mapping[str, Any], prepared: Prepared, out: Console) -> DenseCRF | None:
    """Searches the CRF's settings on pieces of the validation cases and keeps them in the run folder; None where none helps."""
    from voxtile.commands.console import progress
    from voxtile.inference.crf_search import search

    fixed, grid = search_of(config["crf"], trained.manifest["data"]["channels"])
    predictor = trained.predictor(dict(config) | {"crf": None})
    pieces = [(case, piece) for case, pieces in _pieces(prepared.split.val, predictor) for piece in pieces]

    with progress(out) as start:
        tick = start(STAGES * len(pieces), f"searching the CRF's settings in {STAGES} stages", "look")

        def judged() -> Iterator[Judged]:
            for case, piece in pieces:
                yield predictor.whole(piece, prepared.intensity_of(case))
                tick()

        best, tried = search(judged, fixed, grid, STAGES, max(1, config["workers"]))
    table = [{"settings": asdict(t.settings) if t.settings else None, "mean_iu": t.mean_iu, "stage": t.stage} for t in tried]
    made = {name: config[name] for name in ("weights", "window", "overlap", "rotations", "samples")}
    reached = {trial.settings: trial.mean_iu for trial in tried}
    better = reached[best] > reached[None]
    trained.home.write(FILE, {"settings": asdict(best) if better else None, "searched_with": made, "tried": table})
    out.print(
        f"dense CRF: mean IU {reached[None]:.4f} without, {reached[best]:.4f} with the best of {len(tried) - 1} settings on "
        f"{counted(len(pieces), 'piece')} of validation cases; kept in {trained.home.path / FILE}"
        + (" for 'crf=best'" if better else ": none is better than no CRF, which is what is evaluated"),
        soft_wrap=True,
    )
    return best if better else None


def _pieces(cases: Sequence[Case], predictor: Predictor) -> list[tuple[Case, list[Case]]]:
    """Up to `MOST_PIECES` parts of `PIECE_SIDE` rows and columns, spread over all cases and each of them.

    They are no smaller than the windows of the training, up to which a piece would be filled and its case would not.
    """
    from voxtile.cases.tiling import tiles

    cases = cases[:: -(-len(cases) // MOST_PIECES)]
    found = []
    depth, height, width = (
        max(a, b) for a, b in zip((predictor.size[0], PIECE_SIDE, PIECE_SIDE), predictor.trained_on, strict=True)
    )
    for case in cases:
        cover = [tile.window for tile in tiles(case.shape, (depth, height, width))]
        found.append((case, [case.view(window) for window in cover[:: -(-len(cover) // (MOST_PIECES // len(cases)))]]))
    return found
