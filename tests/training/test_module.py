"""What the module hands to its loss; all that a whole run shows is tested in tests/commands."""

import torch
from torch import nn

from voxtile.data.augment import Augment
from voxtile.models.network import ScoreMap
from voxtile.training.losses import BorderCrossEntropy
from voxtile.training.module import SegmentationModule
from voxtile.training.schedules import Constant
from voxtile.training.settings import Settings


def test_a_map_of_the_images_size_is_judged_with_the_labels_margin_and_a_coarser_one_without() -> None:
    network = nn.Conv2d(1, 2, 1)
    network.margin = 3
    loss = BorderCrossEntropy(num_classes=2, background=0)
    module = SegmentationModule(
        network, loss, Augment(), lambda groups: torch.optim.SGD(groups, lr=0.1), Constant(), Settings(1, 2), 0, ("ground", "disc"),
        0, ["a"], ["b"], lambda step, values: None, lambda model: model.parameters(),
    )  # fmt: skip
    torch.manual_seed(0)
    label = (torch.rand(2, 14, 12) < 0.2).to(torch.uint8)
    rows, columns = torch.tensor([0, 4, -1]), torch.tensor([1, 5])
    full, coarse = torch.randn(2, 2, 8, 6), torch.randn(2, 2, 3, 2)
    inner = label[:, 3:-3, 3:-3]
    picked = torch.full((2, 3, 2), 255, dtype=torch.uint8)
    picked[:, :2] = inner[:, [0, 4]][:, :, [1, 5]]
    maps = [ScoreMap(full), ScoreMap(coarse, rows, columns)]
    expected = torch.stack([loss.statistics(full, label, margin=3), loss.statistics(coarse, picked)])
    assert torch.equal(module._statistics(maps, label), expected)
    assert not torch.allclose(expected[0], loss.statistics(full, inner))
    known = torch.stack([loss.label_statistics(label, margin=3), loss.label_statistics(picked)])
    assert torch.equal(module._label_statistics(maps, [(full, label), (full, label)]), 2 * known)
