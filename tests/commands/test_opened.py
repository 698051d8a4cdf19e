"""voxtile.open_run: what a program of one's own makes of a run."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio
import torch

import voxtile as package
from tests.commands.conftest import Command, Run
from tests.testers.composing import fences
from tests.testers.tiny import volume_words, volumes
from voxtile.cases.window import Window
from voxtile.commands.opened import SETTINGS, _defaults
from voxtile.errors import ConfigError, DataError, RunError, VoxtileError

ROOT = Path(__file__).parents[2]


def ledger(run: Run) -> list[dict]:
    """The looks that were recorded beside a run."""
    return [json.loads(line) for path in run.home.parent.glob("test_ledger/*") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("words", [{}, {"overlap": 0.5, "mirrors": ["y"]}, {"postprocess": {"largest": ["disc"]}}])
def test_a_scene_s_map_is_the_one_that_the_command_writes(
    scene_run: Run, tmp_path: Path, voxtile: Command, words: dict[str, object]
) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    typed = [f"{key}={str(value).replace(chr(39), '')}" for key, value in words.items()]
    assert voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path}", "heatmaps=true", *typed).code == 0
    found = package.open_run(scene_run.home).predict(source, probabilities=True, **words)
    with rasterio.open(tmp_path / "s1.tif") as map_, rasterio.open(tmp_path / "s1_heatmap.tif") as heat:
        np.testing.assert_array_equal(found.labels, map_.read(1))
        np.testing.assert_array_equal(found.probabilities, heat.read())
        assert found.grid.transform.almost_equals(map_.transform)
        assert rasterio.CRS.from_wkt(found.grid.crs) == map_.crs
    assert found.classes == ("ground", "disc")


def test_an_array_is_judged_as_the_file_that_holds_it(scene_run: Run) -> None:
    source = scene_run.folder / "scenes" / "images" / "s2.tif"
    with rasterio.open(source) as image:
        pixels = image.read()
    run = package.open_run(scene_run.home)
    np.testing.assert_array_equal(run.predict(pixels).labels, run.predict(str(source)).labels)
    pixels[0, :20] = np.nan
    holed = run.predict(pixels.astype(np.float64), probabilities=True)
    assert (holed.labels[:20] == 255).all()
    assert (holed.labels[20:] < 2).all()
    assert np.isnan(holed.probabilities[:, :20]).all()


def test_threads_take_turns(scene_run: Run) -> None:
    run, threads = package.open_run(scene_run.home), torch.get_num_threads()
    images = np.random.default_rng(0).normal(1, 1, (6, 2, 40, 36))
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = [each.labels for each in pool.map(run.predict, images)]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    for image, labels in zip(images, found, strict=True):
        np.testing.assert_array_equal(run.predict(image).labels, labels)


def test_the_cases_of_a_run_and_looks_at_its_test_split(copied_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOXTILE_RUNS")  # where the ledger would lie else
    run = package.open_run(copied_run.home)
    split = copied_run.read("manifest.json")["data"]["split"]
    for side in ("train", "val", "test"):
        assert [case.id for case in run.cases(side)] == [each["id"] for each in split[side]]
    (case, *_), tested = run.cases(), run.cases("test")
    image, label = run.read(case)
    np.testing.assert_array_equal(image, case.read(Window.whole(case.shape))[0][:, 0])
    np.testing.assert_array_equal(label, case.read_label(Window.whole(case.shape))[0])
    assert run.predict(case).labels.shape == label.shape
    assert ledger(copied_run) == []
    run.predict(tested[0])
    run.predict(run.read(tested[0])[0])
    run.predict(tested[0].image.path)
    assert [look["what"] for look in ledger(copied_run)] == ["predict"]
    package.open_run(copied_run.home).predict(tested[0])
    assert len(ledger(copied_run)) == 2


def test_volumes_lie_in_the_patient_s_order(volume_run: Run, tmp_path: Path, voxtile: Command) -> None:
    source = volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"
    assert voxtile("predict", f"run={volume_run.home}", f"input={source}", f"output={tmp_path}").code == 0
    run = package.open_run(volume_run.home)
    found = run.predict(source)
    written = nibabel.as_closest_canonical(nibabel.load(tmp_path / "v1.nii.gz"))
    np.testing.assert_array_equal(found.labels, np.asarray(written.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(found.grid.matrix, written.affine)
    pixels = np.asarray(nibabel.as_closest_canonical(nibabel.load(source)).dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(run.predict(pixels[None]).labels, found.labels)


def test_an_array_says_its_spacing_where_volumes_are_resampled(tmp_path: Path, voxtile: Command) -> None:
    words = volume_words(tmp_path, spacing=[3.0, 2.0, 2.0], axis="y", neighbours=1)
    assert voxtile("train", *words, "training.steps=1", "training.val_every=1").code == 0
    (home,) = (path.parent for path in tmp_path.rglob("recipe.json"))
    run = package.open_run(home)
    sources = sorted(volumes(tmp_path / "more").glob("imagesTr/*"))
    arrays = [np.asarray(nibabel.as_closest_canonical(nibabel.load(each)).dataobj).transpose(2, 1, 0)[None] for each in sources]
    pixels = arrays[0]
    with pytest.raises(ConfigError, match=r"was trained on volumes at \(3.0, 2.0, 2.0\) mm .* 'spacing=\(z, y, x\)'"):
        run.predict(pixels)
    with pytest.raises(ConfigError, match="three numbers of mm above 0"):
        run.predict(pixels, spacing=(3, 1.5, 0))
    found = [run.predict(array, spacing=(3, 1.5, 1.5), probabilities=True) for array in arrays]
    for each, source in zip(found, sources, strict=True):
        np.testing.assert_array_equal(each.probabilities, run.predict(source, probabilities=True).probabilities)
    assert found[0].labels.shape == pixels.shape[1:]
    assert (found[0].probabilities != found[1].probabilities).any()


def test_a_bundle_says_the_same(scene_run: Run, tmp_path: Path, voxtile: Command) -> None:
    assert voxtile("export", f"run={scene_run.home}", "format=bundle", f"output={tmp_path / 'bundle'}").code == 0
    pixels = np.random.default_rng(0).normal(1, 1, (2, 30, 20))
    run, bundle = package.open_run(scene_run.home), package.open_run(tmp_path / "bundle")
    np.testing.assert_array_equal(run.predict(pixels).labels, bundle.predict(pixels).labels)
    assert (bundle.classes, bundle.channels) == (run.classes, run.channels)


def test_what_is_wrong_is_said(scene_run: Run, tmp_path: Path) -> None:
    run, pixels = package.open_run(scene_run.home), np.zeros((2, 20, 20))
    wrong = [
        (lambda: run.predict(pixels, overlp=0.5), ConfigError, "Did you mean 'overlap'"),
        (lambda: run.predict(pixels[0]), DataError, r"\(20, 20\) .* Expected whole or real numbers \[C, H, W\]"),
        (lambda: run.predict(pixels[:1]), DataError, "with 2 in the place of C"),
        (lambda: run.predict(pixels > 0), DataError, "type bool"),
        (lambda: run.predict(pixels[:, :0]), DataError, r"shape \(2, 1, 0, 20\)"),
        (lambda: run.predict(scene_run.folder / "scenes" / "images"), DataError, "holds 6 cases: s0, s1"),
        (lambda: run.predict(tmp_path / "none.tif"), DataError, "does not exist"),
        (lambda: run.predict(scene_run.folder / "scenes/images/s0.tif", spacing=(1, 1, 1)), ConfigError, "a file says its own"),
        (lambda: run.cases("tests"), ConfigError, "'tests' is no side of a split"),
        (lambda: package.open_run(tmp_path), RunError, "is no run folder"),
        (lambda: package.open_run(scene_run.home, "worst"), VoxtileError, "worst"),
        (lambda: package.open_run(scene_run.home, root=tmp_path / "none"), DataError, "does not exist"),
    ]
    for call, kind, said in wrong:
        with pytest.raises(kind, match=said):
            call()


def test_the_settings_are_those_of_predict() -> None:
    assert set(SETTINGS) < set(_defaults())
    assert _defaults()["overlap"] == 0.25


def test_the_example_of_the_document_runs(scene_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, code),) = [block for block in fences((ROOT / "docs/python.md").read_text(encoding="utf-8")) if block[0] == "python"]
    images = scene_run.folder / "scenes" / "images"
    for written, meant in (
        ("runs/satellite-unet-s0-63850357", str(scene_run.home)), ("scene.tif", str(images / "s0.tif")), ('"water"', '"disc"'),
        ("(4, 300, 280)", "(2, 30, 28)"),
    ):  # fmt: skip
        assert code.count(written) == 1
        code = code.replace(written, meant)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    with rasterio.open(tmp_path / "water.tif") as water:
        np.testing.assert_array_equal(water.read(1), names["found"].probabilities[1])
