"""Very small data sets in real formats, with a Hydra configuration each, for tests that run whole commands."""

import json
from pathlib import Path

import nibabel
import numpy as np
import rasterio
import yaml
from rasterio.transform import from_origin

SMALL = [
    "model.width=0.0625", "model.depth=2", "training.steps=6", "training.val_every=3", "training.save_every=2",
    "training.log_every=1", "training.batch_size=2", "trainer=cpu",
]  # fmt: skip


def scene(path: Path, array: np.ndarray, corner: int = 0, nodata: float | None = None) -> Path:
    """Writes bands [C, H, W] as a GeoTIFF whose corner lies `corner` kilometres east."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=array.dtype, crs="EPSG:32633", nodata=nodata,
        transform=from_origin(500_000 + 1000 * corner, 5_000_000, 10, 10),
    ) as out:  # fmt: skip
        out.write(array)
    return path


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
