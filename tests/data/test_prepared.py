"""Preparing a data set of real files: what stops it, what its fingerprint depends on, and that test labels stay closed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from tests.testers.geotiff import NORTH_UP, save
from tests.testers.memory import memory_case
from tests.testers.streams import sample_of
from voxtile.cases.case import Case
from voxtile.cases.dataset import Dataset
from voxtile.cases.layouts import FolderLayout
from voxtile.cases.window import Window
from voxtile.data import normalise, prepared, survey
from voxtile.data.augment import Augment
from voxtile.data.blank_labels import blank_labels
from voxtile.data.blocks import BlockSplit
from voxtile.data.datamodule import Steps, VoxtileData
from voxtile.data.leakage import find_leaks
from voxtile.data.normalise import FixedNormalisation, Normalisation
from voxtile.data.prepared import Prepared, copies, prepare, window_size
from voxtile.data.sampling import Positions, Sampling
from voxtile.data.splits import GivenSplit, GroupSplit, KFold, Split
from voxtile.data.survey import Measured, Survey
from voxtile.errors import ConfigError, DataError
from voxtile.training.class_weights import class_weight_table

LABELS = {0: "ground", 1: "water", 2: "roof", 255: "ignore"}
SCENES = {"train": ("a", "b", "c"), "val": ("d", "e"), "test": ("f", "g")}


def write(path, array, nodata=None, corner=0):
    save(path, array, transform=NORTH_UP @ Affine.translation(1000 * corner, 0), nodata=nodata)


def scene(root, side, name, *, image=None, label=None):
    """A scene of two bands with an unlike seed, at a place of its own."""
    number = ord(name)
    rng = np.random.default_rng(number)
    pixels = rng.integers(1, 999, (2, 24, 40), dtype=np.int16) if image is None else image
    classes = rng.integers(0, 3, (24, 40), dtype=np.uint8) if label is None else label
    write(root / side / "images" / f"{name}.tif", pixels, nodata=0, corner=number)
    write(root / side / "labels" / f"{name}.tif", classes[None], corner=number)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    for side, names in SCENES.items():
        for name in names:
            scene(folder, side, name)
    return folder


def dataset(root, **settings):
    layout = FolderLayout(root, "{split}/images/{id}.tif", "{split}/labels/{id}.tif")
    return Dataset("d", "geotiff", layout, LABELS, **settings)


def ready(root, *, scheme=None, per="dataset", data=None, **options):
    return prepare(data or dataset(root), scheme or GivenSplit(), Normalisation(per), root.parent / "cache", **options)


def test_a_data_set_is_split_surveyed_and_measured(root):
    ticks = []
    found = ready(root, progress=lambda total, title: ticks.append(total) or (lambda: ticks.append(1)))
    assert {side: tuple(case.id for case in cases) for side, cases in found.split.sides.items()} == SCENES
    assert set(found.surveys) == {"a", "b", "c", "d", "e"}
    assert set(found.images) == {"a", "b", "c", "d", "e", "f", "g"}
    assert found.channels == 2
    labels = [np.random.default_rng(ord(name)) for name in "abc"]
    labels = [
        (rng.integers(1, 999, (2, 24, 40), dtype=np.int16), rng.integers(0, 3, (24, 40), dtype=np.uint8))[1] for rng in labels
    ]
    assert found.class_counts == np.bincount(np.ravel(labels)).tolist()
    assert found.present_counts == [3 * 24 * 40] * 3
    assert ticks == [7] + [1] * 7


def test_intensities_come_from_training_cases_only_or_from_each_case(root):
    shared = ready(root)
    pixels = np.concatenate([shared.surveys[name].sample for name in "abc"], axis=1)
    np.testing.assert_allclose(shared.intensity.mean, Normalisation("dataset").of_dataset([pixels]).mean)
    assert {shared.intensity_of(case) for case in shared.split.val} == {shared.intensity}
    own = ready(root, per="case")
    assert own.intensity is None
    assert len({own.intensity_of(case) for case in own.split.val}) == 2


def test_a_data_set_that_is_measured_on_a_part_of_its_pixels_has_another_fingerprint(root, monkeypatch):
    given = FixedNormalisation([1, 2], [3, 4])
    before = [ready(root), ready(root, per="case"), prepare(dataset(root), GivenSplit(), given, root.parent / "cache")]
    monkeypatch.setattr(normalise, "MOST_MEASURED", 100)
    after = [ready(root), ready(root, per="case"), prepare(dataset(root), GivenSplit(), given, root.parent / "cache")]
    assert [one.fingerprint == other.fingerprint for one, other in zip(before, after, strict=True)] == [False, True, True]


@pytest.mark.parametrize(
    ("normalisation", "large", "moved"),
    [
        (Normalisation("case"), "d", True), (Normalisation("case"), "a", True), (Normalisation("dataset"), "a", True),
        (Normalisation("dataset"), "d", False), (Normalisation("dataset", foreground=True), "a", False),
        (FixedNormalisation([1, 2], [3, 4]), "a", False),
    ],
)  # fmt: skip
def test_a_case_whose_sample_lay_elsewhere_has_another_fingerprint_where_it_is_measured(
    root, monkeypatch, normalisation, large, moved
):
    side = next(side for side, names in SCENES.items() if large in names)
    image, label = np.ones((2, 48, 40), np.int16), np.ones((48, 40), np.uint8)
    scene(root, side, large, image=image, label=label)

    def found():
        return prepare(dataset(root, background="ground"), GivenSplit(), normalisation, root.parent / "cache").fingerprint

    before = found()
    monkeypatch.setattr(survey, "MOST_SAMPLED", 24 * 40)
    assert (found() != before) == moved


def test_places_of_the_foreground_without_data_are_not_measured_and_move_the_fingerprint(root, monkeypatch):
    number = ord("a")
    pixels = np.random.default_rng(number).integers(1, 999, (2, 24, 40), dtype=np.int16)
    normalisation = Normalisation("dataset", foreground=True)

    def found():
        return prepare(dataset(root, background="ground"), GivenSplit(), normalisation, root.parent / "cache")

    whole = found()
    assert whole.blank == 0
    pixels[:, :, 20:30] = 0  # nodata
    scene(root, "train", "a", image=pixels)
    assert found().blank == 0  # the survey has seen that no place lies there
    monkeypatch.setattr(survey, "BLOCK_SIDE", 8)
    monkeypatch.setattr(survey, "MOST_IMAGE_BLOCKS", 3)
    monkeypatch.setattr(survey, "VERSION", survey.VERSION + 1)
    holed = found()
    assert holed.blank > 0
    assert holed.fingerprint != replace(holed, blank=0).fingerprint
    assert holed.fingerprint != replace(holed, cut_shapes=True).fingerprint
    assert min(holed.intensity.low) >= 1


@pytest.mark.parametrize(("by", "cut", "told"), [("polygon", True, True), ("polygon", False, False), ("pixels", True, False)])
def test_windows_drawn_by_shapes_that_blocks_cut_are_told_apart(root, monkeypatch, by, cut, told):
    monkeypatch.setattr(prepared, "shapes_are_cut", lambda cases: cut)
    found = ready(root, sampling=Sampling(by))
    assert found.cut_shapes == told
    assert (found.fingerprint != ready(root).fingerprint) == told


def test_a_limit_keeps_the_first_cases_of_each_side(root):
    found = ready(root, limit=1)
    assert [case.id for case in (*found.split.train, *found.split.val)] == ["a", "d"]


def test_median_frequency_divides_by_all_pixels_of_a_case_that_hold_data(root):
    label = np.zeros((24, 40), np.uint8)
    label[:4], label[4:8] = 1, 255  # four rows of water, four of void
    image = np.ones((2, 24, 40), np.int16)
    image[:, 20:] = 0  # four rows without data
    scene(root, "train", "a", image=image, label=label)
    for name in "bc":
        scene(root, "train", name, label=np.full((24, 40), 2, np.uint8))
    found = ready(root)
    assert found.class_counts == [12 * 40, 4 * 40, 2 * 24 * 40]
    assert found.present_counts == [20 * 40, 20 * 40, 2 * 24 * 40]


def test_median_frequency_weights_of_camvid_follow_from_its_surveys():
    """Pixels, and pictures that hold them, of the 12 classes (the last is void) of the SegNet release's 367 training labels."""
    pixels = [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967, 2503995]
    pictures = [366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201, 367]
    counts = np.zeros((367, 12), np.int64)
    for c, (total, holding) in enumerate(zip(pixels, pictures, strict=True)):
        counts[:holding, c] = total // holding
        counts[0, c] += total % holding
    cases = tuple(memory_case(f"p{n}", (1, 1, 1)) for n in range(367))
    nothing = Measured((), np.zeros((3, 0)))
    surveys = {case.id: Survey("", "", row[:11], 360 * 480, 1.0, 0, nothing) for case, row in zip(cases, counts, strict=True)}
    names = dict(enumerate("abcdefghijk"))
    data = Dataset("camvid", "picture", FolderLayout("nowhere", "{id}.png"), names)
    found = Prepared(data, Split(cases, cases[:1]), Path(), surveys, {}, (), (), Normalisation(), None)
    assert found.class_counts == pixels[:11]
    weights = class_weight_table("median_frequency", 11, found.class_counts, found.present_counts)
    expected = [0.2793, 0.2017, 4.7865, 0.1490, 1.0000, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587]
    assert weights == pytest.approx(expected, abs=6e-5)


