"""One step's gradient is that of the whole batch's loss; all that a whole run shows is tested in tests/commands."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from voxtile.data.augment import Augment
from voxtile.data.batches import Batch, collate
from voxtile.data.normalise import Intensity
from voxtile.models.network import Output, ScoreMap
from voxtile.training.losses import BorderCrossEntropy, Dice, Loss
from voxtile.training.module import SegmentationModule
from voxtile.training.schedules import Constant
from voxtile.training.settings import Settings
from voxtile.training.trainer import bare_trainer

MARGIN, WEIGHT = 3, 0.3
ROWS, COLUMNS = torch.tensor([0, 4, -1]), torch.tensor([1, 5])  # of the image, which judge the coarse map


class TwoMaps(nn.Module):
    """Logits at the image's size, and others at a few of its rows and columns."""

    margin = MARGIN

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

    def forward(self, image: Tensor, context: int = 0) -> Output:
        inner = image[..., context:-context, context:-context]
        return Output([ScoreMap(self.fine(inner)), ScoreMap(self.coarse(inner)[:, :, ROWS][..., COLUMNS], ROWS, COLUMNS, WEIGHT)])


def batch(count: int, height: int, width: int) -> Batch:
    """Random pixels and labels, which are read with the margin; neither normalised nor augmented."""
    rng, size = np.random.default_rng(0), (1, height, width)
    still = Intensity((-math.inf,), (math.inf,), (0.0,), (1.0,)).arrays() | {"valid": np.ones(size, dtype=bool), "case": 0}
    return collate(
        still
        | {"image": rng.normal(size=(1, *size)).astype(np.float32), "label": (rng.random(size) < 0.2).astype(np.uint8)}
        | {"augment": Augment().draw(0, index, size, (1.0, 1.0, 1.0))}
        for index in range(count)
    )


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("loss", [BorderCrossEntropy(num_classes=2, background=0), Dice(num_classes=2, background=0)])
def test_a_step_goes_down_the_gradient_of_all_maps_each_judged_by_its_own_pixels(loss: Loss, parts: int) -> None:
    """A map of the image's size is judged with the margin of the label around it, and a coarser one without."""
    torch.manual_seed(0)
    network, given = TwoMaps(), batch(5, 14, 12)
    before = copy.deepcopy(network)
    module = SegmentationModule(
        network, loss, Augment(), lambda groups: torch.optim.SGD(groups, lr=1.0), Constant(), Settings(1, 5, accumulate=parts), 0,
        ("ground", "disc"), 0, ["a"], ["b"], lambda model: model.parameters(),
    )  # fmt: skip
    with bare_trainer([], max_epochs=1, limit_val_batches=0, logger=False, accelerator="cpu") as trainer:
        trainer.fit(module, *[DataLoader([given], batch_size=None)] * 2)

    label = given["label"][:, 0]
    inner = label[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    picked = torch.full((5, 3, 2), 255, dtype=torch.uint8)  # the last row is judged by none
    picked[:, :2] = inner[:, [0, 4]][:, :, [1, 5]]
    fine, coarse = (each.logits for each in before(given["image"][:, :, 0], context=MARGIN).maps)
    whole = loss.value(loss.statistics(fine, label, margin=MARGIN)) + WEIGHT * loss.value(loss.statistics(coarse, picked))
    whole.backward()
    assert module.last_loss == pytest.approx(whole.item(), rel=1e-5)
    for name, weight in before.named_parameters():
        assert weight.grad.abs().max() > 1e-4, name
        torch.testing.assert_close(network.get_parameter(name).detach(), (weight - weight.grad).detach(), rtol=1e-4, atol=1e-6)
    cut = loss.value(loss.statistics(fine, inner))  # what judging without the margin would give
    assert isinstance(loss, Dice) or not torch.isclose(cut, loss.value(loss.statistics(fine, label, margin=MARGIN)), rtol=1e-3)
