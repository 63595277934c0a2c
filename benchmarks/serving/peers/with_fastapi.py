"""Plain FastAPI: what one writes in ten lines, decoding and device in a thread of the process."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from benchmarks.serving.peers.detection import HOST, PORT, detect

app = FastAPI()


@app.post("/detect")
async def answer(request: Request) -> Response:
    """One image, without batching."""
    (body,) = await run_in_threadpool(detect, [await request.body()])
    return Response(body, media_type="application/json")


@app.get("/ready")
def ready() -> str:
    """Answers once the server does."""
    return "ready"


if __name__ == "__main__":
    uvicorn.run(app, host=HOST, port=PORT, log_level="error", access_log=False)
