"""A web server on this machine that serves parts of files, counts what it serves, and can be made to misbehave."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Web(ThreadingHTTPServer):
    """Serves the files below `root` at `url`.

    Attributes:
        asked: (path with query, first byte, one past the last) of each request that was answered with content.
        all: paths with query of all requests.
        headers: of the latest request.
        status: answered instead of content, as often as `times` says.
        ranges: False to answer with whole files.
        cut: bytes of each answer that do not come, as often as `times` says.
        silent: seconds before an answer, as often as `times` says.
        etag: overrides what follows from a file's content; "" for no tag and no date.
    """

    daemon_threads = True
    status = times = cut = 0
    silent = 0.0
    ranges = True
    etag: str | None = None

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, int, int]] = []
        self.all: list[str] = []
        self.headers: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self.waiting = threading.Event()
        self.read: dict[tuple[Path, int], bytes] = {}

    def content(self, file: Path) -> bytes:
        """A file's bytes, read once; the hash of one object is computed once, too."""
        return self.read.setdefault((file, file.stat().st_mtime_ns), file.read_bytes())

    @property
    def served(self) -> int:
        """Bytes of content served."""
        return sum(stop - start for _, start, stop in self.asked)

    def forget(self) -> None:
        """Begins counting anew."""
        self.asked.clear()
        self.all.clear()

    def misbehaves(self) -> bool:
        """Whether the answer that comes is one of the bad ones."""
        self.times -= 1
        return self.times >= 0


class Answer(BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together

    def do_GET(self) -> None:
        web = self.server
        web.all.append(self.path)
        web.headers = {name.lower(): value for name, value in self.headers.items()}
        if to := web.moved.get(self.path):
            return self.plain(302, {"Location": to})
        file = web.root / urlsplit(self.path).path.lstrip("/")
        bad = bool(web.status or web.cut or web.silent) and web.misbehaves()
        if bad and web.silent:
            web.waiting.wait(web.silent)
        if not file.is_file() or (bad and web.status):
            return self.plain(web.status if bad else 404, {})
        content = web.content(file)
        start, stop = 0, len(content)
        if web.ranges:
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or stop) + 1, stop)
            if start >= stop:
                return self.plain(416, {"Content-Range": f"bytes */{len(content)}"})
        tag = web.etag if web.etag is not None else str(hash(content))
        headers = {"ETag": f'"{tag}"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"} if tag else {}
        self.send_response(206 if web.ranges else 200)
        for name, value in (headers | {"Content-Length": str(stop - start)}).items():
            self.send_header(name, value)
        if web.ranges:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        cut = web.cut if bad else 0
        web.asked.append((self.path, start, stop - cut))
        self.wfile.write(content[start : stop - cut])
        if cut:
            self.close_connection = True
        return None

    def plain(self, status: int, headers: dict[str, str]) -> None:
        """An answer without content."""
        self.send_response(status)
        for name, value in (headers | {"Content-Length": "0"}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, BrokenPipeError):  # a client that does not want the rest
            self.close_connection = True


@contextmanager
def serving(root: Path) -> Iterator[Web]:
    """A server of the files below `root` while the block lasts."""
    web = Web(root)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        web.waiting.set()
        web.shutdown()
        web.server_close()
        thread.join()
