"""The scene that bench/reading.py and bench/predicting.py measure on, made once: `python bench/scene.py [folder] [side]`.

4 bands of uint16 and a label of uint8, both tiled (256x256) and deflated: fields of 32x32 pixels with noise, which compress about
as far as real scenes do.
"""

import argparse
import os
import sys
from pathlib import Path

WINDOW = 256
CLASSES = 5


def default_folder() -> Path:
    return Path(os.environ.get("VOXTILE_CACHE", Path.home() / ".cache" / "voxtile")).expanduser() / "bench"


def paths(folder: Path, side: int) -> tuple[Path, Path]:
    """Image and label; in folders of their own, as TorchGeo wants them."""
    return folder / f"image_{side}" / "scene.tif", folder / f"label_{side}" / "scene.tif"


def arguments(text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_folder(), help="folder of the made scenes")
    parser.add_argument("--side", type=int, default=8192, help="of the scene, in pixels; a multiple of 256")
    return parser


def make(folder: Path, side: int) -> None:
    """Writes what is not there yet."""
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    image_path, label_path = paths(folder, side)
    if image_path.exists() and label_path.exists():
        return
    common = {
        "driver": "GTiff", "width": side, "height": side, "tiled": True, "blockxsize": 256, "blockysize": 256,
        "compress": "deflate", "num_threads": "ALL_CPUS", "BIGTIFF": "IF_SAFER", "crs": "EPSG:32633",
        "transform": from_origin(500_000, 5_000_000, 10, 10),
    }  # fmt: skip
    making = [path.with_name("making.tif") for path in (image_path, label_path)]
    for path in making:
        path.parent.mkdir(parents=True, exist_ok=True)
    with (
        rasterio.open(making[0], "w", count=4, dtype="uint16", **common) as image,
        rasterio.open(making[1], "w", count=1, dtype="uint8", **common) as label,
    ):
        for row in range(0, side, WINDOW):
            rng = np.random.default_rng(row)
            fields = rng.integers(200, 4000, (4, WINDOW // 32, side // 32), dtype=np.uint16)
            smooth = np.repeat(np.repeat(fields, 32, axis=1), 32, axis=2)
            area = Window(0, row, side, WINDOW)
            image.write(smooth + rng.integers(0, 64, smooth.shape, dtype=np.uint16), window=area)
            label.write((smooth[:1] // 800).astype(np.uint8), window=area)
    for path, final in zip(making, (image_path, label_path), strict=True):
        path.replace(final)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder(), int(sys.argv[2]) if len(sys.argv) > 2 else 8192)
