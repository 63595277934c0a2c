"""The configuration of the gRPC server; `service.servers` fills it from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from service.access.api_keys import KeyRing
from service.access.tls import TlsFiles


@dataclass(frozen=True)
class RpcOptions:
    """Address, limits, keepalive, keys and certificate of one gRPC server."""

    host: str
    port: int  # 0 picks a free one
    max_message_bytes: int  # of the images in one request, without the rest of the message
    max_image_pixels: int  # only reported to clients; the Detector checks it
    max_images: int  # in one batch
    max_tiles: int  # of one image; only reported to clients
    max_concurrent_calls: int = 1024  # further calls are refused: each may hold a whole message
    receive_seconds: float = 300.0  # in which the request of a unary call must arrive
    images_in_flight: int = 8  # of one call: enough for a batch, few enough for other clients
    keepalive_seconds: float = 60.0  # interval of keepalive pings on an idle connection
    max_connections: int = 1024  # further ones are closed
    max_idle_seconds: float = 10.0  # then a connection without calls is closed; clients reconnect
    handshake_seconds: float = 10.0  # for TLS and the first HTTP/2 frames of a connection
    max_connection_age_seconds: float = 3600.0  # then the client must reconnect; 0: unlimited
    drain_timeout_seconds: float = 60.0  # for accepted calls, once `RpcServer.drain` was called
    keys: KeyRing | None = None  # that calls must present; None: no key is required
    tls: TlsFiles | None = None
