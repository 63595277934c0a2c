"""MLServer: its adaptive batching in one process, decoding in threads."""

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
    """Base64 in (its REST interface has no binary tensors), JSON text out."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One batch: its batcher has put the requests' elements behind one another."""
        elements = payload.inputs[0].data.root
        answers = await asyncio.to_thread(_detect, list(elements))
        output = ResponseOutput(
            name="answer", shape=[len(answers), 1], datatype="BYTES", data=answers
        )
        return InferenceResponse(model_name=self.name, outputs=[output])


def _detect(elements: list[str | bytes]) -> list[str]:
    answers = detect_in_threads([base64.b64decode(element) for element in elements])
    return [answer.decode() for answer in answers]


async def _serve() -> None:
    settings = Settings(
        host=HOST,
        http_port=PORT,
        grpc_port=0,  # asked over HTTP alone
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
