"""Made-up brain MRI volumes with their labels, as NIfTI files: what `data=mri` trains on before there is data of one's own.

Points are arrays [3, X, Y, Z] in mm in the head's own frame: x to the right, y to the front, z up, 0 in the middle.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from voxtile.cases.made import make_once, visits

VERSION = 1  # to be raised when the files of a seed change
CLASSES = ("background", "lesion", "core")
SHAPE = (72, 88)  # voxels from left to right and from back to front
AXES = ("RAS", "LPS", "LAS", "RAS", "PIR", "LPI")  # how scanners and converters store their axes

Array = NDArray[Any]

# How bright a FLAIR-like sequence shows the tissues. The scalp's fat and a healthy rim around the ventricles come close to
# lesions, and a core to white matter: a voxel alone does not tell its class.
AIR, SCALP, SKULL, FLUID, WHITE, GREY, RIM, LESION, CORE = range(9)
BRIGHTNESS = np.array([0.0, 0.80, 0.08, 0.20, 0.47, 0.61, 0.70, 0.82, 0.38], dtype=np.float32)


def make_volumes(folder: Path, count: int = 24, seed: int = 0) -> Path:
    """Makes `imagesTr/patient01_a.nii.gz`, `labelsTr/…` and `dataset.json` (MSD form) in `folder`, unless they are there already.

    No such patient ever lived. The volumes imitate a clinical FLAIR brain MRI (int16; about 2.3 mm in the slice, 5 to 6 mm
    between slices): scalp, skull, folded cortex, white matter, deep grey matter, ventricles; lesions of 3 to 30 mm radius,
    the larger ones with a core; a bias field, slices of unequal gain, Rician noise, and an intensity scale, pose and axis
    order of each volume's own. Every sixth patient has no lesion. Every third comes twice, `_a` and `_b`, with lesions grown
    or shrunk: the patient, not the file, must stay on one side of a split.

    Args:
        folder: where the data set shall be.
        count: number of volumes.
        seed: the same seed makes the same files.

    Returns:
        `folder`.

    Raises:
        DataError: `folder` holds something else, or cannot be written to.
    """
    names = visits("patient", count)

    def fill(making: Path) -> None:
        (making / "imagesTr").mkdir()
        (making / "labelsTr").mkdir()
        for number, (name, patient, visit) in enumerate(names):
            rng = np.random.default_rng([seed, patient, visit + 1])
            affine, points = _lying(rng)
            growth = rng.uniform(0.75, 1.25) if visit else 1.0
            tissue = _tissue(np.random.default_rng([seed, patient]), points, growth, healthy=patient % 6 == 5)
            label = np.select([tissue == LESION, tissue == CORE], [1, 2]).astype(np.uint8)
            axes = AXES[number % len(AXES)]
            _write(making / "imagesTr" / f"{name}.nii.gz", _scanned(rng, tissue, points), affine, axes)
            _write(making / "labelsTr" / f"{name}.nii.gz", label, affine, axes)
        pairs = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name, _, _ in names]
        description = {
            "name": "Made-up lesions",
            "description": "Brain MRI with lesions, computed by voxtile; no patient's data",
            "tensorImageSize": "3D",
            "modality": {"0": "FLAIR"},
            "labels": {str(index): name for index, name in enumerate(CLASSES)},
            "numTraining": count,
            "numTest": 0,
            "training": pairs,
            "test": [],
        }
        (making / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")

    return make_once(folder, {"made": "volumes", "version": VERSION, "count": count, "seed": seed}, fill)


def _write(path: Path, array: Array, affine: Array, axes: str) -> None:
    """Writes `array` [X, Y, Z], made in RAS order, with its axes in the order and direction `axes`."""
    image = nib.Nifti1Image(array, affine).as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes)))
    image.set_qform(image.affine, code="scanner")
    image.set_sform(image.affine, code="scanner")
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _lying(rng: np.random.Generator) -> tuple[Array, Array]:
    """A grid over a head that lies a little askew: the affine from voxel index to scanner mm, and the voxels' points."""
    shape = (*SHAPE, int(rng.integers(24, 31)))
    inplane = rng.uniform(2.2, 2.4)
    turn = Rotation.from_rotvec(rng.normal(0, 0.06, 3)).as_matrix() * (inplane, inplane, 145 / shape[2])
    middle = rng.normal((0, 0, 8), 3)  # of the grid, in the head's frame
    index = np.indices(shape, dtype=np.float32) - (np.array(shape, dtype=np.float32)[:, None, None, None] - 1) / 2
    points = np.einsum("ij,j...->i...", turn.astype(np.float32), index) + middle.astype(np.float32)[:, None, None, None]
    affine = np.eye(4)
    affine[:3, :3] = turn
    affine[:3, 3] = rng.normal(0, 20, 3) - turn @ (np.array(shape) - 1) / 2  # the scanner's origin lies where it happens to
    return affine, points


