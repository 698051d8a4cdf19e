import math
from types import ModuleType

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.testers.losses import CLASSES, COUNTS, DEALS, LossTester, batch, dealt_gradient, gradients, network, whole_gradient
from voxtile.cases.window import IGNORE
from voxtile.errors import ConfigError
from voxtile.training.border_weights import border_weights
from voxtile.training.class_weights import class_weight_table
from voxtile.training.losses import BorderCrossEntropy, CrossEntropy, Dice, DiceCrossEntropy, Focal, Loss, Sum

WEIGHTS = [0.5, 1.0, 3.0]
REGIONS = ((1, 2), (2,))


class TestCrossEntropy(LossTester):
    def make(self) -> Loss:
        return CrossEntropy(num_classes=CLASSES, **COUNTS)


class TestSmoothedCrossEntropyWithClassWeights(LossTester):
    def make(self) -> Loss:
        return CrossEntropy(num_classes=CLASSES, **COUNTS, class_weights="median_frequency", label_smoothing=0.1)


class TestCrossEntropyDividedByPixels(LossTester):
    def make(self) -> Loss:
        return CrossEntropy(num_classes=CLASSES, **COUNTS, class_weights=WEIGHTS, divide_by="pixels")


class TestCrossEntropyDividedByImages(LossTester):
    def make(self) -> Loss:
        return CrossEntropy(num_classes=CLASSES, **COUNTS, class_weights=WEIGHTS, divide_by="images")


class TestBorderCrossEntropy(LossTester):
    def make(self) -> Loss:
        return BorderCrossEntropy(num_classes=CLASSES, background=0, **COUNTS, class_weights="inverse")


class TestFocal(LossTester):
    def make(self) -> Loss:
        return Focal(num_classes=CLASSES, **COUNTS, class_weights="inverse")


class TestDice(LossTester):
    def make(self) -> Loss:
        return Dice(num_classes=CLASSES, background=0)


class TestDiceWithoutSmoothing(LossTester):
    def make(self) -> Loss:
        return Dice(num_classes=CLASSES, background=0, include_background=True, smooth=0.0)


class TestDicePerSample(LossTester):
    def make(self) -> Loss:
        return Dice(num_classes=CLASSES, background=0, batch=False)


class TestDiceOfRegions(LossTester):
    def make(self) -> Loss:
        return Dice(num_classes=CLASSES, background=0, regions=REGIONS)


class TestDiceOfRegionsPerSample(LossTester):
    def make(self) -> Loss:
        return Dice(num_classes=CLASSES, background=0, regions=REGIONS, batch=False)


class TestDiceOfRegionsAndCrossEntropy(LossTester):
    def make(self) -> Loss:
        return DiceCrossEntropy(num_classes=CLASSES, background=0, **COUNTS, regions=REGIONS)


class TestDiceCrossEntropy(LossTester):
    def make(self) -> Loss:
        return DiceCrossEntropy(num_classes=CLASSES, background=0, **COUNTS, class_weights="inverse", dice_weight=0.5)


class TestDicePerSampleAndCrossEntropy(LossTester):
    def make(self) -> Loss:
        return DiceCrossEntropy(num_classes=CLASSES, background=0, **COUNTS, batch=False)


@pytest.fixture(scope="module")
def monai() -> ModuleType:
    """MONAI's losses, imported late because that takes longer than all the tests here."""
    from monai import losses

    return losses


