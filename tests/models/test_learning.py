"""Learning, not only shapes: each family, small and from its stated scratch initialisation, overfits four real samples.

How well it must do is what its own up-sampling can express: FCN-32s cannot draw what scores 32 pixels apart cannot draw. The
bound is found by fitting the outputs of the network's score layers freely; the network must reach 0.97 of its Dice. Both must lie
well above what one class everywhere scores, or they would say nothing.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rasterio.windows import Window
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from voxtile.commands.compose import conf_dir
from voxtile.models.network import score_maps

pytestmark = pytest.mark.slow
SIDE = 65
MARGIN = 0.1  # of Dice, above one class everywhere
# Option: layers whose outputs are scores, rate and largest number of steps.
FAMILIES = {
    "fcn32s": (("score_fr",), 1e-3, 600),
    "fcn16s": (("score_fr", "score_pool4"), 1e-3, 600),
    "fcn8s": (("score_fr", "score_pool4", "score_pool3"), 1e-3, 600),
    # Its finer scores, scaled down for the features of a VGG16 that sees 0 to 255, count late: when its features have grown.
    "fcn8s_atonce": (("score_fr", "score_pool4", "score_pool3"), 1e-3, 1000),
    "fcn_alexnet": (("score_fr",), 1e-3, 600),
    "fcn_googlenet": (("score_fr",), 1e-3, 600),
    "segnet": (("conv1_1_D",), 3e-3, 400),
    "segnet_basic": (("conv_classifier",), 1e-2, 400),
    "bayesian_segnet": (("conv1_1_D",), 3e-3, 600),
    "unet": (("score",), 3e-3, 300),
    "unet_paper": (("conv_u0d_score",), 1e-3, 400),
    "deeplab_v1": (("fc8",), 1e-3, 800),
    "deeplab_v2_vgg16": (("fc8_1", "fc8_2", "fc8_3", "fc8_4"), 1e-3, 800),
    "deeplab_v2": (("fc1_c0", "fc1_c1", "fc1_c2", "fc1_c3"), 1e-3, 1000),
    "reseg": (("score",), 3e-3, 600),
}


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    """Four windows of Amazon forest with about as much of one class as of the other: image [4, 3, 65, 65], label [4, 65, 65]."""
    folder = Path(os.environ.get("VOXTILE_DATA", "")) / "amazon_forest" / "train"
    if not folder.is_dir():
        pytest.skip("needs the Amazon forest set in VOXTILE_DATA")
    images, labels = [], []
    for path in sorted((folder / "images").glob("*.tif")):
        window = Window(100, 100, SIDE, SIDE)
        with rasterio.open(folder / "labels" / path.name) as source:
            label = source.read(1, window=window) == 2
        if 0.3 < label.mean() < 0.7:
            with rasterio.open(path) as source:
                images.append(source.read(window=window).astype(np.float32))
            labels.append(label)
        if len(images) == 4:
            break
    stack = torch.from_numpy(np.stack(images))
    mean, std = stack.mean(dim=(0, 2, 3), keepdim=True), stack.std(dim=(0, 2, 3), keepdim=True)
    return (stack - mean) / std, torch.from_numpy(np.stack(labels)).long()


def dice(found: Tensor, label: Tensor) -> float:
    """Of class 1, of the classes found and of the true ones."""
    found, label = found == 1, label == 1
    return (2 * (found & label).sum() / (found.sum() + label.sum())).item()


@contextmanager
def free_scores(network: nn.Module, layers: tuple[str, ...]) -> Iterator[Collection[Tensor]]:
    """Numbers of their own in the place of what the score layers give, made when they are first asked for."""
    made: dict[tuple[str, int], Tensor] = {}
    calls: dict[str, int] = dict.fromkeys(layers, 0)

    def in_place_of(name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
            key = name, calls[name]  # a layer that sees several scales gives several maps
            calls[name] += 1
            if key not in made:
                made[key] = torch.zeros_like(output, requires_grad=True)
            return made[key]

        return hook

    handles = [network.get_submodule(name).register_forward_hook(in_place_of(name)) for name in layers]
    handles.append(network.register_forward_pre_hook(lambda *_: calls.update(dict.fromkeys(layers, 0))))
    yield made.values()
    for handle in handles:
        handle.remove()


def best_expressible(network: nn.Module, layers: tuple[str, ...], image: Tensor, label: Tensor) -> float:
    """The Dice that the network's up-sampling reaches with freely fitted scores."""
    network.eval()
    with free_scores(network, layers) as scores:
        network(image)
        optimizer = torch.optim.Adam(list(scores), lr=0.3)
        for _ in range(100):
            optimizer.zero_grad()
            logits = network(image)
            cross_entropy(logits, label).backward()
            optimizer.step()
        return dice(logits.argmax(dim=1), label)


@pytest.mark.parametrize("option", FAMILIES)
def test_a_family_overfits_four_samples_as_far_as_its_scores_can_draw_them(option: str, samples: tuple[Tensor, Tensor]) -> None:
    layers, rate, steps = FAMILIES[option]
    image, label = samples
    torch.manual_seed(0)
    config = OmegaConf.load(conf_dir() / "model" / f"{option}.yaml")
    config.width = 1 / 8
    if "full_size_loss" in config:  # the labels of every 64th pixel do not say how the others are to be drawn
        config.full_size_loss = True
    if "depth" in config and option == "deeplab_v2":
        config.depth = 50  # the paper's 101 blocks take twice the time to say the same
        config.scales = [1.0]  # normalisation that learns keeps one set of statistics, which three scales would have to share
    network = instantiate(config, in_channels=3, num_classes=2)
    one_class = dice(torch.ones_like(label), label)
    bound = best_expressible(network, layers, image, label)
    assert bound > one_class + MARGIN
    wanted = max(0.97 * bound, one_class + MARGIN)
    optimizer = torch.optim.Adam([value for value in network.parameters() if value.requires_grad], lr=rate)
    reached = 0.0
    for step in range(1, steps + 1):
        network.train()
        maps = score_maps(network(image))
        loss = sum(
            each.weight * cross_entropy(each.logits, each.label(label.to(torch.uint8)).long(), ignore_index=255) for each in maps
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            with torch.no_grad():
                reached = dice(network.eval()(image).argmax(dim=1), label)
            if reached >= wanted:
                break
    print(f"{option}: one class {one_class:.3f}, bound {bound:.3f}, reached {reached:.3f} after {step} steps")
    assert reached >= wanted
