"""A network written down in formats that run without voxtile, and opened again."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from voxtile.errors import ConfigError, RunError, listed, reason
from voxtile.models.network import logits_of

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MOST_BATCH = 4096  # windows in a batch of an exported network
Forward = Callable[[Tensor], Tensor]


class _Logits(nn.Module):
    """A network as a map from an image, read with its margin, to logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = logits_of(self.network, image)
        return logits


def check_packages() -> None:
    """Looks whether what ONNX needs is installed.

    Raises:
        ConfigError: A package is missing.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"'format=onnx' needs {listed(missing)}, which is not installed. Type \"pip install 'voxtile[onnx]'\", or "
            "'format=torch_export'."
        )


def exported(network: nn.Module, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """Traces a network's evaluation.

    Args:
        network: in evaluation mode, on the CPU.
        shape: of a window, (C, (D,) H, W), which is fixed by it; the number of windows is not.

    Raises:
        RunError: The network does what cannot be traced.
    """
    batch = torch.export.Dim("batch", min=1, max=MOST_BATCH)
    # Of one alone, the number of windows would become a part of the network; and what is traced is kept in the file.
    image = torch.zeros(2, *shape)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(_Logits(network).eval(), (image,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch raises many types
        raise RunError(
            f"{type(network).__name__} cannot be traced by torch.export: {reason(error)}. 'format=bundle' takes every network."
        ) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # which names this machine's folders
    return program


def save_torch(program: torch.export.ExportedProgram, file: Path, description: str) -> None:
    """Writes what `torch.export.load` reads; `description` is kept inside as voxtile.json.

    Raises:
        RunError: The file cannot be written.
    """
    try:
        torch.export.save(program, file, extra_files={"voxtile.json": description})
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        raise RunError(f"{file.name} cannot be written: {reason(error)}. Free some disk space.") from error


def open_torch(file: Path) -> Forward:
    """The network in a file of `save_torch`."""
    found: Forward = torch.export.load(file).module()
    return found


def save_onnx(program: torch.export.ExportedProgram, file: Path, description: str) -> None:
    """Writes an ONNX file from "image" to "logits"; `description` is kept inside as the property "voxtile".

    Weights of more than 2 GB go into a file of their own beside it, as ONNX wants.

    Raises:
        RunError: An operation of the network has no ONNX, or the file cannot be written.
    """
    try:
        with _quiet():
            made: Any = torch.onnx.export(
                program, (), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False,
                input_names=["image"], output_names=["logits"],
            )  # fmt: skip
            made.model.metadata_props["voxtile"] = description
            made.save(file)
    except Exception as error:  # torch and onnxscript raise many types
        raise RunError(f"The network cannot be written as ONNX: {reason(error)}. Type 'format=torch_export'.") from error


def open_onnx(file: Path) -> Forward:
    """The network in an ONNX file, on the CPU.

    Raises:
        RunError: ONNX Runtime does not take it.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many types
        raise RunError(f"ONNX Runtime cannot open what was written: {reason(error)}. Type 'format=torch_export'.") from error

    def forward(image: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"image": image.numpy()})
        return torch.from_numpy(logits)

    return forward


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
