"""The documents: links lead somewhere, commands compose, examples work, scores are defined."""

import ast
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from tests.testers.composing import ROOT, command_words, composed, fences
from tests.testers.field import receptive_field
from tests.testers.sequence import executed
from tests.testers.tiny import scenes, volume_words
from voxtile.cases.window import Window
from voxtile.commands.allowed import build
from voxtile.commands.build import parts
from voxtile.commands.main import main
from voxtile.commands.measures import LESIONS
from voxtile.commands.own import PUBLISHED
from voxtile.data.splits import GroupSplit, KFold
from voxtile.models.network import logits_of
from voxtile.scores.confusion import case_rows, summarise
from voxtile.scores.lesions import LesionCounter, summarise_lesions
from voxtile.scores.surfaces import SurfaceMeter, summarise_surfaces
from voxtile.scores.volumes import summarise_volumes, volume_columns
from voxtile.training.recipe import ADDED, FIELDS

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(path for folder in ("docs", "experiments") for path in (ROOT / folder).rglob("*.md")),
]
COMMANDS = {
    " ".join(words): words
    for path in DOCUMENTS
    for language, block in fences(path.read_text(encoding="utf-8"))
    for line in block.splitlines()
    if language != "text" and (words := command_words(line.strip()))
}
ROOMS = ("cases", "data", "models", "scores", "inference", "training", "studies", "commands")


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, the current one, with the documents' files: blocks that open with a comment that holds a path."""
    for document in ("README.md", "docs/extending.md", "docs/walkthrough_scenes.md", "docs/walkthrough_volumes.md"):
        for _, block in fences((ROOT / document).read_text(encoding="utf-8")):
            if named := re.match(r"(?:# @package _global_\n)?# ([\w/]+\.(?:yaml|py))\n", block):
                path = tmp_path / named[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block, encoding="utf-8")
    for plan in ("brain_2d", "brain_3d"):  # what `voxtile plan` would write there
        path = tmp_path / "my_conf" / "experiment" / f"{plan}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# @package _global_\ndefaults:\n  - override /data: brain\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXTILE_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mylab", "my_nets")]:
        del sys.modules[name]


