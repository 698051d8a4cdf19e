"""voxtile predict and evaluate with runs that see images otherwise: by slices and by boxes, on grids of other spacings."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.commands.conftest import Command, Run, homes
from tests.testers.nifti import turned_affine
from voxtile.cases.maps import MapWriter
from voxtile.cases.window import Window

WEIGHTS = ["training.steps=2", "training.val_every=2"]


@pytest.fixture(scope="module")
def others(volume_run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on the data of `volume_run`, which sees slices: by boxes, on a coarser grid, and on slices across x."""
    from voxtile.commands.main import main

    found = {}
    kinds = {
        "boxes": ["model.dims=3", "data.window=[8,16,16]", "normalise=dataset"],
        "coarse": ["data.spacing=[4.0,2.0,2.0]", "data.neighbours=1"],
        "across": ["data.axis=x", "data.window=[8,16]"],
    }
    for name, more in kinds.items():
        again = ("paths.runs", *(word.partition("=")[0] for word in more))
        shared = [word for word in volume_run.words if word.partition("=")[0] not in again]
        folder = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["voxtile", "train", *shared, *more, *WEIGHTS, "optimizer.lr=0.05", f"paths.runs={folder}"])
            assert main() == 0
        (found[name],) = homes(folder)
    return found


@pytest.fixture(scope="module")
def oblique(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume of twelve slices that lies obliquely."""
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    array = np.random.default_rng(5).normal(200, 90, (37, 22, 12)).astype(np.int16)
    path = tmp_path_factory.mktemp("oblique") / "tilted.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, tilt @ turned_affine(20, (1.5, 1.5, 3.0))), path)
    return path


def voxels(path: Path) -> np.ndarray:
    return nibabel.load(path).get_fdata(dtype=np.float32)


def test_runs_by_slices_by_boxes_and_of_other_spacing_say_their_mean(
    volume_run: Run, others: dict[str, Path], oblique: Path, tmp_path: Path, voxtile: Command
) -> None:
    runs = [volume_run.home, others["boxes"], others["coarse"]]
    shared = ["predict", f"input={oblique}", "heatmaps=true"]
    for number, home in enumerate(runs):
        assert voxtile(*shared, f"run={home}", f"output={tmp_path / str(number)}").code == 0
    together = f"runs=[{','.join(map(str, runs))}]"
    said = voxtile(*shared, together, "uncertainty=true", f"output={tmp_path / 'all'}")
    assert said.code == 0, said.text
    each = np.stack([voxels(tmp_path / str(number) / "tilted_heatmap.nii.gz") for number in range(3)])
    heat = voxels(tmp_path / "all" / "tilted_heatmap.nii.gz")
    assert np.ptp(each, axis=0).max() > 0.05
    np.testing.assert_allclose(heat, each.mean(axis=0), atol=1e-6)
    variance = voxels(tmp_path / "all" / "tilted_uncertainty.nii.gz")
    np.testing.assert_allclose(variance, each.var(axis=0).mean(axis=-1), atol=1e-6)
    made = nibabel.load(tmp_path / "all" / "tilted.nii.gz")
    np.testing.assert_array_equal(np.asarray(made.dataobj), heat.argmax(axis=-1))
    np.testing.assert_array_equal(made.affine, nibabel.load(oblique).affine)
    said = voxtile(*shared, together, "uncertainty=true", f"output={tmp_path / 'all'}")
    assert (said.code, "is finished and was made by the same runs" in said.text) == (0, True)


def test_a_command_of_several_kinds_that_was_stopped_ends_in_the_same_bytes(
    volume_run: Run, others: dict[str, Path], oblique: Path, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [volume_run.home, others["boxes"], others["coarse"]]
    common = ["predict", f"runs=[{','.join(map(str, runs))}]", f"input={oblique}", "heatmaps=true", "uncertainty=true"]
    said = voxtile(*common, f"output={tmp_path / 'once'}")
    assert said.code == 0
    # Of each slice, of two layers of boxes, and of each slice of the coarser grid.
    assert f"tilted: {12 * 2 * 3 + 2 * 2 * 3 + 9 * 1 * 2} windows; about" in said.text, said.text
    out, write, places = tmp_path / "stopped", MapWriter.write, []

    def stopped(writer: MapWriter, window: Window, values: np.ndarray) -> None:
        places.append(window.z)
        if len(places) > 3 * 7:  # three maps of seven slices
            raise KeyboardInterrupt
        write(writer, window, values)

    with monkeypatch.context() as patch:
        patch.setattr(MapWriter, "write", stopped)
        assert voxtile(*common, f"output={out}").code == 130
    said = voxtile(*common, f"output={out}")
    assert (said.code, "tilted: continuing, 7 of 12 parts are done" in said.text) == (0, True), said.text
    names = ["tilted.nii.gz", "tilted_heatmap.nii.gz", "tilted_uncertainty.nii.gz"]
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


def test_slices_and_boxes_do_not_predict_scenes_together(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    words = [word for word in scene_run.words if not word.startswith("paths.runs=")]
    boxes = ["model.dims=3", "data.window=[8,16,16]", *WEIGHTS, f"paths.runs={tmp_path / 'runs'}"]
    assert voxtile("train", *words, *boxes).code == 0
    (home,) = homes(tmp_path / "runs")
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    said = voxtile("predict", f"runs=[{scene_run.home},{home}]", f"input={source}", f"output={tmp_path / 'out'}")
    assert (said.code, "slices and runs that see boxes share no windows on a scene" in said.text) == (2, True), said.text


@pytest.mark.parametrize(
    ("other", "words", "code", "found"),
    [
        ("across", [], 4, "they differ in data.axis (z and x). Expected runs on the same kind of data. Slices across two axes"),
        ("boxes", ["crf={bilateral_weight: 4}"], 2, "Type 'crf=null', or name runs that see images alike"),
        ("boxes", ["rotations=3"], 2, "this network sees volumes. Type 'rotations=1'"),
        ("boxes", ["mirrors=[z]"], 2, "'mirrors=[z]' must be a list of axes among"),
        ("boxes", ["window=[8,8]"], 2, "'window=[8, 8]' must be 3 whole numbers"),
    ],
)
def test_what_kinds_do_not_do_together_is_refused(
    volume_run: Run, others: dict[str, Path], tmp_path: Path, voxtile: Command, other: str, words: list[str], code: int, found: str
) -> None:
    source = volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"
    runs = f"runs=[{volume_run.home},{others[other]}]"
    said = voxtile("predict", runs, f"input={source}", f"output={tmp_path / 'out'}", *words)
    assert (said.code, found in said.text) == (code, True), said.text
    assert not (tmp_path / "out").exists()
