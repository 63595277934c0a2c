"""The routes of the protocol around a stand-in detector, and a stand-in for Label Studio."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from service.label_studio import label_studio_routes
from service.rest import create_app
from service.settings import load_settings
from service.transport.http_body import BodyMemory
from tests.service.rest.conftest import MakeImage, image
from tests.service.rest.standin import StandIn

__all__ = ["MakeImage", "image"]

Connect = Callable[..., contextlib.AbstractAsyncContextManager[httpx.AsyncClient]]

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image">
    <Label value="QR code"/>
    <Label value="Bar code" predicted_values="linear, pdf417" background="green"/>
    <Label value="other"/>
  </RectangleLabels>
</View>
"""


@pytest.fixture
def standin() -> StandIn:
    return StandIn()


@pytest.fixture
def connect(standin: StandIn) -> Connect:
    @contextlib.asynccontextmanager
    async def opened(**given: Any) -> AsyncIterator[httpx.AsyncClient]:
        limits = {"max_body_bytes": 1 << 20, "max_bodies_bytes": 1 << 24}
        settings = load_settings(**({"label_studio": True} | limits | given))
        detector = standin.as_detector()
        routes = label_studio_routes(detector, settings, BodyMemory(settings.max_bodies_bytes))
        app = create_app(detector, settings, extra_routes=routes)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://service"
        ) as client:
            yield client

    return opened


@dataclass
class LabelStudio:
    """A stand-in for Label Studio: files behind a token."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    accepted: str = "Token legacy"
    personal: str = "a.b.c"  # is exchanged for the accepted access token
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    delay_seconds: float = 0.0


@pytest.fixture(scope="module")
def label_studio_server() -> Iterator[LabelStudio]:
    state = LabelStudio()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorization = self.headers.get("Authorization")
            state.requests.append((self.path, authorization))
            time.sleep(state.delay_seconds)
            if self.path == "/data/upload/away":
                self.send_response(302)
                self.send_header("Location", "http://169.254.169.254/")
                self.end_headers()
            elif self.path == "/data/upload/interim":
                with contextlib.suppress(OSError):
                    for _ in range(1000):
                        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
            elif authorization != state.accepted:
                self._send(401, b"")
            elif self.path == "/data/upload/cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(bytes(10))
            elif self.path == "/data/upload/endless":
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(1000):
                        self.wfile.write(bytes(65_536))
            elif self.path in state.files:
                self._send(200, state.files[self.path])
            else:
                self._send(404, b"")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((self.path, body.get("refresh")))
            known = body.get("refresh") == state.personal
            access = state.accepted.removeprefix("Bearer ")
            self._send(200 if known else 401, json.dumps({"access": access}).encode())

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Does not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def label_studio(label_studio_server: LabelStudio) -> LabelStudio:
    state = label_studio_server
    state.files, state.requests = {}, []
    state.accepted, state.delay_seconds = "Token legacy", 0.0
    state.personal = "a.b.c"
    return state
