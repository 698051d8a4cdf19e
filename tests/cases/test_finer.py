"""Labels and masks that are finer than the grid, against NumPy."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from tests.testers.formats import few
from tests.testers.geotiff import NORTH_UP, bands, save, whole
from voxtile.cases.case import Case, Labels
from voxtile.cases.dataset import Dataset
from voxtile.cases.geotiff import GeoTiffSource, color_source, label_source
from voxtile.cases.layouts import FolderLayout
from voxtile.cases.scene import Scene
from voxtile.cases.window import IGNORE, Window
from voxtile.errors import DataError

MEANING = {3: 0, 1: 1, 2: 1, 5: 2, 7: IGNORE}  # two values of one class; 0 is nodata


def image_at(folder, resolution, side=48):
    path = folder / "image.tif"
    if not path.exists():
        save(path, bands((1, side, side)))
    return GeoTiffSource([path], scene=Scene.of({"resolution": resolution}))


def most(classes, parts):
    """The most frequent class of blocks, of equal ones the lowest; 255 is one more."""
    height, width = (side // parts for side in classes.shape)
    blocks = classes.reshape(height, parts, width, parts).transpose(0, 2, 1, 3).reshape(height, width, -1)
    counts = np.stack([(blocks == index).sum(axis=-1) for index in range(IGNORE + 1)])
    return counts.argmax(axis=0).astype(np.uint8)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_pixel_has_the_class_of_most_of_its_parts(tmp_path, parts):
    stored = np.random.default_rng(parts).choice([0, 1, 2, 3, 5, 7], (1, 48, 48)).astype(np.uint8)
    image = image_at(tmp_path, 10 * parts)
    label = Labels(label_source(save(tmp_path / "l.tif", stored, nodata=0), image, MEANING), MEANING)
    found = label.read(Window.whole(image.working.shape))
    classes = np.array([IGNORE, 1, 1, 0, IGNORE, 2, IGNORE, IGNORE], dtype=np.uint8)[stored[0]]
    np.testing.assert_array_equal(found[0], most(classes, parts))
    full, valid = whole(label.source)

    @few
    @given(st.integers(0, 48 // parts - 3), st.integers(0, 48 // parts - 3))
    def check(y, x):
        window = Window(0, y, x, 1, 3, 2)
        for part, everything in zip(label.source.read(window, (0,)), (full, valid), strict=True):
            np.testing.assert_array_equal(part, everything[..., *window.slices])

    check()


@pytest.mark.parametrize("resolution", [5, 10, 15, 20, 25, 40])
def test_a_label_lies_where_its_image_does(tmp_path, resolution):
    y, x = np.mgrid[:120, :120] + 0.5  # in pixels of 10 m

    def shapes(y, x):
        return (np.sin(x / 7) + np.sin(y / 9 + 1) > 0).astype(np.uint8)

    image = image_at(tmp_path, resolution, 120)
    label, _ = whole(label_source(save(tmp_path / "l.tif", shapes(y, x)[None]), image, {0: 0, 1: 1}))
    rows, columns = (np.mgrid[: label.shape[2], : label.shape[3]] + 0.5) * resolution / 10
    agreed = {
        (down, right): np.mean(label[0, 0] == shapes(rows + down, columns + right))
        for down in (-0.5, 0, 0.5)
        for right in (-0.5, 0, 0.5)
    }
    assert max(agreed, key=agreed.__getitem__) == (0, 0)


def test_a_label_on_another_grid_is_cut_into_parts_as_well(tmp_path):
    image = image_at(tmp_path, 10)
    turned = NORTH_UP @ Affine.translation(24, 24) @ Affine.rotation(30) @ Affine.scale(1 / 3) @ Affine.translation(-120, -120)
    stored = np.repeat(np.repeat(np.random.default_rng(0).choice([1, 3], (1, 16, 16)), 15, axis=1), 15, axis=2)
    values, valid = whole(label_source(save(tmp_path / "l.tif", stored.astype(np.uint8), transform=turned), image, {1: 0, 3: 1}))
    columns, rows = np.meshgrid(np.arange(480) / 10 + 0.05, np.arange(480) / 10 + 0.05)  # a hundred points of each pixel
    at_x, at_y = (~turned @ NORTH_UP) @ (columns, rows)
    inside = (at_x >= 0) & (at_x < 240) & (at_y >= 0) & (at_y < 240)
    at = np.where(inside, stored[0][np.clip(at_y, 0, 239).astype(int), np.clip(at_x, 0, 239).astype(int)], 0)
    ones = (at == 1).reshape(48, 10, 48, 10).mean(axis=(1, 3))
    clear = inside.reshape(48, 10, 48, 10).all(axis=(1, 3)) & (abs(ones - 0.5) > 0.1)
    assert clear.sum() > 1000
    assert valid[0][clear].all()
    np.testing.assert_array_equal(values[0, 0][clear], np.where(ones > 0.5, 1, 3)[clear])


def test_an_unknown_value_in_one_part_is_told(tmp_path):
    stored = np.full((1, 48, 48), 3, dtype=np.uint8)
    stored[0, 10, 20] = 9
    image = image_at(tmp_path, 40)
    label = Labels(label_source(save(tmp_path / "l.tif", stored), image, MEANING), MEANING)
    with pytest.raises(DataError, match=r"holds 9 as label value, first at z y x = \(0, 2, 5\)"):
        label.read(Window.whole(image.working.shape))


def test_a_colour_is_one_that_was_drawn(tmp_path):
    red, green = (255, 0, 0), (0, 128, 0)
    drawn = np.array([[red, green], [(0, 0, 255), green]], dtype=np.uint8)  # by channel, blue and 128 have the majority nowhere
    stored = np.moveaxis(np.tile(drawn, (24, 24, 1)), -1, 0)
    meaning = {0xFF0000: 0, 0x008000: 1, 0x0000FF: 2}
    values, valid = whole(color_source(save(tmp_path / "l.tif", stored), image_at(tmp_path, 20), meaning))
    assert valid.all()
    assert set(values.ravel()) == {0x008000}


def test_weights_are_no_classes_and_stay_as_they_are(tmp_path):
    stored = bands((1, 48, 48), "float32")
    values, _ = whole(label_source(save(tmp_path / "w.tif", stored), image_at(tmp_path, 20)))
    assert set(values.ravel()) <= set(stored.ravel())


@pytest.mark.parametrize(("resolution", "parts"), [(10, 1), (20, 2), (60, 6)])
def test_no_pixel_is_made_of_masked_ones(tmp_path, resolution, parts):
    rng = np.random.default_rng(1)
    cloud = rng.random((48, 48)) < 0.03
    stored = np.stack([np.where(cloud, 10_000, 100), np.where(cloud, 3, 4)]).astype(np.uint16)
    settings = {"resolution": resolution, "masks": [{"band": "band2", "values": [3]}]}
    source = GeoTiffSource([save(tmp_path / "s.tif", stored)], scene=Scene.of(settings))
    pixels, valid = whole(source)
    np.testing.assert_array_equal(valid[0], ~cloud.reshape(48 // parts, parts, 48 // parts, parts).any(axis=(1, 3)))
    assert (pixels[0][valid] == 100).all()
    assert ("masked where a part is" in source.key) == (parts > 1)
    window = Window(0, 2, 1, 1, 3, 4)
    np.testing.assert_array_equal(source.read(window, (0,))[1], valid[window.slices])


def test_bits_of_a_finer_file_mask_a_coarser_one(tmp_path):
    quality = np.zeros((1, 48, 48), dtype=np.uint16)
    quality[0, 5, 7] = 0b1000
    coarse = save(tmp_path / "s_B1.tif", bands((1, 24, 24)), transform=NORTH_UP @ Affine.scale(2))
    masks = [{"band": "QA", "bits": [3]}]
    source = GeoTiffSource([coarse, save(tmp_path / "s_QA.tif", quality)], scene=Scene.of({"masks": masks}))
    assert np.argwhere(~whole(source)[1][0]).tolist() == [[2, 3]]


def test_a_data_set_reads_labels_that_are_finer_than_its_images(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    save(tmp_path / "images" / "a.tif", bands((1, 24, 24)), transform=NORTH_UP @ Affine.scale(2))
    stored = (np.mgrid[:48, :48].sum(axis=0) > 48).astype(np.uint8)[None]
    save(tmp_path / "labels" / "a.tif", stored)
    layout = FolderLayout(tmp_path, images="images/{id}.tif", labels="labels/{id}.tif")
    (case,) = Dataset("d", "geotiff", layout, {0: "a", 1: "b"}).cases()
    assert isinstance(case, Case)
    np.testing.assert_array_equal(case.read_label(Window.whole(case.shape))[0], most(stored[0], 2))


@pytest.mark.parametrize("meaning", [{-1: 0, 3: 0, 1: 1}, {3: 0, 300: 0, 1: 1}, {3: 0, 1: 1}])
def test_values_that_the_type_cannot_hold_stand_for_a_class_all_the_same(tmp_path, meaning):
    stored = np.random.default_rng(0).choice([1, 3], (1, 48, 48)).astype(np.uint8)
    label = Labels(label_source(save(tmp_path / "l.tif", stored), image_at(tmp_path, 30), meaning), meaning)
    np.testing.assert_array_equal(label.read(Window(0, 0, 0, 1, 16, 16))[0], most((stored[0] == 1).astype(np.uint8), 3))


@pytest.mark.parametrize("dtype", ["int64", "float32", "uint32"])
def test_labels_of_any_type_are_counted_strip_by_strip(tmp_path, monkeypatch, dtype):
    stored = np.random.default_rng(0).choice([1, 3, 70_000], (1, 48, 48)).astype(dtype)
    if dtype == "float32":
        stored[0, :4, :4] = np.nan
    label = label_source(save(tmp_path / "l.tif", stored), image_at(tmp_path, 20), {1: 0, 3: 1, 70_000: 2})
    whole_at_once = whole(label)
    monkeypatch.setattr("voxtile.cases.finer.AT_ONCE", 500)
    for strips, together in zip(whole(label), whole_at_once, strict=True):
        np.testing.assert_array_equal(strips, together)
    classes = np.full(stored.shape[1:], IGNORE, dtype=np.uint8)
    for value, index in {1: 0, 3: 1, 70_000: 2}.items():
        classes[stored[0] == value] = index
    found = Labels(label, {1: 0, 3: 1, 70_000: 2}).read(Window(0, 0, 0, 1, 24, 24))
    np.testing.assert_array_equal(found[0], most(classes, 2))


@pytest.mark.parametrize("scale", [1, 2])
def test_where_a_mask_file_ends_there_are_no_data(tmp_path, scale):
    coarse = save(tmp_path / "s_B1.tif", bands((1, 24, 24)), transform=NORTH_UP @ Affine.scale(2))
    quality = np.ones((1, 48 // scale, 24 // scale), dtype=np.uint8)  # the western half
    path = save(tmp_path / "s_QA.tif", quality, transform=NORTH_UP @ Affine.scale(scale))
    source = GeoTiffSource([coarse, path], scene=Scene.of({"masks": [{"band": "QA", "values": [7]}]}))
    np.testing.assert_array_equal(whole(source)[1][0], np.broadcast_to(np.arange(24) < 12, (24, 24)))
