import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.testers.formats import file_size_limit
from voxtile.cases import range_cache as module
from voxtile.cases.range_cache import BLOCK, RangeCache

SIZE = 5 * BLOCK + 100
CONTENT = random.Random(0).randbytes(SIZE)
BLOCKS = [CONTENT[at : at + BLOCK] for at in range(0, SIZE, BLOCK)]
MUCH = 10**9


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch):
    monkeypatch.setattr(module, "_told", set())


def opened(name="a", tag="1", size=SIZE, most=MUCH):
    return RangeCache(name, tag, size, most)


def on_disk(tmp_path):
    return list((tmp_path / "cache" / "remote").glob("*.blocks"))


def test_what_was_put_is_there_for_the_next_one(tmp_path):
    first = opened()
    first.put(1, b"".join(BLOCKS[1:3]))
    first.put(5, BLOCKS[5])
    assert opened().get(0, 6) == [None, *BLOCKS[1:3], None, None, BLOCKS[5]]
    (file,) = on_disk(tmp_path)
    assert file.stat().st_blocks * 512 < 5 * BLOCK + 8192  # sparse: the table and what has come


def test_another_name_size_or_tag_is_another_file(tmp_path):
    opened().put(0, BLOCKS[0])
    for change in ({"name": "b"}, {"tag": "2"}, {"size": SIZE + 1}):
        assert opened(**change).get(0, 1) == [None]
    assert opened().get(0, 1) == [BLOCKS[0]]


def test_without_a_tag_nothing_outlives_the_reader(tmp_path):
    cache = opened(tag="")
    cache.put(0, BLOCKS[0])
    assert cache.get(0, 1) == [BLOCKS[0]]
    assert opened(tag="").get(0, 1) == [None]
    assert on_disk(tmp_path) == []


@pytest.mark.parametrize("damage", ["data", "table", "cut", "longer"])
def test_damage_is_noticed_and_mended(tmp_path, damage):
    opened().put(0, b"".join(BLOCKS))
    (file,) = on_disk(tmp_path)
    with file.open("rb+") as handle:
        if damage == "cut":
            handle.truncate(BLOCK + 2 * BLOCK)
        handle.seek({"data": BLOCK + 2 * BLOCK + 7, "table": 4 * 2, "cut": 0, "longer": 2 * SIZE}[damage])
        if damage != "cut":
            handle.write(b"!")
    cache = opened()
    found = cache.get(0, 6)
    assert all(block in (None, right) for block, right in zip(found, BLOCKS, strict=True))
    assert (found[2] is None) == (damage != "longer")
    cache.put(0, b"".join(BLOCKS))
    assert opened().get(0, 6) == BLOCKS


def test_a_kill_at_any_moment_leaves_whole_blocks_or_none(tmp_path):
    """A process that writes one block after another is killed a few times; whatever is found afterwards is right."""
    program = textwrap.dedent(f"""
        import random
        from voxtile.cases.range_cache import BLOCK, RangeCache
        content = random.Random(0).randbytes({SIZE})
        print("begun", flush=True)
        while True:
            cache = RangeCache("a", "1", {SIZE}, {MUCH})
            for number in range(6):
                cache.put(number, content[number * BLOCK : (number + 1) * BLOCK])
            cache.close()
            cache._path.unlink()
    """)
    seen = set()
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        for moment in range(40):
            time.sleep(0.001 * (moment % 7))
            os.kill(process.pid, signal.SIGSTOP)  # what it has done by then is what a kill would leave
            found = opened().get(0, 6)
            os.kill(process.pid, signal.SIGCONT)
            assert all(block in (None, right) for block, right in zip(found, BLOCKS, strict=True))
            seen.add(sum(block is not None for block in found))
        process.kill()
    assert max(seen) > 0


def test_a_full_disk_is_done_without_and_said_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), file_size_limit(2 * BLOCK):
        for _ in range(2):
            cache = opened()
            cache.put(0, b"".join(BLOCKS[:3]))
            assert cache.get(0, 4) == [*BLOCKS[:3], None]
    assert len(caplog.messages) == 1
    assert "cannot be kept in the cache folder" in caplog.messages[0]
    assert "VOXTILE_CACHE" in caplog.messages[0]


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path / "file"))
    cache = opened()
    cache.put(0, BLOCKS[0])
    assert cache.get(0, 2) == [BLOCKS[0], None]
    assert len(caplog.messages) == 1


def test_a_cache_that_is_only_readable_serves(tmp_path, monkeypatch, caplog):
    opened().put(0, BLOCKS[0])
    inner = os.open

    def read_only(path, flags, *mode, **options):
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return inner(path, flags, *mode, **options)

    monkeypatch.setattr(module.os, "open", read_only)
    cache = opened()
    cache.put(1, BLOCKS[1])
    assert cache.get(0, 3) == [BLOCKS[0], BLOCKS[1], None]
    assert len(caplog.messages) == 1


def test_memory_holds_the_latest_blocks_only(monkeypatch):
    monkeypatch.setattr(module, "_MOST_IN_MEMORY", 2)
    cache = opened(tag="")
    for number in range(4):
        cache.put(number, BLOCKS[number])
    assert cache.get(0, 4) == [None, None, *BLOCKS[2:4]]


def test_what_was_used_longest_ago_goes_first(tmp_path):
    foreign = tmp_path / "cache" / "remote" / "mine.blocks"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(bytes(20 * BLOCK))
    os.utime(foreign, (0, 0))
    for number in range(4):
        opened(name=f"n{number}", most=9 * BLOCK).put(0, b"".join(BLOCKS[:3]))
        for file in on_disk(tmp_path):
            os.utime(file, ns=(0, file.stat().st_mtime_ns - 10**9))
    left = [opened(name=f"n{number}").get(0, 1) != [None] for number in range(4)]
    assert left == [False, False, True, True]
    assert foreign.exists()


def test_one_file_that_would_hold_too_much_stops_growing(tmp_path):
    cache = opened(most=2 * BLOCK)
    for number in range(5):
        cache.put(number, BLOCKS[number])
        assert cache.get(number, number + 1) == [BLOCKS[number]]
    assert sum(file.stat().st_blocks * 512 for file in on_disk(tmp_path)) <= 4 * BLOCK
