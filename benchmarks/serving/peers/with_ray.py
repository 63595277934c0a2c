"""Ray Serve: one replica with Ray's batching decorator, decoding in threads."""

from __future__ import annotations

import asyncio
import time

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.serving.peers.detection import (
    HOST,
    MAX_BATCH_SIZE,
    MAX_WAIT_MS,
    PORT,
    detect_in_threads,
)


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Detect:
    """Image bytes in, JSON bytes out."""

    @serve.batch(
        max_batch_size=MAX_BATCH_SIZE,
        batch_wait_timeout_s=MAX_WAIT_MS / 1000,
        max_concurrent_batches=2,
    )
    async def run(self, files: list[bytes]) -> list[bytes]:
        """Runs one batch."""
        return await asyncio.to_thread(detect_in_threads, files)

    async def __call__(self, request: Request) -> Response:
        """Detects in one image."""
        body = await self.run(await request.body())
        return Response(body, media_type="application/json")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": HOST, "port": PORT})
    serve.run(Detect.bind(), route_prefix="/detect", name="detect")
    while True:
        time.sleep(3600)
