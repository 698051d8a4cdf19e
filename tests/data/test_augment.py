"""Augmentation: what is exact is exact, what moves moves together, and nothing depends on anything but (seed, index, operation)."""

import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy import ndimage
from torch.nn import functional

from tests.testers.waiting import nothing_waited_for
from voxtile.commands.allowed import build
from voxtile.data import augment as module
from voxtile.data.augment import Augment
from voxtile.data.contrast import Bias, Blur, Contrast, Gain, Gamma, Noise
from voxtile.data.operation import Operation, smooth
from voxtile.data.stream import STREAM_VERSION, stream_version
from voxtile.data.symmetry import Symmetry
from voxtile.data.warp import Affine, Elastic, moved_axes, resample, sampling_grid
from voxtile.errors import ConfigError

FLAT, DEEP = (1, 24, 24), (6, 16, 16)
UNIT = (1.0, 1.0, 1.0)
CONF = Path(__file__).parents[2] / "conf" / "augment"


def everything(probability=1.0):
    return Augment(
        {"flips": ["z", "y", "x"], "rot90": True, "swap": {"x": [[1, 2]]}},
        Affine(probability, rotation=20, scale=(0.8, 1.25), translation=0.1),
        Elastic(probability, std=1, control=8),
        {
            "bias": Bias(probability, control=10),
            "gain": Gain(probability),
            "gamma": Gamma(probability),
            "blur": Blur(probability),
            "noise": Noise(probability),
        },
    )


def batch(size, count=6, channels=3, seed=0):
    """Image, valid (a tenth of the pixels is not) and label for `count` windows; no depth axis where it is 1."""
    rng = np.random.default_rng(seed)
    shape = size if size[0] > 1 else size[1:]
    valid = torch.from_numpy(rng.random((count, *shape)) < 0.9)
    image = torch.from_numpy(rng.normal(size=(count, channels, *shape)).astype(np.float32)) * valid[:, None]
    return image, valid, torch.from_numpy(rng.integers(0, 4, (count, *shape)).astype(np.uint8))


def drawn(augment, indices, size, spacing=UNIT, seed=0):
    samples = [augment.draw(seed, index, size, spacing) for index in indices]
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# What is drawn


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**63), index=st.integers(0, 2**40))
def test_parameters_are_a_function_of_seed_and_index(seed, index):
    one, again = (everything().draw(seed, index, DEEP, UNIT) for _ in range(2))
    next_one, other_seed = everything().draw(seed, index + 1, DEEP, UNIT), everything().draw(seed + 1, index, DEEP, UNIT)
    never = everything(0.0).draw(seed, index, DEEP, UNIT)
    for name, value in one.items():
        np.testing.assert_array_equal(value, again[name])
        assert (value.shape, value.dtype) == (never[name].shape, never[name].dtype)
    for name in ("affine.matrix", "elastic.field", "intensity.noise.seed", "intensity.gamma.exponent"):
        assert (one[name] != next_one[name]).any()
        assert (one[name] != other_seed[name]).any()


def test_adding_an_operation_leaves_the_draws_of_the_others():
    rich = everything(0.5)
    poor = Augment(rich.symmetry, elastic=rich.elastic, intensity={"noise": rich.intensity["noise"], "blur": None})
    for index in range(5):
        small, large = poor.draw(3, index, FLAT, UNIT), rich.draw(3, index, FLAT, UNIT)
        assert set(small) < set(large)
        for name, value in small.items():
            np.testing.assert_array_equal(value, large[name])


def test_operations_happen_as_often_as_asked_for():
    parameters = drawn(everything(0.3), range(400), FLAT)
    for name in ("affine.on", "elastic.on", "intensity.gain.on", "intensity.noise.on"):
        assert 80 < parameters[name].sum() < 160
    assert 140 < parameters["flips"][:, 2].sum() < 260
    assert not parameters["flips"][:, 0].any()  # a single slice has no other side
    assert parameters["turns"].bincount().min() > 60


