"""The recipes of conf/experiment against what the papers and the authors' releases say, typed here and not read from the files."""

import functools
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.testers.composing import command_words
from voxtile.commands import compose
from voxtile.commands.allowed import build, build_network
from voxtile.commands.build import Parts, parts
from voxtile.data.normalise import FixedNormalisation
from voxtile.data.prepared import prepare, window_size
from voxtile.data.symmetry import Symmetry
from voxtile.data.warp import Affine
from voxtile.models.network import margin_of
from voxtile.training.losses import BorderCrossEntropy, CrossEntropy
from voxtile.training.schedules import Constant, Poly, Schedule, Step, parameter_groups

DATA = os.environ.get("VOXTILE_DATA", "")  # as it was before other tests of this process set it to a folder of their own
EXPERIMENTS = compose.conf_dir() / "experiment"
OURS = {"hippocampus_2d", "hippocampus_3d"}  # of no paper
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if path.stem not in OURS)

# Of red, green and blue from 0 to 255. torchvision: mean 0.485, 0.456, 0.406 and deviation 0.229, 0.224, 0.225 from 0 to 1.
TORCHVISION = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CAFFE = ((122.67892, 116.66877, 104.00699), (1.0, 1.0, 1.0))  # of blue, green and red: 104.00699, 116.66877, 122.67892
# Height and width of a picture, channels, classes.
PICTURES = {"camvid": ((360, 480), 3, 11), "isbi2012": ((512, 512), 1, 2)}

Rates = Mapping[str, tuple[float, float]]  # kind of parameter: multiplier of the rate, weight decay


@dataclass(frozen=True)
class Recipe:
    """What a paper says.

    Attributes:
        lr: base rate.
        rates: of each kind of parameter that learns; "new" stands before the kind for those of the layers `new`.
        learning: how many parameters learn.
        divisor: of the loss summed over pixels: "pixels" that are judged, or "images".
        tile: sides of what the network sees of a picture.
        scale: of the image, drawn anew for each sample.
        parent: the recipe whose network this one starts from.
    """

    lr: float
    rates: Rates
    steps: int
    batch: int
    learning: int
    optimizer: type = torch.optim.SGD
    momentum: float = 0.9
    schedule: Schedule = field(default_factory=Constant)
    loss: type = CrossEntropy
    divisor: str = "pixels"
    class_weights: str | None = None
    normalised: Any = TORCHVISION
    tile: tuple[int, int] = (360, 480)
    new: str = "nothing"
    mirrored: tuple[str, ...] = ()
    scale: tuple[float, float] = (1.0, 1.0)
    parent: str | None = None


def doubled(decay: float) -> dict[str, tuple[float, float]]:
    """Biases learn at twice the rate and do not decay."""
    return {"weight": (1, decay), "bias": (2, 0)}


