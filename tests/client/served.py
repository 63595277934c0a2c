"""Serves the fake device over HTTP and gRPC: python -m tests.client.served.

Prints the two ports and serves until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

from service.observability.logs import configure_logs
from service.rest import create_app
from service.rpc import RpcOptions, RpcServer
from service.transport.http_server import HttpServer, listen
from tests.support.fake_service import fake_settings, open_fake_detector


async def serve() -> None:
    settings = fake_settings(fake_error_colour="ff0000", max_image_pixels=1_000_000)
    listener = listen("127.0.0.1", 0)
    async with open_fake_detector(settings) as detector:
        http = HttpServer(create_app(detector, settings), settings, listener)
        rpc = RpcServer(
            detector,
            RpcOptions(
                "127.0.0.1",
                0,
                max_message_bytes=settings.max_body_bytes,
                max_image_pixels=1_000_000,
                max_images=settings.max_files,
                max_tiles=settings.max_tiles,
            ),
        )
        await rpc.start()
        serving = asyncio.create_task(http.run_until_drained())
        print(http.port, rpc.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        http.drain()
        await asyncio.gather(serving, rpc.stop(10))


if __name__ == "__main__":
    configure_logs("error", "json")
    uvloop.run(serve())
