"""Which classes change places in mirrored images, and what is refused of it."""

import pytest
import torch

from voxtile.cases.windowing import Windowing
from voxtile.data.symmetry import Symmetry
from voxtile.errors import ConfigError

CLASSES = ("background", "left", "right", "1")
SLICES = Windowing.of([8, 8])


@pytest.mark.parametrize("pair", [["left", "right"], [1, 2], ["left", 2], (2, "left")])
def test_classes_are_named_by_name_or_index(pair) -> None:
    symmetry = Symmetry.named({"flips": ["x"], "swap": {"x": [pair]}}, CLASSES)
    symmetry.check(SLICES)
    assert symmetry.exchanged(["y", "x"], 4) == [0, 2, 1, 3]
    assert symmetry.exchanged(["z", "y"], 4) == [0, 1, 2, 3]
    assert symmetry.relabel(torch.tensor([0, 1, 2, 3, 255], dtype=torch.uint8), [False, False, True]).tolist() == [0, 2, 1, 3, 255]


def test_names_that_look_like_numbers_are_names() -> None:
    assert Symmetry.named({"flips": ["x"], "swap": {"x": [["1", 1]]}}, CLASSES).swap == {"x": ((3, 1),)}


def test_exchanged_channels_lie_where_the_image_has_them() -> None:
    # Along z the first two change places, along x the last two: together they go around.
    symmetry = Symmetry(("z", "x"), swap={"z": [[0, 1]], "x": [[1, 2]]})
    label = torch.randint(0, 3, (50,), dtype=torch.uint8)
    mirrored = torch.nn.functional.one_hot(symmetry.relabel(label, [True, False, True]).long(), 3)
    assert torch.equal(mirrored[:, symmetry.exchanged(["z", "x"], 3)].argmax(dim=1).to(torch.uint8), label)


def test_axes_are_called_as_windows_have_them() -> None:
    symmetry = Symmetry(("z", "x"), swap={"x": [[1, 2]]}).turned(Windowing.of([8, 8], "y"))
    assert (symmetry.flips, symmetry.swap) == (("y", "x"), {"x": ((1, 2),)})
    assert Symmetry(("x",), swap={"x": [[1, 2]]}).turned(Windowing.of([8, 8], "x")).swap == {"z": ((1, 2),)}


@pytest.mark.parametrize(
    ("swap", "said"),
    [
        ({"x": [[10, 20]]}, r"swap.x' holds the class 10, .* background \(0\), left \(1\), right \(2\), 1 \(3\)"),
        ({"x": [["left", "rigth"]]}, r"class rigth.* Did you mean 'right'"),
        ({"x": [[1, -1]]}, "class -1"),
        ({"x": [[1, 255]]}, "class 255"),
        ({"x": [[1, 2.0]]}, "class 2.0"),
        ({"x": [[1, True]]}, "class True"),
        ({"x": [[1, 2], ["right", 0]]}, r"swap.x=\[\[1,2\],\[right,0\]\]' names the class right more than once"),
        ({"x": [[1, 1]]}, "class left more than once"),
        ({"w": [[1, 2]]}, "axis 'w'"),
        ({"x": [[1, 2, 3]]}, "expected pairs of classes"),
        ({"x": "ab"}, "expected pairs of classes"),
        ([["left", "right"]], "expected pairs of classes"),
        ({"y": [[1, 2]]}, r"along y, and 'data.symmetry.flips=\[x\]'.*'data.symmetry.flips=\[x,y\]'.*'~data.symmetry.swap.y'"),
    ],
)
def test_mistakes_are_explained(swap, said) -> None:
    with pytest.raises(ConfigError, match=said):
        Symmetry.named({"flips": ["x"], "swap": swap}, CLASSES).check(SLICES)


@pytest.mark.parametrize(
    ("flips", "swap", "axis", "fine"),
    [
        (["y", "x"], {"x": [[1, 2]]}, "z", False),
        (["y", "x"], {"x": [[1, 2]], "y": [[2, 1]]}, "z", True),  # half a turn exchanges them twice
        (["x"], {"x": [[1, 2]]}, "z", True),
        (["z", "y", "x"], {"z": [[1, 2]]}, "z", True),
        (["z", "y", "x"], {"z": [[1, 2]]}, "y", False),  # rows of coronal slices are z
        (["z", "y", "x"], {"y": [[1, 2]]}, "y", True),
    ],
)
def test_an_image_has_one_label_however_it_was_turned(flips, swap, axis, fine) -> None:
    windowing = Windowing.of([8, 8], axis)
    symmetry = Symmetry.named({"flips": flips, "rot90": True, "swap": swap}, CLASSES)
    turned, labels = symmetry.turned(windowing), {}
    image = torch.arange(27).view(3, 3, 3)
    for flips in torch.cartesian_prod(*3 * [torch.tensor([False, True])]).tolist():
        if any(flip and axis not in turned.flips for axis, flip in zip("zyx", flips, strict=True)):
            continue
        for turns in range(4):
            moved = tuple(turned.reorient(image, flips, turns).flatten().tolist())
            labels.setdefault(moved, set()).add(tuple(turned.relabel(torch.arange(4, dtype=torch.uint8), flips).tolist()))
    assert all(len(found) == 1 for found in labels.values()) == fine
    if fine:
        symmetry.check(windowing)
    else:
        with pytest.raises(ConfigError, match=r"data\.symmetry\.rot90=false"):
            symmetry.check(windowing)
