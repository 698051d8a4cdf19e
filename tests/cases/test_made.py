import json
from itertools import combinations

import nibabel as nib
import numpy as np
import pytest
import rasterio
from scipy import ndimage

from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.made import MARKER, make_once, visits
from voxtile.cases.made_scenes import BANDS, CLASSES, make_scenes
from voxtile.cases.made_volumes import make_volumes
from voxtile.cases.window import Window
from voxtile.errors import DataError

IGNORE = 255


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("made") / "scenes", count=6)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return make_volumes(tmp_path_factory.mktemp("made") / "volumes", count=6)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def scene(path):
    with rasterio.open(path) as image, rasterio.open(path.parents[1] / "labels" / path.name) as label:
        return image.read(), label.read(1)


def volume(path):
    image = nib.as_closest_canonical(nib.load(path))
    label = nib.as_closest_canonical(nib.load(path.parents[1] / "labelsTr" / path.name))
    return np.asarray(image.dataobj), np.asarray(label.dataobj), image.affine


def one_file(folder):
    (folder / "a.txt").write_text("made")


# Made once


def test_every_third_place_comes_twice_under_names_of_its_own():
    names = visits("place", 16)
    assert len({name for name, _, _ in names}) == len(names) == 16
    assert names[:4] == [("place01_a", 1, 0), ("place02_a", 2, 0), ("place03_a", 3, 0), ("place03_b", 3, 1)]
    assert [place for _, place, visit in names if visit] == [3, 6, 9, 12]


def test_a_second_call_makes_nothing(tmp_path):
    folder = make_once(tmp_path / "deep" / "set", {"version": 1}, one_file)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_once(folder, {"version": 1}, lambda making: pytest.fail("made again")) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert {path.name for path in before} == {"a.txt", MARKER}


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    assert (make_once(tmp_path / "set", {"version": 1}, one_file) / "a.txt").read_text() == "made"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_interrupted_making_leaves_nothing(tmp_path, kind):
    def fill(making):
        one_file(making)
        raise kind

    with pytest.raises(kind):
        make_once(tmp_path / "set", {"version": 1}, fill)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path):
    def fill(making):
        one_file(making)
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"No space left on device.*Nothing was left"):
        make_once(tmp_path / "set", {"version": 1}, fill)
    assert list(tmp_path.iterdir()) == []


def test_of_two_makers_at_once_the_first_to_finish_wins(tmp_path):
    def slow(making):
        make_once(tmp_path / "set", {"version": 1}, one_file)
        (making / "a.txt").write_text("late")

    folder = make_once(tmp_path / "set", {"version": 1}, slow)
    assert (folder / "a.txt").read_text() == "made"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("found", ["somebody's own file", "another recipe"])
def test_a_folder_with_something_else_is_refused_and_untouched(tmp_path, found):
    if found == "another recipe":
        folder = make_once(tmp_path / "set", {"version": 1}, one_file)
    else:
        folder = tmp_path / "set"
        folder.mkdir()
        one_file(folder)
    before = files(folder)
    with pytest.raises(DataError, match=r"data\.layout\.root.*rm -r"):
        make_once(folder, {"version": 2}, one_file)
    assert files(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "make", [lambda folder, seed: make_scenes(folder, 2, (96, 80), seed), lambda folder, seed: make_volumes(folder, 2, seed)]
)
def test_the_same_seed_makes_the_same_bytes(tmp_path, make):
    first, again, other = (files(make(tmp_path / name, seed)) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.suffix in (".tif", ".gz"))


def test_more_cases_leave_the_first_ones_as_they_are(tmp_path):
    few, more = files(make_scenes(tmp_path / "few", 1, (96, 80))), files(make_scenes(tmp_path / "more", 2, (96, 80)))
    assert all(more[name] == few[name] for name in few if name.suffix == ".tif")


# Scenes


def test_scenes_are_georeferenced_images_with_named_bands(scenes):
    paths = sorted((scenes / "images").iterdir())
    assert [path.stem for path in paths] == [name for name, _, _ in visits("place", 6)]
    for path in paths:
        with rasterio.open(path) as image, rasterio.open(scenes / "labels" / path.name) as label:
            assert image.descriptions == BANDS
            assert image.dtypes == ("uint16",) * 4
            assert image.nodatavals == (0,) * 4
            assert (image.crs.to_epsg(), image.res) == (32633, (3.0, 3.0))
            assert image.profile["tiled"]
            assert image.compression.name == "deflate"
            assert (label.shape, label.transform, label.crs) == (image.shape, image.transform, image.crs)
            assert (label.dtypes, label.nodata, label.count) == (("uint8",), IGNORE, 1)
            assert set(np.unique(label.read(1))) <= {*range(len(CLASSES)), IGNORE}


def test_the_projects_own_reader_finds_the_wedge_without_data(scenes):
    shares = []
    for path in sorted((scenes / "images").iterdir()):
        source = GeoTiffSource([path])
        pixels, valid = source.read(Window.whole(source.canonical.shape), range(4))
        _, label = scene(path)
        assert source.channels == BANDS
        assert ((pixels == 0).any(axis=0) == ~valid).all()
        assert (label[~valid[0]] == IGNORE).all()
        shares.append(1 - valid.mean())
    assert 0 < np.count_nonzero(shares) < len(shares)
    assert max(shares) < 0.6


def test_some_labels_have_a_strip_that_nobody_labelled(scenes):
    unlabelled = [((label == IGNORE) & (image[0] > 0)).mean() for image, label in map(scene, (scenes / "images").iterdir())]
    assert 0 < np.count_nonzero(unlabelled) < len(unlabelled)
    assert max(unlabelled) < 0.1


