"""Networks of other libraries: every option builds and learns a step, and nothing else gets built or loaded on the way."""

import importlib
import importlib.util

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.testers.composing import composed
from tests.testers.networks import noise, scores
from voxtile.commands import allowed as building
from voxtile.commands.allowed import build_network
from voxtile.commands.compose import conf_dir
from voxtile.commands.own import refused_image
from voxtile.errors import ConfigError
from voxtile.models.adapter import Adapted

ADAPTED = "voxtile.models.adapter.Adapted"
SMP = "segmentation_models_pytorch"
NEEDS = {"smp": SMP, "monai/swin_unetr": "einops"}  # options and the package that they need beside voxtile's own
OPTIONS = sorted(
    path.relative_to(conf_dir() / "model").with_suffix("").as_posix()
    for folder in ("monai", "smp", "torchvision")
    for path in (conf_dir() / "model" / folder).glob("*.yaml")
)


QUICK = ("monai/unet", "monai/dynunet", "smp/pspnet", "torchvision/lraspp_mobilenet_v3_large")  # one of each kind


def needing(option):
    package = NEEDS.get(option, NEEDS.get(option.partition("/")[0]))
    missing = package is not None and importlib.util.find_spec(package) is None
    marks = [pytest.mark.skipif(missing, reason="needs pip install 'voxtile[zoo]'")]
    return pytest.param(option, marks=marks if option in QUICK else [*marks, pytest.mark.slow])


needs_smp = pytest.mark.skipif(importlib.util.find_spec(SMP) is None, reason="needs pip install 'voxtile[zoo]'")


def test_the_options_are_those_promised():
    assert [
        *(f"monai/{name}" for name in ("attention_unet", "basic_unet_plusplus", "dynunet", "segresnet", "swin_unetr", "unet")),
        *(f"smp/{name}" for name in ("deeplabv3plus", "fpn", "pspnet", "segformer", "unet", "upernet")),
        *(f"torchvision/{name}" for name in ("deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")),
    ] == OPTIONS


@pytest.mark.parametrize("option", [needing(option) for option in OPTIONS])
def test_an_option_is_built_in_both_ways_judges_any_size_and_learns_a_step(option, monkeypatch):
    for download in ("torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file", "urllib.request.urlopen"):
        monkeypatch.setattr(download, lambda *args, **named: pytest.fail("downloads"))
    (config,) = composed(["train", f"model={option}"])
    network = build_network(config["model"], (), 2, 5)
    with torch.device("meta"):
        described = instantiate(OmegaConf.create(config["model"]), in_channels=2, num_classes=5).eval()
    assert {k: v.shape for k, v in described.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert (described.dims, described.stride, described.strides) == (2, network.stride, network.strides)
    assert described(torch.empty(1, 2, 37, 41, device="meta")).shape == (1, 5, 37, 41)

    aligned = noise(1, 2, network.stride, 2 * network.stride)
    with torch.inference_mode():
        assert network.eval()(noise(1, 2, 19, 33)).shape == (1, 5, 19, 33)
        network(aligned)
        assert torch.equal(aligned, noise(1, 2, network.stride, 2 * network.stride))

    batch = noise(network.min_train_batch, 2, *(network.min_train_size,) * 2)
    output = scores(network.train()(batch))
    output.square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.isfinite().all()] == []


@pytest.mark.parametrize("option", [needing(f"{SMP}.{name}") for name in ("DeepLabV3Plus", "UPerNet")])
def test_a_batch_of_one_fails_where_two_are_said_to_be_needed(option):
    """Else the setting would only be in the way."""
    network = getattr(importlib.import_module(SMP), option.rpartition(".")[2])(
        "tu-mobilenetv3_small_050", encoder_weights=None, decoder_channels=8
    )
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network.train()(noise(1, 3, 64, 64))


@needs_smp
def test_other_encoders_of_timm_are_chosen_by_name():
    (config,) = composed(["train", "model=smp/unet", "model.network.encoder_name=tu-convnext_atto"])
    with torch.device("meta"):
        assert build_network(config["model"], (), 5, 3).eval()(torch.empty(1, 5, 33, 65, device="meta")).shape == (1, 3, 33, 65)


def test_a_package_that_a_network_of_monai_misses_in_its_first_pass_is_said():
    lacked = ImportError("from einops import rearrange (No module named 'einops').\n\nOriginal traceback:\nTraceback …")
    said = refused_image(torch.nn.Conv2d(1, 2, 3), (1, 1, 8, 8), lacked)
    assert said.startswith("The network needs a package that is not installed: from einops import rearrange (No module named")
    assert "voxtile[zoo]" in said
    assert "raceback" not in said


