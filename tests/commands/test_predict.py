"""voxtile predict: maps in the input's own format and geometry."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import geopandas
import nibabel
import numpy as np
import pytest
import rasterio
import shapely
import SimpleITK
from affine import Affine
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from tests.commands.conftest import Command, Run, homes, renumbered
from tests.testers.maps import written
from tests.testers.predicting import forked, nothing_is_predicted
from tests.testers.tiny import SMALL, blob, configured, scene, scene_words
from voxtile import open_run
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.raster import plain_allowed
from voxtile.cases.window import Window
from voxtile.data.survey import survey


def test_a_scene_s_map_lies_on_its_scene(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    rng = np.random.default_rng(3)
    bands = rng.normal(1, 1, (2, 50, 61)).astype(np.float32)
    bands[:, :10, :7] = -9999
    source = scene(tmp_path / "new" / "scene.tif", bands, corner=40, nodata=-9999)
    said = voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'maps'}")
    assert said.code == 0
    assert str(tmp_path / "maps" / "scene.tif") in said.text
    with rasterio.open(source) as image, rasterio.open(tmp_path / "maps" / "scene.tif") as found:
        assert (found.crs, found.transform, found.shape, found.count) == (image.crs, image.transform, image.shape, 1)
        assert (found.dtypes[0], found.nodata) == ("uint8", 255)
        values = found.read(1)
        table = found.colormap(1)
        colors = scene_run.read("manifest.json")["data"]["colors"]
        assert [list(table[c][:3]) for c in range(2)] == colors
        names = " ".join(f"{k}={v}" for k, v in {**found.tags(), **found.tags(1)}.items()) + str(found.descriptions)
        assert "ground" in names
        assert "disc" in names
        assert scene_run.read("recipe.json")["identity"] in names
    assert (values[:10, :7] == 255).all()
    assert set(np.unique(values[10:])) <= {0, 1}
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["scene.tif"]


def test_heatmaps_are_probabilities_whose_largest_is_the_map(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    out = tmp_path / "my.tif"
    assert voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={out}", "heatmaps=true").code == 0
    assert sorted(path.name for path in tmp_path.glob("*.tif")) == ["my.tif", "my_heatmap.tif"]
    with rasterio.open(out) as found, rasterio.open(tmp_path / "my_heatmap.tif") as heat:
        assert heat.dtypes == ("float32", "float32")
        assert (heat.transform, heat.crs) == (found.transform, found.crs)
        probabilities = heat.read()
        np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
        np.testing.assert_array_equal(probabilities.argmax(axis=0), found.read(1))


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL", "IRP"])
def test_a_volume_s_map_has_the_volume_s_storage(volume_run: Run, tmp_path: Path, voxtile: Command, codes: str) -> None:
    """However a volume is stored, each place in the patient gets the same class, in the volume's own array order."""
    first = volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"
    image = nibabel.load(first)
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(codes)
        )
    )
    nibabel.save(turned, tmp_path / "turned.nii")
    common = [f"run={volume_run.home}", "overlap=0.5"]
    assert voxtile("predict", *common, f"input={first}", f"output={tmp_path / 'plain'}").code == 0
    assert voxtile("predict", *common, f"input={tmp_path / 'turned.nii'}", f"output={tmp_path / 'maps'}", "heatmaps=true").code == 0
    (path,) = tmp_path.glob("maps/turned.nii*")
    found, plain = nibabel.load(path), nibabel.load(tmp_path / "plain" / "v1.nii.gz")
    assert found.shape == turned.shape
    assert nibabel.aff2axcodes(found.affine) == tuple(codes)
    np.testing.assert_allclose(found.affine, turned.affine, atol=1e-5)
    canonical = [nibabel.as_closest_canonical(volume).get_fdata() for volume in (found, plain)]
    np.testing.assert_array_equal(*canonical)
    (heat,) = tmp_path.glob("maps/turned_heatmap.nii*")
    assert nibabel.load(heat).shape == (*turned.shape, 2)


