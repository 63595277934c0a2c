"""The gRPC adapter around a stand-in detector, on a real port."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.rpc import RpcServer
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import Caller, calling, serving
from tests.support.images import solid_png


@pytest.fixture
def image() -> bytes:
    return solid_png((0, 128, 128), 200, 100)


@pytest.fixture
def standin() -> StandIn:
    return StandIn()


@pytest.fixture
async def server(standin: StandIn) -> AsyncIterator[RpcServer]:
    async with serving(standin.as_detector()) as server:
        yield server


@pytest.fixture
async def caller(server: RpcServer) -> AsyncIterator[Caller]:
    async with calling(server) as caller:
        yield caller
