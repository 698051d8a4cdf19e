"""voxtile evaluate … dataset=<name>: a run scored on all cases of another data set."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio

from tests.commands.conftest import Command, Run, homes
from tests.testers.tiny import blob, configured, scene, scene_words, volumes

DISC, GROUND = 10, 20  # stored otherwise than in the run's own data, and named in another order
LAYOUT = {"_target_": "voxtile.cases.layouts.FolderLayout", "images": "images/{id}.tif", "labels": "labels/{id}.tif"}


def town(folder: Path, count: int = 3, pixel: float = 10) -> Path:
    """Scenes like those of the run, of another size and place."""
    rng = np.random.default_rng(7)
    for number in range(count):
        label = blob(rng, 44, 50)
        bands = np.stack([label * 2.0, np.zeros(label.shape)]) + rng.normal(0, 0.3, (2, *label.shape))
        scene(folder / "images" / f"t{number}.tif", bands.astype(np.float32), 90 + number, pixel=pixel)
        known = np.where(label, DISC, GROUND).astype(np.uint8)
        scene(folder / "labels" / f"t{number}.tif", known[None], 90 + number, pixel=pixel)
    return folder


def described(folder: Path, **changes: object) -> list[str]:
    """The words that name the town as another data set."""
    labels = {DISC: "disc", GROUND: "ground"}
    layout = LAYOUT | {"root": str(folder / "town")}
    data = {"format": "geotiff", "layout": layout, "labels": labels, "window": [32, 32]} | changes
    conf, word = configured(folder, "town", **data)[1:]
    return ["--config-dir", conf, word.replace("data=", "dataset=")]


@pytest.fixture
def words(copied_run: Run, tmp_path: Path) -> list[str]:
    """The words that evaluate the run, without those that name another data set."""
    return ["evaluate", f"run={copied_run.home}", f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}"]


def counted(label: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The confusion matrix of labels and maps of the classes 0 and 1."""
    return np.array([[int(((label == row) & (found == column)).sum()) for column in (0, 1)] for row in (0, 1)])


def test_scores_are_those_of_the_maps(voxtile: Command, copied_run: Run, words: list[str], tmp_path: Path) -> None:
    town(tmp_path / "town")
    said = voxtile(*words, *described(tmp_path))
    assert said.code == 0, said.text
    assert "look number 1 at these cases, recorded" in said.text
    assert "pixels" not in said.text
    evaluation = copied_run.home / "evaluations" / "on-town-best"
    summary = json.loads((evaluation / "summary.json").read_text())
    voxtile("predict", f"run={copied_run.home}", f"input={tmp_path / 'town' / 'images'}", f"output={tmp_path / 'maps'}")
    expected = np.zeros((2, 2), dtype=int)
    for number in range(3):
        with (
            rasterio.open(tmp_path / "maps" / f"t{number}.tif") as made,
            rasterio.open(tmp_path / "town" / "labels" / f"t{number}.tif") as label,
        ):
            expected += counted((label.read(1) == DISC).astype(int), made.read(1))
    assert summary["classes"] == ["ground", "disc"]
    assert summary["confusion"] == expected.tolist()
    assert (summary["split"], summary["cases"]) == ("on-town", 3)
    assert [row.split(",")[0] for row in (evaluation / "cases.csv").read_text().splitlines()[1:]] == ["t0", "t1", "t2"]
    assert "look number 2 at these cases" in voxtile(*words, *described(tmp_path)).text


def test_pixels_of_another_size_are_told(voxtile: Command, copied_run: Run, words: list[str], tmp_path: Path) -> None:
    town(tmp_path / "town", pixel=2)
    told = "its pixels measure 2x2 m, and in training they measured 10x10."
    said = voxtile(*words, *described(tmp_path))
    assert f"t0 (and 2 cases like it): {told}" in said.text
    source = tmp_path / "town" / "images" / "t1.tif"
    said = voxtile("predict", f"run={copied_run.home}", f"input={source}", f"output={tmp_path / 'maps'}")
    assert f"{source}: {told}" in said.text


def test_a_class_may_be_absent_and_none_may_be_new(voxtile: Command, words: list[str], tmp_path: Path) -> None:
    town(tmp_path / "town")
    said = voxtile(*words, *described(tmp_path, labels={DISC: "disc", GROUND: "ignore"}))
    assert said.code == 0, said.text
    (summary,) = (tmp_path / "runs").rglob("on-town-best/summary.json")
    rows = json.loads(summary.read_text())["confusion"]
    assert sum(rows[0]) == 0
    assert sum(rows[1]) > 0
    said = voxtile(*words, *described(tmp_path, labels={DISC: "roof", GROUND: "ground"}))
    assert said.code == 2
    assert "'data.labels' of 'town' holds roof, and the classes of" in said.text


