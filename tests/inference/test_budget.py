"""What a large case is said to take."""

import shutil
from collections import namedtuple
from unittest.mock import patch

import numpy as np
import pytest
from torch import nn

from tests.testers.memory import memory_case
from voxtile.cases.maps import MapSpec, MapWriter
from voxtile.cases.window import Window
from voxtile.data.normalise import Intensity
from voxtile.errors import DataError
from voxtile.inference.budget import ENDING, check_room, memory_of
from voxtile.inference.crf import DenseCRF
from voxtile.inference.predictor import Predictor
from voxtile.inference.procedure import Procedure
from voxtile.inference.together import Sight

Usage = namedtuple("Usage", "total used free")
CLASSES = MapSpec(("a", "b", "c"))
HEAT = MapSpec(("a", "b", "c"), heatmap=True)
SHAPE = (1, 100, 300)
PLAIN = Intensity((0.0,) * 3, (1.0,) * 3, (0.0,) * 3, (1.0,) * 3)


def free(count):
    return patch.object(shutil, "disk_usage", lambda path: Usage(10**12, 0, count))


@pytest.mark.parametrize(
    ("specs", "bytes_a_pixel"),
    [
        ([CLASSES], 1 + 5 / 3),  # the side file; its overviews and the map, which has them too
        ([CLASSES, HEAT], 1 + 4 / 3 + 12 + 16 + 4),
        ([CLASSES, MapSpec(("a", "b", "c"), heatmap=True, stored="uint8")], 1 + 4 / 3 + 3 + 4 + 1),
    ],
)
def test_disk_is_for_the_side_files_the_maps_and_the_largest_one_s_overviews(tmp_path, specs, bytes_a_pixel):
    paths = [tmp_path / "new" / "folder" / f"{number}.tif" for number in range(len(specs))]
    wanted = round(30_000 * bytes_a_pixel)
    with free(wanted):
        assert check_room(paths, SHAPE, specs) == (wanted, wanted)
    with (
        free(wanted - 1),
        pytest.raises(
            DataError,
            match=r"Making .*0\.tif takes up to [1-9][\d.,]* [kM]B of disk, and .* has [1-9][\d.,]* [kM]B left\. Free some",
        ),
    ):
        check_room(paths, SHAPE, specs)
    assert list(tmp_path.iterdir()) == []


def test_what_was_begun_has_its_room_already(tmp_path):
    with MapWriter(tmp_path / "a.tif", SHAPE, CLASSES, lambda array, making: None):
        pass
    with free(50_000):
        assert check_room([tmp_path / "a.tif"], SHAPE, [CLASSES]) == (80_000, 80_000)
    with free(49_999), pytest.raises(DataError, match="Free some disk"):
        check_room([tmp_path / "a.tif"], SHAPE, [CLASSES])


def large(height, width, channels=3):
    """A case that is all zeros and takes no memory."""
    shape = (1, height, width)
    return memory_case("a", array=np.broadcast_to(np.uint16(0), (channels, *shape)), valid=np.broadcast_to(True, shape))


def test_memory_does_not_depend_on_the_height_nor_beyond_a_strip_on_the_width():
    predictor = Predictor(nn.Conv2d(3, 4, 1), (1, 256, 256), 0.0)
    base = memory_of([Sight(predictor, large(512, 2048), [PLAIN])], 4)
    wide, tall, huge = (
        memory_of([Sight(predictor, large(*size), [PLAIN])], 4) for size in ((512, 4096), (20_480, 2048), (8192, 40_960))
    )
    assert abs(tall - base) < 20e6  # what the process has had at most may have risen
    # Beside the process and GDAL's blocks: 4 slabs of 3 channels of 16 bits and validity, and 2 sums of 4 classes and validity.
    expected = (4096 - 2048) * 256 * (4 * 7 + 2 * 17)
    assert wide - base == pytest.approx(expected, abs=20e6)
    assert abs(huge - wide) < 20e6
    assert base > (2048 * 256) * (4 * 7 + 2 * 17)


def test_the_networks_are_tried_as_they_will_run():
    sizes = []

    class Watching(nn.Module):
        margin = 2

        def forward(self, image, context=0):
            sizes.append(tuple(image.shape))
            return image[:, :, context:-context, context:-context]

    memory_of([Sight(Predictor(Watching(), (1, 32, 40), batch_size=3), large(64, 80), [PLAIN])], 3)
    assert set(sizes) == {(3, 3, 36, 44)}
    assert Window.whole((1, 32, 40)).grown((0, 2, 2)).size == (1, 36, 44)


def test_a_crf_is_tried_on_what_it_refines_at_once_and_the_bands_that_it_holds_are_counted():
    crf, sizes = DenseCRF(bilateral_position=20, smooth_weight=0), []

    def watching(self, probabilities, image, valid, threads):
        sizes.append(probabilities.shape)
        return probabilities

    network, case = nn.Conv2d(3, 4, 1), large(2048, 2048)
    with patch.object(DenseCRF, "refine", watching), patch("voxtile.inference.budget.most_resident", return_value=0):
        plain = memory_of([Sight(Predictor(network, (1, 128, 128), 0.0), case, [PLAIN])], 4)
        assert sizes == []
        with_crf = memory_of([Sight(Predictor(network, (1, 128, 128), 0.0, procedure=Procedure(crf=crf)), case, [PLAIN])], 4)
    # A band of 128 rows in blocks of 1024 columns, each with 40 pixels more on the sides that it has.
    assert sizes == [(4, 1, 128 + 2 * 40, 1024 + 40)] * 2
    assert with_crf - plain == (2 + 2) * 128 * 2048 * (4 * 4 + 1)


def test_what_was_judged_and_not_yet_joined_and_the_end_of_the_process_are_counted():
    predictor = Predictor(nn.Conv2d(3, 4, 1), (1, 256, 256), 0.0, batch_size=2)
    with patch("voxtile.inference.budget.most_resident", return_value=0), predictor.judge.threads() as threads:
        memory = memory_of([Sight(predictor, large(512, 512), [PLAIN])], 4)
    slabs, sums = 4 * 512 * 256 * 7, 2 * 512 * 256 * 17
    assert memory - slabs - sums == (2 * threads + 1) * 2 * 256 * 256 * 17 + 24 * 2**20 + ENDING
