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
_PORT_VARIABLES = ("LITE_DETR_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT", "AIP_HTTP_PORT", "PORT")
_DEFAULT_PORT, _CLOUD_PORT = "8000", "8080"
_CLOUDS = ("sagemaker", "vertex", "cloud-run")  # of LITE_DETR_CLOUD


def _port() -> str:
    """The HTTP port of the service; addresses that Kubernetes puts into a variable are ignored."""
    values = (os.environ.get(name, "").strip() for name in _PORT_VARIABLES)
    on_cloud = os.environ.get("LITE_DETR_CLOUD") in _CLOUDS
    return next(filter(str.isdecimal, values), _CLOUD_PORT if on_cloud else _DEFAULT_PORT)


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
