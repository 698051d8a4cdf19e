"""Distances between surfaces against MONAI's and against brute force, and what is missed or not judged."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage

from tests.testers.composing import ROOT
from voxtile.cases.window import Window
from voxtile.scores.surfaces import SurfaceMeter, summarise_surfaces, surface_scores

SHEAR = np.array([[1.0, 0.47, 0.1], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]])  # slices, and rows, that are shifted against each other
SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.5, 1.25, 2.0)]


def blobs(seed: int, shape: tuple[int, ...], classes: int = 3) -> np.ndarray:
    """Smooth patches of class indices that also touch the border."""
    rng = np.random.default_rng(seed)
    sigma = [min(2, n - 1) for n in shape]
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), sigma) for _ in range(classes)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def noisy(seed: int, label: np.ndarray) -> np.ndarray:
    """The label with borders moved here and there, and a few far pixels that are wrong."""
    rng = np.random.default_rng(seed + 1)
    moved = np.roll(label, rng.integers(-2, 3, label.ndim), axis=tuple(range(label.ndim)))
    return np.where(rng.random(label.shape) < 0.01, rng.integers(0, 3, label.shape), moved).astype(np.uint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", [(9, 24, 20), (1, 40, 30), (16, 16, 16)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_are_those_of_monai(seed: int, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    label = blobs(seed, shape)
    prediction = noisy(seed, label)
    plane = shape[0] == 1
    hot = [torch.nn.functional.one_hot(torch.from_numpy(a.astype(np.int64)), 3).movedim(-1, 0) for a in (prediction, label)]
    y_pred, y = (each[None, :, 0] if plane else each[None] for each in hot)
    given_spacing = list(spacing[1:] if plane else spacing)
    tolerance = 1.7  # no distance on these grids is as long
    hd95 = compute_hausdorff_distance(y_pred, y, percentile=95, spacing=given_spacing)[0]
    assd = compute_average_surface_distance(y_pred, y, symmetric=True, spacing=given_spacing)[0]
    nsd = compute_surface_dice(y_pred, y, [tolerance] * 2, spacing=given_spacing)[0]
    found = [surface_scores(label, prediction, index, spacing, tolerance) for index in (1, 2)]
    np.testing.assert_allclose(found, torch.stack([hd95, assd, nsd], dim=1), rtol=1e-5)


def brute_force(
    label: np.ndarray, prediction: np.ndarray, index: int, spacing: tuple[float, float, float], tolerance: float,
    shear: np.ndarray | None = None,
) -> tuple[float, float, float]:  # fmt: skip
    """Every pixel of a surface against every pixel of the other, neighbours looked up one by one; `shear` moves all places."""
    shear = np.eye(3) if shear is None else shear
    steps = [s for s in np.argwhere(ndimage.generate_binary_structure(3, 1)) - 1 if s.any() and (label.shape[0] > 1 or not s[0])]
    ignored = label == 255

    def surface(mask: np.ndarray) -> np.ndarray:
        out = []
        for point in np.argwhere(mask):
            for step in steps:
                there = point + step
                inside = all(0 <= p < n for p, n in zip(there, mask.shape, strict=True))
                if not inside or not (mask[tuple(there)] or ignored[tuple(there)]):
                    out.append(point)
                    break
        return np.array(out, dtype=float).reshape(-1, 3) * spacing @ shear

    mine, theirs = label == index, (prediction == index) & ~ignored
    size = [n * s if label.shape[0] > 1 or axis else 0 for axis, (n, s) in enumerate(zip(label.shape, spacing, strict=True))]
    diagonal = max(float(np.linalg.norm(np.multiply(size, signs) @ shear)) for signs in itertools.product((1, -1), repeat=3))
    a, b = surface(mine), surface(theirs)
    if mine.any() != theirs.any():
        return diagonal, diagonal, 0.0
    if not len(a) and not len(b):
        return np.nan, np.nan, np.nan
    apart = np.linalg.norm(a[:, None] - b[None], axis=2)
    there = apart.min(axis=1) if len(b) else np.full(len(a), np.inf)
    back = apart.min(axis=0) if len(a) else np.full(len(b), np.inf)
    both = np.concatenate([there, back])
    hd95 = max(np.percentile(np.minimum(each, diagonal), 95) for each in (there, back) if len(each))
    return hd95, np.minimum(both, diagonal).mean(), (both <= tolerance).mean()


@given(
    st.integers(0, 10**6), st.sampled_from([(1, 7, 6), (4, 5, 4)]), st.sampled_from(SPACINGS),
    st.sampled_from([(1.0, 0.0, 0.0), (0.5, 0.2, 0.3), (0.1, 0.8, 0.1), (0.0, 0.5, 0.5)]), st.sampled_from([0.0, 1.3, 2.9]),
)  # fmt: skip
def test_scores_are_those_of_brute_force_with_ignored_pixels_anywhere(
    seed: int, shape: tuple[int, int, int], spacing: tuple[float, float, float], shares: tuple[float, ...], tolerance: float
) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 255], shape, p=shares).astype(np.uint8)
    prediction = rng.choice([0, 1], shape, p=[0.4, 0.6]).astype(np.uint8)
    found = surface_scores(label, prediction, 1, spacing, tolerance)
    np.testing.assert_allclose(found, brute_force(label, prediction, 1, spacing, tolerance), rtol=1e-12)
    edges = np.diag(spacing) @ SHEAR
    found = surface_scores(label, prediction, 1, edges, tolerance)
    np.testing.assert_allclose(found, brute_force(label, prediction, 1, spacing, tolerance, SHEAR), rtol=1e-12)


def cube(at: int, side: int = 6, shape: tuple[int, int, int] = (10, 20, 30)) -> np.ndarray:
    out = np.zeros(shape, dtype=np.uint8)
    out[2 : 2 + side, at : at + side, at : at + side] = 1
    return out


def test_a_missed_structure_and_a_false_alarm_are_as_far_as_the_volume_is_large() -> None:
    nothing, spacing = np.zeros((10, 20, 30), dtype=np.uint8), (3.0, 1.0, 0.5)
    diagonal = float(np.hypot(np.hypot(30, 20), 15))
    assert surface_scores(cube(3), nothing, 1, spacing, 1.0) == pytest.approx((diagonal, diagonal, 0))
    assert surface_scores(nothing, cube(3), 1, spacing, 1000.0) == pytest.approx((diagonal, diagonal, 0))
    assert np.isnan(surface_scores(nothing, nothing, 1, spacing, 1.0)).all()
    plane = np.zeros((1, 20, 30), dtype=np.uint8)
    plane[0, 3, 3] = 1
    assert surface_scores(plane, nothing[:1], 1, spacing, 1.0).hd95 == pytest.approx(25)  # the thickness of a slice is no extent


def test_a_pixel_as_far_as_the_tolerance_is_met_whatever_the_headers_precision() -> None:
    spacing = tuple(float(np.float32(s)) for s in (0.8, 0.8, 0.8))
    assert spacing[0] > 0.8
    assert surface_scores(cube(3), np.roll(cube(3), 1, axis=1), 1, spacing, 0.8).nsd == 1


@pytest.mark.parametrize("seed", range(5))
def test_what_is_ignored_inside_makes_no_score_better(seed: int) -> None:
    """Cut out of both structures, it would be a common surface at which everything is right."""
    label, prediction = cube(3, 7), np.roll(cube(3, 7), 2, axis=1)
    inner = ndimage.binary_erosion(label == 1) & ndimage.binary_erosion(prediction == 1)
    ignored = inner & (np.random.default_rng(seed).random(label.shape) < 0.5)
    assert ignored.any()
    before = surface_scores(label, prediction, 1, (1.0, 1.0, 1.0), 1.0)
    assert 0 < before.nsd < 1
    assert surface_scores(np.where(ignored, 255, label).astype(np.uint8), prediction, 1, (1.0, 1.0, 1.0), 1.0) == before


def test_a_case_comes_in_bands_and_is_averaged_with_what_was_missed() -> None:
    classes, tolerances = {1: "organ", 2: "lesion"}, {"organ": 1.0, "lesion": 0.0}
    spacing = (3.0, 1.0, 1.0)
    rows = []
    for label, prediction in [(cube(3), np.roll(cube(3), 1, axis=2)), (cube(3), cube(3)), (cube(3), np.zeros_like(cube(3)))]:
        meter = SurfaceMeter(label.shape, classes, spacing, tolerances)
        for z in range(10):
            for y in (0, 8, 16):
                window = Window(z, y, 0, 1, min(8, 20 - y), 30)
                meter.add(window, prediction[window.slices], label[window.slices])
        rows.append(meter.columns())
        assert rows[-1]["hd95/organ"] == surface_scores(label, prediction, 1, spacing, 1.0).hd95
    far = float(np.linalg.norm([30, 20, 30]))
    scores = summarise_surfaces(rows, ["organ", "lesion"])
    assert scores["hd95/organ"] == scores["hd95"] == pytest.approx((1 + 0 + far) / 3)
    assert scores["hd95_median/organ"] == 1
    assert scores["nsd/organ"] == pytest.approx(2 / 3)
    assert (scores["surface_undefined/organ"], scores["surface_undefined/lesion"]) == (0, 3)
    assert np.isnan(scores["assd/lesion"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_three_definitions_of_hd95_differ_as_the_documents_say() -> None:
    z, y, x = np.ogrid[:40, :64, :64]
    spacing = (1.5, 0.8, 0.8)

    def ball(center: tuple[int, int, int], radius: float) -> np.ndarray:
        return sum(((axis - at) * size) ** 2 for axis, at, size in zip((z, y, x), center, spacing, strict=True)) < radius**2

    label, prediction = ball((20, 32, 32), 15), ball((20, 34, 33), 14) | ball((20, 34, 56), 6)
    pair = [torch.from_numpy(each) for each in (prediction, label)]
    ours = surface_scores(label.astype(np.uint8), prediction.astype(np.uint8), 1, spacing, 1.0).hd95
    _, both, _ = get_edge_surface_distance(*pair, spacing=spacing, symmetric=True)
    pooled = np.percentile(torch.cat(both), 95)
    edges, apart, areas = get_edge_surface_distance(*pair, spacing=spacing, symmetric=True, use_subvoxels=True)
    weighed = []
    for edge, distance, area in zip(edges, apart, areas, strict=True):  # as DeepMind's compute_robust_hausdorff
        order = torch.argsort(distance)
        share = torch.cumsum(area[edge][order], 0) / area[edge].sum()
        weighed.append(float(distance[order][torch.searchsorted(share, 0.95)]))
    assert [round(value, 2) for value in (ours, float(pooled), max(weighed))] == [6.64, 3.62, 6.77]
    text = (ROOT / "docs" / "scores.md").read_text(encoding="utf-8").partition("### Three things called HD95")[2]
    assert re.findall(r"\| ([0-9.]+) mm \|", text) == ["6.64", "3.62", "6.77"]
