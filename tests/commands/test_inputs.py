from pathlib import Path

import pytest

from voxtile.cases.layouts import CaseFiles
from voxtile.commands.inputs import channels_as_cases


@pytest.mark.parametrize(
    ("ids", "channels", "found"),
    [
        (["a_0000", "a_0001", "b_0000"], 1, ["a_0000", "a_0001"]),
        (["a_0000", "a_0001"], 2, []),  # the run's own patterns have put the channels together
        (["a_0000", "b_0001", "scan_2019", "scan_2020"], 1, []),
        (["a_1", "a_2"], 1, []),
    ],
)
def test_channels_that_a_run_of_one_takes_for_cases_are_noticed(ids: list[str], channels: int, found: list[str]) -> None:
    assert channels_as_cases([CaseFiles(name, (Path(f"{name}.nii.gz"),)) for name in ids], channels) == found
