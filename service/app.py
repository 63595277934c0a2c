"""The composition root: builds the service, runs it until a signal, and drains it.

start:  listen -> HTTP (not ready) and engines -> engines warm: ready
reload: changed files of API keys and certificates are read again within seconds; SIGHUP reads these
        and the weights again; invalid ones change nothing
stop:   SIGTERM or SIGINT -> not ready -> drain_delay -> port closed -> requests in flight finish
        -> engines stopped -> exit status 0; a second signal exits at once
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

import structlog
import uvloop

from model.weights.info import CheckpointError
from service.access.access import Access
from service.access.api_keys import KeyFileError
from service.access.tls import TlsFileError
from service.build import TORCH, Backend, ServiceCore, open_core
from service.clouds.contract import Deployment
from service.images.allocator import keep_freed_memory
from service.observability.json_stderr import json_stderr
from service.observability.logs import (
    LIFECYCLE,
    configure_logs,
    is_json,
    log_uncaught_exceptions,
)
from service.observability.request_log import TracingUnavailable, open_request_log
from service.servers import (
    PortUnavailable,
    build_app,
    build_http_servers,
    host_name,
    listen_all,
    start_rpc,
    url_of,
)
from service.settings import Settings, SettingsError
from service.signals import Hangups, handle_while_starting, stop_on_signals
from service.supervision.plan import EngineStartError

_EXIT_FAILED = 1
_LAST_RESPONSES_SECONDS = 0.5

_log = structlog.get_logger(__name__)
_lifecycle = logging.getLogger(LIFECYCLE)


def run(
    settings: Settings,
    backend: Backend = TORCH,
    *,
    deployment: Deployment | None = None,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> int:
    """Serves until a signal ends it.

    Args:
        settings: of this deployment.
        backend: which device the engines open.
        deployment: on a cloud; None: on none.
        notes: lines about the settings for the log.
        warnings: the same, as warnings.

    Returns:
        The exit status: 0 after a complete drain; 1 if the start failed or requests were dropped.
    """
    handle_while_starting()
    as_json = is_json(settings.log_format)
    configure_logs(settings.log_level, settings.log_format)
    log_uncaught_exceptions()
    for line in notes:
        _log.info(line)
    for line in warnings:
        _log.warning(line)
    keep_freed_memory()
    with json_stderr() if as_json else contextlib.nullcontext():
        return _run(settings, backend, deployment)


def _run(settings: Settings, backend: Backend, deployment: Deployment | None) -> int:
    try:
        return uvloop.run(_serve(settings, backend, deployment))
    except CheckpointError as error:
        _fail(f"Cannot use the model: {error}")
    except (KeyFileError, TlsFileError) as error:
        _fail(f"Cannot secure the service: {error}")
    except SettingsError as error:
        _fail(f"Cannot use the settings: {error}")
    except PortUnavailable as error:
        _fail(str(error))
    except EngineStartError as error:
        _fail(f"The engine cannot start: {error}")
    except TracingUnavailable as error:
        _fail(f"Cannot send traces: {error}")
    except Exception:
        _log.critical("unexpected error", exc_info=True)
    return _EXIT_FAILED


class _Server(Protocol):
    """A server on one port."""

    @property
    def open_requests(self) -> int:
        """Requests whose clients do not have the whole response yet."""

    async def run_until_drained(self) -> None:
        """Serves until it is drained."""

    def drain(self) -> None:
        """Stops accepting; finishes the requests in flight."""

    def give_up(self) -> None:
        """Stops without waiting for requests."""


async def _serve(settings: Settings, backend: Backend, deployment: Deployment | None) -> int:
    """Starts the service, serves until a signal, and drains.

    Raises:
        CheckpointError: for a model that cannot be used.
        EngineStartError: if an engine cannot start.
        PortUnavailable: if a port cannot be used.
        KeyFileError, TlsFileError: for keys and certificates that cannot be used.
        SettingsError: for paths of a cloud that are also the service's own.
        TracingUnavailable: if tracing is configured but not installed.
    """
    started = time.monotonic()
    stop = stop_on_signals(_print)
    hangups = Hangups(stop)
    access = Access(settings)
    request_log = open_request_log(settings)
    listeners = listen_all(settings)
    servers: list[_Server] = []
    tasks: list[asyncio.Task[None]] = []
    async with AsyncExitStack() as stack:
        # Closed last, as it exports the spans of all requests.
        stack.push_async_callback(asyncio.to_thread, request_log.close)
        for listener in listeners:
            stack.callback(listener.close)
        # After the core: requests that it fails on exit still get their HTTP responses.
        stack.push_async_callback(_end_servers, servers, tasks)
        core = await stack.enter_async_context(open_core(settings, backend))
        hangups.begin(access.reload_in_thread, core.control.reload)
        stack.callback(asyncio.create_task(access.watch()).cancel)
        app = build_app(settings, access, core, request_log, deployment)
        http_servers = build_http_servers(settings, access, core, app, listeners)
        servers += http_servers
        rpc = None
        if settings.grpc_port >= 0:
            rpc = await start_rpc(settings, access, core, request_log)
            servers.append(rpc)
        url = url_of(settings, http_servers[0].port)
        _print(f"Lite DETR Serving listens on {url} and loads the model {core.detector.model.name}")
        for server in http_servers[1:]:
            _print(f"Metrics: {url_of(settings, server.port)}/metrics")
        if rpc is not None:
            services = " and ".join(rpc.services)
            _print(f"gRPC: {host_name(settings)}:{rpc.port}, {services}")
        tasks += [asyncio.create_task(server.run_until_drained()) for server in servers]
        try:
            await _serve_until(stop, core, tasks, url, started)
        finally:
            core.detector.begin_drain()
            dropped = await _drain(settings, core, servers, tasks, delay=stop.is_set())
    if dropped:
        _fail(f"Stopped with {dropped} requests unanswered: the drain took too long")
        return _EXIT_FAILED
    _print("Stopped; all accepted requests were completed")
    return 0


async def _serve_until(
    stop: asyncio.Event,
    core: ServiceCore,
    servers: list[asyncio.Task[None]],
    url: str,
    started: float,
) -> None:
    """Prints when the model is ready, and returns after a signal.

    Raises:
        EngineStartError: if an engine of the first model cannot start.
    """
    stopped = asyncio.create_task(stop.wait())
    try:
        watched: set[asyncio.Future[Any]] = {stopped, core.first_ready, *servers}
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if core.first_ready.done():
            await core.first_ready
            _freeze_garbage()
            _print(f"Ready after {time.monotonic() - started:.1f} s. Try it in a browser, or:")
            _print(f"  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' {url}/detect")
        await asyncio.wait({stopped, *servers}, return_when=asyncio.FIRST_COMPLETED)
        for server in servers:
            if server.done():  # only after an error, which is raised here
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
    """Waits for load balancers to notice, closes the ports and finishes requests in flight.

    Returns:
        How many requests were not completed in time.
    """
    if delay and settings.drain_delay_seconds:
        _print(f"Draining: still serving for {settings.drain_delay_seconds:g} s")
        await asyncio.sleep(settings.drain_delay_seconds)
    deadline = time.monotonic() + settings.drain_timeout_seconds
    for server in servers:
        server.drain()
    await asyncio.wait(tasks, timeout=settings.drain_timeout_seconds)
    open_requests = sum(server.open_requests for server in servers)
    images = await core.detector.drain(max(0.0, deadline - time.monotonic()))
    return open_requests or images


async def _end_servers(servers: list[_Server], tasks: list[asyncio.Task[None]]) -> None:
    """Stops servers that did not drain in time."""
    if tasks:
        await asyncio.wait(tasks, timeout=_LAST_RESPONSES_SECONDS)
        for server in servers:
            server.give_up()
        await asyncio.wait(tasks, timeout=_LAST_RESPONSES_SECONDS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _freeze_garbage() -> None:
    """Excludes everything loaded so far from garbage collection: it is never freed."""
    gc.collect()
    gc.freeze()


def _print(line: str) -> None:
    """Reports to the person who started the service: text on a terminal, otherwise JSON."""
    _lifecycle.info(line)


def _fail(line: str) -> None:
    """Reports why the service cannot start, or did not stop as it should."""
    _lifecycle.error(line)
