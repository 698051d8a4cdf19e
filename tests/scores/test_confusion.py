import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
)

from voxtile.cases.window import IGNORE
from voxtile.scores.confusion import CaseConfusion, case_rows, class_scores, confusion_matrix, summarise

CLASSES = ["background", "lake", "road"]
K = len(CLASSES)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]

# Four cases: a road is missed in the second, falsely seen in the third, in neither label nor prediction of the fourth.
CASES = np.array(
    [
        [[40, 0, 0], [2, 6, 0], [0, 0, 4]],
        [[30, 2, 0], [0, 8, 0], [5, 0, 0]],
        [[10, 0, 3], [1, 9, 0], [0, 0, 0]],
        [[20, 0, 0], [0, 5, 0], [0, 0, 0]],
    ]
)


def maps(seed: int, shape: tuple[int, ...], classes: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction and a label of `shape`; about a fifth of the label is ignored."""
    generator = torch.Generator().manual_seed(seed)
    prediction, label = (torch.randint(0, classes, shape, generator=generator) for _ in range(2))
    label[torch.rand(shape, generator=generator) < 0.2] = IGNORE
    return prediction, label


def by_hand(prediction: torch.Tensor, label: torch.Tensor, classes: int) -> list[list[int]]:
    matrix = [[0] * classes for _ in range(classes)]
    for p, t in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
        if t != IGNORE:
            matrix[t][p] += 1
    return matrix


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 255), st.lists(st.integers(0, 6), min_size=1, max_size=3))
def test_confusion_matrix_counts_each_judged_pixel_once(seed: int, classes: int, shape: list[int]) -> None:
    prediction, label = maps(seed, tuple(shape), classes)
    matrix = confusion_matrix(prediction, label, classes)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == by_hand(prediction, label, classes)


@pytest.mark.parametrize("device", DEVICES)
def test_confusion_matrix_is_that_of_torchmetrics(device: str) -> None:
    prediction, label = (part.to(device) for part in maps(0, (3, 17, 19)))
    expected = multiclass_confusion_matrix(prediction, label, K, ignore_index=IGNORE)
    assert torch.equal(confusion_matrix(prediction, label, K), expected.cpu())


@pytest.mark.parametrize("kinds", [(torch.uint8, torch.uint8), (torch.int64, torch.uint8), (torch.uint8, torch.int64)])
def test_confusion_matrix_takes_any_integers_and_strides(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    prediction, label = maps(1, (7, 9))
    expected = confusion_matrix(prediction, label, K)
    given = prediction.to(kinds[0]).T.contiguous().T, label.to(kinds[1])
    assert torch.equal(confusion_matrix(*given, K), expected)


def test_prediction_at_ignored_pixels_may_be_anything() -> None:
    prediction, label = maps(2, (8, 8))
    expected = confusion_matrix(prediction, label, K)
    prediction[label == IGNORE] = IGNORE
    assert torch.equal(confusion_matrix(prediction, label, K), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("prediction", "label"), [(3, 0), (255, 0), (256, 0), (-1, 1), (0, 3), (0, 254), (0, 256), (0, -1)])
def test_index_that_is_no_class_is_refused(prediction: int, label: int, device: str) -> None:
    with pytest.raises(ValueError, match="only classes below 3 are possible"):
        confusion_matrix(torch.tensor([0, prediction], device=device), torch.tensor([0, label], device=device), K)


def test_prediction_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        confusion_matrix(torch.zeros(1, 4, dtype=torch.long), torch.zeros(4, dtype=torch.long), K)


def test_windows_of_a_batch_are_counted_for_their_cases() -> None:
    prediction, label = maps(3, (7, 5, 6))
    cases = torch.tensor([0, 0, -1, 2, 2, 0, 1])
    metric = CaseConfusion(3, K)
    metric.update(cases, prediction, label)
    for case in range(3):
        assert metric.compute()[case].tolist() == by_hand(prediction[cases == case], label[cases == case], K)
    with pytest.raises(ValueError, match="6 cases were named of 7 windows"):
        metric.update(cases[:6], prediction, label)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_sums_over_ranks_are_the_same_integers(ranks: int) -> None:
    prediction, label = maps(3, (7, 5, 6))
    cases = torch.tensor([0, 0, 1, 2, 2, 2, 1])
    metrics = [CaseConfusion(4, K) for _ in range(ranks)]
    for window in range(len(cases)):
        one = slice(window, window + 1)
        metrics[window % ranks].update(cases[one], prediction[one], label[one])
    for other in metrics[1:]:
        metrics[0].merge_state(other)
    matrices = metrics[0].compute()
    assert matrices.dtype == torch.int64
    for case in range(4):
        assert matrices[case].tolist() == by_hand(prediction[cases == case], label[cases == case], K)


def test_rows_that_fill_up_a_batch_are_not_counted() -> None:
    prediction, label = maps(4, (4, 6, 6))
    metric = CaseConfusion(2, K)
    metric.update([0, 1, -1, -1], prediction, label)
    assert metric.compute().sum() == (label[:2] != IGNORE).sum()


def test_scores_of_a_worked_example() -> None:
    summary = summarise(CASES, CLASSES, background=0)
    # Pooled: rows (label) background 100+2+3, lake 3+28, road 5+0+4.
    assert CASES.sum(axis=0).tolist() == [[100, 2, 3], [3, 28, 0], [5, 0, 4]]
    iou = {"background": 100 / 113, "lake": 28 / 33, "road": 4 / 12}
    lake = [2 * 6 / 14, 2 * 8 / 18, 2 * 9 / 19, 1.0]
    expected = {
        "pixel_accuracy": 132 / 145,
        "mean_accuracy": (100 / 105 + 28 / 31 + 4 / 9) / 3,
        "mean_iu": sum(iou.values()) / 3,
        "fw_iu": (105 * iou["background"] + 31 * iou["lake"] + 9 * iou["road"]) / 145,
        "iou": (iou["lake"] + iou["road"]) / 2,
        "iou/background": iou["background"],
        "iou/lake": iou["lake"],
        "iou/road": iou["road"],
        "pooled_dice/background": 200 / 213,
        "pooled_dice/lake": 56 / 61,
        "pooled_dice/road": 8 / 16,
        "dice/background": (80 / 82 + 60 / 67 + 20 / 24 + 1) / 4,
        "dice/lake": sum(lake) / 4,
        "dice/road": (1 + 0 + 0) / 3,
        "dice": (sum(lake) / 4 + 1 / 3) / 2,
        **{f"{count}/{name}": 0 for count in ("missed", "false_alarm", "undefined") for name in CLASSES},
        "missed/road": 1,
        "false_alarm/road": 1,
        "undefined/road": 1,
    }
    assert summary == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_every_case_of_every_class_is_in_the_mean_or_counted_as_undefined(seed: int, cases: int) -> None:
    generator = np.random.default_rng(seed)
    matrices = generator.integers(0, 5, (cases, K, K)) * generator.integers(0, 2, (cases, K, K))
    summary = summarise(matrices, CLASSES, None)
    for index, name in enumerate(CLASSES):
        label, predicted = matrices[:, index].sum(axis=1), matrices[:, :, index].sum(axis=1)
        rows = [2 * m[index, index] / (a + b) for m, a, b in zip(matrices, label, predicted, strict=True) if a + b]
        assert len(rows) + summary[f"undefined/{name}"] == cases
        assert summary[f"dice/{name}"] == pytest.approx(np.mean(rows) if rows else math.nan, nan_ok=True)
        assert summary[f"missed/{name}"] == ((label > 0) & (predicted == 0)).sum()
        assert summary[f"false_alarm/{name}"] == ((label == 0) & (predicted > 0)).sum()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_pooled_scores_are_those_of_torchmetrics(seed: int) -> None:
    prediction, label = maps(seed, (2, 12, 12))
    summary = summarise(confusion_matrix(prediction, label, K).numpy()[None], CLASSES, None)
    options = {"num_classes": K, "ignore_index": IGNORE}
    expected = {
        "pixel_accuracy": multiclass_accuracy(prediction, label, average="micro", **options),
        "mean_accuracy": multiclass_accuracy(prediction, label, average="macro", **options),
        "mean_iu": multiclass_jaccard_index(prediction, label, average="macro", **options),
        "fw_iu": multiclass_jaccard_index(prediction, label, average="weighted", **options),
    }
    iou = multiclass_jaccard_index(prediction, label, average=None, **options)
    dice = multiclass_f1_score(prediction, label, average=None, **options)
    expected |= {f"iou/{name}": value for name, value in zip(CLASSES, iou, strict=True)}
    expected |= {f"pooled_dice/{name}": value for name, value in zip(CLASSES, dice, strict=True)}
    assert {name: summary[name] for name in expected} == pytest.approx({k: v.item() for k, v in expected.items()}, abs=1e-6)


def test_class_predicted_but_in_no_label_counts_for_iou_and_not_for_mean_iu() -> None:
    summary = summarise(np.array([[[8, 0, 2], [0, 5, 0], [0, 0, 0]]]), CLASSES, background=None)
    assert summary["iou/road"] == 0
    assert summary["iou"] == pytest.approx((0.8 + 1 + 0) / 3)
    assert summary["mean_iu"] == pytest.approx((0.8 + 1) / 2)
    assert summary["mean_accuracy"] == pytest.approx((0.8 + 1) / 2)


def test_class_in_neither_label_nor_prediction_is_undefined_and_in_no_mean() -> None:
    summary = summarise(np.array([[[8, 2, 0], [0, 5, 0], [0, 0, 0]]]), CLASSES, background=0)
    assert math.isnan(summary["iou/road"])
    assert math.isnan(summary["dice/road"])
    assert math.isnan(summary["pooled_dice/road"])
    assert summary["iou"] == summary["iou/lake"]
    assert summary["dice"] == summary["dice/lake"]
    assert summary["undefined/road"] == 1


@pytest.mark.parametrize("cases", [0, 2])
def test_nothing_judged_gives_undefined_scores_and_no_warning(cases: int) -> None:
    summary = summarise(np.zeros((cases, K, K), dtype=np.int64), CLASSES, background=0)
    counts = {name: value for name, value in summary.items() if name.split("/")[0] in ("missed", "false_alarm", "undefined")}
    assert counts == {name: cases if name.startswith("undefined") else 0 for name in counts}
    assert all(math.isnan(value) for name, value in summary.items() if name not in counts)


def test_precision_and_recall_are_undefined_without_prediction_and_without_label() -> None:
    scores = class_scores(CASES)
    assert scores.precision[0].tolist() == pytest.approx([40 / 42, 1, 1])
    assert scores.recall[0].tolist() == pytest.approx([1, 6 / 8, 1])
    assert np.isnan(scores.precision[1, 2])
    assert scores.recall[1, 2] == 0
    assert scores.precision[2, 2] == 0
    assert np.isnan(scores.recall[2, 2])
    assert scores.dice.shape == scores.iou.shape == (4, K)


def test_case_rows_hold_each_case_once_and_average_to_the_summary() -> None:
    rows = case_rows(CASES, ["a", "b", "c", "d"], CLASSES)
    assert [row["case"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["pixels"] for row in rows] == CASES.sum(axis=(1, 2)).tolist()
    assert rows[1]["label_pixels/road"] == 5
    assert rows[1]["predicted_pixels/road"] == 0
    assert rows[0]["case_iou/lake"] == pytest.approx(6 / 8)
    assert math.isnan(rows[3]["dice/road"])
    summary = summarise(CASES, CLASSES, background=0)
    for name in CLASSES:
        assert np.nanmean([row[f"dice/{name}"] for row in rows]) == pytest.approx(summary[f"dice/{name}"])


REGIONS = {"water": (1, 2), "road": (2,)}
MIXED = CASES + np.array([[0, 0, 0], [0, 0, 3], [0, 2, 0]])  # in each case lakes are taken for roads and roads for lakes


def merged(matrices: np.ndarray) -> np.ndarray:
    """The matrices [N, 2, 2] of maps in which the two foreground classes are one."""
    out = np.zeros((len(matrices), 2, 2), dtype=np.int64)
    for label, predicted in np.ndindex(K, K):
        out[:, min(label, 1), min(predicted, 1)] += matrices[:, label, predicted]
    return out


def test_a_region_is_scored_as_if_its_classes_were_one() -> None:
    plain, found = summarise(MIXED, CLASSES, 0), summarise(MIXED, CLASSES, 0, REGIONS)
    one = summarise(merged(MIXED), ["land", "water"], 0)
    kinds = ("dice", "iou", "pooled_dice", "missed", "false_alarm", "undefined")
    assert {f"{kind}/water": found[f"{kind}/water"] for kind in kinds} == {f"{kind}/water": one[f"{kind}/water"] for kind in kinds}
    assert found["dice/water"] > plain["dice/lake"]  # roads taken for lakes are no mistake of the region
    # The means are over regions; what is said of classes, and of all pixels, is as it was.
    assert found["dice"] == pytest.approx((one["dice/water"] + plain["dice/road"]) / 2)
    assert found["iou"] == pytest.approx((one["iou/water"] + plain["iou/road"]) / 2)
    assert {name: found[name] for name in plain if name not in ("dice", "iou")} == {
        name: value for name, value in plain.items() if name not in ("dice", "iou")
    }


def test_the_case_table_has_the_regions_columns() -> None:
    rows, one = case_rows(MIXED, list("abcd"), CLASSES, REGIONS), case_rows(merged(MIXED), list("abcd"), ["land", "water"])
    for row, expected in zip(rows, one, strict=True):
        assert {name: row[name] for name in expected if name.endswith("/water")} == {
            name: value for name, value in expected.items() if name.endswith("/water")
        }
    assert [list(row) for row in case_rows(MIXED, list("abcd"), CLASSES)] == [
        [name for name in row if not name.endswith("/water")] for row in rows
    ]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_scores_of_a_region_are_those_of_its_merged_maps_and_ignored_pixels_have_no_influence(seed: int) -> None:
    prediction, label = maps(seed, (2, 9, 9), 4)
    other = torch.where(label == IGNORE, (prediction + 1) % 4, prediction)
    matrix = confusion_matrix(prediction, label, 4).numpy()[None]
    assert (confusion_matrix(other, label, 4).numpy() == matrix).all()
    table = torch.zeros(256, dtype=torch.long)
    table[[1, 3]], table[IGNORE] = 1, IGNORE
    alone = confusion_matrix(table[other], table[label], 2).numpy()[None]
    names = ["a", "b", "c", "d"]
    found, expected = summarise(matrix, names, 0, {"odd": (1, 3)}), summarise(alone, ["even", "odd"], 0)
    assert all(found[name] == value or math.isnan(value) for name, value in expected.items() if name.endswith("/odd"))
    assert found["dice"] == expected["dice/odd"]


def test_worked_table_of_the_docs() -> None:
    """Label, prediction and common pixels of the five cases in docs/scores.md, in pictures of 300 pixels."""
    pixels = [(100, 100, 80), (100, 50, 0), (100, 0, 0), (0, 50, 0), (0, 0, 0)]
    matrices = [[[300 - t - p + both, p - both], [t - both, both]] for t, p, both in pixels]
    summary = summarise(np.array(matrices), ["rest", "lesion"], background=0)
    assert class_scores(np.array(matrices)).dice[:, 1].tolist() == pytest.approx([0.8, 0, 0, 0, math.nan], nan_ok=True)
    assert summary["dice/lesion"] == pytest.approx(0.2)
    assert [summary[f"{name}/lesion"] for name in ("missed", "false_alarm", "undefined")] == [1, 1, 1]
