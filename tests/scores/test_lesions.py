"""Lesions against a count by brute force on whole arrays, and the rules by example."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from voxtile.cases.window import Window
from voxtile.scores.lesions import COUNTS, LesionCounter, summarise_lesions


def counted(
    label: np.ndarray, prediction: np.ndarray, least: float = 0, overlap: float = 0, corners: bool = True
) -> dict[str, float]:
    """The columns of a case [D, H, W] that comes slice by slice, in two bands each."""
    counter = LesionCounter(label.shape, {1: "lesion"}, corners, least, overlap)
    _, height, width = label.shape
    for z in range(label.shape[0]):
        for y in range(0, height, half := -(-height // 2)):
            window = Window(z, y, 0, 1, min(half, height - y), width)
            counter.add(window, prediction[window.slices], label[window.slices])
    return {name.removesuffix("/lesion"): value for name, value in counter.columns().items()}


def brute_force(label: np.ndarray, prediction: np.ndarray, least: float, overlap: float, corners: bool) -> list[int]:
    """Lesions as sets of voxels."""
    structure = ndimage.generate_binary_structure(3, 3 if corners else 1)
    mine, theirs = (
        [set(map(tuple, np.argwhere(found == number + 1))) for number in range(count)]
        for found, count in (ndimage.label(array == 1, structure) for array in (label, prediction))
    )
    ignored = set(map(tuple, np.argwhere(label == 255)))
    everything = set().union(*mine)
    kept = set().union(*(each for each in theirs if len(each) >= least))
    wanted = [each for each in mine if len(each) >= least]
    hits = [each for each in wanted if each & kept and len(each & kept) >= overlap * len(each)]
    counts = [each for each in theirs if len(each) >= least and (each & everything or 2 * len(each & ignored) <= len(each))]
    return [len(wanted), len(hits), len(counts), sum(not each & everything for each in counts)]


@given(
    st.integers(0, 10**6), st.sampled_from([(1, 9, 8), (4, 6, 5)]), st.sampled_from([0, 2, 3.5]), st.sampled_from([0, 0.4, 1]),
    st.booleans(),
)  # fmt: skip
def test_counts_are_those_of_brute_force(
    seed: int, shape: tuple[int, int, int], least: float, overlap: float, corners: bool
) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 255], shape, p=[0.7, 0.2, 0.1]).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.2, rng.integers(0, 2, shape), label == 1).astype(np.uint8)
    found = counted(label, prediction, least, overlap, corners)
    assert [found[kind] for kind in COUNTS] == brute_force(label, prediction, least, overlap, corners)


@pytest.mark.parametrize("share", [0.28, 0.55, 0.56, 0.57, 0.58])  # whose products with 100 are no whole numbers
def test_a_lesion_of_just_the_least_share_is_found(share: float) -> None:
    label, prediction = np.zeros((1, 10, 10), np.uint8), np.zeros((1, 10, 10), np.uint8)
    label[:] = 1
    prediction.flat[: round(share * 100)] = 1
    assert counted(label, prediction, overlap=share)["found_lesions"] == 1
    prediction.flat[0] = 0
    assert counted(label, prediction, overlap=share)["found_lesions"] == 0


def volume(*boxes: tuple[int, int]) -> np.ndarray:
    """Bars along x of given place and length, in a volume [3, 5, 20]."""
    out = np.zeros((3, 5, 20), dtype=np.uint8)
    for start, length in boxes:
        out[1, 2, start : start + length] = 1
    return out


def test_found_missed_and_made_up() -> None:
    found = counted(volume((0, 4), (6, 4), (12, 2)), volume((3, 1), (6, 2), (17, 2)))
    assert [found[kind] for kind in COUNTS] == [3, 2, 3, 1]
    assert found["lesion_sensitivity"] == pytest.approx(2 / 3)
    assert found["lesion_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    half = counted(volume((0, 4), (6, 4), (12, 2)), volume((3, 1), (6, 2), (17, 2)), overlap=0.5)
    assert [half[kind] for kind in COUNTS] == [3, 1, 3, 1]  # who touches a lesion is not false, found or not


def test_small_lesions_are_neither_looked_for_nor_false_and_find_nothing() -> None:
    found = counted(volume((0, 4), (6, 2)), volume((1, 2), (6, 4), (12, 2)), least=3)
    assert [found[kind] for kind in COUNTS] == [1, 0, 1, 0]


def test_what_is_missed_counts_and_what_is_nowhere_is_undefined() -> None:
    nothing = volume()
    cases = [counted(volume((0, 4)), volume((0, 4))), counted(volume((0, 4)), nothing), counted(nothing, volume((0, 4)))]
    cases.append(counted(nothing, nothing))
    scores = summarise_lesions([{f"{name}/lesion": value for name, value in case.items()} for case in cases], ["lesion"])
    assert scores["lesion_sensitivity/lesion"] == scores["lesion_sensitivity"] == 0.5
    assert scores["lesion_f1/lesion"] == pytest.approx(1 / 3)
    assert scores["lesion_sensitivity_undefined/lesion"] == 2
    assert scores["lesion_f1_undefined/lesion"] == 1
    assert scores["false_lesions_per_case/lesion"] == 0.25
    assert [scores[f"{kind}/lesion"] for kind in COUNTS] == [2, 1, 2, 1]
