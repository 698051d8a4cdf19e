"""A network written down in formats that run without voxtile, and opened again."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
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
        ConfigError: It is not.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"'format=onnx' needs {listed(missing)}, which is not installed. Type \"pip install 'voxtile[onnx]'\", or "
            "'format=torch_export'."
        )


def exported(network: nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    """Traces a network's evaluation.

    Args:
        network: in evaluation mode, on the CPU.
        image: an input [B, C, (D,) H, W] with B of 2 or more; all but B is fixed by it.

    Raises:
        RunError: The network does what cannot be traced.
    """
    batch = torch.export.Dim("batch", min=1, max=MOST_BATCH)
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(_Logits(network).eval(), (image,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch raises many types
        raise RunError(
            f"{type(network).__name__} cannot be traced by torch.export: {reason(error)}. 'format=bundle' takes every network."
        ) from error


def save_torch(program: torch.export.ExportedProgram, file: Path, description: str) -> None:
    """Writes what `torch.export.load` reads; `description` is kept inside as voxtile.json."""
    torch.export.save(program, file, extra_files={"voxtile.json": description})


def open_torch(file: Path) -> Forward:
    """The network in a file of `save_torch`."""
    found: Forward = torch.export.load(file).module()
    return found


def save_onnx(program: torch.export.ExportedProgram, image: Tensor, file: Path, description: str) -> None:
    """Writes an ONNX file from "image" to "logits"; `description` is kept inside as the property "voxtile".

    Raises:
        RunError: An operation of the network has no ONNX.
    """
    try:
        with _quiet():
            made: Any = torch.onnx.export(
                program, (image,), dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
            )  # fmt: skip
    except Exception as error:  # torch and onnxscript raise many types
        raise RunError(f"The network cannot be written as ONNX: {reason(error)}. Type 'format=torch_export'.") from error
    made.model.metadata_props["voxtile"] = description
    made.save(file)


def open_onnx(file: Path) -> Forward:
    """The network in an ONNX file, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

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