TEN_TIMES = {"new weight": (10, 5e-4), "new bias": (20, 0)}
FCN32S = Recipe(
    1e-10, doubled(5e-4), 100_000, 1, 134_305_611, momentum=0.99, divisor="images"
)  # "heavy learning": one whole image, a sum over its pixels
SEGNET = Recipe(
    1e-3, doubled(5e-4) | {"scale": (1, 5e-4), "shift": (1, 0)}, 40_000, 4, 29_449_355, class_weights="median_frequency"
)
UNET = Recipe(
    1e-3, doubled(0), 20_000, 1, 31_030_658, momentum=0.99, loss=BorderCrossEntropy, class_weights="inverse", normalised=None,
    tile=(572, 572),
)  # rate, steps and decay are not the paper's, which names none  # fmt: skip
DEEPLAB_V1 = Recipe(
    1e-3, doubled(5e-4) | TEN_TIMES, 6_000, 20, 20_495_179, schedule=Step(every=2000, gamma=0.1), tile=(321, 321), new="fc8",
    mirrored=("x",),
)  # fmt: skip
RESEG = Recipe(
    1.0, {"weight": (1, 0), "bias": (1, 0)}, 40_000, 5, 806_661, optimizer=torch.optim.Adadelta, momentum=0, divisor="images",
    class_weights="median_frequency",
)  # the steps are not the release's, which stops by patience  # fmt: skip
RECIPES = {
    "fcn32s": FCN32S,
    "fcn16s": replace(FCN32S, lr=1e-12, learning=134_311_254, parent="fcn32s"),
    "fcn8s": replace(FCN32S, lr=1e-14, learning=134_314_081, parent="fcn16s"),
    "fcn8s_atonce": replace(FCN32S, steps=300_000, learning=134_314_081),
    "fcn_alexnet": Recipe(
        1e-4, {"weight": (1, 5e-4), "bias": (1, 5e-4), "new weight": (1, 5e-4), "new bias": (2, 0)}, 100_000, 20, 56_913_291,
        normalised=CAFFE, new="score_fr",
    ),
    "fcn_googlenet": Recipe(5e-5, doubled(2e-4), 100_000, 20, 5_984_827, normalised=CAFFE),
    "segnet": SEGNET,
    "bayesian_segnet": replace(SEGNET, steps=60_000),
    "segnet_basic": replace(
        SEGNET, lr=0.1, rates=doubled(5e-4) | {"scale": (1, 5e-4), "shift": (1, 5e-4)}, steps=10_000, learning=1_416_587,
        normalised=None,
    ),
    "unet_paper": UNET,
    "unet_release": replace(UNET, learning=31_100_354),
    "deeplab_v1": DEEPLAB_V1,
    # Only fc8 and what scores the image and the poolings: 1,192,576 + 645 K, and 1025 K, for K classes.
    "deeplab_v1_msc": replace(
        DEEPLAB_V1, rates=doubled(5e-4), learning=1_192_576 + (645 + 1025) * 11, new="nothing", parent="deeplab_v1"
    ),
    "deeplab_v2_vgg16": replace(DEEPLAB_V1, steps=20_000, batch=10, learning=37_836_652, schedule=Poly(power=0.9)),
    "deeplab_v2": Recipe(
        2.5e-4, {"weight": (1, 5e-4)} | TEN_TIMES, 20_000, 10, 43_205_868, schedule=Poly(power=0.9), tile=(321, 321), new="fc1_c",
        mirrored=("x",), scale=(0.5, 1.5),
    ),
    "reseg": RESEG,
    "reseg_release": replace(RESEG, learning=669_861),
}  # fmt: skip


@functools.cache
def composed(*words: str) -> tuple[dict[str, Any], ...]:
    """The configuration of a command and, after it, those of the runs that it starts from, one from the next."""
    found: list[dict[str, Any]] = []

    def collect(config: dict[str, Any]) -> int:
        found.append(config)
        while wanted := found[-1]["init_from"]:
            found.append(compose.again({"init_from": None, **wanted}))
        return 0

    assert compose.run("train", words, collect) == 0
    return tuple(found)


