"""Addresses of a service, in the forms in which people write them."""

from __future__ import annotations

from urllib.parse import urlsplit

_SECURE = {"https": True, "grpcs": True, "http": False, "grpc": False}
_PORTS = {"https": 443, "http": 80}


def http_url(address: object, *, tls: bool = False) -> str:
    """Returns the base URL of a service.

    Args:
        address: a URL, or host:port.
        tls: the scheme of an address without one: https instead of http.

    Raises:
        ValueError: if it is neither; the message says what is expected.
    """
    text = str(address).strip()
    if "://" not in text:
        text = f"{'https' if tls else 'http'}://{text}"
    scheme, host, _, path = _split(text)
    if scheme not in {"http", "https"} or not host:
        raise ValueError(
            f"{address!r} is not the address of an HTTP service, such as http://localhost:8000"
        )
    del path  # of a proxy that serves the service below a path
    return text


def grpc_target(address: object) -> tuple[str, bool]:
    """Returns the target of a gRPC channel, and whether the address requires TLS.

    Args:
        address: host:port, a URL without a path, or a name in gRPC's own syntax (dns:, unix:).

    Raises:
        ValueError: if it is none of them; the message says what is expected.
    """
    text = str(address).strip()
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if not text or any(letter.isspace() for letter in text):
        raise ValueError(
            f"{address!r} is not the address of a gRPC service, such as localhost:8001"
        )
    if scheme not in _SECURE:  # gRPC resolves these itself
        return text, False
    _, host, port, path = _split(text)
    if not host or path.strip("/"):
        raise ValueError(
            f"{address!r} is not the address of a gRPC service, such as localhost:8001: gRPC "
            "needs a host and a port, without a path"
        )
    port = port or _PORTS.get(scheme)
    if port is None:
        raise ValueError(f"{address!r} has no port; the default of the service is 8001")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", _SECURE[scheme]


def _split(text: str) -> tuple[str, str, int | None, str]:
    """Returns scheme, host, port and path of a URL.

    Raises:
        ValueError: if the host or the port is invalid.
    """
    try:
        parts = urlsplit(text)
        return parts.scheme.lower(), parts.hostname or "", parts.port, parts.path
    except ValueError as error:
        raise ValueError(f"{text!r} is not an address: {error}") from None