@pytest.fixture(scope="module")
def slice_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on patients that are folders of PNG slices."""
    folder = tmp_path_factory.mktemp("slice_run")
    rng = np.random.default_rng(0)
    for patient in "abcdef":
        (folder / "set" / patient).mkdir(parents=True)
        for number in (1, 2, 10):
            label = blob(rng, 24, 20)
            image = np.clip(label * 120 + rng.normal(60, 20, label.shape), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / "set" / patient / f"{patient}_{number}.png")
            Image.fromarray(label * 255).save(folder / "set" / patient / f"{patient}_{number}_mask.png")
    layout = {
        "_target_": "voxtile.cases.layouts.FolderLayout", "root": str(folder / "set"), "case": "{patient}",
        "images": "{patient}/{patient}_{slice:d}.png", "labels": "{patient}/{patient}_{slice:d}_mask.png",
    }  # fmt: skip
    words = configured(
        folder, "slices", format="picture", layout=layout, labels={0: "ground", 255: "disc"}, background="ground", window=[16, 16]
    )
    from voxtile.commands.main import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv", ["voxtile", "train", *words, *SMALL, f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}"]
        )
        assert main() == 0
    return Run(words, homes(folder / "runs")[0], folder, "")


def test_a_folder_of_slices_becomes_a_folder_of_maps(slice_run: Run, tmp_path: Path, voxtile: Command) -> None:
    common = [f"run={slice_run.home}", f"paths.runs={tmp_path}"]
    assert voxtile("predict", *common, f"input={slice_run.folder / 'set'}", f"output={tmp_path / 'all'}").code == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == list("abcdef")
    assert voxtile("predict", *common, f"input={slice_run.folder / 'set' / 'b'}", f"output={tmp_path / 'one'}").code == 0
    for _ in range(2):
        open_run(slice_run.home).predict(slice_run.folder / "set" / "b").save(tmp_path / "saved" / "b", overwrite=True)
    files = sorted((tmp_path / "one" / "b").iterdir())
    assert sorted(path.name for path in files) == ["b_1.png", "b_10.png", "b_2.png"]
    for path in files:
        with Image.open(path) as found, Image.open(tmp_path / "all" / "b" / path.name) as same:
            assert found.size == (20, 24)
            assert set(np.unique(np.asarray(found))) <= {0, 1}
            np.testing.assert_array_equal(np.asarray(found), np.asarray(same))
        with Image.open(path) as found, Image.open(tmp_path / "saved" / "b" / path.name) as saved:
            np.testing.assert_array_equal(np.asarray(found), np.asarray(saved))
    with nothing_is_predicted():
        said = voxtile(
            "predict", *common, f"input={slice_run.folder / 'set' / 'b'}", f"output={tmp_path / 'one'}", "quicklook=true"
        )
    assert said.code == 0
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["b", "b.results", "b_quicklook.png"]


@pytest.mark.parametrize(("factor", "shift"), [(1e4, 1e5), (1, -100)])
def test_an_image_in_another_unit_is_told(scene_run: Run, tmp_path: Path, voxtile: Command, factor: float, shift: float) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    with rasterio.open(source) as image:
        bands, profile = image.read(), image.profile
    with rasterio.open(tmp_path / "s1.tif", "w", **profile | {"nodata": None}) as out:
        out.write((bands * factor + shift).astype(bands.dtype))
    said = voxtile("predict", f"run={scene_run.home}", f"input={tmp_path / 's1.tif'}", f"output={tmp_path / 'maps'}")
    assert said.code == 0
    assert "100% of channel 'band1', which holds" in said.text
    assert "kind, unit and scale" in said.text
    said = voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'more'}")
    assert "unit and scale" not in said.text


def test_a_map_in_an_images_place_is_told(tmp_path: Path, voxtile: Command) -> None:
    words = scene_words(tmp_path)
    for path in (tmp_path / "scenes" / "images").iterdir():
        with rasterio.open(path) as image:
            band, profile = image.read(1), image.profile
        with rasterio.open(path, "w", **profile | {"count": 1}) as out:
            out.write(band, 1)
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    common = ["predict", f"run={home}"]
    assert voxtile(*common, f"input={tmp_path / 'scenes' / 'images' / 's1.tif'}", f"output={tmp_path / 'maps'}").code == 0
    said = voxtile(*common, f"input={tmp_path / 'maps' / 's1.tif'}", f"output={tmp_path / 'more'}")
    assert "it is a map that voxtile has made" in said.text


def test_a_file_that_exists_is_replaced_only_when_told(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    (tmp_path / "s1.tif").write_text("somebody's ground truth")
    common = ["predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path}"]
    said = voxtile(*common)
    assert said.code == 3
    assert f"{tmp_path / 's1.tif'} exists already" in said.text
    assert (tmp_path / "s1.tif").read_text() == "somebody's ground truth"
    assert voxtile(*common, "overwrite=true").code == 0
    with rasterio.open(tmp_path / "s1.tif") as found:
        assert found.shape == (40, 36)


def test_slices_of_a_test_case_are_known_again(slice_run: Run, tmp_path: Path, voxtile: Command) -> None:
    sides = slice_run.read("manifest.json")["data"]["split"]
    common = [f"run={slice_run.home}", f"paths.runs={tmp_path}"]
    (tmp_path / "in").mkdir()
    for side, looks in (("val", 0), ("test", 1)):
        name = sides[side][0]["id"]
        source = shutil.copy(slice_run.folder / "set" / name / f"{name}_2.png", tmp_path / "in" / f"{side}.png")
        said = voxtile("predict", *common, f"input={source}", f"output={tmp_path / 'out'}")
        assert said.code == 0
        assert said.text.count("look number 1 at this test split, recorded") == looks


def test_a_scene_whose_blocks_are_test_is_known_again(tmp_path: Path, voxtile: Command) -> None:
    words = [*scene_words(tmp_path), "split=blocks", "split.blocks=[2,2]", "data.exclude=[s1,s2,s3,s4,s5]"]
    said = voxtile("train", *words)
    (home,) = homes(tmp_path / "runs")
    assert (said.code, f"voxtile predict run={home} input=… output=predictions" in said.text) == (0, True), said.text
    source = tmp_path / "scenes" / "images" / "s0.tif"
    said = voxtile("predict", f"run={home}", f"input={source}", f"output={tmp_path / 'out'}")
    assert said.code == 0
    assert "look number 1 at this test split, recorded" in said.text


def test_a_test_scene_that_the_run_knows_a_part_of_is_known_again(tmp_path: Path, voxtile: Command) -> None:
    words = scene_words(tmp_path)
    images = tmp_path / "scenes" / "images"
    halves = []
    for path in images.glob("*.tif"):
        with rasterio.open(path) as image:
            left, bottom, right, top = image.bounds
            halves.append(shapely.box(left, bottom, (left + right) / 2, top))
    geopandas.GeoSeries(halves, crs=image.crs).to_file(tmp_path / "field.gpkg")
    assert voxtile("train", *words, f"data.scene={{area: {tmp_path / 'field.gpkg'}}}").code == 0
    (home,) = homes(tmp_path / "runs")
    sides = json.loads((home / "manifest.json").read_text())["data"]["split"]
    for side, looks in (("val", 0), ("test", 1)):
        said = voxtile("predict", f"run={home}", f"input={images / sides[side][0]['id']}.tif", f"output={tmp_path / 'out'}")
        assert said.code == 0
        assert said.text.count("look number 1 at this test split, recorded") == looks
    (tmp_path / "field.gpkg").unlink()
    said = voxtile("predict", f"run={home}", f"input={images / sides['val'][0]['id']}.tif", f"output={tmp_path / 'more'}")
    assert said.code == 0
    assert "could not be compared with the run's test cases" in said.text


def test_the_run_s_name_patterns_find_its_images_only(tmp_path: Path, voxtile: Command) -> None:
    words = scene_words(tmp_path)
    nested = tmp_path / "new"
    for place in ("a", "b"):
        (nested / place).mkdir(parents=True)
        shutil.copy(tmp_path / "scenes" / "images" / f"s{place == 'b':d}.tif", nested / place / "image.tif")
        shutil.copy(tmp_path / "scenes" / "labels" / "s0.tif", nested / place / "label.tif")
    for number in range(6):
        (tmp_path / "set" / f"p{number}").mkdir(parents=True)
        for kind in ("image", "label"):
            shutil.copy(tmp_path / "scenes" / f"{kind}s" / f"s{number}.tif", tmp_path / "set" / f"p{number}" / f"{kind}.tif")
    patterns = ["data.layout.images='{place}/image.tif'", "data.layout.labels='{place}/label.tif'", "+data.layout.case='{place}'"]
    assert voxtile("train", *words, f"data.layout.root={tmp_path / 'set'}", *patterns).code == 0
    (home,) = homes(tmp_path / "runs")
    assert voxtile("predict", f"run={home}", f"input={nested}", f"output={tmp_path / 'out'}").code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.tif", "b.tif"]
    said = voxtile("predict", f"run={home}", f"input={nested / 'a'}", f"output={tmp_path / 'one'}")
    assert "left out, since they are not what the run's data set looks for: label.tif" in said.text
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["a.tif"]


def test_where_the_patterns_of_several_files_find_nothing_that_is_said_once(tmp_path: Path, voxtile: Command) -> None:
    words = scene_words(tmp_path)
    images, new = tmp_path / "scenes" / "images", tmp_path / "new"
    new.mkdir()
    for path in list(images.iterdir()):
        with rasterio.open(path) as found:
            stored, crs, transform = found.read(), found.crs, found.transform
        for band in (0, 1):
            written(images / f"{path.stem}_b{band}.tif", stored[band : band + 1], crs, transform)
            shutil.copy(images / f"{path.stem}_b{band}.tif", new)
        path.unlink()
    patterns = ["data.layout.images=['images/{id}_b0.tif','images/{id}_b1.tif']"]
    said = voxtile("train", *words, *patterns)
    assert said.code == 0, said.text
    (home,) = homes(tmp_path / "runs")
    assert voxtile("predict", f"run={home}", f"input={new}", f"output={tmp_path / 'side'}").code == 0
    assert voxtile("predict", f"run={home}", f"input={new / 's1_b1.tif'}", f"output={tmp_path / 'one.tif'}").code == 0
    assert [path.name for path in sorted((tmp_path / "side").iterdir())] == [f"s{number}.tif" for number in range(6)]
    np.testing.assert_array_equal(pixels(tmp_path / "one.tif"), pixels(tmp_path / "side" / "s1.tif"))
    shutil.copytree(new, tmp_path / "copy")
    for path in new.iterdir():
        path.rename(path.with_name(path.name.replace("_b", "_band")))
    for source in (new, new / "s1_band0.tif"):
        said = voxtile("predict", f"run={home}", f"input={source}", f"output={tmp_path / 'out'}")
        assert said.code == 3
        assert "has 2 files, images/{id}_b0.tif, images/{id}_b1.tif" in said.text
        assert said.text.count(f"these patterns find nothing at {source}") == 1
        assert "give the folder in which 'images/' begins, one below it, or one of the files, with 'input=…'" in said.text
        assert not (tmp_path / "out").exists()
    (tmp_path / "copy").rename(tmp_path / "images")
    said = voxtile("predict", f"run={home}", f"input={tmp_path / 'images'}", f"output={tmp_path / 'out'}")
    assert said.code == 0, said.text
    assert len(list((tmp_path / "out").iterdir())) == 6
    for name in ("s0_b0", "s1_b1"):
        (tmp_path / "images" / f"{name}.tif").unlink()
    said = voxtile("predict", f"run={home}", f"input={tmp_path / 'images'}", f"output={tmp_path / 'some'}")
    assert said.code == 5
    assert f"skipped s0: {tmp_path / 'images' / 's0_b1.tif'} has no partner {tmp_path / 'images' / 's0_b0.tif'}" in said.text
    assert f"skipped s1: {tmp_path / 'images' / 's1_b0.tif'} has no partner {tmp_path / 'images' / 's1_b1.tif'}" in said.text
    assert [path.name for path in sorted((tmp_path / "some").iterdir())] == [f"s{number}.tif" for number in range(2, 6)]
    written(tmp_path / "both.tif", stored, crs, transform)  # one file with all channels is a whole case
    assert voxtile("predict", f"run={home}", f"input={tmp_path / 'both.tif'}", f"output={tmp_path / 'out'}").code == 0


def test_an_older_heatmap_beside_a_new_map_is_said(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    common = [
        "predict",
        f"run={scene_run.home}",
        f"input={scene_run.folder}/scenes/images/s1.tif",
        f"output={tmp_path / 'my map (1)'}",
    ]
    assert voxtile(*common, "heatmaps=true").code == 0
    assert "s1_heatmap.tif is of an earlier command" in voxtile(*common, "overwrite=true").text


def test_a_scene_without_a_georeference_warns_of_nothing(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in" / "plain.tif"
    with plain_allowed():
        written(source, np.ones((2, 40, 36), dtype=np.float32), crs=None, transform=Affine.identity())
    # As where another thread, on leaving its own block, has taken the filter of this one away.
    monkeypatch.setattr("voxtile.cases.raster.plain_allowed", nullcontext)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'out'}").code == 0
    assert not [each for each in said if each.category is NotGeoreferencedWarning]


def test_one_bad_file_among_three_is_skipped(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    images = scene_run.folder / "scenes" / "images"
    (tmp_path / "in").mkdir()
    for name in ("s1.tif", "s2.tif"):
        shutil.copy(images / name, tmp_path / "in")
    whole = (images / "s3.tif").read_bytes()
    (tmp_path / "in" / "s1b.tif").write_bytes(whole[: len(whole) // 2])
    said = voxtile("predict", f"run={scene_run.home}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}")
    assert said.code == 5
    assert f"skipped s1b: {tmp_path / 'in' / 's1b.tif'}" in said.text
    assert "1 of 3 inputs could not be predicted: s1b" in said.text
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tif")) == ["s1.tif", "s2.tif"]
    for number in range(3):
        shutil.copy(scene_run.folder / "scenes" / "labels" / "s3.tif", tmp_path / "in" / f"label{number}.tif")
    said = voxtile("predict", f"run={scene_run.home}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}")
    assert (said.code, said.text.count("has 1 channel")) == (5, 1)  # one reason of three inputs is said once
    assert "skipped label1: for the same reason as label0" in said.text
    assert "skipped label2: for the same reason as label0" in said.text
    assert said.text.count(f"{tmp_path / 'in' / 's1b.tif'}") == 1


@pytest.mark.parametrize(
    ("name", "said_of"),
    [
        (os.fsdecode(b"f\xff.tif"), "is no UTF-8 text, and the library of its format opens no others. Rename the file"),
        ("back\\slash.tif", "has a backslash in its name"),
        (f"{'n' * 247}.tif", "is a longer name than the file system takes. Give "),
        (f"{'n' * 243}.tif", "the names of the files beside it are longer than"),
    ],
)
def test_a_file_whose_name_cannot_be_worked_with_is_skipped(
    scene_run: Run, tmp_path: Path, voxtile: Command, name: str, said_of: str
) -> None:
    images = scene_run.folder / "scenes" / "images"
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    shutil.copy(images / "s1.tif", tmp_path / "in" / "z.tif")
    shutil.copy(images / "s2.tif", tmp_path / "in" / name)
    said = voxtile("predict", f"run={scene_run.home}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}")
    assert (said.code, said_of in said.text) == (5, True), said.text
    assert "1 of 2 inputs could not be predicted" in said.text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["z.tif"]
    said = voxtile("predict", f"run={scene_run.home}", f"input={tmp_path / 'in' / name}", f"output={tmp_path / 'out'}")
    assert (said.code, said_of in said.text) == (3, True), said.text


def test_a_folder_for_maps_whose_name_is_no_text_is_said(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    image = scene_run.folder / "scenes" / "images" / "s1.tif"
    said = voxtile("predict", f"run={scene_run.home}", f"input={image}", f"output={tmp_path / os.fsdecode(bytes([255]))}")
    assert (said.code, "or that of its map, is no UTF-8 text" in said.text) == (3, True), said.text


def test_a_name_that_begins_with_a_blank_is_a_name(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    images = scene_run.folder / "scenes" / "images"
    source = shutil.copy(images / "s1.tif", tmp_path / " s1.tif")
    for each, name in ((images / "s1.tif", "s1.tif"), (source, " s1.tif")):
        said = voxtile("predict", f"run={scene_run.home}", f"input={each}", f"output={tmp_path / 'out'}", "heatmaps=true")
        assert said.code == 0, said.text
        assert (tmp_path / "out" / name).exists()
    np.testing.assert_array_equal(pixels(tmp_path / "out" / " s1.tif"), pixels(tmp_path / "out" / "s1.tif"))


def test_a_scene_without_data_and_an_output_that_is_a_file_are_said(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = written(tmp_path / "empty.tif", np.full((2, 40, 40), np.nan, dtype=np.float32))
    (tmp_path / "taken").write_text("somebody's")
    words = ["predict", f"run={scene_run.home}", f"input={source}"]
    said = voxtile(*words, f"output={tmp_path / 'maps'}")
    assert said.code == 0
    assert "empty: no pixel that was sampled holds data" in said.text
    assert (pixels(tmp_path / "maps" / "empty.tif") == 255).all()
    said = voxtile(*words, f"output={tmp_path / 'taken'}")
    assert said.code == 3
    assert f"{tmp_path / 'taken'} is a file, and a folder is needed there" in said.text
    assert "disk space" not in said.text
    assert (tmp_path / "taken").read_text() == "somebody's"


def test_where_nothing_can_be_predicted_that_is_said(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.tif", "b.tif"):
        (tmp_path / "in" / name).write_bytes(b"II*\0 no raster")
    said = voxtile("predict", f"run={scene_run.home}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}")
    assert said.code == 3
    assert "None of the 2 inputs" in said.text


def test_channels_are_found_by_name_and_else_by_their_order(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    with rasterio.open(scene_run.folder / "scenes" / "images" / "s1.tif") as dataset:
        stored, profile = dataset.read(), dataset.profile

    def predicted(name: str, order: list[int], names: tuple[str, str] | None) -> np.ndarray | str:
        path = tmp_path / f"{name}.tif"
        with rasterio.open(path, "w", **profile) as out:
            out.write(stored[order])
            if names:
                out.descriptions = names
        said = voxtile("predict", f"run={scene_run.home}", f"paths.runs={tmp_path}", f"input={path}", f"output={tmp_path / 'maps'}")
        if said.code:
            return str(said.text)
        with rasterio.open(tmp_path / "maps" / f"{name}.tif") as dataset:
            return np.asarray(dataset.read())

    plain = predicted("plain", [0, 1], None)
    np.testing.assert_array_equal(predicted("turned", [1, 0], ("band2", "band1")), plain)
    np.testing.assert_array_equal(predicted("renamed", [0, 1], ("red", "green")), plain)
    assert "band2 stands in another place, so neither names nor their order" in predicted("odd", [1, 0], ("band2", "red"))


def test_channels_that_the_data_set_names_are_found_by_their_order_too(tmp_path: Path, voxtile: Command) -> None:
    # Of four bands of 8 bits GDAL declares the last as alpha.
    words = [*scene_words(tmp_path), "data.channels=[red,green,blue,nir]"]
    rng = np.random.default_rng(0)
    for path in (tmp_path / "scenes" / "images").iterdir():
        with rasterio.open(path) as file:
            profile, shape = file.profile | {"count": 4, "dtype": "uint8"}, file.shape
        with rasterio.open(path, "w", **profile) as file:
            file.write(rng.integers(0, 255, (4, *shape), dtype=np.uint8))
            file.descriptions = ("red", "green", "blue", "nir")
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    named, new = tmp_path / "scenes" / "images" / "s1.tif", tmp_path / "new.tif"
    with rasterio.open(named) as file, rasterio.open(new, "w", **profile) as out:
        out.write(file.read())
    for number, source in enumerate((named, new)):
        said = voxtile("predict", f"run={home}", f"paths.runs={tmp_path}", f"input={source}", f"output={tmp_path / str(number)}/")
        assert said.code == 0, said.text
    with rasterio.open(tmp_path / "0" / "s1.tif") as first, rasterio.open(tmp_path / "1" / "new.tif") as second:
        found = first.read()
        np.testing.assert_array_equal(found, second.read())
    assert (found != 255).all()


def test_other_channels_are_refused(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = scene_run.folder / "scenes" / "labels" / "s1.tif"
    said = voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'out'}")
    assert said.code == 3
    assert f"{source} has 1 channel (" in said.text
    assert "trained on 2 (band1, band2)" in said.text
    assert not (tmp_path / "out").exists()


def test_an_input_is_never_written_to(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = tmp_path / "in" / "s1.tif"
    source.parent.mkdir()
    shutil.copy(scene_run.folder / "scenes" / "images" / "s1.tif", source)
    before = source.read_bytes()
    for output in (source, source.parent):
        said = voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={output}")
        assert said.code == 3
        assert f"{source} would overwrite its own input" in said.text
    assert voxtile("predict", f"run={scene_run.home}", f"input={source.parent}", f"output={source.parent}").code == 3
    assert source.read_bytes() == before
    assert list(source.parent.iterdir()) == [source]


WRONG = {
    "nowhere.tif": "The input nowhere.tif does not exist",
    "conf": "holds no file that ends in .tif",
}


@pytest.mark.parametrize(("name", "words"), WRONG.items())
def test_a_wrong_input_is_named(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(scene_run.folder)
    said = voxtile("predict", f"run={scene_run.home}", f"input={name}", f"output={tmp_path / 'out'}")
    assert said.code == 3
    assert words in said.text
    assert not (tmp_path / "out").exists()


def test_an_output_of_another_format_is_refused(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    said = voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'map.png'}")
    assert said.code == 3
    assert "ends in '.png'" in said.text
    assert "'.tif' file" in said.text
    assert not list(tmp_path.glob("map*"))


# --- scenes of many windows


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 12 tiles and more than 64 windows."""
    rng = np.random.default_rng(4)
    path = tmp_path_factory.mktemp("wide") / "in" / "wide.tif"
    path.parent.mkdir()
    with rasterio.open(
        path, "w", driver="GTiff", height=192, width=256, count=2, dtype="float32", crs="EPSG:32633", tiled=True, blockxsize=64,
        blockysize=64, compress="deflate", interleave="pixel", transform=from_origin(900_000, 5_000_000, 10, 10),
    ) as out:  # fmt: skip
        out.write(rng.normal(1, 1, (2, 192, 256)).astype(np.float32))
    return path


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as found:
        return found.read()