# --- what stops it


def test_a_split_of_the_data_sets_own_that_is_not_used_is_said(root):
    said = []
    ready(root, say=said.append)
    assert not said
    ready(root, scheme=GroupSplit(val=0.4, test=0, seed=1), say=said.append)  # d and e are chosen by chance, f and g cannot be
    assert said == [
        "The data set has a split of its own (3 train, 2 val, 2 test), which is not used: 2 cases of its validation and test are "
        "on other sides. 'split=given' uses it."
    ]


def test_blocks_are_no_cases_of_the_data_sets_own_split(root):
    said = []
    ready(root, scheme=BlockSplit([2, 2]), say=said.append)
    assert said[0].startswith("The data set has a split of its own (3 train, 2 val, 2 test), which is not used: ")


def test_whole_cases_and_blocks_of_their_copies_are_known_as_copies(root):
    scene(root, "val", "d", image=np.random.default_rng(ord("a")).integers(1, 999, (2, 24, 40), dtype=np.int16))
    cases = {case.id: case for case in dataset(root).cases()}
    block = cases["a"].view(Window(0, 0, 0, 1, 12, 20), "#")
    for split in (Split((block,), (cases["d"],)), Split((cases["d"],), (block,))):
        every = [*split.train, *split.val, cases["b"]]
        (leak,) = find_leaks(split, {}, copies(every, 3, root.parent / "cache"))
        assert f"shares pixels of a copied file with {split.train[0].id} (train)" in str(leak)


