"""BentoML: each request is decoded and run in the service's threads, without batching.

BentoML batches requests that are lists. For single images it requires a second service behind the
first, and the call between them costs more than batching saves on this device.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import bentoml
import orjson
from bentoml.validators import ContentType

from benchmarks.serving.peers.detection import CPUS, HOST, PORT, detect


@bentoml.service(
    threads=CPUS * 4,
    workers=1,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Detect:
    """Image bytes in, JSON out."""

    @bentoml.api(route="/detect")
    def run(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict[str, Any]:
        """Detects in one image."""
        (body,) = detect([image.read_bytes()])
        result: dict[str, Any] = orjson.loads(body)
        return result


if __name__ == "__main__":
    command = [sys.executable, "-m", "bentoml", "serve", f"{__spec__.name}:Detect"]
    os.execv(sys.executable, [*command, "--host", HOST, "--port", str(PORT)])
