"""What belongs to a run's identity, and what does not."""

import copy
import inspect
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.utils import get_class
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.testers.composing import composed
from voxtile.training import recipe
from voxtile.training.recipe import ADDED_TO, FIELDS, Recipe

CONFIG = {
    "model": {"_target_": "voxtile.models.unet.UNet", "width": 16}, "loss": {"_target_": "x"}, "optimizer": {"lr": 1e-3},
    "scheduler": {}, "augment": {}, "normalise": {}, "split": {"val": 0.2}, "seed": 0,
    "data": {"name": "d", "format": "geotiff", "labels": {0: "a", 1: "b"}, "window": [96, 96], "layout": {"root": "/here"}},
    "training": {"steps": 10, "batch_size": 2, "log_every": 1, "save_every": 1},
    "trainer": {"precision": "32-true", "accelerator": "cpu", "devices": 1}, "logger": {}, "paths": {"runs": "runs"}, "workers": 2,
}  # fmt: skip


def identity(config: dict, data: str = "data", split: str = "split", stream: int = 1) -> str:
    return Recipe.of(config, data, split, stream).identity


def changed(path: str, value: object) -> dict:
    config = copy.deepcopy(CONFIG)
    *groups, key = path.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[key] = value
    return config


@pytest.mark.parametrize("path", FIELDS)
def test_every_listed_field_counts(path: str) -> None:
    assert identity(changed(path, "something else")) != identity(CONFIG)


@pytest.mark.parametrize(
    "path", ["workers", "paths.runs", "logger", "training.log_every", "training.save_every", "data.layout", "trainer.accelerator"]
)
def test_what_is_not_listed_does_not_count(path: str) -> None:
    assert identity(changed(path, "something else")) == identity(CONFIG)


def test_data_split_and_stream_count() -> None:
    known = {identity(CONFIG), identity(CONFIG, data="x"), identity(CONFIG, split="x"), identity(CONFIG, stream=2)}
    assert len(known) == 4
    parent = Recipe.of(CONFIG, "data", "split", 1)
    assert Recipe(parent.settings, "data", "split", 1, parent="weights").identity != parent.identity


def test_a_recipe_read_back_has_the_same_identity() -> None:
    import json

    made = Recipe.of(CONFIG, "data", "split", 1)
    stored = json.loads(json.dumps(made.as_dict()))
    assert Recipe(stored["settings"], stored["data"], stored["split"], stored["stream"], stored["parent"]).identity == made.identity


def test_a_recipe_is_made_again_from_the_configuration_also_where_a_file_is_gone(tmp_path: Path) -> None:
    import json

    weights = tmp_path / "weights.safetensors"
    weights.write_text("1")
    config = changed("model", {"_target_": "x", "weights": str(weights)})
    made = Recipe.written(json.loads(json.dumps(Recipe.of(config, "data", "split", 1, "parent").as_dict())))
    assert made.remade(config).identity == made.identity == Recipe.of(config, "data", "split", 1, "parent").identity
    assert made.remade(config | {"seed": 1}).identity != made.identity
    weights.write_text("2")
    assert made.remade(config).identity != made.identity
    weights.unlink()
    assert made.remade(config).identity == made.identity


ADAPTED = {"_target_": "voxtile.models.adapter.Adapted"}
LEARNS = {"_target_": "voxtile.models.fcn.FCN", "stride": 8, "learn_upsampling": True}
V1, V2 = ({"_target_": f"voxtile.models.deeplab.DeepLab{name}", "width": 1.0} for name in ("V1", "V2"))


@pytest.mark.parametrize(
    ("model", "moved"),
    [
        (LEARNS, True), (LEARNS | {"stride": 16}, True), (LEARNS | {"stride": 32}, False),
        (ADAPTED | {"network": {"_target_": "mine.U2Net"}}, True),
        (ADAPTED | {"network": {"_target_": "mine.U2Net"}, "final": "last"}, False),
        (ADAPTED | {"network": {"_target_": "monai.networks.nets.UNet"}}, False),
        (LEARNS | {"learn_upsampling": False}, False), (V2 | {"scales": [1.0, 0.75, 0.5]}, True), (V2, True),
        (V2 | {"scales": [1.0]}, False), (V1 | {"kernel": 1, "weights": "imagenet"}, True),
        (V1 | {"kernel": 1, "weights": None}, False), (V1 | {"kernel": 3, "weights": "imagenet"}, False),
        (V1 | {"_target_": "voxtile.models.deeplab.DeepLabV1MSc", "kernel": 1, "weights": "imagenet"}, True), (V1, False),
        (CONFIG["model"], False),
    ],
)  # fmt: skip
def test_networks_whose_numbers_moved_and_no_others_have_another_identity(model: dict, moved: bool) -> None:
    made = Recipe.of(changed("model", model), "data", "split", 1)
    older = replace(made, settings={**made.settings, "model": model})  # as it was written before
    assert (made.identity != older.identity) == moved == older.is_outdated
    assert not made.is_outdated
    # The configuration of an older run agrees with its recipe still, and one that was edited does not.
    assert older.remade(changed("model", model)).identity == older.identity
    assert made.remade(changed("model", model)).identity == made.identity
    assert older.remade(changed("model", model | {"width": 0.5})).identity != older.identity