def test_a_leak_is_an_error_until_it_is_waived(root):
    scene(root, "val", "d", image=np.random.default_rng(ord("a")).integers(1, 999, (2, 24, 40), dtype=np.int16))
    with pytest.raises(DataError, match=r"'d' \(val\) has the same image as a \(train\).*data\.waive="):
        ready(root)
    (sentence,) = ready(root, waive=["d"]).waived
    assert "'d' (val) has the same image as a (train)" in sentence


def test_a_test_image_in_training_is_a_leak_too(root):
    scene(root, "test", "f", image=np.random.default_rng(ord("b")).integers(1, 999, (2, 24, 40), dtype=np.int16))
    with pytest.raises(DataError, match=r"'f' \(test\) has the same image as b \(train\)"):
        ready(root)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_of_a_copied_file_leak_where_they_share_pixels_though_a_buffer_cut_them_otherwise(root, seed):
    scene(root, "val", "d", image=np.random.default_rng(ord("a")).integers(1, 999, (2, 24, 40), dtype=np.int16))
    scheme = BlockSplit([2, 4], buffer=40, val=0.3, test=0.2, seed=seed)  # metres, of 10 to a pixel
    split = ready(root, scheme=scheme, waive=[f"{name}#r{row}c{column}" for name in "ad" for row in (0, 1) for column in range(4)])
    expected = {
        (one.id, other.id)
        for side, other_side in (("val", "train"), ("test", "train"), ("test", "val"))
        for one in split.split.sides[side]
        for other in split.split.sides[other_side]
        if {one.id[0], other.id[0]} == {"a", "d"}
        and all(
            max(a, b) < min(c, d) for a, b, c, d in zip(one.box.start, other.box.start, one.box.stop, other.box.stop, strict=True)
        )
    }
    found = {(said.split("'")[1], said.split("file with ")[-1].split("image as ")[-1].split(" (")[0]) for said in split.waived}
    assert expected
    assert found == expected
    with pytest.raises(DataError, match="shares pixels of a copied file with"):
        ready(root, scheme=scheme)


