"""API keys and CORS over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import make_asgi_app

from service.access.api_keys import KeyRing, Scope, key_line, new_key
from service.rest import create_app, require_metrics_key
from service.rest.api_key_middleware import scope_of_path
from service.settings import load_settings
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
    app = create_app(standin.as_detector(), load_settings(cors_origins="https://shop.test"), ring)
    transport = httpx.ASGITransport(app)
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


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/detect", Scope.DETECT),
        ("/v1/models", Scope.DETECT),
        ("/v2/models/m/infer", Scope.DETECT),
        ("/v2/repository/index", Scope.DETECT),
        ("/v2/repository/models/m/load", Scope.ADMIN),
        ("/v2/repository/models/m/unload", Scope.ADMIN),
        ("/v2/health/ready", None),
        ("/metrics", Scope.METRICS),
        ("/metrics/", Scope.METRICS),
        ("/a-route-of-tomorrow", Scope.DETECT),
        ("/healthz/../detect", Scope.DETECT),
        ("/docs/x", Scope.DETECT),
    ],
)
def test_the_scope_that_a_path_requires(path: str, scope: Scope | None) -> None:
    assert scope_of_path(path) == scope


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