def test_of_a_large_scene_memory_and_disk_are_said_before_it_begins(
    scene_run: Run, wide: Path, tmp_path: Path, voxtile: Command
) -> None:
    common = ["predict", f"run={scene_run.home}", f"input={wide}"]
    said = voxtile(*common, f"output={tmp_path / 'a'}")
    assert said.code == 0
    (words,) = re.findall(
        r"wide: 336 windows; about ([\d,]+) MB of memory, however large the image, and up to [1-9][\d.]* kB of disk", said.out
    )
    assert 100 < int(words.replace(",", "")) < 5_000
    assert "bands" not in said.out
    assert "of memory" not in voxtile(*common[:2], f"input={scene_run.folder}/scenes/images/s1.tif", f"output={tmp_path / 'b'}").out


def test_progress_within_a_case_is_shown_where_there_are_many_windows(
    scene_run: Run, wide: Path, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def start(total: int, title: str, noun: str = "case") -> Callable[[], object]:
        started.append((title, total))
        return lambda: None

    monkeypatch.setattr("voxtile.commands.console.progress", lambda out: nullcontext(start))
    for source in (wide, scene_run.folder / "scenes" / "images" / "s1.tif"):
        assert voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'maps'}").code == 0
    assert started == [("predicting", 1), ("wide", 16), ("predicting", 1)]  # rows of windows: 336 in all, and 9 of s1


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    scene_run: Run, wide: Path, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=192 * 256 * 8 // 3 - 1))
    said = voxtile("predict", f"run={scene_run.home}", f"input={wide}", f"output={tmp_path / 'out'}")
    assert said.code == 3
    assert "Free some disk space, or name another output" in said.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("stored", "off"), [("uint8", 1 / 508 + 1e-6), ("float16", 2**-12)])
