import functools
import json
import sys

import numpy as np
import pytest
import rasterio
import yaml
from PIL import Image
from rasterio.transform import from_origin

pytest.importorskip("torchgeo", reason="needs pip install 'voxtile[torchgeo]'")

from torchgeo.datasets import IntersectionDataset, LandCoverAI, NonGeoDataset, RasterDataset, UnionDataset, VectorDataset

from tests.testers.formats import FormatTester
from tests.testers.tiny import SMALL, blob, scene
from voxtile.cases.dataset import Dataset
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.torchgeo import TorchGeoLayout
from voxtile.cases.window import Window
from voxtile.commands.allowed import build
from voxtile.commands.main import main
from voxtile.data.survey import survey_key
from voxtile.errors import ConfigError, DataError

CLASSES = {0: "ground", 1: "disc"}
partial = functools.partial


class Images(RasterDataset):
    filename_glob = "*.tif"
    all_bands = ("red", "nir", "blue")


class Masks(RasterDataset):
    filename_glob = "*.tif"
    is_image = False


class Bands(RasterDataset):
    """One file per band, as Sentinel-2 comes."""

    filename_glob = "*_B1.tif"
    filename_regex = r"(?P<place>\w+?)_(?P<band>B\d)"
    all_bands = ("B1", "B2")
    separate_files = True


class Pairs(RasterDataset):
    """A class that reads its masks itself, from beside the images."""

    filename_glob = "images/*.tif"

    def __getitem__(self, query):
        sample = super().__getitem__(query)
        twin = Masks(str(self.index.filepath.iloc[0]).replace("images", "masks"))
        return sample | {"mask": twin[query]["mask"][None]}


class Chips(NonGeoDataset):
    """Samples that are given."""

    def __init__(self, root, samples=(), bands=(), download=False):
        self.samples, self.bands, self.download = list(samples), bands, download

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path / "cache"))


def opened(layout, **more):
    return Dataset("set", "geotiff", layout, CLASSES, **more).cases()


def pair(folder, size=(40, 36), count=2):
    """Scenes a kilometre apart with their masks; their arrays by name."""
    rng = np.random.default_rng(0)
    arrays = {}
    for number in range(count):
        image, mask = rng.integers(1, 4000, (3, *size), dtype=np.uint16), blob(rng, *size)
        scene(folder / "images" / f"s{number}.tif", image, number)
        scene(folder / "masks" / f"s{number}.tif", mask[None], number)
        arrays[f"s{number}"] = image, mask
    return arrays


def pairs(root):
    return partial(IntersectionDataset, dataset1=partial(Images, paths="images"), dataset2=partial(Masks, paths="masks"))


class TestRows(FormatTester):
    dtype = "float32"

    def make(self, folder, array):
        scene(folder / "images" / "a.tif", array[:, 0])
        scene(folder / "masks" / "a.tif", np.zeros((1, *array.shape[2:]), dtype=np.uint8))
        (case,) = opened(TorchGeoLayout(str(folder), pairs(folder)))
        return case.image

    def reopen(self, path):
        return GeoTiffSource([path])


# --- data sets with coordinates


def test_an_intersections_rows_are_cases_on_the_grids_of_their_images(tmp_path):
    arrays = pair(tmp_path)
    cases = opened(TorchGeoLayout(str(tmp_path), pairs(tmp_path)), group={"pattern": "^s"})
    assert [case.id for case in cases] == ["s0", "s1"]
    for case in cases:
        image, mask = arrays[case.id]
        plain = GeoTiffSource([tmp_path / "images" / f"{case.id}.tif"])
        assert case.channels == ("red", "nir", "blue")
        assert (case.image.stored.affine, case.image.stored.shape) == (plain.stored.affine, plain.stored.shape)
        assert case.image.stored.metres == plain.stored.metres
        window = Window(0, 3, 5, 1, 20, 11)
        pixels, valid = case.read(window)
        np.testing.assert_array_equal(pixels[:, 0], image[:, 3:23, 5:16])
        np.testing.assert_array_equal(case.read_label(window)[0], mask[3:23, 5:16])
        assert valid.all()
        assert case.image.paths == (tmp_path / "images" / f"{case.id}.tif", tmp_path / "masks" / f"{case.id}.tif")


