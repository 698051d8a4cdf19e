"""voxtile check: what it says of the data and the costs, and that it leaves nothing but a picture."""

import os
import re
import shutil
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import rasterio
from PIL import Image
from rich.console import Console

from tests.commands.conftest import Command, Outcome, homes
from tests.testers.geotiff import save
from tests.testers.surveys import CLASSES, open_case
from tests.testers.tiny import scene, scene_words, volume_words
from voxtile.cases.dataset import Dataset
from voxtile.cases.layouts import FolderLayout
from voxtile.cases.windowing import Windowing
from voxtile.commands.check import look_at_files, look_at_sides, print_split
from voxtile.data import survey
from voxtile.data.splits import Split
from voxtile.data.symmetry import Symmetry


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def row(said: Outcome, name: str) -> list[str]:
    return next(line.replace("│", " ").split() for line in said.out.splitlines() if line.replace("│", " ").split()[:1] == [name])


def test_a_sound_data_set_ends_with_the_command_to_train(folder: Path, voxtile: Command) -> None:
    words = scene_words(folder)
    said = voxtile("check", *words)
    assert said.code == 0
    assert row(said, "cases") == ["cases", "4", "1", "1"]
    assert row(said, "groups") == ["groups", "4", "1", "1"]
    assert row(said, "pixels") == ["pixels", f"{4 * 40 * 36:,}", f"{40 * 36:,}", "locked"]
    shares = [np.mean([(rasterio.open(p).read() == c).mean() for p in (folder / "scenes/labels").glob("*.tif")]) for c in (0, 1)]
    for name, share in zip(("ground", "disc"), shares, strict=True):
        of_class = row(said, name)
        assert float(of_class[1]) == pytest.approx(100 * share, abs=10)
        assert of_class[2::2] == ["%", "%"]
        assert of_class[5] == "locked"
    assert len(row(said, "band1")) == len(row(said, "band2")) == 6
    assert float(row(said, "band1")[4]) > float(row(said, "band2")[4])  # the first band shows the discs
    assert re.search(r"one step [\d.]+ s, one validation [\d.]+ s: 6 steps take about \d+ s here", said.text)
    assert re.search(r"memory [\d.]+ GiB; disk \d+ MiB, of which \d+ MiB \(the resume state\)", said.text)
    assert said.text.endswith(f"to train: voxtile train {' '.join(words)}")


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_of_many_classes_with_long_names_is_readable(width: int) -> None:
    names = [f"class number {number} with a very long name, of buildings_and_other_structures" for number in range(150)]
    found = SimpleNamespace(counts=np.arange(150), pixels=123_456_789_012)
    cases = [SimpleNamespace(id="a", group="g")] * 1000
    split = SimpleNamespace(sides=dict.fromkeys(("train", "val", "test"), cases))
    prepared = SimpleNamespace(dataset=SimpleNamespace(classes=names, name="many"), split=split, surveys={"a": found})
    out = Console(file=StringIO(), width=width)
    print_split(out, prepared)
    lines = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in out.file.getvalue().splitlines()]
    assert ["pixels", *["123,456,789,012,000"] * 2, "locked"] in lines
    said = re.sub(r"\s", "", "".join(line[0] for line in lines))
    assert all(re.sub(r"\s", "", name) in said for name in names)
    assert [line[1:] for line in lines if line[1:] and "1.33 %" in line[1]] == [["1.33 %", "1.33 %", "locked"]]


def test_a_warmup_that_is_never_over_is_said_before_and_in_training(folder: Path, voxtile: Command) -> None:
    words = [*scene_words(folder), "training.steps=2", "training.val_every=2", "scheduler.warmup=2"]
    for command in ("check", "train"):
        assert "rises over 'scheduler.warmup=2' steps, and training ends after 2: it never" in voxtile(command, *words).text
    assert "learning rate rises" not in voxtile("train", *words[:-1], "scheduler.warmup=1").text


IDLE = {
    "data.vectors.border=3": "all labels are rasters: the setting 'border' is of no effect",
    "training.norm_statistics=2 model.norm=group": "'training.norm_statistics=2' is of no effect: this network has no batch",
    "split=blocks split.side=200 split.blocks=[2,2]": "'split.side=200' takes the place of 'split.blocks=[2, 2]', which is of no",
    "scheduler=step scheduler.every=2": "falls after each 'scheduler.every=2' steps, and training ends after 2: it never falls",
}
ALIVE = (
    "training.norm_statistics=2",
    "split=blocks split.side=200",
    "split=blocks split.blocks=[2,2]",
    "scheduler=step scheduler.every=1",
)


