"""The id of an HTTP request, in its ASGI scope: shared by the adapters that serve HTTP."""

from __future__ import annotations

from starlette.types import Scope

REQUEST_ID_HEADER = "X-Request-Id"


def request_id_of(scope: Scope) -> str:
    """Returns the id that the middleware `service.rest.RequestContext` gave to a request."""
    request_id: str = scope["state"]["request_id"]
    return request_id
