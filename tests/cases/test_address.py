import pickle
from pathlib import Path

import pytest

from voxtile.cases.address import RemoteFile, is_address, path_of
from voxtile.errors import DataError


def test_what_begins_like_an_address_is_one(tmp_path):
    for text in ("https://a/b.tif", "http://a/b.tif", "s3://a/b.tif", "HTTPS://a/b.tif"):
        assert is_address(text)
        assert isinstance(path_of(text), RemoteFile)
    for text in ("b.tif", "/https/b.tif", "ftp://a/b.tif", "file:///a/b.tif"):
        assert not is_address(text)
    assert path_of("~/b.tif") == Path.home() / "b.tif"


def test_it_has_the_name_of_its_file():
    file = RemoteFile("https://host:8080/folder/scene.v2.tif?version=3/4")
    assert (file.name, file.stem, file.suffix) == ("scene.v2.tif", "scene.v2", ".tif")
    assert str(file) == "https://host:8080/folder/scene.v2.tif?version=3/4"
    assert file.resolve() is file
    assert file.is_file()
    assert not file.is_dir()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:hunter2@host/a.tif", "https://***@host/a.tif"),
        ("https://host/a.tif?id=5&X-Amz-Signature=hunter2", "https://host/a.tif?id=5&X-Amz-Signature=***"),
        ("https://host/a.tif?sv=2&se=3&sig=hunter2", "https://host/a.tif?sv=***&se=***&sig=***"),
        ("https://host/a.tif?Signature=hunter2&Expires=1&v=2", "https://host/a.tif?Signature=***&Expires=***&v=2"),
        ("https://host/a.tif?access_token=hunter2", "https://host/a.tif?access_token=***f52fbd"),
        ("https://host/a.tif?hunter2", "https://host/a.tif?***f52fbd"),
        ("https://host/a.tif?sp=5&st=6", "https://host/a.tif?sp=5&st=6"),
        ("s3://bucket/a?b.tif", "s3://bucket/a?b.tif"),
    ],
)
def test_credentials_are_masked_wherever_it_is_shown(url, shown):
    file = RemoteFile(url)
    assert str(file) == file.shown == shown
    assert "hunter2" not in repr(file) + f"{file}" + str(file.parent) + "".join(file.parts)
    assert file.url == url


def test_signatures_do_not_tell_files_apart_and_all_else_does():
    signed = [RemoteFile(f"https://host/a.tif?id={number}&sig={sig}") for number, sig in ((1, "x"), (1, "y"), (2, "x"))]
    assert signed[0] == signed[1] != signed[2]
    assert len(set(signed)) == 2
    keys = {RemoteFile(f"https://host/download?key={number}") for number in range(9)}  # a key may be a name
    assert len(keys) == len({str(file) for file in keys}) == 9
    assert RemoteFile("s3://a/b.tif") != RemoteFile("https://a/b.tif")


def test_it_goes_to_another_process_whole():
    file = RemoteFile("https://me:secret@host/a.tif?sig=q")
    again = pickle.loads(pickle.dumps(file))
    assert (again, again.url) == (file, file.url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://host", "names no file"),
        ("https://host/folder/", "names no file"),
        ("s3://bucket", "names no file"),
        ("https:///a.tif", "names no host"),
        ("https://host:port/a.tif", "is none"),
        ("https://host/a.vrt", r"ends in '\.vrt', and only GeoTIFFs"),
        ("https://host/a.geojson", r"ends in '\.geojson'"),
        ("s3://key:hunter2@bucket/a.tif", "holds credentials"),
    ],
)
def test_what_is_no_address_of_a_geotiff_is_refused(url, words):
    with pytest.raises(DataError, match=words) as error:
        RemoteFile(url)
    assert "hunter2" not in str(error.value)
