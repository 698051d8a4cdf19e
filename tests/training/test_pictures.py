"""Pictures of validation and of samples: which slice of a box is shown, where it lies in the file, and which windows are chosen."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from tests.testers.memory import memory_case
from tests.testers.nifti import ORIENTATIONS, turned_affine
from voxtile.cases.case import Case
from voxtile.cases.nifti import NiftiSource
from voxtile.cases.window import IGNORE, Window
from voxtile.cases.working import OnWorkingGrid
from voxtile.inference.colours import UNJUDGED
from voxtile.training import pictures
from voxtile.training.validation_picture import MOST_WINDOWS, chosen_windows


def test_of_a_box_the_slice_with_most_of_its_rarest_class_is_shown() -> None:
    label = np.zeros((9, 6, 6), dtype=np.uint8)
    label[1] = 1
    label[6, :2], label[7, :3] = 2, 2
    label[4] = IGNORE
    assert pictures.telling_slice(label, [900, 300, 20]) == 7
    assert pictures.telling_slice(label, [900, 10, 20]) == 1
    assert pictures.telling_slice(np.zeros((9, 6, 6), dtype=np.uint8), [900, 10]) == 4
    assert pictures.telling_slice(np.full((9, 6, 6), IGNORE, dtype=np.uint8), [900, 10]) == 4


@pytest.mark.parametrize("orientation", ORIENTATIONS[::11])
@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0)])
def test_a_caption_names_the_voxel_of_the_file(tmp_path: Path, orientation: object, axis: str, spacing: object) -> None:
    stored = np.zeros((14, 12, 10), np.int16)
    stored[5, 8, 3] = 100  # x, y, z
    image = nib.Nifti1Image(stored, turned_affine(25, (1.0, 2.0, 4.0))).as_reoriented(np.array(orientation))
    nib.save(image, tmp_path / "v.nii")
    source = OnWorkingGrid(NiftiSource([tmp_path / "v.nii"]), spacing, axis, kernel="cubic")
    case = Case("v", "v", source)
    array, _ = case.read(Window.whole(case.shape))
    found = np.unravel_index(array[0].argmax(), case.shape)
    x, y, z = np.argwhere(np.asarray(image.dataobj) == 100)[0]
    assert pictures.place_of(case, found) == f"voxel x y z = ({x}, {y}, {z})"


def test_a_caption_names_row_and_column_of_a_scene_also_in_a_block_of_it() -> None:
    case = memory_case("s", (1, 40, 60))
    assert pictures.place_of(case, (0, 3, 5)) == "row 3, column 5"
    assert pictures.place_of(case.view(Window(0, 20, 30, 1, 20, 30)), (0, 3, 5)) == "row 23, column 35"


def data_of(counts: list[list[int]], background: int | None = 0) -> SimpleNamespace:
    """Validation cases of 64 x 64 pixels with so many pixels of each class, evenly spread."""
    cases = [memory_case(f"c{number}", (1, 64, 64)) for number in range(len(counts))]
    every = np.array([(0, y, x) for y in range(64) for x in range(64)], dtype=np.int32)
    found = {
        case.id: SimpleNamespace(counts=np.array(each), locations=[every[:: max(1, 4096 // max(n, 1))][:n] for n in each])
        for case, each in zip(cases, counts, strict=True)
    }
    prepared = SimpleNamespace(split=SimpleNamespace(val=cases), surveys=found, dataset=SimpleNamespace(background=background))
    return SimpleNamespace(prepared=prepared, size=(1, 16, 16))


@pytest.mark.parametrize("cases", [1, 2, 3, 4, 9])
def test_four_windows_are_chosen_of_however_few_cases(cases: int) -> None:
    shown = chosen_windows(data_of([[4000, 60, 30]] * cases))
    assert len({(number, tile.window) for number, tile in shown}) == len(shown) == MOST_WINDOWS
    assert {number for number, _ in shown} == ({0, 3, 5, 8} if cases == 9 else set(range(min(cases, 4))))


def test_windows_are_around_foreground_and_no_more_than_there_are() -> None:
    data = data_of([[4095, 1]])
    (only,) = chosen_windows(data)
    assert only[1].window.start == (0, 0, 0)
    data.prepared.surveys["c0"].locations[1] = np.array([[0, 9, 9], [0, 50, 50]])
    assert [tile.window.start for _, tile in chosen_windows(data)] == [(0, 48, 48), (0, 0, 0)]


def test_the_legend_says_what_the_grey_is() -> None:
    panel = np.zeros((30, 40, 3), dtype=np.uint8)
    picture = np.asarray(pictures.sheet([("case", panel)], ["ground"], [(1, 2, 3)]))
    assert (picture == UNJUDGED).all(axis=2).sum() == 81
