"""Code of the user's own: where in it something was raised, and whether its classes are what training takes."""

from __future__ import annotations

import inspect
import operator
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import voxtile
from voxtile.commands.guard import no_memory
from voxtile.errors import ConfigError, RunError, VoxtileError, listed, reason

if TYPE_CHECKING:
    from torch import Tensor, nn

    from voxtile.training.losses import Loss

# What networks may publish about themselves: the least value, and what it means.
PUBLISHED: Mapping[str, tuple[int, str]] = {
    "dims": (2, "what the network takes: 2 for images [B, C, H, W], 3 for boxes [B, C, D, H, W]"),
    "stride": (1, "by how much its coarsest feature map is smaller than the image, as a whole number"),
    "margin": (0, "how many pixels of real context it wants around an image on each side, as one whole number"),
    "min_train_size": (1, "the smallest image side that it can train on, as one whole number"),
    "min_train_batch": (1, "the fewest images in a batch that it can train on, as one whole number"),
}
TRIED_SIDE = 16  # most pixels of a side of what a loss is tried on
ADAPTER = (
    "have voxtile's adapter do so ('_target_: voxtile.models.adapter.Adapted', and under 'network' the '_target_' of the class and "
    "'_partial_: true')"
)


@contextmanager
def blaming(trust: Any) -> Iterator[None]:
    """Turns what trusted code raises into a paragraph that says where it did.

    Raises:
        RunError: Trusted code raised something else than an error of ours, and memory is not full.
    """
    try:
        yield
    except VoxtileError:
        raise
    except Exception as error:
        modules = tuple(map(str, trust)) if isinstance(trust, list | tuple) else ()
        # `guarded` says of a full memory what can be done.
        if no_memory(error) or not (where := _within(error, modules)):
            raise
        raise RunError(
            f"{type(error).__name__} at {where}: {reason(error)}. This was raised in code that is not voxtile's: correct it there, "
            "or type 'debug_errors=true' for the whole traceback."
        ) from error


def _within(error: BaseException, modules: Sequence[str]) -> str:
    """The innermost line that the user wrote, at or within a module of theirs; empty where there is none."""
    frames = list(traceback.walk_tb(error.__traceback__))
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in frames]
    own = [i for i, name in enumerate(names) if any(name == each or name.startswith(f"{each}.") for each in modules)]
    if not own:
        return ""
    inner = [i for i in range(own[0], len(frames)) if not _of_a_library(frames[i][0].f_code.co_filename)]
    frame, line = frames[max(inner, default=own[-1])]
    return f"{frame.f_code.co_filename}, line {line} ({frame.f_code.co_name})"


def raised_at(error: BaseException) -> str:
    """Where in code that is neither voxtile's nor a library's an error was raised, as " (file, line)"; empty where nowhere."""
    if isinstance(error, SyntaxError) and error.filename:
        return ""  # its text says so
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not _of_a_library(frame.f_code.co_filename)
    ]
    return f" ({frames[-1][0]}, line {frames[-1][1]})" if frames else ""


def _of_a_library(file: str) -> bool:
    """Whether a file of code is voxtile's, Python's or an installed package's."""
    path = Path(file)
    ours = (Path(voxtile.__file__).parent, Path(sysconfig.get_path("stdlib")))
    return file.startswith("<") or bool({"site-packages", "dist-packages"} & {*path.parts}) or any(map(path.is_relative_to, ours))


