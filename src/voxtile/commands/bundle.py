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
from voxtile.cases.atomic import atomic_text
from voxtile.cases.formats import SUFFIXES
from voxtile.cases.windowing import AXES, ORDERS
from voxtile.commands.allowed import below, without_weights
from voxtile.commands.build import unused
from voxtile.commands.checks import SECTIONS
from voxtile.commands.crf import FILE as CRF
from voxtile.commands.evaluated import COUNTED, summary_in
from voxtile.commands.postprocess import FILE as POSTPROCESS
from voxtile.data.normalise import FixedNormalisation, Normalisation
from voxtile.models.network import margin_of
from voxtile.studies.manifest import segment
from voxtile.training.weights import digests

if TYPE_CHECKING:
    from voxtile.commands.trained import Trained

VERSION = 1  # of export.json
ORIENTATION = "RAS+: x rises to the patient's right, y to the front, z to the head, whatever the order in the file"
# What of a manifest's data is about the kind of images, and of no single one but by a digest of its content.
KEPT = (
    "channels", "inputs", "past_the_border", "spacing", "classes", "background", "regions", "colors", "intensity",
    "test_fingerprint", "test_files",
)  # fmt: skip


def _measured(normalisation: Normalisation) -> str:
    """What the numbers of a normalisation were, or are to be, measured on."""
    if isinstance(normalisation, FixedNormalisation):
        return "not at all: the numbers were given"
    some = "some 200,000 evenly spaced pixels that hold data"
    of = f"{some} of the case" if normalisation.per == "case" else f"{some} of each training case, each case weighted by its size"
    only = ", of labelled foreground alone" if normalisation.foreground else ""
    return f"low and high are the percentiles, mean and std those after clipping, of {of}{only}"


def describe(trained: Trained, kind: str, weights: str) -> dict[str, Any]:
    """What it takes to use an exported network, as plain types.

    Args:
        trained: the run.
        kind: the format.
        weights: best or last.
    """
    data, config, windowing = trained.manifest["data"], trained.built.config, trained.built.windowing
    axes = [AXES[axis] for axis in ORDERS[windowing.axis]][-len(windowing.size) :]
    channels = data.get("inputs", data["channels"])  # older manifests know no neighbours
    *_, margin = margin_of(trained.network)
    normalisation = trained.built.normalisation
    return {
        "version": VERSION,
        "format": kind,
        "voxtile": __version__,
        "run": trained.identity,
        "weights": {"name": weights, "sha256": digests(trained.home.weights)[weights]},
        "input": {
            "name": "image",
            "dtype": "float32",
            "axes": ["batch", "channel", *axes],
            "shape": ["batch", len(channels), *window_shape(trained)],
            "channels": channels,
            "margin": margin,
            "slices_across": windowing.axis if len(axes) == 2 else None,
            "orientation": ORIENTATION if config["data"]["format"] in ("volume", "nifti", "dicom") else None,
            "past_the_border": data.get("past_the_border"),
            "around_small_cases": "mirrored" if margin else "zeros",
            "spacing_mm": data.get("spacing"),
            "nodata": config["data"].get("nodata"),
            "scene": without_area(config["data"].get("scene")),
        },
        "normalisation": {
            "per": normalisation.per,
            "clip_percentiles": normalisation.clip,
            "nonzero_only": normalisation.nonzero,
            "keep_zero": normalisation.keep_zero,
            "then": "clip to [low, high], subtract mean, divide by std, by channel; 0 where there is no data, and with keep_zero "
            "where every channel was 0",
            "measured": _measured(normalisation),
            "values": data["intensity"],
        },
        "output": {
            "name": "logits",
            "axes": ["batch", "class", *axes],
            "shape": ["batch", len(data["classes"]), *windowing.size],
            "classes": data["classes"],
            "background": data["background"],
            "regions": data.get("regions", {}),
            "colors": data["colors"],
        },
    }


def window_shape(trained: Trained) -> tuple[int, ...]:
    """The sides of what the network is shown, (D,) H, W: the training's window, and the network's margin around it."""
    *_, margin = margin_of(trained.network)
    return tuple(side + 2 * margin for side in trained.built.windowing.size)


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
    recipe, status = trained.recipe, trained.home.status
    settings = {"data.name": config["data"]["name"]}
    for found in (CRF, POSTPROCESS):  # settings that searches have found, for crf=best and postprocess=best
        if (trained.home.path / found).exists():
            shutil.copyfile(trained.home.path / found, folder / found)
    for split in ("val", "test"):  # whose sums adjust hectares; those of others' maps and data have names in them
        for scored in (trained.home.path / "evaluations").glob(f"{split}-{weights}*"):
            if counted := {key: value for key, value in summary_in(scored).items() if key in COUNTED}:
                atomic_text(folder / "evaluations" / scored.name / "summary.json", json.dumps(counted, indent=1) + "\n")
    data = {key: value for key, value in trained.manifest["data"].items() if key in KEPT}
    code = segment(trained.manifest)["code"]
    code = {
        "sources": code["sources"],
        "trusted": {name: digest for name, digest in code.get("trusted", {}).items() if name in trained.code},
    }
    contents: dict[str, Mapping[str, Any]] = {
        "recipe.json": {**{key: recipe[key] for key in ("version", "identity", "data", "split")}, "settings": settings},
        "manifest.json": {"versions": trained.manifest["versions"], "data": data, "code": code},
        "status.json": {**{key: status[key] for key in ("state", "step", "best")}, "weights": digests(folder / "weights")},
    }
    for name, content in contents.items():
        atomic_text(folder / name, json.dumps(content, indent=1) + "\n")


def _impersonal(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without paths and names of cases, and what is of no use any more: trackers, parents, trust."""
    kept: dict[str, Any] = deepcopy({key: config[key] for key in SECTIONS})
    kept["model"] = without_weights(kept["model"])
    kept["paths"] = {"data": "data", "runs": "runs", "cache": "~/.cache/voxtile"}
    kept["data"] |= {"exclude": [], "waive": [], "group": None, "sampling": None}
    kept["data"]["layout"] = _without_paths(kept["data"]["layout"]) | {"root": "data"}
    kept["data"]["scene"] = without_area(kept["data"].get("scene"))
    kept["split"] = {"_target_": "voxtile.data.splits.KFold"}
    # Of code that is not ours, predicting needs the network alone; that of the training need not be where the bundle is.
    kept |= unused(config)
    if not below(str(kept["data"]["layout"].get("_target_")), ("voxtile",)):
        kind = "volume" if config["data"]["format"] == "nifti" else config["data"]["format"]
        pattern = f"{{id}}{SUFFIXES[kind][0]}"
        kept["data"]["layout"] = {"_target_": "voxtile.cases.layouts.FolderLayout", "root": "data", "images": pattern}
    return kept | {"logger": {}, "seed": config["seed"], "trust": []}


def without_area(scene: Any) -> Any:
    """How scenes are read, but not where: new files are read whole."""
    return {key: value for key, value in scene.items() if key != "area"} if scene else scene


def _without_paths(value: Any) -> Any:
    """Settings in which every absolute path is the folder "data"."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return "data" if isinstance(value, str) and Path(value).expanduser().is_absolute() else value
