"""What can be seen of a configuration without building anything of it: unknown keys, and values of the wrong kind or range."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from voxtile.cases.windowing import Windowing
from voxtile.commands.allowed import below, target
from voxtile.commands.typed import check_arguments
from voxtile.errors import ConfigError, did_you_mean, listed, reason
from voxtile.values import check_switch, refuse_unknown

DATA_KEYS = (
    "name",
    "format",
    "labels",
    "background",
    "regions",
    "group",
    "channels",
    "nodata",
    "exclude",
    "colors",
    "scene",
    "vectors",
    "spacing",
)
RUN_KEYS = ("waive", "limit", "window", "axis", "neighbours", "balance", "sampling", "symmetry")

TOP_KEYS = (
    "model", "loss", "optimizer", "scheduler", "augment", "normalise", "split", "trainer", "logger", "data", "experiment", "debug",
    "seed", "fold", "training", "init_from", "paths", "workers", "trust", "retry", "inexact", "debug_errors",
    "chosen",
)  # fmt: skip

WANDB_MODES = ("online", "offline", "disabled")

# Values of `data` with parts: what holds them, and an example. Null is none of them.
KINDS: Sequence[tuple[str, type, str]] = (
    ("symmetry", Mapping, "{flips: [x]}"), ("group", Mapping, "{pattern: '^[a-z]+'}"), ("colors", Mapping, "{water: [0,0,255]}"),
    ("regions", Mapping, "{whole: [edema,core]}"),
    ("sampling", Mapping, "{by: uniform}"),
    ("vectors", Mapping, "{attribute: kind}"),
    ("exclude", list, "[p7]"), ("waive", list, "[p7]"), ("channels", list, "[red,nir]"),
    ("scene", Mapping, "{resolution: 20}"),
)  # fmt: skip
MOST_SAMPLES = 65_536  # in a batch
SECTIONS = ("model", "loss", "optimizer", "scheduler", "augment", "normalise", "split", "trainer", "data", "training", "paths")

# Values that no class of ours takes and checks: path, and the least and most they may be.
NUMBERS: Mapping[str, tuple[type[int] | type[float], float, float]] = {
    "seed": (int, 0, 2**32 - 1),  # what NumPy takes
    "workers": (int, 0, 1024),
    "data.balance": (float, 0, 1),
    "data.limit": (int, 1, math.inf),
    "optimizer.lr": (float, 0, 1e30),  # much more overflows in an optimizer
    "split.seed": (int, -(2**63), 2**63),
    "data.nodata": (float, -math.inf, math.inf),
}
SWITCHES = ("retry", "inexact", "debug_errors", "trainer.deterministic", "data.symmetry.rot90")


def check_files(chosen: Mapping[str, str | None], folders: Sequence[Path]) -> None:
    """Refuses files of options that name a key of a mapping twice, of which the later one would count, or begin with a mark.

    OmegaConf refuses that of keys that are texts, and passes over numbers, which the stored values of labels are.

    Args:
        chosen: option by group.
        folders: of configurations, in the order in which Hydra looks into them.

    Raises:
        ConfigError: There is such a key, or a byte-order mark.
    """
    for group, option in chosen.items():
        paths = (folder / group / f"{option}.yaml" for folder in folders)
        if path := next((path for path in paths if path.is_file()), None):
            text = path.read_text(encoding="utf-8")
            if text.startswith("\ufeff"):  # behind which Hydra sees no '# @package'
                raise ConfigError(f"{path} begins with a byte-order mark. Save it as UTF-8 without one ('BOM' or 'signature').")
            _refuse_twice(yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), path)


def _refuse_twice(node: yaml.Node | None, path: Path) -> None:
    """Refuses keys that are twice in a mapping, in all nodes below this one."""
    seen: set[tuple[str, str]] = set()
    for entry in node.value if isinstance(node, yaml.CollectionNode) else ():
        if isinstance(node, yaml.MappingNode):
            key, entry = entry
            if (key.tag, str(key.value)) in seen:
                raise ConfigError(
                    f"{path}, line {key.start_mark.line + 1}, names the key {key.value} for the second time, and only one of the "
                    "two would count. Give each key once."
                )
            seen.add((key.tag, str(key.value)))
        _refuse_twice(entry, path)


def check_keys(config: Mapping[str, Any]) -> None:
    """Looks whether the sections are there, and no others.

    Raises:
        ConfigError: One is missing, or a key is unknown.
    """
    for key in SECTIONS:
        if not isinstance(config.get(key), Mapping):
            raise ConfigError(
                f"'{key}={config.get(key)}' takes the place of all settings of '{key}'. Set one, as in '{key}.<name>=…'."
            )
    data = config["data"]
    known = (*DATA_KEYS, *RUN_KEYS, "layout")
    if "data" in data:
        raise ConfigError("'data' holds 'data' again: the data set's file must begin with the line '# @package _global_'.")
    if strange := [key for key in config if key not in TOP_KEYS]:
        inner = f" Put it under 'data:' in the data set's file ({strange[0]} is a key of 'data')." if strange[0] in known else ""
        raise ConfigError(f"The configuration takes no '{strange[0]}'.{inner or did_you_mean(strange[0], TOP_KEYS)}")
    refuse_unknown("data", data, known)
    if config.get("fold") not in (None, 0, config["split"].get("fold")):
        raise ConfigError(
            f"'fold={config['fold']}' and 'split.fold={config['split'].get('fold')}' are one setting with two values. Type one of "
            "them."
        )


def with_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the names of cases in the place of the text file that `data.exclude` or `data.waive` names.

    So a run is told by the names, whatever becomes of the file.

    Raises:
        ConfigError: The file is not there, or is no text.
    """
    data = config.get("data")
    if not isinstance(data, Mapping):  # of a command's own settings
        return {**config}
    given = {key: data[key] for key in ("exclude", "waive") if isinstance(data.get(key), str)}
    return {**config, "data": {**data, **{key: _names_in(f"data.{key}", file) for key, file in given.items()}}}