def test_a_class_that_training_never_shows_is_named(root):
    for name in SCENES["train"]:
        scene(root, "train", name, label=np.random.default_rng(0).integers(0, 2, (24, 40), dtype=np.uint8))
    with pytest.raises(DataError, match=r"No training case holds a pixel of class roof;.*split\.seed"):
        ready(root)
    labels = LABELS | {value: f"kind{value}" for value in range(10, 40)}
    with pytest.raises(DataError, match=r"class roof, kind10, .*, kind39; a network"):
        ready(root, data=Dataset("d", "geotiff", dataset(root).layout, labels))


@pytest.mark.parametrize(("side", "name"), [("train", "b"), ("val", "e")])
def test_a_scene_without_any_data_is_named_with_the_way_to_leave_it_out(root, side, name):
    scene(root, side, name, image=np.zeros((2, 24, 40), np.int16))
    with pytest.raises(DataError, match=rf"1 case .* hold no pixel .*'data\.exclude=\[.{name}.\]'"):
        ready(root)
    assert name not in ready(root, data=dataset(root, exclude=[name])).surveys


def test_empty_scenes_on_two_sides_are_called_empty_and_not_a_leak(root):
    for side, name in (("train", "b"), ("val", "e")):
        scene(root, side, name, image=np.zeros((2, 24, 40), np.int16))
    with pytest.raises(DataError, match=r"2 cases .* hold no pixel .*: b, e \(no pixel has data in all channels"):
        ready(root)


def test_a_label_that_is_ignored_everywhere_is_named(root):
    scene(root, "val", "e", label=np.full((24, 40), 255, np.uint8))
    with pytest.raises(DataError, match=r"1 case .* hold no pixel .*: e \(every label is ignored"):
        ready(root)


def test_an_empty_side_of_the_split_is_an_error(root):
    with pytest.raises(DataError, match="leaves nothing for 'val'"):
        ready(root, data=dataset(root, exclude=["d", "e"]))


def test_the_window_is_checked_against_the_cases():
    cases = [memory_case("a", (1, 50, 70)), memory_case("b", (4, 20, 90))]
    assert window_size([64, 96], cases) == (1, 64, 96)
    assert window_size([4, 50, 90], cases) == (4, 50, 90)
    with pytest.raises(
        ConfigError, match=r"'data\.window=\[65, 96\]' is larger than every case.*\(4, 50, 90\).*'data\.window=\[64,96\]'"
    ):
        window_size([65, 96], cases)
    for wrong in ([64], [1, 2, 3, 4], [0, 64]):
        with pytest.raises(ConfigError, match=r"must be \[height, width\]"):
            window_size(wrong, cases)


def test_a_window_larger_than_every_block_is_refused_before_the_blocks_are_read(root, monkeypatch):
    monkeypatch.setattr("voxtile.data.prepared.survey_all", lambda *_, **__: pytest.fail("cases are read"))
    with pytest.raises(ConfigError, match=r"'data\.window=\[32,32\]', or have fewer and larger blocks in 'split'\."):
        ready(root, scheme=BlockSplit([4, 4]), window=[64, 64])


# --- identity and the locked side


def test_intensities_of_cases_are_worked_out_once(root, monkeypatch):
    found, read, original = ready(root, per="case"), [], survey._array_in
    monkeypatch.setattr(survey, "_array_in", lambda file, name, dtype: read.append(name) or original(file, name, dtype))
    first, second = found.intensities_of(found.split.train), [found.intensity_of(case) for case in found.split.train]
    assert first == second
    assert read == ["sample"] * 3
    assert replace(found, normalisation=Normalisation(clip=None)).intensity_of(found.split.train[0]) != first[0]


