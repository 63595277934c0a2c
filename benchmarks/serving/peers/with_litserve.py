"""LitServe: a batching worker process per CPU, which decodes; the workers share the device."""

from __future__ import annotations

import base64

import litserve
from fastapi import Response

from benchmarks.serving.peers.detection import CPUS, HOST, MAX_BATCH_SIZE, MAX_WAIT_MS, PORT, detect


class Detect(litserve.LitAPI):
    """Image bytes in, JSON bytes out."""

    def setup(self, device: str) -> None:
        """Does nothing: the device exists already."""

    def decode_request(self, request: dict[str, str]) -> bytes:
        """Base64 in JSON: LitServe passes parsed JSON, not raw bodies, to its workers."""
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Returns the list unchanged."""
        return inputs

    def predict(self, x: list[bytes]) -> list[bytes]:
        """Runs one batch."""
        return detect(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Returns the list unchanged."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Wraps the JSON bytes."""
        return Response(output, media_type="application/json")


if __name__ == "__main__":
    api = Detect(
        max_batch_size=MAX_BATCH_SIZE, batch_timeout=MAX_WAIT_MS / 1000, api_path="/detect"
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=CPUS, fast_queue=True)
    server.run(host=HOST, port=PORT, log_level="error", generate_client_file=False)
