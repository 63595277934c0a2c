"""How the gRPC server is set up: filled from the settings by whoever builds it."""

from __future__ import annotations

from dataclasses import dataclass

from service.access.api_keys import KeyRing
from service.access.tls import TlsFiles


@dataclass(frozen=True)
class RpcOptions:
    """What one gRPC server allows, and how it keeps its connections."""

    host: str
    port: int  # 0 picks a free one
    max_message_bytes: int  # of the images in one request; their envelope comes on top
    max_image_pixels: int  # told to clients; the Detector holds it
    max_images: int  # in one batch
    max_concurrent_calls: int = 1024  # more are refused: each may hold a whole message
    images_in_flight: int = 8  # of one call: enough for a batch, too few to crowd out others
    keepalive_seconds: float = 60.0  # a silent connection is probed this often
    max_connection_age_seconds: float = 3600.0  # then the client connects anew; 0: never
    drain_timeout_seconds: float = 60.0  # for accepted calls, once `RpcServer.drain` was called
    keys: KeyRing | None = None  # that calls must show; None: no key is asked for
    tls: TlsFiles | None = None