def test_what_is_surveyed_anew_is_read_once_and_leaves_no_second_copy(root, monkeypatch):
    scheme = GroupSplit(val=0.3, test=0.3, stratify=True)
    ready(root, scheme=scheme)
    folder = root.parent / "cache" / "surveys"
    kept, read, original = sorted(folder.iterdir()), [], survey.survey
    monkeypatch.setattr(survey, "survey", lambda case, *args: read.append(case.id) or original(case, *args))
    ready(root, scheme=scheme, anew=True)
    assert sorted(read) == [*"abcdefg"]
    assert sorted(folder.iterdir()) == kept


def test_whole_images_of_blocks_are_surveyed_anew_once_too(root, monkeypatch):
    scheme = BlockSplit([2, 2])
    ready(root, scheme=scheme)
    read, original = [], survey.survey
    monkeypatch.setattr(survey, "survey", lambda case, *args: read.append((case.image.paths, case.box)) or original(case, *args))
    found = ready(root, scheme=scheme, anew=True)
    assert {paths for paths, box in read if box == Window.whole((1, 24, 40))} == {
        case.image.paths for case in found.dataset.cases()
    }
    assert len(read) == len(set(read)) == 7 * (4 + 1)


def test_the_fingerprint_depends_on_content_and_not_on_the_place(root):
    before = ready(root)
    moved = root.rename(root.with_name("elsewhere"))
    after = ready(moved)
    assert (after.fingerprint, after.test_fingerprint) == (before.fingerprint, before.test_fingerprint)
    scene(moved, "train", "a", label=np.zeros((24, 40), np.uint8))
    changed = ready(moved)
    assert changed.fingerprint != before.fingerprint
    assert changed.test_fingerprint == before.test_fingerprint
    scene(moved, "test", "f", image=np.ones((2, 24, 40), np.int16))
    assert ready(moved).test_fingerprint != before.test_fingerprint


class Closing(Dataset):
    """Takes the labels of test cases away as soon as their headers were read."""

    def cases(self):
        found = super().cases()
        for case in found:
            if case.split == "test":
                case.labels.source.path.unlink()
        return found


def test_labels_of_test_cases_are_never_read(root):
    layout = FolderLayout(root, "{split}/images/{id}.tif", "{split}/labels/{id}.tif")
    found = ready(root, data=Closing("d", "geotiff", layout, LABELS))
    assert [case.id for case in found.split.test] == ["f", "g"]
    assert not any(case.labels.source.path.exists() for case in found.split.test)


@pytest.mark.parametrize("scheme", [GroupSplit(val=0.3, test=0.3, stratify=True), KFold(2, 1, test=0.3, stratify=True)])
def test_stratifying_leaves_the_labels_of_test_cases_closed(root, scheme, monkeypatch):
    opened = []
    read = Case.read_label
    monkeypatch.setattr(Case, "read_label", lambda case, window: opened.append(case.id) or read(case, window))
    found = ready(root, scheme=scheme)
    assert sum(map(len, found.split.sides.values())) == 7
    assert found.split.test
    assert set(opened) == {case.id for case in (*found.split.train, *found.split.val)}


def test_labels_without_data_are_told_where_a_class_is_missing_for_it(root):
    for name in SCENES["train"]:
        label = np.random.default_rng(ord(name)).choice([1, 2, np.nan], (24, 40), p=[0.1, 0.2, 0.7]).astype(np.float32)
        scene(root, "train", name, label=label)
    with pytest.raises(
        DataError, match=r"class ground;.* The labels of 3 cases hold no data .*: \w \(\d\d%\).*gdal_calc\.py\. Or split"
    ):
        ready(root)
    scene(root, "train", "b", label=np.full((24, 40), np.nan, np.float32))
    with pytest.raises(DataError, match=r"1 case .* hold no pixel .* The labels of 1 case hold no data .*: b \(100%\).*\. Leave"):
        ready(root)


