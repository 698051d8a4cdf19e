"""Networks that judge windows: ensembles, what is mirrored, and how many threads do it."""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from tests.testers.networks import noise
from tests.testers.waiting import nothing_waited_for
from tests.testers.windows import CHANNELS, CLASSES, SCALE, Convolutions, case_of, joined, whole
from voxtile.cases.window import Window
from voxtile.data.normalise import Intensity
from voxtile.data.symmetry import Symmetry
from voxtile.inference.judge import Judge
from voxtile.inference.predictor import Predictor
from voxtile.inference.procedure import Procedure, mirrored_mean

OTHER = Intensity((-np.inf,) * 2, (np.inf,) * 2, (30.0, 90.0), (20.0, 40.0))


# --- mirrored copies


def sideways(seed, dims=2):
    """A function of images that treats no two directions alike, and keeps their size."""
    kernel = noise(3, 2, *[3] * dims, seed=seed)
    convolve = nn.functional.conv3d if dims == 3 else nn.functional.conv2d
    return lambda image: torch.softmax(convolve(image, kernel, padding=1), dim=1)


@pytest.mark.parametrize("axes", [("x",), ("y",), ("y", "x"), ("z",), ("z", "y", "x"), ("x", "z")])
def test_the_mean_over_mirrored_copies_is_that_of_all_combinations(axes):
    softmax, image = sideways(0, 3), noise(2, 2, 5, 6, 7)
    copies = []
    for count in range(len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            array = image.numpy()
            at = [{"z": 2, "y": 3, "x": 4}[axis] for axis in chosen]
            copies.append(np.flip(softmax(torch.from_numpy(np.flip(array, at).copy())).numpy(), at))
    assert len(copies) == 2 ** len(axes)
    np.testing.assert_allclose(mirrored_mean(softmax, image, axes).numpy(), np.mean(copies, axis=0), atol=1e-6)
    assert np.abs(copies[0] - copies[-1]).max() > 0.1


@pytest.mark.parametrize("axes", [("x",), ("y",), ("y", "x"), ("z", "x")])
def test_a_marked_corner_comes_back_to_its_place(axes):
    """Each copy is mirrored back by the inverse: what marks the bright corner marks it in every copy."""
    image = torch.zeros(1, 1, 4, 5, 6)
    image[..., 0, 0, 0] = 1
    assert torch.equal(mirrored_mean(lambda each: each, image, axes), image)

    def first(each):  # marks the first corner, whatever is seen
        marked = torch.zeros_like(each)
        marked[..., 0, 0, 0] = 1
        return marked

    found = mirrored_mean(first, image, axes)
    last = [3 if "z" in axes else 0, 4 if "y" in axes else 0, 5 if "x" in axes else 0]
    assert found[..., 0, 0, 0] == found[..., last[0], last[1], last[2]] == 1 / 2 ** len(axes)
    assert found.sum() == 1


class Sided(nn.Module):
    """Calls what it sees of class 1 on the image's left half and of class 2 on its right half, and of class 3 in its front half."""

    def __init__(self, dims=2):
        super().__init__()
        self.dims = dims

    def forward(self, image):
        x = torch.linspace(-3, 3, image.shape[-1]).expand(image.shape[0], 1, *image.shape[2:])
        z = torch.linspace(-1, 1, image.shape[2]).view(-1, 1, 1) if self.dims == 3 else torch.ones(())
        return torch.cat([0 * x, -x, x, 2 * z * torch.ones_like(x), -2 * z * torch.ones_like(x)], dim=1)


@pytest.mark.parametrize(("dims", "size", "rotations"), [(2, (1, 16, 16), 1), (2, (1, 16, 16), 3), (3, (6, 16, 16), 1)])
def test_classes_that_change_places_are_exchanged_in_the_copies_of_the_networks_that_were_trained_so(dims, size, rotations):
    case = case_of((6, 16, 16))
    swap = {"x": [[1, 2]], "z": [[3, 4]]}
    swapping, plain = Symmetry(("z", "x"), swap=swap), Symmetry(("z", "x"))
    axes = ("x", "y") if dims == 2 else ("z", "y", "x")

    def found(*symmetries, mirrors=axes):
        procedure = Procedure(rotations=rotations, mirrors=mirrors, symmetries=symmetries)
        networks = [Sided(dims) for _ in symmetries]
        predictor = Predictor(networks, size, 0.0, workers=0, procedure=procedure)
        return np.stack([band.probabilities for band in predictor.bands(case, [SCALE] * len(networks))])

    alone = found(plain, mirrors=())
    np.testing.assert_allclose(found(swapping), alone, atol=1e-6)  # each copy says what the image itself says
    assert np.abs(found(plain) - alone).max() > (0.2 if rotations == 1 else 0.005)
    np.testing.assert_allclose(found(swapping, plain), (found(swapping) + found(plain)) / 2, atol=1e-6)
    np.testing.assert_array_equal(found(swapping, mirrors=("y",)), found(plain, mirrors=("y",)))


def test_a_gpu_is_not_waited_for():
    procedure = Procedure(rotations=3, mirrors=("x",), symmetries=(Symmetry(("x",), swap={"x": [[1, 2]]}),))
    judge, size = Judge([Convolutions()], "meta", torch.float32, procedure), (1, 16, 16)
    margin = judge.margin(size)[1]
    pixels = torch.empty(2, CHANNELS, 1, 16 + 2 * margin, 16 + 2 * margin, device="meta")
    with nothing_waited_for():
        found = judge(pixels, pixels[:, 0] == 0, [SCALE], torch.zeros(2, 3, dtype=torch.int64), size)
    assert found.shape == (2, CLASSES, *size)


def test_the_pairs_that_count_are_those_along_the_axes_that_are_mirrored():
    swapping, plain = Symmetry(("z", "x"), swap={"x": [[1, 2]], "z": [[3, 4]]}), Symmetry(("x",))
    assert Procedure(mirrors=("y", "x"), symmetries=(plain, swapping)).swapped == [{}, {"x": ((1, 2),)}]
    assert Procedure(mirrors=("y",), symmetries=(plain, swapping)).swapped == []
    assert repr(Procedure(mirrors=("x",), symmetries=(plain,))) == repr(Procedure(mirrors=("x",)))
    with pytest.raises(ValueError, match="1 networks have 2 symmetries"):
        Judge([Convolutions()], "cpu", torch.float32, Procedure(mirrors=("x",), symmetries=(plain, swapping)))


@pytest.mark.parametrize(
    ("dims", "size", "axes"), [(2, (1, 8, 8), ("y", "x")), (3, (4, 8, 8), ("z",)), (3, (4, 8, 8), ("z", "y", "x"))]
)
def test_mirrored_windows_with_a_margin_are_the_mean_over_mirrored_cases(dims, size, axes):
    network, case = Convolutions(dims, margin=2), case_of((6, 21, 18))
    found, _ = joined(Predictor(network, size, 0.25, workers=0, procedure=Procedure(mirrors=axes)), case)
    copies = []
    for kept in itertools.product((False, True), repeat=len(axes)):
        at = ["zyx".index(axis) + 1 for axis, flipped in zip(axes, kept, strict=True) if flipped]
        mirrored = case_of(case.shape)
        mirrored.image.array = np.flip(case.image.array, at)
        copies.append(np.flip(whole(network, mirrored), at))
    np.testing.assert_allclose(found, np.mean(copies, axis=0), atol=5e-6)
    assert np.abs(copies[0] - copies[-1]).max() > 0.05


def test_turned_and_mirrored_copies_of_a_network_with_a_margin_are_the_mean_over_the_eight_of_a_square():
    network, case = Convolutions(margin=1), case_of((1, 16, 16))
    procedure = Procedure(rotations=4, mirrors=("x",))
    found, _ = joined(Predictor(network, (1, 16, 16), workers=0, procedure=procedure), case)
    copies = []
    for turns, flipped in itertools.product(range(4), (False, True)):
        turned = case_of(case.shape)
        array = np.rot90(case.image.array, turns, (2, 3))
        turned.image.array = array[..., ::-1] if flipped else array
        said = whole(network, turned)
        copies.append(np.rot90(said[..., ::-1] if flipped else said, -turns, (2, 3)))
    expected = np.mean(copies, axis=0)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.abs(expected - copies[0]).max() > 0.05


# --- ensembles


@pytest.mark.parametrize(("dims", "size"), [(2, (1, 8, 12)), (3, (3, 8, 8))])
@pytest.mark.parametrize("procedure", [Procedure(), Procedure(mirrors=("x",), halo=2)])
def test_networks_of_different_margins_and_intensities_say_the_mean_of_each_alone(dims, size, procedure):
    networks, intensities = [Convolutions(dims, margin) for margin in (0, 1, 3)], [SCALE, OTHER, SCALE]
    valid = np.random.default_rng(3).random((5, 23, 19)) < 0.9
    case = case_of((5, 23, 19), valid=valid)

    def probabilities(some, scales):
        out = np.full((CLASSES, *case.shape), -1, np.float32)
        for band in Predictor(some, size, workers=0, procedure=procedure).bands(case, scales):
            out[:, *band.window.slices] = band.probabilities
        return out

    alone = [probabilities(network, scale) for network, scale in zip(networks, intensities, strict=True)]
    np.testing.assert_allclose(probabilities(networks, intensities), np.mean(alone, axis=0), atol=2e-6)
    assert np.nanmax(np.abs(alone[0] - alone[1])) > 0.1


def test_networks_that_see_slices_and_boxes_have_no_windows_in_common():
    with pytest.raises(ValueError, match="slices and networks that see boxes"):
        Judge([Convolutions(2), Convolutions(3)], "cpu", torch.float32, Procedure())


def test_an_error_of_a_later_window_does_not_change_the_order_of_the_ones_to_come():
    """A network that cannot view tensors with their channels last says so at once; memory may run out at any time."""

    class Failing(nn.Conv2d):
        def forward(self, image):
            orders.append(image.is_contiguous())
            if fails and fails.pop():
                raise RuntimeError("could not allocate")
            return super().forward(image)

    orders: list[bool] = []

    image, seen = torch.zeros(1, 2, 1, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    judge = Judge([Failing(2, 3, 1)], "cpu", torch.float32, Procedure())
    for fails in ([False], [True], [False]):
        with pytest.raises(RuntimeError, match="allocate") if any(fails) else nullcontext():
            judge(image, seen, [SCALE], torch.zeros(1, 3), (1, 8, 8))
    assert orders == [False] * 3
    orders.clear()
    judge = Judge([Failing(2, 3, 1)], "cpu", torch.float32, Procedure())
    fails = [True]
    judge(image, seen, [SCALE], torch.zeros(1, 3), (1, 8, 8))
    assert orders == [False, True]


# --- halo


def test_a_halo_shows_a_network_that_pads_real_neighbours_and_takes_seams_away():
    """Convolutions that pad with zeros say the same in every window only where their field is real around it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 3, 1))
    network.stride, case = 1, case_of((1, 70, 61))
    network.margin = 0
    pixels, _ = case.read(Window(0, -3, -3, 1, 76, 67), pad="reflect")
    scaled = (pixels - np.reshape(SCALE.mean, (-1, 1, 1, 1))) / np.reshape(SCALE.std, (-1, 1, 1, 1))
    with torch.inference_mode():
        expected = torch.softmax(network.eval()(torch.from_numpy(scaled[None, :, 0]).float()), 1).numpy()[0, :, 3:-3, 3:-3]

    def seams(halo):
        found, _ = joined(Predictor(network, (1, 16, 16), 0.0, workers=0, procedure=Procedure(halo=halo)), case)
        return np.abs(found[:, 0] - expected).max()

    assert seams(3) < 2e-6
    assert seams(2) > 1e-3
    assert seams(0) > 1e-2


def test_boxes_have_their_halo_along_z_too():
    assert Procedure(halo=3).margin((4, 8, 8), planar=False) == (3, 3, 3)
    assert Procedure(halo=3).margin((1, 8, 8)) == (0, 3, 3)
    torch.manual_seed(0)
    network, case = nn.Conv3d(2, 3, 3, padding=1).eval(), case_of((9, 20, 17))
    network.dims = 3
    pixels, _ = case.read(Window.whole(case.shape).grown((1, 1, 1)), pad="reflect")
    scaled = (pixels - np.reshape(SCALE.mean, (-1, 1, 1, 1))) / np.reshape(SCALE.std, (-1, 1, 1, 1))
    with torch.inference_mode():
        expected = torch.softmax(network(torch.from_numpy(scaled[None]).float()), 1).numpy()[0, :, 1:-1, 1:-1, 1:-1]
    for halo, equal in ((1, True), (0, False)):
        found, _ = joined(Predictor(network, (4, 8, 8), 0.0, workers=0, procedure=Procedure(halo=halo)), case)
        assert (np.abs(found - expected).max() < 2e-6) == equal


# --- threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("dims", "size"), [(2, (1, 8, 8)), (3, (2, 8, 8))])
def test_any_number_of_judging_threads_gives_the_same_bits(two_threads, dims, size):
    case = case_of((4, 41, 37), valid=np.random.default_rng(2).random((4, 41, 37)) < 0.5)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        predictor = Predictor([Convolutions(dims, margin=1), Convolutions(dims)], size, batch_size=2)
        found.append(np.concatenate([band.probabilities.numpy().ravel() for band in predictor.bands(case, [SCALE, OTHER])]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_each_thread_works_alone_and_the_number_comes_back(two_threads):
    during = []

    class Watching(Convolutions):
        def forward(self, image, context=0):
            during.append(torch.get_num_threads())
            return super().forward(image, context)

    predictor = Predictor(Watching(), (1, 8, 8))
    assert len(list(predictor.bands(case_of((1, 40, 30)), SCALE))) > 2
    assert set(during) == {1}
    assert torch.get_num_threads() == 2
    abandoned = predictor.bands(case_of((1, 40, 30)), SCALE)
    next(abandoned)
    assert torch.get_num_threads() == 1
    abandoned.close()
    assert torch.get_num_threads() == 2


def test_the_number_of_threads_comes_back_after_an_error(two_threads):
    class Broken(Convolutions):
        def forward(self, image, context=0):
            if len(self.sent) > 4:
                raise RuntimeError("out of order")
            return super().forward(image, context)

    with pytest.raises(RuntimeError, match="out of order"):
        list(Predictor(Broken(), (1, 8, 8), batch_size=1).bands(case_of((1, 40, 30)), SCALE))
    assert torch.get_num_threads() == 2


def test_samples_are_drawn_by_one_thread(two_threads):
    """There is one generator that dropout draws from."""
    judge = Judge([Convolutions()], "cpu", torch.float32, Procedure(samples=3))
    with judge.threads() as count:
        assert count == 1
