"""The protocol's HTTP routes are described in the OpenAPI document of the service."""

from __future__ import annotations

from typing import Any

import httpx
import openapi_spec_validator
import pytest
from pydantic import BaseModel
from starlette.routing import Route

from service.oip import http_schemas as schemas
from service.oip.http_route import OipRoute
from tests.service.oip.grpc_caller import build_app
from tests.service.rest.standin import MODEL, StandIn
from tests.support.images import solid_png

INFER = {
    "id": "mine",
    "inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": ["eA=="]}],
    "parameters": {"threshold": 0.5},
    "outputs": [{"name": "scores"}],
}
BODIES: list[tuple[str, str, type[BaseModel]]] = [
    ("GET", "/v2", schemas.ServerMetadata),
    ("GET", "/v2/health/live", schemas.ServerLive),
    ("GET", "/v2/health/ready", schemas.ServerReady),
    ("GET", "/v2/models/stats", schemas.ModelStatistics),
    ("GET", f"/v2/models/{MODEL.name}", schemas.ModelMetadata),
    ("GET", f"/v2/models/{MODEL.name}/versions/{MODEL.version}", schemas.ModelMetadata),
    ("GET", f"/v2/models/{MODEL.name}/ready", schemas.ModelReady),
    ("GET", f"/v2/models/{MODEL.name}/config", schemas.ModelConfig),
    ("GET", f"/v2/models/{MODEL.name}/stats", schemas.ModelStatistics),
    ("POST", "/v2/repository/index", schemas.RepositoryIndex),
    ("POST", f"/v2/repository/models/{MODEL.name}/load", schemas.RepositoryResponse),
    ("GET", "/v2/nothing", schemas.OipError),
    ("DELETE", "/v2", schemas.OipError),
]


@pytest.fixture
def document() -> dict[str, Any]:
    return build_app(StandIn()).openapi()


def test_every_path_is_described_once_for_each_method(document: dict[str, Any]) -> None:
    app = build_app(StandIn())
    routes = {
        (route.path, method)
        for route in app.routes
        if isinstance(route, OipRoute) and route.include_in_schema
        for method in route.methods or ()
    }
    described = {
        (path, verb.upper())
        for path, operations in document["paths"].items()
        if path.startswith("/v2")
        for verb in operations
    }
    assert described == routes
    paths = {
        route.path
        for route in app.routes
        if isinstance(route, Route) and route.path.startswith("/v2")
    }
    assert {path for path, _ in described} == paths - {"/v2/{rest:path}"}


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [each["operationId"] for path in document["paths"].values() for each in path.values()]
    assert len(ids) == len(set(ids))


def test_a_validator_of_openapi_accepts_the_document(document: dict[str, Any]) -> None:
    openapi_spec_validator.validate(document)


@pytest.mark.parametrize(("method", "path", "schema"), BODIES)
async def test_responses_follow_their_schemas(
    method: str, path: str, schema: type[BaseModel]
) -> None:
    async with _calling(StandIn()) as client:
        response = await client.request(method, path)
    schema.model_validate_json(response.content)


async def test_an_inference_follows_its_schemas() -> None:
    schemas.InferenceRequest.model_validate(INFER)
    async with _calling(StandIn()) as client:
        path = f"/v2/models/{MODEL.name}/infer"
        raw = {"Inference-Header-Content-Length": "0"}
        refused = await client.post(path, json=INFER)
        binary = await client.post(path, content=solid_png((0, 0, 0), 200, 100), headers=raw)
    schemas.OipError.model_validate_json(refused.content)
    head = int(binary.headers["inference-header-content-length"])
    inferred = schemas.InferenceResponse.model_validate_json(binary.content[:head])
    assert inferred.model_name == MODEL.name


async def test_get_paths_serve_head_and_refuse_the_rest_in_the_protocols_form() -> None:
    async with _calling(StandIn()) as client:
        assert (await client.head("/v2/health/ready")).status_code == 200
        refused = await client.post("/v2/health/ready")
    assert refused.status_code == 405
    assert refused.json() == {"error": "this path accepts GET, not POST"}


def _calling(standin: StandIn) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_app(standin))
    return httpx.AsyncClient(transport=transport, base_url="http://service")
