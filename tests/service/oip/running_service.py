"""A complete service with the fake device, in its own thread, so that clients may block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from service.core.detector import Detector
from service.core.model_control import ModelEntry, ModelLoadFailed, UnknownModel
from service.oip import InferenceService, oip_routes
from service.rest import create_app
from service.rpc import RpcServer
from service.transport.http_server import HttpServer, listen
from tests.service.rpc.caller import rpc_options
from tests.support.fake_serve import FakeSettings
from tests.support.fake_service import fake_settings, open_fake_detector, value

_Answer = TypeVar("_Answer")


@dataclass
class StandInControl:
    """A repository of one model that records its calls."""

    name: str = "fake"
    version: str = "000000000000"
    loaded: bool = True
    calls: list[tuple[str, str]] = field(default_factory=list)
    hold: asyncio.Event | None = None  # awaited before a load is done
    failure: str = ""  # of the next loads

    def index(self) -> tuple[ModelEntry, ...]:
        if self.loaded:
            return (ModelEntry(self.name, self.version, "READY"),)
        return (ModelEntry(self.name, self.version, "UNAVAILABLE", "unloaded"),)

    async def load(self, name: str) -> None:
        self.calls.append(("load", name))
        if name != self.name:
            raise UnknownModel(f"there is no model {name!r}")
        if self.failure:
            raise ModelLoadFailed(self.failure)
        if self.hold is not None:
            await self.hold.wait()
        self.loaded = True

    async def unload(self, name: str) -> None:
        self.calls.append(("unload", name))
        if name != self.name:
            raise UnknownModel(f"there is no model {name!r}")
        self.loaded = False


@dataclass
class Served:
    """A running service with its addresses and internals."""

    settings: FakeSettings
    http_port: int
    grpc_port: int
    detector: Detector
    control: StandInControl
    rpc: RpcServer
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def url(self) -> str:
        return f"http://{self.http}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def run(self, work: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Runs something in the service's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def value(self, name: str, /, **labels: str) -> float:
        return value(self.detector, name, **labels) or 0.0


@contextmanager
def served(control: StandInControl | None = None, **overrides: Any) -> Iterator[Served]:
    settings = fake_settings(**overrides)
    ready: list[Served | BaseException] = []
    started = threading.Event()

    async def serve() -> None:
        try:
            async with _serving(settings, control or StandInControl()) as service:
                ready.append(service)
                started.set()
                await service.stop.wait()
        except BaseException as error:
            ready.append(error)
            started.set()
            raise

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(120)
    service = ready[0]
    if not isinstance(service, Served):
        raise service
    try:
        yield service
    finally:
        service.loop.call_soon_threadsafe(service.stop.set)
        thread.join(60)
        assert not thread.is_alive()


@asynccontextmanager
async def _serving(settings: FakeSettings, control: StandInControl) -> AsyncIterator[Served]:
    limits = {"max_message_bytes": settings.max_body_bytes, "max_images": settings.max_files}
    async with open_fake_detector(settings) as detector:
        app = create_app(detector, settings, extra_routes=oip_routes(detector, control, settings))
        http = HttpServer(app, settings, listen("127.0.0.1", 0))
        oip = InferenceService(detector, control, settings)
        rpc = RpcServer(detector, rpc_options(**limits), extra_services=[oip])
        await rpc.start()
        task = asyncio.create_task(http.run_until_drained())
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            yield Served(settings, http.port, rpc.port, detector, control, rpc, loop, stop)
        finally:
            http.drain()
            await rpc.stop(10)
            await task
