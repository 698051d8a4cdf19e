import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from tests.testers.formats import file_size_limit
from voxtile.cases import maps
from voxtile.cases.atomic import BusyError
from voxtile.cases.maps import MapSpec, MapWriter, discard_finished, discard_probabilities
from voxtile.cases.window import Window
from voxtile.errors import DataError

SHAPE = (2, 6, 8)
SPEC = MapSpec(("a", "b"), key="one")
HALF = Window(0, 0, 0, 2, 6, 4)
REST = Window(0, 0, 4, 2, 6, 4)
ONES = np.ones((2, 6, 4), dtype=np.uint8)


def finish(array, making):
    np.save(making, array)


def opened(folder, spec=SPEC, shape=SHAPE, finish=finish):
    return MapWriter(folder / "map.npy", shape, spec, finish)


def begun(folder, spec=SPEC):
    """A map of which one half was written before its writer was abandoned."""
    with opened(folder, spec) as writer:
        writer.write(HALF, ONES)


def test_a_writer_killed_by_the_system_is_continued(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
import numpy as np
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.window import Window
writer = MapWriter(Path(sys.argv[1]) / "map.npy", (2, 6, 8), MapSpec(("a", "b"), key="one"), None)
writer.write(Window(0, 0, 0, 2, 6, 4), np.ones((2, 6, 4), dtype=np.uint8))
os.pwrite(writer._file.fileno(), b"\1" * 4, 4)  # the next window was half written
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == -signal.SIGKILL
    with opened(tmp_path) as writer:
        assert writer.finished == [HALF]
        writer.write(REST, 0 * ONES)
        np.testing.assert_array_equal(np.load(writer.close())[0], np.repeat([1, 0], 4) * np.ones((2, 6, 1)))


def test_a_line_of_the_journal_that_was_cut_off_is_not_believed(tmp_path):
    begun(tmp_path)
    with (tmp_path / "map.npy.journal").open("a") as journal:
        journal.write(json.dumps(list(REST))[:-1])
    with opened(tmp_path) as writer:
        assert writer.finished == [HALF]
        writer.write(REST, ONES)
    with opened(tmp_path) as writer:
        assert writer.finished == [HALF, REST]


@pytest.mark.parametrize("damage", ["", "[]\n", "{\n", "\0\0\n", None])
def test_a_damaged_journal_begins_anew(tmp_path, damage):
    begun(tmp_path)
    journal = tmp_path / "map.npy.journal"
    journal.unlink() if damage is None else journal.write_text(damage)
    with opened(tmp_path) as writer:
        assert writer.finished == []
        assert (np.load(writer.close()) == 255).all()


def test_unfinished_work_of_another_key_kind_or_shape_begins_anew(tmp_path):
    for spec, shape in (
        (MapSpec(("a", "b"), key="two"), SHAPE),
        (MapSpec(("a", "b"), heatmap=True, key="one"), SHAPE),
        (SPEC, (2, 8, 6)),
    ):
        begun(tmp_path)
        with opened(tmp_path, spec, shape) as writer:
            assert writer.finished == []
            found = np.load(writer.close())
            assert found.shape == (2 if spec.heatmap else 1, *shape)
            assert np.isnan(found).all() if spec.heatmap else (found == 255).all()


def test_an_old_journal_never_speaks_of_a_new_side_file(tmp_path, monkeypatch):
    begun(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", Mock(side_effect=KeyboardInterrupt))  # the new side file has no journal yet
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path, MapSpec(("a", "b"), key="two"))
    with opened(tmp_path) as writer:
        assert writer.finished == []


def test_a_full_disk_at_the_beginning_leaves_nothing(tmp_path):
    with file_size_limit(50), pytest.raises(DataError, match="Could not begin to write"):
        opened(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_the_map_is_refused(tmp_path):
    with opened(tmp_path) as writer:
        for window, array in ((HALF, ONES[:1]), (HALF, ONES[None, None]), (HALF.shifted((0, 0, 5)), ONES)):
            with pytest.raises(ValueError, match=r"takes an array|reaches outside"):
                writer.write(window, array)
        assert writer.finished == []


def test_an_error_that_is_not_of_the_disk_leaves_nothing_either(tmp_path):
    def broken(array, making):
        making.mkdir()
        (making / "half").touch()
        raise RuntimeError("a bug")

    with opened(tmp_path, finish=broken) as writer, pytest.raises(RuntimeError, match="a bug"):
        writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.npy.journal", "map.npy.part"]


def test_a_map_that_is_being_written_is_nobody_elses(tmp_path):
    with opened(tmp_path) as writer:
        writer.write(HALF, ONES)
        with pytest.raises(BusyError, match=r"map\.npy is being written by another process.*share=true"):
            opened(tmp_path)
        code = """
import sys
from pathlib import Path
from voxtile.cases.atomic import BusyError
from voxtile.cases.maps import MapSpec, MapWriter
try:
    MapWriter(Path(sys.argv[1]) / "map.npy", (2, 6, 8), MapSpec(("a", "b"), key="one"), None)
except BusyError:
    print("busy")
"""
        assert subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, check=True).stdout == b"busy\n"
        assert writer.finished == [HALF]
    with opened(tmp_path) as writer:  # whoever lets go without an end leaves its work to the next
        assert writer.finished == [HALF]


def test_a_thread_beside_is_refused_too(tmp_path):
    with opened(tmp_path), ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(opened, tmp_path).exception(), BusyError)


def test_windows_that_follow_one_another_closely_wait_for_the_disk_together(tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "SYNC", 1000)
    with opened(tmp_path) as writer:
        writer.write(HALF, ONES)
        writer.write(REST, ONES)
        assert writer.finished == [HALF]
        assert len((tmp_path / "map.npy.journal").read_text().splitlines()) == 2
    with opened(tmp_path) as writer:
        assert writer.finished == [HALF, REST]


