"""API keys and CORS over HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import make_asgi_app
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Route

from service.access.api_keys import KeyRing, Scope, key_line, new_key
from service.core.model_control import ModelControl
from service.oip import oip_routes
from service.rest import create_app, require_metrics_key
from service.settings import load_settings
from service.transport.route_access import declared_scope
from tests.service.rest.conftest import MakeImage
from tests.service.rest.standin import StandIn

KEYS = {scope: new_key() for scope in Scope}


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    file = tmp_path / "keys"
    file.write_text("\n".join(key_line(scope.value, [scope], key) for scope, key in KEYS.items()))
    return KeyRing(file)


@pytest.fixture
async def guarded(standin: StandIn, ring: KeyRing) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(_app(standin, ring))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


def _bearer(scope: Scope) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[scope]}"}


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz", "/docs", "/openapi.json", "/samples", "/static/page.js"]
)
async def test_probes_and_pages_need_no_key(guarded: httpx.AsyncClient, path: str) -> None:
    assert (await guarded.get(path)).status_code == 200


async def test_without_a_key_nothing_is_detected(
    guarded: httpx.AsyncClient, standin: StandIn, image: MakeImage
) -> None:
    refusal = await guarded.post("/detect", content=image())
    assert refusal.status_code == 401
    assert refusal.headers["www-authenticate"].startswith("Bearer")
    assert refusal.headers["content-type"] == "application/problem+json"
    assert refusal.json()["code"] == "unauthenticated"
    assert refusal.json()["request_id"] == refusal.headers["x-request-id"]
    assert not standin.started.is_set()


async def test_a_key_is_accepted_in_either_header(
    guarded: httpx.AsyncClient, image: MakeImage
) -> None:
    for headers in (_bearer(Scope.DETECT), {"X-API-Key": KEYS[Scope.DETECT]}):
        response = await guarded.post("/detect", content=image(), headers=headers)
        assert response.status_code == 200


async def test_a_metrics_key_gives_access_only_to_metrics(
    guarded: httpx.AsyncClient, image: MakeImage
) -> None:
    headers = _bearer(Scope.METRICS)
    assert (await guarded.get("/metrics", headers=headers)).status_code == 200
    refusal = await guarded.post("/detect", content=image(), headers=headers)
    assert (refusal.status_code, refusal.json()["code"]) == (403, "forbidden")
    assert (await guarded.get("/metrics")).status_code == 401
    assert (await guarded.get("/metrics", headers=_bearer(Scope.DETECT))).status_code == 403


def _app(standin: StandIn, ring: KeyRing | None, root_path: str | None = None) -> FastAPI:
    """All routes of the HTTP port, with a control that can load and unload."""
    settings = load_settings(
        model_control="explicit",
        cors_origins="https://shop.test",
        root_path=root_path,
        trusted_proxies=None if root_path is None else "0.0.0.0/0",
    )
    control = cast(ModelControl, RecordingControl())
    routes = oip_routes(standin.as_detector(), control, settings)
    return create_app(standin.as_detector(), settings, ring, extra_routes=routes)


class RecordingControl:
    """Counts the calls that change the model."""

    def __init__(self) -> None:
        self.calls = 0

    def index(self) -> tuple[()]:
        return ()

    def __getattr__(self, name: str) -> Any:
        async def record(*_arguments: Any, **_options: Any) -> None:
            self.calls += 1

        return record


ROUTE_SCOPES = {
    "/": None,
    "/detect": Scope.DETECT,
    "/docs": None,
    "/healthz": None,
    "/metrics": Scope.METRICS,
    "/openapi.json": None,
    "/readyz": None,
    "/samples": None,
    "/static": None,
    "/swagger": None,
    "/v1/models": Scope.DETECT,
    "/v2": Scope.DETECT,
    "/v2/health/live": None,
    "/v2/health/ready": None,
    "/v2/models/stats": Scope.DETECT,
    "/v2/models/{model}": Scope.DETECT,
    "/v2/models/{model}/config": Scope.DETECT,
    "/v2/models/{model}/infer": Scope.DETECT,
    "/v2/models/{model}/ready": Scope.DETECT,
    "/v2/models/{model}/stats": Scope.DETECT,
    "/v2/models/{model}/versions/{version}": Scope.DETECT,
    "/v2/models/{model}/versions/{version}/config": Scope.DETECT,
    "/v2/models/{model}/versions/{version}/infer": Scope.DETECT,
    "/v2/models/{model}/versions/{version}/ready": Scope.DETECT,
    "/v2/models/{model}/versions/{version}/stats": Scope.DETECT,
    "/v2/repository/index": Scope.DETECT,
    "/v2/repository/models/{model}/load": Scope.ADMIN,
    "/v2/repository/models/{model}/unload": Scope.ADMIN,
    "/v2/{rest:path}": Scope.DETECT,
}


# One route of each scope and kind; `make test-slow` takes all.
_FAST_ROUTES = {"/", "/detect", "/metrics", "/v2/repository/models/{model}/load", "/v2/{rest:path}"}
every_route = pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(route, marks=[] if route in _FAST_ROUTES else [pytest.mark.slow])
        for route in ROUTE_SCOPES
    ],
)


def test_every_route_requires_the_scope_that_is_listed_here(
    standin: StandIn, ring: KeyRing
) -> None:
    declared = {
        cast(str, route.path): declared_scope(route)  # type: ignore[attr-defined]
        for route in _app(standin, ring).router.routes
    }
    assert declared == ROUTE_SCOPES


def test_a_route_that_declares_nothing_requires_an_admin_key() -> None:
    route = Route("/a-route-of-tomorrow", PlainTextResponse())
    assert declared_scope(route) == Scope.ADMIN


def _manglings(path: str) -> Iterator[str]:
    """Spellings of a path that some part of a server might read as that path."""
    yield path
    for tail in ("%0A", "%0D%0A", "%00", "%20", "%09", "%7F", "/", "//", "/.", "/..", ";x", "%2F"):
        yield path + tail
    yield from (f"/{path}", f"//x{path}", f"/.{path}", f"/x/..{path}", f"/%2e{path}")
    yield from (path.upper(), path.title(), path.swapcase())
    yield path.replace("/", "//")
    yield path.replace("/", "%2F", 2).replace("%2F", "/", 1)
    for place in (1, len(path) // 2, len(path) - 1):
        if place < len(path):
            yield f"{path[:place]}%{ord(path[place]):02X}{path[place + 1 :]}"
            yield f"{path[:place]}%0A{path[place:]}"


_VERBS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get", "post", "QUERY")


async def _check_access(
    app: FastAPI, requests: Iterable[tuple[str, str]], more_headers: dict[str, str] | None = None
) -> int:
    """Whatever endpoint responds, the key's scopes include the one that its route requires.

    Returns:
        The number of requests that an endpoint responded to.
    """
    responded: list[BaseRoute] = []
    for route in app.router.routes:
        _record_calls(route, responded)
    count = 0
    transport = httpx.ASGITransport(app, client=("10.0.0.9", 5000))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        for (verb, path), presented in product(requests, (None, Scope.METRICS, Scope.DETECT)):
            responded.clear()
            headers = {} if presented is None else _bearer(presented)
            headers |= more_headers or {}
            await client.request(verb, f"http://service{path}", headers=headers)
            needed = {declared_scope(route) for route in responded}
            assert needed <= {None, presented}, (verb, path, presented)
            count += len(responded)
    return count


@every_route
async def test_no_spelling_of_a_path_is_open_to_a_lesser_key(
    standin: StandIn, ring: KeyRing, pattern: str
) -> None:
    path = re.sub(r"{[a-z:]*}", "m", pattern)
    requests = product(_VERBS, _manglings(path))
    await _check_access(_app(standin, ring), requests)


ROOT = "/vision"


def _manglings_below(path: str) -> Iterator[str]:
    """Spellings of a path below a prefix: of the path, of the prefix, and of what joins them."""
    yield from (ROOT + mangled for mangled in _manglings(path))
    yield from (mangled + path for mangled in _manglings(ROOT))
    yield from (f"{ROOT}{ROOT}{path}", f"{ROOT}/..{path}", f"{ROOT}/x/..{path}", f"/x{ROOT}{path}")
    yield from (f"{ROOT}{path.removeprefix('/')}", f"{ROOT}%2F{path.removeprefix('/')}", path)


@pytest.mark.parametrize(
    "prefix",
    [
        "root path",
        pytest.param("forwarded", marks=pytest.mark.slow),
        pytest.param("forwarded within", marks=[pytest.mark.slow, pytest.mark.family]),
    ],
)
@every_route
async def test_no_spelling_of_a_path_below_a_prefix_is_open_to_a_lesser_key(
    standin: StandIn, ring: KeyRing, pattern: str, prefix: str
) -> None:
    path = re.sub(r"{[a-z:]*}", "m", pattern)
    headers = {
        "root path": {},
        "forwarded": {"X-Forwarded-Prefix": ROOT},
        "forwarded within": {"X-Forwarded-Prefix": f"/outer, {ROOT}, /v2/repository"},
    }[prefix]
    app = _app(standin, ring, root_path=ROOT if prefix == "root path" else "/other")
    requests = product(("GET", "POST"), _manglings_below(path))
    assert await _check_access(app, requests, headers)  # the path below the prefix itself


def _record_calls(route: BaseRoute, responded: list[BaseRoute]) -> None:
    app = route.app  # type: ignore[attr-defined]

    async def recording(scope: Any, receive: Any, send: Any) -> None:
        responded.append(route)
        await app(scope, receive, send)

    route.app = recording  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/detect%0A", "/v2%00", "/%7f", "/a%1fb"])
async def test_a_path_with_a_control_character_is_refused(
    guarded: httpx.AsyncClient, path: str
) -> None:
    response = await guarded.get(path, headers=_bearer(Scope.ADMIN))
    assert response.status_code == 404
    assert "control character" in response.text


async def test_refusals_under_v2_have_the_form_of_the_protocol(
    guarded: httpx.AsyncClient,
) -> None:
    refusal = await guarded.post("/v2/repository/models/m/load", headers=_bearer(Scope.DETECT))
    assert refusal.status_code == 403
    assert set(refusal.json()) == {"error"}


async def test_metrics_on_a_separate_port_require_a_key_at_every_path(
    standin: StandIn, ring: KeyRing
) -> None:
    app = require_metrics_key(make_asgi_app(standin.metrics.registry), ring, standin.metrics)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        for path in ("/", "/metrics", "/healthz"):
            assert (await client.get(path)).status_code == 401
            response = await client.get(path, headers=_bearer(Scope.METRICS))
            assert "lite_detr_images_total" in response.text


async def test_a_configured_origin_is_allowed(guarded: httpx.AsyncClient, image: MakeImage) -> None:
    origin = {"Origin": "https://shop.test"}
    requested = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key",
    }
    preflight = await guarded.options("/detect", headers=origin | requested)
    assert preflight.status_code == 200
    response = await guarded.post(
        "/detect", content=image(), headers=origin | _bearer(Scope.DETECT)
    )
    for each in (preflight, response):
        assert each.headers["access-control-allow-origin"] == "https://shop.test"


async def test_another_origin_is_not_allowed(guarded: httpx.AsyncClient) -> None:
    response = await guarded.get("/healthz", headers={"Origin": "https://evil.test"})
    assert "access-control-allow-origin" not in response.headers


async def test_without_the_setting_no_origin_is_allowed(
    client: httpx.AsyncClient,
) -> None:
    response = await client.get("/healthz", headers={"Origin": "https://shop.test"})
    assert "access-control-allow-origin" not in response.headers
