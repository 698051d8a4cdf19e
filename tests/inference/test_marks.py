"""Letters on pictures: the side that the affine says, whatever way a volume was stored."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests.testers.memory import memory_case, north_up
from voxtile.cases.grid import plain_affine
from voxtile.cases.nifti import NiftiSource
from voxtile.cases.window import Window
from voxtile.inference.marks import drawn, edge_marks, legend, marked
from voxtile.training import pictures

TURNED = {"RAS": (1, 1), "LAS": (-1, 1), "LPS": (-1, -1), "RPS": (1, -1)}  # signs of the first two columns


@pytest.mark.parametrize("stored", TURNED)
def test_the_letter_stands_where_the_patients_side_is(tmp_path: Path, stored: str) -> None:
    """A bright voxel far on the patient's right and in front, stored in four ways, is shown at the edges marked R and A."""
    across, along = TURNED[stored]
    affine = np.diag([across, along, 3.0, 1.0])
    affine[:2, 3] = -9 * across, -7 * along  # the middle is the scanner's
    array = np.zeros((19, 15, 3), dtype=np.int16)
    array[18 if across > 0 else 0, 14 if along > 0 else 0, 1] = 1
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "v.nii")
    source = NiftiSource([tmp_path / "v.nii"])
    marks = edge_marks(source.working)
    plane = source.read(Window.of((1, 0, 0), (1, *source.working.shape[1:])), (0,))[0][0, 0]
    shown = drawn(np.repeat(plane[..., None], 3, axis=2).astype(np.uint8), source.working, 1)
    (row,), (column,) = np.nonzero(shown[..., 0])
    assert marks is not None
    left, right, top, bottom = marks
    assert {left, right} == {"L", "R"}
    assert {top, bottom} == {"P", "A"}
    assert (left if column == 0 else right) == "R"
    assert (top if row == 0 else bottom) == "A"
    assert (left, top) == ("L", "A")


def test_slices_are_drawn_upright_and_in_the_proportions_of_their_voxels() -> None:
    panel = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    volume = memory_case("v", (1, 2, 3), unit="mm", affine=plain_affine((5.0, 2.0, 1.0))).grid
    shown = drawn(panel, volume, 2)
    assert shown.shape == (8, 6, 3)
    np.testing.assert_array_equal(shown[::4, ::2], panel[::-1])
    for grid in (None, memory_case("picture").grid):
        np.testing.assert_array_equal(drawn(panel, grid, 2)[::2, ::2], panel)


def test_slices_along_another_axis_have_its_letters() -> None:
    coronal = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    assert edge_marks(memory_case("v", (4, 5, 6), unit="mm", affine=coronal).grid) == ("L", "R", "S", "I")


def test_scenes_and_pictures_have_no_patient() -> None:
    assert edge_marks(memory_case("scene", unit="m", crs="EPSG:32633", affine=north_up()).grid) is None
    assert edge_marks(memory_case("picture").grid) is None


def test_the_letters_are_on_the_input_only_each_at_its_edge() -> None:
    image, label = np.zeros((1, 64, 64)), np.zeros((64, 64), dtype=np.uint8)
    valid = np.ones((64, 64), dtype=np.bool_)
    volume = memory_case("v", (1, 64, 64), unit="mm").grid
    plain, lettered = (pictures.row(image, valid, label, label, [(0, 0, 0)], grid) for grid in (None, volume))
    changed = (plain != lettered).any(axis=2)
    side = plain.shape[0]
    assert not changed[:, side:].any()
    inner = changed[:, :side]
    third = side // 3
    for edge in (inner[third:-third, :20], inner[third:-third, -20:], inner[:20, third:-third], inner[-20:, third:-third]):
        assert edge.any()
    assert not inner[20:-20, 20:-20].any()


def test_without_marks_a_panel_stays_as_it_is() -> None:
    panel = np.zeros((30, 30, 3), dtype=np.uint8)
    assert marked(panel, None) is panel


def test_a_scene_stored_from_south_to_north_is_shown_with_its_north_at_the_top() -> None:
    panel = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    plain = north_up()
    south_up = tuple((*row[:1], -row[1], *row[2:]) if place == 1 else row for place, row in enumerate(plain))
    for affine, expected in ((plain, panel), (south_up, panel[::-1])):
        np.testing.assert_array_equal(
            drawn(panel, memory_case("scene", unit="m", crs="EPSG:32633", affine=affine).grid, 1), expected
        )


def shown(picture: Image.Image, color: tuple[int, int, int]) -> int:
    """How many pixels of a picture have this colour."""
    return int((np.asarray(picture) == color).all(axis=2).sum())


@pytest.mark.parametrize(("width", "lines"), [(2000, 1), (200, 6), (20, 12)])
def test_every_entry_of_a_legend_is_shown_in_a_picture_of_any_width(width: int, lines: int) -> None:
    entries = [(f"class number {number}", (10 * number, 1, 2)) for number in range(12)]
    picture = legend(entries, width, 10)
    assert picture.height == lines * 15
    assert picture.width == max(width, legend(entries[-1:], 0, 10).width)
    for text, color in entries:
        assert shown(picture, color) == 9 * 9  # within its border
        alone = np.asarray(legend([(text, color)], 0, 10))
        whole = np.asarray(picture)
        corners = np.argwhere((whole == color).all(axis=2))[0] - 1
        np.testing.assert_array_equal(whole[corners[0] :, corners[1] :][: alone.shape[0], : alone.shape[1]], alone)


def test_a_sheet_of_rows_shows_all_classes_and_is_as_wide_as_their_names() -> None:
    colors = [(10 * number, 1, 2) for number in range(12)]
    picture = pictures.sheet([("case", np.zeros((30, 40, 3), dtype=np.uint8))], [f"class number {n}" for n in range(12)], colors)
    assert [shown(picture, color) for color in colors] == [81] * 12
    assert picture.width > 40
    assert (np.asarray(picture)[-30:, :40] == 0).all()
