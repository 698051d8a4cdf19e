"""voxtile predict and evaluate: what is made of a finished map, as a user asks for it."""

import csv
import errno
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from unittest.mock import Mock

import geopandas
import nibabel
import numpy as np
import pytest
import rasterio
import rasterio.features
from affine import Affine
from omegaconf import OmegaConf
from scipy import ndimage

from tests.commands.conftest import Command, Run
from tests.testers.composing import ROOT
from tests.testers.formats import file_size_limit
from tests.testers.maps import written
from tests.testers.predicting import nothing_is_predicted
from voxtile.cases import atomic, maps, vector_files
from voxtile.commands import evaluated, results
from voxtile.scores.objects import object_scores, summarise_objects

ALL = ["polygons=gpkg", "instances=true", "areas=true", "quicklook=true"]


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def source(scene_run: Run) -> Path:
    return scene_run.folder / "scenes" / "images" / "s1.tif"


def test_everything_is_made_of_the_same_map(copied_run: Run, source: Path, tmp_path: Path, voxtile: Command) -> None:
    where = [f"run={copied_run.home}", f"paths.runs={tmp_path}"]
    assert voxtile("evaluate", *where).code == 0
    said = voxtile("predict", *where, f"input={source}", f"output={tmp_path / 'maps'}", "heatmaps=true", *ALL)
    assert said.code == 0
    names = [
        "s1.tif",
        "s1.tif.results",
        "s1_areas.csv",
        "s1_heatmap.tif",
        "s1_instances.csv",
        "s1_instances.tif",
        "s1_polygons.gpkg",
        "s1_quicklook.png",
    ]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == names
    assert all(str(tmp_path / "maps" / name) in said.text for name in names if name != "s1.tif.results")
    with rasterio.open(tmp_path / "maps" / "s1.tif") as found, rasterio.open(tmp_path / "maps" / "s1_instances.tif") as ids:
        indices = found.read(1)
        np.testing.assert_array_equal(ids.read(1), ndimage.label(indices == 1, np.ones((3, 3)))[0])
        polygons = geopandas.read_file(tmp_path / "maps" / "s1_polygons.gpkg")
        assert polygons.crs == found.crs
        burnt = rasterio.features.rasterize(polygons.geometry, indices.shape, transform=found.transform)
        np.testing.assert_array_equal(burnt, indices)
    assert set(polygons.columns) == {"class", "value", "area_ha", "probability", "geometry"}
    assert polygons["probability"].between(0.5, 1).all()
    (row,) = table(tmp_path / "maps" / "s1_areas.csv")
    assert row["case"] == "s1"
    assert float(row["hectares/disc"]) == pytest.approx(polygons["area_ha"].sum(), rel=1e-6)
    assert "evaluations/val-best" in row["adjusted_by"]
    assert "which whole validation cases are not" in said.text
    another = shutil.copytree(copied_run.home, tmp_path / "another")
    (another / "recipe.json").write_text(json.dumps(copied_run.read("recipe.json") | {"identity": "0" * 32}))
    several = [f"runs=[{copied_run.home},{another}]", *where[1:]]
    for number, words in enumerate(([*where, "overlap=0.5"], several)):  # other settings, other weights
        said = voxtile("predict", *words, f"input={source}", f"output={tmp_path / f'others{number}'}", "areas=true")
        assert (said.code, said.text.count("no evaluation with these runs, weights and settings")) == (0, 1)
        which = f"run={copied_run.home} overlap=0.5" if number == 0 else f"'{several[0]}' weights=best split=test"
        assert f"type first: voxtile evaluate {which}" in said.text
    assert voxtile("evaluate", *several, "split=test", "weights=best").code == 0
    assert voxtile("predict", *several, f"input={source}", f"output={tmp_path / 'together'}", "areas=true").code == 0
    (row,) = table(tmp_path / "together" / "s1_areas.csv")
    assert row["adjusted_by"].count("discs-2runs-") == row["adjusted_by"].count("/test-best") == 1


