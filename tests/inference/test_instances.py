"""Objects of maps against scipy's measurements of the whole, in every format."""

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio
from PIL import Image
from scipy import ndimage

from tests.testers.formats import file_size_limit
from tests.testers.maps import CLASSES, UTM, patches, scene_map
from voxtile.cases.formats import write_id_map
from voxtile.cases.id_maps import id_map_name
from voxtile.cases.nifti import NiftiSource
from voxtile.cases.pictures import PictureSource
from voxtile.inference import instances
from voxtile.inference.finished import FinishedMap
from voxtile.inference.instances import find_instances, write_table


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path / "cache"))


def labelled(indices: np.ndarray, corners: bool, least: int = 1) -> np.ndarray:
    """Object numbers [D, H, W] by scipy on the whole, class by class."""
    ids, count = np.zeros(indices.shape, dtype=np.int64), 0
    for index in (1, 2):
        for number in range(1, (parts := ndimage.label(indices == index, np.ones((3, 3, 3)) if corners else None))[1] + 1):
            inside = parts[0] == number
            if inside.sum() >= least:
                count += 1
                ids[inside] = count
    return ids


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("corners", "least"), [(False, 1), (True, 1), (False, 4)])
def test_a_scene_s_objects_are_scipy_s(tmp_path: Path, corners: bool, least: int) -> None:
    indices = patches(1, 61, 47, side=2)
    rng = np.random.default_rng(0)
    heat = rng.dirichlet(np.ones(3), indices.shape).transpose(2, 0, 1)
    found = scene_map(tmp_path, indices, np.where(indices == 255, np.nan, heat))
    objects = find_instances(found, [1, 2], corners, least)
    write_id_map(objects.ids(found), found.source, "geotiff", tmp_path / "ids.tif")
    write_table(objects, found, tmp_path / "ids.csv")
    expected = labelled(indices[None], corners, least)[0]
    with rasterio.open(tmp_path / "ids.tif") as ids, rasterio.open(tmp_path / "map.tif") as semantic:
        np.testing.assert_array_equal(ids.read(1), expected)
        assert (ids.dtypes[0], ids.nodata, ids.crs, ids.transform) == ("uint32", 0, semantic.crs, semantic.transform)
        assert ids.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    rows = table(tmp_path / "ids.csv")
    assert [int(row["id"]) for row in rows] == list(range(1, expected.max() + 1))
    for row in rows:
        y, x = np.nonzero(expected == int(row["id"]))
        assert row["class"] == CLASSES[indices[y[0], x[0]]]
        assert int(row["pixels"]) == len(y)
        assert float(row["hectares"]) == pytest.approx(len(y) * 0.01 / 0.9996**2, rel=1e-5)
        assert (float(row["x"]), float(row["y"])) == pytest.approx(UTM @ (x.mean() + 0.5, y.mean() + 0.5))
        assert (float(row["x_min"]), float(row["y_max"])) == pytest.approx(UTM @ (int(x.min()), int(y.min())))
        assert (float(row["x_max"]), float(row["y_min"])) == pytest.approx(UTM @ (int(x.max()) + 1, int(y.max()) + 1))
        assert float(row["probability"]) == pytest.approx(heat[indices[y[0], x[0]], y, x].mean(), rel=1e-4)


