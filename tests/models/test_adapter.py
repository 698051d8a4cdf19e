import copy
import importlib.util
from functools import partial

import monai
import pytest
import torch
from hydra.utils import instantiate
from monai.networks.nets import AttentionUnet, BasicUNetPlusPlus, DynUNet, Quicknat, SegResNet, SegResNetDS, SegResNetVAE, UNet
from omegaconf import OmegaConf
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import nn

from tests.testers.networks import NetworkTester, noise
from voxtile.commands.allowed import build_network
from voxtile.errors import ConfigError
from voxtile.models.adapter import Adapted
from voxtile.models.network import Output

needs_smp = pytest.mark.skipif(
    importlib.util.find_spec("segmentation_models_pytorch") is None, reason="needs pip install 'voxtile[zoo]'"
)


def dynunet(dims=2, **more):
    settings = {"kernel_size": [3, 3, 3, 3], "strides": [1, 2, 2, 2], "upsample_kernel_size": [2, 2, 2], "filters": [4, 6, 8, 8]}
    return partial(DynUNet, spatial_dims=dims, **settings | more)


class TestUNetOfMonai(NetworkTester):
    aligned = None  # a convolution with stride 2 looks further to one side

    def make(self, in_channels, num_classes, dims=2):
        return Adapted(partial(UNet, spatial_dims=dims, channels=[4, 8, 8], strides=[2, 2]), in_channels, num_classes)


class TestDynUNetWithDeepSupervision(NetworkTester):
    aligned = None

    def make(self, in_channels, num_classes, dims=2):
        return Adapted(dynunet(dims, deep_supervision=True, deep_supr_num=1), in_channels, num_classes)

    # It keeps the coarser maps as attributes, which an exported network loses; the result needs none of them.
    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:The tensor attributes .* were assigned during export")
    def test_an_exported_network_gives_the_same_logits(self):
        super().test_an_exported_network_gives_the_same_logits()


@needs_smp
class TestUnetOfSmp(NetworkTester):
    dims = (2,)
    aligned = None

    def make(self, in_channels, num_classes, dims=2):
        from segmentation_models_pytorch import Unet

        settings = {"encoder_name": "tu-mobilenetv3_small_050", "encoder_weights": None, "decoder_channels": [8, 8, 8, 4, 4]}
        return Adapted(partial(Unet, **settings), in_channels, num_classes)


@pytest.mark.parametrize("size", [(35, 51), (64, 48)])
def test_a_network_of_monai_takes_any_size_in_its_adapter(size):
    network = build_network(
        {"_target_": "monai.networks.nets.UNet", "spatial_dims": 2, "out_channels": 4, "channels": [4, 8, 8], "strides": [2, 2]},
        (),
        3,
        4,
    ).eval()
    assert network.dims == 2
    with torch.inference_mode():
        assert network(noise(1, 3, *size)).shape == (1, 4, *size)


class Small(nn.Module):
    """Gives what `form` makes of its scores and of those of half the size."""

    def __init__(self, in_channels, classes, form=lambda scores, coarse: scores):
        super().__init__()
        self.score, self.form = nn.Conv2d(in_channels, classes, 1), form

    def forward(self, image):
        scores = self.score(image)
        return self.form(scores, scores[:, :, 1::2, 1::2])


# --- sizes


@pytest.mark.parametrize(
    ("given", "sides", "padded"),
    [
        ({"strides": [2, 2], "channels": [4, 8, 8]}, (5, 8), (8, 8)),
        ({"strides": [2, 2], "channels": [4, 8, 8]}, (4, 4), (4, 8)),  # a single pixel below has no deviation
        ({"strides": [2, 2], "channels": [4, 8, 8]}, (12, 4), (12, 4)),
        ({"strides": [[1, 2], [2, 4]], "channels": [4, 8, 8]}, (3, 9), (4, 16)),
    ],
)
def test_an_image_is_padded_to_whole_pixels_of_the_coarsest_map(given, sides, padded):
    network = Adapted(partial(UNet, spatial_dims=2, **given), 3, 4).eval()
    seen = []
    network.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = noise(2, 3, *sides)
    with torch.inference_mode():
        logits = network(image)
        assert seen[0].shape[2:] == padded
        rows, columns = (torch.arange(side).clamp(max=before - 1) for side, before in zip(padded, sides, strict=True))
        assert torch.equal(seen[0], image[:, :, rows][:, :, :, columns])
        assert torch.equal(logits, network.network(seen[0])[:, :, : sides[0], : sides[1]])


