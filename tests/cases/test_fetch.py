import contextlib
import random
import re
import socket
import threading

import pytest

from tests.testers.web import serving
from voxtile.cases import fetch as module
from voxtile.cases.address import RemoteFile
from voxtile.cases.fetch import HEAD, facts, fetch
from voxtile.errors import DataError

CONTENT = random.Random(0).randbytes(50_000)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def web(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.tif").write_bytes(CONTENT)
    with serving(tmp_path / "web") as server:
        yield server


def test_parts_come_as_they_are_asked_for(web):
    file = RemoteFile(f"{web.url}/a.tif")
    known = facts(file)
    assert (known.size, known.head) == (len(CONTENT), CONTENT[:HEAD])
    assert fetch(file, 20_000, 20_010, known) == CONTENT[20_000:20_010]
    assert fetch(file, 49_000, 50_000, known) == CONTENT[49_000:]
    assert [asked[1:] for asked in web.asked] == [(0, HEAD), (20_000, 20_010), (49_000, 50_000)]


def test_size_and_times_stand_where_those_of_a_path_do(web):
    file = RemoteFile(f"{web.url}/a.tif")
    status = file.stat()
    assert (status.st_size, status.st_mtime, status.st_mtime_ns) == (len(CONTENT), 1445412480, 1445412480 * 10**9)
    for tag in ("another", ""):  # without a tag nothing can be said of a change
        module._FACTS.clear()
        web.etag = tag
        assert file.stat().st_ctime_ns != status.st_ctime_ns


def test_credentials_go_to_the_server_and_to_no_other(web, tmp_path):
    with serving(tmp_path / "web") as other:
        facts(RemoteFile(f"http://me:a%40b@127.0.0.1:{web.server_port}/a.tif"))
        assert web.headers["authorization"] == "Basic bWU6YUBi"
        web.moved["/b.tif"] = f"http://localhost:{other.server_port}/a.tif"
        assert facts(RemoteFile(f"http://me:x@127.0.0.1:{web.server_port}/b.tif")).size == len(CONTENT)
        assert "authorization" in web.headers
        assert "authorization" not in other.headers


def test_s3_goes_to_the_store_that_the_environment_names(web, tmp_path, monkeypatch):
    (tmp_path / "web" / "bucket").mkdir()
    (tmp_path / "web" / "bucket" / "a b.tif").write_bytes(CONTENT)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", web.url)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    (tmp_path / "web" / "bucket" / "a%20b.tif").write_bytes(CONTENT)  # the test's server takes names as they are written
    assert facts(RemoteFile("s3://bucket/a b.tif")).head == CONTENT[:HEAD]
    for name, value in (("AWS_NO_SIGN_REQUEST", "NO"), ("AWS_ACCESS_KEY_ID", "me"), ("AWS_SECRET_ACCESS_KEY", "hunter2")):
        monkeypatch.setenv(name, value)
    module._FACTS.clear()
    web.status, web.times = 403, 1
    with pytest.raises(DataError, match=r"s3://bucket/a b\.tif may not be read.*403.*AWS_SESSION_TOKEN") as error:
        facts(RemoteFile("s3://bucket/a b.tif"))
    assert "hunter2" not in str(error.value)
    web.status, web.times = 301, 1
    with pytest.raises(DataError, match=r"another region.*AWS_REGION"):
        facts(RemoteFile("s3://bucket/a b.tif"))


@pytest.mark.parametrize("trouble", [{"status": 503}, {"cut": 100}, {"silent": 0.8}])
def test_what_passes_is_tried_again(web, trouble):
    for name, value in trouble.items():
        setattr(web, name, value)
    web.times = 2
    assert facts(RemoteFile(f"{web.url}/a.tif")).head == CONTENT[:HEAD]
    assert len(web.all) == 3


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"status": 503}, r"cannot be fetched: the server answers with status 503 \(4 tries for bytes 0 to 16383\)"),
        ({"cut": 100}, r"cannot be fetched: the answer was cut off \(16284 bytes read, 100 more expected\)"),
        ({"silent": 0.8}, r"cannot be fetched: its server sent nothing for 0.5 s"),
    ],
)
def test_what_does_not_pass_is_said(web, trouble, words):
    for name, value in trouble.items():
        setattr(web, name, value)
    web.times = 4
    with pytest.raises(DataError, match=words):
        facts(RemoteFile(f"{web.url}/a.tif"))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, r"a\.tif does not exist: its server answers with status 404"),
        (403, r"may not be read.*403.*signed one may have expired"),
        (418, r"cannot be fetched: its server answers with status 418"),
    ],
)
def test_what_will_not_change_is_asked_once(web, status, words):
    web.status, web.times = status, 1
    with pytest.raises(DataError, match=words):
        facts(RemoteFile(f"{web.url}/a.tif"))
    assert len(web.all) == 1


def test_a_server_without_parts_is_refused_before_it_sends_all(web):
    web.ranges = False
    with pytest.raises(DataError, match="does not serve parts of files"):
        facts(RemoteFile(f"{web.url}/a.tif"))


def test_an_empty_file_is_named(web, tmp_path):
    (tmp_path / "web" / "a.tif").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.tif is empty"):
        facts(RemoteFile(f"{web.url}/a.tif"))


def test_without_a_network_it_says_so_and_masks_what_is_secret(web):
    file = RemoteFile(f"http://me:hunter2@127.0.0.1:{web.server_port}/a.tif?token=hunter2")
    web.shutdown()
    web.server_close()
    with pytest.raises(DataError, match=r"http://\*\*\*@127.*token=\*\*\*f52fbd cannot be fetched: .*refused") as error:
        facts(file)
    assert "hunter2" not in str(error.value)
    assert "its server cannot be reached: Connection refused (4 tries" in str(error.value)
    assert "fetch the whole file by other means, and name the copy" in str(error.value)
    assert "HTTP" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://nowhere.invalid/a.tif", "no host of this name is known here"),
        ("http://127.0.0.1:{port}/a.tif", "its server broke the connection off"),
    ],
)
def test_a_host_that_is_none_is_said_in_words(url, words):
    def break_off():
        with contextlib.suppress(OSError):  # it waits for a connection until the test closes the port
            while True:
                listening.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        threading.Thread(target=break_off, daemon=True).start()
        with pytest.raises(DataError, match=re.escape(words)) as error:
            facts(RemoteFile(url.format(port=port)))
    assert "urllib3" not in str(error.value)
    assert "Connection(" not in str(error.value)


@pytest.mark.parametrize("change", [b"x" * 50_000, b"x" * 60_000, b"x" * 30_000])
def test_a_file_that_changes_under_way_is_noticed(web, tmp_path, change):
    file = RemoteFile(f"{web.url}/a.tif")
    known = facts(file)
    (tmp_path / "web" / "a.tif").write_bytes(change)
    with pytest.raises(DataError, match="was changed on its server while it was being read"):
        fetch(file, 40_000, 50_000, known)
    assert facts(file).size == len(change)
