"""Regions by whole commands, on nnU-Net's folder with an ignore label."""

import csv
import io
import json
import re
import shlex
import sys
from contextlib import redirect_stderr
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.commands.conftest import Command, Run, trained
from tests.testers.tiny import SMALL, configured, volume_words
from voxtile.commands.main import main

SHAPE = (18, 16, 5)  # x, y, z
LABELS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3], "ignore": 4}
UNITED = {"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}  # class indices; the stored values are the same


def brats(folder: Path, count: int = 6) -> list[str]:
    """Makes volumes of three shells around a centre, a corner of which is not labelled, and returns words that train on them."""
    rng, root = np.random.default_rng(0), folder / "Dataset002_Shells"
    x, y, _ = np.indices(SHAPE)
    for number in range(count):
        far = np.hypot(x - rng.integers(6, 12), y - rng.integers(6, 10))
        label = sum((far < radius).astype(np.uint8) for radius in (6, 4.5, 3))
        image = (label * 300.0 + rng.normal(100, 30, SHAPE)).astype(np.int16)
        label[:5, :8] = 4
        for kind, name, array in (("imagesTr", f"p{number}_0000", image), ("labelsTr", f"p{number}", label)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            affine = np.diag([1.5, 1.5, 3.0, 1.0])
            affine[0, 3] = number
            nibabel.save(nibabel.Nifti1Image(array, affine), root / kind / f"{name}.nii.gz")
    document = {
        "channel_names": {"0": "FLAIR"}, "labels": LABELS, "regions_class_order": [1, 2, 3], "file_ending": ".nii.gz",
        "numTraining": count,
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(document))
    data = {
        "format": "volume", "layout": {"_target_": "voxtile.cases.layouts.NnUnetLayout", "root": str(root)}, "window": [16, 16],
        "labels": {0: "background", 1: "foreground"}, "background": "background", "symmetry": {"flips": ["x"]},
    }  # fmt: skip
    return [
        *configured(folder, "shells", **data), "normalise=case", f"paths.cache={folder / 'cache'}", f"paths.runs={folder / 'runs'}",
        *SMALL, "training.steps=20", "training.val_every=10", "optimizer.lr=0.01",
    ]  # fmt: skip


@pytest.fixture
def given(tmp_path: Path, voxtile: Command) -> list[str]:
    """Words that train on the volumes, the last of which were told by the error of what does not agree with dataset.json."""
    words = brats(tmp_path)
    said = voxtile("check", *words)
    assert said.code == 2
    assert "describes regions" in said.text
    return [*words, *typed(said.text)]


def typed(said: str) -> list[str]:
    """The words that an error says are to be typed."""
    return [word.rstrip(".") for word in shlex.split(said.partition(", or type ")[2])]


@pytest.fixture(scope="module")
def shells(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with the regions; tests may evaluate it and predict by it."""
    folder = tmp_path_factory.mktemp("shells")
    words, said = brats(folder), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        patch.setattr(sys, "argv", ["voxtile", "check", *words])
        assert main() == 2
    return trained(folder, [*words, *typed(" ".join(said.getvalue().split()))])


def test_check_says_which_classes_the_regions_hold(voxtile: Command, given: list[str]) -> None:
    said = voxtile("check", *given)
    assert said.code == 0
    assert (
        "the Dice loss are about: whole tumor: rest of whole tumor, rest of tumor core, enhancing tumor; tumor core: rest of tumor "
        "core, enhancing tumor; enhancing tumor: enhancing tumor" in said.text
    )


def test_the_mean_over_regions_chooses_the_best_weights(shells: Run) -> None:
    assert "mean over regions" in " ".join(shells.said.split())
    assert shells.read("manifest.json")["data"]["regions"] == UNITED
    best = shells.read("status.json")["best"]
    scores = best["scores"]
    assert scores["dice"] == best["score"] == pytest.approx(np.mean([scores[f"dice/{name}"] for name in UNITED]))


def test_regions_are_scored_by_all_measures(shells: Run, voxtile: Command) -> None:
    assert voxtile("evaluate", f"run={shells.home}", "surface=true", "lesions=true", "objects=true").code == 0
    folder, manifest = shells.home / "evaluations" / "val-best", shells.read("manifest.json")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["regions"] == UNITED
    assert list(summary["surface"]["tolerance"]) == list(UNITED)
    confusion = np.array(summary["confusion"])
    judged = sum(
        int((np.asanyarray(nibabel.load(shells.folder / f"Dataset002_Shells/labelsTr/{case['id']}.nii.gz").dataobj) != 4).sum())
        for case in manifest["data"]["split"]["val"]
    )
    assert confusion.sum() == judged  # what is ignored is in no score
    whole = confusion[1:, 1:].sum() / (confusion.sum() - confusion[0, 0])
    assert summary["scores"]["iou/whole tumor"] == pytest.approx(whole)
    assert {"hd95/tumor core", "lesion_f1/tumor core", "object_f1/tumor core", "volume_error_ml/tumor core"} <= set(
        summary["scores"]
    )
    assert summary["spread"]["dice"]["mean"] == pytest.approx(summary["scores"]["dice"])
    with (folder / "cases.csv").open() as file:
        (row, *_) = csv.DictReader(file)
    assert float(row["label_pixels/whole tumor"]) == sum(
        float(row[f"label_pixels/{name}"]) for name in manifest["data"]["classes"][1:]
    )
    assert float(row["label_ml/whole tumor"]) == pytest.approx(float(row["label_pixels/whole tumor"]) * 1.5 * 1.5 * 3 / 1000)


def test_regions_decide_what_a_map_says(shells: Run, tmp_path: Path, voxtile: Command) -> None:
    images, out = shells.folder / "Dataset002_Shells" / "imagesTr", tmp_path / "out"
    assert voxtile("predict", f"run={shells.home}", f"input={images}", f"output={out}", "heatmaps=true").code == 0
    seen = set()
    for path in out.glob("p?.nii.gz"):
        found = np.asanyarray(nibabel.load(path).dataobj)
        heat = np.asanyarray(nibabel.load(path.with_name(path.name.replace(".nii", "_heatmap.nii"))).dataobj)
        for members in UNITED.values():
            total = sum(heat[..., index] for index in members)
            np.testing.assert_array_equal(np.isin(found, members), total > 0.5)
        seen |= {*np.unique(found).tolist()} if (heat.argmax(axis=-1) != found).any() else set()
    assert {0, 1} <= seen  # regions decide, and not the most probable class


def test_regions_are_cross_validated_and_averaged(tmp_path: Path, voxtile: Command, given: list[str]) -> None:
    folds = ["split=kfold", "split.folds=2"]
    assert voxtile("train", "-m", *given, *folds, "launch=here", "fold=0,1").code == 0
    said = voxtile(
        "evaluate", f"runs={tmp_path / 'runs' / 'shells-unet-*'}", "postprocess=search", f"paths.runs={tmp_path / 'runs'}"
    )
    assert said.code == 0
    assert len(re.findall("mean over regions", said.text)) == 2  # of the table, and of the folds
    (summary,) = (json.loads(path.read_text()) for path in (tmp_path / "runs" / "evaluations").glob("*/*/summary.json"))
    assert summary["cases"] == 6
    assert summary["scores"]["dice"] == pytest.approx(np.mean([summary["scores"][f"dice/{name}"] for name in UNITED]))
    assert all("dice/tumor core" in fold["scores"] for fold in summary["folds"])


def test_runs_with_other_regions_do_not_predict_together(tmp_path: Path, voxtile: Command) -> None:
    words = [*volume_words(tmp_path), "training.steps=2", "training.val_every=2"]
    for more in ([], ["data.regions={structure: [disc]}"]):
        assert voxtile("train", *words, *more).code == 0
    said = voxtile("predict", f"runs={tmp_path / 'runs' / 'tubes-*'}", f"input={tmp_path}", f"output={tmp_path / 'out'}")
    assert said.code == 4
    assert "cannot predict together: they differ in regions" in said.text


def test_a_monitor_may_be_a_regions_score_and_a_misspelt_one_is_told(tmp_path: Path, voxtile: Command, given: list[str]) -> None:
    said = voxtile("train", *given, "training.monitor=dice/tumour core")
    assert said.code == 2
    assert "Did you mean 'dice/tumor core'?" in said.text
    assert voxtile("train", *given, "training.monitor=dice/tumor core", "training.steps=2", "training.val_every=2").code == 0


def test_a_wrong_kind_of_regions_is_refused(tmp_path: Path, voxtile: Command, given: list[str]) -> None:
    plain = [word for word in given if "data.regions" not in word]
    for typed, told in (("[core]", "'data.regions={whole: [edema,core]}'"), ("{whole: [cor]}", "holds cor, which is no class")):
        said = voxtile("check", *plain, f"data.regions={typed}")
        assert said.code == 2
        assert told in said.text