def test_small_heatmaps_are_probabilities_when_they_are_read(
    scene_run: Run, tmp_path: Path, voxtile: Command, stored: str, off: float
) -> None:
    rng = np.random.default_rng(3)
    bands = rng.normal(1, 1, (2, 50, 61)).astype(np.float32)
    bands[:, :10, :7] = -9999
    source = scene(tmp_path / "new" / "scene.tif", bands, corner=40, nodata=-9999)
    heat = {}
    for kind in ("true", stored):
        words = [f"run={scene_run.home}", f"input={source}", f"output={tmp_path / kind}", f"heatmaps={kind}"]
        assert voxtile("predict", *words).code == 0
        path = GeoTiffSource([tmp_path / kind / "scene_heatmap.tif"])
        heat[kind], valid = path.read(Window(0, 0, 0, 1, 50, 61), (0, 1))
        assert not valid[0, :10, :7].any()
        assert valid.sum() == 50 * 61 - 70
    assert np.abs(heat[stored] - heat["true"])[:, valid].max() <= off


@pytest.mark.parametrize(
    ("stored", "code", "words"), [("float16", 3, "is for scenes; type 'heatmaps=true'"), ("[1]", 2, "is unknown")]
)
def test_heatmaps_that_a_format_does_not_have_are_refused(
    volume_run: Run, tmp_path: Path, voxtile: Command, stored: str, code: int, words: str
) -> None:
    source = volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"
    said = voxtile("predict", f"run={volume_run.home}", f"input={source}", f"output={tmp_path / 'out'}", f"heatmaps={stored}")
    assert (said.code, words in said.text) == (code, True), said.text
    assert not (tmp_path / "out").exists()


