"""Commands on scenes that lie elsewhere, and on scenes of many files."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.commands.conftest import Command, Run, homes
from tests.testers.tiny import scene, scene_words
from tests.testers.web import serving


def _pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as found:
        return found.read()


@pytest.mark.parametrize("query", ["", "?id=5&sig=hunter2"])
def test_a_scene_elsewhere_has_the_map_that_its_copy_has(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = scene_run.folder / "scenes" / "images"
    run = f"run={scene_run.home}"
    assert voxtile("predict", run, f"input={folder / 's1.tif'}", f"output={tmp_path / 'here'}").code == 0
    with serving(folder) as web:
        said = voxtile("predict", run, f"input={web.url}/s1.tif{query}", f"output={tmp_path / 'there'}")
        assert (said.code, "hunter2" in said.text) == (0, False)
        named = voxtile("predict", run, f"input={web.url}/s1.tif{query}", f"output={tmp_path / 'my.tif'}", "heatmaps=true")
        assert (named.code, (tmp_path / "my_heatmap.tif").exists()) == (0, True)
        gone = voxtile("predict", run, f"input={web.url}/gone.tif{query}", f"output={tmp_path / 'there'}")
    assert gone.code == 3
    assert "gone.tif" in gone.text
    assert "does not exist: its server answers with status 404" in gone.text
    assert "hunter2" not in gone.text
    for name in ("there/s1.tif", "my.tif"):
        np.testing.assert_array_equal(_pixels(tmp_path / name), _pixels(tmp_path / "here" / "s1.tif"))


@pytest.mark.slow
def test_a_run_on_a_list_of_scenes_elsewhere_is_the_run_on_their_copies(
    tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    words = scene_words(tmp_path)
    root = tmp_path / "scenes"
    with serving(root) as web:
        layout = {
            "_target_": "voxtile.cases.layouts.ListLayout",
            "root": str(root),
            "lists": {"train": "train.txt", "val": "val.txt"},
        }
        again = scene_words(tmp_path, layout=layout)
        for before, runs in (("", "runs/here"), (f"{web.url}/", "runs/there")):
            for side, numbers in (("train", range(4)), ("val", range(4, 6))):
                lines = [f"{before}images/s{number}.tif {before}labels/s{number}.tif" for number in numbers]
                (root / f"{side}.txt").write_text("\n".join(lines))
            assert voxtile("train", *again, "split=given", f"paths.runs={tmp_path / runs}").code == 0
    here, there = (homes(tmp_path / "runs" / name)[0] for name in ("here", "there"))
    assert here.name == there.name  # one identity: where a file lies is no part of it
    assert (here / "metrics.csv").read_bytes() == (there / "metrics.csv").read_bytes()
    assert words  # the scenes were made


def test_a_folder_of_tiles_has_one_map(tmp_path: Path, voxtile: Command) -> None:
    """Training, evaluating and predicting on scenes of four files each; an input is never overwritten."""
    layout = {
        "_target_": "voxtile.cases.layouts.FolderLayout", "root": str(tmp_path / "tiles"), "images": "{place}/{tile}.tif",
        "labels": "labels/{place}/{tile}.tif", "case": "{place}", "mosaic": True,
    }  # fmt: skip
    words = scene_words(tmp_path, layout=layout)
    for number in range(6):
        for kind, folder in (("images", f"s{number}"), ("labels", f"labels/s{number}")):
            with rasterio.open(tmp_path / "scenes" / kind / f"s{number}.tif") as whole:
                array, transform = whole.read(), whole.transform
            for row, column in ((0, 0), (0, 18), (20, 0), (20, 18)):
                part = scene(tmp_path / "tiles" / folder / f"{row}_{column}.tif", array[:, row : row + 20, column : column + 18])
                with rasterio.open(part, "r+") as out:
                    out.transform = transform @ rasterio.Affine.translation(column, row)
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    new = tmp_path / "tiles" / "s1"
    said = voxtile("predict", f"run={home}", f"input={new}", f"output={tmp_path / 'maps'}")
    assert said.code == 0
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["s1.tif"]
    one = voxtile("predict", f"run={home}", f"input={tmp_path / 'scenes/images/s1.tif'}", f"output={tmp_path / 'one'}")
    assert one.code == 0
    np.testing.assert_array_equal(_pixels(tmp_path / "maps" / "s1.tif"), _pixels(tmp_path / "one" / "s1.tif"))
    before = (new / "0_0.tif").read_bytes()
    (new / "0_0.tif").rename(new / "s1.tif")  # a map that is called as the case would take this tile's place
    refused = voxtile("predict", f"run={home}", f"input={new}", f"output={new}", "overwrite=true")
    assert refused.code == 3
    assert "would overwrite its own input" in refused.text
    assert (new / "s1.tif").read_bytes() == before
