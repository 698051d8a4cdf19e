"""torch.compile agrees with eager, where a compiler is present."""

import shutil

import pytest
import torch

from tests.testers.networks import by_formula, configured, noise, varied

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")]
# One build of each kind of network, as small as it can be and still have all that the kind has.
BUILDS = {
    "unet": {},
    "unet_paper": {},
    "unet_release": {},
    "fcn8s": {},
    "fcn_alexnet": {},
    "fcn_googlenet": {},
    "segnet": {},
    "segnet_basic": {},
    "bayesian_segnet": {},
    "deeplab_v1": {},
    "deeplab_v1_msc": {},
    "deeplab_v2_vgg16": {},
    "deeplab_v2": {"depth": 50, "scales": [1.0]},
    "reseg": {},
    "reseg_release": {},
}
SIZES = {"reseg": (8, 12), "reseg_release": (8, 12)}  # the compiler unrolls sweeps, step by step


@pytest.mark.parametrize("option", BUILDS)
def test_a_compiled_network_gives_the_same_logits(option: str) -> None:
    network = by_formula(configured(option, 3, 4, width=1 / 16, **BUILDS[option])).eval()
    image = noise(1, 3, *SIZES.get(option, (40, 50)))
    with torch.inference_mode():
        expected = varied(network(image))
        torch.testing.assert_close(torch.compile(network)(image), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
