"""The post-processing of evaluate and predict: its settings, and their search on validation cases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands.crf import refuse_bundle
from voxtile.errors import ConfigError, RunError, did_you_mean, listed, reason
from voxtile.values import finite, is_number, refuse_unknown

if TYPE_CHECKING:
    from voxtile.inference.postprocess import Postprocess
    from voxtile.inference.postprocess_search import Trial
    from voxtile.inference.predictor import Predictor

FILE = "postprocess.json"
KEYS = ("largest", "smallest", "holes")


def postprocess_of(value: Any, folder: Path, data: Mapping[str, Any], made: Mapping[str, Any]) -> Postprocess | None:
    """What a command's `postprocess` asks for: null for nothing, "best" for what a search has found, or settings.

    Args:
        value: of `postprocess`.
        folder: where a search of these runs has left its result.
        data: the runs' `classes` and `background`.
        made: how the maps are made, see `made_with`.

    Raises:
        ConfigError: The value or a setting is none, or the data have no background.
        RunError: There has been no search, or one on maps that were made otherwise.
    """
    if value is None:
        return None
    background_of(data)
    if value == "best":
        value = _found(folder, made)
        if value is None:
            return None
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"'postprocess={value}' is none of null, best, search (evaluate only) and settings. Type, for example, "
            f"'postprocess={{largest: [{_example(data)}]}}'."
        )
    return _settings(value, data)


def background_of(data: Mapping[str, Any]) -> int:
    """The index of the background class.

    Raises:
        ConfigError: The data set names no background.
    """
    if data["background"] is None:
        raise ConfigError(
            "'postprocess' makes background of what it removes, and the data of this run name no class 'data.background'. Type "
            "'postprocess=null'."
        )
    return int(data["background"])


def made_with(config: Mapping[str, Any], predictor: Predictor) -> dict[str, Any]:
    """The settings that change a map before it is post-processed, as plain types."""
    procedure = predictor.procedure
    return {
        "weights": config["weights"], "window": list(predictor.size), "overlap": config["overlap"],
        "samples": procedure.samples, "rotations": procedure.rotations, "mirrors": list(procedure.mirrors), "halo": procedure.halo,
        "crf": json.loads(json.dumps(asdict(procedure.crf))) if procedure.crf else None, "precision": config["precision"],
        **({"exchanged": True} if procedure.swapped else {}),
    }  # fmt: skip


def as_typed(postprocess: Postprocess | None, classes: Sequence[str]) -> dict[str, Any] | None:
    """Settings by the names of classes, as they are typed and stored."""
    if postprocess is None:
        return None
    return {
        "largest": [classes[index] for index in postprocess.largest],
        "smallest": {classes[index]: size for index, size in postprocess.smallest.items()},
        "holes": [classes[index] for index in postprocess.holes],
    }


def stored(settings: Mapping[str, Any] | None, made: Mapping[str, Any], tried: Sequence[Trial], classes: Sequence[str]) -> str:
    """The text of the file in which a search leaves its result."""
    table = [{"class": classes[trial.index], "option": trial.option, "dice": finite(trial.dice)} for trial in tried]
    return json.dumps({"settings": settings, "searched_with": made, "tried": table}, indent=1) + "\n"


def _found(folder: Path, made: Mapping[str, Any]) -> Any:
    file = folder / FILE
    if not file.exists():
        refuse_bundle(folder, "postprocess=search")
        raise RunError(
            f"{folder} holds no {FILE}: nobody has searched for what helps. Type 'voxtile evaluate … postprocess=search' with the "
            "same run or runs; a search looks at validation cases only."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        settings, searched = (
            content["settings"],
            {"precision": "32-true", "exchanged": False} | content["searched_with"],
        )  # some do not say
        unlike = [name for name in made if searched[name] != made[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{file} cannot be read: {reason(error)}. Move it away, and search again with 'postprocess=search'."
        ) from error
    if unlike:
        raise RunError(
            f"What {file} holds was found to help maps made with {listed(f'{name}={searched[name]}' for name in unlike)}, and "
            f"these are made with {listed(f'{name}={made[name]}' for name in unlike)}. Give the same settings, search again with "
            "'postprocess=search', or type the settings of that file yourself."
        )
    return settings


def _settings(given: Mapping[str, Any], data: Mapping[str, Any]) -> Postprocess:
    from voxtile.inference.postprocess import Postprocess

    refuse_unknown("postprocess", given, KEYS)
    background = background_of(data)
    known = {str(name): index for index, name in enumerate(data["classes"]) if index != background}
    kinds = {"largest": list, "smallest": Mapping, "holes": list}
    for key, value in given.items():
        if not isinstance(value, kinds[key]):
            example = f"{{{_example(data)}: 30}}" if key == "smallest" else f"[{_example(data)}]"
            raise ConfigError(f"'postprocess.{key}={value}' must name classes. Type, for example, '{key}: {example}'.")
        if strange := [name for name in value if str(name) not in known]:
            raise ConfigError(
                f"'postprocess.{key}' names '{strange[0]}', and the classes that can be post-processed are {listed(known, 30)}."
                f"{did_you_mean(str(strange[0]), known)}"
            )
    sizes = {known[str(name)]: size for name, size in given.get("smallest", {}).items()}
    for name, size in given.get("smallest", {}).items():
        if not (is_number(size) and size > 0):
            raise ConfigError(
                f"'postprocess.smallest.{name}={size}' must be a size above 0: mm³ in volumes, pixels in scenes and pictures."
            )
    largest, holes = (tuple(sorted({known[str(name)] for name in given.get(key, ())})) for key in ("largest", "holes"))
    return Postprocess(background, largest, {index: float(sizes[index]) for index in sorted(sizes)}, holes)


def _example(data: Mapping[str, Any]) -> str:
    return next((str(name) for index, name in enumerate(data["classes"]) if index != data["background"]), "class")
