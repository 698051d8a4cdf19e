"""The recipe: everything that can change a run's numbers, and the identity that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

VERSION = 1  # of the run folder's files; a folder with another version is refused

# Paths into the resolved configuration. What is not listed (paths, loggers, workers, progress) cannot change a number.
# A field added later gets the value that stood for it before, and is left out of the hash at that value, so that the
# identities of older runs stay as they are.
FIELDS: tuple[str, ...] = (
    "model",
    "loss",
    "optimizer",
    "scheduler",
    "augment",
    "normalise",
    "split",
    "seed",
    "data.name",
    "data.format",
    "data.labels",
    "data.background",
    "data.group",
    "data.channels",
    "data.nodata",
    "data.exclude",
    "data.limit",
    "data.window",
    "data.balance",
    "data.symmetry",
    "training.steps",
    "training.batch_size",
    "training.accumulate",
    "training.val_every",
    "training.clip",
    "training.ema",
    "training.patience",
    "training.monitor",
    "training.channels_last",
    "training.groups",
    "trainer.precision",
    "trainer.deterministic",
)
# Parts of these that are left out: where a file lies. What it says is in the split's digest.
PLACES: Mapping[str, str] = {"split": "file", "data.group": "csv"}
# Parts that name a file whose contents count, wherever it lies.
CONTENTS: Mapping[str, str] = {"model": "weights", "data.scene": "area"}
# field -> the value that stood for it before it existed
ADDED: Mapping[str, Any] = {
    "training.norm_statistics": None,
    "training.compile": False,
    "training.minutes": None,
    "trainer.sync_batchnorm": False,
    "data.scene": None,
    "data.spacing": None,
    "data.axis": "z",
    "data.neighbours": 0,
    "data.regions": None,
    "data.sampling.by": "pixels",
    "data.sampling.class_weights": None,
    "data.sampling.jitter": 1.0,
    "data.sampling.scales": None,
    "data.sampling.max_nodata": None,
    "data.vectors.layer": None,
    "data.vectors.crs": None,
    "data.vectors.attribute": None,
    "data.vectors.values": None,
    "data.vectors.outside": 0,
    "data.vectors.priority": None,
    "data.vectors.buffer": 0,
    "data.vectors.all_touched": False,
    "data.vectors.border": 0,
    "data.vectors.repair": True,
    "data.vectors.empty": False,
}

DICE: Mapping[str, Any] = {"include_background": False, "smooth": 1.0, "batch": True}
CROSS_ENTROPY: Mapping[str, Any] = {"class_weights": None, "label_smoothing": 0.0}
# The same for arguments of classes that are listed as a whole: they are left out at these values.
ADDED_TO: Mapping[str, Mapping[str, Any]] = {
    "voxtile.data.normalise.Normalisation": {"keep_zero": False, "foreground": False},
    "voxtile.training.losses.Dice": DICE,
    "voxtile.training.losses.DiceCrossEntropy": {**DICE, **CROSS_ENTROPY, "dice_weight": 1.0, "cross_entropy_weight": 1.0},
    "voxtile.training.schedules.Cosine": {"floor": 0.0},
    "voxtile.data.blocks.BlockSplit": {"side": None, "grid": "case", "stratify": False},
}

# field -> newer names of its values, and the names that stood for the same before
RENAMED: Mapping[str, Mapping[str, str]] = {"data.format": {"volume": "nifti"}}

# Parts that come to other numbers than before with the same settings have one entry more in the recipe, `PART_VERSION`; when
# numbers move again, it needs another value.
PART_VERSION = "_version_"
# Networks: the class, and of which of its settings that holds.
MOVED: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    # Up-samplings that learn lead from each class to each; FCN-32s has none.
    "voxtile.models.fcn.FCN": lambda given: bool(given.get("learn_upsampling")) and given.get("stride") != 32,
    # The image is scaled by PyTorch's own layer, which rounds otherwise.
    "voxtile.models.deeplab.DeepLabV2": lambda given: given.get("scales") != [1],
    # A 1x1 fc6 starts from the middle of VGG16's taps. (Files of DeepLab's own layers are not told from those of VGG16.)
    "voxtile.models.deeplab.DeepLabV1": lambda given: given.get("kernel") == 1 and given.get("weights") is not None,
    "voxtile.models.deeplab.DeepLabV1MSc": lambda given: given.get("kernel") == 1 and given.get("weights") is not None,
    # Of score maps of one size the first is the result; the libraries' networks give none, or are known.
    "voxtile.models.adapter.Adapted": lambda given: given.get("final") is None and not _of_library(given.get("network")),
}


def _of_library(network: Any) -> bool:
    maker = network.get("_target_", "") if isinstance(network, Mapping) else ""
    return str(maker).partition(".")[0] in ("monai", "segmentation_models_pytorch", "torchvision", "timm")


@dataclass(frozen=True)
class Recipe:
    """The allow-listed part of a configuration, with the data it meets.

    Attributes:
        settings: value by path, for example {"training.steps": 400}.
        data: the data's fingerprint.
        split: digest of which case is on which side.
        stream: version of the sample stream.
        parent: digest of the weights the run starts from, "" where it starts from nothing.
    """

    settings: Mapping[str, Any]
    data: str
    split: str
    stream: int
    parent: str = ""

    @classmethod
    def of(cls, config: Mapping[str, Any], data: str, split: str, stream: int, parent: str = "") -> Recipe:
        """Takes the allow-listed values out of a resolved configuration (plain dicts and lists)."""
        settings = {path: _value(config, path) for path in (*FIELDS, *ADDED)}
        return cls(_versioned(settings), data, split, stream, parent)

    @classmethod
    def written(cls, content: Mapping[str, Any]) -> Recipe:
        """The recipe that a recipe.json holds."""
        settings = {**ADDED, **content["settings"]}
        return cls(settings, content["data"], content["split"], content["stream"], content.get("parent", ""))

    def remade(self, config: Mapping[str, Any]) -> Recipe:
        """The recipe of a run's configuration on the same data and with the same versions of its parts.

        What a file held that is gone is taken from this one.
        """
        settings = dict(Recipe.of(config, self.data, self.split, self.stream, self.parent).settings)
        for path, key in CONTENTS.items():
            value, known = settings[path], self.settings.get(path)
            file = Path(str(value.get(key))) if isinstance(value, Mapping) else Path()
            if isinstance(known, Mapping) and file.is_absolute() and not file.exists():
                settings[path] = {**value, key: known.get(key)}
        for path in ("model", "augment"):
            if isinstance(part := settings[path], Mapping) and isinstance(known := self.settings.get(path), Mapping):
                version = {key: value for key, value in known.items() if key == PART_VERSION}
                settings[path] = {key: value for key, value in part.items() if key != PART_VERSION} | version
        for path, known in self.settings.items():
            if isinstance(known, Mapping):  # written with arguments that are left out by now, at the values that they have there
                plain = _without_defaults(known)
                if plain != known and _ordered(plain) == _ordered(settings[path]):
                    settings[path] = known
        return replace(self, settings=settings)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for recipe.json."""
        return {
            "version": VERSION,
            "settings": dict(self.settings),
            "data": self.data,
            "split": self.split,
            "stream": self.stream,
            "parent": self.parent,
        }

    @property
    def is_outdated(self) -> bool:
        """Whether a part of it comes to other numbers by now, so that the same configuration makes another recipe."""
        return _versioned(self.settings) != self.settings

    @property
    def identity(self) -> str:
        """32 hexadecimal digits that change when something changes that can change the run's numbers.

        Nothing else changes them, but for how a number is written: 1 and 1.0 are two.
        """
        kept = {path: _ordered(value) for path, value in self.settings.items() if path not in ADDED or value != ADDED[path]}
        text = json.dumps(self.as_dict() | {"settings": kept}, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _value(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ADDED.get(path)
        value = value[part]
    if path in RENAMED:
        return RENAMED[path].get(value, value)
    if isinstance(value, Mapping) and path in PLACES:
        value = {key: item for key, item in value.items() if key != PLACES[path]}
    if isinstance(value, Mapping):
        value = _without_defaults(value)
    if isinstance(value, Mapping) and isinstance(name := value.get(CONTENTS.get(path, "")), str):
        file = Path(name).expanduser()
        if file.is_file():
            from voxtile.training.weights import file_digest  # imports PyTorch

            value = {**value, CONTENTS[path]: file_digest(file)}
    # JSON has text keys only; {1: forest} must hash as it will be read back.
    return json.loads(json.dumps(value, default=str))


def _without_defaults(part: Mapping[str, Any]) -> dict[str, Any]:
    """A class and its arguments, without those that `ADDED_TO` leaves out."""
    before = ADDED_TO.get(str(part.get("_target_")), {})
    return {key: item for key, item in part.items() if key not in before or item != before[key]}


def _versioned(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by path, with the versions of a network and of an augmentation whose numbers have moved."""
    versioned = dict(settings)
    if isinstance(model := settings.get("model"), Mapping):
        moved = MOVED.get(str(model.get("_target_")))
        versioned["model"] = {**model, PART_VERSION: 2} if moved and moved(model) else model
    if isinstance(augment := settings.get("augment"), Mapping):
        names = [name for name, moves in MOVED_AUGMENTATIONS.items() if moves(augment, settings)]
        versioned["augment"] = {**augment, PART_VERSION: names} if names else augment
    return versioned


def _bends_thin_boxes(augment: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether boxes are deformed whose longest side is more than three times the shortest (see `voxtile.data.warp.moved_axes`)."""
    window, spacing = settings.get("data.window"), settings.get("data.spacing")
    if isinstance(spacing, list) and None not in spacing and max(spacing) > 3 * min(spacing):
        return False  # they were deformed in a plane before, too
    thin = isinstance(window, list) and len(window) == 3 and window[0] > 1 and max(window) > 3 * min(window)
    warps = (part for name in ("affine", "elastic") if isinstance(part := augment.get(name), Mapping))
    return thin and any(str(part.get("_target_")).startswith("voxtile.data.warp.") for part in warps)


def _recolours_masked(augment: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether intensities change in images of which what is 0 in every channel stays 0."""
    normalise, intensity = settings.get("normalise"), augment.get("intensity")
    kept = isinstance(normalise, Mapping) and bool(normalise.get("keep_zero"))
    return kept and isinstance(intensity, Mapping) and any(change is not None for change in intensity.values())


# What of augmentations came to other numbers once, and with which settings (the augmentation's, and all by path) that holds.
MOVED_AUGMENTATIONS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], bool]] = {
    "plane": _bends_thin_boxes,
    "zero": _recolours_masked,
}


def _ordered(value: Any) -> Any:
    """Mappings as lists of pairs, since their order can matter (of augmentations, say) and JSON's is sorted away."""
    if isinstance(value, Mapping):
        return [[key, _ordered(item)] for key, item in value.items()]
    return [_ordered(item) for item in value] if isinstance(value, list) else value