@pytest.mark.parametrize("norm", ["BATCH", "INSTANCE"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_single_image_of_one_pixel_can_be_normalised_in_training(norm, dims):
    network = Adapted(partial(UNet, spatial_dims=dims, channels=[4, 8, 8], strides=[2, 2], norm=norm), 3, 4)
    network(noise(1, 3, *(1,) * dims)).square().sum().backward()
    assert all(value.grad.isfinite().all() for value in network.parameters())


@pytest.mark.parametrize(
    ("network", "strides"),
    [
        (partial(UNet, spatial_dims=2, channels=[4, 4, 4, 4], strides=[2, 1, 2]), (4, 4)),
        (partial(UNet, spatial_dims=3, channels=[4, 4, 4], strides=[[1, 2, 2], 2]), (2, 4, 4)),
        (partial(AttentionUnet, spatial_dims=2, channels=[4, 4, 4, 4], strides=[2, 2, 2]), (8, 8)),
        (dynunet(), (8, 8)),
        (partial(SegResNet, spatial_dims=2), (32, 32)),
        (SegResNet, (32, 32, 32)),  # its own default is volumes
    ],
)
def test_the_stride_follows_from_the_networks_own(network, strides):
    with torch.device("meta"):
        adapted = Adapted(partial(network), 1, 2)
    assert (adapted.strides, adapted.stride, adapted.dims) == (strides, max(strides), len(strides))


@needs_smp
@pytest.mark.parametrize(("settings", "stride"), [({}, 32), ({"encoder_depth": 4, "decoder_channels": [8, 8, 8, 8]}, 16)])
def test_the_stride_of_a_network_of_smp_is_its_encoders(settings, stride):
    from segmentation_models_pytorch import Unet

    with torch.device("meta"):
        adapted = Adapted(partial(Unet, encoder_name="tu-mobilenetv3_small_050", encoder_weights=None, **settings), 1, 2)
    assert adapted.stride == stride


# --- score maps


def test_stacked_maps_become_an_output_with_the_final_map_first():
    network, image = Adapted(dynunet(deep_supervision=True, deep_supr_num=2), 3, 4), noise(2, 3, 19, 30)
    padded = torch.cat([image, image[:, :, -1:].expand(-1, -1, 5, -1)], dim=2)
    padded = torch.cat([padded, padded[..., -1:].expand(-1, -1, -1, 2)], dim=3)
    with torch.no_grad():
        output, stacked, judged = network(image), network.network(padded), network.eval()(image)
    assert isinstance(output, Output)
    assert [score_map.weight for score_map in output.maps] == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    for number, score_map in enumerate(output.maps):
        assert torch.equal(score_map.logits, stacked[:, number, :, :19, :30])
        assert (score_map.rows, score_map.columns) == (None, None)
    torch.testing.assert_close(judged, output.maps[0].logits)  # instance normalisation is the same in evaluation


def test_the_last_map_of_nested_decoders_is_the_final_one():
    settings = {"spatial_dims": 2, "features": [4, 4, 6, 6, 8, 4], "deep_supervision": True}
    network, image = Adapted(partial(BasicUNetPlusPlus, **settings), 3, 4, stride=16), noise(2, 3, 32, 16)
    with torch.no_grad():
        output, listed = network(image), network.network(image)
        assert torch.equal(network.eval()(image), listed[-1])
    assert [score_map.weight for score_map in output.maps] == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])
    assert all(torch.equal(ours.logits, theirs) for ours, theirs in zip(output.maps, reversed(listed), strict=True))


