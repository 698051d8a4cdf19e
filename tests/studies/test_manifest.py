"""What made a run: digests of source files, and what has changed since."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxtile.studies import manifest
from voxtile.studies.manifest import Devices, changes, code, hardware, sources_of, trusted, versions


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


def test_what_has_changed_is_found_by_one_look_at_each_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices("cpu", 1, 1)
    old = {"code": code(), "versions": versions(), "hardware": hardware(devices)}
    asked: list[object] = []
    monkeypatch.setattr(manifest.subprocess, "run", lambda *words, **_: asked.append(words))
    monkeypatch.setattr(manifest, "versions", lambda: asked.append("versions") or old["versions"])
    assert changes(old, devices) == []
    assert asked == ["versions"]
    older = {**old, "code": {"sources": ""}, "versions": {**old["versions"], "torch": "0.1"}}
    assert changes(older, devices) == ["the code has changed", f"torch was 0.1, is {old['versions']['torch']}"]
