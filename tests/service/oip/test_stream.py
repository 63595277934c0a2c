"""ModelStreamInfer by the public client, which hears of its answers in a callback."""

from __future__ import annotations

import queue
from typing import Any

import tritonclient.grpc
import tritonclient.grpc.aio

from tests.service.oip.running_service import Served
from tests.service.oip.triton_requests import MODEL, assert_answers, grpc_input
from tests.support.images import solid_png

EVERYTHING = {"threshold": "0"}


def test_a_stream_of_many_requests_gets_each_its_own_answer_in_order(
    grpc: tritonclient.grpc.InferenceServerClient,
) -> None:
    told: queue.Queue[tuple[Any, Any]] = queue.Queue()
    photos = [solid_png((number, 255 - number, 7 * number % 256)) for number in range(40)]
    photos[7] = b"\x00\x01nothing"
    grpc.start_stream(callback=lambda result, error: told.put((result, error)))
    try:
        for number, photo in enumerate(photos):
            grpc.async_stream_infer(
                MODEL, grpc_input(photo), request_id=str(number), parameters=EVERYTHING
            )
        heard = [told.get(timeout=60) for _ in photos]
    finally:
        grpc.stop_stream()
    for number, (photo, (result, error)) in enumerate(zip(photos, heard, strict=True)):
        if number == 7:
            assert result is None
            assert "not an image" in error.message()
        else:
            assert error is None
            assert result.get_response().id == str(number)
            assert_answers(result, photo)


async def test_the_asynchronous_client_streams_too(service: Served) -> None:
    photos = [solid_png((number, 3, 5)) for number in range(5)]

    async def requests():
        for photo in photos:
            yield {
                "model_name": MODEL,
                "inputs": grpc_input(photo),
                "parameters": EVERYTHING,
            }

    async with tritonclient.grpc.aio.InferenceServerClient(service.grpc) as client:
        heard = [pair async for pair in client.stream_infer(requests())]
    assert [error for _, error in heard] == [None] * len(photos)
    for photo, (result, _) in zip(photos, heard, strict=True):
        assert_answers(result, photo)
