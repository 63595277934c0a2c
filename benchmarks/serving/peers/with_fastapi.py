"""Plain FastAPI: decoding and device in a thread of the server process, without batching."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from benchmarks.serving.peers.detection import HOST, PORT, detect

app = FastAPI()


@app.post("/detect")
async def detect_image(request: Request) -> Response:
    """Detects in one image."""
    (body,) = await run_in_threadpool(detect, [await request.body()])
    return Response(body, media_type="application/json")


@app.get("/ready")
def ready() -> str:
    """Returns 200 once the server runs."""
    return "ready"


if __name__ == "__main__":
    uvicorn.run(app, host=HOST, port=PORT, log_level="error", access_log=False)