def test_how_it_is_read_is_part_of_what_a_survey_is_kept_under(tmp_path):
    pair(tmp_path, count=1)

    def key(nodata=None, **arguments):
        dataset = partial(
            IntersectionDataset, dataset1=partial(Images, paths="images", **arguments), dataset2=partial(Masks, paths="masks")
        )
        (case,) = opened(TorchGeoLayout(str(tmp_path), dataset), nodata=nodata)
        return survey_key(case, 2, label=True)

    assert key() == key()
    assert len({key(), key(nodata=7), key(cache=False)}) == 3


def test_another_raster_lies_on_the_grid_of_a_row(tmp_path):
    arrays = pair(tmp_path, count=1)
    dataset = Dataset("set", "geotiff", TorchGeoLayout(str(tmp_path), pairs(tmp_path)), CLASSES)
    (case,) = dataset.cases()
    weights = dataset.aligned(tmp_path / "masks" / "s0.tif", case)
    window = Window(0, 3, 5, 1, 20, 11)
    np.testing.assert_array_equal(weights.read(window, (0,))[0][0, 0], arrays["s0"][1][3:23, 5:16])


def test_bands_and_channels_are_chosen_by_name(tmp_path):
    arrays = pair(tmp_path, count=1)
    both = partial(
        IntersectionDataset, dataset1=partial(Images, paths="images", bands=["nir", "red"]), dataset2=partial(Masks, paths="masks")
    )
    (case,) = opened(TorchGeoLayout(str(tmp_path), both), channels=["red"])
    np.testing.assert_array_equal(case.read(Window.whole(case.shape))[0][0, 0], arrays["s0"][0][0])


class Dated(RasterDataset):
    filename_glob = "*.tif"
    filename_regex = r"(?P<date>\d{8})"


def test_dates_keep_scenes_of_one_place_apart(tmp_path):
    for number, day in enumerate(("20240105", "20250309")):
        scene(tmp_path / "images" / f"{day}.tif", np.full((3, 16, 16), number + 3, dtype=np.uint8))
    scene(tmp_path / "masks" / "20240101.tif", np.ones((1, 16, 16), dtype=np.uint8))

    class DatedMasks(Dated):
        is_image = False

    parts = {"dataset1": partial(Dated, paths="images"), "dataset2": partial(DatedMasks, paths="masks")}
    with pytest.raises(DataError, match="no temporal intersection"):
        opened(TorchGeoLayout(str(tmp_path), partial(IntersectionDataset, **parts)))
    cases = opened(TorchGeoLayout(str(tmp_path), partial(IntersectionDataset, spatial_only=True, **parts)))
    assert [(case.id, int(case.read(Window.whole(case.shape))[0].mean())) for case in cases] == [("20240105", 3), ("20250309", 4)]
    assert all((case.read_label(Window.whole(case.shape)) == 1).all() for case in cases)


def test_a_mask_between_the_pixels_is_cut_to_whole_pixels_of_the_image(tmp_path):
    image = np.arange(30 * 30, dtype=np.uint16).reshape(1, 30, 30) + 1
    scene(tmp_path / "images" / "a.tif", np.repeat(image, 3, axis=0))
    (tmp_path / "masks").mkdir()
    with rasterio.open(
        tmp_path / "masks" / "a.tif", "w", driver="GTiff", height=12, width=15, count=1, dtype="uint8", crs="EPSG:32633",
        transform=from_origin(500_000 + 34, 5_000_000 - 57, 10, 10),
    ) as out:  # fmt: skip
        out.write(np.ones((1, 12, 15), dtype=np.uint8))
    (case,) = opened(TorchGeoLayout(str(tmp_path), pairs(tmp_path)))
    assert case.shape == (1, 11, 14)
    np.testing.assert_array_equal(case.read(Window.whole(case.shape))[0][0, 0], image[0, 6:17, 4:18])
    assert (case.read_label(Window.whole(case.shape)) == 1).all()


