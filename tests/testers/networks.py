"""What every network keeps (contract 3 of the design), in one inherited tester, and networks to compare with a specification.

A new network is a subclass that says how to build a small one:

    class TestUNet(NetworkTester):
        def make(self, in_channels, num_classes, dims=2):
            return UNet(in_channels, num_classes, width=1 / 16, depth=2, dims=dims)
"""

import math
from abc import ABC, abstractmethod
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from voxtile.commands.allowed import build_network
from voxtile.commands.compose import conf_dir
from voxtile.models.network import Output, score_maps

few = settings(
    max_examples=2,
    deadline=None,
    # One test runs in each subclass, and all its examples on the same networks, which they do not change for good.
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.function_scoped_fixture],
)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def without_numbers():
    """What is built inside is on the meta device and has shapes only, so that the paper's width costs nothing.

    Nor are first weights drawn, which there takes two thirds of the time.
    """

    def kept(value, *_, **__):
        return value

    with torch.device("meta"), patch.object(torch.Tensor, "normal_", kept), patch.object(torch.Tensor, "uniform_", kept):
        yield


@cache
def written(option):
    """What stands in the file of `model=<option>`."""
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{option}.yaml"))


def configured(option, in_channels=3, num_classes=21, **changes):
    """The network of `model=<option>`, at the paper's width unless `changes` of its settings say otherwise."""
    return build_network(written(option) | {"width": 1.0} | changes, (), in_channels, num_classes)


def described(option, in_channels=3, num_classes=21, **changes):
    """`configured` without numbers."""
    with without_numbers():
        return configured(option, in_channels, num_classes, **changes)


def counted(network):
    """How many values learn, and how many there are."""
    values = list(network.parameters())
    return sum(value.numel() for value in values if value.requires_grad), sum(value.numel() for value in values)


def by_formula(network):
    """Gives every tensor, but for fixed up-sampling, numbers that follow from its place alone and keep activations alive.

    The sine's index is squared, since a matrix of a plain sine has rank 2, through which next to nothing passes, and it runs on
    from tensor to tensor, since tensors of equal numbers could be exchanged unseen.
    """
    start, fixed = 0, {name for name, value in network.named_parameters() if not value.requires_grad and "upscore" in name}
    for name, value in network.state_dict().items():
        if name in fixed or name.endswith("num_batches_tracked"):
            continue
        waves = (0.37 * torch.arange(start, start + value.numel(), dtype=torch.float64) ** 2).sin().view(value.shape)
        start += value.numel()
        if value.ndim > 1:
            value.copy_(waves * math.sqrt(4 / value[0].numel()))
        elif name.endswith(("weight", "running_var")):  # of a normalisation
            value.copy_(1 + 0.5 * waves)
        else:
            value.copy_(0.3 * waves)
    return network


def perturbed(network):
    """The network with small numbers in layers that start as zeros, which would give zeros and let no gradient pass."""
    for number, value in enumerate(network.parameters()):
        if value.requires_grad and value.ndim > 1 and not value.any():
            with torch.no_grad():
                value.copy_(0.1 * noise(*value.shape, seed=number))
    return network


def varied(numbers):
    """The numbers, which differ: that zeros equal zeros would prove nothing."""
    assert numbers.std() > 1e-3
    return numbers


def scores(output):
    """All numbers of what a network returns in training, in one line."""
    maps = [score_map.logits for score_map in output.maps] if isinstance(output, Output) else [output]
    return torch.cat([logits.flatten() for logits in maps])


