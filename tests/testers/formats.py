"""What every case format keeps, in one inherited tester.

A new format is a subclass that says what it holds and how to make a file of it:

    class TestNifti(FormatTester):
        shape, dtype = (2, 5, 7, 6), "int16"

        def make(self, folder, array):
            ...
            return NiftiSource([path])
"""

import errno
import pickle
import resource
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxtile.cases.case import Case
from voxtile.cases.maps import MapSpec
from voxtile.cases.window import Window
from voxtile.errors import DataError

few = settings(
    max_examples=30,
    deadline=None,
    # The fixtures make files that no example changes, and every subclass runs the inherited test for itself. Drawing is slow where
    # the machine is busy.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors, HealthCheck.too_slow],
)
NUMPY_MODES = {"constant": "constant", "reflect": "reflect", "repeat": "edge"}


@st.composite
def windows(draw, shape, reach=0):
    """A window of a case of `shape`; with `reach`, one that may begin and end that many times the case's size outside."""
    starts = [draw(st.integers(-reach * n, (1 + reach) * n - 1)) for n in shape]
    stops = [draw(st.integers(start + 1, max((1 + reach) * n, start + 1))) for start, n in zip(starts, shape, strict=True)]
    return Window.of(starts, [stop - start for start, stop in zip(starts, stops, strict=True)])


def tiles(shape, size):
    """Windows that cover a case once, the last ones first."""
    steps = [range(0, n, s) for n, s in zip(shape, size, strict=True)]
    starts = [(z, y, x) for z in steps[0] for y in steps[1] for x in steps[2]]
    return [Window.of(start, size).clipped(shape) for start in reversed(starts)]


