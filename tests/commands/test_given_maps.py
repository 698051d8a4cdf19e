"""voxtile evaluate … maps=<folder>: maps of another program, scored on the same cases as a run's own."""

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio

from tests.commands.conftest import Command, Run, homes
from tests.testers.tiny import scene_words


def words_for(run: Run, *more: str) -> list[str]:
    """The words that evaluate a run."""
    return ["evaluate", f"run={run.home}", f"paths.cache={run.folder / 'cache'}", *more]


def names(run: Run, side: str) -> list[str]:
    """The ids of the cases on one side of a run's split."""
    return [case["id"] for case in run.read("manifest.json")["data"]["split"][side]]


def copied(run: Run, folder: Path, side: str = "val", flipped: int = 0) -> Path:
    """Maps that are the labels, but for the first so many pixels of each."""
    folder.mkdir()
    for name in names(run, side):
        shutil.copy(run.folder / "scenes" / "labels" / f"{name}.tif", folder)
        with rasterio.open(folder / f"{name}.tif", "r+") as file:
            pixels = file.read(1)
            pixels.ravel()[:flipped] ^= 1
            file.write(pixels, 1)
    return folder


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_maps_are_counted_like_predictions(voxtile: Command, copied_run: Run, tmp_path: Path) -> None:
    maps = copied(copied_run, tmp_path / "theirs", flipped=30)
    said = voxtile(*words_for(copied_run, f"maps={maps}", "objects=true"))
    assert said.code == 0, said.text
    assert "maps in theirs" in said.text
    evaluations = copied_run.home / "evaluations"
    theirs = summary_of(evaluations / "val-maps-theirs")
    wrong = np.array(theirs["confusion"])
    assert wrong[0, 1] + wrong[1, 0] == 30 * len(names(copied_run, "val"))
    assert (theirs["weights"], theirs["procedure"], theirs["maps"]) == (None, None, "theirs")
    voxtile(*words_for(copied_run))
    own = summary_of(evaluations / "val-best")
    assert wrong.sum(axis=1).tolist() == np.array(own["confusion"]).sum(axis=1).tolist()
    said = voxtile("compare", f"evaluations=[{evaluations / 'val-best'},{evaluations / 'val-maps-theirs'}]")
    assert said.code == 0, said.text
    assert voxtile("verify", f"run={copied_run.home}", f"paths.cache={tmp_path / 'cache'}").code == 0


@pytest.mark.parametrize("values", ["classes", "stored"])
def test_maps_by_voxtile_come_to_the_same_scores(voxtile: Command, tmp_path: Path, values: str) -> None:
    words = [*scene_words(tmp_path), "~data.labels", "+data.labels={1: ground, 0: disc}"]  # stored as the index of the other
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    copied_run = Run(words, home, tmp_path, "")
    for name in names(copied_run, "val"):
        image = copied_run.folder / "scenes" / "images" / f"{name}.tif"
        voxtile("predict", f"run={copied_run.home}", f"input={image}", f"output={tmp_path / 'maps'}", f"values={values}")
    voxtile(*words_for(copied_run))
    assert voxtile(*words_for(copied_run, f"maps={tmp_path / 'maps'}")).code == 0
    own, given = (summary_of(copied_run.home / "evaluations" / name) for name in ("val-best", "val-maps-maps"))
    assert own["confusion"] == given["confusion"]
    assert own["scores"] == given["scores"]


def test_class_indices_of_another_run_are_not_guessed(voxtile: Command, copied_run: Run, tmp_path: Path) -> None:
    words = [*copied_run.words, "seed=1", f"paths.runs={tmp_path / 'others'}"]
    assert voxtile("train", *words).code == 0
    (other,) = homes(tmp_path / "others")
    for values in ("classes", "stored"):
        for name in names(copied_run, "val"):
            image = copied_run.folder / "scenes" / "images" / f"{name}.tif"
            voxtile("predict", f"run={other}", f"input={image}", f"output={tmp_path / values}", f"values={values}")
    assert voxtile(*words_for(copied_run, f"maps={tmp_path / 'stored'}")).code == 0
    said = voxtile(*words_for(copied_run, f"maps={tmp_path / 'classes'}"))
    assert "holds class indices of another run" in said.text
    assert said.code == 3


