"""MLServer: adaptive batching in one process, decoding in threads."""

from __future__ import annotations

import asyncio
import base64

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.serving.peers.detection import (
    HOST,
    MAX_BATCH_SIZE,
    MAX_WAIT_MS,
    PORT,
    detect_in_threads,
)


class Detect(MLModel):
    """Base64 in (the REST interface has no binary tensors), JSON text out."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Runs one batch; MLServer's batcher has concatenated the requests' elements."""
        elements = payload.inputs[0].data.root
        bodies = await asyncio.to_thread(_detect, list(elements))
        output = ResponseOutput(
            name="detections", shape=[len(bodies), 1], datatype="BYTES", data=bodies
        )
        return InferenceResponse(model_name=self.name, outputs=[output])


def _detect(elements: list[str | bytes]) -> list[str]:
    bodies = detect_in_threads([base64.b64decode(element) for element in elements])
    return [body.decode() for body in bodies]


async def _serve() -> None:
    settings = Settings(
        host=HOST,
        http_port=PORT,
        grpc_port=0,  # the benchmark uses HTTP only
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
    )
    model = ModelSettings(
        name="detect",
        implementation=Detect,
        max_batch_size=MAX_BATCH_SIZE,
        max_batch_time=MAX_WAIT_MS / 1000,
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(_serve())