def named(value: object) -> str:
    """The class of a value, or a class, as a configuration names it."""
    kind = value if inspect.isclass(value) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def check_network(network: nn.Module, window: Sequence[int]) -> None:
    """Refuses a network that voxtile cannot train, as far as it can be told without calling it.

    Args:
        network: what the configuration builds.
        window: of training, [height, width] or [depth, height, width].

    Raises:
        ConfigError: Its layers have no sizes yet, what it publishes about itself has another meaning, or windows have another
            number of sides.
    """
    from torch.nn.parameter import is_lazy

    from voxtile.models.network import dims_of

    lazy = [name for name, value in (*network.named_parameters(), *network.named_buffers()) if is_lazy(value)]
    if lazy:
        raise ConfigError(
            f"{named(network)} has layers that learn their sizes from the first image (torch.nn.Lazy…): {listed(lazy)}. Expected "
            "weights from the start. Give them their sizes, of the first one 'in_channels', or call the network once on zeros at "
            "the end of its constructor."
        )
    for name, (least, meaning) in PUBLISHED.items():
        value = getattr(network, name, least)
        # Layers have a stride along each axis, and a network may be one layer.
        values = value if name == "stride" and isinstance(value, list | tuple) and value else [value]
        if not all(_is_whole(each, least) for each in values) or (name == "dims" and value not in (2, 3)):
            said = repr(value) if isinstance(value, str | int | float | list | tuple) else named(value)
            raise ConfigError(
                f"{named(network)} has an attribute '{name}', {said}, and to voxtile an attribute of this name says {meaning}. "
                "Give the attribute another name in the class, or this meaning."
            )
    if len(window) != dims_of(network):
        raise ConfigError(_other_sides(network, window))


def _is_whole(value: Any, least: int) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        return False


def _other_sides(network: nn.Module, window: Sequence[int]) -> str:
    """What is wrong with a window that has another number of sides than the network, and what to do."""
    from voxtile.models.network import dims_of

    dims, sides = dims_of(network), len(window)
    remedy = f"have the network take {sides} dimensions, as U-Net does with 'model.dims={sides}'"
    if type(network).__module__.partition(".")[0] != "voxtile":
        remedy = f"where the network takes {'boxes' if sides == 3 else 'images'}, give the class the attribute `dims = {sides}`"
    return (
        f"The network takes {dims}-dimensional windows, and 'data.window={list(window)}' has {sides} sides. Give the window {dims} "
        f"sides, or {remedy}."
    )


def refused_image(network: nn.Module, size: Sequence[int], error: Exception) -> str:
    """What to say of a network that raised an error when it was given an image of zeros, of shape `size`."""
    where, shown = raised_at(error), f"The network cannot take an image of shape {tuple(size)} [B, C, size]:"
    if remedy := for_boxes(network):
        return f"{shown} {reason(error)}{where}. {remedy}"
    if not where and isinstance(error, ImportError):
        from voxtile.models.adapter import lacking

        return f"The network {lacking(error)}"
    if not where:
        return (
            f"{shown} {reason(error)}. Choose another 'data.window' or other settings of 'model'; in evaluation a network must "
            f"take any size.{_larger_stride(network)}"
        )
    return (
        f"{shown} {type(error).__name__}: {reason(error)}{where}. Correct it there. If only the size does not fit, pad the image "
        f"and crop the logits, or {ADAPTER}: a network must take any size."
    )


def _larger_stride(network: nn.Module) -> str:
    """What to try where an image is padded for a network of another library, whose coarsest map may be coarser than supposed."""
    from voxtile.models.adapter import Adapted

    if not isinstance(network, Adapted):
        return ""
    return (
        f" Images are padded to multiples of {network.stride}; if this network needs larger ones, type "
        f"'model.stride={8 * network.stride}'. One that takes a single size does not fit."
    )


def for_boxes(network: nn.Module) -> str:
    """What to do where a network that fails on images has weights of 3D convolutions and none of 2D ones; else empty."""
    from voxtile.models.network import dims_of

    ranks = {value.ndim for value in network.parameters()}
    if dims_of(network) == 3 or 5 not in ranks or 4 in ranks:
        return ""
    return (
        f"Its weights are those of 3D convolutions: give the class {named(network)} the attribute `dims = 3`, and the window three "
        "sides, as 'data.window=[16,64,64]'."
    )