def test_scales_are_log_uniform_within_their_bounds():
    matrices = drawn(everything(), range(400), FLAT)["affine.matrix"].numpy()
    scales = 1 / np.sqrt(np.linalg.det(matrices[:, 1:, 1:]))
    assert 0.8 - 1e-6 <= scales.min() < 0.82
    assert 1.22 < scales.max() <= 1.25 + 1e-6
    assert abs(np.log(scales).mean()) < 0.02


@pytest.mark.parametrize("spacing", [(1, 2, 1), (4, 1, 3), (1, 1, 1)])
@pytest.mark.parametrize("size", [(1, 48, 48), (12, 24, 24)])
def test_rotations_are_rigid_on_the_ground_after_quarter_turns_too(size, spacing):
    augment = Augment({"rot90": True}, Affine(1.0, rotation=15))
    met = set()
    for index in range(12):
        sample = augment.draw(0, index, size, spacing)
        z, y, x = spacing
        now = np.array((z, x, y) if sample["turns"] % 2 else spacing)  # sides of the pixels that are deformed
        on_the_ground = sample["affine.matrix"] * now[:, None] / now
        np.testing.assert_allclose(np.linalg.svd(on_the_ground)[1], 1, atol=1e-6)
        met.add(int(sample["turns"]))
    assert met == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("augment", "spacing", "moved"),
    [
        (Augment({"rot90": True}, Affine(0.5, rotation=5)), (1, 2, 1), True),
        (Augment({"rot90": True}, intensity={"blur": Blur(0.5)}), (1, 2, 1), True),
        (Augment({"rot90": True}, elastic=Elastic(0.5)), (3, 1, 2), True),
        (Augment({"rot90": True}, Affine(0.5, rotation=5)), (3, 1, 1.000001), False),
        (Augment({"flips": ["y"]}, Affine(0.5, rotation=5)), (1, 2, 1), False),
        (Augment({"rot90": True}, Affine(0.0, rotation=5), intensity={"gain": Gain(1.0), "noise": Noise(1.0)}), (1, 2, 1), False),
    ],
)
def test_only_streams_in_which_turns_change_what_is_drawn_have_another_version(augment, spacing, moved):
    cases = [SimpleNamespace(grid=SimpleNamespace(spacing=each)) for each in (UNIT, spacing)]
    assert stream_version(cases, FLAT, augment) == STREAM_VERSION + moved
    before = Augment({**vars(augment.symmetry), "rot90": False}, augment.affine, augment.elastic, augment.intensity)
    changed = False
    for index in range(40):
        now, then = (each.draw(0, index, FLAT, spacing) for each in (augment, before))
        changed |= any(not np.array_equal(now[key], then[key]) for key in now.keys() - {"flips", "turns"})
    assert changed == moved


@pytest.mark.parametrize(
    ("size", "spacing", "planar"),
    [
        (DEEP, (2.0, 1.0, 1.5), False), (DEEP, (5.0, 0.8, 1.0), True), (FLAT, (5.0, 0.8, 2.0), True),
        ((5, 16, 16), (1.0, 1.0, 1.0), True), ((6, 18, 18), (1.0, 1.0, 1.0), False), ((5, 16, 5), (5.0, 0.8, 1.0), True),
    ],
)  # fmt: skip
def test_rotations_keep_physical_distances(size, spacing, planar):
    augment = Augment(affine=Affine(1, rotation=90), elastic=Elastic(1, std=1, control=8))
    points = np.random.default_rng(0).normal(size=(3, 20))
    unit = np.array(spacing)[:, None]
    for index in range(5):
        parameters = augment.draw(0, index, size, spacing)
        moved = parameters["affine.matrix"].astype(float) @ points
        np.testing.assert_allclose(np.linalg.norm(unit * moved, axis=0), np.linalg.norm(unit * points, axis=0), rtol=1e-5)
        assert np.allclose(moved[0], points[0]) == planar
        assert (parameters["elastic.field"][0] == 0).all() == planar


