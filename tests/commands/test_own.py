"""Networks, losses, augmentations and layouts of the user's own, with and without the mistakes that are made in them."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.commands.conftest import Command, homes
from tests.testers import own as testers
from tests.testers.tiny import scene_words, volume_words
from voxtile.commands.allowed import build_network, target
from voxtile.commands.assemble import check_network_fit
from voxtile.commands.own import blaming, check_is, check_loss, check_network, check_optimizer
from voxtile.errors import ConfigError, RunError
from voxtile.inference.field import reach_of
from voxtile.training.losses import BorderCrossEntropy, Loss
from voxtile.training.settings import Settings

OWN = "tests.testers.own"
FILE = testers.__file__


def own(folder: Path, group: str, name: str, **settings: object) -> list[str]:
    """Writes a configuration that builds a class of `tests.testers.own`, and returns the words that choose and trust it."""
    conf = folder / "conf" / group
    conf.mkdir(parents=True, exist_ok=True)
    lines = [f"_target_: tests.testers.own.{name}", *(f"{key}: {value}" for key, value in settings.items())]
    (conf / "own.yaml").write_text("\n".join(lines) + "\n")
    return [f"{group}=own", "trust=[tests.testers.own]"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [word for word in scene_words(tmp_path) if not word.startswith("model.")]


def test_a_network_that_shares_weights_is_trained_evaluated_and_started_from(
    words: list[str], tmp_path: Path, voxtile: Command
) -> None:
    words += [*own(tmp_path, "model", "Tied"), "training.ema=0.9"]
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    assert voxtile("evaluate", f"run={home}", words[-2]).code == 0
    said = voxtile("train", *words, f"init_from={home}", "seed=1")
    assert said.code == 0
    assert "starting from" in said.text
    assert "new:" not in said.text


def test_a_network_of_boxes_is_told_the_attribute_that_it_lacks(tmp_path: Path, voxtile: Command) -> None:
    words = [word for word in volume_words(tmp_path, window=[4, 16, 16]) if not word.startswith("model.")]
    said = voxtile("train", *words, *own(tmp_path, "model", "Volumes"))
    assert said.code == 2
    assert "'data.window=[4, 16, 16]' has 3 sides. Give the window 2 sides, or where the network takes boxes" in said.text
    assert said.text.endswith("give the class the attribute `dims = 3`.")
    said = voxtile("train", *words, *own(tmp_path, "model", "Volumes"), "data.window=[16,16]")
    assert said.code == 2
    assert f"Its weights are those of 3D convolutions: give the class {OWN}.Volumes the attribute `dims = 3`" in said.text
    assert not (tmp_path / "runs").exists()
    assert voxtile("train", *words, *own(tmp_path, "model", "Boxes"), "training.steps=1", "training.val_every=1").code == 0


def test_unet_is_told_its_setting() -> None:
    network = build_network({"_target_": "voxtile.models.unet.UNet", "width": 0.0625, "depth": 2}, (), 2, 2)
    with pytest.raises(ConfigError, match=r"has 3 sides. .* as U-Net does with 'model.dims=3'\.$"):
        check_network(network, [4, 16, 16])


@pytest.mark.parametrize(
    "attributes",
    [
        {"dims": [16, 32]}, {"dims": 4}, {"dims": True}, {"margin": "reflect"}, {"margin": 0.3}, {"margin": -1}, {"stride": "4"},
        {"stride": ()}, {"stride": torch.nn.Identity()}, {"min_train_size": [5, 5]}, {"min_train_batch": 0},
    ],
)  # fmt: skip
def test_an_attribute_that_cannot_have_voxtiles_meaning_is_named(attributes: dict[str, object]) -> None:
    (name,) = attributes
    with pytest.raises(
        ConfigError, match=rf"^{OWN}.Named has an attribute '{name}', .* of this name says .*Give the attribute anot"
    ):
        check_network(testers.Named(2, 2, **attributes), [16, 16])


def test_a_stride_along_each_axis_is_taken_by_its_most() -> None:
    network = testers.Named(2, 2, stride=(4, 8), dims=2, margin=0, min_train_size=5)
    check_network(network, [16, 16])
    assert reach_of(network.eval(), 2) == reach_of(testers.Named(2, 2, stride=8).eval(), 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Dictionary", r"own.Dictionary returns a dict with 'out', 'aux' .*\(for example `\[\"out\"\]`\).*adapter.Adapted"),
        ("Pair", r"own.Pair returns a tuple of 2 in evaluation, .* or have voxtile's adapter do so"),
        ("Raising", rf": KeyError: 'of my own' \({FILE}, line \d+\). Correct it there"),
        ("Halving", rf": RuntimeError: The size .* \({FILE}, line \d+\). Correct it there. If only the size .*adapter.Adapted"),
    ],
)
def test_what_a_network_returns_or_raises_is_told_with_the_line(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_network_fit(getattr(testers, name)(2, 2), [16, 16], 2, 2, Settings(steps=1, batch_size=1))
    assert "data.window" not in str(caught.value)


def test_a_larger_stride_is_named_where_a_library_refuses_an_image_that_was_padded() -> None:
    node = {"_target_": "monai.networks.nets.AHNet", "spatial_dims": 2}
    with pytest.raises(ConfigError, match=r"image of shape \(1, 2, 64, 64\).*multiples of 32; .*type 'model\.stride=256'"):
        check_network_fit(build_network(node, (), 2, 3), [64, 64], 2, 3, Settings(steps=1, batch_size=2))


def test_a_network_that_is_none_or_cannot_be_built_is_told() -> None:
    with pytest.raises(ConfigError, match=rf"'model' builds {OWN}.NoModule, and expected is a subclass of torch.nn.Module"):
        build_network({"_target_": f"{OWN}.NoModule"}, [OWN], 2, 2)
    with pytest.raises(ConfigError, match=rf"KeyError: 'of my own' \({FILE}, line \d+\). Correct it there.$"):
        build_network({"_target_": f"{OWN}.RaisingConstructor"}, [OWN], 2, 2)
    with pytest.raises(ConfigError, match=rf"{OWN}.Lazy has layers that learn their sizes .*: score.weight, score.bias"):
        check_network(testers.Lazy(2, 2), [16, 16])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import absent_of_tests", r"cannot be imported: ModuleNotFoundError: No module named 'absent_of_tests' \(.*, line 1\)"),
        ("x = 1\n\ndef f(:", r"cannot be imported: SyntaxError: invalid syntax \(bad_of_tests.py, line 3\)"),
        ("x = 1\n1 / 0", r"cannot be imported: ZeroDivisionError: division by zero \(.*bad_of_tests.py, line 2\)"),
        ("class Nett: ...", r"'bad_of_tests.Net', which does not exist: .* Did you mean 'Nett'\?"),
        (None, r"does not exist: No module named 'bad_of_tests'. Modules are looked for in .* PYTHONPATH"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, said: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bad_of_tests", raising=False)
    if text is not None:
        (tmp_path / "bad_of_tests.py").write_text(text)
    with pytest.raises(ConfigError, match=said):
        target("bad_of_tests.Net", "model", ["bad_of_tests"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NoSize", f"The loss {OWN}.NoSize must have the attributes `size`"),
        ("WrongSize", rf"'statistics' of the loss {OWN}.WrongSize gives a tensor of shape \(2,\); expected one of shape \(1,\)"),
        ("WrongLabelSize", r"'label_statistics' .* gives a tensor of shape \(\); expected one of shape \(2,\)"),
        ("PerStatistic", r"'value' of the loss .* gives a tensor of shape \(2,\); expected one of shape \(\), a scalar"),
        ("RaisingLoss", rf"ValueError: of my own \({FILE}, line \d+\). Correct it there"),
    ],
)
def test_a_loss_whose_parts_do_not_fit_is_told_before_it_trains(name: str, said: str) -> None:
    check_loss(testers.Share(num_classes=2), 2, [16, 16])
    with pytest.raises(ConfigError, match=said):
        check_loss(getattr(testers, name)(num_classes=2), 2, [16, 16])


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_loss_by_distance_is_refused_before_there_is_a_run_where_training_judges_coarser_maps(
    words: list[str], tmp_path: Path, voxtile: Command, command: str
) -> None:
    said = voxtile(command, *words, "model=deeplab_v1", "model.width=0.02", "loss=border_ce")
    assert said.code == 2
    assert "This loss (BorderCrossEntropy) weighs pixels by their distances in the image, and this network is trained" in said.text
    assert not list(tmp_path.glob("runs/*/recipe.json"))


def test_looking_at_what_a_network_is_trained_on_leaves_it_as_it_was() -> None:
    network = build_network({"_target_": "voxtile.models.unet.UNet", "depth": 2, "width": 0.1, "norm": "batch"}, (), 2, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    loss = BorderCrossEntropy(num_classes=2, background=0)
    check_network_fit(network, [16, 16], 2, 2, Settings(steps=1, batch_size=2), loss=loss)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_loss_of_another_kind_is_refused(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    said = voxtile("train", *words, *own(tmp_path, "loss", "PlainLoss"))
    assert said.code == 2
    assert f"'loss' builds {OWN}.PlainLoss, and expected is a subclass of voxtile.training.losses.Loss" in said.text
    assert not (tmp_path / "runs").exists()
    check_is(testers.Share(num_classes=2), Loss, "loss", "")


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    for kind in (torch.optim.AdamW, torch.optim.SGD, torch.optim.NAdam, build_network):
        check_optimizer(kind)
    with pytest.raises(ConfigError, match=r"'optimizer' is torch.optim.lbfgs.LBFGS.*closure.*'optimizer=adamw'"):
        check_optimizer(torch.optim.LBFGS)


def test_an_optimizer_that_cannot_take_a_step_is_refused(words: list[str], voxtile: Command, tmp_path: Path) -> None:
    said = voxtile("train", *words, "optimizer._target_=torch.optim.SparseAdam", "~optimizer.weight_decay")
    assert said.code == 2
    assert "SparseAdam cannot take a step" in said.text
    assert not (tmp_path / "runs").exists()


def test_what_own_code_raises_while_it_trains_is_told_with_its_line(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    said = voxtile("train", *words, *own(tmp_path, "loss", "LateLoss"), "model.width=0.0625", "model.depth=2")
    assert said.code == 4
    assert f"ValueError at {FILE}, line" in said.text
    assert "(from_log_probabilities): of my own. This was raised in code that is not voxtile's" in said.text
    (home,) = homes(tmp_path / "runs")
    assert FILE in json.loads((home / "status.json").read_text())["reason"]


def test_what_is_not_of_trusted_code_is_not_blamed_on_it() -> None:
    with pytest.raises(KeyError), blaming([OWN]):
        raise KeyError("ours")
    with pytest.raises(KeyError), blaming([]):
        testers.Raising(2, 2)(torch.zeros(1))
    with pytest.raises(torch.OutOfMemoryError), blaming([OWN]):
        testers.Full().fill()
    with pytest.raises(ConfigError, match="as it is"), blaming([__name__]):
        raise ConfigError("as it is")
    with pytest.raises(RunError, match=rf"^KeyError at {FILE}, line \d+ \(forward\): 'of my own'"), blaming(["tests.testers"]):
        testers.Raising(2, 2)(torch.zeros(1))


def test_all_that_is_to_be_trusted_is_asked_for_at_once(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    for group, name in (("model", "Named"), ("loss", "Share")):
        own(tmp_path, group, name)
    own_file = tmp_path / "conf" / "loss" / "own.yaml"
    own_file.write_text(own_file.read_text().replace(OWN, "other_of_tests.nets"))
    said = voxtile("train", *words, "model=own", "loss=own", "trust=[mine]")
    assert said.code == 2
    assert f"'model' wants to build '{OWN}.Named', 'loss' wants to build 'other_of_tests.nets.Share', which are on no" in said.text
    assert said.text.endswith(f"type 'trust=[mine,{OWN},other_of_tests.nets]'.")
    said = voxtile("train", *words, "model=own", "loss=own", f"trust=[{OWN}]")
    assert "'loss' wants to build 'other_of_tests.nets.Share', which is not on the allow-list of 'loss' (vox" in said.text
    assert said.text.endswith(f"type 'trust=[{OWN},other_of_tests.nets]'.")


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("Tied", "model.widht=3", f"The network {OWN}.Tied takes no 'widht'. Leave it out"),
        ("Boxed", "model.dims=[3]", f"'model.dims' is an argument of {OWN}.Boxed that its configuration does not name. Add it: '+"),
        ("Boxed", "model.dmis=[3]", f"The network {OWN}.Boxed takes no 'dmis'. Did you mean 'dims'? It takes dims, depth."),
        (
            "Named",
            "model.foo=3",
            f"{OWN}.Named takes arguments of any name, and its configuration names no 'foo'. Add it: '+model.foo=3",
        ),
    ],
)
def test_a_setting_that_a_networks_file_does_not_name(
    words: list[str], tmp_path: Path, voxtile: Command, name: str, word: str, said: str
) -> None:
    found = voxtile("train", *words, *own(tmp_path, "model", name), word)
    assert found.code == 2
    assert said in found.text


def test_a_setting_of_a_network_that_is_not_trusted_asks_for_trust(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    found = voxtile("train", *words, own(tmp_path, "model", "Boxed")[0], "model.dims=[3]")
    assert (found.code, f"type 'trust=[{OWN}]'" in found.text) == (2, True)


def test_a_network_of_images_with_weights_along_five_axes_trains(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    assert "training.channels_last=false" not in words
    assert voxtile("train", *words, *own(tmp_path, "model", "Named"), "training.steps=1", "training.val_every=1").code == 0
