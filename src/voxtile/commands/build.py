"""Configuration to objects. Only classes on an allow-list are built: a configuration from elsewhere must not run code."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from voxtile.cases.windowing import Windowing
from voxtile.commands.typed import check_arguments
from voxtile.errors import ConfigError, VoxtileError, did_you_mean, listed, reason

# For each part of the configuration, the modules below which its `_target_` may name classes. Each holds networks, optimizers or
# plain data handling; what their constructors take is data. The name must lead to a class that is defined there, not to something
# they import.
ALLOWED: Mapping[str, tuple[str, ...]] = {
    "model": ("voxtile.models", "monai.networks.nets", "segmentation_models_pytorch", "torchvision.models.segmentation"),
    "loss": ("voxtile.training.losses",),
    "optimizer": ("torch.optim",),
    "scheduler": ("voxtile.training.schedules",),
    "augment": ("voxtile.data.augment", "voxtile.data.contrast", "voxtile.data.warp"),
    "normalise": ("voxtile.data.normalise",),
    "split": ("voxtile.data.splits", "voxtile.data.blocks"),
    "data": ("voxtile.cases.layouts", "voxtile.cases.dicom_layout", "voxtile.cases.torchgeo", "torchgeo.datasets"),
    "logger": ("lightning.pytorch.loggers",),
}

# Functions that build networks, as torchvision has them. Otherwise a name must lead to a class, of `model` to one of a network.
FUNCTIONS = frozenset(
    f"torchvision.models.segmentation.{name}"
    for name in (
        "fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large",
        "lraspp_mobilenet_v3_large",
    )
)  # fmt: skip
# Libraries that come with an extra of voxtile's.
EXTRAS: Mapping[str, str] = {"segmentation_models_pytorch": "zoo", "torchgeo": "torchgeo"}
# Libraries whose networks take some sizes only, and go into voxtile's adapter.
OTHERS = ("monai", "segmentation_models_pytorch", "torchvision")

# Arguments by which other people's networks fetch or load weights, some of them as pickles; some do so unless told not to.
LOADING = re.compile(r"pretrain|weights|url|repo|filename|checkpoint_path")
# What is no plain word may be the address of a file or of a hub: timm takes hf-hub:<name> for the name of a network.
ADDRESS = re.compile(r"[:/\\]")


def _below(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def target(name: str, where: str, trust: Sequence[str] = ()) -> Any:
    """The class that a `_target_` names.

    Args:
        name: dotted path.
        where: path of the node in the configuration; its first part says which modules are allowed.
        trust: further modules whose classes and functions may be built.

    Raises:
        ConfigError: The name is not allowed or leads nowhere.
    """
    module_name, _, attribute = name.rpartition(".")
    allowed = ALLOWED.get(where.split(".")[0], ())
    trusted = _below(module_name, trust)
    if not trusted and not _below(module_name, allowed):
        raise ConfigError(
            f"'{where}' wants to build '{name}', which is not on the allow-list of '{where.split('.')[0]}' ({listed(allowed)}); "
            f"nothing was run. If you know and trust that module, type 'trust=[{module_name or name}]'."
        )
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        library = module_name.partition(".")[0]
        if library in EXTRAS and importlib.util.find_spec(library) is None:
            raise ConfigError(
                f"'{where}' wants to build '{name}', and the package {library.replace('_', '-')} is not installed. Type "
                f"pip install 'voxtile[{EXTRAS[library]}]', or choose what needs no other library."
            ) from error
        near = did_you_mean(attribute, _names(module_name))
        raise ConfigError(f"The configuration names '{name}', which does not exist: {reason(error)}.{near}") from error
    own = name in FUNCTIONS or (inspect.isclass(found) and _below(found.__module__, allowed))
    network = where.split(".")[0] != "model" or name in FUNCTIONS or _is_network(found)
    if not trusted and not (own and network):
        what = "class" if not own else "network"
        raise ConfigError(
            f"'{name}' is no {what} of voxtile or its libraries; nothing was run. Type 'trust=[{module_name}]' to allow it."
        )
    return found


def _is_network(found: Any) -> bool:
    from torch import nn

    return inspect.isclass(found) and issubclass(found, nn.Module)


def _names(module_name: str) -> list[str]:
    try:
        return dir(importlib.import_module(module_name))
    except ImportError:
        return []


def build(node: Mapping[str, Any], where: str, trust: Sequence[str] = (), **extra: Any) -> Any:
    """Builds what a node with a `_target_` describes; nested nodes first.

    Args:
        node: keyword arguments, `_target_`, and `_partial_` for a function that still lacks arguments.
        where: the node's path in the configuration, for messages.
        trust: see `target`.
        extra: further keyword arguments.

    Raises:
        ConfigError: A name is not allowed, or the arguments do not fit.
    """
    if "_target_" not in node:
        raise ConfigError(
            f"'{where}' has no '_target_': it does not say what to build. Files in conf/{where.split('.')[0]} show how."
        )
    known = {"_target_", "_partial_"}
    maker = target(str(node["_target_"]), where, trust)
    arguments = {key: _built(value, f"{where}.{key}", trust) for key, value in node.items() if key not in known} | extra
    accepted: Mapping[str, inspect.Parameter] = {}
    with contextlib.suppress(TypeError, ValueError):  # some classes written in C have no signature
        accepted = inspect.signature(maker).parameters
    if where.split(".")[0] == "model" and not _below(str(node["_target_"]).rpartition(".")[0], (*trust, "voxtile.models")):
        arguments = _nothing_loaded(str(node["_target_"]), where, arguments, accepted)
    if accepted and not _takes_any(str(node["_target_"]), arguments, accepted):
        named = [key for key, parameter in accepted.items() if parameter.kind is not parameter.VAR_KEYWORD]
        unknown = [key for key in arguments if key not in named and key not in extra]
        if unknown:
            raise ConfigError(
                f"'{where}' ({node['_target_']}) takes no '{unknown[0]}'.{did_you_mean(unknown[0], named)} It takes "
                f"{listed(named, 20)}."
            )
        arguments = {key: value for key, value in arguments.items() if key in named}
    # An adapter looks into the network, and a layout makes another library's data set only when it looks for its files.
    if where.startswith("data.layout.") or (node.get("_partial_") and where.split(".")[0] == "model"):
        return functools.partial(maker, **arguments)
    if node.get("_partial_"):
        return lambda *args: _called(maker, where, args, arguments)
    return _called(maker, where, (), arguments)


def _check_types(node: Any, where: str, trust: Sequence[str]) -> None:
    """Refuses arguments of the wrong type, in all nodes below this one.

    Only of our classes and of optimizers: annotations elsewhere need not be what a class takes, and it says so when it is built.

    Raises:
        ConfigError: There is one, or a class is not allowed.
    """
    if not isinstance(node, Mapping):
        return
    name = str(node.get("_target_"))
    if _below(name, ("voxtile", "torch.optim")):
        check_arguments(target(name, where, trust), node, where)
    for key, value in node.items():
        _check_types(value, f"{where}.{key}", trust)


def _nothing_loaded(
    name: str, where: str, arguments: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """The arguments of another library's network, with null for each by which it would load weights without being asked.

    Raises:
        ConfigError: An argument would have a file loaded.
    """
    for key, value in _leaves(arguments):
        asked = LOADING.search(key) and value is not None and not (value is False and "weights" not in key)
        if asked or (isinstance(value, str) and ADDRESS.search(value)):
            raise ConfigError(
                f"'{where}.{key}={value}' would have {name} load a file that voxtile does not "
                f"check; nothing was run. If you trust it, type 'trust=[{name.rpartition('.')[0]}]'."
            )
    nothing = (None, False, inspect.Parameter.empty)
    silent = {key: None for key, parameter in accepted.items() if LOADING.search(key) and parameter.default not in nothing}
    return {**silent, **arguments}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in lists and dicts that is neither, with its path, and each list and dict in an argument that loads."""
    if isinstance(value, Mapping) and not LOADING.search(path):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and not LOADING.search(path):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}[{number}]")
    else:
        yield path, value


