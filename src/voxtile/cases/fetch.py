"""Parts of files at addresses, fetched by range requests, with retries; what goes wrong becomes one paragraph."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from voxtile.cases.address import MASK, RemoteFile
from voxtile.cases.s3 import s3_request
from voxtile.errors import DataError, reason

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

HEAD = 16_384  # bytes from the start that are fetched with the facts: a header's first page
WAITS = (0.5, 1.0, 2.0)  # seconds before the second try and the others
TIMEOUT = 30.0  # seconds without a byte after which a try is given up
_BUSY = (408, 429, 500, 502, 503, 504)  # statuses that may pass
_MOST_REDIRECTS = 4
_UNKNOWN = secrets.token_hex(8)
_FACTS: dict[str, Facts] = {}


class FetchError(DataError):
    """A file at an address could not be fetched; that says nothing of its content."""


@dataclass(frozen=True)
class Facts:
    """What a server says of a file.

    Attributes:
        size: in bytes.
        tag: ETag and Last-Modified, which change with the content; "" where the server gives neither.
        head: the first bytes, at most `HEAD`.
    """

    size: int
    tag: str
    head: bytes = field(repr=False)

    @property
    def modified(self) -> int:
        """Last-Modified in nanoseconds since 1970, 0 where it is not given."""
        try:
            return int(parsedate_to_datetime(self.tag.partition("\n")[2]).timestamp() * 1e9)
        except (ValueError, IndexError, TypeError):
            return 0

    @property
    def changed(self) -> int:
        """A number of 62 bits that follows from the tag; without one, another in each process, for the file may be another."""
        return int.from_bytes(hashlib.sha256((self.tag or _UNKNOWN).encode()).digest()[:8]) >> 2


def facts(file: RemoteFile) -> Facts:
    """Size and tag of a file, asked for once per process; a change after that is seen by `fetch`.

    Raises:
        FetchError: The file is not there or cannot be fetched.
    """
    if file.shown not in _FACTS:
        _FACTS[file.shown] = _fetched(file, 0, HEAD, None)
    return _FACTS[file.shown]


def fetch(file: RemoteFile, start: int, stop: int, known: Facts) -> bytes:
    """The bytes from `start` up to `stop`, which lies inside the file.

    Args:
        file: the file.
        start: first byte.
        stop: one past the last.
        known: what the file was when it was opened.

    Raises:
        FetchError: They cannot be fetched, or the file is another one by now.
    """
    return _fetched(file, start, stop, known).head


def _fetched(file: RemoteFile, start: int, stop: int, known: Facts | None) -> Facts:
    """One range, by as many tries as `WAITS` allows."""
    from urllib3.exceptions import HTTPError

    problem = ""
    for wait in (0.0, *WAITS):
        time.sleep(wait)
        try:
            answer = _ask(file, start, stop)
            try:
                if answer.status in _BUSY:
                    problem = f"the server answers with status {answer.status}"
                    continue
                return _checked(file, answer, start, stop, known)
            finally:
                answer.close()
        except HTTPError as error:
            problem = _without_secrets(_told(error), file)
    raise FetchError(
        f"{file} cannot be fetched: {problem} ({1 + len(WAITS)} tries for bytes {start} to {stop - 1}). Look whether the address "
        "is right and can be reached from here, and give the same command again, which fetches only what the cache does not hold; "
        "or fetch the whole file by other means, and name the copy."
    )


def _ask(file: RemoteFile, start: int, stop: int) -> BaseHTTPResponse:
    from urllib3.util import Retry, Timeout, make_headers

    headers = {"Range": f"bytes={start}-{stop - 1}"}
    redirects = _MOST_REDIRECTS
    if file.url[:3].lower() == "s3:":
        url, headers = s3_request(file.url, headers)
        redirects = 0  # a signature is for one host
    else:
        parts = urlsplit(file.url)
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
        if parts.username is not None:
            headers |= make_headers(basic_auth=f"{unquote(parts.username)}:{unquote(parts.password or '')}")
    retries = Retry(connect=0, read=0, status=0, other=0, redirect=redirects, raise_on_redirect=False)
    return _pool(os.getpid(), _proxy(url)).request(
        "GET", url, headers=headers, preload_content=False, decode_content=False, retries=retries,
        timeout=Timeout(connect=min(TIMEOUT, 10.0), read=TIMEOUT),
    )  # fmt: skip


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for an address."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


@functools.cache
def _pool(process: int, proxy: str | None) -> PoolManager:
    """Connections that are kept open; a forked process must not use its parent's."""
    import urllib3

    options: dict[str, Any] = {"maxsize": 16}
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


