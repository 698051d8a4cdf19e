"""torch.compile agrees with eager, where a compiler is present."""

import shutil

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.testers.networks import noise, perturbed
from voxtile.commands.compose import conf_dir

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")]
# ReSeg is left out: the compiler unrolls its sweeps, which takes minutes; `deeplab_v2` has 101 blocks at three scales.
OPTIONS = ("unet", "unet_paper", "fcn8s", "fcn_alexnet", "fcn_googlenet", "segnet", "segnet_basic", "deeplab_v1", "deeplab_v1_msc")


@pytest.mark.parametrize("option", OPTIONS)
def test_a_compiled_network_gives_the_same_logits(option: str) -> None:
    torch.manual_seed(0)
    config = OmegaConf.load(conf_dir() / "model" / f"{option}.yaml")
    config.width = 1 / 16
    network, image = perturbed(instantiate(config, in_channels=3, num_classes=4)).eval(), noise(1, 3, 40, 50)
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(network)(image), network(image), rtol=1e-3, atol=1e-4)