def _takes_any(name: str, arguments: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter]) -> bool:
    """Whether arguments that the signature does not name are looked at: not by torchvision, and by smp for timm's encoders only."""
    of_smp = _below(name, ("segmentation_models_pytorch",)) and not str(arguments.get("encoder_name")).startswith("tu-")
    if name in FUNCTIONS or of_smp:
        return False
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())


def build_network(node: Mapping[str, Any], trust: Sequence[str], in_channels: int, num_classes: int) -> Any:
    """Builds the network of a configuration; one of another library, which takes some sizes only, in voxtile's adapter.

    Raises:
        ConfigError: See `build`.
    """
    numbers = {"in_channels": in_channels, "num_classes": num_classes}
    if not _below(str(node.get("_target_")), OTHERS):
        return build(node, "model", trust, **numbers)
    from voxtile.models.adapter import Adapted

    return _called(Adapted, "model", (), {"network": build({**node, "_partial_": True}, "model", trust), **numbers})


def without_weights(node: Any) -> Any:
    """A network's configuration without what would load trained weights."""
    if isinstance(node, Mapping):
        return {key: None if LOADING.search(key) else without_weights(value) for key, value in node.items()}
    return [without_weights(item) for item in node] if isinstance(node, list) else node


def _built(value: Any, where: str, trust: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, where, trust)
        return {key: _built(item, f"{where}.{key}", trust) for key, item in value.items()}
    if isinstance(value, list):
        return [_built(item, f"{where}[{i}]", trust) for i, item in enumerate(value)]
    return value


