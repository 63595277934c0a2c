"""Runs the service on a Ray cluster until a signal, then stops it without losing requests.

start: Ray -> proxies -> replicas with their engines -> ready
stop:  SIGTERM or SIGINT -> no new requests -> replicas finish theirs -> proxies and Ray end
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import ray
import structlog
from ray import serve

from service.build import TORCH, Backend
from service.observability.logs import LIFECYCLE, configure_logs
from service.ray_serve.deployment import build_application
from service.ray_serve.grpc_proxy import IMPORT_PATH
from service.ray_serve.options import RayOptions
from service.ray_serve.proxy import ProxyLimits, proxy_variables
from service.settings import Settings

_EXIT_FAILED = 1
_EXIT_SIGNALLED = 128  # plus the signal's number, as shells do
_NAMESPACE = "lite-detr"
# A cluster that this command starts; set variables take precedence.
_CLUSTER_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # sends nothing to Ray's developers
    "RAY_DEDUP_LOGS": "0",  # every log line counts
}

_log = structlog.get_logger(__name__)
_lifecycle = logging.getLogger(LIFECYCLE)


class _Interrupted(BaseException):
    """A signal came while the service started."""


def run(
    settings: Settings,
    options: RayOptions,
    backend: Backend = TORCH,
    *,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> int:
    """Serves until a signal ends it.

    Args:
        settings: of the deployment.
        options: of Ray.
        backend: which device the engines open.
        notes: lines about the settings for the log.
        warnings: the same, as warnings.

    Returns:
        The exit status: 0 after a complete stop; 1 if the start failed.

    Raises:
        SettingsError: for settings that do not suit Ray.
    """
    configure_logs(settings.log_level, settings.log_format)
    for line in notes:
        _log.info(line)
    for line in warnings:
        _log.warning(line)
    application = build_application(settings, options, backend)
    signals = _Signals()
    signals.handle()
    try:
        return _serve(settings, options, application, signals)
    except _Interrupted:
        return 0
    except Exception as error:
        _lifecycle.error(f"Cannot serve with Ray: {type(error).__name__}: {error}")
        _log.debug("the start failed", exc_info=True)
        return _EXIT_FAILED
    finally:
        ray.shutdown()


def _serve(settings: Settings, options: RayOptions, application: Any, signals: _Signals) -> int:
    started = time.monotonic()
    for name, value in _CLUSTER_VARIABLES.items():
        os.environ.setdefault(name, value)
    os.environ.update(proxy_variables(ProxyLimits.of(settings)))
    ray.init(
        address=options.address or "local",
        namespace=_NAMESPACE,
        logging_level=logging.WARNING,
        **({} if options.address else {"include_dashboard": False}),
    )
    signals.handle()
    serve.start(
        http_options={
            "host": settings.host,
            "port": settings.http_port,
            "keep_alive_timeout_s": settings.keep_alive_timeout_seconds,
        },
        grpc_options=None
        if settings.grpc_port < 0
        else {"port": settings.grpc_port, "grpc_servicer_functions": [IMPORT_PATH]},
    )
    _lifecycle.info(f"Lite DETR Serving starts {options.min_replicas} replicas with Ray Serve")
    try:
        serve.run(application, name=options.app_name, route_prefix="/")
        url = f"http://{settings.host}:{settings.http_port}"
        _lifecycle.info(f"Ready after {time.monotonic() - started:.1f} s: {url}")
        if settings.grpc_port >= 0:
            _lifecycle.info(f"gRPC: port {settings.grpc_port} of all addresses")
        signals.wait()
        _lifecycle.info("Stopping: the replicas finish their requests")
    finally:
        serve.delete(options.app_name)
        if options.address is None:
            serve.shutdown()
    _lifecycle.info("Stopped; all accepted requests were completed")
    return 0


class _Signals:
    """SIGTERM and SIGINT: the first one stops the service, the second one exits at once."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._ready = False

    def handle(self) -> None:
        """Installs the handlers; `ray.init` replaces them by its own."""
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._on_signal)

    def wait(self) -> None:
        """Returns after the first signal."""
        self._ready = True
        self.stop.wait()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.stop.is_set():
            os._exit(_EXIT_SIGNALLED + number)
        self.stop.set()
        if not self._ready:
            raise _Interrupted
