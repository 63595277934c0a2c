"""Inference by the public client over each of its four transports."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from service.errors import NotReady, Overloaded
from tests.service.oip.conftest import ERROR_COLOUR, LIMIT
from tests.service.oip.running_service import Served
from tests.service.oip.triton_requests import (
    MODEL,
    NAMES,
    assert_results,
    expected_of,
    grpc_input,
    http_input,
    input_of,
    outputs_of,
)
from tests.support.images import encode_png, solid_png

Client = Any  # tritonclient.http.InferenceServerClient or the gRPC one
EVERYTHING = {"threshold": "0"}
NOISE = b"\x00\x01nothing"
IMAGES = tuple(solid_png(colour) for colour in ((100, 100, 103), (1, 2, 3), (250, 9, 77)))


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest) -> Client:
    return request.getfixturevalue(request.param)


def refusal(client: Client, inputs: Any, **arguments: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(arguments.pop("model", MODEL), inputs, **arguments)
    return caught.value


def test_one_image_gets_all_outputs(client: Client) -> None:
    result = client.infer(MODEL, input_of(client, IMAGES[0]), parameters=EVERYTHING)
    assert_results(result, IMAGES[0])


def test_several_images_get_each_their_own_rows(client: Client) -> None:
    result = client.infer(MODEL, input_of(client, *IMAGES), parameters=EVERYTHING)
    assert_results(result, *IMAGES)


def test_all_images_of_a_request_get_the_model_that_served_at_its_beginning(
    client: Client, service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, detect = [], service.detector.detect

    async def recording(*arguments: Any, served: Any = None, **options: Any) -> Any:
        given.append(served)
        return await detect(*arguments, served=served, **options)

    monkeypatch.setattr(service.detector, "detect", recording)
    client.infer(MODEL, input_of(client, *IMAGES), parameters=EVERYTHING)
    assert given == [service.detector.served] * len(IMAGES)


def test_a_response_names_its_model_and_its_request(client: Client) -> None:
    result = client.infer(MODEL, input_of(client, IMAGES[0]), "000000000000", request_id="mine")
    response = result.get_response()
    if not isinstance(response, dict):
        response = {"model_version": response.model_version, "id": response.id}
    assert (response["model_version"], response["id"]) == ("000000000000", "mine")


def test_only_the_requested_outputs_are_sent(client: Client) -> None:
    outputs = outputs_of(client, "scores", "num_detections")
    result = client.infer(MODEL, input_of(client, IMAGES[0]), outputs=outputs)
    response = result.get_response()
    sent = response["outputs"] if isinstance(response, dict) else response.outputs
    names = [each["name"] if isinstance(each, dict) else each.name for each in sent]
    assert names == ["scores", "num_detections"]
    assert result.as_numpy("boxes") is None


def test_an_image_without_detections_has_only_padding(client: Client) -> None:
    result = client.infer(MODEL, input_of(client, IMAGES[0]), parameters={"threshold": "1"})
    assert result.as_numpy("num_detections").tolist() == [[0]]
    assert not result.as_numpy("boxes").any()
    assert (result.as_numpy("class_ids") == -1).all()


def test_max_detections_is_the_number_of_rows(client: Client) -> None:
    parameters = {"threshold": "0", "max_detections": 2}
    result = client.infer(MODEL, input_of(client, *IMAGES), parameters=parameters)
    assert_results(result, *IMAGES, rows=2)


def test_labels_select_classes(client: Client) -> None:
    parameters = {"threshold": "0", "labels": "linear, aztec"}
    result = client.infer(MODEL, input_of(client, IMAGES[0]), parameters=parameters)
    wanted = [label for label in expected_of(IMAGES[0]).labels.tolist() if label in (2, 4)]
    assert wanted
    class_ids = result.as_numpy("class_ids")[0]
    assert class_ids[: result.as_numpy("num_detections")[0, 0]].tolist() == wanted


def test_the_shape_of_images_may_be_n_by_1(client: Client) -> None:
    (tensor,) = input_of(client, IMAGES[0])
    transport = tritonclient.http if hasattr(client, "_pool") else tritonclient.grpc
    column = transport.InferInput("IMAGE", [2, 1], "BYTES")
    column.set_data_from_numpy(np.array([[IMAGES[0]], [IMAGES[1]]], dtype=np.object_))
    assert tensor.shape() == [1]
    assert_results(client.infer(MODEL, [column], parameters=EVERYTHING), *IMAGES[:2])


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_each_tensor_may_be_sent_in_json_or_in_binary(
    http: tritonclient.http.InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    result = http.infer(
        MODEL,
        http_input(*IMAGES, binary=binary_in),
        outputs=[tritonclient.http.InferRequestedOutput(name, binary_out) for name in NAMES],
        parameters=EVERYTHING,
    )
    assert_results(result, *IMAGES)
    for output in result.get_response()["outputs"]:
        assert ("data" in output) is not binary_out


def test_json_and_binary_outputs_can_be_mixed(
    http: tritonclient.http.InferenceServerClient,
) -> None:
    outputs = [
        tritonclient.http.InferRequestedOutput(name, index % 2 == 0)
        for index, name in enumerate(NAMES)
    ]
    result = http.infer(MODEL, http_input(IMAGES[0]), outputs=outputs, parameters=EVERYTHING)
    assert_results(result, IMAGES[0])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_a_compressed_request_is_decompressed(
    http: tritonclient.http.InferenceServerClient, algorithm: str, binary: bool
) -> None:
    result = http.infer(
        MODEL,
        http_input(*IMAGES, binary=binary),
        parameters=EVERYTHING,
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert_results(result, *IMAGES)


async def test_the_asynchronous_http_client_is_served(service: Served) -> None:
    async with tritonclient.http.aio.InferenceServerClient(service.http) as client:
        assert await client.is_server_ready()
        assert await client.get_model_repository_index()
        results = await asyncio.gather(
            *(client.infer(MODEL, http_input(image), parameters=EVERYTHING) for image in IMAGES)
        )
        for image, result in zip(IMAGES, results, strict=True):
            assert_results(result, image)
        with pytest.raises(InferenceServerException, match="not an image"):
            await client.infer(MODEL, http_input(NOISE))


async def test_the_asynchronous_grpc_client_is_served(service: Served) -> None:
    async with tritonclient.grpc.aio.InferenceServerClient(service.grpc) as client:
        assert await client.is_server_ready()
        results = await asyncio.gather(
            *(client.infer(MODEL, grpc_input(image), parameters=EVERYTHING) for image in IMAGES)
        )
        for image, result in zip(IMAGES, results, strict=True):
            assert_results(result, image)
        with pytest.raises(InferenceServerException, match="not an image"):
            await client.infer(MODEL, grpc_input(NOISE))


def test_the_error_of_a_single_image_is_the_detectors(client: Client) -> None:
    error = refusal(client, input_of(client, NOISE))
    assert error.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert error.message().startswith("the 9 bytes are not an image")


def test_a_bad_image_among_others_is_named_by_its_index(client: Client) -> None:
    error = refusal(client, input_of(client, IMAGES[0], IMAGES[0], b"", NOISE))
    assert error.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert error.message().startswith("IMAGE[2]: the image is empty")


@pytest.mark.parametrize(
    ("image", "http_status"),
    [
        (b"%PDF-1.7 and more", "415"),
        (solid_png((0, 0, 0), 1001, 1000), "413"),
        (IMAGES[0][:-30], "400"),
        (solid_png(ERROR_COLOUR), "500"),
    ],
    ids=["pdf", "pixels", "truncated", "engine"],
)
def test_each_error_of_an_image_has_its_status(
    client: Client, image: bytes, http_status: str
) -> None:
    error = refusal(client, input_of(client, image))
    on_grpc = "INTERNAL" if http_status == "500" else "INVALID_ARGUMENT"
    assert error.status() in (http_status, f"StatusCode.{on_grpc}")
    assert error.message()


def test_a_body_over_the_limit_is_refused(client: Client) -> None:
    error = refusal(client, input_of(client, IMAGES[0] + bytes(2 * LIMIT)))
    assert error.status() in ("413", "StatusCode.RESOURCE_EXHAUSTED")


@pytest.mark.parametrize(
    ("name", "shape", "values", "words"),
    [
        ("IMAGE", [1], np.zeros(1, dtype=np.float32), "datatype"),
        ("PHOTO", [1], np.array([IMAGES[0]], dtype=np.object_), "unknown input 'PHOTO'"),
        ("IMAGE", [1, 2], np.array([IMAGES[:2]], dtype=np.object_), r"takes \[N\]"),
        ("IMAGE", [5], np.array([IMAGES[0]] * 5, dtype=np.object_), "1 to 4 images"),
        ("IMAGE", [0], np.array([], dtype=np.object_), "1 to 4 images"),
    ],
    ids=["datatype", "name", "rank", "too-many", "none"],
)
def test_an_input_that_the_model_does_not_have_is_refused(
    client: Client, name: str, shape: list[int], values: Any, words: str
) -> None:
    transport = tritonclient.http if hasattr(client, "_pool") else tritonclient.grpc
    tensor = transport.InferInput(name, shape, "FP32" if values.dtype == "float32" else "BYTES")
    tensor.set_data_from_numpy(values)
    error = refusal(client, [tensor])
    assert error.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert re.search(words, error.message()), error.message()


def test_a_request_has_one_input(client: Client) -> None:
    error = refusal(client, input_of(client, IMAGES[0]) * 2)
    assert "2 inputs" in error.message()


def test_an_unknown_output_is_refused_with_the_known_ones(client: Client) -> None:
    error = refusal(client, input_of(client, IMAGES[0]), outputs=outputs_of(client, "masks"))
    assert error.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert "'masks'" in error.message()
    assert "num_detections" in error.message()


def test_an_output_that_is_requested_twice_is_refused(client: Client) -> None:
    outputs = outputs_of(client, "boxes", "boxes")
    assert "twice" in refusal(client, input_of(client, IMAGES[0]), outputs=outputs).message()


def test_unsupported_output_parameters_are_refused(client: Client) -> None:
    transport = tritonclient.http if hasattr(client, "_pool") else tritonclient.grpc
    classified = transport.InferRequestedOutput("scores", class_count=3)
    error = refusal(client, input_of(client, IMAGES[0]), outputs=[classified])
    assert "classification is not supported" in error.message()
    shared = transport.InferRequestedOutput("scores")
    shared.set_shared_memory("region", 8)
    error = refusal(client, input_of(client, IMAGES[0]), outputs=[shared])
    assert "shared memory is not supported" in error.message()


def test_an_input_in_shared_memory_is_refused(client: Client) -> None:
    transport = tritonclient.http if hasattr(client, "_pool") else tritonclient.grpc
    tensor = transport.InferInput("IMAGE", [1], "BYTES")
    tensor.set_shared_memory("region", 8)
    assert "shared memory is not supported" in refusal(client, [tensor]).message()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"threshold": "2"}, "within 0..1"),
        ({"max_detections": 0}, "within 1..100"),
        ({"labels": "unicorn"}, "'unicorn'"),
    ],
)
def test_a_bad_parameter_is_named(client: Client, parameters: Any, words: str) -> None:
    error = refusal(client, input_of(client, IMAGES[0]), parameters=parameters)
    assert error.status() in ("422", "StatusCode.INVALID_ARGUMENT")
    assert words in error.message()


def test_an_unknown_parameter_is_ignored(client: Client) -> None:
    parameters = EVERYTHING | {"custom": "x", "debug": True, "level": 3}
    assert_results(
        client.infer(MODEL, input_of(client, IMAGES[0]), parameters=parameters), IMAGES[0]
    )


def test_a_passed_timeout_gets_deadline_exceeded(client: Client) -> None:
    error = refusal(client, input_of(client, IMAGES[0]), timeout=1)
    assert error.status() in ("504", "StatusCode.DEADLINE_EXCEEDED")


def test_a_timeout_that_does_not_pass_changes_nothing(client: Client) -> None:
    result = client.infer(
        MODEL, input_of(client, IMAGES[0]), parameters=EVERYTHING, timeout=100_000_000, priority=1
    )
    assert_results(result, IMAGES[0])


def test_an_unknown_model_or_version_is_not_found(client: Client) -> None:
    for model, version in (("other", ""), (MODEL, "7")):
        error = refusal(client, input_of(client, IMAGES[0]), model=model, model_version=version)
        assert error.status() in ("404", "StatusCode.NOT_FOUND")


@pytest.mark.parametrize(
    ("error", "statuses"),
    [
        (NotReady("no model is loaded"), ("503", "StatusCode.UNAVAILABLE")),
        (Overloaded("busy"), ("429", "StatusCode.RESOURCE_EXHAUSTED")),
    ],
)
def test_temporary_errors_have_their_status(
    client: Client,
    service: Served,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    statuses: tuple[str, str],
) -> None:
    async def refuse(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(service.detector, "detect", refuse)
    refused = refusal(client, input_of(client, IMAGES[0]))
    assert refused.status() in statuses
    assert refused.message() == str(error)


def test_an_unloaded_model_is_not_ready(
    client: Client, service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.detector, "_loaded", False)
    assert client.is_server_live()
    assert not client.is_model_ready(MODEL)
    error = refusal(client, input_of(client, IMAGES[0]))
    assert error.status() in ("503", "StatusCode.UNAVAILABLE")
    assert error.message() == "no model is loaded"


def test_an_unexpected_exception_gives_no_details_away(
    client: Client, service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(service.detector, "detect", fail)
    for images in (IMAGES[:1], IMAGES[:2]):
        refused = refusal(client, input_of(client, *images))
        assert refused.status() in ("500", "StatusCode.INTERNAL")
        assert refused.message() == "An unexpected error."


def test_requests_are_counted_by_protocol_and_outcome(client: Client, service: Served) -> None:
    protocol = "oip_http" if hasattr(client, "_pool") else "oip_grpc"

    def counts() -> list[float]:
        return [
            service.value("requests_total", protocol=protocol, outcome=outcome)
            for outcome in ("ok", "invalid_image", "malformed_request")
        ]

    before = counts()
    client.infer(MODEL, input_of(client, IMAGES[0]))
    refusal(client, input_of(client, NOISE))
    refusal(client, input_of(client, IMAGES[0]), outputs=outputs_of(client, "masks"))
    assert counts() == [count + 1 for count in before]


def test_images_share_batches_across_a_request(client: Client, service: Served) -> None:
    noise = np.random.default_rng(5).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    images = tuple(encode_png(np.roll(noise, shift, axis=0)) for shift in range(4))
    assert_results(client.infer(MODEL, input_of(client, *images), parameters=EVERYTHING), *images)
