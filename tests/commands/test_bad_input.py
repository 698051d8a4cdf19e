"""Bad input: one clear paragraph that names the place and the remedy, no traceback, nothing half-written."""

import errno
import json
import os
import pickle
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import geopandas
import nibabel
import numpy as np
import pytest
import rasterio
import shapely
import torch
import yaml

from tests.commands.conftest import Command, Outcome, Run, homes, read
from tests.testers.formats import file_size_limit
from tests.testers.tiny import scene, scene_words, volume_words
from voxtile.commands.compose import conf_dir
from voxtile.commands.devices import device_called
from voxtile.commands.main import main
from voxtile.errors import ConfigError
from voxtile.training.module import SegmentationModule


def images(folder: Path) -> Path:
    return folder / "scenes" / "images"


def labels(folder: Path) -> Path:
    return folder / "scenes" / "labels"


def refused(said: Outcome, code: int, *words: object) -> None:
    """The command ended with `code` and said every one of `words`, in at most one paragraph."""
    assert said.code == code, said
    for word in words:
        assert str(word) in said.text
    assert len(said.err.strip().splitlines()) == 1


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return scene_words(tmp_path)


@pytest.fixture
def refuses(words: list[str], tmp_path: Path, voxtile: Command):
    """Trains, expects a refusal, and that no run folder was begun."""

    def train(code: int, *said: object, extra: tuple[str, ...] = ()) -> None:
        refused(voxtile("train", *words, *extra), code, *said)
        assert not (tmp_path / "runs").exists()

    return train


def test_a_missing_folder(refuses, tmp_path) -> None:
    gone = tmp_path / "gone"
    refuses(3, f"The data folder {gone} does not exist", "'data.layout.root=…'", extra=(f"data.layout.root={gone}",))


@pytest.mark.parametrize(
    ("word", "said"),
    [("loss=focal loss.gamma=-1", "`loss.gamma` is -1"), ("optimizer=sgd optimizer.momentum=-1", "Invalid momentum value: -1")],
)
def test_a_wrong_loss_or_optimizer_is_found_before_any_file_is_looked_for(refuses, tmp_path, word, said) -> None:
    refuses(2, said, extra=(*word.split(), f"data.layout.root={tmp_path / 'gone'}"))


def test_a_mapping_that_the_shell_has_cut(refuses) -> None:
    refuses(2, "ends within its brackets", "quotes: '+data.labels={7: roof}'.", extra=("+data.labels={7:", "roof}"))
    refuses(2, "a bracket that is not closed", extra=("+data.labels={7: roof",))


@pytest.mark.parametrize(("model", "argument"), [("smp/unet", "encoder_weights"), ("torchvision/fcn_resnet50", "weights_backbone")])
def test_an_argument_of_what_a_network_is_built_of(voxtile, model, argument) -> None:
    said = f"takes no '{argument}', and what it is built of does: type 'model.network.{argument}=x'."
    refused(voxtile("train", f"model={model}", f"model.{argument}=x"), 2, said)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.labels.1=lake", "a path cannot name one. Type 'data.labels={1: lake}'."),
        (
            "~data.labels.1",
            "To take 1 out, have its pixels ignored, 'data.labels={1: ignore}', or type what there shall be instead:",
        ),
        ("~data.labels.{1}", "the keys of 'data.labels' are whole numbers"),
        ("~data.ä", "what is set, 'data.ä', must be letters without accents"),
        ("data.a{b}=1", "what is set, 'data.a{b}', must be letters"),
    ],
)
def test_a_key_that_no_path_can_name(refuses, word, said) -> None:
    refuses(2, f"'{word}'", said, extra=(word,))


def test_a_list_where_settings_have_names(refuses) -> None:
    refuses(2, "'data.labels=[1]' does not fit there", "'data.labels={<name>: <value>}'", extra=("data.labels=[1]",))
    refuses(2, "'data.window' holds a list", "'data.window=[<value>, <value>]'", extra=("data.window={a: 1}",))


def test_a_fold_of_a_split_without_folds_and_one_that_is_two(refuses) -> None:
    refuses(2, "'fold' is a setting of split=block_kfold, split=file, split=kfold", "Type 'split=kfold' too", extra=("fold=1",))
    refuses(2, "'fold=1' and 'split.fold=2' are one setting", extra=("split=kfold", "fold=1", "split.fold=2"))
    refuses(2, "'fold=7' of 'split.folds=5' does not exist", extra=("split=kfold", "fold=7"))


def test_a_device_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"^'device=gpu' is no device\. Type 'device=cuda' for a GPU"):
        device_called("gpu")


def test_a_misspelt_folder_of_images(refuses, tmp_path) -> None:
    words = "no file matches 'imgs/{id}.tif' (data.layout.images)", f"no folder {tmp_path / 'scenes' / 'imgs'}", "images, labels"
    refuses(3, *words, extra=("data.layout.images='imgs/{id}.tif'",))


def test_a_folder_without_cases(refuses, tmp_path) -> None:
    refuses(3, tmp_path / "scenes", "'pictures/{id}.tif'", extra=("data.layout.images='pictures/{id}.tif'",))


def test_an_image_without_a_label(refuses, tmp_path) -> None:
    (labels(tmp_path) / "s3.tif").unlink()
    refuses(3, "s3.tif", "label", "data.layout")


def test_the_label_of_all_images_is_not_there(refuses, tmp_path) -> None:
    folder = tmp_path / "scenes"
    held = f"There is no file {folder / 'gebaeude.gpkg'} (data.layout.labels); {folder} holds images, labels."
    refuses(3, held, extra=("data.layout.labels=gebaeude.gpkg",))