def test_every_class_is_in_most_scenes(scenes):
    labels = [scene(path)[1] for path in (scenes / "images").iterdir()]
    for index, name in enumerate(CLASSES):
        assert sum((label == index).mean() > 0.005 for label in labels) >= 5, name


def test_places_lie_apart_and_a_place_stays_itself(scenes):
    bounds = {}
    for path in (scenes / "images").iterdir():
        with rasterio.open(path) as image:
            bounds[path.stem] = image.bounds
    for one, two in combinations(bounds, 2):
        a, b = bounds[one], bounds[two]
        gap = max(a.left - b.right, b.left - a.right, a.bottom - b.top, b.bottom - a.top)
        assert (a == b) if one[:7] == two[:7] else gap > 1_000
    first, second = (scene(scenes / "images" / f"place03_{visit}.tif") for visit in "ab")
    both = (first[1] != IGNORE) & (second[1] != IGNORE)
    assert (first[1] == second[1])[both].all()
    assert np.abs(first[0].astype(float) - second[0]).mean() > 100


def test_a_pixel_alone_does_not_tell_its_class(scenes):
    pairs = [scene(path) for path in (scenes / "images").iterdir()]
    pixels = np.concatenate([image[:, label != IGNORE].T[::4] for image, label in pairs]).astype(float)
    labels = np.concatenate([label[label != IGNORE][::4] for _, label in pairs]).astype(int)
    scores = []
    for index in range(len(CLASSES)):  # quadratic discriminant, fitted and scored on the same pixels
        own = pixels[labels == index]
        covariance = np.cov(own.T)
        away = pixels - own.mean(axis=0)
        spread = (away @ np.linalg.inv(covariance) * away).sum(axis=1) + np.linalg.slogdet(covariance)[1]
        scores.append(np.log(len(own)) - spread / 2)
    count = np.bincount(len(CLASSES) * labels + np.argmax(scores, axis=0), minlength=len(CLASSES) ** 2).reshape(len(CLASSES), -1)
    iou = np.diag(count) / (count.sum(axis=0) + count.sum(axis=1) - np.diag(count))
    assert 0.4 < iou.mean() < 0.7


# Volumes


def test_volumes_are_a_decathlon_data_set(volumes):
    description = json.loads((volumes / "dataset.json").read_text())
    assert description["labels"] == {"0": "background", "1": "lesion", "2": "core"}
    assert description["numTraining"] == len(description["training"]) == 6
    named = {volumes / pair[kind] for pair in description["training"] for kind in ("image", "label")}
    assert named == set(volumes.rglob("*.nii.gz"))


def test_volumes_have_spacing_units_and_agreeing_affines(volumes):
    axes = set()
    for path in (volumes / "imagesTr").iterdir():
        image, label = nib.load(path), nib.load(volumes / "labelsTr" / path.name)
        assert image.get_data_dtype() == np.int16
        assert image.header.get_xyzt_units()[0] == "mm"
        assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        assert label.shape == image.shape
        np.testing.assert_array_equal(label.affine, image.affine)
        assert set(np.unique(label.dataobj)) <= {0, 1, 2}
        fine, plane, thick = sorted(image.header.get_zooms())
        assert fine == pytest.approx(plane, rel=1e-5)
        assert thick > 1.8 * fine
        axes.add("".join(nib.aff2axcodes(image.affine)))
    assert axes == {"RAS", "LPS", "LAS", "PIR", "LPI"}


def test_heads_are_upright_whatever_the_axes_stored(volumes):
    for path in (volumes / "imagesTr").iterdir():
        pixels, _, affine = volume(path)
        head = ndimage.binary_fill_holes(pixels > 0.25 * np.percentile(pixels, 99))
        sides = [np.ptp(np.flatnonzero(head.any(axis=axes))) for axes in ((1, 2), (0, 2), (0, 1))]
        right, front, up = sides * np.linalg.norm(affine[:3, :3], axis=0)
        assert front > 1.1 * right
        assert min(right, up) > 110
        assert pixels.shape[:2] == (72, 88)
        assert 24 <= pixels.shape[2] <= 30


def test_some_patients_are_healthy_and_the_others_lesions_vary(volumes):
    sizes = {
        path.name[:9]: [int((volume(path)[1] == value).sum()) for value in (1, 2)] for path in (volumes / "imagesTr").iterdir()
    }
    assert sizes.pop("patient05") == [0, 0]
    assert all(lesion > core > 0 for lesion, core in sizes.values())
    lesions = [lesion for lesion, _ in sizes.values()]
    assert max(lesions) > 2 * min(lesions)


def test_a_patients_lesions_stay_at_their_place_in_the_head(volumes):
    def place(name):
        pixels, label, affine = volume(volumes / "imagesTr" / f"{name}.nii.gz")
        head = pixels > 0.25 * np.percentile(pixels, 99)
        middles = [np.argwhere(mask).mean(axis=0) @ affine[:3, :3].T for mask in (label > 0, head)]
        return middles[0] - middles[1]

    assert np.linalg.norm(place("patient03_a") - place("patient03_b")) < 15
    assert np.linalg.norm(place("patient03_a") - place("patient04_a")) > 15


def test_scanners_differ_in_scale_and_background_is_noise(volumes):
    tops = []
    for path in (volumes / "imagesTr").iterdir():
        pixels, label, _ = volume(path)
        tops.append(np.percentile(pixels, 99))
        corner = pixels[:6, :6]
        assert corner.std() > 0
        assert corner.mean() < 0.2 * tops[-1]
        assert (label[:6, :6] == 0).all()
    assert max(tops) > 3 * min(tops)
