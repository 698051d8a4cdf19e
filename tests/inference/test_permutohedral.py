"""The lattice filter: exactly linear, with its exact adjoint, and near the Gaussian that it stands for."""

import subprocess
import sys

import numpy as np
import pytest

from voxtile.inference import permutohedral
from voxtile.inference.permutohedral import Lattice

DIMENSIONS = [1, 2, 3, 5, 7]


def points(n, d, seed=0, extent=4):
    return np.random.default_rng(seed).uniform(-extent, extent, (n, d)).astype(np.float32)


def values(n, size, seed=1):
    return np.random.default_rng(seed).standard_normal((n, size)).astype(np.float32)


def gaussian(features):
    """The kernel [n, n] in float64."""
    features = features.astype(np.float64)
    return np.exp(-0.5 * ((features[:, None] - features) ** 2).sum(axis=2))


def places(lattice, features):
    """Where each lattice point lies [M + 1, d], as the points around it tell by their weights, and by how much they disagree."""
    table = np.zeros((len(features), lattice.size + 1))
    np.put_along_axis(table, lattice.corners, lattice.weights, axis=1)
    found = np.linalg.lstsq(table, features.astype(np.float64), rcond=None)[0]
    return found, np.abs(table @ found - features).max()


@pytest.mark.parametrize("d", DIMENSIONS)
def test_weights_are_shares(d):
    lattice = Lattice(points(200, d))
    assert lattice.corners.min() == 1
    assert lattice.corners.max() == lattice.size == len(np.unique(lattice.corners))
    assert lattice.weights.min() >= -1e-5
    np.testing.assert_allclose(lattice.weights.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("d", "n"), [(1, 200), (2, 500), (3, 1000), (5, 2000)])
def test_points_are_the_barycentres_of_their_corners(d, n):
    """Many more points than lattice points: were two corners taken for one, no places would do."""
    features = points(n, d, extent=0.7)
    lattice = Lattice(features)
    assert lattice.size < n / 3
    assert places(lattice, features)[1] < 1e-4


@pytest.mark.parametrize(("d", "n"), [(1, 200), (2, 500), (3, 2000)])
def test_neighbours_are_mutual_and_evenly_spaced(d, n):
    features = points(n, d, extent=1)
    lattice = Lattice(features)
    found, _ = places(lattice, features)
    for before, after in lattice.neighbours.transpose(0, 2, 1):
        here = np.nonzero(after)[0]
        np.testing.assert_array_equal(before[after[here]], here)
        steps = found[after[here]] - found[here]
        assert len(steps) > 1
        np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=1e-3)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_linear_in_the_values(d):
    lattice, a, b = Lattice(points(300, d)), values(300, 4), values(300, 4, seed=2)
    both = lattice.filter(2 * a - 3 * b)
    np.testing.assert_allclose(both, 2 * lattice.filter(a) - 3 * lattice.filter(b), atol=1e-5 * np.abs(both).max())


@pytest.mark.parametrize("d", DIMENSIONS)
def test_the_reverse_order_is_the_adjoint(d):
    lattice, a, b = Lattice(points(300, d)), values(300, 3), values(300, 3, seed=2)
    left = (a.astype(np.float64) * lattice.filter(b)).sum()
    right = (lattice.filter(a, reverse=True).astype(np.float64) * b).sum()
    np.testing.assert_allclose(left, right, rtol=1e-4)


def test_symmetric_where_the_lattice_has_no_gaps():
    y, x = np.indices((40, 40)).reshape(2, -1)
    lattice = Lattice(np.stack([x, y], axis=1).astype(np.float32) / 4)
    a, b = np.zeros((1600, 1), np.float32), np.zeros((1600, 1), np.float32)
    a[20 * 40 + 18], b[23 * 40 + 21] = 1, 1
    forth, back = (a * lattice.filter(b)).sum(), (b * lattice.filter(a)).sum()
    assert forth > 0
    np.testing.assert_allclose(forth, back, rtol=1e-6)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_a_constant_stays_one_after_normalisation(d):
    lattice = Lattice(points(500, d))
    total = lattice.filter(np.ones((500, 1), np.float32))
    assert total.min() > 0
    np.testing.assert_allclose(lattice.filter(np.full((500, 2), 7, np.float32)) / total, 7, rtol=1e-5)