# --- damaged files


def test_a_damaged_tile_is_an_error_or_nodata(scene_run: Run, wide: Path, tmp_path: Path, voxtile: Command) -> None:
    source = tmp_path / "in" / "wide.tif"
    source.parent.mkdir()
    shutil.copy(wide, source)
    with rasterio.open(source) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))  # column, row: pixels x 128 to 191, y 64 to 127
    with source.open("rb+") as file:
        file.seek(start)
        file.write(b"\0" * 1000)
    common = ["predict", f"run={scene_run.home}", f"input={source}"]
    said = voxtile(*common, f"output={tmp_path / 'out'}")
    assert said.code == 3
    assert "tile in row 1, column 2" in said.text
    assert "fetch it again, or type 'damaged=nodata'" in said.text
    assert "data.exclude" not in said.text
    assert "previous exception" not in said.text
    assert not list((tmp_path / "out").glob("*.tif"))
    said = voxtile(*common, f"output={tmp_path / 'out'}", "damaged=nodata")
    assert said.code == 0
    assert "wide: 1 square of 64x64 pixels could not be read and are nodata, the first at x 128, y 64: " in said.text
    assert "tile in row 1, column 2" in said.text
    assert "data.exclude" not in said.text
    assert voxtile("predict", common[1], f"input={wide}", f"output={tmp_path / 'whole'}").code == 0
    found, expected = pixels(tmp_path / "out" / "wide.tif")[0], pixels(tmp_path / "whole" / "wide.tif")[0]
    lost, near = np.zeros(found.shape, bool), np.zeros(found.shape, bool)
    lost[64:128, 128:192] = True
    near[48:144, 112:208] = True  # windows that reach into the tile begin at most 16 pixels before it
    np.testing.assert_array_equal(found == 255, lost)
    np.testing.assert_array_equal(found[~near], expected[~near])


@pytest.mark.parametrize("further", [[], ["share=true"]])
def test_a_map_of_a_file_that_was_read_whole_is_kept_where_damage_is_nodata(
    scene_run: Run, tmp_path: Path, voxtile: Command, further: list[str]
) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    where = ["predict", f"run={scene_run.home}", f"paths.runs={tmp_path}", f"input={source}", f"output={tmp_path / 'maps'}"]
    assert voxtile(*where).code == 0
    with nothing_is_predicted():
        said = voxtile(*where, *further, "damaged=nodata", "quicklook=true")
    assert (said.code, "passed over" in said.text) == (0, False), said.text
    assert (tmp_path / "maps" / "s1_quicklook.png").exists()
    assert voxtile(*where, "damaged=nodata", "overlap=0.5").code == 3  # made with other settings still


def test_of_a_file_that_is_decoded_as_a_whole_nothing_is_left(volume_run: Run, tmp_path: Path, voxtile: Command) -> None:
    (tmp_path / "in").mkdir()
    whole, _ = files = sorted((volume_run.folder / "volumes" / "imagesTr").iterdir())[:2]
    for path in files:
        shutil.copy(path, tmp_path / "in" / path.name)
    cut = tmp_path / "in" / files[1].name
    os.truncate(cut, cut.stat().st_size - 30)
    where = [f"run={volume_run.home}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", f"paths.runs={tmp_path}"]
    said = voxtile("predict", *where, "damaged=nodata")
    assert said.code == 5, said.text
    assert f"{cut}" in said.text
    assert "could not be read and are nodata" not in said.text
    assert [path.name.partition(".")[0] for path in (tmp_path / "out").iterdir()] == [whole.name.partition(".")[0]]


# --- numbers of classes


def test_maps_of_scenes_hold_stored_values_where_asked_for(scene_run: Run, wide: Path, tmp_path: Path, voxtile: Command) -> None:
    home = renumbered(scene_run, tmp_path / "runs")
    common = ["predict", f"run={home}", f"paths.runs={tmp_path}", f"input={wide}", "heatmaps=uint8"]
    made = ["polygons=gpkg", "areas=true", "instances=true", "quicklook=true", "postprocess={largest: [disc], holes: [disc]}"]
    folders = {kind: tmp_path / kind for kind in ("classes", "stored")}
    for kind, folder in folders.items():
        assert voxtile(*common, f"output={folder}", f"values={kind}", *made).code == 0
    (indices, one, named), (stored, other, renamed) = (looked_at(folder / "wide.tif") for folder in folders.values())
    assert set(np.unique(indices)) == {0, 1}
    np.testing.assert_array_equal(stored, np.array([40, 10])[indices])
    assert (named, renamed) == ("0=ground, 1=disc", "40=ground, 10=disc")
    assert [other[40], other[10]] == [one[0], one[1]]
    # What is made of a map is the same, but for the number of the class.
    first, second = (geopandas.read_file(folder / "wide_polygons.gpkg") for folder in folders.values())
    assert (set(first["value"]), set(second["value"])) == ({1}, {10})
    assert first.drop(columns="value").equals(second.drop(columns="value"))
    for name in ("areas.csv", "instances.csv", "instances.tif", "quicklook.png"):
        assert (folders["classes"] / f"wide_{name}").read_bytes() == (folders["stored"] / f"wide_{name}").read_bytes(), name
    heats = [pixels(folder / "wide_heatmap.tif") for folder in folders.values()]
    np.testing.assert_array_equal(*heats)
    # A finished map is taken for one of its own kind only.
    (folders["stored"] / "wide_areas.csv").unlink()
    with nothing_is_predicted():
        said = voxtile(*common, f"output={folders['stored']}", "values=stored", "share=true", *made)
        assert (said.code, "passed over" in said.text) == (0, False)
        assert (folders["stored"] / "wide_areas.csv").read_bytes() == (folders["classes"] / "wide_areas.csv").read_bytes()
        assert voxtile(*common, f"output={folders['stored']}").code == 3