def test_an_overlapping_neighbour_is_not_mixed_in(tmp_path):
    for number, value in enumerate((5, 9)):
        for kind, count in (("images", 3), ("masks", 1)):
            array = np.full((count, 20, 20), value if kind == "images" else number, dtype=np.uint8)
            scene(tmp_path / kind / f"s{number}.tif", array, 0)  # on the same ground
    cases = opened(TorchGeoLayout(str(tmp_path), pairs(tmp_path)))
    assert [case.id for case in cases] == ["s0", "s0_2", "s1", "s1_2"]  # each image meets each mask
    values = [
        (int(case.read(Window(0, 0, 0, 1, 4, 4))[0].max()), int(case.read_label(Window(0, 0, 0, 1, 4, 4)).max())) for case in cases
    ]
    assert sorted(values) == [(5, 0), (5, 1), (9, 0), (9, 1)]


def test_a_union_is_the_rows_of_both(tmp_path):
    rng = np.random.default_rng(0)
    for part, corner in (("here", 0), ("there", 5)):
        for kind, count in (("images", 3), ("masks", 1)):
            scene(tmp_path / part / kind / f"{part}.tif", rng.integers(0, 2, (count, 16, 16), dtype=np.uint8), corner)
    sides = [partial(Pairs, paths=part) for part in ("here", "there")]
    cases = opened(TorchGeoLayout(str(tmp_path), partial(UnionDataset, dataset1=sides[0], dataset2=sides[1])))
    assert [case.id for case in cases] == ["here", "there"]
    for case in cases:
        with rasterio.open(tmp_path / case.id / "images" / f"{case.id}.tif") as image:
            np.testing.assert_array_equal(case.read(Window.whole(case.shape))[0][:, 0], image.read())


def test_a_class_with_masks_of_its_own_is_read_as_it_is(tmp_path):
    arrays = pair(tmp_path)
    for case in opened(TorchGeoLayout(str(tmp_path), partial(Pairs))):
        np.testing.assert_array_equal(case.read_label(Window.whole(case.shape))[0], arrays[case.id][1])


def test_polygons_may_be_the_masks(tmp_path):
    scene(tmp_path / "images" / "a.tif", np.ones((3, 20, 20), dtype=np.uint8))
    x, y = 500_000, 5_000_000
    ring = [[x + 50, y - 150], [x + 150, y - 150], [x + 150, y - 50], [x + 50, y - 50], [x + 50, y - 150]]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (tmp_path / "roofs.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    both = partial(
        IntersectionDataset, dataset1=partial(Images, paths="images"), dataset2=partial(VectorDataset, paths="roofs.geojson")
    )
    (case,) = opened(TorchGeoLayout(str(tmp_path), both))
    assert case.shape == (1, 10, 10)  # where both have something
    assert (case.read_label(Window.whole(case.shape)) == 1).all()


def test_files_of_further_bands_belong_to_the_case(tmp_path):
    for band in (1, 2):
        scene(tmp_path / "images" / f"a_B{band}.tif", np.full((1, 16, 16), band, dtype=np.uint8))
    scene(tmp_path / "masks" / "a.tif", np.zeros((1, 16, 16), dtype=np.uint8))
    both = partial(IntersectionDataset, dataset1=partial(Bands, paths="images"), dataset2=partial(Masks, paths="masks"))
    (case,) = opened(TorchGeoLayout(str(tmp_path), both))
    assert [path.name for path in case.image.paths] == ["a_B1.tif", "a.tif", "a_B2.tif"]
    assert case.channels == ("B1", "B2")
    assert case.read(Window(0, 0, 0, 1, 1, 1))[0].ravel().tolist() == [1, 2]