def test_axes_that_all_share_cannot_be_changed_by_one():
    with pytest.raises(ValueError, match="read-only"):
        moved_axes((4, 8, 8), UNIT)[0] = False
    np.testing.assert_array_equal(moved_axes((4, 8, 8), UNIT), [True] * 3)


def test_elastic_displacements_have_their_deviation_in_the_unit_asked_for():
    spacing = (3.0, 0.5, 1.0)
    for unit, expected in (("length", 2.0), ("px", 2.0 * 0.5)):
        augment = Augment(elastic=Elastic(1, std=2, control=32, unit=unit))
        fields = drawn(augment, range(200), (1, 97, 97), spacing)["elastic.field"]
        assert fields.shape == (200, 3, 1, 4, 4)
        deviation = fields[:, 1:].std(dim=(0, 2, 3, 4)).numpy() * spacing[1:]
        np.testing.assert_allclose(deviation, expected, rtol=0.05)


def test_elastic_displacements_are_limited_and_end_no_training():
    """A case of finer pixels than the others must not stop a run at the step at which its sample is drawn."""
    spacing = (1.0, 0.1, 0.2)
    fields = drawn(Augment(elastic=Elastic(1, std=10, control=32, unit="length")), range(200), (1, 97, 65), spacing)[
        "elastic.field"
    ]
    np.testing.assert_allclose(fields[:, 1:].std(dim=(0, 2, 3, 4)), 32 / 4, rtol=0.05)


# What is done with it


@pytest.mark.parametrize("size", [FLAT, DEEP])
def test_a_sample_with_nothing_drawn_is_bitwise_unchanged(size):
    augment, before = everything(), batch(size)
    parameters = drawn(augment, range(6), size)
    for name, value in parameters.items():
        if name in ("flips", "turns") or name.endswith(".on"):
            value[2] = 0
    after = augment.apply(*before, parameters)
    assert same([part[2] for part in after], [part[2] for part in before])
    assert not torch.equal(after[0][3], before[0][3])


@pytest.mark.parametrize("size", [FLAT, DEEP])
def test_mirroring_and_turning_are_exact_and_exchange_left_and_right(size):
    augment, before = Augment(everything().symmetry), batch(size, count=24)
    parameters = drawn(augment, range(24), size)
    after = augment.apply(*before, parameters)
    assert parameters["turns"].unique().tolist() == [0, 1, 2, 3]
    assert parameters["flips"].any(dim=0).tolist() == [size[0] > 1, True, True]
    for i, (flips, turns) in enumerate(zip(parameters["flips"].numpy(), parameters["turns"].tolist(), strict=True)):
        axes = tuple(axis - 3 for axis in range(3) if flips[axis])
        image, valid, label = (np.rot90(np.flip(part[i].numpy(), axes), turns, (-2, -1)) for part in before)
        if flips[2]:
            label = np.array([0, 2, 1, 3], dtype=np.uint8)[label]
        assert same([part[i] for part in after], [torch.from_numpy(part.copy()) for part in (image, valid, label)])