def test_scores_of_another_folder_of_the_same_name_are_kept(voxtile: Command, copied_run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert voxtile(*words_for(copied_run, f"maps={copied(copied_run, tmp_path / 'a' / 'maps')}")).code == 0
    said = voxtile(*words_for(copied_run, f"maps={copied(copied_run, tmp_path / 'b' / 'maps')}"))
    assert said.code == 2
    assert "another folder of the name 'maps'" in said.text


def test_a_map_that_does_not_fit_is_no_look(voxtile: Command, copied_run: Run, tmp_path: Path) -> None:
    maps = copied(copied_run, tmp_path / "theirs", "test")
    with rasterio.open(maps / f"{names(copied_run, 'test')[0]}.tif", "r+") as file:
        file.write(np.full(file.shape, 7, np.uint8), 1)
    said = voxtile(*words_for(copied_run, f"maps={maps}", "split=test", f"paths.runs={tmp_path / 'runs'}"))
    assert (said.code, "look number" in said.text) == (3, False)


def test_a_look_at_test_cases_is_recorded(voxtile: Command, copied_run: Run, tmp_path: Path) -> None:
    maps = copied(copied_run, tmp_path / "theirs", "test")
    said = voxtile(*words_for(copied_run, f"maps={maps}", "split=test", f"paths.runs={tmp_path / 'runs'}"))
    assert "look number 1 at this test split, recorded" in said.text
    assert summary_of(copied_run.home / "evaluations" / "test-maps-theirs")["scores"]["dice"] == 1


def test_volumes_hold_the_values_of_labels(voxtile: Command, volume_run: Run, tmp_path: Path) -> None:
    home = tmp_path / "runs" / volume_run.home.name
    shutil.copytree(volume_run.home, home, ignore=shutil.ignore_patterns("evaluations"))
    run = Run(volume_run.words, home, volume_run.folder, volume_run.said)
    (tmp_path / "theirs").mkdir()
    for name in names(run, "val"):
        label = nibabel.load(run.folder / "volumes" / "labelsTr" / f"{name}.nii.gz")
        # Stored in another orientation, which its affine says.
        turned = label.as_reoriented([[2, 1], [0, -1], [1, 1]])
        nibabel.save(turned, tmp_path / "theirs" / f"{name}.nii.gz")
    said = voxtile(*words_for(run, f"maps={tmp_path / 'theirs'}", "surface=true"))
    assert said.code == 0, said.text
    scores = summary_of(home / "evaluations" / "val-maps-theirs")["scores"]
    assert (scores["dice"], scores["hd95/disc"]) == (1, 0)


def test_folds_are_scored_together(voxtile: Command, tmp_path: Path) -> None:
    words = [*scene_words(tmp_path), "split=kfold", "split.folds=3", "training.steps=2", "training.val_every=2"]
    for fold in range(3):
        assert voxtile("train", *words, f"fold={fold}").code == 0
    shutil.copytree(tmp_path / "scenes" / "labels", tmp_path / "theirs")
    runs = ",".join(map(str, homes(tmp_path / "runs")))
    shared = ["evaluate", f"runs=[{runs}]", f"paths.cache={tmp_path / 'cache'}", f"paths.runs={tmp_path / 'runs'}"]
    said = voxtile(*shared, f"maps={tmp_path / 'theirs'}")
    assert said.code == 0, said.text
    (table,) = (tmp_path / "runs").rglob("val-maps-theirs/cases.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert sorted({row["fold"] for row in rows}) == ["0", "1", "2"]
    assert "run" not in rows[0]
    assert len(rows) == 6


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("missing", 3, "holds no map of 1 case"),
        ("ignored", 3, "that are to be judged nothing"),
        ("unknown", 3, "holds 7 as label value"),
        ("cropped", 3, "that are to be judged nothing"),
    ],
)
def test_maps_that_do_not_fit(voxtile: Command, copied_run: Run, tmp_path: Path, change: str, code: int, message: str) -> None:
    maps = copied(copied_run, tmp_path / "theirs")
    first = maps / f"{names(copied_run, 'val')[0]}.tif"
    with rasterio.open(first) as file:
        pixels, profile = file.read(1), file.profile
    if change == "missing":
        first.unlink()
    elif change == "cropped":
        with rasterio.open(first, "w", **{**profile, "height": 20}) as file:
            file.write(pixels[:20], 1)
    else:
        pixels[:2] = 255 if change == "ignored" else 7
        with rasterio.open(first, "w", **profile | {"nodata": 255}) as file:
            file.write(pixels, 1)
    said = voxtile(*words_for(copied_run, f"maps={maps}"))
    assert (said.code, message in said.text) == (code, True), said.text
    assert not (copied_run.home / "evaluations").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("overlap=0.5", "'overlap=0.5' says how a network predicts"),
        ("crf=best", "'crf=best' says how a network predicts"),
        ("devices=2", "'devices=2' shares what networks have to do"),
        ("maps=nowhere", "'maps=nowhere' is no folder"),
    ],
)
def test_words_that_do_not_fit(voxtile: Command, copied_run: Run, tmp_path: Path, word: str, message: str) -> None:
    said = voxtile(*words_for(copied_run, f"maps={copied(copied_run, tmp_path / 'theirs')}", word))
    assert said.code == 2
    assert message in said.text
