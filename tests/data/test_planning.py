import math
from dataclasses import replace

import numpy as np
import pytest

from voxtile.data.planning import BATCHES, WIDTHS, Facts, plan
from voxtile.errors import ConfigError


def facts(shape=(40, 50, 36), spacing=(1.0, 1.0, 1.0), count=20, *, spacings=None, low=0.0, zero=0.0, whole=True):
    return Facts(
        shapes=np.tile(np.array(shape), (count, 1)),
        spacings=np.tile(np.array(spacing), (count, 1)) if spacings is None else np.array(spacings),
        channels=1,
        volumes=np.ones((count, 2)),
        low=np.full(count, low),
        zero=np.full(count, zero),
        whole=whole,
    )


def pixels_times(bytes_each):
    """A step that takes so many bytes for each pixel of the batch and each channel of the first level."""
    return lambda values: int(
        bytes_each * math.prod(values["data.window"]) * values["training.batch_size"] * 64 * values["model.width"]
    )


def test_alike_volumes_keep_their_grid_and_axial_slices():
    made = plan(facts(), 2, 8e9, pixels_times(40))
    assert made.values["data.spacing"] == [1.0, 1.0, 1.0]
    assert made.values["data.axis"] == "z"
    assert made.values["model.depth"] == 3  # 36 / 8 is 4.5, and half of that less than 4
    assert made.values["data.window"] == [56, 40]  # 50 x 36, up to multiples of 8
    assert made.values["normalise"] == "case"
    assert made.values.keys() == made.reasons.keys()
    assert all(made.reasons.values())


def test_unlike_spacings_become_their_median_and_a_coarse_axis_keeps_its_finer_slices():
    spacings = [(4.0, 0.8, 0.8)] * 9 + [(5.0, 1.0, 1.0)] * 8 + [(3.0, 0.9, 0.9)] * 3
    made = plan(facts((30, 200, 180), spacings=spacings), 2, 8e9, pixels_times(1))
    assert made.values["data.spacing"] == [pytest.approx(np.percentile([s[0] for s in spacings], 10)), 0.9, 0.9]
    assert "10th percentile" in made.reasons["data.spacing"]


@pytest.mark.parametrize(
    ("spacing", "axis", "plane"), [((1, 1, 3), "x", (40, 50)), ((1, 3, 1), "y", (40, 36)), ((3, 1, 1), "z", (50, 36))]
)
def test_slices_lie_across_the_coarsest_axis(spacing, axis, plane):
    made = plan(facts(spacing=spacing), 2, 8e9, pixels_times(1))
    assert made.values["data.axis"] == axis
    unit = 2 ** made.values["model.depth"]
    assert made.values["data.window"] == [-(-side // unit) * unit for side in plane]


def test_the_share_of_the_training_pixels_is_that_on_the_planned_grid():
    shapes = np.array([[100, 400, 400]] + [[30, 100, 100]] * 4)
    spacings = [(1.0, 0.5, 0.5)] + [(3.0, 2.0, 2.0)] * 4
    made = plan(replace(facts(count=5, spacings=spacings), shapes=shapes), 2, 1e12, pixels_times(1))
    assert made.values["data.spacing"] == [3.0, 2.0, 2.0]
    pixels = 4 * 30 * 100 * 100 + 100 / 3 * 100 * 100
    assert made.values["training.batch_size"] == int(0.05 * pixels / math.prod(made.values["data.window"])) < BATCHES[1]


def test_boxes_shrink_along_their_longest_side_before_the_network_does():
    shape, need = (100, 200, 160), pixels_times(3)
    full = plan(facts(shape), 3, 1e12, need)
    assert full.values["data.window"] == [112, 208, 160]
    small = plan(facts(shape), 3, need({**full.values, "training.batch_size": 2}) / 8, need)
    assert small.values["model.width"] == WIDTHS[0]
    assert need(small.values) <= need({**full.values, "training.batch_size": 2}) / 8
    assert max(small.values["data.window"]) < 208
    assert all(side % 2 ** small.values["model.depth"] == 0 for side in small.values["data.window"])
    assert "fits into" in small.reasons["data.window"]


def test_a_small_memory_has_a_narrow_network_and_none_is_refused():
    need = pixels_times(40)
    made = plan(facts(), 2, need({"data.window": [56, 40], "training.batch_size": 2, "model.width": 0.25}), need)
    assert (made.values["model.width"], made.values["training.batch_size"]) == (0.25, 2)
    with pytest.raises(ConfigError, match=r"takes .* with the smallest network, and 'plan.memory' allows 1.0 kB"):
        plan(facts(), 2, 1000, need)


def test_a_batch_is_what_fits_and_no_more_than_a_share_of_few_cases():
    assert plan(facts(count=500), 2, 1e12, pixels_times(1)).values["training.batch_size"] == BATCHES[1]
    few = plan(facts((4, 50, 36), count=3), 2, 1e12, pixels_times(1))
    assert few.values["training.batch_size"] == BATCHES[0]
    need = pixels_times(40)
    bound = plan(facts(), 2, need({"data.window": [56, 40], "training.batch_size": 7, "model.width": 0.5}), need)
    assert (bound.values["training.batch_size"], bound.reasons["training.batch_size"]) == (7, "what fits into the memory")


def test_hounsfield_units_and_masks_are_known_by_their_values():
    assert plan(facts(low=-1000.0), 2, 8e9, pixels_times(1)).values["normalise"] == "ct"
    assert plan(facts(low=-1000.0, whole=False), 2, 8e9, pixels_times(1)).values["normalise"] == "case"
    assert plan(facts(zero=0.4), 2, 8e9, pixels_times(1)).values["normalise.nonzero"] is True
    assert plan(facts(zero=0.1), 2, 8e9, pixels_times(1)).values["normalise.nonzero"] is False
