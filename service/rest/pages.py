"""What people see in a browser: the page to try photos, its samples, and the API's description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

STATIC_DIR = Path(__file__).parent / "static"
_SAMPLE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
# Browsers keep the files and ask whether they are still the same (by ETag).
_REVALIDATE = {"Cache-Control": "no-cache"}


def page_routes(openapi: Callable[[], Mapping[str, Any]]) -> list[BaseRoute]:
    """Routes of everything meant for a browser.

    Args:
        openapi: gives the API's description for the model that serves, for /openapi.json.
    """
    samples = orjson.dumps({"samples": _samples(STATIC_DIR / "samples")})

    folders = {
        "/samples": STATIC_DIR / "samples",
        "/static": STATIC_DIR,
        "/swagger": _swagger_dir(),
    }

    async def page(_request: Request) -> Response:
        return FileResponse(STATIC_DIR / "index.html", headers=_REVALIDATE)

    async def docs(_request: Request) -> Response:
        return FileResponse(STATIC_DIR / "docs.html", headers=_REVALIDATE)

    async def describe(_request: Request) -> Response:
        return Response(orjson.dumps(openapi()), media_type="application/json", headers=_REVALIDATE)

    async def list_samples(_request: Request) -> Response:
        return Response(samples, media_type="application/json", headers=_REVALIDATE)

    return [
        Route("/", page),
        Route("/docs", docs),
        Route("/openapi.json", describe),
        Route("/samples", list_samples),
        *(Mount(path, _Files(folder)) for path, folder in folders.items() if folder.is_dir()),
    ]


class _Files(StaticFiles):
    """Files of a folder that a browser keeps but revalidates."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory=directory)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_REVALIDATE)
        return response


def _samples(folder: Path) -> list[dict[str, str]]:
    """The photos to try, by name; none where the folder is missing."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        {"name": path.stem.replace("_", " ").replace("-", " "), "url": f"samples/{path.name}"}
        for path in found
        if path.suffix.lower() in _SAMPLE_SUFFIXES
    ]


def _swagger_dir() -> Path:
    """Where the package `fastapi-offline` keeps Swagger UI; the package itself is not run."""
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package fastapi-offline, which carries Swagger UI, is missing")
    return Path(spec.origin).parent / "static"
