"""Small NIfTI files on turned grids."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np

ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def turned_affine(degrees=0.0, spacing=(1.0, 1.0, 1.0), origin=(-20.0, 5.0, 33.0)):
    """RAS affine with `spacing` (x, y, z) in mm, turned about the z axis."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag(spacing), origin
    return affine


def save(path, array, affine=None, **fields):
    """Writes `array` (x, y, z[, c])."""
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for key, value in fields.items():
        image.header[key] = value
    nib.save(image, path)
    return path