def test_columns_do_not_touch_each_other():
    lattice, many = Lattice(points(300, 4)), values(300, 9)
    together = lattice.filter(many)
    order = np.random.default_rng(0).permutation(9)
    np.testing.assert_array_equal(lattice.filter(many[:, order]), together[:, order])
    np.testing.assert_allclose(lattice.filter(many[:, 3:4])[:, 0], together[:, 3], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("std", "seed"), [(3, 0), (5, 1), (9, 2)])
def test_an_impulse_spreads_with_standard_deviation_one(std, seed):
    """Measured variances along x and y, over 24 places in the lattice: 0.93 to 1.06 of the standard deviation's square."""
    side = 12 * std
    y, x = np.indices((side, side)).reshape(2, -1)
    shift = np.random.default_rng(seed).uniform(0, 9, 2)
    lattice = Lattice((np.stack([x, y], axis=1) / std + shift).astype(np.float32))
    impulse = np.zeros((side * side, 1), np.float32)
    impulse[side // 2 * side + side // 2] = 1
    spread = lattice.filter(impulse)[:, 0].astype(np.float64)
    spread /= spread.sum()
    for axis in (x, y):
        mean = (spread * axis).sum()
        assert abs(mean - side // 2) < 0.01 * std
        assert 0.9 < (spread * (axis - mean) ** 2).sum() / std**2 < 1.1


@pytest.mark.parametrize(("n", "d"), [(400, 1), (400, 2), (600, 3)])
def test_near_the_gaussian_sum(n, d):
    features, many = points(n, d, extent=2), np.random.default_rng(3).uniform(0, 1, (n, 2)).astype(np.float32)
    many[features[:, 0] > 0, 0] += 1
    kernel, lattice = gaussian(features), Lattice(features)
    exact = kernel @ many / kernel.sum(axis=1, keepdims=True)
    filtered = lattice.filter(many) / lattice.filter(np.ones((n, 1), np.float32))
    assert np.corrcoef(filtered[:, 0], exact[:, 0])[0, 1] > 0.995
    assert np.abs(filtered - exact).mean() < 0.02 * np.ptp(exact)


def test_hash_table_grows_and_large_numbers_of_dimensions_hold():
    far = points(20000, 3, extent=100)  # nearly every simplex its own: more lattice points than the table starts with
    lattice = Lattice(far)
    assert lattice.size > 70000
    np.testing.assert_allclose(lattice.weights.sum(axis=1), 1, atol=1e-4)
    many = Lattice(points(50, 20, extent=30))  # 20 coordinates do not fit into 64 bits
    out = many.filter(np.ones((50, 1), np.float32))
    np.testing.assert_allclose(out, out.mean(), rtol=0.9)
    assert out.min() > 0


def test_keys_are_exact_or_spread(monkeypatch):
    """The multiplier that stands for too many dimensions finds the same lattice."""
    features = points(3000, 4, extent=10)
    exact = Lattice(features)
    assert permutohedral._base(features) < 1000
    monkeypatch.setattr(permutohedral, "_base", lambda features: 6364136223846793005)
    spread = Lattice(features)
    np.testing.assert_array_equal(spread.corners, exact.corners)
    np.testing.assert_array_equal(spread.neighbours, exact.neighbours)


def test_negative_coordinates_are_points_of_their_own():
    two = Lattice(np.float32([[-50, 3], [50, -3]]))
    assert not set(two.corners[0]) & set(two.corners[1])


def test_same_bits_again():
    features, many = points(2000, 5), values(2000, 7)
    assert Lattice(features).filter(many).tobytes() == Lattice(features).filter(many).tobytes()


def test_no_points():
    assert Lattice(np.zeros((0, 3), np.float32)).filter(np.zeros((0, 2), np.float32)).shape == (0, 2)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 2e6])
def test_positions_that_float32_cannot_resolve_are_refused(wrong):
    features = points(10, 2)
    features[3, 1] = wrong
    with pytest.raises(ValueError, match="standard deviations"):
        Lattice(features)


@pytest.mark.parametrize("shape", [(4,), (4, 0), (2, 2, 2)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="points, dimensions"):
        Lattice(np.zeros(shape, np.float32))


def test_machine_code_is_kept_for_the_next_process():
    """What this process has compiled, another one only loads."""
    Lattice(points(5, 2)).filter(values(5, 1))
    code = (
        "import numpy as np\n"
        "from voxtile.inference.permutohedral import Lattice, _embed, _blur\n"
        "Lattice(np.zeros((5, 2), np.float32)).filter(np.zeros((5, 1), np.float32))\n"
        "print(sum(_embed.stats.cache_misses.values()), sum(_blur.stats.cache_misses.values()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["0", "0"]
