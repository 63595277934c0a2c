"""Pages for browsers: the page to try images on, its samples, and the API's documentation."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from service.rest import examples, schemas
from service.rest.openapi import OpenApiDocument, ok_response
from service.rest.probes import add_get_route
from service.transport.route_access import PUBLIC, require

STATIC_DIR = Path(__file__).parent / "static"
_SAMPLE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
# In the folder of samples: for each file the classes of the models that it is for.
_SAMPLE_CLASSES = "classes.json"
# Browsers store the files, and revalidate them by ETag.
_REVALIDATE = {"Cache-Control": "no-cache"}


def add_page_routes(app: FastAPI, document: OpenApiDocument) -> None:
    """Adds the routes for browsers.

    Args:
        app: gets the routes.
        document: served as /openapi.json.
    """
    samples = _list_samples(STATIC_DIR / "samples")
    folders = {
        "/samples": STATIC_DIR / "samples",
        "/static": STATIC_DIR,
        "/swagger": _swagger_dir(),
    }

    async def index(_request: Request) -> Response:
        return FileResponse(STATIC_DIR / "index.html", headers=_REVALIDATE)

    async def docs(_request: Request) -> Response:
        return FileResponse(STATIC_DIR / "docs.html", headers=_REVALIDATE)

    async def openapi(_request: Request) -> Response:
        return JSONResponse(document.current(), headers=_REVALIDATE)

    async def list_samples(response: Response) -> schemas.Samples:
        response.headers.update(_REVALIDATE)
        return samples

    add_get_route(
        app,
        "/samples",
        list_samples,
        PUBLIC,
        operation_id="samples",
        summary="Sample photos",
        response_model=schemas.Samples,
        responses=ok_response("Sample photos", examples.SAMPLES),
    )
    app.router.routes += [
        require(PUBLIC, Route("/", index)),
        require(PUBLIC, Route("/docs", docs)),
        require(PUBLIC, Route("/openapi.json", openapi)),
        *(
            require(PUBLIC, Mount(path, _Files(folder)))
            for path, folder in folders.items()
            if folder.is_dir()
        ),
    ]


class _Files(StaticFiles):
    """Files of a folder that a browser stores and revalidates."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory=directory)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_REVALIDATE)
        return response


def _list_samples(folder: Path) -> schemas.Samples:
    """The sample photos, by name; none where the folder is missing."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    listed = folder / _SAMPLE_CLASSES
    classes = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    return schemas.Samples(
        samples=[
            schemas.Sample(
                name=path.stem.replace("_", " ").replace("-", " "),
                url=f"samples/{path.name}",
                classes=classes.get(path.name, []),
            )
            for path in found
            if path.suffix.lower() in _SAMPLE_SUFFIXES
        ]
    )


def _swagger_dir() -> Path:
    """The folder of Swagger UI in the package `fastapi-offline`; nothing of it is executed."""
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package fastapi-offline, which contains Swagger UI, is missing")
    return Path(spec.origin).parent / "static"
