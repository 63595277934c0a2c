"""The route of a request in logs and traces, whatever the name of its model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from service.observability.request_log import RequestLog
from service.observability.request_scope import RequestScope
from service.oip import oip_routes
from service.rest import create_app
from tests.service.oip.grpc_caller import standing_settings
from tests.service.oip.running_service import StandInControl
from tests.service.rest.standin import StandIn


class Watching(RequestLog):
    """Keeps the scopes of all requests."""

    def __init__(self) -> None:
        super().__init__()
        self.scopes: list[RequestScope] = []

    @contextmanager
    def track(self, *args: Any, **kwargs: Any) -> Iterator[RequestScope]:
        with super().track(*args, **kwargs) as scope:
            yield scope
        self.scopes.append(scope)


@pytest.mark.parametrize("name", ["m", "models", "v2", "versions", "infer", "v", "codes"])
async def test_the_route_is_the_pattern_for_every_name_of_a_model(name: str) -> None:
    watching, detector, settings = Watching(), StandIn().as_detector(), standing_settings()
    routes = oip_routes(detector, StandInControl(), settings)
    app = create_app(detector, settings, request_log=watching, extra_routes=routes)
    model, version = "/v2/models/{model}", "/versions/{version}"
    sent = {
        "POST": [f"{model}/infer", f"{model}{version}/infer", "/v2/repository/models/{model}/load"],
        "GET": [model, f"{model}{version}", f"{model}/ready", f"{model}/config"],
        "PUT": [f"{model}/infer"],  # 405
    }
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        for method, patterns in sent.items():
            for pattern in patterns:
                await client.request(method, pattern.format(model=name, version=name))
    expected = [pattern for patterns in sent.values() for pattern in patterns]
    assert [scope.route for scope in watching.scopes] == expected
