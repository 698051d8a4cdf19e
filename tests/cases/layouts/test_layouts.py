import json
from pathlib import Path

import pytest
from affine import Affine

from tests.testers.geotiff import NORTH_UP, bands, save
from voxtile.cases.layouts import CaseFiles, FolderLayout, Layout, ListLayout, MsdLayout
from voxtile.cases.layouts.folder import check_partners
from voxtile.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def put(root, *names):
    """Empty files; layouts look at names only."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root, paths):
    return [path.relative_to(root).as_posix() for path in paths]


def found(layout):
    """id -> (images, labels, split), in the order found."""
    return {c.id: (names(layout.root, c.images), names(layout.root, c.labels), c.split) for c in layout.find()}


# --- by name patterns


def test_paired_folders_are_cases_in_numeric_order(root):
    put(root, *(f"{part}/s_{n}.tif" for part in ("images", "labels") for n in (10, 2, 1)))
    layout = FolderLayout(root, "images/{id}.tif", "labels/{id}.tif")
    assert found(layout) == {f"s_{n}": ([f"images/s_{n}.tif"], [f"labels/s_{n}.tif"], "") for n in (1, 2, 10)}
    assert list(found(layout)) == ["s_1", "s_2", "s_10"]


def test_a_pattern_with_a_split_gives_each_case_its_side(root):
    put(root, "train/a.jpg", "trainannot/a.png", "val/b.jpg", "valannot/b.png")
    layout = FolderLayout(root, "{split}/{id}.jpg", "{split}annot/{id}.png")
    assert found(layout) == {
        "a": (["train/a.jpg"], ["trainannot/a.png"], "train"),
        "b": (["val/b.jpg"], ["valannot/b.png"], "val"),
    }


def test_split_names_of_the_data_set_are_translated(root):
    put(root, "training/a.tif", "holdout/b.tif")
    layout = FolderLayout(root, "{split}/{id}.tif", splits={"training": "train", "holdout": "test"})
    assert {name: split for name, (_, _, split) in found(layout).items()} == {"a": "train", "b": "test"}


def test_a_split_nobody_declared_is_an_error_that_names_it(root):
    put(root, "train/a.tif", "holdout/b.tif")
    with pytest.raises(DataError, match=r"b\.tif belongs to split 'holdout'.*knows train, val, test.*splits=\{holdout: train"):
        FolderLayout(root, "{split}/{id}.tif").find()


def test_slices_of_a_patient_are_stacked_by_number(root):
    put(root, *(f"p{p}/p{p}_{n}{end}.tif" for p in (1, 2) for n in (10, 1, 2) for end in ("", "_mask")))
    layout = FolderLayout(root, "{patient}/{patient}_{slice:d}.tif", "{patient}/{patient}_{slice:d}_mask.tif", case="{patient}")
    images, labels, _ = found(layout)["p1"]
    assert images == ["p1/p1_1.tif", "p1/p1_2.tif", "p1/p1_10.tif"]
    assert labels == ["p1/p1_1_mask.tif", "p1/p1_2_mask.tif", "p1/p1_10_mask.tif"]
    assert list(found(layout)) == ["p1", "p2"]
    assert [dict(case.fields) for case in layout.find()] == [{"patient": "p1"}, {"patient": "p2"}]


def test_several_patterns_are_the_bands_of_one_case(root):
    put(root, "s1/a.tif", "s2/a.tif", "s1/b.tif", "s2/b.tif")
    layout = FolderLayout(root, ["s2/{id}.tif", "s1/{id}.tif"])
    assert found(layout)["a"] == (["s2/a.tif", "s1/a.tif"], [], "")
    (root / "s1/b.tif").unlink()
    with pytest.raises(DataError, match=r"1 case below .* lacks a file: b \(no s1/b\.tif\).*incomplete=true"):
        layout.find()


def test_a_name_that_occurs_twice_stands_for_one_text(root):
    put(root, "p1/p1_a.tif", "p1/p2_a.tif")
    assert list(found(FolderLayout(root, "{patient}/{patient}_{kind}.tif", case="{patient}"))) == ["p1"]


def test_digits_and_stars_match_what_they_say(root):
    put(root, "x/7.tif", "x/7b.tif", "y/8.tif", "x/deeper/9.tif")
    assert list(found(FolderLayout(root, "*/{id:d}.tif"))) == ["7", "8"]


def test_parts_of_a_name_may_follow_one_another(root):
    put(root, "x/a7.tif", "x/b.tif", "x/deeper/c8.tif")
    assert list(found(FolderLayout(root, "x/{place}{id:d}.tif"))) == ["7"]


@pytest.mark.parametrize(
    ("setting", "given", "fault"),
    [
        ("images", ["/data/{id}.tif"], "=/data/{id}.tif' is an absolute path"),
        ("images", [["{id}.tif", "/data/{id}.tif"]], "=/data/{id}.tif' is an absolute path"),
        ("images", [""], "=' names no file"),
        ("images", ["{0}.tif"], "={0}.tif' calls a part of a file's name '0', which does not begin with a letter"),
        ("images", [7], "=7' is not one text"),
        ("labels", ["{id}.tif", "/data/{id}.tif"], "=/data/{id}.tif' is an absolute path"),
        ("labels", ["{id}.tif", "."], "=.' names no file"),
        ("labels", ["{id}.tif", ["a", "b"]], "=['a', 'b']' is not one text"),
    ],
)
def test_what_is_no_pattern_is_said_with_what_to_type(root, setting, given, fault):
    with pytest.raises(ConfigError) as error:
        FolderLayout(root, *given)
    assert f"'data.layout.{setting}{fault}" in str(error.value)
    assert f"""type, for example, 'data.layout.{setting}="{setting}/{{id}}.tif"'""" in str(error.value)


@pytest.mark.parametrize("given", [["{id}/*_B04.tif", "{id}/*_B08.tif"]], ids=["images"])
@pytest.mark.parametrize("labels", [None, "labels/{id}*.tif"])
def test_a_star_after_the_first_pattern_is_refused(root, given, labels):
    images = given[:1] if labels else given
    with pytest.raises(
        ConfigError, match=r"holds a '\*', and files are found there by the names that '\{id\}/\*_B04\.tif' defines"
    ):
        FolderLayout(root, images, labels)


def test_brackets_in_folder_names_are_no_wildcards(root):
    put(root, "scenes [v1]/a.tif", "scenes v/b.tif")
    assert list(found(FolderLayout(root, "scenes [v1]/{id}.tif"))) == ["a"]


def test_what_macos_leaves_beside_its_files_is_no_case(root):
    put(root, "p1/t1.nii.gz", "p1/seg.nii.gz", "images/a.nii.gz", "images/._a.nii.gz", "labels/a.nii.gz", "labels/._a.nii.gz")
    assert list(found(FolderLayout(root, "images/{id}.nii.gz", "labels/{id}.nii.gz"))) == ["a"]
    layout = FolderLayout(root, ["{patient}/t1.nii.gz"], "{patient}/seg.nii.gz", case="{patient}")
    assert found(layout) == {"p1": (["p1/t1.nii.gz"], ["p1/seg.nii.gz"], "")}


def test_labels_beside_their_images_are_no_images(root):
    put(root, "a.tif", "a_mask.tif", "b.tif", "b_mask.tif")
    assert found(FolderLayout(root, "{id}.tif", "{id}_mask.tif")) == {
        "a": (["a.tif"], ["a_mask.tif"], ""),
        "b": (["b.tif"], ["b_mask.tif"], ""),
    }


def test_images_without_a_label_are_named_or_left_out(root):
    put(root, "images/a.tif", "images/b.tif", "images/c.tif", "labels/a.tif")
    with pytest.raises(DataError, match=r"2 images .* no label .*images/b\.tif, images/c\.tif.*unlabelled=true"):
        FolderLayout(root, "images/{id}.tif", "labels/{id}.tif").find()
    assert list(found(FolderLayout(root, "images/{id}.tif", "labels/{id}.tif", unlabelled=True))) == ["a"]


@pytest.mark.parametrize("unlabelled", [False, True])
def test_labels_without_an_image_are_named(root, unlabelled):
    put(root, "images/a.tif", "labels/a.tif", "labels/b.tif")
    with pytest.raises(DataError, match=r"1 label .* has no image .*b\.tif"):
        FolderLayout(root, "images/{id}.tif", "labels/{id}.tif", unlabelled=unlabelled).find()


@pytest.mark.parametrize(
    ("files", "pattern", "case"),
    [
        (["train/a.tif", "val/a.tif"], "{split}/{id}.tif", "{id}"),
        (["train/a_1.tif", "val/a_2.tif"], "{split}/{id}_{slice:d}.tif", "{id}"),
        (["x/a.tif", "y/a.tif"], "*/{id}.tif", "{id}"),
    ],
)
def test_files_that_share_an_id_without_being_slices_are_an_error_that_names_them(root, files, pattern, case):
    put(root, *files)
    with pytest.raises(DataError, match=rf"Several files .* make case 'a' .*{', '.join(files)}.*'\+\+data\.layout\.case="):
        FolderLayout(root, pattern, case=case).find()


def test_an_id_made_of_more_names_tells_such_files_apart(root):
    put(root, "train/a.tif", "val/a.tif")
    assert list(found(FolderLayout(root, "{split}/{id}.tif", case="{split}_{id}"))) == ["train_a", "val_a"]


def test_bands_and_slices_are_not_mixed(root):
    put(root, *(f"{band}/p_{n}.tif" for band in ("red", "nir") for n in (1, 2)))
    with pytest.raises(DataError, match="bands and slices cannot both"):
        FolderLayout(root, ["red/{id}_{slice:d}.tif", "nir/{id}_{slice:d}.tif"]).find()


def test_a_label_pattern_may_only_use_names_of_the_images(root):
    put(root, "images/a.tif")
    with pytest.raises(DataError, match=r"uses \{place\}.*it defines id"):
        FolderLayout(root, "images/{id}.tif", "labels/{place}.tif").find()


def test_another_folder_is_searched_by_the_same_patterns_without_labels(root, tmp_path):
    put(tmp_path, "new/images/q.tif")
    layout = FolderLayout(root, "images/{id}.tif", "labels/{id}.tif")
    (case,) = layout.images_below(tmp_path / "new", tmp_path / "new")
    assert (case.id, case.labels) == ("q", ())


def test_labels_beside_the_images_of_another_folder_are_no_images(root, tmp_path):
    put(tmp_path, "new/q.tif", "new/q_mask.tif", "new/r.tif")
    (q, r) = FolderLayout(root, "{id}.tif", "{id}_mask.tif").images_below(tmp_path / "new", tmp_path / "new")
    assert [(case.id, case.labels) for case in (q, r)] == [("q", ()), ("r", ())]


# --- the Decathlon's dataset.json


def msd(root, pairs):
    (root / "dataset.json").write_text(
        json.dumps({"training": [{"image": a, "label": b} for a, b in pairs], "test": ["./t.nii.gz"]})
    )
    return MsdLayout(root)


def test_the_decathlons_pairs_become_cases_in_its_order(root):
    put(root, *(f"{part}/h_{n}.nii.gz" for part in ("imagesTr", "labelsTr") for n in (3, 20)))
    layout = msd(root, [(f"./imagesTr/h_{n}.nii.gz", f"./labelsTr/h_{n}.nii.gz") for n in (20, 3)])
    assert found(layout) == {f"h_{n}": ([f"imagesTr/h_{n}.nii.gz"], [f"labelsTr/h_{n}.nii.gz"], "") for n in (20, 3)}
    assert list(found(layout)) == ["h_20", "h_3"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "imagesTr/../../outside.nii.gz"])
def test_a_listing_cannot_point_outside_the_data_folder(root, name):
    put(root.parent, "outside.nii.gz")
    put(root, "imagesTr/a.nii.gz")
    for pair in ((name, "imagesTr/a.nii.gz"), ("imagesTr/a.nii.gz", name)):
        with pytest.raises(DataError, match=f"names '{name}', which lies outside"):
            msd(root, [pair]).find()


def test_a_link_to_a_file_elsewhere_is_followed(root):
    put(root.parent, "other_disk.nii.gz")
    (root / "a.nii.gz").symlink_to(root.parent / "other_disk.nii.gz")
    (case,) = msd(root, [("a.nii.gz", "a.nii.gz")]).find()
    assert case.images == (root / "a.nii.gz",)


def test_a_listed_file_that_is_not_there_is_named(root):
    put(root, "a.nii.gz")
    with pytest.raises(DataError, match=r"dataset\.json names 'b\.nii\.gz', and .* does not exist"):
        msd(root, [("a.nii.gz", "b.nii.gz")]).find()


@pytest.mark.parametrize(
    "text", ["{not json", "[]", "{}", '{"training": ["a.nii.gz"]}', '{"training": [{"image": "a"}]}', "\udcff"]
)
def test_a_broken_listing_is_an_error_that_names_it(root, text):
    (root / "dataset.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"dataset\.json cannot be read.*list 'training'"):
        MsdLayout(root).find()


def test_a_missing_listing_is_an_error_that_names_it(root):
    with pytest.raises(DataError, match=r"dataset\.json cannot be read"):
        MsdLayout(root).find()


# --- list files


def test_lists_name_pairs_by_split(root):
    put(root, "train/a.png", "trainannot/a.png", "test/b.png", "testannot/b.png")
    (root / "train.txt").write_text("train/a.png trainannot/a.png\n\n")
    put(root, "test/a b.png", "testannot/a b.png")
    # A byte order mark, as Windows writes it, and names with blanks.
    (root / "test.txt").write_text("\ufefftest/b.png\ttestannot/b.png\r\ntest/a b.png\ttestannot/a b.png\n")
    assert found(ListLayout(root, {"train": "train.txt", "test": "test.txt"})) == {
        "a": (["train/a.png"], ["trainannot/a.png"], "train"),
        "a b": (["test/a b.png"], ["testannot/a b.png"], "test"),
        "b": (["test/b.png"], ["testannot/b.png"], "test"),
    }


@pytest.mark.parametrize("line", ["a.png l.png\t", "\ta.png l.png", "a.png\tl.png\t", "a.png\t\tl.png"])
def test_tabs_at_an_end_and_two_of_them_separate_no_more_names(root, line):
    put(root, "a.png", "l.png")
    (root / "train.txt").write_text(f"{line}\n")
    assert found(ListLayout(root, {"train": "train.txt"})) == {"a": (["a.png"], ["l.png"], "train")}


@pytest.mark.parametrize("line", ["a.png", "a.png l.png more.png"])
def test_a_line_that_is_no_pair_is_named_by_its_number(root, line):
    put(root, "a.png", "l.png")
    (root / "train.txt").write_text(f"a.png l.png\n{line}\n")
    with pytest.raises(DataError, match=rf"train\.txt, line 2: expected 'image label', found '{line}'"):
        ListLayout(root, {"train": "train.txt"}).find()


def test_a_table_is_led_to_a_layout_of_ones_own(root):
    (root / "index.csv").write_text("image,mask,split\n")
    with pytest.raises(DataError, match=r"index\.csv, line 1: .*docs/extending\.md"):
        ListLayout(root, {"train": "index.csv"}).find()


def test_a_case_that_is_listed_twice_is_named_with_both_places(root):
    put(root, "a.png", "l.png")
    for name in ("train", "val"):
        (root / f"{name}.txt").write_text("a.png l.png\n")
    with pytest.raises(DataError, match=r"val\.txt, line 1, lists a case a, which .*train\.txt, line 1 lists, too"):
        ListLayout(root, {"train": "train.txt", "val": "val.txt"}).find()


def test_an_empty_list_is_named(root):
    put(root, "a.png", "l.png")
    (root / "train.txt").write_text("a.png l.png\n")
    (root / "val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt is empty.*needs no list: '~data\.layout\.lists\.val'"):
        ListLayout(root, {"train": "train.txt", "val": "val.txt"}).find()


def test_a_list_cannot_point_outside_the_data_folder(root):
    put(root, "a.png")
    (root / "train.txt").write_text("a.png ../../etc/passwd\n")
    with pytest.raises(DataError, match=r"line 1, names '\.\./\.\./etc/passwd', which lies outside"):
        ListLayout(root, {"train": "train.txt"}).find()
    with pytest.raises(DataError, match=r"data\.layout\.lists names '\.\./lists\.txt', which lies outside"):
        ListLayout(root, {"train": "../lists.txt"}).find()


def test_a_list_or_a_listed_file_that_is_not_there_is_named(root):
    with pytest.raises(DataError, match=r"data\.layout\.lists names 'train\.txt'.*does not exist"):
        ListLayout(root, {"train": "train.txt"}).find()
    put(root, "a.png")
    (root / "train.txt").write_text("a.png gone.png\n")
    with pytest.raises(DataError, match=r"line 1, names 'gone\.png'.*does not exist"):
        ListLayout(root, {"train": "train.txt"}).find()


def test_a_list_that_is_no_text_is_named(root):
    (root / "train.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match=r"train\.txt cannot be read.*'image label'"):
        ListLayout(root, {"train": "train.txt"}).find()


# --- all of them


LAYOUTS = [
    lambda root: FolderLayout(root, "images/{id}.tif"),
    lambda root: MsdLayout(root),
    lambda root: ListLayout(root, {"train": "train.txt"}),
]


@pytest.mark.parametrize("make", LAYOUTS)
def test_a_missing_folder_is_named_with_the_way_to_set_it(root, make):
    with pytest.raises(DataError, match=r"gone does not exist .*data\.layout\.root=.*VOXTILE_DATA"):
        make(root / "gone").find()


@pytest.mark.parametrize("make", LAYOUTS)
def test_a_folder_without_cases_is_an_error_that_says_what_was_looked_for(root, make):
    (root / "dataset.json").write_text('{"training": []}')
    (root / "train.txt").touch()
    with pytest.raises(DataError, match=r"holds no case: .*(images/\{id\}\.tif|'training'|train\.txt)"):
        make(root).find()


def test_a_case_without_its_first_file_is_missed(tmp_path):
    for name in ("a_B03", "a_B04", "b_B04", "c_B03", "dem"):
        (tmp_path / f"{name}.tif").touch()
    patterns = ["{id}_B03.tif", "{id}_B04.tif", "dem.tif"]
    with pytest.raises(
        DataError, match=r"2 cases below .* lack a file: b \(no b_B03\.tif\), c \(no c_B04\.tif\); every.*plete=true"
    ):
        FolderLayout(tmp_path, patterns).find()
    assert [files.id for files in FolderLayout(tmp_path, patterns, incomplete=True).find()] == ["a"]
    for name in "bc":
        (tmp_path / f"{name}_B0{4 if name == 'b' else 3}.tif").unlink()
    assert [files.id for files in FolderLayout(tmp_path, patterns).find()] == ["a"]


def test_incomplete_cases_are_left_out_with_their_labels_and_all_their_tiles(root):
    put(root, *(f"{kind}/{place}_{tile}.tif" for kind in ("t1", "t2", "labels") for place in "abc" for tile in (1, 2)))
    for name in ("t1/a_1", "t2/b_2"):
        (root / f"{name}.tif").unlink()
    words = {"root": root, "images": ["t1/{place}_{tile}.tif", "t2/{place}_{tile}.tif"], "labels": "labels/{place}_{tile}.tif"}
    assert list(found(FolderLayout(**words, case="{place}_{tile}", incomplete=True))) == ["a_2", "b_1", "c_1", "c_2"]
    for kind in ("t1", "t2", "labels"):
        for tile in (1, 2):
            save(root / f"{kind}/c_{tile}.tif", bands((1, 4, 4)), transform=NORTH_UP @ Affine.translation(4 * tile, 0))
    (whole,) = FolderLayout(**words, case="{place}", incomplete=True, mosaic=True).find()
    assert (whole.id, len(whole.images), len(whole.labels)) == ("c", 2, 1)
    assert names(root, whole.tiles) == ["t1/c_1.tif", "t1/c_2.tif", "t2/c_1.tif", "t2/c_2.tif"]
    (root / "labels/d_1.tif").touch()
    with pytest.raises(DataError, match=r"1 label .* has no image .*labels/d_1\.tif"):
        FolderLayout(**words, case="{place}_{tile}", incomplete=True).find()
    put(root / "less", "t1/a_1.tif", "t1/a_2.tif")
    none = FolderLayout(**{**words, "root": root / "less"}, case="{place}_{tile}", incomplete=True)
    with pytest.raises(DataError, match=r"2 cases below .* lack a file: a_1 \(no t2/a_1\.tif\), a_2.* Add the files\.$"):
        none.find()


@pytest.mark.parametrize("lacks", ["s1/b_2020", "s2/b_2020", "s1/a_2021"])
def test_an_incomplete_case_is_left_out_with_a_label_whose_name_tells_less_than_its_own(root, lacks):
    cases = ["a_2020", "a_2021", "b_2020"]
    put(root, *(f"{kind}/{case}.tif" for kind in ("s1", "s2") for case in cases), "labels/a.tif", "labels/b.tif")
    (root / f"{lacks}.tif").unlink()
    layout = FolderLayout(root, ["s2/{id}_{year}.tif", "s1/{id}_{year}.tif"], "labels/{id}.tif", "{id}_{year}", incomplete=True)
    assert {case: labels for case, (_, labels, _) in found(layout).items()} == {
        case: [f"labels/{case[0]}.tif"] for case in cases if case not in lacks
    }
    put(root, "labels/c.tif")
    with pytest.raises(DataError, match=r"1 label .* has no image .*labels/c\.tif"):
        layout.find()


def test_partners_of_many_cases_are_looked_up_without_a_pass_over_all_for_each(root, monkeypatch: pytest.MonkeyPatch):
    put(root, *(f"s{band}/{case}.tif" for band in (1, 2) for case in range(400)))
    asked, inner = [], Path.__hash__
    monkeypatch.setattr(Path, "__hash__", lambda path: asked.append(path) or inner(path))
    assert len(FolderLayout(root, ["s2/{id}.tif", "s1/{id}.tif"]).find()) == 400
    assert len(asked) < 20 * 800


def test_only_the_folder_or_the_file_that_is_named_is_looked_at(tmp_path):
    for name in ("one/a_B03", "one/a_B04", "two/b_B03", "two/b_B04", "half/c_B03"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.tif").touch()
    layout = FolderLayout("elsewhere", ["{place}/{id}_B03.tif", "{place}/{id}_B04.tif"])
    for within in (tmp_path / "one", tmp_path / "one" / "a_B04.tif"):
        assert [files.id for files in layout.images_below(tmp_path, within)] == ["a"]
    (half,) = layout.images_below(tmp_path, tmp_path / "half")
    with pytest.raises(DataError, match=r"c_B03\.tif has no partner .*c_B04\.tif"):
        check_partners(half.images)


@pytest.mark.parametrize("images", [["{patient}/{date:d}/t1.nii", "{patient}/{date:d}/flair.nii"], "{patient}/{date:d}/t1.nii"])
def test_a_visit_a_patient_or_a_file_of_one_is_found_by_what_its_folders_are_called(tmp_path, images):
    put(tmp_path, *(f"new/{visit}/{name}.nii" for visit in ("p/2021", "p/2022", "q/2021") for name in ("t1", "flair")))
    layout = FolderLayout("elsewhere", images, case="{patient}_{date}")

    def ids(place):
        return [files.id for files in layout.images_at(tmp_path / place)]

    assert ids("new/p/2022") == ids("new/p/2022/t1.nii") == ["p_2022"]
    assert ids("new/p/2022/flair.nii") == (["p_2022"] if isinstance(images, list) else [])
    assert ids("new/p") == ["p_2021", "p_2022"]
    assert ids("new") == ["p_2021", "p_2022", "q_2021"]
    assert ids(".") == []


def test_the_folder_of_new_images_is_no_part_of_the_data_sets_split(tmp_path):
    put(tmp_path, "new/a.jpg")
    (case,) = FolderLayout("elsewhere", "{split}/{id}.jpg", "{split}annot/{id}.png").images_at(tmp_path / "new")
    assert (case.id, case.split) == ("a", "")


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["scenes/{id}_B.tif", "scenes/{id}_SCL.tif"], ["a", "b", "c"]),
        (["{place}/{id}_B.tif", "{place}/{id}_SCL.tif", "dem.tif"], ["a", "b", "c"]),
        (["red/{id}.tif", "nir/{id}.tif"], []),  # names that do not tell the bands apart
        (["{id}/B.tif", "{id}/SCL.tif"], []),  # or the cases
        (["x/{id}_red.tif", "x/{id}_nir.tif"], []),
    ],
)
def test_cases_of_several_files_are_known_by_the_names_of_the_files(tmp_path, patterns, found):
    put(tmp_path, "new/a_B.tif", "new/a_SCL.tif", "new/b_B.tif", "new/c_SCL.tif", "new/dem.tif", "new/sub/d_B.tif")
    assert [files.id for files in FolderLayout("elsewhere", patterns).images_by_name(tmp_path / "new")] == found


def test_a_case_s_second_file_is_no_case_where_the_first_pattern_finds_it_too(tmp_path):
    put(tmp_path, "a.tif", "a_SCL.tif", "b.tif")
    found = FolderLayout("elsewhere", ["image/{id}.tif", "mask/{id}_SCL.tif"]).images_by_name(tmp_path)
    assert [(files.id, names(tmp_path, files.images)) for files in found] == [
        ("a", ["a.tif", "a_SCL.tif"]),
        ("b", ["b.tif", "b_SCL.tif"]),  # which whoever opens it misses
    ]
    (tmp_path / "a_SCL.tif").unlink()  # whole cases, perhaps
    assert FolderLayout("elsewhere", ["image/{id}.tif", "mask/{id}_SCL.tif"]).images_by_name(tmp_path) == []


# --- of the user's own


class Own(Layout):
    """Finds what it is told to."""

    def __init__(self, root, cases):
        super().__init__(root)
        self.cases = cases

    def _expected(self):
        return "cases"

    def _find(self):
        return self.cases


class Rootless(Own):
    """Forgets the folder."""

    def __init__(self):
        pass


def test_a_layout_without_a_folder_is_refused():
    with pytest.raises(ConfigError, match=rf"The layout {__name__}.Rootless knows no folder: .*super"):
        Rootless().find()


@pytest.mark.parametrize("images", ["a.tif", ["a.tif"], ("a.tif",), Path("a.tif"), [Path("a.tif")]])
def test_files_that_are_named_by_texts_or_in_lists_are_tuples_of_paths(root, images):
    (case,) = Own(root, [CaseFiles("a", images, "b.tif")]).find()
    assert (case.images, case.labels, case.tiles) == ((Path("a.tif"),), (Path("b.tif"),), ())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"id": "a"}, "finds a dict; expected voxtile.cases.layouts.CaseFiles"),
        (CaseFiles(7, (Path("a.tif"),)), "finds a case whose id is 7; expected text"),
        (CaseFiles("a", 7), "finds images of the case 'a' that are 7; expected a tuple of pathlib.Path"),
        (CaseFiles("a", (Path("a.tif"),), (None,)), r"finds labels of the case 'a' that are \(None,\); expected a tuple"),
    ],
)
def test_what_is_no_case_is_refused_with_the_layouts_name(root, case, message):
    with pytest.raises(ConfigError, match=rf"The layout {__name__}.Own {message}"):
        Own(root, [case]).find()
