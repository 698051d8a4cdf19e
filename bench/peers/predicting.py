"""Whole-scene prediction by others: `predicting.py <way> <image> <output> <overlap>` prints seconds and peak memory as JSON.

torchgeo: GridGeoSampler behind a DataLoader, as its documentation predicts scenes; torchgeo2 with two worker processes. Its
          windows do not overlap, since it has nothing that joins overlapping ones.
monai:    sliding_window_inference over the scene in memory, with Gaussian importance where windows overlap.

Each writes the class map as a tiled, deflated GeoTIFF with rasterio.
"""

import json
import resource
import sys
import time
from importlib import import_module
from pathlib import Path

import rasterio
import torch
from network import BATCH, WINDOW, classes, network, normalised
from rasterio.windows import Window


def profile_of(image: str) -> dict:
    with rasterio.open(image) as scene:
        size = {"width": scene.width, "height": scene.height, "crs": scene.crs, "transform": scene.transform}
    tiles = {"tiled": True, "blockxsize": WINDOW, "blockysize": WINDOW, "compress": "deflate"}
    return {"driver": "GTiff", "count": 1, "dtype": "uint8", **size, **tiles}


def torchgeo(image: str, output: str, overlap: float, workers: int = 0) -> None:
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    assert overlap == 0
    dataset = RasterDataset(str(Path(image).parent))
    sampler = GridGeoSampler(dataset, size=WINDOW, stride=WINDOW)
    model = network()
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=stack_samples, num_workers=workers)
    profile = profile_of(image)
    left, top, size = profile["transform"].c, profile["transform"].f, profile["transform"].a
    with rasterio.open(output, "w", **profile) as out, torch.inference_mode():
        for batch in loader:
            maps = classes(model(normalised(batch["image"]))).numpy()
            for array, (x, y, _) in zip(maps, batch["bounds"], strict=True):
                area = Window(round((x.start - left) / size), round((top - y.stop) / size), WINDOW, WINDOW)
                out.write(array, 1, window=area)


def torchgeo2(image: str, output: str, overlap: float) -> None:
    torchgeo(image, output, overlap, workers=2)


def monai(image: str, output: str, overlap: float) -> None:
    from monai.inferers import sliding_window_inference

    model = network()
    with rasterio.open(image) as scene:
        pixels = normalised(torch.from_numpy(scene.read()))[None]
    with torch.inference_mode():
        if overlap:  # probabilities are joined, as voxtile does
            joined = sliding_window_inference(
                pixels, (WINDOW, WINDOW), BATCH, lambda part: model(part).softmax(1), overlap=overlap, mode="gaussian"
            )
        else:
            joined = sliding_window_inference(pixels, (WINDOW, WINDOW), BATCH, model, overlap=0)
        result = classes(joined)
    with rasterio.open(output, "w", **profile_of(image)) as out:
        out.write(result.numpy())


if __name__ == "__main__":
    way, image, output, overlap = sys.argv[1:]
    ways = {"torchgeo": torchgeo, "torchgeo2": torchgeo2, "monai": monai}
    for library in ("monai.inferers",) if way == "monai" else ("torchgeo.datasets", "torchgeo.samplers"):
        import_module(library)  # takes seconds, which are not counted
    began = time.perf_counter()
    ways[way](image, output, float(overlap))
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
