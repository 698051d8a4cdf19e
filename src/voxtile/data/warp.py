"""Affine and elastic deformation of windows, in physical space, merged into one resampling.

Axis order is (z, y, x) everywhere; a picture [H, W] is a volume of depth 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from voxtile.cases.window import Size3
from voxtile.data.operation import Operation, Spacing, checked_range, control_points, cubic_weights, log_uniform
from voxtile.errors import ConfigError
from voxtile.values import is_number

ANISOTROPIC = 3.0  # boxes whose spacings or sides differ by more are deformed within a plane only


@lru_cache(maxsize=64)
def moved_axes(size: Size3, spacing: Spacing) -> NDArray[np.bool_]:
    """Which of the axes (z, y, x) a deformation may mix.

    Not a single slice's z, nor an anisotropic volume's coarsest axis, nor else the thinnest of a thin box, out of which a rotation
    would take most of the label. nnU-Net decides by the shape of its patches, which are thin where volumes are anisotropic
    (Isensee et al. 2021, `do_dummy_2d_data_aug`).
    """
    moved = np.ones(3, dtype=np.bool_)
    if size[0] == 1:
        moved[0] = False
    elif max(spacing) > ANISOTROPIC * min(spacing):
        moved[int(np.argmax(spacing))] = False
    elif max(size) > ANISOTROPIC * min(size):
        moved[int(np.argmin(size))] = False
    moved.setflags(write=False)  # whoever asks next gets the same array
    return moved


@dataclass(frozen=True)
class Affine(Operation):
    """Rotation, scaling and shift about the window's centre, rigid in the case's unit of length.

    Attributes:
        rotation: largest angle about each axis, in degrees. A slice, an anisotropic volume and a thin box turn in one plane only.
        scale: (smallest, largest) magnification, log-uniform.
        translation: largest shift as a fraction of the window's size.
    """

    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    translation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", checked_range("Affine", "scale", self.scale))
        self._check_number("rotation", high=360)
        self._check_number("translation", high=1)  # further, nothing of the window would be left

    def draw(self, rng: np.random.Generator, size: Size3, spacing: Spacing) -> dict[str, NDArray[Any]]:
        """Draws `matrix` [3, 3] and `shift` [3]: the result's pixel p (from the centre) shows the source's matrix @ p + shift."""
        degrees = rng.uniform(-self.rotation, self.rotation, 3)
        scale = log_uniform(rng, self.scale)
        shift = rng.uniform(-self.translation, self.translation, 3) * size
        moved = moved_axes(size, spacing)
        physical = _rotation(np.radians(degrees), moved) / np.where(moved, scale, 1.0)
        matrix = physical * np.array(spacing) / np.array(spacing)[:, None]
        return {"matrix": matrix.astype(np.float32), "shift": np.where(moved, shift, 0.0).astype(np.float32)}


def _rotation(angles: NDArray[np.float64], moved: NDArray[np.bool_]) -> NDArray[np.float64]:
    out = np.eye(3)
    for axis, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
        if moved[a] and moved[b]:
            turn = np.eye(3)
            turn[a, a] = turn[b, b] = np.cos(angles[axis])
            turn[b, a] = np.sin(angles[axis])
            turn[a, b] = -turn[b, a]
            out = out @ turn
    return out


@dataclass(frozen=True)
class Elastic(Operation):
    """Smooth random deformation: Gaussian displacements of coarse control points, cubic in between.

    U-Net's own (Ronneberger et al. 2015, section 3.1) moves a 3 x 3 grid over a 572 pixel tile by 10 pixels: control=286, std=10.

    Attributes:
        std: standard deviation of a control point's displacement along each axis, in `unit`; where that is more than a quarter of
            the control points' distance, a quarter of it. Neighbours keep their order then in most windows, but not in all: it is a
            limit of the deviation, and not of what is drawn.
        control: largest distance between neighbouring control points, in pixels.
        unit: "length" (the case's unit: mm for volumes, m for scenes, px for pictures) or "px" (multiples of the finest
            spacing: the same number then suits scenes of any resolution). Displacements are isotropic in length with either.
    """

    std: float = 4.0
    control: float = 64.0
    unit: Literal["length", "px"] = "px"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in ("length", "px") or not is_number(self.control, 2) or not is_number(self.std, 0):
            raise ConfigError(
                f"Elastic of the augmentation has unit={self.unit}, control={self.control}, std={self.std}; expected unit=length "
                "or unit=px, at least 2 pixels between control points and a standard deviation that is not negative."
            )

    def draw(self, rng: np.random.Generator, size: Size3, spacing: Spacing) -> dict[str, NDArray[Any]]:
        """Draws `field` [3, gz, gy, gx]: displacements of the control points along (z, y, x), in pixels."""
        moved = moved_axes(size, spacing)
        unit = 1.0 if self.unit == "length" else min(np.array(spacing)[moved])
        pixels = np.where(moved, self.std * unit / np.array(spacing), 0.0)
        points = control_points(size, self.control)
        distance = (np.array(size) - 1) / np.maximum(np.array(points) - 1, 1)
        pixels = np.minimum(pixels, distance / 4)
        field = rng.standard_normal((3, *points)) * pixels[:, None, None, None]
        return {"field": field.astype(np.float32)}


def sampling_grid(matrix: Tensor, shift: Tensor, field: Tensor, size: Sequence[int]) -> Tensor:
    """Where each pixel of the result lies in the source.

    Args:
        matrix: [n, 3, 3], as drawn by `Affine`, on the device that does the work, like the others.
        shift: [n, 3].
        field: [n, 3, gz, gy, gx], as drawn by `Elastic`.
        size: (D, H, W), or (H, W) for 2D.

    Returns:
        Coordinates [n, (D,) H, W, 3 or 2] in the order (x, y, z) and the unit that `grid_sample` takes without `align_corners`.
    """
    dims, device = len(size), matrix.device
    full = (1,) * (3 - dims) + tuple(size)
    scale = torch.tensor([2.0 / pixels for pixels in size[::-1]], dtype=torch.float64).to(device, non_blocking=True)
    matrix, shift, field = (values[:, 3 - dims :].flip(1).double() for values in (matrix, shift, field))  # in the order (x, y, z)
    matrix, shift = matrix * scale[:, None], shift * scale
    z, y, x = (torch.arange(n, dtype=torch.float64, device=device) - (n - 1) / 2 for n in full)
    wz, wy, wx = (cubic_weights(n, g, device) for n, g in zip(full, field.shape[2:], strict=True))
    # Along x everything is a sum of few functions: the control points' weights, a constant and x itself.
    rows = torch.einsum("zk,nckyi->nczyi", wz, wy @ (field * scale[:, None, None, None]))
    constant = matrix[:, :, 0, None, None] * z[:, None] + matrix[:, :, 1, None, None] * y + shift[:, :, None, None]
    slope = matrix[:, :, 2, None, None].expand_as(constant)
    terms = torch.cat([rows, constant[..., None], slope[..., None]], dim=-1)
    grid = terms @ torch.cat([wx.T, torch.ones_like(x)[None], x[None]])
    return (grid if dims == 3 else grid[:, :, 0]).float().movedim(1, -1)


def resample(image: Tensor, valid: Tensor, label: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reads image (linear between valid pixels), valid and label (nearest) at the coordinates of `sampling_grid`.

    What lies outside the source becomes image 0, valid False and label 255. Shapes are those of `Augment.apply`.
    """
    # One number carries label and valid, and leaves 0 for outside.
    code = label.float().add_(valid, alpha=256).add_(1)[:, None]
    code = functional.grid_sample(code, grid, mode="nearest", padding_mode="zeros", align_corners=False).int()
    inside = code > 256
    weight = inside.to(image.dtype)
    if valid.device.type != "cpu" or not valid.all():  # a GPU is not asked: the answer would wait for all that it has still to do
        # Invalid pixels are 0 and have weight 0: dividing by the interpolated weight keeps them out of their neighbours.
        weight /= _linear(valid[:, None].to(image.dtype), grid).clamp(min=1e-3)
    return _linear(image, grid).mul_(weight), inside[:, 0], ((code[:, 0] - 1) & 255).to(torch.uint8)


def _linear(image: Tensor, grid: Tensor) -> Tensor:
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
