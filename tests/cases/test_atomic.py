import shutil
from unittest.mock import patch

import pytest

from tests.testers.formats import file_size_limit
from voxtile.cases import atomic
from voxtile.cases.atomic import atomic_text, atomic_write, discard_half, stable_names


def test_text_is_replaced_whole(tmp_path):
    for text in ("first", "zweites"):
        atomic_text(tmp_path / "new" / "a.txt", text)
        assert (tmp_path / "new" / "a.txt").read_text() == text
    with pytest.raises(OSError, match="too large"), file_size_limit(3):
        atomic_text(tmp_path / "new" / "a.txt", "third text")
    assert (tmp_path / "new" / "a.txt").read_text() == "zweites"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_with_stable_names_what_a_killed_process_left_is_replaced_and_deleted(tmp_path):
    path, made = tmp_path / "a_instances.tif", []

    def killed(making):
        made.append(making)
        for name in (making.name, f"{making.name}-journal", f"{making.stem}.rows.tif"):
            making.with_name(name).write_text("half")
        raise KeyboardInterrupt

    for _ in range(2):
        with stable_names(tmp_path), patch.object(atomic, "remove"), pytest.raises(KeyboardInterrupt):
            atomic_write(path, killed)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, killed)
    with stable_names(tmp_path), pytest.raises(KeyboardInterrupt):  # of others' files the lock says nothing
        atomic_write(tmp_path / "cache" / path.name, killed)
    shutil.rmtree(tmp_path / "cache")
    assert [making.name == ".making.a_instances.tif" for making in made] == [True, True, False, False]
    made[2].with_name(f"{made[2].name}-journal").unlink()
    made[2].with_name(f"{made[2].stem}.rows.tif").unlink()
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "a_instances.tif.part").write_text("of a map with this name")
    discard_half(path)
    assert len(list(tmp_path.iterdir())) == 4
    (tmp_path / "a_instances.tif.part").unlink()
    discard_half(path)
    assert list(tmp_path.iterdir()) == []
