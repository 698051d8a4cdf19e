"""One pixel per labelled shape: of rasters by connected areas, of vector files as their source says."""

import numpy as np
import pytest

from tests.testers.memory import MemorySource, memory_case
from voxtile.cases.case import Case, Labels
from voxtile.cases.window import Window
from voxtile.data import shapes as module
from voxtile.data.shapes import anchors_of, shapes_are_cut
from voxtile.errors import ConfigError

RING = np.array([[1, 1, 1, 0, 2], [1, 0, 1, 0, 2], [1, 1, 1, 0, 0], [0, 0, 0, 2, 1]])


class DrawnSource(MemorySource):
    """Stands for a vector file: knows its shapes."""

    def anchors(self, box):
        found = np.array([(0, 1, 1), (0, 2, 6), (0, 7, 3)], dtype=np.int32)
        return found[((found >= box.start) & (found < box.stop)).all(axis=1)]


def test_each_connected_area_of_a_foreground_class_has_one_pixel_inside_it():
    case = memory_case("a", (1, 4, 5), label=RING[None])
    found = anchors_of(case, [2, 1])
    assert found.dtype == np.int32
    assert [RING[y, x] for _, y, x in found] == [1, 1, 2, 2]
    assert (0, 3, 4) in {tuple(row) for row in found.tolist()}
    assert len(anchors_of(case, [0, 1, 2])) == 7  # with the ring's inside and two areas around it


def test_areas_are_connected_through_slices():
    label = np.zeros((3, 4, 4), np.uint8)
    label[:, 1, 1] = 1
    label[2, 3, 3] = 1
    assert sorted(map(tuple, anchors_of(memory_case("a", (3, 4, 4), label=label), [1]).tolist())) == [(1, 1, 1), (2, 3, 3)]


def test_a_case_without_shapes_has_none():
    assert anchors_of(memory_case("a", (1, 4, 5), label=np.zeros((1, 4, 5), np.uint8)), [1]).shape == (0, 3)


def test_a_source_that_knows_its_shapes_is_asked_and_a_block_has_those_inside_it():
    label = Labels(DrawnSource(np.zeros((1, 1, 9, 9), np.uint8)), {0: 0})
    case = Case("a", "a", MemorySource(np.zeros((1, 1, 9, 9))), label)
    assert anchors_of(case, [1]).tolist() == [[0, 1, 1], [0, 2, 6], [0, 7, 3]]
    block = case.view(Window(0, 2, 2, 1, 6, 5))
    assert anchors_of(block, [1]).tolist() == [[0, 0, 4], [0, 5, 1]]
    raster = memory_case("a", (1, 4, 5), label=RING[None])
    assert [shapes_are_cut([each]) for each in (case, block, raster.view(Window(0, 0, 0, 1, 2, 2)))] == [False, True, False]


def test_the_areas_of_a_huge_raster_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MOST_PIXELS", 10)
    with pytest.raises(
        ConfigError, match=r"case 'huge' of shape \(1, 4, 5\).* 10 pixels that are searched.*'data\.sampling\.by=class'"
    ):
        anchors_of(memory_case("huge", (1, 4, 5), label=RING[None]), [1])
