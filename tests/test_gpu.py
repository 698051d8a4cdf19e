"""What only a GPU shows; skipped where there is none."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from tests.commands.conftest import Command, homes
from tests.commands.conftest import voxtile as voxtile
from tests.testers.resuming import bits, ends
from tests.testers.tiny import scene_words, volume_words
from voxtile.training.sharding import gather, shard

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def on_gpu(words: list[str], *more: str) -> list[str]:
    return [*(word for word in words if word != "trainer=cpu"), "trainer=gpu", *more]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_killed_on_a_gpu_ends_in_the_same_bits(tmp_path: Path, precision: str) -> None:
    """Killed in a step and while a checkpoint is written, with dropout, an average of the weights, and half precision's scale."""
    words = on_gpu(scene_words(tmp_path), f"trainer.precision={precision}", "trainer.deterministic=true", "augment=strong")
    words += ["model.dropout=0.2", "training.steps=24", "training.ema=0.9"]
    undisturbed, disturbed = ([*words, f"paths.runs={tmp_path / name}"] for name in ("calm", "rough"))
    killed = [(disturbed, ("in a step, after its backward", 9)), (disturbed, ("while a checkpoint is written", 2))]
    codes = ends([(undisturbed, None), *killed, (disturbed, None)])
    assert codes == [0, -9, -9, 0]
    calm, rough = bits(tmp_path / "calm"), bits(tmp_path / "rough")
    for name, content in calm.items():
        assert rough[name] == content, name


@pytest.mark.parametrize("make", [scene_words, volume_words])
def test_training_on_a_gpu_agrees_with_the_cpu(tmp_path: Path, voxtile: Command, make: Callable[[Path], list[str]]) -> None:
    """The same samples and, but for rounding, the same losses."""
    words, losses = [*make(tmp_path), "augment=strong"], []
    for name, more in (("cpu", words), ("gpu", on_gpu(words, "trainer.precision=32-true"))):
        said = voxtile("train", *more, f"paths.runs={tmp_path / name}")
        assert said.code == 0, said.text
        (home,) = homes(tmp_path / name)
        rows = [row.split(",") for row in (home / "metrics.csv").read_text().splitlines()[1:]]
        losses.append([float(value) for _, name, value in rows if name == "train/loss"])
    assert len(losses[0]) == 6
    # Convolutions are in TF32, so that weights drift apart from the first step on.
    assert np.allclose(losses[0][0], losses[1][0], rtol=2e-3)
    assert np.allclose(losses[0][:3], losses[1][:3], rtol=3e-2)
    assert json.loads((home / "manifest.json").read_text())["hardware"]["gpus"] == [torch.cuda.get_device_name(0)]


def test_maps_and_scores_from_a_gpu_are_those_of_the_cpu(tmp_path: Path, voxtile: Command) -> None:
    words = scene_words(tmp_path)
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    heat, maps, scores = [], [], []
    for device in ("cpu", "cuda"):
        said = voxtile("predict", f"run={home}", f"input={tmp_path / 'scenes' / 'images'}", f"output={tmp_path / device}",
                       f"device={device}", "heatmaps=true", "mirrors=[x]", "batch_size=3")  # fmt: skip
        assert said.code == 0, said.text
        for number in range(6):
            with rasterio.open(tmp_path / device / f"s{number}.tif") as found:
                maps.append(found.read())
            with rasterio.open(tmp_path / device / f"s{number}_heatmap.tif") as found:
                heat.append(found.read())
        said = voxtile("evaluate", f"run={home}", "split=val", f"device={device}")
        assert said.code == 0, said.text
        scores.append(json.loads((home / "evaluations" / "val-best" / "summary.json").read_text())["scores"])
    assert np.allclose(heat[:6], heat[6:], atol=5e-3)  # convolutions in TF32
    assert np.mean(np.array(maps[:6]) == maps[6:]) > 0.99
    assert scores[0].keys() == scores[1].keys()
    assert abs(scores[0]["dice"] - scores[1]["dice"]) < 0.02


def test_weights_are_cut_over_gpus(tmp_path: Path) -> None:
    """What `trainer=fsdp` does to a network, in a process group of this one GPU."""
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).cuda()
        whole, image = copy.deepcopy(network), torch.randn(2, 3, 16, 16, device="cuda")
        shard(network)
        for each in (network, whole):
            optimizer = torch.optim.AdamW(each.parameters(), lr=0.1)
            with torch.autocast("cuda", torch.bfloat16):
                each(image).float().square().mean().backward()
            optimizer.step()
        gathered = copy.deepcopy(whole)
        gather(network, gathered)
        for own, other in zip(gathered.state_dict().values(), whole.state_dict().values(), strict=True):
            assert torch.allclose(own, other, atol=1e-3)
    finally:
        torch.distributed.destroy_process_group()