def test_settings_that_do_nothing_are_said_before_and_in_training(folder: Path, voxtile: Command) -> None:
    words = [*scene_words(folder), "model.depth=1", "training.steps=2", "training.val_every=2"]
    for typed, said in IDLE.items():
        for command in ("check", "train"):
            outcome = voxtile(command, *words, *typed.split())
            assert (outcome.code, said in outcome.text) == (0, True), outcome.text
    for typed in ALIVE:
        outcome = voxtile("train", *words, *typed.split())
        assert outcome.code == 0
        assert not [word for word in ("of no effect", "takes the place", "never falls") if word in outcome.text], typed


def test_slices_around_a_single_one_are_said_to_be_it(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((8, 8), np.uint8))
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        picture.save(tmp_path / kind / "a.tif")
    layout = FolderLayout(tmp_path, images="images/{id}.tif", labels="labels/{id}.tif")
    dataset = Dataset("one", "picture", layout, {0: "ground", 1: "disc"}, windowing=Windowing((8, 8), neighbours=1))
    dataset.cases()
    (said,) = dataset.idle
    assert "every case has one alone: the network sees it 3 times" in said
    picture.save(tmp_path / "images" / "a.tif", save_all=True, append_images=[picture])
    picture.save(tmp_path / "labels" / "a.tif", save_all=True, append_images=[picture])
    dataset.cases()
    assert not dataset.idle


def test_quarter_turns_of_pixels_that_are_not_square_are_said_before_and_in_training(folder: Path, voxtile: Command) -> None:
    words = [*scene_words(folder), "training.steps=2", "training.val_every=2"]
    for path in (folder / "scenes").glob("*/*.tif"):
        with rasterio.open(path, "r+") as scene:
            scene.transform @= rasterio.Affine.scale(1, 2)
    for command in ("check", "train"):
        assert "4 training cases are not square" in voxtile(command, *words).text
    assert "are not square" not in voxtile("train", *words, "data.scene.resolution=20").text


def test_a_scene_of_another_resolution_is_named_before_and_in_training(folder: Path, voxtile: Command) -> None:
    words = [*scene_words(folder), "training.steps=2", "training.val_every=2", "split.test=0"]
    for path in (folder / "scenes").glob("*/s0.tif"):
        with rasterio.open(path, "r+") as scene:
            scene.transform @= rasterio.Affine.scale(2)
    told = "1 training or validation case are of another size than those of the median training case, 10x10 m: s0 (20x20 m)"
    for command in ("check", "train"):
        assert told in voxtile(command, *words).text
    assert "of another size" not in voxtile("train", *words, "data.scene.resolution=10").text


def test_the_command_it_ends_with_trains(folder: Path, voxtile: Command) -> None:
    said = voxtile("check", *scene_words(folder), "training.steps=2", "training.val_every=2")
    line = said.out.splitlines()[-1]
    assert voxtile(*line.removeprefix("to train: voxtile ").split()).code == 0


def test_it_leaves_a_picture_sheet_and_no_run(folder: Path, voxtile: Command) -> None:
    words, place = scene_words(folder), folder / "runs" / "check" / "discs"
    place.mkdir(parents=True)
    for half in (place / f".{10**8}-5.split.png", place.parent / f".{10**8}-5.discs.png"):  # of a process that was killed
        half.touch()
        os.utime(half, (0, 0))
    said = voxtile("check", *words)
    left = [path for place in ("here", "runs") for path in (folder / place).rglob("*") if path.is_file()]
    assert sorted(left) == [folder / "runs" / "check" / "discs" / "split.png", folder / "runs" / "check" / "discs.png"]
    assert "check/discs.png" in said.text
    assert "the split on the map: " in said.text
    assert "check/discs/split.png" in said.text
    for path in left:
        with Image.open(path) as sheet:
            assert len(np.unique(np.asarray(sheet))) > 20


