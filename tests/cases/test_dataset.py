import gc
import json

import numpy as np
import pytest
from PIL import Image

from tests.testers.geotiff import save
from voxtile.cases import formats
from voxtile.cases.dataset import Dataset, LabelMap
from voxtile.cases.layouts import FolderLayout
from voxtile.cases.window import Window
from voxtile.errors import ConfigError, DataError

LABELS = {0: "ground", 1: "water", 2: "water", -1: "ignore"}


def scene(root, name, label, *, bands=2, image=None, **options):
    """A scene and its label [H, W]."""
    pixels = np.arange(1, 1 + bands * label.size, dtype=np.int16).reshape(bands, *label.shape) if image is None else image
    save(root / "images" / f"{name}.tif", pixels, **options)
    save(root / "labels" / f"{name}.tif", label[None])


def dataset(root, **settings):
    layout = FolderLayout(root, "images/{id}.tif", "labels/{id}.tif")
    return Dataset(**{"name": "d", "format": "geotiff", "layout": layout, "labels": LABELS} | settings)


@pytest.fixture
def label():
    return np.array([[0, 1, 2], [-1, 2, 0]], dtype=np.int16)


def whole(case):
    return Window.whole(case.shape)


# --- what label values mean


def test_values_become_classes_several_to_one_and_some_to_ignore(tmp_path, label):
    scene(tmp_path, "a", label)
    data = dataset(tmp_path)
    (case,) = data.cases()
    assert data.classes == ("ground", "water")
    np.testing.assert_array_equal(case.read_label(whole(case))[0], [[0, 1, 1], [255, 1, 0]])


def test_classes_are_numbered_in_the_order_of_the_configuration():
    assert LabelMap.of({7: "roof", 3: "ground", 9: "roof", 0: "ignore"}) == LabelMap(("roof", "ground"), {7: 0, 3: 1, 9: 0, 0: 255})


def test_an_unknown_label_value_is_an_error_that_lists_the_values_and_the_file(tmp_path, label):
    label[0, 0], label[1, 2] = 5, 9
    scene(tmp_path, "a", label)
    (case,) = dataset(tmp_path).cases()
    with pytest.raises(DataError, match=r"labels/a\.tif holds 5, 9 as label values.*it maps -1, 0, 1, 2\. .*5: ignore"):
        case.read_label(whole(case))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({0: "ground"}, r"names 1 class \(ground\)"),
        ({0: "ground", 1: "ignore"}, r"names 1 class \("),
        ({0: "ground", 1: "a/b"}, r"other signs .*: '/' \(solidus\) in a/b\."),
        ({0: "größe", 1: "one–two", 2: "two–three"}, r": '–' \(en dash\) in one–two, two–three\."),
        ({0: "ground", 1: ""}, r"'data\.labels' holds an empty name\."),
        ({value: f"class{value}" for value in range(256)}, r"256 classes; a map holds at most 255"),
        ({0: "ground", 1: "red", 2.9: "blue"}, r"'2\.9: blue', and 2\.9 is no whole number"),
        ({0: "ground", 1: "red", 2.5: "ignore"}, r"2\.5 is no whole number"),
        ({"ground": 0, "red": 1}, r"'ground: 0', and ground is no whole number.*stored value: class name, as in \{0: ground"),
        ({"0-1": "ground", 2: "red"}, r"0-1 is no whole number"),
        ({True: "ground", False: "red"}, r"true is no whole number.*yes, no, on and off that are names need quotes"),
        ({0: False, 1: True}, r"'0: false', and false is no text.*need quotes"),
        ({0: 0, 1: 1}, r"'0: 0', and 0 is no text"),
        ({0: "ground", 1: "red", 2: None}, r"'2: null', and null is no text"),
        ({0: "ground", 1: "red", "2": None}, r"'2: null', and null is no text"),
        ({0: "ground", 1: "red", 2: "red "}, r"begins or ends with a blank: 'red '"),
        ({0: "ground", 1: "red", "1": "blue"}, r"names the stored value 1 twice"),
    ],
)
def test_labels_that_cannot_be_classes_are_refused(labels, message):
    with pytest.raises(ConfigError, match=message):
        LabelMap.of(labels)


