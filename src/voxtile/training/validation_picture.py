"""The picture of a validation: what the network makes of a few windows, each around something rare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image

from voxtile.cases.tiling import Tile, tiles
from voxtile.data.batches import collate
from voxtile.data.datamodule import VoxtileData
from voxtile.inference.decoding import classes_of_logits
from voxtile.models.network import logits_of
from voxtile.training import pictures
from voxtile.training.module import SegmentationModule

MOST_WINDOWS = 4


def chosen_windows(data: VoxtileData) -> list[tuple[int, Tile]]:
    """Up to four validation windows, each around a pixel of the case's rarest class, of cases spread over the split."""
    split = data.prepared.split.val
    picked = sorted({round(i * (len(split) - 1) / max(1, MOST_WINDOWS - 1)) for i in range(min(MOST_WINDOWS, len(split)))})
    chosen = []
    for number in picked:
        found = data.prepared.surveys[split[number].id]
        rarest = min((c for c, n in enumerate(found.counts) if n), key=lambda c: int(found.counts[c]))
        pixel = found.locations[rarest][len(found.locations[rarest]) // 2]
        cover = tiles(split[number].shape, data.size)
        tile = next(t for t in cover if all(a <= p < b for a, p, b in zip(t.core.start, pixel, t.core.stop, strict=True)))
        chosen.append((number, Tile(tile.window, tile.window, tile.weights)))
    return chosen


def draw_validation(module: SegmentationModule, data: VoxtileData, shown: Sequence[tuple[int, Tile]], path: Path) -> Path:
    """Draws input, label, prediction and error of the chosen windows (the middle slice of boxes) into a PNG."""
    rows = []
    for number, tile in shown:
        case = data.prepared.split.val[number]
        sample = data.window_of(number, tile)
        window = tile.window.filled(case.shape, data.size)
        seen, inner = tile.window.within(window.grown(data.margin)), tile.window.within(window)
        batch = collate([sample | data.prepared.intensity_of(case).arrays()])
        with torch.inference_mode():
            image, _ = module.inputs({k: v.to(module.device) for k, v in batch.items()}, augment=False)
            logits = logits_of(module.evaluated.eval(), image)
            classes = classes_of_logits(logits, list(module.regions.values()))[0].to(torch.uint8).cpu().numpy()
        middle = tile.window.depth // 2
        plane = classes[inner[1:]] if module.planar else classes[inner][middle]
        own = sample["image"][case.neighbours :: 1 + 2 * case.neighbours]  # without neighbouring slices
        shown_image, held = own[:, *seen][:, middle], sample["valid"][seen][middle]
        colors = data.prepared.dataset.colors
        picture = pictures.row(shown_image, held, sample["label"][inner][middle], plane, colors, case.grid, case.channels)
        rows.append((f"{case.id}, z y x = {tile.window.start}: input | label | prediction | error", picture))
    return pictures.save(pictures.sheet(rows, data.prepared.dataset.classes, data.prepared.dataset.colors), path)


def log_picture(logger: Logger, path: Path, step: int) -> None:
    """Hands a picture to a logger that takes pictures."""
    if hasattr(logger, "log_image"):
        logger.log_image(key="validation", images=[str(path)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        with Image.open(path) as picture:
            logger.experiment.add_image("validation", np.asarray(picture), step, dataformats="HWC")
