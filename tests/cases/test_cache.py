import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from tests.testers.formats import file_size_limit
from voxtile.cases import cache
from voxtile.cases.cache import cache_folder, cached_array, check_cache_room, content_hash
from voxtile.cases.shared import Shared
from voxtile.errors import ConfigError, DataError

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"abc")
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path / "arrays"))
    return tmp_path / "arrays"


class Decoder:
    """Counts how often it decodes."""

    def __init__(self, value=7, pixels=24):
        self.calls = 0
        self.array = np.full((2, pixels // 2), value, dtype=np.int16)

    def __call__(self):
        self.calls += 1
        return self.array


def forget(monkeypatch):
    """Leaves what only the disk knows, as in a new process."""
    monkeypatch.setattr(cache, "_HASHES", Shared(cache._HASHES.most, lambda sha256: 1))
    monkeypatch.setattr(cache, "_MAPPED", Shared(cache._MAPPED.most, lambda array: 1))


def arrays(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_an_array_is_decoded_once_and_read_only(path, folder, monkeypatch):
    decode = Decoder()
    for _ in range(3):
        found = cached_array(path, decode)
        np.testing.assert_array_equal(found, decode.array)
        assert isinstance(found, np.memmap)
        assert not found.flags.writeable
        forget(monkeypatch)
    assert decode.calls == 1
    assert len(arrays(folder)) == 1


def test_another_process_finds_it(path, folder):
    cached_array(path, Decoder())
    code = (
        "import sys; from pathlib import Path; from voxtile.cases.cache import cached_array\nprint(cached_array(Path(sys.argv[1]), "
        "None).sum())"
    )
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(7 * 24)


def test_content_is_the_key_not_the_name(path, folder, tmp_path):
    decode = Decoder()
    cached_array(path, decode)
    copy = tmp_path / "copy.bin"
    copy.write_bytes(b"abc")
    cached_array(copy, decode)
    assert decode.calls == 1
    path.write_bytes(b"abd")
    assert cached_array(path, Decoder(8))[0, 0] == 8
    assert cached_array(copy, decode)[0, 0] == 7


def test_variant_and_code_version_are_part_of_the_key(path, folder, monkeypatch):
    assert cached_array(path, Decoder(1), "a")[0, 0] == 1
    assert cached_array(path, Decoder(2), "b")[0, 0] == 2
    monkeypatch.setattr(cache, "CODE_VERSION", cache.CODE_VERSION + 1)
    assert cached_array(path, Decoder(3), "a")[0, 0] == 3


@pytest.mark.parametrize("damage", [lambda held: held[:100], lambda held: b"", lambda held: b"PK\x03\x04" + held[4:]])
def test_a_damaged_array_is_made_again(path, folder, monkeypatch, damage):
    cached_array(path, Decoder())
    (file,) = folder.glob("*.npy")
    file.write_bytes(damage(file.read_bytes()))
    forget(monkeypatch)
    decode = Decoder()
    np.testing.assert_array_equal(cached_array(path, decode), decode.array)
    assert decode.calls == 1


def test_a_folder_in_the_place_of_an_array_is_named(path, folder, monkeypatch):
    cached_array(path, Decoder())
    (file,) = folder.glob("*.npy")
    file.unlink()
    file.mkdir()
    forget(monkeypatch)
    with pytest.raises(DataError, match=f"{file.name} is a folder, .* Delete it"):
        cached_array(path, Decoder())


def test_pickles_are_never_loaded(path, folder, monkeypatch):
    cached_array(path, Decoder())
    (file,) = folder.glob("*.npy")
    planted = type("Planted", (), {"__reduce__": lambda self: (path.unlink, ())})()
    file.write_bytes(pickle.dumps(planted))
    forget(monkeypatch)
    decode = Decoder()
    np.testing.assert_array_equal(cached_array(path, decode), decode.array)
    assert path.exists()


def test_the_arrays_used_longest_ago_are_deleted_and_stay_readable_where_mapped(folder, tmp_path, monkeypatch):
    size, mapped = 128 + 2 * 5000, []
    files = [tmp_path / f"{number}.bin" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    monkeypatch.setenv("VOXTILE_CACHE_BYTES", str(3 * size))
    for number, file in enumerate(files[:3]):
        mapped.append(cached_array(file, Decoder(number, 5000)))
        stored = max(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime_ns)
        os.utime(stored, ns=(0, 10**15 + number))  # so that the order doesn't hang on the clock
    forget(monkeypatch)
    cached_array(files[0], None)  # used again: now 1 is the oldest
    cached_array(files[3], Decoder(3, 5000))
    assert len(list(folder.glob("*.npy"))) == 3
    assert (mapped[1] == 1).all()
    forget(monkeypatch)
    monkeypatch.delenv("VOXTILE_CACHE_BYTES")
    again = [Decoder(number, 5000) for number in range(4)]
    for file, decode in zip(files, again, strict=True):
        cached_array(file, decode)
    assert [decode.calls for decode in again] == [0, 1, 0, 0]


def test_an_array_larger_than_the_bound_is_kept_alone(path, folder, tmp_path, monkeypatch):
    (tmp_path / "b.bin").write_bytes(b"b")
    cached_array(tmp_path / "b.bin", Decoder())
    monkeypatch.setenv("VOXTILE_CACHE_BYTES", "10")
    cached_array(path, Decoder())
    assert [name[:8] for name in arrays(folder)] == [SHA256_OF_ABC[:8]]


def test_the_folder_is_looked_at_after_much_was_written_and_not_after_each_file(folder, tmp_path, monkeypatch):
    looks, original = [], cache.trim
    monkeypatch.setattr(cache, "trim", lambda *args: looks.append(len(arrays(folder))) or original(*args))
    monkeypatch.setattr(cache, "_LOOK_EVERY", 4 * 10_000)
    for number in range(10):
        file = tmp_path / f"{number}.bin"
        file.write_bytes(bytes([number]))
        cached_array(file, Decoder(number, 5000))
    assert looks == [1, 5, 9]


def test_files_that_the_cache_did_not_write_stay(path, folder, monkeypatch):
    monkeypatch.setenv("VOXTILE_CACHE_BYTES", "10")
    folder.mkdir()
    foreign = ["mine.npy", f"{SHA256_OF_ABC}.npy", f"{SHA256_OF_ABC}.plain.v1.npy.npy", f"copy {SHA256_OF_ABC}.plain.v1.npy"]
    for name in foreign:
        (folder / name).write_bytes(bytes(1000))
    cached_array(path, Decoder())
    assert arrays(folder) == sorted([*foreign, f"{SHA256_OF_ABC}.plain.v1.npy"])


def test_what_another_process_is_writing_stays_and_what_a_killed_one_left_goes(path, folder, monkeypatch):
    monkeypatch.setenv("VOXTILE_CACHE_BYTES", "10")
    folder.mkdir()
    living, left = (folder / f".{number}-5.{'0' * 64}.plain.v1.npy" for number in (7, 8))
    for file in (living, left):
        file.write_bytes(bytes(1000))
    os.utime(left, (time.time() - 2 * cache._ABANDONED,) * 2)
    cached_array(path, Decoder())
    assert arrays(folder) == [living.name, f"{SHA256_OF_ABC}.plain.v1.npy"]


def test_the_bound_comes_from_the_environment(path, folder, monkeypatch):
    monkeypatch.setenv("VOXTILE_CACHE_BYTES", "much")
    with pytest.raises(ConfigError, match="VOXTILE_CACHE_BYTES is 'much'"):
        cached_array(path, Decoder())
    monkeypatch.setenv("VOXTILE_CACHE_BYTES", "2e9")
    assert cached_array(path, Decoder()).sum() == 7 * 24


def test_the_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path / "there"))
    assert cache_folder() == tmp_path / "there"
    monkeypatch.delenv("VOXTILE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "voxtile"


def test_a_full_disk_is_an_error_that_names_the_folder_and_leaves_nothing(path, folder):
    decode = Decoder(pixels=50_000)
    with file_size_limit(20_000), pytest.raises(DataError, match=f"{folder}.*VOXTILE_CACHE"):
        cached_array(path, decode)
    assert arrays(folder) == []
    np.testing.assert_array_equal(cached_array(path, decode), decode.array)


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(path, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=f"{tmp_path / 'file'}.*VOXTILE_CACHE"):
        cached_array(path, Decoder())


def test_threads_that_ask_at_the_same_time_decode_and_hash_once(path, folder, monkeypatch):
    forget(monkeypatch)
    hashed, original, decode, together = [], cache._remembered, Decoder(), threading.Barrier(4)
    monkeypatch.setattr(cache, "_remembered", lambda *args: hashed.append(args) or time.sleep(0.1) or original(*args))

    def slowly():
        time.sleep(0.1)
        return decode()

    def ask(_):
        together.wait()
        return np.array(cached_array(path, slowly))

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(ask, range(4)):
            np.testing.assert_array_equal(found, decode.array)
    assert (len(arrays(folder)), decode.calls, len(hashed)) == (1, 1, 1)


def test_an_array_that_is_trimmed_away_at_once_serves_as_decoded(path, folder, monkeypatch):
    monkeypatch.setattr(cache, "_bound", lambda file, written: file.unlink())  # as another process may
    decode = Decoder()
    for _ in range(2):
        np.testing.assert_array_equal(cached_array(path, decode), decode.array)
    assert decode.calls == 2


@pytest.mark.parametrize("error", [OSError("no"), ValueError("no")])
def test_an_error_of_the_decoder_is_passed_on(error, path, folder):
    def decode():
        raise error

    with pytest.raises(type(error), match="no"):
        cached_array(path, decode)


def test_few_arrays_are_kept_mapped(folder, tmp_path, monkeypatch):
    forget(monkeypatch)
    monkeypatch.setattr(cache._MAPPED, "most", 2)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(bytes([number]))
        cached_array(tmp_path / str(number), Decoder())
    assert len(cache._MAPPED._kept) == 2


def test_a_hash_is_sha256_and_computed_once(path, folder, monkeypatch):
    assert content_hash(path, folder) == SHA256_OF_ABC
    monkeypatch.setattr(cache.hashlib, "file_digest", None)  # neither this process nor the next reads the file again
    assert content_hash(path, folder) == SHA256_OF_ABC
    forget(monkeypatch)
    assert content_hash(path, folder) == SHA256_OF_ABC


def test_a_changed_file_is_hashed_again_even_with_its_old_size_and_time(path, folder, monkeypatch):
    before = path.stat()
    assert content_hash(path, folder) == SHA256_OF_ABC
    path.write_bytes(b"abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert content_hash(path, folder) != SHA256_OF_ABC
    path.write_bytes(b"abc")
    forget(monkeypatch)
    assert content_hash(path, folder) == SHA256_OF_ABC


def test_a_hash_needs_no_writable_folder(path, tmp_path):
    (tmp_path / "file").touch()
    assert content_hash(path, tmp_path / "file") == SHA256_OF_ABC


def test_a_damaged_note_of_a_hash_is_ignored(path, folder, monkeypatch):
    content_hash(path, folder)
    (note,) = (folder / "hashes").iterdir()
    for damaged in ("", "[1]", '{"path": 1}', note.read_text().replace(path.name, "b.bin")):
        note.write_text(damaged)
        forget(monkeypatch)
        assert content_hash(path, folder) == SHA256_OF_ABC


def test_an_absent_file_is_named(tmp_path, folder):
    with pytest.raises(DataError, match=r"absent\.bin cannot be read"):
        content_hash(tmp_path / "absent.bin", folder)


def test_room_is_asked_for_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXTILE_CACHE_BYTES", "5e9")
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path / "new"))
    assert check_cache_room(10) is None
    said = check_cache_room(2 * 10**9)
    assert re.fullmatch(rf"decoded, the data take 2\.00 GB of disk in {tmp_path}/new, once \(.* are there\)", said)
    with pytest.raises(DataError, match=r"take 6\.00 GB, and the cache .* may hold 5\.00 GB: .*VOXTILE_CACHE_BYTES=7\.2e\+09'"):
        check_cache_room(6 * 10**9)


def test_what_lies_in_the_cache_counts_as_room(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(DataError, match=r"take 2\.00 GB of disk, and .* has 1\.00 GB"):
        check_cache_room(2 * 10**9)
    name = f"{SHA256_OF_ABC}.plain.v1.npy"
    for foreign in ("a.npy", f".7-5.{name}"):  # the second is being written
        with (tmp_path / foreign).open("wb") as file:
            file.truncate(10**9)
    (tmp_path / f"{'0' * 64}.plain.v1.npy").symlink_to("gone")  # like a file that is deleted between two looks at it
    with pytest.raises(DataError, match=r"take 2\.00 GB of disk, and .* has 1\.00 GB"):
        check_cache_room(2 * 10**9)
    with (tmp_path / name).open("wb") as file:
        file.truncate(10**9)
    assert check_cache_room(2 * 10**9)


def test_who_remembers_several_files_looks_at_them_once_a_second(tmp_path, folder, monkeypatch):
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(file.name.encode())
    clock, asked, known = SimpleNamespace(now=100.0), [], {}
    monkeypatch.setattr(cache.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(cache, "content_hash", lambda path, folder: asked.append(path) or content_hash(path, folder))
    assert cached_array(files, Decoder(1), known=known)[0, 0] == 1
    asked.clear()
    for _ in range(5):
        assert cached_array(files, None, known=known)[0, 0] == 1
    assert asked == []
    assert cached_array(files, None)[0, 0] == 1
    assert asked == files
    files[1].write_bytes(b"other")
    clock.now += 1.1
    assert cached_array(files, Decoder(2), known=known)[0, 0] == 2
    # What is decoded is never kept under what the files held before.
    files[1].write_bytes(b"another")
    assert cached_array(files, Decoder(3), "variant", known=known)[0, 0] == 3
    files[1].write_bytes(b"other")
    clock.now += 1.1
    assert cached_array(files, Decoder(4), "variant", known=known)[0, 0] == 4