def test_a_stored_value_may_be_a_text_as_a_key_of_the_command_line_is():
    assert LabelMap.of({0: "ground", "-1": "ignore", "7": "roof"}).values == {0: 0, -1: 255, 7: 1}


def test_a_colour_of_no_class_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'data\.colors' names 'watre', which is no class\. Did you mean 'water'\?"):
        dataset(tmp_path, colors={"watre": (0, 0, 255)})


@pytest.mark.parametrize("value", ["red", [0, 0], [0, 0, 256], [0, 0, "255"], 7, None])
def test_a_colour_that_is_none_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match=r"'data\.colors\.water=.*' is no colour; give red, green and blue from 0 to 255"):
        dataset(tmp_path, colors={"water": value})


def test_a_map_of_255_classes_is_possible():
    assert len(LabelMap.of({value: f"class{value}" for value in range(255)}).classes) == 255


# --- channels


def test_scenes_with_another_number_of_channels_are_named(tmp_path, label):
    scene(tmp_path, "a", label)
    scene(tmp_path, "b", label, bands=3)
    words = (
        r"b\.tif has 3 channels \(band1, band2, band3\), and .*a\.tif has 2 .*: 1 of 2 cases have 2, and 1 not.*those that all have"
    )
    with pytest.raises(DataError, match=words + r" with 'data\.channels=\[\"band1\",\"band2\"\]'.*'data\.exclude=\[\"b\"\]'"):
        dataset(tmp_path).cases()


@pytest.mark.parametrize("odd", ["a", "c"])
def test_of_scenes_with_unlike_channels_those_that_are_fewer_are_to_be_left_out(tmp_path, label, odd):
    for name in "abcd":
        names = ("grey",) if name == odd else ("red", "green")
        scene(tmp_path, name, label, bands=len(names), names=names)
    words = rf"{odd}\.tif has 1 channel \(grey\), and .*: 3 of 4 cases have 2, and 1 not\. All need the same; leave cases out with"
    with pytest.raises(DataError, match=words + rf" 'data\.exclude=\[\"{odd}\"\]'"):
        dataset(tmp_path).cases()
    assert len(dataset(tmp_path, exclude=[odd]).cases()) == 3


def test_a_list_of_channels_that_is_too_long_to_be_typed_is_not_proposed(tmp_path, label):
    scene(tmp_path, "a", label, bands=21)
    scene(tmp_path, "b", label, bands=22)
    with pytest.raises(DataError, match=r"b\.tif has 22 channels .*All need the same; leave cases out with .*has band22 besides"):
        dataset(tmp_path).cases()


def test_of_scenes_with_channels_in_another_order_those_that_are_fewer_are_named(tmp_path, label):
    for name in "abc":
        scene(tmp_path, name, label, names=("green", "red") if name == "a" else ("red", "green"))
    words = r"a\.tif has the channels green, red, .*2 of 3 cases: red, green.*'data\.channels=\[\"red\",\"green\"\]'"
    with pytest.raises(DataError, match=words):
        dataset(tmp_path).cases()


def test_channels_are_chosen_by_name_in_the_order_asked_for(tmp_path, label):
    scene(tmp_path, "a", label, bands=3, names=("red", "green", "nir"))
    (case,) = dataset(tmp_path, channels=["nir", "red"]).cases()
    assert case.channels == ("nir", "red")
    pixels, _ = case.read(whole(case))
    np.testing.assert_array_equal(pixels[:, 0], np.arange(1, 19).reshape(3, 2, 3)[[2, 0]])


def test_of_many_channels_the_one_that_is_missing_is_named(tmp_path, label):
    names = [f"2023{month:02}01_B{band:02}" for month in range(1, 6) for band in range(1, 7)]
    for name in "abc":
        lacking = {"b": "20230401_B03"}.get(name)
        scene(tmp_path, name, label, bands=30 - (name == "b"), names=[each for each in names if each != lacking])
    with pytest.raises(DataError, match=r"b\.tif has 29 channels .* The first lacks 20230401_B03\.$") as refused:
        dataset(tmp_path).cases()
    assert len(str(refused.value)) < 1800
    with pytest.raises(DataError, match=r"b\.tif has no channel 20230401_B03") as refused:
        dataset(tmp_path, channels=names).cases()
    assert "Did you mean" not in str(refused.value)