def test_windows_that_did_not_reach_the_disk_are_in_no_journal(tmp_path, monkeypatch):
    with opened(tmp_path) as writer, monkeypatch.context() as patch:
        patch.setattr(maps.os, "fdatasync", Mock(side_effect=[OSError(5, "Input/output error"), None]))
        with pytest.raises(DataError, match="Input/output error"):
            writer.write(HALF, ONES)
    with opened(tmp_path) as writer:
        assert writer.finished == []


def test_maps_that_were_made_come_under_their_names_when_they_are_closed(tmp_path):
    times = []
    with opened(tmp_path, finish=lambda array, making: (times.append(1), finish(array, making))) as writer:
        writer.make()
        assert not (tmp_path / "map.npy").exists()
        writer.close()
    assert (times, [path.name for path in tmp_path.iterdir()]) == ([1], ["map.npy"])


def test_what_was_made_and_not_closed_is_taken_away_and_the_windows_stay(tmp_path):
    with opened(tmp_path) as writer:
        writer.write(HALF, ONES)
        writer.make()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.npy.journal", "map.npy.part"]
    (tmp_path / ".making.map.npy").write_text("left by a process that was killed")
    with opened(tmp_path) as writer:
        assert writer.finished == [HALF]
        np.testing.assert_array_equal(np.load(writer.close())[0, :, :, :4], ONES)
    assert [path.name for path in tmp_path.iterdir()] == ["map.npy"]


def test_what_a_file_is_to_hold_may_be_made_of_the_windows_which_stay_as_they_are(tmp_path):
    begun(tmp_path)
    with opened(tmp_path) as writer:
        writer.write(REST, ONES)
        with pytest.raises(ZeroDivisionError):
            writer.make(lambda side: np.array(side) * (1 // 0))
        for _ in range(2):  # the second time nothing of the first change is there
            writer.make(lambda side: np.array(side) * 3)
        assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".making")) == [
            "map.npy.journal",
            "map.npy.part",
        ]
        writer.close()
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy")[0], np.full(SHAPE, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["map.npy"]


def test_a_writer_that_begins_while_another_ends_keeps_what_is_its_own(tmp_path, monkeypatch):
    unlink, begun, trying = Path.unlink, [], []

    def then_begin(path, missing_ok=False):
        unlink(path, missing_ok)
        if not trying and not begun:
            trying.append(path)
            with suppress(BusyError):
                begun.append(opened(tmp_path, MapSpec(("a", "b"), key="two")))
            trying.clear()

    with opened(tmp_path) as writer:
        monkeypatch.setattr(Path, "unlink", then_begin)
        writer.close()
    monkeypatch.undo()
    with begun[0] as second:
        second.write(HALF, ONES)
        assert len((tmp_path / "map.npy.journal").read_text().splitlines()) == 2
        second.close()
    assert [path.name for path in tmp_path.iterdir()] == ["map.npy"]


def test_a_writer_that_is_not_wanted_leaves_nothing(tmp_path):
    with opened(tmp_path) as writer:
        writer.write(HALF, ONES)
        writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_an_older_one_whole(tmp_path):
    for names in (("a", "b"), ("b", "c")):

        def files(array, making, names=names):
            making.mkdir()
            for name in names:
                (making / name).write_text(name)

        with MapWriter(tmp_path / "map", SHAPE, SPEC, files) as writer:
            writer.close()
    assert sorted(path.name for path in (tmp_path / "map").iterdir()) == ["b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"Could not begin to write .*file/map\.npy: .*file is a file, and a folder is needed"):
        opened(tmp_path / "file")


def test_what_a_killed_process_has_left_of_a_heatmap_is_taken_away_and_nothing_else(tmp_path):
    heat, heat8 = MapSpec(("a", "b"), heatmap=True), MapSpec(("a", "b"), heatmap=True, stored="uint8")
    for name, spec in {
        "heat.tif": heat,
        "heat8.tif": heat8,
        "variance.tif": MapSpec(("a",), heatmap=True),
        "map.tif": SPEC,
    }.items():
        with MapWriter(tmp_path / name, SHAPE, spec, finish):
            pass
    (tmp_path / "unknown.tif.part").write_text("somebody's")
    (tmp_path / ".making.heat.tif").write_text("half")
    (tmp_path / ".making.heat.vrt").write_text("half")
    (tmp_path / ".making.heat.work").mkdir()
    names = ("heat.tif", "heat8.tif", "variance.tif", "map.tif", "unknown.tif", "none.tif")
    with MapWriter(tmp_path / "heat.tif", SHAPE, heat, finish):  # which is being written
        before = sorted(tmp_path.iterdir())
        discard_probabilities(tmp_path / "heat.tif")
        assert sorted(tmp_path.iterdir()) == before
    for name in names:
        discard_probabilities(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.tif.journal", "map.tif.part", "unknown.tif.part"]


def test_what_lies_beside_a_finished_map_goes_unless_it_is_in_use_or_of_another_key(tmp_path):
    journal, side = tmp_path / "map.npy.journal", tmp_path / "map.npy.part"
    begun(tmp_path)
    (tmp_path / ".replaced.map.npy").mkdir()
    with opened(tmp_path):
        discard_finished(tmp_path / "map.npy", SPEC.key)
    discard_finished(tmp_path / "map.npy", "another")
    assert len(list(tmp_path.iterdir())) == 3
    discard_finished(tmp_path / "map.npy", SPEC.key)
    assert list(tmp_path.iterdir()) == []
    begun(tmp_path)
    journal.unlink()
    discard_finished(tmp_path / "map.npy", SPEC.key)
    assert not side.exists()