@pytest.mark.parametrize(("final", "place"), [(None, 0), ("first", 0), ("last", 2)])
def test_of_maps_of_one_size_the_first_is_the_result_unless_it_is_said_otherwise(final, place):
    def sides(fine, coarse):
        return [fine, fine + 1, fine + 2]

    network, image = Adapted(partial(Small, form=sides), 3, 4, stride=8, final=final), noise(2, 3, 8, 16)
    score = network.network.score(image)
    with torch.no_grad():
        assert torch.equal(network.eval()(image), score + place)
        weighed = [float((each.logits - score).mean().round()) for each in network.train()(image).maps]
    assert weighed == ([2, 1, 0] if place else [0, 1, 2])


class Boxes(nn.Module):
    """A network of volumes that says so itself."""

    dims = 3

    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.score = nn.Conv3d(in_channels, num_classes, 1)

    def forward(self, image):
        return self.score(image)


class Unsaid(Boxes):
    dims = None


@pytest.mark.parametrize(("kind", "given"), [(Boxes, {}), (Unsaid, {"dims": 3})])
def test_a_network_of_volumes_says_so_itself_or_is_told_to_be_one(kind, given):
    network = Adapted(partial(kind), 1, 2, stride=2, **given)
    assert network.dims == 3
    assert network(noise(1, 1, 3, 5, 7)).shape == (1, 2, 3, 5, 7)


def test_a_single_map_in_a_list_is_plain_logits():
    network = Adapted(partial(BasicUNetPlusPlus, spatial_dims=2, features=[4, 4, 6, 6, 8, 4]), 3, 4, stride=16)
    assert network(noise(1, 3, 17, 20)).shape == (1, 4, 17, 20)


def test_maps_of_volumes_are_judged_where_they_have_the_volumes_size():
    network, image = Adapted(dynunet(3, deep_supervision=True, deep_supr_num=1), 1, 2), noise(1, 1, 3, 9, 10)
    assert [score_map.logits.shape for score_map in network(image).maps] == [(1, 2, 3, 9, 10)] * 2
    coarse = Adapted(partial(SegResNetDS, spatial_dims=3, init_filters=8, dsdepth=2, blocks_down=[1, 1, 1]), 1, 2, stride=4)
    with pytest.raises(ConfigError, match=r"coarser maps are judged in images only\. Turn its deep supervision off"):
        coarse(noise(1, 1, 4, 4, 8))


@pytest.mark.parametrize("form", [lambda fine, coarse: {"aux": coarse, "out": fine}, lambda fine, coarse: (fine, coarse)])
def test_a_coarser_map_is_judged_by_the_pixels_at_the_middle_of_its_places(form):
    network, image = Adapted(partial(Small, form=form), 3, 4, stride=8), noise(2, 3, 5, 12)
    output = network(image)
    label = torch.arange(60).view(1, 5, 12)
    fine, coarse = output.maps
    assert (fine.weight, coarse.weight) == pytest.approx((2 / 3, 1 / 3))
    assert torch.equal(fine.label(label), label)
    assert torch.equal(fine.logits, network.network.score(image))
    assert coarse.logits.shape == (2, 4, 4, 8)
    wanted = torch.full((1, 4, 8), 255)
    wanted[:, :2, :6] = label[:, 1::2, 1::2]  # `Small` keeps these; row 5 is padding
    assert torch.equal(coarse.label(label), wanted)
    with torch.inference_mode():
        assert torch.equal(network.eval()(image), fine.logits)


def test_nothing_beside_the_scores_is_left_out():
    network, image = Adapted(partial(Small, form=lambda fine, coarse: (fine, None)), 3, 4), noise(1, 3, 8, 8)
    assert torch.equal(network(image), network.network.score(image))
    variational = Adapted(partial(SegResNetVAE, spatial_dims=2, input_image_size=[32, 32]), 3, 4).eval()
    with torch.inference_mode():
        assert variational(noise(1, 3, 20, 30)).shape == (1, 4, 20, 30)


