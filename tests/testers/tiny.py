"""Very small data sets in real formats, with a Hydra configuration each, for tests that run whole commands."""

import json
from pathlib import Path

import nibabel
import numpy as np
import yaml
from rasterio.transform import from_origin

from tests.testers.geotiff import save

SMALL = [
    "model.width=0.0625", "model.depth=2", "training.steps=6", "training.val_every=3", "training.save_every=2",
    "training.log_every=1", "training.batch_size=2", "trainer=cpu",
]  # fmt: skip


def scene(path: Path, array: np.ndarray, corner: int = 0, nodata: float | None = None, pixel: float = 10) -> Path:
    """Writes bands [C, H, W] with pixels of so many metres as a GeoTIFF whose corner lies `corner` kilometres east."""
    return save(path, array, transform=from_origin(500_000 + 1000 * corner, 5_000_000, pixel, pixel), nodata=nodata)


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A label [H, W] with one disc of class 1 on class 0."""
    y, x = rng.integers(height // 4, 3 * height // 4), rng.integers(width // 4, 3 * width // 4)
    rows, columns = np.mgrid[:height, :width]
    return ((rows - y) ** 2 + (columns - x) ** 2 < (min(height, width) / 4) ** 2).astype(np.uint8)


def scenes(folder: Path, count: int = 6, size: tuple[int, int] = (40, 36)) -> Path:
    """`count` two-band float32 scenes whose first band shows the disc of the label; a kilometre apart."""
    rng = np.random.default_rng(0)
    for number in range(count):
        label = blob(rng, *size)
        bands = np.stack([label * 2.0, np.zeros(size)]) + rng.normal(0, 0.3, (2, *size))
        scene(folder / "images" / f"s{number}.tif", bands.astype(np.float32), number)
        scene(folder / "labels" / f"s{number}.tif", label[None], number)
    return folder


def volumes(folder: Path, count: int = 5, shape: tuple[int, int, int] = (18, 16, 5)) -> Path:
    """`count` int16 volumes (x, y, z) in the Decathlon's layout."""
    rng = np.random.default_rng(0)
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    pairs = []
    for number in range(count):
        label = np.repeat(blob(rng, *shape[:2])[..., None], shape[2], axis=2)
        image = (label * 400.0 + rng.normal(100, 30, shape)).astype(np.int16)
        affine = np.diag([-1.5, 1.5, 3.0, 1.0])
        affine[:3, 3] = number
        for kind, array in (("imagesTr", image), ("labelsTr", label)):
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / kind / f"v{number}.nii.gz")
        pairs.append({"image": f"./imagesTr/v{number}.nii.gz", "label": f"./labelsTr/v{number}.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps({"training": pairs}))
    return folder


def configured(folder: Path, name: str, **data: object) -> list[str]:
    """Writes a Hydra configuration `data=<name>` below `folder` and returns the words that use it."""
    conf = folder / "conf" / "data"
    conf.mkdir(parents=True, exist_ok=True)
    (conf / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **data}))
    return ["--config-dir", str(folder / "conf"), f"data={name}"]


def scene_words(folder: Path, **changes: object) -> list[str]:
    """Makes scenes below `folder` and returns the words that train on them."""
    scenes(folder / "scenes")
    layout = {
        "_target_": "voxtile.cases.layouts.FolderLayout",
        "root": str(folder / "scenes"),
        "images": "images/{id}.tif",
        "labels": "labels/{id}.tif",
    }
    data = {
        "format": "geotiff", "layout": layout, "labels": {0: "ground", 1: "disc"}, "background": "ground", "window": [16, 16],
        "symmetry": {"flips": ["y", "x"], "rot90": True},
    }  # fmt: skip
    return [
        *configured(folder, "discs", **data | changes),
        f"paths.cache={folder / 'cache'}",
        f"paths.runs={folder / 'runs'}",
        *SMALL,
    ]


def volume_words(folder: Path, **changes: object) -> list[str]:
    """Makes volumes below `folder` and returns the words that train on them."""
    volumes(folder / "volumes")
    layout = {"_target_": "voxtile.cases.layouts.MsdLayout", "root": str(folder / "volumes")}
    data = {
        "format": "nifti", "layout": layout, "labels": {0: "ground", 1: "disc"}, "background": "ground", "window": [16, 16],
        "symmetry": {"flips": ["x"]},
    }  # fmt: skip
    return [
        *configured(folder, "tubes", **data | changes), "normalise=case", f"paths.cache={folder / 'cache'}",
        f"paths.runs={folder / 'runs'}", *SMALL,
    ]  # fmt: skip


SIZES = [(40, 36), (17, 53), (64, 16), (33, 33), (16, 16), (71, 20), (25, 47)]  # of the seven cases on each side


def odd_words(folder: Path) -> list[str]:
    """Makes scenes of odd sizes, in which two of five pixels are ignored, in some of them nearly all; returns the words."""
    rng = np.random.default_rng(0)
    for number in range(14):
        size = SIZES[number % 7]
        label = (rng.random(size) < 0.4).astype(np.uint8)
        bands = (label * 2.0 + rng.normal(0, 0.5, size)).astype(np.float32)
        label[rng.random(size) < (0.9, 0.1, 0.2)[number % 3]] = 9
        scene(folder / "scenes" / "images" / f"{'tv'[number // 7]}{number}.tif", bands[None], number)
        scene(folder / "scenes" / "labels" / f"{'tv'[number // 7]}{number}.tif", label[None], number)
    sides = {"train": [f"t{number}" for number in range(7)], "val": [f"v{number}" for number in range(7, 14)]}
    (folder / "split.json").write_text(json.dumps(sides))
    layout = {
        "_target_": "voxtile.cases.layouts.FolderLayout", "root": str(folder / "scenes"), "images": "images/{id}.tif",
        "labels": "labels/{id}.tif",
    }  # fmt: skip
    return [
        *configured(folder, "odd", format="geotiff", layout=layout, labels={0: "ground", 1: "disc", 9: "ignore"}, window=[16, 16],
                    symmetry={"flips": ["y", "x"]}),
        f"paths.cache={folder / 'cache'}", "split=file", f"split.file={folder / 'split.json'}", *SMALL, "model.norm=group",
        "training.batch_size=7", "training.steps=6", "training.val_every=2",
    ]  # fmt: skip
