"""Parameters, time and memory per megapixel of each network in evaluation, as ratios to the practical U-Net in the same run.

python bench/models.py [option …]

Each network is built at its paper's width in a process of its own, with 3 channels and 5 classes, and judges one image of 512x512
pixels. Memory is what the pass adds to the process's peak. Two threads.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

MODELS = Path(__file__).resolve().parents[1] / "conf" / "model"
OPTIONS = (
    "unet", "unet_paper", "unet_release", "fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce", "fcn_alexnet", "fcn_googlenet", "segnet",
    "segnet_basic", "bayesian_segnet", "deeplab_v1", "deeplab_v1_4x4", "deeplab_v1_7x7", "deeplab_v1_msc", "deeplab_v2_vgg16",
    "deeplab_v2", "reseg", "reseg_release", "monai/unet", "monai/attention_unet", "monai/segresnet", "monai/swin_unetr",
    "monai/basic_unet_plusplus", "monai/dynunet", "smp/unet", "smp/deeplabv3plus", "smp/pspnet", "smp/fpn", "smp/upernet",
    "smp/segformer", "torchvision/fcn_resnet50", "torchvision/deeplabv3_resnet50", "torchvision/lraspp_mobilenet_v3_large",
)  # fmt: skip
SIDE = 512


def measure(option: str) -> dict[str, float]:
    """Parameters, seconds and GiB per megapixel of one network."""
    torch.set_num_threads(2)
    config = OmegaConf.load(MODELS / f"{option}.yaml")
    if "width" in config:
        config.width = 1.0
    network = instantiate(config, in_channels=3, num_classes=5).eval()
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
    else:
        main()