def _names_in(key: str, file: str) -> list[str]:
    """The names in a text file, one a line."""
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"'{key}={file}' cannot be read: {reason(error)}. Expected a list of cases, for example '{key}=[p7]', or a text file "
            "with the name of a case on each line."
        ) from error
    names = [name for line in lines if (name := line.strip())]
    if not names:
        raise ConfigError(f"'{key}={file}' holds no name. Write the name of a case on each line, or take the setting out.")
    return names


def check_values(config: Mapping[str, Any]) -> None:
    """Looks at values that no class of ours takes and checks.

    Raises:
        ConfigError: One is of the wrong kind, or out of its range.
    """
    data, trust = config["data"], config["trust"]
    if missing := [key for key in ("name", "format", "layout", "labels", "window") if data.get(key) is None]:
        raise ConfigError(f"The data set's configuration lacks '{missing[0]}'. conf/data/satellite.yaml shows what it needs.")
    if not re.fullmatch(r"\w[\w.-]*", str(data["name"]), re.ASCII):
        raise ConfigError(
            f"'data.name={data['name']}' names run folders: give letters, digits, '_', '-' and '.', for example 'forest_2019'."
        )
    window = windowing_of(data).size
    if not isinstance(data["labels"], Mapping):
        raise ConfigError(f"'data.labels={data['labels']}' must name a class for each stored value: {{0: ground, 1: building}}.")
    for key, kind, example in KINDS:
        if data.get(key) is not None and not isinstance(data[key], kind):
            raise ConfigError(f"'data.{key}={data[key]}' is of the wrong kind. Expected, for example, 'data.{key}={example}'.")
    if (data["symmetry"] or {}).get("rot90") and window[-1] != window[-2]:
        raise ConfigError(
            f"'data.symmetry.rot90=true' turns windows by 90°, and 'data.window={list(window)}' is not square. Make it square, or "
            "type 'data.symmetry.rot90=false'."
        )
    wandb = (config["logger"] or {}).get("wandb")
    if wandb and wandb.get("mode") not in WANDB_MODES:
        raise ConfigError(
            f"'logger.wandb.mode={wandb.get('mode')}' is unknown.{did_you_mean(str(wandb.get('mode')), WANDB_MODES)} Choose from "
            f"{listed(WANDB_MODES)}."
        )
    if not isinstance(trust, list):
        raise ConfigError(f"'trust={trust}' must be a list of modules. Type 'trust=[{trust}]'.")
    for path, (kind, least, most) in NUMBERS.items():
        group, _, key = path.rpartition(".")
        section = config[group] if group else config
        if key not in section:
            continue
        value: Any = section[key]
        number = isinstance(value, int | kind) and not isinstance(value, bool)
        if not (value is None and path.startswith("data.")) and not (number and least <= value <= most):
            what = "a whole number" if kind is int else "a number"
            raise ConfigError(f"'{path}={value}' must be {what} from {least}{f' to {most}' if most < math.inf else ' up'}.")

    for path in SWITCHES:
        node: Any = config
        for part in path.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if node is not None:
            check_switch(path, node)