AFFINE, NOISE = {"_target_": "voxtile.data.warp.Affine"}, {"_target_": "voxtile.data.contrast.Noise"}


@pytest.mark.parametrize(
    ("window", "normalise", "augment", "moved"),
    [
        ([96, 96], {}, {"affine": AFFINE, "intensity": {"noise": NOISE}}, []), ([32, 96, 96], {}, {"affine": AFFINE}, []),
        ([16, 96], {}, {"affine": AFFINE}, []), ([1, 96, 96], {}, {"affine": AFFINE}, []),
        ([16, 96, 96], {}, {"affine": AFFINE}, ["plane"]), ([96, 96, 16], {}, {"elastic": AFFINE}, ["plane"]),
        ([16, 96, 96], {}, {"affine": None, "intensity": {"noise": NOISE}}, []),
        ([16, 96, 96], {}, {"affine": {"_target_": "own"}}, []),
        ([96, 96], {"keep_zero": True}, {"affine": AFFINE}, []),
        ([96, 96], {"keep_zero": True}, {"intensity": {"noise": None}}, []),
        ([96, 96], {"keep_zero": True}, {"intensity": {"noise": NOISE, "blur": None}}, ["zero"]),
        ([16, 96, 96], {"keep_zero": True}, {"affine": AFFINE, "intensity": {"noise": NOISE}}, ["plane", "zero"]),
    ],
)  # fmt: skip
def test_augmentations_whose_numbers_moved_and_no_others_have_another_identity(window, normalise, augment, moved) -> None:
    config = CONFIG | {"augment": augment, "normalise": normalise, "data": {**CONFIG["data"], "window": window}}
    made = Recipe.of(config, "data", "split", 1)
    older = replace(made, settings={**made.settings, "augment": augment})  # as it was written before
    assert made.settings["augment"].get("_version_", []) == moved
    assert (made.identity != older.identity) == bool(moved) == older.is_outdated
    assert not made.is_outdated
    assert older.remade(config).identity == older.identity
    assert made.remade(config).identity == made.identity


def test_boxes_that_were_deformed_in_a_plane_by_their_spacing_keep_their_identity() -> None:
    config = CONFIG | {"augment": {"affine": AFFINE}, "data": {**CONFIG["data"], "window": [16, 96, 96]}}
    for spacing, moved in ([4, 1, 1], []), ([2, 1, 1], ["plane"]), ([None, 1, 1], ["plane"]), ("median", ["plane"]):
        made = Recipe.of(config | {"data": {**config["data"], "spacing": spacing}}, "data", "split", 1)
        assert made.settings["augment"].get("_version_", []) == moved


@pytest.mark.parametrize("target", ADDED_TO)
def test_arguments_are_left_out_at_the_defaults_of_their_classes(target: str) -> None:
    parameters = inspect.signature(get_class(target)).parameters
    assert {name: parameters[name].default for name in ADDED_TO[target]} == dict(ADDED_TO[target])


def test_a_run_that_was_written_with_a_default_agrees_with_its_configuration_still() -> None:
    loss = {"_target_": "voxtile.training.losses.Dice", "smooth": 1.0}
    made = Recipe.of(changed("loss", loss), "data", "split", 1)
    older = replace(made, settings={**made.settings, "loss": loss})  # as it was written before it was left out
    assert older.identity != made.identity
    assert older.remade(changed("loss", loss)).identity == older.identity
    assert older.remade(changed("loss", loss | {"smooth": 0.5})).identity != older.identity


def test_the_order_of_keys_does_not_count() -> None:
    assert identity(dict(reversed(CONFIG.items()))) == identity(CONFIG)


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)


@settings(max_examples=20, deadline=None)
@given(old=VALUES, new=VALUES)
def test_identities_differ_exactly_where_values_do(old: object, new: object) -> None:
    import json

    same = json.dumps(old) == json.dumps(new)
    assert (identity(changed("training.clip", old)) == identity(changed("training.clip", new))) == same