@pytest.mark.parametrize(
    "form",
    [
        lambda a, b: (a, a.mean((2, 3))),
        lambda a, b: (a, 1.0),
        lambda a, b: (None, None),
        lambda a, b: {"scores": a},
        lambda a, b: None,
    ],
)
def test_what_is_no_score_map_is_refused(form):
    with pytest.raises(ConfigError, match="Small gives no score maps but a"):
        Adapted(partial(Small, form=form), 3, 4)(noise(1, 3, 8, 8))


def test_a_batch_too_small_to_learn_from_is_refused():
    network = Adapted(partial(Small), 3, 4, min_train_batch=2)
    with pytest.raises(ConfigError, match=r"batch of 1\. Type 'training\.batch_size=2'"):
        network(noise(1, 3, 8, 8))
    assert network(noise(2, 3, 8, 8)).shape == (2, 4, 8, 8)
    assert network.eval()(noise(1, 3, 8, 8)).shape == (1, 4, 8, 8)


class Pooling(nn.Module):
    """Normalises what it pools of the whole image, as DeepLab v3 does."""

    def __init__(self, num_channels, classes):
        super().__init__()
        self.score, self.norm = nn.Conv2d(num_channels, classes, 1), nn.BatchNorm2d(classes)

    def forward(self, image):
        scores = self.score(image)
        return scores + self.norm(scores.mean((2, 3), keepdim=True))


def test_a_batch_that_turns_out_too_small_to_learn_from_is_refused_alike():
    network = Adapted(partial(Pooling), 3, 4)
    with pytest.raises(ConfigError, match=r"Pooling normalises .* batch of 1\. Type 'training\.batch_size=2'"):
        network(noise(1, 3, 8, 8))
    assert network(noise(2, 3, 8, 8)).shape == (2, 4, 8, 8)
    assert network.eval()(noise(1, 3, 8, 8)).shape == (1, 4, 8, 8)


def broken(scores, coarse):
    raise ValueError("something else")


def test_other_errors_of_a_network_stay_as_they_are():
    with pytest.raises(ValueError, match=r"^something else$"):
        Adapted(partial(Small, form=broken), 3, 4)(noise(1, 3, 8, 8))


# --- channels


def colours(num_classes, weights_backbone=None):
    """A network that takes three channels, like torchvision's."""
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)), nn.Conv2d(64, num_classes, 1))


def test_a_first_convolution_of_three_channels_stays_and_others_are_drawn_anew():
    torch.manual_seed(0)
    seeded = Adapted(partial(colours), 3, 4).network[0][0].weight
    torch.manual_seed(0)
    assert torch.equal(seeded, colours(4)[0][0].weight)
    for channels in (1, 2, 13):
        first = Adapted(partial(colours), channels, 4).network[0][0]
        assert (first.weight.shape, first.stride, first.padding, first.bias) == ((64, channels, 3, 3), (2, 2), (1, 1), None)
        assert first.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.15)  # He et al.'s, by outgoing nodes


@pytest.mark.parametrize(
    "network",
    [
        partial(Pooling),
        pytest.param(
            partial(Quicknat, num_filters=8),
            marks=pytest.mark.skipif(
                Version(monai.__version__) < Version("1.6.1"), reason="fails within earlier releases of MONAI"
            ),
        ),
    ],
)
def test_the_images_channels_go_in_under_the_name_that_is_taken(network):
    with torch.inference_mode():
        assert Adapted(network, 5, 4).eval()(noise(1, 5, 20, 30)).shape == (1, 4, 20, 30)


def pretrained(num_classes, weights_backbone="X"):
    return colours(num_classes, weights_backbone)