@pytest.mark.parametrize(("tag", "given"), [(7, None), (None, 7.0), (1, 7.0)])
def test_nodata_of_the_file_or_of_the_configuration_is_where_no_data_are(tmp_path, tag, given):
    array = np.arange(3 * 16 * 16, dtype=np.uint16).reshape(3, 16, 16) + 10
    array[:, :5, :7] = 7
    array[0, 9, 9] = 7  # one band only
    scene(tmp_path / "images" / "a.tif", array, nodata=tag)
    scene(tmp_path / "masks" / "a.tif", np.zeros((1, 16, 16), dtype=np.uint8))
    (case,) = opened(TorchGeoLayout(str(tmp_path), pairs(tmp_path)), nodata=given)
    _, valid = case.read(Window.whole(case.shape))
    np.testing.assert_array_equal(valid[0], ~(array == 7).all(axis=0))


def test_what_warping_leaves_empty_holds_no_data(tmp_path):
    for kind, count in (("images", 3), ("masks", 1)):
        array = np.ones((count, 60, 60), dtype=np.uint8)
        scene(tmp_path / kind / "a.tif", array)
        with rasterio.open(
            tmp_path / kind / "b.tif", "w", driver="GTiff", height=60, width=60, count=count, dtype="uint8", crs="EPSG:32634",
            transform=from_origin(200_000, 5_000_000, 10, 10),
        ) as out:  # fmt: skip
            out.write(array)
    for case in opened(TorchGeoLayout(str(tmp_path), pairs(tmp_path))):
        pixels, valid = case.read(Window.whole(case.shape))
        assert valid.all() == (case.id == "a")  # the other zone's square stands askew in this one
        np.testing.assert_array_equal(valid[0], (pixels > 0).any(axis=(0, 1)))
        assert (case.read_label(Window.whole(case.shape))[valid] == 1).mean() > 0.99
        assert valid.mean() > 0.8


def test_images_without_masks_are_refused_with_the_way_to_combine_them(tmp_path):
    scene(tmp_path / "a.tif", np.ones((3, 16, 16), dtype=np.uint8))
    with pytest.raises(DataError, match=r"Images .*a\.tif\) hold .*image and no 'mask'.*IntersectionDataset with 'dataset1"):
        opened(TorchGeoLayout(str(tmp_path), partial(Images)))


def test_masks_without_images_are_refused(tmp_path):
    scene(tmp_path / "a.tif", np.ones((1, 16, 16), dtype=np.uint8))
    with pytest.raises(DataError, match=r"Masks .* and no 'image'.*Expected one image"):
        opened(TorchGeoLayout(str(tmp_path), partial(Masks)))


def test_a_damaged_file_is_named_with_the_window(tmp_path):
    pair(tmp_path, size=(300, 300), count=1)
    (case,) = opened(TorchGeoLayout(str(tmp_path), pairs(tmp_path)))
    file = tmp_path / "images" / "s0.tif"
    file.write_bytes(file.read_bytes()[:200_000])
    with pytest.raises(DataError, match=r"could not read .*s0\.tif at window \(0, 250, 0, 1, 20, 20\).*data\.exclude"):
        case.read(Window(0, 250, 0, 1, 20, 20))


# --- data sets of chips


def land_cover(root, size=64, **counts):
    """LandCover.ai's folder of chips as it is published: JPEG images and PNG masks, a list of ids per split."""
    rng = np.random.default_rng(0)
    (root / "output").mkdir(parents=True)
    for split, count in counts.items():
        names = [f"M-33-{split}_{number}" for number in range(count)]
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            mask = blob(rng, size, size)
            picture = np.repeat((mask * 150 + rng.integers(0, 60, mask.shape))[..., None], 3, axis=2).astype(np.uint8)
            Image.fromarray(picture).save(root / "output" / f"{name}.jpg")
            Image.fromarray(mask).save(root / "output" / f"{name}_m.png")
    return root


SPLITS = {"train": "train", "val": {"split": "val"}, "test": "test"}


