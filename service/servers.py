"""The servers of a service: the HTTP application of all adapters, the gRPC server, the ports."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from starlette.routing import BaseRoute

from service.access.access import Access
from service.build import ServiceCore
from service.clouds.contract import Deployment
from service.clouds.deployment import check_paths
from service.label_studio import label_studio_routes
from service.label_studio.routes import HEALTH_PATH as LABEL_STUDIO_HEALTH
from service.observability.request_log import RequestLog
from service.oip import InferenceService, oip_routes
from service.rest import create_app, create_metrics_app, require_metrics_key
from service.rpc import RpcOptions, RpcServer
from service.settings import Settings
from service.transport.http_body import BodyMemory
from service.transport.http_server import HttpServer, listen

_ANY_ADDRESS = {"0.0.0.0": "localhost", "::": "localhost"}


class PortUnavailable(Exception):
    """A port or the host of the settings cannot be used; the text names the setting."""

    def __init__(self, settings: Settings, field: str, error: OSError) -> None:
        """Takes the settings, the field of the port, and why it cannot be used."""
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else str(error)
        # Numbers below 0 are those of resolving a name.
        cause = "host" if number < 0 or number == errno.EADDRNOTAVAIL else field
        super().__init__(
            f"Cannot listen on {settings.host}:{getattr(settings, field)}: {reason}. "
            f"Choose another with --{cause.replace('_', '-')} (LITE_DETR_{cause.upper()})"
        )


def build_app(
    settings: Settings,
    access: Access,
    core: ServiceCore,
    request_log: RequestLog,
    deployment: Deployment | None,
) -> Any:
    """Builds the HTTP application, with the routes of all adapters.

    Raises:
        SettingsError: for paths of a cloud that are also the service's own, and for a token for
            Label Studio that cannot be read.
    """
    detector = core.detector
    bodies = BodyMemory(settings.max_bodies_bytes)
    routes = oip_routes(detector, core.control, settings, bodies)
    routes += label_studio_routes(detector, settings, bodies)
    probes = [LABEL_STUDIO_HEALTH] if settings.label_studio else []
    cloud: list[BaseRoute] = []
    if deployment is not None:
        cloud = deployment.routes(detector, settings, bodies)
        probes += filter(None, [deployment.health_path])
    app = create_app(
        detector, settings, access.keys, request_log, [*routes, *cloud], bodies, probes
    )
    if deployment is not None:
        check_paths(app.router.routes, cloud, deployment.cloud.title)
    return app


def build_http_servers(
    settings: Settings,
    access: Access,
    core: ServiceCore,
    app: Any,
    listeners: list[socket.socket],
) -> list[HttpServer]:
    """Builds the HTTP server and, if it has its own port, that of the metrics."""
    detector = core.detector
    apps: list[Any] = [app]
    if settings.metrics_port is not None:
        metrics = create_metrics_app(detector.metrics)
        apps.append(require_metrics_key(metrics, access.keys, detector.metrics))
    return [
        HttpServer(app, settings, sock, access.tls_context)
        for app, sock in zip(apps, listeners, strict=True)
    ]


async def start_rpc(
    settings: Settings, access: Access, core: ServiceCore, request_log: RequestLog
) -> RpcServer:
    """Starts the gRPC server.

    Raises:
        PortUnavailable: if its port cannot be used.
        TlsFileError: for certificate files that cannot be used.
    """
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
            max_tiles=settings.max_tiles,
            max_concurrent_calls=settings.max_connections,
            receive_seconds=settings.body_max_seconds,
            max_connections=settings.max_connections,
            max_idle_seconds=settings.grpc_max_idle_seconds,
            handshake_seconds=settings.header_timeout_seconds,
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
        raise PortUnavailable(settings, "grpc_port", error) from error
    return server


def listen_all(settings: Settings) -> list[socket.socket]:
    """Opens the sockets of HTTP and, if they have their own port, of the metrics.

    Raises:
        PortUnavailable: if a port cannot be used; none is open then.
    """
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
            raise PortUnavailable(settings, field, error) from error
    return listeners


def host_name(settings: Settings) -> str:
    """The host to connect to."""
    return _ANY_ADDRESS.get(settings.host, settings.host)


def url_of(settings: Settings, port: int) -> str:
    """The URL of a port, with a name that also works where the service listens on all addresses."""
    scheme = "http" if settings.tls_certificate_file is None else "https"
    name = host_name(settings)
    return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"
