"""The image's health check: is the process worth keeping? Exit status 0 says yes.

Asks /healthz of the service in the same container, with the settings that the service has. Where
it asks clients for certificates, only whether it takes connections can be seen from here.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from urllib.request import urlopen

_TIMEOUT_SECONDS = 4


def main() -> int:
    """Asks once; the exit status."""
    port = os.environ["LITE_DETR_HTTP_PORT"]
    try:
        if os.environ.get("LITE_DETR_TLS_CLIENT_CA_FILE"):
            socket.create_connection(("127.0.0.1", int(port)), _TIMEOUT_SECONDS).close()
            return 0
        scheme = "https" if os.environ.get("LITE_DETR_TLS_CERTIFICATE_FILE") else "http"
        itself = ssl.create_default_context()
        itself.check_hostname = False  # the certificate is for the name that clients use
        itself.verify_mode = ssl.CERT_NONE
        url = f"{scheme}://127.0.0.1:{port}/healthz"
        urlopen(url, timeout=_TIMEOUT_SECONDS, context=itself).close()
    except OSError as error:  # refused, too slow, or an answer other than 200
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
