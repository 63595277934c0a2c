"""mosec: a batching worker a CPU, each a process that decodes; they take turns on the device.

One stage rather than two: handing decoded pixels from a stage to the next costs more than it wins.
"""

from __future__ import annotations

import sys

from mosec import Server, Worker

from benchmarks.serving.peers.detection import CPUS, HOST, MAX_BATCH_SIZE, MAX_WAIT_MS, PORT, detect


class Detect(Worker):
    """Bytes in, bytes out."""

    def deserialize(self, data: bytes) -> bytes:
        """The body is the image."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """The answer is JSON already."""
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        """One batch."""
        return detect(data)


if __name__ == "__main__":
    sys.argv[1:] = ["--address", HOST, "--port", str(PORT), "--log-level", "error"]
    server = Server()
    server.append_worker(
        Detect, num=CPUS, max_batch_size=MAX_BATCH_SIZE, max_wait_time=int(MAX_WAIT_MS)
    )
    server.run()