def mirror(network):
    """Mirrors every kernel left to right."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            with torch.no_grad():
                layer.weight.copy_(layer.weight.flip(-1))


class VariantTester(ABC):
    """What is tested of a variant too, whose plain network has a `NetworkTester`: sizes, gradients, keeping.

    Attributes for subclasses to set.

    dims: what the network takes: 2 for images, 3 for volumes.
    """

    dims = (2, 3)

    @abstractmethod
    def make(self, in_channels, num_classes, dims=2):
        """Builds a small network."""

    @pytest.fixture(autouse=True)
    def _seed(self):
        torch.manual_seed(0)

    @pytest.fixture
    def networks(self):
        """One network for each number of dimensions."""
        return {dims: perturbed(self.built(dims=dims)) for dims in self.dims}

    def built(self, in_channels=3, num_classes=4, dims=2):
        network = self.make(in_channels, num_classes, dims)
        assert (network.dims, network.stride >= 1, network.margin >= 0, network.min_train_size >= 1) == (dims, True, True, True)
        return network

    def batch(self, network):
        """A training batch of two of the smallest images that the network promises to learn from."""
        return noise(2, 3, *(network.min_train_size,) * network.dims)

    @few
    @example(size=(1, 1, 1))
    @example(size=(3, 17, 97))
    @given(size=st.tuples(st.integers(1, 5), st.integers(2, 70), st.integers(2, 70)))
    def test_images_of_any_size_get_finite_logits_of_their_size_and_stay_as_they_are(self, networks, size):
        for dims, network in networks.items():
            image = noise(1, 3, *size[-dims:])
            with torch.inference_mode():
                logits = network.eval()(image)
            assert logits.shape == (1, 4, *size[-dims:])
            assert logits.isfinite().all()
            assert torch.equal(image, noise(1, 3, *size[-dims:]))

    @few
    @example(more=(0, 0, 0))
    @given(more=st.tuples(st.integers(0, 3), st.integers(1, 33), st.integers(1, 33)))
    def test_it_learns_from_a_single_image_of_any_size_from_the_smallest_up(self, networks, more):
        for dims, network in networks.items():
            size = [network.min_train_size + pixels for pixels in more[-dims:]]
            image, label = noise(1, 3, *size), torch.zeros(1, *size, dtype=torch.uint8)
            network.train().zero_grad()
            output = network(image)
            for each in score_maps(output):
                assert each.logits.shape == (1, 4, *each.label(label).shape[1:])
            numbers = scores(output)
            (numbers * noise(*numbers.shape, seed=1)).sum().backward()
            gradients = [value.grad for value in network.parameters() if value.grad is not None]
            assert any(gradient.any() for gradient in gradients)
            assert all(gradient.isfinite().all() for gradient in gradients)
            with torch.inference_mode():
                assert network.eval()(image).isfinite().all()

    def test_gradients_reach_every_parameter_that_learns_and_no_other(self, networks):
        for network in networks.values():
            output = scores(network.train()(self.batch(network)))
            (output * noise(*output.shape, seed=1)).sum().backward()
            learning = {name: value for name, value in network.named_parameters() if value.requires_grad}
            assert [name for name, value in learning.items() if value.grad is None or not value.grad.any()] == []
            assert all(value.grad is None for name, value in network.named_parameters() if name not in learning)

    def test_weights_go_to_safetensors_and_back_without_changing_a_bit(self, tmp_path):
        network, images = perturbed(self.built()), noise(2, 3, 32, 32)
        network.train()(images)  # statistics, where there are any, are part of what is kept
        save_file(network.state_dict(), tmp_path / "weights.safetensors")
        torch.manual_seed(1)
        other = self.built()
        other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
        kept, read = network.state_dict(), other.state_dict()
        assert kept.keys() == read.keys()
        assert [name for name, value in kept.items() if not torch.equal(read[name], value)] == []
        with torch.inference_mode():
            assert torch.equal(other.eval()(images[:1]), varied(network.eval()(images[:1])))


class NetworkTester(VariantTester):
    """All that a network keeps.

    Attributes for subclasses to set, beside `dims`.

    aligned: an image (height, width) that the network sees alike from left and from right: nothing is padded on one side only;
        None where mirrored kernels do not make a mirrored network.
    """

    aligned = (64, 64)

    @pytest.mark.parametrize(("channels", "classes"), [(1, 21), (5, 2), (13, 21)])
    def test_any_number_of_channels_and_classes(self, channels, classes):
        for dims in self.dims:
            size = (2, 5, 6)[-dims:]
            with torch.inference_mode():
                logits = self.built(channels, classes, dims).eval()(noise(1, channels, *size))
            assert logits.shape == (1, classes, *size)

    def test_in_evaluation_a_result_does_not_depend_on_the_rest_of_the_batch(self):
        network, images = perturbed(self.built()).eval(), noise(2, 3, 20, 24)
        with torch.inference_mode():
            alone = torch.cat([network(image[None]) for image in images])
            assert alone.std(dim=0).mean() > 1e-3  # each image has logits of its own
            torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)

    def test_it_is_built_on_the_meta_device_with_the_same_tensors(self):
        real = self.built()
        with torch.device("meta"):
            empty = self.built()
        assert all(value.is_meta for value in empty.state_dict().values())
        assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}

    def test_the_seed_decides_the_first_weights(self):
        weights = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            weights.append(torch.cat([value.flatten() for value in self.built().parameters()]))
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    @pytest.mark.slow
    def test_an_exported_network_gives_the_same_logits(self):
        network = perturbed(self.built()).eval()
        image = noise(1, 3, 40, 50)
        program = torch.export.export(network, (image,)).module()
        with torch.inference_mode():
            torch.testing.assert_close(program(image), varied(network(image)), rtol=1e-4, atol=1e-5)

    def test_mirrored_kernels_make_a_mirrored_network(self):
        if self.aligned is None:
            pytest.skip("a network that does not treat left and right alike")
        network, image = perturbed(self.built()).eval(), noise(1, 3, *self.aligned)
        with torch.inference_mode():
            expected = varied(network(image)).flip(-1)
            mirror(network)
            torch.testing.assert_close(network(image.flip(-1)), expected, rtol=1e-4, atol=1e-5)

    def test_channels_last_gives_the_same_result(self):
        network, images = perturbed(self.built()).eval(), noise(2, 3, 24, 20)
        with torch.inference_mode():
            expected = varied(network(images))
            last = network.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
