"""Configuration to objects. Only classes on an allow-list are built: a configuration from elsewhere must not run code."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from voxtile.commands.guard import no_memory
from voxtile.commands.own import check_is, raised_at
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


def below(name: str, modules: Sequence[str]) -> bool:
    """Whether a dotted name is that of a module, or of something in it."""
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
    trusted = below(module_name, trust)
    if not trusted and not below(module_name, allowed):
        raise _not_allowed({where: name}, trust)
    module = _imported(module_name, name, where, trusted)
    try:
        found = getattr(module, attribute)
    except AttributeError as error:
        near = did_you_mean(attribute, dir(module))
        raise ConfigError(f"The configuration names '{name}', which does not exist: {reason(error)}.{near}") from error
    own = name in FUNCTIONS or (inspect.isclass(found) and below(found.__module__, allowed))
    network = where.split(".")[0] != "model" or name in FUNCTIONS or _is_network(found)
    if not trusted and not (own and network):
        what = "class" if not own else "network"
        raise ConfigError(
            f"'{name}' is no {what} of voxtile or its libraries; nothing was run. Type '{_trusting(trust, name)}' to allow it."
        )
    return found


def check_trust(config: Mapping[str, Any], unused: Sequence[str] = ()) -> None:
    """Refuses names that are not allowed, all of a configuration at once.

    Args:
        config: the configuration.
        unused: its parts of which nothing is to be built.

    Raises:
        ConfigError: A name is not allowed.
    """
    trust = config["trust"]
    found = {
        where: name
        for part, allowed in ALLOWED.items()
        for where, name in targets_of(config.get(part), part)
        if part not in unused and not below(name.rpartition(".")[0], (*trust, *allowed))
    }
    if found:
        raise _not_allowed(found, trust)


def targets_of(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every name that is to be built at or below a node, with its path."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield where, str(node["_target_"])
        for key, value in node.items():
            yield from targets_of(value, f"{where}.{key}")
    elif isinstance(node, list):
        for number, item in enumerate(node):
            yield from targets_of(item, f"{where}[{number}]")


def _not_allowed(found: Mapping[str, str], trust: Sequence[str]) -> ConfigError:
    """What to say of names, by their paths, that are not allowed."""
    said = listed((f"'{where}' wants to build '{name}'" for where, name in found.items()), 20)
    if len(found) > 1:
        return ConfigError(
            f"{said}, which are on no allow-list; nothing was run. If you know and trust these modules, type "
            f"'{_trusting(trust, *found.values())}'."
        )
    part = next(iter(found)).split(".")[0]
    return ConfigError(
        f"{said}, which is not on the allow-list of '{part}' ({listed(ALLOWED.get(part, ()))}); nothing was run. If you know and "
        f"trust that module, type '{_trusting(trust, *found.values())}'."
    )


def _trusting(trust: Sequence[str], *names: str) -> str:
    """What is typed to trust the modules of names, too."""
    return f"trust=[{','.join(dict.fromkeys((*map(str, trust), *(name.rpartition('.')[0] or name for name in names))))}]"


def _imported(module_name: str, name: str, where: str, trusted: bool) -> Any:
    """The module that `name` lies in.

    Raises:
        ConfigError: There is no such module, or it cannot be imported.
    """
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # what a module runs when it is imported fails in any way
        if no_memory(error):  # `guarded` says what can be done
            raise
        library = module_name.partition(".")[0]
        if isinstance(error, ImportError) and library in EXTRAS and importlib.util.find_spec(library) is None:
            raise ConfigError(
                f"'{where}' wants to build '{name}', and the package {library.replace('_', '-')} is not installed. Type "
                f"pip install 'voxtile[{EXTRAS[library]}]', or choose what needs no other library."
            ) from error
        if isinstance(error, ModuleNotFoundError) and error.name and below(module_name, [error.name]):
            path = " Modules are looked for in the folders that the variable PYTHONPATH names, and among what is installed."
            raise ConfigError(
                f"The configuration names '{name}', which does not exist: {reason(error)}.{path if trusted else ''}"
            ) from error
        raise ConfigError(
            f"'{where}' wants to build '{name}', and the module '{module_name}' cannot be imported: {type(error).__name__}: "
            f"{reason(error)}{raised_at(error)}. Correct it there, or install what is missing."
        ) from error


def _is_network(found: Any) -> bool:
    from torch import nn

    return inspect.isclass(found) and issubclass(found, nn.Module)


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
    if where.split(".")[0] == "model" and below(str(node["_target_"]), OTHERS):
        arguments = _nothing_loaded(str(node["_target_"]), where, arguments, accepted, trust)
    if accepted and not _takes_any(str(node["_target_"]), arguments, accepted):
        named = [key for key, parameter in accepted.items() if parameter.kind is not parameter.VAR_KEYWORD]
        unknown = [key for key in arguments if key not in named and key not in extra]
        if unknown:
            near = did_you_mean(unknown[0], named)
            over = where == "model" and not near and below(str(node["_target_"]), OTHERS)
            instead = over * (
                f" If '{unknown[0]}' is of a network that this one was typed over, take that one out first: type '~model' "
                f"'+model={{_target_: {node['_target_']}, …}}' with settings of this one."
            )
            raise ConfigError(
                f"'{where}' ({node['_target_']}) takes no '{unknown[0]}'.{near} It takes {listed(named, 20)}.{instead}"
            )
        arguments = {key: value for key, value in arguments.items() if key in named}
    # An adapter looks into the network, and a layout makes another library's data set only when it looks for its files.
    if where.startswith("data.layout.") or (node.get("_partial_") and where.split(".")[0] == "model"):
        return functools.partial(maker, **arguments)
    if node.get("_partial_"):
        return lambda *args: called(maker, where, args, arguments)
    return called(maker, where, (), arguments)


def _nothing_loaded(
    name: str, where: str, arguments: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter], trust: Sequence[str]
) -> dict[str, Any]:
    """The arguments of another library's network, with null for each by which it would load weights without being asked.

    Raises:
        ConfigError: An argument would have a file loaded, and the module is not trusted.
    """
    for key, value in () if below(name.rpartition(".")[0], trust) else _leaves(arguments):
        asked = LOADING.search(key) and value is not None and not (value is False and "weights" not in key)
        if asked or (isinstance(value, str) and ADDRESS.search(value)):
            raise ConfigError(
                f"'{where}.{key}={value}' would have {name} load a file that voxtile does not "
                f"check; nothing was run. If you trust it, type '{_trusting(trust, name)}'."
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
    of_smp = below(name, ("segmentation_models_pytorch",)) and not str(arguments.get("encoder_name")).startswith("tu-")
    if name in FUNCTIONS or of_smp:
        return False
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())


def build_network(node: Mapping[str, Any], trust: Sequence[str], in_channels: int, num_classes: int) -> Any:
    """Builds the network of a configuration; one of another library, which takes some sizes only, in voxtile's adapter.

    Raises:
        ConfigError: See `build`.
    """
    numbers = {"in_channels": in_channels, "num_classes": num_classes}
    if not below(str(node.get("_target_")), OTHERS):
        from torch import nn

        network = build(node, "model", trust, **numbers)
        check_is(network, nn.Module, "model", "torch.nn.Module")
        return network
    from voxtile.models.adapter import Adapted

    return called(Adapted, "model", (), {"network": build({**node, "_partial_": True}, "model", trust), **numbers})


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


def called(maker: Callable[..., Any], where: str, args: Sequence[Any], arguments: Mapping[str, Any]) -> Any:
    """What a class or function makes of its arguments.

    Raises:
        ConfigError: The class or function does not take them.
    """
    try:
        return maker(*args, **arguments)
    except VoxtileError:
        raise
    except Exception as error:  # other people's constructors refuse their arguments in any way
        spot = raised_at(error)  # in what the user wrote
        what = f"{type(error).__name__}: {reason(error)}{spot}. Correct it there." if spot else f"{reason(error)}."
        example = "" if spot else f" See conf/{where.split('.')[0]} for examples."
        raise ConfigError(f"'{where}' cannot be built with {_shown(arguments)}: {what}{example}") from error


def _shown(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a configuration holds them; what was built of other parts of it would say nothing."""
    plain = (bool, int, float, str, list, dict)
    return {key: value for key, value in arguments.items() if value is None or type(value) in plain}
