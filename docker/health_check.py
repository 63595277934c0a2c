"""The image's health check: exit status 0 if the service in this container is live.

Requests /healthz on the port of the service, which a cloud may name (docs/clouds.md). If the
service requires client certificates, it only checks whether the port accepts connections.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from urllib.request import urlopen

_TIMEOUT_SECONDS = 4
_OWN_PORT, _OWN_DEFAULT = "LITE_DETR_HTTP_PORT", "8000"
_CLOUD_DEFAULT = "8080"
# The variables that a cloud is recognized by, in this order; the first one names the port.
_CLOUDS = {
    "sagemaker": ("SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_SAFE_PORT_RANGE"),
    "vertex": ("AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE", "AIP_STORAGE_URI"),
    "cloud-run": ("PORT",),
}


def _port() -> str:
    """The HTTP port of the service; addresses that Kubernetes puts into a variable are ignored."""
    own = _value_of(_OWN_PORT)
    if own.isdecimal():
        return own
    cloud = _value_of("LITE_DETR_CLOUD") or "auto"
    if cloud == "auto":
        cloud = next((each for each in _CLOUDS if any(map(_value_of, _CLOUDS[each]))), "none")
    if cloud not in _CLOUDS:
        return _OWN_DEFAULT
    return _value_of(_CLOUDS[cloud][0]) or _CLOUD_DEFAULT


def _value_of(variable: str) -> str:
    return os.environ.get(variable, "").strip()


def main() -> int:
    """Checks once and returns the exit status."""
    port = _port()
    try:
        if os.environ.get("LITE_DETR_TLS_CLIENT_CA_FILE"):
            socket.create_connection(("127.0.0.1", int(port)), _TIMEOUT_SECONDS).close()
            return 0
        scheme = "https" if os.environ.get("LITE_DETR_TLS_CERTIFICATE_FILE") else "http"
        context = ssl.create_default_context()
        context.check_hostname = False  # the certificate is for the name that clients use
        context.verify_mode = ssl.CERT_NONE
        url = f"{scheme}://127.0.0.1:{port}/healthz"
        urlopen(url, timeout=_TIMEOUT_SECONDS, context=context).close()
    except OSError as error:  # refused, timeout, or a status other than 2xx
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