@contextmanager
def file_size_limit(limit):
    """Lets no file grow beyond `limit` bytes, which looks to the writing program like a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FormatTester(ABC):
    """Attributes: the shape (C, D, H, W), at least 6x7 pixels, and data type of the array that `make` is given; by how many bytes
    two files of one map may differ.
    """

    shape = (3, 1, 23, 17)
    dtype = "uint8"
    differ = 0
    spec = MapSpec(("ground", "water", "roof"), key="one")

    @abstractmethod
    def make(self, folder, array):
        """Writes `array` [C, D, H, W] in the format and returns its source."""

    @abstractmethod
    def reopen(self, path):
        """The source of a finished map."""

    @pytest.fixture
    def array(self):
        rng = np.random.default_rng(0)
        kind = np.dtype(self.dtype)
        if kind.kind == "f":
            return rng.normal(size=self.shape).astype(kind)
        return rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, self.shape, dtype=kind, endpoint=True)

    @pytest.fixture
    def source(self, tmp_path, array):
        folder = tmp_path / "in"
        folder.mkdir()
        return self.make(folder, array)

    @pytest.fixture
    def case(self, source):
        return Case("case", "group", source)

    @pytest.fixture
    def labels(self):
        return np.random.default_rng(1).integers(0, len(self.spec.classes), self.shape[1:], dtype=np.uint8)

    @pytest.fixture
    def target(self, tmp_path, source):
        return tmp_path / "out" / source.map_name("map", self.spec)

    def test_the_header_is_right(self, case):
        assert case.shape == self.shape[1:]
        assert case.dtype == np.dtype(self.dtype)
        assert len(set(case.channels)) == self.shape[0]

    @few
    @given(data=st.data())
    def test_a_window_is_a_slice_of_the_whole(self, case, array, data):
        window = data.draw(windows(case.shape))
        pixels, valid = case.read(window)
        assert pixels.dtype == case.dtype
        np.testing.assert_array_equal(pixels, array[:, *window.slices])
        assert valid.shape == window.size
        assert valid.all()

    @pytest.mark.parametrize("pad", ["constant", "reflect", "repeat"])
    @few
    @given(data=st.data())
    def test_padding_equals_numpys(self, case, array, pad, data):
        window = data.draw(windows(case.shape, reach=2))
        widths = [(2 * n, 2 * n) for n in case.shape]
        moved = window.shifted([2 * n for n in case.shape]).slices
        pixels, valid = case.read(window, pad=pad)
        np.testing.assert_array_equal(pixels, np.pad(array, [(0, 0), *widths], mode=NUMPY_MODES[pad])[:, *moved])
        np.testing.assert_array_equal(valid, np.pad(np.ones(case.shape, dtype=bool), widths, mode=NUMPY_MODES[pad])[moved])

    def test_a_window_that_reaches_outside_is_refused(self, case):
        depth, height, width = case.shape
        for window in (Window(0, 0, 1, depth, height, width), Window(-1, 0, 0, 1, 1, 1), Window(0, height, 0, 1, 1, 1)):
            with pytest.raises(DataError, match="reaches outside"):
                case.read(window)

    def test_channels_are_picked_by_name_in_the_order_asked_for(self, case, array):
        names = case.channels[::-1][:2]
        pixels, _ = case.read(Window.whole(case.shape), channels=names)
        np.testing.assert_array_equal(pixels, array[::-1][:2])
        with pytest.raises(DataError, match="no channel 'thermal'"):
            case.read(Window.whole(case.shape), channels=("thermal",))

    def test_a_view_reads_its_part_only(self, case, array):
        region = Window.of([n // 3 for n in case.shape], [n - n // 3 for n in case.shape])
        view = case.view(region, ":part")
        assert view.shape == region.size
        np.testing.assert_array_equal(view.read(Window.whole(view.shape))[0], array[:, *region.slices])
        np.testing.assert_array_equal(
            view.read(Window(0, -1, 0, 1, 1, 1), pad="repeat")[0][:, 0, 0, 0], array[:, region.z, region.y, region.x]
        )

    def test_it_pickles_small_and_reads_afterwards(self, case, array):
        case.read(Window(0, 0, 0, 1, 1, 1))  # nothing that reading opened may get into the pickle
        packed = pickle.dumps(case)
        assert len(packed) < 10_000
        np.testing.assert_array_equal(pickle.loads(packed).read(Window.whole(case.shape))[0], array)

    def test_threads_may_read_at_the_same_time(self, case, array):
        wanted = tiles(case.shape, (1, 4, 4)) * 4
        with ThreadPoolExecutor(4) as pool:
            for window, (pixels, _) in zip(wanted, pool.map(case.read, wanted), strict=True):
                np.testing.assert_array_equal(pixels, array[:, *window.slices])

    def test_a_map_comes_back_as_written_on_the_grid_of_its_input(self, case, target, labels):
        with case.open_map(target, self.spec) as writer:
            for window in tiles(case.shape, (1, 5, 6)):
                writer.write(window, labels[window.slices])
            assert not target.exists()
            assert writer.close() == target
        assert [path.name for path in target.parent.iterdir()] == [target.name]
        found = self.reopen(target)
        assert (found.stored, found.canonical) == (case.image.stored, case.image.canonical)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found.read(Window.whole(case.shape), (0,))[0][0], labels)

    def test_what_is_not_written_is_ignored(self, case, target, labels):
        window = Window(0, 2, 3, 1, 4, 4)
        with case.open_map(target, self.spec) as writer:
            writer.write(window, labels[window.slices])
            writer.close()
        values = self.reopen(target).read(Window.whole(case.shape), (0,))[0][0]
        np.testing.assert_array_equal(values[window.slices], labels[window.slices])
        assert (values == 255).sum() == values.size - window.pixels

    def test_an_abandoned_map_is_continued(self, case, target, labels):
        plan = tiles(case.shape, (1, 5, 6))
        with case.open_map(target, self.spec) as writer:
            for window in plan[:5]:
                writer.write(window, labels[window.slices])
        with case.open_map(target, self.spec) as writer:
            assert writer.finished == plan[:5]
            for window in plan[5:]:
                writer.write(window, labels[window.slices])
            writer.close()
        np.testing.assert_array_equal(self.reopen(target).read(Window.whole(case.shape), (0,))[0][0], labels)

    def test_a_finished_map_is_replaced_by_a_newer_one(self, case, target, labels):
        for values in (np.zeros_like(labels), labels):
            with case.open_map(target, self.spec) as writer:
                writer.write(Window.whole(case.shape), values)
                writer.close()
        np.testing.assert_array_equal(self.reopen(target).read(Window.whole(case.shape), (0,))[0][0], labels)
        assert [path.name for path in target.parent.iterdir()] == [target.name]

    def test_a_map_never_takes_the_place_of_its_input(self, case, source):
        for path in (source.path, source.path.parent):
            with pytest.raises(DataError, match="take the place of an input"):
                case.open_map(path, self.spec)

    def test_an_error_at_the_end_leaves_nothing_under_the_name_and_can_be_mended(self, case, target, labels, monkeypatch):
        with case.open_map(target, self.spec) as writer:
            writer.write(Window.whole(case.shape), labels)
            finish = writer._finish

            def full(array, making):
                finish(array, making)
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(writer, "_finish", full)
            with pytest.raises(DataError, match="No space left on device"):
                writer.close()
            assert sorted(path.name for path in target.parent.iterdir()) == [f"{target.name}.journal", f"{target.name}.part"]
            monkeypatch.setattr(writer, "_finish", finish)
            writer.close()
        np.testing.assert_array_equal(self.reopen(target).read(Window.whole(case.shape), (0,))[0][0], labels)

    def test_a_full_disk_leaves_nothing_under_the_name(self, case, target, labels):
        with case.open_map(target, self.spec) as writer:
            writer.write(Window.whole(case.shape), labels)
            writer.close()
        files = [file.stat().st_size for file in target.rglob("*")] or [target.stat().st_size]
        again = target.with_name(f"again.{target.name}")
        with case.open_map(again, self.spec) as writer:
            writer.write(Window.whole(case.shape), labels)
            with file_size_limit(max(files) - self.differ - 1), pytest.raises(DataError, match="disk"):
                writer.close()
        assert not again.exists()
