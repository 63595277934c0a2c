"""The OpenAPI document is complete and correct."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openapi_spec_validator
import pytest
from pydantic import BaseModel
from starlette.routing import Route

from service.access.api_keys import KeyRing, Scope, key_line, new_key
from service.errors import all_error_types
from service.rest import create_app, examples, schemas
from service.settings import given_settings, load_settings
from tests.service.rest.standin import StandIn

# Pages and files for browsers are not part of the API.
PAGES = {"/", "/docs", "/openapi.json"}


@pytest.fixture
def document(standin: StandIn) -> dict[str, Any]:
    return create_app(standin.as_detector(), load_settings()).openapi()


def test_every_route_is_described(standin: StandIn, document: dict[str, Any]) -> None:
    app = create_app(standin.as_detector(), load_settings())
    routes: dict[str, set[str]] = {}
    for route in app.routes:
        if isinstance(route, Route):
            routes.setdefault(route.path, set()).update(route.methods or ())
    described = {
        path: {verb.upper() for verb in verbs} for path, verbs in document["paths"].items()
    }
    assert set(described) == set(routes) - PAGES
    for path, verbs in described.items():
        assert verbs == routes[path] - {"HEAD"}


def test_every_error_has_an_example_under_its_status(document: dict[str, Any]) -> None:
    responses = document["paths"]["/detect"]["post"]["responses"]
    described = {
        name: example["value"]["status"] == int(status)
        for status, response in responses.items()
        if status != "200"
        for name, example in response["content"]["application/problem+json"]["examples"].items()
    }
    assert {error.code for error in all_error_types()} <= set(described)
    assert all(described.values())


@pytest.mark.parametrize(
    ("schema", "example"),
    [
        (schemas.Models, examples.MODELS),
        (schemas.Samples, examples.SAMPLES),
        *[(schemas.Problem, problem) for problem in examples.detect_problems().values()],
    ],
)
def test_examples_follow_their_schemas(schema: type[BaseModel], example: dict[str, Any]) -> None:
    schema.model_validate(example)


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [found for child in node.values() for found in references(child)]
        if isinstance(node, list):
            return [found for child in node for found in references(child)]
        return []

    found = references(document)
    assert found
    for reference in found:
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


def test_parameters_have_the_served_models_classes_and_defaults(document: dict[str, Any]) -> None:
    parameters = {item["name"]: item for item in document["paths"]["/detect"]["post"]["parameters"]}
    assert parameters["threshold"]["schema"]["default"] == 0.5
    assert parameters["labels"]["schema"]["items"]["enum"][0] == "qr_code"
    assert parameters["max_detections"]["schema"]["maximum"] == 100


@pytest.mark.parametrize("explain", [False, True])
async def test_only_formats_that_the_service_offers_are_listed(
    standin: StandIn, explain: bool
) -> None:
    app = create_app(standin.as_detector(), given_settings(explain=explain))
    operation = app.openapi()["paths"]["/detect"]["post"]
    parameters = {item["name"]: item["schema"] for item in operation["parameters"]}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        (entry,) = (await client.get("/v1/models")).json()["models"]
    formats = ["json", "coco", "image", "huggingface", *(["explain"] if explain else [])]
    assert parameters["format"]["enum"] == entry["output_formats"] == formats
    assert parameters.get("detection", {}).get("maximum") == (100 if explain else None)


async def test_the_document_follows_the_served_model(
    client: httpx.AsyncClient, standin: StandIn
) -> None:
    before = (await client.get("/openapi.json")).json()
    standin.model = replace(
        standin.model, version="ba9876543210", labels=("cat", "N/A"), score_threshold=0.25
    )
    after = (await client.get("/openapi.json")).json()
    assert before["info"]["version"] == "0123456789ab"
    assert after["info"]["version"] == "ba9876543210"
    parameters = {item["name"]: item for item in after["paths"]["/detect"]["post"]["parameters"]}
    assert parameters["labels"]["schema"]["items"]["enum"] == ["cat"]
    assert parameters["threshold"]["schema"]["default"] == 0.25


async def test_the_served_document_is_the_same(
    client: httpx.AsyncClient, document: dict[str, Any]
) -> None:
    served = (await client.get("/openapi.json")).json()
    assert served["openapi"] == "3.1.0"
    assert set(served["paths"]) == set(document["paths"])


def test_a_validator_of_openapi_accepts_it(document: dict[str, Any]) -> None:
    openapi_spec_validator.validate(document)


def _keyed_document(standin: StandIn, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "keys"
    file.write_text(key_line("shop", [Scope.DETECT], new_key()))
    return create_app(standin.as_detector(), load_settings(), KeyRing(file)).openapi()


def _operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{verb.upper()} {path}": operation
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
    }


PUBLIC = {"GET /healthz", "GET /readyz", "GET /samples"}


def test_operations_that_require_a_key_say_so(standin: StandIn, tmp_path: Path) -> None:
    document = _keyed_document(standin, tmp_path)
    schemes = document["components"]["securitySchemes"]
    assert (schemes["bearer"]["type"], schemes["bearer"]["scheme"]) == ("http", "bearer")
    assert (schemes["apiKey"]["in"], schemes["apiKey"]["name"]) == ("header", "X-API-Key")
    for label, operation in _operations(document).items():
        documented = {"401", "403"} & set(operation["responses"])
        if label in PUBLIC:
            assert "security" not in operation
            assert not documented
        else:
            assert operation["security"] == [{"bearer": []}, {"apiKey": []}], label
            assert documented == {"401", "403"}, label
    openapi_spec_validator.validate(document)


def test_without_keys_no_operation_requires_one(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"]
    for label, operation in _operations(document).items():
        assert "security" not in operation
        if label not in PUBLIC:
            assert operation["responses"]["401"]["description"].endswith(
                "if the service requires keys"
            )