def test_hectares_of_places_need_no_evaluation(copied_run: Run, source: Path, tmp_path: Path, voxtile: Command) -> None:
    with rasterio.open(source) as image:
        left, bottom, right, top = image.bounds
        shapes = geopandas.GeoSeries.from_xy([(left + right) / 2], [(bottom + top) / 2], crs=image.crs).buffer(100)
    frame = geopandas.GeoDataFrame({"name": ["middle"]}, geometry=shapes)
    places = tmp_path / "places (1).geojson"
    frame.to_crs("EPSG:4326").to_file(places)
    for layer in ("roads", "districts"):
        frame.assign(name=layer).to_file(tmp_path / "both.gpkg", layer=layer)
    where = [f"run={copied_run.home}", f"paths.runs={tmp_path}", f"input={source}", f"output={tmp_path / 'maps'}"]
    said = voxtile("predict", *where, f"areas={places}", "area_name=name")
    assert said.code == 0
    assert "no evaluation with these runs, weights and settings" in said.text
    rows = table(tmp_path / "maps" / "s1_areas.csv")
    assert [row["area"] for row in rows] == ["(all)", "middle"]
    many = [*where[:3], f"output={tmp_path / 'many'}", f"areas={tmp_path / 'both.gpkg'}", "area_name=name"]
    for words, wrong in (
        ([], "has several layers: roads, districts. Type which one is meant: 'areas_layer=roads'"),
        (["areas_layer=district"], "has no layer 'district' ('areas_layer'); it has roads, districts"),
    ):
        said = voxtile("predict", *many, *words)
        assert (said.code, wrong in said.text) == (3, True), said.text
    assert voxtile("predict", *many, "areas_layer=districts").code == 0
    assert [row["area"] for row in table(tmp_path / "many" / "s1_areas.csv")] == ["(all)", "districts"]
    assert "areas.csv exists already" in voxtile("predict", *many, "areas_layer=roads").text
    before = places.rename(tmp_path / "maps" / "s1_polygons.geojson").read_bytes()
    own = [f"areas={tmp_path / 'maps' / 's1_polygons.geojson'}", "polygons=geojson", "overwrite=true"]
    said = voxtile("predict", *where, *own)
    assert said.code == 3
    assert "s1_polygons.geojson would overwrite its own input" in said.text
    assert (tmp_path / "maps" / "s1_polygons.geojson").read_bytes() == before
    assert float(rows[1]["hectares"]) == pytest.approx(np.pi, rel=0.02)
    assert "adjusted_by" not in rows[0]


