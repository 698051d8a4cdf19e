import re

import numpy as np
import pytest
from PIL import Image

from tests.testers.memory import memory_case
from voxtile.cases.case import Case, Labels, Source, distinct_names
from voxtile.cases.grid import WorkingGrid, plain_affine
from voxtile.cases.maps import MapSpec
from voxtile.cases.pictures import PictureSource
from voxtile.cases.window import Window
from voxtile.errors import DataError


def picture(path, array, label=False):
    Image.fromarray(array).save(path)
    return PictureSource([path], label=label)


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(0, 4, (9, 8), dtype=np.uint8)


@pytest.fixture
def case(tmp_path, values):
    image = picture(tmp_path / "a.png", np.stack([values, 2 * values, 3 * values], axis=-1))
    label = picture(tmp_path / "l.png", values, label=True)
    return Case("a", "place", image, Labels(label, {0: 2, 1: 0, 2: 1, 3: 255}))


def test_stored_values_become_classes(case, values):
    expected = np.array([2, 0, 1, 255])[values]
    np.testing.assert_array_equal(case.read_label(Window(0, 0, 0, 1, 9, 8))[0], expected)


def test_a_label_is_ignored_outside_the_case_and_outside_a_view(case, values):
    expected = np.pad(np.array([2, 0, 1, 255])[values], 3, constant_values=255)
    np.testing.assert_array_equal(case.read_label(Window(0, -3, -3, 1, 15, 14))[0], expected)
    assert (case.read_label(Window(0, 20, 20, 1, 2, 2)) == 255).all()
    view = case.view(Window(0, 2, 2, 1, 4, 3))
    expected = np.pad(np.array([2, 0, 1, 255])[values[2:6, 2:5]], 1, constant_values=255)
    np.testing.assert_array_equal(view.read_label(Window(0, -1, -1, 1, 6, 5))[0], expected)


def test_a_value_the_configuration_does_not_know_is_named_with_its_file(case, values):
    odd = Case("a", "a", case.image, Labels(case.labels.source, {0: 0, 1: 1}))
    with pytest.raises(DataError, match=r"l\.png holds 2, 3 as label values, first at .*it maps 0, 1.*2: ignore"):
        odd.read_label(Window(0, 0, 0, 1, 9, 8))
    y, x = np.argwhere(values == 1)[0]
    assert odd.read_label(Window(0, y, x, 1, 1, 1)).item() == 1


class Stored(PictureSource):
    """A label that holds the array it is given."""

    def __init__(self, array, valid):
        self.array, self.valid, self.paths, self.dtype = array[None], valid[None], ("stored.tif",), array.dtype

    def read(self, window, channels):
        return self.array[window.slices][None], self.valid[window.slices]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize(
    "meaning",
    [{0: 0, 1: 1, 2: 2}, {0: 0, 1: 1, 2: 255}, {2: 0, 1: 1, 0: 255}, {-1: 255, 0: 0, 1: 1}, {7: 1, 3: 0, 300: 1},
     {value: value % 7 for value in range(40)}, {value: value for value in range(255)}],
)  # fmt: skip
def test_classes_are_those_of_a_plain_look_up(dtype, meaning):
    rng = np.random.default_rng(0)
    known = [value for value in meaning if dtype not in ("uint8", "int8") or np.iinfo(dtype).min <= value <= np.iinfo(dtype).max]
    known = [value for value in known if value >= 0 or not dtype.startswith("u")]
    stored, valid = rng.choice(known, (30, 40)).astype(dtype), rng.random((30, 40)) > 0.1
    expected = np.array([[meaning[int(value)] for value in row] for row in stored])
    label = Labels(Stored(stored, valid), meaning)
    found = label.read(Window(0, 0, 0, 1, 30, 40))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], np.where(valid, expected, 255))
    stored[~valid] = 99  # no data, so nobody asks what it means
    np.testing.assert_array_equal(label.read(Window(0, 0, 0, 1, 30, 40))[0], np.where(valid, expected, 255))
    if 99 not in meaning:
        stored[np.argwhere(valid)[5][0], np.argwhere(valid)[5][1]] = 99
        with pytest.raises(DataError, match="holds 99 as label value, first at z y x"):
            label.read(Window(0, 0, 0, 1, 30, 40))


@pytest.mark.parametrize("value", [0.5, 1.0000004])
def test_an_interpolated_label_is_told_what_it_is(value):
    image, label = (memory_case("a", array=np.zeros((1, 1, 2, 2), np.float32)).image for _ in range(2))
    label.array[0, 0, 0, 1] = value
    named = np.float32(value).item()
    with pytest.raises(DataError, match=rf"holds {named} as label value, first at z y x = \(0, 0, 1\), .* that was interpolated"):
        Case("a", "a", image, Labels(label, {0: 0, 1: 1})).read_label(Window(0, 0, 0, 1, 2, 2))


