"""Files at addresses, `https://…`, `http://…` and `s3://bucket/key`, which go wherever paths go."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from voxtile.errors import DataError

_ADDRESS = re.compile(r"(https?|s3)://", re.IGNORECASE)
# Signed addresses: what holds the signature, and what else belongs to it. Of AWS, Google, Azure (shared access), CloudFront.
_SIGNED = (
    ("x-amz-signature", re.compile(r"x-amz-.*")),
    ("x-goog-signature", re.compile(r"x-goog-.*")),
    ("sig", re.compile(r"s(ig|e|p|r|t|v|pr|s|rt|ip|k(oid|tid|t|e|s|v))")),
    ("signature", re.compile(r"signature|expires|policy|key-pair-id|awsaccesskeyid")),
)
_SECRET = re.compile(r".*(token|key|secret|sig|passw|auth|creden).*")
_ENDINGS = ("", ".tif", ".tiff")
MASK = "***"


def is_address(text: str) -> bool:
    """Whether a text names a file elsewhere instead of a path."""
    return bool(_ADDRESS.match(text))


def path_of(text: str) -> Path:
    """What a user has typed for a file: a path with ~ expanded, or an address as a `RemoteFile`.

    Raises:
        DataError: See `RemoteFile`.
    """
    return RemoteFile(text) if is_address(text) else Path(text).expanduser()


class RemoteFile(PosixPath):
    """A GeoTIFF at an address, in the place of its path.

    It is a path so that what handles files by name, size and time of change (case ids, surveys, caches, messages) needs no
    second way for those elsewhere. As text, and compared, it is its address with credentials masked; signed addresses of one file
    are equal although their signatures differ.

    Attributes:
        url: the whole address, with whatever credentials it holds; for requests only.
        shown: the address with credentials masked.
    """

    url: str
    shown: str

    def __new__(cls, url: str) -> RemoteFile:
        """Takes an address apart.

        Raises:
            DataError: It names no file, or one that ends like no GeoTIFF.
        """
        self = super().__new__(cls, *_segments(url))
        self.url, self.shown = url, masked(url)
        return self

    def __init__(self, url: str) -> None:
        if sys.version_info >= (3, 12):  # where a path takes its segments here
            super().__init__(*_segments(url))

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:
        """What is derived, such as the folder, is a plain path, for names only."""
        return Path(*segments)

    def __str__(self) -> str:
        return self.shown if hasattr(self, "shown") else super().__str__()

    def __repr__(self) -> str:
        return f"RemoteFile('{self}')"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFile, (self.url,)

    def resolve(self, strict: bool = False) -> RemoteFile:
        """An address is absolute."""
        return self

    def absolute(self) -> RemoteFile:
        """An address is absolute."""
        return self

    def is_file(self) -> bool:
        """True without asking: whether it is there is seen, and said, when it is opened."""
        return True

    def is_dir(self) -> bool:
        """False: addresses cannot be listed."""
        return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size in bytes and times that change whenever the server says that the file has.

        Raises:
            DataError: The file is not there or cannot be asked for, see `voxtile.cases.fetch`.
        """
        from voxtile.cases.fetch import facts

        found = facts(self)
        seconds = (found.modified, found.changed)
        fields = (stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, found.size, 0, *(value // 10**9 for value in seconds))
        return os.stat_result(fields, {"st_mtime_ns": seconds[0], "st_ctime_ns": seconds[1]})


def _segments(url: str) -> tuple[str, str, str]:
    """Folder, query and name of the file at an address, credentials masked; the query tells files apart and is no part of the name.

    Raises:
        DataError: See `RemoteFile`.
    """
    shown = masked(url)
    head, _, query = (shown, "", "") if shown.startswith("s3:") else shown.partition("?")
    folder, _, name = head.rpartition("/")
    if not name or folder.endswith(":/"):
        raise DataError(
            f"'{shown}' names no file. Expected, for example, 'https://host/folder/scene.tif' or 's3://bucket/scene.tif'."
        )
    ending = PurePosixPath(name).suffix
    if ending.lower() not in _ENDINGS and not query:
        raise DataError(
            f"{shown} ends in '{ending}', and only GeoTIFFs (.tif) are read from where they are. Fetch the file and name the copy."
        )
    return folder, f"?{query.replace('/', '%2F')}" if query else "", name


def masked(url: str) -> str:
    """An address without what lets its holder in.

    Raises:
        DataError: `url` is no valid address.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() == "s3":  # anything may be in a key, "?" too
        if "@" in rest.partition("/")[0]:
            raise DataError(
                "An address 's3://…@…' holds credentials. Take them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        return f"s3://{rest}"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # looks whether it is a number
    except ValueError as error:
        raise DataError(f"An address '{scheme}://…' is none: {error}. Expected, for example, 'https://host/scene.tif'.") from None
    host = f"{MASK}@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    if not parts.hostname:
        raise DataError(f"'{scheme}://{host}{parts.path}' names no host. Expected, for example, 'https://host/scene.tif'.")
    query = _masked_query(parts.query) if parts.query else ""
    return urlunsplit((parts.scheme.lower(), host, parts.path, query, ""))


def _masked_query(query: str) -> str:
    """A query without secrets.

    Parts of a signature are `***`, so that a file signed anew is the same file; of other values that may be secret some digits
    of a hash are left, since they may as well be what tells files apart.
    """
    pairs = [pair.partition("=") for pair in query.split("&")]
    keys = [unquote(key).lower() for key, _, _ in pairs]
    schemes = [belongs for mark, belongs in _SIGNED if mark in keys]
    shown = []
    for (key, joined, value), name in zip(pairs, keys, strict=True):
        if any(belongs.fullmatch(name) for belongs in schemes):
            shown.append(f"{key}={MASK}")
        elif _SECRET.fullmatch(name) or not joined:
            digits = hashlib.sha256((value if joined else key).encode()).hexdigest()[:6]
            shown.append(f"{key}={MASK}{digits}" if joined else f"{MASK}{digits}")
        else:
            shown.append(f"{key}={value}")
    return "&".join(shown)