def test_a_label_without_an_image(refuses, tmp_path) -> None:
    (images(tmp_path) / "s3.tif").unlink()
    refuses(
        3,
        tmp_path / "scenes",
        "1 label below",
        "has no image at 'images/{id}.tif': labels/s3.tif",
        "Add the images, or move these labels away",
    )


def test_another_number_of_bands(refuses, tmp_path) -> None:
    scene(images(tmp_path) / "s3.tif", np.ones((3, 40, 36), dtype=np.float32), 3)
    refuses(3, f"{images(tmp_path) / 's3.tif'} has 3 channels", "s0.tif has 2", 'data.exclude=["s3"]')


def test_a_channel_that_is_not_there(refuses, tmp_path) -> None:
    refuses(3, images(tmp_path) / "s0.tif", "has no channel band7", "band1, band2", extra=("data.channels=[band1,band7]",))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_label_of_another_size(refuses, tmp_path) -> None:
    path = labels(tmp_path) / "s3.tif"
    with rasterio.open(path, "w", driver="GTiff", height=20, width=18, count=1, dtype="uint8") as out:
        out.write(np.zeros((1, 20, 18), dtype=np.uint8))
    refuses(3, path, "18", "20", images(tmp_path) / "s3.tif")


def test_an_unknown_label_value(refuses, tmp_path) -> None:
    path = labels(tmp_path) / "s0.tif"
    with rasterio.open(path, "r+") as label:
        label.write(np.array([[7, 9]], dtype=np.uint8), 1, window=((0, 1), (0, 2)))
    refuses(3, f"{path} holds 7, 9 as label values", "it maps 0, 1", "'7: <class>' with the name of a class, or '7: ignore'")


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_scene_that_is_cut_off(refuses, tmp_path, kept) -> None:
    path = images(tmp_path) / "s0.tif"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    refuses(3, path, "cut off" if kept else "cannot be read")


