"""Windows per second of TorchGeo's RandomGeoSampler.

python bench/peers/torchgeo_reading.py <image folder> <label folder> <windows> <passes> <workers>

Image and label as TorchGeo's documentation joins and samples them: an IntersectionDataset of two RasterDatasets, whose file
handles stay open (its default), behind a DataLoader with `stack_samples`. The windows are drawn once and read in every pass; the
first pass warms up, the fastest of the others is printed.
"""

import sys
import time

import torch
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import RandomGeoSampler


class Masks(RasterDataset):
    is_image = False


def main(images: str, labels: str, windows: int, passes: int, workers: int) -> None:
    dataset = RasterDataset(images) & Masks(labels)
    sampler = RandomGeoSampler(dataset, size=256, length=windows, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(
        dataset, batch_size=8, sampler=list(sampler), collate_fn=stack_samples, num_workers=workers, persistent_workers=workers > 0
    )
    times = []
    for _ in range(1 + passes):
        began = time.perf_counter()
        for batch in loader:
            assert batch["image"].shape[1:] == (4, 256, 256)
            assert batch["mask"].shape[-2:] == (256, 256)
        times.append(time.perf_counter() - began)
    print(windows / min(times[1:]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
