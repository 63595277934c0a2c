"""BentoML: an image a request, decoded and run in the service's threads.

Without its batching, which takes requests that are lists: for single images it wants a second
service behind the first, and the way there costs more than a batch of this device wins.
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
    """Bytes in, JSON out."""

    @bentoml.api(route="/detect")
    def answer(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict[str, Any]:
        """One image."""
        (body,) = detect([image.read_bytes()])
        answer: dict[str, Any] = orjson.loads(body)
        return answer


if __name__ == "__main__":
    command = [sys.executable, "-m", "bentoml", "serve", f"{__spec__.name}:Detect"]
    os.execv(sys.executable, [*command, "--host", HOST, "--port", str(PORT)])
