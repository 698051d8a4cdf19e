"""Every family of networks is the same one where it is exported to."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.testers.composing import ROOT
from voxtile.commands.allowed import without_weights
from voxtile.inference.exporting import exported, open_onnx, open_torch, save_onnx, save_torch
from voxtile.models.network import logits_of

OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_network_is_exported_and_takes_any_number_of_windows(option: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    config = without_weights(OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "model" / f"{option}.yaml")))
    torch.manual_seed(0)
    network = instantiate(config | ({"width": 0.125} if "width" in config else {}), in_channels=3, num_classes=4).eval()
    for parameter in network.parameters():  # scores that start at zero would agree with anything
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    side = 65 + 2 * int(network.margin)
    program = exported(network, (3, side, side))
    save_torch(program, tmp_path / "network.pt2", "{}")
    save_onnx(program, tmp_path / "network.onnx", "{}")
    for forward, tolerance in ((open_torch(tmp_path / "network.pt2"), 0), (open_onnx(tmp_path / "network.onnx"), 1e-4)):
        for count in (1, 3):
            image = torch.randn(count, 3, side, side)
            with torch.no_grad():
                wanted, found = logits_of(network, image), forward(image)
            assert wanted.abs().max() > 0
            assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