def anchors(document: Path) -> set[str]:
    """What links may name in a document: its headings as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    for file, _, anchor in (target.partition("#") for target in targets if "://" not in target):
        document = path.parent / file if file else path
        assert document.exists(), file
        assert not anchor or anchor in anchors(document), f"{file}#{anchor}"


def test_every_document_is_in_the_readmes_index() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = [*(ROOT / "docs").glob("*.md"), ROOT / "docs" / "models" / "README.md", *(ROOT / "experiments").glob("*/README.md")]
    assert all(f"({path.relative_to(ROOT)})" in readme for path in listed)


def test_every_family_has_a_page_in_its_index() -> None:
    folder = ROOT / "docs" / "models"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in index for path in folder.glob("*.md") if path.name != "README.md")
    options = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")}
    assert options <= set(re.findall(r"\w+", index))


@pytest.mark.slow
def test_the_table_of_networks_says_what_they_are() -> None:
    text = (ROOT / "docs" / "models" / "README.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.count("|") == 8]
    rows = {cell[0]: cell[1:4] for cell in cells[2:]}
    options = [
        path.relative_to(ROOT / "conf" / "model").with_suffix("").as_posix() for path in (ROOT / "conf/model").rglob("*.yaml")
    ]
    assert sorted(rows) == sorted(options)
    for option, (parameters, stride, field) in rows.items():
        config = OmegaConf.load(ROOT / "conf" / "model" / f"{option}.yaml")
        if "width" in config:
            config.width = 1.0
        with torch.device("meta"):
            network = instantiate(config, in_channels=3, num_classes=5).eval()
        assert (parameters, stride) == (f"{sum(value.numel() for value in network.parameters()):,}", str(network.stride)), option
        if field.isdigit():
            side = 388 if "paper" in option or "release" in option else 513
            assert int(field) == receptive_field(executed(network, torch.empty(1, 3, side, side, device="meta")), 5), option


def test_every_command_is_shown() -> None:
    assert {words[0] for words in COMMANDS.values()} == {
        "train",
        "plan",
        "check",
        "evaluate",
        "compare",
        "predict",
        "status",
        "reproduce",
        "verify",
        "export",
    }


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_command_composes(words: list[str], examples: Path) -> None:
    assert composed(words)


def test_a_misspelt_command_does_not_compose(examples: Path) -> None:
    for words in (["train", "trainig.steps=1"], ["train", "data=satelite"], ["evaluate", "run=r", "spilt=val"]):
        with pytest.raises(HydraException):
            composed(words)


def test_the_readmes_data_sets_are_built(examples: Path) -> None:
    (scenes,) = composed(["train", "--config-dir", "my_conf", "data=mine"])
    built = parts(scenes)
    assert built.dataset.classes == ("other", "forest", "water")
    assert built.dataset.label_map.values[-1] == 255
    assert built.dataset.grouping("river_2019", {}) == built.dataset.grouping("river_2023", {}) == "river"
    assert built.dataset.layout.root == examples / "mine"
    assert isinstance(built.scheme, GroupSplit)
    (volumes,) = composed(["train", "--config-dir", "my_conf", "data=my_volumes", "split=kfold"])
    built = parts(volumes)
    assert built.normalisation.per == "case"
    assert isinstance(built.scheme, KFold)
    patient = examples / "my_volumes" / "p7"
    patient.mkdir(parents=True)
    for name in ("1_flair", "1_lesions", "2_flair", "2_lesions"):
        (patient / f"{name}.nii.gz").touch()
    assert [(files.id, built.dataset.grouping(files.id, files.fields)) for files in built.dataset.layout.find()] == [
        ("p7_1", "p7"), ("p7_2", "p7"),
    ]  # fmt: skip


def test_the_readmes_networks_give_logits_of_the_images_size(examples: Path) -> None:
    for name, trust in (("two_layers", ["my_nets"]), ("basic_unet", [])):
        (config,) = composed(["train", "--config-dir", "my_conf", f"model={name}"])
        network = build(config["model"], "model", trust, in_channels=3, num_classes=5).eval()
        assert network(torch.zeros(2, 3, 48, 41)).shape == (2, 5, 48, 41)


def written(document: str) -> dict[str, list[str]]:
    """The commands of a document, and their words."""
    blocks = [block for language, block in fences((ROOT / document).read_text(encoding="utf-8")) if language == "sh"]
    return {line: words for block in blocks for line in block.splitlines() if (words := command_words(line))}


@pytest.mark.parametrize("words", written("docs/extending.md").values(), ids=written("docs/extending.md"))
def test_the_examples_of_own_code_train(
    words: list[str], examples: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "data=mri" in words:
        own = [word for word in volume_words(examples, window=[4, 16, 16]) if not word.startswith("model.")]
    else:
        scenes(examples / "listed")
        sides = ["train", "train", "train", "val", "val", "test"]
        rows = [f"s{number},images/s{number}.tif,labels/s{number}.tif,site{number},{side}" for number, side in enumerate(sides)]
        (examples / "listed" / "index.csv").write_text("\n".join(["id,image,label,site,split", *rows]) + "\n")
        own = ["data=listed", "data.window=[32,32]", "trainer=cpu", "training.batch_size=2"]
        own += [f"paths.{name}={examples / name}" for name in ("cache", "runs")]
    others = [word for word in words[1:] if not word.startswith("data")]
    monkeypatch.setattr(sys, "argv", ["voxtile", words[0], *others, *own, "training.steps=2", "training.val_every=2"])
    assert main() == 0, capfd.readouterr().err
    assert len(list((examples / "runs").glob("*/weights/best.safetensors"))) == (words[0] == "train")


def test_a_data_sets_own_split_is_that_of_the_table(examples: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scenes(examples / "listed")
    (examples / "listed" / "index.csv").write_text("id,image,label,site,split\na,images/s0.tif,labels/s0.tif,there,train\n")
    layout = OmegaConf.load(examples / "my_conf" / "data" / "listed.yaml").data.layout
    layout.root = str(examples / "listed")
    (case,) = build(layout, "data.layout", ["mylab"]).find()
    assert (case.id, case.split, case.fields) == ("a", "train", {"site": "there"})


def test_annotations_of_coco_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    box = [2, 1, 5, 1, 5, 3, 2, 3]  # x and y of the corners
    document = {
        "images": [
            {"id": 7, "file_name": "there/a.jpg", "width": 9, "height": 6},
            {"id": 8, "file_name": "b.jpg", "width": 9, "height": 6},
        ],
        "categories": [{"id": 4, "name": "crowd"}, {"id": 300, "name": "box"}],
        "annotations": [
            {"image_id": 7, "category_id": 300, "iscrowd": 0, "segmentation": [box]},
            {"image_id": 7, "category_id": 4, "iscrowd": 1, "segmentation": {"counts": [54], "size": [6, 9]}},
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    (block,) = [block for _, block in fences((ROOT / "docs" / "data.md").read_text(encoding="utf-8")) if "coco =" in block]
    exec(compile(block, "data.md", "exec"), {})
    expected = np.zeros((6, 9))
    expected[1:4, 2:6] = 2
    for name, drawn in (("a", expected), ("b", 0 * expected)):
        with Image.open(tmp_path / "labels" / f"{name}.png") as label:
            np.testing.assert_array_equal(np.asarray(label), drawn)


def test_each_example_of_own_code_is_used(examples: Path) -> None:
    files = sorted((examples / "my_conf").rglob("*.yaml"))
    typed = {word for words in COMMANDS.values() for word in words}
    assert {f"{path.parent.name}={path.stem}" for path in files} <= typed
    classes = {name for path in (examples / "mylab").glob("*.py") for name in re.findall(r"^class (\w+)", path.read_text(), re.M)}
    assert len(classes) == 6
    assert classes <= set(re.findall(r"\w+", "".join(path.read_text() for path in files)))


def test_the_attributes_of_networks_are_documented() -> None:
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8").partition("## A network")[2].partition("```")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)) == {*PUBLISHED, "stochastic"}


def test_an_own_network_with_a_margin_gives_the_same_logits_with_real_context(examples: Path) -> None:
    network = build({"_target_": "mylab.nets.Unpadded"}, "model", ["mylab"], in_channels=2, num_classes=3).eval()
    image = torch.rand(1, 2, 12, 11)
    inner = network(image[:, :, 2:-2, 2:-2])
    assert torch.equal(network(image, context=2)[..., 2:-2, 2:-2], inner[..., 2:-2, 2:-2])
    assert logits_of(network, image).shape == inner.shape == (1, 3, 8, 7)


def section(title: str) -> str:
    """A part of docs/scores.md under a heading of the second level."""
    text = (ROOT / "docs" / "scores.md").read_text(encoding="utf-8")
    return re.split(r"^## ", text.partition(f"\n## {title}")[2], flags=re.MULTILINE)[0]


def rows(text: str) -> set[str]:
    """The names in the first column of a section's tables."""
    return set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))