@pytest.mark.parametrize("size", [(1, 31, 40), (9, 14, 17)])
def test_affine_resampling_agrees_with_scipy(size):
    image, valid, label = batch(size, count=4)
    valid[:] = True
    image[:, 0] = torch.rand(image[:, 0].shape)
    parameters = drawn(Augment(affine=Affine(1, rotation=40, scale=(0.7, 1.4), translation=0.1)), range(4), size, (1.5, 1.0, 2.0))
    matrix, shift = parameters["affine.matrix"], parameters["affine.shift"]
    grid = sampling_grid(matrix, shift, torch.zeros(4, 3, 1, 1, 1), image.shape[2:])
    out, seen, classes = (part.numpy() for part in resample(image, valid, label, grid))
    dims = image.ndim - 2
    centre = (np.array(image.shape[2:]) - 1) / 2
    for i in range(4):
        m, t = matrix[i, -dims:, -dims:].double().numpy(), shift[i, -dims:].double().numpy()
        where = {"matrix": m, "offset": centre - m @ centre + t}
        smooth_one = ndimage.affine_transform(image[i, 0].double().numpy(), **where, order=1, mode="nearest")
        np.testing.assert_allclose(out[i, 0][seen[i]], smooth_one[seen[i]], atol=1e-4)
        nearest = ndimage.affine_transform(label[i].numpy(), **where, order=0, mode="grid-constant", cval=255)
        assert (classes[i] == nearest).mean() > 0.999
        assert 0 < (nearest == 255).mean() < 0.9
        assert (classes[i][~seen[i]] == 255).all()
        assert (out[i][:, ~seen[i]] == 0).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_elastic_resampling_agrees_with_torch_upsampling_and_scipy(dims):
    size = (33, 40) if dims == 2 else (9, 14, 17)
    rng = np.random.default_rng(0)
    field = torch.from_numpy(rng.normal(0, 2, (1, 3, 1, 4, 5)).astype(np.float32))
    image = torch.from_numpy(rng.random((1, 1, *size)).astype(np.float32))
    label, valid = (image[:, 0] * 4).to(torch.uint8), torch.ones(1, *size, dtype=torch.bool)
    out, seen, _ = resample(image, valid, label, sampling_grid(torch.eye(3)[None], torch.zeros(1, 3), field, size))
    planes = functional.interpolate(field[0], size=size[-2:], mode="bicubic", align_corners=True).numpy()
    where = np.indices(size) + (planes[1:, 0] if dims == 2 else planes)
    expected = ndimage.map_coordinates(image[0, 0].double().numpy(), where, order=1, mode="nearest")
    inside = seen[0].numpy()
    assert inside.mean() > 0.5
    np.testing.assert_allclose(out[0, 0].numpy()[inside], expected[inside], atol=1e-4)


def test_smooth_fields_are_cubic_along_every_axis():
    field = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 4, 5)))
    dense = smooth(field, (9, 10, 17))
    np.testing.assert_allclose(dense[:, ::4, ::3, ::4], field, atol=1e-12)
    in_plane = functional.interpolate(field, size=(10, 17), mode="bicubic", align_corners=True)
    np.testing.assert_allclose(dense[:, 4], in_plane[:, 1], atol=1e-12)


@pytest.mark.parametrize("size", [(1, 64, 64), (24, 32, 32)])
def test_image_and_label_move_together(size):
    shape = size if size[0] > 1 else size[1:]
    rng = np.random.default_rng(5)
    image = torch.from_numpy(np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 5) for _ in range(4)])[:, None]).float()
    image /= image.std()
    valid = torch.ones(4, *shape, dtype=torch.bool)
    augment = Augment({"flips": ["x", "y", "z"], "rot90": True}, everything().affine, everything().elastic)
    out, seen, label = augment.apply(image, valid, (image[:, 0] > 0).to(torch.uint8), drawn(augment, range(4), size))
    clear = seen & (out[:, 0].abs() > 0.3)
    assert clear.float().mean() > 0.4
    assert ((out[:, 0] > 0).to(torch.uint8) == label)[clear].float().mean() > 0.999


def test_a_disc_in_millimetres_stays_one_when_turned_on_stretched_pixels():
    spacing = (1.0, 0.5, 1.0)
    y, x = (np.indices((80, 40)).astype(float) - np.array([39.5, 19.5])[:, None, None]) * np.array([0.5, 1.0])[:, None, None]
    disc = torch.from_numpy((np.hypot(y, x) < 12).astype(np.uint8))[None]
    augment = Augment(affine=Affine(1, rotation=180))
    valid = torch.ones(1, 80, 40, dtype=torch.bool)
    for index in range(4):
        _, seen, turned = augment.apply(disc[:, None].float(), valid, disc, drawn(augment, [index], (1, 80, 40), spacing))
        assert (turned == disc)[seen].float().mean() > 0.98
        assert not seen.all()


