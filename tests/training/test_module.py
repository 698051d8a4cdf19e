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


class Maps(nn.Module):
    """Logits at the image's size, and others at a few of its rows and columns."""

    margin = MARGIN

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(1, 2, 1) for _ in range(count))

    def forward(self, image: Tensor, context: int = 0) -> Output:
        fine, *coarse = (layer(image[..., context:-context, context:-context]) for layer in self.layers)
        return Output([ScoreMap(fine), *(ScoreMap(each[:, :, ROWS][..., COLUMNS], ROWS, COLUMNS, WEIGHT) for each in coarse)])


def batch(count: int, height: int, width: int) -> Batch:
    """Random pixels and labels, which are read with the margin; neither normalised nor augmented."""
    rng, size = np.random.default_rng(0), (1, height, width)
    still = Intensity((-math.inf,), (math.inf,), (0.0,), (1.0,)).arrays() | {"valid": np.ones(size, dtype=bool), "case": 0}
    return collate(
        [
            still
            | {"image": rng.normal(size=(1, *size)).astype(np.float32), "label": (rng.random(size) < 0.2).astype(np.uint8)}
            | {"augment": Augment().draw(0, index, size, (1.0, 1.0, 1.0))}
            for index in range(count)
        ]
    )


def trained(network: nn.Module, loss: Loss, given: Batch, parts: int = 1) -> SegmentationModule:
    """After one step on a batch."""
    module = SegmentationModule(
        network, loss, Augment(), lambda groups: torch.optim.SGD(groups, lr=1.0), Constant(), Settings(1, 5, accumulate=parts), 0,
        ("ground", "disc"), 0, ["a"], ["b"], lambda model: model.parameters(),
    )  # fmt: skip
    with bare_trainer([], max_epochs=1, limit_val_batches=0, logger=False, accelerator="cpu") as trainer:
        trainer.fit(module, *[DataLoader([given], batch_size=None)] * 2)
    return module


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    ("loss", "count"), [(BorderCrossEntropy(num_classes=2, background=0), 1), (Dice(num_classes=2, background=0), 2)]
)
def test_a_step_goes_down_the_gradient_of_all_maps_each_judged_by_its_own_pixels(loss: Loss, count: int, parts: int) -> None:
    """A map of the image's size is judged with the margin of the label around it, and a coarser one without."""
    torch.manual_seed(0)
    network, given = Maps(count), batch(5, 14, 12)
    before = copy.deepcopy(network)
    module = trained(network, loss, given, parts)

    label = given["label"][:, 0]
    inner = label[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    picked = torch.full((5, 3, 2), 255, dtype=torch.uint8)  # the last row is judged by none
    picked[:, :2] = inner[:, [0, 4]][:, :, [1, 5]]
    fine, *coarse = (each.logits for each in before(given["image"][:, :, 0], context=MARGIN).maps)
    whole = loss.value(loss.statistics(fine, label, margin=MARGIN))
    for each in coarse:
        whole = whole + WEIGHT * loss.value(loss.statistics(each, picked))
    whole.backward()
    assert module.last_loss == pytest.approx(whole.item(), rel=1e-5)
    for name, weight in before.named_parameters():
        assert weight.grad.abs().max() > 1e-4, name
        torch.testing.assert_close(network.get_parameter(name).detach(), (weight - weight.grad).detach(), rtol=1e-4, atol=1e-6)
    cut = loss.value(loss.statistics(fine, inner))  # what judging without the margin would give
    assert isinstance(loss, Dice) or not torch.isclose(cut, loss.value(loss.statistics(fine, label, margin=MARGIN)), rtol=1e-3)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2, momentum=None), nn.InstanceNorm2d(2, track_running_stats=True)])
def test_parts_move_running_statistics_once_although_all_scores_are_looked_at_first(norm: nn.Module) -> None:
    network, given = nn.Sequential(nn.Conv2d(1, 2, 1), norm, nn.Conv2d(2, 2, 1)), batch(5, 14, 12)
    plain = copy.deepcopy(network).train()
    for part in given["image"][:, :, 0].tensor_split(2):
        plain(part)
    trained(network, Dice(num_classes=2, background=0), given, 2)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(network.get_buffer(name), buffer)
