"""What every network keeps (contract 3 of the design), in one inherited tester.

A new network is a subclass that says how to build a small one:

    class TestUNet(NetworkTester):
        def make(self, in_channels, num_classes, dims=2):
            return UNet(in_channels, num_classes, width=1 / 16, depth=2, dims=dims)
"""

from abc import ABC, abstractmethod

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from voxtile.models.network import Output

few = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.differing_executors])


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def perturbed(network):
    """The network with small numbers in layers that start as zeros, through which no gradient would pass on."""
    for number, value in enumerate(network.parameters()):
        if value.requires_grad and value.ndim > 1 and not value.any():
            with torch.no_grad():
                value.copy_(0.1 * noise(*value.shape, seed=number))
    return network


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


class NetworkTester(ABC):
    """Attributes for subclasses to set.

    dims: what the network takes: 2 for images, 3 for volumes.
    aligned: an image (height, width) that the network sees alike from left and from right: nothing is padded on one side only;
        None where mirrored kernels do not make a mirrored network.
    """

    dims = (2, 3)
    aligned = (64, 64)

    @abstractmethod
    def make(self, in_channels, num_classes, dims=2):
        """Builds a small network."""

    @pytest.fixture(autouse=True)
    def _seed(self):
        torch.manual_seed(0)

    def built(self, in_channels=3, num_classes=4, dims=2):
        network = self.make(in_channels, num_classes, dims)
        assert (network.dims, network.stride >= 1, network.margin >= 0, network.min_train_size >= 1) == (dims, True, True, True)
        return network

    def batch(self, network, size=2, channels=3):
        """A training batch of the smallest images that the network promises to learn from."""
        return noise(size, channels, *(network.min_train_size,) * network.dims)

    @few
    @given(size=st.tuples(st.integers(1, 70), st.integers(1, 70)))
    def test_images_of_any_size_get_logits_of_their_size(self, size):
        with torch.inference_mode():
            assert self.built().eval()(noise(1, 3, *size)).shape == (1, 4, *size)

    @pytest.mark.parametrize("size", [(1, 1), (1, 97), (2, 2), (63, 65), (16, 16)])
    def test_odd_sizes_and_a_single_pixel_give_finite_logits(self, size):
        with torch.inference_mode():
            logits = self.built().eval()(noise(1, 3, *size))
        assert logits.shape == (1, 4, *size)
        assert logits.isfinite().all()

    @pytest.mark.parametrize("size", [(1, 1, 1), (3, 17, 9), (8, 8, 8)])
    def test_volumes_of_any_size_get_logits_of_their_size(self, size):
        if 3 not in self.dims:
            pytest.skip("a network for images only")
        with torch.inference_mode():
            assert self.built(dims=3).eval()(noise(1, 3, *size)).shape == (1, 4, *size)

    @pytest.mark.parametrize(("channels", "classes"), [(1, 21), (3, 2), (5, 2), (13, 21)])
    def test_any_number_of_channels_and_classes(self, channels, classes):
        for dims in self.dims:
            size = (2, 5, 6)[-dims:]
            with torch.inference_mode():
                logits = self.built(channels, classes, dims).eval()(noise(2, channels, *size))
            assert logits.shape == (2, classes, *size)

    def test_in_evaluation_a_result_does_not_depend_on_the_rest_of_the_batch(self):
        network, images = self.built().eval(), noise(3, 3, 20, 24)
        with torch.inference_mode():
            alone = torch.cat([network(image[None]) for image in images])
            torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)

    def test_the_image_given_is_not_changed(self):
        image = noise(1, 3, 17, 18)
        with torch.inference_mode():
            self.built().eval()(image)
        assert torch.equal(image, noise(1, 3, 17, 18))

    def test_it_is_built_on_the_meta_device_with_the_same_tensors(self):
        real = self.built()
        with torch.device("meta"):
            described = self.built()
        assert all(value.is_meta for value in described.state_dict().values())
        assert {k: v.shape for k, v in described.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}

    def test_the_seed_decides_the_first_weights(self):
        weights = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            weights.append(torch.cat([value.flatten() for value in self.built().parameters()]))
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_gradients_reach_every_parameter_that_learns_and_no_other(self):
        for dims in self.dims:
            network = perturbed(self.built(dims=dims)).train()
            output = scores(network(self.batch(network)))
            (output * noise(*output.shape, seed=1)).sum().backward()
            learning = {name: value for name, value in network.named_parameters() if value.requires_grad}
            assert [name for name, value in learning.items() if value.grad is None or not value.grad.any()] == []
            assert all(value.grad is None for name, value in network.named_parameters() if name not in learning)

    @pytest.mark.parametrize("size", [1, 2])
    def test_it_learns_and_judges_images_of_the_smallest_size(self, size):
        for dims in self.dims:
            network = self.built(dims=dims).train()
            images = self.batch(network, size)
            output = network(images)
            if not isinstance(output, Output):
                assert output.shape == (size, 4, *images.shape[2:])
            scores(output).square().mean().backward()
            assert all(value.grad.isfinite().all() for value in network.parameters() if value.grad is not None)
            with torch.inference_mode():
                assert network.eval()(images).isfinite().all()

    @pytest.mark.slow
    def test_an_exported_network_gives_the_same_logits(self):
        network = perturbed(self.built()).eval()
        image = noise(1, 3, 40, 50)
        program = torch.export.export(network, (image,)).module()
        with torch.inference_mode():
            torch.testing.assert_close(program(image), network(image), rtol=1e-4, atol=1e-5)

    def test_mirrored_kernels_make_a_mirrored_network(self):
        if self.aligned is None:
            pytest.skip("a network that does not treat left and right alike")
        network, image = perturbed(self.built()).eval(), noise(1, 3, *self.aligned)
        with torch.inference_mode():
            expected = network(image).flip(-1)
            mirror(network)
            torch.testing.assert_close(network(image.flip(-1)), expected, rtol=1e-4, atol=1e-5)

    def test_weights_go_to_safetensors_and_back_without_changing_a_bit(self, tmp_path):
        network, images = self.built(), noise(2, 3, 32, 32)
        network.train()(images)  # statistics, where there are any, are part of what is kept
        save_file(network.state_dict(), tmp_path / "weights.safetensors")
        torch.manual_seed(1)
        other = self.built()
        other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
        with torch.inference_mode():
            assert torch.equal(other.eval()(images), network.eval()(images))

    def test_channels_last_gives_the_same_result(self):
        network, images = self.built().eval(), noise(2, 3, 24, 20)
        with torch.inference_mode():
            expected = network(images)
            last = network.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