def test_an_area_is_found_from_any_folder_once_the_run_is_trained(words, tmp_path, voxtile, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(voxtile("train", *words, "data.scene={area: field.geojson}"), 3, f"The area {tmp_path / 'field.geojson'}", "not exist")
    with rasterio.open(images(tmp_path) / "s0.tif") as image:
        everywhere = shapely.box(*image.bounds).buffer(1e5)
        geopandas.GeoSeries([everywhere], crs=image.crs).to_crs("EPSG:4326").to_file(tmp_path / "field.geojson")
    assert voxtile("train", *words, "data.scene={area: field.geojson}").code == 0
    (home,) = homes(tmp_path / "runs")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert voxtile("evaluate", f"run={home}").code == 0


def test_a_file_that_is_no_scene(refuses, tmp_path) -> None:
    (images(tmp_path) / "s0.tif").write_text("<html>404</html>")
    refuses(3, images(tmp_path) / "s0.tif", "cannot be read as a GeoTIFF")


def test_a_volume_that_is_cut_off(tmp_path, voxtile) -> None:
    words = volume_words(tmp_path)
    path = tmp_path / "volumes" / "imagesTr" / "v0.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(voxtile("train", *words), 3, path)
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_label_volume_of_another_shape(tmp_path, voxtile) -> None:
    words = volume_words(tmp_path)
    path = tmp_path / "volumes" / "labelsTr" / "v0.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((18, 16, 4), dtype=np.uint8), nibabel.load(path).affine), path)
    refused(voxtile("train", *words), 3, path, path.parent.parent / "imagesTr" / "v0.nii.gz")


def test_a_scene_without_data(refuses, tmp_path, scene_run: Run) -> None:
    case = scene_run.read("manifest.json")["data"]["split"]["train"][0]["id"]
    scene(images(tmp_path) / f"{case}.tif", np.full((2, 40, 36), -1, dtype=np.float32), int(case[1:]), nodata=-1)
    refuses(3, "hold no pixel that can be judged", f"'data.exclude=[\"{case}\"]'")


def test_a_case_that_only_the_configuration_knows(refuses) -> None:
    refuses(2, "'data.exclude' names s11", "Did you mean 's1'?", extra=("data.exclude=[s11]",))


def test_an_empty_split(refuses) -> None:
    refuses(2, "2 groups (s4, s5)", "at least 3", "'split.test=0'", extra=("data.exclude=[s0,s1,s2,s3]",))
    refuses(2, "1 group (s5)", "at least 3", "or cut a large scene", extra=("data.exclude=[s0,s1,s2,s3,s4]",))


def test_a_window_larger_than_every_case(refuses) -> None:
    refuses(2, "'data.window=[128, 128]' is larger than every case", "type 'data.window=[64,64]'", extra=("data.window=[128,128]",))


def test_a_window_too_small_for_the_network(refuses) -> None:
    refuses(
        2, "A side of 'data.window=[16, 16]', 16 pixels, is smaller than 32", "a smaller 'model.depth'", extra=("model.depth=4",)
    )


def test_a_network_of_other_dimensions(refuses) -> None:
    refuses(2, "takes 3-dimensional windows", "'data.window=[16, 16]' has 2 sides", "'model.dims=2'", extra=("model.dims=3",))


@pytest.mark.parametrize("command", ["train", "check"])
@pytest.mark.parametrize(("word", "said"), [("model.depth=4", "is smaller than 32"), ("model.dims=3", "takes 3-dimensional")])
def test_a_window_that_does_not_suit_the_network_is_found_before_any_file_is_read(words, voxtile, command, word, said) -> None:
    refused(voxtile(command, *words, word, "data.layout.root=nowhere"), 2, said, "'data.window=[16, 16]'")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model=null", "'model=null': a run needs a 'model'"),
        ("data=nothing", "'--config-dir"),
        ("experiment=nothing", "'experiment=nothing' does not exist"),
        ("training=5", "'training=5' takes the place of all settings of 'training'"),
        ("data.name=a/b", "'data.name=a/b' names run folders"),
        ("data.symmetry=3", "'data.symmetry=3' is of the wrong kind"),
        ("+data.symmetry.swap.x=[[disc,disk]]", "holds the class disk, and there is none of this name or index"),
        ("data.sampling=uniform", "'data.sampling={by: uniform}'"),
        ("data.sampling.by=unifrom", "'data.sampling.by=unifrom' is no way of drawing windows. Did you mean 'uniform'?"),
        ("data.sampling.scale=[1,2]", "Did you mean 'data.sampling.scales'?"),
        ("data.exclude=s0", "'data.exclude=[p7]'"),
        ("data.group=abc", "'data.group={pattern:"),
        ("data=1", "An option is chosen by its name"),
        ("training.batch_size=100000000", "which no machine holds"),
        ("training.steps=abc", "'training.steps=abc' must be a whole number."),
        ("training.steps=2.5", "'training.steps=2.5' must be a whole number."),
        ("training.clip=much", "'training.clip=much' must be a number, or null."),
        ("model.width=wide", "'model.width=wide' must be a number."),
        ("model.depth=1.5", "'model.depth=1.5' must be a whole number."),
        ("model.depth=true", "'model.depth=true' must be a whole number."),
        ("split.stratify=2", "'split.stratify=2' must be true or false."),
        ("optimizer.weight_decay=abc", "'optimizer.weight_decay=abc' must be a number."),
        ("scheduler.warmup=null", "'scheduler.warmup=null' must be a whole number."),
        ("augment=default augment.affine.scale=[a,b]", "'augment.affine.scale=['a', 'b']' must be a list, each entry a number."),
        ("augment=default augment.elastic.unit=m", "'augment.elastic.unit=m' must be one of length, px."),
        ("normalise.clip=5", "'normalise.clip=5' must be a list, each entry a number, or null."),
        ("training.groups=3", "'training.groups=3' must be a list."),
        (
            "data.channels=[2019_1,band2]",
            "A name with underscores, which YAML leaves out of numbers, needs double quotes",
        ),
        ("data.channels=[1]", "'data.channels=[1]' must be a list, each entry text, or null. Type 'data.channels=[\"1\"]'."),
        ("data.layout.images=3", "'data.layout.images=3' must be text, or a list, each entry text."),
        ("trainer.deterministic=maybe", "'trainer.deterministic=maybe' must be true or false"),
        ("split.seed=abc", "'split.seed=abc' must be a whole number"),
        ("data.nodata=abc", "'data.nodata=abc' must be a number"),
        ("+data.labels={2.9:red}", "'data.labels' holds '2.9: red', and 2.9 is no whole number"),
        ("~data.labels +data.labels={ground:0,red:1}", "'data.labels' holds 'ground: 0', and ground is no whole number"),
        ("data.colors={reed:[1,2,3]}", "'data.colors' names 'reed', which is no class"),
        ("data.vectors=3", "'data.vectors=3' is of the wrong kind"),
        ("data.vectors.bufer=3", "Did you mean 'data.vectors.buffer'?"),
        ("data.vectors.buffer=wide", "'data.vectors.buffer=wide' must be a number of metres"),
        ("data.vectors.values={lake:1}", "type 'data.vectors.attribute=…'"),
        ("augment.elastic=-1", "'augment.elastic=-1' is no operation"),
        ("data.layout.images=[]", "'data.layout.images' is empty"),
        ("data.window=[16]", "'data.window=[16]' must be [height, width]"),
        ("data.window=[16,32]", "'data.symmetry.rot90=true' turns windows"),
        ("model.width=0", "a width above 0"),
        ("model.width=0", "Of these settings, you typed 'model.width=0', 'model.depth=2'."),
        ("logger=wandb logger.wandb.mode=ofline", "Did you mean 'offline'?"),
        (
            "augment=default augment.affine.rotation=-10",
            "Affine of the augmentation has rotation=-10; expected a number from 0 to 360",
        ),
        ("augment=default augment.affine.scale=[.8,inf]", "'augment.affine.scale=[0.8, inf]' must be a list, each entry a number."),
        ("augment=default augment.elastic.std=nan", "'augment.elastic.std=nan' must be a number."),
        ("augment=default augment.intensity.bias.control=0", "control=0; expected a number from 1 up, for example control=128.0."),
        ("loss=ce loss.class_weights=[0,0]", "'loss.class_weights=[0, 0]' must be 2 numbers"),
        ("loss=ce loss.class_weights=[nan,1]", "'loss.class_weights=[nan, 1]' must be"),
        ("loss=ce loss.class_weights={disk:2}", "'loss.class_weights' names 'disk', which is no class. Did you mean 'disc'?"),
        ("loss=ce loss.class_weights={disc:-2}", "'loss.class_weights.disc=-2' must be a number that is at least 0"),
        ("loss=dice_ce loss.smooth=-1", "`loss.smooth` is -1"),
        ("+loss.smooth=1", "'loss.smooth' is there already: type 'loss.smooth=1', without the plus."),
        ("optimizer=sgd optimizer.momentum=nan", "'optimizer.momentum=nan' must be a number."),
        ("optimizer.lr=nan", "'optimizer.lr=nan' must be a number"),
        ("scheduler=poly scheduler.power=-1", "`scheduler.power` is -1; give a number that is at least 0."),
        ("split=groups split.val=nan", "'split.val=nan' must be"),
        ("training.clip=nan", "'training.clip=nan' must be more than 0"),
        ("training.minutes=nan", "'training.minutes=nan' must be more than 0"),
        ("training.ema=nan", "'training.ema=nan' is a decay"),
        ("model.pretrained=true model._target_=monai.networks.nets.FlexibleUNet", "'trust=[monai.networks.nets]'"),
    ],
)
def test_a_value_that_cannot_be(words, tmp_path, voxtile, word, said) -> None:
    if word.startswith("data=nothing"):
        words = words[2:]
    extra = [f"+{part}" if part.startswith("model.pre") else part for part in word.split()]
    outcome = voxtile("train", *(w for w in words if not (word == "data=nothing" and w.startswith("data="))), *extra)
    refused(outcome, 2, *([] if "config-dir" in said else [said]))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("word", "owners", "choose"),
    [
        ("split.side=50", "split=block_kfold, split=blocks", "'split=blocks'"),
        ("split.buffer=5", "split=block_kfold, split=blocks", "'split=blocks'"),
        ("scheduler.every=10", "scheduler=step", "'scheduler=step'"),
    ],
)
def test_a_setting_of_an_option_that_was_not_chosen(refuses, word, owners, choose) -> None:
    key = word.partition("=")[0]
    refuses(2, f"'{key}' is a setting of {owners}, and something else was chosen. Type {choose} too", extra=(word,))


