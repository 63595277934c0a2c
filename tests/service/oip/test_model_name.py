"""`serve --name`: every interface shows the name, and clients route by it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import tritonclient.grpc

from lite_detr_client import GrpcClient
from service.cli import main
from service.settings import Settings
from tests.service.oip.running_service import Served, served
from tests.service.oip.triton_requests import MODEL, grpc_input, http_client, http_input
from tests.support.images import solid_png

NAME = "shelf-parts_v1.2"
IMAGE = solid_png((9, 99, 199))


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served(name=NAME) as service:
        yield service


def test_rest_and_grpc_show_the_name(service: Served) -> None:
    headers = {"Content-Type": "image/png"}
    result = httpx.post(f"{service.url}/detect", content=IMAGE, headers=headers).json()
    assert result["model"]["name"] == NAME
    assert f'"name":"{NAME}"' in httpx.get(f"{service.url}/v1/models").text.replace(" ", "")
    with GrpcClient(service.grpc) as client:
        assert client.model().name == NAME
        assert client.detect(IMAGE).model_name == NAME


def test_triton_clients_route_by_the_name(service: Served) -> None:
    with http_client(service.http) as http:
        assert http.is_model_ready(NAME)
        assert not http.is_model_ready(MODEL)
        assert http.get_model_metadata(NAME)["name"] == NAME
        assert http.infer(NAME, http_input(IMAGE)).get_response()["model_name"] == NAME
    with tritonclient.grpc.InferenceServerClient(service.grpc) as grpc:
        assert grpc.is_model_ready(NAME)
        assert grpc.infer(NAME, grpc_input(IMAGE)).get_response().model_name == NAME


def test_name_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITE_DETR_NAME", NAME)
    assert Settings().name == NAME


@pytest.mark.parametrize("name", ["a/b", "", "-a", "a b", "ä"])
def test_name_that_does_not_fit_into_a_url_stops_the_start(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--name", name]) == 2
    assert "--name=" in capsys.readouterr().err
