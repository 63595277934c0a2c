"""Bodies that are not what their Content-Type says, and bodies that are too large."""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Callable

import httpx
import pytest

from tests.service.oip.grpc_caller import build_app
from tests.service.rest.conftest import MakeImage
from tests.service.rest.standin import MODEL, StandIn

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "multipart/form-data; boundary=x"],
)
async def test_an_image_that_is_sent_as_something_else_is_named(
    client: httpx.AsyncClient,
    image: MakeImage,
    form: str,
    content_type: str,
) -> None:
    code, sent_as = ("malformed_json", "JSON")
    if "form" in content_type:
        code, sent_as = ("malformed_form", "a form")
    response = await client.post(
        "/detect", content=image(form=form), headers={"Content-Type": content_type}
    )
    problem = response.json()
    assert (response.status_code, problem["code"]) == (400, code)
    assert f"is a {form} image, but is sent as {sent_as}" in problem["detail"]


async def test_an_image_that_is_sent_as_the_json_of_a_protocol_is_named(image: MakeImage) -> None:
    transport = httpx.ASGITransport(build_app(StandIn()))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        response = await client.post(f"/v2/models/{MODEL.name}/infer", content=image())
    assert response.status_code == 400
    assert "the body is a JPEG image, but is sent as JSON" in response.json()["error"]


@pytest.mark.parametrize("content_type", ["image/jpeg", "text/plain", "application/json", None])
async def test_a_body_that_is_too_large_is_refused_as_a_body(
    client: httpx.AsyncClient, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await client.post("/detect", content=b"a" * ((1 << 20) + 1), headers=headers)
    if content_type == "text/plain":  # refused before it is read
        assert response.status_code == 415
        return
    problem = response.json()
    assert (response.status_code, problem["code"]) == (413, "body_too_large")
    assert "the request's body is larger than the 1048576 bytes accepted" in problem["detail"]


@pytest.mark.parametrize("kind", ["image", "form", "json"])
@pytest.mark.parametrize(
    "encoding", ["gzip", "x-gzip", "GZIP", "deflate", "identity", "", "br", "x"]
)
async def test_every_body_may_be_compressed_or_is_refused_by_its_encoding(
    client: httpx.AsyncClient, image: MakeImage, kind: str, encoding: str
) -> None:
    plain = {
        "image": {"content": image()},
        "form": {"files": {"f": ("a.jpg", image())}},
        "json": {"json": {"inputs": base64.b64encode(image()).decode()}},
    }
    request = httpx.Request("POST", "http://service/detect?format=json", **plain[kind])  # type: ignore[arg-type]
    known: dict[str, Callable[[bytes], bytes]] = {
        "deflate": zlib.compress,
        "identity": bytes,
        "": bytes,
    }
    compress = known.get(encoding, gzip.compress)
    response = await client.post(
        "/detect?format=json",
        content=compress(request.read()),
        headers={
            "Content-Encoding": encoding,
            "Content-Type": request.headers.get("content-type", "image/jpeg"),
        },
    )
    if encoding in {"br", "x"}:
        problem = response.json()
        assert (response.status_code, problem["code"]) == (415, "unsupported_encoding")
        assert f"Content-Encoding is '{encoding}'; it may be gzip or deflate" in problem["detail"]
    else:
        assert response.status_code == 200
        assert len(response.json()["detections"]) == 2


async def test_a_compressed_body_has_the_same_limits(client: httpx.AsyncClient) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "image/jpeg"}
    bomb = gzip.compress(bytes(1 << 24))
    response = await client.post("/detect", content=bomb, headers=headers)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    response = await client.post("/detect", content=b"plain", headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "malformed_request")