def judged(space: tuple[int, ...] = (6, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    """The judged pixels of a batch as one sample: scores [1, K, N] and labels [1, N], for libraries without ignored pixels."""
    logits, label = batch(space)
    valid = label != IGNORE
    return logits.movedim(1, -1)[valid].T[None], label[valid][None]


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(num_classes=CLASSES),
        CrossEntropy(num_classes=CLASSES, class_weights=WEIGHTS),
        Focal(num_classes=CLASSES),
        Dice(num_classes=CLASSES),
        Dice(num_classes=CLASSES, batch=False),
        DiceCrossEntropy(num_classes=CLASSES),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_mean_of_the_parts_means_is_another_gradient(loss: Loss) -> None:
    """What `surrogate` is for: the tests of exactness above would fail with the obvious code."""
    space = (3, 4, 3)  # its samples hold different numbers of classes too
    image, label = batch(space, channels=2)
    model = network(space)
    for part in DEALS[0]:
        (loss(model(image[part]), label[part]) / len(DEALS[0])).backward()
    exact = whole_gradient(loss, space)
    assert (gradients(model) - exact).norm() > 0.03 * exact.norm()


def test_shares_are_exact_over_ranks_with_micro_batches() -> None:
    loss = DiceCrossEntropy(num_classes=CLASSES)
    ranks = [[[0], [3]], [[1], [2]]]
    micro_batches = [part for rank in ranks for part in rank]
    torch.testing.assert_close(dealt_gradient(loss, micro_batches, (6, 5)), whole_gradient(loss, (6, 5)))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_torch(weights: list[float] | None, smoothing: float) -> None:
    logits, label = batch((6, 5))
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = cross_entropy(logits, label, weight=weight, ignore_index=IGNORE, label_smoothing=smoothing)
    torch.testing.assert_close(
        CrossEntropy(num_classes=CLASSES, class_weights=weights, label_smoothing=smoothing)(logits, label), expected
    )


def test_cross_entropy_divided_by_pixels_is_that_of_caffe_segnet() -> None:
    logits, label = batch((6, 5))
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    expected = cross_entropy(logits, label, weight=weight, ignore_index=IGNORE, reduction="sum") / (label != IGNORE).sum()
    torch.testing.assert_close(
        CrossEntropy(num_classes=CLASSES, class_weights=WEIGHTS, divide_by="pixels")(logits, label), expected
    )


def test_cross_entropy_divided_by_images_is_a_sum_over_pixels() -> None:
    logits, label = batch((6, 5))
    expected = cross_entropy(logits, label, ignore_index=IGNORE, reduction="sum") / len(label)
    torch.testing.assert_close(CrossEntropy(num_classes=CLASSES, divide_by="images")(logits, label), expected)


def test_border_cross_entropy_adds_the_borders_weight_to_the_classs() -> None:
    logits, label = torch.randn(1, 2, 3, 5, dtype=torch.float64), torch.zeros(1, 3, 5, dtype=torch.uint8)
    label[0, :, 0] = label[0, :, 3:] = 1  # two objects, and two columns between them
    label[0, 0, 2] = IGNORE
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64)[torch.where(label == IGNORE, 0, label).long()]
    weight[:, :, 1:3] += 10 * math.exp(-((1 + 2) ** 2) / 50)  # one column to one of them, two to the other
    each = cross_entropy(logits, torch.where(label == IGNORE, 0, label).long(), reduction="none") * weight
    found = BorderCrossEntropy(num_classes=2, background=0, class_weights=[0.5, 2.0])(logits, label)
    torch.testing.assert_close(found, each[label != IGNORE].sum() / 14, rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match="names none"):
        BorderCrossEntropy(num_classes=2)


def test_border_cross_entropy_sees_objects_in_the_labels_margin() -> None:
    torch.manual_seed(0)
    whole = (torch.rand(2, 14, 12) < 0.2).to(torch.uint8)
    whole[0, 5, 5] = whole[1, 0, 0] = IGNORE
    logits, label = torch.randn(2, 2, 8, 6, dtype=torch.float64), whole[:, 3:-3, 3:-3]
    weights = (1 + border_weights(whole, 0))[:, 3:-3, 3:-3]
    valid = label != IGNORE
    each = cross_entropy(logits, torch.where(valid, label, 0).long(), reduction="none") * weights
    for divide_by, divisor in (("pixels", valid.sum()), ("weights", weights[valid].sum()), ("images", 2)):
        loss = BorderCrossEntropy(num_classes=2, background=0, divide_by=divide_by)
        statistics = loss.statistics(logits, whole, margin=3)
        torch.testing.assert_close(loss.value(statistics), each[valid].sum() / divisor, rtol=1e-6, atol=0)
        torch.testing.assert_close(loss.label_statistics(whole, margin=3)[1], statistics[1].float())
        assert abs(loss.value(statistics) / loss(logits, label) - 1) > 1e-3 or divide_by == "weights"


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(num_classes=CLASSES, class_weights=WEIGHTS, label_smoothing=0.1),
        Focal(num_classes=CLASSES),
        Dice(num_classes=CLASSES),
        Dice(num_classes=CLASSES, batch=False),
        DiceCrossEntropy(num_classes=CLASSES),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_labels_margin_is_nothing_to_other_losses(loss: Loss) -> None:
    logits, label = batch((6, 5))
    whole = torch.ones(4, 10, 9, dtype=torch.long)
    whole[:, 2:-2, 2:-2] = label
    assert torch.equal(loss.statistics(logits, whole, margin=2), loss.statistics(logits, label))
    assert torch.equal(loss.label_statistics(whole, margin=2), loss.label_statistics(label))
    with pytest.raises(ValueError, match="do not fit a label"):
        loss.statistics(logits, whole, margin=1)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_that_of_monai(monai: ModuleType, gamma: float) -> None:
    scores, label = judged()
    theirs = monai.FocalLoss(gamma=gamma, weight=WEIGHTS, use_softmax=True, to_onehot_y=True, reduction="none")
    expected = theirs(scores, label[:, None]).sum() / label.numel()
    ours = Focal(num_classes=CLASSES, gamma=gamma, class_weights=WEIGHTS, divide_by="pixels")
    torch.testing.assert_close(ours(*batch((6, 5))), expected, check_dtype=False)


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    pair = batch((6, 5))
    torch.testing.assert_close(Focal(num_classes=CLASSES, gamma=0)(*pair), CrossEntropy(num_classes=CLASSES)(*pair))


def test_focal_has_a_finite_gradient_at_certain_pixels() -> None:
    logits = torch.tensor([[[200.0], [0.0], [0.0]]], requires_grad=True)
    Focal(num_classes=CLASSES, gamma=0.5)(logits, torch.tensor([[0]])).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("include_background", [True, False])
def test_dice_over_the_batch_is_that_of_monai(monai: ModuleType, include_background: bool) -> None:
    scores, label = judged()
    theirs = monai.DiceLoss(include_background, to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0, batch=True)
    expected = theirs(scores, label[:, None])
    ours = Dice(num_classes=CLASSES, background=0, include_background=include_background)
    torch.testing.assert_close(ours(*batch((6, 5))), expected, check_dtype=False)


def test_dice_per_sample_is_that_of_monai_where_every_class_occurs(monai: ModuleType) -> None:
    logits, _ = batch((6, 5))
    label = torch.arange(4 * 30).view(4, 6, 5) % CLASSES
    theirs = monai.DiceLoss(to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0)
    ours = Dice(num_classes=CLASSES, batch=False)
    torch.testing.assert_close(ours(logits, label), theirs(logits, label[:, None]), check_dtype=False)


def test_dice_per_sample_leaves_out_classes_that_the_sample_lacks() -> None:
    logits, _ = batch((6, 5))
    logits, label = logits[:2], torch.tensor([0, 1]).view(2, 1, 1).expand(2, 6, 5)
    probability = logits.softmax(dim=1)
    terms = [1 - (2 * p.sum() + 1) / (p.sum() + 30 + 1) for p in (probability[0, 0], probability[1, 1])]
    torch.testing.assert_close(Dice(num_classes=CLASSES, batch=False)(logits, label), sum(terms) / 2)
    torch.testing.assert_close(Dice(num_classes=CLASSES, background=0, batch=False)(logits, label), terms[1])


def test_dice_of_regions_is_monais_of_their_summed_probabilities(monai: ModuleType) -> None:
    scores, label = judged()
    probability, united = scores.softmax(dim=1), [torch.isin(label, torch.tensor(members)) for members in REGIONS]
    regions = torch.stack([probability[:, list(members)].sum(dim=1) for members in REGIONS], dim=1)
    theirs = monai.DiceLoss(smooth_nr=1.0, smooth_dr=1.0, batch=True)
    ours = Dice(num_classes=CLASSES, background=0, regions=REGIONS)
    torch.testing.assert_close(ours(*batch((6, 5))), theirs(regions, torch.stack(united, dim=1).double()), check_dtype=False)


@pytest.mark.parametrize("per_batch", [True, False])
def test_regions_of_one_class_each_are_the_foreground_classes(per_batch: bool) -> None:
    pair = batch((6, 5))
    plain = Dice(num_classes=CLASSES, background=0, batch=per_batch)
    united = Dice(num_classes=CLASSES, background=0, batch=per_batch, regions=((1,), (2,)))
    torch.testing.assert_close(united(*pair), plain(*pair), rtol=1e-12, atol=0)
    assert abs(Dice(num_classes=CLASSES, background=0, batch=per_batch, regions=REGIONS)(*pair) / plain(*pair) - 1) > 1e-2


def test_dice_of_regions_per_sample_leaves_out_those_that_the_sample_lacks() -> None:
    logits, _ = batch((6, 5))
    logits, label = logits[:2], torch.tensor([0, 1]).view(2, 1, 1).expand(2, 6, 5)
    whole = logits.softmax(dim=1)[1, 1:].sum()  # of the second sample, which has the first region and not the second
    expected = 1 - (2 * whole + 1) / (whole + 30 + 1)
    torch.testing.assert_close(Dice(num_classes=CLASSES, background=0, batch=False, regions=REGIONS)(logits, label), expected)


def test_regions_and_a_mean_that_includes_the_background_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"'loss\.include_background=true'.*'data\.regions=null'"):
        DiceCrossEntropy(num_classes=CLASSES, background=0, include_background=True, regions=REGIONS)