def test_how_far_the_sides_are_apart_is_said(folder: Path, voxtile: Command) -> None:
    said = voxtile("check", *scene_words(folder))
    found = re.search(
        r"distance to training: validation ([\d.]+) (k?m) \(s(\d) and s(\d)\); test [\d.]+ k?m \(s\d and s\d\)", said.text
    )
    assert found
    metres = float(found[1]) * (1000 if found[2] == "km" else 1)
    # Scenes of 360 m, a kilometre from one to the next.
    assert metres == pytest.approx(1000 * abs(int(found[3]) - int(found[4])) - 360, rel=2e-3)


@pytest.mark.parametrize("scheme", ["groups", "file"])
def test_cases_of_one_patient_on_different_sides_are_named(folder: Path, voxtile: Command, scheme: str) -> None:
    words = scene_words(folder)
    for kind in ("images", "labels"):
        for path in (folder / "scenes" / kind).iterdir():
            number = int(path.stem[1:])
            path.rename(path.with_name(f"p{number // 2}_{'ab'[number % 2]}.tif"))
    (folder / "split.json").write_text('{"train": ["p0_a", "p1_a", "p1_b", "p2_a", "p2_b"], "val": ["p0_b"]}')
    words += ["data.layout.images=images/{patient}_{visit}.tif", "data.layout.labels=labels/{patient}_{visit}.tif"]
    words.append('+data.layout.case="{patient}_{visit}"')
    words += [f"split={scheme}", *([f"split.file={folder / 'split.json'}"] if scheme == "file" else [])]
    said = voxtile("check", *words)
    assert "cases on different sides share 'patient' (p" in said.text
    assert "type '+data.group={expression: patient}', or 'expression: visit', or" in said.text
    assert "cases on different sides share 'patient' (p" in voxtile("train", *words, f"paths.runs={folder / 'runs'}").text
    for rule in ("patient", "id") if scheme == "groups" else ("id",):
        said = voxtile("check", *words, f"+data.group={{expression: {rule}}}")
        assert said.code == 0
        assert "share 'patient'" not in said.text


def test_volumes_are_checked_on_boxes(folder: Path, voxtile: Command) -> None:
    words = volume_words(folder, window=[8, 16, 16])
    assert voxtile("check", *words, "model.dims=3").code == 0
    assert (folder / "runs" / "check" / "tubes.png").exists()
    assert not (folder / "runs" / "check" / "tubes").exists()  # volumes lie nowhere


def test_windows_that_are_mostly_padding_and_volumes_of_one_value_are_named(folder: Path, voxtile: Command) -> None:
    words = volume_words(folder, window=[32, 32])
    path = folder / "volumes" / "imagesTr" / "v1.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.full(image.shape, 100, np.int16), image.affine), path)
    said = voxtile("check", *words)
    assert "72 % of a training window lies outside the median case, of 5x16x18 (D, H, W) pixels" in said.text
    assert "all values of channel 'channel1' that were looked at are one in 1 case: v1;" in said.text


def test_channels_of_one_value_are_told_together_for_the_same_cases(folder: Path, voxtile: Command) -> None:
    words = [*scene_words(folder), "split.val=0.4", "split.test=0"]

    def check(*flat: tuple[str, int]) -> str:
        for name, band in flat:
            with rasterio.open(folder / "scenes" / "images" / f"{name}.tif", "r+") as scene:
                scene.write(np.full(scene.shape, 7, np.float32), band)
        return voxtile("check", *words).text

    said = check(("s1", 1), ("s1", 2))
    assert "channels 'band1', 'band2' that were looked at are one in 1 case: s1; where" in said
    assert "or leave the case out with" in said
    said = check(*((f"s{number}", 2) for number in range(6)))
    assert "channel 'band1' that were looked at are one in 1 case: s1; where" in said
    assert re.search(r"channel 'band2' that were looked at are one in 6 cases: [^;]*; [^;]*leave the channel out with", said)


def test_volumes_are_no_distance_apart(folder: Path, voxtile: Command) -> None:
    said = voxtile("check", *volume_words(folder, window=[16, 16]))
    assert "distance to training: validation -; test -" in said.text


def test_scenes_are_grouped_by_place(folder: Path, voxtile: Command) -> None:
    words = [word for word in scene_words(folder, group={"place": 700}) if not word.startswith("split")]
    said = voxtile("check", *words, "split=groups")
    assert said.code == 2
    assert "The data set has 1 group (s0)" in said.text


