"""What made a run: digests of source files."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxtile.studies.manifest import sources_of, trusted


def test_trusted_modules_have_digests_of_all_their_package_and_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "mine_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit")
    (package / "nets.py").write_text("raise SystemExit")
    (tmp_path / "alone_of_tests.py").write_text("raise SystemExit")
    before = trusted(["mine_of_tests.nets", "mine_of_tests", "alone_of_tests", "absent_of_tests.nets"])
    assert sorted(before) == ["absent_of_tests", "alone_of_tests", "mine_of_tests"]
    assert before["absent_of_tests"] is None
    assert len({before["alone_of_tests"], before["mine_of_tests"]}) == 2
    (package / "layers.py").write_text("")
    assert sources_of("mine_of_tests") != before["mine_of_tests"]
    assert sources_of("alone_of_tests") == before["alone_of_tests"]
    (tmp_path / "alone_of_tests.py").write_text("raise SystemError")
    assert sources_of("alone_of_tests") != before["alone_of_tests"]