def test_invalid_pixels_do_not_leak_into_their_neighbours():
    valid = torch.from_numpy(np.random.default_rng(6).random((3, 24, 24)) < 0.7)
    image = 3.0 * valid[:, None].float()
    augment = Augment(None, everything().affine, everything().elastic, {"blur": Blur(1)})
    label = torch.where(valid, 1, 255).to(torch.uint8)
    out, seen, label = augment.apply(image, valid, label, drawn(augment, range(3), FLAT))
    assert 0.3 < seen.float().mean() < 0.8
    assert torch.equal(label, torch.where(seen, 1, 255).to(torch.uint8))
    torch.testing.assert_close(out[:, 0][seen], torch.full_like(out[:, 0][seen], 3.0))
    assert (out[:, 0][~seen] == 0).all()


@pytest.mark.parametrize("size", [FLAT, DEEP])
def test_a_sample_does_not_depend_on_its_batch(size):
    augment, whole = everything(0.6), batch(size, count=8)
    parameters = drawn(augment, range(8), size)
    after = augment.apply(*whole, parameters)
    order = torch.tensor([5, 2, 7, 0])
    some = augment.apply(*(part[order] for part in whole), {name: values[order] for name, values in parameters.items()})
    assert same(some, [part[order] for part in after])


@pytest.mark.parametrize("size", [FLAT, DEEP])
def test_samples_done_together_as_on_a_gpu_differ_by_rounding_only(size, monkeypatch):
    augment, whole = everything(0.6), batch(size, count=8)
    parameters = drawn(augment, range(8), size)
    one_by_one = augment.apply(*whole, parameters)
    monkeypatch.setattr(module, "_groups", lambda on, device: [(on.nonzero().flatten(),) * 2])
    together = augment.apply(*whole, parameters)
    torch.testing.assert_close(together[0], one_by_one[0], rtol=1e-4, atol=1e-4)
    assert same(together[1:], one_by_one[1:])


@pytest.mark.parametrize("size", [FLAT, DEEP])
def test_a_gpu_is_not_waited_for(size):
    augment, whole = everything(0.6), batch(size, count=8)
    del augment.intensity["noise"]  # there is no generator for it
    parameters = drawn(augment, range(8), size) | {"keep_zero": torch.ones(8, dtype=torch.int64)}
    there = [part.to("meta") for part in whole]
    with nothing_waited_for():
        made = augment.apply(*there, parameters)
    for before, after in zip(whole, made, strict=True):
        assert (after.shape, after.dtype, after.device.type) == (before.shape, before.dtype, "meta")


def test_the_same_call_gives_the_same_bits_and_touches_nothing_else():
    augment, before = everything(), batch(DEEP)
    kept = [part.clone() for part in before]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002  # the global one is meant
    parameters = drawn(augment, range(6), DEEP)
    assert same(augment.apply(*before, parameters), augment.apply(*before, parameters))
    assert same(before, kept)
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002  # the global one is meant
    assert states[2] == random.getstate()


def test_a_volume_of_one_slice_is_treated_as_a_picture():
    augment, (image, valid, label) = everything(), batch(FLAT)
    parameters = drawn(augment, range(6), FLAT)
    flat = augment.apply(image, valid, label, parameters)
    deep = augment.apply(image[:, :, None], valid[:, None], label[:, None], parameters)
    assert same([deep[1][:, 0], deep[2][:, 0]], flat[1:])
    torch.testing.assert_close(deep[0][:, :, 0], flat[0], rtol=1e-4, atol=1e-4)


# Changes of intensity


