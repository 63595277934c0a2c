"""Health, metadata, configuration, statistics and the repository, over HTTP and gRPC."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf.json_format import MessageToDict, ParseDict
from tritonclient.utils import InferenceServerException

from service.oip.tensors import OUTPUTS
from tests.service.oip.running_service import Served, served
from tests.service.oip.triton_requests import MODEL, http_client, input_of
from tests.support.fake_device import FAKE_MODEL
from tests.support.images import solid_png

Client = Any  # tritonclient.http.InferenceServerClient or the gRPC one
VERSION = FAKE_MODEL.version


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest) -> Client:
    return request.getfixturevalue(request.param)


def plain(response: Any) -> Any:
    """A gRPC message in HTTP's JSON form, its 64-bit numbers included."""
    if isinstance(response, dict | list):
        return response
    fields = MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _numbers(fields)


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        # Names and texts stay; the one "version" that is all digits is a text too.
        keep = ("version", "versions", "string_value", "name")
        return {key: v if key in keep else _numbers(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value


def test_a_ready_service_reports_it(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, VERSION)


@pytest.mark.parametrize(("name", "version"), [("other", ""), (MODEL, "1"), ("", "")])
def test_an_unknown_model_is_not_ready(client: Client, name: str, version: str) -> None:
    assert not client.is_model_ready(name, version)


def test_the_server_names_itself_and_its_extensions(client: Client) -> None:
    response = plain(client.get_server_metadata())
    assert response["name"] == "lite-detr"
    assert response["version"]
    assert "binary_tensor_data" in response["extensions"]


def test_metadata_describes_the_tensors(client: Client) -> None:
    response = plain(client.get_model_metadata(MODEL))
    assert response["versions"] == [VERSION]
    assert response["inputs"] == [{"name": "IMAGE", "datatype": "BYTES", "shape": [-1]}]
    assert [(each["name"], each["datatype"], each["shape"]) for each in response["outputs"]] == [
        (spec.name, spec.datatype, list(spec.shape)) for spec in OUTPUTS
    ]


def test_metadata_of_a_version_is_that_of_the_model(client: Client) -> None:
    assert plain(client.get_model_metadata(MODEL, VERSION)) == plain(
        client.get_model_metadata(MODEL)
    )


def test_both_transports_return_the_same_metadata(
    http: tritonclient.http.InferenceServerClient, grpc: tritonclient.grpc.InferenceServerClient
) -> None:
    for over_http, over_grpc in (
        (http.get_server_metadata(), grpc.get_server_metadata()),
        (http.get_model_metadata(MODEL), grpc.get_model_metadata(MODEL)),
        ({"config": http.get_model_config(MODEL)}, grpc.get_model_config(MODEL)),
        (http.get_inference_statistics(MODEL), grpc.get_inference_statistics(MODEL)),
        ({"models": http.get_model_repository_index()}, grpc.get_model_repository_index()),
    ):
        assert ParseDict(over_http, type(over_grpc)()) == over_grpc


def test_the_configuration_has_dimensions_priorities_and_limits(client: Client) -> None:
    response = plain(client.get_model_config(MODEL))
    config = response.get("config", response)
    assert config["max_batch_size"] == 0
    (image,) = config["input"]
    assert (image["name"], image["data_type"], image["dims"]) == ("IMAGE", "TYPE_STRING", [-1])
    assert config["dynamic_batching"]["priority_levels"] == 2
    assert config["parameters"]["max_images"]["string_value"] == "4"
    assert config["parameters"]["threshold"]["string_value"] == "0.5"
    assert config["parameters"]["jpeg_decoding"]["string_value"] == "exact"


@pytest.mark.parametrize("name", [MODEL, ""])
def test_statistics_count_images_batches_and_failures(
    client: Client, service: Served, name: str
) -> None:
    def stats() -> Any:
        (entry,) = plain(client.get_inference_statistics(name))["model_stats"]
        return entry

    before = stats()
    client.infer(MODEL, input_of(client, solid_png((1, 1, 1)), solid_png((2, 2, 2))))
    with pytest.raises(InferenceServerException):
        client.infer(MODEL, input_of(client, b"no image"))
    after = stats()
    assert (after["name"], after["version"]) == (MODEL, VERSION)
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["last_inference"] >= before["last_inference"]
    for kind, count in {"success": 2, "fail": 1, "queue": 2, "compute_infer": 2}.items():
        then, now = (each["inference_stats"][kind] for each in (before, after))
        assert now["count"] - then["count"] == count
        assert now["ns"] > then["ns"]
    executed = after["execution_count"] - before["execution_count"]
    assert executed in (1, 2)  # together or one by one
    images = [
        sum(batch["batch_size"] * batch["compute_infer"]["count"] for batch in each["batch_stats"])
        for each in (before, after)
    ]
    assert images[1] - images[0] == 2


@pytest.mark.parametrize("question", ["get_model_metadata", "get_model_config"])
@pytest.mark.parametrize(("name", "version"), [("other", ""), (MODEL, "1")])
def test_the_error_for_an_unknown_model_names_the_served_one(
    client: Client, question: str, name: str, version: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        getattr(client, question)(name, version)
    assert caught.value.status() in ("404", "StatusCode.NOT_FOUND")
    assert "unknown" in caught.value.message()
    assert (MODEL if version == "" else VERSION) in caught.value.message()


def test_the_index_lists_the_model(client: Client) -> None:
    response = plain(client.get_model_repository_index())
    entries = response if isinstance(response, list) else response["models"]
    assert entries == [{"name": MODEL, "version": VERSION, "state": "READY", "reason": ""}]


def test_the_index_can_leave_out_models_that_are_not_ready(service: Served) -> None:
    url = f"{service.url}/v2/repository/index"
    service.control.loaded = False
    try:
        everything = httpx.post(url).json()
        ready = httpx.post(url, json={"ready": True}).json()
    finally:
        service.control.loaded = True
    assert [entry["state"] for entry in everything] == ["UNAVAILABLE"]
    assert ready == []


def test_a_model_can_be_unloaded_and_loaded(client: Client, service: Served) -> None:
    service.control.calls.clear()
    client.unload_model(MODEL)
    assert not service.control.loaded
    client.load_model(MODEL)
    assert service.control.calls == [("unload", MODEL), ("load", MODEL)]
    assert service.control.loaded


def test_an_unknown_model_cannot_be_loaded(client: Client) -> None:
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="there is no model 'other'") as caught:
            change("other")
        assert caught.value.status() in ("404", "StatusCode.NOT_FOUND")


def test_a_failed_load_gives_the_reason(client: Client, service: Served) -> None:
    service.control.failure = "weights.safetensors is cut short"
    try:
        with pytest.raises(InferenceServerException, match="is cut short") as caught:
            client.load_model(MODEL)
    finally:
        service.control.failure = ""
    assert caught.value.status() in ("500", "StatusCode.INTERNAL")


def test_a_load_cannot_bring_its_own_configuration(client: Client, service: Served) -> None:
    service.control.calls.clear()
    with pytest.raises(InferenceServerException, match="'config' is not supported"):
        client.load_model(MODEL, config='{"backend": "python"}')
    assert service.control.calls == []


def test_without_model_control_nothing_can_be_loaded_or_unloaded() -> None:
    with served() as service:
        for client_of, address in (
            (http_client, service.http),
            (tritonclient.grpc.InferenceServerClient, service.grpc),
        ):
            with client_of(address) as client:
                for change in (client.load_model, client.unload_model):
                    with pytest.raises(InferenceServerException) as caught:
                        change(MODEL)
                    assert caught.value.status() in ("503", "StatusCode.UNAVAILABLE")
                    assert "model_control=none" in caught.value.message()
                assert client.get_model_repository_index()
        assert service.control.calls == []


def test_a_service_that_is_not_ready_is_live_and_gives_the_reason(
    service: Served, client: Client
) -> None:
    service.detector.begin_drain()
    try:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready(MODEL)
        refused = httpx.get(f"{service.url}/v2/health/ready")
        assert (refused.status_code, refused.json()) == (
            503,
            {"error": "the service is shutting down"},
        )
    finally:
        service.detector._draining = False