def command(name: str) -> tuple[str, ...]:
    """The words of the command in the head of a recipe's file."""
    words = command_words((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[1].removeprefix("# "))
    assert words is not None
    return tuple(words[1:])


@functools.cache
def made(name: str) -> tuple[dict[str, Any], Parts, nn.Module]:
    """The configuration of a recipe's own command, its parts, and its network without numbers."""
    config = composed(*command(name))[0]
    built = parts(config)
    _, channels, classes = PICTURES[built.dataset.name]
    with torch.device("meta"):
        return config, built, build_network(config["model"], (), channels, classes)


def learning(network: nn.Module, new: str) -> Iterator[tuple[int, str]]:
    """Identity and kind of each parameter that learns."""
    for path, module in network.named_modules():
        normalisation = isinstance(module, nn.BatchNorm2d)
        for name, value in module.named_parameters(recurse=False):
            if value.requires_grad:
                kind = name.partition("_")[0]  # weight_in and weight_hid of a recurrent unit are weights
                kind = {"weight": "scale", "bias": "shift"}[kind] if normalisation else kind
                yield id(value), f"new {kind}" if re.match(new, path) else kind


def test_every_recipe_is_in_the_table() -> None:
    assert sorted(RECIPES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_at_the_papers_rate_and_decays_as_there(name: str) -> None:
    recipe, (config, built, network) = RECIPES[name], made(name)
    kinds = dict(learning(network, recipe.new))
    optimizer = built.make_optimizer(parameter_groups(network, built.settings.groups, config["optimizer"]["lr"]))
    found: dict[str, set[tuple[float, float]]] = {}
    for group in optimizer.param_groups:
        for value in group["params"]:
            found.setdefault(kinds.pop(id(value)), set()).add((round(group["lr"] / recipe.lr, 9), group["weight_decay"]))
    assert not kinds  # none is left out
    assert found == {kind: {rate} for kind, rate in recipe.rates.items()}
    assert sum(value.numel() for group in optimizer.param_groups for value in group["params"]) == recipe.learning


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_the_papers(name: str) -> None:
    recipe, (config, built, network) = RECIPES[name], made(name)
    optimizer = built.make_optimizer(parameter_groups(network, (), recipe.lr))
    assert type(optimizer) is recipe.optimizer
    assert config["optimizer"]["lr"] == recipe.lr
    assert optimizer.defaults.get("momentum", 0) == recipe.momentum
    if recipe.optimizer is torch.optim.Adadelta:
        assert (optimizer.defaults["rho"], optimizer.defaults["eps"]) == (0.95, 1e-6)
    else:
        assert (optimizer.defaults["nesterov"], optimizer.defaults["dampening"]) == (False, 0)
    assert built.schedule == recipe.schedule
    settings = built.settings
    assert (settings.steps, settings.batch_size, settings.clip, settings.ema) == (recipe.steps, recipe.batch, None, None)
    assert (settings.minutes, settings.patience) == (None, None)
    # Batch normalisation's statistics are measured anew, as SegNet's authors do.
    assert (settings.norm_statistics is not None) == ("segnet" in name)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_papers_sum_over_its_divisor(name: str) -> None:
    recipe, (config, built, _) = RECIPES[name], made(name)
    assert config["loss"]["class_weights"] == recipe.class_weights
    classes = len(built.dataset.classes)
    counts = list(range(1, classes + 1))
    loss = build(
        config["loss"], "loss", num_classes=classes, class_counts=counts, present_counts=[100] * classes,
        background=built.dataset.background,
    )  # fmt: skip
    assert type(loss) is recipe.loss
    logits = torch.randn(2, classes, 6, 7, generator=torch.Generator().manual_seed(0))
    label = torch.full((2, 6, 7), classes - 1)  # of one class, so that there is nothing between two objects
    label[0, :4] = 255
    weight = {
        None: 1.0,
        "inverse": sum(counts) / (classes * counts[-1]),
        "median_frequency": sorted(counts)[classes // 2] / counts[-1],
    }[recipe.class_weights]
    total = weight * functional.cross_entropy(logits, label, ignore_index=255, reduction="sum")
    torch.testing.assert_close(loss(logits, label), total / {"pixels": 2 * 42 - 28, "images": 2}[recipe.divisor])
    if recipe.loss is BorderCrossEntropy:
        assert (loss.w0, loss.sigma) == (10, 5)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_what_the_papers_networks_see(name: str) -> None:
    recipe, (config, built, network) = RECIPES[name], made(name)
    if recipe.normalised is None:  # as the data set has it
        assert not isinstance(built.normalisation, FixedNormalisation)
    else:
        assert isinstance(built.normalisation, FixedNormalisation)
        assert (built.normalisation.mean, built.normalisation.std) == recipe.normalised
    size, window = PICTURES[built.dataset.name][0], config["data"]["window"]
    assert tuple(side + 2 * margin for side, margin in zip(window, margin_of(network)[1:], strict=True)) == recipe.tile
    assert config["data"]["balance"] == 0  # windows are drawn from everywhere alike
    assert window_size(window, [SimpleNamespace(shape=(1, *size))]) == (1, *window)
    assert min(window) >= network.min_train_size
    assert built.settings.batch_size % built.settings.accumulate == 0
    assert built.settings.batch_size // built.settings.accumulate >= getattr(network, "min_train_batch", 1)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("unet")])
def test_images_are_mirrored_and_scaled_as_in_the_paper_and_not_changed_else(name: str) -> None:
    recipe, augment = RECIPES[name], made(name)[1].augment
    assert vars(augment.symmetry) == {"flips": recipe.mirrored, "rot90": False, "swap": {}}
    assert (augment.elastic, augment.intensity) == (None, {})
    if recipe.scale == (1, 1):
        assert augment.affine is None
    else:
        assert augment.affine == Affine(probability=1, rotation=0, scale=recipe.scale, translation=0)


@pytest.mark.parametrize("name", ["unet_paper", "unet_release"])
def test_the_whole_tile_is_bent_by_10_pixels_at_3_by_3_places(name: str) -> None:
    augment = made(name)[1].augment
    assert augment.elastic.probability == 1
    fields = np.stack([augment.draw(0, index, (1, *RECIPES[name].tile), (1.0, 1.0, 1.0))["elastic.field"] for index in range(300)])
    assert fields.shape == (300, 3, 1, 3, 3)  # along z, y and x
    assert not fields[:, 0].any()
    assert fields[:, 1:].std() == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("name", [name for name in NAMES if RECIPES[name].parent])
def test_what_a_recipe_starts_from_is_its_papers_own_recipe(name: str) -> None:
    # A rate and a file that are given for this run must not become the rate of the one before it.
    given = (*command(name), "training.log_every=7", *(["optimizer.lr=0.5"] if name.startswith("fcn") else []))
    child, *before = composed(*given)
    assert child["model"]["weights"] is None
    expected, parent = [], RECIPES[name].parent
    while parent:
        expected.append((parent, parent, RECIPES[parent].lr))
        parent = RECIPES[parent].parent
    assert [(c["chosen"]["experiment"], c["chosen"]["model"], c["optimizer"]["lr"]) for c in before] == expected
    assert before[-1]["model"]["weights"] == "imagenet"
    assert all(config["training"]["log_every"] == 7 and config["data"] == child["data"] for config in before)
    with torch.device("meta"):
        own, last = (build_network(config["model"], (), 3, 11).state_dict() for config in (child, before[0]))
    # What it starts from holds all its layers but for the new ones and the last up-sampling.
    new = {"fcn16s": r"upscore|score_pool4", "fcn8s": r"upscore|score_pool3", "deeplab_v1_msc": r"(data|pool\d)_(conv|fc|ms)"}[name]
    assert {key for key in own if key not in last or own[key].shape != last[key].shape} <= {k for k in own if re.match(new, k)}
    assert all(re.match(new, key) or key in own for key in last)


def test_a_recipe_with_mirrorings_of_its_own_takes_no_turns_and_swaps_from_the_data_set() -> None:
    (config,) = composed("experiment=deeplab_v2", "data=satellite", "+data.symmetry.swap.x=[[1,2]]")
    assert config["data"]["symmetry"] == {"flips": ["y", "x"], "rot90": True, "swap": {"x": [[1, 2]]}}
    assert vars(parts(config).augment.symmetry) == {"flips": ("x",), "rot90": False, "swap": {}}


@pytest.mark.parametrize("pair", ["[1,0]", "[water,field]"])
@pytest.mark.parametrize("augment", ["default", "none"])
def test_classes_that_change_places_are_known_after_training_too(pair: str, augment: str) -> None:
    words = ("data=satellite", f"augment={augment}", "data.symmetry.rot90=false", f"+data.symmetry.swap.x=[{pair}]")
    (config,) = composed(*words)
    built, trained = parts(config), parts(config, trained=True)
    assert built.augment.symmetry.swap == ({"x": ((1, 0),)} if augment == "default" else {})
    assert built.symmetry == trained.symmetry == Symmetry(("y", "x"), swap={"x": [[1, 0]]})
    assert trained.augment.symmetry == Symmetry()


real = pytest.mark.skipif(not Path(DATA).is_dir() or not DATA, reason="VOXTILE_DATA names no folder of real data sets")


@real
@pytest.mark.parametrize("data", PICTURES)
def test_the_windows_of_the_recipes_fit_the_real_pictures(data: str) -> None:
    names = [name for name in NAMES if f"data={data}" in command(name)]
    assert names
    config = made(names[0])[0]
    layout = {**config["data"]["layout"], "root": str(Path(DATA) / Path(config["data"]["layout"]["root"]).name)}
    cases = parts({**config, "data": {**config["data"], "layout": layout}}).dataset.cases()
    size, channels, classes = PICTURES[data]
    assert {case.shape[1:] for case in cases} == {size}
    assert {len(case.channels) for case in cases} == {channels}
    assert len(made(names[0])[1].dataset.classes) == classes
    for name in names:
        window_size(made(name)[0]["data"]["window"], cases)


@real
def test_the_sides_of_the_stack_of_sections_are_apart(tmp_path: Path) -> None:
    (config,) = composed("data=isbi2012", f"paths.data={DATA}")
    built = parts(config)
    split = prepare(built.dataset, built.scheme, built.normalisation, tmp_path).split
    sections = {
        side: {z for case in cases for z in range(case.box.start[0], case.box.stop[0])} for side, cases in split.sides.items()
    }
    assert {side: len(found) for side, found in sections.items()} == {"train": 11, "val": 4, "test": 5}
    for side, other in itertools.combinations(sections.values(), 2):
        assert min(abs(a - b) for a in side for b in other) > 2  # two sections between them