def test_new_entries_of_a_mapping_are_added_or_take_the_place_of_the_others(words, voxtile) -> None:
    refused(
        voxtile("train", *words, "data.labels={0:ground,7:roof}"),
        2,
        "'data.labels={0:ground,7:roof}' would be added to the entries that 'data.labels' has",
        "'+data.labels={0:ground,7:roof}'",
        "'~data.labels'",
    )
    said = voxtile("train", *words, "~data.labels", "+data.labels={0:ground,7:roof}", "--cfg", "job")
    assert yaml.safe_load(said.out)["data"]["labels"] == {0: "ground", 7: "roof"}


def test_an_error_about_a_mapping_says_that_it_was_added_to_another(words, tmp_path, voxtile) -> None:
    path = tmp_path / "conf" / "data" / "discs.yaml"
    path.write_text(path.read_text() + "vectors: {attribute: kind, values: {lake: 1, road: wide}}\n")
    outcome = voxtile("train", *words, "data.vectors.values={lake: 0}")
    said = "holds 'wide'. Expected stored label values"
    refused(outcome, 2, said, "was added to the entries that it had, road: type '~data.vectors.values' and")
    outcome = voxtile("train", *words, "~data.vectors.values", "+data.vectors.values={lake: wide}")
    refused(outcome, 2, said)
    assert "was added" not in outcome.text


WRONG_FILES = {
    "no YAML": ("data:\n  name: [a\n", "is no YAML"),
    "no package": ("data:\n  name: mine\n", "'# @package _global_'"),
    "no data": ("# @package _global_\nname: mine\n", "Put it under 'data:'"),
    "no target": (
        "# @package _global_\ndata:\n  {name: m, format: geotiff, layout: {root: x}, labels: {0: a, 1: b}, window: [8, 8]}\n",
        "'data.layout' has no '_target_'",
    ),
    "no window": (
        "# @package _global_\ndata:\n  {name: m, format: geotiff, layout: {root: x}, labels: {0: a, 1: b}}\n",
        "lacks 'window'",
    ),
    "a text twice": ("# @package _global_\ndata:\n  name: m\n  name: n\n", "found duplicate key name"),
    "a number twice": (
        "# @package _global_\ndata:\n  labels:\n    0: ground\n    1: red\n    1: blue\n    2: blue\n",
        "conf/data/mine.yaml, line 6, names the key 1 for the second time",
    ),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_data_set_file_that_is_wrong(tmp_path, voxtile, kind) -> None:
    text, said = WRONG_FILES[kind]
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "mine.yaml").write_text(text)
    refused(voxtile("train", "--config-dir", tmp_path / "conf", "data=mine", f"paths.runs={tmp_path / 'runs'}"), 2, said)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("latin-1", "conf/data/mine.yaml is no UTF-8 text"),
        ("utf-16", "conf/data/mine.yaml is no UTF-8 text"),
        ("utf-8-sig", "conf/data/mine.yaml begins with a byte-order mark"),
    ],
)
def test_a_data_set_file_in_another_encoding(tmp_path, voxtile, encoding, said) -> None:
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "mine.yaml").write_text("# @package _global_\n# prés\ndata:\n  name: mine\n", encoding=encoding)
    refused(voxtile("train", "--config-dir", tmp_path / "conf", "data=mine"), 2, said, "UTF-8", "without")


def test_a_file_that_names_a_number_twice_is_refused_before_the_first_job_of_a_sweep(tmp_path, voxtile) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\ndata:\n  labels: {0: field, 0: water}\n")
    words = ["--config-dir", tmp_path / "conf", "experiment=mine", f"paths.runs={tmp_path / 'runs'}"]
    refused(
        voxtile("train", "-m", *words, "seed=1,2"), 2, "mine.yaml, line 3, names the key 0 for the second time", "none was begun"
    )


def test_an_option_of_ones_own_without_its_folder(voxtile) -> None:
    refused(voxtile("train", "data=mine"), 2, "'data=mine' does not exist", "needs '--config-dir <folder>'")