def looked_at(path: Path) -> tuple[np.ndarray, dict[int, tuple[int, ...]], str]:
    """Pixels, colour table and names of the classes of a scene's map."""
    with rasterio.open(path) as found:
        return found.read(1), found.colormap(1), found.tags()["classes"]


def test_stored_values_that_are_the_indices_make_the_same_map(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    common = ["predict", f"run={scene_run.home}", f"paths.runs={tmp_path}", f"input={source}", f"output={tmp_path / 'maps'}"]
    assert voxtile(*common).code == 0
    with nothing_is_predicted():
        assert voxtile(*common, "values=stored").code == 0


def test_maps_of_volumes_hold_stored_values_where_asked_for(volume_run: Run, tmp_path: Path, voxtile: Command) -> None:
    home = renumbered(volume_run, tmp_path / "runs", (5, 4))
    nifti = volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"
    volume = SimpleITK.GetImageFromArray(nibabel.load(nifti).get_fdata().T.astype(np.int16))
    SimpleITK.WriteImage(volume, tmp_path / "v1.mha")
    for source in (nifti, tmp_path / "v1.mha"):
        out = tmp_path / source.suffix
        common = ["predict", f"run={home}", f"paths.runs={tmp_path}", f"input={source}", "itksnap=true"]
        for kind in ("classes", "stored"):
            assert voxtile(*common, f"output={out / kind}", f"values={kind}").code == 0
        indices, stored = (
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(out / kind / source.name)) for kind in ("classes", "stored")
        )
        np.testing.assert_array_equal(stored, np.array([5, 4])[indices])
        rows = (out / "stored" / "v1_itksnap.txt").read_text().splitlines()[2:]
        assert [(row.split()[0], row.split('"')[1]) for row in rows] == [("5", "ground"), ("4", "disc")]
    about = json.loads(nibabel.load(tmp_path / ".gz" / "stored" / "v1.nii.gz").header.extensions[0].get_content())
    assert (about["classes"], about["values"]) == (["ground", "disc"], [5, 4])


def test_maps_of_pictures_hold_stored_values_where_asked_for(slice_run: Run, tmp_path: Path, voxtile: Command) -> None:
    home = renumbered(slice_run, tmp_path / "runs", (7, 3))
    common = ["predict", f"run={home}", f"paths.runs={tmp_path}", f"input={slice_run.folder / 'set' / 'b'}", "instances=true"]
    for kind in ("classes", "stored"):
        assert voxtile(*common, f"output={tmp_path / kind}", f"values={kind}").code == 0
    for path in (tmp_path / "classes" / "b").iterdir():
        with Image.open(path) as indices, Image.open(tmp_path / "stored" / "b" / path.name) as stored:
            np.testing.assert_array_equal(np.asarray(stored), np.array([7, 3])[np.asarray(indices)])
            np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), np.asarray(indices.convert("RGB")))
            assert stored.text["classes"] == "7=ground, 3=disc"
    tables = [(tmp_path / kind / "b_instances.csv").read_bytes() for kind in ("classes", "stored")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("values", [(0, 255), (0, 256), (-1, 1)])
def test_stored_values_that_no_map_can_hold_are_refused(
    scene_run: Run, tmp_path: Path, voxtile: Command, values: tuple[int, int]
) -> None:
    home = renumbered(scene_run, tmp_path / "runs", values)
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    said = voxtile("predict", f"run={home}", f"input={source}", f"output={tmp_path / 'maps'}", "values=stored")
    wrong = next(value for value in values if not 0 <= value < 255)
    assert (said.code, f"has the stored value {wrong} (data.labels). Expected one from 0 to 254" in said.text) == (2, True), (
        said.text
    )


def test_maps_of_labels_in_colours_have_these_and_no_stored_values(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    home = renumbered(scene_run, tmp_path / "runs", ("#102030", "#804080"))
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    common = ("predict", f"run={home}", f"input={source}", f"output={tmp_path / 'maps'}")
    said = voxtile(*common, "values=stored")
    assert (said.code, "these labels hold colours (data.labels)" in said.text) == (2, True), said.text
    assert voxtile(*common).code == 0
    with rasterio.open(tmp_path / "maps" / "s1.tif") as made:
        assert {number: made.colormap(1)[number][:3] for number in (0, 1)} == {0: (16, 32, 48), 1: (128, 64, 128)}


# --- killed, shared, and what is imported


def test_a_command_that_was_killed_ends_in_the_same_bytes(scene_run: Run, wide: Path, tmp_path: Path, voxtile: Command) -> None:
    common = ["predict", f"run={scene_run.home}", f"input={wide}", "heatmaps=uint8"]
    assert voxtile(*common, f"output={tmp_path / 'once'}").code == 0
    out = tmp_path / "killed"
    # In the fifth row of windows, and when the second of two maps is made.
    words, log = [*common, f"output={out}"], tmp_path / "said.txt"
    assert forked([[(words, ("writing", 9), log)], [(words, ("making", 1), log)]]) == ["[-9]", "[-9]"], log.read_text()
    assert sorted(path.name for path in out.glob(".making.*.tif")) == [".making.wide.tif", ".making.wide_heatmap.tif"]
    assert sorted(path.name for path in out.glob("[!.]*")) == sorted(
        f"{name}.tif.{kind}" for name in ("wide", "wide_heatmap") for kind in ("part", "journal")
    )
    assert len(set((out / "wide.tif.journal").read_text().splitlines())) == 1 + 16
    other = shutil.copytree(out, tmp_path / "other")
    with pytest.MonkeyPatch.context() as patch:  # a GPU's strips are wider; here narrower ones are as good
        patch.setattr("voxtile.inference.predictor.WIDEST", 16)
        said = voxtile(*common, f"output={other}")
    assert said.code == 0
    assert "made on another kind of device, in other parts: it begins anew" in said.text
    with nothing_is_predicted():  # everything is judged
        said = voxtile(*common, f"output={out}")
    assert said.code == 0
    assert "wide: continuing, 16 of 16 parts are done" in said.text
    assert sorted(path.name for path in out.iterdir()) == ["wide.tif", "wide_heatmap.tif"]
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "once" / path.name).read_bytes()


@pytest.mark.parametrize("further", [[], ["share=true"]])
def test_nothing_stays_beside_a_map_whose_command_was_killed_when_it_had_its_name(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch, further: list[str]
) -> None:
    source, out = scene_run.folder / "scenes" / "images" / "s1.tif", tmp_path / "out"
    words = ["predict", f"run={scene_run.home}", f"input={source}", f"output={out}", "heatmaps=true"]

    def killed(writer: MapWriter) -> None:
        if writer.path.name == "s1.tif":  # the last one
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MapWriter, "discard", killed)
        assert voxtile(*words).code == 130
    assert len(list(out.glob("*.part"))) == 2
    with nothing_is_predicted():
        assert voxtile(*words, *further).code == 0
    assert sorted(path.name for path in out.iterdir()) == ["s1.tif", "s1_heatmap.tif"]


