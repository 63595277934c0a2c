"""The REST adapter with the routes of a cloud, around a stand-in detector, without a socket."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.access.api_keys import KeyRing
from service.clouds.deployment import check_paths, settings_for_cloud
from service.rest import create_app
from service.settings import load_settings
from service.transport.http_body import BodyMemory
from tests.service.rest.conftest import MakeImage, image
from tests.service.rest.standin import StandIn

__all__ = ["MakeImage", "image"]

Connect = Callable[..., contextlib.AbstractAsyncContextManager[httpx.AsyncClient]]


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def standin() -> StandIn:
    return StandIn()


@pytest.fixture
def connect(standin: StandIn) -> Connect:
    """Opens a client of a service whose environment has these variables."""

    @contextlib.asynccontextmanager
    async def opened(
        variables: dict[str, str], keys: Path | None = None, **given: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        given = {"max_body_bytes": 1 << 21, "max_files": 3} | given
        cloud = settings_for_cloud(load_settings(**given), given, variables)
        assert cloud.deployment is not None
        detector, settings = standin.as_detector(), cloud.settings
        routes = cloud.deployment.routes(detector, settings, BodyMemory(1 << 24))
        ring = None if keys is None else KeyRing(keys)
        app = create_app(detector, settings, ring, extra_routes=routes)
        check_paths(app.router.routes, routes, cloud.deployment.cloud.title)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client

    return opened
