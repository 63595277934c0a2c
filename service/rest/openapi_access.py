"""API keys in the OpenAPI document: how they are sent, and which operations require one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from service.access.api_keys import Scope
from service.rest import examples
from service.rest.problems import PROBLEM_MEDIA_TYPE, has_oip_form
from service.rest.schemas import Problem
from service.transport.http_request import REQUEST_ID_HEADER
from service.transport.openapi import JsonObject, response_headers, schema_ref
from service.transport.route_access import declared_scope

_SCHEMES: JsonObject = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "an API key, as `Authorization: Bearer KEY`",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "an API key, as `X-API-Key: KEY`",
    },
}
_OIP_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/OipError"}}}
_IF_REQUIRED = ", if the service requires keys"


def describe_access(
    document: dict[str, Any], routes: Iterable[BaseRoute], *, keys_required: bool
) -> None:
    """Adds the API keys to an OpenAPI document.

    Args:
        document: changed in place.
        routes: of the application.
        keys_required: whether the service has API keys; without them operations only list the
            responses 401 and 403.
    """
    document.setdefault("components", {})["securitySchemes"] = _SCHEMES
    for route in routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        scope = declared_scope(route)
        if scope is None:
            continue
        for method in route.methods or ():
            operation = document["paths"][route.path_format][method.lower()]
            operation["responses"] |= _refusals(route.path_format, scope, keys_required)
            if keys_required:
                operation["security"] = [{name: []} for name in _SCHEMES]


def _refusals(path: str, scope: Scope, keys_required: bool) -> JsonObject:
    condition = "" if keys_required else _IF_REQUIRED
    unauthenticated = examples.problem(
        401, "unauthenticated", "Unauthorized", "an API key is required: Authorization: Bearer KEY"
    )
    forbidden = examples.problem(
        403, "forbidden", "Forbidden", f"the API key 'shop' lacks the scope '{scope}'"
    )
    challenge = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return {
        "401": {
            "description": f"no API key, or an unknown one{condition}",
            "headers": response_headers(REQUEST_ID_HEADER) | challenge,
            "content": _content(path, unauthenticated),
        },
        "403": {
            "description": f"an API key without the scope `{scope}`{condition}",
            "headers": response_headers(REQUEST_ID_HEADER),
            "content": _content(path, forbidden),
        },
    }


def _content(path: str, problem: JsonObject) -> JsonObject:
    if has_oip_form(path):
        return _OIP_ERROR
    named = {problem["code"]: {"value": problem}}
    return {PROBLEM_MEDIA_TYPE: {"schema": schema_ref(Problem), "examples": named}}
