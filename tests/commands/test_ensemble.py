"""voxtile predict with several runs."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio

from tests.commands.conftest import Command, Run, homes, with_manifest
from voxtile.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def other_run(scene_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another seed, network and normalisation than the first."""
    from voxtile.commands.main import main

    folder = tmp_path_factory.mktemp("other_run")
    words = ["seed=1", "model.depth=1", "normalise=case", f"paths.runs={folder}", "training.steps=1", "training.val_every=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["voxtile", "train", *scene_run.words, *words])
        assert main() == 0
    return homes(folder)[0]


@pytest.mark.parametrize("more", [[], ["mirrors=[y,x]"]], ids=["plain", "mirrored"])
def test_several_runs_say_the_mean_of_each_alone(
    more: list[str], scene_run: Run, other_run: Path, tmp_path: Path, voxtile: Command
) -> None:
    source = scene_run.folder / "scenes" / "images" / "s1.tif"
    heat = {}
    for name, runs in (("a", scene_run.home), ("b", other_run), ("both", f"[{scene_run.home},{other_run}]")):
        words = [
            f"{'runs' if name == 'both' else 'run'}={runs}",
            f"input={source}",
            f"output={tmp_path / name}",
            "heatmaps=true",
            f"paths.runs={tmp_path}",
        ]
        assert voxtile("predict", *words, *more).code == 0
        with rasterio.open(tmp_path / name / "s1_heatmap.tif") as found, rasterio.open(tmp_path / name / "s1.tif") as classes:
            heat[name] = found.read()
            np.testing.assert_array_equal(classes.read(1), heat[name].argmax(axis=0))
            run = classes.tags()["run"]
    np.testing.assert_allclose(heat["both"], (heat["a"] + heat["b"]) / 2, atol=1e-6)
    assert np.abs(heat["a"] - heat["b"]).max() > 0.01
    identities = [json.loads((home / "recipe.json").read_text())["identity"] for home in (scene_run.home, other_run)]
    assert run == "+".join(identities)


def test_several_runs_look_once_at_their_test_split(scene_run: Run, other_run: Path, tmp_path: Path, voxtile: Command) -> None:
    data = [json.loads((home / "manifest.json").read_text())["data"] for home in (scene_run.home, other_run)]
    assert data[0]["test_fingerprint"] == data[1]["test_fingerprint"]
    words = [f"runs=[{scene_run.home},{other_run}]", f"input={scene_run.folder / 'scenes' / 'images'}"]
    for number in (1, 2):  # both scenes of the test split are predicted
        said = voxtile("predict", *words, f"output={tmp_path / f'out{number}'}", f"paths.runs={tmp_path}")
        assert (said.code, said.text.count(f"look number {number} at this test split, recorded")) == (0, 1), said.text
        assert said.text.count("look number") == 1
    (ledger,) = (tmp_path / "test_ledger").iterdir()
    both = "+".join(json.loads((home / "recipe.json").read_text())["identity"] for home in (scene_run.home, other_run))
    assert [json.loads(line)["run"] for line in ledger.read_text().splitlines()] == [both, both]


@pytest.mark.parametrize(("key", "value"), [("classes", ["soil", "disc"]), ("channels", ["band1", "nir"])])
def test_runs_that_differ_in_what_they_say_or_see_do_not_predict_together(
    scene_run: Run, copied_run: Run, tmp_path: Path, voxtile: Command, key: str, value: list[str]
) -> None:
    manifest = copied_run.read("manifest.json")
    manifest["data"][key] = value
    with_manifest(copied_run.home, manifest)
    (copied_run.home / "recipe.json").write_text(json.dumps(copied_run.read("recipe.json") | {"identity": "0" * 32}))
    words = [f"runs=[{scene_run.home},{copied_run.home}]", f"input={scene_run.folder}/scenes/images/s1.tif"]
    said = voxtile("predict", *words, f"output={tmp_path / 'out'}")
    assert said.code == 4
    assert f"cannot predict together: they differ in {key}" in said.text
    assert value[0] in said.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["scene", "volume"])
def test_the_uncertainty_of_several_runs_is_the_variance_between_them(
    request: pytest.FixtureRequest, tmp_path: Path, voxtile: Command, kind: str
) -> None:
    run: Run = request.getfixturevalue(f"{kind}_run")
    words = [word for word in run.words if not word.startswith("paths.runs=")]
    assert voxtile("train", *words, "seed=1", f"paths.runs={tmp_path / 'runs'}").code == 0
    source = run.folder / ("scenes/images/s1.tif" if kind == "scene" else "volumes/imagesTr/v1.nii.gz")
    both = [str(run.home), str(homes(tmp_path / "runs")[0])]
    shared = [f"input={source}", "window=[64,64]", "heatmaps=true"]  # one window: joined ones are no variance of joined ones
    for number, home in enumerate(both):
        assert voxtile("predict", f"run={home}", *shared, f"output={tmp_path / str(number)}").code == 0
    said = voxtile("predict", f"runs=[{','.join(both)}]", *shared, "uncertainty=true", f"output={tmp_path / 'both'}")
    assert said.code == 0, said.text

    def pixels(folder: str, what: str) -> np.ndarray:
        (file,) = (tmp_path / folder).glob(f"*_{what}*")
        if kind == "scene":
            with rasterio.open(file) as found:
                return found.read()
        array = nibabel.load(file).get_fdata(dtype=np.float32)
        return np.moveaxis(array, -1, 0) if array.ndim == 4 else array

    each = np.stack([pixels(name, "heatmap") for name in "01"])
    variance = pixels("both", "uncertainty")
    np.testing.assert_allclose(pixels("both", "heatmap"), each.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(variance.squeeze(), each.var(axis=0).mean(axis=0).squeeze(), atol=1e-6)
    assert variance.max() > 1e-4


def test_both_names_of_the_volumes_format_are_one_reading(volume_run: Run, tmp_path: Path, voxtile: Command) -> None:
    words = [word for word in volume_run.words if not word.startswith("paths.runs=")]
    assert voxtile("train", *words, "data.format=volume", "seed=1", f"paths.runs={tmp_path}", "training.steps=2").code == 0
    source = volume_run.folder / "volumes" / "imagesTr" / "v1.nii.gz"
    runs = f"runs=[{volume_run.home},{homes(tmp_path)[0]}]"
    said = voxtile("predict", runs, f"input={source}", f"output={tmp_path / 'maps'}")
    assert said.code == 0, said.text


def test_what_identifies_a_run_is_read_once_however_many_cases_there_are(
    scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, counts = RunFolder.read, []

    def counted(home: RunFolder, name: str, *keys: str) -> dict:
        counts[-1] += name == "recipe.json"
        return read(home, name, *keys)

    monkeypatch.setattr(RunFolder, "read", counted)
    images = scene_run.folder / "scenes" / "images"
    for number, source in enumerate((images / "s1.tif", images)):
        counts.append(0)
        assert voxtile("predict", f"run={scene_run.home}", f"input={source}", f"output={tmp_path}/maps{number}/").code == 0
    assert counts[0] == counts[1]
