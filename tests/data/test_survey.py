"""One pass over a case against brute force, what its digests depend on, and the cache of surveys."""

import math
import os
import shutil
import weakref
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import rasterio
import rasterio.shutil

from tests.testers.geotiff import masked_beside, save
from tests.testers.memory import memory_case
from tests.testers.surveys import CLASSES, VALUES, open_case
from voxtile.cases import geotiff
from voxtile.cases.cache import stamp_of
from voxtile.cases.case import Case, Labels
from voxtile.cases.geotiff import GeoTiffSource, label_source
from voxtile.cases.nifti import NiftiSource
from voxtile.cases.shared import Shared
from voxtile.cases.window import Window
from voxtile.cases.working import OnWorkingGrid
from voxtile.data import survey as module
from voxtile.data.rng import generator
from voxtile.data.survey import blocks, fingerprint, foreground_sample, survey, survey_all, survey_key
from voxtile.errors import DataError


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(1, 500, (2, 50, 70), dtype=np.int16)
    pixels[:, :20, :30] = 0
    return pixels


@pytest.fixture
def label():
    return np.random.default_rng(1).choice([0, 1, 9], (50, 70), p=[0.7, 0.2, 0.1]).astype(np.uint8)


@pytest.fixture
def folder(tmp_path, image, label):
    return rewritten(tmp_path / "data", image, label)


def rewritten(folder, image, label):
    save(folder / "a.tif", image, nodata=0)
    save(folder / "a_label.tif", label[None])
    return folder