def test_what_to_look_at_is_listed(folder: Path, voxtile: Command) -> None:
    words = scene_words(folder, labels={0: "ground", 1: "disc", 2: "pole"})
    labels = folder / "scenes" / "labels"
    with rasterio.open(labels / "s0.tif", "r+") as label:
        label.write(np.full((1, 2), 2, dtype=np.uint8), 1, window=((0, 1), (0, 2)))
    said = voxtile("check", *words)
    assert said.code == 0
    assert "class 'pole' is 0.0" in said.text
    assert "'data.balance=0.5' draws windows with it more often" in said.text
    assert "class 'pole' occurs in no validation case" in said.text
    assert "'split.stratify=true'" in said.text


def test_labels_without_data_and_groups_of_nearly_one_name_are_listed(folder: Path, voxtile: Command) -> None:
    words = [*scene_words(folder), "split.test=0"]
    label = folder / "scenes" / "labels" / "s1.tif"
    with rasterio.open(label) as file:
        classes = file.read().astype(np.float32)
    assert "hold no data" not in voxtile("check", *words).text
    classes[:, :10] = np.nan
    scene(label, classes, 1)
    for kind in ("images", "labels"):
        (folder / "scenes" / kind / "s5.tif").rename(folder / "scenes" / kind / "S-00.tif")
    said = voxtile("check", *words)
    assert "the labels of 1 case hold no data in 10% or more of the image's pixels, where they are nodata, masked," in said.text
    assert "groups differ in capitals, leading zeros, '-', '_' or blanks only: 'S-00' and 's0'." in said.text


def pictures_of(folder: Path, words: list[str]) -> None:
    """Makes pictures of the scenes that `words` train on, as PNG files without a place that ask to be turned by 180 degrees."""
    exif = Image.Exif()
    exif[274] = 3
    for path in sorted((folder / "scenes").rglob("*.tif")):
        with rasterio.open(path) as file:
            pixels = file.read(1)
        if path.parent.name == "images":
            pixels = np.clip(60 + 50 * pixels, 0, 255).astype(np.uint8)
        options = {"exif": exif} if path.parent.name == "images" else {}
        Image.fromarray(pixels).save(path.with_suffix(".png"), **options)
    words += ["data.layout.images='images/{id}.png'", "data.layout.labels='labels/{id}.png'"]


def test_what_is_odd_about_many_files_is_one_remark(folder: Path, voxtile: Command) -> None:
    words = [*scene_words(folder, format="picture"), "split.test=0"]
    pictures_of(folder, words)
    said = voxtile("check", *words)
    assert said.code == 0, said.text
    assert re.search(r"s0\.png asks viewers to turn it .* So it is with 5 other files: \S*s1\.png, .* and 2 more\.", said.text)
    assert said.text.count("asks viewers to turn it") == 1
    assert "asks viewers to turn it" in voxtile("train", *words).text
    (home,) = homes(folder / "runs")
    common = ("predict", f"run={home}", f"output={folder / 'maps'}")
    (folder / "two").mkdir()
    for name in ("s0.png", "s1.png"):
        shutil.copy(folder / "scenes" / "images" / name, folder / "two")
    assert voxtile(*common, f"input={folder / 'two'}").text.count("asks viewers to turn it") == 1


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pictures_among_scenes_have_no_place_and_those_alone_need_none(folder: Path, voxtile: Command) -> None:
    words = [*scene_words(folder), "split.test=0"]
    for number in range(5):
        for kind in ("images", "labels"):
            with rasterio.open(folder / "scenes" / kind / f"s{number}.tif") as file:
                pixels = file.read()
            save(folder / "scenes" / kind / f"s{number}.tif", pixels, crs=None, transform=None)
        said = voxtile("check", *words).text if number in (0, 4) else ""
        if number == 0:
            assert re.search(r"1 image without a place on Earth among 6, of which the others have one: \S*s0\.tif", said)
    assert "5 images without a place on Earth among 6" in said
    assert "s0.tif has no coordinate reference system" not in said
    assert "place on Earth" not in voxtile("check", *words, "data.exclude=[s5]").text


