"""voxtile.open_run: what a program of one's own makes of a run."""

import json
import pickle
import warnings
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
from tests.testers.tiny import scene_words, volume_words, volumes
from voxtile.cases.window import Window
from voxtile.commands.opened import Settings, _defaults
from voxtile.errors import ConfigError, DataError, RunError, VoxtileError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _looks_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at test splits are counted for each test by itself: those of other files look at the same data."""
    monkeypatch.setenv("VOXTILE_RUNS", str(tmp_path / "looks"))


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
    with pytest.warns(UserWarning, match="s4 is a test case of this run.*look number 1 at this test split, recorded"):
        run.predict(tested[0])
    run.predict(run.read(tested[0])[0])
    run.predict(tested[0].image.path)
    assert [look["what"] for look in ledger(copied_run)] == ["predict"]
    for number, given in enumerate((run.read(tested[0])[0], tested[0].image.path), start=2):
        with pytest.warns(UserWarning, match=f"look number {number}"):
            package.open_run(copied_run.home).predict(given)
    assert len(ledger(copied_run)) == 3


def test_a_block_of_the_test_split_is_known_by_its_place(tmp_path: Path, voxtile: Command) -> None:
    words = [*scene_words(tmp_path), "split=blocks", "split.blocks=[2,2]", "data.exclude=[s1,s2,s3,s4,s5]"]
    assert voxtile("train", *words, "training.steps=1", "training.val_every=1").code == 0
    run = package.open_run(*(tmp_path / "runs").glob("*/"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in run.cases("val"):
            run.predict(case)
    with pytest.warns(UserWarning, match="look number 1 at this test split"):
        run.predict(run.cases("test")[-1])


@pytest.mark.parametrize("normalisation", ["dataset", "case"])
def test_masks_and_nodata_go_with_the_pixels(tmp_path: Path, voxtile: Command, normalisation: str) -> None:
    words = scene_words(tmp_path, nodata=-9.0)
    for path in (tmp_path / "scenes" / "images").iterdir():
        with rasterio.open(path, "r+") as scene:
            scene.nodata = -9
            pixels = scene.read()
            pixels[:, :15] = -9
            scene.write(pixels)
    said = voxtile("train", *words, f"normalise={normalisation}", "training.steps=1", "training.val_every=1")
    assert said.code == 0, said.text
    run = package.open_run(*(tmp_path / "runs").glob("*/"))
    for case in run.cases("train"):
        found = run.predict(case, probabilities=True)
        image, label = run.read(case)
        assert image.mask[:, :15].all()
        image[0, 20, 20] = image[0, 20, 20] + 0  # it may be written to
        assert (label[:15] == 255).all()
        assert (found.labels[:15] == 255).all()
        with rasterio.open(case.image.path) as scene:
            for array in (image, scene.read(masked=True), np.ma.filled(image, np.nan)):
                np.testing.assert_array_equal(run.predict(array, probabilities=True).probabilities, found.probabilities)


@pytest.mark.filterwarnings("ignore:.* is a test case of this run")  # the other's training cases may be
def test_cases_of_another_run_are_read_as_ones_own(volume_run: Run, tmp_path: Path, voxtile: Command) -> None:
    words = volume_words(tmp_path, spacing=[3.0, 2.0, 2.0], axis="y", neighbours=1)
    assert voxtile("train", *words, "training.steps=1", "training.val_every=1").code == 0
    one, other = package.open_run(volume_run.home), package.open_run(*(tmp_path / "runs").glob("*/"))
    for mine, its in ((one, other), (other, one)):
        for case in its.cases():
            np.testing.assert_array_equal(mine.predict(case).labels, mine.predict(case.image.path).labels)


def test_maps_are_saved_in_the_format_of_their_image(scene_run: Run, volume_run: Run, tmp_path: Path, voxtile: Command) -> None:
    for run, source in (
        (scene_run, scene_run.folder / "scenes" / "images" / "s1.tif"),
        (volume_run, volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"),
    ):
        file = tmp_path / "saved" / source.name
        assert voxtile("predict", f"run={run.home}", f"input={source}", f"output={tmp_path}").code == 0
        found = package.open_run(run.home).predict(source)
        found.save(file)
        if file.suffix == ".tif":
            with rasterio.open(file) as saved, rasterio.open(tmp_path / source.name) as written:
                np.testing.assert_array_equal(saved.read(), written.read())
                assert (saved.crs, saved.transform, saved.colormap(1)) == (written.crs, written.transform, written.colormap(1))
        else:
            saved, written = nibabel.load(file), nibabel.load(tmp_path / source.name)
            np.testing.assert_array_equal(saved.dataobj, written.dataobj)
            np.testing.assert_array_equal(saved.affine, written.affine)
        with pytest.raises(DataError, match="exists already"):
            found.save(file)
        found.save(file, overwrite=True)
        (folder := tmp_path / "folder" / source.name).mkdir(parents=True)
        with pytest.raises(DataError, match="exists already"):
            found.save(folder, overwrite=True)
        with pytest.raises(DataError, match="File name too long"):
            found.save(tmp_path / f"{'x' * 300}{''.join(source.suffixes)}")
        assert sorted(path.name for path in file.parent.iterdir())[-1] == source.name
        with pytest.raises(DataError, match=rf"such maps end in '\{'.tif' if file.suffix == '.tif' else '.nii'}"):
            found.save(tmp_path / "map.png")
    with pytest.raises(DataError, match="no file format"):
        package.open_run(scene_run.home).predict(np.zeros((2, 20, 20))).save(tmp_path / "map.tif")


def test_what_the_network_sees_gives_the_probabilities(scene_run: Run, volume_run: Run) -> None:
    for trained, shape in ((scene_run, (2, 40, 36)), (volume_run, (1, 5, 16, 18))):
        run = package.open_run(trained.home)
        pixels = np.random.default_rng(0).normal(1, 1, shape)
        seen = torch.from_numpy(run.normalised(pixels))
        slices = seen[None] if seen.ndim == 3 else seen.movedim(1, 0)
        with torch.inference_mode():
            own = run.network(slices).softmax(dim=1)
        whole = run.predict(pixels, window=pixels.shape[-2:], probabilities=True).probabilities
        np.testing.assert_allclose(own.movedim(0, 1).reshape(whole.shape), whole, atol=1e-5)


def test_odd_images_are_warned_of(scene_run: Run, tmp_path: Path) -> None:
    run = package.open_run(scene_run.home)
    with pytest.warns(UserWarning, match="array: 100% of channel 'band1', which holds .*, so this map may mean nothing"):
        run.predict(np.full((2, 30, 30), 1e6))
    with pytest.warns(UserWarning, match="array: no pixel that was sampled holds data"):
        run.predict(np.full((2, 30, 30), np.nan))


def test_a_run_goes_to_other_processes_and_leaves_the_program_as_it_is(scene_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXTILE_CACHE", "")
    pixels = np.random.default_rng(0).normal(1, 1, (2, 40, 36))
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    run = package.open_run(scene_run.home, weights="last")
    torch.testing.assert_close(torch.rand(3), drawn, rtol=0, atol=0)
    first = run.predict(pixels, probabilities=True)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(run.predict(pixels, probabilities=True).probabilities, first.probabilities)
    again = pickle.loads(pickle.dumps(run))
    np.testing.assert_array_equal(again.predict(pixels, probabilities=True).probabilities, first.probabilities)
    assert np.array_equal(pickle.loads(pickle.dumps(first)).labels, first.labels)
    run.config["data"]["window"] = [1, 1]
    assert run.config["data"]["window"] == [16, 16]
    assert len(pickle.dumps(first)) < 2 * (first.labels.nbytes + first.probabilities.nbytes) + 10_000
    torch.set_default_dtype(torch.float64)
    try:
        other = package.open_run(scene_run.home, weights="last")
        np.testing.assert_array_equal(other.predict(pixels, probabilities=True).probabilities, first.probabilities)
    finally:
        torch.set_default_dtype(torch.float32)
    assert run.device == torch.device("cpu")
    assert (package.Run, package.Prediction) == (type(run), type(first))
    assert not hasattr(package, "Runs")


def test_settings_and_arrays_come_as_programs_have_them(scene_run: Run, volume_run: Run) -> None:
    run, pixels = package.open_run(scene_run.home), np.random.default_rng(0).normal(1, 1, (2, 40, 36)).astype(np.float32)
    wanted = run.predict(pixels, overlap=0.5, mirrors=["y", "x"], window=[16, 24], batch_size=2).labels
    found = run.predict(pixels, overlap=np.float32(0.5), mirrors=("y", "x"), window=np.array([16, 24]), batch_size=np.int64(2))
    np.testing.assert_array_equal(found.labels, wanted)
    plain = run.predict(pixels).labels
    for given in (
        torch.from_numpy(pixels),
        pixels.tolist(),
        np.asfortranarray(pixels),
        pixels.astype(">f4"),
        pixels[:, ::-1][:, ::-1],
    ):
        np.testing.assert_array_equal(run.predict(given).labels, plain)
    slices = np.random.default_rng(0).normal(1, 1, (1, 5, 16, 18))
    volumes = package.open_run(volume_run.home)
    assert volumes.predict(slices, spacing=np.array([3, 1.5, 1.5], np.float32)).grid.spacing == (3.0, 1.5, 1.5)


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


@pytest.mark.filterwarnings("ignore:.* is a test case of this run")  # which is not what this is about
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
        (lambda: run.predict(pixels[:, :0]), DataError, r"shape \(2, 0, 20\)"),
        (lambda: run.predict(np.stack([pixels, pixels])), DataError, r"\(2, 2, 20, 20\) .* of one scene, with 2"),
        (lambda: run.predict(np.moveaxis(pixels, 0, -1)), DataError, r"shape \(20, 20, 2\) .* 'np.moveaxis\(array, -1, 0\)'"),
        (lambda: run.predict(None), DataError, "type object"),
        (lambda: run.predict([[1], [2, 3]]), DataError, "A list was given as an image"),
        (lambda: run.predict(pixels.astype(np.longdouble)), DataError, "type float128"),
        (lambda: run.predict(""), DataError, "The image '' does not exist"),
        (lambda: run.predict(pixels, spacing=(1, 1, 1)), ConfigError, "trained on scenes or pictures"),
        (lambda: run.predict("x" * 400), DataError, "File name too long"),
        (lambda: run.predict("http://127.0.0.1:9/a.tif"), DataError, "http://127.0.0.1:9/a.tif"),
        (lambda: run.predict(pixels, mirrors=3), ConfigError, "'mirrors=3' must be a list"),
        (lambda: package.open_run(scene_run.home, trust=[package]), ConfigError, "names of modules"),
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
    assert set(Settings.__annotations__) < set(_defaults())
    assert _defaults()["overlap"] == 0.25


def test_the_example_of_the_document_runs(scene_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, code),) = [block for block in fences((ROOT / "docs/python.md").read_text(encoding="utf-8")) if block[0] == "python"]
    images = scene_run.folder / "scenes" / "images"
    for written, meant, times in (
        ("runs/satellite-unet-s0-63850357", str(scene_run.home), 1), ("scene.tif", str(images / "s0.tif"), 2),
        ("(4, 300, 280)", "(2, 30, 28)", 1), (":96, :96", ":32, :32", 1),
    ):  # fmt: skip
        assert code.count(written) == times
        code = code.replace(written, meant)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an array of zeros
        exec(compile(code, "docs/python.md", "exec"), names)
    with rasterio.open(tmp_path / "map.tif") as written:
        np.testing.assert_array_equal(written.read(1), names["found"].labels)
    assert names["logits"].shape == (1, 2, 32, 32)
