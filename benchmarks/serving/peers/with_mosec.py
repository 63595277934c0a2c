"""mosec: a batching worker process per CPU, which decodes; the workers share the device.

One stage instead of two: passing decoded pixels from stage to stage costs more than it saves.
"""

from __future__ import annotations

import sys

from mosec import Server, Worker

from benchmarks.serving.peers.detection import CPUS, HOST, MAX_BATCH_SIZE, MAX_WAIT_MS, PORT, detect


class Detect(Worker):
    """Image bytes in, JSON bytes out."""

    def deserialize(self, data: bytes) -> bytes:
        """Returns the body, which is the image."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """Returns the JSON bytes unchanged."""
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        """Runs one batch."""
        return detect(data)


if __name__ == "__main__":
    sys.argv[1:] = ["--address", HOST, "--port", str(PORT), "--log-level", "error"]
    server = Server()
    server.append_worker(
        Detect, num=CPUS, max_batch_size=MAX_BATCH_SIZE, max_wait_time=int(MAX_WAIT_MS)
    )
    server.run()