@pytest.mark.parametrize(("group", "option", "more"), [("data", "satellite", []), ("model", "unet", ["-m", "seed=0,1"])])
def test_a_file_with_the_name_of_one_that_comes_along_is_refused(
    group: str, option: str, more: list[str], tmp_path: Path, voxtile: Command
) -> None:
    file = tmp_path / "conf" / group / f"{option}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text((conf_dir() / group / file.name).read_text())
    outcome = voxtile("train", "--config-dir", tmp_path / "conf", "training.steps=1", f"paths.runs={tmp_path / 'runs'}", *more)
    assert voxtile("train", "--config-dir", conf_dir(), "--cfg", "job").code == 0  # those that come along themselves
    assert outcome.code == 2
    assert f"{file} has the name of the '{group}={option}' that comes with voxtile" in outcome.text
    assert not list((tmp_path / "runs").glob("*-s0-*"))


@pytest.mark.parametrize("flag", ["--config-dir {}", "--config-dir={}", "-cd {}", "-cd={}", "--config-d={}", "--config-di {}"])
def test_a_folder_of_ones_own_named_in_every_way(words, tmp_path, voxtile, flag) -> None:
    said = voxtile("train", *flag.format(words[1]).split(" "), *words[2:], "--cfg", "job")
    assert said.code == 0
    assert yaml.safe_load(said.out)["data"]["name"] == "discs"
    gone = tmp_path / "gone"
    refused(voxtile("train", *flag.format(gone).split(" ")), 2, f"The folder '{gone}' of '--config-dir' does not exist")
    refused(voxtile("train", *words, "--config-dir"), 2, "The folder '' of '--config-dir' does not exist")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("status ./runs", "'paths.runs=./runs'"),
        ("predict ./a.tif", "'input=./a.tif'"),
        ("evaluate /tmp/a=b", "'run=/tmp/a=b'"),
        ("verify runs", "'run=runs'"),
        ("compare a,b", "'evaluations=a,b'"),
        ("evaluate split", "'split=…'"),
        ("train unet", "'model=unet'"),
        ("check seed", "'seed=…'"),
        ("train -m ./conf", "'<setting>=…'"),
        ("plan x", "'<setting>=…'"),
    ],
)
def test_a_word_that_sets_nothing(voxtile, typed, said) -> None:
    command, *words = typed.split()
    refused(voxtile(command, *words), 2, f"'{words[-1]}' sets nothing: what follows a command is 'key=value'. Type {said}")


def test_debug_null_is_what_it_is_anyway(voxtile) -> None:
    assert voxtile("train", "debug=null", "experiment=null", "--cfg", "job").code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_for_runs_that_cannot_be_written(words, tmp_path, voxtile) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(voxtile("train", *words, f"paths.runs={tmp_path / 'locked'}"), 4, tmp_path / "locked", "'paths.runs=…'")


def test_a_file_where_the_folder_for_runs_should_be(words, tmp_path, voxtile) -> None:
    (tmp_path / "file").write_text("")
    for command in ("train", "check"):
        refused(voxtile(command, *words, f"paths.runs={tmp_path / 'file'}"), 4, tmp_path / "file", "'paths.runs=…'")


def test_a_traceback_comes_with_the_paragraph_and_the_same_code(words, capfd, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["voxtile", "train", *words, "data.window=[16]", "debug_errors=true"])
    assert main() == 2
    said = capfd.readouterr().err
    assert "Traceback" in said
    assert said.strip().splitlines()[-1].startswith("Configuration error: 'data.window=[16]'")


def test_a_class_absent_from_training(refuses) -> None:
    refuses(3, "No training case holds a pixel of class square", "data.labels", extra=("+data.labels.2=square",))


def test_a_leak_between_splits(tmp_path, voxtile) -> None:
    words = scene_words(tmp_path)
    for kind in (images(tmp_path), labels(tmp_path)):
        for number in range(6):
            (kind / f"s{number}.tif").write_bytes((kind / "s0.tif").read_bytes())
    refused(voxtile("train", *words), 3, "s0", "s1", "data.waive")


def test_many_empty_scenes_on_all_sides_are_left_out_or_accepted_by_a_file(tmp_path, voxtile) -> None:
    words = [*scene_words(tmp_path), f"paths.runs={tmp_path / 'my runs'}", "split.val=0.3", "split.test=0.3"]
    for number in range(6, 20):
        scene(images(tmp_path) / f"s{number}.tif", np.full((2, 24, 24), 7, np.float32), number)
        scene(labels(tmp_path) / f"s{number}.tif", np.zeros((1, 24, 24), np.uint8), number)
    said = voxtile("train", *words)
    refused(said, 3, "14 cases hold one image, all of whose pixels are 7: s")
    told = said.text
    assert "one group" not in told
    listed = Path(told.partition("'data.exclude=")[2].partition("'")[0])
    assert listed.is_relative_to(tmp_path / "my runs" / "check" / "discs")
    empty = [f"s{number}" for number in range(6, 20)]
    assert sorted(listed.read_text().split()) == sorted(empty)

    assert voxtile("train", *words, f"data.waive={listed}").code == 0
    (home,) = homes(tmp_path / "my runs")
    (sentence,) = read(home, "manifest.json")["data"]["waived"]
    assert sentence.startswith("Leak waived by the user: 14 cases hold one image, all of whose pixels are 7: s")
    listed.write_text("\n".join(reversed(empty)))  # a run is told by the names, not by their file
    assert voxtile("train", *words, f"data.exclude={listed}").code == 0
    (left,) = {*homes(tmp_path / "my runs")} - {home}
    assert yaml.safe_load((left / "config.yaml").read_text())["data"]["exclude"] == empty[::-1]