@pytest.fixture(params=[1024, 16], ids=["one block", "many blocks"])
def _block(request, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SIDE", request.param)


def equal(a, b):
    return (
        (a.image_digest, a.label_digest, a.pixels, a.valid) == (b.image_digest, b.label_digest, b.pixels, b.valid)
        and np.array_equal(a.counts, b.counts)
        and np.array_equal(a.sample, b.sample)
        and all(np.array_equal(x, y) for x, y in zip(a.locations, b.locations, strict=True))
    )


# --- what it finds


@pytest.mark.usefixtures("_block")
def test_counts_and_shares_are_those_of_brute_force(folder, image, label):
    found = survey(open_case(folder), CLASSES)
    valid = (image != 0).any(axis=0)
    assert found.counts.tolist() == [int(((label == value) & valid).sum()) for value in range(CLASSES)]
    assert found.judged == ((label != 9) & valid).sum()
    assert found.pixels == label.size
    assert found.valid == pytest.approx(valid.mean())
    np.testing.assert_array_equal(np.sort(found.sample), np.sort(image[:, valid]))


@pytest.mark.usefixtures("_block")
def test_locations_hold_their_class_and_data(folder, image, label):
    found = survey(open_case(folder), CLASSES)
    for index, places in enumerate(found.locations):
        assert len(places) == min(found.counts[index], module.MOST_LOCATIONS)
        assert len(np.unique(places, axis=0)) == len(places)
        z, y, x = places.T
        assert (z == 0).all()
        assert (label[y, x] == index).all()
        assert (image[:, y, x] != 0).all()


def test_the_digest_knows_an_image_under_another_name(tmp_path):
    """Some writers put the file's name into a band's description."""
    digests = set()
    for name in ("Ghana_1", "copy"):
        path = tmp_path / f"{name}.tif"
        save(path, np.arange(72, dtype=np.uint8).reshape(1, 8, 9))
        with rasterio.open(path, "r+") as out:
            out.set_band_description(1, "Ghana_1_VV")
        digests.add(survey(Case(name, name, GeoTiffSource([path])), 2, label=False).image_digest)
    assert len(digests) == 1


def test_a_draw_of_locations_is_even(folder, image, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SIDE", 16)
    monkeypatch.setattr(module, "MOST_LOCATIONS", 400)
    rewritten(folder, image, np.zeros((50, 70), np.uint8))
    places = survey(open_case(folder), CLASSES).locations[0]
    assert places.shape == (400, 3)
    valid = (image != 0).any(axis=0)
    expected = 400 * valid[:, :35].sum() / valid.sum()
    assert abs((places[:, 2] < 35).sum() - expected) < 40  # 4 standard deviations


def test_large_cases_keep_more_places_the_same_whichever_block_fills_up(folder, image, monkeypatch):
    rewritten(folder, image, np.zeros((50, 70), np.uint8))
    monkeypatch.setattr(module, "MOST_LOCATIONS", 100)
    monkeypatch.setattr(module, "BLOCK_SIDE", 16)
    monkeypatch.setattr(module, "PIXELS_PER_LOCATION", 10)
    found = survey(open_case(folder), CLASSES)
    assert len(found.locations[0]) == 350
    keys, places = [], []
    for number, part in enumerate(blocks((1, 50, 70))):  # every pixel's key, and the smallest of all
        valid = (image != 0).any(axis=0)[None][part.slices]
        keys.append(generator(0, number, "location").random(int(valid.sum())))
        places.append(np.argwhere(valid) + np.array(part.start))
    smallest = np.argsort(np.concatenate(keys))[:350]
    np.testing.assert_array_equal(found.locations[0], np.concatenate(places)[smallest])


def test_a_case_that_keeps_more_places_than_it_did_has_another_fingerprint(folder, monkeypatch):
    case = open_case(folder)
    found = survey(case, CLASSES)
    before = fingerprint([case], {case.id: found})
    monkeypatch.setattr(module, "MOST_LOCATIONS", 100)
    assert fingerprint([case], {case.id: found}) == before
    monkeypatch.setattr(module, "PIXELS_PER_LOCATION", 10)
    assert fingerprint([case], {case.id: found}) != before


def test_the_sample_of_a_big_case_is_thinned_evenly(folder, monkeypatch):
    monkeypatch.setattr(module, "MOST_SAMPLED", 1000)
    found = survey(open_case(folder), CLASSES)
    assert 500 < found.sample.shape[1] <= 1000


@pytest.mark.parametrize("width", [63, 64, 65])
def test_the_sample_shows_all_columns_however_long_rows_are(tmp_path, monkeypatch, width):
    monkeypatch.setattr(module, "MOST_SAMPLED", 64)
    columns = np.broadcast_to(np.arange(width, dtype=np.int16), (64, width))  # about one pixel of each row is sampled
    save(tmp_path / "a.tif", columns[None])
    found = survey(Case("a", "a", GeoTiffSource([tmp_path / "a.tif"])), 1, label=False).sample[0]
    assert len(found) in (63, 64, 65)
    assert abs(found.mean() - (width - 1) / 2) < 5 * width / math.sqrt(12 * len(found))
    assert len(set(found.tolist())) > 30


def test_of_few_pixels_that_hold_data_some_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_SAMPLED", 2)
    pixels = np.zeros((1, 40, 40), dtype=np.int16)
    pixels[0, 7, 9] = 5
    save(tmp_path / "a.tif", pixels, nodata=0)
    assert survey(Case("a", "a", GeoTiffSource([tmp_path / "a.tif"])), 1, label=False).sample.tolist() == [[5]]


def test_of_a_huge_case_only_some_blocks_of_the_image_are_read(folder, monkeypatch, label):
    monkeypatch.setattr(module, "BLOCK_SIDE", 10)
    monkeypatch.setattr(module, "MOST_IMAGE_BLOCKS", 7)
    case, read = open_case(folder), []
    monkeypatch.setattr(Case, "read", lambda self, window, original=Case.read: read.append(window) or original(self, window))
    found = survey(case, CLASSES)
    assert len(read) == 7
    assert read[0].start == (0, 0, 0)
    assert read[-1].stop == case.shape
    assert found.counts.sum() > (label != 9).sum() / 2  # the label is read whole


@pytest.mark.parametrize("holes", [True, False])
def test_the_foreground_is_read_by_block_in_order_and_without_places_that_hold_no_data(monkeypatch, holes):
    monkeypatch.setattr(module, "BLOCK_SIDE", 10)
    monkeypatch.setattr(module, "MOST_IMAGE_BLOCKS", 3)  # what lies in the others may hold no data
    rng = np.random.default_rng(0)
    array, label = rng.normal(size=(2, 4, 33, 27)), rng.integers(0, 3, (4, 33, 27))
    valid = rng.random(label.shape) < (0.8 if holes else 1.0)
    array[:, ~valid] = np.nan
    case = replace(memory_case("a", array=array, valid=valid), labels=memory_case("b", array=array, label=label).labels)
    read = []
    found = survey(case, 3)
    monkeypatch.setattr(Case, "read", lambda self, window, original=Case.read: read.append(window) or original(self, window))
    pixels, blank = foreground_sample(case, found, background=0)
    places = np.concatenate([found.locations[1], found.locations[2]])
    where = tuple(np.concatenate([places[places[:, 0] == z] for z in range(4)]).T)
    np.testing.assert_array_equal(pixels, array[:, *where][:, valid[where]])
    assert blank == (~valid[where]).sum()
    assert (blank > 0) == holes
    assert max(window.pixels for window in read) <= 4 * 10 * 10


@pytest.mark.parametrize("shape", [(1, 5, 5), (1, 2050, 1030), (300, 100, 120), (7, 1500, 90)])
def test_blocks_partition_the_case_and_are_small(shape):
    times = np.zeros(shape, dtype=np.int8)
    for part in blocks(shape):
        assert part.pixels <= 1024 * 1024
        times[part.slices] += 1
    assert (times == 1).all()


def test_a_case_without_any_data_has_nothing_to_judge(folder, image, label):
    rewritten(folder, np.zeros_like(image), label)
    found = survey(open_case(folder), CLASSES)
    assert (found.judged, found.valid, found.sample.shape) == (0, 0.0, (2, 0))


def test_a_view_is_surveyed_by_its_part_only(folder, image, label):
    region = Window(0, 15, 25, 1, 20, 30)
    found = survey(open_case(folder).view(region, ":part"), CLASSES)
    part, valid = label[15:35, 25:55], (image != 0).any(axis=0)[15:35, 25:55]
    assert found.counts.tolist() == [int(((part == value) & valid).sum()) for value in range(CLASSES)]


# --- digests


def test_digests_change_with_a_pixel(folder, image, label):
    before = survey(open_case(folder), CLASSES)
    image[1, 40, 60] += 1
    pixel = survey(open_case(rewritten(folder, image, label)), CLASSES)
    assert pixel.image_digest != before.image_digest
    assert pixel.label_digest == before.label_digest
    label[40, 60] = 2
    other = survey(open_case(rewritten(folder, image, label)), CLASSES)
    assert other.image_digest == pixel.image_digest
    assert other.label_digest != pixel.label_digest


def test_the_images_digest_changes_with_what_counts_as_data(folder):
    assert survey(open_case(folder), CLASSES).image_digest != survey(open_case(folder, nodata=-1), CLASSES).image_digest


def test_digests_do_not_change_with_the_files_place_or_time(folder, tmp_path):
    before = survey(open_case(folder), CLASSES)
    shutil.copytree(folder, tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere").iterdir():
        os.utime(path, (1, 1))
    assert equal(survey(open_case(tmp_path / "elsewhere"), CLASSES), before)


def test_the_fingerprint_changes_with_ids_and_content_and_not_with_the_order(folder):
    a = open_case(folder)
    b = replace(a, id="b")
    found, unread = survey(a, CLASSES), survey(a, CLASSES, label=False)
    assert fingerprint([a, b], {a.id: found, "b": unread}) == fingerprint([b, a], {"b": unread, a.id: found})
    several = [([a], found, found), ([b], found, found), ([a], unread, found), ([a, b], found, unread), ([a, b], unread, found)]
    assert len({fingerprint(cases, {a.id: first, "b": second}) for cases, first, second in several}) == len(several)


def test_without_the_label_its_file_is_never_read(folder):
    case = open_case(folder)
    before = survey(case, CLASSES)
    (folder / "a_label.tif").unlink()
    found = survey(case, CLASSES, label=False)
    assert (found.label_digest, found.judged) == ("", 0)
    assert found.image_digest == before.image_digest
    np.testing.assert_array_equal(found.sample, before.sample)


def test_an_unknown_label_value_stops_the_survey(folder, image, label):
    label[3, 3] = 77
    with pytest.raises(DataError, match="77 as label value"):
        survey(open_case(rewritten(folder, image, label)), CLASSES)


# --- the cache


@pytest.fixture
def made(monkeypatch):
    """Ids of the cases that were really surveyed."""
    ids = []
    original = module.survey
    monkeypatch.setattr(module, "survey", lambda case, *args: ids.append(case.id) or original(case, *args))
    return ids


def test_a_cached_survey_equals_a_fresh_one(folder, tmp_path, made):
    ticks = []
    first, second = (survey_all([open_case(folder)], CLASSES, tmp_path / "cache", tick=lambda: ticks.append(1)) for _ in range(2))
    assert equal(first["a"], second["a"])
    assert made == ["a"]
    assert len(ticks) == 2


def test_surveys_come_by_id_whichever_thread_is_first(folder, tmp_path, label):
    cases = []
    for number in range(12):
        name = f"s{number}"
        save(folder / f"{name}.tif", np.full((1, 8, 8), number + 1, np.int16))
        save(folder / f"{name}_label.tif", np.full((1, 8, 8), number % CLASSES, np.uint8))
        cases.append(open_case(folder, name))
    found = survey_all(cases, CLASSES, tmp_path / "cache")
    assert list(found) == [case.id for case in cases]
    assert all(found[f"s{n}"].counts[n % CLASSES] == 64 and found[f"s{n}"].sample[0, 0] == n + 1 for n in range(12))


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"garbage" + data[7:],
                                    lambda data: data[:-1] + bytes([data[-1] ^ 1])])  # fmt: skip
def test_a_damaged_cache_file_is_made_anew(folder, tmp_path, made, damage):
    first = survey_all([open_case(folder)], CLASSES, tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / "surveys").iterdir()
    kept.write_bytes(damage(kept.read_bytes()))
    assert equal(survey_all([open_case(folder)], CLASSES, tmp_path / "cache")["a"], first["a"])
    assert equal(survey_all([open_case(folder)], CLASSES, tmp_path / "cache")["a"], first["a"])
    assert made == ["a", "a"]


def test_a_cache_that_cannot_be_written_is_no_error(folder, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert equal(survey_all([open_case(folder)], CLASSES, tmp_path / "cache")["a"], survey(open_case(folder), CLASSES))


@pytest.mark.parametrize("kept", [False, True], ids=["made", "from the cache"])
def test_what_grows_with_a_case_is_not_held_in_memory(folder, tmp_path, monkeypatch, kept):
    cache, large = tmp_path / "cache", []
    if kept:
        survey_all([open_case(folder)], CLASSES, cache)
    survey_was, read_was = module.survey, module._read

    def watched(found):
        large.extend(map(weakref.ref, (found.sample, *found.locations)))
        return found

    monkeypatch.setattr(module, "survey", lambda *args: watched(survey_was(*args)))
    monkeypatch.setattr(module, "_read", lambda path: (lambda found, stamp: (watched(found), stamp))(*read_was(path)))
    found = survey_all([open_case(folder)], CLASSES, cache)["a"]
    assert len(large) == 1 + CLASSES
    assert not any(each() is not None for each in large)
    assert equal(found, survey_was(open_case(folder), CLASSES))
    assert found.sampled == found.sample.shape[1]


def test_places_of_a_kept_survey_are_a_sequence(folder, tmp_path):
    places = survey_all([open_case(folder)], CLASSES, tmp_path / "cache")["a"].locations
    held = survey(open_case(folder), CLASSES).locations
    assert len(places) == len(held) == CLASSES
    for found, meant in ((places, held), (places[1:], held[1:]), (places[::-1], held[::-1]), ([places[-1]], [held[-1]])):
        assert all(np.array_equal(a, b) for a, b in zip(found, meant, strict=True))
    with pytest.raises(IndexError):
        places[CLASSES]


def test_places_asked_for_again_are_read_once_while_there_is_room(folder, tmp_path, monkeypatch):
    found = survey_all([open_case(folder)], CLASSES, tmp_path / "cache")["a"]
    read, original = [], module._array_in
    monkeypatch.setattr(module, "_array_in", lambda file, name, dtype: read.append(name) or original(file, name, dtype))
    for room, times in ((10**9, 1), (0, 3)):
        monkeypatch.setattr(module, "_PLACES", Shared(room, lambda places: places.nbytes))
        read.clear()
        for _ in range(3):
            assert len(found.locations[0])
            assert len(found.locations[1])
        assert (read.count("locations_0"), read.count("locations_1"), len(read)) == (times, times, 2 * times)


def rewritten_in_place(path):
    path.write_bytes(path.read_bytes())


def damaged_with_its_date(path):
    data, status = path.read_bytes(), path.stat()
    path.write_bytes(data[:400])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def taken_by_a_file(path):
    shutil.rmtree(path.parent)
    path.parent.write_text("a file where a folder should be")


@pytest.mark.parametrize(("happens", "surveys"), [(lambda path: path.unlink(), 1), (lambda path: path.write_bytes(b""), 1),
                                                 (damaged_with_its_date, 1), (rewritten_in_place, 0), (taken_by_a_file, 1),
                                                 (lambda path: shutil.rmtree(path.parent), 1)])  # fmt: skip
def test_a_survey_that_is_lost_while_it_is_in_use_is_made_again(folder, tmp_path, made, monkeypatch, happens, surveys):
    expected = survey(open_case(folder), CLASSES)
    monkeypatch.setattr(module, "_PLACES", Shared(0, lambda places: places.nbytes))
    found = survey_all([open_case(folder)], CLASSES, tmp_path / "cache")["a"]
    (kept,) = (tmp_path / "cache" / "surveys").iterdir()
    happens(kept)
    made.clear()
    for _ in range(2):
        assert equal(found, expected)
    assert len(made) == surveys


def test_a_case_that_changed_when_its_survey_was_lost_is_told(folder, tmp_path, image, label):
    found = survey_all([open_case(folder)], CLASSES, tmp_path / "cache")["a"]
    (kept,) = (tmp_path / "cache" / "surveys").iterdir()
    kept.unlink()
    label[0, 69] = 2 - label[0, 69] % 2
    rewritten(folder, image, label)
    for _ in range(2):
        with pytest.raises(DataError, match=f"{kept}.*have changed since this command began"):
            assert found.sample is None


def test_a_survey_made_anew_takes_nothing_from_the_cache_and_corrects_it(folder, tmp_path, made):
    cache = tmp_path / "cache"
    survey_all([open_case(folder)], CLASSES, cache)
    (kept,) = (cache / "surveys").iterdir()
    right, stamp = kept.read_bytes(), stamp_of(kept)
    done = set()
    for _ in range(2):
        survey_all([open_case(folder)], CLASSES, cache, anew=done)
    assert (made, done, stamp_of(kept)) == (["a"] * 2, {kept}, stamp)  # what is right already is not written
    kept.write_bytes(module._written(replace(survey(open_case(folder), CLASSES), valid=0.5)))
    found = survey_all([open_case(folder)], CLASSES, cache, anew=set())["a"]
    assert found.valid != 0.5
    assert kept.read_bytes() == right


def test_an_old_survey_that_cannot_be_replaced_is_not_taken(folder, tmp_path, made, monkeypatch):
    cache, done = tmp_path / "cache", set()
    survey_all([open_case(folder)], CLASSES, cache)
    (kept,) = (cache / "surveys").iterdir()
    kept.write_bytes(module._written(replace(survey(open_case(folder), CLASSES), valid=0.5)))

    def full(*_, **__):
        raise OSError("no room")

    monkeypatch.setattr(module, "atomic_write", full)
    for _ in range(2):
        assert survey_all([open_case(folder)], CLASSES, cache, anew=done)["a"].valid != 0.5
    assert not done


def test_the_cache_notices_what_could_change_a_survey(folder, tmp_path, made, image, label):
    cache = tmp_path / "cache"
    survey_all([open_case(folder)], CLASSES, cache)
    survey_all([open_case(folder, nodata=-1)], CLASSES, cache)
    survey_all([open_case(folder)], CLASSES + 1, cache)
    survey_all([open_case(folder)], CLASSES, cache, label=False)
    survey_all([open_case(folder).view(Window(0, 0, 0, 1, 9, 9))], CLASSES, cache)
    case = open_case(folder)
    survey_all([Case("a", "a", case.image, Labels(case.labels.source, VALUES | {9: 2}))], CLASSES, cache)
    survey_all([Case("a", "a", case.image, case.labels, select=(1,))], CLASSES, cache)
    label[0, 69] = 2
    rewritten(folder, image, label)
    os.utime(folder / "a_label.tif", (5, 5))
    survey_all([open_case(folder)], CLASSES, cache)
    assert made == ["a"] * 8


NOTES = "<PAMDataset><PAMRasterBand band='1'>{}</PAMRasterBand></PAMDataset>"


@pytest.mark.parametrize("name", ["a.tif.msk", "a_label.tif.msk", "a_label.tfw", "a.tif.aux.xml", "source of a VRT"])
def test_the_cache_notices_what_lies_beside_files(tmp_path, made, image, label, name):
    """A mask, a world file, a nodata value that a program noted: the files themselves stay as they are."""
    folder, cache = rewritten(tmp_path / "data", image, label), tmp_path / "cache"
    if name == "a_label.tfw":
        with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
            save(folder / "a_label.tif", label[None], transform=None)
    if name == "source of a VRT":
        name = "b.tif.msk"
        (folder / "a.tif").rename(folder / "b.tif")
        masked_beside(folder / "b.tif", label == 0)
        rasterio.shutil.copy(folder / "b.tif", folder / "a.vrt", driver="VRT")

    def found(content):
        if name.endswith(".msk"):
            masked_beside((folder / name).with_suffix(""), label != content)
        else:
            (folder / name).write_text(content)
        image = GeoTiffSource([next(folder.glob("a.[tv]*[ft]"))])
        case = Case("a", "a", image, Labels(label_source(folder / "a_label.tif", image, VALUES), VALUES))
        return survey_all([case], CLASSES, cache)["a"]

    if name.endswith(".msk"):
        contents = [0, 1]
    elif name.endswith(".tfw"):
        contents = [f"10\n0\n0\n-10\n{500005 + 10 * step}\n5299995\n" for step in (0, 5)]
    else:
        contents = [NOTES.format(f"<NoDataValue>{value}</NoDataValue>") for value in (0, 300)]
    first, second = map(found, contents)
    assert first.counts.tolist() != second.counts.tolist()
    assert made == ["a"] * 2


def test_statistics_beside_a_file_change_no_digest_and_are_no_reason_to_read_again(tmp_path, made, image, label):
    folder, cache = rewritten(tmp_path / "data", image, label), tmp_path / "cache"
    plain, *noted = [open_case(folder)]
    for mean in (3, 4):
        metadata = f"<Metadata><MDI key='STATISTICS_MEAN'>{mean}</MDI></Metadata><Histograms/>"
        (folder / "a.tif.aux.xml").write_text(NOTES.format(metadata))
        noted.append(open_case(folder))
    surveys = [survey_all([case], CLASSES, cache) for case in (plain, *noted)]
    assert len({fingerprint([case], found) for case, found in zip((plain, *noted), surveys, strict=True)}) == 1
    assert len(made) == 1


def test_what_a_vrt_is_made_of_is_found_once_for_all_its_blocks(folder, monkeypatch):
    rasterio.shutil.copy(folder / "a.tif", folder / "a.vrt", driver="VRT")
    masked_beside(folder / "a.tif", np.ones((50, 70), bool))
    found, original = [], geotiff.sources_of
    monkeypatch.setattr(geotiff, "sources_of", lambda path: found.append(path) or original(path))
    case = Case("a", "a", GeoTiffSource([folder / "a.vrt"]))
    assert len({survey_key(case.view(Window(0, y, 0, 1, 9, 9)), 2, False) for y in range(5)}) == 5
    assert case.image.files == (folder / "a.vrt", folder / "a.tif")
    assert case.image.beside == (folder / "a.tif.msk",)
    assert found == [folder / "a.vrt"]


def test_a_vendors_metadata_are_no_reason_to_read_again(tmp_path, made):
    path, cache = save(tmp_path / "LC08_L1TP_042034_B4.TIF", np.ones((1, 8, 9), np.uint8)), tmp_path / "cache"
    for text in (None, "L1_METADATA_FILE", "L1_METADATA"):
        if text:
            (tmp_path / "LC08_L1TP_042034_MTL.txt").write_text(f'GROUP = {text}\n  ORIGIN = "x"\nEND_GROUP = {text}\nEND\n')
        (tmp_path / "LC08_L1TP_042034_B4.tfw").write_text(f"10\n0\n0\n-10\n{text and 9}5\n95\n")  # the file says its place itself
        source = GeoTiffSource([path])
        assert source.beside == ()
        survey_all([Case("a", "a", source)], 2, cache, label=False)
    assert len(made) == 1


@pytest.mark.parametrize(("spacing", "axis"), [((2.0, 1.0, 1.0), "z"), (None, "x"), ((3.0, 2.0, 1.5), "y")])
def test_an_image_is_known_again_on_whatever_grid_it_is_seen(tmp_path, spacing, axis):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 900, (12, 9, 7, 2), dtype=np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.5, 3.0, 1.0])), tmp_path / "a.nii.gz")
    native = NiftiSource([tmp_path / "a.nii.gz"])
    for select in ((), (1,)):
        plain = survey(Case("a", "a", native, select=select), CLASSES, label=False)
        found = survey(Case("a", "a", OnWorkingGrid(native, spacing, axis, "cubic"), select=select), CLASSES, label=False)
        assert found.image_digest == plain.image_digest
    assert found.pixels == np.prod(OnWorkingGrid(native, spacing, axis, "cubic").working.shape)