def test_cases_that_the_run_was_trained_on_are_refused(voxtile: Command, copied_run: Run, words: list[str], tmp_path: Path) -> None:
    town(tmp_path / "town")
    sides = copied_run.read("manifest.json")["data"]["split"]
    for side, name in (("train", "copy"), ("val", "chosen"), ("test", "locked")):
        for kind in ("images", "labels"):
            of = copied_run.folder / "scenes" / kind / f"{sides[side][0]['id']}.tif"
            shutil.copy(of, tmp_path / "town" / kind / f"{name}.tif")
    labels = {DISC: "disc", GROUND: "ground", 0: "ground", 1: "disc"}
    said = voxtile(*words, *described(tmp_path, labels=labels))
    assert said.code == 3
    assert f"'copy' (test) has the same image as {sides['train'][0]['id']} (training)" in said.text
    assert "'exclude: [\"copy\"]'" in said.text
    assert not (tmp_path / "runs" / "test_ledger").exists()
    (tmp_path / "accepted.txt").write_text("copy\n")
    said = voxtile(*words, *described(tmp_path, labels=labels, waive=str(tmp_path / "accepted.txt")))
    assert said.code == 0, said.text
    assert "waived: Leak waived by the user: 'copy'" in said.text
    assert "chosen chose the weights of" in said.text
    assert "test cases of" in said.text
    assert "look number 1 at their test split, recorded" in said.text
    assert len(list((tmp_path / "runs" / "test_ledger").iterdir())) == 2


def test_scenes_of_which_blocks_were_learned_are_refused(voxtile: Command, tmp_path: Path) -> None:
    words = [*scene_words(tmp_path), "split=blocks", "split.blocks=[2,2]", f"paths.runs={tmp_path / 'runs'}"]
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    town(tmp_path / "town")
    for kind in ("images", "labels"):
        shutil.copy(tmp_path / "scenes" / kind / "s0.tif", tmp_path / "town" / kind / "copy.tif")
    shared = ["evaluate", f"run={home}", f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}"]
    labels = {DISC: "disc", GROUND: "ground", 0: "ground", 1: "disc"}
    said = voxtile(*shared, *described(tmp_path, labels=labels))
    assert said.code == 3
    assert "'copy' (test) is of the same files as s0 (training)" in said.text
    (tmp_path / "scenes").rename(tmp_path / "moved")
    said = voxtile(*shared, *described(tmp_path, labels=labels))
    assert said.code == 0, said.text
    assert "whether these cases hold parts that it saw cannot be told" in said.text


def test_other_channels_are_refused(voxtile: Command, words: list[str], tmp_path: Path) -> None:
    scene(town(tmp_path / "town") / "images" / "t1.tif", np.zeros((3, 44, 50), np.float32), 91)
    said = voxtile(*words, *described(tmp_path, exclude=["t0", "t2"]))
    assert said.code == 3
    assert "was trained on 2 (band1, band2)" in said.text


def test_data_that_lie_elsewhere_now(voxtile: Command, words: list[str], tmp_path: Path) -> None:
    town(tmp_path / "moved")
    assert voxtile(*words, *described(tmp_path), f"root={tmp_path / 'moved'}").code == 0
    said = voxtile(*words, *described(tmp_path), f"root={tmp_path / 'gone'}")
    assert said.code == 3
    assert "Name the one in which the data set 'town' lies." in said.text
    said = voxtile(*words, *described(tmp_path))
    assert (said.code, "or name it with 'root=<folder>'" in said.text, "data.layout.root" in said.text) == (3, True, False)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dataset=twon", "'dataset=twon' does not exist. Did you mean 'town'?"),
        ("data=town", "The configuration has no key 'data'. Did you mean 'dataset'?"),
        ("split=test", "'split' is a side of the run's own data"),
        ("crf=search", "'crf=search' chooses settings by scores"),
        ("dataset=[town]", "names no data set"),
    ],
)
def test_words_that_do_not_fit(voxtile: Command, words: list[str], tmp_path: Path, word: str, message: str) -> None:
    said = voxtile(*words, *described(town(tmp_path / "town").parent), word)
    assert said.code == 2
    assert message in said.text


def test_volumes_keep_the_runs_scale(voxtile: Command, volume_run: Run, tmp_path: Path) -> None:
    home = tmp_path / "runs" / volume_run.home.name
    shutil.copytree(volume_run.home, home, ignore=shutil.ignore_patterns("evaluations"))
    volumes(tmp_path / "clinic", count=3, shape=(20, 24, 4))
    for image in (tmp_path / "clinic" / "imagesTr").iterdir():  # other noise, so that no case is one of the run's
        file = nibabel.load(image)
        pixels = np.asarray(file.dataobj)[::-1] + 3
        nibabel.save(nibabel.Nifti1Image(pixels.astype(np.int16), file.affine), image)
    layout = {"_target_": "voxtile.cases.layouts.MsdLayout", "root": str(tmp_path / "clinic")}
    _, conf, _ = configured(
        tmp_path, "clinic", format="volume", layout=layout, labels={1: "disc", 0: "ground"}, window=[8, 8], axis="y",
        spacing=[9, 9, 9],
    )  # fmt: skip
    said = voxtile(
        "evaluate", f"run={home}", f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}", "--config-dir", conf,
        "dataset=clinic",
    )  # fmt: skip
    assert said.code == 0, said.text
    summary = json.loads((home / "evaluations" / "on-clinic-best" / "summary.json").read_text())
    assert summary["grid"] == "stored"
    assert summary["procedure"]["window"] == [1, 16, 16]
    voxtile("predict", f"run={home}", f"input={tmp_path / 'clinic' / 'imagesTr'}", f"output={tmp_path / 'maps'}")
    expected = np.zeros((2, 2), dtype=int)
    for label in (tmp_path / "clinic" / "labelsTr").iterdir():
        made = nibabel.load(tmp_path / "maps" / label.name)
        expected += counted(np.asarray(nibabel.load(label).dataobj), np.asarray(made.dataobj))
    assert summary["confusion"] == expected.tolist()