def test_sum_weights_its_members() -> None:
    pair = batch((6, 5))
    parts = [Dice(num_classes=CLASSES, background=0), CrossEntropy(num_classes=CLASSES), Focal(num_classes=CLASSES)]
    expected = 0.5 * parts[0](*pair) + 2 * parts[1](*pair) + 3 * parts[2](*pair)
    torch.testing.assert_close(Sum(parts, [0.5, 2, 3])(*pair), expected)
    both = DiceCrossEntropy(num_classes=CLASSES, background=0, dice_weight=0.5, cross_entropy_weight=2)
    torch.testing.assert_close(both(*pair), 0.5 * parts[0](*pair) + 2 * parts[1](*pair))


def test_a_sum_weighs_by_distance_where_a_member_does() -> None:
    plain, border = CrossEntropy(num_classes=CLASSES), BorderCrossEntropy(num_classes=CLASSES, background=0)
    assert Sum([plain, border], [1, 1]).by_distance
    assert not Sum([plain, plain], [1, 1]).by_distance


def test_inverse_weights_average_to_one_over_the_training_pixels() -> None:
    counts = [600, 300, 100]
    weights = class_weight_table("inverse", 3, counts)
    assert weights == pytest.approx([1000 / 1800, 1000 / 900, 1000 / 300])
    assert sum(w * n for w, n in zip(weights, counts, strict=True)) / sum(counts) == pytest.approx(1)