@pytest.mark.parametrize(
    ("words", "image"),
    [
        (("monai/unet", "channels=[4,8,8]", "strides=[[1,2,2],2]"), (5, 9, 7)),
        (("monai/dynunet", "filters=[4,6,8,8,8]"), (3, 9, 17)),
        (("monai/basic_unet_plusplus", "features=[4,4,6,6,8,4]"), (3, 9, 17)),
        (("monai/segresnet", "init_filters=8"), (3, 9, 17)),
    ],
)
def test_networks_of_monai_take_volumes(words, image):
    option, *settings = words
    settings = [f"model.network.{word}" for word in ("spatial_dims=3", *settings)]
    (config,) = composed(["train", f"model={option}", *settings])
    network = build_network(config["model"], (), 1, 3).eval()
    assert network.dims == 3
    with torch.inference_mode():
        assert network(noise(1, 1, *image)).shape == (1, 3, *image)


# --- networks named as they are


LRASPP = "torchvision.models.segmentation.lraspp_mobilenet_v3_large"


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "monai.networks.nets.BasicUNet", "spatial_dims": 2, "features": [4, 4, 4, 4, 4, 4]},
        {"_target_": "monai.networks.nets.BasicUNet", "spatial_dims": 2, "features": [4, 4, 4, 4, 4, 4], "out_channels": 4},
        {"_target_": LRASPP},
        pytest.param({"_target_": f"{SMP}.Unet", "encoder_name": "tu-mobilenetv3_small_050"}, marks=needs_smp),
    ],
)
def test_a_network_named_without_its_adapter_gets_it_and_loads_nothing(node, monkeypatch):
    for download in ("torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file", "urllib.request.urlopen"):
        monkeypatch.setattr(download, lambda *args, **named: pytest.fail("downloads"))
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("connects"))
    network = build_network(node, (), 2, 4).eval()
    assert type(network) is Adapted
    with torch.inference_mode():
        assert network(noise(1, 2, 37, 41)).shape == (1, 4, 37, 41)


def test_another_number_of_classes_than_the_datas_is_refused():
    node = {"_target_": "monai.networks.nets.BasicUNet", "spatial_dims": 2, "out_channels": 5}
    with pytest.raises(ConfigError, match="'out_channels=5' is said by the data, which has 4: leave it out"):
        build_network(node, (), 2, 4)


# --- what is refused


@pytest.fixture
def _nothing_runs(monkeypatch):
    for library in ("monai.networks.nets", "torchvision.models.segmentation", SMP):  # which evaluate text when they are imported
        if importlib.util.find_spec(library.partition(".")[0]):
            importlib.import_module(library)
    for name in ("os.system", "subprocess.Popen.__init__", "torch.hub.load", "torch.load", "urllib.request.urlopen"):
        monkeypatch.setattr(name, lambda *args, **named: pytest.fail("runs"))
    monkeypatch.setattr("builtins.eval", lambda *args: pytest.fail("runs"))
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("connects"))


PLANTED = [
    "os.system",
    "builtins.eval",
    "torch.load",
    "torch.nn.Conv2d",
    "functools.partial",
    "torchvision.models.resnet50",
    "torchvision.models.segmentation.fcn.partial",
    "torchvision.models.segmentation.FCN_ResNet50_Weights",
    "torchvision.models.segmentation.fcn._fcn_resnet",
    "torchvision.models.segmentation.torch.hub.load",
    "monai.networks.nets.unet.warnings.warn",
    "monai.networks.nets.resnet50",
    "monai.networks.nets.torch.hub.load",
    "voxtile.models.adapter.functools.partial",
    "voxtile.models.weights.transplant",
    "voxtile.models.network.Output",
]
OF_SMP = [f"{SMP}.create_model", f"{SMP}.from_pretrained", f"{SMP}.datasets.OxfordPetDataset", f"{SMP}.encoders.load_file"]


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize("place", ["alone", "adapted", "partly", "deep"])
@pytest.mark.parametrize("name", [*PLANTED, *(pytest.param(name, marks=needs_smp) for name in OF_SMP)])
def test_a_planted_target_is_not_built(name, place):
    planted = {"_target_": name}
    node = {
        "alone": planted,
        "adapted": {"_target_": ADAPTED, "network": planted},
        "partly": {"_target_": ADAPTED, "network": planted | {"_partial_": True}},
        "deep": {"_target_": "monai.networks.nets.UNet", "spatial_dims": 2, "channels": [4, {"act": [planted]}], "strides": [2]},
    }[place]
    with pytest.raises(ConfigError, match=r"nothing was run|which does not exist"):
        build_network(node, (), 2, 4)


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize("name", [*PLANTED, "monai.networks.nets.UNet"])
def test_a_name_in_place_of_a_network_is_only_a_text(name):
    with pytest.raises(ConfigError, match="'network' must hold a '_target_' and '_partial_: true'"):
        build_network({"_target_": ADAPTED, "network": name}, (), 2, 4)