def test_items_of_a_chip_data_set_are_cases_of_its_splits(tmp_path):
    root = land_cover(tmp_path / "land", train=3, val=2, test=1)
    cases = opened(TorchGeoLayout(str(root), partial(LandCoverAI), SPLITS))
    assert {case.id: case.split for case in cases} == {
        "M-33-train_0": "train", "M-33-train_1": "train", "M-33-train_2": "train", "M-33-val_0": "val", "M-33-val_1": "val",
        "M-33-test_0": "test",
    }  # fmt: skip
    for case in cases:
        with Image.open(root / "output" / f"{case.id}.jpg") as picture:
            np.testing.assert_array_equal(case.read(Window.whole(case.shape))[0][:, 0], np.moveaxis(np.asarray(picture), 2, 0))
        with Image.open(root / "output" / f"{case.id}_m.png") as mask:
            np.testing.assert_array_equal(case.read_label(Window.whole(case.shape))[0], np.asarray(mask))
        assert case.dtype == np.uint8
        assert case.image.notes() == []


def test_chips_are_decoded_once_and_again_when_a_file_changes(tmp_path):
    root = land_cover(tmp_path / "land", train=2, val=1, test=1)
    layout = TorchGeoLayout(str(root), partial(LandCoverAI))
    (first, _) = opened(layout)
    stamp = first.image.path.stat().st_mtime_ns
    assert opened(layout)[0].image.path.stat().st_mtime_ns == stamp
    Image.fromarray(np.full((64, 64), 1, dtype=np.uint8)).save(root / "output" / "M-33-train_0_m.png")
    LandCoverAI._load_target.cache_clear()
    (again, _) = opened(layout)
    assert again.image.path != first.image.path
    assert (again.read_label(Window.whole(again.shape)) == 1).all()


@pytest.mark.parametrize(
    ("dtype", "values", "stored"),
    [
        ("float32", (0, 255), "uint8"),
        ("float32", (0, 10_000), "uint16"),
        ("float32", (-3, 9), "int16"),
        ("float64", (0.5, 1), "float64"),
        ("float32", (0.5, np.nan), "float32"),
        ("int64", (0, 100_000), "int32"),
        ("float64", (0, 2**40), "float64"),
    ],
)
def test_numbers_stay_what_they_are_in_the_smallest_type(tmp_path, dtype, values, stored):
    image = np.resize(np.array(values, dtype=dtype), (2, 16, 16))
    made = partial(Chips, samples=[{"image": image, "mask": np.zeros((16, 16), dtype=np.int64)}], bands=("vv", "vh"))
    (case,) = opened(TorchGeoLayout(str(tmp_path), made))
    pixels, valid = case.read(Window.whole(case.shape))
    np.testing.assert_array_equal(pixels[:, 0], image)
    np.testing.assert_array_equal(valid[0], np.isfinite(image).all(axis=0))
    assert (case.dtype, case.channels, case.id) == (np.dtype(stored), ("vv", "vh"), "00000")


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"image": np.zeros((3, 8, 8)), "label": 1}, r"hold image, label and no 'mask'"),
        ({"image1": np.zeros((3, 8, 8)), "image2": np.zeros((3, 8, 8)), "mask": np.zeros((8, 8))}, r"no 'image'.*several images"),
        ({"image": np.zeros((2, 3, 8, 8)), "mask": np.zeros((8, 8))}, r"'image' of shape \(2, 3, 8, 8\).*Expected \[C, H, W\]"),
        ({"image": np.zeros((3, 8, 8)), "mask": np.zeros((2, 8, 8))}, r"'mask' of shape \(2, 8, 8\).*Expected \[H, W\] of 8x8"),
        ({"image": np.zeros((3, 8, 8)), "mask": np.zeros((8, 9))}, r"'mask' of shape \(1, 8, 9\).*of 8x8 pixels"),
    ],
)
def test_samples_that_are_no_segmentation_are_refused(tmp_path, sample, said):
    with pytest.raises(DataError, match=said):
        opened(TorchGeoLayout(str(tmp_path), partial(Chips, samples=[sample])))


def test_an_item_that_cannot_be_read_is_named(tmp_path):
    root = land_cover(tmp_path / "land", train=2, val=1, test=1)
    (root / "output" / "M-33-train_1.jpg").write_bytes(b"\xff\xd8 cut off")
    with pytest.raises(DataError, match=r"LandCoverAI could not read its item 1: .*fetch them again"):
        opened(TorchGeoLayout(str(root), partial(LandCoverAI)))