@pytest.mark.parametrize("network", [partial(colours, weights_backbone="X"), partial(pretrained)])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_trained_first_weights_respond_to_alike_channels_as_before(network, channels):
    torch.manual_seed(0)
    first = Adapted(network, channels, 4).network[0][0]
    torch.manual_seed(0)
    trained, grey = colours(4)[0][0], noise(1, 1, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(first(grey.expand(-1, channels, -1, -1)), trained(grey.expand(-1, 3, -1, -1)))
        assert all(torch.equal(first.weight[:, 0], first.weight[:, other]) for other in range(channels))


# --- building and keeping


def test_hydras_lists_reach_the_library_as_plain_ones():
    node = {
        "_target_": "voxtile.models.adapter.Adapted",
        "network": {"_target_": f"{__name__}.Remembers", "_partial_": True, "form": [1, [2, {"a": [3]}]]},
    }
    assert type(instantiate(OmegaConf.create(node), in_channels=1, num_classes=2).network.form) is list
    form = instantiate(OmegaConf.create(node), in_channels=1, num_classes=2).network.form
    assert (type(form[1]), type(form[1][1]), type(form[1][1]["a"])) == (list, dict, list)


class Remembers(Small):
    pass


@pytest.mark.parametrize("network", ["os.system", "builtins.eval", eval, Small, {"_target_": "x"}, None])
def test_what_builds_no_network_is_refused_and_not_called(network):
    with pytest.raises(ValueError, match="'network' must hold a '_target_' and '_partial_: true'"):
        Adapted(network, 3, 4)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (partial(Small, classes=5), "'classes=5' is said by the data, which has 4: leave it out"),
        (partial(Small, in_channels=1), "'in_channels=1' is said by the data, which has 3"),
        (partial(nn.ReLU), "ReLU takes the number of classes under none of the names"),
        (partial(dict, num_classes=4), "signature"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(network, said):
    with pytest.raises(ValueError, match=said):
        Adapted(network, 3, 4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"stride": 0}, "'stride' and 'min_train_batch' are 1 or more"),
        ({"min_train_batch": 0}, "'stride' and 'min_train_batch' are 1 or more"),
        ({"dims": 4}, "'dims' is 2 or 3"),
        ({"final": "best"}, "'final' first or last"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Adapted(partial(Small), 3, 4, **wrong)


def needy(in_channels, num_classes):
    raise ImportError("No module named 'einops'")


def test_a_package_that_the_library_lacks_is_named_with_what_brings_it():
    with pytest.raises(ConfigError, match=r"needy needs a package.*einops.*pip install 'voxtile\[zoo\]'"):
        Adapted(partial(needy), 3, 4)


def counted(in_channels, num_classes):
    """Computes with a number on its way, which the meta device has not."""
    return nn.Conv2d(in_channels, num_classes, int(torch.linspace(1, 3, 2)[1].item()))


def test_what_cannot_be_built_on_the_meta_device_is_moved_there():
    with torch.device("meta"):
        network = Adapted(partial(counted), 3, 4).network
    assert (network.weight.is_meta, network.weight.shape) == (True, (4, 3, 3, 3))


def test_a_layer_with_two_names_is_kept_once_and_read_for_both(tmp_path):
    network = nn.ModuleDict({"inner": Adapted(dynunet(), 3, 4)})
    names = set(network.state_dict())
    assert names == {name for name, _ in network.named_parameters()}  # named_parameters gives each once
    assert len(names) < len(dict(network.named_parameters(remove_duplicate=False)))
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    other = nn.ModuleDict({"inner": Adapted(dynunet(), 3, 4)})
    for read in (other, copy.deepcopy(other)):
        read.load_state_dict(load_file(tmp_path / "weights.safetensors"))
        with torch.inference_mode():
            assert torch.equal(read["inner"].eval()(noise(1, 3, 8, 8)), network["inner"].eval()(noise(1, 3, 8, 8)))
    state = load_file(tmp_path / "weights.safetensors")
    state.pop(sorted(names)[0])
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(state)
