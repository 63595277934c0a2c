"""LitServe: a batching worker a CPU, each a process that decodes; they take turns on the device."""

from __future__ import annotations

import base64

import litserve
from fastapi import Response

from benchmarks.serving.peers.detection import CPUS, HOST, MAX_BATCH_SIZE, MAX_WAIT_MS, PORT, detect


class Detect(litserve.LitAPI):
    """Bytes in, bytes out."""

    def setup(self, device: str) -> None:
        """The fake device is there already."""

    def decode_request(self, request) -> bytes:
        """Base64 in JSON: it hands parsed JSON to its workers, and no raw bodies."""
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Batches are lists."""
        return inputs

    def predict(self, x: list[bytes]) -> list[bytes]:
        """One batch."""
        return detect(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Batches are lists."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """The answer is JSON already."""
        return Response(output, media_type="application/json")


if __name__ == "__main__":
    api = Detect(
        max_batch_size=MAX_BATCH_SIZE, batch_timeout=MAX_WAIT_MS / 1000, api_path="/detect"
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=CPUS, fast_queue=True)
    server.run(host=HOST, port=PORT, log_level="error", generate_client_file=False)
