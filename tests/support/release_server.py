"""A release server on this machine that serves one file, with configurable faults."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Release:
    """The server's behaviour, and the requests that it received."""

    content: bytes
    etag: str | None = '"v1"'
    ranges: bool = True  # supports Range requests
    wrong_ranges: bool = False  # the Content-Range differs from the requested range
    cuts: list[int] = field(default_factory=list)  # bytes sent to each request before a disconnect
    status: int = 200
    redirect: str | None = None
    declares_length: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    url: str = ""


@contextmanager
def serve(release: Release) -> Iterator[Release]:
    """Serves on an ephemeral port of the loopback until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(release))
    server.daemon_threads = True
    release.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield release
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler_of(release: Release) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            release.requests.append((self.path, self.headers["Range"]))
            if release.redirect:
                self.send_response(302)
                self.send_header("Location", release.redirect)
                self.end_headers()
            elif release.status != 200:
                self.send_error(release.status)
            else:
                self._send(self._range_start())

        def _range_start(self) -> int | None:
            requested = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            same = self.headers["If-Range"] == release.etag
            return int(requested[1]) if requested and same and release.ranges else None

        def _send(self, begin: int | None) -> None:
            total = len(release.content)
            if begin is not None and begin >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.end_headers()
                return
            body = release.content[begin or 0 :]
            self.send_response(200 if begin is None else 206)
            if begin is not None:
                shown = begin + release.wrong_ranges
                self.send_header("Content-Range", f"bytes {shown}-{total - 1}/{total}")
            if release.etag:
                self.send_header("ETag", release.etag)
            if release.declares_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: release.cuts.pop(0)] if release.cuts else body)

    return Handler