def test_an_infinite_label_value_is_named():
    image, label = (memory_case("a", array=np.zeros((1, 1, 2, 2), np.float32)).image for _ in range(2))
    label.array[0, 0, 0, 1] = np.inf
    with pytest.raises(DataError, match=r"holds inf as label value, first at z y x = \(0, 0, 1\)"):
        Case("a", "a", image, Labels(label, {0: 0, 1: 1})).read_label(Window(0, 0, 0, 1, 2, 2))


def test_a_large_label_value_is_named_whole():
    image, label = (memory_case("a", array=np.zeros((1, 1, 2, 2), np.int32)).image for _ in range(2))
    label.array[0, 0, 0, 1] = 1234567
    with pytest.raises(DataError, match=r"holds 1234567 as label value, .*'1234567: ignore'"):
        Case("a", "a", image, Labels(label, {0: 0, 1: 1})).read_label(Window(0, 0, 0, 1, 2, 2))


def test_a_case_without_label_says_so(case):
    with pytest.raises(DataError, match=r"Case 'b' .* has no label"):
        Case("b", "b", case.image).read_label(Window(0, 0, 0, 1, 1, 1))


def test_channels_may_be_chosen_and_ordered(case, values):
    chosen = Case("a", "a", case.image, select=(2, 0))
    assert chosen.channels == ("blue", "red")
    pixels, _ = chosen.read(Window(0, 0, 0, 1, 9, 8))
    np.testing.assert_array_equal(pixels[:, 0], np.stack([3 * values, values]))


def test_views_nest_and_keep_their_place_in_the_world(case):
    inner = case.view(Window(0, 2, 3, 1, 6, 5), ":b").view(Window(0, 1, 1, 1, 2, 2), "c")
    assert (inner.id, inner.group, inner.shape) == ("a:bc", "place", (1, 2, 2))
    assert inner.box == Window(0, 3, 4, 1, 2, 2)
    assert isinstance(inner.grid, WorkingGrid)
    np.testing.assert_array_equal(inner.grid.matrix[:3, 3], (4, 3, 0))
    assert case.grid == WorkingGrid((1, 9, 8), plain_affine())
    assert case.grid is case.grid  # every look at where thousands of cases lie asks for theirs
    assert inner.grid is inner.grid
    with pytest.raises(DataError, match="reaches outside"):
        inner.view(Window(0, 1, 1, 1, 2, 1))


def test_a_map_never_takes_the_place_of_the_label(case, tmp_path):
    with pytest.raises(DataError, match="take the place of an input"):
        case.open_map(tmp_path / "l.png", MapSpec(("a", "b")))
    (tmp_path / "link.png").symlink_to(tmp_path / "l.png")
    with pytest.raises(DataError, match="take the place of an input"):
        case.open_map(tmp_path / "link.png", MapSpec(("a", "b")))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("p1_t1.nii.gz", "p1_flair.nii.gz"), ("t1", "flair")),
        (("Bolivia_7_S1Hand.tif", "Bolivia_7_S2Hand.tif"), ("S1Hand", "S2Hand")),
        (("a_0000.nii", "a_0001.nii", "a_0002.nii"), ("0000", "0001", "0002")),
        (("a.tif", "a_b.tif"), ("file1", "file2")),
        (("x/a.tif", "y/a.tif"), ("file1", "file2")),
    ],
)
def test_stacked_files_are_named_by_what_tells_them_apart(tmp_path, names, expected):
    assert distinct_names([tmp_path / name for name in names]) == expected


@pytest.mark.parametrize(
    ("found", "known", "said"),
    [
        ((255,), (0, 1), "'255: <class>' with the name of a class, or '255: ignore' where"),
        (tuple(range(3, 40)), (0, 1), "So many are those of an image"),
        ((0x804000,), (0x004080, 0), "red and blue exchanged, as OpenCV writes"),
        (
            (0x010101, 0x020202),
            (0, 0x804000),
            "Where the file holds numbers of classes, name those instead of colours: '{1: <class>}'",
        ),
        ((0x123456,), (0, 0x804000), "'\"#123456\": <class>'"),
    ],
)
def test_what_unknown_values_look_like_is_said(tmp_path, found, known, said):
    label = np.array([found], dtype=np.uint32)[None]

    class Stored(Source):
        paths = (tmp_path / "l.png",)
        dtype = label.dtype

        def read(self, window, channels):
            return label[None], np.ones(label.shape, bool)

        def open_map(self, path, spec): ...

        def map_name(self, stem, spec): ...

        def value_text(self, value):
            return f"#{value:06x}" if max(known) > 255 else str(value)

    with pytest.raises(DataError, match=re.escape(said)):
        Labels(Stored(), {value: index for index, value in enumerate(known)}).read(Window(0, 0, 0, *label.shape))