@pytest.mark.parametrize("rule", ["inverse", "median_frequency"])
def test_class_absent_from_training_gets_weight_zero_and_leaves_the_others_alone(rule: str) -> None:
    with_absent = class_weight_table(rule, 4, [600, 0, 300, 100], [1000, 0, 500, 500])
    without = class_weight_table(rule, 3, [600, 300, 100], [1000, 500, 500])
    assert with_absent == pytest.approx([without[0], 0, *without[1:]])
    assert class_weight_table(rule, 2, [0, 0], [0, 0]) == [0, 0]


def test_batch_of_weight_zero_has_loss_zero() -> None:
    logits = torch.randn(1, CLASSES, 4, 4, requires_grad=True)
    value = CrossEntropy(num_classes=CLASSES, class_weights=[0, 1, 1])(logits, torch.zeros(1, 4, 4, dtype=torch.long))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": "median-frequency"}, "Did you mean 'median_frequency'"),
        ({"class_weights": [1.0, 2.0]}, "3 numbers"),
        ({"class_weights": [1.0, -1.0, 2.0]}, "at least 0"),
        ({"class_weights": [1.0, math.nan, 2.0]}, "at least 0"),
        ({"class_weights": [0.0, 0.0, 0.0]}, "not all 0"),
        ({"class_weights": "inverse"}, "needs `class_counts`"),
        ({"class_weights": "median_frequency", "class_counts": [1, 1, 1]}, "needs `present_counts`"),
        ({"divide_by": "pixel"}, "choose from weights, pixels, images"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CrossEntropy(num_classes=CLASSES, **options)


@pytest.mark.parametrize(
    ("make", "name", "wrong"),
    [
        (Focal, "gamma", -1),
        (Dice, "smooth", -1),
        (DiceCrossEntropy, "smooth", -1),
        (DiceCrossEntropy, "dice_weight", -1),
        (DiceCrossEntropy, "cross_entropy_weight", -1),
        (BorderCrossEntropy, "w0", -1),
        (BorderCrossEntropy, "sigma", 0),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make: type[Loss], name: str, wrong: float) -> None:
    ground = {} if make is Focal else {"background": 0}
    for value in (wrong, math.nan, math.inf):
        with pytest.raises(ConfigError, match=rf"`loss\.{name}` .*{value}"):
            make(num_classes=CLASSES, **ground, **{name: value})


def test_a_sum_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of them more"):
        DiceCrossEntropy(num_classes=CLASSES, dice_weight=0, cross_entropy_weight=0)