def test_a_pair_of_cases_that_share_their_values_is_suspicious(folder: Path, voxtile: Command) -> None:
    words = scene_words(folder)
    with rasterio.open(folder / "scenes" / "images" / "s5.tif") as file:
        bands = file.read()
    bands[:, :2] += 0.001
    scene(folder / "scenes" / "images" / "s0.tif", bands)
    said = voxtile("check", *words)
    assert said.code == 0
    assert "s0" in said.text
    assert "s5" in said.text
    assert "1 thing to look at" in said.text


def test_a_scene_in_another_unit_is_named(folder: Path, voxtile: Command) -> None:
    words = [*scene_words(folder), "normalise=dataset", "split.test=0"]
    said = voxtile("check", *words, "+data.scene.scale=0.0001")  # of every type of number floats are made
    assert "another unit" not in said.text
    path = folder / "scenes" / "images" / "s5.tif"
    with rasterio.open(path) as file:
        bands = file.read()
    scene(path, bands / 10_000, 5)
    said = voxtile("check", *words, "+data.scene.scale=0.0001")
    assert said.code == 0
    assert re.search(rf"values of channel 'band1' are about [89\d],?\d+ times smaller in {re.escape(str(path))} than", said.text)
    assert "another unit" not in voxtile("check", *words, "normalise=case").text


def test_cases_of_which_a_mask_left_much_at_zero_are_noted_where_zeros_are_measured(folder: Path, voxtile: Command) -> None:
    words = volume_words(folder)
    hint = "are 0 in every channel, and count in what each case is normalised by"
    assert hint not in voxtile("check", *words).text
    for path in (folder / "volumes" / "imagesTr").iterdir():
        image = nibabel.load(path)
        values = np.asarray(image.dataobj).copy()
        values[:7] = 0
        nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    said = voxtile("check", *words)
    assert f"39% of the pixels of the median training case {hint}" in said.text
    assert "'normalise=case_nonzero'" in said.text
    assert hint not in voxtile("check", *[word for word in words if word != "normalise=case"], "normalise=case_nonzero").text


@pytest.mark.parametrize(
    ("classes", "symmetry", "said"),
    [
        (["other", "Left-Hippocampus", "Right-Hippocampus"], Symmetry(("x",)), ["'Left-Hippocampus' and 'Right-Hippocampus'"]),
        (["other", "r_kidney", "l_kidney"], Symmetry(("x",)), ["'r_kidney' and 'l_kidney'"]),
        (["other", "left", "right"], Symmetry(("x",), swap={"x": [[1, 2]]}), []),
        (["other", "left", "right"], Symmetry(()), []),
        (["other", "left", "middle", "cleft", "cright"], Symmetry(("x",)), []),
    ],
)
def test_left_and_right_structures_that_do_not_change_places_are_named(
    classes: list[str], symmetry: Symmetry, said: list[str]
) -> None:
    remarks = look_at_sides(classes, symmetry)
    assert len(remarks) == len(said)
    assert all(pair in remark for pair, remark in zip(said, remarks, strict=True))


def test_what_stops_a_training_stops_the_check(folder: Path, voxtile: Command) -> None:
    said = voxtile("check", *scene_words(folder), "data.window=[128,128]")
    assert said.code == 2
    assert "larger than every case" in said.text
    assert list((folder / "here").iterdir()) == []


def test_of_a_huge_scene_it_is_said_that_nodata_is_not_known_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(1, 500, (1, 60, 60), dtype=np.int16)
    pixels[:, 30:] = 0
    save(tmp_path / "a.tif", pixels, nodata=0)
    save(tmp_path / "a_label.tif", np.ones((1, 60, 60), dtype=np.uint8))
    monkeypatch.setattr(survey, "BLOCK_SIDE", 10)

    def looked() -> tuple[int, list[str]]:
        case = open_case(tmp_path)
        found = survey.survey(case, CLASSES)
        prepared = SimpleNamespace(split=Split((case,), (), ()), surveys={"a": found})
        return found.judged, [note for note in look_at_files(prepared) if "blocks were looked at" in note]

    assert looked() == (1800, [])
    monkeypatch.setattr(survey, "MOST_IMAGE_BLOCKS", 12)
    judged, (note,) = looked()
    assert 1800 < judged < 3600
    assert "a.tif is so large that 12 of its 36 blocks were looked at, and 50 % of their pixels hold no data" in note
