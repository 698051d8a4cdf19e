"""voxtile predict: maps in the input's own format and geometry."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio
from PIL import Image

from tests.commands.conftest import Command, Run, homes
from tests.testers.tiny import SMALL, blob, configured, scene, scene_words


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
    files = sorted((tmp_path / "one" / "b").iterdir())
    assert sorted(path.name for path in files) == ["b_1.png", "b_10.png", "b_2.png"]
    for path in files:
        with Image.open(path) as found, Image.open(tmp_path / "all" / "b" / path.name) as same:
            assert found.size == (20, 24)
            assert set(np.unique(np.asarray(found))) <= {0, 1}
            np.testing.assert_array_equal(np.asarray(found), np.asarray(same))


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
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    source = tmp_path / "scenes" / "images" / "s0.tif"
    said = voxtile("predict", f"run={home}", f"input={source}", f"output={tmp_path / 'out'}")
    assert said.code == 0
    assert "look number 1 at this test split, recorded" in said.text


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
    assert "left out, since the run's name patterns for images do not find them: label.tif" in said.text
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["a.tif"]


def test_an_older_heatmap_beside_a_new_map_is_said(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    common = [
        "predict",
        f"run={scene_run.home}",
        f"input={scene_run.folder}/scenes/images/s1.tif",
        f"output={tmp_path / 'my map (1)'}",
    ]
    assert voxtile(*common, "heatmaps=true").code == 0
    assert "s1_heatmap.tif is of an earlier command" in voxtile(*common, "overwrite=true").text


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


def test_where_nothing_can_be_predicted_that_is_said(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.tif", "b.tif"):
        (tmp_path / "in" / name).write_bytes(b"II*\0 no raster")
    said = voxtile("predict", f"run={scene_run.home}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}")
    assert said.code == 3
    assert "None of the 2 inputs" in said.text


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