def test_many_objects_are_said_before_they_are_written(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", f"run={scene_run.home}", f"input={scene_run.folder / 'scenes' / 'images' / 's1.tif'}"]
    words += ["polygons=gpkg", "object_classes=[ground,disc]"]
    assert "objects, which" not in voxtile(*words, f"output={tmp_path / 'few'}").text
    monkeypatch.setattr("voxtile.commands.results.MANY", 0)
    said = voxtile(*words, f"output={tmp_path / 'many'}", "min_pixels=2").text
    assert re.search(
        r"s1: \d+ objects, which take long to write; \d+ of them have fewer than 20 pixels, and 'min_pixels=20' ", said
    )
    assert said.index("objects, which") < said.index("s1_polygons.gpkg")


def test_results_of_a_command_that_was_killed_are_made_by_the_same_command(
    scene_run: Run, tmp_path: Path, voxtile: Command
) -> None:
    images, out, log = scene_run.folder / "scenes" / "images", tmp_path / "out", tmp_path / "said.txt"
    words = ["predict", f"run={scene_run.home}", f"input={images / 's1.tif'}", f"output={out}", "instances=true", "areas=true"]
    assert forked([[(words, ("areas", 0), log)]]) == ["[-9]"], log.read_text()
    half = ["s1.tif", "s1.tif.results", "s1_instances.csv", "s1_instances.tif"]
    assert sorted(path.name for path in out.iterdir()) == half
    before = (out / "s1_instances.csv").stat()
    said = voxtile(*words, "min_pixels=3")  # other objects than those that are there
    assert said.code == 3
    assert "s1_instances" in said.text
    assert sorted(path.name for path in out.iterdir()) == half
    with nothing_is_predicted():
        assert voxtile(*words).code == 0
    assert sorted(path.name for path in out.iterdir()) == sorted([*half, "s1_areas.csv"])
    assert (out / "s1_instances.csv").stat() == before


def test_a_process_that_shares_a_folder_makes_the_results_that_a_killed_one_has_left(
    scene_run: Run, tmp_path: Path, voxtile: Command
) -> None:
    images, out = scene_run.folder / "scenes" / "images", tmp_path / "out"
    words = ["predict", f"run={scene_run.home}", f"input={images / 's1.tif'}", f"output={out}"]
    assert voxtile(*words).code == 0
    assert voxtile(*words, "areas=true", "share=true").code == 0
    assert sorted(path.name for path in out.iterdir()) == ["s1.tif", "s1.tif.results", "s1_areas.csv"]


@pytest.mark.parametrize("other", ["image", "settings", "run", "table", "heatmap", "somebody's"])
def test_shared_work_does_not_take_what_was_made_otherwise_for_its_own(
    copied_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    source, out = tmp_path / "in" / "s1.tif", tmp_path / "out"
    source.parent.mkdir()
    shutil.copy2(copied_run.folder / "scenes" / "images" / "s1.tif", source)
    words = [
        "predict",
        f"run={copied_run.home}",
        f"input={source}",
        f"output={out}",
        "instances=true",
        "heatmaps=true",
        "share=true",
    ]
    assert voxtile(*words).code == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    changed = {"settings": ["overlap=0.5"], "table": ["min_pixels=3"], "heatmap": ["heatmaps=uint8"]}.get(other, [])
    if other == "image":
        shutil.copy2(copied_run.folder / "scenes" / "images" / "s2.tif", source)
    elif other == "run":
        (copied_run.home / "recipe.json").write_text(json.dumps(copied_run.read("recipe.json") | {"identity": "0" * 32}))
    elif other == "somebody's":
        (out / "s1.tif").write_bytes(b"a map")
        before[out / "s1.tif"] = b"a map"
    name = {"table": "s1_instances.tif", "heatmap": "s1_heatmap.tif"}.get(other, "s1.tif")
    monkeypatch.setattr("voxtile.commands.predicting.survey", None)  # many processes ask this of many images, so none is read
    said = voxtile(*words, *changed)
    assert said.code == 0, said.text
    assert f"{out / name} {'is not noted as made' if other == 'table' else 'was made of another image'}" in said.text
    assert said.text.count("it is passed over") == 1
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_finished_inputs_of_shared_work_are_passed_over_without_a_word_or_a_look(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = scene_run.folder / "scenes" / "images"
    words = ["predict", f"run={scene_run.home}", f"input={images}", f"output={tmp_path / 'out'}", "areas=true", "share=true"]
    assert voxtile(*words).code == 0
    monkeypatch.setattr("voxtile.commands.predicting.survey", None)
    said = voxtile(*words)
    assert (said.code, str(tmp_path) in said.text, "passed over" in said.text) == (0, False, False), said.text


def test_a_map_without_a_stamp_is_compared_by_what_it_was_made_from(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = scene_run.folder / "scenes" / "images" / "s1.tif", tmp_path / "out"
    words = ["predict", f"run={scene_run.home}", f"input={source}", f"output={out}", "share=true"]
    with monkeypatch.context() as patch:
        patch.setattr("voxtile.commands.outputs.STAMP", "another tag")  # as an earlier version wrote it
        assert voxtile(*words).code == 0
    said = voxtile(*words)
    assert (said.code, "passed over" in said.text) == (0, False), said.text
    said = voxtile(*words, "overlap=0.5")
    assert (said.code, "s1.tif was made of another image" in said.text, "passed over" in said.text) == (0, True, True), said.text


def test_shared_work_is_not_told_to_type_what_it_refuses(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    words = ["predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'out'}", "share=true"]
    assert voxtile(*words).code == 0
    said = voxtile(*words, "heatmaps=true")
    assert (said.code, "type 'overwrite=true' in the place of 'share=true'" in said.text) == (3, True), said.text


def test_processes_that_share_a_folder_make_every_map_once(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    images, out = scene_run.folder / "scenes" / "images", tmp_path / "out"
    assert voxtile("predict", f"run={scene_run.home}", f"input={images / 's3.tif'}", f"output={out}").code == 0
    before = (out / "s3.tif").stat().st_ino
    words = ["predict", f"run={scene_run.home}", f"input={images}", f"output={out}", "share=true"]
    logs = [tmp_path / f"{number}.txt" for number in range(2)]
    assert forked([[(words, None, log) for log in logs]]) == ["[0, 0]"]
    said = [log.read_text() for log in logs]
    made = sorted(line for text in said for line in text.splitlines() if line.startswith(str(out)))
    assert made == [str(out / f"s{number}.tif") for number in range(6) if number != 3]
    assert sorted(path.name for path in out.iterdir()) == [f"s{number}.tif" for number in range(6)]
    assert (out / "s3.tif").stat().st_ino == before


def test_a_map_that_another_process_finished_in_the_meantime_is_not_made_again(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*args, **settings):
        (tmp_path / "s1.tif").write_text("of another process")
        return survey(*args, **settings)

    monkeypatch.setattr("voxtile.commands.predicting.survey", meanwhile)
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    said = voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path}", "share=true", "quicklook=true")
    assert said.code == 0
    assert f"{tmp_path / 's1.tif'} was made of another image" in said.text
    assert "it is passed over" in said.text
    assert [path.name for path in tmp_path.glob("*s1*")] == ["s1.tif"]
    assert (tmp_path / "s1.tif").read_text() == "of another process"


def test_a_map_that_another_process_is_writing_is_left_to_it(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    common = ["predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path}"]
    with GeoTiffSource([source]).open_map(tmp_path / "s1.tif", MapSpec(("a", "b"))):
        said = voxtile(*common)
        assert (said.code, "is being written by another process" in said.text) == (3, True)
        said = voxtile(*common, "share=true")
        assert (said.code, "left to other processes, which are making these maps: s1" in said.text) == (0, True)
    assert voxtile(*common, "share=true", "overwrite=true").code == 2
    assert voxtile(*common, "share=true").code == 0


def test_predicting_imports_neither_lightning_nor_torchvision(scene_run: Run, tmp_path: Path) -> None:
    """Together they take 250 MB of memory, which predicting does not need."""
    program = """
import sys
from voxtile.commands.main import main
code = main()
print("imported:", sorted({"lightning", "pytorch_lightning", "torchvision", "torchmetrics", "geopandas"} & set(sys.modules)))
sys.exit(code)
"""
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    words = ["predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path}", "heatmaps=true"]
    run = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert "imported: []" in run.stdout


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mirrors=[z,q]", "'mirrors=[z,q]' must be a list of axes among"),
        ("rotations=true", "'rotations=True' must be a whole number from 1 up"),
        ("batch_size=true", "'batch_size=True' must be a whole number from 1 up"),
        ("window=[true,true]", "must be 2 whole numbers of pixels from 1 up"),
        ("overlap=false", "'overlap=False' is the share of a window's side"),
        ("mirrors=x", "must be a list of axes among"),
        ("halo=-1", "'halo=-1' must be a number of pixels from 0 up, or 'field'"),
        ("share=maybe", "'share=maybe' must be true or false"),
        ("damaged=ignore", "choose from error, nodata"),
    ],
)
def test_settings_out_of_range_are_refused(scene_run: Run, tmp_path: Path, voxtile: Command, word: str, message: str) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    said = voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'out'}", word)
    assert (said.code, message in said.text) == (2, True), said.text
    assert not (tmp_path / "out").exists()


def test_a_halo_from_the_field_and_mirrored_copies_are_one_command_away(
    scene_run: Run, wide: Path, tmp_path: Path, voxtile: Command
):
    heat = {}
    for name, words in {"plain": [], "both": ["halo=field", "mirrors=[y,x]", "batch_size=8"]}.items():
        common = [f"run={scene_run.home}", f"input={wide}", f"output={tmp_path / name}", "heatmaps=true"]
        assert voxtile("predict", *common, *words).code == 0
        heat[name] = pixels(tmp_path / name / "wide_heatmap.tif")
    np.testing.assert_allclose(heat["both"].sum(axis=0), 1, atol=1e-5)
    assert np.abs(heat["both"] - heat["plain"]).max() > 1e-3


def test_inputs_that_are_no_files_are_said_and_not_waited_for(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    images, folder = scene_run.folder / "scenes" / "images", tmp_path / "in"
    folder.mkdir()
    shutil.copy(images / "s1.tif", folder)
    os.mkfifo(folder / "s2.tif")
    words = ["predict", f"run={scene_run.home}", f"output={tmp_path / 'out'}"]
    said = voxtile(*words, f"input={folder / '*.tif'}")
    assert (said.code, "and 'input' takes no patterns. Name the folder that holds the files" in said.text) == (3, True), said.text
    said = voxtile(*words, f"input={folder / 's2.tif'}")
    assert (said.code, "s2.tif is neither a file nor a folder" in said.text) == (3, True), said.text
    said = voxtile(*words, f"input={folder}")
    assert (said.code, "s2.tif (no regular file)" in said.text) == (0, True), said.text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s1.tif"]
    (tmp_path / "images").mkdir()  # where the run's own patterns find them
    for path in folder.iterdir():
        path.rename(tmp_path / "images" / path.name)
    said = voxtile(*words, f"input={tmp_path / 'images'}", "overwrite=true")
    assert (said.code, "data set looks for: s2.tif" in said.text) == (0, True), said.text


def test_a_folder_that_looks_like_a_file_is_one_with_a_slash(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    words = ["predict", f"run={scene_run.home}", f"input={source}"]
    said = voxtile(*words, f"output={tmp_path / 'maps.v2'}")
    assert (said.code, f"a slash behind it: output={tmp_path}/maps.v2/" in said.text) == (3, True), said.text
    assert voxtile(*words, f"output={tmp_path / 'maps.v2'}/").code == 0
    assert (tmp_path / "maps.v2" / "s1.tif").is_file()


def test_inputs_whose_files_would_have_one_name_are_refused(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    images = scene_run.folder / "scenes" / "images"
    (tmp_path / "in").mkdir()
    shutil.copy(images / "s1.tif", tmp_path / "in" / "a.tif")
    shutil.copy(images / "s2.tif", tmp_path / "in" / "a_heatmap.tif")
    words = ["predict", f"run={scene_run.home}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "overwrite=true"]
    said = voxtile(*words, "heatmaps=true")
    assert said.code == 3
    assert f"{tmp_path / 'out' / 'a_heatmap.tif'} would be the map of 'a_heatmap' and of 'a' the heatmap" in said.text
    assert not (tmp_path / "out").exists()
    assert voxtile(*words).code == 0


def test_a_scene_that_is_written_to_while_it_is_predicted_has_no_map_of_both(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = scene(tmp_path / "new" / "scene.tif", np.ones((2, 80, 80), np.float32)), tmp_path / "maps"
    inner = MapWriter.write

    def overwritten(self: MapWriter, window: Window, array: np.ndarray) -> None:
        inner(self, window, array)
        with rasterio.open(source, "r+") as out:
            out.write(out.read() + 1)

    with monkeypatch.context() as patch:
        patch.setattr(MapWriter, "write", overwritten)
        said = voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={target}")
    assert said.code == 3
    assert "scene.tif changed while it was predicted" in said.text
    assert not list(target.iterdir())
    assert voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={target}").code == 0
