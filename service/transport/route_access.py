"""Which API key a route requires; declared with the route, looked up by the router's own matching.

The key is checked for the route that will respond and never by a pattern of our own: two readings
of one path can differ, and then a request reaches a route with the key of another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from service.access.api_keys import Scope as KeyScope

PUBLIC = None  # as a required scope: no key
_Route = TypeVar("_Route", bound=BaseRoute)
_ATTRIBUTE = "required_key_scope"
_UNKNOWN_PATH = KeyScope.DETECT


def require(scope: KeyScope | None, route: _Route) -> _Route:
    """Declares the scope that a route requires, `PUBLIC` for none; returns the route."""
    setattr(route, _ATTRIBUTE, scope)
    return route


def declared_scope(route: BaseRoute) -> KeyScope | None:
    """The scope that a route requires; `admin` for one that declares nothing."""
    scope: KeyScope | None = getattr(route, _ATTRIBUTE, KeyScope.ADMIN)
    return scope


def required_scope(routes: Iterable[BaseRoute], scope: Scope) -> KeyScope | None:
    """The scope that a request requires.

    Args:
        routes: of the router, in its order.
        scope: the ASGI scope of the request, as the router will see it.

    Returns:
        The scope of the route that will respond. `detect` if none does (404).
    """
    route = responding_route(routes, scope)
    return _UNKNOWN_PATH if route is None else declared_scope(route)


def responding_route(routes: Iterable[BaseRoute], scope: Scope) -> BaseRoute | None:
    """The route that responds to a request; arguments as for `required_scope`.

    Returns:
        The first that matches, otherwise the first that matches but for the method (405).
    """
    other_method: BaseRoute | None = None
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return route
        if match is Match.PARTIAL and other_method is None:
            other_method = route
    return other_method
