"""Errors over HTTP: their statuses, and the form of error responses."""

from __future__ import annotations

import httpx
import pytest
import structlog

from service.errors import (
    DeadlineExceeded,
    DetectionError,
    InvalidImage,
    NotReady,
    Overloaded,
    ShuttingDown,
    all_error_types,
)
from service.rest import schemas
from service.transport.http_status import ERROR_KINDS, error_kind
from tests.service.rest.conftest import MakeImage
from tests.service.rest.standin import StandIn


def test_the_table_covers_every_error() -> None:
    assert set(ERROR_KINDS) == set(all_error_types())


def test_a_subclass_has_the_status_of_its_base_class() -> None:
    class Blurred(InvalidImage):
        code = "blurred"

    assert error_kind(Blurred("x")) == ERROR_KINDS[InvalidImage]
    assert error_kind(DetectionError("x")).status == 500


@pytest.mark.parametrize("error_class", all_error_types())
async def test_each_error_is_a_problem(
    client: httpx.AsyncClient, image: MakeImage, standin: StandIn, error_class: type[DetectionError]
) -> None:
    standin.error = error_class("a reason")
    response = await client.post("/detect", content=image(), headers={"X-Request-Id": "mine"})
    kind = ERROR_KINDS[error_class]
    assert response.status_code == kind.status
    assert response.headers["content-type"] == "application/problem+json"
    problem = schemas.Problem.model_validate_json(response.content)
    assert problem == schemas.Problem(
        type=f"urn:lite-detr:problem:{error_class.code}",
        title=kind.title,
        status=kind.status,
        detail="a reason",
        code=error_class.code,
        request_id="mine",
    )


@pytest.mark.parametrize("error_class", [Overloaded, NotReady, ShuttingDown])
async def test_a_temporary_error_has_retry_after(
    client: httpx.AsyncClient, image: MakeImage, standin: StandIn, error_class: type[DetectionError]
) -> None:
    standin.error = error_class("later")
    response = await client.post("/detect", content=image())
    assert int(response.headers["retry-after"]) >= 1
    standin.error = error_class("later", retry_after_seconds=17)
    response = await client.post("/detect", content=image())
    assert response.headers["retry-after"] == "17"


async def test_a_passed_deadline_has_no_retry_after(
    client: httpx.AsyncClient, image: MakeImage, standin: StandIn
) -> None:
    standin.error = DeadlineExceeded("late")
    assert "retry-after" not in (await client.post("/detect", content=image())).headers


async def test_an_unexpected_exception_is_logged_and_gives_no_details_away(
    client: httpx.AsyncClient, image: MakeImage, standin: StandIn
) -> None:
    standin.error = ZeroDivisionError("secret")
    with structlog.testing.capture_logs() as logs:
        response = await client.post("/detect", content=image(), headers={"X-Request-Id": "mine"})
    assert response.status_code == 500
    assert response.json()["code"] == "internal"
    assert response.json()["request_id"] == "mine"
    assert "secret" not in response.text
    assert [(log["event"], log["request_id"]) for log in logs] == [("unexpected error", "mine")]


async def test_a_wrong_path_gets_404_as_a_problem(client: httpx.AsyncClient) -> None:
    response = await client.get("/detekt")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert "/detekt" in schemas.Problem.model_validate_json(response.content).detail


@pytest.mark.parametrize(("method", "path"), [("GET", "/detect"), ("POST", "/healthz")])
async def test_a_wrong_method_gets_405_and_names_the_right_one(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await client.request(method, path)
    assert response.status_code == 405
    assert response.json()["code"] == "method_not_allowed"
    assert response.headers["allow"]


async def test_a_body_that_cannot_be_an_image_gets_415(client: httpx.AsyncClient) -> None:
    response = await client.post("/detect", json={"image": "abc"})
    assert response.status_code == 415
    assert "application/json" in response.json()["detail"]


async def test_an_empty_body_gets_400(client: httpx.AsyncClient) -> None:
    response = await client.post("/detect")
    assert response.status_code == 400
    assert "empty" in response.json()["detail"]


async def test_a_truncated_jpeg_gets_400(client: httpx.AsyncClient, image: MakeImage) -> None:
    response = await client.post("/detect", content=image()[:400])
    assert response.status_code == 400
    assert "truncated" in response.json()["detail"]


async def test_too_many_pixels_get_413(client: httpx.AsyncClient, image: MakeImage) -> None:
    response = await client.post("/detect", content=image((2100, 2000), "PNG"))
    assert response.status_code == 413
    assert "2100 x 2000" in response.json()["detail"]