def test_choosing_common_channels_makes_unlike_scenes_alike(tmp_path, label):
    scene(tmp_path, "a", label)
    scene(tmp_path, "b", label, bands=3)
    assert {case.channels for case in dataset(tmp_path, channels=["band2"]).cases()} == {("band2",)}


def test_a_channel_that_is_not_there_is_an_error_with_the_nearest_name(tmp_path, label):
    scene(tmp_path, "a", label, names=("red", "green"))
    with pytest.raises(DataError, match=r"a\.tif has no channel gren; it has red, green\. Did you mean 'green'"):
        dataset(tmp_path, channels=["gren"]).cases()


# --- which cases


def test_excluded_cases_are_not_even_opened(tmp_path, label):
    scene(tmp_path, "good", label)
    scene(tmp_path, "broken", label)
    (tmp_path / "images" / "broken.tif").write_bytes(b"no raster")
    with pytest.raises(DataError, match=r"broken\.tif cannot be read"):
        dataset(tmp_path).cases()
    assert [case.id for case in dataset(tmp_path, exclude=["broken"]).cases()] == ["good"]


def test_garbage_is_seldom_looked_for_while_headers_are_read_and_as_often_as_before_afterwards(tmp_path, label, monkeypatch):
    before = gc.get_threshold()
    for name in ("good", "broken"):
        scene(tmp_path, name, label)
    seen = []
    opened = Dataset.open
    monkeypatch.setattr(Dataset, "open", lambda *args: (seen.append(gc.get_threshold()[0] > before[0]), opened(*args))[1])
    assert len(dataset(tmp_path).cases()) == 2
    (tmp_path / "images" / "broken.tif").write_bytes(b"no raster")
    with pytest.raises(DataError):
        dataset(tmp_path).cases()
    assert all(seen)
    assert gc.get_threshold() == before


def test_excluding_a_case_that_is_not_there_suggests_the_nearest(tmp_path, label):
    scene(tmp_path, "kampala", label)
    with pytest.raises(ConfigError, match=r"'data\.exclude' names kampla.*Did you mean 'kampala'"):
        dataset(tmp_path, exclude=["kampla"]).cases()


def test_two_cases_of_one_name_are_an_error(tmp_path, label):
    from voxtile.cases.layouts import MsdLayout

    scene(tmp_path, "a", label)
    pairs = [{"image": "images/a.tif", "label": "labels/a.tif"}] * 2
    (tmp_path / "dataset.json").write_text(json.dumps({"training": pairs}))
    with pytest.raises(DataError, match=r"Several cases .* are called a: they are listed twice.* by '\+\+data\.layout\.case=…'"):
        dataset(tmp_path, layout=MsdLayout(tmp_path)).cases()


def test_groups_and_splits_reach_the_cases(tmp_path, label):
    scene(tmp_path, "train/place1_2020", label)
    scene(tmp_path, "test/place2_2020", label)
    layout = FolderLayout(tmp_path, "images/{split}/{place}_{year:d}.tif", "labels/{split}/{place}_{year:d}.tif", "{place}_{year}")
    cases = dataset(tmp_path, layout=layout, group={"expression": "place"}).cases()
    assert [(case.id, case.group, case.split) for case in cases] == [
        ("place1_2020", "place1", "train"),
        ("place2_2020", "place2", "test"),
    ]


# --- labels and formats


def picture_dataset(root):
    layout = FolderLayout(root, "{id}_{slice:d}.png", "{id}_{slice:d}_mask.png", "{id}")
    return Dataset("d", "picture", layout, {0: "ground", 1: "water"})


