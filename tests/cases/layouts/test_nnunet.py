import json

import pytest

from voxtile.cases.case import Case
from voxtile.cases.dataset import Dataset
from voxtile.cases.layouts import NnUnetLayout
from voxtile.data.splits import FileSplit
from voxtile.errors import ConfigError, DataError

LABELS = {"background": 0, "edema": 1, "core": 2}


def put(root, *names):
    """Empty files; layouts look at names only."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def describe(root, **changes):
    """Writes dataset.json for two channels and two cases; an entry that is None is left out."""
    document = {
        "channel_names": {"0": "T1", "1": "FLAIR"}, "labels": LABELS, "file_ending": ".nii.gz", "numTraining": 2, "name": "Mine",
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in (document | changes).items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(kept))
    return NnUnetLayout(root)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "Dataset001_Mine"
    for case in ("p_2", "p_10"):
        put(folder, *(f"imagesTr/{case}_{number:04d}.nii.gz" for number in (1, 0)), f"labelsTr/{case}.nii.gz")
    put(folder, "imagesTs/q_0000.nii.gz", "imagesTs/q_0001.nii.gz", "imagesTr/._p_2_0000.nii.gz", "labelsTr/._p_2.nii.gz")
    return folder


def names(root, paths):
    return [path.relative_to(root).as_posix() for path in paths]


def found(layout):
    return {c.id: (names(layout.root, c.images), names(layout.root, c.labels)) for c in layout.find()}


def test_channels_make_one_case_whose_names_come_from_the_listing(root):
    layout = describe(root)
    assert found(layout) == {
        case: ([f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz"], [f"labelsTr/{case}.nii.gz"])
        for case in ("p_2", "p_10")
    }
    assert list(found(layout)) == ["p_2", "p_10"]
    assert {case.channels for case in layout.find()} == {("T1", "FLAIR")}


def test_channels_that_are_called_alike_are_told_apart(root):
    assert describe(root, channel_names={"0": "zscore", "1": "zscore"}).find()[0].channels == ("zscore_0", "zscore_1")


def test_a_listing_of_files_takes_the_place_of_the_folders(root):
    put(root, "elsewhere/a.nii.gz", "elsewhere/b.nii.gz", "elsewhere/l.nii.gz")
    entry = {"images": ["elsewhere/a.nii.gz", "./elsewhere/b.nii.gz"], "label": "elsewhere/l.nii.gz"}
    layout = describe(root, dataset={"case 7": entry}, numTraining=1)
    assert found(layout) == {"case 7": (["elsewhere/a.nii.gz", "elsewhere/b.nii.gz"], ["elsewhere/l.nii.gz"])}


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "imagesTr/../../outside.nii.gz"])
def test_a_listing_cannot_point_outside_the_data_folder(root, name):
    put(root.parent, "outside.nii.gz")
    inside = "imagesTr/p_2_0000.nii.gz"
    for entry in ({"images": [inside, name], "label": inside}, {"images": [inside, inside], "label": name}):
        with pytest.raises(DataError, match=f"'dataset', names '{name}', which lies outside"):
            describe(root, dataset={"a": entry}, numTraining=1).find()


@pytest.mark.parametrize("entries", [[], {"a": "b.nii.gz"}, {"a": {"images": []}}, {"a/b": {"images": ["x"], "label": "y"}}])
def test_a_listing_of_another_form_is_refused(root, entries):
    with pytest.raises(DataError, match=r'Expected \{"case": \{"images": \[paths\], "label": path\}\}'):
        describe(root, dataset=entries).find()


def test_what_is_missing_is_named(root):
    (root / "labelsTr/p_2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"images without a label: p_2\. Expected, in labelsTr"):
        describe(root).find()
    put(root, "labelsTr/p_2.nii.gz", "labelsTr/r.nii.gz")
    with pytest.raises(DataError, match=r"labels without images: r\. "):
        describe(root).find()
    (root / "labelsTr/r.nii.gz").unlink()
    (root / "imagesTr/p_2_0001.nii.gz").rename(root / "imagesTr/p_2_0002.nii.gz")
    with pytest.raises(DataError, match=r"Case 'p_2' .* p_2_0000\.nii\.gz, p_2_0002\.nii\.gz, and no p_2_0001\.nii\.gz"):
        describe(root).find()
    (root / "imagesTr/p_2_0002.nii.gz").rename(root / "imagesTr/p_2_0001.nii.gz")
    with pytest.raises(DataError, match=r"Case 'p_2' .* has 2 image files, .*Expected one for each of T1, FLAIR, T2"):
        describe(root, channel_names={"0": "T1", "1": "FLAIR", "2": "T2"}).find()
    (root / "imagesTr/p_2_0001.nii.gz").unlink()
    with pytest.raises(
        DataError, match=r"'p_2' .* has 1 image file, p_2_0000\.nii\.gz, and lacks p_2_0001\.nii\.gz\. Expected one"
    ):
        describe(root).find()
    put(root, "imagesTr/p_2_0001.nii.gz")
    with pytest.raises(DataError, match=r"3 training cases \(numTraining\), and 2 were found"):
        describe(root, numTraining=3).find()
    with pytest.raises(DataError, match=r"holds no case: there is no label in labelsTr"):
        describe(root, file_ending=".nrrd").find()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, "lacks labels. Expected nnU-Net's JSON of version 2"),
        ({"labels": {}}, "names no labels"),
        ({"labels": {"background": 0, "other": 0}}, "'other': 0. Expected a whole number that no other name has"),
        ({"labels": {"background": 0, "all": []}}, "'all': []. Expected a whole number that no other name has, or a list"),
        ({"labels": {"background": "0"}}, "'background': '0'. Expected a whole number"),
    ],
)
def test_labels_of_another_form_are_refused(root, changes, said):
    with pytest.raises(DataError) as error:
        describe(root, **changes).declared()
    assert said in str(error.value)


@pytest.mark.parametrize("given", [["T1", "FLAIR"], {}, {"1": "T1", "2": "FLAIR"}])
def test_channel_names_of_another_form_are_refused(root, given):
    with pytest.raises(DataError, match=r"'channel_names', says .* Expected names by number from 0 on"):
        describe(root, channel_names=given).find()


@pytest.mark.parametrize("text", ["{not json", "[]"])
def test_a_broken_listing_is_an_error_that_names_it(root, text):
    (root / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json .*Expected nnU-Net's JSON"):
        NnUnetLayout(root).find()


def test_the_decathlons_listing_is_told_from_version_2(tmp_path):
    put(tmp_path / "msd", "imagesTr/p_1.nii.gz", "labelsTr/p_1.nii.gz")
    pairs = [{"image": "./imagesTr/p_1.nii.gz", "label": "./labelsTr/p_1.nii.gz"}]
    (tmp_path / "msd" / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": {"0": "a"}, "training": pairs}))
    with pytest.raises(DataError, match=r"has modality, training.*'data\.layout\._target_=voxtile\.cases\.layouts\.MsdLayout'"):
        NnUnetLayout(tmp_path / "msd").find()


def test_version_1_with_a_file_per_channel_is_told_with_the_patterns(root):
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "T1", "1": "FLAIR"}, "training": []}))
    with pytest.raises(DataError) as error:
        NnUnetLayout(root).find()
    assert 'images: ["imagesTr/{id}_0000.nii.gz", "imagesTr/{id}_0001.nii.gz"]\' and \'labels: "labelsTr/{id}.nii.gz"' in str(
        error.value
    )


# --- labels


def opened(layout, labels):
    return Dataset("mine", "volume", layout, labels)


@pytest.mark.parametrize("labels", [{0: "background", 1: "core", 2: "edema"}, {0: "background", 1: "edema"}])
def test_labels_that_do_not_agree_are_an_error_that_prints_the_right_ones(root, labels):
    with pytest.raises(ConfigError) as error:
        opened(describe(root), labels).cases()
    assert "Expected 'labels: {0: background, 1: edema, 2: core}'" in str(error.value)
    assert "'~data.labels' '+data.labels={0: background, 1: edema, 2: core}'" in str(error.value)


def test_the_ignore_label_and_names_that_no_score_can_have_agree(root):
    layout = describe(root, labels={"background": 0, "edema/core": 1, "ignore": 2})
    layout.declared().check({0: "background", 1: "edema_core", 2: "ignore"}, {})
    with pytest.raises(ConfigError, match=r"\{0: background, 1: edema_core, 2: ignore\}"):
        layout.declared().check({0: "background", 1: "edema_core"}, {})


BRATS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3], "ignore": 4}
NAMED = {0: "background", 1: "edema", 2: "necrosis", 3: "enhancing", 4: "ignore"}
UNITED = {
    "whole tumor": ["edema", "necrosis", "enhancing"],
    "tumor core": ["necrosis", "enhancing"],
    "enhancing tumor": ["enhancing"],
}


def test_regions_are_unions_of_named_classes(root):
    declared = describe(root, labels=BRATS, regions_class_order=[1, 2, 3]).declared()
    assert declared.regions == {"whole tumor": (1, 2, 3), "tumor core": (2, 3), "enhancing tumor": (3,)}
    assert declared.values == {0: "background", 4: "ignore"}
    declared.check(NAMED, UNITED)
    declared.check({**NAMED, 3: "enhancing tumor"}, {
        "enhancing tumor": ["enhancing tumor"], "tumor core": ["enhancing tumor", "necrosis"],
        "whole tumor": ["necrosis", "edema", "enhancing tumor"],
    })  # fmt: skip
    # Beside regions, a name with one value is a region, too.
    assert describe(root, labels=BRATS | {"enhancing tumor": 3}).declared().regions == declared.regions


@pytest.mark.parametrize(
    ("labels", "regions"),
    [
        ({0: "background", 1: "foreground"}, {}),
        (NAMED, {}),
        (NAMED, UNITED | {"tumor core": ["enhancing"]}),
        (NAMED, {name: classes for name, classes in UNITED.items() if name != "tumor core"}),
        (NAMED, UNITED | {"edge": ["edema"]}),
        (NAMED | {4: "unknown"}, UNITED),
        (NAMED | {0: "rest"}, UNITED),
        (NAMED | {5: "more"}, UNITED),
        ({value: name for value, name in NAMED.items() if value != 4}, UNITED),
    ],
)
def test_regions_that_do_not_agree_are_an_error_that_prints_the_right_ones(root, labels, regions):
    with pytest.raises(ConfigError) as error:
        describe(root, labels=BRATS).declared().check(labels, regions)
    right = "{0: background, 1: rest of whole tumor, 2: rest of tumor core, 3: enhancing tumor, 4: ignore}"
    unions = (
        "{whole tumor: [rest of whole tumor, rest of tumor core, enhancing tumor], tumor core: [rest of tumor core, enhancing "
        "tumor], enhancing tumor: [enhancing tumor]}"
    )
    assert f"'labels: {right}' and 'regions: {unions}'" in str(error.value)
    replaced = "'~data.regions' " if regions else ""  # Hydra cannot take out null
    assert f"type '~data.labels' '+data.labels={right}' {replaced}'+data.regions={unions}'" in str(error.value)
    assert "whole tumor: 1, 2, 3; tumor core: 2, 3; enhancing tumor: 3" in str(error.value)


def test_values_that_no_region_tells_apart_are_numbered(root):
    with pytest.raises(ConfigError, match=r"labels: \{0: background, 1: value1, 2: value2, 3: inner_part\}"):
        describe(root, labels={"background": 0, "all": [1, 2, 3], "inner/part": [3]}).declared().check({0: "background"}, {})


def test_a_data_set_without_regions_may_be_given_some(root):
    layout = describe(root)
    layout.declared().check({0: "background", 1: "edema", 2: "core"}, {"whole": ["edema", "core"]})


# --- the split of nnU-Net, and new files


def test_its_own_split_names_the_same_cases(root, tmp_path):
    layout = describe(root)
    (tmp_path / "splits_final.json").write_text(
        json.dumps([{"train": ["p_2"], "val": ["p_10"]}, {"train": ["p_10"], "val": ["p_2"]}])
    )
    cases = [Case(files.id, files.id, None) for files in layout.find()]
    split = FileSplit(str(tmp_path / "splits_final.json"), fold=1)(cases)
    assert ([case.id for case in split.train], [case.id for case in split.val]) == (["p_10"], ["p_2"])


def test_new_files_are_gathered_into_cases_without_the_data_set(root, tmp_path):
    layout = NnUnetLayout(tmp_path / "gone")
    put(root, "imagesTs/r_0000.mha", "imagesTs/r_0001.mha", "imagesTs/notes_0000.txt", "imagesTs/._q_0000.nii.gz")
    cases = layout.images_below(root, root / "imagesTs", (".nii.gz", ".nii", ".mha"))
    assert {case.id: names(root / "imagesTs", case.images) for case in cases} == {
        "q": ["q_0000.nii.gz", "q_0001.nii.gz"],
        "r": ["r_0000.mha", "r_0001.mha"],
    }
    assert {case.labels for case in cases} == {()}
    (one,) = layout.images_below(root, root / "imagesTs" / "q_0001.nii.gz", (".nii.gz",))
    assert one.id == "q"
    assert layout.images_below(root, root / "labelsTr", (".nii.gz",)) == []