def changed(operation, size=FLAT, count=4, offset=0.0):
    augment, (image, valid, label) = Augment(intensity={"it": operation}), batch(size, count)
    image = (image + offset) * valid[:, None]
    parameters = drawn(augment, range(count), size)
    out, seen, classes = augment.apply(image, valid, label, parameters)
    assert same((seen, classes), (valid, label))
    assert (out[~valid[:, None].expand_as(out)] == 0).all()
    own = {name.removeprefix("intensity.it."): values.numpy() for name, values in parameters.items()}
    return image.double().numpy(), valid.numpy(), out.double().numpy(), own


def test_gain_is_linear_with_numbers_of_its_own_for_each_sample_and_channel():
    image, valid, out, _ = changed(Gain(1, factor=(0.5, 2), offset=0.3))
    fits = np.array([[np.polyfit(image[i, c][valid[i]], out[i, c][valid[i]], 1) for c in range(3)] for i in range(4)])
    assert len(np.unique(fits.round(4).reshape(-1, 2), axis=0)) == 12
    assert (fits[..., 0] >= 0.5).all()
    assert (fits[..., 0] <= 2).all()
    assert (abs(fits[..., 1]) <= 0.3 + 1e-6).all()
    for i, c in np.ndindex(4, 3):
        np.testing.assert_allclose(np.polyval(fits[i, c], image[i, c][valid[i]]), out[i, c][valid[i]], atol=1e-5)


@pytest.mark.parametrize("offset", [-9.0, 0.0, 9.0])
def test_gamma_is_a_power_between_each_channels_extremes(offset):
    image, valid, out, parameters = changed(Gamma(1, exponent=(0.5, 2)), offset=offset)
    for i, c in np.ndindex(4, 3):
        values = image[i, c][valid[i]]
        low, extent = values.min(), np.ptp(values)
        expected = ((values - low) / extent) ** parameters["exponent"][i, 0] * extent + low
        np.testing.assert_allclose(out[i, c][valid[i]], expected, atol=1e-5)


def test_gamma_leaves_constant_and_empty_samples_as_they_are():
    augment = Augment(intensity={"gamma": Gamma(1), "bias": Bias(1)})
    image = torch.full((2, 1, 24, 24), 2.5)
    valid = torch.ones(2, 24, 24, dtype=torch.bool)
    valid[1], image[1] = False, 0
    out, _, _ = augment.apply(image, valid, valid.to(torch.uint8), drawn(augment, range(2), FLAT))
    assert torch.equal(out, image)


def test_noise_has_the_drawn_deviation_and_differs_between_samples():
    image, valid, out, parameters = changed(Noise(1, std=0.5), size=(1, 64, 64))
    for i in range(4):
        noise = (out - image)[i][:, valid[i]]
        assert noise.std() == pytest.approx(parameters["std"][i, 0], rel=0.05)
        assert abs(noise.mean()) < 0.05
    assert abs(np.corrcoef((out - image).reshape(4, -1)) - np.eye(4)).max() < 0.05


@pytest.mark.parametrize("size", [FLAT, DEEP])
def test_blur_is_a_gaussian_average_of_valid_pixels(size):
    spacing, sigma = np.array([2.0, 1.0, 1.0]), 0.9
    augment, (image, valid, label) = Augment(intensity={"blur": Blur(1, sigma=(sigma, sigma))}), batch(size, 2)
    out, _, _ = augment.apply(image, valid, label, drawn(augment, range(2), size, tuple(spacing)))
    dims = image.ndim - 2
    each = tuple(sigma / spacing[-dims:])
    blur = {"sigma": each, "mode": "constant", "radius": 3}
    for i, c in np.ndindex(2, 3):
        mass = ndimage.gaussian_filter(valid[i].double().numpy(), **blur)
        expected = ndimage.gaussian_filter(image[i, c].double().numpy(), **blur) / mass
        np.testing.assert_allclose(out[i, c].numpy(), np.where(valid[i], expected, 0), atol=1e-5)


