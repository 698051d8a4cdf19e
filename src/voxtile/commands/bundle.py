"""A trained network to hand on: what it takes to use it, and a run folder without what only its makers may know."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from voxtile import __version__
from voxtile.cases.maps import atomic_text
from voxtile.commands.build import SECTIONS, without_weights
from voxtile.training.weights import digests

if TYPE_CHECKING:
    from voxtile.commands.trained import Trained

VERSION = 1  # of export.json
# What of a manifest's data is about the kind of images, and of no single one but by a digest of its content.
KEPT = (
    "channels", "inputs", "past_the_border", "spacing", "classes", "background", "regions", "colors", "intensity",
    "test_fingerprint", "test_files",
)  # fmt: skip


def describe(trained: Trained, kind: str, weights: str) -> dict[str, Any]:
    """What somebody who has only the exported file must know to use it, as plain types.

    Args:
        trained: the run.
        kind: the format.
        weights: best or last.
    """
    data, config, windowing = trained.manifest["data"], trained.built.config, trained.built.windowing
    sides = list(windowing.size)
    margin = int(getattr(trained.network, "margin", 0))
    axes = ["z", "y", "x"][-len(sides) :]
    sliced = len(sides) == 2 and config["data"]["format"] in ("volume", "nifti", "dicom")
    normalisation = trained.built.normalisation
    return {
        "version": VERSION,
        "format": kind,
        "voxtile": __version__,
        "run": trained.home.read("recipe.json")["identity"],
        "weights": {"name": weights, "sha256": digests(trained.home.weights)[weights]},
        "input": {
            "name": "image",
            "dtype": "float32",
            "axes": ["batch", "channel", *axes],
            "shape": ["batch", len(data["inputs"]), *(side + 2 * margin for side in sides)],
            "channels": data["inputs"],
            "margin": margin,
            "slices_across": windowing.axis if sliced else None,
            "past_the_border": data["past_the_border"],
            "spacing_mm": data["spacing"],
        },
        "normalisation": {
            "per": normalisation.per,
            "clip_percentiles": normalisation.clip,
            "nonzero_only": normalisation.nonzero,
            "keep_zero": normalisation.keep_zero,
            "then": "clip to [low, high], subtract mean, divide by std, by channel",
            "values": data["intensity"],
        },
        "output": {
            "name": "logits",
            "axes": ["batch", "class", *axes],
            "shape": ["batch", len(data["classes"]), *sides],
            "classes": data["classes"],
            "background": data["background"],
            "regions": data["regions"],
            "colors": data["colors"],
        },
    }


def write_bundle(trained: Trained, weights: str, folder: Path) -> None:
    """Makes a folder that predict takes as a run: weights, configuration and what images look like, but no case, path or command.

    Args:
        trained: the run.
        weights: best or last.
        folder: an empty one.
    """
    (folder / "weights").mkdir()
    file = f"{weights}.safetensors"
    shutil.copyfile(trained.home.weights / file, folder / "weights" / file)
    config = _impersonal(trained.built.config)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    recipe, status = trained.home.read("recipe.json"), trained.home.status
    settings = {"data.name": config["data"]["name"]}
    data = {key: value for key, value in trained.manifest["data"].items() if key in KEPT}
    contents: dict[str, Mapping[str, Any]] = {
        "recipe.json": {**{key: recipe[key] for key in ("version", "identity", "data", "split")}, "settings": settings},
        "manifest.json": {"versions": trained.manifest["versions"], "data": data},
        "status.json": {**{key: status[key] for key in ("state", "step", "best")}, "weights": digests(folder / "weights")},
    }
    for name, content in contents.items():
        atomic_text(folder / name, json.dumps(content, indent=1) + "\n")


def _impersonal(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without paths and names of cases, and what is of no use any more: trackers, parents, trust."""
    kept: dict[str, Any] = deepcopy({key: config[key] for key in SECTIONS})
    kept["model"] = without_weights(kept["model"])
    kept["paths"] = {"data": "data", "runs": "runs", "cache": "~/.cache/voxtile"}
    kept["data"] |= {"exclude": [], "waive": [], "group": None}
    kept["data"]["layout"]["root"] = "data"
    if "weights" in (kept["data"].get("sampling") or {}):
        kept["data"]["sampling"] = {**kept["data"]["sampling"], "by": "pixels", "weights": None}
    if kept["data"].get("scene"):
        kept["data"]["scene"].pop("area", None)
    kept["split"] = {"_target_": "voxtile.data.splits.KFold"}
    return kept | {"logger": {}, "seed": config["seed"], "trust": []}