def _checked(file: RemoteFile, answer: BaseHTTPResponse, start: int, stop: int, known: Facts | None) -> Facts:
    """The content of an answer, once it is known to be what was asked for."""
    from urllib3.exceptions import IncompleteRead

    if answer.status == 416 and known is None:
        raise FetchError(f"{file} is empty. Expected a GeoTIFF.")
    if answer.status not in (206, 416):
        raise _refused(file, answer.status)
    given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", "").strip())
    size = int(given[3]) if given else 0
    tag = f"{answer.headers.get('ETag', '')}\n{answer.headers.get('Last-Modified', '')}".rstrip("\n")
    if known and (answer.status == 416 or (given and size != known.size) or tag != known.tag):
        _FACTS.pop(file.shown, None)
        raise FetchError(
            f"{file} was changed on its server while it was being read. Give the same command again, to begin with the file as it "
            "is now."
        )
    if given is None or (int(given[1]), int(given[2]) + 1) != (start, min(stop, size)):
        raise _refused(file, answer.status)
    wanted = min(stop, size) - start
    data = answer.read(wanted)
    if len(data) != wanted:
        raise IncompleteRead(len(data), wanted - len(data))
    return Facts(size, tag, data)


def _refused(file: RemoteFile, status: int) -> FetchError:
    s3 = file.shown.startswith("s3:")
    if status in (404, 410):
        return FetchError(f"{file} does not exist: its server answers with status {status}. Correct the address, or take it out.")
    if status in (401, 403):
        how = (
            "Look whether AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with temporary ones, AWS_SESSION_TOKEN) are those of a user "
            "who may read it, and whether AWS_REQUEST_PAYER=requester is needed; S3 says the same of a file that is not there."
            if s3
            else "Expected an address that may be read; a signed one may have expired."
        )
        return FetchError(f"{file} may not be read: its server answers with status {status}. {how}")
    if s3 and status in (301, 307, 400):
        return FetchError(f"{file} lies in another region: status {status}. Set AWS_REGION to the bucket's.")
    if status in (200, 206):
        return FetchError(
            f"The server of {file} does not serve parts of files, so every window would fetch the whole. Fetch the file once and "
            "name the copy."
        )
    return FetchError(f"{file} cannot be fetched: its server answers with status {status}. Expected 206, a part of the file.")


def _told(error: Exception) -> str:
    """Why a try failed, in words: urllib3's own texts are full of the names of its objects."""
    from urllib3 import exceptions as urllib3

    if isinstance(error, urllib3.MaxRetryError) and error.reason is not None:
        return _told(error.reason)
    if isinstance(error, urllib3.ProxyError):
        return f"through the proxy, {_told(error.original_error)}"
    if isinstance(error, urllib3.NameResolutionError):
        return "no host of this name is known here"
    if isinstance(error, urllib3.NewConnectionError):
        why = re.sub(r".*new connection: (\[Errno -?\d+\] )?", "", reason(error))
        return f"its server cannot be reached: {why}"
    if isinstance(error, urllib3.ReadTimeoutError):
        return f"its server sent nothing for {TIMEOUT:g} s (timed out)"
    if isinstance(error, urllib3.ConnectTimeoutError):
        return "its server does not answer (timed out)"
    if isinstance(error, urllib3.IncompleteRead):
        return f"the answer was cut off ({error.partial} bytes read, {error.expected} more expected)"
    if isinstance(error, urllib3.ProtocolError) and len(error.args) > 1:
        return f"its server broke the connection off: {error.args[1]}"
    return reason(error)


def _without_secrets(text: str, file: RemoteFile) -> str:
    """A library's message, which may quote the address with its query."""
    parts = urlsplit(file.url)
    for secret in (parts.query, parts.netloc.rpartition("@")[0]):
        text = text.replace(secret, MASK) if secret else text
    return text
