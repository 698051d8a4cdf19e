"""Augmentation: parameters drawn per sample on the CPU, the work done per batch on the batch's device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxtile.cases.window import Size3
from voxtile.data.contrast import Contrast
from voxtile.data.operation import Operation, Spacing, turned
from voxtile.data.rng import digest, generator
from voxtile.data.symmetry import Symmetry
from voxtile.data.warp import Affine, Elastic, resample, sampling_grid
from voxtile.errors import ConfigError

# What a data set without symmetry draws.
_STILL: Mapping[str, NDArray[Any]] = {"flips": np.zeros(3, dtype=np.bool_), "turns": np.array(0, dtype=np.int64)}


class Augment:
    """Mirrors, turns, deforms and recolours samples; image, validity and label move together.

    Every parameter is a pure function of (seed, sample index, operation), drawn by `draw` on the CPU where the sample is
    read. `apply` does the work for a whole batch on its device and uses no other randomness. What it makes of a sample does
    not depend on the rest of the batch: bitwise on a CPU, to float32 rounding on a GPU, where the samples that an operation was
    drawn for are done together.
    """

    def __init__(
        self,
        symmetry: Symmetry | Mapping[str, Any] | None = None,
        affine: Affine | None = None,
        elastic: Elastic | None = None,
        intensity: Mapping[str, Contrast | None] | None = None,
    ) -> None:
        """Takes the operations.

        Args:
            symmetry: the data set's `Symmetry`, or the mapping that describes it; None for no mirroring.
            affine: rotation, scale and shift, or None.
            elastic: smooth deformation, or None; merged with `affine` into one resampling.
            intensity: name -> change of intensity, made in this order; None leaves one out.
        """
        self.symmetry = Symmetry.of(symmetry)
        self.affine = affine
        self.elastic = elastic
        self.intensity = {name: change for name, change in (intensity or {}).items() if change is not None}
        named = {"affine": affine, "elastic": elastic} | {f"intensity.{name}": change for name, change in self.intensity.items()}
        for name, operation in named.items():
            if operation is not None and not isinstance(operation, Operation):
                raise ConfigError(f"'augment.{name}={operation}' is no operation. Set one of its values, or null to leave it out.")
            kind = f"{type(operation).__module__}.{type(operation).__qualname__}"
            if name.startswith("intensity.") and not isinstance(operation, Contrast | None):
                raise ConfigError(
                    f"'augment.{name}' builds {kind}, and expected is a subclass of voxtile.data.contrast.Contrast. "
                    "docs/extending.md has an example."
                )
            if operation is not None and not hasattr(operation, "probability"):
                raise ConfigError(
                    f"'augment.{name}' builds {kind}, which has no probability: its constructor must call that of its base class. "
                    "docs/extending.md has an example."
                )
        self._operations: dict[str, Operation] = {name: operation for name, operation in named.items() if operation is not None}
        self._places: dict[tuple[str, Size3], dict[str, NDArray[Any]]] = {}

    def draw(self, seed: int, index: int, size: Size3, spacing: Spacing) -> dict[str, NDArray[Any]]:
        """Draws the parameters of sample `index` of a run with `seed`.

        Args:
            seed: the run's seed.
            index: the sample's number in the run.
            size: the window's (D, H, W) in pixels; D is 1 for scenes and pictures.
            spacing: the case's pixel spacing along (z, y, x) in its unit of length.

        Returns:
            Arrays by name. Names, shapes and types are the same for all samples of one window size, so that a batch stacks them.

        Raises:
            ConfigError: The window does not suit the configuration.
        """
        moves = self.symmetry.flips or self.symmetry.rot90
        drawn = self.symmetry.draw(generator(seed, index, "symmetry"), size) if moves else dict(_STILL)
        if drawn["turns"] % 2:
            spacing = turned(spacing)  # operations meet the window as it lies then
        for name, operation in self._operations.items():
            # Whether it happens comes from the digest alone: making a generator takes ten times as long.
            on = digest(seed, index, name, "on") < operation.probability * 2**128
            values = place = self._zeros(name, size, spacing)
            if on:
                values = operation.draw(generator(seed, index, name), size, spacing)
                if values.keys() != place.keys() or any(_unlike(value, place[key]) for key, value in values.items()):
                    raise _unstackable(name, operation, values, place)
            drawn |= {f"{name}.on": np.array(on)} | {f"{name}.{key}": value for key, value in values.items()}
        return drawn

    def minds_turns(self, size: Size3, spacing: Spacing) -> bool:
        """Whether a quarter turn changes what any operation draws for a window of `size`, since its pixels are not square."""
        if not self.symmetry.rot90 or turned(spacing) == spacing:
            return False
        for name, operation in self._operations.items():
            lying, standing = (operation.draw(generator(0, 0, name), size, each) for each in (spacing, turned(spacing)))
            if operation.probability > 0 and any(not np.array_equal(lying[key], standing[key]) for key in lying):
                return True
        return False

    def _zeros(self, name: str, size: Size3, spacing: Spacing) -> dict[str, NDArray[Any]]:
        """What holds the place of an operation's parameters in samples for which it was not drawn."""
        if (name, size) not in self._places:
            operation = self._operations[name]
            example = operation.draw(generator(0, 0, name), size, spacing)
            if not isinstance(example, Mapping) or not all(map(_is_array, example.values())):
                raise _unstackable(name, operation, example, None)
            self._places[name, size] = {key: np.zeros_like(value) for key, value in example.items()}
        return self._places[name, size]

    @torch.no_grad()
    def apply(self, image: Tensor, valid: Tensor, label: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Augments a batch; the arguments are left as they are.

        Args:
            image: float32 [B, C, H, W] or [B, C, D, H, W], normalised, 0 where not valid.
            valid: bool [B, (D,) H, W].
            label: uint8 [B, (D,) H, W], 255 where not to be judged.
            parameters: what `draw` returned, stacked [B, ...]; best left on the CPU, where they steer the work. If `keep_zero` [B]
                is among them: how many slices each channel is there of where pixels that are 0 in all channels of a slice stay so,
                and 0 elsewhere.

        Returns:
            Image, valid and label of the same shapes and types. A sample for which nothing was drawn is bitwise unchanged.
        """
        drawn = {name: values.cpu() for name, values in parameters.items()}
        image, valid, label = self._reorient(image, valid, label, drawn)
        self._warp(image, valid, label, drawn)
        self._recolour(image, valid, drawn)
        return image, valid, label

    def _reorient(self, image: Tensor, valid: Tensor, label: Tensor, drawn: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Mirrored and turned copies."""
        out = torch.empty_like(image), torch.empty_like(valid), torch.empty_like(label)
        for row, (flips, turns) in enumerate(zip(drawn["flips"].tolist(), drawn["turns"].tolist(), strict=True)):
            for new, old in zip(out, (image[row], valid[row], self.symmetry.relabel(label[row], flips)), strict=True):
                new[row] = self.symmetry.reorient(old, flips, turns)
        return out

    def _warp(self, image: Tensor, valid: Tensor, label: Tensor, drawn: Mapping[str, Tensor]) -> None:
        """Resamples, in place, the samples for which a deformation was drawn."""
        off = torch.zeros(len(image), dtype=torch.bool)
        turned, bent = drawn.get("affine.on", off), drawn.get("elastic.on", off)
        matrix, shift, field = torch.eye(3).expand(len(image), 3, 3), torch.zeros(1, 3), torch.zeros(1, 3, 1, 1, 1)
        if self.affine:
            matrix = torch.where(turned[:, None, None], drawn["affine.matrix"], matrix)
            shift = torch.where(turned[:, None], drawn["affine.shift"], shift)
        if self.elastic:
            field = torch.where(bent[:, None, None, None, None], drawn["elastic.field"], field)
        shift, field = shift.expand(len(image), -1), field.expand(len(image), *field.shape[1:])
        for rows, there in _groups(turned | bent, image.device):
            matrices, shifts, fields = (values[rows].to(image.device, non_blocking=True) for values in (matrix, shift, field))
            grid = sampling_grid(matrices, shifts, fields, image.shape[2:])
            image[there], valid[there], label[there] = resample(image[there], valid[there], label[there], grid)

    def _recolour(self, image: Tensor, valid: Tensor, drawn: Mapping[str, Tensor]) -> None:
        """Makes, in place, the changes of intensity on the samples for which they were drawn."""
        keep_zero = drawn.get("keep_zero", torch.zeros(1))
        outside = None
        if self.intensity and (slices := int(keep_zero.max())):
            by_slice = image.view(len(image), -1, slices, *image.shape[2:])
            outside = (by_slice == 0).all(dim=1, keepdim=True) & (
                (keep_zero > 0).to(image.device, non_blocking=True).view(-1, *(1,) * image.ndim)
            )
        for name, change in self.intensity.items():
            prefix = f"intensity.{name}."
            own = {key.removeprefix(prefix): values for key, values in drawn.items() if key.startswith(prefix)}
            for rows, there in _groups(own.pop("on"), image.device):
                picked, weight = image[there], valid[there][:, None].to(image.dtype)
                change.apply(picked, weight, {key: values[rows] for key, values in own.items()})
                image[there] = picked.mul_(weight)
        if outside is not None:  # as nnU-Net has it after all changes (batchgenerators' MaskImageTransform)
            by_slice.masked_fill_(outside, 0.0)


def _is_array(value: Any) -> bool:
    """Whether a parameter is an array of numbers."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def _described(value: Any) -> str:
    """A parameter in words."""
    if not isinstance(value, np.ndarray):
        return f"a {type(value).__name__}"
    return f"an array of shape {value.shape}" if _is_array(value) else f"an array of {value.dtype}"


def _unlike(value: Any, place: NDArray[Any]) -> bool:
    """Whether a parameter does not stack with that of another sample."""
    return not isinstance(value, np.ndarray) or value.shape != place.shape


def _unstackable(name: str, operation: Operation, drawn: Any, place: Mapping[str, NDArray[Any]] | None) -> ConfigError:
    """What is wrong with what an operation has drawn; `place` is what it drew for another sample."""

    def shown(values: Any) -> str:
        if not isinstance(values, Mapping):
            return f"a {type(values).__name__}"
        return "; ".join(f"'{key}' is {_described(value)}" for key, value in values.items()) or "nothing"

    other = "" if place is None else f", and for another sample {shown(place)}"
    return ConfigError(
        f"'draw' of 'augment.{name}' ({type(operation).__module__}.{type(operation).__qualname__}) gives {shown(drawn)}{other}. "
        "Expected a dict of NumPy arrays of numbers, with the same names and shapes for every sample of one window size, so that "
        "they stack to a batch: np.array(value, np.float32) for a single number."
    )


def _groups(on: Tensor, device: torch.device) -> list[tuple[Any, Any]]:
    """The samples that are on: one by one on a CPU, which keeps one in its cache; all together on a GPU.

    Returns:
        Indexes of a batch, on the CPU and on the device. Nothing waits until they are there: a GPU would be idle as long.
    """
    rows = on.nonzero().flatten()
    if device.type == "cpu":
        return [(slice(row, row + 1), slice(row, row + 1)) for row in rows.tolist()]
    return [(rows, rows.to(device, non_blocking=True))] if len(rows) else []