def test_a_label_of_another_size_is_an_error_that_names_both(tmp_path):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a_1.png")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "a_1_mask.png")
    with pytest.raises(DataError, match=r"a_1_mask\.png has shape \(1, 4, 6\) .*a_1\.png \(1, 4, 5\).*image's size\.$"):
        picture_dataset(tmp_path).cases()
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a_1.png", exif=exif)
    with pytest.raises(DataError, match=r"image's size\. .*a_1\.png asks viewers to turn it"):
        picture_dataset(tmp_path).cases()


@pytest.mark.parametrize("kind", ["picture", "geotiff"])
def test_coco_annotations_are_told_to_be_drawn(tmp_path, kind):
    save(tmp_path / "a.tif", np.zeros((1, 4, 5), np.uint8))
    (tmp_path / "annotations.json").write_text(json.dumps({"info": "x" * 5000, "images": [], "annotations": [], "categories": []}))
    layout = FolderLayout(tmp_path, "{id}.tif", "annotations.json")
    with pytest.raises(DataError, match=r"annotations\.json holds COCO's annotations.*docs/data\.md"):
        Dataset("d", kind, layout, {0: "ground", 1: "water"}).cases()


def test_a_vector_file_of_many_scenes_is_looked_at_once_for_coco(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text("{}")
    before = formats._holds_coco.cache_info().misses
    assert [formats._is_coco(path) for _ in range(3)] == [False] * 3
    assert formats._holds_coco.cache_info().misses == before + 1
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    assert formats._is_coco(path)


def test_slices_are_one_volume_with_labels_in_the_same_order(tmp_path):
    for number in (1, 2, 10):
        Image.fromarray(np.full((4, 5), number, np.uint8)).save(tmp_path / f"a_{number}.png")
        Image.fromarray(np.full((4, 5), number == 2, np.uint8)).save(tmp_path / f"a_{number}_mask.png")
    (case,) = picture_dataset(tmp_path).cases()
    assert case.read(whole(case))[0][0, :, 0, 0].tolist() == [1, 2, 10]
    assert case.read_label(whole(case))[:, 0, 0].tolist() == [0, 1, 0]


def test_scenes_are_not_stacked_as_slices(tmp_path, label):
    scene(tmp_path, "north/a", label)
    scene(tmp_path, "south/a", label)
    layout = FolderLayout(tmp_path, "images/{part}/{id}.tif", "labels/{part}/{id}.tif")
    with pytest.raises(DataError, match=r"Case 'a' has 2 label files: .*north/a\.tif, .*south/a\.tif.*data\.layout\.case"):
        dataset(tmp_path, layout=layout).cases()


def test_nodata_of_the_configuration_comes_before_the_files(tmp_path, label):
    image = np.array([[[0, 7, 1], [2, 7, 0]]], dtype=np.int16)
    scene(tmp_path, "a", label, image=image, nodata=0)
    for nodata, empty in ((None, 0), (7, 7)):
        (case,) = dataset(tmp_path, nodata=nodata).cases()
        np.testing.assert_array_equal(case.read(whole(case))[1][0], image[0] != empty)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "geotif"}, r"'data\.format=geotif' is unknown.*Did you mean 'geotiff'"),
        ({"background": "sea"}, r"'data\.background=sea' is no class; the classes are ground, water"),
        ({"format": "nifti", "nodata": 0.0}, r"'data\.nodata=0' is for 'data\.format=geotiff' only"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_a_file_is_read(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        dataset(tmp_path / "nothing", **settings)


def test_background_is_a_class_index_and_colours_follow_the_classes(tmp_path):
    data = dataset(tmp_path, background="water", colors={"water": (0, 0, 255)})
    assert data.background == 1
    assert data.colors[1] == (0, 0, 255)
    assert len(set(data.colors)) == 2


def test_a_vector_file_is_no_raster_of_weights(tmp_path, label):
    scene(tmp_path, "a", label)
    data = dataset(tmp_path)
    (case,) = data.cases()
    with pytest.raises(DataError, match=r"weights\.geojson is a vector file\. Expected a raster"):
        data.aligned(tmp_path / "weights.geojson", case)