def test_a_list_of_cases_may_begin_with_a_byte_order_mark_and_not_be_empty(refuses, tmp_path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\ufeffs77\r\n", encoding="utf-8")
    refuses(2, "'data.exclude' names s77, and no case is called so", extra=(f"data.exclude={file}",))
    file.write_text("\n \n")
    refuses(2, f"'data.exclude={file}' holds no name", extra=(f"data.exclude={file}",))


@pytest.mark.parametrize("word", ["data.exclude=s3", "data.waive=no.txt"])
def test_a_list_of_cases_that_is_none_and_no_file(refuses, word) -> None:
    refuses(2, f"'{word}'", "'data.exclude=[p7]'" if "exclude" in word else "'data.waive=[p7]'", "on each line", extra=(word,))


def test_a_misspelt_key(refuses) -> None:
    refuses(2, "'training.stesp'. Did you mean 'training.steps'?", extra=("training.stesp=3",))


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_a_run_folder_from_another_version(copied_run: Run, tmp_path, voxtile, command) -> None:
    recipe = copied_run.home / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"version": 1', '"version": 99'))
    words = copied_run.words if command == "train" else [f"run={copied_run.home}", f"paths.runs={tmp_path}"]
    extra = [f"input={images(copied_run.folder)}", f"output={tmp_path / 'out'}"] if command == "predict" else []
    refused(voxtile(command, *words, *extra), 4, f"{copied_run.home} was written by version 99", "version 1", "train the run again")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["recipe.json", "manifest.json", "config.yaml", "weights/best.safetensors"])
def test_a_run_folder_with_a_file_cut_off(copied_run: Run, tmp_path, voxtile, name) -> None:
    path = copied_run.home / name
    path.write_bytes(path.read_bytes()[:40])
    refused(voxtile("evaluate", f"run={copied_run.home}"), 4, path, "rain the run again")