def logits_in(network: nn.Module, output: Any) -> Tensor:
    """The logits that a network returned in evaluation.

    Raises:
        ConfigError: It returned something else than logits.
    """
    import torch

    if isinstance(output, torch.Tensor):
        return output
    kind = type(output).__name__
    holds, example = "", ""
    if isinstance(output, Mapping):
        holds = f" with {listed(map(repr, output))}"
        example = ' (for example `["out"]`)' if "out" in output else ""
    elif isinstance(output, list | tuple):
        holds, example = f" of {len(output)}", " (the first or the last)"
    raise ConfigError(
        f"{named(network)} returns a {kind}{holds} in evaluation, and expected are logits, one tensor of the image's size. Return "
        f"that one{example} from its 'forward', or {ADAPTER}."
    )


def check_is(value: Any, kind: type[Any], where: str, path: str) -> None:
    """Refuses what a configuration builds where it is of another kind.

    Args:
        value: what is built, or the class that is to be.
        kind: of what it must be.
        where: what builds it, in the configuration.
        path: of `kind`, as it is imported.

    Raises:
        ConfigError: It is no subclass of `kind`, or no instance of one.
    """
    if not issubclass(value if inspect.isclass(value) else type(value), kind):
        raise ConfigError(
            f"'{where}' builds {named(value)}, and expected is a subclass of {path}. Derive the class from it; docs/extending.md "
            "has an example."
        )


def check_optimizer(kind: Any) -> None:
    """Refuses an optimizer that asks for the loss again and again within a step, before anything is read.

    Raises:
        ConfigError: Its `step` needs a closure.
    """
    with suppress(TypeError, ValueError, AttributeError):  # a function that builds one, or code without a signature
        closure = inspect.signature(kind.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ConfigError(
                f"'optimizer' is {kind.__module__}.{kind.__qualname__}, whose steps compute the loss of a batch several times over "
                "(they need a closure), and training takes one look at each batch. Choose another: 'optimizer=adamw' or "
                "'optimizer=sgd'."
            )


def check_loss(loss: Loss, classes: int, window: Sequence[int]) -> None:
    """Refuses a loss whose parts do not fit one another, tried on scores of zeros.

    Raises:
        ConfigError: An attribute is missing, or a method returns something of another shape.
    """
    import torch

    from voxtile.training.losses import surrogate

    name = named(loss)
    if not _is_whole(getattr(loss, "size", None), 1) or not isinstance(getattr(loss, "needs_logits_first", None), bool):
        raise ConfigError(
            f"The loss {name} must have the attributes `size`, how many statistics it sums up, and `needs_logits_first`, True or "
            "False. Give them to the class; docs/extending.md has an example."
        )
    sides = [min(side, TRIED_SIDE) for side in window]
    logits = torch.zeros(1, classes, *sides, requires_grad=True)
    target = torch.zeros(1, *sides, dtype=torch.uint8)
    try:
        found = {"statistics": loss.statistics(logits, target), "label_statistics": loss.label_statistics(target)}
        for method, value in found.items():
            _check_shape(name, method, value, (loss.size,), "`size`, one number for each statistic")
        total = found["statistics"].detach()
        _check_shape(name, "value", loss.value(total), (), "a scalar")
        surrogate(loss, found["statistics"], total)
    except VoxtileError:
        raise
    except Exception as error:  # other people's losses fail in any way
        raise ConfigError(
            f"The loss {name} failed on scores of zeros {tuple(logits.shape)} and a label of zeros {tuple(target.shape)}: "
            f"{type(error).__name__}: {reason(error)}{raised_at(error)}. Correct it there, or type 'debug_errors=true' for the "
            "whole traceback."
        ) from error


def _check_shape(name: str, method: str, value: Any, shape: tuple[int, ...], means: str) -> None:
    import torch

    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise ConfigError(
            f"'{method}' of the loss {name} gives {got}; expected one of shape {shape}, {means}. Correct it in the class; "
            "docs/extending.md has an example."
        )
