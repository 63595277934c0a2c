"""Helpers for routes whose OpenAPI description FastAPI cannot derive from their signature.

These routes receive their bodies in chunks, within limits (`http_body`), and return encoded
bytes, so that FastAPI sees only a `Request` and a `Response`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Union

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.transport.http_request import REQUEST_ID_HEADER

JsonObject = dict[str, Any]
RequestHandler = Callable[[Request], Coroutine[Any, Any, Response]]

BINARY: JsonObject = {"type": "string", "format": "binary"}

RESPONSE_HEADERS: dict[str, JsonObject] = {
    REQUEST_ID_HEADER: {
        "description": "the request's id: the client's if it was valid, otherwise generated",
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "milliseconds by stage, as browsers' developer tools show them",
        "schema": {"type": "string"},
        "example": "decode;dur=4.1, forward;dur=61.2, total;dur=68.0",
    },
    "Retry-After": {
        "description": "seconds after which a retry is useful",
        "schema": {"type": "integer", "minimum": 1},
    },
}


def response_headers(*names: str) -> dict[str, JsonObject]:
    """The descriptions of some of our response headers."""
    return {name: RESPONSE_HEADERS[name] for name in names}


def schema_ref(model: type[BaseModel]) -> JsonObject:
    """A reference to a model that a route of the document has registered."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


class RequestRoute(APIRoute):
    """A route whose endpoint reads the request itself.

    FastAPI describes it as any other route, but has no parameters to read for it.
    """

    def get_route_handler(self) -> RequestHandler:
        """Returns the endpoint, which takes the request."""
        endpoint: RequestHandler = self.endpoint
        return endpoint


def register_schemas(route: APIRoute, *models: type[BaseModel]) -> None:
    """Adds models to the document's components, for `schema_ref`.

    FastAPI itself adds the models of JSON bodies only, not those of application/problem+json.
    """
    union: Any = Union[models]  # noqa: UP007 - of a tuple
    field = APIRoute(route.path, route.endpoint, response_model=union).response_field
    assert field is not None, "a route with a response model has a field for it"
    route.response_fields = {**route.response_fields, "components": field}