def test_a_configuration_that_this_user_may_not_read(copied_run: Run, voxtile, monkeypatch) -> None:
    def load(file: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr("voxtile.commands.trained.OmegaConf", SimpleNamespace(load=load, to_container=dict))
    said = voxtile("evaluate", f"run={copied_run.home}")
    refused(said, 4, copied_run.home / "config.yaml", "Give yourself the right to read it")
    assert "damaged" not in said.text


DAMAGED = {
    "recipe.json": "[]",
    "manifest.json": "{}",
    "config.yaml": "- a\n- b\n",
    "status.json": "[1]",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_run_folder_with_something_else_in_a_file(copied_run: Run, voxtile, name) -> None:
    (copied_run.home / name).write_text(DAMAGED[name])
    command = ["train", *copied_run.words] if name == "status.json" else ["evaluate", f"run={copied_run.home}"]
    refused(voxtile(*command), 4, copied_run.home / name, "train the run again")


OTHERS = {"step": 2, "best": {}, "network": {}, "metrics": 0}  # state, with too little for this run


@pytest.mark.parametrize("state", [{}, {"step": 2}, [1, 2], "text", OTHERS])
def test_a_resume_state_that_is_none(copied_run: Run, voxtile, state) -> None:
    status = '{"state": "interrupted", "step": 2}'
    (copied_run.home / "status.json").write_text(status)
    torch.save(state, copied_run.home / "resume.pt")
    what = "no state of this run" if state is OTHERS else "it lacks" if isinstance(state, dict) else "it holds a"
    said = "Type" if state is not OTHERS else "type"
    refused(voxtile("train", *copied_run.words), 4, copied_run.home / "resume.pt", what, f"{said} 'retry=true': the same command")
    assert (copied_run.home / "status.json").read_text() == status


def test_a_resume_state_that_is_cut_off(copied_run: Run, voxtile) -> None:
    """What the message says to type trains the run, and until then its folder says how far it had come."""
    status = copied_run.read("status.json")
    unfinished = json.dumps({"state": "interrupted", "step": 3, "steps": 6, "best": status["best"]})
    (copied_run.home / "status.json").write_text(unfinished)
    metrics = (copied_run.home / "metrics.csv").read_bytes()
    torch.save({"step": 3, "network": torch.zeros(5000)}, copied_run.home / "resume.pt")
    os.truncate(copied_run.home / "resume.pt", 5000)
    said = voxtile("train", *copied_run.words)
    refused(said, 4, copied_run.home / "resume.pt", "damaged", "Type 'retry=true': the same command then")
    assert "Errno" not in said.text
    assert (copied_run.home / "status.json").read_text() == unfinished
    said = voxtile("train", *copied_run.words, "retry=true")
    assert said.code == 0, said.text
    assert "resume.pt is damaged and now called resume.damaged: the run is trained from its start" in said.text
    assert copied_run.read("status.json") == status
    assert (copied_run.home / "metrics.csv").read_bytes() == metrics
    assert (copied_run.home / "resume.damaged").stat().st_size == 5000
    assert "segments" not in copied_run.read("manifest.json")


@pytest.mark.parametrize("name", ["weights/best.safetensors", "manifest.json", "recipe.json", "config.yaml"])
def test_a_finished_run_that_lacks_a_file(copied_run: Run, voxtile, name) -> None:
    (copied_run.home / name).unlink()
    refused(voxtile("train", *copied_run.words), 4, f"its folder is damaged: {name} is gone. Put back", "or move the folder away")
    refused(voxtile("evaluate", f"run={copied_run.home}"), 4, copied_run.home)


def test_a_run_without_its_recipe_is_a_damaged_one(copied_run: Run, voxtile) -> None:
    (copied_run.home / "recipe.json").unlink()
    refused(voxtile("evaluate", f"run={copied_run.home}"), 4, f"{copied_run.home} is the folder of a run whose recipe.json is gone")


@pytest.mark.parametrize("small", [2**26, 0])
def test_a_finished_run_whose_weights_are_cut_off(copied_run: Run, voxtile, monkeypatch, small) -> None:
    monkeypatch.setattr("voxtile.training.weights.SMALL", small)
    assert voxtile("train", *copied_run.words).code == 0
    file = copied_run.home / "weights" / "last.safetensors"
    os.truncate(file, file.stat().st_size - 8)
    refused(voxtile("train", *copied_run.words), 4, "damaged: weights/last.safetensors is cut off or has changed. Put back")


def test_a_run_that_is_nowhere(copied_run: Run, voxtile, tmp_path) -> None:
    refused(voxtile("evaluate", f"run={tmp_path / 'runs' / 'other'}"), 4, "it does not exist", copied_run.home)
    refused(voxtile("evaluate", f"run={tmp_path}"), 4, "it has no recipe.json", "'run=<folder>'")


def test_data_that_are_no_longer_there(copied_run: Run, voxtile) -> None:
    config = copied_run.home / "config.yaml"
    config.write_text(config.read_text().replace(str(copied_run.folder / "scenes"), "/gone"))
    for command in ("evaluate", "verify", "reproduce"):  # which have no setting but 'root'
        said = voxtile(command, f"run={copied_run.home}")
        refused(said, 3, "The data folder /gone does not exist", "'root=<folder>'")
        assert not re.search("data.layout.root|paths.data|VOXTILE_DATA", said.text)
    assert voxtile("evaluate", f"run={copied_run.home}", f"root={copied_run.folder / 'scenes'}").code == 0


def test_a_metrics_file_that_is_gone(words, tmp_path, voxtile, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "on_validation_epoch_start", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            voxtile("train", *words)
    (home,) = homes(tmp_path / "runs")
    (home / "metrics.csv").unlink()
    refused(voxtile("train", *words, "retry=true"), 4, home / "metrics.csv", "delete resume.pt")


PLANTED = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "voxtile.cases.layouts.os.system",
    "voxtile.cases.layouts.glob.glob",
    "hydra.utils.call",
    "hydra.utils.instantiate",
    "numpy.load",
    "joblib.load",
    "pandas.read_pickle",
    "torch.load",
    "torch.optim.swa_utils.torch.load",
    "voxtile.commands.allowed.importlib.import_module",
    "voxtile.data.splits.Path",
    "monai.networks.nets.torch.hub.load",
]


@pytest.mark.parametrize("target", PLANTED)
def test_a_planted_target_is_not_run(copied_run: Run, tmp_path, voxtile, target) -> None:
    marker = tmp_path / "marker"
    config = copied_run.home / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["model"] = {"_target_": target, "_args_": [f"touch {marker}"], "command": f"touch {marker}", "args": f"touch {marker}"}
    config.write_text(yaml.safe_dump(content))
    said = voxtile("evaluate", f"run={copied_run.home}")
    refused(said, 2, f"'{target}'")
    assert "nothing was run" in said.text or "does not exist" in said.text
    assert not marker.exists()


@pytest.mark.parametrize("place", ["data.layout", "split", "normalise", "augment", "scheduler", "optimizer", "augment.affine"])
def test_a_planted_target_anywhere_is_not_run(copied_run: Run, tmp_path, voxtile, place) -> None:
    marker = tmp_path / "marker"
    config = copied_run.home / "config.yaml"
    content = yaml.safe_load(config.read_text())
    node = content
    for part in place.split("."):
        node = node[part]
    node.clear()
    node.update({"_target_": "os.system", "command": f"touch {marker}", "lr": 1})
    content["trust"] = ["os"]  # a run folder cannot vouch for itself
    config.write_text(yaml.safe_dump(content))
    source = images(copied_run.folder) / "s0.tif"
    said = voxtile("predict", f"run={copied_run.home}", f"input={source}", f"output={tmp_path / 'out'}")
    refused(said, 2, "'os.system'", "nothing was run")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


class Planted:
    """Pickles to a call that makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("place", [(), ("width",)])
def test_a_planted_download_is_not_begun(copied_run: Run, voxtile, monkeypatch, place) -> None:
    monkeypatch.setattr("monai.networks.nets.hovernet.download_url", lambda *args, **named: pytest.fail("downloads"))
    config = copied_run.home / "config.yaml"
    content = yaml.safe_load(config.read_text())
    planted = {"_target_": "monai.networks.nets.HoVerNet", "pretrained_url": "http://127.0.0.1:9/x"}
    content["model"] = content["model"] | {"width": planted} if place else planted
    config.write_text(yaml.safe_dump(content))
    refused(voxtile("evaluate", f"run={copied_run.home}"), 2, "'model' cannot be built")


def test_a_planted_pickle_as_resume_state_is_not_run(copied_run: Run, tmp_path, voxtile) -> None:
    marker = tmp_path / "marker"
    (copied_run.home / "status.json").write_text('{"state": "interrupted", "step": 2}')
    resume = copied_run.home / "resume.pt"
    resume.write_bytes(pickle.dumps(Planted(marker)))
    refused(voxtile("train", *copied_run.words), 4, f"{resume} cannot be read", "Type 'retry=true'")
    assert not marker.exists()
    pickle.loads(resume.read_bytes())
    assert marker.exists()  # the pickle would have


def test_planted_pickles_as_weights_are_not_run(copied_run: Run, tmp_path, voxtile) -> None:
    marker = tmp_path / "marker"
    weights = copied_run.home / "weights" / "best.safetensors"
    weights.write_bytes(pickle.dumps(Planted(marker)))
    refused(voxtile("evaluate", f"run={copied_run.home}"), 4, weights, "train the run again")
    assert not marker.exists()


def test_a_full_disk_while_predicting(scene_run: Run, tmp_path, voxtile) -> None:
    source = scene(tmp_path / "large.tif", np.random.default_rng(0).normal(1, 1, (2, 400, 500)).astype(np.float32))
    target = tmp_path / "out" / "large.tif"
    common = ["predict", f"run={scene_run.home}", f"input={source}", f"output={target}", "overlap=0"]
    with file_size_limit(150_000):
        said = voxtile(*common)
    refused(said, 3, target, "disk")
    assert not target.exists()
    assert voxtile(*common).code == 0
    assert [path.name for path in target.parent.iterdir()] == ["large.tif"]


def test_a_full_disk_while_training(words, tmp_path, voxtile) -> None:
    with file_size_limit(50_000):
        said = voxtile("train", *words)
    assert said.code == 4
    (home,) = homes(tmp_path / "runs")
    assert str(home / "resume.pt") in said.text
    assert "Free some disk space" in said.text
    assert not (home / "resume.pt").exists()
    assert not [path for path in home.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert voxtile("train", *words, "retry=true").code == 0


@pytest.mark.parametrize("name", ["metrics.csv", "status.json", "manifest.json", "config.yaml", "validation.json"])
def test_a_full_disk_is_said_of_any_file(words, tmp_path, voxtile, monkeypatch, name) -> None:
    inner = Path.open

    def full(self: Path, mode: str = "r", *args: object, **named: object):
        if self.name.endswith(name) and mode != "r":
            raise OSError(errno.ENOSPC, "No space left on device")
        return inner(self, mode, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        said = voxtile("train", *words)
    before_training = name in ("status.json", "manifest.json", "config.yaml")
    told = ("cannot be read or written", "'paths.runs=…'") if before_training else ("could not be written", "'retry=true'")
    refused(said, 4, f"{name} {told[0]}: No space left on device", told[1])
    assert voxtile("train", *words, "retry=true").code == 0


def test_a_run_that_another_machine_has_taken_over(words, tmp_path, voxtile, monkeypatch) -> None:
    inner = SegmentationModule.training_step
    theirs: dict[str, bytes] = {}

    def overtaken(self: SegmentationModule, batch: dict, index: int) -> None:
        inner(self, batch, index)
        if self.step == 4:
            (home,) = homes(tmp_path / "runs")
            for name in ("lease.json", "status.json", "manifest.json"):
                (home / name).write_text('{"host": "elsewhere", "state": "running"}')
                theirs[name] = (home / name).read_bytes()
            for thread in threading.enumerate():
                if thread.name == "heartbeat":  # ends once it has seen the other machine's lease
                    thread.join(timeout=30)

    monkeypatch.setattr("voxtile.training.run_folder.HEARTBEAT", 0.02)
    monkeypatch.setattr(SegmentationModule, "training_step", overtaken)
    refused(voxtile("train", *words), 4, "was taken over by another machine")
    (home,) = homes(tmp_path / "runs")
    assert {name: (home / name).read_bytes() for name in theirs} == theirs


def test_a_full_disk_while_a_map_is_finished(scene_run: Run, tmp_path, voxtile, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("voxtile.cases.maps.publish", full)
    source = images(scene_run.folder) / "s0.tif"
    refused(
        voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'out'}"), 3, "No space left on device"
    )
    assert not (tmp_path / "out" / "s0.tif").exists()


def test_a_loss_that_is_no_number_any_more(scene_run: Run, tmp_path, voxtile, monkeypatch) -> None:
    words = [*scene_run.words, f"paths.runs={tmp_path}"]
    inner = SegmentationModule.training_step

    def poisoned(self: SegmentationModule, batch: dict, index: int) -> None:
        if self.step == 5:
            batch["image"][:] = np.nan
        inner(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "training_step", poisoned)
        said = voxtile("train", *words)
    refused(said, 4, "The loss became nan at step 5 of 6, on samples of the cases s", "'optimizer.lr=…'", "'training.clip=1'")
    (home,) = homes(tmp_path)
    status = read(home, "status.json")
    assert (status["state"], status["step"]) == ("failed", 5)
    assert "The loss became nan" in status["reason"]
    refused(voxtile("train", *words), 4, "The loss became nan", "'retry=true'")
    said = voxtile("train", *words, "retry=true")
    assert said.code == 0
    assert "continuing at step 4 of 6" in said.text  # the last good state
    for name in ("weights/best.safetensors", "weights/last.safetensors", "metrics.csv"):
        assert (home / name).read_bytes() == (scene_run.home / name).read_bytes()


class Root(torch.nn.Module):
    """A network whose loss is finite and whose gradient is not: the slope of a root at 0."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(num_classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.scale.sqrt()[:, None, None] * image[:, :1] + 0 * image.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("clip", ["null", "1"])
def test_a_gradient_that_is_no_number(words, tmp_path, voxtile, clip) -> None:
    network = ["model=unet", "~model", f"+model._target_={__name__}.Root", f"trust=[{__name__}]", f"training.clip={clip}"]
    own = [w for w in words if not w.startswith("model.")]
    said = voxtile("train", *own, *network[1:])
    refused(said, 4, "The gradient became", "at step 0 of 6")


def test_a_rate_that_is_far_too_high(words, tmp_path, voxtile) -> None:
    said = voxtile("train", *words, "optimizer.lr=1e30", "training.clip=null")
    assert said.code == 4
    assert re.search(r"The loss became \S+ at step \d of 6, on samples of the cases s\d", said.text)
