"""The image's health check: exit status 0 if the service in this container is live.

Requests /healthz at the address and port of the service: those of its flags (the arguments of the
container's first process, `lite-detr serve`), of its variables, or of a cloud (docs/clouds.md). If
the service requires client certificates, it only checks whether the port accepts connections. A
port of 0 and flags behind another first process, such as a shell script, cannot be found.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

_TIMEOUT_SECONDS = 4
_OWN_PORT, _OWN_DEFAULT = "LITE_DETR_HTTP_PORT", "8000"
_HOST = "LITE_DETR_HOST"
_TLS, _CLIENT_TLS = "LITE_DETR_TLS_CERTIFICATE_FILE", "LITE_DETR_TLS_CLIENT_CA_FILE"
_CLOUD = "LITE_DETR_CLOUD"
_CLOUD_DEFAULT = "8080"
# The variables that a cloud is recognized by, in this order; the first one names the port.
_CLOUDS = {
    "sagemaker": ("SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_SAFE_PORT_RANGE"),
    "vertex": ("AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE", "AIP_STORAGE_URI"),
    "cloud-run": ("PORT",),
}
_PROGRAMS = frozenset({"lite-detr", "service"})
_COMMANDS = frozenset({"serve", "ray"})
# The variables that these flags override.
_FLAGS = {
    "--http-port": _OWN_PORT,
    "--port": _OWN_PORT,
    "-p": _OWN_PORT,
    "--host": _HOST,
    "--tls-certificate-file": _TLS,
    "--tls-client-ca-file": _CLIENT_TLS,
    "--cloud": _CLOUD,
}
# An address to connect to, for those that stand for all addresses.
_REACHABLE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def _first_process() -> list[str]:
    """The arguments of the container's first process; none if they cannot be read."""
    try:
        return os.fsdecode(Path("/proc/1/cmdline").read_bytes()).split("\0")
    except OSError:
        return []


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    """The variables that the flags of `lite-detr serve` stand for, the last of each.

    Args:
        arguments: of a process; those of another program have no flags.
    """
    found: dict[str, str] = {}
    start = next((place for place, each in enumerate(arguments) if each in _COMMANDS), 0)
    if not any(Path(each).name in _PROGRAMS for each in arguments[:start]):
        return found
    for place, argument in enumerate(arguments[start:], start):
        name, separator, value = argument.partition("=")
        if argument[:2] == "-p" and len(argument) > 2:  # noqa: PLR2004 - -p9000
            name, separator, value = "-p", "=", argument[2:]
        if name in _FLAGS:
            following = arguments[place + 1] if place + 1 < len(arguments) else ""
            found[_FLAGS[name]] = value if separator else following
    return found


def _port(variables: Mapping[str, str]) -> str:
    """The HTTP port of the service; addresses that Kubernetes puts into a variable are ignored."""
    own = _value_of(variables, _OWN_PORT)
    if own.isdecimal():
        return own
    cloud = _value_of(variables, _CLOUD) or "auto"
    if cloud == "auto":
        given = {name for name in variables if _value_of(variables, name)}
        cloud = next((each for each, names in _CLOUDS.items() if given & set(names)), "none")
    if cloud not in _CLOUDS:
        return _OWN_DEFAULT
    return _value_of(variables, _CLOUDS[cloud][0]) or _CLOUD_DEFAULT


def _host(variables: Mapping[str, str]) -> str:
    """An address at which the service can be reached from its container."""
    host = _value_of(variables, _HOST)
    return _REACHABLE.get(host, host)


def _value_of(variables: Mapping[str, str], name: str) -> str:
    return variables.get(name, "").strip()


def _check(variables: Mapping[str, str]) -> None:
    """Checks once.

    Raises:
        OSError, ValueError, HTTPException: if the service is not live.
    """
    host, port = _host(variables), _port(variables)
    if _value_of(variables, _CLIENT_TLS):
        socket.create_connection((host, int(port)), _TIMEOUT_SECONDS).close()
        return
    scheme = "https" if _value_of(variables, _TLS) else "http"
    context = ssl.create_default_context()
    context.check_hostname = False  # the certificate is for the name that clients use
    context.verify_mode = ssl.CERT_NONE
    # Without the proxies of HTTP_PROXY and others, which cannot reach this container.
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=context))
    authority = f"[{host}]" if ":" in host else host
    opener.open(f"{scheme}://{authority}:{port}/healthz", timeout=_TIMEOUT_SECONDS).close()


def main() -> int:
    """Checks once and returns the exit status."""
    try:
        _check({**os.environ, **_flags(_first_process())})
    except (OSError, ValueError, http.client.HTTPException) as error:
        # Refused, timeout, a status other than 2xx, an address that is none, or not HTTP.
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