def test_every_score_is_defined_and_every_definition_is_a_score() -> None:
    matrices = np.ones((2, 2, 2), dtype=np.int64)
    made = {
        name.replace("/ground", "/<class>").replace("/water", "/<class>") for name in summarise(matrices, ("ground", "water"), 0)
    }
    assert rows(section("Over the whole split")) | rows(section("Per case, then averaged")) == made


def test_every_column_of_the_case_table_is_defined() -> None:
    (row,) = case_rows(np.ones((1, 1, 1), dtype=np.int64), ["case"], ["water"])
    text = section("`cases.csv`")
    assert rows(text) == {name.replace("/water", "/<class>") for name in row if "/" in name}
    assert all(f"`{name}`" in text for name in row if "/" not in name)


def named(scores: Mapping[str, float]) -> set[str]:
    """Names of scores of one class, as the documents write them."""
    return {name.replace("/organ", "/<class>") for name in scores}


def test_every_score_of_volumes_surfaces_and_lesions_is_defined() -> None:
    organ, shape = {1: "organ"}, (2, 2, 2)
    columns = volume_columns(np.ones((2, 2), dtype=np.int64), {"organ": [1]}, 0.001)
    assert rows(section("Volumes in millilitres")) == named(columns) | named(summarise_volumes([columns], ["organ"]))
    window, pixels = Window.whole(shape), np.ones(shape, dtype=np.uint8)
    meter, counter = SurfaceMeter(shape, organ, (1, 1, 1), {"organ": 1}), LesionCounter(shape, organ, True, 0, 0)
    for collector in (meter, counter):
        collector.add(window, pixels, pixels)
    assert rows(section("Surfaces")) == named(summarise_surfaces([meter.columns()], ["organ"]))
    settings = {"least", "overlap", "connectivity"}
    assert rows(section("Lesions")) == named(summarise_lesions([counter.columns()], ["organ"])) | settings
    assert set(LESIONS) == settings


def test_every_field_of_the_identity_is_documented() -> None:
    text = (ROOT / "docs/runs.md").read_text(encoding="utf-8").partition("\n## Identity")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", text.partition("not in it")[0]))
    assert {field.rpartition(".")[2] for field in (*FIELDS, *ADDED)} <= named


def test_the_exit_codes_are_documented() -> None:
    tree = ast.parse((ROOT / "src/voxtile/errors.py").read_text(encoding="utf-8"))
    codes = {
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and getattr(node.targets[0], "id", "") == "exit_code"
        and isinstance(node.value, ast.Constant)
    }
    documented = re.findall(r"^\| ([0-9]+) \|", (ROOT / "docs/runs.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert codes | {0, 130} == {int(code) for code in documented}


ROOMED = [path for path in sorted((ROOT / "src/voxtile").rglob("*.py")) if path.parent.name != "voxtile"]


@pytest.mark.parametrize("path", ROOMED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT / "src/voxtile").parts[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules += [
        f"voxtile.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "voxtile"
        for alias in node.names
    ]
    others = {module.split(".")[1] for module in modules if module.startswith("voxtile.")} & set(ROOMS)
    assert not [other for other in others if ROOMS.index(other) > ROOMS.index(room)]
    if room != "commands":
        assert not [name for name in modules if name.split(".")[0] == "hydra"]


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_module_gives_one_name_two_values(path: Path) -> None:
    """Of two constants of the same name the second would silently stand for the first."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    assert not {name for name in names if names.count(name) > 1}
