"""Our messages and those of the public client: the same wire format, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from tritonclient.grpc import service_pb2 as theirs

from service.oip.errors import OipRefused
from service.oip.grpc_messages import parameter_values, read_infer_request
from service.oip.pb import grpc_service_pb2 as ours
from service.oip.request import decode_image
from service.oip.tensors import pack_elements
from service.transport.grpc_call import parse_message
from service.transport.grpc_status import MalformedMessage


def _messages(file: Any) -> Iterator[Any]:
    pending = list(file.message_types_by_name.values())
    while pending:
        message = pending.pop()
        yield message
        pending.extend(message.nested_types)


def test_both_are_loaded_in_one_process_in_separate_pools() -> None:
    assert ours.DESCRIPTOR.pool is not descriptor_pool.Default()
    assert theirs.DESCRIPTOR.pool is descriptor_pool.Default()
    mine, other = ours.ModelInferRequest(id="x"), theirs.ModelInferRequest(id="x")
    assert mine.SerializeToString() == other.SerializeToString()


def test_every_field_of_ours_is_the_clients_field() -> None:
    pool = descriptor_pool.Default()
    compared = 0
    for message in _messages(ours.DESCRIPTOR):
        theirs_by_number = pool.FindMessageTypeByName(message.full_name).fields_by_number
        for number, field in message.fields_by_number.items():
            other = theirs_by_number[number]
            assert (field.name, field.type) == (other.name, other.type), field.full_name
            assert field.is_repeated == other.is_repeated, field.full_name
            for kind in ("message_type", "enum_type", "containing_oneof"):
                one, two = getattr(field, kind), getattr(other, kind)
                assert (one and one.full_name) == (two and two.full_name), field.full_name
            compared += 1
    assert compared > 100


def test_every_method_is_the_clients_method() -> None:
    source = descriptor_pool.Default().FindServiceByName("inference.GRPCInferenceService")
    for method in ours.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        other = source.methods_by_name[method.name]
        assert method.input_type.full_name == other.input_type.full_name
        assert method.output_type.full_name == other.output_type.full_name
        assert method.client_streaming == other.client_streaming
        assert method.server_streaming == other.server_streaming


def request(**changes: Any) -> ours.ModelInferRequest:
    tensor = ours.ModelInferRequest.InferInputTensor(name="IMAGE", datatype="BYTES", shape=[1])
    fields: dict[str, Any] = {
        "inputs": [tensor],
        "raw_input_contents": [pack_elements([b"image"])],
    }
    return ours.ModelInferRequest(**(fields | changes))


def test_images_may_be_in_contents() -> None:
    message = request(raw_input_contents=[])
    message.inputs[0].contents.bytes_contents.append(b"image")
    assert read_infer_request(message, 4).images == (b"image",)


def test_images_may_be_base64_if_declared() -> None:
    message = request(raw_input_contents=[pack_elements([b"aW1hZ2U="])])
    message.inputs[0].parameters["content_type"].string_param = "base64"
    assert read_infer_request(message, 4).images == (b"image",)


def test_a_base64_image_is_not_written_out_for_an_error_message() -> None:
    written: list[int] = []

    class Image(bytes):
        def __repr__(self) -> str:
            written.append(len(self))
            return super().__repr__()

    assert decode_image(0, Image(b"aW1hZ2U=")) == b"image"
    with pytest.raises(OipRefused, match=r"element 2 .* it contains '!'"):
        decode_image(2, Image(b"aW1h!2U="))
    with pytest.raises(OipRefused, match=r"element 0 .* it is 7"):
        decode_image(0, 7)
    assert not written


def test_images_may_not_be_in_both_places() -> None:
    message = request()
    message.inputs[0].contents.bytes_contents.append(b"image")
    with pytest.raises(OipRefused, match="both contents and raw_input_contents"):
        read_infer_request(message, 4)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([], "0 elements; its shape says 1"),
        ([b"a", b"b"], "2 entries"),
        ([b"\xff\xff\xff\xff"], "4294967295 bytes"),
        ([pack_elements([b"a", b"b"])], "beyond the 1 elements"),
    ],
)
def test_raw_contents_that_do_not_match_the_shape_are_refused(raw: list[bytes], words: str) -> None:
    with pytest.raises(OipRefused, match=words):
        read_infer_request(request(raw_input_contents=raw), 4)


@pytest.mark.parametrize("shape", [[-1], [0], [2**62], [], [1, 2]])
def test_invalid_shapes_are_refused(shape: list[int]) -> None:
    message = request()
    message.inputs[0].shape[:] = shape
    with pytest.raises(OipRefused, match="shape"):
        read_infer_request(message, 4)


@pytest.mark.parametrize("size", [0, 1, 2**62, -1])
def test_a_shape_of_too_many_numbers_is_refused_before_parsing(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = request()
    message.inputs[0].shape[:] = [size] * 10_001
    data = message.SerializeToString()
    monkeypatch.setattr(ours.ModelInferRequest, "ParseFromString", None)
    with pytest.raises(MalformedMessage, match="more than 10000 fields"):
        parse_message(ours.ModelInferRequest, data)


def test_too_many_parameters_are_refused() -> None:
    message = request()
    for number in range(101):
        message.parameters[str(number)].int64_param = number
    with pytest.raises(OipRefused, match="more than 100 parameters"):
        read_infer_request(message, 4)


def test_a_parameter_without_a_value_is_none() -> None:
    message = request()
    message.parameters["threshold"].SetInParent()
    message.parameters["priority"].uint64_param = 1
    values = parameter_values(message.parameters)
    assert values == {"threshold": None, "priority": 1}
    assert read_infer_request(message, 4).parameters.options.threshold is None