@pytest.mark.parametrize("slices", [1, 3])
def test_what_a_mask_took_away_stays_0_where_it_is_kept(slices):
    """Channels of one slice share a mask, which moves with the image; other samples of the batch change everywhere."""
    augment, (image, valid, label) = everything(), batch(FLAT, channels=2 * slices)
    valid[:], image[image == 0] = True, 1.0
    masks = torch.zeros(6, slices, 24, 24, dtype=torch.bool)
    for number in range(slices):
        masks[:, number, 2 * number : 12, :10] = True
    by_slice = image.view(6, 2, slices, 24, 24)
    by_slice[masks[:, None].expand_as(by_slice)] = 0
    by_slice[:, 0, :, 20:] = 0  # in one of two channels only
    parameters = drawn(augment, range(6), FLAT)
    bare = Augment(augment.symmetry, augment.affine, augment.elastic)
    moved, seen, _ = bare.apply(image, valid, label, parameters)
    moved = moved.view(6, 2, slices, 24, 24)
    kept = (moved == 0).all(dim=1)
    parameters["keep_zero"] = torch.tensor([slices, slices, 0, slices, slices, 0])
    free, _, _ = augment.apply(image, valid, label, {key: value for key, value in parameters.items() if key != "keep_zero"})
    out, _, _ = augment.apply(image, valid, label, parameters)
    for row in range(6):
        one, other = (part[row].view(2, slices, 24, 24) for part in (out, free))
        outside = kept[row][None].expand_as(one)
        assert (outside & seen[row]).any()
        assert (other[outside & seen[row]] != 0).all()
        assert torch.equal(one, torch.where(outside, 0.0, other) if row not in (2, 5) else other)


def test_the_bias_field_is_a_smooth_factor_on_intensities_above_the_darkest():
    image, valid, out, parameters = changed(Bias(1, std=0.5, control=12))
    dense = smooth(torch.from_numpy(parameters["field"]), FLAT).exp()[:, 0].numpy()
    for i, c in np.ndindex(4, 3):
        low = image[i, c][valid[i]].min()
        np.testing.assert_allclose(out[i, c][valid[i]], ((image[i, c] - low) * dense[i] + low)[valid[i]], atol=1e-5)


# Configuration


