"""The image's health check: exit status 0 if the service in this container is live.

Requests /healthz with the settings of the service. If the service requires client certificates, it
only checks whether the port accepts connections.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from urllib.request import urlopen

_TIMEOUT_SECONDS = 4


def main() -> int:
    """Checks once and returns the exit status."""
    port = os.environ["LITE_DETR_HTTP_PORT"]
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
