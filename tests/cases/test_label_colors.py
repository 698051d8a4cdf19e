"""Labels that are coloured pictures."""

import numpy as np
import PIL
import pytest
from packaging.version import Version
from PIL import Image

from tests.testers.geotiff import save
from voxtile.cases.dataset import Dataset, LabelMap
from voxtile.cases.layouts import FolderLayout
from voxtile.cases.layouts.layout import CaseFiles
from voxtile.cases.pictures import PictureSource
from voxtile.cases.window import Window
from voxtile.errors import ConfigError, DataError

LABELS = {"#804080": "road", "#FF0000": "roof", "#00ff00": "road", "#000000": "ignore"}
COLORS = np.array([[128, 64, 128], [255, 0, 0], [0, 255, 0], [0, 0, 0]], dtype=np.uint8)
CLASSES = np.array([0, 1, 0, 255])
DRAWN = np.array([[0, 1, 2, 3, 1], [3, 3, 1, 0, 2]], dtype=np.uint8)  # which of the colours


def picture(path, drawn, mode="RGB", **options):
    """A label in colours; a palette's indices are shuffled, so that they are no class values."""
    if mode == "P":
        image = Image.fromarray(np.array([9, 4, 7, 5], np.uint8)[drawn])
        palette = np.zeros((256, 3), np.uint8)
        palette[[9, 4, 7, 5]] = COLORS
        image.putpalette(palette.ravel().tolist())
    else:
        image = Image.fromarray(COLORS[drawn])
        if mode == "RGBA":
            image.putalpha(Image.fromarray(np.where(drawn == 2, 0, 255).astype(np.uint8)))
    image.save(path, **options)


def dataset(root, ending="png", **settings):
    """A data set of one case, `a`."""
    Image.fromarray(np.zeros(DRAWN.shape, np.uint8)).save(root / "a.png")
    if ending == "tif":
        save(root / "a.tif", np.zeros((1, *DRAWN.shape), np.uint8))
    layout = FolderLayout(str(root), f"{{id}}.{ending}", f"{{id}}_label.{ending}")
    kind = "geotiff" if ending == "tif" else "picture"
    return Dataset(**{"name": "d", "format": kind, "layout": layout, "labels": LABELS} | settings)


