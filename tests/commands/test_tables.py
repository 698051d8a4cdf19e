"""Tables of scores, on narrow screens and of many classes."""

import re
from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from voxtile.commands.tables import print_folds, print_scores

NAMES = [f"traffic_light_with_a_name_of_many_letters_number_{number}" for number in range(150)]
SCORES = {f"{kind}/{name}": 0.1234 for kind in ("dice", "iou") for name in (*NAMES, "disc")}
SCORES |= dict.fromkeys(("dice", "iou", "pixel_accuracy", "mean_accuracy", "mean_iu", "fw_iu"), 0.5)


def cells(width: int, show: Callable[[Console], None]) -> list[list[str]]:
    """Each line's cells."""
    out = Console(file=StringIO(), width=width)
    show(out)
    assert isinstance(out.file, StringIO)
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in out.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 160])
def test_names_and_numbers_are_whole_on_any_screen(width: int) -> None:
    folds = [{"fold": str(number), "cases": number, "scores": SCORES} for number in range(3)]
    for show, more in (
        (lambda out: print_scores(out, "scores", SCORES, NAMES), ["0.1234", "0", "0"]),
        (lambda out: print_folds(out, folds, NAMES, ()), ["0.1234", "0.1234"]),
    ):
        lines = [line for line in cells(width, show) if line]
        said = "".join(line[0] for line in lines)
        assert all(name in said for name in NAMES)
        assert sum(line[1:] == ["0.1234", *more] for line in lines) == len(NAMES)


def test_folds_are_rows_where_there_are_fewer_classes() -> None:
    folds = [{"fold": str(number), "cases": 2, "scores": SCORES} for number in range(8)]
    lines = cells(80, lambda out: print_folds(out, folds, ["disc"], ()))
    assert ["7", "2", "0.1234", "0.5000"] in lines
