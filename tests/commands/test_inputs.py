from pathlib import Path

import pytest

from voxtile.cases.layouts import CaseFiles
from voxtile.commands.inputs import _with_parents, channels_as_cases


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


@pytest.mark.parametrize("given", ["p", "./p", "../new/p", "../link/p", "p/2022", ".", "p/2022/t1.nii"])
def test_a_path_names_the_folders_above_it_that_names_of_cases_may_begin_at(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep/new/p/2022").mkdir(parents=True)
    (tmp_path / "deep/new/p/2022/t1.nii").touch()
    (tmp_path / "deep/link").symlink_to(tmp_path / "deep/new")
    monkeypatch.chdir(tmp_path / "deep/new")
    found = _with_parents(Path(given), 2)
    folder = found if found.is_dir() else found.parent
    assert found.samefile(given)
    assert len(folder.parents) >= 2
    for above, there in zip(folder.parents[:2], Path(given).resolve().parents[0 if found.is_dir() else 1 :], strict=False):
        assert above.samefile(there)