def settings_of(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """The training settings, with their types checked by OmegaConf."""
    refuse_unknown("training", values, [field.name for field in fields(kind)])
    try:
        typed = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.create(dict(values)))
        settings = kind(**OmegaConf.to_container(typed, throw_on_missing=True))  # type: ignore[arg-type]  # gives a dict
    except MissingMandatoryValue as error:
        raise ConfigError(f"The configuration lacks 'training.{error.full_key}'. Give it a value.") from error
    except OmegaConfBaseException as error:
        check_arguments(kind, values, "training")
        what = reason(error).partition(" full_key")[0]
        raise ConfigError(f"'training.{error.full_key}' has a value of the wrong type: {what}.") from error
    for name in ("steps", "batch_size", "accumulate", "val_every", "log_every", "save_every", "patience", "norm_statistics"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f"'training.{name}={value}' must be 1 or more.")
    if settings.minutes is not None and not 0 < settings.minutes < math.inf:
        raise ConfigError(f"'training.minutes={settings.minutes}' must be more than 0; type 'training.minutes=null' for no limit.")
    if settings.batch_size > MOST_SAMPLES:
        raise ConfigError(f"'training.batch_size={settings.batch_size}' is more than {MOST_SAMPLES:,}, which no machine holds.")
    if settings.ema is not None and not 0 <= settings.ema < 1:
        raise ConfigError(f"'training.ema={settings.ema}' is a decay: give 0 or more and less than 1, for example 0.99, or null.")
    if settings.clip is not None and not 0 < settings.clip < math.inf:
        raise ConfigError(f"'training.clip={settings.clip}' must be more than 0; type 'training.clip=null' for no limit.")
    if not all(isinstance(group, Mapping) for group in settings.groups):
        raise ConfigError(f"'training.groups={settings.groups}' must hold entries like {{pattern: '^score', lr_scale: 10}}.")
    return settings


def check_types(node: Any, where: str, trust: Sequence[str]) -> None:
    """Refuses arguments of the wrong type, in all nodes below this one.

    Only of our classes and of optimizers: annotations elsewhere need not be what a class takes, and it says so when it is built.

    Raises:
        ConfigError: An argument has the wrong type, or a class is not allowed.
    """
    if not isinstance(node, Mapping):
        return
    name = str(node.get("_target_"))
    if below(name, ("voxtile", "torch.optim")):
        check_arguments(target(name, where, trust), node, where)
    for key, value in node.items():
        check_types(value, f"{where}.{key}", trust)


def windowing_of(data: Mapping[str, Any]) -> Windowing:
    """How windows of the data set lie in its cases."""
    return Windowing.of(data["window"], data.get("axis", "z"), data.get("neighbours", 0))