UNET = f"{SMP}.Unet"
FCN = "torchvision.models.segmentation.fcn_resnet50"
LOADS = [
    (UNET, {"encoder_name": "resnet18", "encoder_weights": "imagenet"}),
    (UNET, {"encoder_name": "tu-resnet18", "encoder_weights": True}),
    (UNET, {"encoder_name": "tu-resnet18", "encoder_weights": False}),  # which smp takes for trained weights, too
    (UNET, {"encoder_name": "tu-hf-hub:somebody/something"}),
    (UNET, {"encoder_name": "tu-local-dir:/tmp/x"}),
    (UNET, {"encoder_name": "tu-resnet18", "checkpoint_path": "x.pth"}),
    (UNET, {"encoder_name": "tu-resnet18", "pretrained_cfg": {"file": "x.pth"}}),
    (UNET, {"encoder_name": "tu-resnet18", "pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x"}}),
    (FCN, {"weights": "COCO_WITH_VOC_LABELS_V1"}),
    (FCN, {"weights_backbone": "DEFAULT"}),
    (FCN, {"pretrained": True}),
    ("monai.networks.nets.HoVerNet", {"pretrained_url": "http://127.0.0.1:9/x"}),
    ("monai.networks.nets.FlexibleUNet", {"backbone": "efficientnet-b0", "pretrained": True}),
]


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(("name", "settings"), [pytest.param(*row, marks=needs_smp if row[0] == UNET else ()) for row in LOADS])
def test_weights_that_voxtile_does_not_check_are_not_loaded_unless_trusted(name, settings, adapted):
    node = {"_target_": name, **settings}
    node = {"_target_": ADAPTED, "network": node | {"_partial_": True}} if adapted else node
    with pytest.raises(ConfigError, match=rf"would have {name} load a file.*nothing was run.*trust=\[{name.rpartition('.')[0]}\]"):
        build_network(node, (), 3, 4)


def test_trusted_weights_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, **named: asked.append(url) or {})
    (config,) = composed(["train", "model=torchvision/lraspp_mobilenet_v3_large", "model.network.weights_backbone=IMAGENET1K_V1"])
    with pytest.raises(ConfigError, match="Missing key"):  # of the empty weights
        build_network(config["model"], ["torchvision.models.segmentation"], 3, 4)
    assert ["mobilenet_v3_large" in url for url in asked] == [True]


@pytest.mark.usefixtures("_nothing_runs")
def test_trusted_or_not_a_librarys_defaults_load_nothing():
    node = {"_target_": ADAPTED, "network": {"_target_": FCN, "_partial_": True}}
    with torch.device("meta"):
        assert build_network(node, ["torchvision.models.segmentation"], 4, 5).network.backbone.conv1.in_channels == 4


@pytest.mark.parametrize(
    ("name", "settings", "near"),
    [
        (FCN, {"aux_los": True}, "aux_loss"),
        ("monai.networks.nets.SegResNet", {"init_filter": 8}, "init_filters"),
        pytest.param(UNET, {"encoder_name": "resnet18", "decoder_chanels": [8]}, "decoder_channels", marks=needs_smp),
    ],
)
def test_a_misspelt_setting_is_not_passed_over(name, settings, near):
    node = {"_target_": ADAPTED, "network": {"_target_": name, "_partial_": True, **settings}}
    with pytest.raises(ConfigError, match=f"'model.network' .* takes no '{next(reversed(settings))}'. Did you mean '{near}'"):
        build_network(node, (), 3, 4)


def test_a_network_that_was_typed_over_another_one_s_settings_is_told_how_to_be_typed() -> None:
    typed_over = {"_target_": "monai.networks.nets.UNet", "width": 1.0, "depth": 5}
    with pytest.raises(
        ConfigError, match=r"takes no 'width'.* type '~model' '\+model=\{_target_: monai\.networks\.nets\.UNet, …\}'"
    ):
        build_network(typed_over, (), 1, 2)


def test_a_library_that_is_not_installed_is_named_with_what_installs_it(monkeypatch):
    find, load = importlib.util.find_spec, importlib.import_module

    def missing(name, *args):
        if name == SMP:
            raise ModuleNotFoundError(f"No module named '{name}'")
        return load(name, *args)

    monkeypatch.setattr(building.importlib, "import_module", missing)
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name, *args: None if name == SMP else find(name, *args))
    said = r"'model.network' wants to build 'segmentation_models_pytorch.Unet', and the package segmentation-models-pytorch is not "
    with pytest.raises(ConfigError, match=said + r"installed\. Type pip install 'voxtile\[zoo\]'"):
        build_network({"_target_": ADAPTED, "network": {"_target_": UNET, "_partial_": True}}, (), 3, 4)