def classes(data):
    (case,) = data.cases()
    return case.read_label(Window.whole(case.shape))[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_pictures_become_classes(tmp_path, mode):
    picture(tmp_path / "a_label.png", DRAWN, mode)
    data = dataset(tmp_path)
    assert data.classes == ("road", "roof")
    expected = CLASSES[DRAWN]
    if mode == "RGBA":
        expected = np.where(DRAWN == 2, 255, expected)
    np.testing.assert_array_equal(classes(data), expected)


@pytest.mark.parametrize(("mode", "clear"), [("RGB", (255, 0, 0)), ("P", 4), ("P", bytes([255] * 4 + [0, 128]))])
def test_a_colour_that_the_file_calls_transparent_is_a_class_all_the_same(tmp_path, mode, clear):
    picture(tmp_path / "a_label.png", DRAWN, mode, transparency=clear)
    data = dataset(tmp_path)
    np.testing.assert_array_equal(classes(data), CLASSES[DRAWN])
    assert data.cases()[0].labels.source.key == "as drawn colours"  # it was once taken away


def test_in_a_picture_of_one_bit_white_is_white(tmp_path):
    Image.fromarray(DRAWN > 1).save(tmp_path / "a_label.png")
    named = {"#000000": "road", "#ffffff": "roof"}
    np.testing.assert_array_equal(classes(dataset(tmp_path, labels=named)), (DRAWN > 1).astype(int))


@pytest.mark.parametrize(
    "mode",
    [
        "LAB",
        pytest.param(
            "YCbCr",
            marks=pytest.mark.skipif(
                Version(PIL.__version__) < Version("12"), reason="earlier releases of Pillow do not read what they write"
            ),
        ),
    ],
)
def test_other_colours_than_red_green_and_blue_are_refused(tmp_path, mode):
    Image.fromarray(COLORS[DRAWN], mode=mode).save(tmp_path / "a_label.tif")
    Image.fromarray(np.zeros(DRAWN.shape, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"holds colours as {mode}.*by red, green and blue"):
        classes(dataset(tmp_path, layout=FolderLayout(str(tmp_path), "{id}.png", "{id}_label.tif")))


@pytest.mark.parametrize("nodata", [None, 0])
def test_colours_of_scenes_do_also_where_black_is_nodata(tmp_path, nodata):
    save(tmp_path / "a_label.tif", np.moveaxis(COLORS[DRAWN], -1, 0), nodata=nodata)
    named = LABELS | {"#000000": "roof"}  # which the tag does not take away
    np.testing.assert_array_equal(classes(dataset(tmp_path, "tif", labels=named)), np.where(DRAWN == 3, 1, CLASSES[DRAWN]))


def test_an_unknown_colour_is_an_error_that_names_it_and_its_place(tmp_path):
    picture(tmp_path / "a_label.png", DRAWN)
    few = {"#804080": "road", "#ff0000": "roof", "#00ff00": "ignore"}
    with pytest.raises(DataError, match=r"holds #000000 as label value, first at z y x = \(0, 0, 3\).*'\"#000000\": ignore'"):
        classes(dataset(tmp_path, labels=few))


def test_colours_of_labels_are_those_of_maps_unless_others_are_given(tmp_path):
    assert dataset(tmp_path).colors == ((128, 64, 128), (255, 0, 0))
    assert dataset(tmp_path, colors={"roof": [1, 2, 3]}).colors == ((128, 64, 128), (1, 2, 3))


def test_numbers_where_colours_are_named_are_refused(tmp_path):
    save(tmp_path / "a_label.tif", DRAWN[None])
    with pytest.raises(DataError, match="has one band, of numbers"):
        classes(dataset(tmp_path, "tif"))
    Image.fromarray(DRAWN.astype(np.uint16)).save(tmp_path / "a_label.png")
    with pytest.raises(DataError, match=r"of type uint16.*Expected red, green and blue of 8 bits"):
        classes(dataset(tmp_path))


def test_a_coloured_jpeg_is_told_to_be_the_cause(tmp_path):
    noise = np.random.default_rng(0).integers(0, 4, (40, 40))
    Image.fromarray(COLORS[noise]).save(tmp_path / "a_label.jpg")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a.png")
    for labels in (LABELS, {0: "road", 1: "roof"}):
        layout = FolderLayout(str(tmp_path), "{id}.png", "{id}_label.jpg")
        with pytest.raises(DataError, match=r"a_label\.jpg .*JPEG"):
            classes(Dataset("d", "picture", layout, labels))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"#804080": "road", 1: "roof"}, "names colours and numbers"),
        (
            {"#8040FF": "road", "#8040ff": "roof"},
            r"names the stored value #8040ff twice.*, write that file, since",
        ),
        ({"#84F": "road", "#000000": "roof"}, "#84F is no whole number and no colour"),
    ],
)
def test_colours_that_are_none_or_are_named_twice_are_refused(labels, said):
    with pytest.raises(ConfigError, match=said):
        LabelMap.of(labels)


def test_labels_that_another_library_reads_have_no_colours(tmp_path):
    data = dataset(tmp_path)
    files = CaseFiles("a", (), sources=lambda nodata: (PictureSource([tmp_path / "a.png"]), None))
    with pytest.raises(ConfigError, match=r"names colours, and FolderLayout has another library read labels, as numbers"):
        data.open(files)


def test_volumes_have_no_colours(tmp_path):
    with pytest.raises(ConfigError, match=r"names colours, which labels of 'data\.format=volume' have not"):
        Dataset("d", "volume", FolderLayout(str(tmp_path), "{id}.nii"), LABELS)