def _waves(rng: np.random.Generator, length: float, count: int = 8) -> Callable[[Array], Array]:
    """Noise of zero mean and about unit deviation, a function of points in mm: plane waves about `length` mm long, summed."""
    rates = rng.normal(size=(count, 3))
    rates *= 2 * np.pi / length * rng.uniform(0.6, 1.4, (count, 1)) / np.linalg.norm(rates, axis=1, keepdims=True)
    waves = list(zip(rates.astype(np.float32), rng.uniform(0, 2 * np.pi, count).tolist(), strict=True))
    return lambda points: sum(np.sin(np.einsum("i,i...", rate, points) + phase) for rate, phase in waves) * (2 / count) ** 0.5


def _tissue(patient: np.random.Generator, points: Array, growth: float, healthy: bool) -> NDArray[np.uint8]:
    """What lies at `points` in the head of the patient whom the generator stands for; the lesions' radii times `growth`."""
    radii = (np.array([72, 90, 78]) * patient.normal(1, 0.03, 3)).astype(np.float32)
    outline, folds, ragged = (_waves(patient, length)(points) for length in (70, 28, 22))
    wide = patient.uniform(0.8, 1.4)  # the ventricles
    x, y, z = np.abs(points[0]), points[1], points[2]  # left and right are alike but for folds and lesions
    out = np.sqrt(((points / radii[:, None, None, None]) ** 2).sum(axis=0)) * (1 + 0.02 * outline)  # 1 on the skin
    depth = (0.86 - out) * radii.mean()  # mm below the brain's surface
    fold = np.abs(folds)  # 0 in the sulci
    side = (((x - 9 - 0.003 * y**2) / 6) ** 2 + (y / 34) ** 2 + ((z - 12 + 0.004 * y**2) / 10) ** 2) / wide
    third = (x < 2.5 * wide) & (np.abs(y) < 14) & (z > -14) & (z < 6)
    nuclei = ((x - 24) / 8) ** 2 + ((y - 4) / 20) ** 2 + ((z - 2) / 13) ** 2 < 1
    cortex = (depth < 4) | ((fold < 0.5) & (depth < 17)) | ((x < 5) & (depth < 28))
    furrow = ((fold < 0.13) & (depth < 14)) | ((x < 1.5) & (depth < 28))

    tissue = np.full(out.shape, AIR, dtype=np.uint8)
    for kind, where in (
        (SCALP, out < 1), (SKULL, out < 0.94), (FLUID, out < 0.885), (WHITE, depth > 0), (GREY, (depth > 0) & (cortex | nuclei)),
        (FLUID, (depth > 0) & furrow), (RIM, side < 1.7), (FLUID, (side < 1) | third),
    ):  # fmt: skip
        tissue[where] = kind
    solid = (tissue == WHITE) | (tissue == GREY) | (tissue == RIM)
    for index in range(0 if healthy else patient.integers(1, 5)):
        way = patient.normal(size=3) * (1, 1, 0.7)
        middle = (way / np.linalg.norm(way) * patient.uniform(0.3, 0.68) * radii).astype(np.float32)
        radius = patient.uniform(12, 24) if index == 0 else np.exp(patient.uniform(np.log(4), np.log(15)))
        reach = np.sqrt(((points - middle[:, None, None, None]) ** 2).sum(axis=0)) / (radius * growth) * (1 + 0.18 * ragged)
        tissue[solid & (reach < 1)] = LESION
        if radius > 9:
            tissue[solid & (reach < 0.6)] = CORE
    return tissue


def _scanned(rng: np.random.Generator, tissue: NDArray[np.uint8], points: Array) -> NDArray[np.int16]:
    """The tissues as one scanner shows them on one day."""
    shown = (BRIGHTNESS * rng.normal(1, 0.04, len(BRIGHTNESS))).astype(np.float32)[tissue]
    shown = ndimage.gaussian_filter(shown, (0.6, 0.6, 0.35))  # voxels at a border hold some of both sides
    bias = np.exp(rng.uniform(0.1, 0.3) * _waves(rng, 260, count=4)(points))
    gain = rng.normal(1, 0.03, shown.shape[2])
    real, imaginary = rng.uniform(0.02, 0.05) * rng.standard_normal((2, *shown.shape), dtype=np.float32)
    magnitude = np.hypot(shown * bias * gain + real, imaginary)  # Rician: the noise of a magnitude image
    return np.asarray(magnitude * np.exp(rng.uniform(np.log(300), np.log(3_000))), dtype=np.int16)
