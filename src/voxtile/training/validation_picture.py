"""The picture of a validation: what the network makes of a few windows, each around something rare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image

from voxtile.cases.tiling import Tile, tiles
from voxtile.cases.window import IGNORE, Window
from voxtile.data.batches import collate
from voxtile.data.datamodule import VoxtileData
from voxtile.inference.decoding import classes_of_logits
from voxtile.models.network import logits_of
from voxtile.training import pictures
from voxtile.training.module import SegmentationModule

MOST_WINDOWS = 4
PLACES = (1 / 2, 1 / 4, 3 / 4, 1 / 8)  # among the pixels of a class that are known, for windows of one case


def chosen_windows(data: VoxtileData) -> list[tuple[int, Tile]]:
    """Up to four validation windows, each around a pixel of a class that is rare in its case, of cases spread over the split.

    Of fewer cases than four several windows are shown: around their next rarest classes, and around other pixels of these.
    """
    split = data.prepared.split.val
    picked = [round(place) for place in np.linspace(0, len(split) - 1, min(MOST_WINDOWS, len(split)))]
    around = [_places(data, number) for number in picked]
    chosen: dict[tuple[int, Window], Tile] = {}
    for turn in range(max(map(len, around))):
        for number, places in zip(picked, around, strict=True):
            if turn < len(places) and len(chosen) < MOST_WINDOWS:
                cover = tiles(split[number].shape, data.size)
                pixel = places[turn]
                tile = next(t for t in cover if all(a <= p < b for a, p, b in zip(t.core.start, pixel, t.core.stop, strict=True)))
                chosen.setdefault((number, tile.window), Tile(tile.window, tile.window, tile.weights))
    return sorted(((number, tile) for (number, _), tile in chosen.items()), key=lambda each: each[0])


def _places(data: VoxtileData, number: int) -> list[NDArray[np.int32]]:
    """Pixels of a validation case around which windows tell most, the first of the rarest class."""
    found, background = data.prepared.surveys[data.prepared.split.val[number].id], data.prepared.dataset.background
    rare = sorted((c for c, n in enumerate(found.counts) if n), key=lambda c: int(found.counts[c]))
    rare = [rare[0], *(c for c in rare[1:] if c != background)]
    return [found.locations[c][int(part * len(found.locations[c]))] for part in PLACES for c in rare]


def draw_validation(module: SegmentationModule, data: VoxtileData, shown: Sequence[tuple[int, Tile]], path: Path) -> Path:
    """Draws input, label, prediction and error of the chosen windows (of boxes the slice with most of a rare class) into a PNG.

    Where there are no data nothing is predicted, as in maps.
    """
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
            classes = classes_of_logits(logits, list(module.regions.values()))[0].cpu().numpy()
        label = sample["label"][inner]
        z = pictures.telling_slice(label, data.prepared.surveys[case.id].counts)
        plane = classes[inner[1:]] if module.planar else classes[inner][z]
        own = sample["image"][case.neighbours :: 1 + 2 * case.neighbours]  # without neighbouring slices
        shown_image, held = own[:, *seen][:, z], sample["valid"][seen][z]
        plane = np.where(held, plane, np.uint8(IGNORE))
        colors = data.prepared.dataset.colors
        picture = pictures.row(shown_image, held, label[z], plane, colors, case.grid, case.channels)
        _, y, x = tile.window.middle
        middle = pictures.place_of(case, (tile.window.z + z, y, x))
        rows.append((f"{case.id}, the middle is {middle}: input | label | prediction | error", picture))
    return pictures.save(pictures.sheet(rows, data.prepared.dataset.classes, data.prepared.dataset.colors), path)


def log_picture(logger: Logger, path: Path, step: int) -> None:
    """Hands a picture to a logger that takes pictures."""
    if hasattr(logger, "log_image"):
        logger.log_image(key="validation", images=[str(path)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        with Image.open(path) as picture:
            logger.experiment.add_image("validation", np.asarray(picture), step, dataformats="HWC")