def test_labels_that_are_ignored_or_lie_beyond_the_image_do_not_lack_data(root):
    image = np.random.default_rng(0).integers(1, 999, (2, 24, 40), dtype=np.int16)
    image[:, :12] = 0
    label = np.random.default_rng(0).integers(0, 3, (24, 40)).astype(np.float32)
    label[:14], label[20:] = np.nan, 255
    scene(root, "train", "a", image=image, label=label)
    found = ready(root)
    (said,) = blank_labels(found.split.train, found.surveys, "geotiff")
    assert ": a (17%). Such" in said  # 2 of 12 rows with an image
    label[:14] = 255
    scene(root, "train", "a", image=image, label=label)
    found = ready(root)
    assert blank_labels(found.split.train, found.surveys, "geotiff") == []


def test_a_few_cases_for_a_look_need_not_hold_every_class(root):
    for name in ("a", "b", "c"):
        scene(root, "train", name, label=np.full((24, 40), int(name == "c"), dtype=np.uint8))
    with pytest.raises(DataError, match="No training case holds a pixel of class roof"):
        ready(root)
    assert ready(root, limit=2).class_counts[1:] == [0, 0]


# --- batches of it


def batches(found, workers=2, size=(1, 16, 16)):
    data = VoxtileData(found, size, Augment(), 0, Steps(3, lambda: range(4, 7)), 0.3, workers)
    return data, list(data.train_dataloader()), list(data.val_dataloader())


def test_training_batches_are_the_streams_samples_of_the_coming_steps(root):
    data, train, _ = batches(ready(root))
    assert [batch["index"].tolist() for batch in train] == [[12, 13, 14], [15, 16, 17], [18, 19, 20]]
    np.testing.assert_array_equal(train[1]["image"][2], sample_of(data.stream, 17)["image"])


def test_windows_are_drawn_as_the_settings_say(root):
    found = ready(root)
    by = Sampling("uniform", scales=(1.5, 2.0))
    data = VoxtileData(found, (1, 8, 8), Augment(), 0, Steps(3, lambda: range(2)), 0.0, 0, sampling=by)
    assert isinstance(data.stream.strategy, Positions)
    assert min(data.stream.spec(i).window.height for i in range(6)) >= 12
    assert [batch["image"].shape for batch in data.train_dataloader()] == [(3, 2, 1, 8, 8)] * 2


def test_validation_judges_every_pixel_once_and_never_mixes_cases(root):
    found = ready(root)
    _, _, val = batches(found)
    assert all(len(set(batch["case"].tolist())) == 1 and len(batch["case"]) <= 8 for batch in val)
    for number, case in enumerate(found.split.val):
        judged = np.concatenate([batch["label"].flatten() for batch in val if batch["case"][0] == number])
        assert np.bincount(judged, minlength=256)[:3].tolist() == found.surveys[case.id].counts.tolist()


@pytest.mark.parametrize("margin", [0, 3])
def test_validation_shows_a_small_case_as_training_does(root, margin):
    found = ready(root)
    small = replace(found, split=replace(found.split, train=found.split.val[:1], val=found.split.val[:1]))
    (case,) = small.split.val
    size = (1, case.shape[1] + 5, case.shape[2] + 8)
    data = VoxtileData(small, size, Augment(), 0, Steps(1, lambda: range(1)), margin=(0, margin, margin))
    (val,) = data.val_dataloader()
    drawn = sample_of(data.stream, 0)
    inner = np.s_[..., margin : margin + size[1], margin : margin + size[2]]
    np.testing.assert_array_equal(val["image"][0], drawn["image"])
    np.testing.assert_array_equal(val["valid"][0], drawn["valid"])
    np.testing.assert_array_equal(val["label"][0][0], drawn["label"][inner][0])
    assert val["label"].shape == (1, *size)


def test_validation_batches_carry_their_cases_own_intensities(root):
    found = ready(root, per="case")
    for batch in batches(found)[2]:
        own = found.intensity_of(found.split.val[batch["case"][0]]).arrays()
        assert all(np.array_equal(row, own["mean"]) for row in batch["mean"].numpy())


def test_workers_change_nothing(root):
    found = ready(root)
    for alone, together in zip(batches(found, 0)[1:], batches(found, 3)[1:], strict=True):
        for a, b in zip(alone, together, strict=True):
            assert all(np.array_equal(a[key], b[key]) for key in ("image", "valid", "label", "case"))
