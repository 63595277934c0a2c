"""ModelStreamInfer by the public client, which gets responses in a callback."""

from __future__ import annotations

import queue
from typing import Any

import tritonclient.grpc
import tritonclient.grpc.aio

from tests.service.oip.running_service import Served
from tests.service.oip.triton_requests import MODEL, assert_results, grpc_input
from tests.support.images import solid_png

EVERYTHING = {"threshold": "0"}


def test_each_request_of_a_stream_gets_its_own_response_in_order(
    grpc: tritonclient.grpc.InferenceServerClient,
) -> None:
    received: queue.Queue[tuple[Any, Any]] = queue.Queue()
    images = [solid_png((number, 255 - number, 7 * number % 256)) for number in range(40)]
    images[7] = b"\x00\x01nothing"
    grpc.start_stream(callback=lambda result, error: received.put((result, error)))
    try:
        for number, image in enumerate(images):
            grpc.async_stream_infer(
                MODEL, grpc_input(image), request_id=str(number), parameters=EVERYTHING
            )
        results = [received.get(timeout=60) for _ in images]
    finally:
        grpc.stop_stream()
    for number, (image, (result, error)) in enumerate(zip(images, results, strict=True)):
        if number == 7:
            assert result is None
            assert "not an image" in error.message()
        else:
            assert error is None
            assert result.get_response().id == str(number)
            assert_results(result, image)


async def test_the_asynchronous_client_can_stream(service: Served) -> None:
    images = [solid_png((number, 3, 5)) for number in range(5)]

    async def requests():
        for image in images:
            yield {
                "model_name": MODEL,
                "inputs": grpc_input(image),
                "parameters": EVERYTHING,
            }

    async with tritonclient.grpc.aio.InferenceServerClient(service.grpc) as client:
        results = [pair async for pair in client.stream_infer(requests())]
    assert [error for _, error in results] == [None] * len(images)
    for image, (result, _) in zip(images, results, strict=True):
        assert_results(result, image)