@pytest.mark.parametrize("corners", [False, True])
def test_a_volume_s_objects_keep_its_orientation(tmp_path: Path, corners: bool) -> None:
    rng = np.random.default_rng(2)
    stored = np.where(rng.random((9, 8, 10)) < 0.35, rng.integers(1, 3, (9, 8, 10)), 0).astype(np.uint8)  # (x, y, z)
    affine = np.array([[0, 0, -1.5, 4], [-2, 0, 0, 5], [0, 3, 0, 6], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "map.nii.gz")
    found = FinishedMap(NiftiSource([tmp_path / "map.nii.gz"]), CLASSES, slab_pixels=300)
    objects = find_instances(found, [1, 2], corners)
    name = id_map_name("ids", tmp_path / "m.nii.gz")
    write_id_map(objects.ids(found), found.source, "volume", tmp_path / name)
    write_table(objects, found, tmp_path / "ids.csv")
    ids = nibabel.load(tmp_path / name)
    np.testing.assert_allclose(ids.affine, affine)
    assert ids.get_data_dtype() == np.uint32
    values = np.asarray(ids.dataobj)
    rows = table(tmp_path / "ids.csv")
    expected = labelled(stored, corners)
    # The same objects, numbered in the order of another orientation.
    assert len(np.unique(np.stack([values.ravel(), expected.ravel()]), axis=1).T) == expected.max() + 1 == len(rows) + 1
    for row in rows:
        places = np.argwhere(values == int(row["id"]))
        middle = affine @ [*places.mean(axis=0), 1]
        assert [float(row[axis]) for axis in "xyz"] == pytest.approx(middle[:3])
        assert float(row["millilitres"]) == pytest.approx(len(places) * 9 / 1000)
        edges = np.stack(
            [affine[:3, :3] @ (p + h) + affine[:3, 3] for p in places for h in np.array(list(np.ndindex(2, 2, 2))) - 0.5]
        )
        assert [float(row[f"{axis}_min"]) for axis in "xyz"] == pytest.approx(edges.min(axis=0))
        assert [float(row[f"{axis}_max"]) for axis in "xyz"] == pytest.approx(edges.max(axis=0))


def test_a_picture_s_objects_are_a_tiff_in_pixels(tmp_path: Path) -> None:
    indices = patches(3, 30, 25, side=3)
    Image.fromarray(indices).save(tmp_path / "map.png")
    found = FinishedMap(PictureSource([tmp_path / "map.png"], label=True), CLASSES, slab_pixels=300)
    objects = find_instances(found, [1, 2], True)
    write_id_map(objects.ids(found), found.source, "picture", tmp_path / id_map_name("ids", tmp_path / "m.png"))
    write_table(objects, found, tmp_path / "ids.csv")
    with Image.open(tmp_path / "ids.tif") as ids:
        np.testing.assert_array_equal(np.asarray(ids), labelled(indices[None], True)[0])
    row = table(tmp_path / "ids.csv")[0]
    assert list(row) == ["id", "class", "pixels", "x", "y", "x_min", "y_min", "x_max", "y_max"]


def test_what_is_kept_of_an_object_is_little_and_its_row_is_the_same_in_any_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scene_map(tmp_path, patches(2, 40, 30))
    objects = find_instances(found, [1, 2], False)
    kept = (objects.index, objects.pixels, objects.size, objects.low, objects.high, objects.centre)
    assert sum(each.nbytes for each in kept if each is not None) <= 70 * len(objects.index)
    write_table(objects, found, tmp_path / "whole.csv")
    monkeypatch.setattr(instances, "_CHUNK", 7)
    write_table(objects, found, tmp_path / "parts.csv")
    assert (tmp_path / "parts.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_a_map_without_objects_has_an_empty_table(tmp_path: Path) -> None:
    found = scene_map(tmp_path, np.zeros((40, 30)))
    objects = find_instances(found, [1, 2], True)
    write_table(objects, found, tmp_path / "ids.csv")
    write_id_map(objects.ids(found), found.source, "geotiff", tmp_path / "ids.tif")
    assert table(tmp_path / "ids.csv") == []
    with rasterio.open(tmp_path / "ids.tif") as ids:
        assert not ids.read(1).any()


def test_a_full_disk_leaves_no_id_map(tmp_path: Path) -> None:
    found = scene_map(tmp_path, patches(4, 120, 100))
    objects = find_instances(found, [1, 2], False)
    with file_size_limit(8_000), pytest.raises(OSError, match=r"ids\.tif|disk full"):
        write_id_map(objects.ids(found), found.source, "geotiff", tmp_path / "out" / "ids.tif")
    assert list((tmp_path / "out").iterdir()) == []