def test_a_field_added_later_is_left_out_at_the_value_that_stood_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(CONFIG)
    monkeypatch.setattr(recipe, "ADDED", {"training.deep_supervision": False})
    assert identity(CONFIG) == before
    assert identity(changed("training.deep_supervision", False)) == before
    assert identity(changed("training.deep_supervision", True)) != before


def test_an_argument_added_later_is_left_out_at_the_value_that_stood_for_it() -> None:
    old = {"_target_": "voxtile.data.blocks.BlockSplit", "blocks": [4, 4], "buffer": 0.0, "val": 0.2, "test": 0.2, "seed": 0}
    new = {**old, "side": None, "grid": "case", "stratify": False}
    assert identity(changed("split", new)) == identity(changed("split", old))
    for change in ({"side": 100}, {"grid": "ground"}, {"stratify": True}):
        assert identity(changed("split", new | change)) != identity(changed("split", old))
    other = {"_target_": "voxtile.data.splits.GroupSplit", "stratify": False}  # had it from the beginning
    assert identity(changed("split", other)) != identity(changed("split", {"_target_": other["_target_"]}))


@pytest.mark.parametrize(("group", "place"), [("split", "file"), ("data.group", "csv")])
def test_where_a_table_lies_does_not_count(group: str, place: str) -> None:
    here, there = (identity(changed(group, {place: path, "fold": 1})) for path in ("table.csv", "/elsewhere/table.csv"))
    assert here == there != identity(changed(group, {place: "table.csv", "fold": 2}))


def test_how_scenes_are_read_counts_and_where_their_area_lies_does_not(tmp_path: Path) -> None:
    assert identity(changed("data.scene", None)) == identity(CONFIG)
    assert identity(changed("data.scene", {"resolution": 20})) != identity(CONFIG)
    found = []
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(text)
        found.append(identity(changed("data.scene", {"area": str(tmp_path / name)})))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("key", "default", "other"),
    [("by", "pixels", "uniform"), ("class_weights", None, {"a": 2}), ("jitter", 1, 0.5), ("scales", None, [0.5, 2.0]),
     ("max_nodata", None, 0.5)],
)  # fmt: skip
def test_how_windows_are_drawn_counts_where_it_is_not_as_before(key: str, default: object, other: object) -> None:
    assert identity(changed("data.sampling", {key: default})) == identity(changed("data.sampling", None)) == identity(CONFIG)
    assert identity(changed("data.sampling", {key: other})) != identity(CONFIG)


def test_regions_count_where_there_are_some() -> None:
    assert identity(changed("data.regions", None)) == identity(CONFIG)
    whole, part = ({"whole": names} for names in (["a", "b"], ["b"]))
    assert len({identity(CONFIG), identity(changed("data.regions", whole)), identity(changed("data.regions", part))}) == 3


def test_where_rasters_of_weights_lie_does_not_count() -> None:
    here, there = (identity(changed("data.sampling", {"by": "weights", "weights": name})) for name in ("{id}.tif", "w/{id}.tif"))
    assert here == there != identity(CONFIG)


def test_a_format_is_the_same_under_its_older_name() -> None:
    assert identity(changed("data.format", "volume")) == identity(changed("data.format", "nifti")) != identity(CONFIG)


@pytest.mark.parametrize("words", [["fold=1"], ["split.fold=1"]])
def test_a_fold_by_either_name_is_the_recipe_that_it_always_was(words: list[str]) -> None:
    """The settings and their order, both of which the identity is a hash of, as they were when `split.fold` was the only name."""
    before = {
        "kfold": {"_target_": "voxtile.data.splits.KFold", "folds": 5, "fold": 1, "seed": 0, "test": 0.0, "stratify": False},
        "file": {"_target_": "voxtile.data.splits.FileSplit", "file": "a.json", "fold": 1},
        "block_kfold": {
            "_target_": "voxtile.data.blocks.BlockKFold", "blocks": [4, 4], "side": None, "grid": "case", "buffer": 0.0, "folds": 5,
            "fold": 1, "test": 0.0, "seed": 0, "stratify": False,
        },
    }  # fmt: skip
    for option, split in before.items():
        more = ["split.file=a.json"] if option == "file" else []
        (config,) = composed(["train", "data=mri", f"split={option}", *words, *more])
        assert list(config["split"].items()) == list(split.items())
        assert identity(config) == identity({**config, "split": split, "fold": 0})
        assert identity(config) != identity({**config, "split": {**split, "fold": 0}})


def test_several_folds_are_one_sweep() -> None:
    jobs = composed(["train", "-m", "data=hippocampus", "fold=0,1,2,3,4"])
    assert [job["split"]["fold"] for job in jobs] == [0, 1, 2, 3, 4]
    assert len({identity(job) for job in jobs}) == 5
