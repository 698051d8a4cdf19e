"""Parameters, time and memory per megapixel of each network in evaluation, as ratios to the practical U-Net in the same run.

python bench/models.py [--gpu] [option …]

Each network is built at its paper's width, with 3 channels and 5 classes. On the CPU it judges one image of 512x512 pixels, in a
process of its own, with two threads; memory is what the pass adds to the process's peak. With `--gpu` it judges eight images, in
float32 and in bfloat16, and takes steps of training on eight in bfloat16; memory is the GPU's peak in such a step.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from voxtile.models.network import logits_of, score_maps

MODELS = Path(__file__).resolve().parents[1] / "conf" / "model"
OPTIONS = (
    "unet", "unet_paper", "unet_release", "fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce", "fcn_alexnet", "fcn_googlenet", "segnet",
    "segnet_basic", "bayesian_segnet", "deeplab_v1", "deeplab_v1_4x4", "deeplab_v1_7x7", "deeplab_v1_msc", "deeplab_v2_vgg16",
    "deeplab_v2", "reseg", "reseg_release", "monai/unet", "monai/attention_unet", "monai/segresnet", "monai/swin_unetr",
    "monai/basic_unet_plusplus", "monai/dynunet", "smp/unet", "smp/deeplabv3plus", "smp/pspnet", "smp/fpn", "smp/upernet",
    "smp/segformer", "torchvision/fcn_resnet50", "torchvision/deeplabv3_resnet50", "torchvision/lraspp_mobilenet_v3_large",
)  # fmt: skip
SIDE, BATCH = 512, 8


def measure(option: str) -> dict[str, float]:
    """Parameters, seconds and GiB per megapixel of one network."""
    torch.set_num_threads(2)
    network = built(option).eval()
    image = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        network(image[:, :, :64, :64])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = []
        for _ in range(3):
            began = time.perf_counter()
            network(image)
            times.append(time.perf_counter() - began)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    pixels = SIDE * SIDE / 1e6
    return {
        "parameters": sum(value.numel() for value in network.parameters()),
        "seconds": sorted(times)[1] / pixels,
        "gib": grown / 2**20 / pixels,
        "stride": network.stride,
    }


def built(option: str) -> torch.nn.Module:
    config = OmegaConf.load(MODELS / f"{option}.yaml")
    if "width" in config:
        config.width = 1.0
    network: torch.nn.Module = instantiate(config, in_channels=3, num_classes=5)
    return network


def seconds_on_gpu(work: Callable[..., object], *given: object, repeats: int = 5) -> float:
    """Of one call, the median of some, once it has warmed up."""
    times = []
    for _ in range(3 + repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work(*given)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times[3:])[repeats // 2]


def measure_on_gpu(option: str) -> dict[str, float]:
    """Milliseconds per megapixel of judging and of training, and GiB per megapixel of training."""
    network = built(option).cuda().to(memory_format=torch.channels_last)
    image = torch.randn(BATCH, 3, SIDE, SIDE, device="cuda").to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)

    def judge(precision: torch.dtype) -> None:
        with torch.inference_mode(), torch.autocast("cuda", precision, enabled=precision != torch.float32):
            logits_of(network, image)

    def train() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = sum(each.logits.float().square().mean() for each in score_maps(logits_of(network, image)))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()

    pixels = BATCH * SIDE * SIDE / 1e6
    network.eval()
    single, half = (1e3 * seconds_on_gpu(judge, each) / pixels for each in (torch.float32, torch.bfloat16))
    network.train()
    torch.cuda.reset_peak_memory_stats()
    trained = 1e3 * seconds_on_gpu(train) / pixels
    return {"single": single, "half": half, "train": trained, "gib": torch.cuda.max_memory_allocated() / 2**30 / pixels}


def main_on_gpu(options: Sequence[str]) -> None:
    """Prints one line per network."""
    floor = 0.0
    print(torch.cuda.get_device_name(0))
    print("milliseconds per megapixel")
    print(f"{'network':<38} {'float32':>8} {'bfloat16':>8} {'train':>8} {'GiB/Mpx':>8} {'train against unet':>18}")
    for option in options or OPTIONS:
        try:
            found = measure_on_gpu(option)
        except RuntimeError as error:
            print(f"{option:<38} {str(error).splitlines()[0]}", flush=True)
            continue
        finally:
            torch.cuda.empty_cache()
        floor = floor or found["train"]
        print(
            f"{option:<38} {found['single']:>8.2f} {found['half']:>8.2f} {found['train']:>8.2f} {found['gib']:>8.2f} "
            f"{found['train'] / floor:>18.2f}",
            flush=True,
        )


def main() -> None:
    """Prints one line per network."""
    floor = 0.0
    print(f"{'network':<28} {'parameters':>12} {'stride':>6} {'s/Mpx':>7} {'GiB/Mpx':>8} {'time against unet':>18}")
    for option in sys.argv[1:] or OPTIONS:
        done = subprocess.run([sys.executable, __file__, "--one", option], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        floor = floor or found["seconds"]
        print(
            f"{option:<28} {found['parameters']:>12,.0f} {found['stride']:>6} {found['seconds']:>7.1f} {found['gib']:>8.2f} "
            f"{found['seconds'] / floor:>18.2f}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2])))
    elif sys.argv[1:2] == ["--gpu"]:
        main_on_gpu(sys.argv[2:])
    else:
        main()
