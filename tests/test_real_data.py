"""The configured real data sets, where VOXTILE_DATA names the folder that holds them."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.testers.composing import composed
from voxtile.cases.window import Window
from voxtile.commands.build import parts

DATA = os.environ.get("VOXTILE_DATA", "")  # as it was before other tests of this process set it to a folder of their own
SETS = {
    # name: cases, channels, classes found in the first cases, groups
    "hippocampus": (200, 1, {0, 1, 2}, 132),
    "lgg_mri": (14, 3, {0, 1}, 14),
    "wildfire": (15, 5, {0, 1}, 15),
    "amazon_forest": (45, 3, {0, 1}, 45),
    "sen1floods11": (10, 2, {0, 1}, 10),
    "kampala": (1, 3, {0, 1}, 1),
    "camvid": (701, 3, set(range(11)), 701),
    "isbi2012": (1, 1, {0, 1}, 1),
}

pytestmark = pytest.mark.skipif(not Path(DATA).is_dir() or not DATA, reason="VOXTILE_DATA names no folder of real data sets")


@pytest.mark.parametrize("name", SETS)
def test_a_real_data_set_opens_with_the_cases_channels_and_labels_that_it_has(name: str) -> None:
    count, channels, classes, groups = SETS[name]
    (config,) = composed(["train", f"data={name}", f"paths.data={DATA}"])
    cases = parts(config).dataset.cases()
    assert len(cases) == count
    assert len({case.group for case in cases}) == groups
    found: set[int] = set()
    for case in cases[:: max(1, count // 20)]:
        image, valid = case.read(Window.whole(case.shape))
        label = case.read_label(Window.whole(case.shape))
        assert image.shape == (channels, *case.shape)
        assert label.shape == valid.shape == case.shape
        assert valid.any()
        found |= {int(value) for value in np.unique(label)} - {255}
    assert found == classes
