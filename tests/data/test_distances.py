import json

import pytest

from tests.testers.memory import memory_case
from tests.testers.places import scene
from voxtile.cases.grid import plain_affine
from voxtile.data.blocks import BlockSplit
from voxtile.data.distances import distance, split_distances
from voxtile.data.splits import Split


def test_scenes_are_metres_apart_and_the_nearest_two_are_named():
    split = Split((scene("a"), scene("b", left=100)), (scene("c", left=60), scene("d", left=500)), (scene("e", left=3),))
    found = split_distances(split)
    assert str(found["val"]) == "300 m (c and b)"
    assert str(found["test"]) == "0 m (e and a)"
    assert json.loads(json.dumps(found["val"].as_dict())) == {
        "length": pytest.approx(300, abs=0.2), "unit": "m", "cases": ["c", "b"]
    }  # fmt: skip
    assert str(distance([scene("d", left=500)], [scene("b", left=100)])) == "3.902 km (d and b)"  # 0.9996 on the map is 1


def test_blocks_of_a_volume_are_millimetres_apart():
    volumes = [
        memory_case("v", (18, 20, 20), group="p", affine=plain_affine((3.0, 1.0, 1.5)), unit="mm"),
        memory_case("w", (24, 20, 20), group="p", unit="mm"),
    ]
    split = BlockSplit((3, 1, 1), buffer=5.0, val=0.3, test=0.3)(volumes)
    found = split_distances(split)
    boxes = {case.id: case.box for side in split.sides.values() for case in side}
    for side, length in found.items():
        a, b = (boxes[name] for name in length.cases)
        spacing = 3.0 if length.cases[0].startswith("v") else 1.0
        apart = spacing * (max(a.z, b.z) - min(a.stop[0], b.stop[0]))
        assert length.length == apart >= 5.0, side
        assert length.unit == "mm"


def test_a_picture_in_blocks_counts_pixels_and_whole_cases_without_a_place_are_nowhere():
    found = split_distances(BlockSplit((1, 3), buffer=4.0, val=0.3, test=0)([memory_case("p", (1, 20, 30))]))
    assert str(found["val"]).startswith("4 px (p#r0c")
    split = Split((memory_case("a", unit="mm"),), (memory_case("b", unit="mm"),))
    assert split_distances(split) == {"val": None, "test": None}


def test_where_no_case_has_a_place_none_is_looked_for(monkeypatch):
    monkeypatch.setattr("voxtile.data.ground._outlines", None)
    here, nowhere = (scene("a"),), (memory_case("b", unit="mm"),)
    assert distance(here, nowhere) is distance(nowhere, here) is distance((), here) is None
