"""The composition root: builds the house, opens the door, and closes it without losing anybody.

start: listen -> HTTP (not ready) + engine -> engine warm: ready
load:  SIGHUP -> keys, certificate and weights are read anew; bad ones change nothing
stop:  SIGTERM or SIGINT -> not ready -> drain_delay -> port closed -> everything accepted is
       answered -> engine ended -> exit status 0; a second signal ends it at once
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from contextlib import AsyncExitStack
from types import FrameType
from typing import Any, Protocol

import structlog
import uvloop

from model.weights.info import CheckpointError
from service.access.access import Access
from service.access.api_keys import KeyFileError
from service.access.tls import TlsFileError
from service.build import TORCH, Backend, ServiceCore, open_core
from service.images.allocator import keep_freed_memory
from service.observability.logs import configure_logs
from service.observability.request_log import RequestLog, TracingUnavailable, open_request_log
from service.oip import InferenceService, oip_routes
from service.rest import create_app, create_metrics_app, require_metrics_key
from service.rpc import RpcOptions, RpcServer
from service.settings import Settings
from service.supervision.plan import EngineStartError
from service.transport.http_body import BodyMemory
from service.transport.http_server import HttpServer, listen

_EXIT_FAILED = 1
_EXIT_SIGNALLED = 128  # plus the signal's number, as shells do
_LAST_ANSWERS_SECONDS = 0.5
_ANY_ADDRESS = {"0.0.0.0": "localhost", "::": "localhost"}

_log = structlog.get_logger(__name__)


def run(settings: Settings, backend: Backend = TORCH) -> int:
    """Serves until a signal ends it.

    Args:
        settings: of this deployment.
        backend: the device of its engines.

    Returns:
        The exit status: 0 after a complete drain, 1 where it could not start or had to give up
        requests.
    """
    configure_logs(settings.log_level, settings.log_format)
    keep_freed_memory()
    try:
        return uvloop.run(_serve(settings, backend))
    except CheckpointError as error:
        _say(f"Cannot use the model: {error}")
    except (KeyFileError, TlsFileError) as error:
        _say(f"Cannot guard the service: {error}")
    except EngineStartError as error:
        _say(f"The engine cannot start: {error}")
    except TracingUnavailable as error:
        _say(f"Cannot send traces: {error}")
    return _EXIT_FAILED


class _Server(Protocol):
    """What answers on a port, over whichever protocol."""

    async def run_until_drained(self) -> None:
        """Serves until drained."""

    def drain(self) -> None:
        """Takes nothing new; what was accepted is answered."""

    def give_up(self) -> None:
        """Ends without waiting any longer."""


async def _serve(settings: Settings, backend: Backend) -> int:
    """The whole life of the service.

    Raises:
        CheckpointError: for a model that cannot be used.
        EngineStartError: where the engine cannot start.
        KeyFileError, TlsFileError: for keys and certificates that cannot be used.
        TracingUnavailable: where traces are asked for and cannot be had.
    """
    access = Access.from_settings(settings)
    started = time.monotonic()
    request_log = open_request_log(settings)
    stop = _stop_on_signals()
    listeners = _listen_all(settings)
    if listeners is None:
        return _EXIT_FAILED
    servers: list[_Server] = []
    tasks: list[asyncio.Task[None]] = []
    async with AsyncExitStack() as stack:
        stack.push_async_callback(
            asyncio.to_thread, request_log.close
        )  # the last: spans of all others
        for listener in listeners:
            stack.callback(listener.close)
        # After the core: what it gave up on leaving still gets its answer over HTTP.
        stack.push_async_callback(_end_servers, servers, tasks)
        core = await stack.enter_async_context(open_core(settings, backend))
        _renew_on_hangup(core, access)
        http_servers = _build_servers(settings, access, core, request_log, listeners)
        url = _url(settings, http_servers[0].port)
        _say(f"Lite DETR Serving listens on {url} and loads the model {core.detector.model.name}")
        for server in http_servers[1:]:
            _say(f"Metrics: {_url(settings, server.port)}/metrics")
        servers += http_servers
        if settings.grpc_port >= 0:
            rpc = await _open_rpc(settings, access, core, request_log)
            if rpc is None:
                return _EXIT_FAILED
            servers.append(rpc)
        tasks += [asyncio.create_task(server.run_until_drained()) for server in servers]
        try:
            await _serve_until(stop, core, tasks, url, started)
        finally:
            core.detector.begin_drain()
            unanswered = await _drain(settings, core, servers, tasks, delay=stop.is_set())
    if unanswered:
        _say(f"Stopped with {unanswered} requests unanswered: the drain took too long")
        return _EXIT_FAILED
    _say("Stopped; every accepted request was answered")
    return 0


async def _serve_until(
    stop: asyncio.Event,
    core: ServiceCore,
    servers: list[asyncio.Task[None]],
    url: str,
    started: float,
) -> None:
    """Says when the model is ready, and returns when a signal asks for the end.

    Raises:
        EngineStartError: where the first engine cannot start.
    """
    stopped = asyncio.create_task(stop.wait())
    try:
        watched: set[asyncio.Future[Any]] = {stopped, core.first_ready, *servers}
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if core.first_ready.done():
            await core.first_ready
            _freeze_garbage()
            _say(f"Ready after {time.monotonic() - started:.1f} s. Try it in a browser, or:")
            _say(f"  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' {url}/detect")
        await asyncio.wait({stopped, *servers}, return_when=asyncio.FIRST_COMPLETED)
        for server in servers:
            if server.done():  # only when something went wrong: have it raised here
                server.result()
    finally:
        stopped.cancel()


async def _drain(
    settings: Settings,
    core: ServiceCore,
    servers: list[_Server],
    tasks: list[asyncio.Task[None]],
    *,
    delay: bool,
) -> int:
    """Lets balancers notice, closes the port, answers what was accepted.

    Returns:
        How many images were left without an answer.
    """
    if delay and settings.drain_delay_seconds:
        _say(f"Draining: still serving for {settings.drain_delay_seconds:g} s")
        await asyncio.sleep(settings.drain_delay_seconds)
    deadline = time.monotonic() + settings.drain_timeout_seconds
    for server in servers:
        server.drain()
    await asyncio.wait(tasks, timeout=settings.drain_timeout_seconds)
    return await core.detector.drain(max(0.0, deadline - time.monotonic()))


async def _end_servers(servers: list[_Server], tasks: list[asyncio.Task[None]]) -> None:
    """Ends servers that did not drain in time."""
    if tasks:
        await asyncio.wait(tasks, timeout=_LAST_ANSWERS_SECONDS)
        for server in servers:
            server.give_up()
        await asyncio.wait(tasks, timeout=_LAST_ANSWERS_SECONDS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _build_servers(
    settings: Settings,
    access: Access,
    core: ServiceCore,
    request_log: RequestLog,
    listeners: list[socket.socket],
) -> list[HttpServer]:
    """The main server and, on a port of its own, the metrics."""
    detector = core.detector
    bodies = BodyMemory(settings.max_bodies_bytes)
    oip = oip_routes(detector, core.control, settings, bodies)
    apps: list[Any] = [create_app(detector, settings, access.keys, request_log, oip, bodies)]
    if settings.metrics_port is not None:
        metrics = create_metrics_app(detector.metrics)
        apps.append(metrics if access.keys is None else require_metrics_key(metrics, access.keys))
    return [
        HttpServer(app, settings, sock, access.tls_context)
        for app, sock in zip(apps, listeners, strict=True)
    ]


async def _open_rpc(
    settings: Settings, access: Access, core: ServiceCore, request_log: RequestLog
) -> RpcServer | None:
    """The gRPC server, started; None where its port cannot be had (and that was said)."""
    detector = core.detector
    oip = InferenceService(detector, core.control, settings, request_log)
    server = RpcServer(
        detector,
        RpcOptions(
            host=settings.host,
            port=settings.grpc_port,
            max_message_bytes=settings.max_body_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_images=settings.max_files,
            max_concurrent_calls=settings.max_connections,
            keepalive_seconds=settings.grpc_keepalive_seconds,
            max_connection_age_seconds=settings.grpc_max_connection_age_seconds,
            drain_timeout_seconds=settings.drain_timeout_seconds,
            keys=access.keys,
            tls=access.tls,
        ),
        request_log,
        [oip],
    )
    try:
        await server.start()
    except OSError as error:
        _say_port_taken(settings, "grpc_port", error)
        return None
    name = _ANY_ADDRESS.get(settings.host, settings.host)
    _say(f"gRPC: {name}:{server.port}, litedetr.v1.DetectionService and {oip.name}")
    return server


def _listen_all(settings: Settings) -> list[socket.socket] | None:
    """The sockets, or None where a port cannot be had (and that was said)."""
    listeners: list[socket.socket] = []
    ports = {"http_port": settings.http_port, "metrics_port": settings.metrics_port}
    for field, port in ports.items():
        if port is None:
            continue
        try:
            listeners.append(listen(settings.host, port))
        except OSError as error:
            for listener in listeners:
                listener.close()
            _say_port_taken(settings, field, error)
            return None
    return listeners


def _say_port_taken(settings: Settings, field: str, error: OSError) -> None:
    port = getattr(settings, field)
    _say(
        f"Cannot listen on {settings.host}:{port}: {error.strerror or error}. Choose another "
        f"with --{field.replace('_', '-')} (LITE_DETR_{field.upper()})"
    )


def _stop_on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_first(number: signal.Signals) -> None:
        stop.set()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
            signal.signal(each, _end_at_once)
        _say(f"{number.name}: finishing what was accepted; once more ends at once")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_first, number)
    return stop


def _renew_on_hangup(core: ServiceCore, access: Access) -> None:
    """SIGHUP: keys, certificate and model are read again from their files."""

    def renew() -> None:
        access.reload()
        core.control.reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, renew)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    """Ends without a word to anybody; the engine sees the doorbell close and ends too."""
    os._exit(_EXIT_SIGNALLED + number)


def _freeze_garbage() -> None:
    """Everything loaded so far stays: the collector need not walk it again and again."""
    gc.collect()
    gc.freeze()


def _url(settings: Settings, port: int) -> str:
    scheme = "http" if settings.tls_certificate_file is None else "https"
    name = _ANY_ADDRESS.get(settings.host, settings.host)
    return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"


def _say(line: str) -> None:
    """A line for the person at the terminal."""
    print(line, file=sys.stderr, flush=True)