def test_places_are_read_once_and_scenes_without_one_are_left_out_together(
    scene_run: Run, source: Path, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scenes").mkdir()
    with rasterio.open(source) as image:
        pixels, crs, transform = image.read(), image.crs, image.transform
        shapes = geopandas.GeoSeries.from_xy([image.bounds.left], [image.bounds.top], crs=crs).buffer(100)
    shapes.to_file(tmp_path / "places.gpkg")
    for number in range(3):
        moved = transform @ transform.translation(0, 1000 * number)
        written(tmp_path / "scenes" / f"s{number}.tif", pixels, crs, moved)
    reads = []
    monkeypatch.setattr(
        vector_files, "read_areas", lambda *given, read=vector_files.read_areas: reads.append(given) or read(*given)
    )
    where = [f"run={scene_run.home}", f"paths.runs={tmp_path}", f"areas={tmp_path / 'places.gpkg'}"]
    said = voxtile("predict", *where, f"input={tmp_path / 'scenes'}", f"output={tmp_path / 'maps'}")
    assert said.code == 0
    assert said.text.count("left out, since no polygon of") == 1
    assert "places.gpkg overlaps them: s1, s2" in said.text
    assert "skipped" not in said.text
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["s0.tif", "s0.tif.results", "s0_areas.csv"]
    assert len(reads) == 1
    (tmp_path / "scenes" / "s0.tif").unlink()
    said = voxtile("predict", *where, f"input={tmp_path / 'scenes'}", f"output={tmp_path / 'others'}")
    assert said.code == 3
    assert "overlaps any of the 2 inputs" in said.text
    assert not (tmp_path / "others").exists()


def test_a_volume_has_objects_and_a_picture(volume_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"
    where = [f"run={volume_run.home}", f"paths.runs={tmp_path}", f"input={source}", f"output={tmp_path / 'maps'}"]
    assert voxtile("predict", *where, "instances=true", "quicklook=true", "heatmaps=true", "itksnap=true").code == 0
    rows = [line.split(maxsplit=7) for line in (tmp_path / "maps" / "v1_itksnap.txt").read_text().splitlines() if line[0] != "#"]
    assert [(row[0], row[4:7], row[7]) for row in rows] == [("0", ["0"] * 3, '"ground"'), ("1", ["1"] * 3, '"disc"')]
    found, ids = (nibabel.load(tmp_path / "maps" / f"v1{name}.nii.gz") for name in ("", "_instances"))
    np.testing.assert_array_equal(np.asarray(ids.dataobj) > 0, np.asarray(found.dataobj) == 1)
    np.testing.assert_array_equal(ids.affine, found.affine)
    rows = table(tmp_path / "maps" / "v1_instances.csv")
    assert len(rows) == ndimage.label(np.asarray(found.dataobj) == 1, np.ones((3, 3, 3)))[1]
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    said = voxtile("predict", *where, "overwrite=true", "polygons=gpkg")
    assert said.code == 2
    assert "'polygons=gpkg' needs scenes on the ground" in said.text


def test_results_that_exist_are_replaced_only_when_told(scene_run: Run, source: Path, tmp_path: Path, voxtile: Command) -> None:
    (tmp_path / "s1_areas.csv").write_text("somebody's")
    where = [f"run={scene_run.home}", f"paths.runs={tmp_path}", f"input={source}", f"output={tmp_path}", "areas=true"]
    said = voxtile("predict", *where)
    assert said.code == 3
    assert "s1_areas.csv exists already" in said.text
    assert not (tmp_path / "s1.tif").exists()
    assert voxtile("predict", *where, "overwrite=true").code == 0
    assert (tmp_path / "s1_areas.csv").read_text().startswith("case,area,")


def test_of_results_that_are_not_asked_for_only_noted_ones_are_forgotten(tmp_path: Path) -> None:
    asked = {field.name: None for field in fields(results.Results)} | {"areas": True}
    names = ["s1_polygons.geojson", "s1_instances.csv", "s1_quicklook.png", "s1_areas.csv", "s1.tif.results"]
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / "s1.tif.results").write_text(
        "".join(json.dumps({"result": name, "made_from": "1"}) + "\n" for name in ("s1_instances.csv", "s1_quicklook.png"))
    )
    results.Results(**asked).forget(tmp_path / "s1.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["s1_polygons.geojson"]


@pytest.fixture
def finished(scene_run: Run, source: Path, tmp_path: Path, voxtile: Command) -> list[str]:
    """The words of a command whose map, and heatmaps, are there."""
    where = ["predict", f"run={scene_run.home}", f"paths.runs={tmp_path}", f"input={source}", f"output={tmp_path / 'maps'}"]
    assert voxtile(*where, "heatmaps=true").code == 0
    return where


def test_results_are_added_to_a_finished_map(finished: list[str], tmp_path: Path, voxtile: Command) -> None:
    once = [*finished[:-1], f"output={tmp_path / 'once'}", "heatmaps=true", *ALL]
    assert voxtile(*once).code == 0
    with nothing_is_predicted():
        for word in ALL:
            said = voxtile(*finished, "heatmaps=true", word)
            assert said.code == 0, said
            assert "s1.tif is finished and was made by the same runs with the same settings" in said.text
    there = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == there
    for name in there:
        if name.endswith((".csv", ".png", ".tif")):
            assert (tmp_path / "maps" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    for words, name in (
        (["instances=true"], "s1_instances.tif"),
        (["heatmaps=true", "polygons=gpkg", "simplify=5"], "s1_polygons.gpkg"),
    ):
        said = voxtile(*finished, *words)
        assert said.code == 3
        assert f"{name} exists already" in said.text
        assert "move the file away" in said.text
    assert voxtile(*finished, "areas=true", "simplify=null").code == 0  # neither heatmaps nor corners change hectares


def test_a_command_whose_map_is_finished_has_nothing_to_do(finished: list[str], voxtile: Command) -> None:
    with nothing_is_predicted():
        assert voxtile(*finished).code == 0


def test_the_same_command_makes_only_what_a_folder_lacks(scene_run: Run, source: Path, tmp_path: Path, voxtile: Command) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        shutil.copy2(source.with_name(f"s{number}.tif"), tmp_path / "in")
    out = tmp_path / "maps"
    words = ["predict", f"run={scene_run.home}", f"paths.runs={tmp_path}", f"input={tmp_path / 'in'}", f"output={out}"]
    words += ["heatmaps=uint8", "polygons=gpkg", "simplify=10", "instances=true", "areas=true", "quicklook=true"]
    assert voxtile(*words).code == 0
    lost = [*out.glob("s2*"), out / "s1_areas.csv"]
    for path in lost:
        path.unlink()
    with (out / "s0.tif.results").open("a") as notes:
        notes.write('{"result": "s0_ar')  # as a power cut leaves a line
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    said = voxtile(*words)
    assert said.code == 0, said.text
    assert sorted(lost) == sorted(set(out.iterdir()) - set(before))
    assert {path: path.stat().st_mtime_ns for path in before if path.name != "s1.tif.results"} == {
        path: at for path, at in before.items() if path.name != "s1.tif.results"
    }
    with nothing_is_predicted():
        assert voxtile(*words).code == 0
        (out / "s0_areas.csv").unlink()
        assert voxtile(*words).code == 0
        assert voxtile(*words).code == 0  # the line after the torn one is read
        (out / "s0.tif.results").unlink()  # the results may now be anybody's
        said = voxtile(*words)
    assert (said.code, "skipped s0" in said.text, "skipped s1" in said.text) == (5, True, False)
    assert "s0_polygons.gpkg exists already, and s0.tif.results beside it does not say" in said.text


def test_areas_are_not_kept_where_the_run_was_evaluated_since(
    copied_run: Run, source: Path, tmp_path: Path, voxtile: Command
) -> None:
    where = [f"run={copied_run.home}", f"paths.runs={tmp_path}"]
    words = ["predict", *where, f"input={source}", f"output={tmp_path / 'maps'}", "areas=true"]
    assert voxtile(*words).code == 0
    assert voxtile("evaluate", *where).code == 0
    said = voxtile(*words)
    areas = tmp_path / "maps" / "s1_areas.csv"
    assert (said.code, f"{areas} was made of this map before evaluations/val-best was there" in said.text) == (3, True)
    assert f"Type 'rm {areas}'" in said.text
    (tmp_path / "maps" / "s1_areas.csv").unlink()
    assert voxtile(*words).code == 0
    assert "adjusted_by" in table(tmp_path / "maps" / "s1_areas.csv")[0]
    assert voxtile("evaluate", *where, "split=test").code == 0
    said = voxtile(*words)
    assert "does not say that it was made of this map with these settings, adjusted by evaluations/test-best" in said.text


def test_a_map_made_otherwise_is_not_taken_for_this_one(
    finished: list[str], scene_run: Run, tmp_path: Path, voxtile: Command
) -> None:
    map_before = (tmp_path / "maps" / "s1.tif").read_bytes()
    shutil.copy(scene_run.folder / "scenes" / "images" / "s2.tif", tmp_path / "s1.tif")
    for words in ([*finished, "overlap=0.5"], [*finished[:3], f"input={tmp_path / 's1.tif'}", finished[4]]):
        said = voxtile(*words, "areas=true")
        assert said.code == 3
        assert "s1.tif exists already, and was made of another image, by other runs or weights, or with other settings" in said.text
    assert voxtile(*finished, "areas=true", "heatmaps=uint8").code == 3
    assert [path.name for path in sorted((tmp_path / "maps").iterdir())] == ["s1.tif", "s1_heatmap.tif"]
    assert (tmp_path / "maps" / "s1.tif").read_bytes() == map_before
    assert voxtile(*finished, "areas=true", "overlap=0.5", "overwrite=true").code == 0
    assert (tmp_path / "maps" / "s1.tif").read_bytes() != map_before


def test_a_map_is_not_kept_where_its_image_has_moved(finished: list[str], tmp_path: Path, source: Path, voxtile: Command) -> None:
    moved = tmp_path / "moved" / "s1.tif"
    moved.parent.mkdir()
    shutil.copy2(source, moved)
    words = [*finished[:3], f"input={moved}", f"output={tmp_path / 'other'}", "areas=true"]
    assert voxtile(*words).code == 0
    with rasterio.open(moved, "r+") as dataset:
        dataset.transform = dataset.transform @ Affine.translation(5, 0)
    said = voxtile(*words, "share=true", "quicklook=true")
    assert said.code == 0
    assert "was made of another image, by other runs or weights, or with other settings: it is passed over" in said.text
    assert not (tmp_path / "other" / "s1_quicklook.png").exists()


def test_no_result_of_an_earlier_map_stands_beside_a_new_one(
    finished: list[str], tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert voxtile(*finished, "areas=true", "quicklook=true", "polygons=geojson").code == 0
    own = tmp_path / "maps" / "s1_polygons.geojson"  # this command's own input stays
    assert voxtile(*finished, "overlap=0.5", "overwrite=true", f"areas={own}", "polygons=gpkg").code == 0
    there = sorted(path.name for path in (tmp_path / "maps").iterdir() if path.name.startswith("s1"))
    assert there == ["s1.tif", "s1.tif.results", "s1_areas.csv", "s1_heatmap.tif", "s1_polygons.geojson", "s1_polygons.gpkg"]


def test_probabilities_are_not_made_of_a_map(finished: list[str], tmp_path: Path, voxtile: Command) -> None:
    (tmp_path / "maps" / "s1_heatmap.tif").unlink()
    said = voxtile(*finished, "heatmaps=true", "polygons=gpkg")
    assert said.code == 3
    assert "s1_heatmap.tif is not there: it holds probabilities" in said.text
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["s1.tif"]


def test_the_millilitres_of_a_volume(volume_run: Run, scene_run: Run, source: Path, tmp_path: Path, voxtile: Command) -> None:
    image = volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"
    where = [f"run={volume_run.home}", f"paths.runs={tmp_path}", f"input={image}", f"output={tmp_path / 'maps'}"]
    assert voxtile("predict", *where, "volumes=true", "values=stored").code == 0
    (row,) = table(tmp_path / "maps" / "v1_volumes.csv")
    voxels = int((np.asarray(nibabel.load(tmp_path / "maps" / "v1.nii.gz").dataobj) == 1).sum())
    assert (row["case"], row["structure"], int(row["voxels"])) == ("v1", "disc", voxels)
    assert float(row["millilitres"]) == pytest.approx(voxels * 1.5 * 1.5 * 3 / 1000, rel=1e-5)
    said = voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'scenes'}", "volumes=true")
    assert said.code == 2
    assert "'areas=true' lists hectares" in said.text


def test_results_are_added_to_the_map_of_a_volume(volume_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"
    where = ["predict", f"run={volume_run.home}", f"paths.runs={tmp_path}", f"input={source}", f"output={tmp_path / 'maps'}"]
    assert voxtile(*where, "heatmaps=true").code == 0
    with nothing_is_predicted():
        assert voxtile(*where, "heatmaps=true", "instances=true").code == 0
    assert (tmp_path / "maps" / "v1_instances.csv").exists()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("instances=true", "v1_instances.csv exists already"), ("postprocess={smallest: {disc: 9}}", "with other settings")],
)
def test_what_counts_voxels_of_a_tilted_scan_is_not_kept_of_versions_that_took_them_for_upright(
    volume_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch, wanted: str, expected: str
) -> None:
    image = nibabel.load(volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz")
    affine = image.affine.copy()
    affine[1, 2] = 0.5 * affine[2, 2]
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), tmp_path / "v1.nii.gz")
    words = ["predict", f"run={volume_run.home}", f"paths.runs={tmp_path}", f"input={tmp_path / 'v1.nii.gz'}", wanted]
    words.append(f"output={tmp_path / 'maps'}")
    with monkeypatch.context() as before:
        before.setattr("voxtile.commands.results.is_tilted", lambda case: False)
        assert voxtile(*words).code == 0
    said = voxtile(*words)
    assert said.code == 3
    assert expected in said.text


def test_what_results_a_full_disk_has_stopped_are_made_by_the_same_command(
    finished: list[str], tmp_path: Path, voxtile: Command
) -> None:
    words = [*finished, "instances=true", "polygons=gpkg"]
    with file_size_limit(60_000):  # no room for an empty GeoPackage
        said = voxtile(*words)
    assert (said.code, said.text.count("could not be written")) == (3, 1)
    assert [path.name for path in sorted((tmp_path / "maps").iterdir())] == ["s1.tif", "s1_heatmap.tif"]
    assert voxtile(*words).code == 0
    assert (tmp_path / "maps" / "s1_polygons.gpkg").exists()


def test_nothing_is_left_of_results_that_a_killed_command_was_making(
    finished: list[str], tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*finished, "instances=true", "polygons=gpkg"]
    with monkeypatch.context() as patch:  # as where it is killed
        patch.setattr(atomic, "publish", Mock(side_effect=KeyboardInterrupt))
        patch.setattr(atomic, "remove", lambda path: None)
        assert voxtile(*words).code == 130
    left = [path.name for path in (tmp_path / "maps").glob(".*")]
    assert len(left) == 1
    assert voxtile(*finished, "areas=true").code == 0
    assert not list((tmp_path / "maps").glob(".*"))
    assert voxtile(*words).code == 0


def test_nothing_is_left_of_a_heatmap_that_is_not_wanted_any_more(
    scene_run: Run, source: Path, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", f"run={scene_run.home}", f"paths.runs={tmp_path}", f"input={source}", f"output={tmp_path / 'maps'}"]
    with monkeypatch.context() as patch:
        patch.setattr(maps.MapWriter, "write", Mock(side_effect=KeyboardInterrupt))
        assert voxtile(*words, "heatmaps=true").code == 130
    assert (tmp_path / "maps" / "s1_heatmap.tif.part").exists()
    assert voxtile(*words).code == 0
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["s1.tif"]


def test_a_folder_that_cannot_be_written_to_is_said_to_be_the_output_s(
    finished: list[str], voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(side: Path, path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(side))

    monkeypatch.setattr(results, "claimed", refused)
    said = voxtile(*finished, "areas=true")
    assert said.code == 3
    assert "s1_areas.csv could not be written" in said.text
    assert "or name another output" in said.text
    assert "paths.runs" not in said.text


def test_a_scene_without_a_place_has_no_polygons(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    path = written(tmp_path / "in.tif", np.zeros((2, 20, 20), dtype=np.float32), crs=None)
    where = [f"run={scene_run.home}", f"paths.runs={tmp_path}", f"input={path}", f"output={tmp_path / 'maps'}"]
    for word in ("polygons=geojson", "areas=true"):
        said = voxtile("predict", *where, word)
        assert said.code == 3
        assert f"{path} has no coordinate reference system" in said.text
    assert not (tmp_path / "maps").exists()
    assert voxtile("predict", *where, "instances=true", "quicklook=true").code == 0


def test_a_scene_in_a_system_of_its_own_has_objects_without_hectares(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    site = 'LOCAL_CS["site",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'
    path = written(tmp_path / "in.tif", np.random.default_rng(0).normal(size=(2, 20, 20)).astype(np.float32), crs=site)
    where = [f"run={scene_run.home}", f"paths.runs={tmp_path}", f"input={path}"]
    said = voxtile("predict", *where, f"output={tmp_path / 'maps'}", "areas=true")
    assert said.code == 3
    assert f"{path} has no coordinate reference system of a place on Earth" in said.text
    assert not (tmp_path / "maps").exists()
    said = voxtile("predict", *where, f"output={tmp_path / 'MAP.TIF'}", "instances=true", "quicklook=true")
    assert said.code == 0
    assert (tmp_path / "MAP_quicklook.png").exists()
    assert (tmp_path / "MAP_instances.csv").read_text().startswith("id,class,pixels,x,y,")
    with rasterio.open(tmp_path / "MAP.TIF") as found, rasterio.open(path) as image:
        assert found.crs == image.crs


def test_a_full_disk_names_the_result_and_keeps_the_map(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = scene_run.folder / "scenes" / "images" / "s2.tif"
    where = [f"run={scene_run.home}", f"paths.runs={tmp_path}", f"input={source}", f"output={tmp_path / 'maps'}"]
    with file_size_limit(60_000):  # room for the map, and not for an empty GeoPackage
        said = voxtile("predict", *where, "polygons=gpkg")
    assert said.code == 3
    assert "s2_polygons.gpkg could not be written" in said.text
    assert "s2.tif is finished" in said.text
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["s2.tif"]


WRONG = {
    "polygons=shp": "'polygons=shp' is no vector format; choose from gpkg, geojson",
    "simplify=-1": "'simplify=-1' must be metres above 0",
    "simplify=inf": "'simplify=inf' must be metres above 0",
    "simplify=5 heatmaps=true postprocess={holes:[disc]}": "'simplify=5' is of no effect without 'polygons=gpkg'",
    "areas_layer=districts areas=true": "is of no effect without 'areas=<vector file>'",
    "area_name=district": "is of no effect without 'areas=<vector file>'",
    "instances=yes please": "'instances=yes please' must be true or false",
    "connectivity=6": "'connectivity=6' must be 4",
    "min_pixels=0": "'min_pixels=0' must be a whole number from 1 up",
    "object_classes=[disk]": "'object_classes' names disk; the classes of this run are ground, disc. Did you mean 'disc'?",
    "object_classes=disc": "'object_classes=disc' must be a list",
    "rgb=[band1,band2] quicklook=true": "must name three channels",
    "min_pixels=5": "'min_pixels=5' is of no effect without 'instances=true' or 'polygons=gpkg'. Type that too, or",
    "object_classes=[disc] areas=true": "'object_classes=['disc']' is of no effect without 'instances=true'",
    "connectivity=4 quicklook=true": "'connectivity=4' is of no effect without 'instances=true'",
    "rgb=[band1]": "is of no effect without 'quicklook=true'",
    "polygon=gpkg": "no key 'polygon'. Did you mean 'polygons'?",
}


@pytest.mark.parametrize(("word", "expected"), WRONG.items())
def test_a_wrong_setting_is_named(scene_run: Run, source: Path, tmp_path: Path, voxtile: Command, word: str, expected: str) -> None:
    words = [word] if "yes" in word else word.split()
    said = voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'maps'}", *words)
    assert said.code == 2
    assert expected in said.text
    assert not said.out  # nothing is said beside it of maps that are not made
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("areas=nowhere.gpkg", "nowhere.gpkg does not exist"),
        ("rgb=[bnd1] quicklook=true", "no channel bnd1 to show; it has band1, band2"),
    ],
)
def test_what_a_case_cannot_have_is_refused_before_it_is_predicted(
    scene_run: Run, source: Path, tmp_path: Path, voxtile: Command, word: str, expected: str
) -> None:
    said = voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path / 'maps'}", *word.split())
    assert said.code == 3
    assert expected in said.text
    assert not (tmp_path / "maps").exists()


def test_objects_are_scored_beside_pixels(copied_run: Run, tmp_path: Path, voxtile: Command) -> None:
    where = [f"run={copied_run.home}", f"paths.runs={tmp_path}"]
    folder = copied_run.home / "evaluations" / "val-best"
    assert voxtile("evaluate", *where).code == 0
    before, plain = table(folder / "cases.csv"), json.loads((folder / "summary.json").read_text())
    said = voxtile("evaluate", *where, "objects=0.3")
    assert said.code == 0
    assert "objects, matched where their IoU is 0.3 or more" in said.text
    after, summary = table(folder / "cases.csv"), json.loads((folder / "summary.json").read_text())
    assert [{name: row[name] for name in before[0]} for row in after] == before
    assert {name: summary["scores"][name] for name in plain["scores"]} == plain["scores"]
    assert summary["objects"] == {"least_iou": 0.3, "connectivity": 8}
    (case,) = copied_run.read("manifest.json")["data"]["split"]["val"]
    images = copied_run.folder / "scenes"
    voxtile("predict", *where, f"input={images / 'images' / case['id']}.tif", f"output={tmp_path / 'maps'}")
    with (
        rasterio.open(tmp_path / "maps" / f"{case['id']}.tif") as found,
        rasterio.open(images / "labels" / f"{case['id']}.tif") as label,
    ):
        counts = [ndimage.label(file.read(1) == 1, np.ones((3, 3)))[1] for file in (label, found)]
    assert [int(after[0][f"{kind}_objects/disc"]) for kind in ("label", "predicted")] == counts
    assert summary["scores"]["matched_objects/disc"] == int(after[0]["matched_objects/disc"])
    assert "object_f1/ground" not in summary["scores"]


@pytest.mark.parametrize("value", ["0", "1.5", "often"])
def test_a_wrong_threshold_is_named(scene_run: Run, voxtile: Command, value: str) -> None:
    said = voxtile("evaluate", f"run={scene_run.home}", f"objects={value}")
    assert said.code == 2
    assert f"'objects={value}' must be true, false, or the least IoU" in said.text


def test_every_score_of_objects_is_defined() -> None:
    text = (ROOT / "docs" / "scores.md").read_text(encoding="utf-8").partition("\n## Objects")[2].partition("\n## ")[0]
    rows = [object_scores(np.ones((1, 3), dtype=np.int64), ["roof"])]
    made = {name.replace("/roof", "/<class>") for name in summarise_objects(rows, ["roof"])}
    assert set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)) == made


def test_every_setting_of_results_is_documented() -> None:
    text = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    settings = (ROOT / "src/voxtile/commands/predict.yaml").read_text(encoding="utf-8")
    names = re.findall(r"^(\w+):", settings.partition("\npolygons:")[2].partition("\nbatch_size:")[0], flags=re.MULTILINE)
    assert len(names) == 12
    assert all(f"`{name}" in text for name in ["polygons", *names])


def test_the_command_to_evaluate_leaves_out_what_evaluate_has_by_default() -> None:
    usual = OmegaConf.load(Path(results.__file__).with_name("evaluate.yaml"))
    assert {name: usual[name] for name in evaluated.EVALUATED} | {"weights": usual["weights"] or "best"} == evaluated.EVALUATED