def test_a_data_set_without_items_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no case: Chips has no items"):
        opened(TorchGeoLayout(str(tmp_path), partial(Chips)))


# --- what is asked of the class


def test_files_that_are_not_there_are_said_with_what_to_type(tmp_path):
    with pytest.raises(DataError, match=r"LandCoverAI is not in .*data\.layout\.root=.*\+data\.layout\.dataset\.download=true"):
        opened(TorchGeoLayout(str(tmp_path), partial(LandCoverAI)))
    with pytest.raises(DataError, match=r"Images is not in .*data\.layout\.root=…'\.$"):
        opened(TorchGeoLayout(str(tmp_path), partial(Images, paths=["a", "b"])))
    with pytest.raises(DataError, match=r"data folder .* does not exist"):
        opened(TorchGeoLayout(str(tmp_path / "gone"), partial(LandCoverAI)))


def test_nothing_is_downloaded_unless_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(LandCoverAI, "_download", lambda self: asked.append(self.root))
    for words, downloads in (({}, False), ({"download": True}, True)):
        with pytest.raises(DataError):
            opened(TorchGeoLayout(str(tmp_path / "new" if downloads else tmp_path), partial(LandCoverAI, **words)))
        assert bool(asked) is downloads


def test_arguments_that_a_class_does_not_take_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'data\.layout\.splits' sets 'split', and TorchGeo's Images takes no such.*bands"):
        opened(TorchGeoLayout(str(tmp_path), partial(Images), {"train": "train"}))
    with pytest.raises(DataError, match=r"LandCoverAI cannot be opened in .*AssertionError"):
        opened(
            TorchGeoLayout(str(land_cover(tmp_path / "land", train=1, val=1, test=1)), partial(LandCoverAI), {"val": "validation"})
        )
    node = {
        "_target_": "voxtile.cases.torchgeo.TorchGeoLayout", "root": "x",
        "dataset": {"_target_": "torchgeo.datasets.LandCoverAI", "splt": "train"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"takes no 'splt'.*Did you mean 'split'"):
        build(node, "data.layout")


@pytest.mark.parametrize("name", ["SKIPPD", "DatasetNotFoundError"])
def test_classes_that_unpickle_or_are_no_data_sets_are_refused(tmp_path, name):
    node = {
        "_target_": "voxtile.cases.torchgeo.TorchGeoLayout",
        "root": str(tmp_path),
        "dataset": {"_target_": f"torchgeo.datasets.{name}"},
    }
    with pytest.raises(ConfigError, match=r"unpickles files|no data set of TorchGeo"):
        opened(build(node, "data.layout"))


def test_a_run_trains_on_its_splits_and_is_evaluated(tmp_path, monkeypatch):
    root = land_cover(tmp_path / "land", size=32, train=3, val=2, test=1)
    conf = tmp_path / "conf" / "data"
    conf.mkdir(parents=True)
    layout = {
        "_target_": "voxtile.cases.torchgeo.TorchGeoLayout", "root": str(root), "splits": {s: s for s in SPLITS},
        "dataset": {"_target_": "torchgeo.datasets.LandCoverAI"},
    }  # fmt: skip
    data = {"name": "land", "format": "geotiff", "layout": layout, "labels": CLASSES, "window": [16, 16]}
    (conf / "land.yaml").write_text(yaml.safe_dump(data))
    cache = f"paths.cache={tmp_path / 'cache'}"
    words = ["--config-dir", str(tmp_path / "conf"), "data=land", "split=given", f"paths.runs={tmp_path / 'runs'}", cache, *SMALL]
    monkeypatch.setattr(sys, "argv", ["voxtile", "train", *words])
    assert main() == 0
    (manifest,) = (tmp_path / "runs").rglob("manifest.json")
    monkeypatch.setattr(sys, "argv", ["voxtile", "evaluate", f"run={manifest.parent}", cache, "device=cpu"])
    assert main() == 0