def _called(maker: Callable[..., Any], where: str, args: Sequence[Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return maker(*args, **arguments)
    except VoxtileError:
        raise
    except Exception as error:  # other people's constructors refuse their arguments in any way
        raise ConfigError(
            f"'{where}' cannot be built with {_shown(arguments)}: {reason(error)}. See conf/{where.split('.')[0]} for examples."
        ) from error


def _shown(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a configuration holds them; what was built of other parts of it would say nothing."""
    plain = (bool, int, float, str, list, dict)
    return {key: value for key, value in arguments.items() if value is None or type(value) in plain}


@dataclass(frozen=True)
class Parts:
    """A run's parts before its data is read: everything the configuration alone decides."""

    config: Mapping[str, Any]
    dataset: Any
    scheme: Any
    normalisation: Any
    augment: Any
    settings: Any
    schedule: Any
    make_optimizer: Any
    sampling: Any
    windowing: Any

    @property
    def trust(self) -> Sequence[str]:
        """Modules outside the allow-list that the user trusts."""
        trust: Sequence[str] = self.config.get("trust", ())
        return trust


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


def parts(config: Mapping[str, Any]) -> Parts:
    """Builds what needs no data, so that a wrong configuration is found before any file is read.

    Raises:
        ConfigError: A key is unknown, a value has the wrong type, or a class cannot be built.
    """
    from voxtile.training.settings import Settings

    for key in SECTIONS:
        if not isinstance(config.get(key), Mapping):
            raise ConfigError(
                f"'{key}={config.get(key)}' takes the place of all settings of '{key}'. Set one, as in '{key}.<name>=…'."
            )
    trust = config["trust"]
    data = dict(config["data"])
    known = (*DATA_KEYS, *RUN_KEYS, "layout")
    if "data" in data:
        raise ConfigError("'data' holds 'data' again: the data set's file must begin with the line '# @package _global_'.")
    if strange := [key for key in config if key not in TOP_KEYS]:
        inner = f" Put it under 'data:' in the data set's file ({strange[0]} is a key of 'data')." if strange[0] in known else ""
        raise ConfigError(f"The configuration takes no '{strange[0]}'.{inner or did_you_mean(strange[0], TOP_KEYS)}")
    if unknown := [key for key in data if key not in known]:
        raise ConfigError(f"'data' takes no '{unknown[0]}'.{did_you_mean(unknown[0], known)}")
    if config.get("fold") not in (None, 0, config["split"].get("fold")):
        raise ConfigError(
            f"'fold={config['fold']}' and 'split.fold={config['split'].get('fold')}' are one setting with two values. Type one of "
            "them."
        )
    _check_values(config)
    settings = _settings(Settings, config["training"])
    # What is slow to import comes after what can be seen without.
    for key in SECTIONS:
        _check_types(config[key], key, trust)
    from voxtile.cases.dataset import Dataset
    from voxtile.data.sampling import Sampling

    layout = build(data["layout"], "data.layout", trust)
    facts = {key: data[key] for key in DATA_KEYS if data.get(key) is not None}
    check_arguments(Dataset, {key: facts[key] for key in ("channels", "exclude") if key in facts}, "data")
    windowing = _windowing(data)
    dataset = _called(Dataset, "data", (), facts | {"layout": layout, "windowing": windowing})
    sampling = Sampling.of(data.get("sampling"))
    sampling.weights_of(dataset.classes)
    return Parts(
        config,
        dataset,
        build(config["split"], "split", trust),
        build(config["normalise"], "normalise", trust),
        build(_turned(config["augment"], windowing), "augment", trust),
        settings,
        build(config["scheduler"], "scheduler", trust),
        build(config["optimizer"], "optimizer", trust),
        sampling,
        windowing,
    )


def _windowing(data: Mapping[str, Any]) -> Windowing:
    return Windowing.of(data["window"], data.get("axis", "z"), data.get("neighbours", 0))


def _turned(augment: Mapping[str, Any], windowing: Windowing) -> Mapping[str, Any]:
    """The augmentation's settings with the axes of the volume called as they are in windows."""
    symmetry = augment.get("symmetry")
    if windowing.axis == "z" or not isinstance(symmetry, Mapping):
        return augment
    turned = {
        "flips": [windowing.axis_of(axis) for axis in symmetry.get("flips") or ()],
        "swap": {windowing.axis_of(axis): pairs for axis, pairs in (symmetry.get("swap") or {}).items()},
    }
    return {**augment, "symmetry": {**symmetry, **turned}}


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


def _check_values(config: Mapping[str, Any]) -> None:
    data, trust = config["data"], config["trust"]
    if missing := [key for key in ("name", "format", "layout", "labels", "window") if data.get(key) is None]:
        raise ConfigError(f"The data set's configuration lacks '{missing[0]}'. conf/data/satellite.yaml shows what it needs.")
    if not re.fullmatch(r"\w[\w.-]*", str(data["name"]), re.ASCII):
        raise ConfigError(
            f"'data.name={data['name']}' names run folders: give letters, digits, '_', '-' and '.', for example 'forest_2019'."
        )
    window = _windowing(data).size
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
        if node is not None and not isinstance(node, bool):
            raise ConfigError(f"'{path}={node}' must be true or false.")


def _settings(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """The training settings, with their types checked by OmegaConf."""
    names = [field.name for field in fields(kind)]
    unknown = [key for key in values if key not in names]
    if unknown:
        raise ConfigError(f"'training' takes no '{unknown[0]}'.{did_you_mean(unknown[0], names)} It takes {listed(names, 20)}.")
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
    if settings.minutes is not None and settings.minutes <= 0:
        raise ConfigError(f"'training.minutes={settings.minutes}' must be more than 0; type 'training.minutes=null' for no limit.")
    if settings.batch_size > MOST_SAMPLES:
        raise ConfigError(f"'training.batch_size={settings.batch_size}' is more than {MOST_SAMPLES:,}, which no machine holds.")
    if settings.ema is not None and not 0 <= settings.ema < 1:
        raise ConfigError(f"'training.ema={settings.ema}' is a decay: give 0 or more and less than 1, for example 0.99, or null.")
    if settings.clip is not None and settings.clip <= 0:
        raise ConfigError(f"'training.clip={settings.clip}' must be more than 0; type 'training.clip=null' for no limit.")
    if not all(isinstance(group, Mapping) for group in settings.groups):
        raise ConfigError(f"'training.groups={settings.groups}' must hold entries like {{pattern: '^score', lr_scale: 10}}.")
    return settings


def folder(path: str) -> Path:
    """A path from the configuration, with ~ expanded."""
    return Path(path).expanduser()