@pytest.mark.parametrize("name", ["default", "none", "strong"])
def test_configurations_build_and_follow_the_data_sets_symmetry(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose(name)
    root = OmegaConf.create({"data": {"symmetry": {"flips": ["x"], "rot90": False, "swap": {"x": [[1, 2]]}}}, "augment": node})
    augment, before = build(OmegaConf.to_container(root, resolve=True)["augment"], "augment"), batch(FLAT, count=8)
    after = augment.apply(*before, drawn(augment, range(8), FLAT))
    assert same(before, after) == (name == "none")
    assert augment.symmetry == (Symmetry() if name == "none" else Symmetry(("x",), swap={"x": ((1, 2),)}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augment({"flips": ["w"]}), r"axis 'w'; expected 'z', 'y' or 'x'"),
        (lambda: Augment({"flip": ["x"]}), r"takes no 'flip'.*Did you mean 'flips'"),
        (lambda: Augment({"swap": {"x": [1, 2]}}), r"swap=\{x: \[\[1, 2\]\]\}"),
        (lambda: Augment({"swap": {"x": [["1", 2.9]]}}), r"swap=\{x: \[\[1, 2\]\]\}"),
        (lambda: Augment({"rot90": True}).draw(0, 0, (1, 20, 30), UNIT), r"20 x 30 pixels.*data.symmetry.rot90=false"),
        (lambda: Noise(1.5), r"Noise .* probability=1.5"),
        (lambda: Affine(1, scale=(1.2, 0.8)), r"Affine .* scale=\[1.2, 0.8\]"),
        (lambda: Gamma(1, exponent=(0, 2)), r"Gamma .* exponent"),
        (lambda: Elastic(1, unit="mm"), r"unit=length or unit=px"),
        (lambda: Elastic(1, std=math.nan), r"Elastic .* std=nan"),
        (lambda: Elastic(1, control=math.nan), r"Elastic .* control=nan"),
        (lambda: Affine(1, scale=(0.8, math.inf)), r"Affine .* scale=\[0.8, inf\]"),
        (lambda: Affine(1, rotation=-10), r"Affine .* rotation=-10; expected a number from 0 to 360"),
        (lambda: Affine(1, rotation=math.nan), r"Affine .* rotation=nan"),
        (lambda: Affine(1, translation=-0.1), r"Affine .* translation=-0.1; expected a number from 0 to 1"),
        (lambda: Affine(1, translation=1.5), r"Affine .* translation=1.5"),
        (lambda: Bias(1, std=-1), r"Bias .* std=-1; expected a number from 0 up"),
        (lambda: Bias(1, control=0), r"Bias .* control=0; expected a number from 1 up"),
        (lambda: Blur(1, sigma=(1, 1e30)), r"Blur .* sigma=\[1.0, 1e\+30\]; expected two numbers .* at most 1000"),
        (lambda: Noise(1, std=-1), r"Noise .* std=-1"),
        (lambda: Noise(1, std=math.nan), r"Noise .* std=nan"),
        (lambda: Gain(1, offset=-1), r"Gain .* offset=-1; expected a number from 0 up, for example offset=0.2"),
    ],
)
def test_mistakes_are_explained(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


class Own(Contrast):
    """A change of intensity as a user may write it, which draws what it is told to."""

    def __init__(self, values: object) -> None:
        super().__init__(0.5)
        object.__setattr__(self, "values", values)

    def draw(self, rng, size, spacing):
        return self.values(rng) if callable(self.values) else self.values

    def apply(self, image, weight, drawn):
        """Changes nothing."""


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gain": 0.5}, "'gain' is a float"),
        ({"gain": np.float32(0.5)}, "'gain' is a float32"),
        ({"gain": np.array(["a"])}, "'gain' is an array of <U1"),
        ([np.zeros(1)], "a list"),
        (lambda rng: {"gain": np.zeros(rng.integers(1, 4))}, r"'gain' is an array of shape .* and for another sample 'gain' is an"),
        (
            lambda rng: {f"gain{rng.integers(3)}": np.zeros(1)},
            r"'gain\d' is an array of shape \(1,\), and for another sample 'gain",
        ),
    ],
)
def test_what_does_not_stack_to_a_batch_is_refused(values: object, said: str) -> None:
    augment = Augment(intensity={"own": Own(values)})
    with pytest.raises(ConfigError, match=rf"'draw' of 'augment.intensity.own' \({__name__}.Own\) gives {said}.*np.array\(value"):
        drawn(augment, range(20), FLAT)


def test_an_own_change_that_draws_arrays_is_made() -> None:
    found = drawn(Augment(intensity={"own": Own(lambda rng: {"gain": rng.random(2)})}), range(20), FLAT)
    assert found["intensity.own.gain"].shape == (20, 2)
    assert torch.equal(found["intensity.own.gain"].any(dim=1), found["intensity.own.on"])


class NoContrast(Operation):
    """An operation that changes nothing."""

    def draw(self, rng, size, spacing):
        return {}


class NoProbability(Own):
    """A constructor that forgets its base class's."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (NoContrast(0.5), "NoContrast, and expected is a subclass of voxtile.data.contrast.Contrast"),
        (NoProbability(), "NoProbability, which has no probability"),
    ],
)
def test_an_own_change_of_another_kind_is_refused(made: Operation, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"'augment.intensity.own' builds {__name__}.{said}"):
        Augment(intensity={"own": made})
