"""Large bodies: counted while they are decompressed, and read outside the event loop's thread."""

from __future__ import annotations

import base64
import json
import os
import threading
import zlib
from typing import Any

import pytest

from service.errors import Overloaded
from service.oip import grpc_service
from service.oip.grpc_messages import read_infer_request
from service.oip.http_codec import read_request
from service.oip.pb import grpc_service_pb2 as pb
from service.oip.request import InferRequest
from service.transport.compression import inflate_body
from service.transport.http_body import BodyMemory
from service.transport.http_request import RequestRefused
from tests.service.oip.grpc_caller import asking, infer_request, standing
from tests.service.oip.running_service import served
from tests.service.oip.test_http_codec import IMAGE, post, tensor
from tests.service.rest.standin import StandIn
from tests.support.images import solid_png

MIB = 1 << 20


@pytest.mark.parametrize("num_bytes", [0, 1, 200_000, MIB, 3 * MIB + 1])
@pytest.mark.parametrize("compressible", [True, False])
async def test_a_decompressed_body_is_counted(num_bytes: int, compressible: bool) -> None:
    data = bytes(num_bytes) if compressible else os.urandom(num_bytes)
    with BodyMemory(8 * MIB).account() as account:
        inflated = await inflate_body(zlib.compress(data), "deflate", 4 * MIB, account)
        assert inflated == data
        assert account.held_bytes == num_bytes


async def test_a_body_that_fills_the_memory_is_not_decompressed_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bomb = zlib.compress(bytes(64 * MIB))
    memory, produced = BodyMemory(4 * MIB), 0
    decompress = zlib.decompressobj

    class Counted:
        def __init__(self, wbits: int) -> None:
            self._stream = decompress(wbits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

        def decompress(self, *arguments: Any) -> bytes:
            nonlocal produced
            part = self._stream.decompress(*arguments)
            produced += len(part)
            return part

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    with memory.account() as account, pytest.raises(Overloaded):
        await inflate_body(bomb, "deflate", 64 * MIB, account)
    assert produced <= 5 * MIB
    with memory.account() as account, pytest.raises(RequestRefused, match="inflates to more"):
        await inflate_body(bomb, "deflate", 3 * MIB, account)
    assert produced <= 10 * MIB
    with memory.account() as account:
        account.take(4 * MIB)  # both have released theirs


def test_large_json_is_read_outside_the_event_loops_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []

    def recording(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return read_request(*arguments)

    monkeypatch.setattr("service.oip.http_routes.read_request", recording)
    image = base64.b64encode(IMAGE).decode()
    small = json.dumps({"inputs": [tensor(data=[image], parameters=None)]}).encode()
    large = small + b" " * 100_000
    with served() as service:
        loop_thread = service.run(_thread())
        assert post(service, small).status_code == 200
        assert post(service, large).status_code == 200
    assert threads[0] == loop_thread
    assert threads[1] != loop_thread


async def _thread() -> int:
    return threading.get_ident()


async def test_a_large_grpc_message_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding base64 of 64 MiB takes a second, in which nothing else would be answered."""
    threads: list[int] = []

    def recorded(message: pb.ModelInferRequest, max_images: int) -> InferRequest:
        threads.append(threading.get_ident())
        return read_infer_request(message, max_images)

    monkeypatch.setattr(grpc_service, "read_infer_request", recorded)
    async with standing(StandIn()) as server, asking(server) as caller:
        for num_bytes in (0, 400_000):
            await caller.infer(infer_request(solid_png((0, 128, 128), 200, 100) + bytes(num_bytes)))
    small, large = threads
    assert small == threading.get_ident() != large
